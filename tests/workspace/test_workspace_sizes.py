"""The simulated workspace gives sessions no more than the platform does: memory, cores, quota, GPUs, and words.

Each test is named after what would be lost if the workspace were kinder.
"""

from __future__ import annotations

import json
import os
import re
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from dask.system import CPU_COUNT

from workspace import ON_PREMISES, Limits, Session, SessionTruth, Workspace
from workspace.asking import SLEEP, Notebook, finished, running
from workspace.memory import limit_bytes

# What they look at changes seldom; whoever changes it runs them by name.
pytestmark = [pytest.mark.long, pytest.mark.workspace]
LIMIT_FILES = {"v1": "/sys/fs/cgroup/memory/memory.limit_in_bytes", "v2": "/sys/fs/cgroup/memory.max"}
USAGE_FILES = {"v1": "/sys/fs/cgroup/memory/memory.usage_in_bytes", "v2": "/sys/fs/cgroup/memory.current"}
GREED = "x = b'x' * 600_000_000"
USUAL: dict[str, Any] = {
    "user_quota": Limits(),
    "opened_cpu": 1.0,
    "opened_memory": 8.0,
    "memory_look": "host",
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


@pytest.fixture
def limited(workspace: Workspace) -> Workspace:
    """The workspace, for tests of memory limits."""
    if not workspace.memory_limits:
        pytest.skip("memory can be limited only where control groups can be made")
    return workspace


def launched_code(workspace: Workspace, notebook: Notebook, code: str, **options: Any) -> tuple[SessionTruth, str]:
    """Run code in a launched session; the session after its end, and what it printed."""
    (launched,) = notebook.launch(code=code, **options)
    finished(workspace, launched["id"])
    return workspace.session(launched["id"]), workspace.output(launched["id"])


def whole_pages(size: int) -> int:
    """Cut a size as the kernel cuts limits."""
    page = resource.getpagesize()
    return size // page * page


# -- memory ------------------------------------------------------------------------------------------------------------


def test_a_session_could_have_all_the_memory_that_it_was_asked_for_with(limited: Workspace, notebook: Notebook) -> None:
    code = "from distributed.system import MEMORY_LIMIT; print(MEMORY_LIMIT)"
    for memory, limit in ((0.5, whole_pages(400_000_000)), (2, whole_pages(1_900_000_000))):
        truth, seen = launched_code(limited, notebook, code, memory=memory)
        assert truth.status == "succeeded"
        assert int(seen) == truth.memory_limit == limit
    assert int(notebook.session.python(code).stdout) == whole_pages(7_900_000_000)
    limited.configure(opened_memory=3)
    assert int(limited.open_session().python(code).stdout) == whole_pages(2_900_000_000)
    assert limit_bytes(0.1) == whole_pages(50_000_000)  # not nothing


@pytest.mark.parametrize("look", ["v1", "v2"])
def test_a_session_could_see_its_limit_in_one_place_only(limited: Workspace, look: str) -> None:
    limited.configure(memory_look=look, opened_memory=1)
    session, limit = limited.open_session(), whole_pages(900_000_000)
    code = (
        "import os\nfrom distributed.system import MEMORY_LIMIT\n"
        f"usage = lambda: int(open({USAGE_FILES[look]!r}).read())\n"
        f"before = usage()\nx = b'x' * 100_000_000\n"
        f"print(MEMORY_LIMIT, int(open({LIMIT_FILES[look]!r}).read()), usage() - before > 90_000_000)\n"
        f"print([path for path in {list(LIMIT_FILES.values())} if os.path.exists(path)])"
    )
    assert session.python(code).stdout.splitlines() == [f"{limit} {limit} True", str([LIMIT_FILES[look]])]
    refused = session.exec(["sh", "-c", f"echo 5000000000 > {LIMIT_FILES[look]}"])
    assert refused.returncode != 0  # it can be read only


def test_too_much_memory_could_raise_in_python(limited: Workspace, notebook: Notebook) -> None:
    code = f"import subprocess, sys\nprint('begun')\ntry: {GREED}\nfinally: print('a last line')"
    truth, said = launched_code(limited, notebook, code, memory=0.5)
    assert (truth.status, said) == ("failed", "begun\n")
    assert notebook.listed()[truth.id]["status"] == "failed"
    assert limited.session(notebook.session.id).status == "running"


def test_a_session_could_outlive_a_process_of_it_that_takes_too_much(limited: Workspace, notebook: Notebook) -> None:
    code = f"import subprocess, sys\nprint('begun')\nsubprocess.run([sys.executable, '-c', {GREED!r}])\nprint('died')"
    truth, said = launched_code(limited, notebook, code, memory=0.5)
    assert (truth.status, said) == ("failed", "begun\n")


def test_processes_could_have_the_session_s_memory_each(limited: Workspace, notebook: Notebook) -> None:
    part = "x = b'x' * 250_000_000; import time; time.sleep(60)"
    code = f"import subprocess, sys\nfor _ in range(2): subprocess.Popen([sys.executable, '-c', {part!r}])\n!sleep 30"
    truth, _ = launched_code(limited, notebook, code, memory=0.5)
    assert truth.status == "failed"


def test_what_a_person_runs_in_a_session_could_take_what_it_wants(limited: Workspace) -> None:
    limited.configure(opened_memory=0.5)
    session = limited.open_session()
    kernel = session.kernel()
    launched = limited.launch_foreign(session)
    running(limited, launched)
    assert session.python(GREED).returncode != 0
    assert finished(limited, session.id) == "failed"
    assert not kernel.alive or limited.wait_until(lambda: not kernel.alive)
    assert finished(limited, launched) == "stopped"


def test_a_session_within_its_limit_could_be_killed(limited: Workspace, notebook: Notebook) -> None:
    half = "x = b'x' * 250_000_000; del x"
    truth, _ = launched_code(limited, notebook, f"for _ in range(3): {half}", memory=0.5)
    assert truth.status == "succeeded"


def test_a_stop_could_be_taken_for_a_lack_of_memory(limited: Workspace, notebook: Notebook) -> None:
    (launched,) = notebook.launch()
    running(limited, launched["id"])
    group = Path(limited.session(launched["id"]).memory_group)
    assert group.is_dir()
    notebook.stop(launched["id"])
    assert finished(limited, launched["id"]) == "stopped"
    limited.wait_until(lambda: not group.exists())


NO_GROUPS = """
import warnings
from workspace import Workspace
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    for _ in range(2):
        with Workspace(isolation="namespaces") as workspace:
            session = workspace.open_session()
            print(workspace.memory_limits, session.truth.memory_limit, session.exec(["true"]).returncode)
print([str(one.message) for one in caught])
"""


def test_a_lack_of_control_groups_could_go_unnoticed(limited: Workspace) -> None:
    unmounted = ["unshare", "--mount", "sh", "-c", 'umount -R -l /sys/fs/cgroup && exec "$@"', "sh"]
    done = subprocess.run(
        [*unmounted, sys.executable, "-c", NO_GROUPS],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[1])},
        capture_output=True,
        text=True,
        check=True,
    )
    words = "control groups cannot be made here: the memory of sessions has no limits"
    assert done.stdout.splitlines() == [
        *["False 0 0"] * 2,
        f"['{words} (no control groups for memory are mounted)']",
    ]


def test_memory_limits_could_be_there_for_ever() -> None:
    with Workspace(memory_limits=False) as workspace:
        assert not workspace.memory_limits
        assert workspace.open_session().truth.memory_limit == 0


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


def test_the_facts_could_be_covered_by_tests_that_are_gone() -> None:
    folder = Path(__file__).resolve().parents[1]
    there = {name for file in folder.rglob("*.py") for name in re.findall(r"def (test_\w+)", file.read_text())}
    named = set(re.findall(r"`(test_\w+)`", (folder / "workspace" / "README.md").read_text()))
    assert len(named) > 80
    assert named <= there


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
