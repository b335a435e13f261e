"""Makes the shared home as treacherous as a network file system: a path that was missing goes on missing here.

Once this process looked a path under $SIM_SHARED_HOME up and it was not there, it stays away for
$SIM_NFS_NEGATIVE_SECONDS, whatever other sessions do, unless this process makes it. Listing a folder shows the truth.
"""

# ruff: noqa: PTH100, PTH118, PTH120
# os.path: this file replaces what pathlib stands on, and must load fast.

from __future__ import annotations

import builtins
import errno
import importlib.machinery
import importlib.util
import io
import os
import sys
import time
from collections.abc import Callable
from typing import Any

_LOOKUPS = ("stat", "lstat", "access", "readlink", "chmod", "utime", "listdir", "scandir", "truncate")
_REMOVERS = ("unlink", "remove", "rmdir")
_MOVERS = ("rename", "replace")
_MAKERS = {"mkdir": 0, "mkfifo": 0, "link": 1, "symlink": 1}  # name: which argument is the path that is made


class _NegativeCache:
    """The paths that were missing, and until when they stay so."""

    def __init__(self, home: str, seconds: float) -> None:
        self._root = home.rstrip("/")
        self._prefix = self._root + "/"
        self._seconds = seconds
        self._until: dict[str, float] = {}

    def path(self, value: Any, options: dict[str, Any]) -> str | None:
        """Return `value` as a path under the home, or None where it is something else."""
        if isinstance(value, int) or value is None:
            return None
        try:
            text = os.fsdecode(value)
        except TypeError:
            return None
        folder = options.get("dir_fd", options.get("src_dir_fd"))
        if folder is not None:
            text = os.path.join(_real_readlink(f"/proc/self/fd/{folder}"), text)
        path = os.path.abspath(text) if text else ""  # the empty path is none, not the working directory
        return path if path.startswith(self._prefix) else None

    def check(self, path: str) -> None:
        """Raise FileNotFoundError where the path, or a folder above it, is known as missing."""
        if self._until:
            now, part = time.monotonic(), path
            while len(part) > len(self._root):
                until = self._until.get(part)
                if until is not None:
                    if now < until:
                        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
                    self._until.pop(part, None)
                part = part.rpartition("/")[0]

    def missing(self, path: str) -> None:
        """Remember the highest part of the path that is missing."""
        lowest = path
        while len(parent := lowest.rpartition("/")[0]) > len(self._root):
            if _lexists(parent):
                break
            lowest = parent
        self._until.setdefault(lowest, time.monotonic() + self._seconds)

    def made(self, path: str) -> None:
        """Forget the path: this process is making it. What is above it must be there."""
        self._until.pop(path, None)
        self.check(path.rpartition("/")[0])


class _Wrapped:
    """A callable that takes an `os` function's place; not a function, which a class body would bind as a method."""

    def __init__(self, original: Callable[..., Any], call: Callable[..., Any]) -> None:
        self._call = call
        self.__wrapped__ = original
        self.__name__ = getattr(original, "__name__", "wrapped")
        self.__doc__ = original.__doc__
        self.__module__ = getattr(original, "__module__", "os")

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._call(*args, **kwargs)


_real_lstat, _real_readlink = os.lstat, os.readlink


def _lexists(path: str) -> bool:
    try:
        _real_lstat(path)
    except OSError:
        return False
    return True


def _reader(cache: _NegativeCache, original: Callable[..., Any]) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        path = cache.path(args[0], kwargs) if args else None
        if path is None:
            return original(*args, **kwargs)
        cache.check(path)
        try:
            return original(*args, **kwargs)
        except FileNotFoundError:
            cache.missing(path)
            raise

    return call


def _remover(cache: _NegativeCache, original: Callable[..., Any]) -> Callable[..., Any]:
    reader = _reader(cache, original)

    def call(*args: Any, **kwargs: Any) -> Any:
        reader(*args, **kwargs)
        path = cache.path(args[0], kwargs)
        if path is not None:
            cache.missing(path)

    return call


def _mover(cache: _NegativeCache, original: Callable[..., Any]) -> Callable[..., Any]:
    def call(src: Any, dst: Any, **kwargs: Any) -> Any:
        source, target = cache.path(src, kwargs), cache.path(dst, kwargs)
        if source is not None:
            cache.check(source)
        if target is not None:
            cache.made(target)
        result = original(src, dst, **kwargs)
        if source is not None:
            cache.missing(source)
        return result

    return call


def _maker(cache: _NegativeCache, original: Callable[..., Any], position: int) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        path = cache.path(args[position], kwargs) if len(args) > position else None
        if path is not None:
            cache.made(path)
        return original(*args, **kwargs)

    return call


def _opener(cache: _NegativeCache, original: Callable[..., Any], creates: Callable[..., bool]) -> Callable[..., Any]:
    reader = _reader(cache, original)

    def call(*args: Any, **kwargs: Any) -> Any:
        path = cache.path(args[0], kwargs) if args else None
        if path is not None and creates(*args[1:2], **kwargs):
            cache.made(path)
            return original(*args, **kwargs)
        return reader(*args, **kwargs)

    return call


def _mode_creates(mode: str = "r", **_: Any) -> bool:
    return any(letter in mode for letter in "wax")


def _flags_create(flags: int = 0, **_: Any) -> bool:
    return bool(flags & os.O_CREAT)


def _install(cache: _NegativeCache) -> None:
    replacements: dict[str, Callable[..., Any]] = {"open": _opener(cache, os.open, _flags_create)}
    for name in _LOOKUPS:
        replacements[name] = _reader(cache, getattr(os, name))
    for name in _REMOVERS:
        replacements[name] = _remover(cache, getattr(os, name))
    for name in _MOVERS:
        replacements[name] = _mover(cache, getattr(os, name))
    for name, position in _MAKERS.items():
        replacements[name] = _maker(cache, getattr(os, name), position)
    # Python 3.10's pathlib keeps the functions it found when it was imported.
    accessor = getattr(sys.modules.get("pathlib"), "_NormalAccessor", None)
    for name, call in replacements.items():
        original = getattr(os, name)
        wrapped = _Wrapped(original, call)
        for group in (os.supports_dir_fd, os.supports_fd, os.supports_follow_symlinks, os.supports_effective_ids):
            if original in group:
                group.add(wrapped)
        setattr(os, name, wrapped)
        if accessor is not None and name != "open" and hasattr(accessor, name):
            setattr(accessor, name, wrapped)
    opened = _Wrapped(io.open, _opener(cache, io.open, _mode_creates))
    builtins.open = io.open = opened
    if accessor is not None:
        accessor.open = opened


def _chain() -> None:
    """Run the sitecustomize that this one hides, if there is one."""
    here = os.path.dirname(os.path.abspath(__file__))
    others = [folder for folder in sys.path if os.path.abspath(folder or ".") != here]
    spec = importlib.machinery.PathFinder.find_spec("sitecustomize", others)
    if spec is not None and spec.loader is not None:
        spec.loader.exec_module(importlib.util.module_from_spec(spec))


_home = os.environ.get("SIM_SHARED_HOME", "")
_seconds = float(os.environ.get("SIM_NFS_NEGATIVE_SECONDS", "20"))
if _home and _seconds > 0:
    _install(_NegativeCache(_home, _seconds))
_chain()
