"""From ``%load_ext`` to a result and back, in the simulated workspace: what a person types and what they get."""

from __future__ import annotations

import json

import pytest
from support.notebook import Notebook
from workspace import Limits, Workspace

pytestmark = [pytest.mark.dask, pytest.mark.workspace]


def launched(notebook: Notebook) -> int:
    return len(notebook.workspace.calls("launch"))


def test_three_lines_give_workers_on_sessions_and_take_them_back(notebook: Notebook) -> None:
    notebook.run("%dask_up 3")
    assert notebook.run("print(client.submit(sum, range(10)).result())").strip() == "45"
    hosts = eval(notebook.run("import socket; print(set(client.run(socket.gethostname).values()))"))
    if notebook.workspace.isolation == "namespaces":
        assert hosts == {worker["session"] for worker in notebook.status()["workers"]}
    assert len(notebook.workspace.alive()) == 4
    assert "Stopped cluster 'default': 4 sessions" in notebook.run("%dask_down")
    assert not notebook.workspace.alive()
    assert "no cluster" in notebook.run("%dask_down").lower()


@pytest.mark.long
def test_a_link_is_right_without_the_slash_that_app_url_usually_ends_in(notebook: Notebook) -> None:
    notebook.workspace.configure(app_url_slash=False)
    try:
        notebook.run("%dask_up 1")
        assert notebook.status()["dashboard_link"].endswith(".example.site/status")
    finally:
        notebook.workspace.configure(app_url_slash=True)


def test_another_session_of_the_project_finds_uses_and_stops_the_cluster(notebook: Notebook) -> None:
    notebook.run("%dask_up 2")
    other = notebook.workspace.open_session()
    kernel = other.kernel()
    try:
        assert "default" in kernel.run("%load_ext cml_dask_magics").stdout
        run = kernel.run("%dask_up\nprint(client.submit(sum, range(10)).result())", timeout=60)
        assert run.error is None and run.stdout.strip() == "45"
        run = kernel.run("%dask_down", timeout=90)
        assert run.error is None and "3 sessions" in run.stdout, run
        # No listing of theirs shows that session the end of sessions that another one launched: the platform's word and
        # the scheduler's silence are all that it can wait for.
        notebook.workspace.wait_until(lambda: not notebook.workspace.alive())
    finally:
        other.close()


@pytest.mark.long
def test_scaling_adds_sessions_and_takes_away_only_workers_whose_data_was_moved(notebook: Notebook) -> None:
    notebook.run("%dask_up 2\nfutures = client.scatter(list(range(200)), broadcast=False)")
    notebook.run("%dask_up 3")
    assert len(notebook.workspace.alive()) == 4
    notebook.run("%dask_up 1")
    assert len(notebook.workspace.alive()) == 2
    assert notebook.run("print(sum(client.gather(futures)))").strip() == str(sum(range(200)))
    assert notebook.status()["requested"] == 1


@pytest.mark.long
def test_adaptive_scaling_follows_the_load(notebook: Notebook) -> None:
    notebook.run("%dask_up --adapt 1:3")
    assert notebook.status()["adapt"] == [1, 3]
    notebook.run("import time\nwork = client.map(lambda i: time.sleep(1.5), range(60), pure=False)")
    notebook.workspace.wait_until(lambda: len(notebook.workspace.alive()) == 4, timeout=60)
    notebook.run("client.cancel(work); del work")
    notebook.workspace.wait_until(lambda: len(notebook.workspace.alive()) == 2, timeout=60)


def test_a_missing_interpreter_is_shown_by_what_the_session_printed(notebook: Notebook) -> None:
    notebook.new_kernel(DASK_CML_DASK_MAGICS__PYTHON="/nowhere/python")
    said = notebook.fail("%dask_up 2")
    assert "/nowhere/python" in said and "not found" in said
    assert not notebook.workspace.alive()


