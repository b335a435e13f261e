"""Launching goes wrong: a refusal, a page of HTML, a broken connection, a call that takes for ever."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest
from support.faulty import Faulty

pytestmark = pytest.mark.workspace


@pytest.fixture
def notebook(shared_notebook: Faulty) -> Faulty:
    """These tests leave the kernel alone."""
    return shared_notebook


def test_all_refused(notebook: Faulty) -> None:
    """An error with the platform's own words; nothing runs."""
    notebook.workspace.fault("launch_refused", message="quota of 8 cores exceeded")
    said = notebook.fail("%dask_up 2")
    assert said.count("quota of 8 cores exceeded") == 3 and "default" in said
    assert "No cluster" in notebook.run("%dask_status")


def test_some_refused(notebook: Faulty) -> None:
    """The same; the sessions that were granted have been stopped."""
    notebook.workspace.fault("launch_refused", code='session.py" worker', skip=2, message="no such profile")
    said = notebook.fail("%dask_up 3")
    assert said.count("no such profile") == 1 and "a session for a worker was refused" in said
    assert len(notebook.launched()) == 3


def test_some_refused_while_scaling(notebook: Faulty) -> None:
    """An error with the platform's own words; the cluster stays as it was, and works."""
    notebook.run("%dask_up 1")
    notebook.workspace.fault("launch_refused", skip=1, times=1, message="quota of 3 sessions exceeded")
    said = notebook.fail("%dask_up 4")
    assert "quota of 3 sessions exceeded" in said
    assert len(notebook.living()) == 2 and notebook.status()["requested"] == 1
    notebook.compute()
    notebook.run("%dask_down")


@pytest.mark.parametrize("fault", ["launch_html", "launch_html_after_creation"])
def test_html(notebook: Faulty, fault: str) -> None:
    """An error on one line instead of a page; nothing runs."""
    notebook.workspace.fault(fault, times=1)
    said = notebook.fail("%dask_up 2")
    assert "refused: JSONDecodeError" in said and "<html>" not in said
    # One that had not begun to print, because the machine is slow, ends as soon as it finds the cluster gone.
    notebook.workspace.wait_until(lambda: not notebook.living(), timeout=60)


# Sessions of ours have all the time that they need to print something; what others never print is not waited for long.
OURS_HAVE_TIME = """
import time
from cml_dask_magics.fleet.orphans import Orphans
def wait_for_suspects(self, suspects, record, deadline, real=Orphans.wait_for_suspects):
    ours = set(suspects) - set({others!r})
    return real(self, ours, record, deadline) or real(self, suspects, record, min(deadline, time.monotonic() + 2))
Orphans.wait_for_suspects = wait_for_suspects
"""
ALL_HAVE_TIME = "Orphans.wait_for_suspects = wait_for_suspects.__defaults__[0]"


@contextlib.contextmanager
def only_ours_have_time(notebook: Faulty) -> Iterator[None]:
    """Ending a cluster waits no longer than 2 s for words of sessions that are not ours."""
    notebook.run(OURS_HAVE_TIME.format(others=notebook.others))
    yield
    notebook.run(ALL_HAVE_TIME)


def test_exception_after_sessions_were_created(notebook: Faulty) -> None:
    """An error; the sessions that nobody has an id for are found by what they print, and stopped."""
    notebook.workspace.fault("launch_reset_after_creation", times=1)
    with notebook.patient(), only_ours_have_time(notebook):
        said = notebook.fail("%dask_up 3")
    assert "refused: RemoteDisconnected" in said
    assert len(notebook.launched()) == 4


def test_exception_and_no_sessions_created(notebook: Faulty) -> None:
    """An error; nothing runs."""
    notebook.workspace.fault("launch_reset")
    assert "refused: RemoteDisconnected" in notebook.fail("%dask_up 3")
    assert not notebook.launched()


def test_engine_id_only(notebook: Faulty) -> None:
    """An error with the platform's own words; the session that it made all the same is stopped."""
    notebook.workspace.fault("launch_refused_after_creation", times=1, message="bad profile")
    assert "bad profile" in notebook.fail("%dask_up 2")
    assert len(notebook.launched()) == 3


# A launch call of 30 s is one that is still under way when its sessions run. Here sessions run after 0.5 s.
SLOW_S = 4.0


@pytest.mark.long
def test_takes_30_s(notebook: Faulty) -> None:
    """It takes longer; then the cluster is there."""
    notebook.workspace.fault("launch_slow", delay_s=SLOW_S)
    notebook.run("%dask_up 2")
    notebook.compute()
    notebook.run("%dask_down")


def test_takes_30_s_and_is_interrupted(notebook: Faulty) -> None:
    """The interrupt shows when the call has answered and everything that it launched was stopped."""
    notebook.workspace.fault("launch_slow", delay_s=SLOW_S)
    run = notebook.kernel.run_nowait("%dask_up 2")
    notebook.workspace.wait_until(lambda: len(notebook.living()) == 3)
    notebook.kernel.interrupt()
    run = notebook.kernel.wait(run, timeout=90)
    assert run.error is not None and run.error.ename == "KeyboardInterrupt"
    assert "every session that was launched for cluster 'default' has been stopped" in run.stderr


@pytest.mark.long
def test_takes_longer_than_the_timeout(notebook: Faulty) -> None:
    """An error when the call has answered; everything that it launched was stopped."""
    notebook.workspace.fault("launch_slow", delay_s=SLOW_S)
    said = notebook.fail(f"%dask_up 2 --timeout {SLOW_S / 4}s")
    assert "did not start" in said and len(notebook.launched()) == 3


def test_pending_for_ever(notebook: Faulty) -> None:
    """After the timeout, an error that says so; nothing stays pending."""
    notebook.workspace.fault("session_never_starts", code='session.py" worker')
    with notebook.running_out_of_time(ready=0):
        said = notebook.fail("%dask_up 2 --timeout 100s")
    assert "no worker connected within 100 s" in said
    assert said.count("was not started by the platform yet") == 2


def test_some_pending_for_ever(notebook: Faulty) -> None:
    """After the timeout, a warning that says how many are missing; the others work. Fewer can be asked for."""
    notebook.workspace.fault("session_never_starts", code='session.py" worker', times=1)
    with notebook.running_out_of_time(ready=1):
        run = notebook.kernel.run("%dask_up 2 --timeout 100s", timeout=120)
    assert run.error is None and "1 of 2 workers" in run.stderr
    shown = notebook.status()
    assert shown["state"] == "degraded"
    assert sorted(worker["state"] for worker in shown["workers"]) == ["pending", "running"]
    notebook.compute()
    busy = notebook.running()
    notebook.run("%dask_up 1")
    assert notebook.living() == busy and notebook.status()["state"] == "running"
    assert len(notebook.launched()) == 3, "what was withdrawn was replaced"
    notebook.compute()
    notebook.run("%dask_down")


@pytest.mark.long
def test_pending_for_ever_while_scaling(notebook: Faulty) -> None:
    """Asking for fewer withdraws what is pending, though another kernel asked for it."""
    notebook.run("%dask_up 1")
    notebook.workspace.fault("session_never_starts")
    notebook.run("%dask_up 3 --background")
    notebook.workspace.wait_until(lambda: len(notebook.living()) == 4)
    other = notebook.kernel_beside()
    run = other.run("%dask_up 1", timeout=90)
    assert run.error is None, run.error
    assert len(notebook.living()) == 2 and notebook.status()["requested"] == 1
    notebook.compute()
    other.shutdown()
    notebook.run("%dask_down")
