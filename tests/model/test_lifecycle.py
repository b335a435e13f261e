"""The one place that says how clusters and sessions live, and its copy for readers."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, get_args

import pytest

from cml_dask_magics.model.lifecycle import (
    CLUSTER_MOVES,
    SESSION_MOVES,
    Move,
    SessionInfo,
    cluster_state,
    session_state,
)
from cml_dask_magics.model.record import Owner, Record
from cml_dask_magics.model.status import ClusterState, SessionState

PAGE = Path(__file__).resolve().parents[2] / "docs" / "life-cycle.md"


def record(**fields: Any) -> Record:
    return Record("a", "0000aaaa", "cml", time.time(), Owner("", "h", 1), settings={}, requested=2, **fields)


def table(moves: tuple[Move, ...]) -> str:
    """A table of moves as the page shows it."""
    rows = [f"| {move.before} | {move.after} | {move.when} |" for move in moves]
    return "\n".join(["| from | to | when |", "| --- | --- | --- |", *rows])


@pytest.mark.parametrize(("moves", "kind"), [(CLUSTER_MOVES, ClusterState), (SESSION_MOVES, SessionState)])
def test_every_state_can_be_come_to_and_left_and_there_are_no_others(moves: tuple[Move, ...], kind: Any) -> None:
    states = set(get_args(kind))
    assert {move.before for move in moves} == states | {"new"}
    assert {move.after for move in moves} == states | {"gone"}
    assert len({(move.before, move.after) for move in moves}) == len(moves)


def test_the_page_shows_the_tables_of_the_code() -> None:
    page = PAGE.read_text()
    assert table(CLUSTER_MOVES) in page and table(SESSION_MOVES) in page


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
