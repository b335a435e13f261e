"""A session goes wrong: it dies, early or late, is cut off, or does not know its address."""

from __future__ import annotations

import time

import pytest
from support.faulty import Faulty

pytestmark = pytest.mark.workspace


@pytest.fixture
def notebook(shared_notebook: Faulty) -> Faulty:
    """These tests leave the kernel alone."""
    return shared_notebook


def test_dies_before_running(notebook: Faulty) -> None:
    """An error that names it; nothing runs."""
    notebook.workspace.fault("session_fails_before_running", code='session.py" worker', times=1, status="timedout")
    said = notebook.fail("%dask_up 2")
    (dead,) = [session.id for session in notebook.launched() if session.status == "timedout"]
    assert f"session {dead} (worker) ended (timedout) before its worker connected; it printed nothing" in said


def test_dies_after_running_before_dask(notebook: Faulty) -> None:
    """The same."""
    notebook.workspace.fault("session_dies_before_code", code='session.py" worker', times=1)
    said = notebook.fail("%dask_up 2")
    (dead,) = [session.id for session in notebook.launched() if session.status == "failed"]
    assert f"session {dead} (worker) ended (failed) before its worker connected" in said


@pytest.mark.long
def test_running_with_an_unknown_address(notebook: Faulty) -> None:
    """Nothing: Dask knows the address, and the status shows it."""
    notebook.workspace.fault("session_address_unknown")
    notebook.run("%dask_up 1")
    notebook.compute()
    (worker,) = notebook.launched("worker")
    shown = notebook.status()["workers"][0]
    assert (shown["state"], shown["ip_address"]) == ("running", worker.address)
    notebook.run("%dask_down")


@pytest.mark.long
def test_killed_for_memory_in_the_middle_of_a_computation(notebook: Faulty) -> None:
    """The computation goes on and finishes; the status says which session died, how, why, and what took its place."""
    notebook.run("%dask_up 2")
    notebook.start_computing()
    victim, _ = notebook.running("worker")
    notebook.workspace.end_session(victim, "failed")
    notebook.finish_computing()
    notebook.await_told(f"session {victim} was ended by the platform (failed)", "--memory")
    notebook.await_healthy(2, without=[victim])
    notebook.await_told(victim, "in place of", notebook.running("worker")[-1])
    assert notebook.status()["requested"] == 2 and len(notebook.launched()) == 4
    notebook.run("%dask_down")


@pytest.mark.long
def test_goes_over_its_memory_with_a_process_that_a_task_started(notebook: Faulty) -> None:
    """No nanny sees that, the platform does: the status says that it ended the session, why, and what helps."""
    if not notebook.workspace.memory_limits:
        pytest.skip("memory can be limited only where control groups can be made")
    notebook.run("%dask_up 1 --memory 1")
    (victim,) = notebook.running("worker")
    greed = "x = b'x' * 1_200_000_000; import time; time.sleep(60)"
    notebook.run(f"import subprocess, sys\nargv = [sys.executable, '-c', {greed!r}]")
    notebook.run("future = client.submit(subprocess.run, argv, key='greed')")
    notebook.await_told(
        f"session {victim} was ended by the platform (failed), as happens to one that goes over its memory",
        "1 task runs again: give workers more memory (--memory) or smaller pieces",
    )
    notebook.run("future.cancel()")
    notebook.run("%dask_down")


@pytest.mark.long
def test_what_takes_its_place_dies_before_dask_again_and_again(notebook: Faulty) -> None:
    """After three in a row no more are launched; the status says why, and `%dask_up` tries again."""
    notebook.run("%dask_up 1")
    notebook.workspace.fault("session_dies_before_code", code='session.py" worker')
    notebook.workspace.end_session(notebook.running("worker")[0], "failed")
    notebook.await_told("3", "no more are launched")
    time.sleep(2)
    assert len(notebook.launched()) == 2 + 3 and notebook.status()["state"] == "degraded"
    notebook.workspace.clear_faults()
    notebook.run("%dask_up")
    notebook.compute()
    notebook.await_healthy(1)
    notebook.run("%dask_down")


def test_scheduler_dies_while_starting(notebook: Faulty) -> None:
    """An error that names it; nothing runs."""
    run = notebook.kernel.run_nowait("%dask_up 2")
    (scheduler,) = notebook.workspace.wait_until(lambda: notebook.running("scheduler"))
    notebook.workspace.end_session(scheduler, "failed")
    run = notebook.kernel.wait(run, timeout=90)
    assert run.error is not None and run.error.ename == "RuntimeError"
    assert f"session {scheduler} (scheduler) ended (failed) before the cluster was ready" in run.error.evalue


@pytest.mark.long
def test_scheduler_dies_while_computing(notebook: Faulty) -> None:
    """The cluster is shown as lost, its workers' sessions end; the next `%dask_up` starts it anew, as it was."""
    notebook.run("%dask_up 1 --cpu 3")
    notebook.start_computing(100)
    notebook.workspace.end_session(notebook.running("scheduler")[0], "failed")
    notebook.workspace.wait_until(lambda: notebook.status()["state"] == "lost", timeout=60)
    notebook.workspace.wait_until(lambda: not notebook.living(), timeout=60)
    notebook.run("%dask_up")
    notebook.compute()
    assert [worker["nthreads"] for worker in notebook.status()["workers"]] == [3]
    notebook.run("%dask_down")


@pytest.mark.long
def test_all_workers_die(notebook: Faulty) -> None:
    """New ones take their place, and the computation finishes."""
    notebook.run("%dask_up 2")
    notebook.start_computing()
    victims = notebook.running("worker")
    for victim in victims:
        notebook.workspace.end_session(victim, "failed")
    for victim in victims:
        notebook.await_told(victim, "failed")
    notebook.finish_computing()
    notebook.await_healthy(2, without=victims)
    notebook.run("%dask_down")


# With `hasty_network`, 20 s of the 30 after which a connection is given up become 5 of 12. (What was lost on a network
# is sent again after 0.2 s, then after twice as long each time: at 6 s here, at 25 s there.)


@pytest.mark.long
def test_cut_off_from_the_scheduler_for_20_s(hasty_network: None, fresh_notebook: Faulty) -> None:
    """Nothing but the delay: the same worker works on, in the same session."""
    notebook = fresh_notebook
    if notebook.workspace.isolation != "namespaces":
        pytest.skip("a network can be cut only where namespaces can be made")
    notebook.run("%dask_up 2")
    notebook.start_computing(30)
    workers = notebook.running("worker")
    notebook.workspace.cut_network(workers[0])
    time.sleep(5)
    notebook.workspace.heal_network(workers[0])
    notebook.finish_computing(30)
    shown = notebook.status()
    assert shown["state"] == "running" and {worker["session"] for worker in shown["workers"]} == set(workers)
    assert len(notebook.launched()) == 3
    notebook.run("%dask_down")


@pytest.mark.long
def test_cut_off_from_the_scheduler_for_good(hasty_network: None, fresh_notebook: Faulty) -> None:
    """The computation finishes on the others; the status says that the worker left, and another takes its place."""
    notebook = fresh_notebook
    if notebook.workspace.isolation != "namespaces":
        pytest.skip("a network can be cut only where namespaces can be made")
    notebook.run("%dask_up 2")
    notebook.status()
    notebook.start_computing(10)
    victim, _ = notebook.running("worker")
    notebook.workspace.cut_network(victim)
    notebook.finish_computing(10)
    notebook.await_told(victim)
    notebook.await_healthy(2, without=[victim])
    notebook.run("%dask_down")
