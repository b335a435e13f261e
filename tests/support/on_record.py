"""Clusters on a platform in memory, as another kernel of the same CML session left them on record."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cml_dask_magics.fleet import opening
from cml_dask_magics.fleet.fleet import Fleet
from cml_dask_magics.fleet.opening import claim, open_fleet
from cml_dask_magics.model.settings import make_settings
from cml_dask_magics.model.times import Times
from cml_dask_magics.registry.registry import Registry
from support.memory_platform import Workspace

MINE, OTHER = "kernelsession", "othersession"
TIMES = Times(stop_s=3.0, suspects_s=0.4, missing_s=0.3, stop_again_s=0.5, connect_s=1.0, answer_s=1.0)


@dataclass
class World:
    """A platform with sessions of ours and of others, and the state folder of this user.

    Attributes
    ----------
    others : set of str
        Sessions that are no cluster's: they must never be told to stop.
    """

    workspace: Workspace
    registry: Registry
    others: set[str]

    def start(self, name: str = "default", log: bool = True, **options: Any) -> Fleet:
        """A cluster with two workers whose sessions run; by a kernel that is gone when this returns.

        Parameters
        ----------
        name : str
        log : bool
            Whether the sessions have written anything.
        **options
            For `make_settings`.
        """
        cluster = claim(make_settings(name=name, **options), times=TIMES)
        cluster.launches.launch("scheduler", 1)
        cluster.launches.launch("worker", 2)
        for session in cluster.record.sessions if log else ():
            self.log(cluster, session.id)
        opening._pools.clear()
        return cluster

    def lose_notes(self, cluster: Fleet) -> None:
        """As where the kernel was killed before it had written down, beside the record, what it launched."""
        for path in cluster.folder.glob("launched-*"):
            path.unlink()

    def log(self, cluster: Fleet, session: str) -> None:
        """Let a session write its log, as the first thing that it does."""
        path = cluster.folder / "logs" / f"{session}.log"
        path.write_text("hello\n")
        path.chmod(0o600)

    def open(self, name: str = "default") -> Fleet:
        """The cluster as the next kernel finds it."""
        cluster = open_fleet(self.registry, name, TIMES)
        assert cluster is not None
        return cluster

    def record_of(self, name: str = "default") -> Path:
        return self.registry.folder(name) / "record.json"

    def ours(self) -> set[str]:
        """Ids of the clusters' sessions that are up."""
        return {session for session in self.workspace.up() if self.workspace.sessions[session].code}

    def stopped(self) -> set[str]:
        """All that the platform was told to stop."""
        return {each for _, call, ids in self.workspace.calls if call == "stop" for each in ids}
