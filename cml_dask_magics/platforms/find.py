"""Finds the platform that this kernel can launch sessions on."""

from __future__ import annotations

import importlib
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cml_dask_magics.model.readers import LAUNCH_ARGUMENTS
from cml_dask_magics.model.words import cut, short
from cml_dask_magics.platforms.api import Platform, launch_keywords

_MODULES = {"cml": "cml.workers_v1", "cdsw": "cdsw"}
_CALLS = ("launch_workers", "list_workers", "await_workers", "stop_workers")
LOCAL_SESSIONS_FOLDER = "local-sessions"


def find_platform(directory: Path, local: bool = False) -> Platform:
    """The platform that this kernel can launch sessions on.

    Parameters
    ----------
    directory : Path
        Local sessions are recorded in a folder of it.
    local : bool
        Use this machine, even inside CML.

    Raises
    ------
    RuntimeError
        In a CML session in which neither of Cloudera's modules can be imported. Local processes instead would quietly
        overload the session.
    """
    session = os.environ.get("CDSW_ENGINE_ID", "")
    if not local:
        reasons = []
        for backend, module in _MODULES.items():
            try:
                api: Any = importlib.import_module(module)
            except Exception as error:  # a vendor's module may raise anything
                reasons.append(f"{module}: {short(error)}")
                continue
            if all(callable(getattr(api, call, None)) for call in _CALLS):
                if session:
                    from cml_dask_magics.platforms.here import SomeHere

                    api = SomeHere(api, directory / LOCAL_SESSIONS_FOLDER, session)
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


def check_launch_options(platform: Platform, options: Mapping[str, Mapping[str, Any]]) -> None:
    """Check that this release of the platform takes the user's keywords for ``launch_workers``.

    Raises
    ------
    ValueError
        Naming those that it does not take, and those that it does.
    """
    takes = launch_keywords(platform.api)
    if takes is None:
        return
    unknown = sorted({key for keywords in options.values() for key in keywords} - takes)
    if unknown:
        others = sorted(takes - LAUNCH_ARGUMENTS)
        raise ValueError(
            f"launch-options: launch_workers has no {', '.join(unknown)} in this release of the platform; "
            f"besides what this package sets itself, it takes {', '.join(others) if others else 'nothing'}"
        )


def check_dashboard_port(platform: Platform) -> None:
    """Check that the scheduler's session will have a port for its dashboard.

    Raises
    ------
    ValueError
        If ``CDSW_READONLY_PORT``, which all sessions of a workspace share, is missing or not a port.
    """
    if platform.backend == "local":
        return
    value = os.environ.get("CDSW_READONLY_PORT")
    if value is None or not re.fullmatch(r"[0-9]{1,5}", value) or not 1 <= int(value) <= 65535:
        found = "is not set" if value is None else f"is {cut(repr(value), 80)}"
        raise ValueError(
            f"CDSW_READONLY_PORT must be a port from 1 to 65535 for the dashboard to be served on, but {found} "
            "in this session; give a port with --dashboard-port"
        )
