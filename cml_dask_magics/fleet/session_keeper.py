"""Keeps a session's output within bounds, and its scratch space to itself.

A small process beside Dask's: it writes what the session prints to the session's log, and clears the scratch space away
once Dask's process is gone, however that ended. A copy of this file is in the cluster's run folder; it imports nothing
but Python itself.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import select
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path

LOG_BYTES = 20 * 10**6
"""The most that a session's log takes of the shared home; the newest half is kept whenever it is full."""

SCRATCH = "cml-dask-magics-scratch-"
# In every scratch folder that we made, with the name of its machine: a folder without it is never removed, nor one of
# another machine, whose lock may not show here.
MARK = ".cml-dask-magics"

MOUNTS = "/proc/self/mountinfo"

_CHUNK_BYTES = 65536
_QUIET_S = 0.2  # after this long without output, what was held back is written
_COUNTED_EVERY_S = 10.0
_NEW_S = 60.0  # a folder may be this old before it is locked
_LONGEST_LINES = 50  # of what may come again and again: a traceback
_SHOWN_LINES = 20  # of repeated lines are shown all the same
_LOGGED_AT = re.compile(rb"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} ")
# Where a file is in memory, or on another machine.
_NO_DISKS = re.compile(r"tmpfs|ramfs|nfs\d?|cifs|smb\d?|ceph|lustre|gpfs|beegfs|9p|fuse\.(?!fuse-overlayfs).*")


