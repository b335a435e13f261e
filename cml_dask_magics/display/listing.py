"""Which workers a table lists: sorted, filtered, one page of them.

Knows nothing of HTML, widgets or clusters.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import attrgetter, itemgetter
from typing import Any, NamedTuple

from cml_dask_magics.model.status import SessionStatus

PAGE_ROWS = 20
"""Workers on one page of a table."""


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


def choose(workers: Sequence[SessionStatus], wanted: Wanted, size: int = PAGE_ROWS) -> Chosen:
    """The page of workers that is wanted.

    Parameters
    ----------
    workers : sequence of SessionStatus
    wanted : Wanted
    size : int
        Workers on a page.
    """
    if wanted.state:
        workers = [worker for worker in workers if worker.state == wanted.state]
    if needle := wanted.text.strip().casefold():
        workers = [worker for worker in workers if needle in _words(worker)]
    page = max(min(wanted.page, (len(workers) - 1) // size), 0)
    if wanted.sort in SORTS:
        workers = _sorted(workers, SORTS[wanted.sort], wanted.descending)
    else:  # failed ones matter most
        workers = sorted(workers, key=lambda worker: worker.state != "failed")
    return Chosen(workers[page * size : (page + 1) * size], page, len(workers))


def _words(worker: SessionStatus) -> str:
    return f"{worker.session} {worker.ip_address} {worker.address} {worker.state}".casefold()


def _sorted(
    workers: Sequence[SessionStatus], key: Callable[[SessionStatus], Any], descending: bool
) -> Sequence[SessionStatus]:
    """In the order of a figure; those whose figure is no number (NaN) come last, in either direction."""
    keyed = [(key(worker), worker) for worker in workers]
    numbers = sorted((pair for pair in keyed if pair[0] == pair[0]), key=itemgetter(0), reverse=descending)
    return [worker for _, worker in numbers + [pair for pair in keyed if pair[0] != pair[0]]]
