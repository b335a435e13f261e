"""The panel's view of one session's output, which a thread reads."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import ipywidgets

from cml_dask_magics.display.html import pieces
from cml_dask_magics.display.html.basics import text
from cml_dask_magics.display.html.looks import classed
from cml_dask_magics.display.panel.widgets import WRAP, boxed, button, change, show

LAST_LINES = 200


class LogView:
    """Widgets that show the last lines that a session printed.

    Parameters
    ----------
    read : callable
        ``read(session)``: its lines; may take long and may raise.
    lock : threading.RLock
        Held while the panel is changed.
    every_s : float
        A followed log is read at most once in this time.
    """

    def __init__(self, read: Callable[[str], list[str]], lock: threading.RLock, every_s: float) -> None:
        self._read = read
        self._every_s = every_s
        self._lock = lock
        self._session = ""
        self._reading = False
        self._read_at = 0.0
        self._text = ipywidgets.HTML()
        self._title = ipywidgets.HTML()
        self._follow = ipywidgets.ToggleButton(
            description="Follow", value=True, tooltip="Show new lines as they come", layout={"width": "auto"}
        )
        self._follow.add_class("cdm-small")
        closing = button("Close", "Close the log", lambda _: self.close(), look="cdm-small")
        head = ipywidgets.HBox([self._title, self._follow, closing], layout=WRAP | {"margin": "4px 0"})
        self.widget = ipywidgets.VBox([head, self._text])
        show(self.widget, False)
        self._follow.observe(lambda _: self.refresh(), "value")

    def open(self, session: str) -> None:
        """Show a session's log."""
        with self._lock:
            self._session = session
            self._read_at = 0.0
            title = f"Log of {text(session)}, last {LAST_LINES} lines"
            change(self._title, value=boxed(f"<span{classed('faint')}>{title}</span>"))
            change(self._text, value=boxed(pieces.busy("reading", classed)))
            show(self.widget, True)
            self._start()

    def close(self) -> None:
        """Hide the log and stop reading it."""
        with self._lock:
            self._session = ""
            show(self.widget, False)
            change(self._text, value="")

    def refresh(self) -> None:
        """Read the log again if it is open and followed, and was not read just now."""
        with self._lock:
            if self._session and self._follow.value and time.monotonic() - self._read_at >= self._every_s:
                self._start()

    def _start(self) -> None:
        if not self._reading:
            self._reading = True
            threading.Thread(target=self._run, args=(self._session,), name="panel log", daemon=True).start()

    def _run(self, session: str) -> None:
        try:
            shown = pieces.log(session, self._read(session)[-LAST_LINES:], classed)
        # Every error, because in this thread nothing else would report it.
        except BaseException as error:
            shown = pieces.error(f"Could not read the log: {str(error) or type(error).__name__}", classed)
        with self._lock:
            self._reading = False
            self._read_at = time.monotonic()
            if self._session == session:
                change(self._text, value=boxed(shown))
            elif self._session:  # another one was opened in the meantime
                self._start()
