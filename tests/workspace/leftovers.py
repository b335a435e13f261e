"""Removes what workspaces left behind whose server is gone: processes, namespaces, control groups, folders."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import time
from pathlib import Path

from . import processes
from .memory import remove_groups, workspaces_with_groups
from .network import NETNS_FOLDER, delete_namespaces, namespaces

NAME = re.compile(r"simws-[0-9a-f]{8}")
FOLDER = Path("/tmp")


def remove_leftovers() -> list[str]:
    """Remove every workspace of this machine that has no server any more; return their names."""
    names = {match[0] for name in namespaces("simws-") if (match := NAME.match(name))}
    names |= workspaces_with_groups()
    names |= {path.name for path in FOLDER.glob("simws-*") if NAME.fullmatch(path.name) and _is_stale(path)}
    if not names:
        return []
    served = _served()
    dead = sorted(names - served)
    for name in dead:
        remove_workspace(name)
        shutil.rmtree(FOLDER / name, ignore_errors=True)
    return dead


def remove_workspace(name: str) -> None:
    """Kill what lives in the workspace's namespaces, then delete them and its control groups."""
    inodes = {}
    for namespace in namespaces(f"{name}-"):
        with contextlib.suppress(OSError):
            inodes[(NETNS_FOLDER / namespace).stat().st_ino] = namespace
    if inodes:
        for pids in processes.by_network(inodes).values():
            for pid in pids:
                processes.send(pid, signal.SIGKILL)
    socket = str(FOLDER / name / "socket")
    with contextlib.suppress(FileNotFoundError):
        processes.kill_environment("SIM_WORKSPACE_SOCKET", socket, spare={os.getpid()})
    delete_namespaces(name)
    remove_groups(name)


def _served() -> set[str]:
    """Return the names of workspaces whose server lives."""
    found = set()
    for pid in processes.all_pids():
        argv = processes.command(pid)
        if any(word.endswith("workspace.server") for word in argv):
            found |= {match[0] for word in argv for match in NAME.finditer(word)}
    return found


def _is_stale(path: Path) -> bool:
    """Say whether nobody is about to start a server here: the folder's owner is dead, or had a minute for it."""
    try:
        owner = int((path / "owner").read_text())
    except (OSError, ValueError):
        owner = None
    if owner is not None and owner not in processes.all_pids():
        return True
    try:
        return time.time() - path.stat().st_mtime > 60
    except OSError:
        return False
