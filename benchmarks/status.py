"""How long ``%dask_status`` takes in a notebook's kernel that holds 4 clusters of 4 workers each.

python benchmarks/status.py --rounds 15
"""

from __future__ import annotations

import os
import statistics
import subprocess
import tempfile
import time

from figures import Figure, measure_and_show
from jupyter_client.manager import start_new_kernel

CLUSTERS, WORKERS = 4, 4
WAYS = {"%dask_status": "", "%dask_status --text": "--text", "%dask_status --json": "--json"}


def rows(rounds: int = 15) -> list[Figure]:
    """Each way of showing them, turn by turn, until the kernel is idle again; the schedulers report in between."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ["DASK_CML_DASK_MAGICS__STATE_DIRECTORY"] = folder  # before the kernel starts
        manager, kernel = start_new_kernel(stderr=subprocess.DEVNULL)

        def run(cell: str) -> float:
            began = time.monotonic()
            reply = kernel.execute_interactive(cell, output_hook=lambda _message: None)
            assert reply["content"]["status"] == "ok", reply["content"]
            return 1000 * (time.monotonic() - began)

        took_ms: dict[str, list[float]] = {way: [] for way in WAYS}
        try:
            run("%load_ext cml_dask_magics")
            try:
                for number in range(CLUSTERS):
                    run(f"%dask_up {WORKERS} --local --memory 0.5 --name c{number}")
                for _ in range(rounds):
                    for way, options in WAYS.items():
                        time.sleep(0.5)
                        took_ms[way].append(run(f"%dask_status {options}"))
            finally:
                run("%dask_down --all")
        finally:
            kernel.stop_channels()
            manager.shutdown_kernel()
    of = f"of {CLUSTERS} clusters of {WORKERS} workers"
    return [Figure(f"{way} {of}", statistics.median(each), "ms", 100.0) for way, each in took_ms.items()]


if __name__ == "__main__":
    measure_and_show(rows, 15, __doc__)
