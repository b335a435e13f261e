"""What a benchmark measures, and how it is shown."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import NamedTuple


class Figure(NamedTuple):
    """One measured figure, the median where there are several.

    Parameters
    ----------
    name : str
        What was measured.
    value : float
    unit : str
        Empty for a ratio.
    at_most : float or None
        What it is to be at most; None where it is there to compare with.
    """

    name: str
    value: float
    unit: str = ""
    at_most: float | None = None

    @property
    def falls_short(self) -> bool:
        """Whether it is over what it is to be at most."""
        return self.at_most is not None and self.value > self.at_most


def shown(value: float, unit: str) -> str:
    """A value as people read it: three digits."""
    return f"{value:,.{0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2}f} {unit}".strip()


def show(figures: Sequence[Figure]) -> None:
    """Print them as a table."""
    width = max(len(figure.name) for figure in figures)
    for figure in figures:
        goal = "" if figure.at_most is None else f"at most {shown(figure.at_most, figure.unit)}"
        verdict = "  falls short" if figure.falls_short else ""
        print(f"{figure.name:<{width}}  {shown(figure.value, figure.unit):>12}  {goal}{verdict}", flush=True)


def measure_and_show(rows: Callable[[int], Sequence[Figure]], rounds: int, description: str | None) -> None:
    """The command line of a benchmark that has no other option than how many rounds it takes."""
    parser = argparse.ArgumentParser(description=(description or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=rounds)
    show(rows(parser.parse_args().rounds))
