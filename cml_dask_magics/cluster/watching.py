"""What a cluster object hears from its scheduler: which workers there are, what they do, and whether it is still there.

The lowest part of `CMLCluster`: it starts, shows and steers nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any

from distributed.core import Status, rpc
from distributed.deploy.cluster import Cluster
from distributed.objects import SchedulerInfo
from distributed.utils import log_errors
from tornado.ioloop import IOLoop

from cml_dask_magics.cluster import feed
from cml_dask_magics.cluster.feed import WorkerFigures
from cml_dask_magics.cluster.snapshot import sample
from cml_dask_magics.fleet.shell_lines import session_of
from cml_dask_magics.model.status import Sample

logger = logging.getLogger(__name__)

SHOWN_INTERVAL_S = 1.0
_UNSEEN_INTERVAL_S = 5.0
_HISTORY_S = 300.0
_RECONNECT_S = 1.0
_ANSWER_TIMEOUT_S = 3.0


class CallableStatus:
    """What `CMLCluster.status` is: equal to Dask's `Status` for Dask, and a method for everybody else."""

    def __init__(self, status: Status, snapshot: Callable[[], Any]) -> None:
        self._status = status
        self._snapshot = snapshot

    def __call__(self) -> Any:
        return self._snapshot()

    def __eq__(self, other: object) -> bool:
        return bool(self._status == (other._status if isinstance(other, CallableStatus) else other))

    def __hash__(self) -> int:
        return hash(self._status)

    def __repr__(self) -> str:
        return repr(self._status)

    @property
    def name(self) -> str:
        """Dask's word for the state."""
        return str(self._status.name)


class Repeated:
    """A coroutine function that is called again and again, in the shape of tornado's ``PeriodicCallback``.

    That one goes by the time of day: set back by an hour, it would be silent for an hour.
    """

    def __init__(self, callback: Callable[[], Coroutine[Any, Any, None]], interval_s: float) -> None:
        self._callback = callback
        self._interval_s = interval_s
        self._ending: asyncio.Event | None = None

    def start(self) -> None:
        """Begin, on the loop that is running."""
        if self._ending is None:
            self._ending = asyncio.Event()
            self._task = asyncio.ensure_future(self._run(self._ending))

    def stop(self) -> None:
        """Call it no more; a call that is under way goes on."""
        if self._ending is not None:
            self._ending.set()

    async def _run(self, ending: asyncio.Event) -> None:
        while True:
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(ending.wait(), self._interval_s)
            if ending.is_set():
                return
            try:
                await self._callback()
            except Exception:  # the next call may do better
                logger.exception("%s failed", self._callback.__qualname__)


