"""The Workers API of older runtimes: the same calls at the top level, without the newer launch arguments."""

from __future__ import annotations

from typing import Any

from simulated_workers import await_workers, list_workers, stop_workers
from simulated_workers import launch_workers as _launch

__all__ = ["await_workers", "launch_workers", "list_workers", "stop_workers"]


def launch_workers(
    n: int,
    cpu: float,
    memory: float,
    nvidia_gpu: int = 0,
    kernel: str = "python3",
    script: str = "",
    code: str = "",
    env: dict[str, str] = {},  # noqa: B006 (the vendor's signature)
) -> list[dict[str, Any]]:
    """Ask for `n` sessions."""
    launched: list[dict[str, Any]] = _launch(n, cpu, memory, nvidia_gpu, kernel, script, code, env)
    return launched
