"""Which processes of this machine belong to which session, read from /proc (Linux); knows nothing of the platform."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path


def all_pids() -> list[int]:
    """Return the pids of every process that can be seen."""
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]  # noqa: PTH208 (hot: no Path a process)


def children(pid: int) -> list[int]:
    """Return the pids whose parent is `pid`."""
    found = []
    for candidate in all_pids():
        stat = _stat_fields(candidate)
        if stat and int(stat[1]) == pid:
            found.append(candidate)
    return found


def command(pid: int) -> list[str]:
    """Return the process's argv; empty for one that is gone or a zombie."""
    try:
        raw = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return []
    return [part.decode(errors="replace") for part in raw.split(b"\0")[:-1]]


def lives(pid: int) -> bool:
    """Say whether a process is there and not just waiting to be reaped."""
    stat = _stat_fields(pid)
    return bool(stat) and stat[0] not in ("Z", "X")


def by_network(inodes: dict[int, str]) -> dict[str, list[int]]:
    """Return the living pids of each session, where `inodes` names sessions by their network namespace's inode."""
    found: dict[str, list[int]] = {session: [] for session in inodes.values()}
    for pid in all_pids():
        try:
            inode = os.stat(f"/proc/{pid}/ns/net").st_ino  # noqa: PTH116 (hot)
        except OSError:
            continue
        if inode in inodes and lives(pid):
            found[inodes[inode]].append(pid)
    return found


def by_environment(name: str, values: set[str]) -> dict[str, list[int]]:
    """Return the living pids of each value of environment variable `name`, as the processes were started with it."""
    found: dict[str, list[int]] = {value: [] for value in values}
    prefix = f"{name}=".encode()
    for pid in all_pids():
        for entry in _environment(pid):
            if entry.startswith(prefix):
                value = entry[len(prefix) :].decode(errors="replace")
                if value in found and lives(pid):
                    found[value].append(pid)
    return found


def signal_environment(name: str, value: str, number: int, spare: set[int] | None = None) -> None:
    """Send a signal to every process with `name=value` in its environment, except `spare`."""
    for pid in by_environment(name, {value})[value]:
        if pid not in (spare or set()):
            send(pid, number)


def kill_environment(name: str, value: str, spare: set[int] | None = None, timeout_s: float = 10.0) -> bool:
    """SIGKILL every process with `name=value` until none is left; False if some outlive `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        left = set(by_environment(name, {value})[value]) - (spare or set())
        if not left:
            return True
        for pid in left:
            send(pid, signal.SIGKILL)
        time.sleep(0.01)
    return False


def send(pid: int, number: int) -> None:
    """Send a signal; a process that is gone already is no error."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return


def _environment(pid: int) -> Iterator[bytes]:
    try:
        yield from Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return


def _stat_fields(pid: int) -> list[str]:
    """Return the fields of /proc/PID/stat after the name: state, parent, ..."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except OSError:
        return []
    return text[text.rindex(")") + 2 :].split()
