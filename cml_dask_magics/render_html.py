"""A cluster's snapshot as HTML: the pieces that the panel is made of, and a page of them that stands alone.

Knows neither widgets nor clusters; how things look is in ``render_looks``.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timezone
from html import escape
from typing import Literal

from .render_looks import Dress, inline
from .render_words import (
    MAX_ROWS,
    NO_VALUE,
    advice_words,
    clean,
    count_words,
    fact_words,
    format_at,
    format_bytes,
    format_memory,
    format_percent,
    latest_events,
    listed_workers,
    message_words,
    phase_words,
    plural,
    safe_url,
    totals,
    utc_now,
    workers_words,
)
from .status import ClusterStatus, Event, SessionStatus

Kind = Literal["ended", "failed"]

# A sign for each state as well as a colour: colour alone says nothing to many readers, and to a printer.
_SIGNS = {
    "running": ("good", "●"),
    "starting": ("busy", "◐"),
    "pending": ("off", "○"),
    "stopping": ("warn", "◑"),
    "degraded": ("warn", "▲"),
    "failed": ("bad", "✖"),
    "lost": ("bad", "✖"),
    "ended": ("off", "■"),
}


def to_html(status: ClusterStatus, now: datetime | None = None) -> str:
    """A picture of one cluster that stands alone: no script, no style sheet, nothing to load.

    Parameters
    ----------
    now : datetime or None
        The time to count from; None for now.
    """
    now = now or utc_now()
    starting = progress(status, inline) if status.state == "starting" else tiles(status, inline)
    pieces = [
        head(status, now, inline),
        link(status, inline),
        advice(status, inline),
        starting,
        table(status, now, inline),
        events(status.events, now, inline),
    ]
    return f"<div{inline('box')}>{''.join(pieces)}</div>"


def head(status: ClusterStatus, now: datetime, dress: Dress) -> str:
    """Name, state, how many workers; below them platform, age, idle countdown and usage."""
    return (
        f"<div{dress('head')}><span{dress('name')}>{_text(status.name)}</span> "
        f"<span{dress('state')}>{_sign(status.state, dress)} {status.state}</span> "
        f"<span>{_text(workers_words(status))}</span></div>"
        f"<div{dress('faint')}>{_text(' · '.join(fact_words(status, now)))}</div>"
    )


def link(status: ClusterStatus, dress: Dress) -> str:
    """The link to the dashboard; one that a browser should not follow is shown as text."""
    if not status.dashboard_link:
        return ""
    shown = _text(status.dashboard_link)
    url = safe_url(status.dashboard_link)
    if url is None:
        return f"<div>Dashboard: {shown}</div>"
    return (
        f'<div>Dashboard: <a{dress("link")} href="{escape(url)}" target="_blank" rel="noopener noreferrer">{shown}</a>'
        "</div>"
    )


def advice(status: ClusterStatus, dress: Dress) -> str:
    """What is wrong with the cluster and what helps; empty when nothing is wrong."""
    words = advice_words(status)
    return f"<div{dress('advice')}>{_text(words)}</div>" if words else ""


def error(message: str, dress: Dress) -> str:
    """Something that went wrong just now; empty without a message."""
    return f'<div role="alert"{dress("error")}>{_sign("failed", dress)} {_text(message)}</div>' if message else ""


def busy(doing: str, dress: Dress) -> str:
    """What a button that was pressed is doing; empty when none was."""
    return f'<div role="status">{_sign("starting", dress)} {_text(doing)} …</div>' if doing else ""


def preparing(name: str, dress: Dress) -> str:
    """A head for the moment before anything is known."""
    state = f"<span{dress('state')}>{_sign('starting', dress)} starting</span>"
    return f"<div{dress('head')}><span{dress('name')}>{_text(name)}</span> {state}</div>"


def tiles(status: ClusterStatus, dress: Dress) -> str:
    """Is it up, is it busy: workers, CPU, memory and tasks of the whole cluster."""
    sums = totals(status)
    cores_percent = sums.cpu_percent / sums.nthreads if sums.nthreads else 0.0
    share = sums.memory_bytes / sums.memory_limit_bytes if sums.memory_limit_bytes else 0.0
    ready = status.ready / status.requested if status.requested else 0.0
    limit = f" of {format_bytes(sums.memory_limit_bytes)}" if sums.memory_limit_bytes else ""
    tile = [
        _tile("Workers", f"{status.ready:,} of {status.requested:,}", _bar(ready, dress, "good"), dress),
        _tile(
            f"CPU of {plural(sums.nthreads, 'thread')}",
            format_percent(cores_percent),
            _bar(cores_percent / 100, dress),
            dress,
        ),
        _tile(f"Memory{limit}", format_bytes(sums.memory_bytes), _bar(share, dress, _memory_ink(share)), dress),
        _tile(
            "Tasks running",
            f"{sums.executing:,}",
            _bar(sums.executing / sums.nthreads if sums.nthreads else 0, dress),
            dress,
        ),
    ]
    return f"<div{dress('tiles')}>{''.join(tile)}</div>"


def progress(status: ClusterStatus, dress: Dress) -> str:
    """How far a start is: a bar of connected, starting and failed workers, and the same in words."""
    total = max(status.requested, len(status.workers), 1)
    counts = {state: sum(worker.state == state for worker in status.workers) for state in ("starting", "failed")}
    parts = (("good", status.ready), ("busy", counts["starting"]), ("bad", counts["failed"]))
    fills = "".join(f"<span{dress(f'fill-{ink}', _width(count / total))}></span>" for ink, count in parts if count)
    words = _text(" · ".join(count_words(status)))
    return (
        f'<div role="progressbar" aria-label="Workers ready" aria-valuemin="0" aria-valuemax="{status.requested}" '
        f'aria-valuenow="{status.ready}" aria-valuetext="{words}"{dress("long")}>{fills}</div>'
        f"<div{dress('under')}>{words}</div>"
    )


def table(status: ClusterStatus, now: datetime, dress: Dress, limit: int = MAX_ROWS) -> str:
    """The scheduler and the workers, one row each, at most ``limit`` workers."""
    shown = listed_workers(status, limit)
    if not shown and status.scheduler is None:
        return ""
    left = "".join(f'<th scope="col"{dress("title")}>{title}</th>' for title in ("Session", "IP address", "State"))
    right = "".join(
        f'<th scope="col"{dress("title-r")}>{title}</th>' for title in ("CPU", "Memory", "Threads", "Tasks")
    )
    rows = [] if status.scheduler is None else [_row(status.scheduler, now, dress, scheduler=True)]
    rows += [_row(worker, now, dress) for worker in shown]
    more = len(status.workers) - len(shown)
    note = f"<div{dress('faint')}>… and {more:,} more</div>" if more else ""
    return (
        f'<div{dress("scroll")}><table aria-label="Scheduler and workers"{dress("table")}>'
        f"<thead><tr>{left}{right}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>{note}"
    )


def events(happened: Sequence[Event], now: datetime, dress: Dress) -> str:
    """What happened last, newest first, in UTC."""
    items = [
        f'<li{dress("event")}><time datetime="{event.at.astimezone(timezone.utc):%Y-%m-%dT%H:%M:%SZ}" title="UTC"'
        f"{dress('when')}>{format_at(event.at, now)}</time> {_text(event.message)}</li>"
        for event in latest_events(happened)
    ]
    return (
        f'<ul aria-label="Events, newest first, times in UTC"{dress("events")}>{"".join(items)}</ul>' if items else ""
    )


def summary(name: str, text: str, kind: Kind, dress: Dress) -> str:
    """What is left to say of a cluster that is no more."""
    body = error(text, dress) if kind == "failed" else f"<div{dress('event')}>{_text(text)}</div>"
    state = f"<span{dress('state')}>{_sign(kind, dress)} {kind}</span>"
    return f"<div{dress('head')}><span{dress('name')}>{_text(name)}</span> {state}</div>{body}"


def _row(session: SessionStatus, now: datetime, dress: Dress, scheduler: bool = False) -> str:
    note = f" <span{dress('label')}>scheduler</span>" if scheduler else ""
    words = message_words(session)
    # In a row of its own: in a cell it would squeeze the ids, which people copy.
    message = f'<tr><td colspan="7"{dress("message")}>{_text(words)}</td></tr>' if words else ""
    reported = [""] * 4 if scheduler else [NO_VALUE] * 4
    if session.state == "running" and not scheduler:
        share = session.memory_bytes / session.memory_limit_bytes if session.memory_limit_bytes else 0.0
        cpu = _bar(session.cpu_percent / 100 / max(session.nthreads, 1), dress)
        memory = format_memory(session.memory_bytes, session.memory_limit_bytes)
        reported = [
            format_percent(session.cpu_percent) + cpu,
            memory + _bar(share, dress, _memory_ink(share)),
            str(session.nthreads),
            str(session.executing),
        ]
    cells = "".join(f"<td{dress('cell-r')}>{cell}</td>" for cell in reported)
    return (
        f'<tr><th scope="row"{dress("cell")}><span{dress("id")}>{_text(session.session)}</span>{note}</th>'
        f"<td{dress('cell')}><span{dress('id')}>{_text(session.ip_address or NO_VALUE)}</span></td>"
        f"<td{dress('cell')}>{_sign(session.state, dress)}&nbsp;{_text(phase_words(session, now))}</td>"
        f"{cells}</tr>{message}"
    )


def _tile(label: str, value: str, bar: str, dress: Dress) -> str:
    return f"<div{dress('tile')}><div{dress('label')}>{label}</div><div{dress('value')}>{value}</div>{bar}</div>"


def _bar(share: float, dress: Dress, ink: str = "busy") -> str:
    """A small bar; only for the eye, the number stands next to it."""
    return f'<span aria-hidden="true"{dress("bar")}><span{dress(f"fill-{ink}", _width(share))}></span></span>'


def _width(share: float) -> str:
    # Not "min(max())" alone: a share that is no number (NaN) must not reach the browser.
    return f"width:{100 * min(share, 1):.0f}%" if share > 0 else "width:0%"


def _memory_ink(share: float) -> str:
    """Dask starts to spill at 60 to 70 per cent of a worker's limit and pauses it at 80."""
    return "bad" if share >= 0.8 else "warn" if share >= 0.6 else "busy"


def _sign(state: str, dress: Dress) -> str:
    ink, sign = _SIGNS[state]
    return f'<span aria-hidden="true"{dress(f"ink-{ink}")}>{sign}</span>'


def _text(words: str) -> str:
    return escape(clean(words), quote=True)
