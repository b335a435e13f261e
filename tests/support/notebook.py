"""A person's notebook in the simulated workspace."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workspace import Kernel, Session, Workspace

# Of the timeout, a cell has as much as it needs until so many workers are there; then it is over.
RUN_OUT = """
import time
from cml_dask_magics.cluster.start import Start
async def wait_for(self, n, deadline, *rest, real=Start.wait_for, **more):
    await real(self, {ready}, deadline, *rest, **more)
    await real(self, n, time.monotonic() + 1, *rest, **more)
Start.wait_for = wait_for
"""
RUN_OUT_NO_MORE = "Start.wait_for = wait_for.__kwdefaults__['real']"


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

    def status(self, name: str = "") -> dict[str, Any]:
        """What ``%dask_status --json`` says of the one cluster."""
        (cluster,) = json.loads(self.run(f"%dask_status {name} --json"))["clusters"]
        return dict(cluster)

    def new_kernel(self, folder: Path | None = None, **environment: str) -> str:
        """Another kernel in the same session, in a folder of the shared home; what loading the extension said."""
        self.kernel = self.session.kernel(env=environment, folder=folder)
        return self.run("%load_ext cml_dask_magics")

    @contextlib.contextmanager
    def running_out_of_time(self, ready: int) -> Iterator[None]:
        """Starts time out when so many workers are connected, however long that takes."""
        self.run(RUN_OUT.format(ready=ready))
        yield
        self.run(RUN_OUT_NO_MORE)
