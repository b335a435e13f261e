"""How long until workers take tasks: the sequential way of Cloudera's Dask example against ``%dask_up``.

Both run in the simulated workspace, turn by turn. The figures are medians, and the ratio is what counts:

    python benchmarks/start.py --workers 4 --start-delay 14 --rounds 1
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from workspace import Workspace
from workspace.kernel import Kernel

# One after the other: launch the scheduler, wait for it, ask for its address, launch the workers, wait for them.
SEQUENTIAL = """
import os, sys
from cml import workers_v1 as workers
from distributed import Client

dask = f"!{sys.executable} -m dask"
first = workers.launch_workers(
    n=1, cpu=1, memory=2, code=dask + " scheduler --host 0.0.0.0 --dashboard-address 127.0.0.1:8090"
)
ids = [session["id"] for session in first]
workers.await_workers(ids, wait_for_completion=False, timeout_seconds=120)
address = next(session["ip_address"] for session in workers.list_workers() if session["id"] == ids[0])
more = workers.launch_workers(n=WORKERS, cpu=1, memory=2, code=dask + " worker " + f"tcp://{address}:8786 --nthreads 1")
workers.await_workers([session["id"] for session in more], wait_for_completion=False, timeout_seconds=120)
client = Client(f"tcp://{address}:8786")
client.wait_for_workers(WORKERS)
assert sum(client.gather(client.map(lambda i: i, range(WORKERS)))) == sum(range(WORKERS))
"""
SEQUENTIAL_DOWN = """
client.close()
stopped = workers.stop_workers(*ids, *[session["id"] for session in more])
"""
MAGIC = """
%load_ext cml_dask_magics
%dask_up WORKERS
assert sum(client.gather(client.map(lambda i: i, range(WORKERS)))) == sum(range(WORKERS))
"""


def timed(kernel: Kernel, code: str) -> float:
    """Seconds that a cell takes."""
    began = time.monotonic()
    run = kernel.run(code, timeout=600)
    took_s = time.monotonic() - began
    if run.error is not None:
        raise SystemExit(f"{run.error}\n{run.stdout}\n{run.stderr}")
    return took_s


def main() -> None:
    """Measure both ways in turn and print the medians and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--start-delay", type=float, default=14.0, help="seconds that a session takes to start")
    parser.add_argument("--rounds", type=int, default=1)
    options = parser.parse_args()
    sequential_s, magic_s = [], []
    with Workspace(start_delay_s=options.start_delay, start_jitter=0.0) as workspace:
        session = workspace.open_session()
        for _ in range(options.rounds):
            # A fresh kernel each: neither finds the other's imports done.
            for times_s, up, down in (
                (sequential_s, SEQUENTIAL, SEQUENTIAL_DOWN),
                (magic_s, MAGIC, "%dask_down"),
            ):
                kernel = session.kernel()
                times_s.append(timed(kernel, up.replace("WORKERS", str(options.workers))))
                timed(kernel, down)
                kernel.shutdown()
                workspace.wait_until(lambda: not workspace.alive())
        print(f"{workspace.isolation}, sessions that take {options.start_delay:g} s, {options.workers} workers")
    ratios = [magic / sequential for magic, sequential in zip(magic_s, sequential_s, strict=True)]
    print(f"sequential  median {statistics.median(sequential_s):6.1f} s")
    print(f"%dask_up    median {statistics.median(magic_s):6.1f} s")
    print(f"ratio       median {statistics.median(ratios):6.2f}")


if __name__ == "__main__":
    main()
