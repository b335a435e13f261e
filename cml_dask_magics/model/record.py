"""What is on record of a cluster: plain data, to and from JSON.

Knows no files.
"""

from __future__ import annotations

import json
import math
import re
import time
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal, get_args

RECORD_VERSION = 1
NAME = re.compile(r"[A-Za-z0-9_-]{1,40}")
_KEPT_EVENTS = 50

Role = Literal["scheduler", "worker"]
RecordState = Literal["starting", "running", "stopping", "lost"]


@dataclass(frozen=True)
class SessionRecord:
    """A session that was launched for a cluster.

    Times are seconds since the epoch; `running_at`, `connected_at` (its Dask process) and `ended_at` are what this
    package saw first. `launched_from` is the id of the session that launched it: only that one sees it in its listing.
    `automatic` says that nobody asked for it by hand; `stopping_at` is when it was (about to be) told to stop. With an
    `ended_at` it is still here only where nobody has seen its end: the platform said that it would stop it. A
    `salvaged` one is known by what it printed alone: it may have ended long ago.
    """

    id: str
    role: Role
    cpu: float
    memory_gib: float
    gpu: int
    launched_at: float
    launched_from: str = ""
    running_at: float | None = None
    connected_at: float | None = None
    ended_at: float | None = None
    ip_address: str | None = None
    app_url: str | None = None
    automatic: bool = False
    stopping_at: float | None = None
    salvaged: bool = False


@dataclass(frozen=True)
class Owner:
    """A kernel: session id (empty outside CML), host name, process id."""

    session: str
    hostname: str
    pid: int


@dataclass(frozen=True)
class Launch:
    """A launch call that is not accounted for: sessions may exist that nobody has an id for.

    Parameters
    ----------
    id : str
        Tells this call from others.
    n : int
        How many sessions it asks for.
    at : float
        When it began, in seconds since the epoch.
    owner : Owner
        The kernel that makes it.
    answered : bool
        Whether the call is over, and its answer did not account for every session.
    """

    id: str
    role: Role
    n: int
    at: float
    owner: Owner
    answered: bool = False


@dataclass(frozen=True)
class Record:
    """All that must be known to find, use and stop a cluster.

    Parameters
    ----------
    token : str
        Names this start of the cluster; part of the run folder's name.
    launching : tuple of Launch
        While there are any, sessions may exist whose ids are not in `sessions`: their log files in the run folder
        tell them.
    settings : dict
        The cluster's settings as plain JSON values, for a later kernel to scale it alike.
    failed_replacements : int
        How many sessions in a row that were launched without being asked for ended before their worker connected.
    core_s, gib_s, gpu_s : float
        Core-seconds, GiB-seconds and GPU-seconds of sessions that ended and left `sessions`.
    events : tuple of (float, str)
        Seconds since the epoch and a sentence, oldest first.
    """

    name: str
    token: str
    backend: str
    created_at: float
    owner: Owner
    settings: dict[str, Any]
    requested: int
    state: RecordState = "starting"
    adapt: tuple[int, int] | None = None
    scheduler_address: str | None = None
    sessions: tuple[SessionRecord, ...] = ()
    launching: tuple[Launch, ...] = ()
    failed_replacements: int = 0
    core_s: float = 0.0
    gib_s: float = 0.0
    gpu_s: float = 0.0
    events: tuple[tuple[float, str], ...] = ()
    version: int = RECORD_VERSION

    def with_event(self, message: str) -> Record:
        """The record with one more event, the oldest ones dropped."""
        return replace(self, events=(*self.events, (time.time(), message))[-_KEPT_EVENTS:])


def record_from_json(text: str) -> Record:
    """A record from its JSON.

    Raises
    ------
    ValueError
        If it is no record: not JSON, a field missing, of the wrong kind, or of a newer version.
    """
    try:
        data = json.loads(text)
        if not isinstance(data, dict):
            raise ValueError("not a JSON object")
        if data.get("version") != RECORD_VERSION:
            raise ValueError(f"version {data.get('version')!r}, this package reads {RECORD_VERSION}")
        data["owner"] = Owner(**data["owner"])
        data["sessions"] = tuple(SessionRecord(**session) for session in data["sessions"])
        data["launching"] = tuple(_launch(launch) for launch in data["launching"])
        data["events"] = tuple((float(at), message) for at, message in data["events"])
        data["adapt"] = (data["adapt"][0], data["adapt"][1]) if data["adapt"] else None
        record = Record(**data)
    except (KeyError, TypeError, AttributeError, IndexError, RecursionError, OverflowError) as error:
        raise ValueError(f"a field is missing or of the wrong kind: {error}") from None
    parts: list[_Part] = [record, record.owner, *record.sessions, *record.launching]
    parts += [launch.owner for launch in record.launching]
    for part in parts:
        _check_kinds(part)
    if not all(isinstance(message, str) for _, message in record.events):
        raise ValueError("a text that is none")
    if not all(session.id for session in record.sessions):
        raise ValueError("a session without an id")
    if not NAME.fullmatch(record.name) or not NAME.fullmatch(record.token):
        raise ValueError("a name that is none")
    if record.adapt is not None and not all(type(limit) is int for limit in record.adapt):
        raise ValueError("limits of adaptive scaling that are no numbers")
    return record


def _launch(data: dict[str, Any]) -> Launch:
    return Launch(**{**data, "owner": Owner(**data["owner"])})


_Part = Record | Owner | SessionRecord | Launch
_KINDS: dict[str, tuple[type, ...]] = {
    "str": (str,),
    "int": (int,),
    "float": (int, float),
    "bool": (bool,),
    "dict[str, Any]": (dict,),
    "Role": (str,),
    "RecordState": (str,),
}
_WORDS = {"Role": get_args(Role), "RecordState": get_args(RecordState)}


def _check_kinds(part: _Part) -> None:
    """Look at the plain fields of a part: JSON may hold anything, and the rest of the package relies on them."""
    for field in fields(part):
        kind, _, optional = str(field.type).partition(" | ")
        value = getattr(part, field.name)
        if kind not in _KINDS or (value is None and optional == "None"):
            continue
        wrong = not isinstance(value, _KINDS[kind]) or (isinstance(value, bool) and kind != "bool")
        if wrong or (isinstance(value, float) and not math.isfinite(value)) or value not in _WORDS.get(kind, (value,)):
            raise ValueError(f"{field.name} is {value!r}")


def record_to_json(record: Record) -> str:
    """A record as `record_from_json` reads it."""
    return json.dumps(asdict(record), indent=1)
