"""Starting and ending the processes of one session, in its own namespaces where there are any."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

from . import processes
from .memory import Group, join_command
from .network import Network, Place, pod_command

HERE = Path(__file__).resolve().parent


class Pod:
    """The running processes of one session; gone for good once `ended` is set."""

    def __init__(
        self,
        network: Network,
        place: Place,
        session: str,
        root: Path,
        environment: dict[str, str],
        home: str,
        argv: list[str],
        group: Group | None = None,
        look: str = "host",
    ) -> None:
        self._network = network
        self._place = place
        self._session = session
        self._folder = root / "pods" / session
        self._group = group
        self.ended = threading.Event()
        self.exit_status: int | None = None
        self.out_of_memory = False
        self._prepare(environment)
        if group:
            (self._folder / "memory.sh").write_text(group.view_script(look, self._folder))
        network.attach(place)
        isolated = network.isolation == "namespaces"
        enter = [*join_command(self.group_path), *pod_command(place)] if isolated else []
        init = [sys.executable, "-S", "-E", str(HERE / "pod_init.py"), network.isolation, session, *argv]
        with (root / "output" / session).open("wb") as output:
            self._process = subprocess.Popen(
                [*enter, *init],
                stdin=subprocess.PIPE,
                stdout=output,  # of the pod's processes, their errors, too; what enters the pod has the server's log
                cwd=home,
                env=environment,
                start_new_session=True,
                bufsize=0,
            )
        self.init_pid = self._find_init() if isolated else self._process.pid

    @property
    def group_path(self) -> str:
        """The session's control group; empty where it has none."""
        return str(self._group.path) if self._group else ""

    @property
    def memory_limit(self) -> int:
        """The bytes above which the session is killed; 0 where there is no such limit."""
        return self._group.limit if self._group else 0

    def await_furnished(self, timeout_s: float = 10.0) -> None:
        """Block until commands from outside can enter the pod; its own command starts only then in any case."""
        deadline = time.monotonic() + timeout_s
        while not (self._folder / "ready").exists():
            if time.monotonic() > deadline or self._process.poll() is not None:
                raise RuntimeError(f"the pod of session {self._session} did not come up")
            time.sleep(0.002)

    def wait(self) -> None:
        """Block until every process of the pod is dead, then take its namespace away."""
        self.exit_status = self._process.wait()
        if self._network.isolation == "processes":
            processes.kill_environment("CDSW_ENGINE_ID", self._session)
        if self._group:
            self.out_of_memory = self._group.ran_out()
            self._group.remove()
        self._network.detach(self._place)
        shutil.rmtree(self._folder, ignore_errors=True)
        self.ended.set()

    def terminate(self, grace_s: float) -> None:
        """Ask every process to end, then kill what is left after `grace_s`."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(b"T")
        except OSError:
            return
        if not self.ended.wait(grace_s):
            self.kill()

    def kill(self) -> None:
        """SIGKILL every process of the pod."""
        if self._network.isolation == "processes":
            processes.kill_environment("CDSW_ENGINE_ID", self._session)
        elif self._process.poll() is None:
            processes.send(self.init_pid, signal.SIGKILL)

    def _prepare(self, environment: dict[str, str]) -> None:
        (self._folder / "tmp").mkdir(parents=True, exist_ok=True)
        hosts = f"127.0.0.1 localhost\n{self._place.address} {self._session}\n"
        (self._folder / "hosts").write_text(hosts)
        (self._folder / "resolv.conf").write_text("")
        environment["SIM_POD_FOLDER"] = str(self._folder)
        environment["TMPDIR"] = str(self._folder / "tmp")

    def _find_init(self) -> int:
        """Return process 1 of the pod as this machine numbers it: the only child of `unshare`."""
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline and self._process.poll() is None:
            found = processes.children(self._process.pid)
            if found:
                return found[0]
            time.sleep(0.002)
        return self._process.pid


def session_argv(python: str, root: Path, session: str, code: str, notices: str) -> list[str]:
    """Write the session's code and what is printed before it where they are found; return the command that runs it."""
    folder = root / "pods" / session
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "code.py"
    file.write_text(code)
    file.chmod(0o600)
    (folder / "notices").write_text(notices)
    return [python, str(HERE / "session_main.py"), str(file)]
