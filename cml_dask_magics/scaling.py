"""Growing and shrinking a cluster: sessions are launched or, after their workers were retired, ended.

The middle of `CMLCluster`.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import time
from collections.abc import Collection, Coroutine, Iterable
from dataclasses import replace
from typing import Any

from distributed.deploy.adaptive import Adaptive
from tornado.ioloop import IOLoop

from cml_dask_magics.connected import ConnectedCluster
from cml_dask_magics.fleet import Fleet
from cml_dask_magics.registry import GoneError
from cml_dask_magics.snapshot import session_of

_REFUSED_PAUSE_S = 60.0


class SessionAdaptive(Adaptive):  # type: ignore[misc]
    """Dask's adaptive scaling, which leaves the platform alone for a minute after it refused a session."""

    _not_before = 0.0

    async def scale_up(self, n: int) -> None:
        """Bring the cluster up to `n` workers, or to as many as the platform grants."""
        cluster: Any = self.cluster
        if time.monotonic() >= self._not_before and not await cluster._grow(n, keep_what_came=True):
            self._not_before = time.monotonic() + _REFUSED_PAUSE_S


class ScalableCluster(ConnectedCluster):
    """A connected cluster that can be given more workers or fewer."""

    def __init__(self, fleet: Fleet, asynchronous: bool, loop: IOLoop | None) -> None:
        super().__init__(fleet, asynchronous, loop)
        # One change of size at a time: two at once would each launch what both see missing.
        self._scaling = asyncio.Lock()

    @property
    def plan(self) -> set[str]:
        """Names of the workers that should exist: ids of their sessions."""
        fleet = self._fleet
        return {s.id for s in fleet.record.sessions if s.role == "worker" and fleet.state(s.id, True) == "running"}

    # What was asked of the platform is what is planned: a launch call answers with the ids.
    requested = plan

    @property
    def adapting(self) -> bool:
        """Whether Dask scales the cluster."""
        return self._adaptive is not None

    def scale(self, n: int) -> Any:
        """Bring the cluster to `n` workers; ends adaptive scaling.

        Up: launches sessions and returns when the platform took them (`wait_for_workers` waits). Down: moves data off
        the workers that go, then ends exactly their sessions.

        Raises
        ------
        ValueError
            If `n` is no number of workers from 0 to ``max-workers``.
        RuntimeError
            If the platform refused a session (those of this call have been stopped), or data has nowhere to go.
        """
        most = self.settings.max_workers
        if isinstance(n, bool) or not isinstance(n, int) or not 0 <= n <= most:
            raise ValueError(
                f"n must be a whole number of workers from 0 to {most} (the setting max-workers); not {n!r}"
            )
        self._stop_adapting()
        return self._run(self._scale_to(n))

    def scale_down(self, workers: Iterable[Any]) -> Any:
        """End the sessions of workers, by name; for Dask's `Adaptive`, which has retired them."""

        async def end() -> None:
            await self._end_workers([session_of(worker) for worker in workers], retire=False)
            await asyncio.to_thread(self._note_requested, len(self.plan), "Dask")

        return self._run(end())

    def adapt(self, Adaptive: type[Adaptive] = SessionAdaptive, **kwargs: Any) -> Adaptive:  # noqa: N803 - Dask's name
        """Let Dask scale the cluster by its load; see `distributed.deploy.Cluster.adapt`."""
        adaptive = super().adapt(Adaptive, **kwargs)
        adaptive.maximum = int(min(adaptive.maximum, self.settings.max_workers))
        limits = (int(adaptive.minimum), int(adaptive.maximum))
        with contextlib.suppress(GoneError):  # stopped meanwhile
            self._fleet.update(lambda record: replace(record, adapt=limits))
        return adaptive

    def _stop_adapting(self) -> None:
        if self._adaptive is not None:
            self._adaptive.stop()
            self._adaptive = None
        if self._fleet.record.adapt:
            with contextlib.suppress(GoneError):
                self._fleet.update(lambda record: replace(record, adapt=None))

    async def _scale_to(self, n: int) -> None:
        await (self._grow(n) if n >= len(self.plan) else self._shrink(n))

    async def _grow(self, n: int, keep_what_came: bool = False) -> bool:
        """Launch what is missing to `n` workers; False if the platform refused some and `keep_what_came`."""
        by = "Dask" if keep_what_came else self._who
        async with self._scaling:
            missing = n - len(self.plan)
            if missing <= 0:
                await asyncio.to_thread(self._note_requested, n, by)
                return True
            launched = await asyncio.to_thread(self._fleet.launch, "worker", missing)
            if not launched.refusals:
                await asyncio.to_thread(self._note_requested, n, by)
                return True
            message = f"{len(launched.refusals)} of {missing} more sessions were refused: {launched.refusals[0]}"
            doomed = list(launched.strays) + [info.id for info in launched.sessions if not keep_what_came]
            await asyncio.to_thread(self._fleet.stop, doomed)
            await asyncio.to_thread(self._fleet.log, message)
            if not keep_what_came:
                raise RuntimeError(f"cluster {self.name!r} stays at {len(self.plan)} workers: {message}")
            await asyncio.to_thread(self._note_requested, len(self.plan), by)
            return False

    async def _shrink(self, n: int) -> None:
        async with self._scaling:
            connected = self.observed
            surplus = len(self.plan) - n
            # First those that do no work yet, then those that Dask can spare most easily.
            victims = sorted(self.plan - connected)[:surplus]
            if len(victims) < surplus:
                spare = await self.scheduler_comm.workers_to_close(n=surplus - len(victims), attribute="name")
                victims += [session_of(name) for name in spare]
                victims += sorted(self.plan - set(victims))[: surplus - len(victims)]
            await self._end_workers(victims, retire=True, lose_data=n == 0)
            await asyncio.to_thread(self._note_requested, n, self._who)

    async def _end_workers(self, victims: Collection[str], retire: bool, lose_data: bool = False) -> None:
        workers = self.scheduler_info["workers"].values()
        connected = [worker["name"] for worker in workers if session_of(worker["name"]) in victims]
        if retire and connected:
            retired = await self.scheduler_comm.retire_workers(names=connected, remove=True, close_workers=True)
            kept = set(connected) - {worker["name"] for worker in retired.values()}
            if kept and not lose_data:
                raise RuntimeError(
                    f"cluster {self.name!r}: no other worker can take the data of {', '.join(map(str, sorted(kept)))}; "
                    "they go on working"
                )
        await asyncio.to_thread(self._fleet.stop, list(victims))
        await self._refresh()

    @property
    def _who(self) -> str:
        """This kernel, as others can tell it from theirs."""
        return f"kernel {os.getpid()} on {socket.gethostname()}"

    def _note_requested(self, n: int, by: str) -> None:
        if n != self._fleet.record.requested:
            event = f"scaled to {n} worker{'s' if n != 1 else ''} by {by}"
            self._fleet.update(lambda record: replace(record, requested=n).with_event(event))

    def _run(self, work: Coroutine[Any, Any, Any]) -> Any:
        """Do it now, or as a task where the caller runs on the loop: Dask's callers do not always await."""
        if self.asynchronous:
            return asyncio.ensure_future(work)

        async def done() -> Any:
            return await work

        return self.sync(done)
