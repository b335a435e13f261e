"""Makes a `ClusterStatus` from the record, the platform's listing and the scheduler's figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timezone

from cml_dask_magics.cluster.scheduler import WorkerFigures
from cml_dask_magics.fleet.fleet import Fleet
from cml_dask_magics.fleet.shell_lines import session_of
from cml_dask_magics.model.lifecycle import FAILED_REPLACEMENTS
from cml_dask_magics.model.record import SessionRecord
from cml_dask_magics.model.status import ClusterState, ClusterStatus, Event, Sample, SessionStatus

_NO_FIGURES = WorkerFigures("", 0, 0, 0.0, 0, 0, 0)


def snapshot(
    fleet: Fleet,
    state: ClusterState,
    workers: Mapping[str, WorkerFigures],
    scheduler_address: str | None = None,
    dashboard_link: str | None = None,
    read_only_link: str | None = None,
    idle_s: float | None = None,
    history: Sequence[Sample] = (),
    peak_memory_bytes: int = 0,
) -> ClusterStatus:
    """The cluster's status.

    Parameters
    ----------
    fleet : Fleet
        Its sessions.
    state : ClusterState
    workers : mapping
        The connected workers by address.
    scheduler_address : str, optional
        None while the scheduler is not connected.
    dashboard_link, read_only_link : str, optional
    idle_s : float, optional
        Seconds since the cluster last worked.
    history : sequence of Sample, optional
        The last minutes, oldest first.
    peak_memory_bytes : int, optional
    """
    record = fleet.record
    addresses = {session_of(worker.name): address for address, worker in workers.items()}
    scheduler = record.scheduler
    failed = [session for session in fleet.lost.values() if session.role == "worker"]
    sessions = [s for s in record.sessions if s.role == "worker" and s.ended_at is None] + failed
    return ClusterStatus(
        name=record.name,
        state=state,
        backend=record.backend,
        created_at=utc(record.created_at),
        requested=record.requested,
        adapt=record.adapt,
        idle_timeout_s=fleet.settings.idle_timeout_s,
        idle_s=idle_s,
        scheduler=_session_status(fleet, scheduler, scheduler_address) if scheduler is not None else None,
        workers=tuple(
            _session_status(
                fleet, session, addresses.get(session.id), workers.get(addresses.get(session.id, ""), _NO_FIGURES)
            )
            for session in sessions
        ),
        dashboard_link=dashboard_link,
        read_only_link=read_only_link,
        history=tuple(history),
        peak_memory_bytes=peak_memory_bytes,
        replaces_lost=record.failed_replacements < FAILED_REPLACEMENTS,
        max_workers=fleet.settings.max_workers,
        usual_start_s=fleet.usual_start_s,
        usage=fleet.usage(),
        events=tuple(Event(utc(at), message) for at, message in record.events),
    )


def _session_status(
    fleet: Fleet, session: SessionRecord, address: str | None, worker: WorkerFigures = _NO_FIGURES
) -> SessionStatus:
    return SessionStatus(
        session=session.id,
        state=fleet.state(session, connected=address is not None),
        state_since=utc(session.running_at or session.launched_at),
        ip_address=fleet.ip_address(session) or (_host(address) if address else None),
        address=address,
        nthreads=worker.nthreads,
        cpu_percent=worker.cpu_percent,
        memory_bytes=worker.memory_bytes,
        memory_limit_bytes=worker.memory_limit_bytes,
        spilled_bytes=worker.spilled_bytes,
        executing=worker.executing,
    )


def dashboard_link(fleet: Fleet, dasks_own: str) -> str:
    """The dashboard's address for the user's browser; empty while it is not known.

    Parameters
    ----------
    fleet : Fleet
    dasks_own : str
        Dask's address, by ``distributed.dashboard.link`` in its configuration.
    """
    scheduler, platform = fleet.record.scheduler, fleet.pool.platform
    if scheduler is None or not scheduler.app_url:
        return ""
    if platform.browser_is_here:
        return dasks_own
    return fleet.settings.dashboard_link.format(
        app_url=scheduler.app_url.rstrip("/"), session=scheduler.id, domain=platform.domain
    )


def read_only_link(fleet: Fleet) -> str | None:
    """The platform's second, read-only address of the dashboard, built as its documentation says."""
    scheduler, domain = fleet.record.scheduler, fleet.pool.platform.domain
    return f"https://read-only-{scheduler.id}.{domain}/status" if scheduler is not None and domain else None


def utc(seconds: float) -> datetime:
    """Seconds since the epoch as a timezone-aware datetime."""
    return datetime.fromtimestamp(seconds, timezone.utc)


def _host(address: str) -> str | None:
    return address.partition("://")[2].rpartition(":")[0] or None
