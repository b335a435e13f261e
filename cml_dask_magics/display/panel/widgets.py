"""Helpers that make, change and close the panel's widgets."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ipywidgets
from IPython.core.getipython import get_ipython

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


def hear_while_cells_run(widget: Any) -> None:
    """Have clicks on a widget and its children handled where the front end sends them, and so beside a running cell.

    JupyterLab 4.4 and Notebook 7.4 send them to a subshell, a thread of its own, where the kernel has them (ipykernel
    7). ipykernel 7.4 overrules that: what is for a widget goes to where the widget last published from, and for one
    that was made in a cell that is behind the cells that run (``BaseComm._reply_subshell_for`` in its
    ``comm/comm.py``). Other kernels lack that method, and need nothing or have no choice.
    """
    for child in getattr(widget, "children", ()):
        hear_while_cells_run(child)
    if hasattr(widget.comm, "_reply_subshell_for"):
        widget.comm._reply_subshell_for = lambda _data, front_ends_choice: front_ends_choice


def are_heard_while_cells_run() -> bool:
    """Whether a front end has had the kernel make a subshell, which is where it then sends what is for widgets."""
    kernel = getattr(get_ipython(), "kernel", None)
    thread = getattr(kernel, "shell_channel_thread", None)  # ipykernel 7 has one
    return thread is not None and bool(thread.manager.list_subshell())


def close(widget: Any) -> None:
    """Close a widget and its children, layouts and styles, which ipywidgets leaves open."""
    for child in getattr(widget, "children", ()):
        close(child)
    for part in (widget.layout, getattr(widget, "style", None)):
        if part is not None:
            part.close()
    widget.close()
