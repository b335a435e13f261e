"""Work that comes to its end though the user loses patience: stopping what was launched."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

T = TypeVar("T")


def finish(work: Callable[[], T]) -> T:
    """Do work in a thread of its own and wait for it.

    Ctrl-C reaches the main thread alone: it ends the waiting, however often it is pressed, and never the work. The
    interpreter waits for the thread before it exits.

    Parameters
    ----------
    work : callable
        Called without arguments.

    Returns
    -------
    object
        What it returns; what it raises is raised.
    """
    done: Future[T] = Future()

    def run() -> None:
        try:
            done.set_result(work())
        except BaseException as error:
            done.set_exception(error)

    threading.Thread(target=run, name="cml-dask-magics undo").start()
    return done.result()
