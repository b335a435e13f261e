"""The kernel goes wrong: it is interrupted, killed, restarted, not alone, or its clock is wrong."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from typing import Any

import pytest
from support.faulty import Faulty
from support.state_folder import private

pytestmark = [pytest.mark.long, pytest.mark.workspace]

# Moments of a start: what is to be waited for, and seconds beyond.
MOMENTS: dict[str, tuple[Callable[[Faulty], object], float]] = {
    "before anything is launched": (lambda notebook: True, 0.02),
    "when the name is claimed": (lambda notebook: on_record(notebook), 0.0),
    "in the launch calls": (lambda notebook: on_record(notebook).get("launching"), 0.0),
    "while sessions are pending": (lambda notebook: len(notebook.living()) == 3, 0.1),
    "when sessions begin to run": (lambda notebook: notebook.running(), 0.0),
    "while Dask starts": (lambda notebook: len(notebook.running()) == 3, 0.3),
    "while the scheduler is being connected to": (lambda notebook: scheduler_is_up(notebook), 0.0),
    "while workers join": (lambda notebook: scheduler_is_up(notebook), 0.4),
}

NEGATIVE = re.compile(r"(?<![\w-])-\d")


def on_record(notebook: Faulty) -> dict[str, Any]:
    """What is on record of the cluster; empty if nothing is."""
    try:
        return dict(json.loads((private(notebook.state) / "clusters" / "default" / "record.json").read_text()))
    except FileNotFoundError:
        return {}


def scheduler_is_up(notebook: Faulty) -> bool:
    """Whether the scheduler has said where it listens."""
    return any(path.stat().st_size for path in private(notebook.state).glob("runs/*/scheduler.json"))


def test_interrupt_at_any_time_of_a_start(notebook: Faulty) -> None:
    """It either was up already, or nothing of it is left when the interrupt shows."""
    notebook.run("import cml_dask_magics.magics.kernel_clusters, cml_dask_magics.display.screens")
    for moment, (reached, beyond_s) in MOMENTS.items():
        run = notebook.kernel.run_nowait("%dask_up 2")
        # On a busy machine a short moment may pass unseen.
        notebook.workspace.wait_until(
            lambda reached=reached: reached(notebook) or on_record(notebook).get("state") == "running", interval=0.005
        )
        time.sleep(beyond_s)
        notebook.kernel.interrupt()
        run = notebook.kernel.wait(run, timeout=90)
        if run.error is None:
            notebook.run("%dask_down")
        else:
            assert run.error.ename == "KeyboardInterrupt", (moment, run.error)
            assert not notebook.living(), moment
            if on_record(notebook):  # between two lines of Python there is always room for an interrupt
                assert "on record" in run.stderr and not on_record(notebook)["sessions"], moment
                notebook.run("%dask_down")
            else:
                assert "has been stopped" in run.stderr or moment == "before anything is launched"


def test_interrupt_that_is_repeated_by_the_impatient(notebook: Faulty) -> None:
    """The stopping goes on behind their back, and the interrupt says so."""
    notebook.workspace.fault("stop_slow", delay_s=3)
    run = notebook.kernel.run_nowait("%dask_up 2")
    notebook.workspace.wait_until(lambda: len(notebook.running()) == 3)
    for _ in range(3):
        notebook.kernel.interrupt()
        time.sleep(0.7)
    run = notebook.kernel.wait(run, timeout=90)
    # One that comes while IPython formats the traceback of the one before makes it print a single line instead.
    shown = run.error.ename if run.error is not None else run.stderr.split()[-1]
    assert shown == "KeyboardInterrupt"
    assert "%dask_down default" in run.stderr or not notebook.living()
    notebook.workspace.wait_until(lambda: not notebook.living() and not on_record(notebook))


def test_interrupt_while_stopping(notebook: Faulty) -> None:
    """The stopping goes on, and the interrupt says so."""
    notebook.run("%dask_up 1")
    notebook.workspace.fault("stop_slow", delay_s=3)
    run = notebook.kernel.run_nowait("%dask_down")
    notebook.workspace.wait_until(lambda: notebook.calls("stop"))
    notebook.kernel.interrupt()
    run = notebook.kernel.wait(run, timeout=90)
    assert run.error is not None and run.error.ename == "KeyboardInterrupt"
    assert "still being stopped, in the background" in run.stderr
    notebook.workspace.wait_until(lambda: not notebook.living() and not on_record(notebook))
    assert "There is no cluster to stop" in notebook.run("%dask_down")


def test_interrupt_while_scaling(notebook: Faulty) -> None:
    """The cluster is as it was before."""
    notebook.run("%dask_up 1")
    before = set(notebook.living())
    notebook.workspace.configure(start_delay_s=5)
    run = notebook.kernel.run_nowait("%dask_up 3")
    notebook.workspace.wait_until(lambda: len(notebook.living()) == 4)
    notebook.kernel.interrupt()
    run = notebook.kernel.wait(run, timeout=90)
    assert run.error is not None and run.error.ename == "KeyboardInterrupt"
    assert set(notebook.living()) == before and notebook.status()["requested"] == 1
    notebook.compute()
    notebook.run("%dask_down")


@pytest.mark.parametrize("moment", ["in the launch calls", "while Dask starts"])
def test_killed_at_any_time_of_a_start(notebook: Faulty, moment: str) -> None:
    """The next kernel names the cluster, and stops every session of it, known or not."""
    reached, beyond_s = MOMENTS[moment]
    if moment == "in the launch calls":
        notebook.workspace.fault("launch_slow", delay_s=5)
    notebook.kernel.run_nowait("%dask_up 2")
    notebook.workspace.wait_until(lambda: reached(notebook), interval=0.005)
    time.sleep(beyond_s)
    notebook.kernel.kill()
    assert "default" in notebook.new_kernel()
    notebook.run("%dask_down")
    # A session whose id nobody knew, and that had not begun to print, ends as soon as it finds the cluster gone.
    notebook.workspace.wait_until(lambda: not notebook.living())


def test_killed_while_pending_and_started_anew(notebook: Faulty) -> None:
    """The next `%dask_up` clears what is left, and starts."""
    notebook.workspace.configure(start_delay_s=20)
    notebook.kernel.run_nowait("%dask_up 3")
    notebook.workspace.wait_until(lambda: len(notebook.living()) == 4)
    time.sleep(0.3)
    notebook.kernel.kill()
    left = notebook.living()
    notebook.new_kernel()
    notebook.workspace.configure(start_delay_s=0.5)
    notebook.run("%dask_up 1")
    assert not set(left) & set(notebook.living()) and len(notebook.living()) == 2
    notebook.compute()
    notebook.run("%dask_down")


def test_killed_while_computing(notebook: Faulty) -> None:
    """The next kernel names the cluster, re-attaches, and works on."""
    notebook.run("%dask_up 2")
    before = set(notebook.living())
    notebook.start_computing(100)
    notebook.kernel.kill()
    said = notebook.new_kernel()
    assert "default" in said and "%dask_up" in said and "%dask_down" in said and said.count("\n") == 1
    notebook.run("%dask_up")
    notebook.compute()
    assert set(notebook.living()) == before
    notebook.run("%dask_down")


def test_killed_while_stopping(notebook: Faulty) -> None:
    """The next kernel says that the cluster does not answer, and finishes."""
    notebook.run("%dask_up 1")
    notebook.workspace.fault("stop_slow", delay_s=3)
    notebook.kernel.run_nowait("%dask_down")
    notebook.workspace.wait_until(lambda: notebook.calls("stop"))
    notebook.kernel.kill()
    notebook.workspace.clear_faults()
    assert "not answering: default" in notebook.new_kernel()
    notebook.run("%dask_down")


def test_restart_then_each_magic(notebook: Faulty) -> None:
    """The cluster and its data are still there: to look at, to work and scale with, to stop."""
    notebook.run("%dask_up 2\nimport dask\ndata = client.persist(dask.delayed(sum)([40, 2]))")
    notebook.run("client.publish_dataset(data=data)")
    before = set(notebook.living())

    def restart() -> str:
        notebook.kernel.shutdown()
        said = notebook.new_kernel()
        assert "default" in said and "%dask_up" in said and "%dask_down" in said and said.count("\n") == 1
        return said

    restart()
    shown = notebook.status()
    assert shown["state"] == "running" and len(shown["workers"]) == 2
    assert all(session in notebook.run("%dask_status --logs") for session in before)
    restart()
    notebook.run("%dask_up")
    assert set(notebook.living()) == before
    assert notebook.run("print(client.get_dataset('data').compute())").strip() == "42"
    restart()
    notebook.run("%dask_up 3")
    assert before < set(notebook.living()) and len(notebook.living()) == 4
    restart()
    assert "Stopped cluster 'default': 4 sessions" in notebook.run("%dask_down")


def test_two_at_once_start_one_name(notebook: Faulty) -> None:
    """They share one cluster."""
    other = notebook.kernel_beside()
    first, second = notebook.kernel.run_nowait("%dask_up 1"), other.run_nowait("%dask_up 1")
    first, second = notebook.kernel.wait(first, 90), other.wait(second, 90)
    assert first.error is None and second.error is None, (first.error, second.error)
    assert len(notebook.launched()) == 2
    notebook.compute()
    other.shutdown()
    notebook.compute()
    notebook.run("%dask_down")


def test_two_at_once_stop(notebook: Faulty) -> None:
    """Both say that it was stopped, and neither complains."""
    notebook.run("%dask_up 1")
    other = notebook.kernel_beside()
    assert other.run("%dask_up").error is None
    first, second = notebook.kernel.run_nowait("%dask_down"), other.run_nowait("%dask_down")
    first, second = notebook.kernel.wait(first, 90), other.wait(second, 90)
    assert first.error is None and second.error is None, (first.error, second.error)
    other.shutdown()


@pytest.mark.parametrize("slow_s", [0, 3])
def test_two_at_once_one_starts_and_one_stops(notebook: Faulty, slow_s: float) -> None:
    """Stopping wins: the start says so, whether or not it looks before the record is gone, and nothing runs."""
    notebook.workspace.configure(start_delay_s=5)
    notebook.workspace.fault("stop_slow", times=1, delay_s=slow_s)
    start = notebook.kernel.run_nowait("%dask_up 2")
    notebook.workspace.wait_until(lambda: len(notebook.living()) == 3)
    other = notebook.kernel_beside()
    stop = other.run("%dask_down", timeout=90)
    start = notebook.kernel.wait(start, 90)
    assert stop.error is None and "Stopped cluster 'default'" in stop.stdout
    assert start.error is not None and start.error.ename == "RuntimeError", start.error
    assert "stopped" in start.error.evalue
    other.shutdown()


def test_two_at_once_hold_one_cluster(notebook: Faulty) -> None:
    """One of them heals it; when that one is killed, the other does."""
    notebook.run("%dask_up 2")
    other = notebook.kernel_beside()
    assert other.run("%dask_up").error is None
    for launched in (4, 5):
        before = set(notebook.living())
        victim = notebook.running("worker")[0]
        notebook.workspace.end_session(victim, "failed")
        notebook.workspace.wait_until(lambda: len(notebook.living() and notebook.running("worker")) == 2, timeout=60)
        time.sleep(3)  # time enough for the other one to do the same
        assert len(notebook.launched()) == launched and len(set(notebook.living()) - before) == 1
        if launched == 4:
            notebook.kernel.kill()
            notebook.kernel = other
    notebook.await_healthy(2)
    notebook.compute()
    notebook.run("%dask_down")


# Wherever a module of this kernel has the clock, by whatever name.
SET_BACK = """
import sys, time
def an_hour_ago(real=time.time):
    return real() - 3600
