"""How a cluster comes up: scheduler and workers are launched at once, find each other, and are waited for.

The part of `CMLCluster` between launching and "ready".
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection
from dataclasses import replace
from typing import Any

from tornado.ioloop import IOLoop

from cml_dask_magics.cluster.adaptive import AdaptiveCluster
from cml_dask_magics.fleet.failure import StartFailedError, describe_failure
from cml_dask_magics.fleet.fleet import Fleet
from cml_dask_magics.model.record import Role
from cml_dask_magics.model.status import StatusCallback
from cml_dask_magics.platforms.pool import Launched
from cml_dask_magics.registry.liveness import scheduler_address

TICK_S = 0.1
_REPORT_S = 0.5
_HEAD_START_S = 0.2


class StartingCluster(AdaptiveCluster):
    """A cluster that can be brought up.

    Parameters
    ----------
    on_status : callable, optional
        Called with a `ClusterStatus` about twice a second meanwhile.
    """

    def __init__(self, fleet: Fleet, asynchronous: bool, loop: IOLoop | None, on_status: StatusCallback | None) -> None:
        super().__init__(fleet, asynchronous, loop)
        self._on_status = on_status

    async def _start_new(self) -> None:
        fleet, settings, began = self._fleet, self.settings, time.monotonic()
        wanted = settings.n_workers if settings.wait is None else settings.wait
        deadline = began + settings.timeout_s
        reporting = asyncio.ensure_future(self._report_while_starting())
        counts: dict[Role, int] = {"scheduler": 1, "worker": settings.n_workers}
        launches: list[asyncio.Future[Launched]] = []
        try:
            for role, count in counts.items():
                launches.append(asyncio.ensure_future(asyncio.to_thread(fleet.launch, role, count)))
                # First come, first served: without a scheduler the workers would hold their places for nothing.
                await asyncio.wait(launches, timeout=_HEAD_START_S)
            fleet.watch()
            await self._connect_when_up(deadline, launches)
            await self._wait_for_sessions(wanted, deadline, launches)
            await asyncio.gather(*launches)
            self._raise_if_failed(launches)
        except TimeoutError as error:
            raise StartFailedError(describe_failure(fleet, self.observed, str(error))) from None
        finally:
            reporting.cancel()
        came = self.observed
        self._supervisor.begin(came)
        ready = len(came)
        message = f"{ready} worker{'s' if ready != 1 else ''} ready in {time.monotonic() - began:.1f} s"
        if ready < wanted:
            message = self.warning = ready_in_part(self.name, ready, wanted, settings.timeout_s)
        await asyncio.to_thread(fleet.update, lambda record: replace(record, state="running").with_event(message))
        await self._ask_dask()
        if ready >= settings.n_workers:
            await asyncio.to_thread(fleet.registry.note_start, fleet.record.backend, time.monotonic() - began)
        if settings.adapt:
            self.adapt(minimum=settings.adapt[0], maximum=settings.adapt[1])
        await self._report()

    async def _connect_when_up(self, deadline: float, launches: Collection[asyncio.Future[Any]]) -> None:
        fleet = self._fleet
        while True:
            self._raise_if_failed(launches)
            address = scheduler_address(fleet.record, fleet.folder)
            if address is not None:
                try:
                    await self._connect_to(address)
                    return
                except (OSError, asyncio.TimeoutError):
                    # Its port is not open yet, or its session has just died: the next round tells.
                    await self._disconnect()
            if time.monotonic() > deadline:
                raise TimeoutError(f"the scheduler did not come up within {self.settings.timeout_s:g} s")
            await asyncio.sleep(TICK_S)

    async def _wait_for_sessions(
        self,
        n: int,
        deadline: float,
        launches: Collection[asyncio.Future[Any]] = (),
        ids: Collection[str] | None = None,
    ) -> None:
        """Until `n` workers (of `ids`) are connected, or the deadline has passed with one at least."""
        while True:
            self._raise_if_failed(launches, ids)
            connected = self.observed if ids is None else self.observed & set(ids)
            if len(connected) >= n:
                return
            if time.monotonic() > deadline:
                if connected:
                    return
                raise TimeoutError(f"no worker connected within {self.settings.timeout_s:g} s")
            await asyncio.sleep(TICK_S)

    def _raise_if_failed(self, launches: Collection[asyncio.Future[Any]], ids: Collection[str] | None = None) -> None:
        for launch in launches:
            if launch.done():
                launch.result()
        over = {"stopping": "another kernel stopped it", "lost": "its scheduler is gone"}
        if why := over.get(self._fleet.record.state):
            raise StartFailedError(describe_failure(self._fleet, self.observed, why, ids))
        # All launches must have answered, or the message would name half of what was refused.
        lost = self._fleet.lost if ids is None else {key for key in self._fleet.lost if key in ids}
        refused = self._fleet.refusals if ids is None else ()
        if (refused or lost) and all(launch.done() for launch in launches):
            raise StartFailedError(describe_failure(self._fleet, self.observed, "a session was refused or died", ids))

    async def _report_while_starting(self) -> None:
        while True:
            await self._report()
            await asyncio.sleep(_REPORT_S)

    async def _report(self) -> None:
        if self._on_status is not None:
            self._on_status(await self._snapshot())


def ready_in_part(name: str, ready: int, wanted: int, timeout_s: float) -> str:
    """What is told when the time is up and some workers are still missing."""
    return (
        f"cluster {name!r}: {ready} of {wanted} workers are ready after {timeout_s:g} s; "
        f"the other {wanted - ready} join when the platform starts them"
    )
