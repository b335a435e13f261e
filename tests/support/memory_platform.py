"""The platform's four calls in memory, as mean as the platform can be; for tests that need no processes.

A `Workspace` holds the sessions of a project. `Workspace.caller("a")` is what session ``a`` imports as its Workers API:
it lists only what ``a`` launched, while stopping by id reaches every session of the project. Faults are attributes.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

HTML = "<!DOCTYPE html>\n<html><head><title>502 Bad Gateway</title></head>\n<body>" + "<p>nginx</p>\n" * 200 + "</body>"


@dataclass
class MemorySession:
    """One session as the platform knows it."""

    id: str
    caller: str
    number: int
    status: str = "scheduling"
    code: str = ""
    cpu: float = 0
    memory: float = 0
    nvidia_gpu: int = 0
    env: dict[str, str] = field(default_factory=dict)
    extra: dict[str, Any] = field(default_factory=dict)
    created_at: str = field(default_factory=lambda: time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()))

    @property
    def over(self) -> bool:
        return self.status in ("succeeded", "failed", "stopped", "timedout")


@dataclass
class Answer:
    """An HTTP response, as far as anybody looks at it."""

    status_code: Any
    text: str = ""


class Workspace:
    """A project's sessions, and what is wrong with the platform today.

    Attributes
    ----------
    first_status : str
        Of a session that was just launched.
    refuse : list
        One entry a session, taken from the front: a message to refuse it with, or ``(message, True)`` for a refused one
        that was created all the same; None for a session that is not refused.
    break_launch : tuple or None
        ``(how many sessions to create first, the exception)`` for the next call.
    launch_answer : Any
        What the next launch call answers instead of a list (its sessions exist).
    on_launch : callable
        Called in the middle of every launch call, when its sessions exist and their ids are not told yet.
    list_errors : list
        Exceptions or nonsense to answer listings with, taken from the front; ``list_down`` answers all of them.
    list_delay_s : float
        Seconds that a listing takes.
    hidden : dict
        Id to the number of listings that will still miss it.
    bare : bool
        Listings hold only what is sure: ``id`` and ``status``.
    stop_modes : dict
        Id to ``obey``, ``refuse`` (500), ``ignore`` (204, but it lives on) or ``slow`` (204, ends some listings later).
    stop_answers : callable or None
        Makes the answer to a stop from the list of responses.
    """

    def __init__(self) -> None:
        self.sessions: dict[str, MemorySession] = {}
        self.calls: list[tuple[str, str, Any]] = []
        self.first_status = "scheduling"
        self.refuse: list[Any] = []
        self.break_launch: tuple[int, Exception] | None = None
        self.launch_answer: Any = None
        self.on_launch: Callable[[list[str]], None] | None = None
        self.list_errors: list[Any] = []
        self.list_down: Exception | None = None
        self.list_delay_s = 0.0
        self.hidden: dict[str, int] = {}
        self.bare = False
        self.stop_modes: dict[str, str] = {}
        self.stop_answers: Callable[[list[Answer]], Any] = lambda responses: responses
        self._slow: dict[str, int] = {}
        self._numbers = itertools.count(1)
        self._lock = threading.RLock()

    def caller(self, session: str) -> MemoryAPI:
        """The Workers API as session `session` sees it."""
        return MemoryAPI(self, session)

    def add(self, caller: str, status: str = "running", **fields: Any) -> str:
        """A session that somebody launched without us."""
        with self._lock:
            number = next(self._numbers)
            # Ids whose order says nothing about the order of launching.
            session = MemorySession(f"s{(number * 7919) % 9973:04d}x{number}", caller, number, status, **fields)
            self.sessions[session.id] = session
            return session.id

    def set(self, status: str, *ids: str) -> None:
        """Let sessions (all that are not over, without ids) come to another status."""
        with self._lock:
            for session in self.sessions.values():
                if session.id in ids or (not ids and not session.over):
                    session.status = status

    def up(self, caller: str | None = None) -> list[str]:
        """Ids of the sessions that are not over."""
        with self._lock:
            return sorted(s.id for s in self.sessions.values() if not s.over and caller in (None, s.caller))

    def count(self, call: str) -> int:
        """How often a call was made."""
        with self._lock:
            return sum(name == call for _, name, _ in self.calls)


class MemoryAPI:
    """The four calls, made from one session."""

    def __init__(self, workspace: Workspace, session: str) -> None:
        self._workspace = workspace
        self._session = session

    def launch_workers(
        self,
        n: int,
        cpu: float,
        memory: float,
        nvidia_gpu: int = 0,
        kernel: str = "python3",
        script: str = "",
        code: str = "",
        env: dict[str, str] | None = None,
        accelerator_label_id: int | None = None,
    ) -> Any:
        workspace = self._workspace
        with workspace._lock:
            workspace.calls.append((self._session, "launch", n))
            broken, workspace.break_launch = workspace.break_launch, None
            answers: list[dict[str, Any]] = []
            created = []
            for _ in range(n if broken is None else broken[0]):
                refusal = workspace.refuse.pop(0) if workspace.refuse else None
                if refusal is not None and isinstance(refusal, str):
                    answers.append({"message": refusal, "code": 500})
                    continue
                session = workspace.add(
                    self._session,
                    workspace.first_status,
                    code=code,
                    cpu=cpu,
                    memory=memory,
                    nvidia_gpu=nvidia_gpu,
                    env=dict(env or {}),
                    extra={"accelerator_label_id": accelerator_label_id},
                )
                created.append(session)
                if refusal is not None:
                    answers.append({"message": refusal[0], "engineId": session})
                else:
                    answers.append(self._shown(workspace.sessions[session], launched=True))
        if workspace.on_launch is not None:
            workspace.on_launch(created)
        if broken is not None:
            raise broken[1]
        if workspace.launch_answer is not None:
            answer, workspace.launch_answer = workspace.launch_answer, None
            return answer
        return answers[::-1] if n % 2 else answers[1:] + answers[:1]

    def list_workers(self) -> Any:
        workspace = self._workspace
        time.sleep(workspace.list_delay_s)
        with workspace._lock:
            workspace.calls.append((self._session, "list", None))
            for slow, listings in list(workspace._slow.items()):
                workspace._slow[slow] = listings - 1
                if listings <= 0:
                    workspace.sessions[slow].status = "stopped"
                    del workspace._slow[slow]
            if workspace.list_down is not None:
                raise workspace.list_down
            if workspace.list_errors:
                error = workspace.list_errors.pop(0)
                if isinstance(error, Exception):
                    raise error
                return error
            shown = []
            for session in sorted(workspace.sessions.values(), key=lambda s: s.id):
                if session.caller != self._session:
                    continue
                if workspace.hidden.get(session.id, 0) > 0:
                    workspace.hidden[session.id] -= 1
                    continue
                shown.append(self._shown(session))
            return shown

    def await_workers(self, *args: Any, **kwargs: Any) -> Any:
        raise AssertionError(f"await_workers polls every 5 s and leaves sessions out: {args} {kwargs}")

    def stop_workers(self, *worker_id: Any) -> Any:
        workspace = self._workspace
        with workspace._lock:
            workspace.calls.append((self._session, "stop", worker_id))
            ids = [worker["id"] if isinstance(worker, dict) else worker for worker in worker_id]
            if not ids:  # the platform's trap
                ids = workspace.up(self._session)
            responses = []
            for session_id in ids:
                session = workspace.sessions.get(session_id)
                if session is None:
                    responses.append(Answer(404, "no such session"))
                    continue
                mode = workspace.stop_modes.get(session_id, workspace.stop_modes.get("*", "obey"))
                if mode == "refuse":
                    responses.append(Answer(500, HTML))
                    continue
                responses.append(Answer(204))
                if mode == "obey" and not session.over:
                    session.status = "stopped"
                elif mode == "slow":
                    workspace._slow.setdefault(session_id, 3)
            answer = workspace.stop_answers(responses)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def _shown(self, session: MemorySession, launched: bool = False) -> dict[str, Any]:
        if self._workspace.bare:
            return {"id": session.id, "status": session.status}
        shown: dict[str, Any] = {
            "id": session.id,
            "status": session.status,
            "app_url": f"https://{session.id}.ml-xxxx.example.site/",
            "cpu": session.cpu,
            "memory": session.memory,
            "created_at": session.created_at,
        }
        if not launched:
            shown["ip_address"] = f"100.66.0.{session.number}" if session.status == "running" else "unknown"
        return shown
