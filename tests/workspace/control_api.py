"""The test's side of the server: faults, settings and truth, one method a request."""

from __future__ import annotations

import threading
import traceback
from typing import Any

from .faults import Faults
from .platform_api import PlatformAPI, Reply
from .table import Table


class ControlAPI:
    """Each public method but `call` is a request `/control/NAME`; arguments and results are JSON."""

    def __init__(self, table: Table, faults: Faults, platform: PlatformAPI, finished: threading.Event) -> None:
        self._table = table
        self._faults = faults
        self._platform = platform
        self._finished = finished

    def call(self, name: str, arguments: dict[str, Any]) -> Reply:
        """Answer one request; an error goes back to the test as its text."""
        try:
            method = None if name.startswith("_") or name == "call" else getattr(self, name, None)
            if method is None:
                raise ValueError(f"no control call {name!r}")
            return Reply.json(method(**arguments))
        except Exception as error:
            return Reply.json({"error": f"{type(error).__name__}: {error}", "trace": traceback.format_exc()}, 500)

    def open_session(self, python: str) -> str:
        """Open a person's session."""
        return self._table.open(python).id

    def launch(self, caller: str, foreign: bool, request: dict[str, Any]) -> str:
        """Launch a session behind the package's back; no fault strikes it."""
        return self._table.launch(caller, request, foreign=foreign).id

    def sessions(self) -> list[dict[str, Any]]:
        """Return every session as it really is."""
        return self._table.truth()

    def calls(self) -> list[dict[str, Any]]:
        """Return the log of requests."""
        return self._platform.calls()

    def fault(
        self,
        name: str,
        times: int | None,
        skip: int,
        sessions: list[str] | None,
        code: str,
        options: dict[str, Any],
    ) -> None:
        """Switch a fault on."""
        self._faults.switch_on(name, times, skip, sessions, code, **options)

    def clear_faults(self, name: str | None) -> None:
        """Switch one fault off, or all."""
        self._faults.clear(name)

    def configure(self, changes: dict[str, Any]) -> None:
        """Change settings; sessions that run already keep theirs."""
        self._table.settings = self._table.settings.changed(changes)
        self._table.wake()

    def end_session(self, session: str, status: str, hard: bool) -> None:
        """End a session from outside: stopped, failed, timed out."""
        record = self._table.get(session)
        if record is None:
            raise KeyError(session)
        self._table.stop(record, status, hard)

    def set_link(self, session: str, up: bool) -> None:
        """Cut or heal a session's network."""
        self._table.set_link(session, up)

    def close(self) -> None:
        """End the server."""
        self._finished.set()
