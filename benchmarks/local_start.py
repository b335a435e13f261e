"""How long until 2 workers of this machine take tasks: ``%dask_up 2 --local`` beside Dask's own two ways.

Each in a fresh IPython, turn by turn, from before the import of Dask to the first result:

    python benchmarks/local_start.py --rounds 5
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile

from figures import Figure, measure_and_show

LOCAL = """
from distributed import Client, LocalCluster

cluster = LocalCluster(n_workers=2, threads_per_worker=1)
client = Client(cluster)
client.wait_for_workers(2)
"""
SUBPROCESS = """
from distributed import Client
from distributed.deploy.subprocess import SubprocessCluster

cluster = SubprocessCluster(n_workers=2, threads_per_worker=1)
client = Client(cluster)
client.wait_for_workers(2)
"""
MAGIC = """
%load_ext cml_dask_magics
%dask_up 2 --local
"""
CLOSE = "client.close()\ncluster.close()\n"
WAYS = {
    "LocalCluster(2)": (LOCAL, CLOSE),
    "SubprocessCluster(2)": (SUBPROCESS, CLOSE),
    "%dask_up 2 --local": (MAGIC, "%dask_down"),
}
PROGRAM = """
import sys, time
from IPython.core.interactiveshell import InteractiveShell

if __name__ == "__main__":
    shell = InteractiveShell.instance()
    began = time.monotonic()
    result = shell.run_cell({up!r})
    result.raise_error()
    assert shell.user_ns["client"].submit(sum, [1, 2]).result() == 3
    took_s = time.monotonic() - began
    shell.run_cell({down!r}).raise_error()
    print("took", took_s)
"""


def timed(up: str, down: str, folder: str) -> float:
    """Seconds that a cell takes in a fresh interpreter, with a state folder of its own."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(up=up, down=down)],
        env={**os.environ, "DASK_CML_DASK_MAGICS__STATE_DIRECTORY": folder, "IPYTHONDIR": folder},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise SystemExit(done.stdout + done.stderr)
    return float(done.stdout.split()[-1])


def rows(rounds: int = 5) -> list[Figure]:
    """Measure each way in turn."""
    took_s: dict[str, list[float]] = {way: [] for way in WAYS}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(rounds):
            for way, cells in WAYS.items():
                took_s[way].append(timed(*cells, folder))
    ours_s = took_s["%dask_up 2 --local"]
    measured = [Figure(way, statistics.median(times_s), "s") for way, times_s in took_s.items()]
    for way, goal in (("SubprocessCluster(2)", 0.80), ("LocalCluster(2)", None)):
        ratios = [ours / theirs for ours, theirs in zip(ours_s, took_s[way], strict=True)]
        measured.append(Figure(f"%dask_up 2 --local / {way}", statistics.median(ratios), at_most=goal))
    return measured


if __name__ == "__main__":
    measure_and_show(rows, 5, __doc__)
