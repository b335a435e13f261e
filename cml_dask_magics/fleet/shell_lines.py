"""The shell lines that a cluster's sessions run, as pure functions of its settings.

IPython replaces ``{...}`` in a line before the shell runs it. So the lines have no braces, and nothing that the user
chose: paths and names are in the environment.
"""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import Any

from cml_dask_magics.model.settings import Settings
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
    dashboard = str(settings.dashboard_port) if settings.dashboard_port else "$CDSW_READONLY_PORT"
    line = f'{_PRELUDE}{note}{_PYTHON}scheduler{_COMMON} --port {port} --dashboard-address "127.0.0.1:{dashboard}"'
    if settings.idle_timeout_s is not None:
        line += f" --idle-timeout {settings.idle_timeout_s:.3f}s"
    return line + (_TLS if settings.tls else _TCP)


def worker_line(settings: Settings) -> str:
    """What a worker's session runs: one worker, named after its session, that waits for the scheduler's address."""
    cuda = settings.gpu > 0 and importlib.util.find_spec("dask_cuda") is not None
    line = (
        f"{_PRELUDE}{_PYTHON}{'cuda worker' if cuda else 'worker'}{_COMMON}"
        f' --name "$CDSW_ENGINE_ID" --nthreads {worker_nthreads(settings.cpu)}'
        f" --memory-limit {worker_memory_limit_bytes(settings.memory_gib)}"
        f" --death-timeout {max(settings.timeout_s, 300):.3f}"
        # A worker's own pages cannot be reached, and would take a fifth of its start-up time.
        " --no-dashboard --dashboard-address 127.0.0.1:0"
    )
    if settings.gpu and not cuda:
        line += f" --resources GPU={settings.gpu}"
    return line + (_TLS if settings.tls else _TCP)


def _environment(settings: Settings, folder: Path) -> dict[str, str]:
    """The environment variables that the lines use."""
    return {"CML_DASK_FOLDER": str(folder), "CML_DASK_PYTHON": settings.python}


def scheduler_environment(settings: Settings, folder: Path) -> dict[str, str]:
    """The scheduler's environment, with the dashboard's port if the user chose one."""
    environment = _environment(settings, folder)
    if settings.dashboard_port:
        environment["CDSW_READONLY_PORT"] = str(settings.dashboard_port)
    return environment


def worker_environment(settings: Settings, folder: Path) -> dict[str, str]:
    """The workers' environment, with the user's ``--env``."""
    return settings.env | _environment(settings, folder)


def worker_nthreads(cpu: float) -> int:
    """Threads of a worker in a session with `cpu` cores: one for each whole core, at least one."""
    return max(1, int(cpu))


def worker_memory_limit_bytes(memory_gib: float) -> int:
    """A worker's memory limit, for a session with `memory_gib`.

    A tenth, at least 256 MiB and at most 1 GiB, stays free for the session's own kernel and Dask's nanny (0.1 GiB
    each); never more than half.
    """
    reserved_gib = min(memory_gib / 2, max(0.25, min(1.0, memory_gib / 10)))
    return int((memory_gib - reserved_gib) * 2**30)


def session_of(worker_name: Any) -> str:
    """The session that a worker is named after; ``dask cuda worker`` appends a number for each GPU."""
    return re.sub(r"-\d{1,2}$", "", str(worker_name))
