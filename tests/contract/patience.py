"""Waiting for what Dask does in its own time, and names that no other promise has."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from typing import Any

PATIENCE_S = 60.0


def eventually(condition: Callable[[], Any]) -> None:
    """Wait until a condition holds; it is an error if it never does."""
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


def unique(stem: str = "contract") -> str:
    """A name for something on a scheduler that other promises use too; also good as a Python identifier."""
    return f"{stem}_{uuid.uuid4().hex[:8]}"
