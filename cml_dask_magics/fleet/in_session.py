"""What each session of a cluster runs: Dask's command line, with the kernel's folder, import path and configuration.

A copy of this file lies in the cluster's run folder, beside what it reads, so that a session needs no package of ours.
The worker's own process runs it too, as its main module.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

RUN_FOLDER = Path(__file__).resolve().parent


def take_over(run_folder: Path) -> None:
    """Go where the kernel was when the cluster started, import what it could import, be configured as it was.

    Parameters
    ----------
    run_folder : Path
        Where ``session.json`` lies; see `inheritance.write_inheritance`.
    """
    import dask.config

    inherited = json.loads((run_folder / "session.json").read_text())
    dask.config.update(dask.config.config, inherited["dask_config"], priority="new")
    # What --env says is for the workers alone, and said later.
    given = {name: value for name, value in os.environ.items() if name in inherited["dask_variables"]}
    dask.config.update(dask.config.config, dask.config.collect_env(given), priority="new")
    # With the configuration, which it reads when it is imported; and before a module of the user's named like one that
    # it needs (random.py, queue.py) can come in its way.
    import distributed  # noqa: F401

    try:
        os.chdir(inherited["working_directory"])
    except OSError as error:
        print(f"The kernel's working directory is not to be had here: {error}. This session works in {Path.cwd()}.")
    before, after = inherited["path_before"], inherited["path_after"]
    ours = {str(run_folder), "", *before, *after}
    sys.path[:] = [*before, *(entry for entry in sys.path if entry not in ours), *after]


take_over(RUN_FOLDER)

if __name__ == "__main__":
    from dask.__main__ import main

    sys.argv[0] = "dask"
    main()
