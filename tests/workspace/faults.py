"""The faults that a test can switch on: which there are, and which of them strikes now."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import Any

KNOWN = {
    "launch_refused": "the answer has no `id`, only `message`; nothing is created",
    "launch_refused_after_creation": "the answer has no `id`, but the `engineId` of a session that was created",
    "launch_html": "the answer is HTML; nothing is created",
    "launch_html_after_creation": "the answer is HTML, and a session was created",
    "launch_reset": "the connection is reset; nothing is created",
    "launch_reset_after_creation": "the connection is reset, and a session was created",
    "launch_slow": "the answer takes `delay_s`, after the session was created",
    "launch_bare": "the answer has nothing but `id`",
    "session_never_starts": "the session stays `scheduling` until it is stopped",
    "session_fails_before_running": "the session ends `status` (`failed`) instead of running",
    "session_dies_before_code": "the session runs, then ends `failed` before its code was run",
    "session_address_unknown": "the session runs its code, but `ip_address` stays `unknown` for ever",
    "session_killed": "every process gets SIGKILL `after_s` into running; the status is `status` (`failed`)",
    "list_reset": "the connection is reset",
    "list_html": "the answer is HTML",
    "list_not_a_list": "the answer is `{'message': ...}`",
    "list_slow": "the answer takes `delay_s`",
    "list_missing": "sessions `ids` (or one at random) are not in the answer",
    "list_unknown_status": "sessions `ids` (or all) have the status `word`",
    "list_missing_fields": "sessions lack `fields` (all but `id` and `status`)",
    "list_foreign": "`count` sessions that nobody here launched are in the answer too",
    "stop_error": "the answer is `status_code` (500) and nothing stops",
    "stop_ignored": "the answer is 204 and nothing stops",
    "stop_reset": "the connection is reset and nothing stops",
    "stop_slow": "the answer takes `delay_s`, before anything stops",
}


@dataclass
class Fault:
    """One fault that is switched on; it passes over `skip` chances, then strikes `times` times.

    Where `code` is given, it strikes only launches of sessions whose code contains it.
    With the option `every` it strikes at every so manieth chance only.
    """

    name: str
    times: int | None = None
    skip: int = 0
    sessions: list[str] | None = None
    code: str = ""
    options: dict[str, Any] = field(default_factory=dict)
    chances: int = 0


class Faults:
    """The faults that are on, the oldest first; safe to use from many threads."""

    def __init__(self) -> None:
        self._on: list[Fault] = []
        self._lock = threading.Lock()

    def switch_on(
        self,
        name: str,
        times: int | None = None,
        skip: int = 0,
        sessions: list[str] | None = None,
        code: str = "",
        **options: Any,
    ) -> None:
        """Switch a fault on, for the next `times` chances (None: until cleared), for some sessions or all."""
        if name not in KNOWN:
            raise ValueError(f"no fault is called {name!r}; there are {', '.join(sorted(KNOWN))}")
        with self._lock:
            self._on.append(Fault(name, times, skip, sessions, code, options))

    def clear(self, name: str | None = None) -> None:
        """Switch one fault off, or all."""
        with self._lock:
            self._on = [fault for fault in self._on if name is not None and fault.name != name]

    def take(self, name: str, session: str | None = None, code: str = "") -> dict[str, Any] | None:
        """Return the options of fault `name` if it strikes now, else None; a strike is used up."""
        with self._lock:
            for fault in self._on:
                if fault.name != name or (fault.sessions is not None and session not in fault.sessions):
                    continue
                if fault.code not in code:
                    continue
                if fault.skip > 0:
                    fault.skip -= 1
                    continue
                fault.chances += 1
                if fault.chances % fault.options.get("every", 1):
                    continue
                if fault.times is not None:
                    fault.times -= 1
                    if fault.times <= 0:
                        self._on.remove(fault)
                return fault.options
        return None
