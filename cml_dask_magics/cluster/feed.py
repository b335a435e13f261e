"""What a scheduler tells of its workers: a few figures of each, and on a feed only those that changed.

Dask's own stream of workers that come and go carries no CPU and memory; asking for all that the scheduler knows is
megabytes where there are thousands of workers.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from distributed.comm import connect
from distributed.protocol.pickle import dumps

_CONNECT_TIMEOUT_S = 3.0


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
class News:
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


async def listen(address: str, connection_args: Mapping[str, Any], interval_s: float) -> AsyncGenerator[News, None]:
    """Have the scheduler tell what changed, every `interval_s` seconds, on a connection of its own.

    Parameters
    ----------
    address : str
        The scheduler's.
    connection_args : mapping
        `distributed.Security.get_connection_args` of a client.
    interval_s : float

    Raises
    ------
    OSError
        If it cannot be reached, or the connection breaks.
    """
    comm = await connect(address, timeout=_CONNECT_TIMEOUT_S, **connection_args)
    try:
        comm.name = "cml-dask-magics feed"
        await comm.write(
            {"op": "feed", "setup": dumps(_make_remember()), "function": dumps(_make_tell()), "interval": interval_s}
        )
        while True:
            yield _read(await comm.read())
    finally:
        comm.abort()


async def look(address: str, connection_args: Mapping[str, Any]) -> News:
    """The figures of every worker, once; parameters and errors are those of `listen`."""
    feed = listen(address, connection_args, interval_s=60.0)
    try:
        # Not Dask's run_function, which writes each call into the scheduler's log.
        return await feed.__anext__()
    finally:
        await feed.aclose()


def _read(answer: Any) -> News:
    """News from what the scheduler sent, which says with an error that it does not take such requests."""
    if not isinstance(answer, Mapping) or "changed" not in answer:
        raise OSError(f"the scheduler does not tell of its workers: {answer!r:.300}")
    changed = {address: _figures(*figures) for address, figures in answer["changed"].items()}
    return News(changed, tuple(answer["gone"]), answer["idle_s"])


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


def _figures(
    name: Any, nthreads: int, memory_limit: int, cpu: int, memory_mib: int, spilled_mib: int, executing: int
) -> WorkerFigures:
    return WorkerFigures(str(name), nthreads, memory_limit, cpu, memory_mib << 20, spilled_mib << 20, executing)
