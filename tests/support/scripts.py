"""Programs that are started beside the tests, and the processes that they leave."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parents[2]
STATE = "DASK_CML_DASK_MAGICS__STATE_DIRECTORY"


def environment(home: Path) -> dict[str, str]:
    """This process's environment, with a home folder of its own and outside of CML."""
    for name in ("state", "tmp"):
        (home / name).mkdir(parents=True)
    own = ("CDSW_", "CML_", "DASK_", "IPYTHON", "JUPYTER_", "MPL", "XDG_")
    env = {key: value for key, value in os.environ.items() if not key.startswith(own)}
    env["HOME"] = str(home)
    env[STATE] = str(home / "state")
    env["PYTHONPATH"] = os.pathsep.join(filter(None, [env.get("PYTHONPATH"), str(ROOT)]))
    return env


def processes_of(home: Path) -> list[Any]:
    """Every process that was started with this home's state folder, so everything that a run left behind."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.status() != psutil.STATUS_ZOMBIE and process.environ().get(STATE) == str(home / "state"):
                found.append(process)
        except (psutil.AccessDenied, psutil.NoSuchProcess):
            pass
    return found
