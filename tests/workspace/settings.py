"""What a simulated workspace is told when it starts: plain data that crosses from the test to the server as JSON."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from typing import Any, Literal

Module = Literal["cml", "cdsw", "none"]
Isolation = Literal["auto", "namespaces", "processes"]


@dataclass(frozen=True)
class Limits:
    """Upper bounds over all launched sessions that are alive; None is no bound."""

    sessions: int | None = None
    cores: float | None = None
    gib: float | None = None

    def allow(self, sessions: int, cores: float, gib: float) -> bool:
        """Say whether that many sessions, cores and GiB together stay within the bounds."""
        used = ((sessions, self.sessions), (cores, self.cores), (gib, self.gib))
        return all(bound is None or amount <= bound for amount, bound in used)


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
    start_delay_s: float = 0.5
    start_jitter: float = 0.2
    address_delay_s: float = 0.1
    stop_grace_s: float = 2.0
    nfs_negative_s: float = 20.0
    app_url_slash: bool = True
    bare_list: bool = False
    quota: Limits = Limits()
    capacity: Limits = Limits()

    def to_json(self) -> str:
        """Return the settings as a JSON document."""
        return json.dumps(dataclasses.asdict(self))

    def changed(self, changes: dict[str, Any]) -> Settings:
        """Return a copy with `changes`, which may come from JSON; unknown names raise TypeError."""
        changes = dict(changes)
        for name in ("quota", "capacity"):
            if isinstance(changes.get(name), dict):
                changes[name] = Limits(**changes[name])
        return dataclasses.replace(self, **changes)

    @classmethod
    def from_json(cls, text: str) -> Settings:
        """Read what `to_json` wrote."""
        values = json.loads(text)
        values["quota"], values["capacity"] = Limits(**values["quota"]), Limits(**values["capacity"])
        values["python_path"] = tuple(values["python_path"])
        return cls(**values)
