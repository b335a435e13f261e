"""The sessions of one cluster: follows the platform's listing, keeps the record up to date, and stops sessions.

Knows the registry and the platform, not Dask. All methods block and may be called from any thread.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Collection, Container, Iterable, Iterator, Mapping, Set
from dataclasses import replace
from pathlib import Path
from typing import Any

from cml_dask_magics.fleet.launches import Launches
from cml_dask_magics.fleet.orphans import Orphans
from cml_dask_magics.fleet.proof import Proof
from cml_dask_magics.fleet.shell_lines import session_reader
from cml_dask_magics.model.lifecycle import (
    SessionInfo,
    is_planned,
    session_state,
    usage,
    with_usage_of,
    with_usage_until_now,
)
from cml_dask_magics.model.record import Record, Role, SessionRecord
from cml_dask_magics.model.settings import Settings
from cml_dask_magics.model.status import Ended, SessionState, Usage
from cml_dask_magics.model.times import USUAL, Times
from cml_dask_magics.model.words import disowned_words
from cml_dask_magics.platforms.api import PlatformError
from cml_dask_magics.platforms.pool import Launched, SessionPool
from cml_dask_magics.registry.files import rename
from cml_dask_magics.registry.journal import Journal
from cml_dask_magics.registry.kernels import other_machine, this_kernel
from cml_dask_magics.registry.liveness import Liveness, answers, liveness, scheduler_address
from cml_dask_magics.registry.registry import GoneError, Registry, RegistryError
from cml_dask_magics.registry.run_folder import (
    FORMER_SCHEDULER_FILE,
    LOG_SUFFIX,
    LOGS,
    SCHEDULER_FILE,
    read_tail,
    unknown_launches,
)
from cml_dask_magics.registry.start_times import usual_start_s

Change = Callable[[Record], Record]


def _unchanged(record: Record) -> Record:
    return record


class StillUpError(RuntimeError):
    """Sessions that were told to stop have not ended; the record is kept."""


class Fleet:
    """The sessions of one cluster.

    Parameters
    ----------
    registry : Registry
    pool : SessionPool
    record : Record
        The cluster's record in `registry`.
    settings : Settings
        For the sessions that are launched.
    times : Times, optional

    Attributes
    ----------
    journal : Journal
    launches : Launches
    orphans : Orphans
    proof : Proof
    notes : tuple of str
        For the user: how the settings were changed to fit the platform.
    disowned : set of str
        Sessions that stood in the record, and were not stopped, because nothing showed that they are the cluster's.
    usual_start_s : float or None
        How long starts on this platform usually take.
    """

    def __init__(
        self, registry: Registry, pool: SessionPool, record: Record, settings: Settings, times: Times = USUAL
    ) -> None:
        self.pool = pool
        self.times = times
        self.journal = Journal(registry, record, this_kernel(pool.platform.session))
        self.launches = Launches(self.journal, pool, settings, times)
        self.orphans = Orphans(self.journal, pool, self.launches, times)
        self.proof = Proof(self.journal, pool, self.launches.launched, times)
        self.notes: tuple[str, ...] = ()
        self.disowned: set[str] = set()
        # Read once: a start that is under way does not change it.
        self.usual_start_s = usual_start_s(registry.directory, record.backend)
        self._infos: dict[str, SessionInfo] = {}
        self._lost: dict[str, SessionRecord] = {}
        self._unwatch: Callable[[], None] | None = None
        # `session_of`, and the sessions that it is for: they seldom change, and it is asked for every second.
        self._reader: tuple[tuple[SessionRecord, ...], Callable[[Any], str]] | None = None

    @property
    def record(self) -> Record:
        """The record as this kernel last read or wrote it."""
        return self.journal.record

    @property
    def folder(self) -> Path:
        """The run folder: what the sessions share."""
        return self.journal.folder

    @property
    def settings(self) -> Settings:
        """The settings of the sessions that are launched."""
        return self.launches.settings

    @property
    def session_of(self) -> Callable[[Any], str]:
        """From a worker's name to its session; Dask's scheduler can be sent it."""
        sessions = self.record.sessions
        if self._reader is None or self._reader[0] is not sessions:
            ids = frozenset(session.id for session in sessions)
            self._reader = sessions, session_reader(self.settings.processes, ids)
        return self._reader[1]

    def scheduler_address(self) -> str | None:
        """The scheduler's address, once it is known; read from a file."""
        return scheduler_address(self.record, self.folder)

    def liveness(self) -> Liveness:
        """Whether the cluster answers, by a connection to its scheduler."""
        return liveness(self.record, self.folder, self.times.answer_s)

    # Sessions

    @property
    def plan(self) -> set[str]:
        """Ids of the sessions of the workers that were asked for."""
        return {session.id for session in self.record.sessions if is_planned(session)}

    @property
    def lost(self) -> dict[str, SessionRecord]:
        """Sessions that ended without having been told to, by id."""
        return dict(self._lost)

    def visible(self) -> list[str]:
        """Ids of the sessions that our listing shows: those that our own session launched."""
        mine = self.pool.platform.session
        return [session.id for session in self.record.sessions if session.launched_from == mine]

    def watch(self) -> None:
        """Follow the platform's listing until `unwatch`."""
        if self._unwatch is None:
            self._unwatch = self.pool.watch(self.visible, self.observe, self.proof.of)

    def unwatch(self) -> None:
        """Stop following the listing."""
        if self._unwatch is not None:
            self._unwatch()
            self._unwatch = None

    def observe(self, infos: Mapping[str, SessionInfo]) -> None:
        """Put what is new in a listing on record."""
        now = time.time()
        ended = {session for session, info in infos.items() if info.phase == "ended"}
        lost: dict[str, SessionRecord] = {}

        def change(record: Record) -> Record:
            sessions = [_observed(session, infos.get(session.id), now) for session in record.sessions]
            record = replace(record, sessions=tuple(session for session in sessions if session.id not in ended))
            for session in sessions:
                if session.id not in ended:
                    continue
                if _is_loss(record, session):
                    lost[session.id] = session
                record = _with_end_of(record, session, infos[session.id].status)
                record = with_usage_of(record, [session], now)
            return record

        if any(s.id in ended or _observed(s, infos.get(s.id), now) is not s for s in self.record.sessions):
            self.journal.note(change)
            self._lost.update(lost)
        # Last, so that whoever learns of an end here finds it on record.
        self._infos.update(infos)

    def states(self, sessions: Iterable[SessionRecord], connected: Container[str]) -> Iterator[SessionState]:
        """The state of each of these sessions, given the ids of those whose Dask processes are connected."""
        record, infos, lost = self.record, self._infos, self._lost  # looked up once, for thousands of sessions
        for session in sessions:
            yield session_state(
                record,
                infos.get(session.id),
                lost=session.id in lost,
                stopping=session.stopping_at is not None,
                connected=session.id in connected,
            )

    def note_connected(self, connected: Collection[str], memory_bytes: Mapping[str, int]) -> None:
        """Put on record which sessions' workers are connected, and the memory that a session has by its workers."""
        self.proof.note_connected(connected)
        if all(s.connected_at is not None or s.id not in connected for s in self.record.sessions):
            return
        now = time.time()

        def change(record: Record) -> Record:
            came = {s.id for s in record.sessions if s.connected_at is None and s.id in connected}
            if any(s.automatic for s in record.sessions if s.id in came):
                record = replace(record, failed_replacements=0)
            sessions = (
                replace(
                    s,
                    connected_at=now,
                    running_at=s.running_at or now,
                    real_memory_gib=memory_bytes[s.id] / 2**30 if memory_bytes.get(s.id) else None,
                )
                if s.id in came
                else s
                for s in record.sessions
            )
            return replace(record, sessions=tuple(sessions))

        self.journal.note(change)

    def drop_lost(self, sessions: Collection[str]) -> None:
        """Forget these lost sessions, because others have replaced them."""
        for session in sessions:
            self._lost.pop(session, None)

    def ended_as(self, session: str) -> str:
        """The status with which the platform listed a session as ended; empty if it has not."""
        info = self._infos.get(session)
        return info.status if info is not None and info.phase == "ended" else ""

    def usage(self) -> Usage:
        """What the cluster's sessions have used so far."""
        return usage(with_usage_until_now(self.record))

    def tail(self, session: str, lines: int) -> list[str]:
        """The last lines that a session printed; empty if they cannot be read."""
        return read_tail(self.folder / LOGS / f"{session}{LOG_SUFFIX}", lines)

    # Stopping

    def withdraw(self, ids: Collection[str], also: Change = _unchanged) -> None:
        """Put on record that sessions are about to be stopped on purpose, so that no kernel takes their end for a loss.

        Parameters
        ----------
        ids : collection of str
        also : callable
            A further change of the record, in the same step.
        """
        now = time.time()
        self._change_sessions(ids, lambda session: replace(session, stopping_at=session.stopping_at or now), also)

    def reinstate(self, ids: Collection[str], also: Change) -> None:
        """Undo `withdraw`: the sessions go on working."""
        self._change_sessions(ids, lambda session: replace(session, stopping_at=None), also)

    def _change_sessions(
        self, ids: Collection[str], changed: Callable[[SessionRecord], SessionRecord], also: Change = _unchanged
    ) -> None:
        ids = frozenset(ids)

        def change(record: Record) -> Record:
            sessions = tuple(changed(session) if session.id in ids else session for session in record.sessions)
            return also(replace(record, sessions=sessions))

        self.journal.note(change)  # not `update`: stopping must work with a full disk, too

    def stop(self, ids: Collection[str]) -> None:
        """Stop some of the cluster's sessions and wait for their end.

        Raises
        ------
        StillUpError
            Naming those that the platform did not end.
        """
        known = {session.id for session in self.record.sessions}
        ids = [session for session in ids if session in known]
        if not ids:
            return
        self.withdraw(ids)
        visible = set(self.visible())
        stopped, left = self._stop_ours(set(ids), time.monotonic() + self.times.stop_s)
        self.observe({session: SessionInfo(session, "ended", "stopped") for session in stopped & visible})
        # The end of the others cannot be seen here. They stay on record, for a kernel that can see it, or for `end`.
        if stopped - visible:
            now = time.time()
            self._change_sessions(stopped - visible, lambda session: replace(session, ended_at=now))
        if left:
            raise StillUpError(self._still_up(left))
        self._disown(set(ids) - stopped)

    def _stop_ours(self, ids: Set[str], deadline: float) -> tuple[set[str], dict[str, str]]:
        """Stop those of some sessions on record that are the cluster's.

        Returns
        -------
        set of str
            Those that have ended. What is left is not the cluster's, if all have.
        dict
            The platform's answer for those that have not ended.
        """
        stopped: set[str] = set()
        try:
            while True:
                ours = self.proof.may_be_stopped(ids - stopped)
                timeout_s = max(1.0, deadline - time.monotonic())
                left = self.pool.stop(ours, visible=set(self.visible()), timeout_s=timeout_s)
                stopped |= ours - set(left)
                self.disowned -= stopped
                if left or not self.proof.wait_for(ids - stopped, deadline):
                    return stopped, left
        except PlatformError as error:
            return stopped, dict.fromkeys(ids - stopped, str(error))

    def _disown(self, sessions: Collection[str]) -> None:
        """Take sessions off the record of which nothing shows that they are the cluster's."""
        if not sessions:
            return

        def change(record: Record) -> Record:
            kept = tuple(session for session in record.sessions if session.id not in sessions)
            # If one of them is ours after all, its log will tell.
            return replace(record, sessions=kept, launching=(*record.launching, unknown_launches(record)))

        self.disowned |= set(sessions)
        self.journal.note(lambda record: change(record).with_event(disowned_words(sessions)))

    def finish_stopping(self) -> None:
        """Stop sessions that should have ended long ago: a kernel died while it stopped them, or they did not stop.

        Raises
        ------
        StillUpError
            Naming those that the platform did not end.
        """
        mine, now = self.pool.platform.session, time.time()
        late = [
            session.id
            for session in self.record.sessions
            if session.stopping_at is not None
            and (session.launched_from == mine or session.ended_at is None)
            and session.stopping_at < now - self.times.stopping_s
        ]
        if late:
            # So that the next try is as much later.
            self._change_sessions(late, lambda session: replace(session, stopping_at=now))
            self.stop(late)

    def tidy_refusal(self, launched: Launched, doomed: Collection[str]) -> str:
        """After a launch call that was refused in part: stop the sessions `doomed`, and log and return the reason."""
        asked = len(launched.refusals) + len(launched.sessions)
        message = f"{len(launched.refusals)} of {asked} more sessions were refused: {launched.refusals[0]}"
        self.stop(doomed)
        if not any(message == event for _, event in self.record.events):  # once, if it repeats
            self.journal.log(message)
        return message

    def end(self) -> Ended:
        """Stop every session of the cluster, wait for their end, then remove the record. Can be called again.

        Those of another machine are told to end, and not waited for.

        Raises
        ------
        StillUpError
            Naming the sessions that the platform did not end; the record is kept.
        RegistryError
            If the sessions have ended, but the record cannot be removed; or if those of another machine cannot be told.
        """
        if machine := other_machine(self.record):
            return self._end_on(machine)
        try:
            with self.launches.settled():
                record = self.journal.update(_stopping)
        except GoneError:  # another kernel has ended it
            self.journal.note(_stopping)
            self.unwatch()
            return self._ended(self.record, 0)
        except RegistryError:  # stopping must work with a full disk, too
            record = self.journal.note(_stopping)
        address = scheduler_address(record, self.folder)
        # From here on a session that starts late exits (see `shell_lines`); one that started earlier has a log.
        with contextlib.suppress(OSError):  # stopping must work without write access, too
            rename(self.journal.registry.state_directory, self.folder, SCHEDULER_FILE, FORMER_SCHEDULER_FILE)
        deadline = time.monotonic() + self.times.stop_s
        suspects = self.launches.suspects | self.orphans.suspects(record)
        stopped: set[str] = set()
        while True:
            record = self.orphans.take_in(record, self.orphans.unaccounted(record) - stopped)
            ids = {session.id for session in record.sessions} - stopped
            ended, left = self._stop_ours(ids, deadline)
            stopped |= ended
            if left:
                self.journal.log(f"did not stop: {', '.join(sorted(left))}")
                raise StillUpError(self._still_up(left))
            self._disown(ids - ended)
            record = self.record
            suspects_left = self.orphans.wait_for_suspects(suspects - stopped, record, deadline)
            with contextlib.suppress(RegistryError):
                if self.journal.refresh():  # another kernel may have launched more
                    record = self.record
            late = {session.id for session in record.sessions} - stopped
            if not suspects_left and not late and not self.orphans.unaccounted(record) - stopped:
                break
        self._wait_for_silence(record, address, deadline)
        self.unwatch()
        record = replace(with_usage_until_now(record), sessions=())
        try:
            self.journal.forget(record)
        except RegistryError as error:
            raise RegistryError(
                f"every session of cluster {record.name!r} has been stopped, but it stays on record: {error}"
            ) from error
        return self._ended(record, len(stopped))

    def _end_on(self, machine: str) -> Ended:
        """End a cluster of another machine's processes: they end when the scheduler's file is gone (`in_session`)."""
        record = self.journal.note(_stopping)
        name = record.name
        try:
            rename(self.journal.registry.state_directory, self.folder, SCHEDULER_FILE, FORMER_SCHEDULER_FILE)
        except FileNotFoundError:  # it was told before
            pass
        except OSError as error:
            raise RegistryError(f"cluster {name!r} on machine {machine} cannot be told to end: {error}") from error
        # What is here all the same, where the machine has another name by now: an older release's do not end so.
        self._stop_ours({session.id for session in record.sessions}, time.monotonic())
        ended = replace(self._ended(record, len(record.sessions)), machine=machine)
        self.journal.forget(replace(with_usage_until_now(record), sessions=()))
        return ended

    def _wait_for_silence(self, record: Record, address: str | None, deadline: float) -> None:
        """Wait until the scheduler does not answer, if our listing cannot show the end of all sessions.

        Workers end with their scheduler.
        """
        if address is None or {session.id for session in record.sessions} <= set(self.visible()):
            return
        scheduler = record.scheduler.id if record.scheduler is not None else "of its scheduler"
        while answers(address, timeout_s=1.0):
            if time.monotonic() > deadline:
                raise StillUpError(self._still_up({scheduler: f"it still answers at {address}"}))
            time.sleep(0.2)

    def _still_up(self, left: Mapping[str, str]) -> str:
        shown = "; ".join(f"session {session}: {answer}" for session, answer in list(left.items())[:10])
        more = f"; and {len(left) - 10} more" if len(left) > 10 else ""
        return (
            f"cluster {self.record.name!r}: {len(left)} of its sessions did not stop ({shown}{more}). "
            f"They are kept on record; run %dask_down {self.record.name} again, or stop them in the platform's pages"
        )

    def _ended(self, record: Record, sessions: int) -> Ended:
        return Ended(
            record.name,
            sessions,
            max(0.0, time.time() - record.created_at),
            usage(record),
            tuple(sorted(self.disowned)),
        )


