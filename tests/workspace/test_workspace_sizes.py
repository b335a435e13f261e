"""The simulated workspace gives sessions no more than the platform does: cores, quota, GPUs, and words.

Each test is named after what would be lost if the workspace were kinder.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from typing import Any

import pytest
from dask.system import CPU_COUNT

from workspace import ON_PREMISES, Limits, Session, SessionTruth, Workspace
from workspace.asking import SLEEP, Notebook, finished, running

# What they look at changes seldom; whoever changes it runs them by name.
pytestmark = [pytest.mark.long, pytest.mark.workspace]
USUAL: dict[str, Any] = {
    "user_quota": Limits(),
    "opened_cpu": 1.0,
    "opened_memory": 8.0,
    "app_url_scheme": "https",
    "release": "newer",
    "notices": "",
}


@pytest.fixture(scope="module")
def shared() -> Iterator[Workspace]:
    with Workspace(start_delay_s=0.1, address_delay_s=0.05, stop_grace_s=1.0) as workspace:
        yield workspace


@pytest.fixture
def workspace(shared: Workspace) -> Iterator[Workspace]:
    """The shared workspace; afterwards with the usual settings and without sessions."""
    yield shared
    shared.configure(**USUAL)
    for session in shared.sessions():
        if session.alive:
            shared.end_session(session.id)
    shared.wait_until(lambda: not any(one.alive for one in shared.sessions()))


@pytest.fixture
def notebook(workspace: Workspace) -> Notebook:
    return Notebook(workspace.open_session())


def launched_code(workspace: Workspace, notebook: Notebook, code: str, **options: Any) -> tuple[SessionTruth, str]:
    """Run code in a launched session; the session after its end, and what it printed."""
    (launched,) = notebook.launch(code=code, **options)
    finished(workspace, launched["id"])
    return workspace.session(launched["id"]), workspace.output(launched["id"])


# -- cores, quota, GPUs ------------------------------------------------------------------------------------------------


def test_a_session_could_see_no_more_cores_than_it_was_asked_for_with(workspace: Workspace, notebook: Notebook) -> None:
    code = "import os\nfrom dask.system import CPU_COUNT\nprint(os.cpu_count(), CPU_COUNT)"
    _, seen = launched_code(workspace, notebook, code)
    assert seen == f"{os.cpu_count()} {CPU_COUNT}\n"


def test_what_is_over_a_user_s_quota_could_be_refused(workspace: Workspace) -> None:
    workspace.configure(user_quota=ON_PREMISES, opened_memory=2)
    notebook = Notebook(workspace.open_session())
    (first,) = notebook.launch(memory=4)
    running(workspace, first["id"])
    (second,) = notebook.launch(memory=4)
    (small,) = notebook.launch(memory=2)  # this one fits: 2 of the notebook, 4, and 2
    running(workspace, small["id"])
    assert not [call.message for call in workspace.calls("launch") if call.message]
    shown = notebook.listed()
    assert shown[second["id"]]["status"] == "scheduling"
    assert set(shown[second["id"]]) == set(second)  # not a word more
    notebook.stop(small["id"])
    assert finished(workspace, small["id"]) == "stopped"
    assert workspace.session(second["id"]).status == "scheduling"
    notebook.stop(first["id"])
    running(workspace, second["id"])


def test_a_quota_could_leave_out_the_notebook_s_own_cores(workspace: Workspace) -> None:
    workspace.configure(user_quota=Limits(cores=2), opened_cpu=1.5)
    notebook = Notebook(workspace.open_session())
    ids = [one["id"] for one in notebook.launch(2)]
    workspace.wait_until(lambda: sorted(workspace.session(one).status for one in ids) == ["running", "scheduling"])
    workspace.configure(user_quota=Limits(cores=3))
    running(workspace, *ids)


def test_gpus_could_be_left_out_or_seen_where_there_are_none(workspace: Workspace, notebook: Notebook) -> None:
    with_gpus, listed = launched_code(workspace, notebook, "!nvidia-smi -L", nvidia_gpu=4)
    without, said = launched_code(workspace, notebook, "!nvidia-smi -L || echo none")
    assert (with_gpus.gpu, without.gpu) == (4, 0)
    assert [line.split(":")[0] for line in listed.splitlines()] == ["GPU 0", "GPU 1", "GPU 2", "GPU 3"]
    assert said.splitlines()[-1] == "none"


# -- releases ----------------------------------------------------------------------------------------------------------

LABELS = ["accelerator_label_id", "resource_profile_id", "resource_group_id"]
OLDEST = ["n", "cpu", "memory", "nvidia_gpu", "kernel", "script", "code", "env"]


@pytest.mark.parametrize(
    ("release", "newer", "unknown"),
    [
        ("oldest", [], "accelerator_label_id"),
        ("newer", LABELS, "name"),
        ("named", [*LABELS, "name"], "rdma_network_selections"),
        ("newest", [*LABELS, "name", "rdma_network_selections"], "no_such_keyword"),
    ],
)
def test_every_release_could_take_every_keyword(
    workspace: Workspace, release: str, newer: list[str], unknown: str
) -> None:
    workspace.configure(release=release)
    notebook = Notebook(workspace.open_session())
    notebook.kernel.run("import inspect")
    assert notebook.ask("list(inspect.signature(api.launch_workers).parameters)") == [*OLDEST, *newer]
    before = len(workspace.calls("launch"))
    assert notebook.raises(f"api.launch_workers(1, 0.5, 1, code={SLEEP!r}, {unknown}=None)") == "TypeError"
    assert notebook.raises(f"api.launch_workers(1, code={SLEEP!r})") == "TypeError"
    assert len(workspace.calls("launch")) == before
    (launched,) = notebook.launch(**{name: f"the {name}" for name in newer})
    given = workspace.session(launched["id"]).launch
    assert {name: given[name] for name in given if name not in OLDEST} == {name: f"the {name}" for name in newer}
    assert workspace.session(launched["id"]).name == ("the name" if "name" in newer else "")
    (call,) = (call for call in workspace.calls("launch") if call.ids == (launched["id"],))
    assert call.given == given


def test_what_a_refused_session_was_asked_for_with_could_be_lost(workspace: Workspace) -> None:
    workspace.configure(release="named")
    notebook = Notebook(workspace.open_session())
    workspace.fault("launch_refused", times=1)
    notebook.launch(name="worker 1 of 4")
    assert workspace.calls("launch")[-1].given["name"] == "worker 1 of 4"


# -- links and notices -------------------------------------------------------------------------------------------------


def test_every_link_could_be_https(workspace: Workspace, notebook: Notebook) -> None:
    workspace.configure(app_url_scheme="http")
    (launched,) = notebook.launch()
    assert launched["app_url"] == f"http://{launched['id']}.ml-sim.example.site/"
    assert notebook.listed()[launched["id"]]["app_url"] == launched["app_url"]


def test_what_a_session_prints_could_be_its_code_s_alone(workspace: Workspace, notebook: Notebook) -> None:
    workspace.configure(notices="Loading add-on spark-3\n{braces} and $dollars\n")
    _, said = launched_code(workspace, notebook, "print('the code')")
    assert said == "Loading add-on spark-3\n{braces} and $dollars\nthe code\n"


# -- the ends of sessions and kernels ----------------------------------------------------------------------------------


def test_what_a_session_launched_could_outlive_its_longest_time(workspace: Workspace, notebook: Notebook) -> None:
    (launched,) = notebook.launch()
    running(workspace, launched["id"])
    workspace.end_session(notebook.session.id, "timedout", hard=False)
    assert finished(workspace, notebook.session.id) == "timedout"
    assert finished(workspace, launched["id"]) == "stopped"


def test_a_culled_kernel_could_take_its_session_along(workspace: Workspace, notebook: Notebook) -> None:
    (launched,) = notebook.launch()
    running(workspace, launched["id"])
    notebook.kernel.shutdown()
    assert not notebook.kernel.alive
    assert workspace.session(notebook.session.id).status == "running"
    assert workspace.session(launched["id"]).status == "running"
    again = Session(workspace, notebook.session.id)
    listed = json.loads(
        again.python("import json; from cml import workers_v1 as api; print(json.dumps(api.list_workers()))").stdout
    )
    assert [one["id"] for one in listed] == [launched["id"]]
