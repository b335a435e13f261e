"""The Workers API of older runtimes: the same calls at the top level, without the newer launch arguments."""

from __future__ import annotations

from simulated_workers import await_workers, launcher, list_workers, stop_workers

__all__ = ["await_workers", "launch_workers", "list_workers", "stop_workers"]

launch_workers = launcher([])
