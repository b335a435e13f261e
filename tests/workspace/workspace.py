"""A simulated workspace as a test holds it: opens sessions, switches faults, and knows what is really alive."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import uuid
import warnings
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

from . import processes
from .control import Control, ControlError
from .leftovers import remove_leftovers, remove_workspace
from .network import NetworkError
from .notebook import Session
from .settings import Limits, Settings
from .truth import Call, SessionTruth

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parent.parent
_warned = False


class Workspace:
    """A platform of its own, with its own network; use it as a context manager.

    Parameters
    ----------
    module : {"cml", "cdsw", "none"}
        Which Workers API sessions can import.
    isolation : {"auto", "namespaces", "processes"}
        "auto" takes namespaces where they can be made.
    python : str, optional
        The interpreter of sessions; the one that runs the test by default.
    python_path : sequence of path, optional
        Folders that sessions can import from; the repository's root by default.
    environment : dict, optional
        More variables for every session.
    seed : int, optional
        Makes ids, orders and delays the same each time.
    memory_limits : bool
        Whether sessions have memory limits where control groups can be made; the attribute says whether they have.
    **settings
        What `configure` takes.
    """

    def __init__(
        self,
        *,
        module: str = "cml",
        isolation: str = "auto",
        python: str | None = None,
        python_path: list[str | Path] | None = None,
        environment: dict[str, str] | None = None,
        **settings: Any,
    ) -> None:
        remove_leftovers()
        self.name = f"simws-{uuid.uuid4().hex[:8]}"
        self.root = Path("/tmp", self.name) if Path("/tmp").is_dir() else Path(tempfile.gettempdir(), self.name)
        self.root = Path(os.path.realpath(self.root))  # a short one: the length of unix sockets' paths is limited
        self.home = self.root / "home"
        for folder in (self.root, self.home, self.root / "pods", self.root / "output"):
            folder.mkdir(mode=0o700)
        (self.root / "owner").write_text(str(os.getpid()))
        modules = {"cml": [HERE / "platform"], "cdsw": [HERE / "platform_cdsw"], "none": []}[module]
        folders = [HERE / "nfs", HERE / "client", *modules, *(python_path or [REPOSITORY])]
        self._settings = Settings(
            name=self.name,
            root=str(self.root),
            home=str(self.home),
            python=python or sys.executable,
            isolation=isolation,  # type: ignore[arg-type]
            module=module,  # type: ignore[arg-type]
            python_path=tuple(str(folder) for folder in folders),
            environment=dict(environment or {}),
        ).changed(settings)
        self._sessions: list[Session] = []
        self._closed = False
        self._server = self._start()
        ready = self._read_ready()
        self.isolation: str = ready["isolation"]
        self.memory_limits: bool = ready["memory_limits"]
        self._control = Control(str(self.root / "socket"))
        self._warn_once(isolation, ready["why"])

    # -- the notebook side -------------------------------------------------------------------------------------------

    def open_session(self, python: str | None = None) -> Session:
        """Open a session as a person does; it is ready at once and can run kernels and commands."""
        identity = self._control.call("open_session", python=python or self._settings.python)
        session = Session(self, identity)
        self._sessions.append(session)
        return session

    def exec_in(self, session: str, argv: list[str], timeout: float = 60.0) -> subprocess.CompletedProcess[str]:
        """Run a command inside a running session, and return what it printed and its exit status."""
        return Session(self, session).exec(argv, timeout=timeout)

    # -- faults and settings -----------------------------------------------------------------------------------------

    def fault(
        self,
        name: str,
        times: int | None = None,
        skip: int = 0,
        sessions: list[str] | None = None,
        code: str = "",
        **options: Any,
    ) -> None:
        """Switch a fault of `faults.KNOWN` on: after `skip` chances, `times` times (None: until cleared).

        A fault that strikes a launch can be kept to sessions whose `code` contains a word.
        """
        self._control.call("fault", name=name, times=times, skip=skip, sessions=sessions, code=code, options=options)

    def clear_faults(self, name: str | None = None) -> None:
        """Switch one fault off, or all."""
        self._control.call("clear_faults", name=name)

    def configure(self, **changes: Any) -> None:
        """Change settings from now on.

        Parameters
        ----------
        start_delay_s, start_jitter : float
            Seconds from launch to running, and the part of it by which it varies (0.2: 20 % up or down).
        address_delay_s : float
            Seconds that a running session's address stays unknown.
        stop_grace_s : float
            Seconds between SIGTERM and SIGKILL.
        nfs_negative_s : float
            Seconds for which a missing file stays missing; 0 for a well-behaved file system.
        app_url_slash, bare_list : bool
            Whether `app_url` ends in a slash; whether the list shows `id` and `status` only.
        app_url_scheme : {"https", "http"}
            What `app_url` begins with.
        quota, capacity : Limits
            Launches above the quota are refused; sessions above the capacity stay `scheduling`.
        user_quota : Limits
            Sessions above it stay `scheduling`, too; opened sessions count. `ON_PREMISES` is what a user usually has.
        opened_cpu, opened_memory : float
            The size of sessions that a person opens.
        memory_look : {"host", "v1", "v2"}
            Where sessions see their memory limit: as this machine has it, or as the other version of control groups.
        release : {"oldest", "newer", "named", "newest"}
            Which keywords `launch_workers` has; the older module `cdsw` always has those of the oldest.
        notices : str
            What the runtime prints in a launched session before its code prints anything.
        """
        plain = {name: dict(vars(value)) if isinstance(value, Limits) else value for name, value in changes.items()}
        self._control.call("configure", changes=plain)

    def end_session(self, session: str, status: str = "failed", hard: bool = True) -> None:
        """Make the platform end a session: `failed` (out of memory), `timedout`, `stopped`; `hard` is SIGKILL."""
        self._control.call("end_session", session=session, status=status, hard=hard)

    def kill_process(self, session: str, containing: str) -> list[int]:
        """SIGKILL the session's processes whose command line contains a word; return their pids."""
        found = [pid for pid, argv in self.processes(session).items() if containing in " ".join(argv)]
        for pid in found:
            processes.send(pid, 9)
        return found

    def cut_network(self, session: str) -> None:
        """Pull the session's network cable; raises NetworkError where there are no namespaces."""
        self._set_link(session, up=False)

    def heal_network(self, session: str) -> None:
        """Put the cable back."""
        self._set_link(session, up=True)

    # -- the truth ---------------------------------------------------------------------------------------------------

    def launch_foreign(
        self,
        session: Session | str | None = None,
        code: str = "!sleep 3600",
        cpu: float = 0.5,
        memory: float = 0.5,
        **launch: Any,
    ) -> str:
        """Launch a session that the package under test did not, of the same person's session; return its id."""
        caller = session.id if isinstance(session, Session) else session or self._sessions[0].id
        request = {"code": code, "cpu": cpu, "memory": memory, **launch}
        identity: str = self._control.call("launch", caller=caller, foreign=True, request=request)
        return identity

    def sessions(self) -> list[SessionTruth]:
        """Return every session that ever was, the oldest first, as it really is."""
        return [SessionTruth(**{**one, "pids": tuple(one["pids"])}) for one in self._control.call("sessions")]

    def session(self, session: str) -> SessionTruth:
        """Return one session as it really is."""
        return next(one for one in self.sessions() if one.id == session)

    def alive(self, foreign: bool = False) -> list[str]:
        """Return the ids of launched sessions that live or are pending; those of `launch_foreign` only if asked for."""
        return [one.id for one in self.sessions() if one.launched_by and one.alive and (foreign or not one.foreign)]

    def processes(self, session: str) -> dict[int, list[str]]:
        """Return the living processes of a session, with their command lines."""
        return {pid: processes.command(pid) for pid in self.session(session).pids}

    def output(self, session: str) -> str:
        """Return what a session printed: the API never shows it."""
        return (self.root / "output" / session).read_text(errors="replace") if self._has_output(session) else ""

    def calls(self, call: str | None = None) -> list[Call]:
        """Return the requests to the Workers API so far, all or those of one kind."""
        every = [Call(**{**one, "ids": tuple(one["ids"])}) for one in self._control.call("calls")]
        return [one for one in every if call is None or one.call == call]

    def wait_until(self, condition: Callable[[], Any], timeout: float = 60.0, interval: float = 0.05) -> Any:
        """Return the condition's first true value; raises TimeoutError."""
        deadline = time.monotonic() + timeout
        while True:
            value = condition()
            if value:
                return value
            if time.monotonic() > deadline:
                states = ", ".join(f"{one.id}: {one.status}" for one in self.sessions())
                raise TimeoutError(f"not so within {timeout} s; sessions: {states}")
            time.sleep(interval)

    # -- beginning and end -------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Kill every process, delete every namespace, control group and file; may be called again."""
        if self._closed:
            return
        self._closed = True
        try:
            self._control.call("close", timeout_s=20)
        except (OSError, ControlError, ValueError):
            self._server.terminate()
        try:
            self._server.wait(30)
        except subprocess.TimeoutExpired:
            self._server.kill()
            self._server.wait()
        for stream in (self._server.stdin, self._server.stdout):
            if stream is not None:
                stream.close()
        remove_workspace(self.name)
        for session in self._sessions:
            session.reap()
        shutil.rmtree(self.root, ignore_errors=True)

    def __enter__(self) -> Workspace:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _start(self) -> subprocess.Popen[str]:
        settings = self.root / "settings.json"
        settings.write_text(self._settings.to_json())
        package = __package__ or "workspace"
        top = HERE.parents[package.count(".")]
        with (self.root / "server.log").open("wb") as log:
            return subprocess.Popen(
                [sys.executable, "-m", f"{package}.server", str(settings)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                cwd=top,
                env={"PATH": os.environ.get("PATH", os.defpath), "LANG": "C.UTF-8", "PYTHONPATH": str(top)},
                start_new_session=True,
            )

    def _read_ready(self) -> dict[str, Any]:
        assert self._server.stdout is not None
        line = self._server.stdout.readline()
        if not line:
            self._server.wait()
            log = (self.root / "server.log").read_text()
            remove_workspace(self.name)
            shutil.rmtree(self.root, ignore_errors=True)
            raise NetworkError(f"the workspace's server did not start:\n{log}")
        ready: dict[str, Any] = json.loads(line)
        return ready

    def _warn_once(self, isolation: str, why_no_limits: str) -> None:
        """Say what was asked for and cannot be had, once a process."""
        global _warned
        if _warned:
            return
        if self.isolation == "processes" and isolation == "auto":
            lacking = "network namespaces cannot be made here: sessions share 127.0.0.1 and the list of processes, and "
            lacking += "their memory has no limits"
        elif self.isolation == "namespaces" and self._settings.memory_limits and not self.memory_limits:
            lacking = f"control groups cannot be made here: the memory of sessions has no limits ({why_no_limits})"
        else:
            return
        _warned = True
        warnings.warn(lacking, stacklevel=3)

    def _has_output(self, session: str) -> bool:
        return (self.root / "output" / session).exists()

    def _set_link(self, session: str, up: bool) -> None:
        if self.isolation == "processes":
            raise NetworkError("a session's network can be cut only where namespaces can be made")
        self._control.call("set_link", session=session, up=up)
