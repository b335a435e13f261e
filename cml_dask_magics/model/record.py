"""What is on record of a cluster: plain data, to and from JSON.

Knows no files.
"""

from __future__ import annotations

import functools
import json
import re
import time
from dataclasses import dataclass, field, replace
from operator import itemgetter
from typing import Annotated, Any, Literal

import msgspec

RECORD_VERSION = 2
_READ_VERSIONS = (1, 2)  # the settings of version 1 also held what belongs to one call
NAME = re.compile(r"[A-Za-z0-9_-]{1,40}")
# A session's id, wherever it comes from: it becomes the name of a file.
SESSION = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
_KEPT_EVENTS = 50

_Id = Annotated[str, msgspec.Meta(pattern=rf"\A{SESSION.pattern}\Z")]
_Name = Annotated[str, msgspec.Meta(pattern=rf"\A{NAME.pattern}\Z")]
_Word = Annotated[str, msgspec.Meta(max_length=2000)]
_Number = Annotated[float, msgspec.Meta(ge=0, lt=1e15)]  # and so never infinite
_Count = Annotated[int, msgspec.Meta(ge=0, lt=10**9)]
_Moment = Annotated[float, msgspec.Meta(ge=0, lt=2e11)]  # seconds since the epoch, in a year that dates have
Role = Literal["scheduler", "worker"]
RecordState = Literal["starting", "running", "stopping", "lost"]


@dataclass(frozen=True)
class SessionRecord:
    """A session that was launched for a cluster.

    Times are seconds since the epoch; `running_at`, `connected_at` (its Dask process) and `ended_at` are what this
    package saw first. `launched_from` is the id of the session that launched it: only that one sees it in its listing.
    `automatic` says that nobody asked for it by hand; `stopping_at` is when it was (about to be) told to stop. With an
    `ended_at` it is still here only where nobody has seen its end: the platform said that it would stop it. A
    `salvaged` one is known by what it printed alone: it may have ended long ago. `real_memory_gib` is what it has of
    the `memory_gib` that were asked for, once its worker has told that.
    """

    id: _Id
    role: Role
    cpu: _Number
    memory_gib: _Number
    gpu: _Count
    launched_at: _Moment
    launched_from: _Word = ""
    running_at: _Moment | None = None
    connected_at: _Moment | None = None
    ended_at: _Moment | None = None
    ip_address: _Word | None = None
    app_url: _Word | None = None
    automatic: bool = False
    stopping_at: _Moment | None = None
    salvaged: bool = False
    real_memory_gib: _Number | None = None

    @functools.cached_property
    def as_json(self) -> str:
        """It as JSON. Kept, so that one session's news does not cost what thousands of others would."""
        return json.dumps(msgspec.to_builtins(self))  # not `asdict`, which takes 20 times as long


@dataclass(frozen=True)
class Owner:
    """A kernel: session id (empty outside CML), host name, process id."""

    session: _Word
    hostname: _Word
    pid: Annotated[int, msgspec.Meta(ge=0, lt=2**62)]


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
    n: _Count
    at: _Moment
    owner: Owner
    answered: bool = False


@dataclass(frozen=True)
class TroubleRecord:
    """What went wrong with a worker.

    Parameters
    ----------
    at : float
        Seconds since the epoch.
    message : str
        One sentence.
    paused : str
        The name of a worker; if there is one, this holds as long as it is paused.
    """

    at: _Moment
    message: str
    paused: str = ""


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
    trouble : TroubleRecord or None
        What went wrong with a worker last; not all of it is an event.
    troubles_written : int
        All troubles of the scheduler up to this number are dealt with.
    """

    name: _Name
    token: _Name
    backend: _Word
    created_at: _Moment
    owner: Owner
    settings: dict[str, Any] = field(repr=False)  # with the values of `env`
    requested: _Count
    state: RecordState = "starting"
    adapt: tuple[_Count, _Count] | None = None
    scheduler_address: _Word | None = None
    sessions: tuple[SessionRecord, ...] = ()
    launching: tuple[Launch, ...] = ()
    failed_replacements: _Count = 0
    core_s: _Number = 0.0
    gib_s: _Number = 0.0
    gpu_s: _Number = 0.0
    events: tuple[tuple[_Moment, str], ...] = ()
    trouble: TroubleRecord | None = None
    troubles_written: _Count = 0
    version: int = RECORD_VERSION

    @property
    def scheduler(self) -> SessionRecord | None:
        """The session of the scheduler, while it is on record."""
        return next((session for session in self.sessions if session.role == "scheduler"), None)

    def with_event(self, message: str, at: float | None = None) -> Record:
        """The record with one more event, of now or of `at`; the oldest ones are dropped."""
        events = sorted((*self.events, (time.time() if at is None else at, message)), key=itemgetter(0))
        return replace(self, events=tuple(events[-_KEPT_EVENTS:]))


def record_from_json(text: str) -> Record:
    """A record from its JSON, of this version or an earlier one.

    Raises
    ------
    ValueError
        If it is no record: not JSON, a field missing, of the wrong kind, or of a newer version.
    """
    try:
        # Not msgspec's own decoder, which refuses what a path that is not UTF-8 becomes.
        data = json.loads(text)
    except RecursionError as error:
        raise ValueError(f"it is nested too deeply: {error}") from None
    version = data.get("version") if isinstance(data, dict) else None
    if version not in _READ_VERSIONS:
        raise ValueError(f"version {version!r}, this package reads {RECORD_VERSION}")
    return msgspec.convert({**data, "version": RECORD_VERSION}, Record)


def record_to_json(record: Record) -> str:
    """A record as `record_from_json` reads it."""
    fields = msgspec.to_builtins(replace(record, sessions=())) | {"sessions": None}
    values = (f"{json.dumps(key)}: {json.dumps(value)}" for key, value in fields.items() if key != "sessions")
    sessions = ",\n  ".join(session.as_json for session in record.sessions)
    return "{\n " + ",\n ".join([*values, f'"sessions": [\n  {sessions}\n ]']) + "\n}\n"
