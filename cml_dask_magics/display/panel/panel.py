"""The panel of one cluster in a notebook: draws a ``ClusterStatus`` and turns clicks into calls."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any

import ipywidgets

from cml_dask_magics.display.actions import PanelActions
from cml_dask_magics.display.html import pieces
from cml_dask_magics.display.html.looks import Dress, classed, inline
from cml_dask_magics.display.listing import PAGE_ROWS
from cml_dask_magics.display.panel.controls import Steering
from cml_dask_magics.display.panel.log_view import LogView
from cml_dask_magics.display.panel.output import style_of
from cml_dask_magics.display.panel.page import page_piece
from cml_dask_magics.display.panel.widgets import (
    WRAP,
    are_heard_while_cells_run,
    boxed,
    button,
    change,
    close,
    hear_while_cells_run,
    show,
)
from cml_dask_magics.display.panel.worker_table import WorkerTable
from cml_dask_magics.display.text import ended_line, status_line, to_text
from cml_dask_magics.display.words import MAX_EVENTS, MORE_EVENTS, Kind, totals, utc_now
from cml_dask_magics.model.status import ClusterStatus, SessionStatus
from cml_dask_magics.model.words import clean

_BUSY = "The notebook is busy: buttons act when the cell is done."


class Panel:
    """One set of widgets for a cluster, which can be displayed many times.

    Parameters
    ----------
    actions : PanelActions
        What the controls do, each in its own thread, so that neither the kernel nor Dask waits.
    name : str
        The cluster's name, until the first ``draw``.
    log_every_s : float
        A followed log is read at most once in this time.
    """

    def __init__(self, actions: PanelActions, name: str = "default", log_every_s: float = 2.0) -> None:
        self._actions = actions
        self._name = name
        self._lock = threading.RLock()
        self._status: ClusterStatus | None = None
        # The last snapshot while it was up, and its time, for the summary.
        self._up: tuple[ClusterStatus, datetime] | None = None
        self._finished: tuple[str, Kind] | None = None
        self._doing = ""
        self._stopping = False
        self._error = ""
        self._busy = False
        self._all_events = False

        self._page = ipywidgets.HTML()
        # Several widgets, so that a change of one keeps the focus in the others.
        self._head, self._facts, self._links, self._gauges, self._note, self._events = (
            ipywidgets.HTML() for _ in range(6)
        )
        self._keep = button("Keep", "Restart the idle countdown", self._on_keep, look="cdm-small")
        self._more = button("More events", "Show more events, or fewer", self._on_more, look="cdm-link")
        log = LogView(actions.log, self._lock, log_every_s) if actions.log is not None else None
        self._steering = Steering(actions, log, self._start, self._stop, self._redraw, self._lock)
        self._table = WorkerTable(self._redraw, self._lock)
        self._root = ipywidgets.VBox(
            [
                self._page,
                self._head,
                ipywidgets.HBox([self._facts, self._keep], layout=WRAP),
                self._links,
                self._gauges,
                self._steering.widget,
                self._note,
                self._table.widget,
                self._events,
                self._more,
            ]
        )
        self._root.add_class("cdm-panel")
        self._page.value = page_piece() + style_of(self._root)
        # A number here makes front ends count the views.
        self._root._view_count = 0
        self._root.observe(self._on_views, "_view_count")
        self._seen = False
        hear_while_cells_run(self._root)
        self._show(utc_now())

    @property
    def shown(self) -> bool:
        """Whether the panel may be visible: False after a front end has removed its last view.

        A front end that disappears, such as a page that is reloaded, does not subtract its views.
        """
        return self._root._view_count != 0 or not self._seen

    @property
    def widget(self) -> Any:
        """The panel's widget."""
        return self._root

    @property
    def finished(self) -> bool:
        """Whether it has become a summary."""
        return self._finished is not None

    @property
    def line(self) -> str:
        """The cluster in one line, for a list of clusters."""
        with self._lock:
            if self._finished is not None:
                return ended_line(self._name, self._finished[1])
            return status_line(self._status) if self._status is not None else f"{clean(self._name)}: starting"

    def draw(self, status: ClusterStatus, now: datetime | None = None) -> None:
        """Show a snapshot; sends only what changed. From any thread. Ignored once the panel is finished."""
        with self._lock:
            if self._finished is None:
                now = now or utc_now()
                self._status = status
                self._name = status.name
                if self._up is None or status.state in ("starting", "running", "degraded"):
                    self._up = status, now
                self._show(now)

    def busy(self, flag: bool) -> None:
        """Show or hide the note that a running cell delays clicks, if it does. From any thread."""
        with self._lock:
            self._busy = flag
            if self._finished is None:
                self._show_note()

    def finish(self, summary: str, kind: Kind = "ended") -> None:
        """Turn the panel into a summary, without controls. From any thread.

        Parameters
        ----------
        summary : str
            Usage and uptime, or why the cluster failed; may have several lines.
        kind : "ended" or "failed"
            How the cluster ended.
        """
        with self._lock:
            first = self._finished is None
            self._finished = summary, kind
            change(self._head, value=boxed(self._summary(classed)))
            if first:
                kept = (self._page, self._head, self._events)
                self._steering.close()
                gone = [child for child in self._root.children if child not in kept]
                self._root.children = kept
                for widget in gone:
                    close(widget)

    def close(self) -> None:
        """Remove the panel from all pages and release its widgets."""
        with self._lock:
            if self._finished is None:
                self._finished = "", "ended"
                self._steering.close()
            close(self._root)

    def facts(self, now: datetime | None = None) -> tuple[str, str]:
        """The same as HTML and as plain text, for places without widgets."""
        with self._lock:
            if self._finished is not None:
                summary, kind = self._finished
                return pieces.page(self._summary(inline)), clean(f"{self._name}: {kind}. {summary}")
            if self._status is None:
                return pieces.page(pieces.preparing(self._name, inline)), self.line
            now = now or utc_now()
            text = to_text([self._status], max_rows=PAGE_ROWS, now=now)
            return pieces.to_html(self._status, now), text

    def _summary(self, dress: Dress) -> str:
        assert self._finished is not None
        summary, kind = self._finished
        # The message of a failed start lists the sessions itself.
        seen = pieces.last_seen(*self._up, dress) if self._up is not None and kind == "ended" else ""
        return pieces.summary(self._name, summary, kind, dress) + seen

    def _show(self, now: datetime) -> None:
        """Update all widgets; only this changes them while the cluster is alive."""
        status, idle = self._status, not self._doing
        rows: Sequence[SessionStatus] = ()
        if status is None:
            change(self._head, value=boxed(pieces.preparing(self._name, classed)))
        else:
            sums = totals(status)
            gauges = pieces.progress if status.state == "starting" else pieces.tiles
            change(self._head, value=boxed(pieces.head(status, sums, classed)))
            change(self._facts, value=boxed(pieces.facts(status, now, classed)))
            change(self._links, value=boxed(pieces.links(status, classed)))
            shown = pieces.advice(status, sums, classed) + gauges(status, sums, classed)
            change(self._gauges, value=boxed(shown))
            rows = self._table.draw(status, now).rows
            limit = MORE_EVENTS if self._all_events else MAX_EVENTS
            change(self._events, value=boxed(pieces.events(status.events, now, classed, limit)))
        counting = (
            status is not None
            and status.state in ("running", "degraded")
            and None not in (status.idle_s, status.idle_timeout_s, self._actions.keep)
        )
        show(self._keep, counting)
        change(self._keep, disabled=not idle or self._stopping)
        show(self._more, status is not None and len(status.events) > MAX_EVENTS)
        self._steering.draw(status, rows, idle, self._stopping)
        self._show_note()

    def _show_note(self) -> None:
        busy = _BUSY if self._busy and not are_heard_while_cells_run() else ""
        doing = [self._doing, "stopping" if self._stopping else ""]
        shown = [*(pieces.busy(words, classed) for words in doing), pieces.waits(busy, classed)]
        change(self._note, value=boxed("".join([*shown, pieces.error(self._error, classed)])))

    def _redraw(self) -> None:
        with self._lock:
            if self._finished is None:
                self._show(utc_now())

    def _on_views(self, count: Any) -> None:
        self._seen = self._seen or bool(count.new)

    def _on_keep(self, _: Any) -> None:
        if self._actions.keep is not None:
            self._start("restarting the idle countdown", "Could not keep it", self._actions.keep)

    def _on_more(self, _: Any) -> None:
        with self._lock:
            self._all_events = not self._all_events
            change(self._more, description="Fewer events" if self._all_events else "More events")
            self._redraw()

    def _start(self, doing: str, failure: str, action: Callable[[], object]) -> None:
        """Show that a button was pressed, then act in a thread, so that the panel can still be drawn."""
        with self._lock:
            # Clicks queue up while the kernel is busy; only the first one counts.
            if self._doing or self._stopping or self._finished is not None:
                return
            self._doing, self._error = doing, ""
            self._show(utc_now())
        self._spawn(doing, failure, action)

    def _stop(self) -> None:
        """Stop the cluster, even while another action hangs."""
        with self._lock:
            if self._stopping or self._finished is not None:
                return
            self._stopping, self._error = True, ""
            self._show(utc_now())
        self._spawn("stopping", "Could not stop", lambda: self.finish(self._actions.stop()))

    def _spawn(self, doing: str, failure: str, action: Callable[[], object]) -> None:
        threading.Thread(target=self._run, args=(doing, failure, action), name=f"panel {doing}", daemon=True).start()

    def _run(self, doing: str, failure: str, action: Callable[[], object]) -> None:
        message = ""
        try:
            action()
        # Every error, also CancelledError, because in this thread nothing else would report it.
        except BaseException as error:
            message = f"{failure}: {str(error) or type(error).__name__}"
        with self._lock:
            if doing == self._doing:
                self._doing = ""
            else:
                self._stopping = False
            self._error = message or self._error
            if self._finished is None:
                self._show(utc_now())
