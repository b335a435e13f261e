"""The clusters and clients that this kernel holds: starts, stops and shows clusters, and reads their output.

Nothing here prints.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from distributed import Client, default_client

from cml_dask_magics import CMLCluster
from cml_dask_magics.cluster.shielded import run_shielded
from cml_dask_magics.cluster.snapshot import snapshot
from cml_dask_magics.display.actions import Controls, OnEnd, PanelActions
from cml_dask_magics.display.words import Kind, ended_words
from cml_dask_magics.fleet.fleet import Fleet
from cml_dask_magics.fleet.opening import open_fleet, settings_of, what_fits
from cml_dask_magics.model.lifecycle import cluster_state
from cml_dask_magics.model.settings import OPTIONS, Settings, as_typed
from cml_dask_magics.model.status import ClusterStatus, Ended, StatusCallback
from cml_dask_magics.model.words import counted, short
from cml_dask_magics.platforms.api import PlatformError
from cml_dask_magics.registry.registry import NameTakenError, Registry
from cml_dask_magics.registry.run_folder import read_tail, session_logs

_SIZES = (
    "cpu", "memory_gib", "gpu", "processes", "scheduler_cpu", "scheduler_memory_gib", "scheduler_here",
    "idle_timeout_s", "env", "tls", "dashboard",
)  # fmt: skip

_Key = tuple[Path, str]


@dataclass(frozen=True)
class Up:
    """What `KernelClusters.up` did.

    Parameters
    ----------
    cluster : CMLCluster
    done : str
        ``started``, ``starting``, ``re-attached`` or ``already up``, and ``scaled`` where it was.
    notes : tuple of str
        For the user: workers that are missing, options that a running cluster cannot change.
    """

    cluster: CMLCluster
    done: str
    notes: tuple[str, ...] = ()


class KernelClusters:
    """The clusters that this kernel holds, by state folder and name, and what it can do with any on record."""

    def __init__(self) -> None:
        self._held: dict[_Key, CMLCluster] = {}
        self._clients: dict[_Key, Client] = {}
        # Why this kernel let go of a cluster, until the user has been told.
        self._why_detached: dict[_Key, str] = {}

    def up(self, settings: Settings, on_status: StatusCallback | None = None) -> Up:
        """Start, scale or re-attach to the cluster, so that it is as `settings` says.

        Parameters
        ----------
        settings : Settings
            A running cluster is scaled only if the user gave a number.
        on_status : callable, optional
            Called about twice a second while this waits, from Dask's thread.

        Raises
        ------
        RuntimeError
            If it did not start; everything that this call launched has been stopped.
        """
        key = settings.state_directory, settings.name
        cluster = self._alive(key)
        done = "already up"
        if cluster is None:
            fleet = _opened(settings.state_directory, settings.name)
            if fleet is None or fleet.liveness() == "silent":
                try:
                    return self._started(settings, fleet, on_status)
                except NameTakenError:  # another kernel claimed the name at the same instant
                    pass
            cluster = self._held[key] = CMLCluster.from_name(settings.name, shutdown_on_close=True)
            done = "re-attached"
        if not settings.background and cluster.starting:
            _wait_for_start(cluster, settings.timeout_s, on_status)
        return _adjusted(cluster, settings, done, on_status)

    def down(self, state_directory: Path, name: str) -> Ended | None:
        """Stop a cluster, whichever kernel started it; None if there is none.

        Raises
        ------
        RuntimeError
            If sessions did not end; the message names them, and the record is kept.
        """
        key = state_directory, name
        self._close_client(key)
        held = self._held.get(key)
        try:
            if held is not None and not held.closed:
                ended: Ended | None = held.shutdown()
                return ended
            fleet = _opened(state_directory, name, to_end=True)
            return run_shielded(fleet.end) if fleet is not None else None
        finally:
            if self._held.get(key) is held:  # not what was started in its place while it was being stopped
                self._held.pop(key, None)

    def statuses(self, state_directory: Path, name: str | None = None) -> tuple[list[ClusterStatus], list[str]]:
        """Snapshots of one cluster or of all on record. Attaches to running clusters that this kernel does not hold.

        Returns
        -------
        list of ClusterStatus
        list of str
            What is wrong with the clusters that could not be read.
        """
        on_record = self.names(state_directory)
        found, problems = [], []
        for key in sorted({*self._held, *self._why_detached}):
            if key[0] == state_directory and name in (None, key[1]):
                if key[1] not in on_record or not self.is_held(*key):
                    self._alive(key)  # for its side effect: it lets go of what is gone
                if words := self._why_detached.pop(key, ""):
                    problems.append(words)
        for each in on_record if name is None else [name]:
            try:
                status = self._status((state_directory, each))
            except (RuntimeError, OSError, ValueError, ArithmeticError) as error:  # one hides no other
                if name is not None:
                    raise
                problems.append(f"cluster {each!r}: {short(error)}" if each not in str(error) else str(error))
            else:
                found += [status] if status is not None else []
        return found, problems

    def names(self, state_directory: Path) -> list[str]:
        """Names of the clusters on record."""
        return Registry(state_directory).names()

    def logs(
        self, state_directory: Path, name: str, session: str | None = None, lines: int = 200
    ) -> dict[str, list[str]]:
        """The last lines that the sessions of a cluster's last start printed, by session.

        Raises
        ------
        ValueError
            If there is no such cluster, or it has no such session.
        """
        folder = Registry(state_directory).latest_log_folder(name)
        paths = session_logs(folder) if folder is not None else {}
        if not paths:
            there_are = self.names(state_directory)
            known = f"; there are: {', '.join(there_are)}" if there_are else ""
            raise ValueError(f"there is no output of a cluster {name!r}{known}")
        if session is not None and session not in paths:
            raise ValueError(f"cluster {name!r} has no output of a session {session!r}; there are: {', '.join(paths)}")
        return {each: read_tail(path, lines) for each, path in paths.items() if session in (None, each)}

    def client(self, cluster: CMLCluster) -> Client:
        """This kernel's client of a cluster, which Dask computes with; connects if there is none.

        Where another cluster was started since, Dask takes that one's. A new client is then made: the former goes on
        for who holds its futures, and ends with its cluster.
        """
        key = cluster.settings.state_directory, cluster.name
        client = self._clients.get(key)
        if client is None or client.status != "running" or not client.cluster is cluster is _default_cluster():
            client = self._clients[key] = Client(cluster)
        return client

    def _close_client(self, key: _Key) -> None:
        client = self._clients.pop(key, None)
        if client is None:
            return
        # Closed while it looks for its scheduler, it would log that as an error, with a traceback.
        dasks_log = logging.getLogger("distributed.client")
        dasks_log.addFilter(_nothing)
        try:
            client.close()
        finally:
            dasks_log.removeFilter(_nothing)

    def hold(self, cluster: CMLCluster) -> bool:
        """Add a cluster that was made without the magics; False if another of its name is held already."""
        key = cluster.settings.state_directory, cluster.name
        if not self.is_held(*key):
            self._held[key] = cluster
        return self._held[key] is cluster

    def is_held(self, state_directory: Path, name: str) -> bool:
        """Whether this kernel holds a cluster of that name, without a call to the cluster."""
        cluster = self._held.get((state_directory, name))
        return cluster is not None and not cluster.closed

    def controls(self, state_directory: Path, name: str) -> Controls:
        """What the display can do with a cluster, held or not."""
        key = state_directory, name

        def cluster() -> CMLCluster:
            if (held := self._alive(key)) is None:
                raise RuntimeError(f"cluster {name!r} is not running any more; %dask_up --name {name} starts it")
            return held

        def stop() -> str:
            ended = self.down(state_directory, name)
            return ended_words(ended) if ended is not None else f"Cluster {name!r} was stopped already."

        def follow(on_status: StatusCallback, on_end: OnEnd, wanted: Callable[[], bool]) -> None:
            if self.is_held(state_directory, name):
                self._held[key].follow(on_status, lambda cluster: on_end(*_last_words(cluster)), wanted)

        return Controls(
            key=key,
            name=name,
            actions=PanelActions(
                scale=lambda n: cluster().scale(n),
                stop=stop,
                adapt=lambda low, high: cluster().adapt(minimum=low, maximum=high),
                keep=lambda: cluster().keep(),
                restart=lambda session: cluster().restart_worker(session),
                log=lambda session: self.logs(state_directory, name, session)[session],
            ),
            held=lambda: self.is_held(state_directory, name),
            follow=follow,
        )

    def _started(self, settings: Settings, lost: Fleet | None, on_status: StatusCallback | None) -> Up:
        key = settings.state_directory, settings.name
        notes = [words] if (words := self._why_detached.pop(key, "")) else []
        # A cluster that somebody began to stop is not lost.
        record = lost.record if lost is not None and lost.record.state != "stopping" else None
        if lost is not None and record is not None and (before := settings_of(record, lost.folder)) is not None:
            settings = _as_before(settings, replace(before, n_workers=record.requested, adapt=record.adapt))
            notes.append(
                f"cluster {settings.name!r} was lost; it was started again with the settings that it had "
                f"({counted(settings.n_workers, settings.processes)}; {settings.cpu:g} cores and "
                f"{settings.memory_gib:.4g} GiB each)" + ("" if before.tls or not settings.tls else ", and with TLS")
            )
        cluster = self._held[key] = CMLCluster.from_settings(settings, on_status)
        notes += cluster.notes
        if cluster.warning:
            notes.append(cluster.warning)
        return Up(cluster, "starting" if settings.background else "started", tuple(notes))

    def _alive(self, key: _Key) -> CMLCluster | None:
        """The cluster that this kernel holds, if it still runs; otherwise lets go of it."""
        cluster = self._held.get(key)
        if cluster is None or cluster.closing:  # who closes it lets go of it
            return None
        if not cluster.closed and cluster.status().state not in ("lost", "stopping"):
            return cluster
        if cluster.why_detached:
            self._why_detached[key] = cluster.why_detached
        self._held.pop(key, None)
        self._close_client(key)  # it would look for its scheduler for half a minute
        if not cluster.closed:
            cluster.shutdown_on_close = False
            cluster.close()
        return None

    def _status(self, key: _Key) -> ClusterStatus | None:
        directory, name = key
        held = self._held.get(key)
        if held is not None and not held.closed:  # no need to ask: the scheduler reports, or is silent
            seen: ClusterStatus = held.last_heard()
            if seen.state not in ("lost", "stopping"):
                return seen
        cluster = self._alive(key)
        if cluster is None:
            fleet = _opened(directory, name)
            if fleet is None:
                return None
            alive = fleet.liveness()
            if alive != "answers":
                return _status_without_scheduler(fleet, starting=alive == "starting")
            try:
                cluster = self._held[key] = CMLCluster.from_name(name, shutdown_on_close=True)
            except RuntimeError:
                return _status_without_scheduler(fleet, starting=False)
        status: ClusterStatus = cluster.status()
        return status


kernel_clusters = KernelClusters()
"""Survives a reload of the extension."""


def interrupted_words(state_directory: Path, name: str) -> str:
    """What to tell the user after Ctrl-C during a start or a stop."""
    record = Registry(state_directory).read(name)
    if record is None:
        return f"Interrupted: every session that was launched for cluster {name!r} has been stopped."
    if record.state == "stopping":
        return (
            f"Interrupted: the sessions of cluster {name!r} are still being stopped, in the background. "
            f"%dask_status {name} shows what is left, %dask_down {name} waits for it."
        )
    return f"Interrupted. Cluster {name!r} is on record: %dask_status {name} shows it, %dask_down {name} stops it."


def _opened(state_directory: Path, name: str, to_end: bool = False) -> Fleet | None:
    """The sessions of a cluster on record; None if there is no record."""
    return open_fleet(Registry(state_directory), name, CMLCluster.times, to_end=to_end)


def _nothing(_record: logging.LogRecord) -> bool:
    """For a log that is to say nothing."""
    return False


def _default_cluster() -> object:
    """The cluster of the client that Dask computes with; None if there is none."""
    try:
        return default_client().cluster
    except ValueError:
        return None


def _last_words(cluster: CMLCluster) -> tuple[str, Kind]:
    """The summary of a cluster that this kernel let go of, and how it ended."""
    if cluster.failure is not None:
        return str(cluster.failure), "failed"
    if cluster.ended is not None:
        why = f"{cluster.why_detached}. " if cluster.why_detached else ""
        return why + ended_words(cluster.ended, cluster.peak_memory_bytes), "ended"
    followed = f"This kernel no longer follows the cluster; %dask_status {cluster.name} shows it."
    return cluster.why_detached or followed, "ended"


def _as_before(settings: Settings, before: Settings) -> Settings:
    """The settings of a lost cluster, with what the user gave now."""
    kept = {name: getattr(before, name) for name in ("n_workers", "adapt", *_SIZES, "dashboard_port", "local")}
    del kept["tls"]  # who wants to do without types it each time
    if "n_workers" in settings.given:
        kept["adapt"] = None
    if "gpu" in settings.given:  # which says how many workers a session has, unless that is given, too
        del kept["processes"]
    return replace(settings, **{name: value for name, value in kept.items() if name not in settings.given})


def _wait_for_start(cluster: CMLCluster, timeout_s: float, on_status: StatusCallback | None) -> None:
    if not cluster.wait_until_started(on_status, timeout_s):
        name = cluster.name
        if cluster.failure is None and not cluster.closed:
            what = (
                f"is not up after {timeout_s:g} s; it goes on starting in the background, and %dask_down {name} ends it"
            )
        else:
            what = "was stopped while it started"
        raise cluster.failure or RuntimeError(f"cluster {name!r} {what}")


def _adjusted(cluster: CMLCluster, settings: Settings, done: str, on_status: StatusCallback | None) -> Up:
    current, given, settings = cluster.settings, settings.given, what_fits(settings, cluster.platform)
    fixed = [
        as_typed(option.name)
        for option in OPTIONS
        if option.field in _SIZES and option.field in given
        if getattr(settings, option.field) != getattr(current, option.field)
    ]
    notes = []
    if fixed:
        notes.append(
            f"{', '.join(fixed)} cannot be changed while cluster {cluster.name!r} runs; "
            f"%dask_down {cluster.name} first, then this line again"
        )
    # Without a number, missing workers are launched again.
    asks = "n_workers" in given
    n = settings.n_workers if asks else len(cluster.plan) if cluster.adapting else cluster.wanted
    if settings.adapt and "adapt" in given:
        limits = cluster.adapt(minimum=settings.adapt[0], maximum=settings.adapt[1])
        done += f", scaling between {limits.minimum:.0f} and {counted(int(limits.maximum), current.processes)}"
    else:
        resized = n != len(cluster.plan) or (asks and (cluster.adapting or n != cluster.wanted))
        if not settings.background and (resized or not cluster.adapting):
            cluster.scale_until_ready(n, settings.wait, settings.timeout_s, on_status)
        elif resized:
            cluster.scale(n)
        done += f", scaled to {counted(n, current.processes)}" if resized else ""
    if cluster.warning:
        notes.append(cluster.warning)
    return Up(cluster, done, tuple(notes))


def _status_without_scheduler(fleet: Fleet, starting: bool) -> ClusterStatus:
    try:
        listing = fleet.pool.listing()
        fleet.observe({session.id: listing[session.id] for session in fleet.record.sessions if session.id in listing})
    except PlatformError as error:
        fleet.journal.log(str(error))
    return snapshot(fleet, cluster_state(fleet.record, 0, scheduler_lost=not starting), {})
