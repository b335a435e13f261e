"""Communication with one scheduler.

On a feed the scheduler sends a few figures of each worker, and then only what changed. Dask's own stream of joining and
leaving workers has no CPU and memory, and the scheduler's full state is megabytes for thousands of workers.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

import msgspec
from distributed.comm import connect
from distributed.core import rpc
from distributed.protocol.pickle import dumps
from distributed.security import Security

from cml_dask_magics.cluster.in_scheduler import KEPT, as_sent, report, setup
from cml_dask_magics.model.status import Sample, WorkerFigures
from cml_dask_magics.model.times import USUAL, Times
from cml_dask_magics.model.trouble import Trouble

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _News:
    """One message of the feed: what has changed since the last one; the first one has everything.

    Parameters
    ----------
    changed : dict
        Figures of workers, by address.
    gone : tuple of str
        Addresses of workers that left.
    troubles : tuple of Trouble
        Those that are new, or better known.
    idle_s : float or None
        Seconds since the cluster last worked, None while it works.
    """

    changed: dict[str, WorkerFigures]
    gone: tuple[str, ...]
    troubles: tuple[Trouble, ...]
    idle_s: float | None


def by_session(
    workers: Iterable[WorkerFigures], session_of: Callable[[str], str]
) -> dict[str, tuple[WorkerFigures, ...]]:
    """The workers of each session, in the order of their numbers."""
    sessions: dict[str, tuple[WorkerFigures, ...]] = {}
    for worker in workers:
        session = session_of(worker.name)
        others = sessions.get(session)
        sessions[session] = (worker,) if others is None else (*others, worker)
    for session, several in sessions.items():
        if len(several) > 1:
            sessions[session] = tuple(sorted(several, key=lambda worker: (len(worker.name), worker.name)))
    return sessions


def figures_of(address: str, worker: Mapping[str, Any]) -> WorkerFigures:
    """The figures from Dask's entry of a worker (``Scheduler.identity()["workers"][address]``)."""
    metrics = worker.get("metrics", {})  # missing for a new worker in Dask's stream
    tasks = metrics.get("task_counts", {})
    return WorkerFigures(
        address,
        str(worker["name"]),
        worker["nthreads"],
        worker["memory_limit"] or 0,
        worker.get("session_memory", 0),  # see `in_session.tell_room`
        metrics.get("cpu", 0),
        metrics.get("memory", 0),
        int(metrics.get("spilled_bytes", {}).get("disk", 0)),
        tasks.get("executing", 0) + tasks.get("long-running", 0),
        worker.get("status") == "paused",
    )


