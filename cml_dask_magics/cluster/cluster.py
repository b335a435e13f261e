"""`CMLCluster`: a Dask cluster whose scheduler and workers are sessions of the platform.

Start, scale, re-attach and close. Knows neither IPython nor HTML.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
import warnings
from collections.abc import Callable, Generator, Mapping
from functools import partial
from typing import Any, ClassVar

from distributed.core import Status
from distributed.utils import NoOpAwaitable
from tornado.ioloop import IOLoop

from cml_dask_magics.cluster.connected import LOST_AFTER_S
from cml_dask_magics.cluster.shielded import begin, finish
from cml_dask_magics.cluster.start import TICK_S, StartingCluster, ready_in_part
from cml_dask_magics.fleet.failure import StartFailedError, describe_failure
from cml_dask_magics.fleet.fleet import Fleet, StillUpError
from cml_dask_magics.fleet.opening import ANSWER_TIMEOUT_S, claim, open_fleet
from cml_dask_magics.model.settings import Settings, as_typed, make_settings
from cml_dask_magics.model.status import Ended, StatusCallback
from cml_dask_magics.registry.liveness import liveness, scheduler_address
from cml_dask_magics.registry.registry import Registry


class CMLCluster(StartingCluster):
    """A Dask cluster on CML sessions, or on processes of this machine where there is no CML.

    It outlives the kernel: `close`, the end of a ``with`` block, ``%dask_down``, its idle timeout or the end of
    the CML session that launched it stop it. What is not given comes from Dask's configuration (``cml-dask-magics``).

    Parameters
    ----------
    n_workers : int
        Number of workers; 0 for a scheduler alone.
    name : str
        Which cluster: up to 40 letters, digits, ``-`` and ``_``. It must be free; without one, a free one is made.
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
        Called with a `ClusterStatus` about twice a second while the cluster starts, from Dask's thread.

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

    shown_by: ClassVar[Callable[[Any], object]] = print
    """What shows a cluster that is a cell's value; `cml_dask_magics` sets it."""

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
        if name is None:
            name = f"cluster-{secrets.token_hex(3)}"
        settings = make_settings(
            n_workers=n_workers, name=name, cpu=cpu, memory=memory, gpu=gpu, scheduler_cpu=scheduler_cpu,
            scheduler_memory=scheduler_memory, adapt=adapt, wait=wait, timeout=timeout, idle_timeout=idle_timeout,
            env=env, dashboard_port=dashboard_port, local=local, no_tls=no_tls, background=background,
        )  # fmt: skip
        self._open(claim(settings), asynchronous, loop, on_status, launches=True, shutdown_on_close=True)
        for note in self.notes:
            warnings.warn(note, stacklevel=2)

    @classmethod
    def from_settings(cls, settings: Settings, on_status: StatusCallback | None = None) -> CMLCluster:
        """A new cluster from settings that were typed."""
        self = cls.__new__(cls)
        self._open(claim(settings, as_typed), False, None, on_status, launches=True, shutdown_on_close=True)
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
        self._open(fleet, asynchronous, loop, None, launches=False, shutdown_on_close=shutdown_on_close)
        return self

    def _open(
        self,
        fleet: Fleet,
        asynchronous: bool,
        loop: IOLoop | None,
        on_status: StatusCallback | None,
        *,
        launches: bool,
        shutdown_on_close: bool,
    ) -> None:
        # Whether this object starts the cluster, and so answers for what is launched, or attaches to a running one.
        self._launches = launches
        self._background: asyncio.Task[None] | None = None
        self._ended: Ended | None = None
        self._fleet = fleet
        try:
            super().__init__(fleet, asynchronous, loop, on_status)
            self.shutdown_on_close = shutdown_on_close
            if not asynchronous:
                self._loop_runner.start()
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
                    try:
                        await asyncio.wrap_future(begin(partial(self._end_launched, error)))
                    finally:
                        await self._detach()
                    raise
            return self

        return started().__await__()

    async def _begin(self) -> None:
        if not self._launches or not self.settings.background:
            await (self._start_new() if self._launches else self._attach())
            return

        async def start() -> None:
            try:
                await self._start_new()
            except Exception as error:
                self.failure = error
                try:
                    await asyncio.to_thread(self._end_launched, error)
                except Exception as worse:  # sessions that are still up, or a record that cannot be removed
                    self.failure = worse
                finally:
                    await self._detach()

        self._background = asyncio.ensure_future(start())

    async def _attach(self) -> None:
        fleet = self._fleet
        deadline = time.monotonic() + self.settings.timeout_s
        # Another kernel may be starting it this very moment; then it comes up, or its record goes.
        while scheduler_address(fleet.record, fleet.folder) is None:
            if (
                not await asyncio.to_thread(fleet.refresh)
                or liveness(fleet.record, fleet.folder, ANSWER_TIMEOUT_S) == "silent"
                or time.monotonic() > deadline
            ):
                raise RuntimeError(f"cluster {self.name!r} did not come up; %dask_up --name {self.name} starts it anew")
            await asyncio.sleep(TICK_S)
        address = scheduler_address(fleet.record, fleet.folder)
        assert address is not None
        try:
            await asyncio.wait_for(self._connect_to(address), LOST_AFTER_S)
        except (OSError, TimeoutError, asyncio.TimeoutError) as error:
            raise RuntimeError(
                f"the scheduler of cluster {self.name!r} does not answer at {address} ({error or 'timed out'}); "
                f"%dask_down {self.name} clears what is left, %dask_up --name {self.name} then starts it anew"
            ) from error
        fleet.watch()
        self._mirror_adapting()

    def _undo(self, error: BaseException) -> None:
        """Stop what this start launched, and let go of Dask."""
        try:
            finish(partial(self._end_launched, error))
        finally:
            with contextlib.suppress(Exception):
                self.sync(self._detach, callback_timeout=10)
                self._loop_runner.stop()

    def _end_launched(self, error: BaseException) -> None:
        if not self._launches:  # another start's cluster goes on
            return
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

    def scale_until_ready(
        self, n: int, wait: int | None, timeout_s: float, on_status: StatusCallback | None = None
    ) -> None:
        """`scale` to `n` workers and wait for `wait` of them (all, if None), as a start waits.

        At the deadline one new worker is enough, and `warning` says what is missing. On any error, Ctrl-C too, what
        this call launched is stopped.

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
                missing = min(len(new), wanted - len(self.observed & before))
                if missing > 0:
                    await self._wait_for_sessions(missing, time.monotonic() + timeout_s, ids=new)
                await self._ask_dask()
            except TimeoutError as error:
                raise StartFailedError(describe_failure(self._fleet, self.observed, str(error), new)) from None
            finally:
                reporting.cancel()
            if (ready := len(self.observed)) < wanted:
                self.warning = ready_in_part(self.name, ready, wanted, timeout_s)

        self._stop_adapting()
        self._on_status = on_status
        try:
            self.sync(scale_and_wait)
        except BaseException as error:
            try:
                finish(partial(self._undo_scaling, before, requested, n))
            except StillUpError as still_up:
                raise StartFailedError(f"{error}\n{still_up}") from error
            raise

    def _undo_scaling(self, before: set[str], requested: int, n: int) -> None:
        """Stop what was launched to come to `n` workers since the plan was `before` and `requested` were asked for."""
        self._fleet.settle()
        new = self.plan - before
        # Those that died have left the plan, but the number would still ask for them.
        if new or n > requested:
            # First this, or they would be taken for missing.
            self._fleet.withdraw(new, requested)
            self._fleet.stop(new)

    @property
    def notes(self) -> tuple[str, ...]:
        """What the user should know of how this start took the settings."""
        return self._fleet.notes

    def _ipython_display_(self, **_: Any) -> None:
        type(self).shown_by(self)

    # Closing

    @property
    def ended(self) -> Ended | None:
        """What was stopped, once this object stopped its cluster."""
        return self._ended

    def close(self, timeout: float | None = None) -> Any:
        """Stop the cluster's sessions and see them end; after `from_name`, only let go (see `shutdown_on_close`).

        Raises
        ------
        RuntimeError
            Naming the sessions that the platform did not end; they are kept on record, and can be closed again.
        """
        if self.closed:
            if not self._must_end:
                return NoOpAwaitable() if self.asynchronous else None
            if self.asynchronous:
                return asyncio.ensure_future(self._end())
            self._ended = finish(self._fleet.end)  # without the loop, which has stopped
            return None
        if self.loop.asyncio_loop.is_closed():  # the interpreter is shutting down; the cluster goes on
            return None
        # Not Dask's own close, which keeps every RuntimeError to itself.
        closing = None
        try:
            closing = self.sync(self._close, callback_timeout=timeout)
        finally:
            if not self.asynchronous:
                self._loop_runner.stop()  # its thread, unless a client still uses it
        return closing

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
        # Now, not when all is over: Dask's clients of this cluster then close, and do not look for it for 30 seconds.
        self.status = Status.closing
        if self._background is not None:
            self._background.cancel()
        if self._adaptive is not None:  # only here: another kernel may take it up again
            self._adaptive.stop()
        try:
            if self._must_end:
                await self._end()
        finally:
            await self._detach()

    @property
    def _must_end(self) -> bool:
        """Whether the cluster is to end with this object, and has not been seen to."""
        return bool(self.shutdown_on_close) and self._ended is None

    async def _end(self) -> None:
        self._ended = await asyncio.wrap_future(begin(self._fleet.end))
