"""Whatever goes wrong, every test of this folder ends with the same three checks.

No session of ours is alive, every other session is, and the registry holds what it should: see `Faulty.check`.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from support.faulty import HURRY, STATE, Faulty
from workspace import Workspace


@pytest.fixture
def notebook(workspace: Workspace) -> Iterator[Faulty]:
    """A notebook with the extension loaded, and beside it sessions of the same person and of another one."""
    session, other = workspace.open_session(), workspace.open_session()
    bystanders = [workspace.launch_foreign(session), workspace.launch_foreign(other)]
    # Two levels, as by default: the folder must be made.
    state = workspace.home / f"of-{session.id}" / "state"
    notebook = Faulty(workspace, session, session.kernel(env={STATE: str(state)}), bystanders[0], state, bystanders)
    notebook.run("%load_ext cml_dask_magics")
    notebook.run(HURRY)
    yield notebook
    try:
        notebook.check()
        assert other.truth.alive
    finally:
        notebook.clean()
        other.close()


@pytest.fixture
def hasty_network(workspace: Workspace) -> Iterator[None]:
    """Dask gives up on a silent connection after 12 s, instead of 30: in every session, and in kernels."""
    folder = workspace.home / ".config" / "dask"
    folder.mkdir(parents=True, exist_ok=True)
    settings = folder / "timeouts.yaml"
    settings.write_text("distributed: {comm: {timeouts: {tcp: 12s}}}")
    yield
    settings.unlink()
