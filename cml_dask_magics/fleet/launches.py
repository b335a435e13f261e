"""The sessions of one cluster, launched and followed in step with its record: the lower half of `Fleet`.

Nothing is launched that the record does not know. Knows the registry and the platform, not Dask. All methods block and
may be called from any thread.
"""

from __future__ import annotations

import contextlib
import secrets
import threading
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from cml_dask_magics.fleet import shell_lines
from cml_dask_magics.model.lifecycle import (
    SessionInfo,
    is_planned,
    session_state,
    usage,
    with_usage_of,
    with_usage_until_now,
)
from cml_dask_magics.model.record import Launch, Record, Role, SessionRecord
from cml_dask_magics.model.settings import Settings
from cml_dask_magics.model.status import SessionState, Usage
from cml_dask_magics.platforms.pool import Launched, SessionPool
from cml_dask_magics.registry.kernels import kernel_may_live, this_kernel
from cml_dask_magics.registry.registry import GoneError, Registry
from cml_dask_magics.registry.run_folder import LOG_SUFFIX, LOGS, read_tail

STOP_TIMEOUT_S = 60.0
# One request a session, ten at a time, and a platform that may be slow: then the call is over, or its kernel is.
_LAUNCH_LIMIT_S = 900.0


class EndingError(RuntimeError):
    """Nothing is launched for a cluster that is being stopped."""

    def __init__(self, name: str) -> None:
        super().__init__(f"cluster {name!r} is being stopped")


