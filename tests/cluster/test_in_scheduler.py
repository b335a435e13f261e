"""What the scheduler's process notes of its workers' troubles, from Dask's events in whichever order they come."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import permutations
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cml_dask_magics.cluster import in_scheduler
from cml_dask_magics.cluster.in_scheduler import PLUGIN, as_sent, report, setup

pytestmark = pytest.mark.dask
MIB = 2**20


@dataclass
class Scheduler:
    """As much of Dask's scheduler as what runs in it asks for."""

    allowed_failures: int = 3
    workers: dict[str, Any] = field(default_factory=dict)
    tasks: dict[str, Any] = field(default_factory=dict)
    plugins: dict[str, Any] = field(default_factory=dict)

    def add_plugin(self, plugin: Any, name: str) -> None:
        self.plugins[name] = plugin

    def check_idle(self) -> None:
        return None

    def add(self, name: str, memory_mib: int = 500, **extra: int) -> str:
        """A worker of this name joins; its address."""
        address = f"tcp://{name}:{len(self.workers)}"
        self.workers[address] = SimpleNamespace(
            address=address, name=name, nthreads=1, memory_limit=600 * MIB, metrics={"memory": memory_mib * MIB},
            extra=extra, status=SimpleNamespace(name="running"),
        )  # fmt: skip
        for plugin in self.plugins.values():
            plugin.add_worker(self, address)
        return address

    def log(self, topic: str, **event: Any) -> None:
        for plugin in self.plugins.values():
            plugin.log_event(topic, event)

    def submit(self) -> None:
        """A client, which has let go of what failed, submits tasks."""
        self.tasks.clear()
        for plugin in self.plugins.values():
            plugin.update_graph(self, client="mine", keys=set(), tasks=[], annotations={}, priority={})

    def turn(self, address: str, status: str) -> None:
        self.workers[address].status.name = status
        self.log(address, action="worker-status-change", status=status)

    def over_memory(self, address: str) -> None:
        self.log("worker-restart-memory", worker=address, pid=1, rss=590 * MIB)

    def remove(self, address: str, *processing: str, **event: Any) -> None:
        del self.workers[address]
        for key in processing:
            task = self.tasks.setdefault(
                key, SimpleNamespace(key=key, state="processing", suspicious=0, prefix=SimpleNamespace(name=key[:4]))
            )
            task.suspicious += not event.get("expected")
            task.state = "erred" if task.suspicious > self.allowed_failures else "processing"
        usual = {"lost-computed-tasks": set(), "lost-scattered-tasks": set(), "expected": False}
        told = {"action": "remove-worker", "processing-tasks": set(processing), **usual, **event}
        self.log(address, **told)
        self.log("all", worker=address, **told)


@pytest.fixture
def scheduler() -> Scheduler:
    return Scheduler()


@pytest.fixture
def news(scheduler: Scheduler) -> Callable[[], list[dict[str, Any]]]:
    """What a feed tells of troubles since the last call."""
    told = setup(scheduler)
    return lambda: report(scheduler, told)["troubles"]