class WatchingCluster(Cluster):  # type: ignore[misc]
    """A Dask cluster object that follows its scheduler over a connection that may break and be made again."""

    scheduler_comm: Any
    scheduler_info: Any
    periodic_callbacks: dict[str, Any]
    security: Any
    _connection_args: Any
    _adaptive: Any

    def __init__(self, name: str, asynchronous: bool, loop: IOLoop | None) -> None:
        self._dask_status = Status.created
        self._heard_at: float | None = None
        self._idle_s: float | None = None
        # Beside Dask's own `scheduler_info`, which every tool of Dask's reads and relies on.
        self._figures: dict[str, WorkerFigures] = {}
        self._differed: set[str] = set()
        self._incomplete = False
        self._history: deque[Sample] = deque(maxlen=int(_HISTORY_S / SHOWN_INTERVAL_S))
        self._peak_memory_bytes = 0
        self._interval_s = _UNSEEN_INTERVAL_S
        self._listening: asyncio.Task[None] | None = None
        super().__init__(asynchronous=asynchronous, loop=loop, quiet=True, name=name)

    @property
    def closed(self) -> bool:
        """Whether this object has let go of its cluster."""
        return bool(self._dask_status == Status.closed)

    @property
    def observed(self) -> set[str]:
        """Ids of the sessions whose worker the scheduler knows; the workers are named after them."""
        return {session_of(worker.name) for worker in self._workers.values()}

    @property
    def _workers(self) -> dict[str, WorkerFigures]:
        """The workers by address: as the feed told last, and those that only Dask's stream has told of yet."""
        new = {
            address: feed.figures_of(worker)
            for address, worker in self.scheduler_info["workers"].items()
            if address not in self._figures
        }
        return self._figures | new

    @property
    def peak_memory_bytes(self) -> int:
        """The most memory that the workers held together, as far as this object saw."""
        return self._peak_memory_bytes

    @property
    def silent_s(self) -> float:
        """For how many seconds longer than it should the scheduler has told nothing."""
        if self._heard_at is None:
            return 0.0
        return max(0.0, time.monotonic() - self._heard_at - 2 * self._interval_s)

    async def _connect(self, address: str, security: Any) -> None:
        self.security = security
        # Once: the files that it reads go when the cluster does, and that may be noticed late.
        self._connection_args = security.get_connection_args("client")
        self.scheduler_comm = rpc(address, connection_args=self._connection_args)
        await super()._start()
        self._heard_at = time.monotonic()
        self._listening = asyncio.ensure_future(self._listen())

    async def _disconnect(self) -> None:
        if self.scheduler_comm is not None:
            await self.scheduler_comm.close_rpc()
            self.scheduler_comm = None

    async def _let_go(self) -> None:
        """End every connection to the scheduler; the cluster goes on."""
        if self._listening is not None:
            self._listening.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._listening
            self._listening = None
        # The stream to a scheduler that was cut off ends when the network says so; closing must not wait for that.
        if self._watch_worker_status_task is not None and self._watch_worker_status_comm is not None:
            self._watch_worker_status_comm.abort()
        await super()._close()
        self._forget_workers()

    def _forget_workers(self) -> None:
        """They ended with their scheduler, which did not live to tell."""
        self.scheduler_info["workers"].clear()
        self._figures.clear()

    def _listen_often(self, often: bool) -> None:
        """Have the scheduler tell its news every second while somebody looks, else just often enough to be sure."""
        interval_s = SHOWN_INTERVAL_S if often else _UNSEEN_INTERVAL_S
        if interval_s != self._interval_s and self._listening is not None:
            self._interval_s = interval_s
            self._listening.cancel()
            self._listening = asyncio.ensure_future(self._listen())

    async def _listen(self) -> None:
        """Take in the scheduler's news, again and again where the connection breaks."""
        while True:
            news = feed.listen(self.scheduler_comm.address, self._connection_args, self._interval_s)
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
            await asyncio.sleep(_RECONNECT_S)

    def _on_break(self) -> None:
        """Called when the connection to the scheduler broke or could not be made again."""
        raise NotImplementedError

    async def _look(self) -> None:
        """Ask the scheduler now."""
        if self.scheduler_comm is None:
            return
        with contextlib.suppress(OSError, asyncio.TimeoutError):
            look = feed.look(self.scheduler_comm.address, self._connection_args)
            news = await asyncio.wait_for(look, _ANSWER_TIMEOUT_S)
            await self._take_in(news, everything=True)

    async def _take_in(self, news: feed.News, everything: bool) -> None:
        self._heard_at, self._idle_s = time.monotonic(), news.idle_s
        if everything:
            self._figures = dict(news.changed)
        else:
            self._figures.update(news.changed)
            for address in news.gone:
                self._figures.pop(address, None)
        seen = sample(self._figures.values())
        self._peak_memory_bytes = max(self._peak_memory_bytes, seen.memory_bytes)
        if not self._history or (seen.at - self._history[-1].at).total_seconds() >= SHOWN_INTERVAL_S * 0.9:
            self._history.append(seen)
        differ = self._figures.keys() ^ self.scheduler_info["workers"].keys()
        # Dask's own stream of workers that come and go ends with a connection that breaks, and goes to one kernel at a
        # time. It is quicker than the feed: what it has not told when the feed has told it twice, it will not tell.
        if self._incomplete or (differ if everything else differ & self._differed):
            await self._ask_dask()
        else:
            self._differed = differ

    async def _ask_dask(self) -> None:
        """Have Dask's `scheduler_info` whole: its stream tells of a new worker without its metrics."""
        self._incomplete, self._differed = False, set()
        if self.scheduler_comm is not None:
            self.scheduler_info = SchedulerInfo(await self.scheduler_comm.identity())

    def _update_worker_status(self, op: str, msg: Any) -> None:
        self._incomplete = True
        # Dask may have been asked in the meantime: then its stream finds it done.
        with log_errors():
            if op == "add":
                super()._update_worker_status(op, msg)
            else:
                self.scheduler_info["workers"].pop(msg, None)
                self._figures.pop(msg, None)
