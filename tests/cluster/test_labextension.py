"""Clusters of JupyterLab's side bar: what ``dask-labextension`` does with a `CMLCluster`, and what it shows of it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import dask
import pytest
import yaml
from dask.utils import format_bytes
from distributed import Client
from support.readme import readme_configuration
from support.state_folder import local_sessions

from cml_dask_magics import CMLCluster
from cml_dask_magics.fleet.in_session import room_bytes
from cml_dask_magics.fleet.opening import open_fleet
from cml_dask_magics.magics.kernel_clusters import kernel_clusters
from cml_dask_magics.model.times import Times
from cml_dask_magics.platforms.local import LocalSessions
from cml_dask_magics.registry.registry import Registry

pytestmark = pytest.mark.dask

# A GiB less what the session's own process and the nanny need.
WORKER_MEMORY = 2**30 - room_bytes(1)


def running(state: Path) -> set[str]:
    """Ids of the sessions that are up, schedulers among them."""
    listing = local_sessions(state).list_workers()
    return {session["id"] for session in listing if session["status"] == "running"}


def nothing_left(state: Path) -> bool:
    return not running(state) and kernel_clusters.names(state) == []


@pytest.fixture
def side_bar(state: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """The configuration of the side bar, for a test to change."""
    # Importing the extension puts a file with its defaults there.
    monkeypatch.setattr(dask.config, "PATH", str(tmp_path / "config"))
    labextension = {"initial": [], "default": {}} | readme_configuration()["labextension"]
    labextension["factory"] |= {"args": []}
    labextension["factory"]["kwargs"] |= {"n-workers": 1, "memory": 1, "local": True}
    with dask.config.set(labextension=labextension):
        yield labextension


def drive(work: Callable[[Any], Awaitable[None]]) -> None:
    """Do something with the side bar's manager, on a loop as the Jupyter server has one."""

    async def main() -> None:
        # Imported where a loop runs: the module makes a manager, which must not start clusters of its own.
        with dask.config.set({"labextension.initial": []}):
            from dask_labextension.manager import DaskClusterManager
            from dask_labextension.manager import manager as the_modules_own

            await the_modules_own.initialized

        async with DaskClusterManager() as manager:
            await work(manager)

    asyncio.run(main())


async def until(condition: Callable[[], object], timeout: float = 60.0) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, "it did not come true"
        await asyncio.sleep(0.1)


async def news(manager: Any, n: int) -> None:
    """Wait until the scheduler of every cluster has told its news `n` more times, sooner than where nobody looks."""
    schedulers = [cluster._scheduler for cluster in manager._clusters.values()]
    told = dict.fromkeys(schedulers, 0)

    def counted(scheduler: Any) -> Callable[..., Awaitable[None]]:
        take_in = scheduler._take_in

        async def take_in_and_count(*args: Any, **kwargs: Any) -> None:
            await take_in(*args, **kwargs)
            told[scheduler] += 1

        return take_in_and_count

    for scheduler in schedulers:
        scheduler._take_in = counted(scheduler)
        scheduler.listen_often(True)
    await until(lambda: min(told.values()) >= n)
    for scheduler in schedulers:
        del scheduler._take_in
        scheduler.listen_often(False)


async def rounds(manager: Any, n: int) -> None:
    """Wait until every cluster has been looked after `n` more times, from beginning to end."""
    for cluster in manager._clusters.values():
        seen: list[object] = []
        steer = cluster.periodic_callbacks["steer"]
        callback = steer._callback

        async def counted(callback: Any = callback, seen: list[object] = seen) -> None:
            await callback()
            seen.append(None)

        steer._callback = counted
        await until(lambda seen=seen: len(seen) >= n)
        steer._callback = callback


def workers(manager: Any) -> dict[str, int]:
    """How many workers the side bar shows, by the cluster's id."""
    return {model["id"]: model["workers"] for model in manager.list_clusters()}


