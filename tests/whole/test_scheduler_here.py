"""``--scheduler-here``: the scheduler is a process of the notebook's own session, beside the kernel."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from support.notebook import Notebook

pytestmark = [pytest.mark.dask, pytest.mark.workspace]

LOOK_AT_THE_DASHBOARD = """
import os, urllib.request
print(urllib.request.urlopen(f"http://127.0.0.1:{os.environ['CDSW_READONLY_PORT']}/status").status)
"""
COMPUTE = "print(client.submit(sum, range(10)).result())"


def schedulers(notebook: Notebook) -> list[int]:
    """The schedulers in the notebook's own session, by process."""
    commands = notebook.workspace.processes(notebook.session.id)
    return [pid for pid, command in commands.items() if "scheduler" in command]


@pytest.fixture
def taken(notebook: Notebook) -> Iterator[Notebook]:
    """Another program of the user has the ports of Dask's scheduler and of the dashboard."""
    notebook.run(
        "import os, socket\nfrom os import environ\n"
        "taken = [socket.create_server((environ['CDSW_IP_ADDRESS'], 8786)),\n"
        "    socket.create_server(('127.0.0.1', int(environ['CDSW_READONLY_PORT'])))]"
    )
    yield notebook
    notebook.run("for each in taken:\n    each.close()")


def test_it_takes_no_session_outlives_the_kernel_and_goes_with_the_cluster(notebook: Notebook) -> None:
    notebook.run("%dask_up 2 --scheduler-here")
    assert notebook.run(COMPUTE).strip() == "45"
    assert len(notebook.workspace.alive()) == 2 and len(schedulers(notebook)) == 1
    status = notebook.status()
    assert status["scheduler"]["ip_address"] == notebook.session.truth.address
    assert status["dashboard_link"] == f"https://read-only-{notebook.session.id}.ml-sim.example.site/status"
    assert notebook.run(LOOK_AT_THE_DASHBOARD).strip() == "200"

    notebook.kernel.kill()
    before = len(notebook.workspace.calls("launch"))
    assert "default" in notebook.new_kernel()
    notebook.run("%dask_up")
    assert notebook.run(COMPUTE).strip() == "45"
    notebook.run("%dask_up 3")
    assert len(notebook.workspace.calls("launch")) == before + 1 and len(notebook.workspace.alive()) == 3

    assert "Stopped cluster 'default': 4 sessions" in notebook.run("%dask_down")
    assert not notebook.workspace.alive() and not schedulers(notebook)


@pytest.mark.long
def test_another_session_of_the_project_stops_it(notebook: Notebook) -> None:
    notebook.run("%dask_up 1 --scheduler-here")
    other = notebook.workspace.open_session()
    kernel = other.kernel()
    try:
        run = kernel.run("%load_ext cml_dask_magics\n%dask_down", timeout=90)
        assert run.error is None and "2 sessions" in run.stdout, run
        assert not notebook.workspace.alive()
        notebook.workspace.wait_until(lambda: not schedulers(notebook))  # silent, it may not be quite gone
    finally:
        other.close()


def test_where_the_ports_are_taken_it_finds_another_and_says_that_no_link_leads_to_its_dashboard(
    taken: Notebook,
) -> None:
    run = taken.kernel.run("%dask_up 1 --scheduler-here")
    assert run.error is None, run.error
    assert "has no dashboard link: " in run.stdout + run.stderr + run.text
    status = taken.status()
    assert status["dashboard_link"] is None
    assert not status["scheduler"]["address"].endswith(":8786")
    assert taken.run(COMPUTE).strip() == "45"
    taken.run("%dask_down")
    assert not schedulers(taken)


def test_of_two_clusters_the_link_is_of_the_one_that_the_platform_shows(notebook: Notebook) -> None:
    notebook.run("%dask_up 1 --scheduler-here --name a --background\n%dask_up 1 --scheduler-here --name b --background")
    links, events = {}, {}
    for name in ("a", "b"):
        notebook.run(f"%dask_up --name {name}")
        port = notebook.run("import os\nprint(cluster.scheduler_info['services']['dashboard'])").strip()
        is_shown = port == notebook.run("print(os.environ['CDSW_READONLY_PORT'])").strip()
        status = notebook.status(name)
        links[is_shown] = status["dashboard_link"]
        events[is_shown] = " ".join(event["message"] for event in status["events"])
    assert links == {True: f"https://read-only-{notebook.session.id}.ml-sim.example.site/status", False: None}
    assert "perhaps by another cluster of yours" in events[False] and "dashboard" not in events[True]
    notebook.run("%dask_down --all")


@pytest.mark.long
def test_of_a_dashboard_on_a_port_that_the_platform_does_not_show_it_is_said(notebook: Notebook) -> None:
    run = notebook.kernel.run("%dask_up 1 --scheduler-here --dashboard-port 8123")
    assert run.error is None, run.error
    assert "has no dashboard link: " in run.stdout + run.stderr + run.text
    assert "it is served on port 8123" in run.stdout + run.stderr + run.text
    assert notebook.status()["dashboard_link"] is None
    notebook.run("%dask_down")
