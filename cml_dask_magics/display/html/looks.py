"""How the HTML of a cluster looks: names for looks, and two ways to dress an element with one.

Every piece of HTML is written once and dressed twice: with style attributes for a page that must carry its looks with
it (a saved notebook), and with short class names where a style sheet is near (the panel, which is sent often).
"""

from __future__ import annotations

from collections.abc import Callable

Dress = Callable[..., str]
"""``dress(name, more="")``: the attribute that gives an element the look ``name`` and the style ``more``."""

_FAINT = "var(--jp-ui-font-color2,inherit)"
_LINE = "1px solid var(--jp-border-color2,rgba(128,128,128,.35))"
_COLOURS = {
    "good": "var(--jp-success-color1,#388e3c)",
    "busy": "var(--jp-info-color1,#0097a7)",
    "warn": "var(--jp-warn-color1,#f57c00)",
    "bad": "var(--jp-error-color1,#d32f2f)",
    "off": "var(--jp-ui-font-color3,#888)",
}
# Text inherits its colour where Jupyter's variables are missing, so that it can be read on any background.
_LOOKS = {
    "box": "font:13px/1.45 var(--jp-ui-font-family,system-ui,sans-serif);color:var(--jp-ui-font-color1,inherit);"
    "text-align:left;max-width:920px",
    "head": "display:flex;flex-wrap:wrap;align-items:baseline;gap:2px 12px",
    "name": "font-size:17px;font-weight:600;overflow-wrap:anywhere",
    "state": "font-weight:600;white-space:nowrap",
    "faint": f"color:{_FAINT};overflow-wrap:anywhere",
    "link": "color:var(--jp-content-link-color,#1976d2);text-decoration:underline;overflow-wrap:anywhere",
    "seen": f"margin-top:8px;color:{_FAINT}",
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
    "message": f"padding:0 8px 4px 0;text-align:left;color:{_FAINT};overflow-wrap:anywhere;white-space:pre-wrap",
    "id": "display:inline-block;min-width:9ch;font:12px var(--jp-code-font-family,monospace);overflow-wrap:anywhere",
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
    # The other way round, so that it stays at its end when there is more.
    "log": f"display:flex;flex-direction:column-reverse;max-height:260px;overflow:auto;border:{_LINE};"
    "border-radius:6px;background:var(--jp-layout-color2,rgba(128,128,128,.08))",
    "lines": "flex:none;overflow:visible;margin:0;padding:6px 10px;font:12px/1.45 var(--jp-code-font-family,monospace);"
    "white-space:pre-wrap;overflow-wrap:anywhere;background:none;color:inherit",
    **{f"ink-{name}": f"color:{colour}" for name, colour in _COLOURS.items()},
    **{f"fill-{name}": f"background:{colour}" for name, colour in _COLOURS.items()},
}
# Looks that a style sheet finds by place, so that a row of the panel's table need not name them cell by cell.
_PLACES = {"cell": ".cdm-table td,.cdm-table tbody th", "title": ".cdm-table thead th"}

