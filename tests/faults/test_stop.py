"""Stopping goes wrong: it is refused, ignored, breaks, or takes for ever."""

from __future__ import annotations

import pytest
from support.faulty import Faulty

pytestmark = pytest.mark.workspace


@pytest.fixture
def notebook(shared_notebook: Faulty) -> Faulty:
    """These tests leave the kernel alone."""
    return shared_notebook


def stop_in_vain(notebook: Faulty, fault: str, words: str) -> None:
    """One of three sessions cannot be stopped: it is named with the reason, kept on record, and can be stopped later.

    It is the scheduler's: a worker would end by itself.
    """
    notebook.run("%dask_up 2")
    (stubborn,) = notebook.running("scheduler")
    notebook.workspace.fault(fault, sessions=[stubborn])
    said = notebook.fail("%dask_down")
    assert "1 of its sessions did not stop" in said and stubborn in said and words in said and "%dask_down" in said
    assert notebook.living() == [stubborn]
    shown = notebook.status()
    assert shown["state"] == shown["scheduler"]["state"] == "stopping" and shown["scheduler"]["session"] == stubborn
    notebook.workspace.clear_faults()
    assert "Stopped cluster 'default'" in notebook.run("%dask_down")


@pytest.mark.long
def test_500(notebook: Faulty) -> None:
    """An error that names the session and the answer; it stays on record, and `%dask_down` can be run again."""
    stop_in_vain(notebook, "stop_error", "HTTP 500")


def test_204_but_lives_on(notebook: Faulty) -> None:
    """The same, with what the platform shows instead."""
    stop_in_vain(notebook, "stop_ignored", "the platform took the stop, but still shows it as running")


@pytest.mark.long
def test_exception(notebook: Faulty) -> None:
    """The same, with what broke."""
    stop_in_vain(notebook, "stop_reset", "stop_workers failed: RemoteDisconnected")


@pytest.mark.long
def test_goes_wrong_for_a_while(notebook: Faulty) -> None:
    """Nothing: it is asked again."""
    notebook.run("%dask_up 1")
    for fault in ("stop_error", "stop_ignored", "stop_reset"):
        notebook.workspace.fault(fault, times=2)
    assert "Stopped cluster 'default': 2 sessions" in notebook.run("%dask_down")


# A stop of 20 s is one that takes longer than the pause after which it is repeated: 5 s, in these kernels 0.5 s.
@pytest.mark.long
def test_takes_20_s(notebook: Faulty) -> None:
    """It takes longer; then everything has ended."""
    notebook.run("%dask_up 1")
    notebook.workspace.fault("stop_slow", delay_s=2)
    assert "Stopped cluster 'default': 2 sessions" in notebook.run("%dask_down")


def test_takes_20_s_and_is_interrupted(notebook: Faulty) -> None:
    """What is still up stays on record; the next `%dask_down` finishes."""
    notebook.run("%dask_up 1")
    notebook.workspace.fault("stop_slow", delay_s=2)
    run = notebook.kernel.run_nowait("%dask_down")
    notebook.workspace.wait_until(lambda: notebook.calls("stop"))
    notebook.kernel.interrupt()
    run = notebook.kernel.wait(run, timeout=60)
    assert run.error is not None and run.error.ename == "KeyboardInterrupt"
    notebook.workspace.clear_faults()
    notebook.run("%dask_down")
