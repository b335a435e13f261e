"""What the memory of a session, and of this machine, has room for."""

from __future__ import annotations

import math
from dataclasses import replace

from cml_dask_magics.fleet.in_session import room_bytes, worker_limit_bytes
from cml_dask_magics.model.settings import Settings, Spelling, too_many
from cml_dask_magics.model.words import counted
from cml_dask_magics.platforms.api import Platform

_GIB = 2**30
_LEAST_SESSION_GIB = 0.5
# A worker that has imported pandas takes 150 MB, and Dask pauses it at 80 % of its limit.
_LEAST_LIMIT_BYTES = 190 * 10**6


def expected_limit_bytes(settings: Settings, platform: Platform) -> int:
    """The memory limit of each worker of a new session, as far as that can be known before the session runs."""
    asked = settings.memory_gib * _GIB
    there = asked if _is_this_machine(platform) else _usual_bytes(settings.memory_gib)
    return worker_limit_bytes(there, asked, settings.processes)


def most_sessions(settings: Settings, platform: Platform) -> int:
    """The highest number of sessions of workers: by ``max-workers``, and by this machine's memory."""
    if not _is_this_machine(platform):
        return settings.max_workers
    session = settings.processes * expected_limit_bytes(settings, platform)
    return min(settings.max_workers, int(platform.memory_gib * _GIB / session))


def check_number(n: int, settings: Settings, platform: Platform) -> None:
    """Check that this machine's memory has room for `n` sessions of workers.

    Raises
    ------
    ValueError
        If it has not, or ``max-workers`` is less.
    """
    if n > settings.max_workers:
        raise ValueError(f"N must be {too_many(n, settings)}")
    most = most_sessions(settings, platform)
    if n > most:
        raise ValueError(
            f"this machine's {platform.memory_gib:.3g} GiB have no room for {counted(n, settings.processes)} with a "
            f"memory of {settings.memory_gib:.3g} GiB, but for {most}; start the cluster again with a smaller --memory"
        )


def fitted_together(settings: Settings, platform: Platform, spelled: Spelling) -> tuple[Settings, list[str]]:
    """The settings, with workers so small that this machine's memory has room for all of them, and a note about it.

    Raises
    ------
    ValueError
        If they would be too small to work.
    """
    n = max(settings.n_workers, settings.adapt[1] if settings.adapt else 0)
    if n <= most_sessions(settings, platform):
        return settings, []
    machine, sessions = f"this machine's {platform.memory_gib:.3g} GiB", counted(n, settings.processes)
    share_gib = math.floor(platform.memory_gib / n * 100) / 100
    if share_gib < _LEAST_SESSION_GIB:
        most = int(platform.memory_gib / _LEAST_SESSION_GIB)
        raise ValueError(f"{machine} have room for {most} workers at most, not for {sessions}; ask for fewer")
    note = (
        f"{spelled('memory')} {settings.memory_gib:g} for each of {sessions} is more than {machine}; "
        f"it counts as {share_gib:g} GiB"
    )
    return replace(settings, memory_gib=share_gib), [note]


def check_worker_memory(settings: Settings, platform: Platform, spelled: Spelling) -> list[str]:
    """Check that workers have the memory that they need; a note where it is scarce.

    Raises
    ------
    ValueError
        If it is not enough for Dask itself.
    """
    processes, memory = settings.processes, spelled("memory")
    of_each = "a worker" if processes == 1 else f"each of {processes} workers ({spelled('processes')})"
    limit = expected_limit_bytes(settings, platform)
    if limit < _LEAST_LIMIT_BYTES:
        enough = _asked_gib(2 * processes * _LEAST_LIMIT_BYTES)
        raise ValueError(
            f"{memory} {settings.memory_gib:g} leaves {of_each} {limit / _GIB:.2g} GiB, which is too little for Dask; "
            f"it must be {enough:g} or more"
        )
    needed = 2 * room_bytes(processes)
    if _is_this_machine(platform) or _usual_bytes(settings.memory_gib) >= needed:
        return []
    return [
        f"with {memory} {settings.memory_gib:g} a task whose memory grows quickly ends its whole session; "
        f"with {_asked_gib(needed):g} or more Dask restarts the worker alone"
    ]


def _is_this_machine(platform: Platform) -> bool:
    """Whether all sessions share the platform's memory."""
    return math.isfinite(platform.memory_gib)


def _usual_bytes(memory_gib: float) -> float:
    """What a CML session really has that was asked for with so many GiB, at least."""
    return memory_gib * 10**9 - 10**8


def _asked_gib(session_bytes: float) -> float:
    """What to ask for, in steps of a half, so that a session of CML has so much."""
    return math.ceil((session_bytes + 10**8) / 10**9 * 2) / 2
