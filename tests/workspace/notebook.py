"""A session that a person opened: runs commands and notebook kernels inside it."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

from .kernel import Kernel
from .memory import join_command

if TYPE_CHECKING:
    from .truth import SessionTruth
    from .workspace import Workspace


class Session:
    """A handle on one session of a workspace, opened by a person or launched."""

    def __init__(self, workspace: Workspace, identity: str) -> None:
        self.workspace = workspace
        self.id = identity
        self._kernels: list[Kernel] = []

    @property
    def truth(self) -> SessionTruth:
        """The session as it really is."""
        return self.workspace.session(self.id)

    @property
    def address(self) -> str:
        """The session's own address."""
        return self.truth.address

    def exec(
        self, argv: list[str], timeout: float = 60.0, env: dict[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run a command in the session, in the shared home, and return what it printed and its exit status."""
        command, environment = self.command(argv)
        return subprocess.run(
            command,
            env={**environment, **(env or {})},
            cwd=self.workspace.home,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    def python(self, code: str, timeout: float = 60.0) -> subprocess.CompletedProcess[str]:
        """Run Python code in the session with the session's interpreter."""
        return self.exec([self.truth.python, "-c", code], timeout=timeout)

    def kernel(self, env: dict[str, str] | None = None, folder: Path | None = None) -> Kernel:
        """Start a notebook kernel in the session; there may be several, one after the other or side by side.

        It works in `folder`, as one whose notebook lies there; in the shared home by default.
        """
        kernel = Kernel(self, env or {}, folder or self.workspace.home)
        self._kernels.append(kernel)
        return kernel

    def close(self) -> None:
        """End the session as its owner does; what it launched ends with it. Returns when they are over."""
        self.workspace.end_session(self.id, "stopped", hard=False)

        def over() -> bool:
            mine = [one for one in self.workspace.sessions() if self.id in (one.id, one.launched_by)]
            return not any(one.alive for one in mine)

        self.workspace.wait_until(over)
        self.reap()

    def reap(self) -> None:
        """Let go of the kernels, now that they are dead."""
        for kernel in self._kernels:
            kernel.reap()
        self._kernels.clear()

    def command(self, argv: list[str], folder: Path | None = None) -> tuple[list[str], dict[str, str]]:
        """Return what runs `argv` inside the session, as leader of a process group, and its environment."""
        truth = self.truth
        if not truth.init_pid or not truth.alive:
            raise RuntimeError(f"session {self.id} is {truth.status}: nothing can run in it")
        settled = ["sh", "-c", 'cd "$0" && exec "$@"', str(folder or self.workspace.home), *argv]
        if self.workspace.isolation == "processes":
            return ["setsid", "--wait", *settled], truth.environment
        enter = ["nsenter", f"--target={truth.init_pid}", "--net", "--pid", "--mount", "--uts", "--ipc"]
        return [*join_command(truth.memory_group), *enter, "setsid", "--wait", *settled], truth.environment