@pytest.mark.long
def test_two_clusters_start_side_by_side_and_are_listed_as_they_are(state: Path, side_bar: dict[str, Any]) -> None:
    async def work(manager: Any) -> None:
        first, second = await asyncio.gather(manager.start_cluster(), manager.start_cluster())
        assert {first["name"], second["name"]} == {"CMLCluster 1", "CMLCluster 2"}
        assert len(running(state)) == 4
        for model in (first, second):
            assert (model["workers"], model["cores"]) == (1, 1)
            assert model["memory"] == format_bytes(WORKER_MEMORY)
            assert model["scheduler_address"].startswith("tls://127.0.0.1:")
            assert model["dashboard_link"].startswith("http://127.0.0.1:")
            assert model["dashboard_link"].endswith("/status")
            assert "adapt" not in model
        for what in ("id", "scheduler_address", "dashboard_link"):
            assert first[what] != second[what]

        def listed() -> list[dict[str, Any]]:
            models: list[dict[str, Any]] = json.loads(json.dumps(manager.list_clusters()))
            return sorted(models, key=lambda model: model["id"])

        both = sorted((first, second), key=lambda model: str(model["id"]))
        assert listed() == both
        # The scheduler's news leave what the side bar reads.
        await news(manager, 2)
        assert listed() == both

        closed = await manager.close_cluster(first["id"])
        assert closed["id"] == first["id"]
        assert listed() == [second]
        assert len(running(state)) == 2 and len(kernel_clusters.names(state)) == 1
        await manager.close_cluster(second["id"])
        assert listed() == []
        assert nothing_left(state)

    drive(work)


@pytest.mark.long
def test_a_cluster_is_scaled_and_adapted(state: Path, side_bar: dict[str, Any]) -> None:
    async def work(manager: Any) -> None:
        cluster = (await manager.start_cluster())["id"]
        await manager.scale_cluster(cluster, 3)
        await until(lambda: workers(manager) == {cluster: 3})
        (model,) = manager.list_clusters()
        assert model["cores"] == 3 and model["memory"] == format_bytes(3 * WORKER_MEMORY)
        assert len(running(state)) == 4
        model = await manager.scale_cluster(cluster, 1)
        assert model["workers"] == 1 and len(running(state)) == 2

        # It grows to the least, and the side bar says what the limits are.
        model = manager.adapt_cluster(cluster, 2, 3)
        assert model["adapt"] == {"minimum": 2, "maximum": 3}
        await until(lambda: workers(manager) == {cluster: 2})
        assert manager.get_cluster(cluster)["adapt"] == {"minimum": 2, "maximum": 3}

        # Other limits take the place of the first; nobody works, so it shrinks to the least.
        manager.adapt_cluster(cluster, 0, 1)
        await until(lambda: len(running(state)) == 1)
        assert workers(manager) == {cluster: 0}
        model = manager.get_cluster(cluster)
        assert model["adapt"] == {"minimum": 0, "maximum": 1}
        assert (model["cores"], model["memory"]) == (0, format_bytes(0))

        # A number ends it: although nobody works, the workers stay.
        model = await manager.scale_cluster(cluster, 2)
        assert "adapt" not in model
        await until(lambda: workers(manager) == {cluster: 2})
        await rounds(manager, 2)
        assert workers(manager) == {cluster: 2} and "adapt" not in manager.get_cluster(cluster)

    drive(work)
    assert nothing_left(state), "the manager closes what it started"


@pytest.mark.long
def test_clusters_of_the_configuration_start_with_jupyter(state: Path, side_bar: dict[str, Any]) -> None:
    side_bar["initial"] = [
        {"name": "By hand", "workers": 2},
        {"name": "By load", "adapt": {"minimum": 1, "maximum": 2}},
    ]

    async def work(manager: Any) -> None:
        by_hand, by_load = manager.list_clusters()
        assert by_hand["name"] == "By hand" and "adapt" not in by_hand
        assert by_load["name"] == "By load" and by_load["adapt"] == {"minimum": 1, "maximum": 2}
        await until(lambda: workers(manager) == {by_hand["id"]: 2, by_load["id"]: 1})

    drive(work)
    assert nothing_left(state)


@pytest.mark.parametrize(
    ("option", "error", "message"),
    [({"memory": "lots"}, ValueError, "memory"), ({"n_wrokers": 1}, TypeError, "n_wrokers")],
)
def test_an_option_that_cannot_be_is_an_error_that_names_it_and_starts_nothing(
    state: Path, side_bar: dict[str, Any], option: dict[str, Any], error: type[Exception], message: str
) -> None:
    side_bar["factory"]["kwargs"] |= option

    async def work(manager: Any) -> None:
        with pytest.raises(error, match=message):
            await manager.start_cluster()
        assert manager.list_clusters() == []
        assert nothing_left(state)

    drive(work)


