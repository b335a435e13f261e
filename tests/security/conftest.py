"""A platform in memory, and the state folder of somebody who uses it."""

from __future__ import annotations

import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cloudpickle
import pytest
from support.memory_platform import MemoryAPI, Workspace
from support.on_record import MINE, OTHER, TIMES, World

from cml_dask_magics import CMLCluster
from cml_dask_magics.fleet import opening
from cml_dask_magics.registry.registry import Registry


@pytest.fixture
def pretend(monkeypatch: pytest.MonkeyPatch) -> Callable[[MemoryAPI | None], None]:
    """Be in a session of CML with that Workers API."""

    def enter(api: Any) -> None:
        monkeypatch.setitem(sys.modules, "cml", types.ModuleType("cml"))
        monkeypatch.setitem(sys.modules, "cml.workers_v1", api)
        monkeypatch.setenv("CDSW_ENGINE_ID", MINE)
        monkeypatch.setenv("CDSW_READONLY_PORT", "8090")
        monkeypatch.setattr(CMLCluster, "times", TIMES)

    return enter


@pytest.fixture
def by_value(request: pytest.FixtureRequest) -> Iterator[None]:
    """What a test module sends to the sessions is defined in it, where they cannot import it."""
    cloudpickle.register_pickle_by_value(request.module)
    yield
    cloudpickle.unregister_pickle_by_value(request.module)


@pytest.fixture
def world(state: Path, pretend: Callable[[Any], None]) -> Iterator[World]:
    """A platform in memory; at the end nothing of others may have been stopped, and nothing of ours may be left."""
    workspace = Workspace()
    workspace.first_status = "running"
    others = {
        workspace.add(MINE),
        workspace.add(OTHER),
        workspace.add(MINE, "scheduling"),
        workspace.add(MINE, "scheduling", created_at="2020-01-01T00:00:00Z"),
    }
    pretend(workspace.caller(MINE))
    opening._pools.clear()
    world = World(workspace, Registry(state), others)
    yield world
    opening._pools.clear()
    stops = [ids for _, call, ids in workspace.calls if call == "stop"]
    assert all(stops), "the call without ids stops everything of the user's"
    assert not world.stopped() & others and others <= set(workspace.up()), "a session of others was stopped"
