"""What a cluster does by itself: it replaces lost workers, ends what is lost, and has one kernel do so."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from IPython.core.interactiveshell import InteractiveShell
from support.state_folder import kill, local_sessions, private

from cml_dask_magics import CMLCluster
from cml_dask_magics.magics.kernel_clusters import kernel_clusters
from cml_dask_magics.model.lifecycle import FAILED_REPLACEMENTS
from cml_dask_magics.model.times import Times
from cml_dask_magics.registry.registry import Registry
from cml_dask_magics.registry.run_folder import session_logs

pytestmark = pytest.mark.dask


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Looks and heartbeats made quicker; what they lead to stays the same."""
    monkeypatch.setattr(CMLCluster, "times", Times(steer_s=0.3, beat_s=0.5, lease_s=3.0))


def running(state: Path) -> set[str]:
    listing = local_sessions(state).list_workers()
    return {session["id"] for session in listing if session["status"] == "running"}


def until(condition: Callable[[], object], timeout_s: float = 120) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it did not come to pass"
        time.sleep(0.1)


def await_rounds(cluster: CMLCluster, n: int) -> None:
    """Wait until this kernel has looked after the cluster `n` more times, from beginning to end."""
    rounds: list[object] = []
    steer = cluster.periodic_callbacks["steer"]
    callback = steer._callback

    async def counted() -> None:
        await callback()
        rounds.append(None)

    steer._callback = counted
    until(lambda: len(rounds) >= n)
    steer._callback = callback


def events(cluster: CMLCluster) -> list[str]:
    return [event.message for event in cluster.status().events]


@pytest.mark.long
def test_a_worker_whose_session_dies_is_replaced_and_the_computation_finishes(state: Path) -> None:
    with CMLCluster(2) as cluster, cluster.get_client() as client:
        before = cluster.plan
        futures = client.map(lambda i: time.sleep(0.2) or i, range(60), pure=False)
        victim = sorted(before)[0]
        kill(state, victim)
        assert sum(client.gather(futures)) == sum(range(60))
        until(lambda: len(cluster.observed) == 2 and victim not in cluster.plan)
        (new,) = cluster.plan - before
        until(lambda: f"worker {new} launched in place of worker {victim}" in events(cluster))
        assert any(event.startswith(f"session {victim}") and "ended" in event for event in events(cluster))
        status = cluster.status()
        assert status.state == "running" and {worker.session for worker in status.workers} == cluster.plan
        assert len(running(state)) == 3


@pytest.mark.long
def test_all_workers_die_and_all_are_replaced(state: Path) -> None:
    with CMLCluster(2) as cluster:
        before = cluster.plan
        kill(state, *before)
        until(lambda: len(cluster.observed - before) == 2)
        assert len(running(state)) == 3