class BoundedFile:
    """A file that keeps its newest part.

    Readers of its end never see anything else: the newest half is copied to the beginning, then the rest is cut off.

    Parameters
    ----------
    path : str
        An existing file; without one, what is written is lost.
    most_bytes : int
    """

    def __init__(self, path: str, most_bytes: int = LOG_BYTES) -> None:
        self._most_bytes = most_bytes
        self._lost_bytes = 0
        self._file = -1
        with contextlib.suppress(OSError):
            self._file = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)

    def write(self, data: bytes) -> None:
        """Append; what the disk does not take is counted, because whoever prints must not wait for it."""
        try:
            if self._lost_bytes:
                note = b"[%d bytes of output could not be written]\n" % self._lost_bytes
                self._append(note)
                self._lost_bytes = 0
            self._append(data)
        except OSError:
            self._lost_bytes += len(data)

    def _append(self, data: bytes) -> None:
        size = os.lseek(self._file, 0, os.SEEK_END)
        if size + len(data) > self._most_bytes:
            size = self._cut(size)
        while data:
            written = os.pwrite(self._file, data, size)
            data, size = data[written:], size + written

    def _cut(self, size: int) -> int:
        """Keep the newest half; returns the new size."""
        note = b"[older output was removed: this log keeps the newest %d MB]\n" % (self._most_bytes // 10**6)
        source = max(size - self._most_bytes // 2, 0)
        first = os.pread(self._file, _CHUNK_BYTES, source)
        source += first.find(b"\n") + 1
        os.pwrite(self._file, note, 0)
        target = len(note)
        while chunk := os.pread(self._file, min(_CHUNK_BYTES, size - source), source):
            os.pwrite(self._file, chunk, target)
            source, target = source + len(chunk), target + len(chunk)
        os.ftruncate(self._file, target)
        return target


class Repeats:
    """Counts lines, and blocks of them, that come again and again, instead of letting them through."""

    def __init__(self) -> None:
        self._last: deque[bytes] = deque(maxlen=_LONGEST_LINES)  # what was let through, without its time
        self._block: list[bytes] = []
        self._held: deque[bytes] = deque(maxlen=max(_LONGEST_LINES, _SHOWN_LINES))
        self._count = 0

    @property
    def holds(self) -> bool:
        """Whether something was held back."""
        return self._count > 0

    def feed(self, line: bytes) -> Iterator[bytes]:
        """What is to be written now that this line has come."""
        key = _LOGGED_AT.sub(b"", line, count=1)
        if not (self._block and key == self._block[self._count % len(self._block)]):
            yield from self.flush()
            if key not in self._last:
                self._last.append(key)
                yield line
                return
            last = list(self._last)
            self._block = last[len(last) - 1 - last[::-1].index(key) :]
        self._held.append(line)
        self._count += 1

    def flush(self) -> Iterator[bytes]:
        """What was held back: a few lines as they came, many as a count."""
        block, count, held = self._block, self._count, list(self._held)
        self._block, self._count = [], 0
        self._held.clear()
        if count > _SHOWN_LINES:
            rounds, rest = divmod(count, len(block))
            what = "the line above" if len(block) == 1 else f"the {len(block)} lines above"
            yield f"[{what} came {rounds:,} more time{'s' * (rounds > 1)}]\n".encode()
            held = held[len(held) - rest :]
        for line in held:
            self._last.append(_LOGGED_AT.sub(b"", line, count=1))
            yield line


def keep(log: BoundedFile, source: int, life: int) -> None:
    """Write to the log what comes from `source`, until the other end of `life` is closed and nothing more comes."""
    repeats, begun, flushed_at, waits_for = Repeats(), b"", time.monotonic(), [source, life]
    while True:
        is_alive = life in waits_for
        ready = select.select(waits_for, [], [], None if is_alive and not begun and not repeats.holds else _QUIET_S)[0]
        if life in ready:  # nothing is ever written to it
            waits_for.remove(life)
        data = os.read(source, _CHUNK_BYTES) if source in ready else b""
        has_ended = source in ready and not data
        *lines, begun = (begun + data).split(b"\n")
        out = [piece for line in lines for piece in repeats.feed(line + b"\n")]
        is_late = time.monotonic() - flushed_at > _COUNTED_EVERY_S
        if has_ended or not ready or is_late or len(begun) >= _CHUNK_BYTES:
            out += [*repeats.flush(), begun]
            begun, flushed_at = b"", time.monotonic()
        log.write(b"".join(out))
        if has_ended or not (ready or is_alive):
            return


def make_scratch(chosen: str | None, needed_bytes: float) -> tuple[str, int]:
    """Make a folder for what Dask's workers write to disk, which nobody else can read or could have prepared.

    Says where it is, and whether there is room for as much as the session has memory.

    Parameters
    ----------
    chosen : str, optional
        Dask's setting ``temporary-directory``; otherwise it is on a disk of this machine, if there is one.
    needed_bytes : float
        The memory of a session with workers; 0 for a scheduler's, which needs none.

    Returns
    -------
    str
        The folder.
    int
        A descriptor of it, locked: what is not locked is a leftover.
    """
    if chosen:
        Path(chosen).mkdir(mode=0o700, parents=True, exist_ok=True)
    folder = tempfile.mkdtemp(prefix=SCRATCH, dir=chosen or _a_disk())
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    with contextlib.suppress(OSError):  # a file system without locks: nobody is to clear it away then
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        Path(folder, MARK).write_bytes(_this_machine())  # in a folder that is private
    room = os.fstatvfs(descriptor)
    free_bytes = room.f_bavail * room.f_frsize
    print(f"Scratch space of this session: {folder}, with {free_bytes / 2**30:.1f} GiB free.")
    if free_bytes < needed_bytes:
        print(
            f"That is less than its {needed_bytes / 2**30:.1f} GiB of memory: workers that spill much, or shuffle, may "
            "find no room. Dask's setting temporary-directory names another disk."
        )
    return folder, descriptor


def _a_disk() -> str:
    """A folder for temporary files on a disk of this machine, if there is one; else the usual one."""
    usual = tempfile.gettempdir()
    return next((folder for folder in (usual, "/tmp", "/var/tmp") if is_on_a_disk(folder)), usual)


def is_on_a_disk(folder: str) -> bool:
    """Whether files in a folder are neither in memory nor on another machine, as far as the system tells."""
    if not os.access(folder, os.W_OK | os.X_OK):
        return False
    real, best, kind = os.path.realpath(folder), "", ""
    with contextlib.suppress(OSError), open(MOUNTS) as mounts:  # noqa: PTH123
        for mount in mounts:
            words = mount.split()
            point = words[4].replace("\\040", " ")
            if len(point) >= len(best) and os.path.commonpath((real, point)) == point:
                best, kind = point, words[words.index("-") + 1]
    return not _NO_DISKS.fullmatch(kind)


def start(log: Path, scratch: str, lock: int) -> Callable[[], None]:
    """Have this process's output, and that of what it starts, go through a keeper; it clears the scratch space away.

    Parameters
    ----------
    log : Path
        An existing file.
    scratch : str
    lock : int
        Its locked descriptor.

    Returns
    -------
    callable
        To be called last of all: waits until everything is written.
    """
    source, output = os.pipe()
    life, our_life = os.pipe()
    keeper = subprocess.Popen(
        # As little of Python as can be: it takes memory of the session.
        [sys.executable, "-I", "-S", __file__, str(log), scratch, str(life)],
        stdin=source,
        pass_fds=(life, lock),
        # What is meant to end the session must not end this before the rest is written.
        preexec_fn=lambda: signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT, signal.SIGHUP}),
    )
    for descriptor in (source, life, lock):
        os.close(descriptor)
    for descriptor in (1, 2):
        os.dup2(output, descriptor)
    os.close(output)
    # What a copy of this process has of it would tell the keeper that this one lives; a copy of the copy has none.
    ends = [our_life]
    os.register_at_fork(after_in_child=lambda: os.close(ends.pop()) if ends else None)

    def finish() -> None:
        if not ends:  # in a copy
            return
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
            sys.stderr.flush()
        os.close(ends.pop())
        with contextlib.suppress(subprocess.TimeoutExpired):
            keeper.wait(timeout=5)

    return finish


def _this_machine() -> bytes:
    return os.fsencode(os.uname().nodename)  # not `socket`, which would take memory


def clear_leftovers(parent: Path) -> None:
    """Remove scratch folders of this user whose session is gone; only such as we made on this machine."""
    for entry in list(os.scandir(parent)):
        with contextlib.suppress(OSError):
            about = entry.stat(follow_symlinks=False)
            is_private = stat.S_ISDIR(about.st_mode) and about.st_uid == os.getuid() and not about.st_mode & 0o077
            mark = Path(entry, MARK)
            is_ours = entry.name.startswith(SCRATCH) and is_private and mark.is_file()
            if is_ours and mark.read_bytes() == _this_machine() and time.time() - about.st_mtime > _NEW_S:
                descriptor = os.open(entry, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)  # fails while its session lives
                    shutil.rmtree(entry, ignore_errors=True)  # follows no link
                finally:
                    os.close(descriptor)


if __name__ == "__main__":
    scratch = Path(sys.argv[2])
    with contextlib.suppress(OSError):
        clear_leftovers(scratch.parent)
    keep(BoundedFile(sys.argv[1]), 0, int(sys.argv[3]))
    shutil.rmtree(scratch, ignore_errors=True)