class LaunchedFleet:
    """Sessions of one cluster that can be launched and looked at.

    Parameters
    ----------
    registry : Registry
    pool : SessionPool
    record : Record
        The cluster's record, which stands in `registry`.
    settings : Settings
        What its sessions are made of.
    """

    def __init__(self, registry: Registry, pool: SessionPool, record: Record, settings: Settings) -> None:
        self.registry = registry
        self.pool = pool
        self.settings = settings
        # What the user should know of how the settings were taken.
        self.notes: tuple[str, ...] = ()
        self.kernel = this_kernel(pool.platform.session)
        self._record = record
        self._reading = threading.RLock()  # so that what is read never takes the place of what was written later
        self._infos: dict[str, SessionInfo] = {}
        self._stopping: set[str] = set()
        self._refusals: list[tuple[Role, str]] = []
        self._suspects: set[str] = set()
        self._lost: dict[str, SessionRecord] = {}
        self._changed = threading.Condition()
        self._in_flight = 0
        # Read once: a start that is under way does not change what is usual.
        self.usual_start_s = registry.usual_start_s(record.backend)
        self._ending = False
        self._unwatch: Callable[[], None] | None = None

    @property
    def record(self) -> Record:
        """The record as this kernel last read or wrote it."""
        return self._record

    @property
    def folder(self) -> Path:
        """The run folder: what the sessions share."""
        return self.registry.run_folder(self._record)

    @property
    def refusals(self) -> tuple[tuple[Role, str], ...]:
        """Launches that the platform refused, with its words."""
        return tuple(self._refusals)

    @property
    def lost(self) -> dict[str, SessionRecord]:
        """Sessions that ended without having been told to, by id."""
        return dict(self._lost)

    @property
    def plan(self) -> set[str]:
        """Ids of the sessions that hold, or will hold, the workers that were asked for."""
        return {s.id for s in self._record.sessions if is_planned(s) and s.id not in self._stopping}

    def update(self, change: Callable[[Record], Record]) -> Record:
        """Change the record on disk and here.

        Raises
        ------
        GoneError
            If the cluster has no record any more: somebody stopped it.
        """

        def change_ours(record: Record) -> Record:
            if record.token != self._record.token:
                raise GoneError(record.name)
            return change(record)

        with self._reading:
            self._record = self.registry.update(self._record.name, change_ours, known=self._record)
            return self._record

    def log(self, message: str) -> None:
        """Note something that happened in the record, where every kernel reads it."""
        with contextlib.suppress(GoneError):
            self.update(lambda record: record.with_event(message))

    def refresh(self) -> bool:
        """Read the record anew; False if this start of the cluster has none any more."""
        with self._reading:
            record = self.registry.read(self._record.name, known=self._record)
            if record is None or record.token != self._record.token:
                return False
            self._record = record
            return True

    def launch(self, role: Role, n: int) -> Launched:
        """Launch `n` sessions in one call; every id is in the record before this returns.

        Raises
        ------
        RuntimeError
            If the cluster is being stopped.
        """
        return self._launch(role, lambda _: n, automatic=False, requested=None)

    def grow(self, n: int, *, automatic: bool = False) -> Launched:
        """Launch what is missing to `n` workers, counting what any kernel is about to launch.

        Parameters
        ----------
        n : int
        automatic : bool
            Whether nobody asked for it by hand: the cluster heals, or follows its load. What is asked for by hand, and
            granted in full, is what the record asks for from then on.
        """

        def missing(record: Record) -> int:
            # Fewer may have been asked for since `n` was read; Dask's adaptive scaling knows better than the record.
            most = min(n, record.requested) if automatic and record.adapt is None else n
            return most - self._coming(record)

        return self._launch("worker", missing, automatic, requested=None if automatic else n)

    def _coming(self, record: Record) -> int:
        """How many workers there are or will be."""
        now = time.time()
        in_flight = (
            launch.n for launch in record.launching if launch.role == "worker" and not self._is_over(launch, now)
        )
        return sum(map(is_planned, record.sessions)) + sum(in_flight)

    @staticmethod
    def _is_over(launch: Launch, now: float) -> bool:
        return launch.answered or not kernel_may_live(launch.owner) or now > launch.at + _LAUNCH_LIMIT_S

    def _launch(self, role: Role, count: Callable[[Record], int], automatic: bool, requested: int | None) -> Launched:
        with self._changed:
            if self._ending:
                raise EndingError(self._record.name)
            self._in_flight += 1
        intent = Launch(secrets.token_hex(4), role, 0, time.time(), self.kernel)

        def intend(record: Record) -> Record:
            nonlocal intent
            if record.state in ("stopping", "lost"):  # by another kernel, perhaps just now
                raise EndingError(record.name)
            intent = replace(intent, n=count(record))
            return replace(record, launching=(*record.launching, intent)) if intent.n > 0 else record

        try:
            # First the intent: if this kernel dies inside the call, the next one knows that there is something to find.
            self.update(intend)
            if intent.n <= 0:
                return Launched()
            launched = self.pool.launch(intent.n, options=self.settings.launch_options, **self._request(role))
            self._suspects |= set(launched.suspects)
            self._refusals += [(role, words) for words in launched.refusals]
            self._write_down(role, intent, launched, automatic, requested)
            return launched
        finally:
            with self._changed:
                self._in_flight -= 1
                self._changed.notify_all()

    def _write_down(
        self, role: Role, intent: Launch, launched: Launched, automatic: bool, requested: int | None
    ) -> None:
        """Put what a launch call came to in the place of the intent."""
        ids = [info.id for info in launched.sessions] + list(launched.strays)
        app_urls = {info.id: info.app_url for info in launched.sessions}
        new = tuple(self._session_record(session, role, app_urls.get(session), automatic) for session in ids)

        def account(record: Record) -> Record:
            others = tuple(session for session in record.sessions if session.id not in ids)  # adopted meanwhile
            launching = tuple(launch for launch in record.launching if launch.id != intent.id)
            if launched.doubtful:
                launching += (replace(intent, answered=True),)
            # In one go with the sessions: another kernel must not take them for too many.
            asked_for = record.requested if requested is None or launched.refusals else requested
            return replace(record, sessions=(*others, *new), launching=launching, requested=asked_for)

        try:
            record = self.update(account)
        except BaseException:
            # A full disk, or another kernel has stopped the cluster: what is on no record must go.
            if ids:
                self.pool.stop(ids, visible=ids, timeout_s=STOP_TIMEOUT_S)
            raise
        if record.state in ("stopping", "lost") and ids:  # since the call began; they are on record
            self.pool.stop(ids, visible=ids, timeout_s=STOP_TIMEOUT_S)
            raise EndingError(record.name)

    def watch(self) -> None:
        """Follow the platform's listing until `unwatch`."""
        if self._unwatch is None:
            self._unwatch = self.pool.watch(self._visible, self.observe)

    def unwatch(self) -> None:
        """Stop following the listing."""
        if self._unwatch is not None:
            self._unwatch()
            self._unwatch = None

    def observe(self, infos: Mapping[str, SessionInfo]) -> None:
        """Take in what a listing shows, and write down what is new in it."""
        self._infos.update(infos)
        now = time.time()
        ended = {session for session, info in infos.items() if info.phase == "ended"}
        if not any(s.id in ended or _observed(s, infos.get(s.id), now) != s for s in self._record.sessions):
            return

        def change(record: Record) -> Record:
            sessions = [_observed(session, infos.get(session.id), now) for session in record.sessions]
            record = replace(record, sessions=tuple(session for session in sessions if session.id not in ended))
            for session in sessions:
                if session.id in ended:
                    record = with_usage_of(self._with_end_of(record, session), session)
            return record

        try:
            self.update(change)
        except GoneError:  # stopped by another kernel meanwhile; whoever waits for these sessions must hear of it
            with self._reading:
                self._record = change(self._record)

    def state(self, session: SessionRecord, connected: bool) -> SessionState:
        """Where a session is in its life, given whether its Dask process is connected."""
        return session_state(
            self._record,
            self._infos.get(session.id),
            lost=session.id in self._lost,
            stopping=session.id in self._stopping or session.stopping_at is not None,
            connected=connected,
        )

    def note_connected(self, connected: Collection[str]) -> None:
        """Write down whose worker is connected, as far as that is new."""
        if all(s.connected_at is not None or s.id not in connected for s in self._record.sessions):
            return
        now = time.time()

        def change(record: Record) -> Record:
            came = {s.id for s in record.sessions if s.connected_at is None and s.id in connected}
            if any(s.automatic for s in record.sessions if s.id in came):
                record = replace(record, failed_replacements=0)
            sessions = (
                replace(s, connected_at=now, running_at=s.running_at or now) if s.id in came else s
                for s in record.sessions
            )
            return replace(record, sessions=tuple(sessions))

        with contextlib.suppress(GoneError):
            self.update(change)

    def drop_lost(self, sessions: Collection[str]) -> None:
        """Show these lost sessions no longer: others have taken their place."""
        for session in sessions:
            self._lost.pop(session, None)

    def _with_end_of(self, record: Record, session: SessionRecord) -> Record:
        """The record with what is to be told, and learnt, of a session that ended."""
        if session.stopping_at is not None or session.id in self._stopping or record.state in ("stopping", "lost"):
            return record
        if session.salvaged and session.running_at is None and session.connected_at is None:
            # Known by what it once printed alone: it had ended before, and is nobody's loss.
            return replace(record, requested=max(0, record.requested - (session.role == "worker")))
        self._lost[session.id] = session
        if session.automatic and session.connected_at is None:
            record = replace(record, failed_replacements=record.failed_replacements + 1)
        return record.with_event(f"session {session.id} ({session.role}) ended: {self._infos[session.id].status}")

    def ended_as(self, session: str) -> str:
        """The platform's word for how a session ended; empty if it never showed that."""
        info = self._infos.get(session)
        return info.status if info is not None and info.phase == "ended" else ""

    def usage(self) -> Usage:
        """What the cluster's sessions have used so far."""
        return usage(with_usage_until_now(self._record))

    def tail(self, session: str, lines: int) -> list[str]:
        """The last lines that a session printed; empty if nothing was (or can be) read."""
        return read_tail(self.folder / LOGS / f"{session}{LOG_SUFFIX}", lines)

    def ip_address(self, session: SessionRecord) -> str | None:
        """The session's address, once the platform knows it."""
        info = self._infos.get(session.id)
        return (info.ip_address if info is not None else None) or session.ip_address

    def _request(self, role: Role) -> dict[str, Any]:
        settings = self.settings
        if role == "scheduler":
            code = shell_lines.scheduler_line(settings, self.pool.platform.scheduler_port)
            return {**self._size(role), "code": code, "env": shell_lines.scheduler_environment(settings, self.folder)}
        code = shell_lines.worker_line(settings)
        return {**self._size(role), "code": code, "env": shell_lines.worker_environment(settings, self.folder)}

    def _size(self, role: Role) -> dict[str, Any]:
        settings = self.settings
        if role == "scheduler":
            return {"cpu": settings.scheduler_cpu, "memory_gib": settings.scheduler_memory_gib, "gpu": 0}
        return {"cpu": settings.cpu, "memory_gib": settings.memory_gib, "gpu": settings.gpu}

    def _session_record(self, session: str, role: Role, app_url: str | None, automatic: bool) -> SessionRecord:
        return SessionRecord(
            id=session,
            role=role,
            **self._size(role),
            launched_at=time.time(),
            launched_from=self.pool.platform.session,
            app_url=app_url,
            automatic=automatic,
        )

    def _visible(self) -> list[str]:
        mine = self.pool.platform.session
        return [session.id for session in self._record.sessions if session.launched_from == mine]


def _observed(session: SessionRecord, info: SessionInfo | None, now: float) -> SessionRecord:
    """The session's record with what a listing shows of it."""
    if info is None:
        return session
    return replace(
        session,
        ip_address=info.ip_address or session.ip_address,
        app_url=info.app_url or session.app_url,
        running_at=session.running_at or (now if info.phase == "running" else None),
        ended_at=session.ended_at or (now if info.phase == "ended" else None),
    )
