"""`CMLCluster`: a Dask cluster whose scheduler and workers are sessions of the platform.

Knows neither IPython nor HTML.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import numbers
import secrets
import threading
import time
import warnings
from collections.abc import Callable, Coroutine, Generator, Iterable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar

from dask.utils import parse_bytes
from distributed.core import Status
from distributed.deploy.adaptive import Adaptive
from distributed.deploy.cluster import Cluster
from distributed.objects import SchedulerInfo
from distributed.utils import Log, Logs, NoOpAwaitable, log_errors
from tornado.ioloop import IOLoop

from cml_dask_magics.cluster.callable_status import CallableStatus
from cml_dask_magics.cluster.repeated import Repeated
from cml_dask_magics.cluster.scaling import Scaler, SessionAdaptive
from cml_dask_magics.cluster.scheduler import SchedulerView, figures_of
from cml_dask_magics.cluster.shielded import run_shielded, start_shielded
from cml_dask_magics.cluster.snapshot import complete_ones, dashboard_link, read_only_link, snapshot, utc, why_not_shown
from cml_dask_magics.cluster.start import Readiness, Start, nobody_ready_message, partly_ready_message
from cml_dask_magics.fleet.failure import StartFailedError, describe_failure
from cml_dask_magics.fleet.fleet import Fleet, StillUpError
from cml_dask_magics.fleet.launches import EndingError
from cml_dask_magics.fleet.opening import claim, open_fleet
from cml_dask_magics.fleet.shell_lines import worker_nthreads
from cml_dask_magics.fleet.sizes import check_number, expected_limit_bytes, most_sessions
from cml_dask_magics.fleet.supervisor import Seen, Supervisor, Todo
from cml_dask_magics.fleet.troubles import Troubles
from cml_dask_magics.model.lifecycle import cluster_state
from cml_dask_magics.model.settings import Settings, as_typed, make_settings, too_many
from cml_dask_magics.model.status import ClusterState, ClusterStatus, Ended, StatusCallback, WorkerFigures
from cml_dask_magics.model.times import USUAL, Times
from cml_dask_magics.model.words import short
from cml_dask_magics.platforms.api import Platform
from cml_dask_magics.registry.certificates import read_security
from cml_dask_magics.registry.registry import GoneError, Registry

logger = logging.getLogger(__name__)


class CMLCluster(Cluster):  # type: ignore[misc]
    """A Dask cluster on CML sessions, or on processes of this machine where there is no CML.

    It outlives the kernel. It ends by `close`, the end of a ``with`` block, ``%dask_down`` or its idle timeout, or with
    the CML session that launched it. Defaults come from Dask's configuration (``cml-dask-magics``).

    Parameters
    ----------
    n_workers : int
        Number of workers, each in a session of its own; 0 for a scheduler alone. Where a session has several
        (`processes`), this and all other numbers count sessions.
    name : str
        Up to 40 letters, digits, ``-`` and ``_``, not in use; by default a new one.
    cpu, scheduler_cpu : float
        Cores of each worker's session and of the scheduler's.
    memory, scheduler_memory : float or str
        Their memory in GiB, or with a unit (``"4096MiB"``).
    gpu : int
        GPUs of each worker's session.
    processes : int
        Dask workers in each session, which share its cores and memory; by default one for each GPU, or 1.
    scheduler_here : bool
        Inside CML: the scheduler as a process of this session, which leaves a small quota to the workers.
    adapt : str or (int, int)
        ``"MIN:MAX"`` workers for Dask to scale between.
    wait : int
        How many workers to wait for; all by default.
    timeout, idle_timeout : float or str
        Seconds or a duration: how long to wait for the workers; after how long without work the cluster ends
        (``"off"`` for never).
    env : dict
        For the workers' environment.
    dashboard_port : int
        The port of the dashboard, on the loopback address of the scheduler's session.
    local : bool
        Use processes of this machine, even on CML.
    no_tls : bool
        Plain ``tcp://``: anybody on the network can run code as you, and read your other clusters' keys.
    no_dashboard : bool
        Serve no dashboard.
    background : bool
        Return while the cluster is still starting.
    asynchronous : bool
        For use with ``async with`` and ``await``.
    loop : tornado.ioloop.IOLoop
        Only with `asynchronous`.
    on_status : callable
        Called with a `ClusterStatus` about twice a second while the cluster starts, from Dask's thread.

    Raises
    ------
    ValueError
        If an argument is invalid; nothing has been launched.
    RuntimeError
        If the name is taken, or the cluster did not start: the message lists each session, its state and the reason.
        Everything that was launched has been stopped.

    Examples
    --------
    >>> with CMLCluster(n_workers=4, cpu=2, memory=8) as cluster, cluster.get_client() as client:
    ...     client.submit(sum, range(10)).result()
    """

    # Dask's attributes, which it does not annotate.
    scheduler_comm: Any
    scheduler_info: Any
    periodic_callbacks: dict[str, Any]
    security: Any
    _adaptive: Any

    shown_by: ClassVar[Callable[[Any], object]] = print
    """Displays a cluster that is a cell's value; `cml_dask_magics` sets it."""
    times: ClassVar[Times] = USUAL
    """Waiting times and intervals of clusters that are made from now on."""

    def __init__(
        self,
        n_workers: int | None = None,
        *,
        name: str | None = None,
        cpu: float | None = None,
        memory: float | str | None = None,
        gpu: int | None = None,
        processes: int | None = None,
        scheduler_cpu: float | None = None,
        scheduler_memory: float | str | None = None,
        scheduler_here: bool | None = None,
        adapt: str | tuple[int, int] | None = None,
        wait: int | None = None,
        timeout: float | str | None = None,
        idle_timeout: float | str | None = None,
        env: Mapping[str, str] | None = None,
        dashboard_port: int | None = None,
        local: bool | None = None,
        no_tls: bool | None = None,
        no_dashboard: bool | None = None,
        background: bool | None = None,
        asynchronous: bool = False,
        loop: IOLoop | None = None,
        on_status: StatusCallback | None = None,
    ) -> None:
        if name is None:
            name = f"cluster-{secrets.token_hex(3)}"
        settings = make_settings(
            n_workers=n_workers, name=name, cpu=cpu, memory=memory, gpu=gpu, processes=processes,
            scheduler_cpu=scheduler_cpu, scheduler_memory=scheduler_memory, scheduler_here=scheduler_here, adapt=adapt,
            wait=wait, timeout=timeout, idle_timeout=idle_timeout, env=env, dashboard_port=dashboard_port, local=local,
            no_tls=no_tls, no_dashboard=no_dashboard, background=background,
        )  # fmt: skip
        self._open(claim(settings, times=self.times), asynchronous, loop, on_status, new=True, shutdown_on_close=True)
        try:
            for words in filter(None, (*self.notes, self.warning)):
                warnings.warn(words, stacklevel=2)
        except Warning as error:  # the user's filters make errors of them
            self._clean_up(error)
            raise

    @classmethod
    def from_settings(cls, settings: Settings, on_status: StatusCallback | None = None) -> CMLCluster:
        """A new cluster, from a magic's settings."""
        self = cls.__new__(cls)
        self._open(claim(settings, as_typed, cls.times), False, None, on_status, new=True, shutdown_on_close=True)
        return self

    @classmethod
    def from_name(
        cls,
        name: str = "default",
        *,
        asynchronous: bool = False,
        loop: IOLoop | None = None,
        shutdown_on_close: bool = False,
    ) -> CMLCluster:
        """Re-attach to a running cluster of any kernel. Launches nothing.

        Parameters
        ----------
        name : str
        asynchronous, loop
            As for `CMLCluster`.
        shutdown_on_close : bool
            Whether `close` and the end of a ``with`` block stop the cluster; by default they only detach from it.

        Raises
        ------
        RuntimeError
            If there is no such cluster, or its scheduler does not answer.
        """
        settings = make_settings(name=name)
        fleet = open_fleet(Registry(settings.state_directory), settings.name, cls.times)
        if fleet is None:
            raise RuntimeError(f"there is no cluster {name!r}; %dask_up --name {name} starts it")
        self = cls.__new__(cls)
        self._open(fleet, asynchronous, loop, None, new=False, shutdown_on_close=shutdown_on_close)
        return self

    def _open(
        self,
        fleet: Fleet,
        asynchronous: bool,
        loop: IOLoop | None,
        on_status: StatusCallback | None,
        *,
        new: bool,
        shutdown_on_close: bool,
    ) -> None:
        self._fleet = fleet
        # Whether this object starts the cluster, or attaches to a running one.
        self._new = new
        self.shutdown_on_close = shutdown_on_close
        # Dask's `asynchronous` is always true on the loop.
        self._made_asynchronous = asynchronous
        self._dask_status = Status.created
        self._beginning: asyncio.Task[None] | None = None
        self._background: asyncio.Task[None] | None = None
        self._background_over = threading.Event()
        self.ended: Ended | None = None
        """What was stopped, once this object has stopped its cluster."""
        self._on_status = on_status
        self._on_end: Callable[[CMLCluster], None] | None = None
        self._detaching: asyncio.Task[None] | None = None
        # Who closes ends Dask's thread, which another one that closes would wait for.
        self._closing_lock = threading.Lock()
        self._changing_adaptive = False
        # Workers in only one of the feed and Dask's `scheduler_info`; whether `scheduler_info` lacks metrics.
        self._differed: set[str] = set()
        self._incomplete = False
        self.steers = False
        """Whether this kernel steers the cluster: replaces lost workers and follows its load."""
        self.failure: Exception | None = None
        self.warning: str | None = None
        self.why_detached = ""
        """Why this object detached from its cluster, if the user did not close it."""
        self._scheduler = SchedulerView(self._on_news, fleet.pool.look_now, fleet.times)
        self._supervisor = Supervisor(fleet)
        self._troubles = Troubles(fleet)
        self.scaler = Scaler(fleet, self._scheduler, self._connected, self._supervisor)
        self._start_up = Start(fleet, lambda: self.observed, self._connect_to, self._disconnect)
        try:
            # Before anything connects: Dask's `Client` takes it before it waits for the cluster.
            self.security = read_security(fleet.folder, fleet.settings.tls)
            super().__init__(
                asynchronous=asynchronous,
                loop=loop,
                quiet=True,
                name=fleet.record.name,
                # Dask's tells the scheduler every second what manages its cluster, which never changes.
                scheduler_sync_interval=fleet.times.unseen_s,
            )
            self.periodic_callbacks["steer"] = Repeated(self._steer, fleet.times.steer_s)
            if asynchronous:
                assert self.loop is not None  # Dask remembers it from here on, also when it does not run any more
            else:
                self._loop_runner.start()
                self.sync(self._begin)
        except BaseException as error:  # Ctrl-C too: everything that was launched must be stopped
            self._clean_up(error)
            raise

    # State

    @property
    def settings(self) -> Settings:
        """The settings that the cluster was started with."""
        return self._fleet.settings

    @property
    def notes(self) -> tuple[str, ...]:
        """For the user: how the settings were changed to fit the platform."""
        return self._fleet.notes

    @property
    def platform(self) -> Platform:
        """The platform of its sessions."""
        return self._fleet.pool.platform

    @property
    def status(self) -> CallableStatus:
        """Dask's state of this object. Called, it returns a `ClusterStatus`, or an awaitable if `asynchronous`."""
        return CallableStatus(self._dask_status, self._status_now)

    @status.setter
    def status(self, status: Status) -> None:
        self._dask_status = status

    @property
    def closed(self) -> bool:
        """Whether this object has detached from its cluster."""
        return bool(self._dask_status == Status.closed)

    @property
    def closing(self) -> bool:
        """Whether it is about to detach from its cluster; if that stops the cluster, it may take a while."""
        return bool(self._dask_status == Status.closing)

    @property
    def plan(self) -> set[str]:
        """Ids of the sessions whose workers should exist; the only worker of a session is named after it."""
        return self._fleet.plan

    # Dask's name for what was launched: every planned session was.
    requested = plan

    @property
    def observed(self) -> set[str]:
        """Ids of the sessions of which the scheduler knows all workers."""
        return complete_ones(self.scaler.workers(), self.settings.processes)

    @property
    def session_of(self) -> Callable[[Any], str]:
        """From a worker's name to its session."""
        return self._fleet.session_of

    @property
    def wanted(self) -> int:
        """The requested number of sessions of workers."""
        return self._fleet.record.requested

    @property
    def peak_memory_bytes(self) -> int:
        """The most memory that all workers together used, as far as this object saw."""
        return self._scheduler.peak_memory_bytes

    @property
    def silent_s(self) -> float:
        """For how many seconds the scheduler's report is overdue."""
        return self._scheduler.silent_s

    @property
    def dashboard_link(self) -> str:
        """The dashboard's address for the user's browser; empty while it is not known, and after the end."""
        if self.scheduler_comm is None or self.closed:
            return ""
        return dashboard_link(self._fleet, self._dashboard_port, str(super().dashboard_link))

    @property
    def _dashboard_port(self) -> int | None:
        """The port that the scheduler serves its dashboard on: another one if that was in use."""
        port: int | None = self.scheduler_info.get("services", {}).get("dashboard")
        return port

    def __eq__(self, other: object) -> bool:
        """Whether both are the same start of a cluster.

        Dask compares names, so its `get_client` would return the client of an earlier cluster of the same name.
        """
        return isinstance(other, CMLCluster) and self._fleet.record.token == other._fleet.record.token

    def __hash__(self) -> int:
        """The same for the same start."""
        return hash(self._fleet.record.token)

    def last_heard(self) -> Any:
        """The cluster by the scheduler's last report and the record on disk, without asking scheduler or platform."""
        return self.sync(self._snapshot)

    def cached_status(self) -> ClusterStatus:
        """The cluster as this kernel last heard of it, without asking scheduler or platform."""
        return self._status_in(None)

    def get_logs(self, cluster: bool = True, scheduler: bool = True, workers: Any = True) -> Any:
        """Logs of the cluster, its scheduler and its workers; see `distributed.deploy.Cluster.get_logs`."""
        self._check_up()
        return super().get_logs(cluster=cluster, scheduler=scheduler, workers=workers)

    def wait_for_workers(self, n_workers: int, timeout: float | None = None) -> Any:
        """Wait for `n_workers` workers, all sessions together; see `distributed.deploy.Cluster.wait_for_workers`."""
        self._check_up()
        return super().wait_for_workers(n_workers, timeout)

    def follow(self, on_status: StatusCallback, on_end: Callable[[Any], None], wanted: Callable[[], bool]) -> None:
        """Call `on_status` with a `ClusterStatus` every second, from Dask's thread, and `on_end` when this closes.

        A new call replaces the earlier one. While `wanted` returns False, `on_status` is not called.
        """

        async def report() -> None:
            self._scheduler.listen_often(wanted())
            if wanted():
                on_status(await self._snapshot())

        def start() -> None:
            if "follow" in self.periodic_callbacks:
                self.periodic_callbacks.pop("follow").stop()
            following = self.periodic_callbacks["follow"] = Repeated(report, self._fleet.times.shown_s)
            following.start()

        self._on_end = on_end
        assert self.loop is not None
        self.loop.add_callback(start)

    def _ipython_display_(self, **_: Any) -> None:
        type(self).shown_by(self)

    def _connected(self) -> dict[str, WorkerFigures]:
        """The workers by address: from the feed, and new ones that so far only Dask's stream has reported."""
        # Copies: other threads call this while the loop changes the originals.
        figures = dict(self._scheduler.figures)
        workers = dict(self.scheduler_info["workers"])
        for address in workers.keys() - figures.keys():
            figures[address] = figures_of(address, workers[address])
        return figures

    def _check_open(self) -> None:
        """Refuse to work on a closed cluster.

        Raises
        ------
        RuntimeError
            If this object has detached from its cluster, or is about to.
        """
        if self.closing or self.closed:
            raise RuntimeError(
                str(self.failure or "")
                or self.why_detached
                or (self.ended and f"cluster {self.name!r} was stopped; %dask_up --name {self.name} starts it")
                or (self.closing and self._must_end and f"cluster {self.name!r} is being stopped")
                or f"this object has let go of cluster {self.name!r}: it was closed. "
                f"CMLCluster.from_name({self.name!r}) re-attaches, if the cluster still runs"
            )

    def _check_up(self) -> None:
        """As `_check_open`, once a start in the background is over."""
        self._check_open()
        if self.starting and not self.asynchronous:
            self.wait_until_started()
            self._check_open()

    def _status_now(self) -> Any:
        self._check_open()
        return self.sync(self._status)

    async def _status(self) -> ClusterStatus:
        """The cluster now: asks the scheduler, unless that is known to be gone."""
        if self._fleet.record.state != "lost":
            await self._scheduler.look()
        return await self._snapshot()

    async def _snapshot(self) -> ClusterStatus:
        """The cluster by the scheduler's last report and the record on disk."""
        on_record = await asyncio.to_thread(self._fleet.journal.refresh)
        return self.cached_status() if on_record else self._status_in("lost")  # another kernel stopped it

    def _status_in(self, state: ClusterState | None) -> ClusterStatus:
        """The cluster in that state, or in the one that follows from what was heard."""
        connected = self.scheduler_comm is not None
        workers = self.scaler.workers()
        return snapshot(
            self._fleet,
            state or self._state(len(complete_ones(workers, self.settings.processes))),
            workers,
            scheduler_address=self.scheduler_address if connected else None,
            dashboard_link=self.dashboard_link or None,
            read_only_link=read_only_link(self._fleet) if connected else None,
            heard_s=self._scheduler.heard_s,
            idle_s=self._scheduler.idle_s,
            history=tuple(self._scheduler.history),
            peak_memory_bytes=self._scheduler.peak_memory_bytes,
        )

    def _state(self, complete: int) -> ClusterState:
        """Its state, with so many sessions all of whose workers are connected."""
        record = self._fleet.record
        if self.failure is not None:
            return "stopping"
        gone = record.scheduler is None or self._scheduler.silent_s > self._fleet.times.lost_s
        return cluster_state(record, complete, scheduler_lost=gone and record.state != "starting")

    async def _get_logs(self, cluster: bool = True, scheduler: bool = True, workers: Any = True) -> Logs:
        logs = await super()._get_logs(cluster=False, scheduler=scheduler, workers=workers)
        if cluster:
            events = self._fleet.record.events
            logs["Cluster"] = Log("\n".join(f"{utc(at):%Y-%m-%d %H:%M:%S} {message}" for at, message in events))
        return logs

    # Dask's `scheduler_info`: holds only what Dask puts there

    async def _on_news(self, everything: bool) -> None:
        await self._compare(everything)
        written = self._fleet.record.troubles_written
        troubles = [trouble for trouble in self._scheduler.troubles.values() if trouble.number > written]
        if troubles and self.steers:  # one kernel writes them down
            connected = {worker.name for worker in self._scheduler.figures.values()}
            await asyncio.to_thread(self._troubles.write, troubles, connected)

    async def _compare(self, everything: bool) -> None:
        """Refresh `scheduler_info` if Dask's stream of joining and leaving workers has missed some.

        The stream ends when its connection breaks, and serves one kernel at a time. It is quicker than the feed: what
        it lacks when the feed has reported it twice, it has missed.
        """
        ours, dasks = self._scheduler.figures.keys(), self.scheduler_info["workers"].keys()
        differ = ours ^ dasks if ours != dasks else set()
        if self._incomplete or (differ if everything else differ & self._differed):
            await self._ask_dask()
        else:
            self._differed = differ

    async def _ask_dask(self) -> None:
        """Fetch the complete `scheduler_info`: Dask's stream reports new workers without their metrics."""
        self._incomplete, self._differed = False, set()
        if self.scheduler_comm is not None:
            self.scheduler_info = SchedulerInfo(await self.scheduler_comm.identity())

    def _update_worker_status(self, op: str, msg: Any) -> None:
        self._incomplete = True
        # A refresh in the meantime may have done the same.
        with log_errors():
            if op == "add":
                super()._update_worker_status(op, msg)
            else:
                self.scheduler_info["workers"].pop(msg, None)
                self._scheduler.figures.pop(msg, None)

    def _forget_workers(self) -> None:
        """Remove workers that ended with their scheduler, which could not report it."""
        self.scheduler_info["workers"].clear()
        self._scheduler.figures.clear()

    # Starting

    def __await__(self) -> Generator[Any, None, CMLCluster]:
        """Wait until the cluster has started."""

        async def started() -> CMLCluster:
            if self._made_asynchronous:
                if self._beginning is None:
                    self._beginning = asyncio.ensure_future(self._begin_or_end())
                await self._beginning
            if self._background is not None:
                await asyncio.wait([self._background])
                if self.failure is not None:
                    raise self.failure
            return self

        return started().__await__()

    async def _begin_or_end(self) -> None:
        try:
            await self._begin()
            if self.warning:
                warnings.warn(self.warning, stacklevel=2)
        except BaseException as error:
            try:
                await asyncio.wrap_future(start_shielded(partial(self._end_launched, error)))
            finally:
                await self._detach()
            raise

    @property
    def starting(self) -> bool:
        """Whether a start in the background is still under way."""
        return self._background is not None and not self._background.done()

    def wait_until_started(self, on_status: StatusCallback | None = None, timeout_s: float | None = None) -> bool:
        """Wait for a start in the background; False if it failed (see `failure`), or goes on after `timeout_s`."""
        self._on_status = on_status or self._on_status
        is_over = self._background is None or self._background_over.wait(timeout_s)
        return is_over and self.failure is None and not self.closed

    async def _begin(self) -> None:
        if not self._new:
            await self._start_up.attach()
            self._mirror_adapting()
        elif self.settings.background:
            self._background = asyncio.ensure_future(self._start_in_background())
        else:
            await self._start_new()

    async def _start_new(self) -> None:
        reporting = asyncio.ensure_future(self._report_while_starting())
        try:
            readiness = await self._start_up.run()
        finally:
            reporting.cancel()
        self._supervisor.begin(self.observed)
        self._warn_if_partly_ready(readiness, self.settings.timeout_s)
        await self._ask_dask()
        if limits := self._fleet.record.adapt:
            # One that was begun before the cluster was up has stopped.
            kind = SessionAdaptive if self._adaptive is None else type(self._adaptive)
            self._start_adapting(kind, minimum=limits[0], maximum=limits[1])
        await self._report()

    async def _start_in_background(self) -> None:
        try:
            await self._start_new()
        except Exception as error:
            self.failure = error
            try:
                await asyncio.to_thread(self._end_launched, error)
            except Exception as another:  # sessions are still up, or the record cannot be removed
                self.failure = another
            finally:
                await self._detach()
                self._stop_loop_soon()
        finally:
            self._background_over.set()

    async def _connect_to(self, address: str) -> None:
        self._scheduler.connect(address, self.security)
        self.scheduler_comm = self._scheduler.comm
        await super()._start()
        self._scheduler.start()
        await asyncio.to_thread(self._fleet.journal.update, lambda record: replace(record, scheduler_address=address))
        if self._new and (words := why_not_shown(self._fleet, self._dashboard_port)):
            self._fleet.notes += (words,)
            await asyncio.to_thread(self._fleet.journal.log, words)

    async def _disconnect(self) -> None:
        await self._scheduler.disconnect()
        self.scheduler_comm = None

    def _warn_if_partly_ready(self, readiness: Readiness, timeout_s: float) -> None:
        missing = readiness.ready < readiness.wanted
        self.warning = partly_ready_message(self._fleet, readiness, timeout_s) if missing else None

    async def _report_while_starting(self) -> None:
        while True:
            await self._report()
            await asyncio.sleep(self._fleet.times.report_s)

    async def _report(self) -> None:
        if self._on_status is not None:
            try:
                self._on_status(await self._snapshot())
            except Exception:  # what is shown is no reason to stop what starts
                logger.exception("the status of cluster %r could not be told", self.name)

    def _clean_up(self, error: BaseException) -> None:
        """Stop what this start launched, and detach."""
        try:
            run_shielded(partial(self._end_launched, error))
        finally:
            with contextlib.suppress(Exception):
                self.sync(self._detach, callback_timeout=self._fleet.times.detach_s)
                self._stop_loop()

    def _end_launched(self, error: BaseException) -> None:
        if not self._new:  # the cluster goes on
            return
        try:
            self.ended = self._fleet.end()
        except StillUpError as still_up:
            raise StartFailedError(f"{error}\n{still_up}") from error

    # Size

    def scale(self, n: int = 0, memory: float | str | None = None, cores: float | None = None) -> Any:
        """Scale the cluster to `n` workers, or sessions of workers; ends adaptive scaling.

        Up: launches sessions and returns when the platform has accepted them (`wait_for_workers` waits). Down: moves
        data off the workers that are removed, then ends their sessions.

        Parameters
        ----------
        n : int
            Number of workers, each in a session of its own; of sessions where each has several.
        memory : float or str
            Total memory in bytes, or with a unit (``"24 GiB"``), if that takes more than `n`.
        cores : float
            Total threads, if that takes more than `n`.

        Raises
        ------
        ValueError
            If that is not a whole number from 0 to ``max-workers``, or more than this machine's memory has room for.
        RuntimeError
            If the platform refused a session (those of this call have been stopped), or no other worker can take the
            data.
        """
        self._check_open()
        most = self.settings.max_workers
        asked = repr(n)
        if memory is not None:
            asked += f" and memory={memory!r}"
        if cores is not None:
            asked += f" and cores={cores!r}"
        n = max([n, *self._sessions_with(cores, memory, math.ceil)])
        if isinstance(n, bool) or not isinstance(n, numbers.Integral) or n < 0:
            raise ValueError(f"n must be a whole number of workers from 0 to {most}; not {asked}")
        if n > most:
            raise ValueError(f"n must be {too_many(min(int(n), 10**9), self.settings)}")
        self._check_room(int(n))
        self._stop_adapting()
        return self._run(self.scaler.to(int(n)))

    def scale_down(self, workers: Iterable[Any]) -> Any:
        """End the sessions of workers, by name, that Dask's `Adaptive` has retired."""
        return self._run(self.scaler.end(set(map(self.session_of, workers))))

    def scale_until_ready(
        self, n: int, wait: int | None, timeout_s: float, on_status: StatusCallback | None = None
    ) -> None:
        """`scale` to `n` workers, where there are not so many, and wait for `wait` of them (all, if None).

        At the timeout one new worker is enough, and `warning` says how many are missing. On any error, or Ctrl-C, the
        sessions of this call are stopped.

        Raises
        ------
        ValueError
            If this machine's memory has no room for so many.
        RuntimeError
            If a new session was refused or died, or none of them connected in time.
        """
        self._check_room(n)
        before, requested = self.plan, self.wanted
        resizes = not n == len(before) == requested
        wanted = n if wait is None else min(wait, n)

        async def scale_and_wait() -> None:
            began = time.monotonic()
            if resizes:
                await self.scaler.to(n)
            reporting = asyncio.ensure_future(self._report_while_starting())
            try:
                new = self.plan - before
                await self._start_up.wait_for(wanted, began + timeout_s, ids=new)
                await self._ask_dask()
            except TimeoutError:
                reason = nobody_ready_message(self._fleet, timeout_s, scaled=True)
                message = describe_failure(self._fleet, self.observed, reason, new, timed_out=True)
                raise StartFailedError(message) from None
            finally:
                reporting.cancel()
            self._warn_if_partly_ready(Readiness(len(self.observed), wanted, time.monotonic() - began), timeout_s)

        self._stop_adapting()
        self._on_status = on_status
        try:
            self.sync(scale_and_wait)
        except BaseException as error:
            try:
                if resizes:
                    run_shielded(partial(self.scaler.undo, before, requested, n))
            except StillUpError as still_up:
                raise StartFailedError(f"{error}\n{still_up}") from error
            raise

    @property
    def adapting(self) -> bool:
        """Whether Dask scales the cluster."""
        return self._adaptive is not None

    def adapt(
        self,
        Adaptive: type[Adaptive] = SessionAdaptive,  # noqa: N803 - Dask's name
        minimum: float | None = 0,
        maximum: float | None = math.inf,
        minimum_cores: float | None = None,
        maximum_cores: float | None = None,
        minimum_memory: float | str | None = None,
        maximum_memory: float | str | None = None,
        **kwargs: Any,
    ) -> Adaptive:
        """Let Dask scale the cluster by its load, at most to ``max-workers`` or what this machine has room for.

        Parameters
        ----------
        Adaptive : type
            A subclass of `distributed.deploy.Adaptive`.
        minimum, maximum : int
            Numbers of workers, or of sessions where each has several.
        minimum_cores, maximum_cores : float
            Total threads; the narrower limit applies.
        minimum_memory, maximum_memory : float or str
            Total memory likewise, in bytes or with a unit (``"100 GiB"``).
        **kwargs
            As for `distributed.deploy.Adaptive`.

        Raises
        ------
        ValueError
            If the minimum is negative or above the maximum, or this machine's memory has no room for it.
        TypeError
            If `Adaptive` is no class: Dask takes it first, before the limits.
        """
        self._check_open()
        if not callable(Adaptive):
            raise TypeError(
                f"adapt takes its limits by name, as adapt(minimum=1, maximum=2); not adapt({Adaptive!r}, ...)"
            )
        minimum = max([minimum or 0, *self._sessions_with(minimum_cores, minimum_memory, math.ceil)])
        maximum = min(
            [math.inf if maximum is None else maximum, *self._sessions_with(maximum_cores, maximum_memory, math.floor)]
        )
        if not 0 <= minimum <= maximum:
            raise ValueError(f"the minimum must be from 0 to the maximum; not {minimum!r}, with {maximum!r} at most")
        self._check_room(int(minimum))
        self._changing_adaptive = True
        try:
            adaptive = self._start_adapting(Adaptive, minimum=minimum, maximum=maximum, **kwargs)
            limits = (int(adaptive.minimum), int(adaptive.maximum))
            with contextlib.suppress(GoneError):  # stopped meanwhile
                self._fleet.journal.update(lambda record: replace(record, adapt=limits, failed_replacements=0))
            return adaptive
        finally:
            self._changing_adaptive = False

    def _check_room(self, n: int) -> None:
        if n > len(self.plan):  # what is there already may stay
            check_number(n, self.settings, self.platform)

    def _sessions_with(
        self, cores: float | None, memory: float | str | None, rounded: Callable[[float], int]
    ) -> Iterator[int]:
        """How many sessions have so many threads together, and so much memory, for what is given."""
        settings = self.settings
        if cores is not None:
            yield rounded(cores / (settings.processes * worker_nthreads(settings)))
        if memory is not None:
            limits = [worker.memory_limit_bytes for worker in self._connected().values()]
            each = sum(limits) / len(limits) if any(limits) else expected_limit_bytes(settings, self.platform)
            yield rounded(parse_bytes(memory) / (settings.processes * each))

    def _start_adapting(self, Adaptive: type[Adaptive], **kwargs: Any) -> Any:  # noqa: N803 - Dask's name
        options = dict(getattr(self, "_adaptive_options", {}))
        try:
            adaptive = super().adapt(Adaptive, **kwargs)
        except BaseException:
            # Dask has stopped the former one, and keeps the options: the next round goes on as the record says.
            self._adaptive_options = options
            self._drop_adaptive()
            raise
        adaptive.maximum = self._at_most(adaptive.maximum)
        return adaptive

    def _at_most(self, maximum: float) -> int:
        """The highest number for adaptive scaling, where there is no room for `maximum`."""
        return int(min(maximum, most_sessions(self.settings, self.platform)))

    def _stop_adapting(self) -> None:
        if self._fleet.record.adapt:
            with contextlib.suppress(GoneError):
                self._fleet.journal.update(lambda record: replace(record, adapt=None))
        self._drop_adaptive()

    def _drop_adaptive(self) -> None:
        adaptive, self._adaptive = self._adaptive, None  # in one step: the user's thread and the loop do this
        if adaptive is not None:
            adaptive.stop()

    def _mirror_adapting(self) -> None:
        """Start, change or stop adaptive scaling as the record says; another kernel may have changed it."""
        limits, adaptive = self._fleet.record.adapt, self._adaptive
        if self._changing_adaptive:  # the record is not written yet
            return
        if limits is None:
            self._drop_adaptive()
        elif adaptive is None or (limits[0], self._at_most(limits[1])) != (adaptive.minimum, adaptive.maximum):
            self._start_adapting(SessionAdaptive, minimum=limits[0], maximum=limits[1])

    # Workers

    def keep(self) -> Any:
        """Restart the idle countdown, as work would."""
        self._check_up()

        async def keep() -> None:
            await self._scheduler.keep()
            await asyncio.to_thread(self._fleet.journal.log, "kept: the idle time starts again")

        return self.sync(keep)

    def restart_worker(self, session: str) -> Any:
        """Restart the worker processes of a session; the session and the workers' names stay.

        Raises
        ------
        RuntimeError
            If no worker of that session is connected, or one did not come back.
        """
        self._check_open()
        return self.sync(self._restart_worker, session)

    async def _restart_worker(self, session: str) -> None:
        addresses = [worker.address for worker in self.scaler.workers().get(session, ())]
        if not addresses:
            raise RuntimeError(f"no worker of session {session} is connected to cluster {self.name!r}")
        if failures := await self._scheduler.restart(addresses):
            why = ", ".join(map(short, failures))
            raise RuntimeError(f"not every worker of session {session} was restarted: {why}")
        one = len(addresses) == 1
        what = f"the {'worker' if one else f'{len(addresses)} workers'} of session {session}"
        await asyncio.to_thread(self._fleet.journal.log, f"{what} {'was' if one else 'were'} restarted")

    # Steering, at intervals while this object is attached to the cluster

    async def _steer(self) -> None:
        """Do one round of the supervisor, and what it leaves to do."""
        workers = self.scaler.workers()
        memory = {session: them[0].session_memory_bytes for session, them in workers.items()}
        complete = complete_ones(workers, self.settings.processes)
        seen = Seen(complete, self._scheduler.silent_s, time.monotonic(), memory)
        try:
            await self._do(await asyncio.to_thread(self._supervisor.round, seen))
        except (GoneError, EndingError):  # the next round finds out
            pass
        except (RuntimeError, OSError, asyncio.TimeoutError) as error:  # the platform, the disk, another kernel
            logger.warning("cluster %r: %s", self.name, error)

    async def _do(self, todo: Todo) -> None:
        """Do what the supervisor cannot do without Dask."""
        self.steers = todo.steers
        if todo.forget_workers:
            self._forget_workers()
        if todo.gone:
            self._detach_because(todo.gone, todo.end)
            return
        self._mirror_adapting()
        if todo.shrink:
            await self.scaler.trim()

    def _detach_because(self, why: str, and_end: bool) -> None:
        """Detach from the cluster though the user has not closed it."""
        if self._detaching is not None or self._dask_status != Status.running:  # it is being closed already
            return
        self.why_detached = why
        self.shutdown_on_close = self.shutdown_on_close or and_end
        self._detaching = asyncio.ensure_future(self._close_quietly())
        self._detaching.add_done_callback(lambda _: self._stop_loop_soon())

    async def _close_quietly(self) -> None:
        try:
            await self._close()
        except RuntimeError as error:  # no caller waits for this; the sessions are on record
            logger.warning("%s", error)

    def _stop_loop_soon(self) -> None:
        """End Dask's thread for this object; from that thread, for which stopping waits."""
        if not self._made_asynchronous:
            threading.Thread(target=self._stop_loop_in_turn, daemon=True).start()

    def _stop_loop_in_turn(self) -> None:
        with self._closing_lock:  # a thread that closes waits for this loop
            self._stop_loop()

    def _stop_loop(self) -> None:
        """End Dask's thread for this object, unless a client still uses it."""
        # It waits for calls to the platform that are under way. What takes longer ends by itself.
        with contextlib.suppress(TimeoutError):
            self._loop_runner.stop()

    # Closing

    def close(self, timeout: float | None = None) -> Any:
        """Stop the cluster's sessions and wait for their end; after `from_name`, only detach (see `shutdown_on_close`).

        Raises
        ------
        RuntimeError
            Naming the sessions that the platform did not end; they stay on record, and `close` can be called again.
        """
        if self.asynchronous and not self._has_no_loop:
            if self.closed:
                return asyncio.ensure_future(self._end()) if self._must_end else NoOpAwaitable()
            return self.sync(self._close, callback_timeout=timeout)
        with self._closing_lock:
            try:
                if not self.closed and not self._has_no_loop:
                    # Not Dask's own `close`, which suppresses every RuntimeError.
                    self.sync(self._close, callback_timeout=timeout)
                elif not self._must_end:
                    return NoOpAwaitable() if self.asynchronous else None
                elif threading.main_thread().is_alive():  # otherwise the interpreter shuts down; the cluster goes on
                    self.ended = run_shielded(self._fleet.end)
                    self.status = Status.closed
            finally:
                if not self.asynchronous:
                    self._stop_loop()
        return None

    def shutdown(self) -> Any:
        """Stop the cluster's sessions, after `from_name`, too. Returns what was stopped."""
        self.shutdown_on_close = True
        closing = self.close()
        if closing is None:
            return self.ended

        async def ended() -> Ended | None:
            await closing
            return self.ended

        return ended()

    async def _close(self) -> None:
        if self.status == Status.closed:
            return
        if self._detaching is not None and self._detaching is not asyncio.current_task():
            await asyncio.wait([self._detaching])
            if self._must_end:
                await self._end()
            return
        # Now, not at the end: Dask's clients of this cluster then close, and do not try to reconnect for 30 seconds.
        self.status = Status.closing
        if self._background is not None:
            self._background.cancel()
        if self._adaptive is not None:  # not on record: other kernels may go on with it
            self._adaptive.stop()
        try:
            if self._must_end:
                await self._end()
        finally:
            await self._detach()

    @property
    def _has_no_loop(self) -> bool:
        return bool(self.loop.asyncio_loop.is_closed())

    @property
    def _must_end(self) -> bool:
        """Whether closing must stop the cluster, and has not done so yet."""
        return bool(self.shutdown_on_close) and self.ended is None

    async def _end(self) -> None:
        self.ended = await asyncio.wrap_future(start_shielded(self._fleet.end))

    async def _detach(self) -> None:
        """Disconnect from scheduler and platform; the cluster goes on."""
        self._fleet.unwatch()
        await asyncio.to_thread(self._supervisor.release)
        await self._scheduler.stop()
        # Closing must not wait until a broken connection to the scheduler times out.
        if self._watch_worker_status_task is not None and self._watch_worker_status_comm is not None:
            self._watch_worker_status_comm.abort()
        await super()._close()
        self._forget_workers()
        if self._on_end is not None:
            self._on_end(self)

    def _run(self, work: Coroutine[Any, Any, Any]) -> Any:
        """Do it and return the result; on the loop, as a task, because Dask's callers do not always await it."""
        return asyncio.ensure_future(work) if self.asynchronous else self.sync(lambda: work)
