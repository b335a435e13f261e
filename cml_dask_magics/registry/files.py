"""Files of this package: written for their owner alone, and removed by name, one by one.

They are in a private folder of the user's state folder. Other files there, or behind a link, are never touched. All
removals in the package go through `remove`.
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
    """Write a file with mode 0600 atomically: to a temporary file, then renamed."""
    with _draft(path, text) as draft:
        draft.replace(path)


def create_private(path: Path, text: str) -> None:
    """As `write_private`, but raises ``FileExistsError`` if the file exists; of two calls at once, one succeeds."""
    with _draft(path, text) as draft:
        try:
            os.link(draft, path)  # fails if there is a file; a rename would replace it
        except OSError as error:
            # A network file system that lost the answer tries again, and finds the file that it made itself.
            if not _are_one(draft, path):
                if error.errno not in _NO_LINKS:
                    raise
                os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600))
                draft.replace(path)


@contextlib.contextmanager
def _draft(path: Path, text: str) -> Iterator[Path]:
    """A temporary file with the text, beside `path`."""
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    descriptor = os.open(draft, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        yield draft
    finally:
        draft.unlink(missing_ok=True)  # made above, under a unique name


def _are_one(one: Path, other: Path) -> bool:
    try:
        return os.path.samestat(one.lstat(), other.lstat())
    except OSError:
        return False


def make_folder(root: Path, folder: Path) -> None:
    """Make a folder below `root`, and those between, with mode 0700.

    Raises
    ------
    OSError
        If one of them cannot be made, or is a link: files behind one could never be removed.
    """
    root.mkdir(mode=0o700, parents=True, exist_ok=True)
    with _opened(root, folder, make=True):
        pass


def listed(folder: Path) -> list[os.DirEntry[str]]:
    """The entries of a folder; none if it does not exist.

    Use this to find out whether a file exists: a network file system remembers for a while that a file was missing.
    """
    try:
        return _entries(folder)
    except (FileNotFoundError, NotADirectoryError):
        return []


def named(*names: str) -> re.Pattern[str]:
    """A pattern of these file names, and of the temporary files that a kernel leaves if it is killed writing one."""
    any_name = "|".join(map(re.escape, names))
    return re.compile(rf"(?:{any_name})|\.(?:{any_name})\.[0-9a-f]{{8}}")


def remove(root: Path, folder: Path, *patterns: re.Pattern[str], and_folder: bool = False) -> list[str]:
    """Remove regular files whose names match, one by one.

    Parameters
    ----------
    root : Path
        The state folder. The path to it may contain links; the path below it must not.
    folder : Path
        The folder of the files, below `root`; it need not exist.
    *patterns : re.Pattern
        Of their names; the files of the first pattern are removed first.
    and_folder : bool
        Whether to remove the folder too, if it is then empty.

    Returns
    -------
    list of str
        The names that are left in the folder.

    Raises
    ------
    OSError
        If a file cannot be removed, or the path to the folder contains a link; then nothing is removed.
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
            os.rmdir(folder.name, dir_fd=descriptor)  # fails if it is not empty any more
    return left


def rename(root: Path, folder: Path, name: str, new_name: str) -> None:
    """Rename a file within its folder; parameters and errors as for `remove`."""
    with _opened(root, folder) as descriptor:
        os.rename(name, new_name, src_dir_fd=descriptor, dst_dir_fd=descriptor)


def _entries(folder: Path | int) -> list[os.DirEntry[str]]:
    with os.scandir(folder) as entries:
        return list(entries)


def _unlink(name: str, folder: int) -> None:
    try:
        os.unlink(name, dir_fd=folder)
    except FileNotFoundError:
        # Listed, but not found: a network file system may remember that it was missing. Creating it ends that.
        os.close(os.open(name, os.O_CREAT | os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=folder))
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name, dir_fd=folder)


@contextlib.contextmanager
def _opened(root: Path, folder: Path, make: bool = False) -> Iterator[int]:
    """A descriptor of a folder below `root`; fails if a link is on the path, and later changes of it do not matter."""
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
