"""The two outputs of a panel in a notebook: the widget, and below it the same facts as HTML and text.

Only one of them is visible: a live widget has a style sheet that hides the facts. A saved notebook has no live widget,
so it shows the facts, whose style sheet hides what the front end shows in place of the widget.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from IPython.display import display, update_display

VIEW = "application/vnd.jupyter.widget-view+json"


class Output:
    """The outputs of one widget; one message updates all of them.

    Parameters
    ----------
    widget : ipywidgets.Widget
        Contains the style sheet from ``style_of``.
    facts : callable
        Returns the same as HTML and as plain text.
    """

    def __init__(self, widget: Any, facts: Callable[[], tuple[str, str]]) -> None:
        self._widget = widget
        self._facts = facts
        self._id = _class_of(widget)
        self._over = False
        self._displayed = False

    def display(self) -> None:
        """Display the widget and the facts once more."""
        view = {} if self._over else {VIEW: self._widget._repr_mimebundle_()[VIEW]}
        display(view, raw=True, display_id=f"{self._id}-live")
        display(self._bundle(), raw=True, display_id=self._id)
        self._displayed = True

    def refresh(self) -> None:
        """Update the facts."""
        if self._displayed:
            update_display(self._bundle(), raw=True, display_id=self._id)

    def end(self) -> None:
        """Remove the widget for good and leave the facts, which need no kernel."""
        self._over = True
        if self._displayed:
            update_display({}, raw=True, display_id=f"{self._id}-live")
        self.refresh()

    def _bundle(self) -> dict[str, str]:
        html, text = self._facts()
        if not self._over:
            child = ".jp-OutputArea-child"
            dead = f"{child}:not(:has(.cdm-panel)):has(+{child} .{self._id})"
            html = f'<div class="{self._id}"><style>{dead}{{display:none}}</style>{html}</div>'
        return {"text/html": html, "text/plain": text}


def style_of(widget: Any) -> str:
    """The style sheet that hides the facts while the widget is on the page."""
    name = _class_of(widget)
    # Two style sheets: a browser without :has would ignore both rules in one.
    return f"<style>.{name}{{display:none}}</style><style>.jp-OutputArea-child:has(.{name}){{display:none}}</style>"


def _class_of(widget: Any) -> str:
    return f"cdm-facts-{widget.model_id}"
