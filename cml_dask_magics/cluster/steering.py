"""What a cluster does by itself while a kernel holds it: lost workers are replaced, a lost cluster is ended.

Of the kernels that hold it, one does so (see `lease`).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass, replace

from cml_dask_magics.cluster.snapshot import scheduler_session
from cml_dask_magics.fleet.fleet import Fleet
from cml_dask_magics.fleet.healing import Healer, named
from cml_dask_magics.registry.kernels import kernel_may_live
from cml_dask_magics.registry.lease import Lease

# Where our listing cannot show a session, it is taken for dead only after so long: far longer than Dask itself needs to
# notice that a connection is cut (30 s), and a worker that notices ends.
_UNSEEN_GONE_S = 120.0
_UNSEEN_PENDING_S = 900.0


@dataclass(frozen=True)
class Host:
    """What a round needs of the cluster object.

    Parameters
    ----------
    observed : callable
        Ids of the sessions whose worker is connected.
    silent_s : callable
        For how many seconds the scheduler has been silent.
    trim : callable
        Ends what is more than was asked for.
    part : callable
        Lets go of the cluster, for a reason that the user did not give, and whether the cluster is to end with it.
    forget_workers : callable
    """

    observed: Callable[[], set[str]]
    silent_s: Callable[[], float]
    trim: Callable[[], Awaitable[None]]
    part: Callable[[str, bool], None]
    forget_workers: Callable[[], None]


class Steering:
    """Rounds of setting one cluster right.

    Parameters
    ----------
    fleet : Fleet
    healer : Healer
    host : Host
    """

    def __init__(self, fleet: Fleet, healer: Healer, host: Host) -> None:
        self._fleet = fleet
        self._healer = healer
        self._host = host
        self._lease = Lease(fleet.registry, fleet.record.name, fleet.kernel)
        self._gone_since: dict[str, float] = {}
        self.steers = False
        self.seen: set[str] | None = None
        """Whose coming and going has been told; None before the first round."""

    async def round(self) -> None:
        """See what has happened to the cluster, and do what has to be done about it."""
        self.steers = await asyncio.to_thread(self._lease.hold)
        if self.steers:
            await self._set_right()
        elif self._fleet.record.state == "running":
            self._drop_replaced()

    def release(self) -> None:
        """Leave the steering to another kernel."""
        self._lease.release()

    async def _set_right(self) -> None:
        fleet, host = self._fleet, self._host
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
                name = fleet.record.name
                host.part(f"Cluster {name!r} ended by itself: nobody worked for its idle timeout", True)
            else:
                host.forget_workers()
                await asyncio.to_thread(self._healer.end_lost)
            return
        if host.silent_s():  # nobody can tell what its workers do
            return
        connected = host.observed()
        await asyncio.to_thread(fleet.note_connected, connected)
        await self._log_comings_and_goings(connected)
        await asyncio.to_thread(fleet.adopt, connected)
        await asyncio.to_thread(fleet.finish_stopping)
        await self._end_unseen(connected)
        self._drop_replaced()
        if fleet.record.adapt is not None:
            return
        if len(fleet.plan) > fleet.record.requested:  # sessions of a broken launch call that turned out to be ours
            await host.trim()
        else:
            await asyncio.to_thread(self._healer.heal)

    def _drop_replaced(self) -> None:
        """Show lost workers no longer once there are as many again as there should be."""
        fleet, record = self._fleet, self._fleet.record
        if len(fleet.plan) >= (record.adapt[0] if record.adapt else record.requested):
            fleet.drop_lost([s.id for s in fleet.lost.values() if s.role == "worker"])

    async def _take_over_start(self) -> None:
        """A cluster whose kernel died while it started, and that came up all the same."""
        record = self._fleet.record
        if record.owner != self._fleet.kernel and not kernel_may_live(record.owner):
            event = "the kernel that started it is gone; this one takes over"
            await asyncio.to_thread(
                self._fleet.update, lambda record: replace(record, state="running").with_event(event)
            )

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
        before, self.seen = self.seen, now
        if before is None:
            return
        for who, what in ((now - before, "joined"), (before - now, "left")):
            if who:
                await asyncio.to_thread(self._fleet.log, f"{named(who)} {what}")

    def _scheduler_is_gone(self) -> bool:
        """Whether it is sure: a network cut that heals is no death."""
        scheduler = scheduler_session(self._fleet)
        if scheduler is None:
            return True
        return scheduler.launched_from != self._fleet.pool.platform.session and self._host.silent_s() > _UNSEEN_GONE_S
