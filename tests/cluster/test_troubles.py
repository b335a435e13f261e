"""What a user is told of workers that die, pause or hold all the data: within seconds, with what to change."""

from __future__ import annotations

import html
import json
import os
import re
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from pathlib import Path

import dask.array as da
import psutil
import pytest
from distributed import Client, KilledWorker, wait
from support.state_folder import kill

from cml_dask_magics import CMLCluster
from cml_dask_magics.display.document import to_json
from cml_dask_magics.display.html.pieces import to_html
from cml_dask_magics.display.text import to_text
from cml_dask_magics.model.words import format_bytes

pytestmark = pytest.mark.dask

MIB = 2**20
HELPS = "give workers more memory (--memory) or smaller pieces"


@pytest.fixture
def cluster(state: Path) -> Iterator[CMLCluster]:
    """Two workers of less than a GiB, in a kernel that looks at them as if a panel were open."""
    with CMLCluster(2, name="x", memory=1) as cluster:
        cluster.follow(lambda _: None, lambda _: None, lambda: True)
        yield cluster


@pytest.fixture
def client(cluster: CMLCluster) -> Iterator[Client]:
    with Client(cluster) as client:
        yield client


@pytest.fixture
def limit(cluster: CMLCluster) -> int:
    """What a worker may hold, in bytes."""
    return cluster.status().workers[0].memory_limit_bytes


def grow() -> None:
    """A task that grows by a GiB a second."""
    held = []
    for _ in range(128):
        held.append(b"1" * (32 * MIB))
        time.sleep(1 / 32)


def hold(share: float, limit: int, seconds: float) -> None:
    """A task with which a worker's process holds this share of its limit for a while."""
    held = b"1" * max(0, int(share * limit) - psutil.Process().memory_info().rss)
    time.sleep(seconds)
    del held


def leak(size: int, index: int) -> int:
    """A task that leaves so many bytes behind."""
    vars(os).setdefault("left_behind", []).append(b"1" * size)
    return index


def load(size: int, index: int) -> bytes:
    """A piece of data."""
    return bytes([index]) * size


def told(cluster: CMLCluster, *words: str, within_s: float = 30) -> str:
    """What the cluster's trouble is said to be, once that has these words: the same in the panel and the text."""
    deadline = time.monotonic() + within_s
    while not all(word in cluster.cached_status().trouble for word in words):
        assert time.monotonic() < deadline, f"{cluster.cached_status().trouble!r} after {events(cluster)}"
        time.sleep(0.05)
    status = cluster.cached_status()
    shown = status.trouble[0].upper() + status.trouble[1:]
    assert shown in " ".join(to_text([status], width=1000).split())
    assert html.escape(shown) in to_html(status)
    print(f"told: {status.trouble}")
    return status.trouble


def events(cluster: CMLCluster) -> list[str]:
    document = json.loads(to_json([cluster.status()]))
    return [event["message"] for event in document["clusters"][0]["events"]]


@pytest.mark.long
def test_a_task_that_outgrows_its_workers_is_told_at_once_and_when_it_is_given_up(
    cluster: CMLCluster, client: Client, limit: int
) -> None:
    future = client.submit(grow, key="grow-12")
    size = format_bytes(limit)
    first = told(cluster, f"went over its {size} and was restarted; 1 task runs again")
    (happened,) = (event.at for event in cluster.cached_status().events if event.message == first)
    assert (datetime.now(timezone.utc) - happened).total_seconds() < 5
    assert first.endswith(f": {HELPS}")
    with pytest.raises(KilledWorker):
        future.result(timeout=120)
    words = told(cluster, "failed", within_s=15)
    # The same worker may have died twice.
    assert re.sub("^.*: . workers? went over (its|their) memory", "", words).startswith(f" ({size}) 4 times while ")
    assert words.startswith("task 'grow-12' failed: ") and words.endswith(f" ran it: {HELPS}")
    said = events(cluster)
    assert first in said and words in said
    named = re.findall(r"worker (\S+) went over its", "\n".join(said))
    assert len(named) == len(set(named)), f"once for each worker: {said}"


