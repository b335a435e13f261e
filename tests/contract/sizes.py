"""More workers and fewer."""

from __future__ import annotations

import time
from typing import Any

import distributed
from distributed import Client, wait
from distributed.core import Status

from contract.patience import PATIENCE_S, eventually


def _has(cluster: Any, client: Client, n: int) -> bool:
    """Whether all agree on the number of workers."""
    return (
        len(client.nthreads()) == n
        and len(cluster.scheduler_info["workers"]) == n
        and len(cluster.plan) == len(cluster.requested) == len(cluster.observed) == n
    )


def futures_outlive_the_workers_that_made_them(cluster: Any, client: Client) -> None:
    cluster.scale(3)
    cluster.wait_for_workers(3, timeout=PATIENCE_S)
    eventually(lambda: _has(cluster, client, 3))
    assert "workers=3" in repr(cluster) and all(worker in cluster._repr_html_() for worker in client.nthreads())
    futures = client.map(lambda number: number + 1, range(60), pure=False)
    wait(futures, timeout=PATIENCE_S)
    cluster.scale(2)
    eventually(lambda: _has(cluster, client, 2))
    assert client.gather(futures) == list(range(1, 61))
    assert "workers=2" in repr(cluster)


def the_size_can_be_told_in_cores_and_in_memory(cluster: Any, client: Client) -> None:
    cluster.scale(cores=3)
    eventually(lambda: _has(cluster, client, 3))
    assert sum(client.nthreads().values()) == 3
    cluster.scale(memory="1.2 GiB")
    eventually(lambda: _has(cluster, client, 2))
    assert sum(worker["memory_limit"] for worker in client.scheduler_info()["workers"].values()) >= 1.2 * 2**30


def dask_scales_by_the_load_within_limits(cluster: Any, client: Client) -> None:
    adaptive = cluster.adapt(minimum=2, maximum=3, interval="100ms", target_duration="100ms")
    try:
        assert (adaptive.minimum, adaptive.maximum) == (2, 3)
        futures = client.map(lambda _: time.sleep(0.2), range(200), pure=False)
        eventually(lambda: len(client.nthreads()) == 3)
        client.cancel(futures)
        del futures
        eventually(lambda: len(client.nthreads()) == 2)
    finally:
        adaptive.stop()
        cluster.scale(2)


def the_limits_of_adaptive_scaling_can_be_told_in_cores_and_in_memory(cluster: Any) -> None:
    adaptive = cluster.adapt(minimum_cores=2, maximum_memory="7 GiB", interval="1 hour")
    try:
        assert adaptive.minimum == 2 and 7 <= adaptive.maximum <= 9
        again = cluster.adapt(minimum_memory="0.7 GiB", maximum_cores=4, interval="1 hour")
        adaptive, before = again, adaptive
        assert again is not before and (again.minimum, again.maximum) == (1, 4)
    finally:
        adaptive.stop()
        cluster.scale(2)


def retired_workers_leave_their_data_to_the_others(cluster: Any, client: Client) -> None:
    cluster.scale(3)
    client.wait_for_workers(3, timeout=PATIENCE_S)
    victim = min(client.nthreads())
    data = client.scatter("data", workers=[victim])
    assert victim in client.retire_workers(workers=[victim], close_workers=True)
    eventually(lambda: victim not in client.nthreads())
    assert client.gather(data) == "data"
    cluster.scale(2)
    eventually(lambda: len(client.nthreads()) == 2)


def waiting_for_workers_that_never_come_times_out(cluster: Any) -> None:
    cluster.wait_for_workers(2, timeout=PATIENCE_S)
    try:
        cluster.wait_for_workers(50, timeout=0.2)
    except (TimeoutError, distributed.TimeoutError):
        return
    raise AssertionError("50 workers came")


def waiting_for_no_workers_is_refused(cluster: Any) -> None:
    for wrong in (0, -1, 1.5):
        try:
            cluster.wait_for_workers(wrong)
        except ValueError:
            continue
        raise AssertionError(f"it waited for {wrong} workers")


def a_cluster_may_start_without_workers_and_get_them_later(make: Any) -> None:
    with make(n_workers=0) as cluster, cluster.get_client() as client:
        assert cluster.status == Status.running and _has(cluster, client, 0)
        assert "workers=0" in repr(cluster) and cluster._repr_html_() and client._repr_html_()
        future = client.submit(sum, [1, 2])
        cluster.scale(1)
        assert future.result(timeout=PATIENCE_S) == 3
        cluster.scale(0)
        eventually(lambda: _has(cluster, client, 0))


def two_clusters_run_side_by_side_without_being_named(make: Any) -> None:
    with make(n_workers=1, name=None) as one, make(n_workers=1, name=None) as other:
        assert one.name != other.name and one != other and one.scheduler_address != other.scheduler_address
        with one.get_client() as client, other.get_client() as second:
            assert client.cluster is one and second.cluster is other
            assert not set(client.nthreads()) & set(second.nthreads())
