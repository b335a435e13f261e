"""Where this package keeps what outlives a kernel, and its processes on this machine."""

from __future__ import annotations

from pathlib import Path

from cml_dask_magics.model.settings import PRIVATE_FOLDER
from cml_dask_magics.platforms.local import LocalSessions


def private(state: Path) -> Path:
    """The folder of this package in a state folder."""
    return state / PRIVATE_FOLDER


def local_sessions(state: Path) -> LocalSessions:
    """The processes of this machine that clusters of a state folder run in."""
    return LocalSessions(private(state) / "local-sessions")
