"""Which kernel this is, and whether another may still live."""

from __future__ import annotations

import os
import socket

from cml_dask_magics.model.record import Owner


def kernel_may_live(kernel: Owner) -> bool:
    """Whether a kernel may still be there: one in another session cannot be looked at."""
    return kernel.hostname != socket.gethostname() or _process_lives(kernel.pid)


def this_kernel(session: str) -> Owner:
    """The kernel that asks, in the session of that id."""
    return Owner(session, socket.gethostname(), os.getpid())


def _process_lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:  # somebody else's process by now, or not ours to ask
        return True
    return True
