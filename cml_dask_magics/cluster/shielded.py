"""Work that comes to its end though the user loses patience: stopping what was launched."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

T = TypeVar("T")


def begin(work: Callable[[], T]) -> Future[T]:
    """Do work in a thread of its own, which nothing that befalls its caller ends.

    Ctrl-C reaches the main thread alone, cancelling a task leaves the thread as it is, and the interpreter waits for
    it before it exits. (A loop waits for the threads of ``asyncio.to_thread`` before it stops; not for this one.)

    Parameters
    ----------
    work : callable
        Called without arguments.

    Returns
    -------
    concurrent.futures.Future
        What it returns or raises.
    """
    done: Future[T] = Future()
    done.set_running_or_notify_cancel()  # from here on it cannot be cancelled

    def run() -> None:
        try:
            done.set_result(work())
        except BaseException as error:
            done.set_exception(error)

    threading.Thread(target=run, name="cml-dask-magics undo").start()
    return done


def finish(work: Callable[[], T]) -> T:
    """Do work in a thread of its own and wait for it; Ctrl-C ends the waiting, and never the work."""
    return begin(work).result()
