"""Makes a `ClusterStatus` from the record, the platform's listing and the scheduler's figures."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone

import msgspec

from cml_dask_magics.fleet.fleet import Fleet
from cml_dask_magics.fleet.pending import why_pending
from cml_dask_magics.fleet.sizes import most_sessions
from cml_dask_magics.model.lifecycle import FAILED_REPLACEMENTS
from cml_dask_magics.model.record import SessionRecord, TroubleRecord
from cml_dask_magics.model.status import (
    ClusterState,
    ClusterStatus,
    Event,
    Sample,
    SessionState,
    SessionStatus,
    WorkerFigures,
)
from cml_dask_magics.model.trouble import SHOWN_S
from cml_dask_magics.model.words import cut

_MESSAGE_LENGTH = 4000  # longer than what anybody writes; a record may hold anything


def snapshot(
    fleet: Fleet,
    state: ClusterState,
    connected: Mapping[str, Sequence[WorkerFigures]],
    scheduler_address: str | None = None,
    dashboard_link: str | None = None,
    read_only_link: str | None = None,
    heard_s: float | None = None,
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
    connected : mapping
        The connected workers of each session, by its id.
    scheduler_address : str, optional
        None while the scheduler is not connected.
    dashboard_link, read_only_link : str, optional
    heard_s : float, optional
        Seconds since the scheduler last reported.
    idle_s : float, optional
        Seconds since the cluster last worked.
    history : sequence of Sample, optional
        The last minutes, oldest first.
    peak_memory_bytes : int, optional
    """
    record = fleet.record
    scheduler = record.scheduler
    failed = [session for session in fleet.lost.values() if session.role == "worker"]
    sessions = [s for s in record.sessions if s.role == "worker" and s.ended_at is None] + failed
    states = fleet.states(sessions, complete_ones(connected, fleet.settings.processes))
    return ClusterStatus(
        name=record.name,
        state=state,
        backend=record.backend,
        created_at=utc(record.created_at),
        requested=record.requested,
        adapt=record.adapt,
        processes=fleet.settings.processes,
        idle_timeout_s=fleet.settings.idle_timeout_s,
        heard_s=heard_s,
        idle_s=idle_s,
        scheduler=_scheduler_status(fleet, scheduler, scheduler_address) if scheduler is not None else None,
        workers=tuple(
            _workers_status(session, state_, connected.get(session.id, ()))
            for session, state_ in zip(sessions, states, strict=True)
        ),
        dashboard_link=dashboard_link,
        read_only_link=read_only_link,
        history=tuple(history),
        peak_memory_bytes=peak_memory_bytes,
        replaces_lost=record.failed_replacements < FAILED_REPLACEMENTS,
        max_workers=max(most_sessions(fleet.settings, fleet.pool.platform), record.requested, 1),
        why_pending=why_pending(fleet, fleet.times.pending_s),
        usual_start_s=fleet.usual_start_s,
        trouble=_current(record.trouble, connected),
        tls=fleet.settings.tls,
        usage=fleet.usage(),
        events=tuple(Event(utc(at), cut(message, _MESSAGE_LENGTH)) for at, message in record.events),
    )


def complete_ones(connected: Mapping[str, Sequence[WorkerFigures]], processes: int) -> set[str]:
    """Ids of the sessions all of whose workers are connected."""
    if processes == 1:
        return set(connected)
    return {session for session, workers in connected.items() if len(workers) >= processes}


def _scheduler_status(fleet: Fleet, session: SessionRecord, address: str | None) -> SessionStatus:
    (state,) = fleet.states([session], connected=[session.id] if address else ())
    return SessionStatus(session.id, state, _since(session, state), session.ip_address or _host(address), address)


def _workers_status(session: SessionRecord, state: SessionState, workers: Sequence[WorkerFigures]) -> SessionStatus:
    """The status of a session and of its connected workers, with their sums."""
    if not workers:
        return SessionStatus(session.id, state, _since(session, state), session.ip_address)
    seen = workers[0] if len(workers) == 1 else _together(workers)
    return SessionStatus(
        session.id,
        state,
        _since(session, state),
        session.ip_address or _host(seen.address),
        seen.address,
        seen.nthreads,
        seen.cpu_percent,
        seen.memory_bytes,
        seen.memory_limit_bytes,
        seen.spilled_bytes,
        seen.executing,
        seen.is_paused,
        tuple(workers),
    )


