"""What runs in the scheduler's process: it reports figures and troubles of its workers.

The scheduler's session need not have this package: `as_sent` pickles these functions by value. So this module imports
no other one of the package.
"""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import cloudpickle
from distributed.diagnostics.plugin import SchedulerPlugin

# A running scheduler keeps the plugin that the first kernel sent: change this name with what the plugin reports.
PLUGIN = "cml-dask-magics troubles 2"

KEPT = 100
"""How many troubles are kept: the latest ones."""

_LASTING_S = 2.0  # a worker that is paused for less has spilled in time
_QUIET_S = 600.0  # after this long without any of a kind, troubles are counted from 1 again
_RERUN_S = 5.0  # the same for tasks that are given up, if something was submitted since

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # of the user's code, nothing changes


def as_sent(function: Callable[..., Any]) -> bytes:
    """A function of this module, pickled for a scheduler that may not have this package."""
    return bytes(cloudpickle.dumps(function))


def setup(scheduler: Any) -> dict[str, Any]:
    """What a feed has sent, as it begins. From the first feed on, the scheduler notes troubles."""
    if PLUGIN not in scheduler.plugins:
        scheduler.add_plugin(Troubles(scheduler), name=PLUGIN)
    return {"workers": {}, "numbered": 0, "troubles": 0}


def report(scheduler: Any, sent: dict[str, Any]) -> dict[str, Any]:
    """What has changed since the feed's last message.

    Figures are in columns of numbers, which take a third of the time to send and read that rows with addresses do.
    """
    workers = sent["workers"]  # by address: the number that stands for it on this feed, what stays, its figures
    new, columns = [], ([], [], [], [], [], [])  # type: ignore[var-annotated]
    for address, worker in scheduler.workers.items():
        metrics = worker.metrics
        tasks = metrics.get("task_counts", {})
        stays = (
            str(worker.name),
            worker.nthreads,
            worker.memory_limit or 0,
            worker.extra.get("session_memory", 0),  # see `in_session.tell_room`
        )
        # Whole per cent and MiB: smaller changes do not show on the screen.
        figures = (
            round(metrics.get("cpu", 0)),
            metrics.get("memory", 0) >> 20,
            int(metrics.get("spilled_bytes", {}).get("disk", 0)) >> 20,
            tasks.get("executing", 0) + tasks.get("long-running", 0),
            worker.status.name == "paused",
        )
        number, stayed, before = workers.get(address, (0, None, None))
        if stayed != stays:
            sent["numbered"] = number = sent["numbered"] + 1
            new.append((number, address, *stays))
        elif before == figures:
            continue
        workers[address] = number, stays, figures
        for column, figure in zip(columns, (number, *figures), strict=True):
            column.append(figure)
    gone = [address for address in workers if address not in scheduler.workers]
    for address in gone:
        del workers[address]
    try:
        troubles, sent["troubles"] = scheduler.plugins[PLUGIN].news(sent["troubles"])
    except Exception:  # the figures must come, whatever this misses
        troubles = []
    since = scheduler.check_idle()
    return {
        "new": new,
        "figures": columns,
        "gone": gone,
        "troubles": troubles,
        "idle_s": max(0.0, time.time() - since) if since else None,
    }


def _shown(key: Any) -> str:
    """A key as it is told: some hold all that they were made of."""
    return str(key)[:200]


def _is_stuck(worker: Any) -> bool:
    """Whether a paused worker runs nothing, and holds mostly what Dask can neither spill nor free."""
    metrics = worker.metrics
    tasks = metrics.get("task_counts", {})
    is_busy = tasks.get("executing", 0) + tasks.get("long-running", 0) > 0
    return not is_busy and 2 * _unmanaged_bytes(worker) > (worker.memory_limit or 0)


def _unmanaged_bytes(worker: Any) -> int:
    in_memory = _managed_bytes(worker) - worker.metrics.get("spilled_bytes", {}).get("memory", 0)
    return max(0, int(worker.metrics.get("memory", 0) - in_memory))


def _managed_bytes(worker: Any) -> int:
    """The data of Dask's that a worker holds, in memory and on disk."""
    return int(worker.metrics.get("managed_bytes", 0))


