"""The shell lines that a cluster's sessions run, as pure functions of its settings.

IPython replaces ``{...}`` in a line before the shell runs it. So the lines have no braces, and nothing that the user
chose: paths and names are in the environment.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cml_dask_magics.model.settings import Settings
from cml_dask_magics.platforms.here import HERE
from cml_dask_magics.registry.run_folder import LOG_SUFFIX, SCHEDULER_SESSION_FILE, SESSION_PROGRAM

# Output goes to the cluster's folder, under the session's id: the platform provides no logs, and the file proves that
# the session is this cluster's. A cluster that is gone has no scheduler file, so a session that starts late exits here.
_PRELUDE = (
    f'!umask 077; exec >>"$CML_DASK_FOLDER/logs/$CDSW_ENGINE_ID{LOG_SUFFIX}" 2>&1; '
    'test -e "$CML_DASK_FOLDER/scheduler.json" || exit 0; '
    'test "$CDSW_IP_ADDRESS" || CDSW_IP_ADDRESS=0.0.0.0; '
)
_PYTHON = f'exec "$CML_DASK_PYTHON" "$CML_DASK_FOLDER/{SESSION_PROGRAM}" '
_COMMON = ' --scheduler-file "$CML_DASK_FOLDER/scheduler.json" --host "$CDSW_IP_ADDRESS"'
_TLS = (
    ' --protocol tls --tls-ca-file "$CML_DASK_FOLDER/ca.pem"'
    ' --tls-cert "$CML_DASK_FOLDER/cert.pem" --tls-key "$CML_DASK_FOLDER/key.pem"'
)
_TCP = " --protocol tcp"
_NO_DASHBOARD = "--no-dashboard --dashboard-address 127.0.0.1:0"


def scheduler_line(settings: Settings, port: int) -> str:
    """What the scheduler's session runs.

    Parameters
    ----------
    settings : Settings
    port : int
        The scheduler's port; 0 for any free one.
    """
    # The scheduler's session must be known even if the cluster's record is lost.
    note = f'printf %s "$CDSW_ENGINE_ID" >"$CML_DASK_FOLDER/{SCHEDULER_SESSION_FILE}"; '
    shown = str(settings.dashboard_port) if settings.dashboard_port else "$CDSW_READONLY_PORT"
    dashboard = f'--dashboard-address "127.0.0.1:{shown}"' if settings.dashboard else _NO_DASHBOARD
    line = f"{_PRELUDE}{note}{_PYTHON}scheduler{_COMMON} --port {port} {dashboard}"
    if settings.idle_timeout_s is not None:
        line += f" --idle-timeout {settings.idle_timeout_s:.3f}s"
    return line + (_TLS if settings.tls else _TCP)


def worker_line(settings: Settings) -> str:
    """What a worker's session runs: its workers, which wait for the scheduler's address.

    They are named after the session (see `session_reader`). `in_session` decides how much memory they may use.
    """
    gpus, processes = settings.gpu, settings.processes
    # dask_cuda starts a worker for each GPU.
    cuda = 0 < gpus == processes and importlib.util.find_spec("dask_cuda") is not None
    line = (
        f"{_PRELUDE}{_PYTHON}{'cuda worker' if cuda else 'worker'}{_COMMON}"
        f' --name "$CDSW_ENGINE_ID" --nthreads {worker_nthreads(settings)}'
        f" --death-timeout {max(settings.timeout_s, 300):.3f}"
        # A worker's own pages cannot be reached, and would take a fifth of its start-up time.
        f" {_NO_DASHBOARD}"
    )
    if processes > 1 and not cuda:
        line += f" --nworkers {processes}"
        if gpus:
            line += " --preload-nanny __main__"  # in_session.dask_setup gives each worker its GPUs
    elif gpus:
        line += f" --resources GPU={gpus // processes}"  # of each worker
    return line + (_TLS if settings.tls else _TCP)


def _environment(settings: Settings, folder: Path) -> dict[str, str]:
    """The environment variables that the lines use."""
    return {"CML_DASK_FOLDER": str(folder), "CML_DASK_PYTHON": settings.python}


def scheduler_environment(settings: Settings, folder: Path) -> dict[str, str]:
    """The scheduler's environment, with the dashboard's port if the user chose one, and where it is to run."""
    environment = _environment(settings, folder)
    if settings.scheduler_here:
        environment[HERE] = "1"
    if settings.dashboard_port:
        environment["CDSW_READONLY_PORT"] = str(settings.dashboard_port)
    return environment


def worker_environment(settings: Settings, folder: Path) -> dict[str, str]:
    """The workers' environment, with the user's ``--env``."""
    return settings.env | _environment(settings, folder)


def worker_nthreads(settings: Settings) -> int:
    """Threads of each worker: one for each whole core of its share of the session's, at least one."""
    return max(1, int(settings.cpu / settings.processes))


def session_reader(processes: int, sessions: frozenset[str] = frozenset()) -> Callable[[Any], str]:
    """A function from a worker's name to its session.

    Dask names the only worker of a session like the session, and adds a hyphen and a number where there are several.
    The session's id may end like that, too, so the name alone does not tell.

    Parameters
    ----------
    processes : int
        How many workers each session has.
    sessions : frozenset of str, optional
        Sessions that there are. An older release, and ``dask cuda worker`` on a machine with more GPUs than were asked
        for, start several workers where `processes` is 1.
    """

    # A nested function is pickled by value: the scheduler's session, which calls it too, need not have this module.
    def session_of(worker_name: Any) -> str:
        name = str(worker_name)
        if processes == 1 and name in sessions:
            return name
        stem = name.rpartition("-")[0]
        return stem if processes > 1 or stem in sessions else name

    return session_of
