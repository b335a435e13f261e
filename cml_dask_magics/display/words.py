"""The words that text and HTML share: states, sizes, durations and sentences about a cluster."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from typing import Literal, NamedTuple

from cml_dask_magics.model.status import ClusterStatus, Ended, Event, SessionState, SessionStatus, WorkerFigures
from cml_dask_magics.model.words import (
    clean,
    disowned_words,
    format_bytes,
    format_memory,
    no_tls_words,
    plural,
    unit,
)

Kind = Literal["ended", "failed"]
"""How a cluster ended."""

NO_VALUE = "\N{EN DASH}"
"""Shown for unknown values."""

MAX_EVENTS = 5
"""How many events are shown at first."""

MORE_EVENTS = 50
"""How many events are shown after a click on *More events*."""

SIGNS = {
    "running": "●",
    "starting": "◐",
    "pending": "○",
    "stopping": "◑",
    "degraded": "▲",
    "failed": "✖",
    "lost": "✖",
    "ended": "■",
}
"""A sign for each state, because not everybody can see the colours."""

_OLD_S = 10.0  # while nobody looks, the scheduler reports every five seconds

_PLATFORMS = {"cml": "CML", "cdsw": "CDSW", "local": "this machine"}
_PHASES: tuple[SessionState, ...] = ("starting", "pending", "stopping", "failed")


class Totals(NamedTuple):
    """The number of sessions in each state, and of connected workers, with sums over those."""

    states: Mapping[str, int]
    workers: int
    nthreads: int
    memory_limit_bytes: int
    cpu_percent: float
    memory_bytes: int
    executing: int

    @property
    def ready(self) -> int:
        """How many sessions have all their workers connected."""
        return self.states.get("running", 0)

    @property
    def failed(self) -> int:
        """How many sessions failed."""
        return self.states.get("failed", 0)


def totals(status: ClusterStatus) -> Totals:
    """Count sessions and workers, and sum what the connected ones last reported."""
    states = Counter[str]([session.state for session in status.workers])
    workers = nthreads = memory_limit_bytes = memory_bytes = executing = 0
    cpu_percent = 0.0
    for session in status.workers:  # one pass, each second: there may be thousands
        if session.state in ("running", "starting"):  # with several workers, it starts until the last one has come
            workers += len(session.workers)
            nthreads += session.nthreads
            memory_limit_bytes += session.memory_limit_bytes
            memory_bytes += session.memory_bytes
            executing += session.executing
            if math.isfinite(session.cpu_percent):
                cpu_percent += session.cpu_percent
    return Totals(states, workers, nthreads, memory_limit_bytes, cpu_percent, memory_bytes, executing)


def format_duration_s(seconds: float, exact: bool = False) -> str:
    """A duration in words.

    Parameters
    ----------
    seconds : float
        Negative, NaN and infinite values count as 0.
    exact : bool
        Show seconds above a minute too. Off by default, so that a display changes once a minute.

    Returns
    -------
    str
        Rounded down: ``12 s``, ``48 min``, ``2 h 5 min``, ``3 d 4 h``; exact: ``1 min 12 s``.
    """
    total = int(max(seconds, 0)) if math.isfinite(seconds) else 0
    minutes, rest = divmod(total, 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    parts = [f"{n} {unit}" for n, unit in ((days, "d"), (hours, "h"), (minutes, "min"), (rest, "s")) if n]
    if not parts:
        return "0 s"
    if total >= 60 and not exact and rest:
        parts.pop()
    return " ".join(parts[:2])


def format_percent(percent: float) -> str:
    """``3 %``; a dash for NaN."""
    return f"{max(percent, 0):.0f} %" if math.isfinite(percent) else NO_VALUE


def format_at(at: datetime, now: datetime) -> str:
    """A time in UTC: ``12:00:31``, with the date if that is not today's."""
    at, now = at.astimezone(timezone.utc), now.astimezone(timezone.utc)
    return f"{at:%H:%M:%S}" if at.date() == now.date() else f"{at:%Y-%m-%d %H:%M:%S}"


def utc_now() -> datetime:
    """The current time, timezone-aware."""
    return datetime.now(timezone.utc)


def workers_words(status: ClusterStatus, sums: Totals | None = None) -> str:
    """``4 of 4 workers``, ``2 of 2 sessions, 8 workers``; while Dask scales it: ``3 of 4 workers, adaptive 2 to 8``."""
    sums = sums or totals(status)
    words = f"{sums.ready:,} of {plural(status.requested, unit(status.processes))}"
    if status.processes > 1:
        words += f", {plural(sums.workers, 'worker')}"
    return f"{words}, adaptive {status.adapt[0]} to {status.adapt[1]}" if status.adapt else words


def idle_words(status: ClusterStatus) -> str:
    """When the cluster stops by itself: ``stops in 48 min if idle``."""
    if status.idle_timeout_s is None:
        return "does not stop by itself"
    if status.idle_s is None:
        return f"stops after {format_duration_s(status.idle_timeout_s)} idle"
    left_s = status.idle_timeout_s - status.idle_s
    return f"stops in {format_duration_s(left_s)} if idle" if left_s >= 1 else "idle for too long: about to stop"


def usage_words(status: ClusterStatus) -> str:
    """The usage so far: ``used 0.42 core-hours, 0.90 GiB-hours``."""
    usage = status.usage
    parts = [f"{_hours(usage.core_hours)} core-hours", f"{_hours(usage.gib_hours)} GiB-hours"]
    if usage.gpu_hours > 0:
        parts.append(f"{_hours(usage.gpu_hours)} GPU-hours")
    return "used " + ", ".join(parts)


