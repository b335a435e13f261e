"""What the magics do, without the magics: bring a cluster up, take it down, look at it, read what it printed.

Knows the clusters that this kernel holds. Nothing here prints.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from distributed import Client

from cml_dask_magics.cluster.cluster import CMLCluster
from cml_dask_magics.cluster.shielded import finish
from cml_dask_magics.cluster.snapshot import snapshot
from cml_dask_magics.fleet.fleet import Fleet
from cml_dask_magics.fleet.opening import ANSWER_TIMEOUT_S, open_fleet, settings_of, what_fits
from cml_dask_magics.model.lifecycle import cluster_state
from cml_dask_magics.model.record import Record
from cml_dask_magics.model.settings import OPTIONS, Settings, as_typed
from cml_dask_magics.model.status import ClusterStatus, Ended, StatusCallback
from cml_dask_magics.platforms.api import PlatformError
from cml_dask_magics.registry.liveness import liveness
from cml_dask_magics.registry.registry import NameTakenError, Registry
from cml_dask_magics.registry.run_folder import read_tail, session_logs

_held: dict[str, CMLCluster] = {}
_clients: dict[str, Client] = {}
_parting_words: dict[str, str] = {}
_SIZES = ("cpu", "memory_gib", "gpu", "scheduler_cpu", "scheduler_memory_gib", "idle_timeout_s", "env", "tls")


@dataclass(frozen=True)
class Up:
    """What `up` came to.

    Parameters
    ----------
    cluster : CMLCluster
    done : str
        What was done: ``started``, ``starting``, ``re-attached`` or ``already up``, and ``scaled`` where it was.
    notes : tuple of str
        What the user should know: workers that are missing, options that a running cluster cannot take.
    """

    cluster: CMLCluster
    done: str
    notes: tuple[str, ...] = ()


def up(settings: Settings, given: frozenset[str], on_status: StatusCallback | None = None) -> Up:
    """Make it so that the cluster `settings.name` has as many workers as `settings` says.

    Parameters
    ----------
    settings : Settings
    given : frozenset of str
        The fields of `settings` that the user gave: a running cluster is scaled only if asked to.
    on_status : callable, optional
        Called about twice a second meanwhile, from Dask's thread.

    Raises
    ------
    RuntimeError
        If it did not come up; everything that this call launched has been stopped.
    """
    cluster = held(settings.name)
    done = "already up"
    if cluster is None:
        registry = Registry(settings.state_directory)
        fleet = open_fleet(registry, settings.name)
        if fleet is None or liveness(fleet.record, fleet.folder, ANSWER_TIMEOUT_S) == "silent":
            lost = fleet.record if fleet is not None else None
            try:
                return _started(settings, given, lost, on_status)
            except NameTakenError:  # another kernel claimed the name at the same instant
                pass
        cluster = CMLCluster.from_name(settings.name, shutdown_on_close=True)
        _held[settings.name] = cluster
        done = "re-attached"
    return _adjusted(cluster, settings, given, done, on_status)


def _started(settings: Settings, given: frozenset[str], lost: Record | None, on_status: StatusCallback | None) -> Up:
    notes = [words] if (words := _parting_words.pop(settings.name, "")) else []
    # What somebody began to stop was not lost.
    if lost is not None and lost.state != "stopping" and (before := settings_of(lost)) is not None:
        settings = _as_before(settings, given, replace(before, n_workers=lost.requested, adapt=lost.adapt))
        notes.append(
            f"cluster {settings.name!r} was lost; it was started anew with the settings that it had "
            f"({settings.n_workers} workers of {settings.cpu:g} cores and {settings.memory_gib:g} GiB)"
        )
    cluster = CMLCluster.from_settings(settings, on_status)
    _held[settings.name] = cluster
    notes += cluster.notes
    if cluster.warning:
        notes.append(cluster.warning)
    return Up(cluster, "starting" if settings.background else "started", tuple(notes))


def _as_before(settings: Settings, given: frozenset[str], before: Settings) -> Settings:
    """The settings that a lost cluster had, but for what is given now."""
    kept = {name: getattr(before, name) for name in ("n_workers", "adapt", *_SIZES, "dashboard_port", "local")}
    if "n_workers" in given:
        kept["adapt"] = None
    return replace(settings, **{name: value for name, value in kept.items() if name not in given})


def _adjusted(
    cluster: CMLCluster, settings: Settings, given: frozenset[str], done: str, on_status: StatusCallback | None
) -> Up:
    current, settings = cluster.settings, what_fits(settings, cluster.platform)
    fixed = [
        as_typed(option.name)
        for option in OPTIONS
        if option.field in _SIZES and option.field in given
        if getattr(settings, option.field) != getattr(current, option.field)
    ]
    notes = []
    if fixed:
        notes.append(
            f"cluster {cluster.name!r} keeps the {', '.join(fixed)} that it was started with; "
            f"%dask_down {cluster.name} first to change that"
        )
    # Without a number what was asked for stands, and so missing workers are tried again.
    n = settings.n_workers if "n_workers" in given else len(cluster.plan) if cluster.adapting else cluster.wanted
    if settings.adapt and "adapt" in given:
        cluster.adapt(minimum=settings.adapt[0], maximum=settings.adapt[1])
        done += f", scaling between {settings.adapt[0]} and {settings.adapt[1]} workers"
    elif n != len(cluster.plan) or ("n_workers" in given and cluster.adapting):
        if settings.background:
            cluster.scale(n)
        else:
            cluster.scale_until_ready(n, settings.wait, settings.timeout_s, on_status)
        done += f", scaled to {n} workers"
    if cluster.warning:
        notes.append(cluster.warning)
    return Up(cluster, done, tuple(notes))


def client(cluster: CMLCluster) -> Any:
    """The client that this kernel has for a cluster, made where there is none."""
    known = _clients.get(cluster.name)
    if known is None or known.status != "running" or known.cluster is not cluster:
        known = _clients[cluster.name] = Client(cluster)
    return known


def held(name: str) -> CMLCluster | None:
    """The cluster of that name that this kernel holds, if it is still the one on record and its scheduler is there."""
    cluster = _held.get(name)
    if cluster is None:
        return None
    if cluster.closed or cluster.status().state in ("lost", "stopping"):
        if cluster.parting_words:
            _parting_words[name] = cluster.parting_words
        _let_go(name)
        return None
    return cluster


def hold(cluster: CMLCluster) -> bool:
    """Take a cluster that was made without the magics among those that this kernel holds; whether it is one of them."""
    return _held.setdefault(cluster.name, cluster) is cluster


def is_held(name: str) -> bool:
    """Whether this kernel has hold of a cluster of that name."""
    return name in _held and not _held[name].closed


def scale(name: str, n: int) -> None:
    """Bring a cluster that this kernel holds to `n` workers, as the panel's button does."""
    _needed(name).scale(n)


