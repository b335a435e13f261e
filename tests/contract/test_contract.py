"""Whatever a Dask cluster lets its users do, ours lets them do too.

Every promise of this folder is kept by Dask's own `LocalCluster` (one that is not is a wrong promise), by a
`CMLCluster` on this machine, and by one in the simulated workspace, where the very same functions run in a notebook's
kernel. They are written for users of Dask, and know nothing of this package.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path

import dask
import pytest
from support.state_folder import local_sessions
from workspace import Workspace

from contract import computing, looks, sizes
from contract.stage import MODULES, Stage, keep, promises_of

pytestmark = pytest.mark.dask

IN_KERNEL = """
import sys
sys.path.insert(0, {tests!r})
from contract.stage import Stage
stage = Stage("cml_cluster")
"""
KEEP = """
running = stage.keep({name!r}, {after_s})
if running is not None:
    await running
"""
LINK = "print(stage.cluster().dashboard_link)"
OPEN_DASHBOARD = """
import os, urllib.request
print(urllib.request.urlopen(f"http://127.0.0.1:{os.environ['CDSW_READONLY_PORT']}/status", timeout=30).status)
"""
DISPLAYS = looks.displays_show_every_worker.__name__
# Two clusters without a name are started in tests/cluster, too.
TWO_CLUSTERS = sizes.two_clusters_run_side_by_side_without_being_named.__name__
DASHBOARD = looks.the_dashboard_opens_at_its_link.__name__
# On a platform, the link is the platform's address of the scheduler's session.
ON_THIS_MACHINE = looks.the_link_to_the_dashboard_is_as_dask_was_told.__name__


class InThisProcess:
    """As in a script: promises are kept where no event loop runs."""

    def __init__(self, maker: str) -> None:
        self._stage = Stage(maker)

    def keep(self, name: str, after_s: float = 0.0) -> None:
        """Have a promise kept, so long after the start of the cluster that promises share."""
        keep(self._stage, name, after_s)

    def open_dashboard(self) -> None:
        """Go where the link to the dashboard leads."""
        self.keep(DASHBOARD)

    def close(self) -> None:
        """End what promises shared."""
        self._stage.close()


class InNotebook:
    """As in a notebook: promises are kept in a kernel of a session, where an event loop runs."""

    def __init__(self, workspace: Workspace) -> None:
        self._workspace = workspace
        self._session = workspace.open_session()
        self._kernel = self._session.kernel()
        self._run(IN_KERNEL.format(tests=str(Path(__file__).resolve().parents[1])))

    def keep(self, name: str, after_s: float = 0.0) -> None:
        """Have a promise kept, so long after the start of the cluster that promises share."""
        self._run(KEEP.format(name=name, after_s=after_s))

    def open_dashboard(self) -> None:
        """Go where the link leads: the platform's proxy, which is not simulated, shows what its session serves."""
        link = self._run(LINK).strip()
        session = re.fullmatch(r"https://(\w+)\..*/status", link)
        assert session is not None, link
        opened = self._workspace.exec_in(session[1], [self._session.truth.python, "-c", OPEN_DASHBOARD])
        assert opened.stdout.strip() == "200", opened.stderr

    def close(self) -> None:
        """End what promises shared; then no session may be left."""
        try:
            self._run("stage.close()")
            assert not self._workspace.alive(), "sessions outlived their clusters"
        finally:
            self._session.close()

    def _run(self, code: str) -> str:
        try:
            run = self._kernel.run(code, timeout=90)
        except TimeoutError:
            self._kernel.interrupt()  # the next promise has a chance
            raise
        if run.error is not None:
            pytest.fail(re.sub(r"\x1b\[[0-9;]*m", "", run.error.traceback), pytrace=False)
        return run.stdout


@contextlib.contextmanager
def local_state(folder: Path) -> Iterator[None]:
    """Records of clusters of this machine go into a folder of their own, here and in what is started from here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DASK_CML_DASK_MAGICS__STATE_DIRECTORY", str(folder))
        with dask.config.set({"cml-dask-magics.state-directory": str(folder)}):
            yield
    sessions = local_sessions(folder).list_workers()
    assert not [session for session in sessions if session["status"] == "running"], "sessions outlived their clusters"


@pytest.fixture(
    scope="module",
    # Each kind in a process of its own, if the tests run in several: what promises share is started once.
    params=[
        # It shows that the promises are right, which changes with them and with Dask only.
        pytest.param("local_cluster", marks=[pytest.mark.xdist_group("local_cluster"), pytest.mark.long]),
        pytest.param("cml_local", marks=pytest.mark.xdist_group("cml_local")),
        pytest.param(
            "cml_workspace", marks=[pytest.mark.xdist_group("cml_workspace"), pytest.mark.workspace, pytest.mark.long]
        ),
    ],
)
def stage(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[InThisProcess | InNotebook]:
    """Where the promises of one kind of cluster are kept."""
    with contextlib.ExitStack() as stack:
        opened: InThisProcess | InNotebook
        if request.param == "cml_workspace":
            opened = InNotebook(request.getfixturevalue("workspace"))
        elif request.param == "cml_local":
            stack.enter_context(local_state(tmp_path_factory.mktemp("state")))
            opened = InThisProcess("cml_cluster")
        else:
            opened = InThisProcess("local_cluster")
        stack.callback(opened.close)
        yield opened


def cases() -> Iterator[object]:
    """Promises in the order in which they are looked at, and how long after the start of the shared cluster.

    Displays are looked at thrice: what a cluster hears while it runs must not spoil them. Until they all were, nothing
    asks the cluster to look at its workers anew, which would mend them.
    """
    moments = {looks: 0, computing: 5, sizes: 15}
    for module in MODULES:
        if module in moments:
            late = [pytest.mark.long] if moments[module] > 5 else []
            yield pytest.param(DISPLAYS, moments[module], id=f"{DISPLAYS}-{moments[module]}", marks=late)
        for name in promises_of(module):
            if name not in (DISPLAYS, DASHBOARD, ON_THIS_MACHINE):
                has_a_twin = [pytest.mark.long] if name == TWO_CLUSTERS else []
                yield pytest.param(name, 0, id=name, marks=has_a_twin)


@pytest.mark.parametrize(("name", "after_s"), [*cases()])
def test_a_promise_is_kept(stage: InThisProcess | InNotebook, name: str, after_s: int) -> None:
    stage.keep(name, after_s)


def test_the_dashboard_opens_at_its_link(stage: InThisProcess | InNotebook) -> None:
    stage.open_dashboard()


@pytest.mark.parametrize(
    "stage",
    [
        pytest.param("local_cluster", marks=[pytest.mark.xdist_group("local_cluster"), pytest.mark.long]),
        pytest.param("cml_local", marks=pytest.mark.xdist_group("cml_local")),
    ],
    indirect=True,
)
def test_the_link_to_the_dashboard_is_as_dask_was_told(stage: InThisProcess | InNotebook) -> None:
    stage.keep(ON_THIS_MACHINE)
