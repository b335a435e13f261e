"""``kill -9`` of the kernel at random moments: the next kernel's ``%dask_down --all`` leaves nothing.

A few by default; by hand, a hundred: ``KILLS=100 pytest tests/faults/test_killed.py -s``.
"""

from __future__ import annotations

import collections
import os
import random
import time

import pytest
from support.faulty import Faulty
from support.state_folder import private

pytestmark = [pytest.mark.long, pytest.mark.workspace]

KILLS = int(os.environ.get("KILLS", "3"))
SEED = int(os.environ.get("SEED", str(random.randrange(10**6))))
# What the kernel is killed in, what has to be there first, and for how many seconds it goes on at most.
DEEDS = {
    "up": ("", "%dask_up 2", 5.0),
    "scale up": ("%dask_up 1", "%dask_up 3", 4.0),
    "scale down": ("%dask_up 3", "%dask_up 1", 2.0),
    "down": ("%dask_up 2", "%dask_down", 2.0),
}


@pytest.mark.timeout(120 + 60 * KILLS)
def test_killed_at_random_moments(notebook: Faulty) -> None:
    """Zero left, each time."""
    chance = random.Random(SEED)
    killed: collections.Counter[str] = collections.Counter()
    for number in range(KILLS):
        deed = chance.choice(list(DEEDS))
        first, then, lasts_s = DEEDS[deed]
        after_s = chance.uniform(0.0, lasts_s)
        if first:
            notebook.run(first)
        notebook.kernel.run_nowait(then)
        time.sleep(after_s)
        notebook.kernel.kill()
        killed[deed] += 1
        notebook.new_kernel()
        notebook.run("%dask_down --all")
        # What had not begun to run when its kernel died finds its cluster gone when it does.
        notebook.workspace.wait_until(lambda: not notebook.living(), timeout=60)
        assert not list(private(notebook.state).glob("clusters/*")), (
            f"kill {number} (seed {SEED}): {deed} after {after_s:.2f} s"
        )
    print(f"\nseed {SEED}: {KILLS} kills ({dict(killed)}), and nothing left")
