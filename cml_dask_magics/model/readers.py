"""Readers of option values: each returns the parsed value or raises a ``ValueError``.

Its message completes the sentence "OPTION must be ...".
"""

from __future__ import annotations

import keyword
import math
import os
import re
import sys
from collections.abc import Callable, Mapping
from typing import Any

_MINUTES = re.compile(r"(?<=[\d.\s])mins?\b")
KEY = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_RESERVED_ENV = ("CDSW_", "CML_DASK_")
LAUNCH_ARGUMENTS = frozenset({"n", "cpu", "memory", "nvidia_gpu", "code", "script", "env", "name"})
_LAUNCHED = ("scheduler", "workers")
_MOST = 10**9  # of anything that is counted
_LAUNCH_OPTIONS = (
    "a mapping of keywords for launch_workers, such as {accelerator_label_id: 2}, those for one alone under "
    "scheduler: or workers:"
)


def _number(value: Any, allowed: str, low: float, high: float) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if isinstance(value, bool) or not low <= number <= high:
        raise ValueError(allowed)
    return number


def integer(allowed: str, low: int, high: int = _MOST) -> Callable[[Any], int]:
    """A reader of whole numbers."""

    def read(value: Any) -> int:
        number = _number(value, allowed, low, high)
        if number != int(number):
            raise ValueError(allowed)
        return int(number)

    return read


def cores(value: Any) -> float:
    """Read a number of cores."""
    return _number(value, "a number of cores from 0.1 to 1024, such as 2 or 0.5", 0.1, 1024)


def _parsed(value: Any, allowed: str, parse: Callable[[Any, str], float]) -> Any:
    """Text with a unit as ``parse(dask.utils, text)`` reads it; anything else unchanged."""
    if not isinstance(value, str):
        return value
    try:
        return float(value)
    except ValueError:
        from dask import utils
    try:
        return parse(utils, value)
    except (ValueError, KeyError, IndexError, OverflowError):
        raise ValueError(allowed) from None


def gib(value: Any) -> float:
    """Read a size in GiB."""
    allowed = "a size from 0.5 to 65536 GiB, such as 4, 4GiB or 4096MiB"
    value = _parsed(value, allowed, lambda utils, text: float(utils.parse_bytes(text) / 2**30))
    return _number(value, allowed, 0.5, 65536)


def seconds(value: Any) -> float:
    """Read a duration in seconds."""
    allowed = "a duration from 1 second to 365 days, such as 90s, '5 min' or '1 hour'"
    # Dask knows m, minute and minutes, but not min.
    value = _parsed(
        value, allowed, lambda utils, text: float(utils.parse_timedelta(_MINUTES.sub("m", text.strip()), default="s"))
    )
    return _number(value, allowed, 1, 365 * 86400)


def seconds_or_off(value: Any) -> float | None:
    """Read a duration in seconds, None for ``off``."""
    # YAML reads a bare off as False
    if value is None or value is False or value == "off":
        return None
    try:
        return seconds(value)
    except ValueError as error:
        raise ValueError(f"{error}, or 'off' for never") from None


def name(value: Any) -> str:
    """Read a cluster's name."""
    if not isinstance(value, str) or not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,39}", value):
        raise ValueError("1 to 40 letters, digits, '-' and '_', not starting with '-'")
    return value


def adapt(value: Any) -> tuple[int, int] | None:
    """Read the limits of adaptive scaling, None for ``off``."""
    if value is None or value is False or value == "off":
        return None
    try:
        low, high = value.split(":") if isinstance(value, str) else value
        low, high = int(low), int(high)
    except (TypeError, ValueError, OverflowError):
        low, high = 1, 0
    if isinstance(value, int):  # YAML's sexagesimals: an unquoted 2:10 is 130
        raise ValueError("MIN:MAX workers, in quotes in a YAML file, such as '2:10'")
    if not 0 <= low <= high <= _MOST or high < 1:
        raise ValueError("MIN:MAX workers with 0 <= MIN <= MAX and MAX at least 1, such as 2:10")
    return low, high


