"""The seam: the platform's four calls as a protocol, and which module provides them here.

Anything that has the four calls is a platform: Cloudera's ``cml.workers_v1`` and the older ``cdsw`` as they stand, and
`local_sessions` on any machine. Does not know what runs in a session.
"""

from __future__ import annotations

import importlib
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

_MODULES = {"cml": "cml.workers_v1", "cdsw": "cdsw"}
LOCAL_SESSIONS_FOLDER = "local-sessions"
_CALLS = ("launch_workers", "list_workers", "await_workers", "stop_workers")


class WorkersAPI(Protocol):
    """Cloudera's Workers API. Facts and traps: Cloudera's documentation and the published ``cdsw.py``.

    A session is a dict; only ``id`` and ``status`` are sure to be in it. `cpu` is cores, `memory` GiB.
    """

    # ``await_workers`` is the fourth call. It polls every 5 seconds, gives a pass up at the first session that is
    # not ready and leaves out sessions that are not listed, so `sessions` lists for itself and never calls it.

    def launch_workers(
        self,
        n: int,
        cpu: float,
        memory: float,
        nvidia_gpu: int = 0,
        kernel: str = "python3",
        script: str = "",
        code: str = "",
        env: Mapping[str, str] = ...,
    ) -> list[dict[str, Any]]:
        """Start `n` sessions. A refused one is a dict without ``id`` but with ``message``; nothing is raised."""

    def list_workers(self) -> list[dict[str, Any]]:
        """The sessions that the calling session launched, ended ones included."""

    def stop_workers(self, *worker_id: str) -> Sequence[Any] | None:
        """Stop sessions by id. **Without ids it stops every one of the calling session.** Raises nothing."""

    def await_workers(
        self, ids: Sequence[Any], wait_for_completion: bool = True, timeout_seconds: int = 60
    ) -> Mapping[str, Any]:
        """Wait for sessions to run or to end."""


@dataclass(frozen=True)
class Platform:
    """The provider of the four calls, and what is peculiar to it.

    Parameters
    ----------
    backend : str
        ``cml``, ``cdsw`` or ``local``.
    api : WorkersAPI
    scheduler_port : int
        Dask's own port where every session has an address of its own; 0, any free one, where they share one.
    session : str
        Id of the session that this kernel runs in; empty outside CML.
    domain : str
        The workspace's domain, for links; empty outside CML.
    browser_is_here : bool
        Whether the user's browser reaches the ports of sessions by itself, or as ``distributed.dashboard.link`` in
        Dask's configuration says.
    cores, memory_gib : float
        What one session can have at most.
    """

    backend: str
    api: WorkersAPI
    scheduler_port: int = 8786
    session: str = ""
    domain: str = ""
    browser_is_here: bool = False
    cores: float = math.inf
    memory_gib: float = math.inf


def find_platform(directory: Path, local: bool = False) -> Platform:
    """The platform that this kernel can launch sessions on.

    Parameters
    ----------
    directory : Path
        In a folder of which local sessions are remembered.
    local : bool
        Choose this machine, whatever else there is.

    Raises
    ------
    RuntimeError
        Inside a CML session when neither of Cloudera's modules can be imported: falling back to local
        processes would quietly overload the session.
    """
    session = os.environ.get("CDSW_ENGINE_ID", "")
    if not local:
        reasons = []
        for backend, module in _MODULES.items():
            try:
                api: Any = importlib.import_module(module)
            except Exception as error:  # whatever a vendor's module raises, it is not to be had
                reasons.append(f"{module}: {' '.join(str(error).split())}")
                continue
            if all(callable(getattr(api, call, None)) for call in _CALLS):
                return Platform(backend, api, session=session, domain=os.environ.get("CDSW_DOMAIN", ""))
            reasons.append(f"{module}: it lacks one of {', '.join(_CALLS)}")
        if session:
            raise RuntimeError(
                f"this is CML session {session}, but the Workers API cannot be imported ({'; '.join(reasons)}); "
                "use a runtime that has it, or --local for processes of this session alone"
            )
    from dask.system import CPU_COUNT
    from distributed.system import MEMORY_LIMIT

    from cml_dask_magics.platforms.local import LocalSessions

    return Platform(
        "local",
        LocalSessions(directory / LOCAL_SESSIONS_FOLDER),
        scheduler_port=0,
        browser_is_here=True,
        cores=CPU_COUNT,
        memory_gib=MEMORY_LIMIT / 2**30,
    )


def check_dashboard_port(platform: Platform) -> None:
    """Make sure that the scheduler's session will have a port for its dashboard.

    Raises
    ------
    ValueError
        If ``CDSW_READONLY_PORT``, the same in all sessions of a workspace, is missing here or is no port.
    """
    if platform.backend == "local":
        return
    value = os.environ.get("CDSW_READONLY_PORT")
    if value is None or not re.fullmatch(r"[0-9]{1,5}", value) or not 1 <= int(value) <= 65535:
        found = "is not set" if value is None else f"is {value!r}"
        raise ValueError(
            f"CDSW_READONLY_PORT must be a port from 1 to 65535 for the dashboard to be served on, but {found} "
            "in this session; give a port with --dashboard-port"
        )
