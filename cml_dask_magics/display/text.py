"""A ``ClusterStatus`` as plain text and as a progress line."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from datetime import datetime
from io import StringIO

from rich.cells import cell_len

from cml_dask_magics.display.listing import Wanted, choose
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
    no_tls_warning,
    phase_words,
    totals,
    trouble_words,
    utc_now,
    workers_words,
)
from cml_dask_magics.model.status import ClusterStatus, SessionStatus, WorkerFigures
from cml_dask_magics.model.words import clean, unit

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
        If empty, the text is one sentence.
    width : int or None
        Columns; None for the terminal's width, between 80 and 120.
    max_rows : int or None
        How many workers to list for each cluster; None for all.
    now : datetime or None
        None for now.
    """
    if not statuses:
        return NO_CLUSTER
    from rich.console import Console
    from rich.text import Text

    now = now or utc_now()
    out = StringIO()
    columns = width or min(max(shutil.get_terminal_size().columns, 80), 120)
    # force_jupyter=False: in a notebook, rich would display instead of writing to the file.
    console = Console(file=out, width=columns, color_system=None, force_terminal=False, force_jupyter=False)
    for index, status in enumerate(statuses):
        if index:
            console.print()
        # Text objects, not strings: rich would take square brackets in an event for markup.
        sums = totals(status)
        console.print(Text(f"{clean(status.name)}: {status.state}, {workers_words(status, sums)}"))
        console.print(Text(" · ".join(fact_words(status, now))))
        if warning := no_tls_warning(status):
            console.print(Text(f"{SIGNS['degraded']} {warning}"))
        for title, link in (("Dashboard", status.dashboard_link), ("Read-only", status.read_only_link)):
            if link:  # on one line, so that it can be clicked
                console.print(Text(f"{title}: {clean(link)}"), soft_wrap=True)
        if status.state == "starting" and (estimate := estimate_words(status)):
            console.print(Text(estimate.capitalize()))
        if advice := advice_words(status, sums):
            console.print(Text(advice))
        if trouble := trouble_words(status):
            console.print(Text(clean(trouble)))
        shown = choose(status.workers, Wanted(), max_rows or max(len(status.workers), 1)).rows
        if status.scheduler is not None:
            console.print(Text(f"Scheduler: {', '.join(_cells(status.scheduler, now))}"))
        if shown:
            out.write("\n".join([*_table(shown, unit(status.processes).capitalize(), now), ""]))
        if more := len(status.workers) - len(shown):
            console.print(Text(f"… and {more:,} more"))
        for event in latest_events(status.events):
            console.print(Text(f"{format_at(event.at, now)} {clean(event.message)}"))
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines())


def progress_line(status: ClusterStatus, elapsed_s: float) -> str:
    """The progress of a command in one line: ``default: 2 of 4 workers ready · 1 starting · 1 pending · 12 s``."""
    words = [*count_words(status), format_duration_s(elapsed_s, exact=True)]
    if estimate := estimate_words(status):
        words.append(estimate)
    return f"{clean(status.name)}: {' · '.join(words)}"


def status_line(status: ClusterStatus) -> str:
    """One line for a list of clusters; shows no times, so that it seldom changes."""
    words = [f"{clean(status.name)}: {status.state}", workers_words(status)]
    if status.state == "starting":
        words += count_words(status)[1:]
    if not status.tls:
        words.append("without TLS")
    return f"{SIGNS[status.state]} {' · '.join(words)}"


def ended_line(name: str, kind: Kind) -> str:
    """The same for a cluster that has ended."""
    return f"{SIGNS[kind]} {clean(name)}: {kind}"


def _table(sessions: Sequence[SessionStatus], title: str, now: datetime) -> list[str]:
    """The lines of a table of sessions, with the workers of each where it has several.

    Not with rich, which takes seconds for thousands of rows.
    """
    rows = [(title, "IP address", "State", "CPU", "Memory", "Threads", "Tasks")]
    for session in sessions:
        reported = _reported(session) if session.state == "running" else (NO_VALUE,) * 4
        rows.append((*_cells(session, now), *reported))
        if len(session.workers) > 1:
            rows += [
                (f"  {clean(worker.name)}", "", "paused" if worker.is_paused else "", *_reported(worker))
                for worker in session.workers
            ]
    widths = [max(map(cell_len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(_filled(cell, widths[at], right=at > 2) for at, cell in enumerate(row)) for row in rows]
    return ["", lines[0], "─" * cell_len(lines[0]), *lines[1:], ""]


def _reported(worker: SessionStatus | WorkerFigures) -> tuple[str, str, str, str]:
    return format_percent(worker.cpu_percent), memory_words(worker), str(worker.nthreads), str(worker.executing)


def _filled(cell: str, width: int, right: bool) -> str:
    """A cell of a table, padded to a width."""
    space = " " * (width - cell_len(cell))
    return space + cell if right else cell + space


def _cells(session: SessionStatus, now: datetime) -> tuple[str, str, str]:
    return clean(session.session), clean(session.ip_address or NO_VALUE), phase_words(session, now)
