"""The sessions of one cluster, kept in step with its record: nothing is launched that the record does not know.

Knows the registry and the platform, not Dask. All methods block and may be called from any thread.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cml_dask_magics import commands
from cml_dask_magics.config import Settings
from cml_dask_magics.liveness import answers
from cml_dask_magics.records import Record, Role, SessionRecord
from cml_dask_magics.registry import GoneError, Registry, RegistryError
from cml_dask_magics.sessions import Launched, PlatformError, SessionInfo, SessionPool
from cml_dask_magics.status import SessionState, Usage

STOP_TIMEOUT_S = 60.0
_SUSPECT_WAIT_S = 30.0
_TAIL_BYTES = 65536


class StillUpError(RuntimeError):
    """Sessions that were told to stop have not ended; their record is kept."""


@dataclass(frozen=True)
class Ended:
    """What was stopped: how many sessions, after how many seconds, and what they used."""

    name: str
    sessions: int
    uptime_s: float
    usage: Usage


class Fleet:
    """The sessions of one cluster.

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
        self._record = record
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

        self._record = self.registry.update(self._record.name, change_ours)
        return self._record

    def log(self, message: str) -> None:
        """Note something that happened in the record, where every kernel reads it."""
        with contextlib.suppress(GoneError):
            self.update(lambda record: record.with_event(message))

    def refresh(self) -> bool:
        """Read the record anew; False if this start of the cluster has none any more."""
        record = self.registry.read(self._record.name)
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
        with self._changed:
            if self._ending:
                raise RuntimeError(f"cluster {self._record.name!r} is being stopped")
            self._in_flight += 1
        note = f"{n} {role} at {time.time():.3f}"
        try:
            # First the intent: if this kernel dies inside the call, the next one knows that there is something to find.
            self.update(lambda record: replace(record, launching=(*record.launching, note)))
            launched = self.pool.launch(n, options=self.settings.launch_options, **self._request(role))
            self._suspects |= set(launched.suspects)
            self._refusals += [(role, words) for words in launched.refusals]
            ids = [info.id for info in launched.sessions] + list(launched.strays)
            app_urls = {info.id: info.app_url for info in launched.sessions}
            new = tuple(self._session_record(session, role, app_urls.get(session)) for session in ids)
            keep_note = launched.doubtful
            try:
                self.update(
                    lambda record: replace(
                        record,
                        sessions=(*record.sessions, *new),
                        launching=tuple(other for other in record.launching if keep_note or other != note),
                    )
                )
            except BaseException:
                # A full disk, or another kernel has stopped the cluster: what is on no record must go.
                if ids:
                    self.pool.stop(ids, visible=ids, timeout_s=STOP_TIMEOUT_S)
                raise
            return launched
        finally:
            with self._changed:
                self._in_flight -= 1
                self._changed.notify_all()

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
        changed = [record for record in self._record.sessions if _observed(record, infos.get(record.id), now) != record]
        if not changed:
            return

        def change(record: Record) -> Record:
            sessions = [_observed(session, infos.get(session.id), now) for session in record.sessions]
            record = replace(record, sessions=tuple(session for session in sessions if session.ended_at is None))
            for session in sessions:
                if session.ended_at is not None:
                    if session.id not in self._stopping:
                        self._lost[session.id] = session
                        status = infos[session.id].status
                        record = record.with_event(f"session {session.id} ({session.role}) ended: {status}")
                    record = _with_usage_of(record, session)
            return record

        with contextlib.suppress(GoneError):  # stopped by another kernel meanwhile
            self.update(change)

    def state(self, session: str, connected: bool) -> SessionState:
        """Where a session is in its life, given whether its Dask process is connected."""
        info = self._infos.get(session)
        if session in self._lost:
            return "failed"
        if info is not None and info.phase == "ended":
            return "ended"
        if session in self._stopping or self._record.state == "stopping":
            return "stopping"
        if connected:
            return "running"
        # Sessions that another session launched are not in our listing: what little is known is that they exist.
        return "starting" if info is None or info.phase == "running" else "pending"

    def stop(self, ids: Collection[str], timeout_s: float = STOP_TIMEOUT_S) -> None:
        """Stop some of the cluster's sessions and see them end.

        Raises
        ------
        StillUpError
            Naming those that the platform did not end.
        """
        known = {session.id for session in self._record.sessions}
        ids = [session for session in ids if session in known]
        self._stopping |= set(ids)
        left = self._stop(ids, timeout_s)
        ended = {
            session: SessionInfo(session, "ended", "stopped", ip_address=None) for session in ids if session not in left
        }
        self.observe(ended)
        if left:
            raise StillUpError(self._still_up(left))

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
        deadline = time.monotonic() + timeout_s
        count = len(record.sessions)
        while True:
            record = self._adopt_logged(record)
            ids = [session.id for session in record.sessions]
            self._stopping |= set(ids)
            left = self._stop(ids, max(1.0, deadline - time.monotonic()))
            if left:
                with contextlib.suppress(RegistryError):
                    self.log(f"did not stop: {', '.join(sorted(left))}")
                raise StillUpError(self._still_up(left))
            if not self._suspects_left(record, min(deadline, time.monotonic() + _SUSPECT_WAIT_S)):
                break
        self._see_the_scheduler_end(record, deadline)
        count = max(count, len(record.sessions))
        self.unwatch()
        record = replace(_with_usage_until_now(record), sessions=())
        self.registry.forget(record)
        self._record = record
        return self._ended(record, count)

    def ended_as(self, session: str) -> str:
        """The platform's word for how a session ended; empty if it never showed that."""
        info = self._infos.get(session)
        return info.status if info is not None and info.phase == "ended" else ""

    def usage(self) -> Usage:
        """What the cluster's sessions have used so far."""
        return _usage(_with_usage_until_now(self._record))

    def tail(self, session: str, lines: int) -> list[str]:
        """The last lines that a session printed; empty if nothing was (or can be) read."""
        return read_tail(self.folder / "logs" / f"{session}{commands.LOG_SUFFIX}", lines)

    def ip_address(self, session: SessionRecord) -> str | None:
        """The session's address, once the platform knows it."""
        info = self._infos.get(session.id)
        return (info.ip_address if info is not None else None) or session.ip_address

    def _request(self, role: Role) -> dict[str, Any]:
        settings = self.settings
        if role == "scheduler":
            code = commands.scheduler_line(settings, self.pool.platform.scheduler_port)
            return {**self._size(role), "code": code, "env": commands.scheduler_environment(settings, self.folder)}
        code = commands.worker_line(settings)
        return {**self._size(role), "code": code, "env": commands.worker_environment(settings, self.folder)}

    def _size(self, role: Role) -> dict[str, Any]:
        settings = self.settings
        if role == "scheduler":
            return {"cpu": settings.scheduler_cpu, "memory_gib": settings.scheduler_memory_gib, "gpu": 0}
        return {"cpu": settings.cpu, "memory_gib": settings.memory_gib, "gpu": settings.gpu}

    def _session_record(self, session: str, role: Role, app_url: str | None) -> SessionRecord:
        return SessionRecord(
            id=session,
            role=role,
            **self._size(role),
            launched_at=time.time(),
            launched_from=self.pool.platform.session,
            app_url=app_url,
        )

    def _visible(self) -> list[str]:
        mine = self.pool.platform.session
        return [session.id for session in self._record.sessions if session.launched_from == mine]

    def _stop(self, ids: Collection[str], timeout_s: float) -> dict[str, str]:
        return self.pool.stop(ids, visible=set(self._visible()), timeout_s=timeout_s) if ids else {}

    def _adopt_logged(self, record: Record) -> Record:
        """Take sessions into the record that print for this cluster, but whose ids no launch call gave us."""
        unknown = self.registry.logged_sessions(record) - {session.id for session in record.sessions}
        # Of those, sessions that ended and were accounted for are known no more; stopping them again does no harm.
        with contextlib.suppress(PlatformError):
            listing = self.pool.listing()
            unknown = {session for session in unknown if session not in listing or listing[session].phase != "ended"}
            if not record.launching:  # every launch was accounted for: what is not listed has ended
                unknown &= set(listing)
        if not unknown:
            return record
        # Not ours to see end: where another session launched them, our listing's silence about them proves nothing.
        launcher = record.owner.session
        new = tuple(
            replace(self._session_record(session, "worker", None), launched_from=launcher)
            for session in sorted(unknown)
        )
        try:
            return self.update(lambda record: replace(record, sessions=(*record.sessions, *new)))
        except (GoneError, RegistryError):  # stop them all the same
            return replace(record, sessions=(*record.sessions, *new))

    def _suspects_left(self, record: Record, deadline: float) -> bool:
        """Whether sessions that appeared during a broken launch have turned out to be ours.

        One that never starts cannot be told from somebody else's and is left alone: if it is ours, it ends by itself
        as soon as it starts, because the cluster's folder is closed by then.
        """
        doubtful = self._suspects - {session.id for session in record.sessions}
        while doubtful:
            if doubtful & self.registry.logged_sessions(record):
                return True
            with contextlib.suppress(PlatformError):
                listing = self.pool.listing()
                doubtful = {session for session in doubtful if session in listing and listing[session].phase != "ended"}
            if time.monotonic() > deadline:
                break
            time.sleep(0.2)
        return False

    def _see_the_scheduler_end(self, record: Record, deadline: float) -> None:
        """Proof for sessions that our listing does not show: workers end with their scheduler, so it must be silent."""
        address, visible = record.scheduler_address, set(self._visible())
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
        return Ended(record.name, sessions, time.time() - record.created_at, _usage(record))


def read_tail(path: Path, lines: int) -> list[str]:
    """The last lines of a file that may be long, binary or missing."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - _TAIL_BYTES))
            return file.read().decode(errors="replace").splitlines()[-lines:]
    except OSError:
        return []


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


def _usage(record: Record) -> Usage:
    """What the sessions that left the record have used, in hours."""
    return Usage(record.core_s / 3600, record.gib_s / 3600, record.gpu_s / 3600)


def _with_usage_until_now(record: Record) -> Record:
    """The record with what the sessions in it have used so far added."""
    now = time.time()
    for session in record.sessions:
        record = _with_usage_of(record, replace(session, ended_at=session.ended_at or now))
    return record


def _with_usage_of(record: Record, session: SessionRecord) -> Record:
    """The record with what an ended session has used added. What never ran used nothing."""
    if session.running_at is None or session.ended_at is None:
        return record
    used_s = max(0.0, session.ended_at - session.running_at)
    return replace(
        record,
        core_s=record.core_s + session.cpu * used_s,
        gib_s=record.gib_s + session.memory_gib * used_s,
        gpu_s=record.gpu_s + session.gpu * used_s,
    )
