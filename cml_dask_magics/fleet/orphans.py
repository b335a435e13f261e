"""Sessions of a cluster that no launch call returned: the call failed, returned too few, or its kernel died."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Collection
from dataclasses import replace

from cml_dask_magics.fleet.launches import Launches
from cml_dask_magics.model.record import Record
from cml_dask_magics.model.times import Times
from cml_dask_magics.platforms.api import PlatformError
from cml_dask_magics.platforms.pool import SessionPool
from cml_dask_magics.registry.journal import Journal
from cml_dask_magics.registry.run_folder import scheduler_session, session_record


class Orphans:
    """Finds them by their logs in the cluster's folder, where only the cluster's own sessions write.

    All methods block and may be called from any thread.

    Parameters
    ----------
    journal : Journal
        The cluster's record.
    pool : SessionPool
    launches : Launches
        The launch calls that this kernel makes for it.
    times : Times
    """

    def __init__(self, journal: Journal, pool: SessionPool, launches: Launches, times: Times) -> None:
        self._journal = journal
        self._pool = pool
        self._launches = launches
        self._times = times

    def adopt(self, connected: Collection[str]) -> None:
        """Put sessions of a failed launch call on record, once their logs show that they are ours.

        Parameters
        ----------
        connected : collection of str
            Ids of the sessions whose worker is connected.
        """
        record = self._journal.record
        if any(self._launches.is_over(launch) for launch in record.launching):
            logged = self._logged(record)
            if logged:  # only those that are alive for sure: ended ones have logs, too
                self.take_in(record, logged & (self._live() | set(connected)))

    def take_in(self, record: Record, ids: Collection[str]) -> Record:
        """Put sessions that no launch call returned on record; returns the record."""
        if not ids:
            return record
        scheduler = scheduler_session(self._journal.folder)
        # Only if our listing shows a session does its absence later mean that it has ended.
        mine, live = self._pool.platform.session, self._live()
        new = tuple(
            replace(session_record(record, session, scheduler), launched_from=mine if session in live else "")
            for session in sorted(ids)
        )

        def add(record: Record) -> Record:
            known = {session.id for session in record.sessions}
            return replace(record, sessions=(*record.sessions, *(s for s in new if s.id not in known)))

        return self._journal.note(add)  # not `update`: they can be stopped without being on disk

    def unaccounted(self, record: Record) -> set[str]:
        """Sessions with a log in this cluster's folder that are not on record, and that may still be up."""
        unknown = self._logged(record)
        # Sessions that ended have left the record, so some may be among these; stopping them again does no harm.
        with contextlib.suppress(PlatformError):
            listing = self._pool.listing()
            unknown = {session for session in unknown if session not in listing or listing[session].phase != "ended"}
            if not record.launching:  # every launch call returned: what is not listed has ended
                unknown &= set(listing)
        return unknown

    def suspects(self, record: Record) -> set[str]:
        """Unknown sessions that may come from the launch calls without an answer: they are newer than the calls."""
        begun = [launch.at for launch in record.launching]
        if not begun:
            return set()
        with contextlib.suppress(PlatformError):
            return {
                session
                for session, info in self._pool.listing().items()
                if info.phase != "ended"
                and (info.created_at is None or info.created_at > min(begun) - self._times.clocks_differ_s)
            } - {session.id for session in record.sessions}
        return set()

    def wait_for_suspects(self, suspects: Collection[str], record: Record, deadline: float) -> bool:
        """Wait until some of the `suspects` turn out to be ours; False at the `deadline` or after `Times.suspects_s`.

        One that has not started cannot be told from somebody else's and is left alone: if it is ours, it exits when it
        starts, because the cluster's folder is closed by then.
        """
        deadline = min(deadline, time.monotonic() + self._times.suspects_s)
        doubtful = set(suspects) - {session.id for session in record.sessions}
        while doubtful:
            with contextlib.suppress(PlatformError):
                listing = self._pool.listing()
                doubtful = {session for session in doubtful if session in listing and listing[session].phase != "ended"}
            if doubtful & self._journal.registry.logged_sessions(record):
                return True
            if time.monotonic() > deadline:
                break
            time.sleep(0.2)
        return False

    def _logged(self, record: Record) -> set[str]:
        """Sessions with a log in this cluster's folder that are not on record."""
        return self._journal.registry.logged_sessions(record) - {session.id for session in record.sessions}

    def _live(self) -> set[str]:
        """Sessions in our listing that have not ended; none if it cannot be had."""
        with contextlib.suppress(PlatformError):
            return {session for session, info in self._pool.listing().items() if info.phase != "ended"}
        return set()