@dataclass
class _Trouble:
    """A trouble as it is noted here; `as_told` is what `cml_dask_magics.model.trouble.Trouble` is made of."""

    number: int
    kind: str
    worker: Any  # Dask's WorkerState, which keeps what it last heard
    nth: int
    nth_of_worker: int
    change: int  # when it was last changed, in changes of all troubles
    # Not `time.time` itself: what a user (or a test) put in its place could not be pickled.
    at: float = field(default_factory=lambda: time.time())
    unmanaged_bytes: int = 0
    managed_bytes: int = 0
    others_bytes: int = 0
    scratch_bytes: int = 0
    over_memory_bytes: int = 0  # what the nanny saw when it ended the worker; 0 if it did not
    tasks: set[Any] = field(default_factory=set)  # keys that the worker had to compute
    run_again: int = 0
    lost: str = ""
    n_lost: int = 0
    given_up: tuple[dict[str, Any], ...] = ()  # each with the numbers of the deaths that it was given up for

    def as_told(self, deaths: list[_Trouble]) -> dict[str, Any]:
        """Plain data, with the deaths that each task was given up for."""
        given_up = []
        for each in self.given_up:
            over_it = [death for death in deaths if death.number in each["deaths"]]
            given_up.append(
                {
                    "key": _shown(each["key"]),
                    "n": each["n"],
                    "total": each["total"],
                    "workers": [str(death.worker.name) for death in over_it],
                    "over_memory": sum(bool(death.over_memory_bytes) for death in over_it),
                }
            )
        return {
            "number": self.number,
            "kind": self.kind,
            "at": self.at,
            "worker": str(self.worker.name),
            "memory_bytes": self.over_memory_bytes or self.worker.metrics.get("memory", 0),
            "limit_bytes": self.worker.memory_limit or 0,
            "unmanaged_bytes": self.unmanaged_bytes,
            "managed_bytes": self.managed_bytes,
            "others_bytes": self.others_bytes,
            "scratch_bytes": self.scratch_bytes,
            "nth": self.nth,
            "nth_of_worker": self.nth_of_worker,
            "over_memory": bool(self.over_memory_bytes),
            "run_again": self.run_again,
            "lost": self.lost,
            "n_lost": self.n_lost,
            "given_up": given_up,
        }


