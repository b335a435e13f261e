"""Clients of a cluster: how many, from where, and what their end means."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import dask
from distributed import Client
from distributed.core import Status

from contract.patience import PATIENCE_S


def asking_for_a_client_twice_gives_the_same_one(cluster: Any, client: Client) -> None:
    assert cluster.get_client() is client and cluster.get_client() is client
    assert client.cluster is cluster


def a_closed_client_leaves_the_cluster_and_the_next_one_works(cluster: Any) -> None:
    with Client(cluster) as first:
        assert first.submit(sum, [1]).result(timeout=PATIENCE_S) == 1
    assert first.status == "closed" and cluster.status == Status.running
    with cluster.get_client() as second:
        assert second is not first and second.submit(sum, [2]).result(timeout=PATIENCE_S) == 2


def another_client_connects_by_address_and_security(cluster: Any, client: Client) -> None:
    with Client(cluster.scheduler_address, security=cluster.security, set_as_default=False) as other:
        assert other.cluster is None and other.nthreads() == client.nthreads()
        assert other.submit(sum, [1, 2]).result(timeout=PATIENCE_S) == 3
        assert all(worker in other._repr_html_() for worker in client.nthreads())


def two_clients_end_independently(cluster: Any) -> None:
    first, second = Client(cluster), Client(cluster)
    kept = second.submit(sum, [1, 2, 3])
    assert first.submit(sum, [1, 2, 3]).result(timeout=PATIENCE_S) == 6  # the same task
    first.close()
    assert second.status == "running" and kept.result(timeout=PATIENCE_S) == 6
    second.close()
    assert cluster.status == Status.running


def a_thread_can_have_a_client_of_its_own(cluster: Any) -> None:
    def compute() -> Any:
        with Client(cluster, set_as_default=False) as client:
            return client.submit(sum, [1, 2, 3]).result(timeout=PATIENCE_S)

    with ThreadPoolExecutor(2) as threads:
        assert [each.result(PATIENCE_S) for each in [threads.submit(compute) for _ in range(2)]] == [6, 6]


async def an_event_loop_can_have_a_client_of_its_own(cluster: Any) -> None:
    address, security = cluster.scheduler_address, cluster.security
    async with Client(address, security=security, asynchronous=True, set_as_default=False) as client:
        assert await client.submit(sum, [1, 2, 3]) == 6
        assert await client.gather(client.map(abs, [-1, -2])) == [1, 2]
        assert len((await client.scheduler.identity())["workers"]) == 2


def a_client_can_be_the_current_one_for_a_block(cluster: Any, client: Client) -> None:
    with Client(cluster, set_as_default=False) as other:
        assert Client.current() is client
        with other.as_current():
            assert Client.current() is other


def collections_go_to_the_cluster_while_it_has_a_client(client: Client) -> None:
    assert dask.config.get("scheduler") == "dask.distributed"
    assert dask.base.get_scheduler() == client.get