def adapt(name: str, low: int, high: int) -> None:
    """Let Dask scale a cluster that this kernel holds."""
    _needed(name).adapt(minimum=low, maximum=high)


def keep(name: str) -> None:
    """Start the idle countdown of a cluster that this kernel holds anew."""
    _needed(name).keep()


def restart_worker(name: str, session: str) -> None:
    """Restart one worker of a cluster that this kernel holds."""
    _needed(name).restart_worker(session)


def names(state_directory: Path) -> list[str]:
    """Names of the clusters on record."""
    return Registry(state_directory).names()


def down(name: str, state_directory: Path) -> Ended | None:
    """Stop a cluster, wherever it was started from; None if there is none.

    Raises
    ------
    RuntimeError
        Naming the sessions that did not end; their record is kept.
    """
    known = _clients.pop(name, None)
    if known is not None:
        known.close()
    cluster = _held.get(name)
    try:
        if cluster is not None and not cluster.closed:
            ended: Ended | None = cluster.shutdown()
            return ended
        fleet = open_fleet(Registry(state_directory), name)
        return finish(fleet.end) if fleet is not None else None
    finally:
        _held.pop(name, None)


def statuses(state_directory: Path, name: str | None = None) -> tuple[list[ClusterStatus], list[str]]:
    """Snapshots of one cluster or of all on record; a cluster of another kernel's is attached to, for looking.

    Returns
    -------
    list of ClusterStatus
    list of str
        What is wrong with those clusters that cannot be looked at: one does not keep the others from being seen.
    """
    found, problems = [], []
    for each in [each for each in _held if name in (None, each)]:
        if held(each) is None and (words := _parting_words.pop(each, "")):
            problems.append(words)
    for each in names(state_directory) if name is None else [name]:
        try:
            status = _status(Registry(state_directory), each)
        except RuntimeError as error:
            if name is not None:
                raise
            problems.append(str(error))
        else:
            found += [status] if status is not None else []
    return found, problems


def _status(registry: Registry, name: str) -> ClusterStatus | None:
    cluster = held(name)
    if cluster is None:
        fleet = open_fleet(registry, name)
        if fleet is None:
            return None
        alive = liveness(fleet.record, fleet.folder, ANSWER_TIMEOUT_S)
        if alive != "answers":
            return _status_without_scheduler(fleet, starting=alive == "starting")
        try:
            cluster = _held[name] = CMLCluster.from_name(name, shutdown_on_close=True)
        except RuntimeError:
            return _status_without_scheduler(fleet, starting=False)
    status: ClusterStatus = cluster.status()
    return status


def _status_without_scheduler(fleet: Fleet, starting: bool) -> ClusterStatus:
    try:
        listing = fleet.pool.listing()
        fleet.observe({session.id: listing[session.id] for session in fleet.record.sessions if session.id in listing})
    except PlatformError as error:
        fleet.log(str(error))
    return snapshot(fleet, cluster_state(fleet.record, 0, scheduler_lost=not starting), {})


def logs(state_directory: Path, name: str, session: str | None = None, lines: int = 200) -> dict[str, list[str]]:
    """The last lines that a cluster's sessions printed, by session; of its last start, if it has ended.

    Raises
    ------
    ValueError
        If there is no such cluster, or it has no such session.
    """
    folder = Registry(state_directory).latest_log_folder(name)
    paths = session_logs(folder) if folder is not None else {}
    if not paths:
        raise ValueError(f"there is no output of a cluster {name!r}")
    if session is not None and session not in paths:
        raise ValueError(f"cluster {name!r} has no output of a session {session!r}; there are: {', '.join(paths)}")
    return {each: read_tail(path, lines) for each, path in paths.items() if session in (None, each)}


def follow(
    name: str, on_status: StatusCallback, on_end: Callable[[CMLCluster], None], wanted: Callable[[], bool]
) -> bool:
    """Have a held cluster tell its status every second until it ends; False if this kernel does not hold it."""
    cluster = _held.get(name)
    if cluster is None or cluster.closed:
        return False
    cluster.follow(on_status, on_end, wanted)
    return True


def _needed(name: str) -> CMLCluster:
    cluster = held(name)
    if cluster is None:
        raise RuntimeError(f"cluster {name!r} is not running any more; %dask_up --name {name} starts it")
    return cluster


def _let_go(name: str) -> None:
    cluster = _held.pop(name)
    if not cluster.closed:
        cluster.shutdown_on_close = False
        cluster.close()
