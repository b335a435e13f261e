"""Lies beside the notebooks: workers import it only if they look where the kernel looks."""

from __future__ import annotations

import pandas as pd

LIMITS = [-1.0, -0.5, 0.0, 0.5, 1.0]
BANDS = ["low", "below", "above", "high"]


def with_band(frame: pd.DataFrame) -> pd.DataFrame:
    """The frame with a column that says in which band `x` lies."""
    return frame.assign(band=pd.cut(frame.x, LIMITS, labels=BANDS, include_lowest=True).astype(str))
