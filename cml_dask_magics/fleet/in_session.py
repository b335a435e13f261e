"""What each session of a cluster runs: Dask's command line, with the kernel's folder, import path and configuration.

Copies of this file and of the two that it runs (`session_keeper`, `session_guards`) are in the cluster's run folder, so
that sessions need not have this package. A worker's process is a copy of its session's, or, where Dask's nanny starts a
new Python for it, runs this file too, as its main module.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

# What takes long to import is imported where it is used: `start_with` may start this program twice.
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

# Until then the machine is busy with the workers' start.
DASHBOARD_AFTER_S = 5.0


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
    import runpy

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
    """Give a worker its share of the session's GPUs, to see and as Dask's resource `GPU`.

    Where there are fewer GPUs than workers, all see them, but no more workers have the resource than there are GPUs.
    Dask calls this for each nanny, before it starts the worker.
    """
    gpus, processes = INHERITED["gpu"], INHERITED["processes"]
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    devices = visible.split(",") if visible else [str(index) for index in range(gpus)]
    number = int(nanny.name.rpartition("-")[2])
    if own := devices[:gpus][number::processes]:
        nanny.resources = {"GPU": float(len(own))}
    if gpus >= processes:
        # Not `pre_spawn_env`, which nannies of one process would overwrite for each other.
        nanny.env["CUDA_VISIBLE_DEVICES"] = ",".join(own)


def environment_of_workers(config: dict[str, Any]) -> dict[str, str]:
    """The variables that Dask's nanny sets before it starts a worker, because they are read early or only once.

    Parameters
    ----------
    config : dict
        Dask's configuration.
    """
    configured = config.get("distributed", {}).get("nanny", {}).get("pre-spawn-environ", {})
    variables = {name: os.environ.get(name, str(value)) for name, value in configured.items() if value is not None}
    if variables.get("PYTHONHASHSEED") in (None, "0"):
        variables["PYTHONHASHSEED"] = "6640"  # the same on all workers; nannies, too, have this number
    return variables


def starts_workers_by() -> str:
    """Dask's way to start the process of a worker."""
    import dask.config

    return str(dask.config.get("distributed.worker.multiprocessing-method"))


def start_with(variables: dict[str, str]) -> None:
    """Start this program anew with these variables, if it lacks any: some only count for a Python that starts."""
    if any(os.environ.get(name) != value for name, value in variables.items()):
        os.environ.update(variables)
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def run_scheduler(guard_pages: Callable[[], None]) -> None:
    """Run ``dask scheduler``.

    Parameters
    ----------
    guard_pages : callable
        Called when the scheduler has imported what its dashboard needs.
    """
    from distributed.cli import dask_scheduler

    dask_scheduler.Scheduler = scheduler_with_a_late_dashboard(dask_scheduler.Scheduler, guard_pages)
    dask_scheduler.main(sys.argv[2:], prog_name="dask scheduler")


def run_workers(command: str) -> None:
    """Run ``dask COMMAND``. What is Dask's own is not looked for among all plug-ins of its command line."""
    if command == "worker":
        from distributed.cli import dask_worker

        dask_worker.main(sys.argv[2:], prog_name="dask worker")
    else:
        from dask.__main__ import main

        sys.argv[0] = "dask"
        main()


def scheduler_with_a_late_dashboard(base: Any, guard_pages: Callable[[], None]) -> Any:
    """Dask's scheduler, but it imports the dashboard (as long as all else takes) when workers have had time to come.

    Parameters
    ----------
    base : type
        Dask's class.
    guard_pages : callable
        As for `run_scheduler`.
    """
    import asyncio

    class Scheduler(base):  # type: ignore[misc]  # its name is shown
        def __init__(self, *args: Any, dashboard: Any, http_prefix: str, **kwargs: Any) -> None:
            super().__init__(*args, dashboard=False, http_prefix=http_prefix, **kwargs)
            add = add_dashboard(self, http_prefix, guard_pages) if dashboard else None
            self.dashboard_task = asyncio.ensure_future(add) if add else None

    return Scheduler


async def add_dashboard(scheduler: Any, prefix: str, guard_pages: Callable[[], None]) -> None:
    """Add the dashboard to a running scheduler after some seconds, or as soon as a page is asked for."""
    import asyncio
    import importlib

    from tornado import web

    asked, added = asyncio.Event(), asyncio.Event()

    class AnyPage(web.RequestHandler):
        async def prepare(self) -> None:
            asked.set()
            await added.wait()
            path, mark, query = self.request.uri.partition("?")
            # Relative, as a proxy may show all this under a path of its own.
            self.redirect(f"./{path.rpartition('/')[2]}{mark}{query}", status=307)

    server, pages = scheduler.http_server, scheduler.http_application
    server.request_callback = web.Application([(".*", AnyPage)])
    try:
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(asked.wait(), DASHBOARD_AFTER_S)
        dashboard = await asyncio.to_thread(importlib.import_module, "distributed.dashboard.scheduler")
        guard_pages()
        dashboard.connect(pages, server, scheduler, prefix=prefix)
    except ImportError:  # Bokeh, or a new enough one: Dask's page says which
        from distributed.http.scheduler.missing_bokeh import routes

        pages.add_handlers(".*", [(f"/{path.lstrip('/')}", *rest) for path, *rest in routes])
    finally:
        server.request_callback = pages
        added.set()


