"""A cluster that is kept as it was asked for while a kernel holds it; what is to be done `Supervisor` says.

Knows how to grow, not how to start.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time

from distributed.core import Status
from tornado.ioloop import IOLoop

from cml_dask_magics.cluster.scaling import ScalableCluster
from cml_dask_magics.cluster.watching import Repeated
from cml_dask_magics.fleet.fleet import Fleet, StillUpError
from cml_dask_magics.fleet.launches import EndingError
from cml_dask_magics.fleet.supervisor import Seen, Supervisor, Todo
from cml_dask_magics.registry.lease import Lease
from cml_dask_magics.registry.registry import GoneError

logger = logging.getLogger(__name__)

_STEER_S = 2.0


class SteeringCluster(ScalableCluster):
    """A cluster that keeps as many workers as were asked for."""

    def __init__(self, fleet: Fleet, asynchronous: bool, loop: IOLoop | None) -> None:
        super().__init__(fleet, asynchronous, loop)
        self.shutdown_on_close = False
        self.steers = False
        self._supervisor = Supervisor(fleet, Lease(fleet.registry, fleet.record.name, fleet.kernel))
        self._parting: asyncio.Task[None] | None = None
        self.periodic_callbacks["steer"] = Repeated(self._steer, _STEER_S)

    async def _steer(self) -> None:
        """See what has happened to the cluster, and do what has to be done about it."""
        seen = Seen(self.observed, self.silent_s, time.monotonic())
        try:
            await self._do(await asyncio.to_thread(self._supervisor.round, seen))
        except (GoneError, EndingError):  # the next round, if there is one, tells
            pass
        except (RuntimeError, OSError, asyncio.TimeoutError) as error:  # the platform, the disk, another kernel
            logger.warning("cluster %r: %s", self.name, error)

    async def _do(self, todo: Todo) -> None:
        """Do what the supervisor leaves to whoever can talk to the scheduler."""
        self.steers = todo.steers
        if todo.forget_workers:
            self._forget_workers()
        if todo.gone:
            self.shutdown_on_close = self.shutdown_on_close or todo.end
            self._part(todo.gone)
            return
        self._mirror_adapting()
        if todo.shrink:
            async with self._scaling:
                requested = self._fleet.record.requested
                if len(self.plan) > requested:  # whoever scaled last may have asked for more
                    await self._shrink(requested)

    def _part(self, why: str) -> None:
        """Let go of the cluster, for a reason that the user did not give."""
        if self._parting is None and self._dask_status == Status.running:  # and nobody closes it already
            self.parting_words = why
            self._parting = asyncio.ensure_future(self._close_quietly())
            if not self.asynchronous:
                # The loop's thread ends with it, and cannot be waited for from there.
                self._parting.add_done_callback(
                    lambda _: threading.Thread(target=self._loop_runner.stop, daemon=True).start()
                )

    async def _close_quietly(self) -> None:
        try:
            await self._close()
        except StillUpError as error:  # they are on record; nobody waits for this
            logger.warning("%s", error)

    def _mirror_adapting(self) -> None:
        """Follow what the record says of adaptive scaling, whichever kernel wrote it."""
        raise NotImplementedError

    async def _let_go(self) -> None:
        await asyncio.to_thread(self._supervisor.release)
        await super()._let_go()
