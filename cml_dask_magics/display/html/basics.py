"""The smallest pieces of a cluster's HTML: foreign text made safe, links, and the sign of a state."""

from __future__ import annotations

from html import escape

from cml_dask_magics.display.html.looks import Dress
from cml_dask_magics.display.safe import clean, safe_url
from cml_dask_magics.display.words import SIGNS

_INKS = {
    "running": "good",
    "starting": "busy",
    "pending": "off",
    "stopping": "warn",
    "degraded": "warn",
    "failed": "bad",
    "lost": "bad",
    "ended": "off",
}


def text(words: str) -> str:
    """Foreign text, fit for an element or for an attribute in quotes."""
    return escape(clean(words), quote=True)


def sign(state: str, dress: Dress) -> str:
    """The sign of a state; the word stands next to it."""
    return f'<span aria-hidden="true"{dress(f"ink-{_INKS[state]}")}>{SIGNS[state]}</span>'


def anchor(url: str, dress: Dress) -> str:
    """A link that opens a page of its own; one that a browser should not follow is shown as text."""
    if safe_url(url) is None:
        return text(url)
    return f'<a{dress("link")} href="{escape(url)}" target="_blank" rel="noopener noreferrer">{text(url)}</a>'
