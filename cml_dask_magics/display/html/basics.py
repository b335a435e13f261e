"""The smallest pieces of HTML: escaped text, links, and the sign of a state."""

from __future__ import annotations

from html import escape

from cml_dask_magics.display.html.looks import Dress
from cml_dask_magics.display.safe import safe_url
from cml_dask_magics.display.words import SIGNS
from cml_dask_magics.model.words import clean

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
    """Escaped text, for an element or an attribute in quotes."""
    return escape(clean(words), quote=True)


def sign(state: str, dress: Dress) -> str:
    """The sign of a state, to be followed by its name."""
    return f'<span aria-hidden="true"{dress(f"ink-{_INKS[state]}")}>{SIGNS[state]}</span>'


def anchor(url: str, dress: Dress) -> str:
    """A link that opens in a new tab; an unsafe one is shown as text."""
    if safe_url(url) is None:
        return text(url)
    return f'<a{dress("link")} href="{escape(url)}" target="_blank" rel="noopener noreferrer">{text(url)}</a>'