@pytest.mark.long
def test_a_cell_that_fails_each_time_it_is_run_is_told_each_time(state: Path) -> None:
    with CMLCluster(1, name="x", memory=1) as cluster, Client(cluster) as client:
        cluster.follow(lambda _: None, lambda _: None, lambda: True)
        size = format_bytes(cluster.status().workers[0].memory_limit_bytes)
        for run in (1, 2, 3):
            future = client.submit(grow, pure=False)
            with pytest.raises(KilledWorker):
                future.result(timeout=120)
            why = f"1 worker went over its memory ({size}) 4 times while it ran it: {HELPS}"
            words = f"task {future.key!r} failed: {why}"
            assert told(cluster, future.key) == words
            failures = [event for event in events(cluster) if "failed" in event]
            assert len(failures) == run and failures[-1] == words
            time.sleep(5)
            assert cluster.status().trouble == words


@pytest.mark.long
def test_a_session_that_is_killed_whole_is_told(cluster: CMLCluster, client: Client, state: Path, limit: int) -> None:
    victim = sorted(cluster.plan)[0]
    future = client.submit(hold, 0.65, limit, 20, workers=[victim], allow_other_workers=True, pure=False)
    deadline = time.monotonic() + 20
    while not any(worker.memory_bytes > limit // 2 for worker in cluster.cached_status().workers):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    kill(state, victim)
    said = told(cluster, f"session {victim} ended unexpectedly", "1 task runs again", within_s=15)
    assert said.endswith(HELPS) and f"of {format_bytes(limit)} when last heard" in said
    assert f"session {victim} (worker) ended by itself" not in events(cluster), "once"
    future.cancel()


@pytest.mark.long
def test_a_worker_whose_process_is_killed_is_told_with_the_signal(cluster: CMLCluster, client: Client) -> None:
    worker = cluster.cached_status().workers[0]
    (pid,) = client.run(os.getpid, workers=[worker.address]).values()
    os.kill(pid, 9)
    said = told(cluster, f"worker {worker.session} was killed by signal 9 and was restarted")
    assert said.endswith(f"its log may say why (%dask_status x --logs {worker.session})")


@pytest.mark.long
def test_a_paused_worker_is_told_for_as_long_as_it_is(cluster: CMLCluster, client: Client, limit: int) -> None:
    future = client.submit(hold, 0.87, limit, 8, pure=False)
    said = told(cluster, "is paused; it holds")
    assert "more memory (--memory)" in said
    assert any(worker.is_paused for worker in cluster.cached_status().workers)
    assert "paused" in to_text([cluster.cached_status()]).partition("Threads")[2]
    future.result()
    _until(lambda: not cluster.cached_status().trouble)
    assert said in events(cluster)


@pytest.mark.long
def test_what_ends_on_purpose_is_no_trouble(cluster: CMLCluster, client: Client) -> None:
    client.submit(hold, 0, 0, 60, pure=False)
    client.restart()
    cluster.restart_worker(sorted(cluster.plan)[0])
    cluster.scale(1)
    time.sleep(3)
    cluster.scale(0)
    time.sleep(3)
    assert cluster.status().trouble == "", events(cluster)
    assert not any("died" in event or "gone" in event or "ended" in event for event in events(cluster))


# What users run into, and what they are told to change


@pytest.mark.long
def test_too_large_a_partition(cluster: CMLCluster, client: Client, limit: int) -> None:
    rows = 2 * limit // 8
    with pytest.raises(KilledWorker):
        da.ones((rows, 2), chunks=(rows, 1)).cumsum(axis=0).sum().compute()
    said = told(cluster, " failed: ", " went over ")
    assert said.endswith(HELPS)


@pytest.mark.long
def test_a_leak_that_grows_with_each_task(cluster: CMLCluster, client: Client, limit: int) -> None:
    futures = client.map(leak, [limit // 15] * 60, range(60), pure=False)
    said = told(cluster, "is stuck", "runs nothing", "as a leak does")
    assert "restart it (in the panel, or client.restart())" in said and "--memory" in said
    client.cancel(futures)
    cluster.restart_worker(said.split()[1])
    _until(lambda: said != cluster.cached_status().trouble)


@pytest.mark.long
def test_all_data_on_one_worker(cluster: CMLCluster, client: Client, limit: int) -> None:
    worker = sorted(cluster.plan)[0]
    futures = client.map(load, [limit // 16] * 28, range(28), workers=[worker], pure=False)
    said = told(cluster, f"worker {worker} holds most of the data; it has ")
    assert "client.rebalance()" in said and "(no workers=)" in said
    wait(futures)
    client.rebalance()
    (holds, other) = sorted((len(keys) for keys in client.has_what().values()), reverse=True)
    assert holds < len(futures) and other > 0


def _until(condition: Callable[[], object], timeout_s: float = 20) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)
