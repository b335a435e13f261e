"""What is written of troubles into a cluster's record: once, with what the platform says of the session."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
from support.memory_platform import Workspace

from cml_dask_magics.cluster.snapshot import snapshot
from cml_dask_magics.fleet.fleet import Fleet
from cml_dask_magics.fleet.troubles import Troubles
from cml_dask_magics.model.record import Owner, Record
from cml_dask_magics.model.settings import make_settings
from cml_dask_magics.model.status import WorkerFigures
from cml_dask_magics.model.times import Times
from cml_dask_magics.model.trouble import SHOWN_S, GivenUp, Trouble
from cml_dask_magics.platforms.api import Platform
from cml_dask_magics.platforms.pool import SessionPool
from cml_dask_magics.registry.registry import Registry

MINE = "kernelsession"
MIB = 2**20
HELPS = "give workers more memory (--memory) or smaller pieces"


@pytest.fixture
def workspace() -> Workspace:
    return Workspace()


@pytest.fixture
def make_fleet(workspace: Workspace, tmp_path: Path) -> Callable[[], Fleet]:
    """A cluster with two workers, as one more kernel of the same session holds it."""
    registry = Registry(tmp_path / "state")
    settings = replace(make_settings(name="default"), state_directory=registry.state_directory, local=False)
    times = Times(missing_s=0.3, unclear_s=0.2, back_s=0.0)

    def make() -> Fleet:
        record = registry.read("default")
        if record is None:
            record = Record("default", "0000aaaa", "cml", time.time(), Owner(MINE, "here", 1), {}, 2)
            registry.claim(record)
        pool = SessionPool(Platform("cml", workspace.caller(MINE), session=MINE), times)
        return Fleet(registry, pool, record, settings, times)

    return make


@pytest.fixture
def fleet(make_fleet: Callable[[], Fleet]) -> Fleet:
    fleet = make_fleet()
    fleet.launches.launch("scheduler", 1)
    fleet.launches.launch("worker", 2)
    fleet.journal.update(lambda record: replace(record, state="running"))
    return fleet


@pytest.fixture
def worker(fleet: Fleet) -> str:
    return sorted(fleet.plan)[0]


@pytest.fixture
def died(worker: str) -> Trouble:
    """The first worker died, and nobody knows how yet."""
    return Trouble(1, "died", time.time(), worker, 500 * MIB, 600 * MIB, 0, 0, 0, nth=1, nth_of_worker=1, run_again=3)


def events(fleet: Fleet) -> list[str]:
    return [message for _, message in fleet.record.events]


def see_end(fleet: Fleet, workspace: Workspace, session: str, status: str) -> None:
    """The platform ended a session, and a listing shows it."""
    workspace.set(status, session)
    fleet.observe(fleet.pool.listing())


def test_a_worker_that_its_nanny_restarted_is_told_once_by_all_kernels(
    fleet: Fleet, make_fleet: Callable[[], Fleet], died: Trouble, worker: str
) -> None:
    over = replace(died, over_memory=True)
    troubles = Troubles(fleet)
    for _ in range(3):
        troubles.write([over], set())
    other = make_fleet()
    Troubles(other).write([over], set())
    words = f"worker {worker} went over its 600 MiB and was restarted; 3 tasks run again: {HELPS}"
    assert events(fleet) == events(other) == [words]
    assert snapshot(fleet, "running", {}).trouble == words


def test_a_hundred_deaths_are_not_a_hundred_events(fleet: Fleet, died: Trouble, worker: str) -> None:
    troubles = Troubles(fleet)
    over = replace(died, over_memory=True)
    told = [replace(over, number=n, nth=n, nth_of_worker=n, run_again=n) for n in range(1, 101)]
    for n in range(1, 101):
        troubles.write(told[:n], set())
    assert [event.partition(":")[0] for event in events(fleet)] == [
        f"worker {worker} went over its 600 MiB and was restarted; 1 task runs again",
        "the 10th death of a worker by now",
        "the 100th death of a worker by now",
    ]
    assert "100 tasks run again" in snapshot(fleet, "running", {}).trouble


def test_the_same_is_said_again_when_the_first_time_is_long_ago(fleet: Fleet, died: Trouble) -> None:
    first = replace(died, at=died.at - SHOWN_S - 60, over_memory=True)
    Troubles(fleet).write([first], set())
    assert snapshot(fleet, "running", {}).trouble == ""
    Troubles(fleet).write([first, replace(first, number=2, at=died.at)], set())
    assert len(events(fleet)) == 2 and snapshot(fleet, "running", {}).trouble


def test_a_session_that_the_platform_ended_is_told_once_it_shows(
    fleet: Fleet, workspace: Workspace, died: Trouble, worker: str
) -> None:
    troubles = Troubles(fleet)
    troubles.write([died], set())
    assert events(fleet) == []
    see_end(fleet, workspace, worker, "failed")
    assert events(fleet) == [f"session {worker} (worker) ended: failed"]
    troubles.write([died], set())
    words = (
        f"session {worker} was ended by the platform (failed), as happens to one that goes over its memory; its "
        f"worker held 500 of 600 MiB when last heard; 3 tasks run again: {HELPS}"
    )
    assert events(fleet) == [words]


def test_the_workers_of_one_session_are_told_as_one(
    fleet: Fleet, workspace: Workspace, died: Trouble, worker: str
) -> None:
    see_end(fleet, workspace, worker, "failed")
    several = [replace(died, number=n, nth=n, worker=f"{worker}-{n}", run_again=n) for n in (1, 2, 3)]
    Troubles(fleet).write(several, set())
    assert len(events(fleet)) == 1


def test_a_worker_that_comes_back_without_a_word_died(fleet: Fleet, died: Trouble, worker: str) -> None:
    Troubles(fleet).write([died], {worker})
    assert events(fleet)[0].startswith(
        f"worker {worker} died and was restarted; it held 500 of 600 MiB when last heard"
    )


def test_a_worker_that_was_restarted_on_purpose_is_no_trouble(fleet: Fleet, died: Trouble, worker: str) -> None:
    Troubles(fleet).write([replace(died, kind="meant")], {worker})
    assert events(fleet) == [] and fleet.record.trouble is None and fleet.record.troubles_written == 1


def test_a_worker_of_which_nothing_comes_to_be_known_is_told_in_the_end(
    fleet: Fleet, died: Trouble, worker: str
) -> None:
    troubles = Troubles(fleet)
    troubles.write([died], set())
    assert events(fleet) == []
    time.sleep(0.3)
    troubles.write([died], set())
    assert events(fleet)[0].startswith(f"worker {worker} is gone; it held 500 of 600 MiB")


def test_what_is_not_clear_yet_holds_up_nothing_and_is_not_forgotten(
    fleet: Fleet, make_fleet: Callable[[], Fleet], died: Trouble, worker: str
) -> None:
    other = sorted(fleet.plan)[1]
    over = replace(died, number=2, nth=2, worker=other, over_memory=True)
    Troubles(fleet).write([died, over], set())
    assert [event.split()[1] for event in events(fleet)] == [other]
    # Another kernel takes over before the first one is clear.
    heir = make_fleet()
    Troubles(heir).write([died, over], {worker, other})
    assert sorted(event.split()[1] for event in events(heir)) == sorted([worker, other])
    Troubles(make_fleet()).write([died, over], {worker, other})
    assert len(events(make_fleet())) == 2


def test_what_was_stopped_on_purpose_is_no_trouble(
    fleet: Fleet, workspace: Workspace, died: Trouble, worker: str
) -> None:
    fleet.withdraw([worker])
    Troubles(fleet).write([replace(died, over_memory=True)], set())
    fleet.stop([worker])
    Troubles(fleet).write([replace(died, number=2)], set())
    other = next(iter(fleet.plan))
    see_end(fleet, workspace, other, "stopped")  # in the platform's pages
    Troubles(fleet).write([replace(died, number=3, worker=other)], set())
    assert events(fleet) == [f"session {other} (worker) ended: stopped"]
    assert fleet.record.trouble is None


def test_a_task_that_was_given_up_is_told_with_the_deaths_over_it(
    fleet: Fleet, workspace: Workspace, died: Trouble, worker: str
) -> None:
    other = sorted(fleet.plan)[1]
    given_up = GivenUp("grow-12", 1, 1, (other, other, other, worker), over_memory=3)
    see_end(fleet, workspace, worker, "failed")
    Troubles(fleet).write([replace(died, given_up=(given_up,))], set())
    words = (
        "task 'grow-12' failed: 2 workers went over their memory (600 MiB) or were ended by the platform, 4 times in "
        f"all, while they ran it: {HELPS}"
    )
    assert len(events(fleet)) == 2 and events(fleet)[-1] == words == snapshot(fleet, "running", {}).trouble


def test_a_pause_is_shown_while_it_lasts(fleet: Fleet, died: Trouble, worker: str) -> None:
    Troubles(fleet).write([replace(died, kind="paused")], {worker})
    assert events(fleet)[0].startswith(f"worker {worker} is paused; it holds 500 of 600 MiB")
    figures = WorkerFigures("tcp://1.2.3.4:5", worker, 1, 600 * MIB, 0, 0.0, 500 * MIB, 0, 0, is_paused=True)
    status = snapshot(fleet, "running", {worker: [figures]})
    assert status.trouble == events(fleet)[0]
    assert [each.is_paused for each in status.workers if each.session == worker] == [True]
    well = msgspec.structs.replace(figures, is_paused=False)
    assert snapshot(fleet, "running", {worker: [well]}).trouble == ""


def test_one_more_of_what_was_said_hides_nothing_that_says_more(fleet: Fleet, died: Trouble, worker: str) -> None:
    troubles = Troubles(fleet)
    failed = GivenUp("grow-12", 1, 1, (worker,), over_memory=1)
    troubles.write([replace(died, over_memory=True, given_up=(failed,))], set())
    troubles.write([replace(died, number=2, nth=2, nth_of_worker=2, over_memory=True)], set())
    assert snapshot(fleet, "running", {}).trouble.startswith("task 'grow-12' failed")


@pytest.mark.parametrize("keys", [("grow-1", "grow-2", "grow-3"), ("grow-1", "grow-1", "grow-1")])
def test_a_task_that_is_run_again_and_fails_again_is_told_each_time(
    fleet: Fleet, died: Trouble, worker: str, keys: tuple[str, ...]
) -> None:
    troubles = Troubles(fleet)
    over = replace(died, over_memory=True, run_again=0, at=died.at - 100)
    told: list[Trouble] = []
    for run, key in enumerate(keys):
        for death in range(4 * run + 1, 4 * run + 5):
            failed = (GivenUp(key, 1, 1, (worker,) * 4, 4),) if death % 4 == 0 else ()
            told.append(
                replace(over, number=death, nth=death, nth_of_worker=death, at=over.at + death, given_up=failed)
            )
            troubles.write(told, set())
        assert snapshot(fleet, "running", {}).trouble.startswith(f"task {key!r} failed: 1 worker went over its memory")
        failures = [(at, event) for at, event in fleet.record.events if "failed" in event]
        assert [at for at, _ in failures] == [over.at + 4 * (each + 1) for each in range(run + 1)]
        assert f"task {key!r}" in failures[-1][1]


def test_of_the_tasks_of_a_map_that_fail_the_latest_is_shown_and_a_few_are_events(
    fleet: Fleet, died: Trouble, worker: str
) -> None:
    over = replace(died, over_memory=True, run_again=0)
    deaths = [
        replace(over, number=n, nth=n, nth_of_worker=n, given_up=(GivenUp(f"grow-{n}", 1, n, (worker,), 1),))
        for n in range(1, 100)
    ]
    Troubles(fleet).write(deaths, set())
    assert [event.partition(" failed")[0] for event in events(fleet) if " failed" in event] == [
        "task 'grow-1'",
        "task 'grow-10' and 9 more of its kind",
    ]
    assert snapshot(fleet, "running", {}).trouble.startswith("task 'grow-99' and 98 more of its kind failed")


def test_a_restart_does_not_hide_that_a_task_failed(fleet: Fleet, died: Trouble, worker: str) -> None:
    troubles = Troubles(fleet)
    other = sorted(fleet.plan)[1]
    failed = replace(
        died, number=2, at=died.at - 50, over_memory=True, given_up=(GivenUp("grow-12", 1, 1, (worker,), 1),)
    )
    troubles.write([replace(died, at=died.at - 51), failed], {worker})
    tenth = replace(died, number=3, nth=10, nth_of_worker=10, over_memory=True, at=died.at - 40)
    first_of_other = replace(died, number=4, worker=other, over_memory=True, at=died.at - 30)
    troubles.write([tenth, first_of_other], {worker})
    assert [event[:13] for event in events(fleet)[-2:]] == ["the 10th deat", f"worker {other}"[:13]]
    assert snapshot(fleet, "running", {}).trouble.startswith("task 'grow-12' failed")


def test_data_lost_with_a_worker_that_was_restarted_before_is_told_and_hides_a_failure(
    fleet: Fleet, died: Trouble, worker: str
) -> None:
    failed = replace(died, at=died.at - 50, over_memory=True, given_up=(GivenUp("grow-12", 1, 1, (worker,), 1),))
    lost = replace(died, number=2, over_memory=True, lost="table", n_lost=1)
    Troubles(fleet).write([failed, lost], {worker})
    assert "'table' that was scattered to it is lost for good" in events(fleet)[-1]
    assert snapshot(fleet, "running", {}).trouble == events(fleet)[-1]


def test_what_is_clear_late_does_not_hide_what_happened_after_it(fleet: Fleet, died: Trouble, worker: str) -> None:
    other = sorted(fleet.plan)[1]
    unclear = replace(died, at=died.at - 10)
    troubles = Troubles(fleet)
    troubles.write([unclear, replace(died, number=2, worker=other, over_memory=True)], set())
    shown = snapshot(fleet, "running", {}).trouble
    assert shown.startswith(f"worker {other} went over")
    troubles.write([unclear], {worker})
    assert len(events(fleet)) == 2 and events(fleet)[0].startswith(f"worker {worker} died")
    assert snapshot(fleet, "running", {}).trouble == shown
