"""Ways to begin and to leave a cluster, as Dask users do: nothing is begun twice, nothing stays behind."""

from __future__ import annotations

import asyncio
import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as FuturesTimeoutError
from pathlib import Path
from typing import Any

import pytest
from distributed import Client, LocalCluster
from distributed.utils import LoopRunner
from support.state_folder import local_sessions

from cml_dask_magics import CMLCluster
from cml_dask_magics.fleet import shell_lines
from cml_dask_magics.magics.kernel_clusters import kernel_clusters
from cml_dask_magics.model.status import ClusterStatus

pytestmark = pytest.mark.dask


def running(state: Path) -> list[str]:
    return [session["id"] for session in local_sessions(state).list_workers() if session["status"] == "running"]


def threads_of_dask() -> int:
    return sum(thread.name.startswith("IO loop") for thread in threading.enumerate())


def test_warnings_that_are_errors_leave_nothing_behind(state: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UserWarning, match="cpu 1000 is more than this machine has"):
            CMLCluster(1, cpu=1000)
    assert running(state) == [] and kernel_clusters.names(state) == []


@pytest.mark.long
def test_workers_that_are_missing_at_the_timeout_are_warned_of(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = shell_lines.worker_line
    first_alone = 'mkdir "$CML_DASK_FOLDER/first" 2>/dev/null || sleep 60; exec "$CML_DASK_PYTHON"'
    monkeypatch.setattr(
        shell_lines, "worker_line", lambda settings: whole(settings).replace('exec "$CML_DASK_PYTHON"', first_alone)
    )
    with pytest.warns(UserWarning, match="1 of 2 workers are ready after 6 s"):
        cluster = CMLCluster(2, timeout=6)
    assert cluster.shutdown().sessions == 3


@pytest.mark.parametrize("kind", [CMLCluster, LocalCluster])
def test_whoever_awaits_a_cluster_its_start_is_one(state: Path, kind: type) -> None:
    async def both() -> int:
        cluster = kind(n_workers=1, asynchronous=True)
        _, client = await asyncio.gather(cluster, Client(cluster, asynchronous=True))
        try:
            await client.wait_for_workers(1)
            if kind is CMLCluster:
                assert len(running(state)) == 2
            return int(await client.submit(sum, [1, 2]))
        finally:
            await client.close()
            await cluster.close()

    assert asyncio.run(both()) == 3
    assert running(state) == []


def test_a_start_that_failed_says_so_to_each_who_awaits_it(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shell_lines, "scheduler_line", lambda *_: "exit 3")

    async def twice() -> None:
        cluster = CMLCluster(1, asynchronous=True)
        for _ in range(2):
            with pytest.raises(RuntimeError, match="did not start"):
                await cluster

    asyncio.run(twice())
    assert running(state) == []


def test_a_cluster_that_starts_in_the_background_can_be_used_at_once(state: Path) -> None:
    with CMLCluster(1, background=True) as cluster, Client(cluster) as client:
        assert client.submit(sum, [1, 2]).result() == 3
    with CMLCluster(1, background=True) as cluster:
        cluster.wait_for_workers(1)
        assert len(cluster.observed) == 1
    with CMLCluster(1, background=True) as cluster:
        assert "Scheduler" in cluster.get_logs()
    assert running(state) == []


@pytest.mark.long
def test_adaptive_scaling_that_is_asked_for_during_the_start_begins_after_it(state: Path) -> None:
    with CMLCluster(1, background=True) as cluster:
        cluster.adapt(minimum=2, maximum=3)
        cluster.wait_for_workers(2, timeout=60)
        assert cluster.adapting and len(cluster.plan) == 2


def test_a_start_in_the_background_that_fails_tells_who_uses_it(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shell_lines, "scheduler_line", lambda *_: "exit 3")
    before = threads_of_dask()
    cluster = CMLCluster(1, background=True)
    with pytest.raises(RuntimeError, match="did not start"):
        cluster.wait_for_workers(1)
    cluster.close()
    assert threads_of_dask() == before and running(state) == []


def test_a_cluster_that_was_stopped_elsewhere_leaves_no_thread(state: Path) -> None:
    before = threads_of_dask()
    cluster = CMLCluster(1)
    assert threads_of_dask() == before + 1
    CMLCluster.from_name(cluster.name, shutdown_on_close=True).close()
    deadline = time.monotonic() + 30
    while (not cluster.closed or threads_of_dask() > before) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert cluster.closed and threads_of_dask() == before


def test_closing_does_not_fail_because_dasks_thread_is_busy(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = CMLCluster(1)
    stop = LoopRunner.stop

    def late(self: LoopRunner) -> None:
        stop(self)
        raise TimeoutError("join timed out")

    monkeypatch.setattr(LoopRunner, "stop", late)
    cluster.close()
    assert cluster.ended is not None and running(state) == []


def test_a_cluster_whose_loop_has_ended_can_still_be_stopped(state: Path) -> None:
    async def begin() -> CMLCluster:
        return await CMLCluster(1, asynchronous=True)

    cluster = asyncio.run(begin())
    assert len(running(state)) == 2
    assert cluster.shutdown().sessions == 2
    assert running(state) == []


def test_a_callback_that_fails_does_not_end_a_start(state: Path) -> None:
    def on_status(_: ClusterStatus) -> None:
        raise KeyError("a mistake of the caller's")

    with CMLCluster(1, on_status=on_status) as cluster:
        assert len(cluster.observed) == 1


@pytest.mark.parametrize("limits", [{"minimum": -1}, {"minimum": 3, "maximum": 2}, {"minimum": float("nan")}])
def test_limits_that_make_no_sense_are_refused(state: Path, limits: dict[str, float]) -> None:
    with CMLCluster(0) as cluster:
        cluster.adapt(minimum=None, maximum=None)
        with pytest.raises(ValueError, match="the minimum must be"):
            cluster.adapt(**limits)
        assert cluster.adapting


@pytest.mark.parametrize("wrong", [pytest.param({"Adaptive": 1}, marks=pytest.mark.long), {"interval": "soon"}])
def test_a_slip_in_adapt_leaves_the_cluster_scaling_as_before(state: Path, wrong: dict[str, Any]) -> None:
    with CMLCluster(1) as cluster, cluster.get_client() as client:
        cluster.adapt(minimum=1, maximum=2)
        with pytest.raises((TypeError, KeyError)):
            cluster.adapt(**wrong)
        assert cluster.status().adapt == (1, 2)
        work = client.map(lambda _: time.sleep(0.5), range(60), pure=False)
        cluster.wait_for_workers(2, timeout=60)
        client.cancel(work)


@pytest.mark.parametrize("kind", [CMLCluster, LocalCluster])
def test_the_state_of_a_cluster_has_dasks_words(state: Path, kind: type) -> None:
    with kind(n_workers=0) as cluster:
        assert (cluster.status.name, cluster.status.value) == ("running", "running")


def test_who_closes_what_is_being_closed_waits_for_its_end(state: Path, slow_stop: Any) -> None:
    """A Stop of the panel is under way, and the user ends the cluster as well."""
    cluster = CMLCluster(1)
    with ThreadPoolExecutor() as pool:
        stopping = pool.submit(cluster.shutdown)
        assert slow_stop.asked.wait(60)
        with pytest.raises(RuntimeError, match="is being stopped"):
            cluster.scale(2)
        closing = pool.submit(cluster.close)
        with pytest.raises(FuturesTimeoutError):
            closing.result(0.5)
        slow_stop.goes_on.set()
        assert closing.result(60) is None and stopping.result(60).sessions == 2
    assert running(state) == [] and cluster.shutdown().sessions == 2
