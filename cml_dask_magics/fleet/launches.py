"""The launch calls for one cluster, each put on record before it is made."""

from __future__ import annotations

import contextlib
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from cml_dask_magics.fleet import shell_lines
from cml_dask_magics.fleet.inheritance import renew_program
from cml_dask_magics.model.lifecycle import is_planned
from cml_dask_magics.model.record import Launch, Record, Role, SessionRecord
from cml_dask_magics.model.settings import Settings
from cml_dask_magics.model.times import Times
from cml_dask_magics.platforms.pool import Launched, SessionPool
from cml_dask_magics.registry.journal import Journal
from cml_dask_magics.registry.kernels import kernel_may_live
from cml_dask_magics.registry.run_folder import note_launched


class EndingError(RuntimeError):
    """The cluster is being stopped, so nothing is launched for it."""

    def __init__(self, name: str) -> None:
        super().__init__(f"cluster {name!r} is being stopped")


class Launches:
    """The launch calls that one kernel makes for one cluster.

    All methods block and may be called from any thread.

    Parameters
    ----------
    journal : Journal
        The cluster's record.
    pool : SessionPool
    settings : Settings
        For its sessions.
    times : Times

    Attributes
    ----------
    launched : set of str
        Ids that the calls returned, on record or not.
    suspects : set of str
        Ids that appeared in the listing during calls that failed or returned too few: perhaps ours.
    """

    def __init__(self, journal: Journal, pool: SessionPool, settings: Settings, times: Times) -> None:
        self.settings = settings
        self.launched: set[str] = set()
        self.suspects: set[str] = set()
        self._journal = journal
        self._pool = pool
        self._times = times
        self._refusals: list[tuple[Role, str]] = []
        self._changed = threading.Condition()
        self._in_flight = 0
        pool.hide(settings.env.values())

    @property
    def refusals(self) -> tuple[tuple[Role, str], ...]:
        """Role and reason of each session that the platform refused."""
        return tuple(self._refusals)

    def launch(self, role: Role, n: int) -> Launched:
        """Launch `n` sessions in one call; every id is in the record before this returns.

        Raises
        ------
        RuntimeError
            If the cluster is being stopped.
        """
        return self._launch(role, lambda _: n, automatic=False, requested=None)

    def launch_requested(self) -> Launched:
        """As `launch`, all workers of a cluster that starts; less those that were launched because it was scaled."""
        return self._launch(
            "worker", lambda record: record.requested - self._coming(record), automatic=False, requested=None
        )

    def grow(self, n: int, *, automatic: bool = False) -> Launched:
        """Launch what is missing to `n` workers, with the launch calls of all kernels counted in.

        Parameters
        ----------
        n : int
        automatic : bool
            To replace lost workers or follow the load. Otherwise a user asked for it: if the platform grants all, `n`
            becomes the record's `requested`.
        """

        def missing(record: Record) -> int:
            # The user may have asked for fewer since `n` was read. With adaptive scaling, `n` is newer than the record.
            most = min(n, record.requested) if automatic and record.adapt is None else n
            return most - self._coming(record)

        return self._launch("worker", missing, automatic, requested=None if automatic else n)

    def is_over(self, launch: Launch) -> bool:
        """Whether a launch call on record cannot launch anything any more."""
        too_late = launch.at + self._times.launch_s
        return launch.answered or not kernel_may_live(launch.owner) or time.time() > too_late

    def settle(self) -> None:
        """Wait for launch calls under way: they cannot be cancelled, and what they launch must be on record."""
        with self.settled():
            pass

    @contextlib.contextmanager
    def settled(self) -> Iterator[None]:
        """A context in which no launch call of this kernel is under way, and none begins."""
        with self._changed:
            self._changed.wait_for(lambda: self._in_flight == 0)
            yield

    def _launch(self, role: Role, count: Callable[[Record], int], automatic: bool, requested: int | None) -> Launched:
        with self._changed:
            _check_goes_on(self._journal.record)
            self._in_flight += 1
        intent = Launch(secrets.token_hex(4), role, 0, time.time(), self._journal.kernel)

        def intend(record: Record) -> Record:
            nonlocal intent
            _check_goes_on(record)  # another kernel may be stopping it
            intent = replace(intent, n=count(record))
            return replace(record, launching=(*record.launching, intent)) if intent.n > 0 else record

        try:
            # First the intent: if this kernel dies during the call, others know that there may be more sessions.
            self._journal.update(intend)
            return self._call(intent, automatic, requested) if intent.n > 0 else Launched()
        finally:
            with self._changed:
                self._in_flight -= 1
                self._changed.notify_all()

    def _call(self, intent: Launch, automatic: bool, requested: int | None) -> Launched:
        """Make the call of an intent that is on record."""
        called = False
        try:
            self._renew_program()
            request = self._request(intent.role)
            called = True
            launched = self._pool.launch(intent.n, **request)
        except BaseException:
            # Not `update`: the disk may be full. As long as a call stands there as under way, its sessions count as
            # coming, and nobody launches others.
            self._journal.note(lambda record: _without(record, intent, doubtful=called))
            raise
        self.suspects |= set(launched.suspects)
        self._refusals += [(intent.role, words) for words in launched.refusals]
        self._write_down(intent, request, launched, automatic, requested)
        return launched

    def _renew_program(self) -> None:
        try:
            renew_program(self._journal.folder, self.settings)
        except OSError as error:
            raise self._journal.registry.unusable(error) from error

    def _write_down(
        self, intent: Launch, request: dict[str, Any], launched: Launched, automatic: bool, requested: int | None
    ) -> None:
        """Replace the intent on record by the sessions that the call launched."""
        ids = [info.id for info in launched.sessions] + list(launched.strays)
        self.launched.update(ids)
        app_urls = {info.id: info.app_url for info in launched.sessions}
        new = tuple(
            SessionRecord(
                id=session,
                role=intent.role,
                cpu=request["cpu"],
                memory_gib=request["memory_gib"],
                gpu=request["gpu"],
                launched_at=time.time(),
                launched_from=self._pool.platform.session,
                app_url=app_urls.get(session),
                automatic=automatic,
            )
            for session in ids
        )

        def account(record: Record, new: tuple[SessionRecord, ...] = new) -> Record:
            others = tuple(session for session in record.sessions if session.id not in ids)  # adopted meanwhile
            return replace(_without(record, intent, launched.doubtful), sessions=(*others, *new))

        def account_as_asked(record: Record) -> Record:
            # In the same step as the sessions: another kernel must not take them for too many.
            asked_for = record.requested if requested is None or launched.refusals else requested
            return replace(account(record), requested=asked_for)

        try:
            record = self._journal.update(account_as_asked)
        except BaseException:
            # A full disk, or another kernel has stopped the cluster: sessions that are not on disk must be stopped.
            # Those that do not stop are kept in mind, for the next try.
            now = time.time()
            stopping = tuple(replace(session, stopping_at=now) for session in new)
            self._journal.note(lambda record: account(record, stopping))
            if ids:
                self._pool.stop(ids, visible=ids, timeout_s=self._times.stop_s)
            raise
        if ids:
            note_launched(self._journal.folder, intent, ids)
        if record.state in ("stopping", "lost") and ids:  # since the call began; they are on record
            self._pool.stop(ids, visible=ids, timeout_s=self._times.stop_s)
            raise EndingError(record.name)

    def _coming(self, record: Record) -> int:
        """How many workers there are, with those of launch calls under way."""
        in_flight = (launch.n for launch in record.launching if launch.role == "worker" and not self.is_over(launch))
        return sum(map(is_planned, record.sessions)) + sum(in_flight)

    def _request(self, role: Role) -> dict[str, Any]:
        """What a launch call asks for, for each session."""
        settings, folder = self.settings, self._journal.folder
        name = f"dask-{role} {settings.name}"
        if role == "scheduler":
            here = settings.scheduler_here  # it takes nothing of its own, and shares address and ports
            port = 0 if here else self._pool.platform.scheduler_port
            return {
                "name": name,
                "cpu": 0 if here else settings.scheduler_cpu,
                "memory_gib": 0 if here else settings.scheduler_memory_gib,
                "gpu": 0,
                "code": shell_lines.scheduler_line(settings, port),
                "env": shell_lines.scheduler_environment(settings, folder),
                "options": settings.launch_options["scheduler"],
            }
        return {
            "name": name,
            "cpu": settings.cpu,
            "memory_gib": settings.memory_gib,
            "gpu": settings.gpu,
            "code": shell_lines.worker_line(settings),
            "env": shell_lines.worker_environment(settings, folder),
            "options": settings.launch_options["workers"],
        }


def _without(record: Record, intent: Launch, doubtful: bool) -> Record:
    """The record without the intent of a call that is over; with it, if there may be sessions that nobody knows."""
    others = tuple(launch for launch in record.launching if launch.id != intent.id)
    return replace(record, launching=(*others, replace(intent, answered=True)) if doubtful else others)


def _check_goes_on(record: Record) -> None:
    if record.state in ("stopping", "lost"):
        raise EndingError(record.name)
