"""Foreign text and addresses, made safe to show."""

from __future__ import annotations

import re
from urllib.parse import urlsplit


def clean(text: str) -> str:
    """Make foreign text safe to print: control and direction characters become visible, line ends stay."""
    if text.isprintable():
        return text
    return "".join(
        c if c.isprintable() or c == "\n" else " " if c.isspace() else "\N{REPLACEMENT CHARACTER}" for c in text
    )


def safe_url(url: str | None) -> str | None:
    """``url`` if a browser may be sent there, else None: ``http(s):`` with a host, or a path of this host."""
    if not url or not url.isprintable() or " " in url:
        return None
    # As behind a JupyterHub: /user/me/proxy/8787/status. To a browser // and /\\ begin another host's address.
    if re.match(r"/(?![/\\])", url):
        return url
    try:
        parts = urlsplit(url)
    except ValueError:
        return None
    return url if parts.scheme in ("http", "https") and parts.netloc else None
