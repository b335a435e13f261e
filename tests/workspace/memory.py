"""Memory limits of sessions: a control group for each, in one of the workspace's own. Linux, version 1 or 2, root only.

What goes above its limit ends whole: the kernel's choice of whom to kill falls on the first process of the pod (see
`pod_init.py`), and with that one all others die at the same moment, before any of them can say a word.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

SHORT_OF_BYTES = 10**8  # by how much a session's limit is below what was asked for, at worst
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
USUAL_PLACE = Path("/sys/fs/cgroup")
GROUP_NAME = re.compile(r"simws-[0-9a-f]{8}")


class MemoryLimitError(RuntimeError):
    """Control groups that limit memory cannot be made here."""


@dataclass(frozen=True)
class Version:
    """How one version of control groups calls its files, and where below the usual place a pod sees them."""

    name: str
    folder: str
    limit: str
    usage: str
    peak: str
    events: str

    @property
    def files(self) -> tuple[str, ...]:
        """The files that a pod can be shown under another version's names."""
        return self.limit, self.usage, self.peak, self.events, "memory.stat"


V1 = Version(
    "v1", "memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "memory.max_usage_in_bytes", "memory.oom_control"
)
V2 = Version("v2", "", "memory.max", "memory.current", "memory.peak", "memory.events")
VERSIONS = {version.name: version for version in (V1, V2)}


