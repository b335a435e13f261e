"""Bars, and graphs of the last minutes as SVG that uses the colours of the page."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from html import escape
from itertools import groupby

from cml_dask_magics.display.html.looks import Dress
from cml_dask_magics.model.status import Sample

_BUCKET_S = 5
_BUCKETS = 60
_HEIGHT = 24
"""A graph is 60 steps of five seconds wide and 24 high; smaller changes are not drawn, and so not sent."""


def bar(share: float, dress: Dress, ink: str = "busy", rest: float = 0.0) -> str:
    """A small bar, hidden from screen readers: the number is next to it.

    Parameters
    ----------
    share : float
        The part that is filled, between 0 and 1.
    rest : float
        The part after it that is striped.
    """
    fill = f"<span{dress(f'fill-{ink}', width(share))}></span>"
    striped = f"<span{dress('striped', width(min(rest, 1 - min(max(share, 0), 1))))}></span>" if rest > 0 else ""
    return f'<span aria-hidden="true"{dress("bar")}>{fill}{striped}</span>'


def width(share: float) -> str:
    """A share as a CSS width; 0 for NaN."""
    return f"width:{100 * min(share, 1):.0f}%" if share > 0 else "width:0%"


def memory_ink(share: float) -> str:
    """The colour of memory: Dask starts to spill at 60 to 70 per cent of a worker's limit and pauses it at 80."""
    return "bad" if share >= 0.8 else "warn" if share >= 0.6 else "busy"


def graph(
    history: Sequence[Sample],
    value: Callable[[Sample], float],
    top: float,
    label: str,
    words: Callable[[float], str],
    dress: Dress,
) -> str:
    """A graph of one value over the last five minutes; empty with fewer than two points.

    Parameters
    ----------
    history : sequence of Sample
        Oldest first. The newest is drawn at the right edge whatever the time, so that constant values give the same
        graph again.
    value : callable
        The value of one sample.
    top : float
        The top of the scale, unless a value is above it.
    label : str
    words : callable
        Formats a value.
    """
    points = _points(history, value)
    if len(points) < 2:
        return ""
    figures = [figure for _, figure in points]
    low, high = min(figures), max(figures)
    said = words(low) if words(low) == words(high) else f"between {words(low)} and {words(high)}"
    scale = _HEIGHT / max(top, high, 1e-9)
    last = points[-1][0]
    line = area = ""
    for run in _runs([(_BUCKETS - (last - step), _HEIGHT - round(scale * figure)) for step, figure in points]):
        drawn = "L".join(f"{x} {y}" for x, y in run)
        line += f"M{drawn}"
        area += f"M{run[0][0]} {_HEIGHT}L{drawn}V{_HEIGHT}Z"
    return (
        f'<svg role="img" aria-label="{escape(label)} over the last minutes: {escape(said)}" '
        f'viewBox="0 0 {_BUCKETS} {_HEIGHT}" preserveAspectRatio="none"{dress("graph")}>'
        f'<path d="{area}"{dress("area")}/><path d="{line}"{dress("line")}/></svg>'
    )


def _points(history: Sequence[Sample], value: Callable[[Sample], float]) -> list[tuple[int, float]]:
    """The means over five seconds, for the last five minutes."""
    points = []
    for step, samples in groupby(history, lambda sample: int(sample.at.timestamp()) // _BUCKET_S):
        figures = [figure for figure in map(value, samples) if math.isfinite(figure)]
        if figures:
            points.append((step, max(sum(figures) / len(figures), 0.0)))
    return [point for point in points if point[0] >= points[-1][0] - _BUCKETS]


def _runs(points: Sequence[tuple[int, int]]) -> list[list[tuple[int, int]]]:
    """Cut the line where samples are missing, and leave out points on a horizontal stretch."""
    runs: list[list[tuple[int, int]]] = []
    for x, y in points:
        if not runs or x - runs[-1][-1][0] > 3:
            runs.append([(x, y)])
        elif len(runs[-1]) > 1 and runs[-1][-2][1] == runs[-1][-1][1] == y:
            runs[-1][-1] = (x, y)
        else:
            runs[-1].append((x, y))
    return runs
