"""What a step in the life of a cluster costs the kernel with 2,000 sessions, and how many times what it costs with 200.

python benchmarks/many.py --rounds 5

On a platform in memory, which answers at once: what is left is this package's work.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
from pathlib import Path

from figures import Figure, measure_and_show

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from support.crowd import costs

MANY, FEW = 2000, 200


def rows(rounds: int = 5) -> list[Figure]:
    """Few and many in turn."""
    cpu_ms: dict[int, dict[str, list[float]]] = {FEW: {}, MANY: {}}
    for _ in range(rounds + 1):  # the first one warms the caches
        for n, steps in cpu_ms.items():
            with tempfile.TemporaryDirectory() as folder:
                for step, cost in costs(Path(folder) / "state", n).items():
                    steps.setdefault(step, []).append(cost.cpu_ms)
    found = []
    for step in cpu_ms[MANY]:
        few, many = (statistics.median(cpu_ms[n][step][1:]) for n in (FEW, MANY))
        found += [
            Figure(f"{MANY:,} sessions: {step}, CPU", many, "ms"),
            Figure(f"{MANY:,} sessions: {step}, of {FEW} sessions' CPU", many / few, at_most=MANY / FEW),
        ]
    return found


if __name__ == "__main__":
    measure_and_show(rows, 5, __doc__)
