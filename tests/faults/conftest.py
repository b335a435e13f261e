"""Whatever goes wrong, every test of this folder ends with the same three checks.

No session of ours is alive, every other session is, and the registry holds what it should: see `Faulty.check`.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from support.faulty import Faulty
from workspace import Workspace


@pytest.fixture
def fresh_notebook(workspace: Workspace) -> Iterator[Faulty]:
    """A notebook whose kernel no other test has, for tests that do things to it."""
    notebook = Faulty.open(workspace)
    yield notebook
    try:
        notebook.check()
    finally:
        notebook.clean()
        notebook.close()


@pytest.fixture(scope="module")
def desk(workspace: Workspace) -> Iterator[list[Faulty]]:
    """Where the tests of a module leave their notebook for the next one."""
    left: list[Faulty] = []
    yield left
    for notebook in left:
        notebook.close()


@pytest.fixture
def shared_notebook(workspace: Workspace, desk: list[Faulty]) -> Iterator[Faulty]:
    """A notebook that other tests had before, and left as they found it; a new one if they did not."""
    notebook = desk.pop() if desk else Faulty.open(workspace)
    notebook.forget()
    kernel = notebook.kernel
    yield notebook
    as_found = False
    try:
        notebook.check()
        as_found = notebook.kernel is kernel and kernel.alive
    finally:
        notebook.clean()
        if as_found:
            desk.append(notebook)
        else:
            notebook.close()


@pytest.fixture
def notebook(fresh_notebook: Faulty) -> Faulty:
    """The notebook of a test; modules whose tests leave the kernel alone share one."""
    return fresh_notebook


@pytest.fixture
def hasty_network(workspace: Workspace) -> Iterator[None]:
    """Dask gives up on a silent connection after 12 s, instead of 30: in every session, and in kernels."""
    folder = workspace.home / ".config" / "dask"
    folder.mkdir(parents=True, exist_ok=True)
    settings = folder / "timeouts.yaml"
    settings.write_text("distributed: {comm: {timeouts: {tcp: 12s}}}")
    yield
    settings.unlink()
