"""The figures that the README and the docs give are those that were measured."""

from __future__ import annotations

import json

import bench
from figures import Figure


def test_the_readme_says_what_the_file_says() -> None:
    found = json.loads(bench.FILE.read_text())
    assert set(found["figures"]) == set(bench.MODULES), "make bench measures them all"
    assert f"<!-- figures -->\n{bench.tables(found, bench.IN_THE_README)}<!-- end of" in bench.README.read_text()
    assert bench.PAGE.read_text().endswith(bench.tables(found))


def test_what_is_over_its_goal_is_named() -> None:
    rows = [Figure("%dask_up 2 --local / LocalCluster(2)", 1.234, at_most=1.0), Figure("slow", 150.4, "ms", 200.0)]
    shown = bench.tables({"figures": {"start": rows}, "at": "2026-01-31", "machine": "2 cores"}, ("start",))
    assert "| `%dask_up 2 --local` / `LocalCluster(2)` | 1.23 | at most 1.00 |" in shown
    assert "| slow | 150 ms | at most 200 ms |" in shown
    assert shown.endswith("on 2 cores. Over their goal: `%dask_up 2 --local` / `LocalCluster(2)`.\n")
    assert "None is over its goal." in bench.tables({"figures": {}, "at": "", "machine": ""})
