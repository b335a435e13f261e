"""Sessions with several Dask workers in them: whole sessions are counted, waited for, scaled, healed and restarted."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dask
import pytest
from contract.patience import eventually
from distributed import Client
from IPython.core.interactiveshell import InteractiveShell
from support.state_folder import kill, local_sessions

from cml_dask_magics import CMLCluster
from cml_dask_magics.model.times import Times

pytestmark = pytest.mark.dask
together = pytest.mark.xdist_group("several workers in a session")

PROCESSES = 4


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CMLCluster]:
    """Two sessions with four workers each, one for each of the GPUs that this machine pretends to have."""
    folder = tmp_path_factory.mktemp("shared") / "state"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DASK_CML_DASK_MAGICS__STATE_DIRECTORY", str(folder))
        patch.setattr(CMLCluster, "times", Times(steer_s=0.3, beat_s=0.5, lease_s=3.0))
        with (
            dask.config.set({"cml-dask-magics.state-directory": str(folder)}),
            pytest.warns(UserWarning, match="share its GPUs: all 2 use the same 4 "),
        ):
            cluster = CMLCluster(2, gpu=PROCESSES, memory=4)
    with cluster:
        yield cluster


@pytest.fixture
def two(started: CMLCluster) -> Iterator[CMLCluster]:
    """The shared cluster, whole before and after the test."""
    yield started
    started.scale(2)
    started.wait_for_workers(2 * PROCESSES, timeout=120)
    eventually(lambda: len(started.observed) == 2)


@pytest.fixture
def client(two: CMLCluster) -> Iterator[Client]:
    with Client(two, set_as_default=False) as client:
        yield client


def names_of(session: str) -> set[str]:
    return {f"{session}-{number}" for number in range(PROCESSES)}


def events(cluster: CMLCluster) -> list[str]:
    return [event.message for event in cluster.status().events]


@together
@pytest.mark.long
def test_a_start_waits_for_all_workers_of_all_sessions(two: CMLCluster, client: Client) -> None:
    assert len(client.nthreads()) == 8 and len(two.plan) == len(two.observed) == 2
    workers = client.scheduler_info()["workers"].values()
    assert {worker["name"] for worker in workers} == set().union(*map(names_of, two.plan))
    assert any(message.startswith("2 sessions of 4 workers ready in") for message in events(two))
    status = two.status()
    assert status.processes == PROCESSES and len(status.workers) == 2
    for session in status.workers:
        assert {worker.name for worker in session.workers} == names_of(session.session)
        assert session.nthreads == 4 and session.memory_limit_bytes == sum(
            w.memory_limit_bytes for w in session.workers
        )
        assert session.memory_limit_bytes < 4 * 2**30
    assert sum(worker["memory_limit"] for worker in workers) == sum(s.memory_limit_bytes for s in status.workers)


@together
@pytest.mark.long
def test_each_worker_sees_a_gpu_of_its_own(two: CMLCluster, client: Client) -> None:
    seen = client.run(lambda dask_worker: (dask_worker.name, os.environ["CUDA_VISIBLE_DEVICES"]))
    for session in two.plan:
        assert sorted(index for name, index in seen.values() if name in names_of(session)) == ["0", "1", "2", "3"]
    assert [worker["resources"] for worker in client.scheduler_info()["workers"].values()] == [{"GPU": 1}] * 8
    futures = client.map(lambda _: os.getpid(), range(8), pure=False, resources={"GPU": 1})
    assert len(client.gather(futures)) == 8


@together
@pytest.mark.long
def test_scaling_down_ends_whole_sessions_and_moves_their_data(two: CMLCluster, client: Client) -> None:
    before = two.plan
    data = client.scatter(list(range(40)))
    two.scale(1)
    (stays,) = two.plan
    eventually(lambda: len(client.nthreads()) == PROCESSES)
    assert {worker["name"] for worker in client.scheduler_info()["workers"].values()} == names_of(stays)
    assert stays in before and client.gather(data) == list(range(40))
    two.scale(2)
    two.wait_for_workers(8, timeout=120)
    eventually(lambda: len(two.observed) == 2)
    assert "scaled to 1 session of 4 workers by kernel" in " ".join(events(two))


@together
@pytest.mark.long
def test_a_session_that_is_lost_is_four_workers_and_one_launch(two: CMLCluster, client: Client) -> None:
    victim = min(two.plan)
    launched = len(local_sessions(two.settings.state_directory).list_workers())
    futures = client.map(lambda number: time.sleep(0.1) or number, range(100), pure=False)
    kill(two.settings.state_directory, victim)
    assert client.gather(futures) == list(range(100))
    eventually(lambda: len(two.observed) == 2 and victim not in two.plan)
    assert len(client.nthreads()) == 8
    assert len(local_sessions(two.settings.state_directory).list_workers()) == launched + 1
    assert any(event.endswith(f"launched in place of session {victim}") for event in events(two))


@together
@pytest.mark.long
def test_a_session_is_restarted_with_all_its_workers(two: CMLCluster, client: Client) -> None:
    def pids() -> dict[str, int]:
        return dict(client.run(lambda dask_worker: (dask_worker.name, os.getpid())).values())

    before, session = pids(), min(two.plan)
    two.restart_worker(session)
    after = pids()
    assert {name for name in after if after[name] != before[name]} == names_of(session)
    assert f"the 4 workers of session {session} were restarted" in events(two)


@together
@pytest.mark.long
def test_dask_scales_in_whole_sessions(two: CMLCluster, client: Client) -> None:
    adaptive = two.adapt(minimum=1, maximum=2, interval="100ms", target_duration="100ms")
    eventually(lambda: len(client.nthreads()) == PROCESSES and len(two.plan) == 1)
    futures = client.map(lambda _: time.sleep(0.2), range(5000), pure=False)  # more than are done meanwhile
    eventually(lambda: len(client.nthreads()) == 2 * PROCESSES)
    assert len(two.plan) == 2
    client.cancel(futures)
    del futures
    eventually(lambda: len(client.nthreads()) == PROCESSES and len(two.plan) == 1)
    assert adaptive.maximum == 2 and not any("ended: " in event for event in events(two)[-3:])


def test_two_workers_in_a_session(shell: InteractiveShell, capsys: pytest.CaptureFixture[str]) -> None:
    shell.run_line_magic("dask_up", "1 --cpu 4 --memory 3 --processes 2 --env NUMBA_NUM_THREADS=7")
    cluster, client = shell.user_ns["cluster"], shell.user_ns["client"]
    (session,) = cluster.plan
    seen: dict[str, Any] = client.run(lambda: dict(os.environ))
    assert len(seen) == 2 and all("CUDA_VISIBLE_DEVICES" not in variables for variables in seen.values())
    threads = str(max(1, int(cluster.settings.cpu / 2)))
    for variables in seen.values():
        assert variables["OMP_NUM_THREADS"] == "1"
        assert variables["POLARS_MAX_THREADS"] == variables["LOKY_MAX_CPU_COUNT"] == threads
        assert variables["NUMBA_NUM_THREADS"] == "7", "--env counts"
    capsys.readouterr()
    shell.run_line_magic("dask_status", "--text")
    shown = capsys.readouterr().out
    assert "1 of 1 session, 2 workers" in shown and f"  {session}-1 " in shown
    # Cores and memory are what the workers of a session have together.
    cluster.scale(cores=2 * int(threads), memory=cluster.status().workers[0].memory_limit_bytes)
    assert cluster.plan == {session}


def _like_new() -> dict[str, Any]:
    import random

    import numpy as np

    return {
        "command": Path("/proc/self/cmdline").read_text(),
        "environment": dict(os.environ),
        "hash": hash("a word"),
        "random": random.random(),
        "numpy": float(np.random.default_rng().random() + np.random.random()),
    }


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere each worker starts a Python of its own")
def test_a_worker_s_first_process_is_a_copy_of_its_session_s_and_like_the_next_ones() -> None:
    with CMLCluster(1, processes=2, memory=2) as cluster, Client(cluster, set_as_default=False) as client:
        first = list(client.run(_like_new).values())
        cluster.restart_worker(min(cluster.plan))
        second = list(client.run(_like_new).values())
    assert len(first) == len(second) == 2
    assert all("session.py" in each["command"] for each in first)
    assert all("--multiprocessing-fork" in each["command"] for each in second)
    for each in first:
        assert each["environment"] == second[0]["environment"]
    # Equal keys must lie in equal partitions, whichever worker computes them.
    assert len({each["hash"] for each in first + second}) == 1
    for source in ("random", "numpy"):
        assert len({each[source] for each in first + second}) == 4