@pytest.mark.long
def test_workers_that_come_late_are_a_warning_and_not_the_end(notebook: Notebook) -> None:
    notebook.workspace.configure(capacity=Limits(sessions=4))  # the bystander, the scheduler, two workers
    try:
        with notebook.running_out_of_time(ready=2):
            run = notebook.kernel.run("%dask_up 3 --timeout 100s", timeout=120)
        assert run.error is None, run.error
        assert "2 of 3 workers" in run.stderr
        shown = notebook.status()
        assert shown["state"] == "degraded"
        assert sorted(worker["state"] for worker in shown["workers"]) == ["pending", "running", "running"]
        notebook.workspace.configure(capacity=Limits())
        notebook.workspace.wait_until(lambda: notebook.status()["state"] == "running", timeout=30)
    finally:
        notebook.workspace.configure(capacity=Limits())


@pytest.mark.long
def test_an_idle_cluster_ends_without_any_kernel(notebook: Notebook) -> None:
    notebook.run("%dask_up 2 --idle-timeout 12s")
    notebook.kernel.kill()
    notebook.workspace.wait_until(lambda: not notebook.workspace.alive(), timeout=90)


def test_background_returns_at_once_and_the_client_comes_later(notebook: Notebook) -> None:
    notebook.workspace.configure(capacity=Limits(sessions=1))  # the bystander: no other starts
    try:
        notebook.run("%dask_up 1 --background --client late\nprint(cluster)")
        notebook.run("assert 'late' not in globals()")
        notebook.workspace.configure(capacity=Limits())
        notebook.run("import time\nwhile 'late' not in globals(): time.sleep(0.1)", timeout=60)
        assert notebook.run("print(late.submit(sum, range(10)).result())").strip() == "45"
    finally:
        notebook.workspace.configure(capacity=Limits())


@pytest.mark.long
def test_plain_tcp_where_it_is_asked_for(notebook: Notebook) -> None:
    notebook.run("%dask_up 1 --no-tls")
    assert notebook.status()["scheduler"]["address"].startswith("tcp://")
    assert notebook.run("print(client.submit(sum, range(10)).result())").strip() == "45"


@pytest.mark.long
def test_a_state_folder_with_any_name_works(notebook: Notebook) -> None:
    folder = notebook.session.truth.environment["HOME"] + '/it\'s {a} $HOME "folder" é'
    notebook.new_kernel(DASK_CML_DASK_MAGICS__STATE_DIRECTORY=folder)
    notebook.run("%dask_up 1\nprint(client.submit(sum, range(10)).result())")
    notebook.run("%dask_down")


def test_without_the_workers_api_a_session_says_so_and_launches_nothing() -> None:
    with Workspace(module="none") as workspace:
        kernel = workspace.open_session().kernel()
        run = kernel.run("%load_ext cml_dask_magics\n%dask_up 1", timeout=60)
        assert run.error is not None and run.error.ename == "RuntimeError"
        assert "cml.workers_v1" in run.error.evalue and "--local" in run.error.evalue
        assert kernel.run("%dask_up 1 --local\nclient.submit(sum, [1, 2]).result()\n%dask_down").error is None


@pytest.mark.long
def test_the_older_module_works_alike() -> None:
    with Workspace(module="cdsw") as workspace:
        kernel = workspace.open_session().kernel()
        run = kernel.run("%load_ext cml_dask_magics\n%dask_up 1\nprint(client.submit(sum, [1, 2]).result())")
        assert run.error is None and run.stdout.strip() == "3"
        assert json.loads(kernel.run("%dask_status --json").stdout)["clusters"][0]["backend"] == "cdsw"
        kernel.run("%dask_down", timeout=60)
        assert not workspace.alive()


@pytest.mark.parametrize("value", [None, "", "http", "0", "70000", "8090.5"])
def test_a_session_without_a_port_for_the_dashboard_says_so_and_launches_nothing(
    notebook: Notebook, value: str | None
) -> None:
    variable = "os.environ['CDSW_READONLY_PORT']"
    change = f"del {variable}" if value is None else f"{variable} = {value!r}"
    launches = launched(notebook)
    notebook.run(f"import os\n{change}")
    run = notebook.kernel.run("%dask_up 1")
    assert "CDSW_READONLY_PORT" in run.stderr + run.stdout and "--dashboard-port" in run.stderr + run.stdout
    assert launched(notebook) == launches and "No cluster" in notebook.run("%dask_status")
