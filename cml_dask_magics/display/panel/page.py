"""The panel's style sheet and script, from the files beside this one."""

from __future__ import annotations

from functools import cache
from html import escape
from pathlib import Path

from cml_dask_magics.display.html.looks import stylesheet


@cache
def page_piece() -> str:
    """The style sheet, the script, and the place where "copied" shows: once in each panel, and never sent again."""
    css, script = (Path(__file__).with_name(name).read_text("utf-8") for name in ("panel.css", "panel.js"))
    # Browsers run no script that comes in a widget's HTML, but they do tell an element that its animation began: that
    # is once it is on the page, and again whenever it is put there anew.
    ready = f'<span class="cdm-ready" onanimationstart="{escape(script)}"></span>'
    return f'{stylesheet()}<style>{css}</style>{ready}<span class="cdm-toast" role="status"></span>'
