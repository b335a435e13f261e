"""A person's notebook in the simulated workspace."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from workspace import Kernel, Session, Workspace


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

    def new_kernel(self, folder: Path | None = None, **environment: str) -> str:
        """Another kernel in the same session, in a folder of the shared home; what loading the extension said."""
        self.kernel = self.session.kernel(env=environment, folder=folder)
        return self.run("%load_ext cml_dask_magics")
