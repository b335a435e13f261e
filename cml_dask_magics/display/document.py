"""Snapshots as the JSON document of ``%dask_status --json``."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from datetime import datetime, timezone
from typing import Any

from cml_dask_magics.model.status import ClusterStatus, SessionStatus, WorkerFigures


def to_dict(status: ClusterStatus) -> dict[str, Any]:
    """One cluster as ``%dask_status --json`` shows it.

    Returns
    -------
    dict
        Only JSON types; times as ``2026-01-31T12:00:00Z``, NaN as None.
    """
    return {
        "name": status.name,
        "state": status.state,
        "backend": status.backend,
        "created_at": _iso(status.created_at),
        "idle_timeout_s": _seconds(status.idle_timeout_s),
        "idle_s": _seconds(status.idle_s),
        "requested": status.requested,
        "adapt": None if status.adapt is None else list(status.adapt),
        "tls": status.tls,
        "scheduler": None if status.scheduler is None else _session(status.scheduler),
        "workers": [
            {
                **_session(session),
                **_figures(session),
                "workers": [
                    {"name": worker.name, "address": worker.address, **_figures(worker)} for worker in session.workers
                ],
            }
            for session in status.workers
        ],
        "dashboard_link": status.dashboard_link,
        "usage": {
            "core_hours": _finite(status.usage.core_hours),
            "gib_hours": _finite(status.usage.gib_hours),
            "gpu_hours": _finite(status.usage.gpu_hours),
        },
        "events": [{"at": _iso(event.at), "message": event.message} for event in status.events],
    }


def to_json(statuses: Sequence[ClusterStatus]) -> str:
    """The whole document of ``%dask_status --json``."""
    return json.dumps({"clusters": [to_dict(status) for status in statuses]}, indent=2, allow_nan=False)


def _session(session: SessionStatus) -> dict[str, Any]:
    return {
        "session": session.session,
        "state": session.state,
        "ip_address": session.ip_address,
        "address": session.address,
    }


def _figures(worker: SessionStatus | WorkerFigures) -> dict[str, Any]:
    """What a worker reported, or all workers of a session together."""
    return {
        "nthreads": worker.nthreads,
        "cpu_percent": _finite(worker.cpu_percent),
        "memory_bytes": worker.memory_bytes,
        "memory_limit_bytes": worker.memory_limit_bytes,
        "executing": worker.executing,
    }


def _iso(at: datetime) -> str:
    return f"{at.astimezone(timezone.utc):%Y-%m-%dT%H:%M:%SZ}"


def _finite(value: float) -> float | None:
    return round(value, 4) if math.isfinite(value) else None


def _seconds(value: float | None) -> float | None:
    """Whole seconds as an integer."""
    if value is None or not math.isfinite(value):
        return None
    return int(value) if value == int(value) else round(value, 3)
