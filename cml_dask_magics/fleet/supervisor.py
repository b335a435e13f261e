"""Automatic care for a cluster: lost workers are replaced, a cluster without a scheduler is ended.

Only the kernel that has the cluster's lease does so. Uses no Dask: what the scheduler reports is passed in, and what
only Dask can do is returned.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Collection, Mapping, Set
from dataclasses import dataclass, field, replace

from cml_dask_magics.fleet.fleet import Fleet
from cml_dask_magics.fleet.launches import EndingError
from cml_dask_magics.model.lifecycle import FAILED_REPLACEMENTS
from cml_dask_magics.model.words import unit
from cml_dask_magics.registry.kernels import kernel_may_live
from cml_dask_magics.registry.lease import Lease
from cml_dask_magics.registry.registry import GoneError
from cml_dask_magics.registry.run_folder import scheduler_session

logger = logging.getLogger(__name__)

_NAMED_SESSIONS = 3
_IDLE_WORDS = "closing after being idle"
_READ_LINES = 500  # tracebacks of the connections that it closes follow those words


@dataclass(frozen=True)
class Seen:
    """What the scheduler reports at one moment.

    Parameters
    ----------
    connected : set of str
        Ids of the sessions whose workers are connected, all of them.
    silent_s : float
        For how many seconds the scheduler's report is overdue.
    at : float
        When, by `time.monotonic`.
    memory_bytes : mapping
        What a session has, by its id, as its workers told.
    """

    connected: Set[str]
    silent_s: float
    at: float
    memory_bytes: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Todo:
    """What is left to do for the caller, who can talk to the scheduler. Adaptive scaling always follows the record.

    Parameters
    ----------
    gone : str
        Why to detach from the cluster; empty to stay.
    end : bool
        Whether to end what is left of it, too.
    forget_workers : bool
        Whether the workers are gone with their scheduler, which did not report it.
    shrink : bool
        Whether there are more workers than requested; data must be moved off those that are ended.
    steers : bool
        Whether this kernel steers, and so scales the cluster by its load.
    """

    gone: str = ""
    end: bool = False
    forget_workers: bool = False
    shrink: bool = False
    steers: bool = False


class Supervisor:
    """Keeps one cluster as requested, while this kernel has its lease.

    All methods block and may be called from any thread; `round` from one at a time.

    Parameters
    ----------
    fleet : Fleet
        The cluster's sessions.
    """

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        journal = fleet.journal
        self._lease = Lease(journal.registry, fleet.record.name, journal.kernel, fleet.times)
        self._not_before = 0.0
        self._gone_since: dict[str, float] = {}
        self._connected: Set[str] | None = None

    def begin(self, connected: Set[str]) -> None:
        """Log who joins or leaves these workers from now on; the start logs its own."""
        self._connected = connected

    def round(self, seen: Seen) -> Todo:
        """Correct what can be corrected without Dask; returns what is left to do.

        Call it every few seconds. Errors of the platform or another kernel are logged, and the next round tries again.

        Raises
        ------
        RegistryError
            If the record cannot be read.
        """
        fleet = self._fleet
        name = fleet.record.name
        if not fleet.journal.refresh():
            return Todo(gone=f"Cluster {name!r} was stopped from another kernel")
        state = fleet.record.state
        if state == "stopping":
            return Todo()
        if not self._lease.hold():
            if state == "running":
                self._drop_replaced()
            return Todo()
        todo = Todo(steers=True)
        try:
            if state == "lost":
                # Sessions that did not stop at first, or were just being launched.
                fleet.stop([session.id for session in fleet.record.sessions if session.ended_at is None])
            elif state == "starting":
                self._take_over_start()
            elif self._scheduler_is_gone(seen):
                if self._ended_idle():
                    why = f"Cluster {name!r} ended by itself: nobody worked for its idle timeout"
                    todo = replace(todo, gone=why, end=True)
                else:
                    todo = replace(todo, forget_workers=True)
                    self._end_lost()
            elif not seen.silent_s:  # otherwise the workers' state is unknown
                self._correct(seen)
                todo = replace(todo, shrink=self._are_too_many())
        except (GoneError, EndingError):  # the next round finds out
            pass
        except (RuntimeError, OSError) as error:  # the platform, the disk, another kernel
            logger.warning("cluster %r: %s", name, error)
        return todo

    def may_launch(self) -> bool:
        """Whether sessions may be launched automatically."""
        fleet = self._fleet
        if time.monotonic() < self._not_before:
            return False
        if fleet.record.failed_replacements < FAILED_REPLACEMENTS:
            return True
        event = (
            f"the last {FAILED_REPLACEMENTS} sessions that were launched in place of lost ones ended before their "
            f"worker connected; no more are launched until %dask_up --name {fleet.record.name} or scaling asks for it"
        )
        if not any(message.startswith(event) for _, message in fleet.record.events):
            fleet.journal.log(event + self._last_words())
        return False

    def launch(self, n: int) -> list[str]:
        """Launch what is missing to `n` workers; returns the ids. What is refused is tried again later."""
        launched = self._fleet.launches.grow(n, automatic=True)
        if launched.refusals:
            self._not_before = time.monotonic() + self._fleet.times.refused_s
            self._fleet.tidy_refusal(launched, launched.strays)
        return [info.id for info in launched.sessions]

    def release(self) -> None:
        """Give the lease up."""
        self._lease.release()

    def _take_over_start(self) -> None:
        """Take over a cluster that came up although the kernel that was starting it died."""
        record = self._fleet.record
        if record.owner != self._fleet.journal.kernel and not kernel_may_live(record.owner):
            event = "the kernel that started it is gone; this one takes over"
            self._fleet.journal.update(lambda record: replace(record, state="running").with_event(event))

    # Workers

    def _correct(self, seen: Seen) -> None:
        """Bring record and sessions in line with what is seen."""
        fleet = self._fleet
        fleet.note_connected(seen.connected, seen.memory_bytes)
        self._log_comings_and_goings(seen.connected)
        fleet.orphans.adopt(seen.connected)
        fleet.finish_stopping()
        self._end_unseen(seen)
        self._drop_replaced()
        if fleet.record.adapt is None:
            self._replace_missing()

    def _are_too_many(self) -> bool:
        """Whether sessions of a failed launch call were adopted after others had replaced them."""
        return self._fleet.record.adapt is None and len(self._fleet.plan) > self._fleet.record.requested

    def _log_comings_and_goings(self, now: Set[str]) -> None:
        """Log which workers joined and left since the last round."""
        before, self._connected = self._connected, now
        if before is None:
            return
        several = self._fleet.settings.processes > 1
        joined, left = ("complete", "incomplete") if several else ("joined", "left")
        for who, what in ((now - before, joined), (before - now, left)):
            if who:
                self._fleet.journal.log(f"{self._named(who)} {what}")

    def _end_unseen(self, seen: Seen) -> None:
        """Stop sessions outside our listing whose worker does not connect, or has been gone for too long."""
        fleet, times = self._fleet, self._fleet.times
        mine = fleet.pool.platform.session
        missing = fleet.plan - seen.connected - seen.memory_bytes.keys()  # the latter have some of their workers
        gone = {s.id: s for s in fleet.record.sessions if s.launched_from != mine and s.id in missing}
        self._gone_since = {session: self._gone_since.get(session, seen.at) for session in gone}
        over = [
            session
            for session, since in self._gone_since.items()
            if seen.at - since
            > (times.unseen_gone_s if gone[session].connected_at is not None else times.unseen_pending_s)
        ]
        if over:
            fleet.journal.log(f"{self._named(over)} lost: no sign of life for long")
            fleet.stop(over)

    def _drop_replaced(self) -> None:
        """Forget lost workers once there are as many workers again as there should be."""
        fleet = self._fleet
        adapt = fleet.record.adapt
        if len(fleet.plan) >= (adapt[0] if adapt else fleet.record.requested):
            fleet.drop_lost(self._lost_workers())

    def _replace_missing(self) -> None:
        """Launch a session for every missing worker, unless too many replacements have failed."""
        fleet = self._fleet
        requested = fleet.record.requested
        if len(fleet.plan) >= requested or not self.may_launch():
            return
        lost = self._lost_workers()
        new = self.launch(requested)
        if new:
            gone = self._named(lost) if lost else "what is missing"
            fleet.journal.log(f"{self._named(new)} launched in place of {gone}")
            fleet.drop_lost(lost)

    def _lost_workers(self) -> list[str]:
        return [session.id for session in self._fleet.lost.values() if session.role == "worker"]

    def _named(self, sessions: Collection[str]) -> str:
        """The sessions' ids, or their number if they are many."""
        word = unit(self._fleet.settings.processes)
        if len(sessions) > _NAMED_SESSIONS:
            return f"{len(sessions)} {word}s"
        return f"{word}{'s' if len(sessions) != 1 else ''} {', '.join(sorted(sessions))}"

    def _last_words(self) -> str:
        """The last line of the session that was lost last, for a message."""
        lost = list(self._fleet.lost)
        lines = self._fleet.tail(lost[-1], 1) if lost else []
        return f". The last of them, {lost[-1]}, printed: {lines[-1]}" if lines else ""

    # The scheduler

    def _scheduler_is_gone(self, seen: Seen) -> bool:
        """Whether the scheduler is gone for sure, not just cut off for a while."""
        scheduler = self._fleet.record.scheduler
        if scheduler is None:
            return True
        return (
            scheduler.launched_from != self._fleet.pool.platform.session
            and seen.silent_s > self._fleet.times.unseen_gone_s
        )

    def _ended_idle(self) -> bool:
        """Whether the scheduler's log says that it ended by its idle timeout."""
        scheduler = scheduler_session(self._fleet.folder)
        return any(_IDLE_WORDS in line for line in self._fleet.tail(scheduler, _READ_LINES))

    def _end_lost(self) -> None:
        """End the sessions of a cluster whose scheduler is gone; its settings stay on record for the next start."""
        name = self._fleet.record.name
        event = f"the scheduler is gone; the sessions of its workers are ended. %dask_up --name {name} starts it again"
        record = self._fleet.journal.update(lambda record: replace(record, state="lost").with_event(event))
        self._fleet.stop([session.id for session in record.sessions])
