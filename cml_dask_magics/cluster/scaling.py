"""Changes a cluster's size: launches sessions, or retires workers and then ends their sessions.

Dask's adaptive scaling uses it too: in one kernel only, and with pauses when the platform refuses sessions.
"""

from __future__ import annotations

import asyncio
import math
import os
import socket
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from distributed.deploy.adaptive import Adaptive

from cml_dask_magics.cluster.scheduler import SchedulerView, by_session, worker_key
from cml_dask_magics.fleet.fleet import Fleet
from cml_dask_magics.fleet.supervisor import Supervisor
from cml_dask_magics.model.lifecycle import is_planned
from cml_dask_magics.model.record import Record
from cml_dask_magics.model.status import WorkerFigures
from cml_dask_magics.model.words import counted


class Scaler:
    """Grows and shrinks one cluster.

    Parameters
    ----------
    fleet : Fleet
        Its sessions.
    scheduler : SchedulerView
    connected : callable
        The connected workers by address.
    supervisor : Supervisor
        Launches for adaptive scaling.
    """

    def __init__(
        self,
        fleet: Fleet,
        scheduler: SchedulerView,
        connected: Callable[[], Mapping[str, WorkerFigures]],
        supervisor: Supervisor,
    ) -> None:
        self._fleet = fleet
        self._scheduler = scheduler
        self._connected = connected
        self._supervisor = supervisor
        # One change of size at a time: two at once would each launch what both see missing.
        self._lock = asyncio.Lock()

    async def to(self, n: int) -> None:
        """Scale to `n` sessions of workers, as the user asked.

        Raises
        ------
        RuntimeError
            If the platform refused a session (those of this call have been stopped), or no other worker can take the
            data.
        """
        async with self._lock:
            await (self._grow(n) if n >= len(self._fleet.plan) else self._shrink(n))

    async def trim(self) -> None:
        """End surplus sessions, of a failed launch call that turned out to be ours."""
        async with self._lock:
            if len(self._fleet.plan) > self._fleet.record.requested:  # may have changed
                await self._shrink(self._fleet.record.requested)

    async def follow_load(self, n: int) -> None:
        """Grow to `n` sessions, or as many as the platform grants, for Dask's adaptive scaling."""
        if await asyncio.to_thread(self._supervisor.may_launch):
            async with self._lock:
                await asyncio.to_thread(self._supervisor.launch, n)
                await asyncio.to_thread(self._fleet.journal.update, self._by_load)

    async def let_go(self, sessions: Collection[str]) -> None:
        """Retire the workers of sessions that Dask's adaptive scaling chose, then end the sessions."""
        # On record first, so that their end is no loss.
        await asyncio.to_thread(self._fleet.withdraw, sessions, self._by_load)
        await self._retire(sessions, lose_data=True)  # Dask has seen to it that there is room for the data elsewhere
        await self._stop(sessions)

    async def end(self, sessions: Collection[str]) -> None:
        """End sessions whose workers Dask has retired; those that stay are as many as are requested then."""
        await asyncio.to_thread(self._fleet.withdraw, sessions, self._as_planned)
        await self._stop(sessions)

    def workers(self) -> dict[str, tuple[WorkerFigures, ...]]:
        """The connected workers of each session."""
        return by_session(self._connected().values(), self._fleet.session_of)

    def undo(self, before: set[str], requested: int, n: int) -> None:
        """Stop what was launched to scale to `n`, since the plan was `before` and `requested` workers were requested.

        Raises
        ------
        StillUpError
            Naming the sessions that the platform did not end.
        """
        fleet = self._fleet
        fleet.launches.settle()
        new = fleet.plan - before
        # Sessions that died have left the plan, but `requested` still counts them.
        if new or n > requested:

            def undone(record: Record) -> Record:
                if record.requested == requested:  # it was not changed
                    return record
                back = f"back to {counted(requested, fleet.settings.processes)}"
                return replace(record, requested=requested).with_event(f"{back}: scaling to {n} did not succeed")

            # First the record, so that they are not replaced.
            fleet.withdraw(new, undone)
            fleet.stop(new)

    async def _grow(self, n: int) -> None:
        """Launch what is missing to `n` sessions, all or nothing; with the lock held."""
        fleet = self._fleet
        before = fleet.record.requested
        launched = await asyncio.to_thread(fleet.launches.grow, n)
        if launched.refusals:
            came = [info.id for info in launched.sessions]
            message = await asyncio.to_thread(fleet.tidy_refusal, launched, [*launched.strays, *came])
            stays = counted(len(fleet.plan), fleet.settings.processes)
            raise RuntimeError(f"cluster {fleet.record.name!r} stays at {stays}: {message}")

        def noted(record: Record) -> Record:
            if n == before:  # the user wants another try, whatever failed before
                return _tried_again(record)
            # The number went on record with the new sessions. Another kernel may have changed it since.
            scaled = self._scaled(record, n, _this_kernel())
            return replace(scaled, requested=record.requested if launched.sessions else n)

        await asyncio.to_thread(fleet.journal.update, noted)

    async def _shrink(self, n: int) -> None:
        """End surplus sessions down to `n`; with the lock held."""
        fleet = self._fleet
        surplus = len(fleet.plan) - n
        # First those that are not connected, then those that Dask chooses.
        victims = sorted(fleet.plan - self.workers().keys())[:surplus]
        if len(victims) < surplus:
            workers = (surplus - len(victims)) * fleet.settings.processes
            spared = await self._scheduler.spare(workers, fleet.session_of)
            victims += [session for session in spared if session in fleet.plan][: surplus - len(victims)]
            victims += sorted(fleet.plan - set(victims))[: surplus - len(victims)]
        before = fleet.record.requested
        await asyncio.to_thread(fleet.withdraw, victims, partial(self._scaled, n=n, by=_this_kernel()))
        try:
            await self._retire(victims, lose_data=n == 0)
        except BaseException:
            back = partial(self._scaled, n=before, by=f"{_this_kernel()} again: the workers that were to go stay")
            await asyncio.to_thread(fleet.reinstate, victims, back)
            raise
        await self._stop(victims)

    async def _retire(self, victims: Collection[str], lose_data: bool) -> None:
        """Have Dask move the data off workers that will be ended."""
        names = [worker.name for session, workers in self.workers().items() if session in victims for worker in workers]
        kept = await self._scheduler.retire(names) if names else set()
        if kept and not lose_data:
            raise RuntimeError(
                f"cluster {self._fleet.record.name!r}: no other worker can take the data of "
                f"{', '.join(sorted(kept))}; they go on working"
            )

    async def _stop(self, victims: Collection[str]) -> None:
        await asyncio.to_thread(self._fleet.stop, victims)
        await self._scheduler.look()

    def _by_load(self, record: Record) -> Record:
        """The record with the number of sessions that Dask asks for, unless a user has asked for one meanwhile."""
        return record if record.adapt is None else self._as_planned(record)

    def _as_planned(self, record: Record) -> Record:
        n = sum(map(is_planned, record.sessions))
        return record if n == record.requested else self._scaled(record, n, "Dask", again=False)

    def _scaled(self, record: Record, n: int, by: str, again: bool = True) -> Record:
        event = f"scaled to {counted(n, self._fleet.settings.processes)} by {by}"
        return replace(_tried_again(record) if again else record, requested=n).with_event(event)


