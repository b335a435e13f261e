"""The platform's four calls over processes of this machine.

A session is a process tree that outlives the kernel. A file with its process id and start time lets a later kernel find
it, and tells it from another process that got the same id. Machines may share the files: what runs on another one is
listed as its file says, and otherwise left alone.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import signal
import socket
import string
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import psutil

from cml_dask_magics.model.record import SESSION
from cml_dask_magics.registry.files import listed, make_parents, named, read_private, remove, write_private
from cml_dask_magics.registry.kernels import is_this_machine

_KEEP_ENDED_S = 3600.0
_NOT_OURS = (FileNotFoundError, PermissionError, IsADirectoryError)  # or removed meanwhile
_ID_ALPHABET = string.ascii_lowercase + string.digits


@dataclass(frozen=True)
class Response:
    """The answer to one stop, like the platform's HTTP response: 204 on success."""

    status_code: int
    text: str = ""


@dataclass(frozen=True)
class _Process:
    """A session as its file stores it. Times are seconds since the epoch; files of older releases have no `host`."""

    id: str
    pid: int
    pid_started: str
    created_at: float
    cpu: float
    memory: float
    app_url: str
    host: str = ""
    stopped_at: float | None = None
    finished_at: float | None = None

    @property
    def is_elsewhere(self) -> bool:
        """Whether it is another machine's, which alone can tell how it is."""
        return self.host != "" and not is_this_machine(self.host)

    def process(self) -> psutil.Process | None:
        """The session's process on this machine; None once it has ended."""
        if self.is_elsewhere:
            return None
        with contextlib.suppress(psutil.Error):
            process = psutil.Process(self.pid)
            if _start_of(process) == self.pid_started and _runs(process):
                return process
        return None


