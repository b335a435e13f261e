"""A real notebook kernel inside a session, and what the cells that it ran have shown."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import time
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jupyter_client.blocking.client import BlockingKernelClient

from . import processes

if TYPE_CHECKING:
    from .notebook import Session

PORTS = ("shell_port", "iopub_port", "stdin_port", "control_port", "hb_port")


class KernelDiedError(RuntimeError):
    """The kernel ended while something was asked of it."""


@dataclass(frozen=True)
class CellError:
    """The exception that a cell showed."""

    ename: str
    evalue: str
    traceback: str


@dataclass
class Run:
    """One executed cell: what it showed so far; complete once `done`."""

    msg_id: str
    stdout: str = ""
    stderr: str = ""
    error: CellError | None = None
    displays: list[dict[str, Any]] = field(default_factory=list)  # the newest version of each, by mime type
    updates: int = 0
    messages: list[dict[str, Any]] = field(default_factory=list)
    idle: bool = False
    replied: bool = False
    _by_display_id: dict[str, int] = field(default_factory=dict)

    @property
    def done(self) -> bool:
        """Whether the kernel has finished the cell."""
        return self.idle and self.replied

    @property
    def text(self) -> str:
        """Everything that the cell showed, as text."""
        shown = [str(display.get("text/plain", "")) for display in self.displays]
        return "\n".join(part for part in (self.stdout, self.stderr, *shown) if part)

    def take(self, message: dict[str, Any]) -> None:
        """Note one message of the kernel."""
        self.messages.append(message)
        kind, content = message["msg_type"], message["content"]
        if kind == "stream":
            setattr(self, content["name"], getattr(self, content["name"]) + content["text"])
        elif kind == "error":
            trace = "\n".join(content["traceback"])
            self.error = CellError(content["ename"], content["evalue"], trace)
        elif kind in ("display_data", "execute_result", "update_display_data"):
            self._display(kind, content)
        elif kind == "status" and content["execution_state"] == "idle":
            self.idle = True
        elif kind in ("execute_reply", "comm_info_reply"):
            self.replied = True

    def _display(self, kind: str, content: dict[str, Any]) -> None:
        display_id = content.get("transient", {}).get("display_id")
        if kind == "update_display_data":
            self.updates += 1
            if display_id in self._by_display_id:
                self.displays[self._by_display_id[display_id]] = content["data"]
            return
        if display_id:
            self._by_display_id[display_id] = len(self.displays)
        self.displays.append(content["data"])


class Kernel:
    """A kernel process in a session, spoken to over unix sockets: they cross the border of a network namespace."""

    def __init__(self, session: Session, env: dict[str, str], folder: Path) -> None:
        self._session = session
        sockets = session.workspace.root / "k"
        sockets.mkdir(exist_ok=True)
        stem = sockets / uuid.uuid4().hex[:8]
        connection: Any = {
            "transport": "ipc",
            "ip": str(stem),
            "key": uuid.uuid4().hex,
            "signature_scheme": "hmac-sha256",
            "kernel_name": "python3",
            **{name: number for number, name in enumerate(PORTS, 1)},
        }
        file = stem.with_suffix(".json")
        file.write_text(json.dumps(connection))
        command, environment = session.command(
            [session.truth.python, "-Xfrozen_modules=off", "-m", "ipykernel_launcher", "-f", str(file)], folder
        )
        self._log = stem.with_suffix(".log")
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                command,
                env={**environment, **env},
                cwd=session.workspace.home,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._marker = str(file)
        self._runs: dict[str, Run] = {}
        self.comms: dict[str, dict[str, Any]] = {}  # the state of each widget, by its comm's id
        self._client: BlockingKernelClient | None = BlockingKernelClient()
        self._client.load_connection_info(connection)
        self._client.start_channels()
        try:
            self._await_ready()
        except BaseException:
            self.disconnect()
            raise

    @property
    def alive(self) -> bool:
        """Whether the kernel's process lives."""
        return self._process.poll() is None

    @property
    def pid(self) -> int:
        """The kernel's process, as this machine numbers it."""
        for pid in self._session.truth.pids:
            argv = processes.command(pid)
            if self._marker in argv and "ipykernel_launcher" in argv and argv[0] not in ("sh", "setsid", "nsenter"):
                return pid
        raise KernelDiedError(f"the kernel is gone; it said: {self.log()}")

    def run(self, code: str, timeout: float = 60.0) -> Run:
        """Run a cell and return what it showed; raises TimeoutError and leaves the cell running."""
        return self.wait(self.run_nowait(code), timeout)

    def run_nowait(self, code: str) -> Run:
        """Send a cell, and return what will fill as `wait` or `pump` receive what it shows."""
        run = Run(self._channels.execute(code, allow_stdin=False))
        self._runs[run.msg_id] = run
        return run

    def wait(self, run: Run, timeout: float = 60.0) -> Run:
        """Receive until the cell is finished."""
        deadline = time.monotonic() + timeout
        while not run.done:
            self._receive(0.05)
            if not run.done and not self.alive:
                raise KernelDiedError(f"the kernel died; it said: {self.log()}")
            if time.monotonic() > deadline:
                raise TimeoutError(f"the cell takes longer than {timeout} s; it showed: {run.text!r}")
        return run

    def pump(self, seconds: float) -> None:
        """Receive for a while: what cells show after they have finished."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            self._receive(min(0.05, seconds))

    def send_comm(self, comm_id: str, data: dict[str, Any]) -> Run:
        """Send to a widget as the browser does, for instance `{"method": "custom", "content": {"event": "click"}}`."""
        client = self._channels
        message = client.session.msg("comm_msg", {"comm_id": comm_id, "data": data})
        client.shell_channel.send(message)
        run = Run(message["header"]["msg_id"], replied=True)  # comm messages have no reply
        self._runs[run.msg_id] = run
        return run

    def interrupt(self) -> None:
        """Interrupt as a notebook's stop button does: SIGINT to the kernel and all of its process group."""
        os.killpg(os.getpgid(self.pid), signal.SIGINT)

    def kill(self) -> None:
        """SIGKILL the kernel's process and nothing else: its session lives on."""
        processes.send(self.pid, signal.SIGKILL)
        self._process.wait(10)
        self.disconnect()

    def shutdown(self, timeout: float = 20.0) -> None:
        """Ask the kernel to end as a notebook's restart does, and wait until it has."""
        self._channels.shutdown()
        self._process.wait(timeout)
        self.disconnect()

    def log(self) -> str:
        """Return what the kernel's process printed past its cells."""
        return self._log.read_text(errors="replace")

    def disconnect(self) -> None:
        """Close the channels; the kernel runs on."""
        if self._client is not None:
            self._client.stop_channels()
            self._client = None

    def reap(self, timeout: float = 5.0) -> None:
        """Let go of a kernel whose session was ended."""
        self.disconnect()
        try:
            self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    @property
    def _channels(self) -> BlockingKernelClient:
        if self._client is None:
            raise KernelDiedError("the kernel was killed or shut down")
        return self._client

    def _await_ready(self) -> None:
        """Wait until the kernel answers; the first request may be lost while its sockets are made."""
        deadline = time.monotonic() + 60
        client = self._channels
        while time.monotonic() < deadline:
            run = Run(client.kernel_info(), replied=True)
            self._runs[run.msg_id] = run
            for _ in range(20):
                self._receive(0.05)
                if run.idle:
                    return
                if not self.alive:
                    raise KernelDiedError(f"the kernel did not start; it said: {self.log()}")
        raise TimeoutError(f"the kernel does not answer; it said: {self.log()}")

    def _receive(self, timeout: float) -> None:
        """Take in what has come: output first, waiting for it, then replies."""
        client = self._channels
        wait_s = timeout
        while True:
            try:
                self._sort(client.get_iopub_msg(timeout=wait_s))
            except queue.Empty:
                break
            wait_s = 0
        while True:
            try:
                self._sort(client.get_shell_msg(timeout=0))
            except queue.Empty:
                break

    def _sort(self, message: dict[str, Any]) -> None:
        content = message["content"]
        if message["msg_type"] == "comm_open":
            self.comms[content["comm_id"]] = dict(content["data"].get("state", {}))
        elif message["msg_type"] == "comm_msg" and content["data"].get("method") == "update":
            self.comms.setdefault(content["comm_id"], {}).update(content["data"].get("state", {}))
        elif message["msg_type"] == "comm_close":
            self.comms.pop(content["comm_id"], None)
        run = self._runs.get(message["parent_header"].get("msg_id", ""))
        if run is not None:
            run.take(message)