class Troubles(SchedulerPlugin):  # type: ignore[misc]
    """Notes workers that die without having been told to, stay paused, hold most of the data, or have no room to spill.

    Parameters
    ----------
    scheduler : distributed.Scheduler
    """

    def __init__(self, scheduler: Any) -> None:
        self._scheduler = scheduler
        self._workers = dict(scheduler.workers)
        self._closing: set[str] = set()
        # Since when; and what was said of it by now.
        self._paused: dict[str, float] = {
            address: time.monotonic() for address, worker in self._workers.items() if worker.status.name == "paused"
        }
        self._said: dict[str, str] = {}
        self._crowded: tuple[str, float, bool] | None = None  # which worker, since when, and whether that is told
        self._over_memory: dict[str, int] = {}  # of workers whose removal is still to come
        self._troubles: deque[_Trouble] = deque(maxlen=KEPT)
        self._count = self._changes = 0
        self._counts: dict[Any, tuple[int, float]] = {}
        self._submitted_at = 0.0
        for worker in self._workers.values():
            self._look_at_scratch(worker)

    def add_worker(self, scheduler: Any, worker: str, **_: Any) -> None:
        """Dask's call: once it is removed, the scheduler knows no more of it."""
        self._workers[worker] = scheduler.workers[worker]
        self._look_at_scratch(scheduler.workers[worker])

    def update_graph(self, *_: Any, **__: Any) -> None:
        """Dask's call: a client submitted tasks."""
        self._submitted_at = time.monotonic()

    def log_event(self, topic: Any, msg: Any) -> None:
        """Dask's call: every event that the scheduler, a nanny or a user logs."""
        if not isinstance(msg, dict):
            return
        action = msg.get("action")
        if topic == "worker-restart-memory":
            self._note_over_memory(msg["worker"], msg["rss"])
        elif action == "worker-status-change" and topic in self._workers:
            self._note_status(topic, msg["status"])
        elif action == "remove-worker" and topic == "all":
            self._note_removal(msg)
        elif action == "restart-workers" and topic == "all":
            self._note_restart(msg["workers"])

    def news(self, since: int) -> tuple[list[dict[str, Any]], int]:
        """The troubles that are new, or better known, since a change; and the number of the last change."""
        for address, at in self._paused.items():
            kind = "stuck" if _is_stuck(self._workers[address]) else "paused"
            if time.monotonic() - at >= _LASTING_S and self._said.get(address) not in (kind, "stuck"):
                self._said[address] = kind
                self._new(kind, self._workers[address])
        self._look_for_a_crowded_one()
        if since == self._changes:
            return [], since
        deaths = [trouble for trouble in self._troubles if trouble.kind == "died"]
        return [each.as_told(deaths) for each in self._troubles if each.change > since], self._changes

    def _note_status(self, address: str, status: str) -> None:
        if status == "paused":
            self._paused.setdefault(address, time.monotonic())
        else:
            self._forget_pause(address)
        if status.startswith("closing"):
            self._closing.add(address)
        else:
            self._closing.discard(address)

    def _look_at_scratch(self, worker: Any) -> None:
        """See whether a worker that came has less disk than its session has memory, by what both told."""
        scratch_bytes = worker.extra.get("scratch_bytes")
        if scratch_bytes is not None and scratch_bytes < worker.extra.get("session_memory", 0):
            self._new("cramped", worker).scratch_bytes = scratch_bytes

    def _look_for_a_crowded_one(self) -> None:
        """See whether one worker spills, while the others together hold less data than it does."""
        held = {address: _managed_bytes(worker) for address, worker in self._workers.items()}
        address = max(held, key=lambda each: held[each], default="")
        others = sum(held.values()) - held.get(address, 0)
        spills = len(held) > 1 and self._workers[address].metrics.get("spilled_bytes", {}).get("memory", 0) > 0
        if not spills or held[address] < max(others, 4 * others / (len(held) - 1)):
            self._crowded = None
            return
        now = time.monotonic()
        before, since, is_told = self._crowded or ("", now, False)
        if before != address:
            since, is_told = now, False
        if not is_told and now - since >= _LASTING_S:
            trouble = self._new("crowded", self._workers[address])
            trouble.others_bytes = others // (len(held) - 1)
            is_told = True
        self._crowded = address, since, is_told

    def _forget_pause(self, address: str) -> None:
        self._paused.pop(address, None)
        self._said.pop(address, None)

    def _note_over_memory(self, address: str, memory_bytes: int) -> None:
        """A nanny ends a worker for its memory. The worker may be removed already, or be so soon."""
        if address in self._workers:
            self._over_memory[address] = memory_bytes
            return
        for death in reversed(self._troubles):
            if death.kind == "died" and death.worker.address == address:
                death.over_memory_bytes = memory_bytes
                death.change = self._next_change()
                return

    def _note_removal(self, event: dict[str, Any]) -> None:
        address = event["worker"]
        worker = self._workers.pop(address, None)
        self._forget_pause(address)
        over_memory_bytes = self._over_memory.pop(address, 0)
        # What was told to end says that it is closing before it does, be it told by us, a user or its nanny.
        is_closing = address in self._closing and not over_memory_bytes
        self._closing.discard(address)
        if worker is None or event["expected"] or is_closing:
            return
        death = self._new("died", worker, over_memory_bytes)
        death.tasks = set(event["processing-tasks"])
        lost = event["lost-scattered-tasks"]
        death.lost, death.n_lost = min(map(_shown, lost), default=""), len(lost)
        death.run_again = len(death.tasks) + len(event["lost-computed-tasks"])
        kinds: dict[str, set[Any]] = {}
        for task in map(self._scheduler.tasks.get, death.tasks):
            if self._is_given_up(task):
                kinds.setdefault(task.prefix.name, set()).add(task.key)
        death.given_up = tuple(self._give_up(kind, keys) for kind, keys in kinds.items())

    def _give_up(self, kind: str, keys: set[Any]) -> dict[str, Any]:
        """Tasks of one kind failed: none of the workers that died over them is told to have left them to run again."""
        key = min(keys, key=str)
        over_it = [trouble.number for trouble in self._troubles if key in trouble.tasks]
        for trouble in self._troubles:
            if failed := trouble.tasks & keys:
                trouble.tasks -= failed  # of the same key, what is submitted later is another task
                trouble.run_again -= len(failed)
                trouble.change = self._next_change()
        what = "given up", kind
        _, at = self._counts.get(what, (0, 0.0))
        total = self._counted(what, len(keys), _RERUN_S if self._submitted_at > at else _QUIET_S)
        return {"key": key, "n": len(keys), "total": total, "deaths": over_it}

    def _note_restart(self, addresses: list[str]) -> None:
        """Dask tells of a restart when it is over; a worker that was slow to end was killed for it."""
        for death in self._troubles:
            if death.kind == "died" and not death.over_memory_bytes and death.worker.address in addresses:
                death.kind, death.change = "meant", self._next_change()

    def _is_given_up(self, task: Any) -> bool:
        return task is not None and task.state == "erred" and task.suspicious > self._scheduler.allowed_failures

    def _new(self, kind: str, worker: Any, over_memory_bytes: int = 0) -> _Trouble:
        self._count += 1
        alike = kind, bool(over_memory_bytes)
        nth, of_worker = self._counted(alike), self._counted((alike, worker.name))
        trouble = _Trouble(self._count, kind, worker, nth, of_worker, self._next_change())
        trouble.over_memory_bytes = over_memory_bytes
        trouble.managed_bytes, trouble.unmanaged_bytes = _managed_bytes(worker), _unmanaged_bytes(worker)
        self._troubles.append(trouble)
        return trouble

    def _next_change(self) -> int:
        self._changes += 1
        return self._changes

    def _counted(self, what: Any, by: int = 1, quiet_s: float = _QUIET_S) -> int:
        """How many there were of something, with `by` more now, since it was last quiet for long."""
        now = time.monotonic()
        count, at = self._counts.get(what, (0, now))
        self._counts[what] = (count if now - at < quiet_s else 0) + by, now
        if len(self._counts) > 10 * KEPT:
            self._counts = {key: (n, at) for key, (n, at) in self._counts.items() if now - at < _QUIET_S}
        return self._counts[what][0]
