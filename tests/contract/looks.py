"""What a cluster shows and tells of itself."""

from __future__ import annotations

import asyncio
import contextlib
import io
import urllib.request
from typing import Any

from distributed import Client
from distributed.core import Status

# What Dask tells of each worker, but for what changes.
_OF_A_WORKER = {
    "type", "id", "host", "resources", "local_directory", "name", "nthreads", "memory_limit", "services", "nanny",
}  # fmt: skip


def displays_show_every_worker(cluster: Any, client: Client) -> None:
    workers = list(client.scheduler_info()["workers"])
    assert len(workers) == 2
    for shown in (cluster._repr_html_(), client._repr_html_(), client.scheduler_info()._repr_html_()):
        assert all(worker in shown for worker in workers)
    assert "workers=2" in repr(cluster) and "threads=2" in repr(cluster)
    assert "processes=2 threads=2" in repr(client)


def every_field_that_dask_has_of_a_worker_is_in_scheduler_info(cluster: Any, client: Client) -> None:
    told = client.scheduler_info()["workers"]
    assert cluster.scheduler_info["workers"].keys() == told.keys()
    for address, worker in cluster.scheduler_info["workers"].items():
        assert worker.keys() >= {*_OF_A_WORKER, "status"}
        assert told[address].keys() >= {*_OF_A_WORKER, "status", "metrics", "last_seen"}
        assert {name: worker[name] for name in _OF_A_WORKER} == {name: told[address][name] for name in _OF_A_WORKER}
        assert (worker["type"], told[address]["status"], worker["nthreads"]) == ("Worker", "running", 1)


def what_dask_has_of_the_scheduler_is_in_scheduler_info(cluster: Any, client: Client) -> None:
    told = client.scheduler_info()
    assert cluster.scheduler_info["type"] == told["type"] == "Scheduler"
    for name in ("id", "address", "services", "started"):
        assert cluster.scheduler_info[name] == told[name]


def one_line_says_what_a_cluster_is(cluster: Any, client: Client) -> None:
    shown = repr(cluster)
    assert type(cluster).__name__ in shown and cluster.name in shown and cluster.scheduler_address in shown
    assert "memory=" in shown


def a_cell_can_show_a_cluster(cluster: Any) -> None:
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        cluster._ipython_display_()


def a_cluster_can_be_named_anew(cluster: Any) -> None:
    before = cluster.name
    assert isinstance(before, str) and before
    cluster.name = "another"
    try:
        assert cluster.name == "another" and "another" in repr(cluster)
    finally:
        cluster.name = before


def code_can_be_run_on_the_loop_of_a_cluster(cluster: Any) -> None:
    async def loop_and_double(number: int) -> tuple[Any, int]:
        return asyncio.get_running_loop(), 2 * number

    loop, doubled = cluster.sync(loop_and_double, 21)
    assert loop is cluster.loop.asyncio_loop and doubled == 42


def a_cluster_knows_whether_it_is_called_from_its_loop(cluster: Any) -> None:
    async def asked() -> bool:
        return bool(cluster.called_from_running_loop)

    assert cluster.sync(asked) is True
    assert cluster.called_from_running_loop is False and cluster.asynchronous is False


def the_status_is_dasks_own(cluster: Any) -> None:
    assert cluster.status == Status.running and cluster.status != Status.closed
    assert cluster.status in (Status.running, Status.closing) and cluster.status in {Status.running}
    assert cluster.status.name == "running"


def the_address_is_where_clients_are_connected(cluster: Any, client: Client) -> None:
    assert cluster.scheduler_address == client.scheduler.address
    assert cluster.scheduler_address.partition("://")[0] in ("tcp", "tls")


def planned_requested_and_observed_workers_are_the_same_by_name(cluster: Any, client: Client) -> None:
    names = {worker["name"] for worker in client.scheduler_info()["workers"].values()}
    assert len(names) == 2
    assert set(cluster.plan) == set(cluster.requested) == set(cluster.observed) == names


def a_cluster_is_itself_and_no_other(cluster: Any) -> None:
    assert cluster == cluster and cluster != object() and cluster != "cluster"
    assert {cluster: 1}[cluster] == 1


def tools_find_on_the_scheduler_whose_cluster_it_is(cluster: Any, client: Client) -> None:
    info = client.get_metadata(["cluster-manager-info"])
    assert info["name"] == cluster.name and info["type"].endswith(type(cluster).__name__)


def logs_come_from_cluster_scheduler_and_each_worker(cluster: Any, client: Client) -> None:
    workers = set(client.nthreads())
    logs = cluster.get_logs()
    assert logs.keys() == {"Cluster", "Scheduler", *workers} and logs._repr_html_()
    assert cluster.get_logs(cluster=False, scheduler=False, workers=False) == {}
    one = min(workers)
    assert cluster.get_logs(cluster=False, scheduler=False, workers=[one]).keys() == {one}
    assert cluster.get_logs(workers=False).keys() == {"Cluster", "Scheduler"}


def client_and_cluster_give_the_same_link_to_the_dashboard(cluster: Any, client: Client) -> None:
    assert cluster.dashboard_link.startswith("http") and cluster.dashboard_link.endswith("/status")
    assert client.dashboard_link == cluster.dashboard_link
    assert cluster.dashboard_link in cluster._repr_html_() and cluster.dashboard_link in client._repr_html_()


def the_dashboard_opens_at_its_link(cluster: Any) -> None:
    with urllib.request.urlopen(cluster.dashboard_link, timeout=30) as answer:
        assert answer.status == 200 and b"bokeh" in answer.read().lower()


def the_dashboard_is_served_by_the_scheduler(client: Client) -> None:
    async def fetch(dask_scheduler: Any) -> int:
        from tornado.httpclient import AsyncHTTPClient

        port = dask_scheduler.services["dashboard"].port
        return int((await AsyncHTTPClient().fetch(f"http://127.0.0.1:{port}/status")).code)

    assert client.run_on_scheduler(fetch) == 200


def the_link_to_the_dashboard_is_as_dask_was_told(cluster: Any) -> None:
    import dask

    port = cluster.scheduler_info["services"]["dashboard"]
    with dask.config.set({"distributed.dashboard.link": "https://hub.example.org/proxy/{port}/status"}):
        assert cluster.dashboard_link == f"https://hub.example.org/proxy/{port}/status"


def what_dask_was_told_before_the_start_holds_on_every_worker(client: Client) -> None:
    import dask

    told = client.run(lambda: dask.config.get("contract.told", None))
    assert set(told.values()) == {"before the start"}


def what_dask_was_told_before_the_start_holds_on_the_scheduler(make: Any) -> None:
    import dask

    with dask.config.set({"distributed.scheduler.allowed-failures": 17}), make(n_workers=0) as cluster:
        client = cluster.get_client()
        assert client.run_on_scheduler(lambda dask_scheduler: dask_scheduler.allowed_failures) == 17
