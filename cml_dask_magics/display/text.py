"""A cluster's snapshot as plain text and as a progress line.

Pure functions of ``ClusterStatus``: knows neither widgets nor clusters.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from datetime import datetime
from io import StringIO

from rich.cells import cell_len

from cml_dask_magics.display.listing import Wanted, choose
from cml_dask_magics.display.safe import clean
from cml_dask_magics.display.words import (
    NO_VALUE,
    SIGNS,
    Kind,
    advice_words,
    count_words,
    estimate_words,
    fact_words,
    format_at,
    format_duration_s,
    format_percent,
    latest_events,
    memory_words,
    phase_words,
    totals,
    utc_now,
    workers_words,
)
from cml_dask_magics.model.status import ClusterStatus, SessionStatus

NO_CLUSTER = "No cluster is running. %dask_up starts one."


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
        # Text objects, not strings: square brackets in an event are no markup.
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
        shown = choose(status.workers, Wanted(), max_rows or max(len(status.workers), 1)).rows
        if status.scheduler is not None:
            console.print(Text(f"Scheduler: {', '.join(_cells(status.scheduler, now))}"))
        if shown:
            out.write("\n".join([*_table(shown, now), ""]))
        if more := len(status.workers) - len(shown):
            console.print(Text(f"… and {more:,} more"))
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
    return f"{SIGNS[status.state]} {' · '.join(words)}"


def ended_line(name: str, kind: Kind) -> str:
    """The same for a cluster that is no more."""
    return f"{SIGNS[kind]} {clean(name)}: {kind}"


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
