"""A ``ClusterStatus`` as HTML: the pieces of the panel, and all of them as a static page."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timezone
from operator import attrgetter

from cml_dask_magics.display.html.basics import anchor, sign, text
from cml_dask_magics.display.html.graphs import bar, graph, memory_ink, width
from cml_dask_magics.display.html.looks import Dress, inline
from cml_dask_magics.display.html.table import table
from cml_dask_magics.display.listing import Wanted, choose
from cml_dask_magics.display.words import (
    MAX_EVENTS,
    Kind,
    Totals,
    advice_words,
    count_words,
    estimate_words,
    fact_words,
    format_at,
    format_percent,
    latest_events,
    no_tls_warning,
    totals,
    trouble_words,
    utc_now,
    workers_words,
)
from cml_dask_magics.model.status import ClusterStatus, Event
from cml_dask_magics.model.words import format_bytes, plural, unit

_CPU = attrgetter("cpu_percent")
_MEMORY = attrgetter("memory_bytes")
_TASKS = attrgetter("executing")


def to_html(status: ClusterStatus, now: datetime | None = None) -> str:
    """One cluster as static HTML, without scripts, style sheets and anything to load."""
    now = now or utc_now()
    sums = totals(status)
    pieces = [
        head(status, sums, inline),
        facts(status, now, inline),
        links(status, inline),
        advice(status, sums, inline),
        (progress if status.state == "starting" else tiles)(status, sums, inline),
        sessions(status, now, inline),
        events(status.events, now, inline),
        f"<div{inline('faint')}>As it was at {_exact(now)}; %dask_status shows how it is.</div>",
    ]
    return page("".join(pieces))


def page(pieces: str) -> str:
    """The frame around pieces with inline styles."""
    return f"<div{inline('box', 'padding:4px 8px')}>{pieces}</div>"


def sessions(status: ClusterStatus, now: datetime, dress: Dress) -> str:
    """The scheduler and the first workers, and how many more there are."""
    chosen = choose(status.workers, Wanted())
    more = chosen.found - len(chosen.rows)
    listed = table(status.scheduler, chosen.rows, now, dress)
    return f"{listed}<div{dress('faint')}>… and {more:,} more</div>" if more else listed


def last_seen(status: ClusterStatus, at: datetime, dress: Dress) -> str:
    """The sessions of a cluster that has ended, as they were last seen; empty if there were none."""
    listed = sessions(status, at, dress)
    return f"<div{dress('seen')}>Its sessions as last seen, at {_exact(at)}:</div>{listed}" if listed else ""


def head(status: ClusterStatus, sums: Totals, dress: Dress) -> str:
    """Name, state, how many workers."""
    return _head(status.name, status.state, dress, f" <span>{text(workers_words(status, sums))}</span>")


def facts(status: ClusterStatus, now: datetime, dress: Dress) -> str:
    """Platform, age, usage and idle countdown."""
    return f"<div{dress('faint')}>{text(' · '.join(fact_words(status, now)))}</div>"


def links(status: ClusterStatus, dress: Dress) -> str:
    """The addresses of the dashboard."""
    shown = [("Dashboard", status.dashboard_link), ("Read-only", status.read_only_link)]
    return "".join(f"<div>{title}: {anchor(url, dress)}</div>" for title, url in shown if url)


def advice(status: ClusterStatus, sums: Totals, dress: Dress) -> str:
    """What is wrong with the cluster and its workers, and what helps; empty if nothing is wrong."""
    said = filter(None, (no_tls_warning(status), advice_words(status, sums), trouble_words(status)))
    return "".join(f"<div{dress('advice')}>{text(words)}</div>" for words in said)


def error(message: str, dress: Dress) -> str:
    """An error; empty without a message."""
    return f'<div role="alert"{dress("error")}>{sign("failed", dress)} {text(message)}</div>' if message else ""


def busy(doing: str, dress: Dress) -> str:
    """What is being done; empty if nothing is."""
    return f'<div role="status">{sign("starting", dress)} {text(doing)} …</div>' if doing else ""


def waits(words: str, dress: Dress) -> str:
    """A note that what is pressed has to wait, which the page looks for when something is; empty without words."""
    return f'<div role="status"{dress("waits")}>{text(words)}</div>' if words else ""


def preparing(name: str, dress: Dress) -> str:
    """The head before the first snapshot."""
    return _head(name, "starting", dress)


def tiles(status: ClusterStatus, sums: Totals, dress: Dress) -> str:
    """Workers, CPU, memory and tasks of the cluster, now and in the last five minutes."""
    history, threads, limit = status.history, sums.nthreads, sums.memory_limit_bytes
    cpu_percent = sums.cpu_percent / threads if threads else 0.0
    share = sums.memory_bytes / limit if limit else 0.0
    ready = sums.ready / status.requested if status.requested else 0.0
    of_limit = f" of {format_bytes(limit)}" if limit else ""

    def cpu_words(percent: float) -> str:
        return format_percent(percent / threads if threads else 0.0)

    cpu = graph(history, _CPU, 100.0 * threads, "CPU", cpu_words, dress)
    memory = graph(history, _MEMORY, limit, "Memory", format_bytes, dress)
    tasks = graph(history, _TASKS, threads, "Tasks running", lambda count: f"{count:,.0f}", dress)
    cpu_bar, memory_bar = bar(cpu_percent / 100, dress), bar(share, dress, memory_ink(share))
    tasks_bar = bar(sums.executing / threads if threads else 0, dress)
    counted = unit(status.processes).capitalize() + "s"
    if status.processes > 1:
        counted += f" with {plural(sums.workers, 'worker')}"
    tile = [
        _tile(counted, f"{sums.ready:,} of {status.requested:,}", "", bar(ready, dress, "good"), dress),
        _tile(f"CPU of {plural(threads, 'thread')}", format_percent(cpu_percent), cpu, cpu_bar, dress),
        _tile(f"Memory{of_limit}", format_bytes(sums.memory_bytes), memory, memory_bar, dress),
        _tile("Tasks running", f"{sums.executing:,}", tasks, tasks_bar, dress),
    ]
    return f"<div{dress('tiles')}>{''.join(tile)}</div>"


def progress(status: ClusterStatus, sums: Totals, dress: Dress) -> str:
    """The progress of a start: a bar of connected, starting and failed workers, the numbers, and an estimate."""
    total = max(status.requested, len(status.workers), 1)
    parts = (("good", sums.ready), ("busy", sums.states.get("starting", 0)), ("bad", sums.failed))
    fills = "".join(f"<span{dress(f'fill-{ink}', width(count / total))}></span>" for ink, count in parts if count)
    words = text(" · ".join([*count_words(status, sums), *filter(None, [estimate_words(status)])]))
    return (
        f'<div role="progressbar" aria-label="{unit(status.processes).capitalize()}s ready" '
        f'aria-valuemin="0" aria-valuemax="{status.requested}" '
        f'aria-valuenow="{sums.ready}" aria-valuetext="{words}"{dress("long")}>{fills}</div>'
        f"<div{dress('under')}>{words}</div>"
    )


def events(happened: Sequence[Event], now: datetime, dress: Dress, limit: int = MAX_EVENTS) -> str:
    """The latest events, newest first, in UTC."""
    items = [
        f'<li{dress("event")}><time datetime="{event.at.astimezone(timezone.utc):%Y-%m-%dT%H:%M:%SZ}" title="UTC"'
        f"{dress('when')}>{format_at(event.at, now)}</time> {text(event.message)}</li>"
        for event in latest_events(happened, limit)
    ]
    return (
        f'<ul aria-label="Events, newest first, times in UTC"{dress("events")}>{"".join(items)}</ul>' if items else ""
    )


def log(session: str, lines: Sequence[str], dress: Dress) -> str:
    """What a session printed, scrolled to the end."""
    body = text("\n".join(lines)) if lines else f"<span{dress('faint')}>It has printed nothing.</span>"
    return (
        f'<div role="log" tabindex="0" aria-label="Log of {text(session)}"'
        f"{dress('log')}><pre{dress('lines')}>{body}</pre></div>"
    )


def summary(name: str, words: str, kind: Kind, dress: Dress) -> str:
    """The summary of a cluster that has ended."""
    body = error(words, dress) if kind == "failed" else f"<div{dress('event')}>{text(words)}</div>"
    return f"<div{dress('card')}>{_head(name, kind, dress)}{body}</div>"


def _head(name: str, state: str, dress: Dress, more: str = "") -> str:
    return (
        f"<div{dress('head')}><span{dress('name')}>{text(name)}</span> "
        f"<span{dress('state')}>{sign(state, dress)} {state}</span>{more}</div>"
    )


def _exact(at: datetime) -> str:
    return f"{at.astimezone(timezone.utc):%Y-%m-%d %H:%M:%S} UTC"


def _tile(label: str, value: str, picture: str, share: str, dress: Dress) -> str:
    return (
        f"<div{dress('tile')}><div{dress('label')}>{label}</div>"
        f"<div{dress('figure')}><span{dress('value')}>{value}</span>{picture}</div>{share}</div>"
    )
