"""Growing and shrinking a cluster: sessions are launched or, after their workers were retired, ended.

The middle of `CMLCluster`.
"""

from __future__ import annotations

import asyncio
import math
import numbers
import os
import socket
from collections.abc import Collection, Coroutine, Iterable
from dataclasses import replace
from typing import Any

from dask.utils import parse_bytes
from tornado.ioloop import IOLoop

from cml_dask_magics.cluster.connected import ConnectedCluster
from cml_dask_magics.fleet.fleet import Fleet
from cml_dask_magics.fleet.shell_lines import session_of, worker_memory_limit_bytes, worker_nthreads
from cml_dask_magics.model.record import Record


class ScalableCluster(ConnectedCluster):
    """A connected cluster that can be given more workers or fewer."""

    def __init__(self, fleet: Fleet, asynchronous: bool, loop: IOLoop | None) -> None:
        super().__init__(fleet, asynchronous, loop)
        # One change of size at a time: two at once would each launch what both see missing.
        self._scaling = asyncio.Lock()

    @property
    def plan(self) -> set[str]:
        """Names of the workers that should exist: ids of their sessions."""
        return self._fleet.plan

    # What was asked of the platform is what is planned: a launch call answers with the ids.
    requested = plan

    @property
    def wanted(self) -> int:
        """How many workers were asked for."""
        return self._fleet.record.requested

    def scale(self, n: int = 0, memory: float | str | None = None, cores: float | None = None) -> Any:
        """Bring the cluster to `n` workers; ends adaptive scaling.

        Up: launches sessions and returns when the platform took them (`wait_for_workers` waits). Down: moves data off
        the workers that go, then ends exactly their sessions.

        Parameters
        ----------
        n : int
            Number of workers.
        memory : float or str
            Bytes, or with a unit (``"24 GiB"``): as many workers as have so much together, if that is more than `n`.
        cores : float
            As many workers as have so many threads together, if that is more than `n`.

        Raises
        ------
        ValueError
            If that is no number of workers from 0 to ``max-workers``.
        RuntimeError
            If the platform refused a session (those of this call have been stopped), or data has nowhere to go.
        """
        self._check_open()
        most = self.settings.max_workers
        asked = repr(n)
        if memory is not None:
            asked += f" and memory={memory!r}"
            n = max(n, math.ceil(parse_bytes(memory) / self._memory_per_worker))
        if cores is not None:
            asked += f" and cores={cores!r}"
            n = max(n, math.ceil(cores / self._threads_per_worker))
        if isinstance(n, bool) or not isinstance(n, numbers.Integral) or not 0 <= n <= most:
            raise ValueError(
                f"n must be a whole number of workers from 0 to {most} (the setting max-workers); not {asked}"
            )
        self._stop_adapting()
        return self._run(self._scale_to(int(n)))

    @property
    def _memory_per_worker(self) -> int:
        return worker_memory_limit_bytes(self.settings.memory_gib)

    @property
    def _threads_per_worker(self) -> int:
        return worker_nthreads(self.settings.cpu)

    def scale_down(self, workers: Iterable[Any]) -> Any:
        """End the sessions of workers, by name; for Dask's `Adaptive`, which has retired them."""

        async def end() -> None:
            await self._stop_sessions([session_of(worker) for worker in workers])
            await asyncio.to_thread(self._note_requested, len(self.plan), "Dask")

        return self._run(end())

    def _stop_adapting(self) -> None:
        """Called before somebody asks for a number of workers."""
        raise NotImplementedError

    async def _scale_to(self, n: int) -> None:
        async with self._scaling:
            await (self._grow(n) if n >= len(self.plan) else self._shrink(n))

    async def _grow(self, n: int) -> None:
        """Launch what is missing to `n` workers, or nothing; with `_scaling` held."""
        before = self._fleet.record.requested
        launched = await asyncio.to_thread(self._fleet.grow, n)
        if launched.refusals:
            came = [info.id for info in launched.sessions]
            message = await asyncio.to_thread(self._fleet.tidy_refusal, launched, [*launched.strays, *came])
            raise RuntimeError(f"cluster {self.name!r} stays at {len(self.plan)} workers: {message}")
        if n != before:
            await asyncio.to_thread(self._note_scaled, n, self._who)
        else:
            await asyncio.to_thread(self._try_again)

    async def _shrink(self, n: int) -> None:
        """End what is too much for `n` workers; with `_scaling` held."""
        connected = self.observed
        surplus = len(self.plan) - n
        # First those that do no work yet, then those that Dask can spare most easily.
        victims = sorted(self.plan - connected)[:surplus]
        if len(victims) < surplus:
            spare = await self.scheduler_comm.workers_to_close(n=surplus - len(victims), attribute="name")
            victims += [session_of(name) for name in spare]
            victims += sorted(self.plan - set(victims))[: surplus - len(victims)]
        before = self._fleet.record.requested
        await asyncio.to_thread(self._fleet.withdraw, victims, n)
        try:
            await self._retire(victims, lose_data=n == 0)
        except BaseException:
            await asyncio.to_thread(self._fleet.reinstate, victims, before)
            raise
        await self._stop_sessions(victims)
        await asyncio.to_thread(self._note_scaled, n, self._who)

    async def _retire(self, victims: Collection[str], lose_data: bool) -> None:
        """Have Dask move the data off workers that are about to go."""
        workers = self.scheduler_info["workers"].values()
        connected = [worker["name"] for worker in workers if session_of(worker["name"]) in victims]
        if not connected:
            return
        retired = await self.scheduler_comm.retire_workers(names=connected, remove=True, close_workers=True)
        kept = set(connected) - {worker["name"] for worker in retired.values()}
        if kept and not lose_data:
            raise RuntimeError(
                f"cluster {self.name!r}: no other worker can take the data of {', '.join(map(str, sorted(kept)))}; "
                "they go on working"
            )

    async def _stop_sessions(self, victims: Collection[str]) -> None:
        await asyncio.to_thread(self._fleet.stop, victims)
        await self._look()

    @property
    def _who(self) -> str:
        """This kernel, as others can tell it from theirs."""
        return f"kernel {os.getpid()} on {socket.gethostname()}"

    def _note_requested(self, n: int, by: str) -> None:
        """Write down how many workers are asked for, if that is news."""
        if n != self._fleet.record.requested:
            self._note_scaled(n, by)

    def _try_again(self) -> None:
        """Who asks by hand wants to see it tried again, whatever failed before."""
        self._fleet.update(lambda record: replace(record, failed_replacements=0))

    def _note_scaled(self, n: int, by: str) -> None:
        event = f"scaled to {n} worker{'s' if n != 1 else ''} by {by}"
        again = by == self._who  # see `_try_again`

        def change(record: Record) -> Record:
            failed = 0 if again else record.failed_replacements
            return replace(record, requested=n, failed_replacements=failed).with_event(event)

        self._fleet.update(change)

    def _run(self, work: Coroutine[Any, Any, Any]) -> Any:
        """Do it now, or as a task where the caller runs on the loop: Dask's callers do not always await."""
        if self.asynchronous:
            return asyncio.ensure_future(work)

        async def done() -> Any:
            return await work

        return self.sync(done)
