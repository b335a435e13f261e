"""What a simulated workspace is told when it starts: plain data that crosses from the test to the server as JSON."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from typing import Any, Literal

Module = Literal["cml", "cdsw", "none"]
Isolation = Literal["auto", "namespaces", "processes"]
Release = Literal["oldest", "newer", "named", "newest"]

# What `launch_workers` takes besides, from release to release.
_LABELS = ("accelerator_label_id", "resource_profile_id", "resource_group_id")
RELEASES: dict[Release, tuple[str, ...]] = {
    "oldest": (),
    "newer": _LABELS,
    "named": (*_LABELS, "name"),
    "newest": (*_LABELS, "name", "rdma_network_selections"),
}


@dataclass(frozen=True)
class Limits:
    """Upper bounds over sessions that are alive; None is no bound."""

    sessions: int | None = None
    cores: float | None = None
    gib: float | None = None

    def allow(self, sessions: int, cores: float, gib: float) -> bool:
        """Say whether that many sessions, cores and GiB together stay within the bounds."""
        used = ((sessions, self.sessions), (cores, self.cores), (gib, self.gib))
        return all(bound is None or amount <= bound for amount, bound in used)


ON_PREMISES = Limits(cores=2, gib=8)  # what a user has in all unless an administrator gave more
_LIMITS = ("quota", "capacity", "user_quota")


@dataclass(frozen=True)
class Settings:
    """One workspace. `Workspace.configure` may change everything from `start_delay_s` on while it runs."""

    name: str
    root: str
    home: str
    python: str
    isolation: Isolation = "auto"
    module: Module = "cml"
    python_path: tuple[str, ...] = ()
    environment: dict[str, str] = field(default_factory=dict)
    seed: int | None = None
    memory_limits: bool = True
    start_delay_s: float = 0.5
    start_jitter: float = 0.2
    address_delay_s: float = 0.1
    stop_grace_s: float = 2.0
    nfs_negative_s: float = 20.0
    app_url_slash: bool = True
    app_url_scheme: Literal["https", "http"] = "https"
    bare_list: bool = False
    quota: Limits = Limits()
    capacity: Limits = Limits()
    user_quota: Limits = Limits()
    opened_cpu: float = 1.0
    opened_memory: float = 8.0
    memory_look: Literal["host", "v1", "v2"] = "host"
    release: Release = "newer"
    notices: str = ""

    def to_json(self) -> str:
        """Return the settings as a JSON document."""
        return json.dumps(dataclasses.asdict(self))

    def changed(self, changes: dict[str, Any]) -> Settings:
        """Return a copy with `changes`, which may come from JSON; unknown names raise TypeError."""
        changes = dict(changes)
        for name in _LIMITS:
            if isinstance(changes.get(name), dict):
                changes[name] = Limits(**changes[name])
        return dataclasses.replace(self, **changes)

    @classmethod
    def from_json(cls, text: str) -> Settings:
        """Read what `to_json` wrote."""
        values = json.loads(text)
        values.update({name: Limits(**values[name]) for name in _LIMITS})
        values["python_path"] = tuple(values["python_path"])
        return cls(**values)
