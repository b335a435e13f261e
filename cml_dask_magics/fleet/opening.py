"""Claiming a name for a new cluster, and opening a cluster on record."""

from __future__ import annotations

import secrets
import time
from dataclasses import replace
from pathlib import Path

from cml_dask_magics.fleet.fleet import Fleet
from cml_dask_magics.fleet.inheritance import write_inheritance
from cml_dask_magics.fleet.sizes import check_worker_memory, fitted_together
from cml_dask_magics.model.record import Record
from cml_dask_magics.model.settings import (
    OPTIONS,
    SECTION,
    Settings,
    Spelling,
    as_keyword,
    check_wait,
    make_settings,
    settings_from_json,
    settings_to_json,
)
from cml_dask_magics.model.times import USUAL, Times
from cml_dask_magics.model.words import no_tls_words
from cml_dask_magics.platforms.api import Platform
from cml_dask_magics.platforms.find import check_dashboard_port, check_launch_options, find_platform
from cml_dask_magics.platforms.pool import SessionPool
from cml_dask_magics.registry.certificates import write_certificates
from cml_dask_magics.registry.files import write_private
from cml_dask_magics.registry.kernels import other_machine, this_kernel
from cml_dask_magics.registry.registry import NameTakenError, Registry
from cml_dask_magics.registry.run_folder import SCHEDULER_FILE, uses_tls

_pools: dict[tuple[str, Path], SessionPool] = {}


def claim(settings: Settings, spelled: Spelling = as_keyword, times: Times = USUAL) -> Fleet:
    """Claim the name and write the files that the sessions will read.

    A cluster of that name that does not answer any more is ended first.

    Parameters
    ----------
    settings : Settings
    spelled : callable
        How notes name an option.
    times : Times, optional

    Raises
    ------
    ValueError
        If more workers are to be waited for than there will be, the dashboard would have no port, workers would have
        too little memory, the platform does not take the setting ``launch-options``, or inside CML the configuration
        alone says to do without TLS.
    NameTakenError
        If a cluster of that name is alive.
    RuntimeError
        If there is no platform, the state folder cannot be written, or sessions of a dead cluster do not stop.
    """
    check_wait(settings, spelled)
    registry = Registry(settings.state_directory)
    platform = find_platform(registry.directory, settings.local)
    no_tls = _without_tls(settings, platform, spelled)
    if settings.dashboard and settings.dashboard_port is None:
        check_dashboard_port(platform)
    check_launch_options(platform, settings.launch_options)
    asked, settings = settings, what_fits(settings, platform)
    notes = no_tls + _notes_on(asked, settings, spelled)
    settings, more = fitted_together(settings, platform, spelled)
    notes += more + check_worker_memory(settings, platform, spelled) + _shared_gpus(settings, platform, spelled)
    dead = open_fleet(registry, settings.name, times)
    if dead is not None and dead.liveness() == "silent":
        dead.end()
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
        # Dask waits while it is empty. On a network file system a missing file might stay missing for others.
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


def open_fleet(registry: Registry, name: str, times: Times = USUAL, *, to_end: bool = False) -> Fleet | None:
    """The sessions of a cluster on record; None if there is no record.

    Parameters
    ----------
    registry : Registry
    name : str
    times : Times, optional
    to_end : bool
        Whether only `Fleet.end` is to be called, which another machine's cluster can be told, too.

    Raises
    ------
    RuntimeError
        If this kernel cannot reach the cluster's sessions, or the record cannot be read.
    """
    record = registry.read(name)
    if record is None:
        return None
    if not to_end and (host := other_machine(record)):
        raise RuntimeError(
            f"cluster {name!r} was started on machine {host} and can be used there alone; "
            f"%dask_down {name} ends it from here, another name (--name) starts another"
        )
    root = registry.root(name)
    platform = find_platform(root, local=record.backend == "local")
    if record.backend not in ("", platform.backend):
        raise RuntimeError(
            f"cluster {name!r} was launched on {record.backend}, which this kernel cannot reach; "
            "look at it or stop it from a session of its project"
        )
    settings = settings_of(record, registry.run_folder(record)) or make_settings(name=name)
    return Fleet(registry, _pool(platform, root, times), record, settings, times)


def _without_tls(settings: Settings, platform: Platform, spelled: Spelling) -> list[str]:
    """The warning of a cluster without TLS.

    Raises
    ------
    ValueError
        If others can reach it over the network, and nobody asked for that just now.
    """
    if settings.tls:
        return []
    is_here = platform.backend == "local"
    if not is_here and "tls" not in settings.given:
        raise ValueError(
            f"{SECTION}.no-tls in Dask's configuration holds on this machine alone: inside CML {no_tls_words(False)}. "
            f"Type {spelled('no-tls')} for a cluster that is to run so all the same, or take it out there"
        )
    return [f"cluster {settings.name!r} runs without TLS ({spelled('no-tls')}): {no_tls_words(is_here)}"]


def what_fits(settings: Settings, platform: Platform) -> Settings:
    """The settings, with no session larger than the platform allows."""
    return replace(
        settings,
        cpu=min(settings.cpu, platform.cores),
        memory_gib=min(settings.memory_gib, platform.memory_gib),
        scheduler_cpu=min(settings.scheduler_cpu, platform.cores),
        scheduler_memory_gib=min(settings.scheduler_memory_gib, platform.memory_gib),
    )


def _notes_on(asked: Settings, fitting: Settings, spelled: Spelling) -> list[str]:
    """Notes for the user about sizes that did not fit."""
    notes = []
    for option in OPTIONS:
        wish, has = getattr(asked, option.field), getattr(fitting, option.field)
        if wish != has:
            counts = f"{has:g} cores" if option.metavar == "CORES" else f"{has:.4g} GiB"
            notes.append(f"{spelled(option.name)} {wish:g} is more than this machine has; it counts as {counts}")
    return notes


def _shared_gpus(settings: Settings, platform: Platform, spelled: Spelling) -> list[str]:
    """A note where several sessions of this machine will use the same GPUs."""
    n = max(settings.n_workers, settings.adapt[1] if settings.adapt else 0)
    if platform.backend != "local" or not settings.gpu or n < 2:
        return []
    return [
        f"sessions of this machine share its GPUs: all {n} use the same {settings.gpu} ({spelled('gpu')}); "
        "with one session, each of its workers has its own"
    ]


def settings_of(record: Record, run_folder: Path) -> Settings | None:
    """The cluster's settings; None if the record was salvaged, or is another release's."""
    try:
        settings = settings_from_json(record.settings)
    except TypeError:
        return None
    return replace(settings, name=record.name, tls=uses_tls(record, run_folder))


def _pool(platform: Platform, directory: Path, times: Times) -> SessionPool:
    """This kernel's one pool for a platform, so that one poller serves all clusters."""
    return _pools.setdefault((platform.backend, directory), SessionPool(platform, times))
