"""The one place that says how clusters and sessions live, and its copy for readers."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, get_args

import pytest

from cml_dask_magics.model.lifecycle import SessionInfo, cluster_state, session_state
from cml_dask_magics.model.record import Owner, Record
from cml_dask_magics.model.status import ClusterState, SessionState

PAGE = Path(__file__).resolve().parents[2] / "docs" / "life-cycle.md"


def record(**fields: Any) -> Record:
    return Record("a", "0000aaaa", "cml", time.time(), Owner("", "h", 1), settings={}, requested=2, **fields)


def moves(heading: str) -> list[tuple[str, str]]:
    """The moves between states that the page shows under a heading: from, to."""
    section = PAGE.read_text().split(f"## {heading}\n")[1].split("\n## ")[0]
    rows = [tuple(cell.strip() for cell in line.strip("|").split("|")) for line in section.splitlines() if "|" in line]
    assert rows[0] == ("from", "to", "when")
    return [(before, after) for before, after, _ in rows[2:]]


@pytest.mark.parametrize(("heading", "kind"), [("A cluster", ClusterState), ("A session", SessionState)])
def test_the_page_shows_how_every_state_is_come_to_and_left_and_there_are_no_others(heading: str, kind: Any) -> None:
    shown, states = moves(heading), set(get_args(kind))
    assert {before for before, _ in shown} == states | {"new"}
    assert {after for _, after in shown} == states | {"gone"}
    assert len(set(shown)) == len(shown)


@pytest.mark.parametrize(
    ("state", "connected", "scheduler_lost", "expected"),
    [
        ("starting", 0, False, "starting"),
        ("running", 2, False, "running"),
        ("running", 3, False, "running"),
        ("running", 1, False, "degraded"),
        ("running", 2, True, "lost"),
        ("lost", 0, False, "lost"),
        ("stopping", 2, True, "stopping"),
        ("starting", 0, True, "lost"),
    ],
)
def test_a_clusters_state(state: Any, connected: int, scheduler_lost: bool, expected: str) -> None:
    assert cluster_state(record(state=state), connected, scheduler_lost=scheduler_lost) == expected


@pytest.mark.parametrize(
    ("phase", "lost", "stopping", "connected", "expected"),
    [
        ("pending", False, False, False, "pending"),
        ("running", False, False, False, "starting"),
        ("running", False, False, True, "running"),
        ("pending", False, False, True, "running"),
        (None, False, False, False, "starting"),
        (None, False, False, True, "running"),
        ("running", False, True, True, "stopping"),
        ("ended", False, True, False, "ended"),
        ("ended", True, False, False, "failed"),
    ],
)
def test_a_sessions_state(phase: Any, lost: bool, stopping: bool, connected: bool, expected: str) -> None:
    info = SessionInfo("s1", phase, phase) if phase else None
    assert session_state(record(), info, lost=lost, stopping=stopping, connected=connected) == expected


def test_every_session_of_a_cluster_that_stops_is_stopping() -> None:
    info = SessionInfo("s1", "running", "running")
    assert session_state(record(state="stopping"), info, lost=False, stopping=False, connected=True) == "stopping"
