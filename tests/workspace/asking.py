"""A notebook whose cells call the Workers API in one line, for the tests of the workspace itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from .kernel import Kernel
from .notebook import Session
from .workspace import Workspace

SLEEP = "!sleep 600"


class Notebook:
    """A person's session with a kernel, for calls of the Workers API in one line."""

    def __init__(self, session: Session, folder: Path | None = None) -> None:
        self.session = session
        self.kernel: Kernel = session.kernel(folder=folder)
        self.kernel.run("import json, os\nfrom cml import workers_v1 as api")

    def ask(self, expression: str, timeout: float = 30.0) -> Any:
        """Return the expression's value as JSON gives it back, or raise AssertionError with the exception's name."""
        run = self.kernel.run(f"print(json.dumps({expression}, default=repr))", timeout)
        assert run.error is None, f"{run.error.ename}: {run.error.evalue}"
        return json.loads(run.stdout)

    def raises(self, expression: str) -> str:
        """Return the name of the exception that the expression raises."""
        run = self.kernel.run(expression)
        assert run.error is not None, f"nothing was raised by {expression}"
        return run.error.ename

    def launch(self, n: int = 1, code: str = SLEEP, memory: float = 1, **options: Any) -> list[dict[str, Any]]:
        """Launch sessions of half a core."""
        answer: list[dict[str, Any]] = self.ask(f"api.launch_workers({n}, 0.5, {memory}, code={code!r}, **{options!r})")
        return answer

    def listed(self) -> dict[str, dict[str, Any]]:
        """Return what the list shows, by id."""
        return {one["id"]: one for one in self.ask("api.list_workers()")}

    def stop(self, *ids: str) -> list[int]:
        """Stop by id and return the status codes."""
        codes: list[int] = self.ask(f"[r.status_code for r in api.stop_workers(*{ids!r})]")
        return codes


def running(workspace: Workspace, *ids: str) -> None:
    """Wait until the sessions' code runs: their pods hold a process beyond IPython."""

    def ready() -> bool:
        return all(any("sleep" in argv for argv in workspace.processes(one).values()) for one in ids)

    workspace.wait_until(ready)


def finished(workspace: Workspace, session: str) -> str:
    """Wait until the session has ended and return its status."""
    workspace.wait_until(lambda: not workspace.session(session).alive)
    return workspace.session(session).status