class SchedulerView:
    """The connection to one scheduler: figures of its workers, their history, and how long it has been silent.

    Parameters
    ----------
    on_news : callable
        Awaited after each message, with whether it covered every worker.
    on_break : callable
        Called when the feed's connection broke or could not be made.
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
        self.troubles: dict[int, Trouble] = {}
        self.history: deque[Sample] = deque(maxlen=int(times.history_s / times.shown_s))

    @property
    def heard_s(self) -> float | None:
        """How many seconds ago the scheduler last reported; None before it did."""
        return time.monotonic() - self._heard_at if self._heard_at is not None else None

    @property
    def silent_s(self) -> float:
        """For how many seconds the scheduler's report is overdue."""
        return max(0.0, (self.heard_s or 0.0) - 2 * self._interval_s)

    def connect(self, address: str, security: Security) -> None:
        """Prepare the connection to the scheduler at `address`; the first call makes it."""
        # Only once: the certificate files are removed when the cluster ends, and this may still run then.
        self._connection_args = security.get_connection_args("client")
        self.comm = rpc(address, connection_args=self._connection_args)

    async def disconnect(self) -> None:
        """Undo `connect`."""
        if self.comm is not None:
            await self.comm.close_rpc()
            self.comm = None

    def start(self) -> None:
        """Start listening to the feed."""
        self._heard_at = time.monotonic()
        self._listening = asyncio.ensure_future(self._listen())

    async def stop(self) -> None:
        """Stop listening."""
        if self._listening is not None:
            self._listening.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._listening
            self._listening = None

    def listen_often(self, often: bool) -> None:
        """Listen every second while the figures are shown, otherwise just often enough to notice changes."""
        interval_s = self._times.shown_s if often else self._times.unseen_s
        if interval_s != self._interval_s and self._listening is not None:
            self._interval_s = interval_s
            self._listening.cancel()
            self._listening = asyncio.ensure_future(self._listen())

    async def look(self) -> None:
        """Ask the scheduler now; without an answer, the figures stay."""
        if self.comm is None:
            return
        with contextlib.suppress(OSError, asyncio.TimeoutError):
            news = await asyncio.wait_for(self._ask(), self._times.answer_s)
            await self._take_in(news, everything=True)

    async def keep(self) -> None:
        """Restart the idle countdown, as work would."""

        def now_active(dask_scheduler: Any) -> None:
            import time

            dask_scheduler.idle_since = time.time()

        # A nested function is pickled by value: the scheduler's session need not have this module.
        await self.comm.run_function(function=dumps(now_active), args=dumps(()), kwargs=dumps({}))

    async def restart(self, addresses: Collection[str]) -> list[str]:
        """Restart workers by address; returns the errors of those that did not come back."""
        outcome = await self.comm.restart_workers(
            workers=list(addresses),
            timeout=self._times.restart_s,
            on_error="return",
            stimulus_id=f"cml-dask-magics-restart-{time.time()}",
        )
        return [result for result in outcome.values() if result != "OK"]

    async def retire(self, names: Collection[str]) -> set[str]:
        """Have Dask move the data off workers and end them; returns the names of those that it kept for their data."""
        retired = await self.comm.retire_workers(names=list(names), remove=True, close_workers=True)
        return set(names) - {worker["name"] for worker in retired.values()}

    async def spare(self, n: int, session_of: Callable[[Any], str]) -> list[str]:
        """Sessions with up to `n` workers together that Dask would end first."""
        names = await self.comm.workers_to_close(n=n, key=dumps(worker_key(session_of)), attribute="name")
        return list(dict.fromkeys(map(session_of, names)))

    async def _listen(self) -> None:
        """Listen to the feed, and connect again when the connection breaks."""
        while True:
            news = self._feed(self._interval_s)
            first = True
            try:
                async for each in news:
                    await self._take_in(each, everything=first)
                    first = False
            except (OSError, asyncio.TimeoutError):  # the scheduler is gone, or the network for a while
                self._on_break()
            except Exception:  # the next connection may succeed
                logger.exception("the scheduler's news could not be taken in")
            finally:
                await news.aclose()
            await asyncio.sleep(self._times.shown_s)

    async def _feed(self, interval_s: float) -> AsyncGenerator[_News, None]:
        """The feed's messages, one every `interval_s` seconds, on a connection of its own.

        Raises
        ------
        OSError
            If it cannot be reached, or the connection breaks.
        """
        comm = await connect(self.comm.address, timeout=self._times.answer_s, **self._connection_args)
        try:
            comm.name = "cml-dask-magics feed"
            # Not Dask's run_function, which logs each call in the scheduler.
            functions = {"setup": as_sent(setup), "function": as_sent(report)}
            await comm.write({"op": "feed", **functions, "interval": interval_s})
            workers: dict[int, list[Any]] = {}
            while True:
                yield _read(await comm.read(), workers)
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
        self.troubles.update((trouble.number, trouble) for trouble in news.troubles)
        for number in list(self.troubles)[:-KEPT]:
            del self.troubles[number]
        seen = _sample(self.figures.values())
        self.peak_memory_bytes = max(self.peak_memory_bytes, seen.memory_bytes)
        if not self.history or (seen.at - self.history[-1].at).total_seconds() >= self._times.shown_s * 0.9:
            self.history.append(seen)
        await self._on_news(everything)


def worker_key(session_of: Callable[[Any], str]) -> Callable[[Any], str]:
    """What has Dask's scheduler choose the workers of a session together, when some are to end."""

    # A nested function is pickled by value: the scheduler's session need not have this module.
    def key(worker: Any) -> str:
        return session_of(worker.name)

    return key


def _sample(workers: Collection[WorkerFigures]) -> Sample:
    """The workers' totals now."""
    return Sample(
        at=datetime.now(timezone.utc),
        cpu_percent=sum(worker.cpu_percent for worker in workers),
        memory_bytes=sum(worker.memory_bytes for worker in workers),
        executing=sum(worker.executing for worker in workers),
    )


def _read(answer: Any, workers: dict[int, list[Any]]) -> _News:
    """A message of the feed; the scheduler may answer with an error instead.

    Parameters
    ----------
    answer : Any
        See `in_scheduler.report`.
    workers : dict
        What stays of each worker, by the number that stands for it on this feed; kept up to date.
    """
    if not isinstance(answer, Mapping) or "figures" not in answer:
        raise OSError(f"the scheduler did not send the figures of its workers: {answer!r:.300}")
    for number, *stays in answer["new"]:
        workers[number] = stays
    changed = {}
    for number, cpu_percent, memory_mib, spilled_mib, executing, is_paused in zip(*answer["figures"], strict=True):
        address, name, nthreads, limit_bytes, session_bytes = workers[number]
        changed[address] = WorkerFigures(
            address, name, nthreads, limit_bytes, session_bytes,
            cpu_percent, memory_mib << 20, spilled_mib << 20, executing, is_paused,
        )  # fmt: skip
    try:
        troubles = msgspec.convert(answer["troubles"], tuple[Trouble, ...])
    except msgspec.ValidationError:  # another release's
        troubles = ()
    return _News(changed, tuple(answer["gone"]), troubles, answer["idle_s"])