def keep_spares(n: int) -> None:
    """Make copies of this process for its first workers, which then need not start Python and import Dask again.

    Where anything is not as a nanny expects it (another environment, a worker that is started again), `multiprocessing`
    starts a new interpreter as ever. So it does if this process has several threads, of which a copy would lack all
    but one.

    Parameters
    ----------
    n : int
        How many.
    """
    import multiprocessing.util

    import psutil
    from distributed.proctitle import enable_proctitle_on_children

    if sys.platform != "linux" or psutil.Process().num_threads() > 1:
        return
    enable_proctitle_on_children()  # `dask worker` does so at once; it is in the environment
    environment = dict(os.environ)
    spares: list[tuple[int, socket.socket]] = []
    for _ in range(n):
        ours, its = socket.socketpair()
        pid = os.fork()
        if pid == 0:
            for channel in (ours, *(channel for _, channel in spares)):
                channel.close()  # what only its parent holds tells a spare of its parent's end
            become_a_child(its)
        its.close()
        spares.append((pid, ours))
    start_python = multiprocessing.util.spawnv_passfds

    def start(path: Any, args: Any, fds: Any) -> int:
        if args[-1] == "--multiprocessing-fork" and dict(os.environ) == environment:
            with contextlib.suppress(IndexError, OSError):  # none is left, or it was killed
                pid, channel = spares.pop(0)
                with channel:
                    socket.send_fds(channel, [json.dumps([args[-2], fds]).encode()], fds)
                return pid
        return start_python(path, args, fds)

    multiprocessing.util.spawnv_passfds = start  # type: ignore[assignment]


def become_a_child(channel: socket.socket) -> None:
    """Wait for what to run, and run it as a new interpreter would that `multiprocessing` starts."""
    import fcntl

    message, received, _, _ = socket.recv_fds(channel, 2**16, 250)
    channel.close()
    if not message:
        sys.exit()
    program, fds = json.loads(message)
    # Under the numbers that they have in the parent: away from these first, so that none is in another's way.
    away = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, max(fds) + 1) for fd in received]
    for fd in received:
        os.close(fd)
    for fd, number in zip(away, fds, strict=True):
        os.dup2(fd, number, inheritable=False)
        os.close(fd)
    if "numpy.random" in sys.modules:  # the copies would draw the same numbers
        sys.modules["numpy.random"].seed()
    sys.argv = ["-c", "--multiprocessing-fork"]
    exec(program, {"__name__": "__main__"})


def watch_the_cluster() -> None:
    """Have this process end with its cluster, if only its own CML session or machine could end it otherwise."""
    if os.environ.get("CDSW_PROJECT_ID") == "local":  # see `platforms.local`
        threading.Thread(target=end_with_the_cluster, name="end-with-the-cluster", daemon=True).start()


def end_with_the_cluster() -> None:
    """End this process once the cluster has been stopped.

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
    import atexit
    import runpy

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
        if sys.argv[1] == "worker":
            start_with(environment_of_workers(INHERITED["dask_config"]))
        keep_output_and_scratch(INHERITED)
    guards = take_over(INHERITED)
    guards["guard_protocols"]()
    guards["guard_listeners"]()
    session_bytes = tell_room(INHERITED["memory_bytes"])

if __name__ == "__main__":
    guards["raise_descriptor_limit"]()
    if sys.argv[1] == "scheduler":
        is_here, shown = "CML_DASK_HERE" in os.environ, INHERITED["dashboard"]
        watch_the_cluster()
        session = os.environ["CDSW_MASTER_ID" if is_here else "CDSW_ENGINE_ID"]  # which the platform shows it of
        hosts = guards["dashboard_hosts"](shown["link"], shown["domain"], session)
        guards["guard_dashboard"](hosts if shown["shown"] else None)
        run_scheduler(lambda: guards["guard_websockets"](hosts))
    else:
        limit = worker_limit_bytes(session_bytes, INHERITED["memory_bytes"], INHERITED["processes"])
        sys.argv += ["--memory-limit", str(limit)]
        # No copies where an import may have begun to use a GPU, nor where the user chose another way to start them.
        if sys.argv[1] == "worker" and not INHERITED["gpu"] and starts_workers_by() == "spawn":
            keep_spares(INHERITED["processes"])
        watch_the_cluster()
        run_workers(sys.argv[1])
