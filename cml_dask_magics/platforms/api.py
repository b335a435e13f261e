"""The interface of a platform: four calls, and in what platforms differ.

Cloudera's ``cml.workers_v1`` and the older ``cdsw`` have the four calls, and `local` has them on any machine.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol


class WorkersAPI(Protocol):
    """Cloudera's Workers API, as in Cloudera's documentation and the published ``cdsw.py``.

    A session is a dict; only ``id`` and ``status`` are always in it. `cpu` is cores, `memory` GiB.
    """

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
        """Start `n` sessions. A refused one is a dict with ``message`` and without ``id``; raises nothing."""

    def list_workers(self) -> list[dict[str, Any]]:
        """The sessions that the calling session launched, including ended ones."""

    def stop_workers(self, *worker_id: str) -> Sequence[Any] | None:
        """Stop sessions by id. **Without ids it stops all of the calling session's.** Raises nothing."""

    def await_workers(
        self, ids: Sequence[Any], wait_for_completion: bool = True, timeout_seconds: int = 60
    ) -> Mapping[str, Any]:
        """Wait for sessions to run or to end.

        Unused: it polls every 5 seconds, stops a pass at the first session that is not ready, and leaves out sessions
        that are not listed. `pool` polls by itself.
        """


@dataclass(frozen=True)
class Platform:
    """The provider of the four calls, and its properties.

    Parameters
    ----------
    backend : str
        ``cml``, ``cdsw`` or ``local``.
    api : WorkersAPI
    scheduler_port : int
        Dask's default port if each session has its own address; 0 (any free port) if they share one.
    session : str
        Id of the session that this kernel runs in; empty outside CML.
    domain : str
        The workspace's domain, for links; empty outside CML.
    browser_is_here : bool
        Whether the user's browser can open the ports of sessions, directly or as ``distributed.dashboard.link`` in
        Dask's configuration says.
    cores, memory_gib : float
        What one session can have at most; where that is finite, all sessions share it.
    """

    backend: str
    api: WorkersAPI
    scheduler_port: int = 8786
    session: str = ""
    domain: str = ""
    browser_is_here: bool = False
    cores: float = math.inf
    memory_gib: float = math.inf


def launch_keywords(api: WorkersAPI) -> frozenset[str] | None:
    """What ``launch_workers`` takes, which differs from one release to the next; None if it does not tell."""
    try:
        parameters = inspect.signature(api.launch_workers).parameters
    except (TypeError, ValueError):
        return None
    if any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters.values()):
        return None
    return frozenset(parameters) - {"self"}


class PlatformError(RuntimeError):
    """The platform refused, failed or sent an invalid answer; the message quotes it."""
