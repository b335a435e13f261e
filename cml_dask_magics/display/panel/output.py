"""What a notebook shows, and what it keeps, of a widget: the widget, and below it the same facts as HTML and as text.

A widget lives as long as its kernel, and where widgets are known. So there are two outputs, of which one is seen: the
style sheet of a live widget hides the facts, and the facts' own hides what a front end puts in place of a dead widget.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from IPython.display import display, update_display

VIEW = "application/vnd.jupyter.widget-view+json"


class Output:
    """The outputs that show one widget; however many they are, one message brings all of them up to date.

    Parameters
    ----------
    widget : ipywidgets.Widget
        Has ``style_of`` its own outputs somewhere in it.
    facts : callable
        The same as HTML and as plain text.
    """

    def __init__(self, widget: Any, facts: Callable[[], tuple[str, str]]) -> None:
        self._widget = widget
        self._facts = facts
        self._id = _class_of(widget)
        self._over = False
        self._displayed = False

    def display(self) -> None:
        """Show it in one more place."""
        view = {} if self._over else {VIEW: self._widget._repr_mimebundle_()[VIEW]}
        display(view, raw=True, display_id=f"{self._id}-live")
        display(self._bundle(), raw=True, display_id=self._id)
        self._displayed = True

    def refresh(self) -> None:
        """Bring the facts up to date."""
        if self._displayed:
            update_display(self._bundle(), raw=True, display_id=self._id)

    def end(self) -> None:
        """Leave the facts alone on the page, for good: they need no kernel."""
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
    # Two rules: a browser that does not know :has must still take the first.
    return f"<style>.{name}{{display:none}}</style><style>.jp-OutputArea-child:has(.{name}){{display:none}}</style>"


def _class_of(widget: Any) -> str:
    return f"cdm-facts-{widget.model_id}"
