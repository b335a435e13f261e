"""The life of a cluster and of a session: the states there are, what moves one to the next, and which one is now.

The one place that says so; ``docs/life-cycle.md`` shows the same table. Pure functions of what is known.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import Literal

from cml_dask_magics.model.record import Record, SessionRecord
from cml_dask_magics.model.status import ClusterState, SessionState, Usage

Phase = Literal["pending", "running", "ended"]

FAILED_REPLACEMENTS = 3


@dataclass(frozen=True)
class Move:
    """One step of a life: from a state to the next, and what does it. ``new`` and ``gone`` are no states."""

    before: str
    after: str
    when: str


CLUSTER_MOVES = (
    Move("new", "starting", "`%dask_up` has claimed the name"),
    Move("starting", "running", "every worker that was asked for is connected"),
    Move("starting", "degraded", "the time to wait is up, and at least one worker is connected"),
    Move("starting", "stopping", "a session was refused or died, nobody connected in time, Ctrl-C, `%dask_down`"),
    Move("starting", "lost", "the kernel that started it is gone"),
    Move("running", "degraded", "a worker was lost, or more were asked for"),
    Move("degraded", "running", "its replacement, or the late one, is connected; or fewer were asked for"),
    Move("running", "lost", "the scheduler's session ended, or the scheduler has been silent for 15 s"),
    Move("degraded", "lost", "the scheduler's session ended, or the scheduler has been silent for 15 s"),
    Move("lost", "running", "it was the network: the scheduler answers again"),
    Move("lost", "degraded", "it was the network: the scheduler answers again, some workers do not"),
    Move("lost", "stopping", "`%dask_down`, or `%dask_up`, which then starts it anew with the same settings"),
    Move("running", "stopping", "`%dask_down`, the end of a `with` block, the idle timeout"),
    Move("degraded", "stopping", "`%dask_down`, the end of a `with` block, the idle timeout"),
    Move("stopping", "gone", "every session was seen to have ended; the record is removed"),
)

SESSION_MOVES = (
    Move("new", "pending", "the platform took the launch"),
    Move("pending", "starting", "the platform shows it as running, with an address"),
    Move("pending", "running", "its worker connected before a listing showed that it runs"),
    Move("starting", "running", "its Dask process is connected to the scheduler"),
    Move("running", "starting", "its Dask process lost the scheduler, or is restarted by its nanny"),
    Move("pending", "failed", "it ended without having been told to"),
    Move("starting", "failed", "it ended without having been told to"),
    Move("running", "failed", "it ended without having been told to"),
    Move("pending", "stopping", "fewer workers were asked for, or the cluster stops"),
    Move("starting", "stopping", "fewer workers were asked for, or the cluster stops"),
    Move("running", "stopping", "fewer workers were asked for, or the cluster stops"),
    Move("stopping", "ended", "a listing shows that it ended"),
    Move("failed", "gone", "a new session replaces it, or the cluster stops"),
    Move("ended", "gone", "its usage is added up, and it leaves the record"),
)


def session_state(
    record: Record, info: SessionInfo | None, *, lost: bool, stopping: bool, connected: bool
) -> SessionState:
    """Where a session is in its life.

    Parameters
    ----------
    record : Record
        Of its cluster.
    info : SessionInfo or None
        What the last listing showed of it. None where our listing cannot show it: all that is known is that it exists.
    lost : bool
        Whether it ended without having been told to.
    stopping : bool
        Whether it was told to stop.
    connected : bool
        Whether its Dask process is connected.
    """
    if lost:
        return "failed"
    if info is not None and info.phase == "ended":
        return "ended"
    if stopping or record.state == "stopping":
        return "stopping"
    if connected:
        return "running"
    return "starting" if info is None or info.phase == "running" else "pending"


def cluster_state(record: Record, connected: int, *, scheduler_lost: bool) -> ClusterState:
    """Where a cluster is in its life.

    Parameters
    ----------
    record : Record
    connected : int
        How many workers are connected.
    scheduler_lost : bool
        Whether its scheduler is gone, or has been silent for too long to count on it.
    """
    if record.state == "stopping":
        return "stopping"
    if scheduler_lost or record.state == "lost":
        return "lost"
    if record.state == "starting":
        return "starting"
    return "running" if connected >= record.requested else "degraded"


def is_planned(session: SessionRecord) -> bool:
    """Whether a session holds, or will hold, one of the workers that were asked for."""
    return session.role == "worker" and session.stopping_at is None


@dataclass(frozen=True)
class SessionInfo:
    """One session as the platform shows it; `created_at` in seconds since the epoch."""

    id: str
    phase: Phase
    status: str
    ip_address: str | None = None
    app_url: str | None = None
    created_at: float | None = None


def usage(record: Record) -> Usage:
    """What the sessions that left the record have used."""
    return Usage(record.core_s / 3600, record.gib_s / 3600, record.gpu_s / 3600)


def with_usage_until_now(record: Record) -> Record:
    """The record with what the sessions in it have used so far added."""
    now = time.time()
    for session in record.sessions:
        record = with_usage_of(record, replace(session, ended_at=session.ended_at or now))
    return record


def with_usage_of(record: Record, session: SessionRecord) -> Record:
    """The record with what an ended session has used added. What never ran used nothing."""
    if session.running_at is None or session.ended_at is None:
        return record
    used_s = max(0.0, session.ended_at - session.running_at)
    return replace(
        record,
        core_s=record.core_s + session.cpu * used_s,
        gib_s=record.gib_s + session.memory_gib * used_s,
        gpu_s=record.gpu_s + session.gpu * used_s,
    )
