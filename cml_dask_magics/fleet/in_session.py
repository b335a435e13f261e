"""What each session of a cluster runs: Dask's command line, with the kernel's folder, import path and configuration.

A copy of this file is in the cluster's run folder, so that sessions need not have this package. The worker process that
Dask's nanny starts runs it too, as its main module.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import threading
import time
from pathlib import Path

RUN_FOLDER = Path(__file__).resolve().parent
DASKS_PORT = 8786


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


def share_with_a_kernel() -> None:
    """Begin the life of a scheduler that is a process of a notebook's session, and not a session of its own."""
    address = os.environ.get("CDSW_IP_ADDRESS", "")
    with socket.socket() as probe:
        # As asyncio binds it: a port that a former scheduler has just left counts as free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address, DASKS_PORT))
        except OSError:
            sys.argv += ["--port", "0"]
    threading.Thread(target=end_with_the_cluster, name="end-with-the-cluster", daemon=True).start()


def end_with_the_cluster() -> None:
    """End this process once the cluster has been stopped: another session of the project cannot end it.

    Who stops a cluster takes its scheduler file away first.
    """
    missed = 0
    while missed < 3:
        time.sleep(1)
        try:
            # On a network file system only opening it tells how things are now.
            (RUN_FOLDER / "scheduler.json").open().close()
            missed = 0
        except FileNotFoundError:
            missed += 1
        except OSError:
            pass
    print("The cluster was stopped.")
    os.kill(os.getpid(), signal.SIGTERM)


take_over(RUN_FOLDER)

if __name__ == "__main__":
    from dask.__main__ import main

    sys.argv[0] = "dask"
    if "CML_DASK_HERE" in os.environ:
        share_with_a_kernel()
    main()