@pytest.mark.long
def test_a_start_that_fails_late_leaves_nothing_and_the_next_one_works(
    state: Path, side_bar: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def work(manager: Any) -> None:
        with monkeypatch.context() as patch:
            patch.setattr("cml_dask_magics.model.readers.sys.executable", "/nowhere/python")
            with pytest.raises(RuntimeError, match="/nowhere/python"):
                await manager.start_cluster()
        assert manager.list_clusters() == []
        assert nothing_left(state)
        assert (await manager.start_cluster())["workers"] == 1

    drive(work)
    assert nothing_left(state)


@pytest.mark.long
def test_a_cluster_that_a_notebook_stopped_does_not_take_the_list_with_it(
    state: Path, side_bar: dict[str, Any]
) -> None:
    async def work(manager: Any) -> None:
        stopped = (await manager.start_cluster())["id"]
        (name,) = kernel_clusters.names(state)
        other = (await manager.start_cluster())["id"]
        notebook = f"get_ipython().run_line_magic('load_ext', 'cml_dask_magics')\n%dask_down {name}"
        await asyncio.to_thread(subprocess.run, [sys.executable, "-m", "IPython", "-c", notebook], check=True)
        # It stays until the user takes it away, but claims nothing.
        await until(lambda: workers(manager) == {stopped: 0, other: 1})
        await until(lambda: manager.get_cluster(stopped)["dashboard_link"] == "")
        await manager.close_cluster(stopped)
        assert workers(manager) == {other: 1}

    drive(work)
    assert nothing_left(state)


@pytest.mark.long
def test_a_cluster_whose_scheduler_died_claims_no_workers_and_can_be_taken_away(
    state: Path, side_bar: dict[str, Any]
) -> None:
    async def work(manager: Any) -> None:
        cluster = (await manager.start_cluster())["id"]
        (name,) = kernel_clusters.names(state)
        fleet = open_fleet(Registry(state), name)
        assert fleet is not None
        (scheduler,) = [session.id for session in fleet.record.sessions if session.role == "scheduler"]
        (process,) = [s.process() for s in local_sessions(state)._sessions() if s.id == scheduler]
        assert process is not None
        for each in [process, *process.children(recursive=True)]:
            each.send_signal(signal.SIGKILL)
        await until(lambda: workers(manager) == {cluster: 0} and not running(state))
        await manager.close_cluster(cluster)
        assert manager.list_clusters() == []

    drive(work)
    assert nothing_left(state)


def test_sessions_that_do_not_end_stay_in_the_list_until_they_have(
    state: Path, side_bar: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def work(manager: Any) -> None:
        monkeypatch.setattr(CMLCluster, "times", Times(stop_s=1.0))
        cluster = (await manager.start_cluster())["id"]
        with monkeypatch.context() as patch:
            patch.setattr(LocalSessions, "stop_workers", lambda *args: None)
            with pytest.raises(RuntimeError, match="did not stop"):
                await manager.close_cluster(cluster)
        assert [model["id"] for model in manager.list_clusters()] == [cluster]
        # Pressed again, once the platform complies.
        await manager.close_cluster(cluster)
        assert manager.list_clusters() == []
        assert nothing_left(state)

    drive(work)


def test_the_code_that_the_side_bar_writes_connects(state: Path, side_bar: dict[str, Any]) -> None:
    async def work(manager: Any) -> None:
        address = (await manager.start_cluster())["scheduler_address"]
        # The button "<>" and the mouse put `client = Client("tls://...")` into a cell, and no certificate.
        loader = readme_configuration()["distributed"]["client"]["security-loader"]
        with dask.config.set({"distributed.client.security-loader": loader}):
            async with Client(address, asynchronous=True) as client:
                assert await client.submit(sum, range(10)) == 45

    drive(work)


# Through a Jupyter server


class Server:
    """A running Jupyter server, and requests as the side bar makes them."""

    def __init__(self, address: str, token: str) -> None:
        self._address = address
        self._token = token

    def ask(self, method: str, path: str, body: object = None) -> tuple[int, Any]:
        """Status and document of the answer."""
        data = None if body is None else json.dumps(body).encode()
        headers = {"Authorization": f"token {self._token}"}
        request = urllib.request.Request(f"{self._address}/{path}", data, headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=120) as response:
                text = response.read()
                return response.status, json.loads(text) if text else None
        except urllib.error.HTTPError as error:
            with error:
                return error.code, json.loads(error.read())


@pytest.fixture
def server(side_bar: dict[str, Any], tmp_path: Path) -> Callable[[], contextlib.AbstractContextManager[Server]]:
    """Starts a Jupyter server that reads ``labextension.yaml`` as the user wrote it."""

    @contextlib.contextmanager
    def started() -> Iterator[Server]:
        config, token, log = tmp_path / "config", uuid.uuid4().hex, tmp_path / "jupyter.log"
        config.mkdir(exist_ok=True)
        (config / "labextension.yaml").write_text(yaml.safe_dump({"labextension": side_bar}))
        argv = [sys.executable, "-m", "jupyter_server", "--no-browser", "--allow-root", "--ip=127.0.0.1", "--port=0"]
        argv += [f"--IdentityProvider.token={token}", f"--ServerApp.root_dir={tmp_path}"]
        places = {name: str(tmp_path / name.lower()) for name in ("JUPYTER_CONFIG_DIR", "JUPYTER_RUNTIME_DIR")}
        environment = os.environ | places | {"DASK_CONFIG": str(config)}
        with log.open("wb") as file, subprocess.Popen(argv, env=environment, stdout=file, stderr=file) as process:
            try:
                yield Server(_address(process, Path(places["JUPYTER_RUNTIME_DIR"]), log), token)
            finally:
                process.terminate()
                process.wait(timeout=30)

    return started


def _address(process: subprocess.Popen[bytes], runtime: Path, log: Path) -> str:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(OSError, ValueError):
            if files := list(runtime.glob("jpserver-*.json")):
                address = str(json.loads(files[0].read_text())["url"]).rstrip("/")
                urllib.request.urlopen(f"{address}/api", timeout=5).close()  # it writes the file before it listens
                return address
        time.sleep(0.1)
    raise TimeoutError(f"the Jupyter server does not come up\n{log.read_text()[-2000:]}")


def test_the_side_bar_s_requests_start_change_show_and_stop_a_cluster(
    state: Path, server: Callable[[], contextlib.AbstractContextManager[Server]]
) -> None:
    with server() as jupyter:
        status, model = jupyter.ask("PUT", "dask/clusters")
        assert status == 200 and model["workers"] == 1, model
        cluster = f"dask/clusters/{model['id']}"
        assert jupyter.ask("GET", "dask/clusters") == (200, [model])

        # Its panes: through the Jupyter server, and by the address that a notebook gives.
        status, plots = jupyter.ask("GET", f"dask/dashboard/{model['id']}/individual-plots.json")
        assert status == 200 and plots["Individual Task Stream"] == "/individual-task-stream"
        link = urllib.parse.quote(model["dashboard_link"], safe="")
        status, check = jupyter.ask("GET", f"dask/dashboard-check/{link}")
        assert status == 200 and check["isActive"] and check["plots"] == plots

        status, changed = jupyter.ask("PATCH", cluster, {**model, "workers": 2})
        assert status == 200, changed
        _until_shown(jupyter, cluster, workers=2, cores=2)
        limits = {"minimum": 0, "maximum": 1}
        status, changed = jupyter.ask("PATCH", cluster, {**model, "adapt": limits})
        assert status == 200 and changed["adapt"] == limits, changed
        _until_shown(jupyter, cluster, workers=0, adapt=limits)
        status, error = jupyter.ask("PATCH", cluster, {**model, "workers": -1})
        assert status == 500 and "from 0 to" in error["message"]

        assert jupyter.ask("DELETE", cluster) == (204, None)
        assert jupyter.ask("GET", "dask/clusters") == (200, [])
        assert nothing_left(state)


def test_a_start_that_fails_is_told_to_the_side_bar(
    state: Path, side_bar: dict[str, Any], server: Callable[[], contextlib.AbstractContextManager[Server]]
) -> None:
    side_bar["factory"]["kwargs"]["memory"] = "lots"
    with server() as jupyter:
        status, error = jupyter.ask("PUT", "dask/clusters")
        assert status == 500 and "memory" in error["message"] and "lots" in error["message"]
        assert jupyter.ask("GET", "dask/clusters") == (200, [])
    assert nothing_left(state)


def _until_shown(jupyter: Server, cluster: str, **facts: object) -> None:
    deadline = time.monotonic() + 60
    while True:
        status, model = jupyter.ask("GET", cluster)
        assert status == 200, model
        if facts.items() <= model.items():
            return
        assert time.monotonic() < deadline, model
        time.sleep(0.2)