for module in list(sys.modules.values()):
    for name, value in list(getattr(module, "__dict__", {}).items()):
        if value is an_hour_ago.__defaults__[0]:
            setattr(module, name, an_hour_ago)
"""


def test_clock_set_back_an_hour(notebook: Faulty) -> None:
    """Nothing that makes no sense: no negative times, and the cluster is neither taken for dead nor for another."""
    notebook.run("%dask_up 1")
    notebook.run(SET_BACK)
    notebook.run("%dask_up 2")
    notebook.compute()
    shown = notebook.status()
    assert shown["state"] == "running" and min(shown["usage"].values()) >= 0 and (shown["idle_s"] or 0) >= 0
    assert not NEGATIVE.search(notebook.run("%dask_status --text"))
    notebook.kernel.shutdown()
    notebook.new_kernel()
    notebook.run(SET_BACK)
    notebook.run("%dask_up")
    notebook.compute()
    said = notebook.run("%dask_down")
    assert "Stopped cluster 'default': 3 sessions" in said and not NEGATIVE.search(said)


def test_clock_set_back_an_hour_before_a_worker_dies(notebook: Faulty) -> None:
    """Its session is replaced all the same."""
    notebook.run("%dask_up 1")
    notebook.run(SET_BACK)
    victim = notebook.running("worker")[0]
    notebook.workspace.end_session(victim, "failed")
    notebook.await_healthy(1, without=[victim])
    notebook.compute()
    notebook.run("%dask_down")
