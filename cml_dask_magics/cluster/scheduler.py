"""What is said to and heard from one scheduler.

The scheduler itself tells a few figures of each worker, and on a feed only those that changed: Dask's own stream of
workers that come and go carries no CPU and memory, and asking for all that the scheduler knows is megabytes where there
are thousands of workers.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Any, NamedTuple

from distributed.comm import connect
from distributed.core import rpc
from distributed.protocol.pickle import dumps
from distributed.security import Security

from cml_dask_magics.fleet.shell_lines import session_of
from cml_dask_magics.model.status import Sample
from cml_dask_magics.model.times import USUAL, Times

logger = logging.getLogger(__name__)


class WorkerFigures(NamedTuple):
    """What the scheduler last heard of one worker.

    Parameters
    ----------
    name : str
    nthreads : int
    memory_limit_bytes : int
        0 for none.
    cpu_percent : float
        Per cent of one core.
    memory_bytes : int
        Of the whole process.
    spilled_bytes : int
        On disk.
    executing : int
        Tasks running now.
    """

    name: str
    nthreads: int
    memory_limit_bytes: int
    cpu_percent: float
    memory_bytes: int
    spilled_bytes: int
    executing: int


@dataclass(frozen=True)
class _News:
    """What changed since the last time, or all there is, the first time.

    Parameters
    ----------
    changed : dict
        Worker address to the worker's figures.
    gone : tuple of str
        Addresses of workers that left.
    idle_s : float or None
        Seconds since the cluster last worked, None while it works.
    """

    changed: dict[str, WorkerFigures] = field(default_factory=dict)
    gone: tuple[str, ...] = ()
    idle_s: float | None = None


def figures_of(worker: Mapping[str, Any]) -> WorkerFigures:
    """The figures in what Dask says of a worker (``Scheduler.identity()["workers"][address]``)."""
    metrics = worker.get("metrics", {})  # missing in what Dask's stream tells of a new worker
    tasks = metrics.get("task_counts", {})
    return WorkerFigures(
        str(worker["name"]),
        worker["nthreads"],
        worker["memory_limit"] or 0,
        metrics.get("cpu", 0),
        metrics.get("memory", 0),
        int(metrics.get("spilled_bytes", {}).get("disk", 0)),
        tasks.get("executing", 0) + tasks.get("long-running", 0),
    )


class SchedulerView:
    """One scheduler as this kernel hears it: figures of its workers, their history, and how long it has been silent.

    Parameters
    ----------
    on_news : callable
        Awaited after each of its news, with whether they told of every worker.
    on_break : callable
        Called when the connection broke or could not be made again.
    times : Times, optional
    """

    comm: Any = None
    """Dask's RPC to the scheduler; None while it is not connected."""

    def __init__(
        self, on_news: Callable[[bool], Awaitable[None]], on_break: Callable[[], None], times: Times = USUAL
    ) -> None:
        self._times = times
        self._on_news = on_news
        self._on_break = on_break
        self._connection_args: Mapping[str, Any] = {}
        self._heard_at: float | None = None
        self._interval_s = times.unseen_s
        self._listening: asyncio.Task[None] | None = None
        self.idle_s: float | None = None
        self.peak_memory_bytes = 0
        self.figures: dict[str, WorkerFigures] = {}
        self.history: deque[Sample] = deque(maxlen=int(times.history_s / times.shown_s))

    @property
    def silent_s(self) -> float:
        """For how many seconds longer than it should the scheduler has told nothing."""
        if self._heard_at is None:
            return 0.0
        return max(0.0, time.monotonic() - self._heard_at - 2 * self._interval_s)

    def connect(self, address: str, security: Security) -> None:
        """Make ready to talk to the scheduler at `address`; who listens there shows with the first call."""
        # Once: the files that it reads go when the cluster does, and that may be noticed late.
        self._connection_args = security.get_connection_args("client")
        self.comm = rpc(address, connection_args=self._connection_args)

    async def disconnect(self) -> None:
        """Take `connect` back."""
        if self.comm is not None:
            await self.comm.close_rpc()
            self.comm = None

    def start(self) -> None:
        """Have the scheduler tell its news from now on."""
        self._heard_at = time.monotonic()
        self._listening = asyncio.ensure_future(self._listen())

    async def stop(self) -> None:
        """Listen no more."""
        if self._listening is not None:
            self._listening.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._listening
            self._listening = None

    def listen_often(self, often: bool) -> None:
        """Have the scheduler tell its news every second while somebody looks, else just often enough to be sure."""
        interval_s = self._times.shown_s if often else self._times.unseen_s
        if interval_s != self._interval_s and self._listening is not None:
            self._interval_s = interval_s
            self._listening.cancel()
            self._listening = asyncio.ensure_future(self._listen())

    async def look(self) -> None:
        """Ask the scheduler now; where it does not answer, what was heard stands."""
        if self.comm is None:
            return
        with contextlib.suppress(OSError, asyncio.TimeoutError):
            news = await asyncio.wait_for(self._ask(), self._times.answer_s)
            await self._take_in(news, everything=True)

    async def keep(self) -> None:
        """Start the idle countdown anew, as work would."""

        def now_active(dask_scheduler: Any) -> None:
            import time

            dask_scheduler.idle_since = time.time()

        # A function inside a function goes by value: the scheduler's session need not have this module.
        await self.comm.run_function(function=dumps(now_active), args=dumps(()), kwargs=dumps({}))

    async def restart(self, addresses: Collection[str]) -> list[str]:
        """Restart workers by address; what became of those that did not come back."""
        outcome = await self.comm.restart_workers(
            workers=list(addresses),
            timeout=self._times.restart_s,
            on_error="return",
            stimulus_id=f"cml-dask-magics-restart-{time.time()}",
        )
        return [words for words in outcome.values() if words != "OK"]

    async def retire(self, names: Collection[str]) -> set[str]:
        """Have Dask move the data off workers and end them; the names of those whose data has nowhere to go."""
        retired = await self.comm.retire_workers(names=list(names), remove=True, close_workers=True)
        return set(names) - {worker["name"] for worker in retired.values()}

    async def spare(self, n: int) -> list[str]:
        """Sessions of up to `n` workers that Dask can spare most easily."""
        return [session_of(name) for name in await self.comm.workers_to_close(n=n, attribute="name")]

    async def _listen(self) -> None:
        """Take in the scheduler's news, again and again where the connection breaks."""
        while True:
            news = self._feed(self._interval_s)
            first = True
            try:
                async for each in news:
                    await self._take_in(each, everything=first)
                    first = False
            except (OSError, asyncio.TimeoutError):  # the scheduler is gone, or the network for a while
                self._on_break()
            except Exception:  # the next connection may do better
                logger.exception("the scheduler's news could not be taken in")
            finally:
                await news.aclose()
            await asyncio.sleep(self._times.shown_s)

    async def _feed(self, interval_s: float) -> AsyncGenerator[_News, None]:
        """Have the scheduler tell what changed, every `interval_s` seconds, on a connection of its own.

        Raises
        ------
        OSError
            If it cannot be reached, or the connection breaks.
        """
        comm = await connect(self.comm.address, timeout=self._times.answer_s, **self._connection_args)
        try:
            comm.name = "cml-dask-magics feed"
            # Not Dask's run_function, which writes each call into the scheduler's log.
            remember, tell = dumps(_make_remember()), dumps(_make_tell())
            await comm.write({"op": "feed", "setup": remember, "function": tell, "interval": interval_s})
            while True:
                yield _read(await comm.read())
        finally:
            comm.abort()

    async def _ask(self) -> _News:
        """The figures of every worker, once."""
        feed = self._feed(interval_s=60.0)
        try:
            return await feed.__anext__()
        finally:
            await feed.aclose()

    async def _take_in(self, news: _News, everything: bool) -> None:
        self._heard_at, self.idle_s = time.monotonic(), news.idle_s
        if everything:
            self.figures.clear()
        self.figures.update(news.changed)
        for address in news.gone:
            self.figures.pop(address, None)
        seen = _sample(self.figures.values())
        self.peak_memory_bytes = max(self.peak_memory_bytes, seen.memory_bytes)
        if not self.history or (seen.at - self.history[-1].at).total_seconds() >= self._times.shown_s * 0.9:
            self.history.append(seen)
        await self._on_news(everything)


