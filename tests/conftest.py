"""What the tests share: a state folder of their own, a shell, and a notebook in the simulated workspace.

Whatever a test does, it ends with the same checks: no session of ours is alive, every other session is.
"""

from __future__ import annotations

import contextlib
import resource
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import dask
import pytest
from IPython.core.interactiveshell import InteractiveShell
from workspace import Kernel, Session, Workspace

from cml_dask_magics.magics.kernel_clusters import kernel_clusters
from cml_dask_magics.model.settings import PRIVATE_FOLDER
from cml_dask_magics.platforms.local import LocalSessions


def private(state: Path) -> Path:
    """The folder of this package in a state folder."""
    return state / PRIVATE_FOLDER


def local_sessions(state: Path) -> LocalSessions:
    """The processes of this machine that clusters of a state folder run in."""
    return LocalSessions(private(state) / "local-sessions")


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


@pytest.fixture
def shell(state: Path) -> Iterator[InteractiveShell]:
    """A terminal's IPython with the extension loaded."""
    shell = InteractiveShell.instance()
    shell.run_line_magic("load_ext", "cml_dask_magics")
    yield shell
    shell.run_line_magic("unload_ext", "cml_dask_magics")
    shell.reset(new_session=False)
    InteractiveShell.clear_instance()


@dataclass
class Notebook:
    """A person's notebook in a CML session, beside a session of the same person that is none of our business."""

    workspace: Workspace
    session: Session
    kernel: Kernel
    bystander: str

    def run(self, code: str, timeout: float = 120.0) -> str:
        """Run a cell that must succeed; what it printed."""
        run = self.kernel.run(code, timeout=timeout)
        assert run.error is None, f"{run.error}\n{run.stdout}\n{run.stderr}"
        return run.stdout

    def fail(self, code: str, timeout: float = 120.0) -> str:
        """Run a cell that must fail with the extension's RuntimeError; what it says."""
        run = self.kernel.run(code, timeout=timeout)
        assert run.error is not None, f"it succeeded: {run.stdout}"
        assert run.error.ename == "RuntimeError", run.error
        return run.error.evalue

    def new_kernel(self, folder: Path | None = None, **environment: str) -> None:
        """Another kernel in the same session, in a folder of the shared home, with the extension loaded."""
        self.kernel = self.session.kernel(env=environment, folder=folder)
        self.run("%load_ext cml_dask_magics")


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
