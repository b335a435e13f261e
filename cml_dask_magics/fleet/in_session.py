"""What each session of a cluster runs: Dask's command line, with the kernel's folder, import path and configuration.

Copies of this file and of the two that it runs (`session_keeper`, `session_guards`) are in the cluster's run folder, so
that sessions need not have this package. The worker process that Dask's nanny starts runs it too, as its main module.
"""

from __future__ import annotations

import atexit
import json
import os
import runpy
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

RUN_FOLDER = Path(__file__).resolve().parent
# The scratch folder, for this process and its workers.
SCRATCH_VARIABLE = "CML_DASK_SCRATCH"
_GIB = 2**30

# Resident memory of what else runs in a worker's session, measured in a simulated workspace: 27 MB for IPython (75 MB
# for a kernel of ipykernel), 64 MB for `dask worker` with its nannies, 13 MB for Python's resource tracker, 7 MB for
# `session_keeper`, 2 MB for the shell until `dask worker` takes its place.
OTHERS_BYTES = 150 * 10**6
# A task may fill 1 GB in a second, and a nanny looks at its worker every 0.1 s; on a busy machine up to 0.2 s later.
OVERSHOOT_BYTES, LATE_BYTES = 100 * 10**6, 200 * 10**6


def room_bytes(processes: int) -> int:
    """What a session with so many workers needs beside them: for all else in it, and for workers over their limit."""
    return OTHERS_BYTES + LATE_BYTES + processes * OVERSHOOT_BYTES


def worker_limit_bytes(session_bytes: float, asked_bytes: float, processes: int) -> int:
    """How much memory each Dask worker of a session may use.

    Above the session's own limit the platform ends the whole session; above a worker's limit its nanny ends that worker
    alone, if it gets to it in time. Large sessions keep a tenth free, up to 1 GiB, for the kernel's own buffers; small
    ones keep no more than half.

    Parameters
    ----------
    session_bytes : float
        The session's memory, from its control group.
    asked_bytes : float
        What was asked for; where the session has no limit of its own, it has its whole machine's memory.
    processes : int
        How many workers it has.
    """
    whole = min(session_bytes, asked_bytes)
    kept = max(min(whole / 10, _GIB), room_bytes(processes))
    return int((whole - min(kept, whole / 2)) / processes)


def take_over(inherited: dict[str, Any]) -> dict[str, Any]:
    """Set working directory, import path and Dask's configuration as in the kernel that started the cluster.

    Parameters
    ----------
    inherited : dict
        From ``session.json``; see `inheritance.write_inheritance`.

    Returns
    -------
    dict
        What `session_guards` defines.
    """
    import dask.config

    dask.config.update(dask.config.config, inherited["dask_config"], priority="new")
    # Dask's variables from --env, which only workers get, take precedence.
    given = {name: value for name, value in os.environ.items() if name in inherited["dask_variables"]}
    dask.config.update(dask.config.config, dask.config.collect_env(given), priority="new")
    dask.config.set({"temporary-directory": os.environ[SCRATCH_VARIABLE]})
    # It imports distributed: after the configuration, which that reads when it is imported; before the import path,
    # where a module of the user's may have the name of one that it needs (random.py, queue.py).
    guards = runpy.run_path(str(RUN_FOLDER / "session_guards.py"))

    try:
        os.chdir(inherited["working_directory"])
    except OSError as error:
        print(f"The kernel's working directory cannot be used here: {error}. This session works in {Path.cwd()}.")
    before, after = inherited["path_before"], inherited["path_after"]
    ours = {str(RUN_FOLDER), "", *before, *after}
    sys.path[:] = [*before, *(entry for entry in sys.path if entry not in ours), *after]
    return guards


def tell_room(asked_bytes: float) -> int:
    """Have the workers tell Dask's scheduler how much memory the session has, and disk; returns the memory."""
    from distributed.system import MEMORY_LIMIT
    from distributed.worker import DEFAULT_STARTUP_INFORMATION

    session_bytes = int(min(MEMORY_LIMIT, asked_bytes))
    room = os.statvfs(os.environ[SCRATCH_VARIABLE])
    DEFAULT_STARTUP_INFORMATION["session_memory"] = lambda _: session_bytes
    DEFAULT_STARTUP_INFORMATION["scratch_bytes"] = lambda _: room.f_bavail * room.f_frsize
    return session_bytes


def dask_setup(nanny: Any) -> None:
    """Give a worker its share of the session's GPUs. Dask calls this for each nanny, before it starts the worker."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    devices = visible.split(",") if visible else [str(index) for index in range(INHERITED["gpu"])]
    number = int(nanny.name.rpartition("-")[2])
    # Not `pre_spawn_env`, which nannies of one process would overwrite for each other.
    nanny.env["CUDA_VISIBLE_DEVICES"] = ",".join(devices[number :: INHERITED["processes"]])


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


def keep_output_and_scratch(inherited: dict[str, Any]) -> None:
    """Bound this session's log, and give what Dask writes to disk a private folder that ends with the session."""
    keeper = runpy.run_path(str(RUN_FOLDER / "session_keeper.py"))
    chosen = inherited["dask_config"].get("temporary-directory")
    if "DASK_TEMPORARY_DIRECTORY" in inherited["dask_variables"]:
        chosen = os.environ.get("DASK_TEMPORARY_DIRECTORY", chosen)
    needed_bytes = 0 if sys.argv[1] == "scheduler" else inherited["memory_bytes"]
    os.environ[SCRATCH_VARIABLE], lock = keeper["make_scratch"](chosen, needed_bytes)
    sys.stdout.flush()  # before it goes through the keeper
    log = RUN_FOLDER / "logs" / f"{os.environ['CDSW_ENGINE_ID']}.log"
    atexit.register(keeper["start"](log, os.environ[SCRATCH_VARIABLE], lock))


# Also in the worker's own process, where this file has the second name.
if __name__ in ("__main__", "__mp_main__"):
    INHERITED = json.loads((RUN_FOLDER / "session.json").read_text())
    if __name__ == "__main__":
        keep_output_and_scratch(INHERITED)
    guards = take_over(INHERITED)
    guards["guard_listeners"]()
    session_bytes = tell_room(INHERITED["memory_bytes"])

if __name__ == "__main__":
    from dask.__main__ import main

    guards["raise_descriptor_limit"]()
    sys.argv[0] = "dask"
    if sys.argv[1] != "scheduler":
        limit = worker_limit_bytes(session_bytes, INHERITED["memory_bytes"], INHERITED["processes"])
        sys.argv += ["--memory-limit", str(limit)]
    else:
        shown = INHERITED["dashboard"]
        is_here = "CML_DASK_HERE" in os.environ
        session = os.environ["CDSW_MASTER_ID" if is_here else "CDSW_ENGINE_ID"]
        guards["guard_dashboard"](
            guards["dashboard_hosts"](shown["link"], shown["domain"], session) if shown["shown"] else None
        )
        if is_here:
            threading.Thread(target=end_with_the_cluster, name="end-with-the-cluster", daemon=True).start()
    main()
