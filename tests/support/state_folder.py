"""Where this package keeps what outlives a kernel, and its processes on this machine."""

from __future__ import annotations

import contextlib
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import psutil

from cml_dask_magics.model.settings import PRIVATE_FOLDER
from cml_dask_magics.platforms.local import LocalSessions


def private(state: Path) -> Path:
    """The folder of this package in a state folder."""
    return state / PRIVATE_FOLDER


def local_sessions(state: Path) -> LocalSessions:
    """The processes of this machine that clusters of a state folder run in."""
    return LocalSessions(private(state) / "local-sessions")


@contextlib.contextmanager
def another_machine() -> Iterator[str]:
    """This process takes itself for one of another machine, which shares its home with this one; yields its name."""
    with mock.patch.object(socket, "gethostname", return_value="another-host") as name:
        yield name()


def kill(state: Path, *ids: str) -> None:
    """Kill all that runs in sessions, as a node that fails does."""
    for session in local_sessions(state)._sessions():
        process = session.process()
        if session.id in ids and process is not None:
            members = [*process.children(recursive=True), process]
            for member in members:
                member.send_signal(signal.SIGKILL)
            psutil.wait_procs(members, timeout=10)