class LocalSessions:
    """`api.WorkersAPI` over processes of this machine.

    Parameters
    ----------
    directory : Path
        Holds a file for each session, and its output.
    grace_s : float
        How long a session that is told to end may take before it is killed.
    address : str
        The address of this machine that sessions listen on.
    app_url : str, optional
        Where a browser finds what a session serves on ``CDSW_READONLY_PORT``; on that port of this machine by default.
    environment : mapping of str to str, optional
        More variables for all of them; the ports that they serve on, otherwise a free one each, may be among them.
    """

    def __init__(
        self,
        directory: Path,
        grace_s: float = 3.0,
        address: str = "127.0.0.1",
        app_url: str | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.directory = directory
        self._grace_s = grace_s
        self._address = address
        self._app_url = app_url
        self._environment = environment or {}

    def launch_workers(
        self,
        n: int,
        cpu: float,
        memory: float,
        nvidia_gpu: int = 0,  # noqa: ARG002 - processes share this machine's GPUs
        kernel: str = "python3",  # noqa: ARG002
        script: str = "",
        code: str = "",
        env: Mapping[str, str] | None = None,
        **_: Any,
    ) -> list[dict[str, Any]]:
        """Start `n` processes that run `code` (Python, or a shell command after ``!``) or the file `script`.

        Keywords that only a platform has a meaning for, such as ``accelerator_label_id``, change nothing.

        Returns
        -------
        list of dict
            One for each session; if its process could not be started, with ``message`` and without ``id``.
        """
        try:
            make_parents(self.directory)
        except OSError as error:
            return [{"message": f"the folder for sessions cannot be used: {error}"} for _ in range(n)]
        self._forget_ended()
        return [self._launch(cpu, memory, _command(script, code), dict(env or {})) for _ in range(n)]

    def list_workers(self) -> list[dict[str, Any]]:
        """All sessions on file, including those that ended within the last hour."""
        return [self._describe(session) for session in self._sessions()]

    def await_workers(
        self, ids: Sequence[Any], wait_for_completion: bool = True, timeout_seconds: int = 60
    ) -> dict[str, list[dict[str, Any]]]:
        """Wait until sessions run, or until they have ended if `wait_for_completion`."""
        wanted = {_id_of(session) for session in ids}
        deadline = time.monotonic() + timeout_seconds
        while True:
            found = [session for session in self.list_workers() if session["id"] in wanted]
            done = [session for session in found if not wait_for_completion or session["status"] != "running"]
            if len(done) == len(wanted) or time.monotonic() > deadline:
                return {"workers": done, "failures": [session for session in found if session not in done]}
            time.sleep(0.1)

    def stop_workers(self, *worker_id: Any) -> list[Response]:
        """End sessions and everything that they started; kills what still runs after three seconds.

        Unlike the platform's, a call without ids stops nothing.
        """
        wanted = [_id_of(session) for session in worker_id]
        sessions = {session.id: session for session in self._sessions()}
        found = [sessions[session_id] for session_id in wanted if session_id in sessions]
        stopped = [session for session in found if not session.is_elsewhere]
        for session in stopped:
            if session.process() is not None:
                self._write(replace(session, stopped_at=time.time()))
        _end_trees(stopped, self._grace_s)
        return [_answer_to_stop(sessions.get(session_id)) for session_id in wanted]

    def _launch(self, cpu: float, memory: float, argv: list[str], env: dict[str, str]) -> dict[str, Any]:
        session_id = "".join(secrets.choice(_ID_ALPHABET) for _ in range(16))
        ports = {name: str(_free_port()) for name in ("CDSW_APP_PORT", "CDSW_READONLY_PORT", "CDSW_PUBLIC_PORT")}
        environment = {
            **os.environ,
            # As on the platform, where `!dask ...` finds the command that belongs to the kernel's packages.
            "PATH": os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath))),
            "CDSW_MASTER_ID": os.environ.get("CDSW_ENGINE_ID", ""),
            "CDSW_MASTER_IP": "127.0.0.1",
            "CDSW_DOMAIN": "localhost",
            "CDSW_PROJECT_ID": "local",
            **ports,
            **self._environment,
            **env,
            "CDSW_ENGINE_ID": session_id,
            "CDSW_IP_ADDRESS": self._address,
        }
        output = self.directory / f"{session_id}.out"
        try:
            with os.fdopen(os.open(output, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "wb") as file:
                # A new process session, so that it survives the kernel and a Ctrl-C in its terminal.
                process = subprocess.Popen(
                    argv, env=environment, stdin=subprocess.DEVNULL, stdout=file, stderr=file, start_new_session=True
                )
        except (OSError, ValueError) as error:  # ValueError: a NUL in an argument or in the environment
            self._remove(output.name)
            return {"message": f"the process could not be started: {error}"}
        # Reap the process, or it stays a zombie for as long as this kernel lives.
        threading.Thread(target=process.wait, name=f"reap-{session_id}", daemon=True).start()
        app_url = self._app_url
        if app_url is None:
            app_url = f"http://127.0.0.1:{environment['CDSW_READONLY_PORT']}/"
        try:
            started = _start_of(psutil.Process(process.pid))
        except psutil.Error:  # already ended
            started = ""
        session = _Process(
            id=session_id,
            pid=process.pid,
            pid_started=started,
            created_at=time.time(),
            cpu=cpu,
            memory=memory,
            app_url=app_url,
            host=socket.gethostname(),
        )
        try:
            self._write(session)
        except OSError as error:  # without its file, nobody could stop it
            _end_trees([session], self._grace_s)
            return {"message": f"the session could not be recorded: {error}"}
        return self._describe(session)

    def _describe(self, session: _Process) -> dict[str, Any]:
        alive = session.finished_at is None if session.is_elsewhere else session.process() is not None
        if not alive and session.finished_at is None:
            # As on the platform, what the command started ends with it.
            _end_trees([session], self._grace_s)
            session = replace(session, finished_at=time.time())
            with contextlib.suppress(OSError):  # only the end time is lost
                self._write(session)
        ended = "stopped" if session.stopped_at else "succeeded"
        return {
            "id": session.id,
            "status": "running" if alive else ended,
            "ip_address": self._address,
            "app_url": session.app_url,
            "created_at": _iso(session.created_at),
            "running_at": _iso(session.created_at),
            "finished_at": None if alive else _iso(session.finished_at or time.time()),
            "cpu": session.cpu,
            "memory": session.memory,
        }

    def _sessions(self) -> list[_Process]:
        """The sessions on file. What cannot be read just now is an error: one that is missing counts as ended."""
        sessions = []
        for path in (Path(entry) for entry in listed(self.directory) if entry.name.endswith(".json")):
            with contextlib.suppress(*_NOT_OURS, ValueError, TypeError, RecursionError):
                session = _Process(**json.loads(read_private(path)))
                # The id is used in file names and must not lead out of the folder.
                if session.id == path.stem and SESSION.fullmatch(session.id):
                    sessions.append(session)
        return sessions

    def _write(self, session: _Process) -> None:
        write_private(self.directory / f"{session.id}.json", json.dumps(asdict(session)))

    def _forget_ended(self) -> None:
        for session in self._sessions():
            if session.finished_at and time.time() - session.finished_at > _KEEP_ENDED_S:
                self._remove(f"{session.id}.json", f"{session.id}.out")

    def _remove(self, *names: str) -> None:
        # Above the package's own folder, links are allowed.
        with contextlib.suppress(OSError):  # old files do not keep us from launching
            remove(self.directory.parent.parent, self.directory, named(*names))


def _answer_to_stop(session: _Process | None) -> Response:
    if session is None:
        return Response(404, "no such session")
    if session.is_elsewhere and session.finished_at is None:
        return Response(409, f"it is a process of machine {session.host}")
    return Response(204)


def _start_of(process: psutil.Process) -> str:
    """When a process started, as text that does not change when the clock is set."""
    try:
        # Field 22 of proc(5)'s stat, in ticks since boot; the name in field 2 may hold spaces and brackets.
        ticks = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[19]
        return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()}:{ticks}"
    except OSError:  # not Linux, or ended
        return f"{process.create_time():.2f}"


