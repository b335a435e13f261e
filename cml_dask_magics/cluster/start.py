"""How a cluster starts: scheduler and workers are launched at the same time, connect, and are waited for."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from cml_dask_magics.fleet.failure import StartFailedError, describe_failure
from cml_dask_magics.fleet.fleet import Fleet
from cml_dask_magics.fleet.pending import why_pending
from cml_dask_magics.model.words import counted, short
from cml_dask_magics.platforms.pool import Launched
from cml_dask_magics.registry.start_times import note_start


@dataclass(frozen=True)
class Readiness:
    """The result of a start: sessions with all their workers connected, sessions that were waited for, duration."""

    ready: int
    wanted: int
    took_s: float


class Start:
    """Starts a cluster, or attaches to one.

    Parameters
    ----------
    fleet : Fleet
        Its sessions.
    observed : callable
        Ids of the sessions whose workers are connected.
    connect : callable
        Awaited with the scheduler's address; raises ``OSError`` if it cannot connect.
    disconnect : callable
        Awaited after `connect` has failed.
    """

    def __init__(
        self,
        fleet: Fleet,
        observed: Callable[[], set[str]],
        connect: Callable[[str], Awaitable[None]],
        disconnect: Callable[[], Awaitable[None]],
    ) -> None:
        self._fleet = fleet
        self._observed = observed
        self._connect = connect
        self._disconnect = disconnect
        self._told_why = False

    async def run(self) -> Readiness:
        """Launch everything, connect, and wait as the settings say.

        Raises
        ------
        StartFailedError
            If a session was refused or died, or none connected in time.
        """
        fleet, settings, began = self._fleet, self._fleet.settings, time.monotonic()
        wanted = settings.n_workers if settings.wait is None else settings.wait
        deadline = began + settings.timeout_s
        launches: list[asyncio.Future[Launched]] = []
        try:
            # The scheduler first: if resources are short, workers without a scheduler would only block them.
            for launch in (partial(fleet.launches.launch, "scheduler", 1), fleet.launches.launch_requested):
                launches.append(asyncio.ensure_future(asyncio.to_thread(launch)))
                launches[-1].add_done_callback(_look_at)
                await asyncio.wait(launches, timeout=fleet.times.head_start_s)
            fleet.watch()
            await self._connect_when_up(deadline, launches)
            await self.wait_for(wanted, deadline, launches)
            await asyncio.gather(*launches)
            self._raise_if_failed(launches)
        except TimeoutError as error:
            raise StartFailedError(describe_failure(fleet, self._observed(), str(error), timed_out=True)) from None
        wanted = min(wanted, fleet.record.requested)  # it may have been scaled meanwhile
        readiness = Readiness(len(self._observed()), wanted, time.monotonic() - began)
        await asyncio.to_thread(self._record_readiness, readiness)
        return readiness

    async def attach(self) -> None:
        """Connect to a cluster that is running, or is being started by another kernel.

        Raises
        ------
        RuntimeError
            If it does not start, or its scheduler does not answer.
        """
        fleet, name = self._fleet, self._fleet.record.name
        deadline = time.monotonic() + fleet.settings.timeout_s
        while (address := await asyncio.to_thread(fleet.scheduler_address)) is None:
            if (
                not await asyncio.to_thread(fleet.journal.refresh)
                or await asyncio.to_thread(fleet.liveness) == "silent"
                or time.monotonic() > deadline
            ):
                raise RuntimeError(f"cluster {name!r} did not come up; %dask_up --name {name} starts it again")
            await asyncio.sleep(fleet.times.tick_s)
        try:
            await asyncio.wait_for(self._connect(address), fleet.times.connect_s)
        except (OSError, TimeoutError, asyncio.TimeoutError) as error:
            raise RuntimeError(
                f"the scheduler of cluster {name!r} does not answer at {address} ({short(error) or 'timed out'}); "
                f"%dask_down {name} clears what is left, %dask_up --name {name} then starts it again"
            ) from error
        fleet.watch()

    async def wait_for(
        self,
        n: int,
        deadline: float,
        launches: Collection[asyncio.Future[Any]] = (),
        ids: Collection[str] | None = None,
    ) -> None:
        """Wait until the workers of `n` sessions are connected, or of at least one at the deadline.

        Parameters
        ----------
        n : int
            Fewer are enough where the cluster is scaled to fewer meanwhile.
        deadline : float
            By ``time.monotonic()``.
        launches : collection of Future
            Launch calls that may still fail.
        ids : collection of str, optional
            The sessions that were launched for this; all, if None. Others may fail: they are replaced.

        Raises
        ------
        StartFailedError
            If a session was refused or died.
        TimeoutError
            If the deadline has passed, and none of the sessions that were launched for this has a worker connected.
        """
        while True:
            self._raise_if_failed(launches, ids)
            connected = self._observed() & self._fleet.plan
            if len(connected) >= min(n, self._fleet.record.requested):
                return
            if time.monotonic() > deadline:
                if connected if ids is None else not ids or connected.intersection(ids):
                    return
                raise TimeoutError(nobody_ready_message(self._fleet, self._fleet.settings.timeout_s))
            await self._tick()

    async def _connect_when_up(self, deadline: float, launches: Collection[asyncio.Future[Any]]) -> None:
        fleet = self._fleet
        while True:
            self._raise_if_failed(launches)
            address = await asyncio.to_thread(fleet.scheduler_address)
            if address is not None:
                try:
                    await self._connect(address)
                    return
                except (OSError, asyncio.TimeoutError):
                    # Its port is not open yet, or its session has just died: the next round finds out.
                    await self._disconnect()
            if time.monotonic() > deadline:
                raise TimeoutError(f"the scheduler did not come up within {fleet.settings.timeout_s:g} s")
            await self._tick()

    async def _tick(self) -> None:
        """Wait until it is time to look again, and tell once why sessions may be pending for so long."""
        fleet = self._fleet
        if not self._told_why and (why := why_pending(fleet, fleet.times.pending_s)):
            self._told_why = True
            await asyncio.to_thread(fleet.journal.log, why)
        await asyncio.sleep(fleet.times.tick_s)

    def _raise_if_failed(self, launches: Collection[asyncio.Future[Any]], ids: Collection[str] | None = None) -> None:
        fleet = self._fleet
        for launch in launches:
            if launch.done():
                launch.result()
        ended = {"stopping": "it was stopped meanwhile", "lost": "its scheduler is gone"}
        if why := ended.get(fleet.record.state):
            raise StartFailedError(describe_failure(fleet, self._observed(), why, ids))
        # Only when all launch calls have returned, so that the message names all refusals.
        lost = fleet.lost if ids is None else {key for key in fleet.lost if key in ids}
        refused = fleet.launches.refusals if ids is None else ()
        if (refused or lost) and all(launch.done() for launch in launches):
            raise StartFailedError(describe_failure(fleet, self._observed(), "a session was refused or died", ids))

    def _record_readiness(self, readiness: Readiness) -> None:
        fleet = self._fleet
        message = f"{counted(readiness.ready, fleet.settings.processes)} ready in {readiness.took_s:.1f} s"
        if readiness.ready < readiness.wanted:
            message = partly_ready_message(fleet, readiness, fleet.settings.timeout_s)
        fleet.journal.update(lambda record: replace(record, state="running").with_event(message))
        if readiness.ready >= fleet.settings.n_workers:
            note_start(fleet.journal.registry.directory, fleet.record.backend, readiness.took_s)


def _look_at(launch: asyncio.Future[Any]) -> None:
    """Take note of a launch call's error: the first one ends the start, and asyncio would log the other as missed."""
    if not launch.cancelled():
        launch.exception()


def nobody_ready_message(fleet: Fleet, timeout_s: float, scaled: bool = False) -> str:
    """The message if no worker is connected at the timeout, or no session has all of its several workers.

    Parameters
    ----------
    fleet : Fleet
    timeout_s : float
    scaled : bool
        Whether a running cluster was to grow, so that only new ones count.
    """
    who = "worker connected" if fleet.settings.processes == 1 else "session had all its workers connected"
    return f"no {'new ' if scaled else ''}{who} within {timeout_s:g} s; --timeout (in Python: timeout=) gives more time"


def partly_ready_message(fleet: Fleet, readiness: Readiness, timeout_s: float) -> str:
    """The message if some workers are missing at the timeout."""
    wanted = counted(readiness.wanted, fleet.settings.processes)
    missing = readiness.wanted - readiness.ready
    others = "the other joins when the platform starts it"
    if missing > 1:
        others = f"the other {missing} join when the platform starts them"
    return f"cluster {fleet.record.name!r}: {readiness.ready} of {wanted} are ready after {timeout_s:g} s; {others}"
