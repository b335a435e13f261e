"""What really is and was, as the test sees it: independent of what the API says."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from .records import ENDED


@dataclass(frozen=True)
class SessionTruth:
    """A session as it really is, whatever the API says."""

    id: str
    name: str
    status: str
    launched_by: str
    foreign: bool
    address: str
    namespace: str
    cpu: float
    memory: float
    gpu: int
    memory_limit: int  # bytes; 0 where there is none
    memory_group: str
    code: str
    launch: dict[str, Any]
    environment: dict[str, str]
    python: str
    created_at: float
    running_at: float | None
    finished_at: float | None
    exit_status: int | None
    init_pid: int
    pids: tuple[int, ...]

    @property
    def alive(self) -> bool:
        """Whether something of it still runs, or will."""
        return self.status not in ENDED or bool(self.pids)


@dataclass(frozen=True)
class Call:
    """One request to the Workers API: `launch`, `list`, `stop` or `stop_without_ids`.

    `given` is what a session was asked for with, whether it was launched or refused.
    """

    call: str
    caller: str
    ids: tuple[str, ...]
    at: float
    message: str = ""
    given: dict[str, Any] = field(default_factory=dict)
