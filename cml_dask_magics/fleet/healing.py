"""What is done about lost sessions, by whoever steers a cluster: decisions and launches, without Dask.

All methods block and may be called from any thread.
"""

from __future__ import annotations

import time
from collections.abc import Collection
from dataclasses import replace

from cml_dask_magics.fleet.fleet import Fleet
from cml_dask_magics.model.lifecycle import FAILED_REPLACEMENTS
from cml_dask_magics.registry.run_folder import scheduler_session

REFUSED_PAUSE_S = 60.0
_NAMED_WORKERS = 3
_IDLE_WORDS = "closing after being idle"
_READ_LINES = 500  # connections that it cuts then print their tracebacks


class Healer:
    """Keeps one cluster at as many sessions as were asked for.

    Parameters
    ----------
    fleet : Fleet
        The cluster's sessions.
    """

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._not_before = 0.0

    def heal(self) -> None:
        """Launch a session for every worker that is missing, unless that has turned out to be of no use."""
        fleet = self._fleet
        requested = fleet.record.requested
        if len(fleet.plan) >= requested or not self.may_launch():
            return
        lost = [session.id for session in fleet.lost.values() if session.role == "worker"]
        new = self.launch(requested)
        if new:
            fleet.log(f"{named(new)} launched in place of {named(lost) if lost else 'what is missing'}")
            fleet.drop_lost(lost)

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
            fleet.log(event + self._last_words())
        return False

    def launch(self, n: int) -> list[str]:
        """Launch what is missing to `n` workers, keep what comes, and ask again later for what does not."""
        launched = self._fleet.grow(n, automatic=True)
        if launched.refusals:
            self._not_before = time.monotonic() + REFUSED_PAUSE_S
            self._fleet.tidy_refusal(launched, launched.strays)
        return [info.id for info in launched.sessions]

    def ended_idle(self) -> bool:
        """Whether a scheduler that is gone had ended by its idle timeout, as it prints then."""
        scheduler = scheduler_session(self._fleet.folder)
        return any(_IDLE_WORDS in line for line in self._fleet.tail(scheduler, _READ_LINES))

    def end_lost(self) -> None:
        """End the sessions of a cluster whose scheduler is gone; the record keeps its settings for the next start.

        Raises
        ------
        StillUpError
            Naming the sessions that the platform did not end.
        """
        name = self._fleet.record.name
        event = f"the scheduler is gone; the sessions of its workers are ended. %dask_up --name {name} starts anew"
        record = self._fleet.update(lambda record: replace(record, state="lost").with_event(event))
        self._fleet.stop([session.id for session in record.sessions])

    def _last_words(self) -> str:
        """What the session that was lost last printed in the end."""
        lost = list(self._fleet.lost)
        lines = self._fleet.tail(lost[-1], 1) if lost else []
        return f". The last of them, {lost[-1]}, printed: {lines[-1]}" if lines else ""


def named(sessions: Collection[str]) -> str:
    """Workers by the ids of their sessions, as long as they are few."""
    if len(sessions) > _NAMED_WORKERS:
        return f"{len(sessions)} workers"
    return ("worker " if len(sessions) == 1 else "workers ") + ", ".join(sorted(sessions))
