"""Fixtures of all tests: a state folder of their own, a shell, and a notebook in the simulated workspace.

Whatever a test does, it ends with the same checks: no session of ours is alive, every other session is.
"""

from __future__ import annotations

import contextlib
import resource
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dask
import pytest
from IPython.core.interactiveshell import InteractiveShell

pytest.register_assert_rewrite("contract", "support")  # they say what they saw, as tests do

from support.notebook import Notebook
from support.state_folder import local_sessions
from workspace import Workspace

from cml_dask_magics.magics.kernel_clusters import kernel_clusters
from cml_dask_magics.platforms.local import LocalSessions


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let pytest-xdist's groups count: since 9.2 pytest does not look where pytest-xdist 3.8 puts their names.

    Without this, what shares a cluster would run in several processes, and start it in each.
    """
    for item in items:
        grouped = vars(item).get("_nodeid")
        if grouped is not None and item.nodeid != grouped:
            item._id = type(item._id).parse(grouped)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Tell why a test was tried again: that it then passed is no reason not to know."""
    for report in terminalreporter.stats.get("rerun", []):
        terminalreporter.section(f"tried again: {report.nodeid} ({report.when})", sep="_")
        terminalreporter.write_line(report.longreprtext)


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A state folder for clusters of this machine; at the end, none of their processes may be left."""
    folder = tmp_path / "state"
    # For this process, which has read Dask's configuration, and for those that it starts.
    monkeypatch.setenv("DASK_CML_DASK_MAGICS__STATE_DIRECTORY", str(folder))
    with dask.config.set({"cml-dask-magics.state-directory": str(folder)}):
        yield folder
        platform = local_sessions(folder)
        for name in kernel_clusters.names(folder):
            kernel_clusters.down(folder, name)
    left = [session["id"] for session in platform.list_workers() if session["status"] == "running"]
    platform.stop_workers(*left)
    assert not left, "sessions outlived the test"


@pytest.fixture
def full_disk() -> Callable[[], contextlib.AbstractContextManager[None]]:
    """Files cannot grow while it is entered: what a full quota does to a writer."""

    @contextlib.contextmanager
    def entered() -> Iterator[None]:
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    return entered


@dataclass(frozen=True)
class HeldUp:
    """What was asked for, and goes on when it may."""

    asked: threading.Event
    goes_on: threading.Event


@pytest.fixture
def slow_stop(monkeypatch: pytest.MonkeyPatch) -> HeldUp:
    """Stopping sessions of this machine takes as long as the test says."""
    held_up, real = HeldUp(threading.Event(), threading.Event()), LocalSessions.stop_workers

    def stop_workers(platform: LocalSessions, *ids: Any) -> Any:
        held_up.asked.set()
        held_up.goes_on.wait(60)
        return real(platform, *ids)

    monkeypatch.setattr(LocalSessions, "stop_workers", stop_workers)
    return held_up


@pytest.fixture
def shell(state: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[InteractiveShell]:
    """A terminal's IPython with the extension loaded."""
    # It puts its own in the place of this module, and processes that a later test spawns could not be started.
    monkeypatch.setitem(sys.modules, "__main__", sys.modules["__main__"])
    shell = InteractiveShell.instance()
    shell.run_line_magic("load_ext", "cml_dask_magics")
    yield shell
    shell.run_line_magic("unload_ext", "cml_dask_magics")
    shell.reset(new_session=False)
    InteractiveShell.clear_instance()


@pytest.fixture(scope="session")
def workspace() -> Iterator[Workspace]:
    """One simulated workspace for all tests."""
    with Workspace(start_delay_s=0.5) as workspace:
        yield workspace


@pytest.fixture
def notebook(workspace: Workspace) -> Iterator[Notebook]:
    """A notebook with the extension loaded, in a session of its own and with an empty registry."""
    session = workspace.open_session()
    kernel = session.kernel()
    notebook = Notebook(workspace, session, kernel, workspace.launch_foreign(session))
    notebook.run("%load_ext cml_dask_magics")
    yield notebook
    workspace.clear_faults()
    if not notebook.kernel.alive:
        notebook.kernel = session.kernel()
    notebook.kernel.run("%load_ext cml_dask_magics\n%dask_down --all", timeout=120)
    left, bystanders = workspace.alive(), workspace.alive(foreign=True)
    session.close()
    assert not left, "sessions outlived the test"
    assert notebook.bystander in bystanders, "a session that is not ours was stopped"
    assert not workspace.calls("stop_without_ids")