def env(value: Any) -> dict[str, str]:
    """Read environment variables; one without a value is taken from this kernel."""
    allowed = "KEY=VALUE, KEY made of letters, digits and '_'"
    if isinstance(value, Mapping):
        pairs = list(value.items())
    elif isinstance(value, (list, tuple)):
        pairs = [_pair(pair) if isinstance(pair, str) else pair for pair in value]
    else:
        raise ValueError(f"a mapping, or a list of {allowed}")
    found = {}
    for pair in pairs:
        # What was given may be a secret, so messages do not show it.
        if not isinstance(pair, (list, tuple)) or len(pair) != 2:
            raise ValueError(allowed)
        key, given = pair
        if not isinstance(key, str) or not KEY.fullmatch(key):
            raise ValueError(allowed)
        if key.startswith(_RESERVED_ENV):
            reserved = " or ".join(_RESERVED_ENV)
            raise ValueError(f"KEY=VALUE, KEY not starting with {reserved} (the platform's own), as {key[:80]} does")
        text = os.environ.get(key) if given is None else str(given)
        if text is None:  # which may be a secret, typed without its KEY
            raise ValueError("KEY=VALUE, or KEY alone for a variable of this kernel, which has none of that name")
        if "\0" in text:
            raise ValueError("KEY=VALUE without a NUL character")
        found[key] = text
    return found


def _pair(text: str) -> tuple[str, str | None]:
    key, equals, value = text.partition("=")
    return key, value if equals else None


def variable(value: Any) -> str:
    """Read the name of a Python variable."""
    if not isinstance(value, str) or not value.isidentifier() or keyword.iskeyword(value):
        raise ValueError("the name of a Python variable")
    return value


def switch(value: Any) -> bool:
    """Read a yes or no."""
    if isinstance(value, str) and value.lower() in ("true", "yes", "on", "false", "no", "off"):
        return value.lower() in ("true", "yes", "on")
    if not isinstance(value, bool):
        raise ValueError("true or false")
    return value


def python(value: Any) -> str:
    """Read the path of an interpreter, None for the one that runs this."""
    if value is None:
        return sys.executable
    if not isinstance(value, str) or not value or "\0" in value:
        raise ValueError("the path of a Python interpreter, without a NUL character")
    return os.path.expanduser(value)  # noqa: PTH111 - a bare "python3" must stay a bare name


def launch_options(value: Any) -> dict[str, dict[str, Any]]:
    """Read more keywords for `launch_workers`, as a mapping of them for ``scheduler`` and one for ``workers``.

    Under these two names a value may hold keywords for one of them alone; all others are for both.
    """
    if not isinstance(value, Mapping):
        raise ValueError(_LAUNCH_OPTIONS)
    both = {key: keyword for key, keyword in value.items() if key not in _LAUNCHED}
    apart = {who: value.get(who, {}) for who in _LAUNCHED}
    for keywords in (both, *apart.values()):
        if not isinstance(keywords, Mapping) or not all(isinstance(key, str) for key in keywords):
            raise ValueError(_LAUNCH_OPTIONS)
        if taken := sorted(LAUNCH_ARGUMENTS & set(keywords)):
            raise ValueError(f"keywords other than {', '.join(taken)}, which this package sets itself")
    return {who: {**both, **keywords} for who, keywords in apart.items()}


def template(value: Any) -> str:
    """Read a template of the dashboard's link."""
    try:
        value.format(app_url="https://session.example", session="session", domain="example")
    except (AttributeError, LookupError, TypeError, ValueError):
        raise ValueError("a template over {app_url}, {session} and {domain}, such as '{app_url}/status'") from None
    if not str(value).isprintable():
        raise ValueError("a template without control characters")
    return str(value)
