"""How long until workers take tasks: ``%dask_up`` beside Cloudera's Dask example and beside bare Dask processes.

All run in the simulated workspace, turn by turn. ``sequential`` is the way of Cloudera's example: one thing after the
other. ``bare`` launches all sessions at once, and they find each other by a scheduler file: no TLS, no record of what
was launched, no panel, and no pages of each worker's own, which ours do not serve either. The figures are medians, and
the ratios are what counts; that to ``bare`` is of what each takes besides the start of a session, which both wait for:

    python benchmarks/start.py --workers 4 --start-delay 14 --rounds 3
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from figures import Figure, show
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
# The empty file keeps the shared home from going on to say that there is none, as network file systems do. Dask is
# imported while the sessions start.
BARE = """
import sys, time
from pathlib import Path
from cml import workers_v1 as workers

file = Path.home() / f"scheduler-{time.time_ns()}.json"
file.touch()
dask = f"!{sys.executable} -m dask"
first = workers.launch_workers(
    n=1, cpu=1, memory=2,
    code=dask + f" scheduler --scheduler-file {file} --host 0.0.0.0 --dashboard-address 127.0.0.1:8090",
)
ids = [session["id"] for session in first]
more = workers.launch_workers(
    n=WORKERS, cpu=1, memory=2, code=dask + f" worker --scheduler-file {file} --nthreads 1 --no-dashboard"
)
from distributed import Client

while not file.stat().st_size:
    time.sleep(0.05)
client = Client(scheduler_file=str(file))
client.wait_for_workers(WORKERS)
assert sum(client.gather(client.map(lambda i: i, range(WORKERS)))) == sum(range(WORKERS))
"""
BARE_DOWN = """
client.close()
stopped = workers.stop_workers(*ids, *[session["id"] for session in more])
"""
MAGIC = """
%load_ext cml_dask_magics
%dask_up WORKERS
assert sum(client.gather(client.map(lambda i: i, range(WORKERS)))) == sum(range(WORKERS))
"""
WAYS = {"sequential": (SEQUENTIAL, BARE_DOWN), "bare": (BARE, BARE_DOWN), "%dask_up": (MAGIC, "%dask_down")}


def timed(kernel: Kernel, code: str) -> float:
    """Seconds that a cell takes."""
    began = time.monotonic()
    run = kernel.run(code, timeout=600)
    took_s = time.monotonic() - began
    if run.error is not None:
        raise SystemExit(f"{run.error}\n{run.stdout}\n{run.stderr}")
    return took_s


def rows(
    workers: int = 4, start_delay_s: float = 14.0, rounds: int = 3, ways: tuple[str, ...] = tuple(WAYS)
) -> list[Figure]:
    """Measure each way in turn."""
    took_s: dict[str, list[float]] = {way: [] for way in ways}
    with Workspace(start_delay_s=start_delay_s, start_jitter=0.0) as workspace:
        session = workspace.open_session()
        for _ in range(rounds):
            for way in ways:
                up, down = WAYS[way]
                kernel = session.kernel()  # a fresh one: none finds another's imports done
                took_s[way].append(timed(kernel, up.replace("WORKERS", str(workers))))
                timed(kernel, down)
                kernel.shutdown()
                workspace.wait_until(lambda: not workspace.alive())
    measured = [Figure(f"{way}, {workers} workers", statistics.median(times_s), "s") for way, times_s in took_s.items()]
    ours_s = took_s["%dask_up"]
    if "sequential" in took_s:
        ratios = [ours / theirs for ours, theirs in zip(ours_s, took_s["sequential"], strict=True)]
        measured.append(Figure("%dask_up / sequential", statistics.median(ratios)))
    if "bare" in took_s:
        ratios = [
            (ours - start_delay_s) / (theirs - start_delay_s)
            for ours, theirs in zip(ours_s, took_s["bare"], strict=True)
        ]
        measured.append(Figure("%dask_up / bare, above one session start", statistics.median(ratios), at_most=1.10))
    return measured


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--start-delay", type=float, default=14.0, help="seconds that a session takes to start")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    options = parser.parse_args()
    ways = tuple({**dict.fromkeys(options.ways), "%dask_up": None})
    print(f"sessions that take {options.start_delay:g} s to start")
    show(rows(options.workers, options.start_delay, options.rounds, ways))


if __name__ == "__main__":
    main()
