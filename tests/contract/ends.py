"""How a cluster ends, and what is left of it: nothing."""

from __future__ import annotations

import os
import socket
from typing import Any

import psutil
from distributed import Client
from distributed.core import Status

from contract.patience import PATIENCE_S, eventually


def _listens(address: str) -> bool:
    host, _, port = address.partition("://")[2].rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=2).close()
    except OSError:
        return False
    return True


def _lives(pid: int, began: float) -> bool:
    """Whether a process of a worker lives; one that this process cannot see, in another session, does not."""
    try:
        process = psutil.Process(pid)
        return process.create_time() == began and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def an_error_in_a_with_block_ends_the_cluster_and_comes_through(ended: Any) -> None:
    assert ended.error.args == ("on purpose",)
    assert ended.cluster.status == Status.closed and ended.cluster.status.name == "closed"


def a_closed_cluster_can_be_closed_again(ended: Any) -> None:
    assert ended.cluster.close() is None
    assert ended.cluster.close(timeout=1) is None


def a_closed_cluster_gives_no_client_and_says_why(ended: Any) -> None:
    for connect in (lambda: Client(ended.cluster), ended.cluster.get_client):
        try:
            connect()
        except RuntimeError as error:
            assert "closed" in str(error) and ended.cluster.name in str(error)
            continue
        raise AssertionError("there is a client of a closed cluster")


def whoever_uses_a_closed_cluster_gets_an_error(ended: Any) -> None:
    for use in (ended.cluster.get_logs, lambda: ended.cluster.wait_for_workers(1)):
        try:
            use()
        except (RuntimeError, OSError):
            continue
        raise AssertionError(f"{use} works on a closed cluster")


def a_closed_cluster_can_still_be_shown(ended: Any) -> None:
    assert type(ended.cluster).__name__ in repr(ended.cluster) and ended.cluster.name in repr(ended.cluster)
    assert ended.cluster._repr_html_()


def a_client_of_a_closed_cluster_ends_with_it(ended: Any) -> None:
    eventually(lambda: ended.client.status == "closed")
    assert ended.client.status in repr(ended.client) or "No scheduler connected" in repr(ended.client)
    ended.client.close()


def nothing_listens_where_a_closed_cluster_was(ended: Any) -> None:
    eventually(lambda: not any(_listens(address) for address in ended.addresses))


def no_process_of_a_closed_cluster_is_left(ended: Any) -> None:
    assert ended.processes
    eventually(lambda: not any(_lives(pid, began) for pid, began in ended.processes.items()))


def a_client_can_shut_the_cluster_down(make: Any) -> None:
    cluster = make(n_workers=1)
    client = Client(cluster)
    addresses = [cluster.scheduler_address, *client.nthreads()]
    processes = dict(client.run(lambda: (os.getpid(), psutil.Process().create_time())).values())
    client.shutdown()
    assert cluster.status == Status.closed and client.status == "closed"
    eventually(lambda: not any(_listens(address) for address in addresses))
    eventually(lambda: not any(_lives(pid, began) for pid, began in processes.items()))


async def a_cluster_can_live_in_an_event_loop(make: Any) -> None:
    cluster = await make(n_workers=1, asynchronous=True)
    async with cluster, Client(cluster, asynchronous=True) as client:
        assert cluster.asynchronous and cluster.status == Status.running and "workers=1" in repr(cluster)
        assert await client.submit(sum, [1, 2]) == 3
        cluster.scale(2)  # Dask's users need not await it
        await client.wait_for_workers(2, timeout=PATIENCE_S)
        await cluster.wait_for_workers(2, timeout=PATIENCE_S)
        assert {"Cluster", "Scheduler"} <= (await cluster.get_logs()).keys()
        await cluster.scale(1)
        assert cluster._repr_html_() and client._repr_html_()
    assert cluster.status == Status.closed
    await cluster.close()


async def an_async_with_block_ends_its_cluster(make: Any) -> None:
    async with make(n_workers=1, asynchronous=True) as cluster:
        assert cluster.status == Status.running
        async with Client(cluster, asynchronous=True) as client:
            addresses = [cluster.scheduler_address, *(await client.scheduler.identity())["workers"]]
    assert cluster.status == Status.closed and not any(_listens(address) for address in addresses)
