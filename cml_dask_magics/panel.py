"""The panel of one cluster in a notebook: draws a ``ClusterStatus`` and turns clicks into calls.

Knows neither sessions nor files, and has no timer: whoever owns it calls ``draw``.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import ipywidgets

from . import render, render_html
from .render_html import Kind
from .render_looks import classed, inline, stylesheet
from .render_words import MAX_ROWS, clean, plural, utc_now
from .status import ClusterStatus

_HIDDEN = "none"
_VIEW = "application/vnd.jupyter.widget-view+json"


@dataclass(frozen=True)
class PanelActions:
    """What the panel's buttons do. Each may take as long as it needs, and may raise.

    Parameters
    ----------
    scale : callable
        ``scale(n)``: give the cluster ``n`` workers.
    stop : callable
        ``stop()``: end the cluster; returns a summary of one or a few sentences.
    max_workers : int
        The largest number that the panel lets the user ask for.
    """

    scale: Callable[[int], object]
    stop: Callable[[], str]
    max_workers: int = 500


class Panel:
    """One cluster, to see and to steer. Shown many times, it is still one set of widgets.

    Parameters
    ----------
    actions : PanelActions
        What the buttons do, each in a thread of its own, so that neither the kernel nor Dask waits.
    name : str
        The cluster's name, for the time before the first ``draw``.
    """

    def __init__(self, actions: PanelActions, name: str = "default") -> None:
        self._actions = actions
        self._name = name
        self._lock = threading.RLock()
        self._status: ClusterStatus | None = None
        self._finished: tuple[str, Kind] | None = None
        self._doing = ""
        self._error = ""
        self._asking = False
        self._followed = 1

        self._style = ipywidgets.HTML(stylesheet())
        # Several pieces, so that a change of one leaves the others, and the focus in them, alone.
        self._head, self._link, self._gauges, self._table, self._events, self._note, self._question = (
            ipywidgets.HTML() for _ in range(7)
        )
        self._count = ipywidgets.BoundedIntText(
            value=1,
            min=1,
            max=actions.max_workers,
            description="Workers",
            style={"description_width": "initial"},
            layout={"width": "130px"},
        )
        self._scale = _button("Scale", "Give the cluster this many workers", self._on_scale)
        self._stop = _button("Stop", "Stop the cluster; asks before it does", self._on_stop)
        self._yes = _button("Stop them", "Stop the workers and the scheduler now", self._on_yes, "danger")
        self._no = _button("Keep", "Keep the cluster running", self._on_no)
        wrap = {"flex_flow": "row wrap", "align_items": "center"}
        self._steering = ipywidgets.HBox([self._count, self._scale, self._stop], layout=wrap)
        self._confirm = ipywidgets.HBox([self._question, self._yes, self._no], layout=wrap | {"display": _HIDDEN})
        self._root = ipywidgets.VBox(
            [
                self._style,
                self._head,
                self._link,
                self._gauges,
                self._steering,
                self._confirm,
                self._note,
                self._table,
                self._events,
            ]
        )
        self._root.add_class("cdm-panel")
        self._show(utc_now())

    def draw(self, status: ClusterStatus, now: datetime | None = None) -> None:
        """Show a snapshot; sends only what differs from what is shown. From any thread.

        Parameters
        ----------
        status : ClusterStatus
            Ignored once the panel is finished.
        now : datetime or None
            The time to count from; None for now.
        """
        with self._lock:
            if self._finished is None:
                self._status = status
                self._name = status.name
                self._show(now or utc_now())

    def finish(self, summary: str, kind: Kind = "ended") -> None:
        """Turn the panel into a summary for good; the steering goes away. From any thread.

        Parameters
        ----------
        summary : str
            What to say: usage and uptime, or why the cluster failed. May have several lines.
        kind : "ended" or "failed"
            How the cluster ended.
        """
        with self._lock:
            first = self._finished is None
            self._finished = summary, kind
            _set(self._head, value=_boxed(render_html.summary(self._name, summary, kind, classed)))
            if first:
                kept = (self._style, self._head, self._events)
                gone = [child for child in self._root.children if child not in kept]
                self._root.children = kept
                for widget in gone:
                    _close(widget)

    def close(self) -> None:
        """Take the panel off every page and release its widgets."""
        with self._lock:
            if self._finished is None:
                self._finished = "", "ended"
            _close(self._root)

    def mimebundle(self, now: datetime | None = None) -> dict[str, Any]:
        """What a notebook shows and saves: the live panel, and for places without widgets the same facts.

        Parameters
        ----------
        now : datetime or None
            The time to count from; None for now.

        Returns
        -------
        dict
            The widget view, ``text/html`` and ``text/plain``; of a finished panel only the last two, so that
            what is displayed or updated with it from then on needs no kernel.
        """
        with self._lock:
            bundle = dict(self._root._repr_mimebundle_())
            if self._finished is not None:
                bundle.pop(_VIEW, None)
                summary, kind = self._finished
                bundle["text/html"] = (
                    f"<div{inline('box')}>{render_html.summary(self._name, summary, kind, inline)}</div>"
                )
                bundle["text/plain"] = clean(f"{self._name}: {kind}. {summary}")
            elif self._status is not None:
                bundle["text/html"] = render.to_html(self._status, now)
                bundle["text/plain"] = render.to_text([self._status], max_rows=MAX_ROWS, now=now)
            else:
                bundle["text/html"] = bundle["text/plain"] = "The cluster is about to start."
            return bundle

    def _repr_mimebundle_(self, **_: Any) -> dict[str, Any]:
        return self.mimebundle()

    def _show(self, now: datetime) -> None:
        """Bring the widgets in line with what is known; the one place that changes them while the cluster lives."""
        status = self._status
        state = status.state if status is not None else "starting"
        idle = not self._doing
        if status is None:
            _set(self._head, value=_boxed(render_html.preparing(self._name, classed)))
        else:
            gauges = render_html.progress if state == "starting" else render_html.tiles
            _set(self._head, value=_boxed(render_html.head(status, now, classed)))
            _set(self._link, value=_boxed(render_html.link(status, classed)))
            _set(self._gauges, value=_boxed(render_html.advice(status, classed) + gauges(status, classed)))
            _set(self._table, value=_boxed(render_html.table(status, now, classed)))
            _set(self._events, value=_boxed(render_html.events(status.events, now, classed)))
            _set(self._question, value=_boxed(f"Stop {plural(len(status.workers), 'worker')} and the scheduler?"))
            self._follow(status.requested)
        can_scale = idle and state in ("running", "degraded")
        can_stop = idle and status is not None and state != "stopping"
        self._asking = self._asking and can_stop
        _set(self._count, disabled=not can_scale)
        _set(self._scale, disabled=not can_scale)
        for button in (self._stop, self._yes, self._no):
            _set(button, disabled=not can_stop)
        _set(self._steering.layout, display=_HIDDEN if self._asking else None)
        _set(self._confirm.layout, display=None if self._asking else _HIDDEN)
        note = render_html.busy(self._doing, classed) + render_html.error(self._error, classed)
        _set(self._note, value=_boxed(note))

    def _follow(self, requested: int) -> None:
        """Keep the number box at what was asked for, unless the user is about to ask for something else."""
        target = min(max(requested, self._count.min), self._count.max)
        if self._count.value in (self._followed, target):
            self._followed = target
            _set(self._count, value=target)

    def _on_scale(self, _: Any) -> None:
        n = self._count.value
        self._start(f"scaling to {n}", f"Could not scale to {n}", lambda: self._actions.scale(n))

    def _on_stop(self, _: Any) -> None:
        with self._lock:
            if not self._doing and self._finished is None:
                self._asking = True
                self._error = ""
                self._show(utc_now())

    def _on_no(self, _: Any) -> None:
        with self._lock:
            if self._finished is None:
                self._asking = False
                self._show(utc_now())

    def _on_yes(self, _: Any) -> None:
        self._start("stopping", "Could not stop", lambda: self.finish(self._actions.stop()))

    def _start(self, doing: str, failure: str, action: Callable[[], object]) -> None:
        """Show that the button was pressed, then act in a thread: a kernel that waits can draw nothing."""
        with self._lock:
            # Clicks queue up while the kernel is busy; only the first of them is meant.
            if self._doing or self._finished is not None:
                return
            self._doing, self._error, self._asking = doing, "", False
            self._show(utc_now())
        threading.Thread(target=self._run, args=(failure, action), name=f"panel {doing}", daemon=True).start()

    def _run(self, failure: str, action: Callable[[], object]) -> None:
        message = ""
        try:
            action()
        # Also what is no Exception, such as asyncio's CancelledError: in this thread nobody else would tell the user.
        except BaseException as error:
            message = f"{failure}: {str(error) or type(error).__name__}"
        with self._lock:
            self._doing, self._error = "", message
            if self._finished is None:
                self._show(utc_now())


def _boxed(html: str) -> str:
    return f"<div{classed('box')}>{html}</div>" if html else ""


def _button(description: str, tooltip: str, pressed: Callable[[Any], None], button_style: str = "") -> Any:
    button = ipywidgets.Button(
        description=description, tooltip=tooltip, button_style=button_style, layout={"width": "auto"}
    )
    button.on_click(pressed)
    return button


def _set(widget: Any, **traits: Any) -> None:
    """Change what differs: every assignment that changes a trait is a message to each browser that looks."""
    for name, value in traits.items():
        if getattr(widget, name) != value:
            setattr(widget, name, value)


def _close(widget: Any) -> None:
    """Close a widget with all that hangs on it; ipywidgets leaves layouts, styles and children open."""
    for child in getattr(widget, "children", ()):
        _close(child)
    for part in (widget.layout, getattr(widget, "style", None)):
        if part is not None:
            part.close()
    widget.close()
