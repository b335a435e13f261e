"""Which kernel this is, and whether another may still live."""

from __future__ import annotations

import os
import socket

from cml_dask_magics.model.record import Owner


def kernel_may_live(kernel: Owner) -> bool:
    """Whether a kernel may still be alive; of one on another host that cannot be known."""
    return kernel.hostname != socket.gethostname() or _process_lives(kernel.pid)


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
