"""What is done about a cluster without anybody asking: lost workers are replaced, a lost cluster is ended.

Of the kernels that hold a cluster one does so, the one that has its lease. No Dask: what its scheduler tells is handed
in, and what only Dask can do is handed back.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Collection, Set
from dataclasses import dataclass, replace

from cml_dask_magics.fleet.fleet import Fleet
from cml_dask_magics.fleet.launches import EndingError
from cml_dask_magics.model.lifecycle import FAILED_REPLACEMENTS
from cml_dask_magics.registry.kernels import kernel_may_live
from cml_dask_magics.registry.lease import Lease
from cml_dask_magics.registry.registry import GoneError
from cml_dask_magics.registry.run_folder import scheduler_session

logger = logging.getLogger(__name__)

_NAMED_WORKERS = 3
_IDLE_WORDS = "closing after being idle"
_READ_LINES = 500  # connections that it cuts then print their tracebacks


@dataclass(frozen=True)
class Seen:
    """What a cluster's scheduler shows at one moment.

    Parameters
    ----------
    connected : set of str
        Ids of the sessions whose worker is connected.
    silent_s : float
        For how many seconds longer than it should the scheduler has told nothing.
    at : float
        When, in seconds of `time.monotonic`.
    """

    connected: Set[str]
    silent_s: float
    at: float


@dataclass(frozen=True)
class Todo:
    """What is left to do for whoever can talk to the scheduler. Adaptive scaling is as the record says, always.

    Parameters
    ----------
    gone : str
        Why to let go of the cluster; empty if that is not to be.
    end : bool
        Whether to end what is left of it then.
    forget_workers : bool
        Whether its workers ended with their scheduler, which did not live to tell.
    shrink : bool
        Whether there are more workers than are asked for; the data is to be moved off those that go.
    steers : bool
        Whether this kernel is the one that steers: scales the cluster by its load.
    """

    gone: str = ""
    end: bool = False
    forget_workers: bool = False
    shrink: bool = False
    steers: bool = False


class Supervisor:
    """Keeps one cluster as it was asked for, as far as this kernel is the one to do so.

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
        """Take these workers for known: who joins or leaves from now on is news. The start tells its own story."""
        self._connected = connected

    def round(self, seen: Seen) -> Todo:
        """Look at the record, and set right what can be set right from here; what is left to do.

        To be called every few seconds. What goes wrong with the platform or another kernel is logged, and the next
        round tries again.

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
                # What did not stop at first, or was being launched just then.
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
            elif not seen.silent_s:  # or nobody can tell what its workers do
                self._set_right(seen)
                todo = replace(todo, shrink=self._are_too_many())
        except (GoneError, EndingError):  # the next round, if there is one, tells
            pass
        except (RuntimeError, OSError) as error:  # the platform, the disk, another kernel
            logger.warning("cluster %r: %s", name, error)
        return todo

    def may_launch(self) -> bool:
        """Whether sessions may be launched that nobody asked for by hand."""
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
        """Launch what is missing to `n` workers, keep what comes, and ask again later for what does not."""
        launched = self._fleet.launches.grow(n, automatic=True)
        if launched.refusals:
            self._not_before = time.monotonic() + self._fleet.times.refused_s
            self._fleet.tidy_refusal(launched, launched.strays)
        return [info.id for info in launched.sessions]

    def release(self) -> None:
        """Leave the cluster to other kernels."""
        self._lease.release()

    def _take_over_start(self) -> None:
        """A cluster whose kernel died while it started, and that came up all the same."""
        record = self._fleet.record
        if record.owner != self._fleet.journal.kernel and not kernel_may_live(record.owner):
            event = "the kernel that started it is gone; this one takes over"
            self._fleet.journal.update(lambda record: replace(record, state="running").with_event(event))

    # Workers

    def _set_right(self, seen: Seen) -> None:
        """Bring record and sessions in step with what is seen."""
        fleet = self._fleet
        fleet.note_connected(seen.connected)
        self._log_comings_and_goings(seen.connected)
        fleet.orphans.adopt(seen.connected)
        fleet.finish_stopping()
        self._end_unseen(seen)
        self._drop_replaced()
        if fleet.record.adapt is None:
            self._heal()

    def _are_too_many(self) -> bool:
        """Whether sessions of a broken launch call turned out to be ours, and had others in their place already."""
        return self._fleet.record.adapt is None and len(self._fleet.plan) > self._fleet.record.requested

    def _log_comings_and_goings(self, now: Set[str]) -> None:
        """Put into the record which workers joined and left since the last look."""
        before, self._connected = self._connected, now
        if before is None:
            return
        for who, what in ((now - before, "joined"), (before - now, "left")):
            if who:
                self._fleet.journal.log(f"{_named(who)} {what}")

    def _end_unseen(self, seen: Seen) -> None:
        """Stop sessions whose worker does not come (back), where no listing of ours would show their end."""
        fleet, times = self._fleet, self._fleet.times
        mine = fleet.pool.platform.session
        missing = fleet.plan - seen.connected
        gone = {s.id: s for s in fleet.record.sessions if s.launched_from != mine and s.id in missing}
        self._gone_since = {session: self._gone_since.get(session, seen.at) for session in gone}
        over = [
            session
            for session, since in self._gone_since.items()
            if seen.at - since
            > (times.unseen_gone_s if gone[session].connected_at is not None else times.unseen_pending_s)
        ]
        if over:
            fleet.journal.log(f"{_named(over)} lost: no sign of life for long")
            fleet.stop(over)

    def _drop_replaced(self) -> None:
        """Show lost workers no longer once there are as many again as there should be."""
        fleet = self._fleet
        adapt = fleet.record.adapt
        if len(fleet.plan) >= (adapt[0] if adapt else fleet.record.requested):
            fleet.drop_lost(self._lost_workers())

    def _heal(self) -> None:
        """Launch a session for every worker that is missing, unless that has turned out to be of no use."""
        fleet = self._fleet
        requested = fleet.record.requested
        if len(fleet.plan) >= requested or not self.may_launch():
            return
        lost = self._lost_workers()
        new = self.launch(requested)
        if new:
            fleet.journal.log(f"{_named(new)} launched in place of {_named(lost) if lost else 'what is missing'}")
            fleet.drop_lost(lost)

    def _lost_workers(self) -> list[str]:
        return [session.id for session in self._fleet.lost.values() if session.role == "worker"]

    def _last_words(self) -> str:
        """What the session that was lost last printed in the end."""
        lost = list(self._fleet.lost)
        lines = self._fleet.tail(lost[-1], 1) if lost else []
        return f". The last of them, {lost[-1]}, printed: {lines[-1]}" if lines else ""

    # The scheduler

    def _scheduler_is_gone(self, seen: Seen) -> bool:
        """Whether it is sure: a network cut that heals is no death."""
        scheduler = self._fleet.record.scheduler
        if scheduler is None:
            return True
        return (
            scheduler.launched_from != self._fleet.pool.platform.session
            and seen.silent_s > self._fleet.times.unseen_gone_s
        )

    def _ended_idle(self) -> bool:
        """Whether a scheduler that is gone had ended by its idle timeout, as it prints then."""
        scheduler = scheduler_session(self._fleet.folder)
        return any(_IDLE_WORDS in line for line in self._fleet.tail(scheduler, _READ_LINES))

    def _end_lost(self) -> None:
        """End the sessions of a cluster whose scheduler is gone; the record keeps its settings for the next start."""
        name = self._fleet.record.name
        event = f"the scheduler is gone; the sessions of its workers are ended. %dask_up --name {name} starts anew"
        record = self._fleet.journal.update(lambda record: replace(record, state="lost").with_event(event))
        self._fleet.stop([session.id for session in record.sessions])


def _named(sessions: Collection[str]) -> str:
    """Workers by the ids of their sessions, as long as they are few."""
    if len(sessions) > _NAMED_WORKERS:
        return f"{len(sessions)} workers"
    return ("worker " if len(sessions) == 1 else "workers ") + ", ".join(sorted(sessions))
