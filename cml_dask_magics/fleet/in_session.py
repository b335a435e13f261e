"""What each session of a cluster runs: Dask's command line, with the kernel's folder, import path and configuration.

A copy of this file is in the cluster's run folder, so that sessions need not have this package. The worker process that
Dask's nanny starts runs it too, as its main module.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

RUN_FOLDER = Path(__file__).resolve().parent


def take_over(run_folder: Path) -> None:
    """Set working directory, import path and Dask's configuration as in the kernel that started the cluster.

    Parameters
    ----------
    run_folder : Path
        The folder with ``session.json``; see `inheritance.write_inheritance`.
    """
    import dask.config

    inherited = json.loads((run_folder / "session.json").read_text())
    dask.config.update(dask.config.config, inherited["dask_config"], priority="new")
    # Dask's variables from --env, which only workers get, take precedence.
    given = {name: value for name, value in os.environ.items() if name in inherited["dask_variables"]}
    dask.config.update(dask.config.config, dask.config.collect_env(given), priority="new")
    # After the configuration, which it reads when it is imported; before the import path, where a module of the user's
    # may have the name of one that it needs (random.py, queue.py).
    import distributed  # noqa: F401

    try:
        os.chdir(inherited["working_directory"])
    except OSError as error:
        print(f"The kernel's working directory cannot be used here: {error}. This session works in {Path.cwd()}.")
    before, after = inherited["path_before"], inherited["path_after"]
    ours = {str(run_folder), "", *before, *after}
    sys.path[:] = [*before, *(entry for entry in sys.path if entry not in ours), *after]


take_over(RUN_FOLDER)

if __name__ == "__main__":
    from dask.__main__ import main

    sys.argv[0] = "dask"
    main()
