"""One refresh of the panel beside one of Dask's own cluster widget: bytes sent and CPU used, on the same workers.

python benchmarks/refresh.py --rounds 15

Both draw in this process into widgets whose messages are turned into JSON and thrown away. Every worker's figures
change from one refresh to the next. Figures are medians, but for "mean ms". The last column is a refresh of the panel
in which nothing changed. Dask's widget refreshes twice a second, whatever changed.
"""

from __future__ import annotations

import argparse
import functools
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from typing import Any

import comm
import ipywidgets
from comm.base_comm import BaseComm
from distributed.deploy.cluster import Cluster
from distributed.objects import SchedulerInfo

from cml_dask_magics.display.actions import PanelActions
from cml_dask_magics.display.panel.panel import Panel
from cml_dask_magics.model.status import ClusterStatus, Event, Sample, SessionStatus

SIZES = (10, 100, 1000, 5000)
GIB = 2**30
BEGAN = datetime(2026, 1, 31, 12, 0, tzinfo=timezone.utc)
ORDERS = {"as started": "", "sorted by CPU": "CPU"}

_sent_bytes = 0


class CountingComm(BaseComm):  # type: ignore[misc]
    """Stands for a browser: takes messages as a kernel does, as JSON, and counts their bytes."""

    def publish_msg(self, msg_type: str, data: Any = None, **_: Any) -> None:
        """Count one message."""
        global _sent_bytes
        _sent_bytes += len(json.dumps({"type": msg_type, "data": data}, ensure_ascii=False).encode())


class DrawnCluster(Cluster):  # type: ignore[misc]
    """Dask's own cluster with its own drawing, of a scheduler that need not be there."""

    scheduler_address = "tls://100.66.99.1:8786"


