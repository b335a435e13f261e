"""`CMLCluster`: a Dask cluster whose scheduler and workers are sessions of the platform.

Start, scale, re-attach and close. Knows neither IPython nor HTML.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Collection, Coroutine, Generator, Iterable, Mapping
from dataclasses import replace
from typing import Any

from distributed.core import Status, rpc
from distributed.deploy.adaptive import Adaptive
from distributed.deploy.cluster import Cluster
from distributed.objects import SchedulerInfo
from distributed.utils import Log, Logs
from tornado.ioloop import IOLoop, PeriodicCallback

from cml_dask_magics.claims import ANSWER_TIMEOUT_S, claim, open_fleet
from cml_dask_magics.config import Settings, make_settings
from cml_dask_magics.failure import StartFailedError, describe_failure
from cml_dask_magics.fleet import Ended, Fleet, StillUpError
from cml_dask_magics.liveness import liveness, scheduler_address
from cml_dask_magics.registry import Record, Registry, SessionRecord
from cml_dask_magics.security import read_security
from cml_dask_magics.snapshot import session_of, snapshot, utc
from cml_dask_magics.status import ClusterState, ClusterStatus

_TICK_S = 0.1
_REPORT_S = 0.25
_REFRESH_S = 5.0
_FOLLOW_S = 1.0
_LOST_AFTER_S = 15.0
_REFUSED_PAUSE_S = 60.0

StatusCallback = Callable[[ClusterStatus], None]


class CallableStatus:
    """What `CMLCluster.status` is: equal to Dask's `Status` for Dask, and a method for everybody else."""

    def __init__(self, status: Status, snapshot: Callable[[], Any]) -> None:
        self._status = status
        self._snapshot = snapshot

    def __call__(self) -> Any:
        return self._snapshot()

    def __eq__(self, other: object) -> bool:
        return bool(self._status == (other._status if isinstance(other, CallableStatus) else other))

    def __hash__(self) -> int:
        return hash(self._status)

    def __repr__(self) -> str:
        return repr(self._status)

    @property
    def name(self) -> str:
        """Dask's word for the state."""
        return str(self._status.name)


class SessionAdaptive(Adaptive):  # type: ignore[misc, unused-ignore]
    """Dask's adaptive scaling, which leaves the platform alone for a minute after it refused a session."""

    _not_before = 0.0

    async def scale_up(self, n: int) -> None:
        """Bring the cluster up to `n` workers, or to as many as the platform grants."""
        if time.monotonic() >= self._not_before and not await self.cluster._grow(n, keep_what_came=True):
            self._not_before = time.monotonic() + _REFUSED_PAUSE_S


