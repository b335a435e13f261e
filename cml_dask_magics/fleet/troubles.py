"""Writes what went wrong with a cluster's workers into its record: once, whichever kernels hear of it."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Collection, Set
from dataclasses import replace

from cml_dask_magics.fleet.fleet import Fleet, end_words
from cml_dask_magics.model.record import Record, SessionRecord, TroubleRecord
from cml_dask_magics.model.trouble import (
    SHOWN_S,
    GivenUp,
    Trouble,
    death_words,
    given_up_words,
    is_news,
    is_news_of,
    memory_words,
)

_NANNYS_WORDS = re.compile(r"Worker process \d+ (was killed by signal \d+|exited with status \d+)")
_READ_LINES = 50  # a worker that starts anew prints some after them


class Troubles:
    """What one kernel writes down of the troubles that a cluster's scheduler tells.

    All methods block and may be called from any thread.

    Parameters
    ----------
    fleet : Fleet
        The cluster's sessions.
    """

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._lock = threading.Lock()
        # Since when this kernel knows of a death whose cause is not clear; and what it has written down out of turn.
        self._heard_at: dict[int, float] = {}
        self._written: set[int] = set()

    def write(self, troubles: Collection[Trouble], connected: Set[str]) -> None:
        """Write down what is new and clear; to be called again while the scheduler tells of others.

        Parameters
        ----------
        troubles : collection of Trouble
            All that the scheduler told of, oldest first.
        connected : set of str
            Names of the workers that are connected.
        """
        with self._lock:
            new = [trouble for trouble in troubles if not self._is_written(trouble)]
            clear = [trouble for trouble in new if self._is_clear(trouble, connected)]
            if not clear:
                return
            self._written.update(trouble.number for trouble in clear)
            waiting = [trouble.number for trouble in new if trouble not in clear]
            written = (min(waiting) if waiting else max(self._written) + 1) - 1

            # Before the record is locked, for it reads the sessions' output.
            how = {trouble.number: self._how_it_died(trouble) for trouble in clear}

            def change(record: Record) -> Record:
                for trouble in clear:
                    record = self._with_trouble(record, trouble, connected, how[trouble.number])
                return replace(record, troubles_written=max(record.troubles_written, written))

            self._fleet.journal.note(change)

    def _is_written(self, trouble: Trouble) -> bool:
        return trouble.number <= self._fleet.record.troubles_written or trouble.number in self._written

    def _is_clear(self, trouble: Trouble, connected: Set[str]) -> bool:
        """Whether it is known how a worker died, or will not be known any more."""
        fleet = self._fleet
        if trouble.kind != "died" or trouble.over_memory:
            return True
        if fleet.ended_as(fleet.session_of(trouble.worker)):
            return True
        if trouble.number not in self._heard_at:
            self._heard_at[trouble.number] = time.monotonic()
            fleet.pool.look_now()
        waited_s = time.monotonic() - self._heard_at[trouble.number]
        # The scheduler tells a little later if it is back because somebody had it restarted.
        return waited_s > (fleet.times.back_s if trouble.worker in connected else fleet.times.unclear_s)

    def _with_trouble(self, record: Record, trouble: Trouble, connected: Set[str], how: str) -> Record:
        """The record with what is to be said of a trouble."""
        session = self._fleet.session_of(trouble.worker)
        on_record = next((each for each in record.sessions if each.id == session), None)
        ended = self._fleet.ended_as(session)
        if trouble.kind == "meant" or ended == "stopped" or _was_told_to_end(record, on_record):
            return record
        if trouble.kind != "died":
            return _with_sentence(record, trouble, memory_words(trouble), is_news(trouble))
        is_back = trouble.worker in connected
        words = death_words(trouble, record.name, session, ended, is_back, how)
        if ended:  # this says more
            plain = end_words(session, "worker", ended)
            record = replace(record, events=tuple(event for event in record.events if event[1] != plain))
        record = _with_sentence(record, trouble, words, is_event=bool(ended) or is_news(trouble))
        for given_up in trouble.given_up:
            by_platform = self._ended_for_memory(given_up)
            words = given_up_words(given_up, trouble.limit_bytes, record.name, session, by_platform)
            # The same task may fail as before: that is news, whatever was said; but another kernel may have said it.
            if is_news_of(given_up) and (trouble.at, words) not in record.events:
                record = record.with_event(words, trouble.at)
            record = _showing(record, TroubleRecord(trouble.at, words, is_failure=True))
        return record

    def _how_it_died(self, trouble: Trouble) -> str:
        """How a worker's process ended, as its nanny printed it last."""
        if trouble.kind != "died" or trouble.over_memory:
            return "died"
        printed = _NANNYS_WORDS.findall(
            "\n".join(self._fleet.tail(self._fleet.session_of(trouble.worker), _READ_LINES))
        )
        return printed[-1] if printed else "died"

    def _ended_for_memory(self, given_up: GivenUp) -> int:
        """How many of the workers over which tasks were given up the platform had ended, as it does for memory."""
        sessions = set(map(self._fleet.session_of, given_up.workers))
        return sum(self._fleet.ended_as(session) == "failed" for session in sessions)


def _was_told_to_end(record: Record, session: SessionRecord | None) -> bool:
    return record.state in ("stopping", "lost") or (session is not None and session.stopping_at is not None)


def _with_sentence(record: Record, trouble: Trouble, sentence: str, is_event: bool) -> Record:
    """The record with a sentence as an event and as the trouble that is shown; what is said already is not repeated."""
    said = [message for at, message in record.events if abs(trouble.at - at) < SHOWN_S]
    # A worker that was restarted before may have lost other data this time.
    is_said = sentence in said if trouble.n_lost else _what(sentence) in map(_what, said)
    if is_event and not is_said:
        record = record.with_event(sentence, trouble.at)
    elif record.trouble is not None and _what(record.trouble.message) != _what(sentence):  # says more than one more
        return record
    if trouble.kind == "died" and not trouble.n_lost and _is_failure_shown(record, trouble.at):
        return record
    paused = trouble.worker if trouble.kind in ("paused", "stuck") else ""
    return _showing(record, TroubleRecord(trouble.at, sentence, paused))


def _showing(record: Record, trouble: TroubleRecord) -> Record:
    """The record with the trouble that is shown, unless a later one is: how a worker died may be clear late."""
    is_later = record.trouble is not None and record.trouble.at > trouble.at
    return record if is_later else replace(record, trouble=trouble)


def _is_failure_shown(record: Record, at: float) -> bool:
    return record.trouble is not None and record.trouble.is_failure and at - record.trouble.at < SHOWN_S


def _what(sentence: str) -> str:
    """What happened, without figures that differ from one time to the next."""
    return re.split("; |, as ", sentence)[0]
