"""The styles of the HTML, by name, and two ways to apply one to an element.

A saved notebook needs style attributes; the panel, which is sent often, uses short class names and a style sheet.
"""

from __future__ import annotations

from collections.abc import Callable

Dress = Callable[..., str]
"""``dress(name, more="")``: the attribute that gives an element the style ``name`` and the CSS ``more``."""

_FAINT = "var(--jp-ui-font-color2,inherit)"
_LINE = "1px solid var(--jp-border-color2,rgba(128,128,128,.35))"
_COLOURS = {
    "good": "var(--jp-success-color1,#388e3c)",
    "busy": "var(--jp-info-color1,#0097a7)",
    "warn": "var(--jp-warn-color1,#f57c00)",
    "bad": "var(--jp-error-color1,#d32f2f)",
    "off": "var(--jp-ui-font-color3,#888)",
}
# Without Jupyter's variables text inherits its colour, so that it is legible on any background.
_LOOKS = {
    "box": "font:13px/1.45 var(--jp-ui-font-family,system-ui,sans-serif);color:var(--jp-ui-font-color1,inherit);"
    "text-align:left;max-width:920px",
    "head": "display:flex;flex-wrap:wrap;align-items:baseline;gap:2px 12px",
    "name": "font-size:17px;font-weight:600;overflow-wrap:anywhere",
    "state": "font-weight:600;white-space:nowrap",
    "faint": f"color:{_FAINT};overflow-wrap:anywhere",
    "link": "color:var(--jp-content-link-color,#1976d2);text-decoration:underline;overflow-wrap:anywhere",
    "seen": f"margin-top:8px;color:{_FAINT}",
    "waits": f"color:{_FAINT}",
    "advice": f"margin:6px 0;padding:4px 10px;border-left:3px solid {_COLOURS['warn']};overflow-wrap:anywhere",
    "error": f"margin:6px 0;padding:4px 10px;border-left:3px solid {_COLOURS['bad']};white-space:pre-wrap;"
    "overflow-wrap:anywhere",
    "tiles": "display:flex;flex-wrap:wrap;gap:8px;margin:8px 0",
    "tile": f"flex:1 1 90px;border:{_LINE};border-radius:6px;padding:5px 8px 7px",
    "label": f"color:{_FAINT};font-size:11px",
    "value": "font-size:17px;font-weight:600;line-height:1.3;white-space:nowrap",
    "bar": "display:flex;height:4px;margin-top:3px;border-radius:2px;overflow:hidden;"
    "background:var(--jp-layout-color3,rgba(128,128,128,.3))",
    "long": "display:flex;height:8px;margin:8px 0 4px;border-radius:4px;overflow:hidden;"
    "background:var(--jp-layout-color3,rgba(128,128,128,.3))",
    "under": "margin-bottom:6px",
    "scroll": "overflow-x:auto",
    "table": "border-collapse:collapse;width:100%;margin:4px 0;font-size:13px;table-layout:auto;border:none",
    "title": f"padding:3px 8px 3px 0;text-align:left;font-weight:600;color:{_FAINT};border-bottom:{_LINE};"
    "white-space:nowrap",
    "title-r": f"padding:3px 8px 3px 0;text-align:right;font-weight:600;color:{_FAINT};border-bottom:{_LINE};"
    "white-space:nowrap",
    "cell": "padding:3px 8px 3px 0;text-align:left;font-weight:normal;vertical-align:middle",
    "cell-r": "padding:3px 8px 3px 0;text-align:right;vertical-align:middle;white-space:nowrap;"
    "font-variant-numeric:tabular-nums;line-height:1.25",
    "id": "display:inline-block;min-width:9ch;font:12px var(--jp-code-font-family,monospace);overflow-wrap:anywhere",
    "fold": f"color:{_FAINT};font-size:11px;cursor:pointer",
    "events": f"list-style:none;margin:6px 0 0;padding:6px 0 0;border-top:{_LINE};color:{_FAINT}",
    "event": "margin:0;padding:0;overflow-wrap:anywhere;white-space:pre-wrap",
    "when": "font-variant-numeric:tabular-nums;margin-right:10px",
    "figure": "display:flex;align-items:flex-end;gap:10px",
    "graph": "flex:1 1 40px;min-width:24px;height:24px;overflow:visible;display:block",
    "line": f"fill:none;stroke:{_COLOURS['busy']};stroke-width:1.5;stroke-linejoin:round;"
    "vector-effect:non-scaling-stroke",
    "area": f"fill:{_COLOURS['busy']};fill-opacity:.16;stroke:none",
    "striped": f"background:repeating-linear-gradient(135deg,{_COLOURS['warn']} 0 2px,transparent 2px 4px)",
    "card": f"border:{_LINE};border-radius:6px;padding:8px 12px",
    # Reversed, so that it stays scrolled to the end when lines are added.
    "log": f"display:flex;flex-direction:column-reverse;max-height:260px;overflow:auto;border:{_LINE};"
    "border-radius:6px;background:var(--jp-layout-color2,rgba(128,128,128,.08))",
    "lines": "flex:none;overflow:visible;margin:0;padding:6px 10px;font:12px/1.45 var(--jp-code-font-family,monospace);"
    "white-space:pre-wrap;overflow-wrap:anywhere;background:none;color:inherit",
    **{f"ink-{name}": f"color:{colour}" for name, colour in _COLOURS.items()},
    **{f"fill-{name}": f"background:{colour}" for name, colour in _COLOURS.items()},
}
# Selected by place, so that the cells of the panel's table need no class names.
_PLACES = {"cell": ".cdm-table td,.cdm-table tbody th", "title": ".cdm-table thead th"}


def classed(name: str, more: str = "") -> str:
    """Style an element by class name; ``stylesheet()`` must be on the page."""
    by_class = "" if name in _PLACES else f' class="cdm-{name}"'
    return f'{by_class} style="{more}"' if more else by_class


def inline(name: str, more: str = "") -> str:
    """Style an element by a style attribute."""
    return f' style="{_LOOKS[name]};{more}"' if more else f' style="{_LOOKS[name]}"'


def stylesheet() -> str:
    """The style sheet for ``classed``, needed once on a page."""
    # :where, so that a cell's own class wins.
    placed = [f":where({_PLACES[name]}){{{_LOOKS[name]}}}" for name in _PLACES]
    # Two classes, or JupyterLab's colours for links would win.
    named = [f":is(.cdm-panel,.cdm-box) .cdm-{name}{{{look}}}" for name, look in _LOOKS.items() if name not in _PLACES]
    return f"<style>{''.join(placed + named)}</style>"
