"""The first process of a pod: runs the session's command, hands on a stop, and ends the pod with the command.

Run as a script (`pod_init.py MODE HOSTNAME [COMMAND ...]`) with the lifeline, a pipe that only the server holds open,
as standard input: a byte on it means "stop", its end means "die at once". No command: the pod lives until told.
When memory runs out the kernel shall kill this process: with process 1 all others of the pod die at the same moment.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import sys
from pathlib import Path

import processes


def main() -> int:
    """Run the pod; return the command's exit status."""
    os.dup2(1, 2)
    mode, hostname, *argv = sys.argv[1:]
    isolated = mode == "namespaces"
    if isolated:
        _furnish(hostname)
    Path(os.environ["SIM_POD_FOLDER"], "ready").touch()
    wake_read, wake_write = os.pipe2(os.O_NONBLOCK)
    signal.set_wakeup_fd(wake_write)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    lifeline = os.dup(0)
    with Path(os.devnull).open() as null:
        os.dup2(null.fileno(), 0)
    main_pid = subprocess.Popen(argv, stdin=subprocess.DEVNULL, start_new_session=True).pid if argv else -1
    if isolated:
        Path("/proc/self/oom_score_adj").write_text("1000")  # not before: a child would have it, too

    stopping, status = False, 0
    while True:
        ready, _, _ = select.select([lifeline, wake_read], [], [])
        if lifeline in ready:
            if not os.read(lifeline, 1):
                break
            stopping = True
            _terminate(isolated)
        if wake_read in ready:
            os.read(wake_read, 4096)
        left = True
        while left:
            try:
                pid, raw = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                left = False
                break
            if pid == 0:
                break
            if pid == main_pid:
                status = raw
                if not stopping:  # the code ended, and the pod with it, whatever it left running
                    return _end(isolated, status)
        if stopping and not left:
            return _end(isolated, status)
    return _end(isolated, signal.SIGKILL)


def _furnish(hostname: str) -> None:
    """Give the pod its own name, known to its hosts file, no name server, and its own shared memory.

    Where its memory is limited, it sees the limit as its own.
    """
    socket.sethostname(hostname)
    folder = Path(os.environ["SIM_POD_FOLDER"])
    for name in ("hosts", "resolv.conf"):
        if Path("/etc", name).exists():
            subprocess.run(["mount", "--bind", str(folder / name), f"/etc/{name}"], check=False)
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", "/dev/shm"], check=False)
    if (folder / "memory.sh").exists():
        subprocess.run(["sh", "-e", str(folder / "memory.sh")], check=True)


def _terminate(isolated: bool) -> None:
    if isolated:
        try:
            os.kill(-1, signal.SIGTERM)  # as process 1: everything in the pod but itself
        except ProcessLookupError:
            return
    else:
        engine = os.environ["CDSW_ENGINE_ID"]
        processes.signal_environment("CDSW_ENGINE_ID", engine, signal.SIGTERM, spare={os.getpid()})


def _end(isolated: bool, status: int) -> int:
    """Return the exit status; with namespaces, the end of process 1 is the end of all others."""
    if not isolated:
        processes.kill_environment("CDSW_ENGINE_ID", os.environ["CDSW_ENGINE_ID"], spare={os.getpid()})
    return os.waitstatus_to_exitcode(status) & 0xFF


if __name__ == "__main__":
    sys.exit(main())
