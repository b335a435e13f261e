"""What a cluster does by itself while a kernel holds it: lost workers are replaced, a lost cluster is ended.

Of the kernels that hold it, one does so (see `lease`). Knows how to grow, not how to start.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Collection
from dataclasses import replace

from distributed.core import Status
from tornado.ioloop import IOLoop

from cml_dask_magics.cluster.scaling import ScalableCluster
from cml_dask_magics.cluster.watching import Repeated
from cml_dask_magics.fleet.fleet import Fleet, StillUpError
from cml_dask_magics.fleet.healing import Healer, named
from cml_dask_magics.fleet.launches import EndingError
from cml_dask_magics.registry.kernels import kernel_may_live
from cml_dask_magics.registry.lease import Lease
from cml_dask_magics.registry.registry import GoneError

logger = logging.getLogger(__name__)

_STEER_S = 2.0
# Where our listing cannot show a session, it is taken for dead only after so long: far longer than Dask itself needs to
# notice that a connection is cut (30 s), and a worker that notices ends.
_UNSEEN_GONE_S = 120.0
_UNSEEN_PENDING_S = 900.0


class SteeringCluster(ScalableCluster):
    """A cluster that keeps as many workers as were asked for."""

    def __init__(self, fleet: Fleet, asynchronous: bool, loop: IOLoop | None) -> None:
        super().__init__(fleet, asynchronous, loop)
        self.shutdown_on_close = False
        self.steers = False
        self._lease = Lease(fleet.registry, fleet.record.name, fleet.kernel)
        self._healer = Healer(fleet)
        self._gone_since: dict[str, float] = {}
        self._seen: set[str] | None = None
        self._parting: asyncio.Task[None] | None = None
        self.periodic_callbacks["steer"] = Repeated(self._steer, _STEER_S)

    async def _steer(self) -> None:
        """See what has happened to the cluster, and do what has to be done about it."""
        try:
            if not await asyncio.to_thread(self._fleet.refresh):
                self._part(f"Cluster {self.name!r} was stopped from another kernel")
                return
            self._mirror_adapting()
            if self._fleet.record.state == "stopping":
                return
            self.steers = await asyncio.to_thread(self._lease.hold)
            if self.steers:
                await self._set_right()
            elif self._fleet.record.state == "running":
                self._drop_replaced()
        except (GoneError, EndingError):  # the next round, if there is one, tells
            pass
        except (RuntimeError, OSError, asyncio.TimeoutError) as error:  # the platform, the disk, another kernel
            logger.warning("cluster %r: %s", self.name, error)

    async def _set_right(self) -> None:
        fleet = self._fleet
        if fleet.record.state == "lost":
            # What did not stop at first, or was being launched just then.
            left = [session.id for session in fleet.record.sessions if session.ended_at is None]
            await asyncio.to_thread(fleet.stop, left)
            return
        if fleet.record.state == "starting":
            await self._take_over_start()
            return
        if self._scheduler_is_gone():
            if await asyncio.to_thread(self._healer.ended_idle):
                self.shutdown_on_close = True
                self._part(f"Cluster {self.name!r} ended by itself: nobody worked for its idle timeout")
            else:
                self._forget_workers()
                await asyncio.to_thread(self._healer.end_lost)
            return
        if self.silent_s:  # nobody can tell what its workers do
            return
        connected = self.observed
        await asyncio.to_thread(fleet.note_connected, connected)
        await self._log_comings_and_goings(connected)
        await asyncio.to_thread(fleet.adopt, connected)
        await asyncio.to_thread(fleet.finish_stopping)
        await self._end_unseen(connected)
        self._drop_replaced()
        if fleet.record.adapt is not None:
            return
        if len(fleet.plan) > fleet.record.requested:  # sessions of a broken launch call that turned out to be ours
            async with self._scaling:
                if len(fleet.plan) > fleet.record.requested:  # whoever scaled last may have asked for more
                    await self._shrink(fleet.record.requested)
        else:
            await asyncio.to_thread(self._healer.heal)

    def _drop_replaced(self) -> None:
        """Show lost workers no longer once there are as many again as there should be."""
        record = self._fleet.record
        if len(self.plan) >= (record.adapt[0] if record.adapt else record.requested):
            self._fleet.drop_lost([s.id for s in self._fleet.lost.values() if s.role == "worker"])

    async def _take_over_start(self) -> None:
        """A cluster whose kernel died while it started, and that came up all the same."""
        record = self._fleet.record
        if record.owner != self._fleet.kernel and not kernel_may_live(record.owner):
            event = "the kernel that started it is gone; this one takes over"
            await asyncio.to_thread(
                self._fleet.update, lambda record: replace(record, state="running").with_event(event)
            )

    # Workers

    async def _end_unseen(self, connected: Collection[str]) -> None:
        """Stop sessions whose worker does not come (back), where no listing of ours would show their end."""
        fleet = self._fleet
        mine = fleet.pool.platform.session
        plan, now = fleet.plan - set(connected), time.monotonic()
        gone = {s.id: s for s in fleet.record.sessions if s.launched_from != mine and s.id in plan}
        self._gone_since = {session: self._gone_since.get(session, now) for session in gone}
        over = [
            session
            for session, since in self._gone_since.items()
            if now - since > (_UNSEEN_GONE_S if gone[session].connected_at is not None else _UNSEEN_PENDING_S)
        ]
        if over:
            await asyncio.to_thread(fleet.log, f"{named(over)} lost: no sign of life for long")
            await asyncio.to_thread(fleet.stop, over)

    async def _log_comings_and_goings(self, now: set[str]) -> None:
        """Put into the record which workers joined and left since the last look; the start tells its own story."""
        before, self._seen = self._seen, now
        if before is None:
            return
        for who, what in ((now - before, "joined"), (before - now, "left")):
            if who:
                await asyncio.to_thread(self._fleet.log, f"{named(who)} {what}")

    # The scheduler

    def _scheduler_is_gone(self) -> bool:
        """Whether it is sure: a network cut that heals is no death."""
        scheduler = self._scheduler_session()
        if scheduler is None:
            return True
        return scheduler.launched_from != self._fleet.pool.platform.session and self.silent_s > _UNSEEN_GONE_S

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
        await asyncio.to_thread(self._lease.release)
        await super()._let_go()
