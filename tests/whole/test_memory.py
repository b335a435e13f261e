"""What sessions of the platform really have: memory that a greedy task cannot take from all, and several GPUs."""

from __future__ import annotations

import re

import pytest
from support.notebook import Notebook

from cml_dask_magics.model.words import format_bytes

pytestmark = pytest.mark.workspace

# Takes 1 GB a second until somebody ends it.
GREEDY = """
import distributed, time
def grow(*_):
    held, began = [], time.monotonic()
    while True:
        held.append(b"x" * 20_000_000)
        time.sleep(max(0.0, len(held) * 0.02 - (time.monotonic() - began)))
def slowly(number):
    time.sleep(0.2)
    return number
greedy = client.map(grow, range({n}), pure=False)
modest = client.map(slowly, range(60), pure=False)
distributed.wait(modest + greedy, timeout=150)
# Dask also gives up a task that only waited, on each of four workers, for a greedy one to be done.
done = [future.result() for future in modest if future.status == "finished"]
again = client.map(slowly, set(range(60)) - set(done), pure=False)
assert done and sum(done + client.gather(again)) == sum(range(60))
print({{future.status for future in greedy}}, {{type(future.exception()).__name__ for future in greedy}})
"""


@pytest.fixture
def limited(notebook: Notebook) -> Notebook:
    """A notebook whose sessions end if they take more memory than they have."""
    if not notebook.workspace.memory_limits:
        pytest.skip("memory can be limited only where control groups can be made")
    return notebook


def launches(notebook: Notebook) -> int:
    """How many sessions were asked for from here."""
    return sum(call.caller == notebook.session.id and not call.message for call in notebook.workspace.calls("launch"))


def limit_of(notebook: Notebook) -> int:
    """What each Dask worker may use, in bytes."""
    return int(notebook.status()["workers"][0]["workers"][0]["memory_limit_bytes"])


def sessions_of(notebook: Notebook) -> set[str]:
    return {worker["session"] for worker in notebook.status()["workers"]}


@pytest.mark.parametrize(
    ("options", "greedy"),
    [
        ("2 --memory 1", 1),
        pytest.param("2 --memory 2", 1, marks=pytest.mark.long),
        pytest.param("1 --memory 2 --processes 4", 4, marks=pytest.mark.long),
    ],
)
def test_a_task_that_grows_by_a_gigabyte_a_second_costs_a_worker_and_no_session(
    limited: Notebook, options: str, greedy: int
) -> None:
    limited.run(f"%dask_up {options}")
    before, launched = sessions_of(limited), launches(limited)
    # It is tried again on other workers until Dask gives it up.
    assert "{'error'} {'KilledWorker'}" in limited.run(GREEDY.format(n=greedy), timeout=200)
    assert sessions_of(limited) == before and launches(limited) == launched
    events = [event["message"] for event in limited.status()["events"]]
    assert not any("ended" in event for event in events), events
    assert any("went over its" in event and "(--memory)" in event for event in events), events
    # Where a person looks who does not read the events.
    limit = re.escape(f"({format_bytes(limit_of(limited))})")
    gave_up = rf"failed: \d workers? went over (its|their) memory {limit} (4 times )?while (it|they) ran it"
    assert re.search(gave_up, " ".join(limited.run("%dask_status --text").split()))
    assert re.search(gave_up, " ".join(limited.kernel.run("cluster").text.split()))


def test_workers_are_told_of_the_memory_that_their_session_has(limited: Notebook) -> None:
    limited.run("%dask_up 1 --memory 4")
    (worker,) = limited.status()["workers"]
    truth = limited.workspace.session(worker["session"])
    assert truth.memory_limit < 3.91 * 10**9
    assert 3.3 * 10**9 < worker["memory_limit_bytes"] < truth.memory_limit - 0.25 * 2**30
    told = "client.run(lambda dask_worker: dask_worker.memory_manager.memory_limit)"
    assert f": {worker['memory_limit_bytes']}}}" in limited.run(f"print({told})")
    on_record = "print(*[s.real_memory_gib for s in cluster._fleet.record.sessions if s.role == 'worker'])"
    limited.workspace.wait_until(lambda: limited.run(on_record).strip() != "None", timeout=30, interval=0.3)
    assert float(limited.run(on_record)) == pytest.approx(truth.memory_limit / 2**30), "the usage counts what it has"


@pytest.mark.long
def test_each_gpu_of_a_session_has_a_worker_of_its_own(notebook: Notebook) -> None:
    notebook.run("%dask_up 2 --gpu 4 --cpu 4 --memory 4")
    launched = launches(notebook)
    before = notebook.status()["workers"]
    assert len(notebook.workspace.alive()) == 3 and len(before) == 2
    assert [len(worker["workers"]) for worker in before] == [4, 4]
    seen = "sorted(client.run(lambda: __import__('os').environ['CUDA_VISIBLE_DEVICES']).values())"
    assert notebook.run(f"print({seen})").strip() == str(sorted("01230123"))
    assert "2 of 2 sessions, 8 workers" in notebook.run("%dask_status --text")

    lost, stays = (worker["session"] for worker in before)
    notebook.workspace.end_session(lost, "failed")

    def healed() -> bool:
        sessions = {worker["session"]: worker for worker in notebook.status()["workers"]}
        return len(sessions) == 2 and lost not in sessions and all(s["state"] == "running" for s in sessions.values())

    notebook.workspace.wait_until(healed, timeout=90, interval=0.3)
    assert stays in sessions_of(notebook)
    assert notebook.run(f"print({seen})").strip() == str(sorted("01230123"))
    assert launches(notebook) == launched + 1, "one request for four workers"
