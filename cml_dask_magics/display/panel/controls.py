"""The panel's controls: scale, stop, and under *More* adaptive scaling, restarting a worker and its log."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import ipywidgets

from cml_dask_magics.display.actions import PanelActions
from cml_dask_magics.display.html.looks import classed
from cml_dask_magics.display.panel.widgets import WRAP, boxed, button, change, number, show
from cml_dask_magics.model.status import ClusterStatus, SessionStatus
from cml_dask_magics.model.words import clean, plural, unit

if TYPE_CHECKING:
    from cml_dask_magics.display.panel.log_view import LogView

Start = Callable[[str, str, Callable[[], object]], None]
"""``start(doing, failure, action)``: show that a button was pressed, then act in a thread."""


class Steering:
    """Widgets that turn clicks into calls.

    Parameters
    ----------
    actions : PanelActions
    log : LogView or None
        Shows a session's log.
    start : callable
        See ``Start``.
    stop : callable
        Called when the user has confirmed to stop the cluster; works while another action runs.
    redraw : callable
        Called when the user opens or closes *More*; calls ``draw``.
    lock : threading.RLock
        Held while the panel is changed.
    """

    def __init__(
        self,
        actions: PanelActions,
        log: LogView | None,
        start: Start,
        stop: Callable[[], None],
        redraw: Callable[[], None],
        lock: threading.RLock,
    ) -> None:
        self._actions, self._start, self._redraw, self._lock = actions, start, redraw, lock
        self._can_scale = self._can_stop = False
        self._scheduler = ""
        self._unit = "worker"
        self._count = number("Workers", 1, 1)
        self._low, self._high = number("Adaptive from", 1, 0, "160px"), number("to", 1, 1, "90px")
        # The number that each box was last set to; if it shows another one, the user typed it.
        self._followed = {box: box.value for box in (self._count, self._low, self._high)}
        self._scale = button("Scale", "Scale the cluster to this number", self._on_scale)
        self._adapt = button(
            "Adapt", "Let Dask scale the cluster between these two as the work asks for", self._on_adapt
        )
        self._adaptive = ipywidgets.HTML()
        self._stop = button("Stop", "Stop the cluster; asks before it does", lambda _: self._ask(True))
        self._yes = button("Stop them", "Stop the workers and the scheduler now", lambda _: stop(), "danger")
        self._no = button("Cancel", "Let the cluster run", lambda _: self._ask(False))
        self._question = ipywidgets.HTML()
        self._session = ipywidgets.Dropdown(
            options=[],
            description="Session",
            style={"description_width": "initial"},
            layout={"width": "270px"},
            tooltip="The scheduler and the workers on this page of the table",
        )
        self._restart = button("Restart worker", "Restart what Dask runs in this session", self._on_restart)
        self._show_log = button("Log", "Show what this session printed last", self._on_log)
        self._log = log
        self._more = ipywidgets.ToggleButton(
            description="More ▾",
            tooltip="Adaptive scaling, restart a worker, show a session's log",
            layout={"width": "auto"},
        )
        self._buttons = ipywidgets.HBox([self._count, self._scale, self._stop, self._more], layout=WRAP)
        self._confirm = ipywidgets.HBox([self._question, self._yes, self._no], layout=WRAP)
        adapting = ipywidgets.HBox([self._low, self._high, self._adapt, self._adaptive], layout=WRAP)
        picking = ipywidgets.HBox([self._session, self._restart, self._show_log], layout=WRAP)
        self._drawer = ipywidgets.VBox([adapting, picking, *([log.widget] if log is not None else [])])
        self._drawer.add_class("cdm-more")
        self.widget = ipywidgets.VBox([self._buttons, self._confirm, self._drawer])
        show(adapting, actions.adapt is not None)
        show(self._restart, actions.restart is not None)
        show(self._show_log, log is not None)
        show(picking, actions.restart is not None or log is not None)
        show(self._more, any(action is not None for action in (actions.adapt, actions.restart, log)))
        show(self._confirm, False)
        show(self._drawer, False)
        self._more.observe(self._on_more, "value")
        self._session.observe(lambda _: self._switch(), "value")

    def draw(self, status: ClusterStatus | None, rows: Sequence[SessionStatus], idle: bool, stopping: bool) -> None:
        """Update the controls from a snapshot.

        Parameters
        ----------
        status : ClusterStatus or None
            None before the first one.
        rows : sequence of SessionStatus
            The workers on screen.
        idle : bool
            Whether no action runs.
        stopping : bool
            Whether the cluster is being stopped, which is possible while another action runs.
        """
        state = status.state if status is not None else "starting"
        self._can_scale = idle and not stopping and state in ("running", "degraded")
        self._can_stop = not stopping and status is not None and state != "stopping"
        if status is not None:
            for box in self._followed:
                change(box, max=status.max_workers)
            self._follow(self._count, status.requested)
            if status.adapt is not None:
                self._follow(self._low, status.adapt[0])
                self._follow(self._high, status.adapt[1])
            elif self._actions.adapt is not None:
                self._follow(self._high, max(status.requested, 1))
            self._unit = unit(status.processes)
            change(self._count, description=f"{self._unit.capitalize()}s")
            words = (
                f"on: {status.adapt[0]:,} to {status.adapt[1]:,} {self._unit}s" if status.adapt is not None else "off"
            )
            change(self._adaptive, value=boxed(f"<span{classed('faint')}>{words}</span>"))
            question = f"Stop {plural(len(status.workers), self._unit)} and the scheduler?"
            change(self._question, value=boxed(question))
            if self._more.value:
                self._offer(status, rows)
        if not self._can_stop:
            self._asked(False)
        self._switch()
        if self._log is not None:
            self._log.refresh()

    def close(self) -> None:
        """Close the log."""
        if self._log is not None:
            self._log.close()

    def _switch(self) -> None:
        """Enable the buttons that can work now, and disable the others."""
        for widget in (self._count, self._scale, self._low, self._high, self._adapt):
            change(widget, disabled=not self._can_scale)
        for widget in (self._stop, self._yes, self._no):
            change(widget, disabled=not self._can_stop)
        picked = self._session.value
        change(self._restart, disabled=not self._can_scale or not picked or picked == self._scheduler)
        change(self._show_log, disabled=not picked)

    def _offer(self, status: ClusterStatus, rows: Sequence[SessionStatus]) -> None:
        """Offer the sessions on screen, and the one that is picked."""
        self._scheduler = status.scheduler.session if status.scheduler is not None else ""
        picked = self._session.value
        sessions = {worker.session for worker in rows}
        if picked and picked != self._scheduler:
            sessions.add(picked)
        options = [(clean(session), session) for session in sorted(sessions)]
        if self._scheduler:
            options.append((f"{clean(self._scheduler)} (scheduler)", self._scheduler))
        if options and list(self._session.options) != options:
            with self._session.hold_sync():
                self._session.options = options
                self._session.value = picked if picked in sessions | {self._scheduler} else options[0][1]

    def _follow(self, box: Any, target: int) -> None:
        """Set a number box to the current value, unless the user has typed another one."""
        target = min(max(target, box.min), box.max)
        if box.value in (self._followed[box], target):
            self._followed[box] = target
            change(box, value=target)

    def _asked(self, asking: bool) -> None:
        show(self._buttons, not asking)
        show(self._confirm, asking)

    def _ask(self, asking: bool) -> None:
        with self._lock:
            if self._can_stop:
                self._asked(asking)

    def _on_more(self, _: Any) -> None:
        with self._lock:
            show(self._drawer, self._more.value)
            change(self._more, description="Less ▴" if self._more.value else "More ▾")
            if not self._more.value:
                self.close()
        self._redraw()

    def _on_scale(self, _: Any) -> None:
        n = self._count.value
        self._start(f"scaling to {n}", f"Could not scale to {n}", lambda: self._actions.scale(n))

    def _on_adapt(self, _: Any) -> None:
        low, high = sorted((self._low.value, self._high.value))
        adapt = self._actions.adapt
        if adapt is not None:
            words = f"{low} to {high} {self._unit}s"
            self._start(f"adapting from {words}", f"Could not adapt from {words}", lambda: adapt(low, high))

    def _on_restart(self, _: Any) -> None:
        session, restart = self._session.value, self._actions.restart
        if session and restart is not None:
            self._start(f"restarting {session}", f"Could not restart {session}", lambda: restart(session))

    def _on_log(self, _: Any) -> None:
        if self._log is not None and self._session.value:
            self._log.open(self._session.value)
