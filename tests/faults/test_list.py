"""Listing goes wrong: it fails, answers nonsense, or shows too little or too much."""

from __future__ import annotations

import pytest
from support.faulty import Faulty
from support.state_folder import private

pytestmark = pytest.mark.workspace


@pytest.fixture
def notebook(shared_notebook: Faulty) -> Faulty:
    """These tests leave the kernel alone."""
    return shared_notebook


def await_listings(notebook: Faulty, n: int) -> None:
    """Wait until the kernel has looked at `n` more listings."""
    before = len(notebook.calls("list"))
    notebook.workspace.wait_until(lambda: len(notebook.calls("list")) >= before + n, timeout=60)


def live_through(notebook: Faulty, fault: str) -> None:
    """A whole life in which no listing is to be had, until some seconds into the stopping."""
    notebook.workspace.fault(fault)
    notebook.run("%dask_up 2")
    await_listings(notebook, 6)
    notebook.compute()
    shown = notebook.status()
    assert shown["state"] == "running" and [worker["state"] for worker in shown["workers"]] == ["running"] * 2
    down = notebook.kernel.run_nowait("%dask_down")
    notebook.workspace.wait_until(lambda: not notebook.living())
    await_listings(notebook, 2)
    assert (private(notebook.state) / "clusters" / "default" / "record.json").exists(), (
        "forgotten, and nobody saw it end"
    )
    notebook.workspace.clear_faults()
    down = notebook.kernel.wait(down, timeout=60)
    assert down.error is None and "Stopped cluster 'default': 3 sessions" in down.stdout
    assert len(notebook.launched()) == 3, "a session was taken for dead"


# 30 s are six listings of a quiet cluster; here they follow each other faster.


@pytest.mark.long
def test_exception_for_30_s(notebook: Faulty) -> None:
    """Nothing: the cluster starts, works, and is forgotten only when its sessions were seen to end."""
    live_through(notebook, "list_reset")


@pytest.mark.long
def test_html(notebook: Faulty) -> None:
    """The same."""
    live_through(notebook, "list_html")


@pytest.mark.long
def test_exception_for_good(notebook: Faulty) -> None:
    """`%dask_down` says that it cannot see the sessions end, and keeps the record; later it can be repeated."""
    notebook.run("%dask_up 1")
    notebook.workspace.fault("list_reset")
    said = notebook.fail("%dask_down")
    assert "2 of its sessions did not stop" in said and "list_workers failed: RemoteDisconnected" in said
    notebook.workspace.clear_faults()
    assert "Stopped" in notebook.run("%dask_down")


@pytest.mark.long
def test_one_session_missing_once(notebook: Faulty) -> None:
    """Nothing: it is not taken for dead."""
    notebook.run("%dask_up 2")
    worker, _ = notebook.running("worker")
    (scheduler,) = notebook.running("scheduler")
    for session in (worker, scheduler):
        notebook.workspace.fault("list_missing", times=1, ids=[session])
        await_listings(notebook, 3)
    shown = notebook.status()
    assert shown["state"] == "running" and [one["state"] for one in shown["workers"]] == ["running"] * 2
    assert not notebook.tells(worker) and len(notebook.launched()) == 3
    notebook.compute()
    notebook.run("%dask_down")


@pytest.mark.long
def test_unknown_status(notebook: Faulty) -> None:
    """Nothing: a word of tomorrow means neither ready nor dead; Dask knows better."""
    notebook.workspace.fault("list_unknown_status", word="reticulating")
    notebook.run("%dask_up 2")
    await_listings(notebook, 3)
    notebook.compute()
    shown = notebook.status()
    assert shown["state"] == "running" and [worker["state"] for worker in shown["workers"]] == ["running"] * 2
    notebook.workspace.clear_faults()
    notebook.run("%dask_down")


@pytest.mark.long
def test_missing_fields(notebook: Faulty) -> None:
    """Nothing: what the platform does not say, Dask knows."""
    notebook.workspace.configure(bare_list=True)
    notebook.run("%dask_up 2")
    truth = {session.id: session.address for session in notebook.workspace.sessions()}
    assert all(worker["ip_address"] == truth[worker["session"]] for worker in notebook.status()["workers"])
    notebook.run("%dask_down")


@pytest.mark.long
def test_5000_entries(notebook: Faulty) -> None:
    """Nothing: of all those sessions, ours are found, followed and stopped."""
    notebook.workspace.fault("list_foreign", count=5000)
    notebook.run("%dask_up 2")
    notebook.compute()
    assert {worker["session"] for worker in notebook.status()["workers"]} == set(notebook.running("worker"))
    assert "3 sessions" in notebook.run("%dask_down")