def status(workers: int, second: int) -> ClusterStatus:
    """A cluster at work, ``second`` seconds after it was five minutes old."""
    now = BEGAN + timedelta(seconds=300 + second)
    sessions = tuple(
        SessionStatus(
            session=f"{index:016x}",
            state="running",
            ip_address=f"100.66.{index // 250}.{index % 250}",
            address=ADDRESSES[index],
            nthreads=2,
            cpu_percent=float((index * 7 + second * 13) % 200),
            memory_bytes=GIB + (index * 31 + second * 97) % 900 * 2**20,
            memory_limit_bytes=4 * GIB,
            executing=(index + second) % 3,
        )
        for index in range(workers)
    )
    history = tuple(
        Sample(
            now - timedelta(seconds=back),
            workers * float((second - back) % 40 + 100),
            workers * GIB * (1 + (second - back) % 60 // 20),
            workers * ((second - back) % 3),
        )
        for back in range(299, -1, -1)
    )
    return ClusterStatus(
        name="default",
        state="running",
        backend="cml",
        created_at=BEGAN,
        requested=workers,
        max_workers=5000,
        idle_timeout_s=3600.0,
        scheduler=SessionStatus("scheduler0000000", "running", ip_address="100.66.99.1", address="tls://100.66.99.1:1"),
        workers=sessions,
        dashboard_link="https://scheduler0000000.ml.example.site/status",
        history=history,
        events=(Event(BEGAN, f"{workers} workers ready in 18.2 s"),),
    )


ADDRESSES = [f"tls://100.66.{index // 250}.{index % 250}:40331" for index in range(max(SIZES))]


def scheduler_info(workers: int, second: int) -> dict[str, Any]:
    """What Dask's widget draws: the same workers at the same moment."""
    return {
        "type": "Scheduler",
        "id": "Scheduler-1",
        "address": "tls://100.66.99.1:8786",
        "services": {"dashboard": 8787},
        "started": time.time() - 300,
        "n_workers": workers,
        "total_threads": 2 * workers,
        "total_memory": 4 * GIB * workers,
        "workers": {
            ADDRESSES[index]: {
                "type": "Worker",
                "id": f"{index:016x}",
                "name": f"{index:016x}",
                "host": f"100.66.{index // 250}.{index % 250}",
                "resources": {},
                "local_directory": "/tmp/dask-scratch-space/worker-x",
                "nthreads": 2,
                "memory_limit": 4 * GIB,
                "last_seen": time.time(),
                "services": {"dashboard": 40000},
                "status": "running",
                "nanny": f"tls://100.66.{index // 250}.{index % 250}:39000",
                "metrics": {
                    "cpu": float((index * 7 + second * 13) % 200),
                    "memory": GIB + (index * 31 + second * 97) % 900 * 2**20,
                    "time": time.time(),
                    "spilled_bytes": {"memory": 0, "disk": 0},
                    "task_counts": {"executing": (index + second) % 3},
                    "host_net_io": {"read_bps": 1000.0 + second, "write_bps": 900.0 + second},
                    "host_disk_io": {"read_bps": 0.0, "write_bps": 0.0},
                    "num_fds": 40,
                },
            }
            for index in range(workers)
        },
    }


def measured(refresh: Callable[[], None]) -> tuple[int, float]:
    """Bytes that one refresh sends, and milliseconds of CPU that it takes."""
    before = _sent_bytes
    began = time.process_time_ns()
    refresh()
    return _sent_bytes - before, (time.process_time_ns() - began) / 1e6


def medians(figures: list[tuple[int, float]]) -> tuple[float, float]:
    """Median bytes and milliseconds, without the first refresh, which builds what is only built once."""
    return statistics.median(size for size, _ in figures[1:]), statistics.median(ms for _, ms in figures[1:])


def panel_refreshes(workers: int, rounds: int, title: str) -> tuple[tuple[float, float], float, float]:
    """Bytes and milliseconds of the panel, the mean of the latter, and bytes when nothing changed."""
    panel = Panel(PanelActions(scale=lambda _: None, stop=lambda: ""))
    drawn = status(workers, 0)
    panel.draw(drawn, drawn.history[-1].at)
    if title:
        next(button for button in _buttons(panel) if button.description == title).click()
    figures = []
    # Put together beforehand: what that leaves in the processor's caches is no part of drawing.
    for drawn in [status(workers, second) for second in range(rounds + 1)]:
        figures.append(measured(functools.partial(panel.draw, drawn, drawn.history[-1].at)))
    same = replace(drawn)
    unchanged, _ = measured(lambda: panel.draw(same, same.history[-1].at + timedelta(seconds=1)))
    panel.close()
    return medians(figures), statistics.mean(ms for _, ms in figures[1:]), unchanged


def dask_refreshes(workers: int, rounds: int) -> tuple[float, float]:
    """Bytes and milliseconds of Dask's own widget: what its timer calls, twice a second."""
    cluster = DrawnCluster(asynchronous=False, quiet=True)
    html, scaling = ipywidgets.HTML(), ipywidgets.HTML()

    def refresh() -> None:
        html.value = cluster._repr_html_()
        scaling.value = cluster._scaling_status()

    figures = []
    for second in range(rounds + 1):
        cluster.scheduler_info = SchedulerInfo(scheduler_info(workers, second))
        figures.append(measured(refresh))
    return medians(figures)


def _buttons(panel: Panel) -> list[Any]:
    found, todo = [], [panel.widget]
    while todo:
        widget = todo.pop()
        todo += getattr(widget, "children", ())
        if isinstance(widget, ipywidgets.Button):
            found.append(widget)
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=15)
    rounds = parser.parse_args().rounds
    comm.create_comm = CountingComm
    print(
        "workers  panel is       panel bytes  Dask bytes   ratio  panel ms  mean ms   Dask ms   ratio  unchanged bytes"
    )
    for workers in SIZES:
        theirs = dask_refreshes(workers, min(rounds, 3000 // workers + 4))
        for order, title in ORDERS.items():
            ours, mean_ms, unchanged = panel_refreshes(workers, rounds, title)
            size, ms = theirs[0] / ours[0], theirs[1] / ours[1]
            print(
                f"{workers:>7,}  {order:<13}  {ours[0]:>11,.0f} {theirs[0]:>11,.0f} {size:>7.1f}"
                f"  {ours[1]:>8.2f} {mean_ms:>8.2f} {theirs[1]:>9.1f} {ms:>7.1f}  {unchanged:>15,}"
            )


if __name__ == "__main__":
    main()