def _command(script: str, code: str) -> list[str]:
    if code.startswith("!"):
        return ["/bin/sh", "-c", code[1:]]
    ipython = [sys.executable, "-m", "IPython", "--no-banner", "--HistoryManager.enabled=False"]
    return [*ipython, script] if script else [*ipython, "-c", code]


def _end_trees(sessions: Sequence[_Process], grace_s: float) -> None:
    """End the processes of sessions, grandchildren that left the tree included: asked first, killed when they stay."""
    for ask in (signal.SIGTERM, signal.SIGKILL):
        members = _members(sessions)
        for process in members:
            with contextlib.suppress(psutil.Error):
                process.send_signal(ask)
        deadline = time.monotonic() + grace_s
        while any(map(_runs, members)) and time.monotonic() < deadline:
            time.sleep(0.02)
        # Look again: a nanny may have started a worker in the meantime.
        if not _members(sessions):
            return


def _runs(process: psutil.Process) -> bool:
    """Whether a process is alive and not a zombie."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def _members(sessions: Sequence[_Process]) -> list[psutil.Process]:
    """All processes of the sessions: descendants inherit the session's id in their environment."""
    ids = {session.id for session in sessions}
    if not ids:
        return []
    members = {process.pid: process for session in sessions if (process := session.process()) is not None}
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.environ().get("CDSW_ENGINE_ID") in ids and process.status() != psutil.STATUS_ZOMBIE:
                members[process.pid] = process
    members.pop(os.getpid(), None)
    return list(members.values())


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _id_of(session: Any) -> str:
    return str(session["id"] if isinstance(session, Mapping) else session)


def _iso(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, timezone.utc).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
