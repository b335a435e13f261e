"""How long ``%dask_status`` takes in a kernel that holds 4 clusters of 4 workers each.

python benchmarks/status.py --rounds 15
"""

from __future__ import annotations

import contextlib
import io
import os
import statistics
import tempfile
import time

from figures import Figure, measure_and_show

CLUSTERS, WORKERS = 4, 4
WAYS = {"%dask_status": "", "%dask_status --text": "--text", "%dask_status --json": "--json"}


def rows(rounds: int = 15) -> list[Figure]:
    """Each way of showing them, turn by turn, with a pause in which the schedulers report."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ["DASK_CML_DASK_MAGICS__STATE_DIRECTORY"] = folder  # before Dask reads it
        from IPython.core.interactiveshell import InteractiveShell

        shell = InteractiveShell.instance()
        took_ms: dict[str, list[float]] = {way: [] for way in WAYS}
        with contextlib.redirect_stdout(io.StringIO()):
            shell.run_line_magic("load_ext", "cml_dask_magics")
            try:
                for number in range(CLUSTERS):
                    shell.run_line_magic("dask_up", f"{WORKERS} --local --memory 0.5 --name c{number}")
                for _ in range(rounds):
                    for way, options in WAYS.items():
                        time.sleep(0.5)
                        began = time.monotonic()
                        shell.run_line_magic("dask_status", options)
                        took_ms[way].append(1000 * (time.monotonic() - began))
            finally:
                shell.run_line_magic("dask_down", "--all")
    of = f"of {CLUSTERS} clusters of {WORKERS} workers"
    return [Figure(f"{way} {of}", statistics.median(each), "ms", 100.0) for way, each in took_ms.items()]


if __name__ == "__main__":
    measure_and_show(rows, 15, __doc__)