class CMLCluster(Cluster):
    """A Dask cluster on CML sessions, or on processes of this machine where there is no CML.

    It outlives the kernel: `close`, the end of a ``with`` block, ``%dask_down``, its idle timeout or the end of
    the CML session that launched it stop it. What is not given comes from Dask's configuration (``cml-dask-magics``).

    Parameters
    ----------
    n_workers : int
        Number of workers.
    name : str
        Which cluster: up to 40 letters, digits, ``-`` and ``_``. The name must be free.
    cpu, scheduler_cpu : float
        Cores of each worker's session and of the scheduler's.
    memory, scheduler_memory : float or str
        Their memory in GiB, or with a unit (``"4096MiB"``).
    gpu : int
        GPUs of each worker's session.
    adapt : str or (int, int)
        ``"MIN:MAX"`` workers for Dask to scale between.
    wait : int
        How many workers to wait for; all by default.
    timeout, idle_timeout : float or str
        Seconds or a duration: how long to wait for the workers; after how long without work the cluster ends
        (``"off"`` for never).
    env : dict
        Into the workers' environment.
    dashboard_port : int
        Where the scheduler's session serves the dashboard, on its own loopback address.
    local : bool
        Processes of this machine, whatever else there is.
    no_tls : bool
        Plain ``tcp://`` instead of TLS.
    background : bool
        Return while the cluster is still starting.
    asynchronous : bool
        For use with ``async with`` and ``await``.
    loop : tornado.ioloop.IOLoop
        Only with `asynchronous`.
    on_status : callable
        Called with a `ClusterStatus` about four times a second while the cluster starts, from Dask's thread.

    Raises
    ------
    ValueError
        One sentence about a value that cannot be; nothing has been launched.
    RuntimeError
        If the name is taken, or the cluster did not start: it names each session, what became of it and why.
        Everything that was launched has been stopped.

    Examples
    --------
    >>> with CMLCluster(n_workers=4, cpu=2, memory=8) as cluster, cluster.get_client() as client:
    ...     client.submit(sum, range(10)).result()
    """

    def __init__(
        self,
        n_workers: int | None = None,
        *,
        name: str | None = None,
        cpu: float | None = None,
        memory: float | str | None = None,
        gpu: int | None = None,
        scheduler_cpu: float | None = None,
        scheduler_memory: float | str | None = None,
        adapt: str | tuple[int, int] | None = None,
        wait: int | None = None,
        timeout: float | str | None = None,
        idle_timeout: float | str | None = None,
        env: Mapping[str, str] | None = None,
        dashboard_port: int | None = None,
        local: bool | None = None,
        no_tls: bool | None = None,
        background: bool | None = None,
        asynchronous: bool = False,
        loop: IOLoop | None = None,
        on_status: StatusCallback | None = None,
    ) -> None:
        settings = make_settings(
            n_workers=n_workers, name=name, cpu=cpu, memory=memory, gpu=gpu, scheduler_cpu=scheduler_cpu,
            scheduler_memory=scheduler_memory, adapt=adapt, wait=wait, timeout=timeout, idle_timeout=idle_timeout, env=env,
            dashboard_port=dashboard_port, local=local, no_tls=no_tls, background=background,
        )  # fmt: skip
        self._open(claim(settings), self._start_new, asynchronous, loop, on_status, shutdown_on_close=True)

    @classmethod
    def from_settings(cls, settings: Settings, on_status: StatusCallback | None = None) -> CMLCluster:
        """A new cluster from settings that have been made already."""
        self = cls.__new__(cls)
        self._open(claim(settings), self._start_new, False, None, on_status, shutdown_on_close=True)
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
        """Re-attach to a running cluster, whichever kernel started it. Launches nothing.

        Parameters
        ----------
        name : str
        asynchronous, loop
            As for `CMLCluster`.
        shutdown_on_close : bool
            Whether `close` and the end of a ``with`` block stop the cluster; by default they only let go of it.

        Raises
        ------
        RuntimeError
            If there is no such cluster, or its scheduler does not answer.
        """
        settings = make_settings(name=name)
        fleet = open_fleet(Registry(settings.state_directory), settings.name)
        if fleet is None:
            raise RuntimeError(f"there is no cluster {name!r}; %dask_up --name {name} starts it")
        self = cls.__new__(cls)
        self._open(fleet, self._attach, asynchronous, loop, None, shutdown_on_close)
        return self

    def _open(
        self,
        fleet: Fleet,
        start: Callable[[], Awaitable[None]],
        asynchronous: bool,
        loop: IOLoop | None,
        on_status: StatusCallback | None,
        shutdown_on_close: bool,
    ) -> None:
        self._fleet = fleet
        self._settings = fleet.settings
        self._start_kind = start
        self._on_status = on_status
        self._scaling: asyncio.Lock | None = None
        self._unreachable_since: float | None = None
        self._idle_s: float | None = None
        self._background: asyncio.Task[None] | None = None
        self._ended: Ended | None = None
        self._on_end: Callable[[CMLCluster], None] | None = None
        self.shutdown_on_close = shutdown_on_close
        self.failure: Exception | None = None
        self.warning: str | None = None
        super().__init__(asynchronous=asynchronous, loop=loop, quiet=True, name=fleet.record.name)
        self.periodic_callbacks["refresh"] = PeriodicCallback(self._refresh, _REFRESH_S * 1000)
        if asynchronous:
            return
        self._loop_runner.start()
        try:
            self.sync(self._begin)
        except BaseException as error:  # Ctrl-C too: nothing that was launched may stay
            self._undo(error)
            raise

    # Starting

    def __await__(self) -> Generator[Any, None, CMLCluster]:
        async def started() -> CMLCluster:
            if self.status == Status.created and self._background is None:
                try:
                    await self._begin()
                except BaseException as error:
                    await asyncio.shield(asyncio.to_thread(self._end_launched, error))
                    await self._detach()
                    raise
            return self

        return started().__await__()

    async def _begin(self) -> None:
        self._scaling = asyncio.Lock()
        if not self._settings.background or self._start_kind != self._start_new:
            await self._start_kind()
            return

        async def start() -> None:
            try:
                await self._start_kind()
            except Exception as error:
                self.failure = error
                with contextlib.suppress(StillUpError):
                    await asyncio.to_thread(self._end_launched, error)
                await self._report()
                await self._detach()

        self._background = asyncio.ensure_future(start())

    async def _start_new(self) -> None:
        fleet, settings, began = self._fleet, self._settings, time.monotonic()
        n = settings.n_workers if not settings.adapt else max(settings.adapt[0], min(settings.n_workers, settings.adapt[1]))
        deadline = began + settings.timeout_s
        reporting = asyncio.ensure_future(self._report_while_starting())
        launches = [
            asyncio.ensure_future(asyncio.to_thread(fleet.launch, role, count))
            for role, count in (("scheduler", 1), ("worker", n))
            if count
        ]  # type: ignore[var-annotated, unused-ignore]
        try:
            fleet.watch()
            await self._connect_when_up(deadline, launches)
            await self._wait_for_sessions(settings.wait if settings.wait is not None else n, deadline, launches)
            await asyncio.gather(*launches)
        except TimeoutError as error:
            raise StartFailedError(describe_failure(fleet, self._connected(), str(error))) from None
        finally:
            reporting.cancel()
        ready, wanted = len(self._connected()), settings.wait if settings.wait is not None else n
        message = f"{ready} workers ready in {time.monotonic() - began:.1f} s"
        if ready < wanted:
            message = self.warning = _ready_in_part(self.name, ready, wanted, settings.timeout_s)
        await asyncio.to_thread(fleet.update, lambda record: replace(record, state="running").with_event(message))
        if settings.adapt:
            self.adapt(minimum=settings.adapt[0], maximum=settings.adapt[1])
        await self._report()

    async def _attach(self) -> None:
        fleet = self._fleet
        deadline = time.monotonic() + self._settings.timeout_s
        # Another kernel may be starting it this very moment; then it comes up, or its record goes.
        while scheduler_address(fleet.record, fleet.folder) is None:
            if not await asyncio.to_thread(fleet.refresh) or self._liveness() == "silent" or time.monotonic() > deadline:
                raise RuntimeError(f"cluster {self.name!r} did not come up; %dask_up --name {self.name} starts it anew")
            await asyncio.sleep(_TICK_S)
        address = scheduler_address(fleet.record, fleet.folder)
        assert address is not None
        try:
            await asyncio.wait_for(self._connect(address), _LOST_AFTER_S)
        except (OSError, TimeoutError, asyncio.TimeoutError) as error:
            raise RuntimeError(
                f"the scheduler of cluster {self.name!r} does not answer at {address} ({error or 'timed out'}); "
                f"%dask_up --name {self.name} starts it anew, %dask_down {self.name} clears what is left"
            ) from error
        fleet.watch()
        if fleet.record.adapt:
            low, high = fleet.record.adapt
            self.adapt(minimum=low, maximum=high)

    async def _connect_when_up(self, deadline: float, launches: Collection[asyncio.Future[Any]]) -> None:
        fleet = self._fleet
        while True:
            self._raise_if_failed(launches)
            address = scheduler_address(fleet.record, fleet.folder)
            if address is not None:
                try:
                    await self._connect(address)
                    return
                except OSError:  # its port is not open yet, or its session has just died: the next round tells
                    await self._disconnect()
            if time.monotonic() > deadline:
                raise TimeoutError(f"the scheduler did not come up within {self._settings.timeout_s:g} s")
            await asyncio.sleep(_TICK_S)

    async def _connect(self, address: str) -> None:
        self.security = read_security(self._fleet.folder, self._settings.tls)
        self.scheduler_comm = rpc(address, connection_args=self.security.get_connection_args("client"))
        await super()._start()
        await asyncio.to_thread(self._fleet.update, lambda record: replace(record, scheduler_address=address))

    async def _disconnect(self) -> None:
        if self.scheduler_comm is not None:
            await self.scheduler_comm.close_rpc()
            self.scheduler_comm = None

    async def _wait_for_sessions(
        self, n: int, deadline: float, launches: Collection[asyncio.Future[Any]] = (), ids: Collection[str] | None = None
    ) -> None:
        """Until `n` workers (of `ids`) are connected, or the deadline has passed with one at least."""
        while True:
            self._raise_if_failed(launches, ids)
            connected = self._connected() if ids is None else self._connected() & set(ids)
            if len(connected) >= n:
                return
            if time.monotonic() > deadline:
                if connected:
                    return
                raise TimeoutError(f"no worker connected within {self._settings.timeout_s:g} s")
            await asyncio.sleep(_TICK_S)
            await self._refresh()

    def _raise_if_failed(self, launches: Collection[asyncio.Future[Any]], ids: Collection[str] | None = None) -> None:
        for launch in launches:
            if launch.done():
                launch.result()
        # All launches must have answered, or the message would name half of what was refused.
        lost = self._fleet.lost if ids is None else {key for key in self._fleet.lost if key in ids}
        refused = self._fleet.refusals if ids is None else ()
        if (refused or lost) and all(launch.done() for launch in launches):
            raise StartFailedError(describe_failure(self._fleet, self._connected(), "a session was refused or died"))

    async def _report_while_starting(self) -> None:
        while True:
            await self._report()
            await asyncio.sleep(_REPORT_S)

    async def _report(self) -> None:
        if self._on_status is not None:
            self._on_status(await self._status())

    def _undo(self, error: BaseException) -> None:
        """Stop what this start launched and let go of Dask; on another kernel's cluster, only let go."""
        try:
            if self._start_kind == self._start_new:
                self._end_launched(error)
        finally:
            with contextlib.suppress(Exception):
                self.sync(self._detach, callback_timeout=10)
            self._loop_runner.stop()

    def _end_launched(self, error: BaseException) -> None:
        try:
            self._ended = self._fleet.end()
        except StillUpError as still_up:
            raise StartFailedError(f"{error}\n{still_up}") from error

    @property
    def starting(self) -> bool:
        """Whether a start in the background is still under way."""
        return self._background is not None and not self._background.done()

    def wait_until_started(self) -> bool:
        """Wait for a start in the background; False if it failed (see `failure`)."""

        async def wait() -> None:
            if self._background is not None:
                await asyncio.wait([self._background])

        self.sync(wait)
        return self.failure is None and not self.closed

    # Scaling

    @property
    def settings(self) -> Settings:
        """What the cluster was started with."""
        return self._settings

    @property
    def adapting(self) -> bool:
        """Whether Dask scales the cluster."""
        return self._adaptive is not None

    @property
    def plan(self) -> set[str]:
        """Names of the workers that should exist: ids of their sessions."""
        return {session.id for session in self._worker_sessions()}

    requested = plan

    @property
    def observed(self) -> set[str]:
        """Names of the workers that are connected."""
        return self._connected()

    def scale(self, n: int) -> Any:
        """Bring the cluster to `n` workers; ends adaptive scaling.

        Up: launches sessions and returns when the platform took them (`wait_for_workers` waits). Down: moves data off the
        workers that go, then ends exactly their sessions.

        Raises
        ------
        ValueError
            If `n` is no number of workers from 0 to ``max-workers``.
        RuntimeError
            If the platform refused a session; those of this call have been stopped.
        """
        most = self._settings.max_workers
        if isinstance(n, bool) or not isinstance(n, int) or not 0 <= n <= most:
            raise ValueError(f"n must be a whole number of workers from 0 to {most} (the setting max-workers); not {n!r}")
        self._stop_adapting()
        return self._run(self._scale_to(n))

    def scale_down(self, workers: Iterable[Any]) -> Any:
        """End the sessions of workers, by name; for Dask's `Adaptive`, which has retired them."""
        return self._run(self._end_workers([str(worker) for worker in workers], retire=False))

    def adapt(self, Adaptive: type[Adaptive] = SessionAdaptive, **kwargs: Any) -> Adaptive:  # noqa: N803 - Dask's name
        """Let Dask scale the cluster by its load; see `distributed.deploy.Cluster.adapt`."""
        adaptive = super().adapt(Adaptive, **kwargs)
        limits = (int(adaptive.minimum), int(min(adaptive.maximum, self._settings.max_workers)))
        adaptive.maximum = limits[1]
        with contextlib.suppress(KeyError):
            self._fleet.update(lambda record: replace(record, adapt=limits))
        return adaptive

    def _stop_adapting(self) -> None:
        if self._adaptive is not None:
            self._adaptive.stop()
            self._adaptive = None
        if self._fleet.record.adapt:
            with contextlib.suppress(KeyError):
                self._fleet.update(lambda record: replace(record, adapt=None))

    async def _scale_to(self, n: int) -> None:
        if n >= len(self.plan):
            await self._grow(n)
        else:
            await self._shrink(n)

    async def _grow(self, n: int, keep_what_came: bool = False) -> bool:
        """Launch what is missing to `n` workers; False if the platform refused some and `keep_what_came`."""
        assert self._scaling is not None
        async with self._scaling:
            missing = n - len(self.plan)
            if missing <= 0:
                await asyncio.to_thread(self._note_requested, n)
                return True
            launched = await asyncio.to_thread(self._fleet.launch, "worker", missing)
            if launched.refusals:
                words = launched.refusals[0]
                doomed = list(launched.strays)
                if not keep_what_came:
                    doomed += [info.id for info in launched.sessions]
                await asyncio.to_thread(self._fleet.stop, doomed)
                message = f"{len(launched.refusals)} of {missing} more sessions were refused: {words}"
                await asyncio.to_thread(self._fleet.log, message)
                if not keep_what_came:
                    raise RuntimeError(f"cluster {self.name!r} stays at {len(self.plan)} workers: {message}")
            await asyncio.to_thread(self._note_requested, len(self.plan) if launched.refusals else n)
            return not launched.refusals

    async def _shrink(self, n: int) -> None:
        assert self._scaling is not None
        async with self._scaling:
            connected = self._connected()
            surplus = len(self.plan) - n
            # First those that do no work yet, then those that Dask can spare most easily.
            victims = sorted(self.plan - connected)[:surplus]
            if len(victims) < surplus:
                spare = await self.scheduler_comm.workers_to_close(n=surplus - len(victims), attribute="name")
                victims += [str(name) for name in spare]
                victims += sorted(connected - set(victims))[: surplus - len(victims)]
            await self._end_workers(victims, retire=True, lose_data=n == 0)
            await asyncio.to_thread(self._note_requested, n)

    async def _end_workers(self, victims: Collection[str], retire: bool, lose_data: bool = False) -> None:
        names = {session_of(worker["name"]): worker["name"] for worker in self.scheduler_info["workers"].values()}
        connected = [names[session] for session in victims if session in names]
        if retire and connected:
            retired = await self.scheduler_comm.retire_workers(names=connected, remove=True, close_workers=True)
            kept = set(connected) - {worker["name"] for worker in retired.values()}
            if kept and not lose_data:
                raise RuntimeError(
                    f"cluster {self.name!r}: no other worker can take the data of {', '.join(map(str, sorted(kept)))}; "
                    "they go on working"
                )
        await asyncio.to_thread(self._fleet.stop, list(victims))
        await self._refresh()

    def _note_requested(self, n: int) -> None:
        if n != self._fleet.record.requested:
            self._fleet.update(lambda record: replace(record, requested=n).with_event(f"scaled to {n} workers"))

    def scale_until_ready(self, n: int, wait: int | None, timeout_s: float, on_status: StatusCallback | None = None) -> None:
        """`scale` to `n` workers and wait for `wait` of them (all, if None), as a start waits.

        At the deadline one new worker is enough, and `warning` says what is missing. On any error, Ctrl-C too, what this
        call launched is stopped.

        Raises
        ------
        RuntimeError
            If a session was refused or died, or none connected in time.
        """
        before, requested = self.plan, self._fleet.record.requested
        wanted = n if wait is None else wait
        self.warning = None

        async def scale_and_wait() -> None:
            await self._scale_to(n)
            reporting = asyncio.ensure_future(self._report_while_starting())
            try:
                new = self.plan - before
                missing = min(len(new), wanted - len(self._connected() & before))
                if missing > 0:
                    await self._wait_for_sessions(missing, time.monotonic() + timeout_s, ids=new)
            except TimeoutError as error:
                raise StartFailedError(describe_failure(self._fleet, self._connected(), str(error))) from None
            finally:
                reporting.cancel()
            if (ready := len(self._connected())) < wanted:
                self.warning = _ready_in_part(self.name, ready, wanted, timeout_s)

        self._stop_adapting()
        self._on_status = on_status
        try:
            self.sync(scale_and_wait)
        except BaseException:
            self._fleet.settle()
            new = self.plan - before
            self._fleet.stop(new)
            if new:
                self._fleet.update(lambda record: replace(record, requested=requested))
            raise

    # Closing

    @property
    def closed(self) -> bool:
        """Whether this object has let go of its cluster."""
        return bool(self._dask_status == Status.closed)

    @property
    def ended(self) -> Ended | None:
        """What was stopped, once this object stopped its cluster."""
        return self._ended

    def close(self, timeout: float | None = None) -> Any:
        """Stop the cluster's sessions and see them end; after `from_name`, only let go (see `shutdown_on_close`).

        Raises
        ------
        RuntimeError
            Naming the sessions that the platform did not end; they are kept on record.
        """
        return super().close(timeout)

    def shutdown(self) -> Any:
        """Stop the cluster's sessions, whoever started them. Returns what was stopped."""
        self.shutdown_on_close = True
        closing = self.close()
        if closing is None:
            return self._ended

        async def ended() -> Ended | None:
            await closing
            return self._ended

        return ended()

    async def _close(self) -> None:
        if self.status == Status.closed:
            return
        self._stop_adapting_locally()
        try:
            if self.shutdown_on_close and self._ended is None:
                self._ended = await asyncio.to_thread(self._fleet.end)
        finally:
            await self._detach()

    def _stop_adapting_locally(self) -> None:
        if self._adaptive is not None:
            self._adaptive.stop()

    async def _detach(self) -> None:
        self._fleet.unwatch()
        # The stream to a scheduler that was cut off ends when the network says so; closing must not wait for that.
        if self._watch_worker_status_task is not None and self._watch_worker_status_comm is not None:
            self._watch_worker_status_comm.abort()
        await super()._close()
        if self._on_end is not None:
            self._on_end(self)

    # Looking

    @property
    def status(self) -> CallableStatus:
        """Dask's own state of the cluster object; called, the cluster at this moment, a `ClusterStatus`.

        The call gives an awaitable where the cluster is `asynchronous`.
        """
        return CallableStatus(self._dask_status, lambda: self.sync(self._status))

    @status.setter
    def status(self, status: Status) -> None:
        self._dask_status = status

    def follow(self, on_status: StatusCallback, on_end: Callable[[CMLCluster], None]) -> None:
        """Call `on_status` with a `ClusterStatus` every second, from Dask's thread, and `on_end` when this object closes.

        There is one follower; a new one takes the place of the old.
        """

        async def tell() -> None:
            on_status(await self._status())

        self._on_end = on_end
        if "follow" in self.periodic_callbacks:
            self.periodic_callbacks.pop("follow").stop()
        callback = self.periodic_callbacks["follow"] = PeriodicCallback(tell, _FOLLOW_S * 1000)
        assert self.loop is not None
        self.loop.add_callback(callback.start)

    @property
    def dashboard_link(self) -> str:
        """Where a browser of the user finds the dashboard; empty while that is not known."""
        link = self._dashboard_link()
        return link or ""

    def _dashboard_link(self) -> str | None:
        scheduler = next((s for s in self._fleet.record.sessions if s.role == "scheduler"), None)
        if scheduler is None or not scheduler.app_url or self.scheduler_comm is None:
            return None
        return self._settings.dashboard_link.format(
            app_url=scheduler.app_url.rstrip("/"), session=scheduler.id, domain=self._fleet.pool.platform.domain
        )

    async def _refresh(self) -> None:
        """Take in what the scheduler knows of its workers: Dask's own stream tells no CPU and memory."""
        if self.scheduler_comm is None:
            return
        try:
            info, idle_since = await asyncio.wait_for(
                asyncio.gather(self.scheduler_comm.identity(), self.scheduler_comm.check_idle()), ANSWER_TIMEOUT_S
            )
        except (OSError, TimeoutError, asyncio.TimeoutError):
            self._unreachable_since = self._unreachable_since or time.monotonic()
            return
        self._unreachable_since = None
        self._idle_s = max(0.0, time.time() - idle_since) if idle_since else None
        self.scheduler_info = SchedulerInfo(info)

    async def _status(self) -> ClusterStatus:
        await self._refresh()
        return snapshot(
            self._fleet,
            self._state(self._fleet.record),
            self.scheduler_info["workers"],
            scheduler_address=self.scheduler_address if self.scheduler_comm is not None else None,
            dashboard_link=self._dashboard_link(),
            idle_s=self._idle_s,
        )

    def _state(self, record: Record) -> ClusterState:
        if record.state == "stopping" or self.failure is not None:
            return "stopping"
        stream = self._watch_worker_status_task
        silent_s = time.monotonic() - self._unreachable_since if self._unreachable_since is not None else 0.0
        if silent_s > _LOST_AFTER_S or (silent_s and stream is not None and stream.done()):
            return "lost"
        if record.state == "starting":
            return "starting"
        return "running" if len(self._connected()) >= record.requested else "degraded"

    def _connected(self) -> set[str]:
        """Ids of the sessions whose worker the scheduler knows."""
        return {session_of(worker["name"]) for worker in self.scheduler_info["workers"].values()}

    def _worker_sessions(self) -> list[SessionRecord]:
        fleet = self._fleet
        return [s for s in fleet.record.sessions if s.role == "worker" and fleet.state(s.id, True) == "running"]

    def _liveness(self) -> str:
        return liveness(self._fleet.record, self._fleet.folder, ANSWER_TIMEOUT_S)

    async def _get_logs(self, cluster: bool = True, scheduler: bool = True, workers: Any = True) -> Logs:
        logs = await super()._get_logs(cluster=False, scheduler=scheduler, workers=workers)
        if cluster:
            events = self._fleet.record.events
            logs["Cluster"] = Log("\n".join(f"{utc(at):%Y-%m-%d %H:%M:%S} {message}" for at, message in events))
        return logs

    def _run(self, work: Coroutine[Any, Any, Any]) -> Any:
        """Do it now, or as a task where the caller runs on the loop: Dask's callers do not always await."""
        if self.asynchronous:
            return asyncio.ensure_future(work)

        async def done() -> Any:
            return await work

        return self.sync(done)


def _ready_in_part(name: str, ready: int, wanted: int, timeout_s: float) -> str:
    return (
        f"cluster {name!r}: {ready} of {wanted} workers are ready after {timeout_s:g} s; "
        f"the other {wanted - ready} join when the platform starts them"
    )
