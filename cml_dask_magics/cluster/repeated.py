"""A coroutine function that is called at intervals."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Coroutine
from typing import Any

logger = logging.getLogger(__name__)


class Repeated:
    """Has the interface of tornado's ``PeriodicCallback``, but uses the monotonic clock.

    That one would stop for an hour when the clock is set back by an hour.
    """

    def __init__(self, callback: Callable[[], Coroutine[Any, Any, None]], interval_s: float) -> None:
        self._callback = callback
        self._interval_s = interval_s
        self._ending: asyncio.Event | None = None

    def start(self) -> None:
        """Start, on the running loop."""
        if self._ending is None:
            self._ending = asyncio.Event()
            self._task = asyncio.ensure_future(self._run(self._ending))

    def stop(self) -> None:
        """Stop calling; a call that is under way goes on."""
        if self._ending is not None:
            self._ending.set()

    async def _run(self, ending: asyncio.Event) -> None:
        while True:
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(ending.wait(), self._interval_s)
            if ending.is_set():
                return
            try:
                await self._callback()
            except Exception:  # the next call may succeed
                logger.exception("%s failed", self._callback.__qualname__)
