"""The sessions of one cluster, stopped and accounted for: nothing is stopped that is not the cluster's own.

Knows the registry and the platform, not Dask. All methods block and may be called from any thread.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

from cml_dask_magics.fleet.launches import STOP_TIMEOUT_S, LaunchedFleet
from cml_dask_magics.model.lifecycle import SessionInfo, usage, with_usage_until_now
from cml_dask_magics.model.record import Record
from cml_dask_magics.model.status import Ended
from cml_dask_magics.platforms.api import PlatformError
from cml_dask_magics.platforms.pool import Launched
from cml_dask_magics.registry.files import rename
from cml_dask_magics.registry.liveness import answers, scheduler_address
from cml_dask_magics.registry.registry import GoneError, RegistryError
from cml_dask_magics.registry.run_folder import FORMER_SCHEDULER_FILE, SCHEDULER_FILE, scheduler_session, session_record

_SUSPECT_WAIT_S = 30.0
# Moving a worker's data away may take long.
_STOPPING_LIMIT_S = 600.0
# Clocks of the platform and of this machine may differ by so much.
_CLOCKS_DIFFER_S = 120.0


class StillUpError(RuntimeError):
    """Sessions that were told to stop have not ended; their record is kept."""


class Fleet(LaunchedFleet):
    """The sessions of one cluster; parameters as for `LaunchedFleet`."""

    def withdraw(self, ids: Collection[str], requested: int | None = None) -> None:
        """Note that sessions are about to be stopped on purpose, before anything about them is done.

        Who sees them end then does not take it for a loss.

        Parameters
        ----------
        ids : collection of str
        requested : int, optional
            How many workers are asked for from now on.
        """
        self._stopping |= set(ids)
        self._change_sessions(ids, {"stopping_at": time.time()}, requested)

    def reinstate(self, ids: Collection[str], requested: int) -> None:
        """Take `withdraw` back: they go on working."""
        self._stopping -= set(ids)
        self._change_sessions(ids, {"stopping_at": None}, requested)

    def _change_sessions(self, ids: Collection[str], fields: Mapping[str, Any], requested: int | None = None) -> None:
        def change(record: Record) -> Record:
            sessions = tuple(replace(s, **fields) if s.id in ids else s for s in record.sessions)
            return replace(record, sessions=sessions, requested=record.requested if requested is None else requested)

        with contextlib.suppress(GoneError, RegistryError):  # a full disk must not keep anybody from stopping
            self.update(change)

    def stop(self, ids: Collection[str], timeout_s: float = STOP_TIMEOUT_S) -> None:
        """Stop some of the cluster's sessions and see them end.

        Raises
        ------
        StillUpError
            Naming those that the platform did not end.
        """
        known = {session.id for session in self._record.sessions}
        ids = [session for session in ids if session in known]
        if not ids:
            return
        self.withdraw(ids)
        left = self._stop(ids, timeout_s)
        gone, visible = set(ids) - set(left), set(self._visible())
        self.observe({session: SessionInfo(session, "ended", "stopped") for session in gone & visible})
        # Of the others the platform's word is all there is. They stay on record, for who can see them, or for `end`.
        if gone - visible:
            self._change_sessions(gone - visible, {"ended_at": time.time()})
        if left:
            raise StillUpError(self._still_up(left))

    def finish_stopping(self) -> None:
        """Stop what should have ended long ago: a kernel died over it, or the platform did not keep its word.

        Raises
        ------
        StillUpError
            Naming those that the platform did not end.
        """
        mine = self.pool.platform.session
        limit = time.time() - _STOPPING_LIMIT_S
        self.stop(
            [
                session.id
                for session in self._record.sessions
                if session.stopping_at is not None
                and (session.launched_from == mine or session.ended_at is None)
                and session.stopping_at < limit
            ]
        )

    def tidy_refusal(self, launched: Launched, doomed: Collection[str]) -> str:
        """Stop what a launch call that was refused in part left behind; the platform's words."""
        asked = len(launched.refusals) + len(launched.sessions)
        message = f"{len(launched.refusals)} of {asked} more sessions were refused: {launched.refusals[0]}"
        self.stop(doomed)
        if not any(message == event for _, event in self._record.events):  # once, if it goes on
            self.log(message)
        return message

    def adopt(self, connected: Collection[str]) -> None:
        """Take sessions into the record that a broken launch call created, once they show that they are ours.

        Parameters
        ----------
        connected : collection of str
            Ids of the sessions whose worker is connected.
        """
        now = time.time()
        if any(self._is_over(launch, now) for launch in self._record.launching):
            logged = self._logged(self._record)
            if logged:  # only those of which it is sure that they live: ended ones printed something, too
                self._adopt(self._record, logged & (self._live() | set(connected)))

    def settle(self) -> None:
        """Wait for launch calls under way: they cannot be called back, and what they launch must be known."""
        with self._changed:
            self._changed.wait_for(lambda: self._in_flight == 0)

    def end(self, timeout_s: float = STOP_TIMEOUT_S) -> Ended:
        """Stop every session of the cluster, see them all end, then forget the cluster. Can be called again.

        Raises
        ------
        StillUpError
            Naming the sessions that the platform did not end; the record is kept.
        RegistryError
            If the sessions have ended, but the record cannot be removed.
        """
        with self._changed:
            self._ending = True
        self.settle()
        try:
            record = self.update(lambda record: replace(record, state="stopping"))
        except GoneError:  # another kernel was quicker
            self.unwatch()
            return self._ended(self._record, 0)
        except RegistryError:  # a full disk must not keep anybody from stopping
            record = self._record = replace(self._record, state="stopping")
        address = scheduler_address(record, self.folder)
        # From here on what starts late ends by itself (see `commands`); what started before has left its log.
        with contextlib.suppress(OSError):  # a folder that cannot be written must not keep anybody from stopping
            rename(self.registry.state_directory, self.folder, SCHEDULER_FILE, FORMER_SCHEDULER_FILE)
        deadline = time.monotonic() + timeout_s
        self._suspects |= self._suspects_of(record)
        stopped: set[str] = set()
        while True:
            record = self._adopt(record, self._unaccounted(record) - stopped)
            ids = {session.id for session in record.sessions}
            self._stopping |= ids
            left = self._stop(ids, max(1.0, deadline - time.monotonic()))
            if left:
                with contextlib.suppress(RegistryError):
                    self.log(f"did not stop: {', '.join(sorted(left))}")
                raise StillUpError(self._still_up(left))
            stopped |= ids
            suspects_left = self._suspects_left(record, stopped, min(deadline, time.monotonic() + _SUSPECT_WAIT_S))
            with contextlib.suppress(GoneError, RegistryError):  # another kernel's launch may have been answered since
                record = self.update(lambda current: current)
            late = {session.id for session in record.sessions} - stopped
            if not suspects_left and not late and not self._unaccounted(record) - stopped:
                break
        self._see_the_scheduler_end(record, address, deadline)
        self.unwatch()
        record = replace(with_usage_until_now(record), sessions=())
        try:
            self.registry.forget(record)
        except RegistryError as error:
            raise RegistryError(
                f"every session of cluster {record.name!r} has been stopped, but it stays on record: {error}"
            ) from error
        self._record = record
        return self._ended(record, len(stopped))

    def _stop(self, ids: Collection[str], timeout_s: float) -> dict[str, str]:
        return self.pool.stop(ids, visible=set(self._visible()), timeout_s=timeout_s) if ids else {}

    def _logged(self, record: Record) -> set[str]:
        """Sessions that print for this cluster, but are not on record."""
        return self.registry.logged_sessions(record) - {session.id for session in record.sessions}

    def _live(self) -> set[str]:
        """Sessions of this kernel's session that have not ended, as far as a listing tells."""
        with contextlib.suppress(PlatformError):
            return {session for session, info in self.pool.listing().items() if info.phase != "ended"}
        return set()

    def _unaccounted(self, record: Record) -> set[str]:
        """Sessions that print for this cluster, that no launch call told of, and that may still be up."""
        unknown = self._logged(record)
        # Of those, sessions that ended and were accounted for are known no more; stopping them again does no harm.
        with contextlib.suppress(PlatformError):
            listing = self.pool.listing()
            unknown = {session for session in unknown if session not in listing or listing[session].phase != "ended"}
            if not record.launching:  # every launch was accounted for: what is not listed has ended
                unknown &= set(listing)
        return unknown

    def _adopt(self, record: Record, ids: Collection[str]) -> Record:
        """Take sessions into the record that are ours, but whose ids no launch call gave us."""
        if not ids:
            return record
        scheduler = scheduler_session(self.folder)
        # Ours to see end only if our listing shows it; of others its silence proves nothing.
        mine, live = self.pool.platform.session, self._live()
        new = tuple(
            replace(
                session_record(record, session, "scheduler" if session == scheduler else "worker"),
                launched_from=mine if session in live else "",
            )
            for session in sorted(ids)
        )

        def add(record: Record) -> Record:
            known = {session.id for session in record.sessions}
            return replace(record, sessions=(*record.sessions, *(s for s in new if s.id not in known)))

        try:
            return self.update(add)
        except (GoneError, RegistryError):  # stop them all the same
            return add(record)

    def _suspects_of(self, record: Record) -> set[str]:
        """Sessions that may come of launch calls nobody accounted for: they appeared since, and nobody knows them."""
        begun = [launch.at for launch in record.launching]
        if not begun:
            return set()
        with contextlib.suppress(PlatformError):
            return {
                session
                for session, info in self.pool.listing().items()
                if info.phase != "ended"
                and (info.created_at is None or info.created_at > min(begun) - _CLOCKS_DIFFER_S)
            } - {session.id for session in record.sessions}
        return set()

    def _suspects_left(self, record: Record, stopped: set[str], deadline: float) -> bool:
        """Whether sessions that appeared during a broken launch have turned out to be ours.

        One that never starts cannot be told from somebody else's and is left alone: if it is ours, it ends by itself
        as soon as it starts, because the cluster's folder is closed by then.
        """
        doubtful = self._suspects - {session.id for session in record.sessions} - stopped
        while doubtful:
            with contextlib.suppress(PlatformError):
                listing = self.pool.listing()
                doubtful = {session for session in doubtful if session in listing and listing[session].phase != "ended"}
            if doubtful & self.registry.logged_sessions(record):
                return True
            if time.monotonic() > deadline:
                break
            time.sleep(0.2)
        return False

    def _see_the_scheduler_end(self, record: Record, address: str | None, deadline: float) -> None:
        """Proof for sessions that our listing does not show: workers end with their scheduler, so it must be silent."""
        visible = set(self._visible())
        schedulers = [session.id for session in record.sessions if session.role == "scheduler"]
        if address is None or visible.issuperset(session.id for session in record.sessions):
            return
        while answers(address, timeout_s=1.0):
            if time.monotonic() > deadline:
                raise StillUpError(self._still_up(dict.fromkeys(schedulers, f"it still answers at {address}")))
            time.sleep(0.2)

    def _still_up(self, left: Mapping[str, str]) -> str:
        shown = "; ".join(f"session {session}: {words}" for session, words in list(left.items())[:10])
        more = f"; and {len(left) - 10} more" if len(left) > 10 else ""
        return (
            f"cluster {self._record.name!r}: {len(left)} of its sessions did not stop ({shown}{more}). "
            f"They are kept on record; run %dask_down {self._record.name} again, or stop them in the platform's pages"
        )

    def _ended(self, record: Record, sessions: int) -> Ended:
        return Ended(record.name, sessions, max(0.0, time.time() - record.created_at), usage(record))
