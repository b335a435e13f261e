"""Makes addresses from elsewhere safe to show."""

from __future__ import annotations

import re
from urllib.parse import urlsplit


def safe_url(url: str | None) -> str | None:
    """``url`` if it is safe as a link, else None: ``http(s):`` with a host, or a path on this host."""
    if not url or not url.isprintable() or " " in url:
        return None
    # A path, as behind a JupyterHub. Browsers take // and /\\ for the start of another host's address.
    if re.match(r"/(?![/\\])", url):
        return url
    try:
        parts = urlsplit(url)
    except ValueError:
        return None
    return url if parts.scheme in ("http", "https") and parts.netloc else None
