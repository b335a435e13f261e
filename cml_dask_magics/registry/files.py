"""Files of this package: written for their owner alone, and removed by name, one by one.

They lie in a private folder of the user's state folder. Whatever else is found there, or behind a link, is somebody's
and stays. Nothing in the package removes a file but through `remove`.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
from collections.abc import Iterator
from pathlib import Path

_NO_LINKS = frozenset({errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK})


def write_private(path: Path, text: str) -> None:
    """Write a file that only its owner reads, whole or not at all: to a temporary file, then renamed."""
    with _draft(path, text) as draft:
        draft.replace(path)


def create_private(path: Path, text: str) -> None:
    """Write a file as `write_private` does, where there is none yet; of two that do so at once, one wins.

    Raises
    ------
    FileExistsError
        If there is one.
    """
    with _draft(path, text) as draft:
        try:
            os.link(draft, path)  # fails where there is a file, which a rename would replace
        except OSError as error:
            # A network that lost the answer asks again, and hears that there is a file: this one.
            if not _are_one(draft, path):
                if error.errno not in _NO_LINKS:
                    raise
                os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600))
                draft.replace(path)


@contextlib.contextmanager
def _draft(path: Path, text: str) -> Iterator[Path]:
    """The whole text in a file beside `path`, for the time being."""
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    descriptor = os.open(draft, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        yield draft
    finally:
        draft.unlink(missing_ok=True)  # made above, by a name that nobody else has


def _are_one(one: Path, other: Path) -> bool:
    try:
        return os.path.samestat(one.lstat(), other.lstat())
    except OSError:
        return False


def make_folder(root: Path, folder: Path) -> None:
    """Make a folder below `root`, and those between, for their owner alone.

    Raises
    ------
    OSError
        If one of them cannot be made, or is a link: what is put behind one could never be removed.
    """
    root.mkdir(mode=0o700, parents=True, exist_ok=True)
    with _opened(root, folder, make=True):
        pass


def listed(folder: Path) -> list[os.DirEntry[str]]:
    """What is in a folder; nothing if it is not there.

    Listed, not asked for: on a network file system a file that is not there yet may go on missing for a while for a
    kernel that asked too early.
    """
    try:
        return _entries(folder)
    except (FileNotFoundError, NotADirectoryError):
        return []


def named(*names: str) -> re.Pattern[str]:
    """The pattern of files of these names, and of the drafts that a kernel leaves which is killed writing one."""
    any_name = "|".join(map(re.escape, names))
    return re.compile(rf"(?:{any_name})|\.(?:{any_name})\.[0-9a-f]{{8}}")


def remove(root: Path, folder: Path, *patterns: re.Pattern[str], and_folder: bool = False) -> list[str]:
    """Remove files of this package, one by one: regular files whose names fit.

    Parameters
    ----------
    root : Path
        The state folder, which may be reached through links; nothing below it may.
    folder : Path
        The folder below it in which the files lie; it need not be there.
    *patterns : re.Pattern
        Of their names; the files of the first pattern go first.
    and_folder : bool
        Whether the folder goes as well, if nothing is left in it.

    Returns
    -------
    list of str
        The names of what is left.

    Raises
    ------
    OSError
        If a file cannot be removed, or the way to the folder leads over a link: then nothing is.
    """
    try:
        with _opened(root, folder) as descriptor:
            for pattern in patterns:
                for entry in _entries(descriptor):
                    if pattern.fullmatch(entry.name) and entry.is_file(follow_symlinks=False):
                        _unlink(entry.name, descriptor)
            left = [entry.name for entry in _entries(descriptor)]
    except FileNotFoundError:
        return []
    if and_folder and not left:
        with contextlib.suppress(OSError), _opened(root, folder.parent) as descriptor:
            os.rmdir(folder.name, dir_fd=descriptor)  # fails if somebody has put something into it since
    return left


def rename(root: Path, folder: Path, name: str, new_name: str) -> None:
    """Rename a file within its folder; the parameters and errors are those of `remove`."""
    with _opened(root, folder) as descriptor:
        os.rename(name, new_name, src_dir_fd=descriptor, dst_dir_fd=descriptor)


def _entries(folder: Path | int) -> list[os.DirEntry[str]]:
    with os.scandir(folder) as entries:
        return list(entries)


def _unlink(name: str, folder: int) -> None:
    try:
        os.unlink(name, dir_fd=folder)
    except FileNotFoundError:
        # Listed, and yet not there: on a network file system that is so for a while after a kernel asked too early.
        os.close(os.open(name, os.O_CREAT | os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=folder))
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name, dir_fd=folder)


@contextlib.contextmanager
def _opened(root: Path, folder: Path, make: bool = False) -> Iterator[int]:
    """A descriptor of a folder below `root` to which no link leads; whoever swaps one in later, swaps it too late."""
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
    descriptor, path = os.open(root, flags), root
    try:
        for part in folder.relative_to(root).parts:
            path /= part
            try:
                if make:
                    with contextlib.suppress(FileExistsError):
                        os.mkdir(part, 0o700, dir_fd=descriptor)
                below = os.open(part, flags | os.O_NOFOLLOW, dir_fd=descriptor)
            except OSError as error:
                if error.errno in (errno.ENOTDIR, errno.ELOOP):
                    reason = "a link, or a file, stands where a folder of this package should be"
                    raise NotADirectoryError(errno.ENOTDIR, reason, str(path)) from None
                raise OSError(error.errno, error.strerror, str(path)) from None
            os.close(descriptor)
            descriptor = below
        yield descriptor
    finally:
        os.close(descriptor)
