"""Which state a cluster or a session is in; ``docs/life-cycle.md`` has the moves between them.

All functions here are pure.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal

from cml_dask_magics.model.record import Record, SessionRecord
from cml_dask_magics.model.status import ClusterState, SessionState, Usage

Phase = Literal["pending", "running", "ended"]

FAILED_REPLACEMENTS = 3


def session_state(
    record: Record, info: SessionInfo | None, *, lost: bool, stopping: bool, connected: bool
) -> SessionState:
    """The state of a session.

    Parameters
    ----------
    record : Record
        Of its cluster.
    info : SessionInfo or None
        The session in the last listing; None if another kernel's session launched it, so that our listing lacks it.
    lost : bool
        Whether it ended without being stopped.
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
    """The state of a cluster.

    Parameters
    ----------
    record : Record
    connected : int
        How many workers are connected.
    scheduler_lost : bool
        Whether its scheduler is gone, or has been silent for too long.
    """
    if record.state == "stopping":
        return "stopping"
    if scheduler_lost or record.state == "lost":
        return "lost"
    if record.state == "starting":
        return "starting"
    return "running" if connected >= record.requested else "degraded"


def is_planned(session: SessionRecord) -> bool:
    """Whether a session holds, or will hold, one of the requested workers."""
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
    """The usage of the sessions that are no longer in the record."""
    return Usage(record.core_s / 3600, record.gib_s / 3600, record.gpu_s / 3600)


def with_usage_until_now(record: Record) -> Record:
    """The record, with the usage so far of the sessions in it added."""
    return with_usage_of(record, record.sessions, time.time())


def with_usage_of(record: Record, sessions: Iterable[SessionRecord], until: float) -> Record:
    """The record, with the usage of sessions added, which have ended or count until a moment."""
    core_s, gib_s, gpu_s = record.core_s, record.gib_s, record.gpu_s
    for session in sessions:
        if session.running_at is not None:
            used_s = max(0.0, (session.ended_at or until) - session.running_at)
            core_s += session.cpu * used_s
            gib_s += (session.real_memory_gib or session.memory_gib) * used_s
            gpu_s += session.gpu * used_s
    return replace(record, core_s=core_s, gib_s=gib_s, gpu_s=gpu_s)
