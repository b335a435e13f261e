"""Sessions of a cluster that no launch call told of: the call broke, was answered short, or its kernel died in it."""

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
    """Finds them by what they print into the cluster's folder, which nobody else's sessions do.

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
        """Take sessions into the record that a broken launch call created, once they show that they are ours.

        Parameters
        ----------
        connected : collection of str
            Ids of the sessions whose worker is connected.
        """
        record = self._journal.record
        if any(self._launches.is_over(launch) for launch in record.launching):
            logged = self._logged(record)
            if logged:  # only those of which it is sure that they live: ended ones printed something, too
                self.take_in(record, logged & (self._live() | set(connected)))

    def take_in(self, record: Record, ids: Collection[str]) -> Record:
        """Put sessions on record that are ours, but whose ids no launch call gave us; the record then."""
        if not ids:
            return record
        scheduler = scheduler_session(self._journal.folder)
        # Ours to see end only if our listing shows it; of others its silence proves nothing.
        mine, live = self._pool.platform.session, self._live()
        new = tuple(
            replace(session_record(record, session, scheduler), launched_from=mine if session in live else "")
            for session in sorted(ids)
        )

        def add(record: Record) -> Record:
            known = {session.id for session in record.sessions}
            return replace(record, sessions=(*record.sessions, *(s for s in new if s.id not in known)))

        return self._journal.note(add)  # who is to stop them can do so whether they are written down or not

    def unaccounted(self, record: Record) -> set[str]:
        """Sessions that print for this cluster, that no launch call told of, and that may still be up."""
        unknown = self._logged(record)
        # Of those, sessions that ended and were accounted for are known no more; stopping them again does no harm.
        with contextlib.suppress(PlatformError):
            listing = self._pool.listing()
            unknown = {session for session in unknown if session not in listing or listing[session].phase != "ended"}
            if not record.launching:  # every launch was accounted for: what is not listed has ended
                unknown &= set(listing)
        return unknown

    def suspects(self, record: Record) -> set[str]:
        """Sessions that may come of launch calls nobody accounted for: they appeared since, and nobody knows them."""
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
        """Whether some of the `suspects` turn out to be ours, before it is `deadline` or they have had their time.

        One that never starts cannot be told from somebody else's and is left alone: if it is ours, it ends by itself
        as soon as it starts, because the cluster's folder is closed by then.
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
        """Sessions that print for this cluster, but are not on record."""
        return self._journal.registry.logged_sessions(record) - {session.id for session in record.sessions}

    def _live(self) -> set[str]:
        """Sessions of this kernel's session that have not ended, as far as a listing tells."""
        with contextlib.suppress(PlatformError):
            return {session for session, info in self._pool.listing().items() if info.phase != "ended"}
        return set()
