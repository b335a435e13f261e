"""What TLS costs: scatter, gather and a shuffle on a cluster with TLS and on one without, turn by turn.

Both run on this machine, whose loopback is faster than a network between sessions, so that TLS shows more than it would
there. The figures are medians, and the ratio is what counts:

    python benchmarks/tls.py --rounds 7 --mib 256
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from typing import Any

import dask
import dask.dataframe as dd
import numpy as np
import pandas as pd
from distributed import Client, wait
from figures import Figure, show

from cml_dask_magics import CMLCluster

MIB = 2**20


def scatter(client: Client, data: Any) -> None:
    """Send data from this kernel to a worker."""
    client.scatter(data, hash=False, direct=True)


def gather(client: Client, data: Any) -> None:
    """Have a worker send as much to this kernel."""
    client.submit(np.ones, data.nbytes, "u1", pure=False).result()


def shuffle(client: Client, data: Any) -> None:
    """Have each row go to the worker of its key: half of them change over."""
    frame = pd.DataFrame({"key": np.arange(data.nbytes // 64) % 97, **{f"x{i}": 1.0 for i in range(7)}})
    parts = client.persist(dd.from_map(lambda _: frame.iloc[: len(frame) // 4], range(4)))
    wait(parts)
    with dask.config.set({"dataframe.shuffle.method": "p2p"}):
        wait(client.persist(parts.shuffle("key")))


OPERATIONS: dict[str, Callable[[Client, Any], None]] = {"scatter": scatter, "gather": gather, "shuffle": shuffle}


def timed(operation: Callable[[Client, Any], None], client: Client, data: Any) -> float:
    """Seconds that an operation takes."""
    began = time.monotonic()
    operation(client, data)
    return time.monotonic() - began


def rows(rounds: int = 7, mib: int = 256) -> list[Figure]:
    """All operations with so much data, in so many rounds: seconds with TLS and without, and the ratio."""
    data = np.random.default_rng(0).integers(0, 256, mib * MIB, dtype="u1")  # cannot be compressed
    found: list[Figure] = []
    with tempfile.TemporaryDirectory() as state, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that a cluster is without TLS
        dask.config.set({"cml-dask-magics.state-directory": state})
        sizes = {"n_workers": 2, "memory": 4, "local": True}
        with (
            CMLCluster(**sizes) as tls,
            CMLCluster(**sizes, no_tls=True) as tcp,
            tls.get_client() as one,
            tcp.get_client() as two,
        ):
            for name, operation in OPERATIONS.items():
                for client in (one, two):  # the first of each opens connections, and imports
                    timed(operation, client, data)
                turns = [(timed(operation, one, data), timed(operation, two, data)) for _ in range(rounds)]
                found += [
                    Figure(f"{name} of {mib} MiB with TLS", statistics.median(tls_s for tls_s, _ in turns), "s"),
                    Figure(f"{name} of {mib} MiB without TLS", statistics.median(tcp_s for _, tcp_s in turns), "s"),
                    Figure(f"{name}: with TLS / without", statistics.median(tls_s / tcp_s for tls_s, tcp_s in turns)),
                ]
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--mib", type=int, default=256, help="MiB of data; default: 256")
    arguments = parser.parse_args()
    show(rows(arguments.rounds, arguments.mib))


if __name__ == "__main__":
    main()
