"""A cluster of many sessions on a platform in memory: what each step from launching to ending costs."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

import msgspec

from cml_dask_magics.fleet.fleet import Fleet
from cml_dask_magics.fleet.supervisor import Seen, Supervisor
from cml_dask_magics.model.record import Owner, Record, SessionRecord
from cml_dask_magics.model.settings import make_settings, settings_to_json
from cml_dask_magics.model.times import Times
from cml_dask_magics.platforms.api import Platform
from cml_dask_magics.platforms.pool import SessionPool
from cml_dask_magics.registry import registry
from cml_dask_magics.registry.files import write_private
from cml_dask_magics.registry.registry import Registry
from support.memory_platform import Workspace

_SESSION = "notebook"


@dataclass
class Cost:
    """What one step took.

    Parameters
    ----------
    cpu_ms : float
        CPU time of this process.
    requests : int
        Calls of the Workers API.
    writes, written_bytes : int
        How often the record was written, and how much.
    encoded : int
        How many sessions were turned into JSON for that; the others were as they had been.
    """

    cpu_ms: float = 0.0
    requests: int = 0
    writes: int = 0
    written_bytes: int = 0
    encoded: int = 0


class Crowd:
    """One cluster with `n` sessions of workers.

    Parameters
    ----------
    directory : Path
        A new state folder.
    n : int
    """

    def __init__(self, directory: Path, n: int) -> None:
        self.n = n
        self.workspace = Workspace()
        records = Registry(directory)
        settings = replace(make_settings(name="default"), state_directory=directory, n_workers=n, max_workers=n + 1)
        owner = Owner(_SESSION, socket.gethostname(), os.getpid())
        record = Record(
            "default", "0000aaaa", "cml", time.time(), owner, settings_to_json(settings), n, state="running"
        )
        records.claim(record)
        times = Times(missing_s=0.3)
        api: Any = self.workspace.caller(_SESSION)
        platform = Platform("cml", api, session=_SESSION)
        self.fleet = Fleet(records, SessionPool(platform, times), record, settings, times)
        self.supervisor = Supervisor(self.fleet)

    def steps(self) -> dict[str, Callable[[], None]]:
        """The steps by name, to be taken in this order."""
        return {
            "launch": self._launch,
            "come up": self._come_up,
            "nothing new": self._look,
            "lose one": self._lose_one,
            "replace it": self._look,
            "its news": self._come_up,
            "halve": self._halve,
            "end": self._end,
        }

    @contextlib.contextmanager
    def counted(self) -> Iterator[Cost]:
        """What is done inside, counted."""
        cost, calls = Cost(), len(self.workspace.calls)
        to_builtins = msgspec.to_builtins

        def write(path: Path, text: str) -> None:
            cost.writes += 1
            cost.written_bytes += len(text)
            write_private(path, text)

        def encode(value: Any) -> Any:
            cost.encoded += isinstance(value, SessionRecord)
            return to_builtins(value)

        began = time.process_time_ns()
        with mock.patch.object(registry, "write_private", write), mock.patch.object(msgspec, "to_builtins", encode):
            yield cost
        cost.cpu_ms = (time.process_time_ns() - began) / 1e6
        cost.requests = len(self.workspace.calls) - calls

    def _launch(self) -> None:
        self.fleet.launches.launch("scheduler", 1)
        self.fleet.launches.launch("worker", self.n)

    def _come_up(self) -> None:
        self.workspace.set("running")
        self._look()

    def _look(self) -> None:
        """A listing, and a round of the supervisor."""
        self.fleet.observe(self.fleet.pool.listing())
        running = {session.id for session in self.workspace.sessions.values() if session.status == "running"}
        self.supervisor.round(Seen(self.fleet.plan & running, 0.0, time.monotonic(), dict.fromkeys(running, 2**31)))

    def _lose_one(self) -> None:
        self.workspace.set("failed", min(self.fleet.plan))
        self.fleet.observe(self.fleet.pool.listing())

    def _halve(self) -> None:
        victims = sorted(self.fleet.plan)[: self.n // 2]
        self.fleet.withdraw(victims, lambda record: replace(record, requested=self.n - self.n // 2))
        self.fleet.stop(victims)

    def _end(self) -> None:
        self.fleet.end()


def costs(directory: Path, n: int) -> dict[str, Cost]:
    """What each step costs with `n` sessions."""
    crowd = Crowd(directory, n)
    found: dict[str, Cost] = {}
    for name, step in crowd.steps().items():
        with crowd.counted() as found[name]:
            step()
    assert not crowd.workspace.up()
    return found