def _tried_again(record: Record) -> Record:
    return replace(record, failed_replacements=0)


def _this_kernel() -> str:
    """This kernel's name in events."""
    return f"kernel {os.getpid()} on {socket.gethostname()}"


class SessionAdaptive(Adaptive):  # type: ignore[misc]
    """Dask's adaptive scaling, active only in the kernel that steers the cluster.

    It counts sessions. Dask counts workers, and each session has the same number of them.
    """

    cluster: Any
    worker_key: Any

    @property
    def _processes(self) -> int:
        return int(self.cluster.settings.processes)

    async def adapt(self) -> None:
        """Scale by the load."""
        if self.cluster.steers:
            await super().adapt()

    async def target(self) -> int:
        """How many sessions the load needs; the present number while the scheduler cannot be reached."""
        try:
            workers = int(await super().target())
        except OSError:  # would end adaptive scaling in older releases of Dask
            return len(self.plan)
        return math.ceil(workers / self._processes)

    async def workers_to_close(self, target: int) -> list[str]:
        """Which sessions to end; none while the scheduler cannot be reached."""
        self.worker_key = worker_key(self.cluster.session_of)
        try:
            names = set(map(str, await super().workers_to_close(target * self._processes)))
        except OSError:
            return []
        sessions = self.cluster.scaler.workers()
        return [session for session, workers in sessions.items() if names.issuperset(worker.name for worker in workers)]

    async def scale_up(self, n: int) -> None:
        """Grow to `n` sessions, or as many as the platform grants."""
        await self.cluster.scaler.follow_load(n)

    async def scale_down(self, workers: Collection[str]) -> None:
        """Retire the workers of sessions, then end the sessions."""
        await self.cluster.scaler.let_go(workers)