@pytest.fixture
def at(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Set the scheduler's clock."""
    clock = SimpleNamespace(now=0.0, monotonic=lambda: clock.now, time=lambda: clock.now)
    monkeypatch.setattr(in_scheduler, "time", clock)
    return lambda now: setattr(clock, "now", now)


def test_a_worker_over_its_memory_is_told_in_whichever_order_it_is_heard() -> None:
    for order in permutations((Scheduler.over_memory, lambda world, address: world.remove(address, "grow-1"))):
        scheduler = Scheduler()
        told = setup(scheduler)
        address = scheduler.add("ab12")
        for step in order:
            step(scheduler, address)
        (trouble,) = report(scheduler, told)["troubles"]
        assert (trouble["worker"], trouble["over_memory"], trouble["run_again"]) == ("ab12", True, 1)
        assert (trouble["memory_bytes"], trouble["limit_bytes"]) == (590 * MIB, 600 * MIB)
        assert report(scheduler, told)["troubles"] == []


def test_what_is_known_later_is_told_again(scheduler: Scheduler, news: Callable[[], list[dict[str, Any]]]) -> None:
    address, other = scheduler.add("ab12"), scheduler.add("cd34")
    scheduler.remove(address)
    scheduler.remove(other)
    first, second = news()
    assert (first["over_memory"], first["memory_bytes"]) == (False, 500 * MIB)
    scheduler.over_memory(address)
    (again,) = news()
    assert again["number"] == first["number"] and again["over_memory"]
    assert second["number"] == first["number"] + 1


def test_what_ends_as_it_was_told_to_is_no_trouble(
    scheduler: Scheduler, news: Callable[[], list[dict[str, Any]]]
) -> None:
    retired, closed, stays = (scheduler.add(name) for name in ("retired", "closed", "stays"))
    scheduler.remove(retired, "task", expected=True)
    scheduler.turn(closed, "closing")
    scheduler.remove(closed, "task")
    assert news() == []
    # A retirement that came to nothing is over.
    scheduler.turn(stays, "closing_gracefully")
    scheduler.turn(stays, "running")
    scheduler.remove(stays)
    assert [trouble["worker"] for trouble in news()] == ["stays"]


def test_a_worker_that_is_slow_to_end_for_a_restart_is_no_trouble(
    scheduler: Scheduler, news: Callable[[], list[dict[str, Any]]]
) -> None:
    slow, other, greedy = (scheduler.add(name) for name in ("slow", "other", "greedy"))
    scheduler.over_memory(greedy)
    for address in (slow, other, greedy):
        scheduler.remove(address)
    assert [trouble["kind"] for trouble in news()] == ["died"] * 3
    scheduler.log("all", action="restart-workers", workers=[slow, greedy])
    assert [(trouble["kind"], trouble["worker"]) for trouble in news()] == [("meant", "slow")]


def test_a_task_that_is_given_up_is_told_with_every_worker_that_died_over_it(
    scheduler: Scheduler, news: Callable[[], list[dict[str, Any]]]
) -> None:
    for name in ("ab12", "cd34", "ab12", "cd34"):
        address = scheduler.add(name)
        if name == "ab12":
            scheduler.over_memory(address)
        scheduler.remove(address, "grow-1", "grow-2", "sum-1", **{"lost-computed-tasks": {"load-1"}})
    troubles = news()
    assert [trouble["run_again"] for trouble in troubles] == [1, 1, 1, 1], "what failed does not"
    # Those for memory and the others are counted apart.
    assert [trouble["nth"] for trouble in troubles] == [1, 1, 2, 2]
    assert [trouble["nth_of_worker"] for trouble in troubles] == [1, 1, 2, 2]
    assert [trouble["given_up"] for trouble in troubles[:-1]] == [[], [], []]
    workers = ["ab12", "cd34", "ab12", "cd34"]
    assert sorted(troubles[-1]["given_up"], key=lambda each: str(each["key"])) == [
        {"key": "grow-1", "n": 2, "total": 2, "workers": workers, "over_memory": 2},
        {"key": "sum-1", "n": 1, "total": 1, "workers": workers, "over_memory": 2},
    ]


def test_a_task_that_failed_does_not_run_again_whatever_was_told_before(
    scheduler: Scheduler, news: Callable[[], list[dict[str, Any]]]
) -> None:
    for name in ("ab12", "cd34", "ef56"):
        scheduler.remove(scheduler.add(name), "grow-1", *["load-1"] * (name == "cd34"))
    scheduler.remove(scheduler.add("other"), "sum-1")
    assert [trouble["run_again"] for trouble in news()] == [1, 2, 1, 1]
    scheduler.remove(scheduler.add("ab12"), "grow-1")
    told = [(trouble["worker"], trouble["run_again"]) for trouble in news()]
    assert told == [("ab12", 0), ("cd34", 1), ("ef56", 0), ("ab12", 0)]


def test_a_task_that_is_run_again_and_fails_again_is_counted_afresh(
    scheduler: Scheduler, news: Callable[[], list[dict[str, Any]]], at: Callable[[float], None]
) -> None:
    for run in range(3):
        at(20.0 * run)
        scheduler.submit()
        for _ in range(4):
            scheduler.remove(scheduler.add("ab12"), "grow-1")
    failed = [each for trouble in news() for each in trouble["given_up"]]
    assert [(each["total"], each["workers"]) for each in failed] == [(1, ["ab12"] * 4)] * 3


def test_the_tasks_of_one_map_are_counted_together_however_long_it_takes(
    scheduler: Scheduler, news: Callable[[], list[dict[str, Any]]], at: Callable[[float], None]
) -> None:
    scheduler.submit()
    for task in range(5):
        at(1.0 + 20.0 * task)
        for _ in range(4):
            scheduler.remove(scheduler.add("ab12"), f"grow-{task}")
    at(82.0)
    scheduler.submit()  # the next one of many that fail, one call each
    for _ in range(4):
        scheduler.remove(scheduler.add("ab12"), "grow-5")
    assert [each["total"] for trouble in news() for each in trouble["given_up"]] == [1, 2, 3, 4, 5, 6]


def test_scattered_data_that_only_one_worker_had_is_named(
    scheduler: Scheduler, news: Callable[[], list[dict[str, Any]]]
) -> None:
    scheduler.remove(scheduler.add("ab12"), **{"lost-scattered-tasks": {"table", "index"}})
    assert [(trouble["lost"], trouble["n_lost"]) for trouble in news()] == [("index", 2)]


def test_a_worker_is_paused_once_it_has_been_for_a_while(
    scheduler: Scheduler, news: Callable[[], list[dict[str, Any]]], at: Callable[[float], None]
) -> None:
    address = scheduler.add("ab12")
    scheduler.turn(address, "paused")
    at(1.0)
    scheduler.turn(address, "running")
    at(3.0)
    assert news() == []
    scheduler.turn(address, "paused")
    scheduler.workers[address].metrics["managed_bytes"] = 400 * MIB
    assert news() == []
    at(5.5)
    (trouble,) = news()
    assert (trouble["kind"], trouble["worker"], trouble["nth_of_worker"]) == ("paused", "ab12", 1)
    at(60.0)
    assert news() == []


def test_a_paused_worker_that_nothing_can_free_is_stuck(
    scheduler: Scheduler, news: Callable[[], list[dict[str, Any]]], at: Callable[[float], None]
) -> None:
    address, spills = scheduler.add("ab12"), scheduler.add("cd34")
    metrics, of_data = scheduler.workers[address].metrics, scheduler.workers[spills].metrics
    metrics["task_counts"] = {"executing": 1}
    of_data["managed_bytes"] = 400 * MIB
    for each in (address, spills):
        scheduler.turn(each, "paused")
    at(2.5)
    assert [(trouble["kind"], trouble["worker"]) for trouble in news()] == [("paused", "ab12"), ("paused", "cd34")]
    metrics["task_counts"] = {}
    (trouble,) = news()
    assert (trouble["kind"], trouble["worker"], trouble["unmanaged_bytes"]) == ("stuck", "ab12", 500 * MIB)
    metrics["task_counts"] = {"executing": 1}
    assert news() == []


def test_a_worker_with_less_disk_than_memory_is_cramped(scheduler: Scheduler, news: Any) -> None:
    news()
    scheduler.add("ab12", session_memory=2000 * MIB, scratch_bytes=1500 * MIB)
    scheduler.add("cd34", session_memory=2000 * MIB, scratch_bytes=3000 * MIB)
    (trouble,) = news()
    assert (trouble["kind"], trouble["worker"], trouble["scratch_bytes"]) == ("cramped", "ab12", 1500 * MIB)
    scheduler.plugins.clear()
    (trouble,) = setup_news(scheduler)  # it came before the first kernel asked
    assert (trouble["kind"], trouble["worker"]) == ("cramped", "ab12")


def setup_news(scheduler: Scheduler) -> list[dict[str, Any]]:
    setup(scheduler)
    troubles: list[dict[str, Any]] = scheduler.plugins[PLUGIN].news(0)[0]
    return troubles


def test_a_worker_that_spills_while_the_others_have_room_is_crowded(
    scheduler: Scheduler, news: Callable[[], list[dict[str, Any]]], at: Callable[[float], None]
) -> None:
    metrics = [scheduler.workers[scheduler.add(name)].metrics for name in ("ab12", "cd34", "ef56")]
    for each, managed in zip(metrics, (1200 * MIB, 100 * MIB, 0), strict=True):
        each["managed_bytes"] = managed
    assert news() == []
    at(5.0)
    assert news() == []  # it does not spill
    metrics[0]["spilled_bytes"] = {"memory": 700 * MIB, "disk": 700 * MIB}
    assert news() == []
    at(7.0)
    (trouble,) = news()
    assert (trouble["kind"], trouble["worker"]) == ("crowded", "ab12")
    assert (trouble["managed_bytes"], trouble["others_bytes"]) == (1200 * MIB, 50 * MIB)
    at(70.0)
    assert news() == []
    metrics[1]["managed_bytes"] = metrics[2]["managed_bytes"] = 1000 * MIB  # all are full
    at(80.0)
    assert news() == []


def test_troubles_are_counted_afresh_after_a_quiet_time(
    scheduler: Scheduler, news: Callable[[], list[dict[str, Any]]], at: Callable[[float], None]
) -> None:
    for now in (0.0, 500.0, 1000.0, 2000.0):
        at(now)
        scheduler.remove(scheduler.add("ab12"))
    assert [(trouble["nth"], trouble["nth_of_worker"]) for trouble in news()] == [(1, 1), (2, 2), (3, 3), (1, 1)]


def test_what_is_kept_has_a_bound(scheduler: Scheduler, news: Callable[[], list[dict[str, Any]]]) -> None:
    for number in range(3000):
        scheduler.remove(scheduler.add(f"worker{number}"), f"t{number:03}-{number}")
    assert [trouble["number"] for trouble in news()] == list(range(2901, 3001))
    plugin = scheduler.plugins[PLUGIN]
    assert (
        not plugin._workers
        and not plugin._over_memory
        and not plugin._closing
        and not plugin._paused
        and not plugin._said
    )


def test_events_of_users_are_none_of_ours(scheduler: Scheduler, news: Callable[[], list[dict[str, Any]]]) -> None:
    scheduler.add("ab12")
    plugin = scheduler.plugins[PLUGIN]
    for event in ("words", 1, None, {"action": ["no", "word"]}, {"action": "worker-status-change"}):
        plugin.log_event("mine", event)
    assert news() == []


def test_a_second_feed_hears_all_and_the_first_one_only_what_is_new(
    scheduler: Scheduler, news: Callable[[], list[dict[str, Any]]]
) -> None:
    scheduler.remove(scheduler.add("ab12"))
    assert len(news()) == 1
    later = setup(scheduler)
    assert list(scheduler.plugins) == [PLUGIN]
    scheduler.remove(scheduler.add("cd34"))
    assert len(news()) == 1
    assert len(report(scheduler, later)["troubles"]) == 2


def test_it_runs_where_this_package_is_not_installed(tmp_path: Path) -> None:
    sent = tmp_path / "setup", tmp_path / "report"
    for path, function in zip(sent, (setup, report), strict=True):
        path.write_bytes(as_sent(function))
    code = (
        "import pathlib, pickle, sys; sys.modules['cml_dask_magics'] = None; "
        "setup, report = (pickle.loads(pathlib.Path(path).read_bytes()) for path in sys.argv[1:]); "
        "from distributed import Scheduler; scheduler = Scheduler(dashboard=False); told = setup(scheduler); "
        "assert report(scheduler, told)['troubles'] == []; print(*scheduler.plugins)"
    )
    ran = subprocess.run([sys.executable, "-c", code, *sent], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert ran.returncode == 0, ran.stderr
    assert PLUGIN in ran.stdout


def test_a_feed_tells_what_changed_in_columns_of_numbers(scheduler: Scheduler) -> None:
    told = setup(scheduler)
    addresses = [scheduler.add(name) for name in ("ab12", "cd34")]
    first = report(scheduler, told)
    assert first["new"] == [(1, addresses[0], "ab12", 1, 600 * MIB, 0), (2, addresses[1], "cd34", 1, 600 * MIB, 0)]
    assert first["figures"] == ([1, 2], [0, 0], [500, 500], [0, 0], [0, 0], [False, False])
    assert not any(report(scheduler, told)["figures"])
    scheduler.workers[addresses[1]].metrics = {"cpu": 99.6, "memory": 7 * MIB + 1, "task_counts": {"executing": 3}}
    changed = report(scheduler, told)
    assert changed["new"] == [] and changed["figures"] == ([2], [100], [7], [0], [3], [False])
    # What stays the same of most workers may change of one: it is told as a new one.
    scheduler.workers[addresses[0]].nthreads = 4
    again = report(scheduler, told)
    assert again["new"] == [(3, addresses[0], "ab12", 4, 600 * MIB, 0)] and again["figures"][0] == [3]
    scheduler.remove(addresses[0])
    assert report(scheduler, told)["gone"] == [addresses[0]]
    assert report(scheduler, told)["gone"] == []