def limit_bytes(memory: float) -> int:
    """Return what a session asked for with that much `memory` gets: less than 10^9 bytes for each "GiB"."""
    asked = int(memory * 10**9)
    limit = max(asked - SHORT_OF_BYTES, asked // 2)  # the latter for less than 0.2, which would come to nothing
    return limit // PAGE_BYTES * PAGE_BYTES  # as the kernel cuts it


@dataclass(frozen=True)
class Group:
    """The control group of one session."""

    path: Path
    version: Version
    limit: int

    def ran_out(self) -> bool:
        """Say whether something in the session was killed because it was above the limit."""
        with contextlib.suppress(OSError):
            for line in (self.path / self.version.events).read_text().splitlines():
                if line.startswith("oom_kill "):
                    return int(line.split()[1]) > 0
        return False

    def view_script(self, look: str, folder: Path) -> str:
        """Return the shell commands that show a pod its own group at the usual place, as version `look` has it."""
        group, usual = shlex.quote(str(self.path)), USUAL_PLACE
        shown = self.version if look == "host" else VERSIONS[look]
        if shown is self.version:
            return f"mount -o bind,ro {group} {usual / shown.folder}\n"
        stage = folder / "cgroup"
        target = stage / shown.folder
        lines = [
            f"mkdir -p {stage} && mount -t tmpfs tmpfs {stage}",
            f"mkdir -p {target} {stage}/session && mount -o bind,ro {group} {stage}/session",
            *(
                f"ln -s {usual}/session/{real} {target}/{name}"
                for real, name in zip(self.version.files, shown.files, strict=True)
            ),
            f"mount --rbind {stage} {usual}",
        ]
        return "\n".join(lines) + "\n"

    def remove(self) -> None:
        """Remove the group of a session that is dead."""
        _remove(self.path)


class MemoryGroups:
    """The control groups of one workspace: `NAME/SESSION` below the group that this process is in."""

    def __init__(self, name: str) -> None:
        if os.geteuid() != 0:
            raise MemoryLimitError("only root may make control groups")
        if _kills_who_asks():
            raise MemoryLimitError("vm.oom_kill_allocating_task is set: a process would be killed, not its session")
        errors = []
        for version, parent in _parents():
            self._version, self._folder = version, parent / name
            try:
                self._open(parent)
            except (OSError, subprocess.SubprocessError) as error:
                errors.append(str(error))
                _remove(self._folder)
            else:
                return
        raise MemoryLimitError("; ".join(errors) or "no control groups for memory are mounted")

    def make(self, session: str, memory: float) -> Group:
        """Return a new group with the limit of a session that was asked for with `memory`."""
        limit = limit_bytes(memory)
        path = self._folder / session
        path.mkdir()
        (path / self._version.limit).write_text(str(limit))
        with contextlib.suppress(OSError):  # where the kernel does not count what is swapped out, there is no such file
            name, most = ("memory.memsw.limit_in_bytes", limit) if self._version is V1 else ("memory.swap.max", 0)
            (path / name).write_text(str(most))
        return Group(path, self._version, limit)

    def close(self) -> None:
        """Remove every group of this workspace."""
        _remove(self._folder)

    def _open(self, parent: Path) -> None:
        """Make the workspace's group, and prove that a session's can be limited and entered."""
        if self._version is V2:
            _hand_on(parent)
        self._folder.mkdir()
        if self._version is V2:
            _hand_on(self._folder)
        probe = self.make("probe", 1)
        subprocess.run([*join_command(str(probe.path)), "true"], capture_output=True, check=True)
        probe.remove()


def open_groups(name: str) -> tuple[MemoryGroups | None, str]:
    """Return the groups of a new workspace, or None and the reason why there can be none."""
    try:
        return MemoryGroups(name), ""
    except MemoryLimitError as error:
        return None, str(error)


def join_command(group: str) -> list[str]:
    """Return what to put before a command so that it runs in that control group."""
    return ["sh", "-c", 'echo 0 > "$0/cgroup.procs" && exec "$@"', group] if group else []


def workspaces_with_groups() -> set[str]:
    """Return the names of workspaces that have control groups on this machine."""
    return {path.name for path in _workspace_folders()}


def remove_groups(name: str) -> None:
    """Remove the control groups of one workspace, whose processes are dead."""
    for folder in [path for path in _workspace_folders() if path.name == name]:
        _remove(folder)


def _kills_who_asks() -> bool:
    setting = Path("/proc/sys/vm/oom_kill_allocating_task")
    return setting.exists() and setting.read_text().strip() != "0"


def _mounts() -> Iterator[tuple[Version, Path]]:
    """Yield where control groups that can limit memory are mounted."""
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, place, kind, options, *_ = line.split()
        if kind == "cgroup" and "memory" in options.split(","):
            yield V1, Path(place)
        elif kind == "cgroup2" and "memory" in _words(Path(place, "cgroup.controllers")):
            yield V2, Path(place)


def _parents() -> Iterator[tuple[Version, Path]]:
    """Yield the groups in which ours could be made, the best first: the one that this process is in, those above it.

    In version 2 a group that holds processes cannot hold limited groups, so ours may have to be beside them.
    """
    for version, mount in _mounts():
        if mount != USUAL_PLACE / version.folder:
            continue  # a pod would look elsewhere
        own = mount / _own_group(version).lstrip("/")
        if not own.is_dir():
            own = mount
        yield version, own
        yield from ((version, above) for above in own.parents if above.is_relative_to(mount))


def _own_group(version: Version) -> str:
    """Return the group that this process is in, as the kernel names it."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers == "" if version is V2 else "memory" in controllers.split(","):
                return path
    return "/"


def _hand_on(folder: Path) -> None:
    """Let the groups in this one limit memory (version 2)."""
    if "memory" not in _words(folder / "cgroup.subtree_control"):
        (folder / "cgroup.subtree_control").write_text("+memory")


def _words(file: Path) -> list[str]:
    try:
        return file.read_text().split()
    except OSError:
        return []


def _workspace_folders() -> list[Path]:
    found = []
    for _, mount in _mounts():
        for place, folders, _ in os.walk(mount):
            found += [Path(place, folder) for folder in folders if GROUP_NAME.fullmatch(folder)]
    return found


def _remove(folder: Path, timeout_s: float = 5.0) -> None:
    """Remove a group and those in it; what lived there may take a moment to be gone."""
    deadline = time.monotonic() + timeout_s
    for place, _, _ in os.walk(folder, topdown=False):
        while not _try_to_remove(Path(place)) and time.monotonic() < deadline:
            time.sleep(0.01)


def _try_to_remove(folder: Path) -> bool:
    with contextlib.suppress(OSError):
        folder.rmdir()
    return not folder.exists()
