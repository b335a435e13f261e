"""Puts one `ClusterStatus` together from what the record, the platform's listing and the scheduler know."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import datetime, timezone
from typing import Any

from cml_dask_magics.fleet import Fleet
from cml_dask_magics.records import SessionRecord
from cml_dask_magics.status import ClusterState, ClusterStatus, Event, SessionStatus


def snapshot(
    fleet: Fleet,
    state: ClusterState,
    workers: Mapping[str, Mapping[str, Any]],
    scheduler_address: str | None = None,
    dashboard_link: str | None = None,
    idle_s: float | None = None,
) -> ClusterStatus:
    """One cluster at this moment.

    Parameters
    ----------
    fleet : Fleet
        Its sessions.
    state : ClusterState
    workers : mapping
        What the scheduler says of each connected worker (``Scheduler.identity()["workers"]``), by address.
    scheduler_address : str, optional
        Where the scheduler is connected; None while it is not.
    dashboard_link : str, optional
    idle_s : float, optional
        Seconds since the cluster last worked.
    """
    record = fleet.record
    addresses = {session_of(worker["name"]): address for address, worker in workers.items()}
    scheduler = next((session for session in record.sessions if session.role == "scheduler"), None)
    failed = [session for session in fleet.lost.values() if session.role == "worker"]
    sessions = [session for session in record.sessions if session.role == "worker"] + failed
    return ClusterStatus(
        name=record.name,
        state=state,
        backend=record.backend,
        created_at=utc(record.created_at),
        requested=record.requested,
        adapt=record.adapt,
        idle_timeout_s=fleet.settings.idle_timeout_s,
        idle_s=idle_s,
        scheduler=_session_status(fleet, scheduler, scheduler_address, {}) if scheduler is not None else None,
        workers=tuple(
            _session_status(fleet, session, addresses.get(session.id), workers.get(addresses.get(session.id, ""), {}))
            for session in sessions
        ),
        dashboard_link=dashboard_link,
        usage=fleet.usage(),
        events=tuple(Event(utc(at), message) for at, message in record.events),
    )


def _session_status(
    fleet: Fleet, session: SessionRecord, address: str | None, worker: Mapping[str, Any]
) -> SessionStatus:
    metrics: Mapping[str, Any] = worker.get("metrics", {})
    tasks: Mapping[str, int] = metrics.get("task_counts", {})
    return SessionStatus(
        session=session.id,
        state=fleet.state(session.id, connected=address is not None),
        state_since=utc(session.running_at or session.launched_at),
        ip_address=fleet.ip_address(session) or (_host(address) if address else None),
        address=address,
        nthreads=int(worker.get("nthreads", 0)),
        cpu_percent=float(metrics.get("cpu", 0.0)),
        memory_bytes=int(metrics.get("memory", 0)),
        memory_limit_bytes=int(worker.get("memory_limit") or 0),
        executing=int(tasks.get("executing", 0)) + int(tasks.get("long-running", 0)),
    )


def session_of(worker_name: Any) -> str:
    """The session that a worker is named after; ``dask cuda worker`` appends a number a GPU."""
    return re.sub(r"-\d{1,2}$", "", str(worker_name))


def utc(seconds: float) -> datetime:
    """Seconds since the epoch as a timezone-aware datetime."""
    return datetime.fromtimestamp(seconds, timezone.utc)


def _host(address: str) -> str | None:
    return address.partition("://")[2].rpartition(":")[0] or None
