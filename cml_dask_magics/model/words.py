"""Sizes and numbers in words, as every folder says them, and words from outside, made safe to show."""

from __future__ import annotations

import difflib
import functools
import json
import re
from collections.abc import Collection, Iterable

_UNITS = (("TiB", 2**40), ("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10))
# Patterns: backslashes from the first on, as a long run of them is not to be tried from each; and space, of which are
# the line ends that JSON and Python write.
_BACKSLASHES = r"(?<!\\)\\+"
_SPACE = rf"(?:\s|{_BACKSLASHES}[nrt])+"


def plural(count: int, noun: str) -> str:
    """``1 worker``, ``1,000 workers``."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def unit(processes: int) -> str:
    """What a cluster is counted in: a session with one worker in it is simply called a worker."""
    return "session" if processes > 1 else "worker"


def counted(n: int, processes: int) -> str:
    """``1 worker``, ``2 workers``; with several workers in a session ``2 sessions of 4 workers``."""
    words = plural(n, unit(processes))
    return f"{words} of {processes} workers" if processes > 1 else words


def format_bytes(size: float) -> str:
    """``1.5 GiB``, ``96 MiB``: at most three digits."""
    for name, factor in _UNITS:
        if size >= factor:
            value = size / factor
            return f"{value:.0f} {name}" if value >= 99.95 else f"{value:.1f}".removesuffix(".0") + f" {name}"
    return f"{max(size, 0):.0f} B"


def format_memory(used_bytes: int, limit_bytes: int, between: str = " / ") -> str:
    """Memory in use and its limit, if there is one: ``96 MiB / 2 GiB``, ``1.5 / 2 GiB``."""
    used = format_bytes(used_bytes)
    if not limit_bytes:
        return used
    limit = format_bytes(limit_bytes)
    return f"{used.removesuffix(limit[limit.index(' ') :])}{between}{limit}"


def disowned_words(sessions: Collection[str]) -> str:
    """What is said of sessions that stood in a record, and of which nothing shows that they are the cluster's."""
    return (
        f"Not stopped: {', '.join(sorted(sessions))}; on record, but without a log in the cluster's folder, which each "
        "of its sessions writes as it starts"
    )


def meant(word: str, known: Collection[str]) -> str:
    """``; do you mean --cpu?`` for a word with a slip of the hand; empty if it is like none of those that are known."""
    nearest = difflib.get_close_matches(word, known, n=1)
    return f"; do you mean {nearest[0]}?" if nearest else ""


def clean(text: str) -> str:
    """Make text safe to print: replaces control and direction characters, except line ends."""
    if text.isprintable():
        return text
    return "".join(
        c if c.isprintable() or c == "\n" else " " if c.isspace() else "\N{REPLACEMENT CHARACTER}" for c in text
    )


def cut(text: str, most: int) -> str:
    """The text, or its beginning where it is longer than anybody wants to see."""
    return text if len(text) <= most else text[: most - 2] + " …"


def hidden(words: str, secrets: Iterable[str]) -> str:
    """Words from outside without the secrets that they may repeat; what has three letters or fewer is none.

    Secrets are found as they are and as JSON or Python writes them, even within each other, with any space between
    their words.
    """
    return _any_of(frozenset(secrets)).sub("…", words)


@functools.lru_cache(maxsize=10)
def _any_of(secrets: frozenset[str]) -> re.Pattern[str]:
    known = (secret.strip() for secret in secrets if len(re.sub(_SPACE, " ", secret).strip()) > 3)
    forms = {form for secret in known for once in _written(secret) for form in _written(once)}
    longest_first = sorted(forms, key=len, reverse=True)
    return re.compile("|".join(dict.fromkeys(map(_loosely, longest_first))) or "(?!)")


def _written(text: str) -> set[str]:
    """A text as it is, in Python's quotes, and in JSON; some of it has neither ``ä`` nor ``&``, ``<`` and ``>``."""
    json_text = json.dumps(text, ensure_ascii=False)[1:-1]
    without_html = re.sub("[&<>]", lambda found: f"\\u{ord(found[0]):04x}", json_text)
    return {text, repr(text)[1:-1], json_text, json.dumps(text)[1:-1], without_html}


def _loosely(text: str) -> str:
    """A pattern for a text, with any space for its own, and as many backslashes as whoever quotes it may have added."""
    pieces = re.split(rf"""({_SPACE}|(?:{_BACKSLASHES})?["']|{_BACKSLASHES})""", text)
    for number, sign in enumerate(pieces):
        if number % 2 == 0:
            pieces[number] = re.escape(sign)
        elif sign[-1] in "\"'":
            pieces[number] = f"(?:{_BACKSLASHES})?{sign[-1]}"
        else:
            pieces[number] = _BACKSLASHES if sign[-1] == "\\" else _SPACE
    return "".join(pieces)


def short(text: object, most: int = 300, secrets: Iterable[str] = ()) -> str:
    """Words from outside (which may be a page of HTML) as one short line that is safe to print, without secrets."""
    return cut(" ".join(clean(hidden(str(text), secrets)[: 50 * most]).split()), most)


def no_tls_words(is_here: bool) -> str:
    """What a cluster without TLS lets others do; `is_here` for one that runs on this machine."""
    who = "any user of this machine" if is_here else "anybody on the network"
    return f"{who} can run code as you, and read your other clusters' keys"
