"""`CMLCluster` as Dask users use it, on processes of this machine."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import subprocess
import sys
import time
from collections.abc import Collection, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import dask
import dask.system
import psutil
import pytest
from distributed import Client
from distributed.core import Status
from distributed.system import MEMORY_LIMIT
from support.state_folder import local_sessions

from cml_dask_magics import CMLCluster
from cml_dask_magics.fleet.fleet import Change, Fleet
from cml_dask_magics.fleet.in_session import room_bytes
from cml_dask_magics.fleet.launches import EndingError, Launches
from cml_dask_magics.fleet.opening import open_fleet
from cml_dask_magics.magics.kernel_clusters import kernel_clusters
from cml_dask_magics.model.record import record_from_json
from cml_dask_magics.platforms.pool import Launched
from cml_dask_magics.registry import registry as registry_module
from cml_dask_magics.registry.files import write_private
from cml_dask_magics.registry.registry import NameTakenError, Registry
from cml_dask_magics.registry.run_folder import SESSION_PROGRAM
from cml_dask_magics.registry.start_times import usual_start_s

pytestmark = pytest.mark.dask


def running(state: Path) -> list[str]:
    listing = local_sessions(state).list_workers()
    return [session["id"] for session in listing if session["status"] == "running"]


SPILL = "distributed.worker.memory.spill"
# What looks at a cluster, or scales it, does so to one that starts once.
shared = pytest.mark.xdist_group("one cluster")


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CMLCluster]:
    """A cluster for tests that leave it running, with all that they look at."""
    folder = tmp_path_factory.mktemp("shared") / "state"
    env = {"DASK_DISTRIBUTED__WORKER__MEMORY__SPILL": "0.55"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DASK_CML_DASK_MAGICS__STATE_DIRECTORY", str(folder))
        with (
            dask.config.set({"cml-dask-magics.state-directory": str(folder)}),
            dask.config.set({SPILL: 0.65, "of-mine.function": print}),
        ):
            cluster = CMLCluster(1, name="default", gpu=2, processes=1, env=env, idle_timeout="10 min")
    with cluster:
        yield cluster
    assert cluster.status == Status.closed
    assert not running(folder) and kernel_clusters.names(folder) == []


@pytest.fixture
def one(started: CMLCluster, monkeypatch: pytest.MonkeyPatch) -> Iterator[CMLCluster]:
    """The shared cluster, with one worker before and after the test."""
    folder = str(started.settings.state_directory)
    monkeypatch.setenv("DASK_CML_DASK_MAGICS__STATE_DIRECTORY", folder)
    with dask.config.set({"cml-dask-magics.state-directory": folder}):
        yield started
    started.scale(1)
    started.wait_for_workers(1, timeout=60)
    assert len(started.plan) == 1


def state_of(cluster: CMLCluster) -> Path:
    """The folder with the records of clusters like this one."""
    return cluster.settings.state_directory


def test_a_with_block_computes_and_ends_its_cluster(state: Path) -> None:
    with CMLCluster(n_workers=2, cpu=2, memory=1) as cluster, cluster.get_client() as client:
        assert client.submit(sum, range(10)).result() == 45
        info = client.scheduler_info()["workers"].values()
        assert [worker["nthreads"] for worker in info] == [2, 2]
        # A GiB less what else runs in the session, and what a worker takes until its nanny ends it.
        assert {worker["memory_limit"] for worker in info} == {2**30 - room_bytes(1)}
        assert all(status.memory_limit_bytes == 2**30 - 450 * 10**6 for status in cluster.status().workers)
        assert {worker["name"] for worker in info} == cluster.plan == cluster.requested == cluster.observed
    assert not running(state)
    assert kernel_clusters.names(state) == []


@shared
def test_dask_sees_a_cluster_of_its_own_kind(one: CMLCluster) -> None:
    assert one.status == Status.running and one.status != Status.closed
    assert one.status.name == "running"
    assert one.status in (Status.running, Status.closing)
    assert one.scheduler_address.startswith("tls://127.0.0.1:")
    assert "CMLCluster(default" in repr(one)
    assert one.dashboard_link.startswith("http://127.0.0.1:") and one.dashboard_link.endswith("/status")
    logs = one.get_logs()
    assert "1 worker ready" in logs["Cluster"] and "Scheduler" in logs
    assert type(one.status()).__name__ == "ClusterStatus"


@pytest.mark.long
def test_an_async_with_block_computes_and_ends_its_cluster(state: Path) -> None:
    async def main() -> tuple[int, Any]:
        async with CMLCluster(1, asynchronous=True) as cluster, Client(cluster, asynchronous=True) as client:
            status = await cluster.status()
            await cluster.scale(2)
            await client.wait_for_workers(2)
            return await client.submit(sum, range(10)), status

    result, status = asyncio.run(main())
    assert result == 45 and status.state == "running"
    assert not running(state)


def test_an_async_start_that_fails_leaves_nothing(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cml_dask_magics.model.readers.sys.executable", "/nowhere/python")

    async def main() -> None:
        async with CMLCluster(1, asynchronous=True):
            pass

    with pytest.raises(RuntimeError, match="/nowhere/python"):
        asyncio.run(main())
    assert not running(state) and kernel_clusters.names(state) == []


def test_a_start_whose_launch_calls_all_fail_says_so_once(
    state: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> None:
        raise EndingError("default")

    monkeypatch.setattr(Launches, "launch", fail)
    monkeypatch.setattr(Launches, "launch_requested", fail)
    with pytest.raises(EndingError):
        CMLCluster(1, name="default")
    gc.collect()  # asyncio logs an error that nobody looked at when its future goes
    assert not [record for record in caplog.records if record.name == "asyncio"]


@shared
def test_a_taken_name_is_refused_and_the_cluster_that_has_it_goes_on(one: CMLCluster) -> None:
    with pytest.raises(NameTakenError, match="from_name"):
        CMLCluster(1, name="default")
    assert len(running(state_of(one))) == 2
    assert one.get_client().submit(sum, [1]).result() == 1


def test_a_value_that_cannot_be_launches_nothing(state: Path) -> None:
    for wrong in ({"n_workers": -1}, {"memory": "lots"}, {"name": "../x"}, {"timeout": "soon"}, {"env": ["NOVALUE"]}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            CMLCluster(**wrong)  # type: ignore[arg-type]
    assert not state.exists()


@shared
def test_scaling_to_what_cannot_be_is_refused(one: CMLCluster) -> None:
    for wrong in (-1, 1.5, True):
        with pytest.raises(ValueError, match="from 0 to 100"):
            one.scale(wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"at most 100, not 500: 500 workers would be 500 cores and 1,000 GiB"):
        one.scale(500)
    assert len(one.plan) == 1


@shared
def test_scaling_down_loses_no_data(one: CMLCluster) -> None:
    one.scale(3)
    one.wait_for_workers(3, timeout=60)
    with one.get_client() as client:
        futures = client.scatter(list(range(300)))
        one.scale(1)
        assert sum(client.gather(futures)) == sum(range(300))
        assert len(running(state_of(one))) == 2
        one.scale(0)
        assert len(running(state_of(one))) == 1


def test_a_scale_down_writes_the_record_when_it_begins_and_when_it_is_done(
    state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with CMLCluster(2, name="default") as cluster:
        written = [Registry(state).read("default")]

        def write(path: Path, text: str) -> None:
            if path.name == "record.json":
                written.append(record_from_json(text))
            write_private(path, text)

        monkeypatch.setattr(registry_module, "write_private", write)
        cluster.scale(1)
        # Beside what a round of the supervisor may note meanwhile: that a worker left, say.
        shown = [
            (
                record.requested,
                len(record.sessions),
                sum(session.stopping_at is not None for session in record.sessions),
            )
            for record in written
            if record is not None
        ]
        changes = [after for after, before in zip(shown[1:], shown, strict=False) if after != before]
        assert changes == [(1, 3, 1), (1, 2, 0)]


def test_whoever_scales_last_has_the_last_word_though_another_kernel_is_not_done_yet(
    state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with CMLCluster(1, name="default") as cluster:

        def grow_and_be_overtaken(self: Launches, n: int) -> Launched:
            launched = grow(self, n)
            record = Registry(state).update("default", lambda record: replace(record, requested=record.requested - 1))
            assert record.requested == 1
            return launched

        grow = Launches.grow
        monkeypatch.setattr(Launches, "grow", grow_and_be_overtaken)
        cluster.scale(2)
        assert cluster.wanted == 1


def test_what_the_user_scales_to_while_dask_ends_a_worker_holds(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with CMLCluster(2, name="default") as cluster:
        cluster.adapt(minimum=1, maximum=4, interval="1h")

        def be_overtaken_and_withdraw(self: Fleet, ids: Collection[str], also: Change) -> None:
            monkeypatch.setattr(Fleet, "withdraw", withdraw)
            cluster.scale(3)
            withdraw(self, ids, also)

        withdraw = Fleet.withdraw
        monkeypatch.setattr(Fleet, "withdraw", be_overtaken_and_withdraw)
        victim = min(cluster.plan)
        cluster.sync(cluster.scaler.let_go, [victim])
        assert cluster.wanted == 3 and victim not in cluster.plan


def test_a_worker_that_dask_is_told_to_end_is_not_replaced(state: Path) -> None:
    with CMLCluster(2, name="default") as cluster:
        victim = min(cluster.plan)
        cluster.scale_down([victim])
        assert cluster.wanted == 1 and victim not in cluster.plan and len(running(state)) == 2
        assert cluster.get_logs()["Cluster"].count("scaled to 1 worker by Dask") == 1


@pytest.mark.long
def test_what_an_older_release_started_grows_by_sessions_of_this_one(state: Path) -> None:
    with CMLCluster(1, name="default") as cluster:
        (program,) = state.glob(f"**/runs/*/{SESSION_PROGRAM}")
        program.write_text("raise SystemExit('an older release')")
        with CMLCluster.from_name("default") as again:
            again.scale(2)
            again.wait_for_workers(2, timeout=60)
        assert cluster.status().requested == 2


def test_letting_go_and_coming_back(state: Path) -> None:
    started = CMLCluster(1, name="default")
    with CMLCluster.from_name("default") as again, again.get_client() as client:
        assert client.submit(sum, [1, 2]).result() == 3
        assert again.status().requested == 1
    assert len(running(state)) == 2, "a re-attached cluster must survive its with block"
    CMLCluster.from_name("default").shutdown()
    assert not running(state)
    started.close()


@shared
def test_coming_back_in_vain_does_not_stop_the_cluster(one: CMLCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    async def refuse(*_: Any) -> None:
        raise OSError("refused")

    async def attach() -> None:
        await CMLCluster.from_name("default", asynchronous=True)

    with monkeypatch.context() as patch:
        patch.setattr(CMLCluster, "_connect_to", refuse)
        with pytest.raises(RuntimeError, match="does not answer"):
            asyncio.run(attach())
        with pytest.raises(RuntimeError, match="does not answer"):
            CMLCluster.from_name("default")
    assert len(running(state_of(one))) == 2 and kernel_clusters.names(state_of(one)) == ["default"]


def test_there_is_no_coming_back_to_what_never_was(state: Path) -> None:
    with pytest.raises(RuntimeError, match="there is no cluster 'nope'"):
        CMLCluster.from_name("nope")


def test_a_script_that_dies_leaves_a_cluster_that_can_be_found_and_stopped(state: Path) -> None:
    code = "from cml_dask_magics import CMLCluster; c = CMLCluster(1, name='default'); print('up', flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as script:
        assert script.stdout is not None and script.stdout.readline() == "up\n"
        script.kill()
    assert len(running(state)) == 2
    with CMLCluster.from_name("default", shutdown_on_close=True) as cluster:
        assert cluster.get_client().submit(sum, [1, 2]).result() == 3
    assert not running(state)


def test_ctrl_c_while_starting_leaves_nothing(state: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slow = tmp_path / "slow-python"
    slow.write_text("#!/bin/sh\nsleep 60\n")
    slow.chmod(0o700)
    monkeypatch.setenv("DASK_CML_DASK_MAGICS__PYTHON", str(slow))
    # A shell that runs the tests in the background has them ignore interrupts, and their children too.
    code = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    code += "from cml_dask_magics import CMLCluster; CMLCluster(2)"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as script:
        deadline = time.monotonic() + 30
        while len(running(state)) < 3 and time.monotonic() < deadline:
            time.sleep(0.02)
        script.send_signal(signal.SIGINT)
        _, errors = script.communicate(timeout=60)
    assert b"KeyboardInterrupt" in errors
    assert not running(state) and kernel_clusters.names(state) == []


@pytest.mark.long
def test_a_dead_clusters_name_is_free_again(state: Path) -> None:
    first = CMLCluster(1)
    doomed = running(state)
    for session in local_sessions(state)._sessions():
        process = session.process()
        assert process is not None
        members = [*process.children(recursive=True), process]
        for member in members:
            member.send_signal(signal.SIGKILL)
        psutil.wait_procs(members, timeout=5)
    first.shutdown_on_close = False
    first.close()
    with CMLCluster(1):
        assert not set(doomed) & set(running(state))


@pytest.mark.long
def test_no_process_and_no_zombie_stays(state: Path) -> None:
    with CMLCluster(2):
        pids = [session.pid for session in local_sessions(state)._sessions()]
        family = [child for pid in pids for child in (psutil.Process(pid), *psutil.Process(pid).children(True))]
        assert len(family) >= 5  # the scheduler, two nannies, two workers
    deadline = time.monotonic() + 60
    while any(process.is_running() for process in family) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not [process for process in family if process.is_running()]


def test_a_failure_names_the_folder_with_everything_that_was_printed(state: Path) -> None:
    with pytest.raises(RuntimeError) as caught:
        CMLCluster(1, env={"DASK_DISTRIBUTED__WORKER__PRELOAD": "no_such_module_here"}, timeout=60)
    said = str(caught.value)
    folder = Path(said.rpartition("All that they printed: ")[2].strip())
    assert folder.is_relative_to(state) and any("no_such_module_here" in log.read_text() for log in folder.iterdir())
    assert "no_such_module_here" in said and not running(state)


def test_two_clusters_without_a_name_run_side_by_side(state: Path) -> None:
    with CMLCluster(0) as one, CMLCluster(0) as two:
        assert one.name != two.name and len(running(state)) == 2
        assert sorted(kernel_clusters.names(state)) == sorted([one.name, two.name])
    assert not running(state)


def test_a_size_that_this_machine_does_not_have_counts_as_what_it_has(state: Path) -> None:
    with pytest.warns(UserWarning, match="cpu 1000 is more than this machine has"):
        cluster = CMLCluster(0, cpu=1000, memory=60000)
    with cluster:
        assert cluster.settings.cpu == dask.system.CPU_COUNT
        assert cluster.settings.memory_gib == MEMORY_LIMIT / 2**30
        assert any("memory 60000 is more" in event.message for event in cluster.status().events)


def test_more_workers_than_this_machines_memory_holds_are_made_smaller_or_refused(state: Path) -> None:
    machine_gib = MEMORY_LIMIT / 2**30
    with pytest.warns(UserWarning, match=r"memory .* for each of 8 workers is more than this machine's"):
        cluster = CMLCluster(memory=machine_gib / 2, adapt=(1, 8))
    with cluster:
        assert cluster.settings.memory_gib <= machine_gib / 8
        most = cluster.status().max_workers
        assert 8 <= most < cluster.settings.max_workers
        with pytest.raises(ValueError, match=rf"no room for {most + 1} workers .* but for {most}; .* smaller --memory"):
            cluster.scale(most + 1)
        with pytest.raises(ValueError, match="no room for"):
            cluster.adapt(minimum=most + 1)
        assert cluster.adapt(minimum=0, interval="1 hour").maximum == most


def test_what_is_said_to_a_closed_cluster_object_is_answered(state: Path) -> None:
    with CMLCluster(0) as cluster:
        pass
    cluster.close()
    for call in (lambda: cluster.scale(1), cluster.adapt, cluster.get_logs, cluster.status, cluster.keep):
        with pytest.raises(RuntimeError, match="was stopped; %dask_up --name"):
            call()
    with pytest.raises(RuntimeError, match="was stopped; %dask_up --name"):
        cluster.wait_for_workers(1)


@shared
def test_the_link_is_the_one_that_dask_is_told_to_give(one: CMLCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_PREFIX", "/user/me")
    with dask.config.set({"distributed.dashboard.link": "{MY_PREFIX}/proxy/{port}/status"}):
        port = one.scheduler_info["services"]["dashboard"]
        assert one.dashboard_link == f"/user/me/proxy/{port}/status" == one.status().dashboard_link


@shared
def test_what_env_says_of_dask_holds_in_the_workers_alone(one: CMLCluster) -> None:
    with one.get_client() as client:
        assert client.submit(dask.config.get, SPILL).result() == 0.55
        assert client.run_on_scheduler(dask.config.get, SPILL) == 0.65
        assert "but for of-mine.function" in one.get_logs()["Cluster"]


@shared
def test_gpus_are_a_resource_where_dask_cuda_is_not(one: CMLCluster) -> None:
    with one.get_client() as client:
        assert client.submit(os.getpid, resources={"GPU": 2}).result(timeout=60)


@pytest.mark.long
def test_adaptive_scaling_is_dasks_own_and_stays_within_its_limits(state: Path) -> None:
    with CMLCluster(adapt="1:2") as cluster, cluster.get_client() as client:
        futures = client.map(lambda i: time.sleep(1), range(40), pure=False)
        deadline = time.monotonic() + 40
        while len(cluster.observed) < 2 and time.monotonic() < deadline:
            time.sleep(0.1)
        assert len(cluster.observed) == 2 and len(running(state)) == 3
        assert sum(worker.executing for worker in cluster.status().workers) > 0
        client.cancel(futures)
        assert cluster.status().adapt == (1, 2)
        cluster.scale(1)
        assert cluster.status().adapt is None


def test_a_cluster_that_another_kernel_stopped_is_let_go_of_and_that_is_said(state: Path) -> None:
    cluster = CMLCluster(1)
    fleet = open_fleet(Registry(state), cluster.name)
    assert fleet is not None
    fleet.end()
    deadline = time.monotonic() + 60
    while not cluster.closed and time.monotonic() < deadline:
        time.sleep(0.1)
    with pytest.raises(RuntimeError, match="was stopped from another kernel"):
        cluster.status()
    cluster.close()


@shared
def test_keeping_starts_the_idle_countdown_anew(one: CMLCluster) -> None:
    one.get_client().submit(sum, [1]).result()
    deadline = time.monotonic() + 60
    while (one.status().idle_s or 0.0) < 1.5 and time.monotonic() < deadline:
        time.sleep(0.1)
    before, asked_at = one.status().idle_s, time.monotonic()
    one.keep()
    after, took_s = one.status().idle_s, time.monotonic() - asked_at
    assert before is not None and after is not None and after <= took_s and before > 1


@shared
def test_a_worker_can_be_restarted_in_its_session(one: CMLCluster) -> None:
    with one.get_client() as client:
        (session,) = one.plan
        before = client.run(os.getpid)
        one.restart_worker(session)
        client.wait_for_workers(1)
        assert set(client.run(os.getpid).values()) != set(before.values())
        assert one.plan == one.observed == {session}
        with pytest.raises(RuntimeError, match="no worker of session nobody"):
            one.restart_worker("nobody")


@shared
def test_the_last_minutes_are_remembered_for_the_graphs(one: CMLCluster) -> None:
    one.get_client().submit(bytearray, 200 * 2**20, pure=False).result()
    deadline = time.monotonic() + 60
    while one.status().peak_memory_bytes < 200 * 2**20 and time.monotonic() < deadline:
        time.sleep(0.2)
    status = one.status()
    assert status.peak_memory_bytes > 200 * 2**20
    assert [sample.at for sample in status.history] == sorted(sample.at for sample in status.history)
    assert len(status.history) >= 2 and status.history[-1].memory_bytes > 0


@shared
def test_who_comes_goes_and_scales_is_told(one: CMLCluster) -> None:
    before = one.plan
    one.status()
    one.scale(2)
    one.wait_for_workers(2)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        events = [event.message for event in one.status().events]
        if any(f"worker {session} joined" in events for session in one.plan - before):
            break
        time.sleep(0.2)
    else:
        pytest.fail(f"nobody joined: {events}")
    assert any(message.startswith("scaled to 2 workers by kernel") for message in events)


@pytest.mark.long
def test_the_next_start_knows_how_long_the_last_one_took(state: Path) -> None:
    with CMLCluster(1) as cluster:
        assert cluster.status().usual_start_s is None
    took_s = usual_start_s(Registry(state).directory, "local")
    with CMLCluster(1) as cluster:
        assert took_s is not None and cluster.status().usual_start_s == took_s > 0


@pytest.mark.parametrize("n", [0, pytest.param(1, marks=pytest.mark.long), 4])
def test_a_cluster_that_is_scaled_while_it_starts_launches_no_more_than_it_needs(state: Path, n: int) -> None:
    cluster = CMLCluster(2, background=True)
    cluster.scale(n)
    assert cluster.wait_until_started() and cluster.failure is None
    cluster.scale_until_ready(n, wait=None, timeout_s=60)
    assert len(cluster.observed) == len(cluster.plan) == cluster.wanted == n
    assert cluster.shutdown().sessions == 1 + n
