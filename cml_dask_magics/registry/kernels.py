"""Which kernel and machine this is, and whether another kernel may still live."""

from __future__ import annotations

import os
import socket

from cml_dask_magics.model.record import Owner, Record


def kernel_may_live(kernel: Owner) -> bool:
    """Whether a kernel may still be alive; of one on another host that cannot be known."""
    return not is_this_machine(kernel.hostname) or _process_lives(kernel.pid)


def is_this_machine(hostname: str) -> bool:
    """Whether processes of that host can be seen here; machines, and sessions of CML, may share a home."""
    return hostname == socket.gethostname()


def other_machine(record: Record) -> str:
    """The machine whose processes a cluster runs in, if that is another one than this; otherwise empty."""
    host = record.owner.hostname
    return "" if record.backend != "local" or host == "" or is_this_machine(host) else host


def this_kernel(session: str) -> Owner:
    """This kernel, in the session with that id."""
    return Owner(session, socket.gethostname(), os.getpid())


def _process_lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:  # perhaps another user's process by now
        return True
    return True
