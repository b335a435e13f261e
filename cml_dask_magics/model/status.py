"""A snapshot of a cluster as plain data, which panel, text and JSON show."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal

import msgspec

ClusterState = Literal["starting", "running", "degraded", "stopping", "lost"]
"""``degraded``: fewer workers than asked for. ``lost``: the scheduler is gone."""

SessionState = Literal["pending", "starting", "running", "stopping", "ended", "failed"]
"""``pending``: the platform has not started it. ``starting``: it runs, Dask is not connected yet."""


@dataclass(frozen=True)
class Event:
    """Something that happened to a cluster.

    Parameters
    ----------
    at : datetime
        Timezone-aware (UTC).
    message : str
        One sentence.
    """

    at: datetime
    message: str


@dataclass(frozen=True)
class Usage:
    """What a cluster's sessions have used so far, scheduler included."""

    core_hours: float = 0.0
    gib_hours: float = 0.0
    gpu_hours: float = 0.0


# Thousands of these may be made each second, and a `Struct` is made ten times as quickly as a dataclass. It has nothing
# that could refer to itself, so the garbage collector need not look at it.
class WorkerFigures(msgspec.Struct, frozen=True, gc=False):
    """What the scheduler last heard of one Dask worker.

    Parameters
    ----------
    address : str
        ``tls://100.66.1.4:40331``.
    name : str
        That of its session; where a session has several workers, with a hyphen and a number from 0 on behind it.
    nthreads : int
    memory_limit_bytes : int
        0 for none.
    session_memory_bytes : int
        What its session has for everything in it; 0 if that is not known.
    cpu_percent : float
        Per cent of one core.
    memory_bytes : int
        Of the whole process.
    spilled_bytes : int
        On disk.
    executing : int
        Tasks running now.
    is_paused : bool
        Whether it starts no new tasks, for its memory.
    """

    address: str
    name: str
    nthreads: int
    memory_limit_bytes: int
    session_memory_bytes: int
    cpu_percent: float
    memory_bytes: int
    spilled_bytes: int
    executing: int
    is_paused: bool


class SessionStatus(msgspec.Struct, frozen=True, gc=False):
    """One session of a cluster and the Dask process in it, or its Dask workers.

    Parameters
    ----------
    session : str
        The platform's id of the session.
    state : SessionState
    state_since : datetime or None
        Since when it has been in that state, if that is to pass and this kernel saw it.
    ip_address : str or None
        The session's own address; None while the platform does not know it.
    address : str or None
        The Dask process's address (``tls://100.66.1.4:40331``), of several the first one's; None while none is
        connected.
    nthreads : int
        Threads of its workers; 0 while not connected and for the scheduler.
    cpu_percent, memory_bytes, memory_limit_bytes, spilled_bytes, executing
        As its workers last reported, together: per cent of one core, bytes, bytes, bytes on disk, tasks running now.
    is_paused : bool
        Whether one of its workers starts no new tasks, for its memory.
    workers : tuple of WorkerFigures
        Each of them that is connected, by number.
    """

    session: str
    state: SessionState
    state_since: datetime | None = None
    ip_address: str | None = None
    address: str | None = None
    nthreads: int = 0
    cpu_percent: float = 0.0
    memory_bytes: int = 0
    memory_limit_bytes: int = 0
    spilled_bytes: int = 0
    executing: int = 0
    is_paused: bool = False
    workers: tuple[WorkerFigures, ...] = ()


@dataclass(frozen=True)
class Sample:
    """The sums over all workers at one moment, for the graphs.

    Parameters
    ----------
    at : datetime
        Timezone-aware (UTC).
    cpu_percent : float
        In per cent of one core.
    memory_bytes : int
    executing : int
        Tasks running.
    """

    at: datetime
    cpu_percent: float
    memory_bytes: int
    executing: int


@dataclass(frozen=True)
class ClusterStatus:
    """One cluster at one moment.

    Parameters
    ----------
    requested : int
        How many sessions of workers were asked for.
    adapt : tuple of int or None
        ``(minimum, maximum)`` of them while Dask scales the cluster, else None.
    processes : int
        How many Dask workers each session has.
    heard_s : float or None
        How many seconds ago its scheduler last reported; None if it is not followed.
    idle_timeout_s, idle_s : float or None
        Seconds without work after which the scheduler ends the cluster, and seconds since it last
        worked; None for "never" and "it is working, or nobody knows".
    workers : tuple of SessionStatus
        Sessions that hold, or will hold, workers; ended ones are left out, failed ones are not.
    dashboard_link : str or None
        An address that the user's browser can open.
    read_only_link : str or None
        Inside CML, the platform's other address of the same dashboard (``https://read-only-...``).
    history : tuple of Sample
        The last five minutes, oldest first, as far as this kernel saw them.
    peak_memory_bytes : int
        The most memory that the workers held together, as far as this kernel saw it.
    replaces_lost : bool
        Whether lost workers are replaced; False after several replacements in a row have failed.
    max_workers : int
        The highest number of sessions that can be requested.
    why_pending : str
        Why sessions may have been pending for long, and what would fit; empty if none has.
    usual_start_s : float or None
        The median of earlier starts on this platform, in seconds; None if there were none.
    trouble : str
        What went wrong with a worker in the last minutes, and what helps; empty if nothing did.
    tls : bool
        Whether only those who have its certificate can talk to it.
    """

    name: str
    state: ClusterState
    backend: str
    created_at: datetime
    requested: int
    adapt: tuple[int, int] | None = None
    processes: int = 1
    heard_s: float | None = None
    idle_timeout_s: float | None = None
    idle_s: float | None = None
    scheduler: SessionStatus | None = None
    workers: tuple[SessionStatus, ...] = ()
    dashboard_link: str | None = None
    read_only_link: str | None = None
    history: tuple[Sample, ...] = ()
    peak_memory_bytes: int = 0
    replaces_lost: bool = True
    max_workers: int = 100
    why_pending: str = ""
    usual_start_s: float | None = None
    trouble: str = ""
    tls: bool = True
    usage: Usage = field(default_factory=Usage)
    events: tuple[Event, ...] = ()


@dataclass(frozen=True)
class Ended:
    """A cluster that was stopped.

    `disowned` stood in its record, but nothing shows that they were its sessions; `machine` is another one, on which
    its sessions end by themselves.
    """

    name: str
    sessions: int
    uptime_s: float
    usage: Usage
    disowned: tuple[str, ...] = ()
    machine: str = ""


StatusCallback = Callable[[ClusterStatus], None]
