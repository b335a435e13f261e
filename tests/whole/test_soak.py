"""A cluster at work while its workers are killed one after the other and listings fail: right results, and no leak.

A minute by default; by hand, for half an hour: ``SOAK_S=1800 pytest tests/whole/test_soak.py -s``.
"""

from __future__ import annotations

import json
import os
import random
import time

import pytest
from support.notebook import Notebook

pytestmark = [pytest.mark.dask, pytest.mark.long, pytest.mark.workspace]

SOAK_S = float(os.environ.get("SOAK_S", "60"))
KILL_EVERY_S = 20.0
WORK = """
import random, time
def work(i):
    time.sleep(0.02)
    return i * i
ends, rounds, wrong = time.monotonic() + {seconds}, 0, 0
while time.monotonic() < ends:
    offset = rounds * 1000
    futures = client.map(work, range(offset, offset + 200))
    total = client.submit(sum, futures).result(timeout=180)
    wrong += total != sum(i * i for i in range(offset, offset + 200))
    rounds += 1
print(rounds, wrong)
"""
LOOK = """
import gc, json, os, psutil, threading
gc.collect()
print(json.dumps({"rss": psutil.Process().memory_info().rss, "threads": threading.active_count(),
                  "files": len(os.listdir("/proc/self/fd")), "plan": len(cluster.plan)}))
"""


@pytest.mark.timeout(SOAK_S * 1.5 + 240)
def test_workers_die_and_listings_fail_while_a_computation_goes_on(notebook: Notebook) -> None:
    workspace, kernel = notebook.workspace, notebook.kernel
    before = len(workspace.calls("launch"))
    notebook.run("%dask_up 3")
    workspace.fault("list_reset", every=10)
    killed: set[str] = set()
    looks = []
    began = time.monotonic()
    legs = max(2, round(SOAK_S / (3 * KILL_EVERY_S)))
    rounds = 0
    for _ in range(legs):
        run = kernel.run_nowait(WORK.format(seconds=SOAK_S / legs))
        deadline = time.monotonic() + SOAK_S / legs
        while time.monotonic() < deadline:
            time.sleep(min(KILL_EVERY_S, max(0.1, deadline - time.monotonic())))
            workers = [s for s in workspace.alive() if s != scheduler_of(notebook) and s not in killed]
            if workers:
                killed.add(victim := random.choice(workers))
                workspace.end_session(victim, "failed")
        run = kernel.wait(run, 300)
        assert run.error is None, run.error
        done, wrong = map(int, run.stdout.split()[-2:])
        assert wrong == 0
        rounds += done
        looks.append(json.loads(notebook.run(LOOK)))
    workspace.clear_faults()
    workspace.wait_until(lambda: json.loads(notebook.run(LOOK))["plan"] == 3, timeout=60, interval=1)
    workspace.wait_until(lambda: len(workspace.alive()) == 4, timeout=60, interval=1)
    launched = len(workspace.calls("launch")) - before
    rss = [look["rss"] / 2**20 for look in looks]
    print(
        f"\n{time.monotonic() - began:.0f} s: {rounds} rounds of 200 tasks, all right; {len(killed)} workers killed; "
        f"{launched} launch requests; the kernel's memory {rss[0]:.0f} MiB at first, {rss[-1]:.0f} at "
        f"last ({' '.join(f'{each:.0f}' for each in rss)}); threads {looks[0]['threads']} -> {looks[-1]['threads']}; "
        f"open files {looks[0]['files']} -> {looks[-1]['files']}"
    )
    # A plain Dask client keeps some 0.12 MiB of each round of 200 tasks.
    assert rss[-1] < rss[0] + 0.15 * rounds + 15, "the kernel's memory grows"
    assert looks[-1]["threads"] <= looks[0]["threads"] + 2
    assert looks[-1]["files"] <= looks[0]["files"] + 8
    assert "Stopped cluster 'default': 4 sessions" in notebook.run("%dask_down")


def scheduler_of(notebook: Notebook) -> str:
    """The session of the scheduler, as the records in the person's home say."""
    (path,) = notebook.workspace.home.glob("**/scheduler.session")
    return path.read_text()