def fact_words(status: ClusterStatus, now: datetime) -> list[str]:
    """Platform, age, usage, idle countdown, and how old all of that is, where it is old."""
    age_s = (now - status.created_at).total_seconds()
    starting = status.state == "starting"
    facts = [
        f"on {_PLATFORMS.get(status.backend, clean(status.backend))}",
        f"{'starting for' if starting else 'up'} {format_duration_s(age_s, exact=starting)}",
        usage_words(status),
    ]
    if status.state in ("running", "degraded"):
        facts.append(idle_words(status))
    if status.heard_s is not None and status.heard_s >= _OLD_S:
        facts.append(f"last heard of {format_duration_s(status.heard_s, exact=True)} ago")
    return facts


def estimate_words(status: ClusterStatus) -> str:
    """How long earlier starts took: ``usually ready after about 35 s``; empty if there were none."""
    usual_s = status.usual_start_s
    if usual_s is None or not math.isfinite(usual_s) or usual_s <= 0:
        return ""
    # Round it: it is only an estimate.
    step_s = 1 if usual_s < 10 else 5 if usual_s < 90 else 30
    return f"usually ready after about {format_duration_s(max(round(usual_s / step_s), 1) * step_s, exact=True)}"


def trouble_words(status: ClusterStatus) -> str:
    """What went wrong with a worker of late, and what helps; empty if nothing did."""
    return status.trouble[:1].upper() + status.trouble[1:] + "." if status.trouble else ""


def no_tls_warning(status: ClusterStatus) -> str:
    """For as long as it runs, what a cluster without TLS lets others do; empty with TLS."""
    return "" if status.tls else f"Without TLS: {no_tls_words(status.backend == 'local')}."


def advice_words(status: ClusterStatus, sums: Totals | None = None) -> str:
    """What is wrong and what to do about it; empty if nothing is."""
    if status.state == "lost":
        return (
            "Its scheduler is gone, or has been silent for long. %dask_up starts it again with the same "
            "settings, %dask_down clears what is left of it."
        )
    parts = [_what_is_missing(status, sums or totals(status)), clean(status.why_pending)]
    return " ".join(part for part in parts if part)


def _what_is_missing(status: ClusterStatus, sums: Totals) -> str:
    failures = f"{plural(sums.failed, 'session')} failed. " if sums.failed else ""
    missing = status.requested - sums.ready
    if status.state == "degraded" and missing > 0:
        who = plural(missing, unit(status.processes))
        are = "is" if missing == 1 else "are"
        if not status.replaces_lost:
            return (
                f"{failures}{who} {are} missing, and the last replacements ended before they "
                "connected: the events say why. %dask_up tries again."
            )
        return f"{failures}{who} {are} not connected yet."
    return failures.strip()


def phase_words(session: SessionStatus, now: datetime) -> str:
    """The session's state, with its duration if it is a transition: ``pending 12 s``."""
    if session.state_since is not None:
        return f"{session.state} {format_duration_s((now - session.state_since).total_seconds(), exact=True)}"
    return "paused" if session.state == "running" and session.is_paused else session.state


def count_words(status: ClusterStatus, sums: Totals | None = None) -> list[str]:
    """How many workers or sessions are in which state: ``2 of 4 workers ready``, ``1 starting``."""
    sums = sums or totals(status)
    words = [f"{sums.ready:,} of {plural(status.requested, unit(status.processes))} ready"]
    if status.scheduler is not None and status.scheduler.state != "running":
        words.append(f"scheduler {status.scheduler.state}")
    return words + [f"{sums.states[phase]:,} {phase}" for phase in _PHASES if sums.states.get(phase)]


def memory_words(worker: SessionStatus | WorkerFigures) -> str:
    """A worker's memory and what it spilled to disk: ``1.5 / 2 GiB, 300 MiB spilled``."""
    words = format_memory(worker.memory_bytes, worker.memory_limit_bytes)
    return f"{words}, {format_bytes(worker.spilled_bytes)} spilled" if worker.spilled_bytes > 0 else words


def latest_events(events: Sequence[Event], limit: int = MAX_EVENTS) -> list[Event]:
    """The newest events, newest first."""
    return sorted(events, key=lambda event: event.at)[-limit:][::-1]


def ended_words(ended: Ended, peak_memory_bytes: int = 0) -> str:
    """The summary of a stopped cluster."""
    usage = ended.usage
    gpu = f", {usage.gpu_hours:.2f} GPU-hours" if usage.gpu_hours else ""
    peak = f"; {format_bytes(peak_memory_bytes)} of memory at most" if peak_memory_bytes else ""
    others = f" {disowned_words(ended.disowned)}." if ended.disowned else ""
    if ended.machine:
        others += f" Its processes on machine {ended.machine}, if that still runs, end by themselves within seconds."
    return (
        f"Stopped cluster {ended.name!r}: {plural(ended.sessions, 'session')} "
        f"after {format_duration_s(ended.uptime_s)}; "
        f"used {usage.core_hours:.2f} core-hours, {usage.gib_hours:.2f} GiB-hours{gpu}{peak}.{others}"
    )


def _hours(value: float) -> str:
    """At most three digits, so that the usage of a big cluster does not change all the time."""
    return f"{value:,.{2 if value < 10 else 1 if value < 100 else 0}f}"