@pytest.mark.long
def test_a_broken_environment_is_not_launched_into_for_ever(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with CMLCluster(1) as cluster:
        fleet = cluster._fleet
        before = set(session_logs(fleet.folder / "logs"))
        healthy = fleet.settings
        monkeypatch.setattr(fleet.launches, "settings", replace(healthy, python="/no/such/python"))
        kill(state, *cluster.plan)
        until(lambda: any("no more are launched" in event for event in events(cluster)))
        assert any("/no/such/python" in event for event in events(cluster)), "it says why"
        await_rounds(cluster, 5)
        assert len(set(session_logs(fleet.folder / "logs")) - before) == FAILED_REPLACEMENTS
        status = cluster.status()
        assert status.state == "degraded" and not status.replaces_lost and len(running(state)) == 1
        # Once somebody asks by hand, and it works again, all is well.
        monkeypatch.setattr(fleet.launches, "settings", healthy)
        cluster.scale(1)
        until(lambda: cluster.status().state == "running")


@pytest.mark.long
def test_a_worker_that_was_taken_away_on_purpose_is_not_replaced(state: Path) -> None:
    with CMLCluster(3) as cluster:
        cluster.scale(1)
        await_rounds(cluster, 4)
        assert len(cluster.plan) == 1 and len(running(state)) == 2
        assert not any("in place of" in event for event in events(cluster))


@pytest.mark.long
def test_when_the_scheduler_dies_its_workers_go_and_the_next_start_is_as_before(
    shell: InteractiveShell, state: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shell.run_line_magic("dask_up", "2 --cpu 2 --memory 1.5")
    cluster = shell.user_ns["cluster"]
    shell.run_line_magic("dask_up", "3")
    kill(state, cluster.status().scheduler.session)
    until(lambda: not running(state))
    until(lambda: Registry(state).read("default").state == "lost")
    assert kernel_clusters.statuses(state)[0][0].state == "lost"
    shell.run_line_magic("dask_up", "")
    assert "was lost; it was started again with the settings that it had (3 workers; 2 cores" in capsys.readouterr().err
    workers = shell.user_ns["cluster"].status().workers
    assert [worker.nthreads for worker in workers] == [2, 2, 2]
    assert shell.user_ns["client"].submit(sum, [1, 2]).result() == 3


def test_a_lost_cluster_can_be_put_away(shell: InteractiveShell, state: Path) -> None:
    shell.run_line_magic("dask_up", "1")
    kill(state, shell.user_ns["cluster"].status().scheduler.session)
    until(lambda: Registry(state).read("default").state == "lost")
    shell.run_line_magic("dask_down", "")
    assert kernel_clusters.names(state) == [] and not running(state)


def test_a_cluster_that_nobody_uses_ends_and_its_record_with_it(state: Path) -> None:
    cluster = CMLCluster(1, idle_timeout="10s")
    until(lambda: cluster.closed)
    assert not running(state) and kernel_clusters.names(state) == []
    assert cluster.ended is not None and "nobody worked" in cluster.why_detached
    cluster.close()


OTHER_KERNEL = """
import sys, time
from cml_dask_magics import CMLCluster
from cml_dask_magics.model.times import Times
CMLCluster.times = Times(steer_s=0.3, beat_s=0.5, lease_s=3.0)
cluster = CMLCluster.from_name("default")
print("attached", flush=True)
for line in sys.stdin:
    print(eval(line), flush=True)
"""


@pytest.mark.long
def test_of_two_kernels_one_heals_and_the_other_takes_over_when_it_is_gone(state: Path) -> None:
    with (
        CMLCluster(2, name="default") as cluster,
        subprocess.Popen(
            [sys.executable, "-c", OTHER_KERNEL], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as other,
    ):
        assert other.stdin is not None and other.stdout is not None

        def ask(expression: str) -> str:
            other.stdin.write(expression + "\n")
            other.stdin.flush()
            return other.stdout.readline().strip()

        assert other.stdout.readline() == "attached\n"
        until(lambda: cluster.steers)
        before = cluster.plan
        kill(state, *before)
        until(lambda: len(cluster.observed - before) == 2)
        until(lambda: ask("len(cluster.observed)") == "2")
        assert ask("cluster.steers") == "False"
        assert len(running(state)) == 3, "both have healed"
        cluster.periodic_callbacks["steer"].stop()
        cluster._supervisor.release()
        cluster.steers = False
        until(lambda: ask("cluster.steers") == "True")
        before = cluster.plan
        kill(state, *before)
        until(lambda: len(cluster.observed - before) == 2)
        assert len(running(state)) == 3
        other.kill()
        until(lambda: cluster._fleet.journal.refresh() and len(cluster.plan) == 2)


@pytest.mark.long
def test_a_kernel_sees_that_another_one_asked_for_adaptive_scaling(state: Path) -> None:
    with CMLCluster(1, name="default") as cluster, CMLCluster.from_name("default") as other:
        other.adapt(minimum=2, maximum=3)
        until(lambda: cluster.adapting)
        until(lambda: len(cluster.observed) == 2)
        other.scale(1)
        until(lambda: not cluster.adapting)
        until(lambda: len(running(state)) == 2)


def test_a_record_that_is_deleted_while_the_cluster_runs_comes_back(state: Path) -> None:
    with CMLCluster(1, name="default") as cluster:
        (private(state) / "clusters" / "default" / "record.json").unlink()
        until(lambda: any("deleted" in event for event in events(cluster)))
        assert cluster.get_client().submit(sum, [1, 2]).result() == 3
    assert not running(state)
