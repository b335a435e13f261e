"""Clusters as a display is given them, made by hand, and a reader of the pages that it makes of them."""

from __future__ import annotations

import math
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from html.parser import HTMLParser
from typing import Any

import msgspec

from cml_dask_magics.model.status import ClusterStatus, Event, Sample, SessionStatus, Usage, WorkerFigures

NOW = datetime(2026, 1, 31, 12, 12, 0, tzinfo=timezone.utc)
GIB = 2**30
NASTY = "<script>alert(1)</script>\"'&[bold]\x1b[31m"


def worker(index: int, **changes: Any) -> SessionStatus:
    ready = SessionStatus(
        session=f"worker{index:04}",
        state="running",
        ip_address=f"100.66.1.{index}",
        address=f"tls://100.66.1.{index}:40331",
        nthreads=2,
        cpu_percent=50.0,
        memory_bytes=GIB // 2,
        memory_limit_bytes=2 * GIB,
        executing=1,
        workers=(_figures(f"tls://100.66.1.{index}:40331", f"worker{index:04}"),),
    )
    return msgspec.structs.replace(ready, **changes)


def _figures(address: str, name: str, cpu_percent: float = 50.0) -> WorkerFigures:
    return WorkerFigures(address, name, 2, 2 * GIB, 10 * GIB, cpu_percent, GIB // 2, 0, 1, is_paused=False)


def several(index: int, processes: int = 4, **changes: Any) -> SessionStatus:
    """A session with several workers, each of which reports as much as `worker` does alone."""
    name, address = f"worker{index:04}", f"tls://100.66.1.{index}"
    workers = tuple(_figures(f"{address}:{40000 + n}", f"{name}-{n}", 50.0 + n) for n in range(processes))
    together = worker(
        index,
        address=workers[0].address,
        nthreads=2 * processes,
        cpu_percent=sum(each.cpu_percent for each in workers),
        memory_bytes=processes * GIB // 2,
        memory_limit_bytes=2 * processes * GIB,
        executing=processes,
        workers=workers,
    )
    return msgspec.structs.replace(together, **changes)


def cluster(**changes: Any) -> ClusterStatus:
    running = ClusterStatus(
        name="default",
        state="running",
        backend="cml",
        created_at=NOW - timedelta(minutes=12),
        requested=4,
        idle_timeout_s=3600.0,
        idle_s=720.0,
        scheduler=SessionStatus("scheduler1", "running", ip_address="100.66.1.99", address="tls://100.66.1.99:8786"),
        workers=tuple(worker(index) for index in range(4)),
        dashboard_link="https://scheduler1.example.site/status",
        usage=Usage(0.42, 0.9, 0.0),
        events=(Event(NOW - timedelta(minutes=12), "Cluster started"), Event(NOW, "4 workers ready")),
    )
    return replace(running, **changes)


def history(samples: int = 300, cpu_percent: float | None = None) -> tuple[Sample, ...]:
    """One sample a second up to now, with figures that go up and down."""
    return tuple(
        Sample(
            NOW - timedelta(seconds=back),
            400 + 390 * math.sin(back / 20) if cpu_percent is None else cpu_percent,
            GIB * 2 + GIB * (back % 100) // 100,
            back // 60,
        )
        for back in range(samples - 1, -1, -1)
    )


def starting() -> ClusterStatus:
    moving = {"ip_address": None, "address": None, "nthreads": 0, "workers": ()}
    workers = (
        worker(0),
        worker(1),
        worker(2, state="starting", state_since=NOW - timedelta(seconds=7), **moving),
        worker(3, state="pending", state_since=NOW - timedelta(seconds=72), **moving),
    )
    return cluster(state="starting", created_at=NOW - timedelta(seconds=12), idle_s=None, workers=workers)


class Page(HTMLParser):
    """Reads HTML as a browser does: which elements there are, their attributes, and whether all are closed."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.open: list[str] = []
        self.feed(html)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len({name for name, _ in attrs}) == len(attrs), f"an attribute of <{tag}> twice: {attrs}"
        self.elements.append((tag, dict(attrs)))
        self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    def tags(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]
