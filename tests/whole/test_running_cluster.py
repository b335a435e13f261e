"""What a person finds of a cluster that runs in the simulated workspace; the tests look at one, and change nothing."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from support.notebook import Notebook
from workspace import Workspace

pytestmark = [pytest.mark.dask, pytest.mark.workspace, pytest.mark.xdist_group("running cluster")]

FETCH = "import urllib.request; print(urllib.request.urlopen('http://{}:{}/status', timeout=5).status)"


@pytest.fixture(scope="module")
def desk() -> Iterator[Notebook]:
    """A notebook with a cluster of two workers."""
    with Workspace(start_delay_s=0.5) as workspace:
        session = workspace.open_session()
        notebook = Notebook(workspace, session, session.kernel(), workspace.launch_foreign(session))
        notebook.run("%load_ext cml_dask_magics\n%dask_up 2 --env 'SECRET=s3 {cret} $HOME'")
        yield notebook
        notebook.run("%dask_down")
        assert not workspace.alive() and notebook.bystander in workspace.alive(foreign=True)


def test_status_shows_the_address_of_every_workers_session(desk: Notebook) -> None:
    shown = desk.status()
    truth = {session.id: session.address for session in desk.workspace.sessions()}
    for session in [shown["scheduler"], *shown["workers"]]:
        assert session["ip_address"] == truth[session["session"]]
        assert session["address"].startswith(f"tls://{truth[session['session']]}:")
        assert session["state"] == "running"
    assert shown["scheduler"]["address"].endswith(":8786")
    text = desk.run("%dask_status --text")
    assert all(worker["ip_address"] in text for worker in shown["workers"])


def test_the_dashboard_answers_in_the_schedulers_session_and_nowhere_else(desk: Notebook) -> None:
    shown = desk.status()
    scheduler, address = shown["scheduler"]["session"], shown["scheduler"]["ip_address"]
    inside = desk.workspace.exec_in(scheduler, ["python3", "-c", FETCH.format("127.0.0.1", 8090)])
    assert inside.stdout.strip() == "200", inside.stderr
    if desk.workspace.isolation == "namespaces":
        outside = desk.session.python(FETCH.format(address, 8090))
        assert outside.returncode != 0 and "refused" in outside.stderr
        worker = shown["workers"][0]
        listening = "import psutil; print({c.laddr.ip for c in psutil.net_connections() if c.status == 'LISTEN'})"
        addresses = eval(desk.workspace.exec_in(worker["session"], ["python3", "-c", listening]).stdout)
        assert addresses <= {worker["ip_address"], "127.0.0.1"}
    assert shown["dashboard_link"] == f"https://{scheduler}.ml-sim.example.site/status"
    assert desk.run("print(cluster.dashboard_link)").strip() == shown["dashboard_link"]


def test_strangers_on_the_network_cannot_talk_to_the_scheduler(desk: Notebook) -> None:
    address = desk.status()["scheduler"]["address"].removeprefix("tls://")
    stranger = f"from distributed import Client; print(Client({address!r}, timeout=3).run(len, 'x'))"
    assert desk.session.python(stranger).returncode != 0


def test_the_users_environment_reaches_the_workers_and_no_command_line(desk: Notebook) -> None:
    assert desk.run("import os\nprint(*set(client.run(os.getenv, 'SECRET').values()))").strip() == "s3 {cret} $HOME"
    for session in desk.workspace.alive():
        assert not any("s3 {cret}" in " ".join(argv) for argv in desk.workspace.processes(session).values())
    assert "cret}" not in desk.run("%dask_status --json") + desk.run("%dask_status --logs")


def test_logs_show_what_every_session_printed(desk: Notebook) -> None:
    shown = desk.status()
    logs = desk.run("%dask_status --logs")
    assert all(session in logs for session in (shown["scheduler"]["session"], shown["workers"][0]["session"]))
    one = desk.run(f"%dask_status --logs {shown['workers'][0]['session']}")
    assert "Registered to" in one and "Scheduler at" not in one
