"""A cluster's snapshot as JSON, as plain text and as a progress line; as HTML it is in ``render_html``.

Pure functions of ``ClusterStatus``: knows neither widgets nor clusters.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Sequence
from datetime import datetime, timezone
from io import StringIO
from typing import Any

from rich.cells import cell_len

from cml_dask_magics.display.html.basics import SIGNS
from cml_dask_magics.display.html.pieces import to_html
from cml_dask_magics.display.listing import Wanted, choose
from cml_dask_magics.display.totals import totals
from cml_dask_magics.display.words import (
    NO_VALUE,
    Kind,
    advice_words,
    clean,
    count_words,
    estimate_words,
    fact_words,
    format_at,
    format_bytes,
    format_duration_s,
    format_percent,
    latest_events,
    memory_words,
    message_words,
    phase_words,
    utc_now,
    workers_words,
)
from cml_dask_magics.model.status import ClusterStatus, SessionStatus

__all__ = [
    "ended_line",
    "format_bytes",
    "format_duration_s",
    "progress_line",
    "status_line",
    "to_dict",
    "to_html",
    "to_json",
    "to_text",
]

NO_CLUSTER = "No cluster is running. %dask_up starts one."


def to_dict(status: ClusterStatus) -> dict[str, Any]:
    """One cluster as ``%dask_status --json`` shows it.

    Returns
    -------
    dict
        Only JSON's own types; times as ``2026-01-31T12:00:00Z``, numbers that are none (NaN) as None.
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
        "scheduler": None if status.scheduler is None else _session(status.scheduler),
        "workers": [
            _session(worker)
            | {
                "nthreads": worker.nthreads,
                "cpu_percent": _finite(worker.cpu_percent),
                "memory_bytes": worker.memory_bytes,
                "memory_limit_bytes": worker.memory_limit_bytes,
                "executing": worker.executing,
            }
            for worker in status.workers
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


def to_text(
    statuses: Sequence[ClusterStatus],
    width: int | None = None,
    max_rows: int | None = None,
    now: datetime | None = None,
) -> str:
    """Clusters as plain text with tables, without colours or other terminal codes.

    Parameters
    ----------
    statuses : sequence of ClusterStatus
        None at all makes one sentence.
    width : int or None
        Columns; None for the terminal's, between 80 and 120.
    max_rows : int or None
        How many workers to list for each cluster; None for all.
    now : datetime or None
        The time to count from; None for now.
    """
    if not statuses:
        return NO_CLUSTER
    from rich.console import Console
    from rich.text import Text

    now = now or utc_now()
    out = StringIO()
    columns = width or min(max(shutil.get_terminal_size().columns, 80), 120)
    # In a notebook rich would display what it prints, were it not told that this is none.
    console = Console(file=out, width=columns, color_system=None, force_terminal=False, force_jupyter=False)
    for index, status in enumerate(statuses):
        if index:
            console.print()
        # Text objects, not strings: what stands in square brackets is a message's own, not markup.
        sums = totals(status)
        console.print(Text(f"{clean(status.name)}: {status.state}, {workers_words(status, sums)}"))
        console.print(Text(" · ".join(fact_words(status, now))))
        if status.dashboard_link:
            # One line however narrow the terminal is: a link that was broken in two cannot be followed.
            console.print(Text(f"Dashboard: {clean(status.dashboard_link)}"), soft_wrap=True)
        if status.read_only_link:
            console.print(Text(f"Read-only: {clean(status.read_only_link)}"), soft_wrap=True)
        if status.state == "starting" and (estimate := estimate_words(status)):
            console.print(Text(estimate.capitalize()))
        if advice := advice_words(status, sums):
            console.print(Text(advice))
        shown = choose(status.workers, Wanted(), sums.failed, max_rows or max(len(status.workers), 1)).rows
        if status.scheduler is not None:
            console.print(Text(f"Scheduler: {', '.join(_cells(status.scheduler, now))}"))
        if shown:
            out.write("\n".join([*_table(shown, now), ""]))
        if more := len(status.workers) - len(shown):
            console.print(Text(f"… and {more:,} more"))
        for session in (*filter(None, [status.scheduler]), *shown):
            if words := message_words(session):
                console.print(Text(f"{clean(session.session)} {session.state}: {words}"))
        for event in latest_events(status.events):
            console.print(Text(f"{format_at(event.at, now)} {clean(event.message)}"))
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines())


def progress_line(status: ClusterStatus, now: datetime | None = None, since: datetime | None = None) -> str:
    """One line that tells how far a start is: ``default: 2 of 4 workers ready · 1 starting · 1 pending · 12 s``.

    Parameters
    ----------
    now : datetime or None
        The time to count to; None for now.
    since : datetime or None
        The time to count from, where that is not the cluster's creation (it is being scaled).
    """
    elapsed_s = ((now or utc_now()) - (since or status.created_at)).total_seconds()
    words = [*count_words(status), format_duration_s(elapsed_s, exact=True)]
    if since is None and (estimate := estimate_words(status)):
        words.append(estimate)
    return f"{clean(status.name)}: {' · '.join(words)}"


def status_line(status: ClusterStatus) -> str:
    """One line for a list of clusters, with nothing in it that changes every second."""
    words = [f"{clean(status.name)}: {status.state}", workers_words(status)]
    if status.state == "starting":
        words += count_words(status)[1:]
    return f"{SIGNS[status.state][1]} {' · '.join(words)}"


def ended_line(name: str, kind: Kind) -> str:
    """The same for a cluster that is no more."""
    return f"{SIGNS[kind][1]} {clean(name)}: {kind}"


def _table(workers: Sequence[SessionStatus], now: datetime) -> list[str]:
    """A table of workers, a line each. Not rich's, which takes seconds for thousands of them."""
    rows = [("Worker", "IP address", "State", "CPU", "Memory", "Threads", "Tasks")]
    for worker in workers:
        reported = (NO_VALUE,) * 4
        if worker.state == "running":
            reported = (
                format_percent(worker.cpu_percent),
                memory_words(worker),
                str(worker.nthreads),
                str(worker.executing),
            )
        rows.append((*_cells(worker, now), *reported))
    widths = [max(map(cell_len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(_filled(cell, widths[at], right=at > 2) for at, cell in enumerate(row)) for row in rows]
    return ["", lines[0], "─" * cell_len(lines[0]), *lines[1:], ""]


def _filled(cell: str, width: int, right: bool) -> str:
    """A cell of a table, so many columns of the terminal wide."""
    space = " " * (width - cell_len(cell))
    return space + cell if right else cell + space


def _cells(session: SessionStatus, now: datetime) -> tuple[str, str, str]:
    return clean(session.session), clean(session.ip_address or NO_VALUE), phase_words(session, now)


def _session(session: SessionStatus) -> dict[str, Any]:
    return {
        "session": session.session,
        "state": session.state,
        "ip_address": session.ip_address,
        "address": session.address,
    }


def _iso(at: datetime) -> str:
    return f"{at.astimezone(timezone.utc):%Y-%m-%dT%H:%M:%SZ}"


def _finite(value: float) -> float | None:
    return round(value, 4) if math.isfinite(value) else None


def _seconds(value: float | None) -> float | None:
    """Whole seconds as an integer, as people write them."""
    if value is None or not math.isfinite(value):
        return None
    return int(value) if value == int(value) else round(value, 3)
