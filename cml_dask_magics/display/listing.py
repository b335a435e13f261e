"""Which workers a table lists: sorted, filtered, one page of them.

Knows nothing of HTML, widgets or clusters; its work is bound to the page where order and filter allow it.
"""

from __future__ import annotations

import heapq
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from operator import attrgetter
from typing import Any, NamedTuple

from cml_dask_magics.model.status import SessionStatus

PAGE_ROWS = 20
"""Workers on one page of a table."""

_KEPT = timedelta(seconds=5)
"""For how long the workers on a page stay there while nothing but figures changes."""


@dataclass(frozen=True)
class Wanted:
    """What a reader wants to see of the workers.

    Parameters
    ----------
    sort : str
        A key of ``SORTS``; empty for the order of their start, failed ones first.
    descending : bool
    text : str
        Only workers whose id, address or state holds this, whatever the case; empty for all.
    state : str
        Only workers in this state; empty for all.
    page : int
        Counted from 0; one behind the last means the last.
    """

    sort: str = ""
    descending: bool = False
    text: str = ""
    state: str = ""
    page: int = 0


class Chosen(NamedTuple):
    """One page of workers, which page it is, and how many workers there are on all pages."""

    rows: Sequence[SessionStatus]
    page: int
    found: int


def _ip_key(worker: SessionStatus) -> tuple[bool, list[int], str]:
    address = worker.ip_address or ""
    return not address, [int(part) for part in re.findall(r"[0-9]{1,9}", address)], address


SORTS: dict[str, Callable[[SessionStatus], Any]] = {
    "session": attrgetter("session"),
    "ip": _ip_key,
    "state": attrgetter("state"),
    "cpu": attrgetter("cpu_percent"),
    "memory": attrgetter("memory_bytes"),
    "threads": attrgetter("nthreads"),
    "tasks": attrgetter("executing"),
}
"""How to sort by a column."""


def choose(workers: Sequence[SessionStatus], wanted: Wanted, failed: int, size: int = PAGE_ROWS) -> Chosen:
    """The page of workers that is wanted.

    Parameters
    ----------
    workers : sequence of SessionStatus
    wanted : Wanted
    failed : int
        How many of all workers failed; none spares looking for them.
    size : int
        Workers on a page.
    """
    if wanted.state:
        workers = [worker for worker in workers if worker.state == wanted.state]
    if needle := wanted.text.strip().casefold():
        workers = [worker for worker in workers if needle in _words(worker)]
    page = max(min(wanted.page, (len(workers) - 1) // size), 0)
    start, stop = page * size, (page + 1) * size
    if wanted.sort in SORTS:
        ordered = _first(workers, stop, SORTS[wanted.sort], wanted.descending)
        return Chosen(ordered[start:stop], page, len(workers))
    if failed:  # They matter most.
        workers = sorted(workers, key=lambda worker: worker.state != "failed")
    return Chosen(workers[start:stop], page, len(workers))


class Chooser:
    """Chooses the same page again and again, and looks through all workers only when others may belong on it.

    That is when something else is wanted, when a worker came, went or changed its state, and every few seconds, for
    the sake of figures that never stand still. In between, the rows on the page are sorted among themselves.
    """

    def __init__(self) -> None:
        self._asked: tuple[Wanted, int, Mapping[str, int]] | None = None
        self._at: datetime | None = None
        self._places: list[int] = []
        self._sessions: list[str] = []
        self._chosen = Chosen((), 0, 0)

    def choose(
        self, workers: Sequence[SessionStatus], wanted: Wanted, states: Mapping[str, int], now: datetime
    ) -> Chosen:
        """The page that is wanted; ``states`` says how many of all workers are in which."""
        asked = wanted, len(workers), states
        if asked == self._asked and self._at is not None and timedelta(0) <= now - self._at < _KEPT:
            rows: Sequence[SessionStatus] = [workers[place] for place in self._places]
            if [row.session for row in rows] == self._sessions:
                if wanted.sort in SORTS:
                    rows = _first(rows, len(rows), SORTS[wanted.sort], wanted.descending)
                return self._chosen._replace(rows=rows)
        self._chosen = choose(workers, wanted, states.get("failed", 0))
        self._asked, self._at = asked, now
        listed = {id(row): at for at, row in enumerate(self._chosen.rows)}
        places = {listed[id(worker)]: place for place, worker in enumerate(workers) if id(worker) in listed}
        self._places = [places[at] for at in range(len(listed))]
        self._sessions = [row.session for row in self._chosen.rows]
        return self._chosen


def _words(worker: SessionStatus) -> str:
    return f"{worker.session} {worker.ip_address} {worker.address} {worker.state}".casefold()


def _first(
    workers: Sequence[SessionStatus], count: int, key: Callable[[SessionStatus], Any], descending: bool
) -> Sequence[SessionStatus]:
    """The first of them in an order; of many workers only those are sorted."""
    if count * 10 < len(workers):
        ordered = (heapq.nlargest if descending else heapq.nsmallest)(count, workers, key=key)
        # What is no number (NaN) would have stayed among them, and spoilt their order.
        if all(key(worker) == key(worker) for worker in ordered):
            return ordered
    numbers = [worker for worker in workers if key(worker) == key(worker)]
    others = [worker for worker in workers if key(worker) != key(worker)] if len(numbers) < len(workers) else []
    return sorted(numbers, key=key, reverse=descending) + others
