"""What the workers of a cluster are and do together: counted once a picture, and cheaply where little changed.

Knows nothing of words, HTML, widgets or clusters.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from datetime import datetime, timedelta
from operator import attrgetter
from typing import NamedTuple

from cml_dask_magics.model.status import ClusterStatus

_FRESH_S = 2.0
"""How old a cluster's last sample may be to stand for what its workers say now."""

_KEPT_S = 5.0
"""For how long the threads and memory limits of workers that did not change their states are not added up again."""

_MANY = 500
"""With more workers than this, not every one of them is looked at for every picture."""

_STATES = attrgetter("state")


class Totals(NamedTuple):
    """How many workers are in which state, and sums over the connected ones."""

    states: Mapping[str, int]
    nthreads: int
    memory_limit_bytes: int
    cpu_percent: float
    memory_bytes: int
    executing: int

    @property
    def ready(self) -> int:
        """How many workers are connected and take tasks."""
        return self.states.get("running", 0)

    @property
    def failed(self) -> int:
        """How many sessions failed."""
        return self.states.get("failed", 0)


class Tally:
    """Adds up one snapshot after the other, and remembers what cannot have changed in between.

    A worker keeps its threads and its memory limit as long as it lives, and when one comes or goes there is an event.
    So all of them are added up afresh when a state changed, and once in a while; where there are very many, their
    states are looked through once in a while, too. What they do now stands in the newest sample, where that is fresh.
    """

    def __init__(self) -> None:
        self._states: list[str] = []
        self._signs: tuple[object, ...] = ()
        self._until: datetime | None = None
        self._counts: Mapping[str, int] = {}
        self._nthreads = self._memory_limit_bytes = 0

    def of(self, status: ClusterStatus, now: datetime) -> Totals:
        """Add up a snapshot."""
        signs = status.state, status.requested, len(status.workers), len(status.events), status.events[-1:]
        settled = len(status.workers) > _MANY and status.state != "starting" and signs == self._signs
        late = self._until is None or not self._until - timedelta(seconds=_KEPT_S) <= now <= self._until
        if late or not settled:
            # No loop in Python runs over all workers here.
            states = list(map(_STATES, status.workers))
            if late or states != self._states:
                sums = totals(status)
                self._states, self._counts, self._until = states, sums.states, now + timedelta(seconds=_KEPT_S)
                self._nthreads, self._memory_limit_bytes = sums.nthreads, sums.memory_limit_bytes
            self._signs = signs
        sample = status.history[-1] if status.history else None
        if sample is None or abs((now - sample.at).total_seconds()) > _FRESH_S or not math.isfinite(sample.cpu_percent):
            return totals(status)
        return Totals(
            self._counts,
            self._nthreads,
            self._memory_limit_bytes,
            sample.cpu_percent,
            sample.memory_bytes,
            sample.executing,
        )


def totals(status: ClusterStatus) -> Totals:
    """Count the workers and sum what the connected ones last reported."""
    up = [worker for worker in status.workers if worker.state == "running"]
    return Totals(
        Counter(map(_STATES, status.workers)),
        sum(worker.nthreads for worker in up),
        sum(worker.memory_limit_bytes for worker in up),
        sum(worker.cpu_percent for worker in up if math.isfinite(worker.cpu_percent)),
        sum(worker.memory_bytes for worker in up),
        sum(worker.executing for worker in up),
    )
