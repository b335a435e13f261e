"""What the platform knows of one session, and how it tells it to those who ask."""

from __future__ import annotations

import datetime
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .network import Place
from .pods import Pod
from .settings import RELEASES, Settings

GPU_FOLDER = Path(__file__).resolve().parent / "gpu"
DOMAIN = "ml-sim.example.site"
ENDED = frozenset({"succeeded", "failed", "stopped", "timedout"})


@dataclass
class Record:
    """One session, from the request on; owned by the table."""

    id: str
    launched_by: str  # the id of the session that it dies with; empty for one that a person opened
    place: Place
    cpu: float
    memory: float
    gpu: int
    code: str
    launch: dict[str, Any]
    environment: dict[str, str]
    python: str
    foreign: bool = False
    faults: dict[str, dict[str, Any]] = field(default_factory=dict)
    status: str = "scheduling"
    end_status: str = "succeeded"
    created_at: float = field(default_factory=time.time)
    running_at: float | None = None
    finished_at: float | None = None
    address_known_at: float | None = None
    pod: Pod | None = None
    stop: threading.Event = field(default_factory=threading.Event)
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def ended(self) -> bool:
        """Whether the platform shows the session as over."""
        return self.status in ENDED

    @property
    def name(self) -> str:
        """What the platform's own list shows beside the session, on releases that have it."""
        return str(self.launch.get("name") or "")

    @property
    def holds_room(self) -> bool:
        """Whether the session has got what it was asked for with: it does not wait for it, and is not over."""
        return not self.ended and self.status != "scheduling"

    def public(self, settings: Settings) -> dict[str, Any]:
        """Return the session as `list_workers` shows it."""
        if settings.bare_list:
            return {"id": self.id, "status": self.status}
        known = self.address_known_at is not None and time.time() >= self.address_known_at
        shown: dict[str, Any] = {
            "id": self.id,
            "status": self.status,
            "app_url": f"{settings.app_url_scheme}://{self.id}.{DOMAIN}" + ("/" if settings.app_url_slash else ""),
            "created_at": _stamp(self.created_at),
            "running_at": _stamp(self.running_at),
            "finished_at": _stamp(self.finished_at),
            "cpu": self.cpu,
            "memory": self.memory,
        }
        if self.running_at is not None:
            shown["ip_address"] = self.place.address if known else "unknown"
        return shown

    def truth(self, pids: list[int]) -> dict[str, Any]:
        """Return everything about the session, for the test; `pids` are its living processes."""
        return {
            "id": self.id,
            "name": self.name,
            "status": self.status,
            "launched_by": self.launched_by,
            "foreign": self.foreign,
            "address": self.place.address,
            "namespace": self.place.namespace,
            "cpu": self.cpu,
            "memory": self.memory,
            "gpu": self.gpu,
            "memory_limit": self.pod.memory_limit if self.pod else 0,
            "memory_group": self.pod.group_path if self.pod else "",
            "code": self.code,
            "launch": self.launch,
            "environment": self.environment,
            "python": self.python,
            "created_at": self.created_at,
            "running_at": self.running_at,
            "finished_at": self.finished_at,
            "exit_status": self.pod.exit_status if self.pod else None,
            "init_pid": self.pod.init_pid if self.pod else 0,
            "pids": pids,
        }


def environment(
    settings: Settings, python: str, record_id: str, address: str, master: str, master_address: str
) -> dict[str, str]:
    """Return the environment of a session: what CML sets, and what the simulation needs."""
    python_folder = python.rsplit("/", 1)[0]
    return {
        "CDSW_ENGINE_ID": record_id,
        "CDSW_MASTER_ID": master,
        "CDSW_MASTER_IP": master_address,
        "CDSW_IP_ADDRESS": address,
        "CDSW_DOMAIN": DOMAIN,
        "CDSW_PROJECT_ID": "1",
        "CDSW_APP_PORT": "8100",
        "CDSW_READONLY_PORT": "8090",
        "CDSW_PUBLIC_PORT": "8080",
        "HOME": settings.home,
        "USER": "cdsw",
        "LOGNAME": "cdsw",
        "LANG": "C.UTF-8",
        "PATH": f"{python_folder}:/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin",
        "PYTHONPATH": ":".join(settings.python_path),
        "SIM_WORKSPACE_SOCKET": f"{settings.root}/socket",
        "SIM_SHARED_HOME": settings.home,
        "SIM_NFS_NEGATIVE_SECONDS": str(settings.nfs_negative_s),
        "SIM_LAUNCH_KEYWORDS": ",".join(RELEASES[settings.release]),
        **settings.environment,
    }


def with_gpus(variables: dict[str, str], gpus: int) -> dict[str, str]:
    """Return the environment of a session that has so many GPUs: where there is one, `nvidia-smi` lists them."""
    return {**variables, "PATH": f"{GPU_FOLDER}:{variables['PATH']}", "SIM_GPUS": str(gpus)} if gpus else variables


def _stamp(seconds: float | None) -> str | None:
    if seconds is None:
        return None
    moment = datetime.datetime.fromtimestamp(seconds, datetime.timezone.utc)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
