"""Taking a cluster's name for a new start, and opening what an earlier one left on record."""

from __future__ import annotations

import secrets
import time
from dataclasses import replace
from pathlib import Path

from cml_dask_magics.fleet.fleet import Fleet
from cml_dask_magics.fleet.inheritance import write_inheritance
from cml_dask_magics.model.record import Record
from cml_dask_magics.model.settings import (
    OPTIONS,
    Settings,
    Spelling,
    as_keyword,
    make_settings,
    settings_from_json,
    settings_to_json,
)
from cml_dask_magics.model.times import USUAL, Times
from cml_dask_magics.platforms.api import Platform
from cml_dask_magics.platforms.find import check_dashboard_port, find_platform
from cml_dask_magics.platforms.pool import SessionPool
from cml_dask_magics.registry.certificates import write_certificates
from cml_dask_magics.registry.files import listed, write_private
from cml_dask_magics.registry.kernels import this_kernel
from cml_dask_magics.registry.registry import NameTakenError, Registry
from cml_dask_magics.registry.run_folder import SCHEDULER_FILE, SESSION_PROGRAM

_pools: dict[tuple[str, Path], SessionPool] = {}


def claim(settings: Settings, spelled: Spelling = as_keyword, times: Times = USUAL) -> Fleet:
    """Take the name and lay out what the sessions will read.

    A cluster of that name that does not answer any more is cleared first.

    Parameters
    ----------
    settings : Settings
    spelled : callable
        How notes are to name an option.
    times : Times, optional

    Raises
    ------
    ValueError
        If the dashboard would have no port.
    NameTakenError
        If a cluster of that name is alive.
    RuntimeError
        If there is no platform, the state folder cannot be written, or sessions of a dead cluster do not stop.
    """
    registry = Registry(settings.state_directory)
    platform = find_platform(registry.directory, settings.local)
    if settings.dashboard_port is None:
        check_dashboard_port(platform)
    dead = open_fleet(registry, settings.name, times)
    if dead is not None and dead.liveness() == "silent":
        dead.end()
    asked, settings = settings, what_fits(settings, platform)
    notes = _notes_on(asked, settings, spelled)
    record = Record(
        name=settings.name,
        token=secrets.token_hex(4),
        backend=platform.backend,
        created_at=time.time(),
        owner=this_kernel(platform.session),
        settings=settings_to_json(settings),
        requested=settings.n_workers,
        adapt=settings.adapt,
    )

    def fill(folder: Path) -> None:
        if settings.tls:
            write_certificates(folder)
        if left_out := write_inheritance(folder, settings):
            keys = ", ".join(left_out)
            notes.append(f"Dask's configuration holds in the sessions too, but for {keys}: no plain values")
        # Empty, it means "not yet" to Dask. A missing one might go on missing for others on a network file system.
        write_private(folder / SCHEDULER_FILE, "")

    try:
        registry.claim(record, fill)
    except NameTakenError:
        raise NameTakenError(
            f"cluster {settings.name!r} is running already; CMLCluster.from_name({settings.name!r}) re-attaches, "
            f"%dask_down {settings.name} stops it, another name starts another"
        ) from None
    fleet = Fleet(registry, _pool(platform, registry.directory, times), record, settings, times)
    for note in notes:
        fleet.journal.log(note)
    fleet.notes = tuple(notes)
    return fleet


def open_fleet(registry: Registry, name: str, times: Times = USUAL) -> Fleet | None:
    """The sessions of a recorded cluster, on the platform that they were launched on; None if there is no record."""
    record = registry.read(name)
    if record is None:
        return None
    root = registry.root(name)
    platform = find_platform(root, local=record.backend == "local")
    if record.backend not in ("", platform.backend):
        raise RuntimeError(
            f"cluster {name!r} was launched on {record.backend}, which this kernel cannot reach; "
            "look at it or stop it from a session of its project"
        )
    settings = settings_of(record) or make_settings(name=name)
    fleet = Fleet(registry, _pool(platform, root, times), record, settings, times)
    files = {entry.name for entry in listed(fleet.folder)}
    if record.state in ("starting", "running") and files and SESSION_PROGRAM not in files:
        write_inheritance(fleet.folder, fleet.settings)  # started by a release whose sessions needed none
    return fleet


def what_fits(settings: Settings, platform: Platform) -> Settings:
    """The settings, with no session larger than the platform's largest."""
    return replace(
        settings,
        cpu=min(settings.cpu, platform.cores),
        memory_gib=min(settings.memory_gib, platform.memory_gib),
        scheduler_cpu=min(settings.scheduler_cpu, platform.cores),
        scheduler_memory_gib=min(settings.scheduler_memory_gib, platform.memory_gib),
    )


def _notes_on(asked: Settings, fitting: Settings, spelled: Spelling) -> list[str]:
    """What the user should know of sizes that do not fit."""
    notes = []
    for option in OPTIONS:
        wish, has = getattr(asked, option.field), getattr(fitting, option.field)
        if wish != has:
            counts = f"{has:g} cores" if option.metavar == "CORES" else f"{has:.4g} GiB"
            notes.append(f"{spelled(option.name)} {wish:g} is more than this machine has; it counts as {counts}")
    return notes


def settings_of(record: Record) -> Settings | None:
    """What a cluster was started with; None of a record that had to be salvaged, or is of another release."""
    try:
        return settings_from_json(record.settings)
    except TypeError:
        return None


def _pool(platform: Platform, directory: Path, times: Times) -> SessionPool:
    """The one pool of this kernel for a platform, so that there is one poller however many clusters there are."""
    return _pools.setdefault((platform.backend, directory), SessionPool(platform, times))
