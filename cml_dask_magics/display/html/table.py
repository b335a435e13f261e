"""The table of a cluster's sessions as HTML: a row for each, its workers folded under it where it has several."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple

from cml_dask_magics.display.html.basics import sign, text
from cml_dask_magics.display.html.graphs import bar, memory_ink
from cml_dask_magics.display.html.looks import Dress, classed
from cml_dask_magics.display.words import NO_VALUE, format_percent, phase_words
from cml_dask_magics.model.status import SessionStatus, WorkerFigures
from cml_dask_magics.model.words import format_bytes, format_memory, plural


class Column(NamedTuple):
    """A column: its key in ``listing.SORTS``, title, width in per cent, and whether it has numbers."""

    key: str
    title: str
    percent: int
    numbers: bool = False


COLUMNS = (
    Column("session", "Session", 22),
    Column("ip", "IP address", 17),
    Column("state", "State", 14),
    Column("cpu", "CPU", 9, numbers=True),
    Column("memory", "Memory", 21, numbers=True),
    Column("threads", "Threads", 9, numbers=True),
    Column("tasks", "Tasks", 8, numbers=True),
)


def table(
    scheduler: SessionStatus | None,
    workers: Sequence[SessionStatus],
    now: datetime,
    dress: Dress,
    sort: str = "",
    descending: bool = False,
) -> str:
    """A table of sessions; in the panel, a click on an address copies it.

    Parameters
    ----------
    scheduler : SessionStatus or None
    workers : sequence of SessionStatus
        In the order to show.
    sort, descending
        The column that they are sorted by, for screen readers.
    """
    if not workers and scheduler is None:
        return ""
    titles = "".join(_title(column, dress, sort, descending) for column in COLUMNS)
    rows = [] if scheduler is None else [_row(scheduler, now, dress, scheduler=True)]
    for worker in workers:
        rows.append(_row(worker, now, dress))
        if len(worker.workers) > 1:
            rows.append(_folded(worker, dress))
    return (
        f"<div{dress('scroll')}>"
        f'<table aria-label="Scheduler and workers"{dress("table")}>'
        f"<thead><tr>{titles}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


def _title(column: Column, dress: Dress, sort: str, descending: bool) -> str:
    order = f' aria-sort="{"descending" if descending else "ascending"}"' if column.key == sort else ""
    look = dress("title-r" if column.numbers else "title", _width(dress, column.percent))
    return f'<th scope="col"{order}{look}>{column.title}</th>'


def _width(dress: Dress, percent: int) -> str:
    """The panel's columns have their widths, so that they do not move with what is in them."""
    return f"width:{percent}%" if dress is classed else ""


def _row(session: SessionStatus, now: datetime, dress: Dress, scheduler: bool = False) -> str:
    note = f" <span{dress('label')}>scheduler</span>" if scheduler else ""
    if scheduler:
        cells = '<td colspan="4"></td>'
    elif session.state != "running":
        cells = f"<td{dress('cell-r')}>{NO_VALUE}</td>" * 4
    else:
        cells = "".join(f"<td{dress('cell-r')}>{cell}</td>" for cell in _reported(session, dress))
    return (
        f'<tr><th scope="row"{dress("cell")}>{_address(session.session, dress)}{note}</th>'
        f"<td{dress('cell')}>{_address(session.ip_address, dress)}</td>"
        f"<td{dress('cell')}>{sign(_sign_of(session), dress)}&nbsp;{text(phase_words(session, now))}</td>"
        f"{cells}</tr>"
    )


def _folded(session: SessionStatus, dress: Dress) -> str:
    """A row that unfolds into the workers of the session above it, in the same columns."""
    words, name = plural(len(session.workers), "worker"), text(session.session)
    others = sum(column.percent for column in COLUMNS[:-4])
    rows = "".join(
        f'<tr><th scope="row"{dress("cell", _width(dress, others))}>{text(worker.name)}'
        + (f" <span{dress('label')}>paused</span></th>" if worker.is_paused else "</th>")
        + "".join(
            f"<td{dress('cell-r', _width(dress, column.percent))}>{cell}</td>"
            for column, cell in zip(COLUMNS[-4:], _reported(worker, dress), strict=True)
        )
        + "</tr>"
        for worker in session.workers
    )
    return (
        f'<tr><td colspan="{len(COLUMNS)}"{dress("cell")}><details data-session="{name}">'
        f'<summary aria-label="{words} of session {name}"{dress("fold")}>{words}</summary>'
        f'<table aria-label="Workers of session {name}"{dress("table")}><tbody>{rows}</tbody></table>'
        "</details></td></tr>"
    )


def _sign_of(session: SessionStatus) -> str:
    """The state whose sign a session has: a paused worker is as far from well as a cluster that lacks some."""
    return "degraded" if session.state == "running" and session.is_paused else session.state


def _reported(worker: SessionStatus | WorkerFigures, dress: Dress) -> tuple[str, str, str, str]:
    limit = worker.memory_limit_bytes
    share, spilled = (worker.memory_bytes / limit, worker.spilled_bytes / limit) if limit else (0.0, 0.0)
    note = ""
    if worker.spilled_bytes > 0:
        note = f"<div{dress('label')}>+ {format_bytes(worker.spilled_bytes)} spilled</div>"
    return (
        format_percent(worker.cpu_percent) + bar(worker.cpu_percent / 100 / max(worker.nthreads, 1), dress),
        format_memory(worker.memory_bytes, limit) + bar(share, dress, memory_ink(share), spilled) + note,
        str(worker.nthreads),
        str(worker.executing),
    )


def _address(address: str | None, dress: Dress) -> str:
    if not address:
        return NO_VALUE
    if dress is classed:
        return f'<span class="cdm-copy" role="button" tabindex="0">{text(address)}</span>'
    return f"<span{dress('id')}>{text(address)}</span>"