def _since(session: SessionRecord, state: SessionState) -> datetime | None:
    """Since when a session has been in a state that is to pass; None where that is not known."""
    if state == "running":  # most are
        return None
    if state == "starting" and session.connected_at is not None:  # its worker left, nobody wrote down when
        return None
    began = session.running_at or session.launched_at
    at = {"pending": session.launched_at, "starting": began, "stopping": session.stopping_at}.get(state)
    return utc(at) if at is not None else None


def _together(workers: Sequence[WorkerFigures]) -> WorkerFigures:
    """The sums over the workers of a session, under the name and address of the first."""
    return msgspec.structs.replace(
        workers[0],
        nthreads=sum(worker.nthreads for worker in workers),
        cpu_percent=sum(worker.cpu_percent for worker in workers),
        memory_bytes=sum(worker.memory_bytes for worker in workers),
        memory_limit_bytes=sum(worker.memory_limit_bytes for worker in workers),
        spilled_bytes=sum(worker.spilled_bytes for worker in workers),
        executing=sum(worker.executing for worker in workers),
        is_paused=any(worker.is_paused for worker in workers),
    )


def _current(trouble: TroubleRecord | None, connected: Mapping[str, Sequence[WorkerFigures]]) -> str:
    """The sentence of a trouble that is to be shown beside the cluster's state; empty if it is over, or long ago."""
    if trouble is None or time.time() - trouble.at > SHOWN_S:
        return ""
    if trouble.paused:
        paused = {worker.name for workers in connected.values() for worker in workers if worker.is_paused}
        if trouble.paused not in paused:
            return ""
    return cut(trouble.message, _MESSAGE_LENGTH)


def dashboard_link(fleet: Fleet, port: int | None, dasks_own: str) -> str:
    """The dashboard's address for the user's browser; empty while it is not known.

    Parameters
    ----------
    fleet : Fleet
    port : int or None
        Where the scheduler serves it.
    dasks_own : str
        Dask's address, by ``distributed.dashboard.link`` in its configuration.
    """
    scheduler, platform = fleet.record.scheduler, fleet.pool.platform
    if scheduler is None or not scheduler.app_url or not fleet.settings.dashboard or why_not_shown(fleet, port):
        return ""
    if platform.browser_is_here:
        return dasks_own
    return fleet.settings.dashboard_link.format(
        app_url=scheduler.app_url.rstrip("/"), session=scheduler.id, domain=platform.domain
    )


def why_not_shown(fleet: Fleet, port: int | None) -> str:
    """Why the platform shows nothing of the dashboard that a scheduler beside a kernel serves; empty if it shows it."""
    settings, platform = fleet.settings, fleet.pool.platform
    shown = os.environ.get("CDSW_READONLY_PORT", "")
    if not settings.scheduler_here or not settings.dashboard or not platform.session or str(port) == shown:
        return ""
    why = f"it is served on port {port}"
    if str(settings.dashboard_port or shown) == shown:
        why = "that is in use, perhaps by another cluster of yours"
    return (
        "the cluster has no dashboard link: of a scheduler beside the kernel, the platform shows port "
        f"{shown or 'none'} alone (CDSW_READONLY_PORT), and {why}"
    )


def read_only_link(fleet: Fleet) -> str | None:
    """The platform's second, read-only address of the dashboard, built as its documentation says."""
    scheduler, domain = fleet.record.scheduler, fleet.pool.platform.domain
    if fleet.settings.scheduler_here or not fleet.settings.dashboard:  # there is no other, or none at all
        return None
    return f"https://read-only-{scheduler.id}.{domain}/status" if scheduler is not None and domain else None


def utc(seconds: float) -> datetime:
    """Seconds since the epoch as a timezone-aware datetime."""
    return datetime.fromtimestamp(seconds, timezone.utc)


def _host(address: str | None) -> str | None:
    return (address or "").partition("://")[2].rpartition(":")[0] or None
