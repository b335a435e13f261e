"""Whether a recorded cluster still answers: with a plain socket, which is quick and needs no Dask."""

from __future__ import annotations

import functools
import json
import logging
import re
import socket
import time
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from cml_dask_magics.model.record import Record
from cml_dask_magics.model.words import short
from cml_dask_magics.registry.files import read_private
from cml_dask_magics.registry.kernels import kernel_may_live
from cml_dask_magics.registry.run_folder import FORMER_SCHEDULER_FILE, SCHEDULER_FILE, uses_tls

logger = logging.getLogger(__name__)

Liveness = Literal["answers", "starting", "silent"]
# How long after its timeout a start may still be under way.
_START_SLACK_S = 60.0
_ADDRESS = re.compile(r"(tls|tcp)://(?:[A-Za-z0-9._-]{1,253}|\[[0-9A-Fa-f:.]{2,45}\]):[0-9]{1,5}")


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
    """The scheduler's address, once it is known; for a cluster with TLS only a ``tls://host:port``."""
    address = record.scheduler_address or next(filter(None, map(_address_in, _files(run_folder))), None)
    if address is None:
        return None
    protocol = "tls" if uses_tls(record, run_folder) else "tcp"
    if not _ADDRESS.fullmatch(address) or not address.startswith(f"{protocol}://"):
        _warn_of(record.name, short(address), protocol)
        return None
    return address


@functools.lru_cache(maxsize=100)
def _warn_of(name: str, address: str, protocol: str) -> None:
    """Say once that an address is not connected to; it may be looked at several times a second."""
    logger.warning("cluster %r: nothing connects to %s, which is no %s://host:port", name, address, protocol)


def _files(run_folder: Path) -> tuple[Path, ...]:
    return run_folder / SCHEDULER_FILE, run_folder / FORMER_SCHEDULER_FILE


def _address_in(path: Path) -> str | None:
    try:
        address = json.loads(read_private(path))["address"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):  # not written yet, or incomplete
        return None
    return address if isinstance(address, str) else None


def _owner_may_live(record: Record) -> bool:
    if not kernel_may_live(record.owner):
        return False
    # Kernels on other hosts cannot be checked, and process ids are reused: so there is a time limit too.
    timeout_s = record.settings.get("timeout_s")  # which nobody has checked
    if not isinstance(timeout_s, (int, float)) or not 0 <= timeout_s < 2e11:
        timeout_s = 0.0
    limit_s = timeout_s + _START_SLACK_S
    return time.time() < record.created_at + limit_s
