"""What ``%load_ext cml_dask_magics`` adds to a shell's start, beside what importing Dask would.

python benchmarks/load.py --rounds 11
"""

from __future__ import annotations

import statistics
import subprocess
import sys

from figures import Figure, measure_and_show

CODE = """
import time
from IPython.core.interactiveshell import InteractiveShell
shell = InteractiveShell.instance()
began = time.perf_counter()
shell.run_cell({cell!r})
print(1000 * (time.perf_counter() - began))
"""


def measured_ms(cell: str) -> float:
    """Milliseconds that a cell takes in a fresh interpreter."""
    code = CODE.format(cell=cell)
    return float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)


def rows(rounds: int = 11) -> list[Figure]:
    """Loading and importing Dask in turn, each round in fresh interpreters."""
    load_ms, dask_ms = [], []
    for _ in range(rounds + 1):  # the first one compiles and warms the caches
        load_ms.append(measured_ms("%load_ext cml_dask_magics"))
        dask_ms.append(measured_ms("import distributed"))
    load, dask = statistics.median(load_ms[1:]), statistics.median(dask_ms[1:])
    return [
        Figure("%load_ext cml_dask_magics", load, "ms"),
        Figure("import distributed", dask, "ms"),
        Figure("%load_ext / import distributed", load / dask, at_most=0.15),
    ]


if __name__ == "__main__":
    measure_and_show(rows, 11, __doc__)
