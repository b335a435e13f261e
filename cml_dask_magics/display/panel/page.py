"""The panel's style sheet and script, from the files beside this one."""

from __future__ import annotations

from functools import cache
from html import escape
from pathlib import Path

from cml_dask_magics.display.html.looks import stylesheet


@cache
def page_piece() -> str:
    """The style sheet, the script, and the element that shows "copied": once in each panel."""
    css, script = (Path(__file__).with_name(name).read_text("utf-8") for name in ("panel.css", "panel.js"))
    # Browsers do not run scripts in a widget's HTML, but they call the handler of an animation whenever its element is
    # put on a page.
    ready = f'<span class="cdm-ready" onanimationstart="{escape(script)}"></span>'
    return f'{stylesheet()}<style>{css}</style>{ready}<span class="cdm-toast" role="status"></span>'
