"""Machines share a home, and with it the state folder: neither ends, loses or takes over the other's local cluster."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from contract.patience import eventually
from support.state_folder import another_machine, local_sessions

from cml_dask_magics import CMLCluster
from cml_dask_magics.display.words import ended_words
from cml_dask_magics.magics.kernel_clusters import kernel_clusters
from cml_dask_magics.magics.notice import notice
from cml_dask_magics.registry.registry import Registry

pytestmark = pytest.mark.dask
HERE = socket.gethostname()


@pytest.fixture
def processes(state: Path) -> Iterator[dict[str, psutil.Process]]:
    """The processes of a cluster on this machine, `scheduler` and `worker`, whose kernel has let go of it."""
    cluster = CMLCluster(1, name="default", local=True)
    cluster.shutdown_on_close = False
    record = Registry(state).read("default")
    assert record is not None
    roles = {session.id: session.role for session in record.sessions}
    cluster.close()
    found = {roles[each.id]: each.process() for each in local_sessions(state)._sessions()}
    yield {role: process for role, process in found.items() if process is not None}
    kernel_clusters.down(state, "default")
    assert not any(process is not None and process.is_running() for process in found.values())


def test_looking_at_it_from_another_machine_names_it_and_harms_nothing(
    state: Path, processes: dict[str, psutil.Process]
) -> None:
    before = Registry(state).read("default")
    with another_machine():
        statuses, (problem,) = kernel_clusters.statuses(state)
        assert not statuses and f"'default' was started on machine {HERE}" in problem
        assert f"default is on machine {HERE} (%dask_down default ends it from here)" in notice()
    assert Registry(state).read("default") == before
    (shown,), problems = kernel_clusters.statuses(state)
    assert shown.state == "running" and not problems
    assert set(processes) == {"scheduler", "worker"}


def test_its_name_is_taken_on_another_machine_and_others_are_free(
    state: Path, processes: dict[str, psutil.Process]
) -> None:
    with another_machine():
        for start in (lambda: CMLCluster(1, name="default", local=True), lambda: CMLCluster.from_name("default")):
            with pytest.raises(RuntimeError, match=rf"machine {HERE} .*; %dask_down default ends .*--name"):
                start()
        with CMLCluster(1, name="mine", local=True) as mine, mine.get_client() as client:
            assert client.submit(sum, [1, 2]).result() == 3
    with CMLCluster.from_name("default") as cluster, cluster.get_client() as client:
        assert client.submit(sum, [1, 2]).result() == 3
    assert all(process.is_running() for process in processes.values())


def test_told_to_end_from_another_machine_each_of_its_sessions_ends_by_itself(
    state: Path, processes: dict[str, psutil.Process]
) -> None:
    processes["scheduler"].send_signal(signal.SIGSTOP)  # so that it does not take the workers with it
    with another_machine():
        ended = kernel_clusters.down(state, "default")
        assert ended is not None and (ended.sessions, ended.machine) == (2, HERE)
        assert f"machine {HERE}, if that still runs, end by themselves" in ended_words(ended)
        assert kernel_clusters.names(state) == []
    eventually(lambda: not processes["worker"].is_running())
    processes["scheduler"].send_signal(signal.SIGCONT)
    eventually(lambda: not processes["scheduler"].is_running())
    assert {each["status"] for each in local_sessions(state).list_workers()} == {"succeeded"}


@pytest.mark.long
def test_the_kernel_that_holds_it_learns_that_another_machine_has_ended_it(state: Path) -> None:
    cluster = CMLCluster(1, name="default", local=True)
    with another_machine():
        kernel_clusters.down(state, "default")
    eventually(lambda: cluster.closed)
    eventually(lambda: {each["status"] for each in local_sessions(state).list_workers()} == {"succeeded"})


OTHER = """
import socket, sys
from pathlib import Path
socket.sethostname("other-pod")
from cml_dask_magics import CMLCluster
from cml_dask_magics.magics.kernel_clusters import kernel_clusters

state = Path(sys.argv[1])
print(kernel_clusters.statuses(state)[1])
try:
    CMLCluster(1, name="default", local=True)
except RuntimeError as error:
    print(error)
if sys.argv[2] == "down":
    print(kernel_clusters.down(state, "default"))
"""


@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("unshare"), reason="only root can make such namespaces")
@pytest.mark.long
def test_a_pod_that_sees_none_of_its_processes_takes_them_for_nothing_else(
    state: Path, processes: dict[str, psutil.Process]
) -> None:
    def pod(does: str) -> str:
        namespaces = ["unshare", "--pid", "--fork", "--mount-proc", "--uts", "--kill-child"]
        argv = [*namespaces, sys.executable, "-c", OTHER, str(state), does]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    before = Registry(state).read("default")
    assert pod("look").count(f"'default' was started on machine {HERE}") == 2
    assert Registry(state).read("default") == before
    assert {each["status"] for each in local_sessions(state).list_workers()} == {"running"}
    assert f"machine='{HERE}'" in pod("down")
    for process in processes.values():
        eventually(lambda process=process: not process.is_running())
