"""Sorts, filters and pages the workers of a table."""

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
    """Which workers the reader wants to see.

    Parameters
    ----------
    sort : str
        A key of ``SORTS``; empty for the order of their launch, failed ones first.
    descending : bool
    text : str
        Only workers whose id, address or state contains this, ignoring case; empty for all.
    state : str
        Only workers in this state; empty for all.
    page : int
        Counted from 0; any page after the last means the last.
    """

    sort: str = ""
    descending: bool = False
    text: str = ""
    state: str = ""
    page: int = 0


class Chosen(NamedTuple):
    """One page of workers, its number, and the number of workers on all pages."""

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
    """The wanted page of workers.

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
    else:
        workers = sorted(workers, key=lambda worker: worker.state != "failed")
    return Chosen(workers[page * size : (page + 1) * size], page, len(workers))


def _words(worker: SessionStatus) -> str:
    return f"{worker.session} {worker.ip_address} {worker.address} {worker.state}".casefold()


def _sorted(
    workers: Sequence[SessionStatus], key: Callable[[SessionStatus], Any], descending: bool
) -> Sequence[SessionStatus]:
    """Sort by a key; NaN comes last in either direction."""
    keyed = [(key(worker), worker) for worker in workers]
    numbers = sorted((pair for pair in keyed if pair[0] == pair[0]), key=itemgetter(0), reverse=descending)
    return [worker for _, worker in numbers + [pair for pair in keyed if pair[0] != pair[0]]]