# What only the panel has: its widgets, and what a page without a style sheet cannot do.
_WIDGETS = (
    ".cdm-panel{position:relative;max-width:940px;overflow:hidden;padding:4px 8px;container-type:inline-size}"
    ".cdm-panel .widget-html,.cdm-panel .widget-html-content{overflow:visible;line-height:1.45;margin:0;height:auto}"
    ".cdm-panel .widget-html-content{width:100%}"
    f".cdm-panel .cdm-copy{{{_LOOKS['id']};cursor:copy;user-select:all;-webkit-user-select:all;border-radius:2px}}"
    ".cdm-panel .cdm-copy:hover{background:var(--jp-layout-color2,rgba(128,128,128,.16))}"
    ".cdm-panel .cdm-copy:focus-visible{outline:2px solid var(--jp-brand-color1,#1976d2)}"
    ".cdm-panel .cdm-toast{position:absolute;right:4px;top:4px;z-index:1;padding:2px 10px;border-radius:4px;"
    "font:12px/1.6 var(--jp-ui-font-family,sans-serif);background:var(--jp-inverse-layout-color2,#333);"
    "color:var(--jp-ui-inverse-font-color1,#fff)}"
    ".cdm-panel .cdm-toast:empty{display:none}"
    # Changes nothing to see: its beginning tells that the panel is on the page.
    "@keyframes cdm-ready{from{opacity:1}}.cdm-panel .cdm-ready{animation:cdm-ready 1ms}"
    # Titles that sort stand over the columns of the table, whose own titles are for screen readers.
    ".cdm-panel .cdm-grid{overflow-x:auto;margin:6px 0 0}"
    ".cdm-panel .cdm-grid>*{min-width:540px}"
    ".cdm-panel .cdm-grid .cdm-scroll{overflow:visible}"
    ".cdm-panel .cdm-grid table{table-layout:fixed;margin:0}"
    ".cdm-panel .cdm-grid thead th{font-size:0;line-height:0;height:0;padding:0;border:0}"
    f".cdm-panel .cdm-titles{{border-bottom:{_LINE};overflow:hidden}}"
    ".cdm-panel .cdm-titles .jupyter-button{background:none;border:0;box-shadow:none;margin:0;padding:0 8px 0 0;"
    "overflow:visible;text-overflow:clip;"
    f"height:26px;line-height:26px;font-size:12px;font-weight:600;text-align:left;color:{_FAINT}}}"
    ".cdm-panel .cdm-titles .jupyter-button.cdm-numbers{text-align:right}"
    ".cdm-panel .cdm-titles .jupyter-button:hover,.cdm-panel .cdm-titles .jupyter-button.cdm-sorted"
    "{color:var(--jp-ui-font-color1,inherit)}"
    ".cdm-panel .jupyter-button:focus-visible{outline:2px solid var(--jp-brand-color1,#1976d2);outline-offset:-2px}"
    ".cdm-panel .jupyter-button.cdm-small{margin:0;height:22px;line-height:22px;padding:0 8px;font-size:12px}"
    ".cdm-panel .jupyter-button.cdm-link{align-self:flex-start;background:none;border:0;box-shadow:none;margin:0;"
    f"padding:0;height:22px;line-height:22px;font-size:12px;color:{_FAINT};text-decoration:underline}}"
    ".cdm-several{max-width:960px}.cdm-several .jupyter-widget-Collapse-contents{padding:2px}"
    # Where there is little room, smaller letters rather than a table to scroll in.
    "@container (max-width:660px){.cdm-panel .cdm-grid table{font-size:12px}"
    ".cdm-panel .cdm-grid :is(.cdm-copy,.cdm-titles .jupyter-button){font-size:11px}"
    ".cdm-panel .cdm-grid :is(td,tbody th),.cdm-panel .cdm-grid .cdm-titles .jupyter-button{padding-right:5px}}"
    f".cdm-panel .cdm-more{{border:{_LINE};border-radius:6px;padding:6px 10px;margin:4px 0}}"
)


def classed(name: str, more: str = "") -> str:
    """Dress an element by class name; ``stylesheet()`` must be on the page."""
    by_class = "" if name in _PLACES else f' class="cdm-{name}"'
    return f'{by_class} style="{more}"' if more else by_class


def inline(name: str, more: str = "") -> str:
    """Dress an element by a style attribute of its own."""
    return f' style="{_LOOKS[name]};{more}"' if more else f' style="{_LOOKS[name]}"'


def stylesheet() -> str:
    """The style sheet that ``classed`` pieces need, once on a page."""
    # Looks by place first and as weak as the others (:where), so that a cell's own class wins.
    placed = [f":where({_PLACES[name]}){{{_LOOKS[name]}}}" for name in _PLACES]
    # Two classes deep, or JupyterLab's own colours for links would win.
    named = [f":is(.cdm-panel,.cdm-box) .cdm-{name}{{{look}}}" for name, look in _LOOKS.items() if name not in _PLACES]
    return f"<style>{''.join(placed + named)}{_WIDGETS}</style>"
