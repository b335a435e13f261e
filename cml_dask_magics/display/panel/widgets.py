"""What all parts of the panel share: how widgets are made, changed and closed.

Knows nothing of clusters.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ipywidgets

from cml_dask_magics.display.html.looks import classed

HIDDEN = "none"
WRAP = {"flex_flow": "row wrap", "align_items": "center", "grid_gap": "0 6px"}


def boxed(html: str) -> str:
    """Pieces of HTML as the style sheet expects them."""
    return f"<div{classed('box')}>{html}</div>" if html else ""


def button(description: str, tooltip: str, pressed: Callable[[Any], None], style: str = "", look: str = "") -> Any:
    """A button as wide as its word; ``style`` is one of ipywidgets', ``look`` a class of the style sheet."""
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
        # Told with every key, or a refresh would take a number away that is not finished yet.
        continuous_update=True,
        style={"description_width": "initial"},
        layout={"width": width},
    )


def change(widget: Any, **traits: Any) -> None:
    """Change what differs, in one message: every assignment that changes a trait is one to each browser that looks."""
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
    """Close a widget with all that hangs on it; ipywidgets leaves layouts, styles and children open."""
    for child in getattr(widget, "children", ()):
        close(child)
    for part in (widget.layout, getattr(widget, "style", None)):
        if part is not None:
            part.close()
    widget.close()