def end_words(session: str, role: Role, status: str) -> str:
    """The event of a session that ended without having been stopped."""
    # The platform says "succeeded" however a session's program ended.
    how = "ended by itself" if status == "succeeded" else f"ended: {status}"
    return f"session {session} ({role}) {how}"


def _stopping(record: Record) -> Record:
    return replace(record, state="stopping")


def _observed(session: SessionRecord, info: SessionInfo | None, now: float) -> SessionRecord:
    """The session's record, updated from a listing; the same object if nothing is new."""
    if info is None or (
        info.ip_address in (None, session.ip_address)
        and info.app_url in (None, session.app_url)
        and (info.phase != "running" or session.running_at is not None)
        and (info.phase != "ended" or session.ended_at is not None)
    ):
        return session
    return replace(
        session,
        ip_address=info.ip_address or session.ip_address,
        app_url=info.app_url or session.app_url,
        running_at=session.running_at or (now if info.phase == "running" else None),
        ended_at=session.ended_at or (now if info.phase == "ended" else None),
    )


def _is_known_by_its_log_alone(session: SessionRecord) -> bool:
    """Whether only a session's log is known: it may have ended long ago."""
    return session.salvaged and session.running_at is None and session.connected_at is None


def _was_meant_to_end(record: Record, session: SessionRecord) -> bool:
    return session.stopping_at is not None or record.state in ("stopping", "lost")


def _is_loss(record: Record, session: SessionRecord) -> bool:
    """Whether a session that has ended is a loss: nobody stopped it, and it was alive before."""
    return not _was_meant_to_end(record, session) and not _is_known_by_its_log_alone(session)


def _with_end_of(record: Record, session: SessionRecord, status: str) -> Record:
    """The record with the event of a session's end, and with the failed replacement if it was one."""
    if _was_meant_to_end(record, session):
        return record
    if _is_known_by_its_log_alone(session):  # it had ended before
        return replace(record, requested=max(0, record.requested - (session.role == "worker")))
    if session.automatic and session.connected_at is None:
        record = replace(record, failed_replacements=record.failed_replacements + 1)
    return record.with_event(end_words(session.id, session.role, status))
