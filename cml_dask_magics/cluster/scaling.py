"""Changes a cluster's size: launches sessions, or retires workers and then ends their sessions.

Dask's adaptive scaling uses it too: in one kernel only, and with pauses when the platform refuses sessions.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from distributed.deploy.adaptive import Adaptive

from cml_dask_magics.cluster.scheduler import SchedulerView, WorkerFigures
from cml_dask_magics.fleet.fleet import Fleet
from cml_dask_magics.fleet.shell_lines import session_of
from cml_dask_magics.fleet.supervisor import Supervisor
from cml_dask_magics.model.record import Record


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
        """Scale to `n` workers, as the user asked.

        Raises
        ------
        RuntimeError
            If the platform refused a session (those of this call have been stopped), or no other worker can take the
            data.
        """
        async with self._lock:
            await (self._grow(n) if n >= len(self._fleet.plan) else self._shrink(n))

    async def trim(self) -> None:
        """End surplus workers: sessions of a failed launch call that turned out to be ours."""
        async with self._lock:
            if len(self._fleet.plan) > self._fleet.record.requested:  # may have changed
                await self._shrink(self._fleet.record.requested)

    async def follow_load(self, n: int) -> None:
        """Grow to `n` workers, or as many as the platform grants, for Dask's adaptive scaling."""
        if await asyncio.to_thread(self._supervisor.may_launch):
            async with self._lock:
                await asyncio.to_thread(self._supervisor.launch, n)
                await asyncio.to_thread(self._note_load)

    async def withdraw(self, workers: Collection[Any]) -> None:
        """Put on record that Dask is about to retire workers, by name, so that their end is no loss."""
        doomed = {session_of(worker) for worker in workers}
        noted = partial(_scaled, n=len(self._fleet.plan - doomed), by="Dask", again=False)
        await asyncio.to_thread(self._fleet.withdraw, doomed, noted)

    async def end(self, workers: Collection[Any]) -> None:
        """End the sessions of workers, by name, that Dask has retired."""
        await self._stop([session_of(worker) for worker in workers])
        await asyncio.to_thread(self._note_load)

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
            # First the record, so that they are not replaced.
            fleet.withdraw(new, lambda record: replace(record, requested=requested))
            fleet.stop(new)

    async def _grow(self, n: int) -> None:
        """Launch what is missing to `n` workers, all or nothing; with the lock held."""
        fleet = self._fleet
        before = fleet.record.requested
        launched = await asyncio.to_thread(fleet.launches.grow, n)
        if launched.refusals:
            came = [info.id for info in launched.sessions]
            message = await asyncio.to_thread(fleet.tidy_refusal, launched, [*launched.strays, *came])
            raise RuntimeError(f"cluster {fleet.record.name!r} stays at {len(fleet.plan)} workers: {message}")
        # The user wants another try, whatever failed before.
        noted = partial(_scaled, n=n, by=_this_kernel()) if n != before else _tried_again
        await asyncio.to_thread(fleet.journal.update, noted)

    async def _shrink(self, n: int) -> None:
        """End surplus workers down to `n`; with the lock held."""
        fleet = self._fleet
        connected = {session_of(worker.name) for worker in self._connected().values()}
        surplus = len(fleet.plan) - n
        # First those that are not connected, then those that Dask chooses.
        victims = sorted(fleet.plan - connected)[:surplus]
        if len(victims) < surplus:
            victims += await self._scheduler.spare(surplus - len(victims))
            victims += sorted(fleet.plan - set(victims))[: surplus - len(victims)]
        before = fleet.record.requested
        await asyncio.to_thread(fleet.withdraw, victims, partial(_scaled, n=n, by=_this_kernel()))
        try:
            await self._retire(victims, lose_data=n == 0)
        except BaseException:
            back = partial(_scaled, n=before, by=f"{_this_kernel()} again: the workers that were to go stay")
            await asyncio.to_thread(fleet.reinstate, victims, back)
            raise
        await self._stop(victims)

    async def _retire(self, victims: Collection[str], lose_data: bool) -> None:
        """Have Dask move the data off workers that will be ended."""
        names = [worker.name for worker in self._connected().values() if session_of(worker.name) in victims]
        kept = await self._scheduler.retire(names) if names else set()
        if kept and not lose_data:
            raise RuntimeError(
                f"cluster {self._fleet.record.name!r}: no other worker can take the data of "
                f"{', '.join(sorted(kept))}; they go on working"
            )

    async def _stop(self, victims: Collection[str]) -> None:
        await asyncio.to_thread(self._fleet.stop, victims)
        await self._scheduler.look()

    def _note_load(self) -> None:
        """Put on record how many workers Dask asks for, if that has changed."""
        n = len(self._fleet.plan)
        if n != self._fleet.record.requested:
            self._fleet.journal.update(lambda record: _scaled(record, n, "Dask", again=False))


def _scaled(record: Record, n: int, by: str, again: bool = True) -> Record:
    event = f"scaled to {n} worker{'s' if n != 1 else ''} by {by}"
    return replace(_tried_again(record) if again else record, requested=n).with_event(event)


def _tried_again(record: Record) -> Record:
    return replace(record, failed_replacements=0)


def _this_kernel() -> str:
    """This kernel's name in events."""
    return f"kernel {os.getpid()} on {socket.gethostname()}"


class SessionAdaptive(Adaptive):  # type: ignore[misc]
    """Dask's adaptive scaling, active only in the kernel that steers the cluster."""

    cluster: Any

    async def adapt(self) -> None:
        """Scale by the load."""
        if self.cluster.steers:
            await super().adapt()

    async def target(self) -> int:
        """How many workers the load needs; the present number while the scheduler cannot be reached."""
        try:
            return int(await super().target())
        except OSError:  # would end adaptive scaling in older releases of Dask
            return len(self.plan)

    async def workers_to_close(self, target: int) -> list[Any]:
        """Which workers to end; none while the scheduler cannot be reached."""
        try:
            return list(await super().workers_to_close(target))
        except OSError:
            return []

    async def scale_up(self, n: int) -> None:
        """Grow to `n` workers, or as many as the platform grants."""
        await self.cluster.scaler.follow_load(n)

    async def scale_down(self, workers: Collection[Any]) -> None:
        """Retire workers, then end their sessions."""
        await self.cluster.scaler.withdraw(workers)
        await super().scale_down(workers)
