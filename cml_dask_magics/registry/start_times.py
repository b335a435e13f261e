"""How long the last starts on each platform took: for the estimate that a starting cluster shows."""

from __future__ import annotations

import contextlib
import json
import statistics
from pathlib import Path

from cml_dask_magics.registry.files import read_private, write_private

_FILE = "starts.json"
_KEPT_STARTS = 10


def note_start(folder: Path, backend: str, took_s: float) -> None:
    """Add a start to the last ones on a platform.

    Parameters
    ----------
    folder : Path
        The registry's private folder.
    backend : str
        The platform.
    took_s : float
    """
    starts = _read(folder)
    starts[backend] = [*starts.get(backend, []), round(took_s, 1)][-_KEPT_STARTS:]
    with contextlib.suppress(OSError):  # an estimate is no reason to fail
        write_private(folder / _FILE, json.dumps(starts))


def usual_start_s(folder: Path, backend: str) -> float | None:
    """The median of the last starts on a platform, in seconds; None if there were none."""
    starts = _read(folder).get(backend)
    return statistics.median(starts) if starts else None


def _read(folder: Path) -> dict[str, list[float]]:
    try:
        starts = json.loads(read_private(folder / _FILE))
        read = {str(backend): [float(took_s) for took_s in each] for backend, each in starts.items()}
        return {backend: [took_s for took_s in each if 0 <= took_s < 1e9] for backend, each in read.items()}
    except (OSError, ValueError, TypeError, AttributeError, OverflowError, RecursionError):
        return {}
