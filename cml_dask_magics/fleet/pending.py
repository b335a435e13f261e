"""What is told of sessions that the platform does not start: why that may be, and what would fit.

A session that finds no room, or is over the user's quota, is not refused: it stays pending, and nothing says why.
"""

from __future__ import annotations

import contextlib
import time

from cml_dask_magics.fleet.fleet import Fleet
from cml_dask_magics.model.settings import Settings

# What a user has in all on premises, unless an administrator gave more (Cloudera's documentation), and what the
# smallest session with a notebook takes of it.
_QUOTA_CORES, _QUOTA_GIB = 2.0, 8.0
_NOTEBOOK_CORES, _NOTEBOOK_GIB = 1.0, 2.0


def why_pending(fleet: Fleet, after_s: float) -> str:
    """What the user should know of sessions that have been pending for so long; empty if there are none.

    Parameters
    ----------
    fleet : Fleet
    after_s : float
        For how many seconds at least.
    """
    since = time.time() - after_s
    waiting = [each for each in fleet.record.sessions if each.running_at is None and each.launched_at <= since]
    pending = list(fleet.states(waiting, connected=())).count("pending")
    if not pending:
        return ""
    are = "1 session is" if pending == 1 else f"{pending} sessions are"
    cores = sum(session.cpu for session in fleet.record.sessions)
    gib = sum(session.memory_gib for session in fleet.record.sessions)
    gpus = " or no GPU is free" if fleet.settings.gpu else ""
    return (
        f"{are} still pending. The platform may have no room just now{gpus}, or your quota is used up: on premises it "
        f"is {_QUOTA_CORES:g} cores and {_QUOTA_GIB:g} GiB in all, unless an administrator gave you more, and the "
        f"notebook's own session counts. This cluster asks for {cores:g} cores and {gib:g} GiB"
        f"{_what_would_fit(fleet.settings, cores, gib)}."
    )


def _what_would_fit(settings: Settings, cores: float, gib: float) -> str:
    """What fits the smallest quota beside a notebook, if the cluster does not."""
    left_cores, left_gib = _QUOTA_CORES - _NOTEBOOK_CORES, _QUOTA_GIB - _NOTEBOOK_GIB
    if cores <= left_cores and gib <= left_gib:
        return ""
    cpu, memory = min(settings.cpu, left_cores), min(settings.memory_gib, left_gib)
    n = max(1, int(min(left_cores // cpu, left_gib // memory, settings.n_workers)))
    name = "" if settings.name == "default" else f" --name {settings.name}"
    gpus = f" --gpu {settings.gpu}" if settings.gpu else ""
    processes = f" --processes {settings.processes}" if settings.processes != max(1, settings.gpu) else ""
    return (
        f"; beside a notebook of {_NOTEBOOK_CORES:g} core and {_NOTEBOOK_GIB:g} GiB there would be room for "
        f"%dask_up {n}{name} --scheduler-here --cpu {cpu:g} --memory {memory:g}{gpus}{processes}"
    )


def other_clusters(fleet: Fleet) -> str:
    """That the user's other clusters may take room, with their names, after `why_pending`; empty if there are none."""
    registry, ours, others = fleet.journal.registry, fleet.record, []
    with contextlib.suppress(RuntimeError, OSError):
        for name in registry.names():
            record = registry.read(name) if name != ours.name else None
            if record is not None and record.sessions and record.backend == ours.backend:
                others.append(name)
    return f" Your other clusters may take room, too: {', '.join(others)}." if others else ""
