"""The line that ``%load_ext`` prints about clusters that still run. Does not import Dask."""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path

from cml_dask_magics.model.settings import PRIVATE_FOLDER, state_directory
from cml_dask_magics.model.words import clean, no_tls_words

_TIMEOUT_S = 0.3


def notice() -> str:
    """One line about clusters on record that this kernel does not hold; empty if there are none."""
    try:
        directory = state_directory()
        if not _may_have_clusters(directory):
            return ""
        # Imported here to keep `%load_ext` quick: most users have no cluster running.
        from cml_dask_magics.registry.kernels import other_machine
        from cml_dask_magics.registry.liveness import liveness
        from cml_dask_magics.registry.registry import Registry
        from cml_dask_magics.registry.run_folder import uses_tls

        registry = Registry(directory)
        running: list[str] = []
        silent: list[str] = []
        elsewhere: list[str] = []
        open_doors: list[str] = []
        for name in registry.names():
            if _is_held(directory, name):
                continue
            try:
                record = registry.peek(name)
            except RuntimeError:  # %dask_up and %dask_down show the reason
                silent.append(name)
                continue
            if record is not None and (machine := other_machine(record)):
                elsewhere.append(f"{name} is on machine {machine} (%dask_down {name} ends it from here)")
            elif record is not None:
                run = registry.run_folder(record)
                answers = liveness(record, run, _TIMEOUT_S) != "silent"
                (running if answers else silent).append(name)
                if answers and not uses_tls(record, run):
                    open_doors.append(f"{name} runs without TLS: {no_tls_words(record.backend == 'local')}")
    except (RuntimeError, ValueError, OSError) as error:
        return f"cml-dask-magics cannot tell whether clusters of yours are still running: {clean(str(error))}"
    parts = []
    if running:
        first = running[0]
        parts.append(
            f"still running: {', '.join(running)} (%dask_up --name {first} re-attaches, %dask_down {first} stops)"
        )
    parts += open_doors + elsewhere
    if silent:
        parts.append(f"on record, but not answering: {', '.join(silent)} (%dask_down {silent[0]} clears what is left)")
    return f"Dask clusters {'; '.join(parts)}" if parts else ""


def _may_have_clusters(directory: Path) -> bool:
    """Whether a state folder has anything of a cluster that may run, by a look that takes no other module."""
    private = directory / PRIVATE_FOLDER
    if (private / "clusters").is_dir() and not (private / "open").is_dir():  # an older release's: see `Registry`
        return True
    for folder in (private / "clusters", private / "open", directory / "clusters"):
        with contextlib.suppress(FileNotFoundError, NotADirectoryError), os.scandir(folder) as entries:
            if any(entries):
                return True
    return False


def cluster_names() -> list[str]:
    """Names of the clusters on record, for completion; empty if they cannot be read."""
    from cml_dask_magics.registry.registry import Registry

    try:
        return Registry(state_directory()).names()
    except (RuntimeError, ValueError, OSError):
        return []


def _is_held(directory: Path, name: str) -> bool:
    # Not imported here, because that imports Dask; a kernel without the module holds no cluster.
    module = sys.modules.get("cml_dask_magics.magics.kernel_clusters")
    return module is not None and bool(module.kernel_clusters.is_held(directory, name))
