"""The Workers API of newer runtimes."""

from simulated_workers import await_workers, launch_workers, list_workers, stop_workers

__all__ = ["await_workers", "launch_workers", "list_workers", "stop_workers"]
