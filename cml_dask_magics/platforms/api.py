"""The seam: the platform's four calls as a protocol, and what is peculiar to who provides them.

Anything that has the four calls is a platform: Cloudera's ``cml.workers_v1`` and the older ``cdsw`` as they stand, and
`local` on any machine. Does not know what runs in a session.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol


class WorkersAPI(Protocol):
    """Cloudera's Workers API. Facts and traps: Cloudera's documentation and the published ``cdsw.py``.

    A session is a dict; only ``id`` and ``status`` are sure to be in it. `cpu` is cores, `memory` GiB.
    """

    # ``await_workers`` is the fourth call. It polls every 5 seconds, gives a pass up at the first session that is
    # not ready and leaves out sessions that are not listed, so `pool` lists for itself and never calls it.

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


class PlatformError(RuntimeError):
    """The platform refused, failed or answered nonsense; the message holds its own words."""