def _sample(workers: Collection[WorkerFigures]) -> Sample:
    """What the workers do together now."""
    return Sample(
        at=datetime.now(timezone.utc),
        cpu_percent=sum(worker.cpu_percent for worker in workers),
        memory_bytes=sum(worker.memory_bytes for worker in workers),
        executing=sum(worker.executing for worker in workers),
    )


def _make_tell() -> Any:
    # A function inside a function goes by value: the scheduler's session need not have this module.
    def tell(dask_scheduler: Any, told: dict[str, Any] | None = None) -> dict[str, Any]:
        import time

        told = {} if told is None else told
        changed = {}
        for address, worker in dask_scheduler.workers.items():
            metrics = worker.metrics
            tasks = metrics.get("task_counts", {})
            # Per cent and MiB: what nobody could see on the screen is not news.
            figures = (
                worker.name,
                worker.nthreads,
                worker.memory_limit or 0,
                round(metrics.get("cpu", 0)),
                metrics.get("memory", 0) >> 20,
                int(metrics.get("spilled_bytes", {}).get("disk", 0)) >> 20,
                tasks.get("executing", 0) + tasks.get("long-running", 0),
            )
            if told.get(address) != figures:
                changed[address] = told[address] = figures
        gone = [address for address in told if address not in dask_scheduler.workers]
        for address in gone:
            del told[address]
        since = dask_scheduler.check_idle()
        return {"changed": changed, "gone": gone, "idle_s": max(0.0, time.time() - since) if since else None}

    return tell


def _make_remember() -> Any:
    def remember(_scheduler: Any) -> dict[str, Any]:
        return {}

    return remember


def _read(answer: Any) -> _News:
    """News from what the scheduler sent, which says with an error that it does not take such requests."""
    if not isinstance(answer, Mapping) or "changed" not in answer:
        raise OSError(f"the scheduler does not tell of its workers: {answer!r:.300}")
    changed = {address: _figures(*figures) for address, figures in answer["changed"].items()}
    return _News(changed, tuple(answer["gone"]), answer["idle_s"])


def _figures(
    name: Any, nthreads: int, memory_limit: int, cpu: int, memory_mib: int, spilled_mib: int, executing: int
) -> WorkerFigures:
    return WorkerFigures(str(name), nthreads, memory_limit, cpu, memory_mib << 20, spilled_mib << 20, executing)
