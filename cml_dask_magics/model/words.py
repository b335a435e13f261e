"""Sizes and numbers in words, as every folder says them."""

from __future__ import annotations

_UNITS = (("TiB", 2**40), ("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10))


def plural(count: int, noun: str) -> str:
    """``1 worker``, ``1,000 workers``."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def format_bytes(size: float) -> str:
    """``1.5 GiB``, ``96 MiB``: at most three digits."""
    for unit, factor in _UNITS:
        if size >= factor:
            value = size / factor
            return f"{value:.0f} {unit}" if value >= 99.95 else f"{value:.1f}".removesuffix(".0") + f" {unit}"
    return f"{max(size, 0):.0f} B"


def format_memory(used_bytes: int, limit_bytes: int, between: str = " / ") -> str:
    """Memory in use and its limit, if there is one: ``96 MiB / 2 GiB``, ``1.5 / 2 GiB``."""
    used = format_bytes(used_bytes)
    if not limit_bytes:
        return used
    limit = format_bytes(limit_bytes)
    return f"{used.removesuffix(limit[limit.index(' ') :])}{between}{limit}"
