"""Where promises are kept: a cluster that they share, fresh ones for those that end them, and one that has ended.

Runs in the process of the tests and in a notebook's kernel alike. The one place of this folder that knows which kinds
of clusters there are.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import os
import tempfile
import time
import uuid
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import dask
import psutil
from distributed import Client, LocalCluster
from distributed.core import Status

from contract import clients, computing, ends, insight, looks, sizes, together
from contract.patience import eventually

N_WORKERS = 2
# What the shared cluster's Dask was told just before it started.
CONFIGURATION = {"contract.told": "before the start", "distributed.worker.resources": {"contract-seat": 1}}


def local_cluster(**options: Any) -> LocalCluster:
    """Dask's own: what it keeps is what our clusters must keep."""
    usual = {"n_workers": N_WORKERS, "threads_per_worker": 1, "memory_limit": "1GiB", "dashboard_address": ":0"}
    return LocalCluster(processes=True, **{**usual, **options})


def cml_cluster(**options: Any) -> Any:
    """Ours, on whatever it finds where this runs; under a name of its own unless a promise is about that.

    Of 1.4 GiB its workers may use about as much as Dask's own here.
    """
    from cml_dask_magics import CMLCluster

    usual = {"n_workers": N_WORKERS, "cpu": 1, "memory": 1.4, "name": f"contract-{uuid.uuid4().hex[:8]}"}
    return CMLCluster(**{**usual, **options})


MAKERS: dict[str, Callable[..., Any]] = {"local_cluster": local_cluster, "cml_cluster": cml_cluster}
# In the order in which promises are looked at.
MODULES = (looks, computing, together, insight, clients, sizes, ends)


def promises_of(module: ModuleType) -> dict[str, Callable[..., Any]]:
    """The promises of one module: its public functions."""
    return {
        name: function
        for name, function in vars(module).items()
        if inspect.isfunction(function) and function.__module__ == module.__name__ and not name.startswith("_")
    }


PROMISES = {name: promise for module in MODULES for name, promise in promises_of(module).items()}


@dataclass
class EndedCluster:
    """What is left of a cluster whose ``with`` block ended by an error, under the eyes of a client."""

    cluster: Any
    client: Client
    error: BaseException
    addresses: list[str]  # the scheduler's and the workers'
    processes: dict[int, float]  # when each of the workers' processes began, by pid


class Stage:
    """What promises ask for by the names of their parameters.

    ``cluster`` is shared, and has two workers with one thread each; ``client`` is a new one of it; ``make`` makes
    another cluster of its kind; ``ended`` is one that was closed; ``folder`` is empty.
    """

    def __init__(self, maker: str) -> None:
        self._maker = MAKERS[maker]
        self._shared: Any = None
        self._started_at = 0.0
        self._watch: Any = None
        self._ended: EndedCluster | None = None

    def keep(self, name: str, after_s: float = 0.0) -> Coroutine[Any, Any, None] | None:
        """Have a promise kept, `after_s` after the start of the shared cluster; a coroutine if the promise is one."""
        promise = PROMISES[name]
        if inspect.iscoroutinefunction(promise):
            return self._keep_in_event_loop(promise)
        with self._given(promise, after_s) as given:
            promise(**given)
        return None

    async def _keep_in_event_loop(self, promise: Callable[..., Any]) -> None:
        with self._given(promise, 0.0) as given:
            await promise(**given)

    @contextlib.contextmanager
    def _given(self, promise: Callable[..., Any], after_s: float) -> Iterator[dict[str, Any]]:
        wanted = inspect.signature(promise).parameters
        with contextlib.ExitStack() as stack:
            given: dict[str, Any] = {}
            if {"cluster", "client"} & set(wanted):
                given["cluster"] = self.cluster()
                time.sleep(max(0.0, self._started_at + after_s - time.monotonic()))
            if "client" in wanted:
                given["client"] = stack.enter_context(Client(given["cluster"]))
            if "make" in wanted:
                given["make"] = stack.enter_context(self._making())
            if "folder" in wanted:
                given["folder"] = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            if "ended" in wanted:
                given["ended"] = self._ended = self._ended or self._end_one()
            yield {name: given[name] for name in wanted}

    def cluster(self) -> Any:
        """The cluster that promises share, as it should be, whatever the last promise left of it."""
        if self._shared is not None and not self._mended():
            self._close_shared()
        if self._shared is None:
            with dask.config.set(CONFIGURATION):
                self._shared = self._maker()
            self._started_at = time.monotonic()
            self._watch = Client(self._shared, set_as_default=False)
        return self._shared

    def _mended(self) -> bool:
        """Whether the shared cluster runs with its workers, after a try to bring it there."""

        def whole() -> bool:
            return len(self._watch.nthreads()) == N_WORKERS

        with contextlib.suppress(Exception):
            if self._shared.status == Status.running and not whole():
                self._shared.scale(N_WORKERS)
                eventually(whole)
            return bool(self._shared.status == Status.running and whole())
        return False

    @contextlib.contextmanager
    def _making(self) -> Iterator[Callable[..., Any]]:
        made: list[Any] = []

        def make(**options: Any) -> Any:
            made.append(self._maker(**options))
            return made[-1]

        try:
            yield make
        finally:
            for cluster in made:
                if not cluster.asynchronous:  # the others are closed by the loop that made them
                    cluster.close()

    def _end_one(self) -> EndedCluster:
        error = KeyError("on purpose")
        try:
            with self._maker(n_workers=1) as cluster:
                client = Client(cluster, set_as_default=False)
                addresses = [cluster.scheduler_address, *client.nthreads()]
                processes = client.run(lambda: (os.getpid(), psutil.Process().create_time()))
                raise error
        except BaseException as caught:
            if not isinstance(caught, KeyError):
                raise
            return EndedCluster(cluster, client, caught, addresses, dict(processes.values()))

    def _close_shared(self) -> None:
        shared, self._shared = self._shared, None
        if shared is not None:
            self._watch.close()
            shared.close()

    def close(self) -> None:
        """End the shared cluster."""
        self._close_shared()


def keep(stage: Stage, name: str, after_s: float = 0.0) -> None:
    """Have a promise kept where no event loop runs yet."""
    running = stage.keep(name, after_s)
    if running is not None:
        asyncio.run(running)  # type: ignore[arg-type]
