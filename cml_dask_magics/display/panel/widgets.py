"""Helpers that make, change and close the panel's widgets."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ipywidgets

from cml_dask_magics.display.html.looks import classed

HIDDEN = "none"
WRAP = {"flex_flow": "row wrap", "align_items": "center", "grid_gap": "0 6px"}


def boxed(html: str) -> str:
    """Wrap HTML for the style sheet."""
    return f"<div{classed('box')}>{html}</div>" if html else ""


def button(description: str, tooltip: str, pressed: Callable[[Any], None], style: str = "", look: str = "") -> Any:
    """A button; ``style`` is one of ipywidgets' styles, ``look`` a class of the style sheet."""
    made = ipywidgets.Button(description=description, tooltip=tooltip, button_style=style, layout={"width": "auto"})
    if look:
        made.add_class(look)
    made.on_click(pressed)
    return made


def number(description: str, value: int, low: int, width: str = "130px") -> Any:
    """A box for a number of workers."""
    return ipywidgets.BoundedIntText(
        value=value,
        min=low,
        description=description,
        # Sent with every key, or a refresh would overwrite a number that is being typed.
        continuous_update=True,
        style={"description_width": "initial"},
        layout={"width": width},
    )


def change(widget: Any, **traits: Any) -> None:
    """Set the traits that differ, in one message to the browser."""
    differing = {name: value for name, value in traits.items() if getattr(widget, name) != value}
    if len(differing) == 1:
        setattr(widget, *differing.popitem())
    elif differing:
        with widget.hold_sync():
            for name, value in differing.items():
                setattr(widget, name, value)


def show(widget: Any, visible: bool) -> None:
    """Show or hide a widget."""
    change(widget.layout, display=None if visible else HIDDEN)


def close(widget: Any) -> None:
    """Close a widget and its children, layouts and styles, which ipywidgets leaves open."""
    for child in getattr(widget, "children", ()):
        close(child)
    for part in (widget.layout, getattr(widget, "style", None)):
        if part is not None:
            part.close()
    widget.close()
