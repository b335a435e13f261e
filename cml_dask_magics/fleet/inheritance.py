"""What a cluster's sessions take over from the kernel: its working directory, import path and Dask configuration.

It is written to the cluster's run folder, which only the user can read; the platform shows a session's environment.
"""

from __future__ import annotations

import json
import os
import site
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import dask.config

from cml_dask_magics.fleet.shell_lines import worker_nthreads
from cml_dask_magics.model.settings import SECTION, Settings
from cml_dask_magics.registry.files import read_private, write_private
from cml_dask_magics.registry.run_folder import SESSION_DATA, SESSION_GUARDS, SESSION_KEEPER, SESSION_PROGRAM

# For the kernel alone: its client, addresses of its other clusters, our settings (with the values of --env).
_KERNELS_OWN = ("scheduler", "shuffle", "pool", "get", "scheduler-address", "scheduler-file", "labextension", SECTION)

# Libraries that start a thread (or process) for each core that they see, and a session sees all of its node's. Dask
# itself sets OMP_NUM_THREADS and the like, by which NumPy, SciPy, numexpr, PyTorch and Arrow go.
_COUNT_CORES = ("POLARS_MAX_THREADS", "RAYON_NUM_THREADS", "NUMBA_NUM_THREADS", "LOKY_MAX_CPU_COUNT")


def write_inheritance(folder: Path, settings: Settings) -> list[str]:
    """Write the sessions' program, and what it takes over, to the cluster's run folder.

    Parameters
    ----------
    folder : Path
        The run folder.
    settings : Settings

    Returns
    -------
    list of str
        Keys of Dask's configuration that are left out, because their values cannot be written as JSON.
    """
    before, after = _import_path()
    config, left_out = _dask_config(settings)
    data = {
        "working_directory": _working_directory(),
        "path_before": before,
        "path_after": after,
        "dask_config": config,
        **_sizes(settings),
        "dashboard": {
            "shown": settings.dashboard,
            "link": settings.dashboard_link,
            "domain": "" if settings.local else os.environ.get("CDSW_DOMAIN", ""),
        },
        "dask_variables": [name for name in settings.env if name.startswith("DASK_")],
    }
    write_private(folder / SESSION_DATA, json.dumps(data))
    for name, program in _programs().items():
        write_private(folder / name, program)
    return left_out


def renew_program(folder: Path, settings: Settings) -> None:
    """Have sessions that are launched from now on run this release's program, where another one started the cluster.

    What they take over stays that of the kernel that started it.

    Raises
    ------
    OSError
        If that cannot be written.
    """
    programs, data = _programs(), folder / SESSION_DATA
    try:
        if all(read_private(folder / name) == program for name, program in programs.items()):
            return
    except (OSError, ValueError):  # another release's
        pass
    try:
        inherited = json.loads(read_private(data))
        if not isinstance(inherited, dict):
            raise ValueError("it is no mapping")
    except (OSError, ValueError, RecursionError):  # it had none
        write_inheritance(folder, settings)
        return
    write_private(data, json.dumps(inherited | _sizes(settings)))
    for name, program in programs.items():
        write_private(folder / name, program)


def _sizes(settings: Settings) -> dict[str, int]:
    return {
        "memory_bytes": int(settings.memory_gib * 2**30),
        "processes": settings.processes,
        "gpu": settings.gpu,
    }


def _programs() -> dict[str, str]:
    """What sessions run, by file in the run folder: the last one runs the others."""
    modules = {
        SESSION_KEEPER: "session_keeper.py",
        SESSION_GUARDS: "session_guards.py",
        SESSION_PROGRAM: "in_session.py",
    }
    return {name: Path(__file__).with_name(module).read_text(encoding="utf-8") for name, module in modules.items()}


def _working_directory() -> str:
    try:
        return str(Path.cwd())
    except OSError:  # it was removed
        return str(Path.home())


def _import_path() -> tuple[list[str], list[str]]:
    """The user's entries of ``sys.path``, absolute: those before the interpreter's own, and those after.

    The interpreter's own are left out, because sessions may use another one (the setting ``python``).
    """
    prefixes = {sys.prefix, sys.base_prefix, sys.exec_prefix, sys.base_exec_prefix}
    own = [Path(prefix, lib) for prefix in prefixes for lib in ("lib", "lib64")] + [Path(site.getusersitepackages())]
    here = _working_directory()
    before: list[str] = []
    after: list[str] = []
    entries = before
    for entry in sys.path:
        if not isinstance(entry, str):
            continue
        path = os.path.normpath(Path(here, entry))
        if any(Path(path).is_relative_to(folder) for folder in own):
            entries = after
        else:
            entries.append(path)
    return before, after


def _dask_config(settings: Settings) -> tuple[dict[str, Any], list[str]]:
    """Dask's configuration for the sessions, and the keys that were left out."""
    left_out: list[str] = []
    kernels = {key: value for key, value in dask.config.config.items() if _hyphens(key) not in _KERNELS_OWN}
    config = _plain(kernels, "", left_out)
    comm = config.get("distributed", {}).get("comm", {})
    comm.pop("tls", None)  # the session's shell line has the certificates
    ours = {
        "distributed.comm.require-encryption": settings.tls,
        "distributed.scheduler.idle-timeout": settings.idle_timeout_s,
        "distributed.scheduler.contact-address": None,
    }
    dask.config.set(ours, config=config)
    # Dask takes these from the worker's environment first (--env), then from the user's configuration.
    threads = dict.fromkeys(_COUNT_CORES, worker_nthreads(settings))
    dask.config.update(config, {"distributed": {"nanny": {"pre-spawn-environ": threads}}}, priority="old")
    return config, left_out


def _plain(values: Mapping[Any, Any], prefix: str, left_out: list[str]) -> dict[Any, Any]:
    """The part of a mapping that can be written as JSON."""
    plain = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            plain[key] = _plain(value, f"{prefix}{key}.", left_out)
            continue
        try:
            json.dumps({key: value})
        except (TypeError, ValueError):
            left_out.append(f"{prefix}{key}")
        else:
            plain[key] = value
    return plain


def _hyphens(key: Any) -> str:
    return str(key).replace("_", "-")
