"""Dask's adaptive scaling on sessions that cost money: one kernel's alone, and within what the platform bears."""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import Collection
from dataclasses import replace
from typing import Any

from dask.utils import parse_bytes
from distributed.deploy.adaptive import Adaptive

from cml_dask_magics.cluster.steering import SteeringCluster
from cml_dask_magics.fleet.shell_lines import session_of
from cml_dask_magics.registry.registry import GoneError


class SessionAdaptive(Adaptive):  # type: ignore[misc]
    """Dask's adaptive scaling, in the kernel that steers; it leaves the platform alone where that refuses sessions."""

    cluster: Any

    async def adapt(self) -> None:
        """Look at the load, and scale by it."""
        if self.cluster.steers:
            await super().adapt()

    async def target(self) -> int:
        """How many workers the load asks for; as many as there are while the scheduler cannot be reached."""
        try:
            return int(await super().target())
        except OSError:  # older releases of Dask would never adapt again
            return len(self.plan)

    async def workers_to_close(self, target: int) -> list[Any]:
        """Which workers can be spared; none while the scheduler cannot be reached."""
        try:
            return list(await super().workers_to_close(target))
        except OSError:
            return []

    async def scale_up(self, n: int) -> None:
        """Bring the cluster up to `n` workers, or to as many as the platform grants."""
        await self.cluster._follow_load_up(n)

    async def scale_down(self, workers: Collection[Any]) -> None:
        """Retire workers, then end their sessions."""
        await self.cluster._withdraw(workers)
        await super().scale_down(workers)


class AdaptiveCluster(SteeringCluster):
    """A cluster that Dask can scale by its load."""

    _changing_adaptive = False

    @property
    def adapting(self) -> bool:
        """Whether Dask scales the cluster."""
        return self._adaptive is not None

    def adapt(
        self,
        Adaptive: type[Adaptive] = SessionAdaptive,  # noqa: N803 - Dask's name
        minimum: float = 0,
        maximum: float = math.inf,
        minimum_cores: float | None = None,
        maximum_cores: float | None = None,
        minimum_memory: float | str | None = None,
        maximum_memory: float | str | None = None,
        **kwargs: Any,
    ) -> Adaptive:
        """Let Dask scale the cluster by its load, at most to ``max-workers``.

        Parameters
        ----------
        Adaptive : type
            A subclass of `distributed.deploy.Adaptive`.
        minimum, maximum : int
            Numbers of workers.
        minimum_cores, maximum_cores : float
            Threads of all workers together, which `minimum` and `maximum` are raised and lowered to.
        minimum_memory, maximum_memory : float or str
            Their memory together likewise, in bytes or with a unit (``"100 GiB"``).
        **kwargs
            As for `distributed.deploy.Adaptive`.
        """
        self._check_open()
        threads, memory_bytes = self._threads_per_worker, self._memory_per_worker
        if minimum_cores is not None:
            minimum = max(minimum, math.ceil(minimum_cores / threads))
        if minimum_memory is not None:
            minimum = max(minimum, math.ceil(parse_bytes(minimum_memory) / memory_bytes))
        if maximum_cores is not None:
            maximum = min(maximum, math.floor(maximum_cores / threads))
        if maximum_memory is not None:
            maximum = min(maximum, math.floor(parse_bytes(maximum_memory) / memory_bytes))
        self._changing_adaptive = True
        try:
            adaptive = self._start_adapting(Adaptive, minimum=minimum, maximum=maximum, **kwargs)
            limits = (int(adaptive.minimum), int(adaptive.maximum))
            with contextlib.suppress(GoneError):  # stopped meanwhile
                self._fleet.update(lambda record: replace(record, adapt=limits, failed_replacements=0))
            return adaptive
        finally:
            self._changing_adaptive = False

    def _start_adapting(self, Adaptive: type[Adaptive], **kwargs: Any) -> Any:  # noqa: N803 - Dask's name
        adaptive = super().adapt(Adaptive, **kwargs)
        adaptive.maximum = int(min(adaptive.maximum, self.settings.max_workers))
        return adaptive

    def _stop_adapting(self) -> None:
        if self._fleet.record.adapt:
            with contextlib.suppress(GoneError):
                self._fleet.update(lambda record: replace(record, adapt=None))
        self._drop_adaptive()

    def _drop_adaptive(self) -> None:
        if self._adaptive is not None:
            self._adaptive.stop()
            self._adaptive = None

    def _mirror_adapting(self) -> None:
        limits, adaptive = self._fleet.record.adapt, self._adaptive
        if self._changing_adaptive:  # the record is about to follow
            return
        if limits is None:
            self._drop_adaptive()
        elif adaptive is None or limits != (adaptive.minimum, adaptive.maximum):
            self._start_adapting(SessionAdaptive, minimum=limits[0], maximum=limits[1])

    async def _follow_load_up(self, n: int) -> None:
        if await asyncio.to_thread(self._supervisor.may_launch):
            async with self._scaling:
                await asyncio.to_thread(self._supervisor.launch, n)
                await asyncio.to_thread(self._note_requested, len(self.plan), "Dask")

    async def _withdraw(self, workers: Collection[Any]) -> None:
        """Note that workers are about to be retired: their end is no loss."""
        doomed = {session_of(worker) for worker in workers}
        await asyncio.to_thread(self._fleet.withdraw, doomed, len(self.plan - doomed))
