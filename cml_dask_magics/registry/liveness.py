"""Whether a recorded cluster still answers: with a plain socket, which is quick and needs no Dask."""

from __future__ import annotations

import json
import socket
import time
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from cml_dask_magics.model.record import Record
from cml_dask_magics.registry.files import read_private
from cml_dask_magics.registry.kernels import kernel_may_live
from cml_dask_magics.registry.run_folder import FORMER_SCHEDULER_FILE, SCHEDULER_FILE

Liveness = Literal["answers", "starting", "silent"]
# How long after its timeout a start may still be under way.
_START_SLACK_S = 60.0


def liveness(record: Record, run_folder: Path, timeout_s: float) -> Liveness:
    """The state of a recorded cluster, by a connection to its scheduler.

    Parameters
    ----------
    record : Record
    run_folder : Path
    timeout_s : float
        Seconds to wait for an answer.

    Returns
    -------
    {"answers", "starting", "silent"}
        ``starting``: its kernel is still starting it. ``silent``: nothing listens at the scheduler's address, the
        kernel that was starting it is gone, or it is being stopped.
    """
    if record.state in ("stopping", "lost"):
        return "silent"
    address = scheduler_address(record, run_folder)
    if address is not None:
        return "answers" if answers(address, timeout_s) else "silent"
    if record.state == "starting" and _owner_may_live(record):
        return "starting"
    return "silent"


def answers(address: str, timeout_s: float) -> bool:
    """Whether something listens at an address such as ``tls://100.66.1.3:8786``."""
    try:
        parts = urlsplit(address)
        socket.create_connection((parts.hostname or "", parts.port or 0), timeout=timeout_s).close()
    except (OSError, ValueError):  # nothing there, or no valid address
        return False
    return True


def scheduler_address(record: Record, run_folder: Path) -> str | None:
    """The scheduler's address, once it is known."""
    if record.scheduler_address:
        return record.scheduler_address
    for name in (SCHEDULER_FILE, FORMER_SCHEDULER_FILE):
        try:
            address = json.loads(read_private(run_folder / name))["address"]
        except (OSError, ValueError, KeyError, TypeError, RecursionError):  # not written yet, or incomplete
            continue
        if isinstance(address, str) and address:
            return address
    return None


def _owner_may_live(record: Record) -> bool:
    if not kernel_may_live(record.owner):
        return False
    # Kernels on other hosts cannot be checked, and process ids are reused: so there is a time limit too.
    timeout_s = record.settings.get("timeout_s")
    limit_s = (timeout_s if isinstance(timeout_s, (int, float)) else 0.0) + _START_SLACK_S
    return time.time() < record.created_at + limit_s
