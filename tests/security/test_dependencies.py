"""No release with a known hole can be installed beside the package."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from packaging.requirements import Requirement

PYPROJECT = Path(__file__).parents[2] / "pyproject.toml"


@pytest.mark.parametrize(
    ("name", "last_with_a_hole"),
    [("bokeh", "3.8.1"), ("cryptography", "48.0.0"), ("ipython", "8.9.0"), ("jinja2", "3.1.5"), ("tornado", "6.5.8")],
)
def test_lower_bounds_are_past_known_holes(name: str, last_with_a_hole: str) -> None:
    (line,) = re.findall(rf'^    "({name}[><=].*?)"', PYPROJECT.read_text(), re.MULTILINE)
    assert not Requirement(line).specifier.contains(last_with_a_hole)
