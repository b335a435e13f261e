"""Work that Ctrl-C does not interrupt: stopping what was launched."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

T = TypeVar("T")


def start_shielded(work: Callable[[], T]) -> Future[T]:
    """Call `work` in a thread of its own; the future has its result.

    Ctrl-C only reaches the main thread, and cancelling a task does not stop the thread. The interpreter waits for it
    before it exits; a loop that stops does not, as it would for the threads of ``asyncio.to_thread``.
    """
    done: Future[T] = Future()
    done.set_running_or_notify_cancel()  # so that it cannot be cancelled

    def run() -> None:
        try:
            done.set_result(work())
        except BaseException as error:
            done.set_exception(error)

    threading.Thread(target=run, name="cml-dask-magics shielded").start()
    return done


def run_shielded(work: Callable[[], T]) -> T:
    """Call `work` in a thread of its own and wait for the result; Ctrl-C ends the wait, but not the work."""
    return start_shielded(work).result()
