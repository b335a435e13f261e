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
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path

# Much more than any file of this package has.
MOST_BYTES = 64 * 2**20
_NO_LINKS = frozenset({errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK})


def write_private(path: Path, content: str | bytes) -> None:
    """Write a file with mode 0600 atomically: to a temporary file, then renamed."""
    with _draft(path, content) as draft:
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
def _draft(path: Path, content: str | bytes) -> Iterator[Path]:
    """A temporary file with the content, beside `path`."""
    written = content.encode() if isinstance(content, str) else content
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    descriptor = os.open(draft, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            # Some file systems have modes and owners of their own. What could not be read again is not written.
            if why := why_not_private(os.fstat(descriptor)):
                raise PermissionError(errno.EPERM, f"a file that is made here is not private: {why}", str(path))
            file.write(written)
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


def read_private(path: Path) -> str:
    """The text of a file of this package; see `open_private`.

    Raises
    ------
    OSError
        If it cannot be read, or is not private.
    ValueError
        If it is no text in UTF-8, or much longer than any file of this package.
    """
    with os.fdopen(open_private(path), "rb") as file:
        content = file.read(MOST_BYTES + 1)
    if len(content) > MOST_BYTES:
        raise ValueError("it is too long")
    return content.decode()


def open_private(path: Path) -> int:
    """A descriptor of a file of this package, for reading; waits for nobody, as opening a pipe would.

    Raises
    ------
    OSError
        If it cannot be opened; a ``PermissionError`` if it is a link or no regular file, or if anybody else owns it,
        may write it, or may put another one into its place.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY)
    except OSError as error:
        kinds = {errno.ELOOP: "it is a link", errno.ENXIO: "it is no regular file"}
        if error.errno not in kinds:
            raise
        raise PermissionError(errno.EPERM, kinds[error.errno], str(path)) from None
    try:
        why = why_not_private(os.fstat(descriptor)) or _why_not_private_folder(path.parent.stat())
        if why:
            raise PermissionError(errno.EPERM, why, str(path))
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def why_not_private(found: os.stat_result) -> str:
    """Why a file may be another user's work; empty if it is a regular file that this user alone can write."""
    if not stat.S_ISREG(found.st_mode):
        return "it is no regular file"
    if found.st_uid != os.geteuid():
        return "it belongs to another user"
    return "other users may write it" if found.st_mode & 0o022 else ""


def _why_not_private_folder(found: os.stat_result) -> str:
    if found.st_uid != os.geteuid():
        return "its folder belongs to another user"
    return "other users may write its folder" if found.st_mode & 0o022 else ""


def make_folder(root: Path, folder: Path) -> None:
    """Make a folder below `root`, and those between, with mode 0700.

    Raises
    ------
    OSError
        If one of them cannot be made, or belongs to another user, or is a link: files behind one could never be
        removed.
    """
    make_parents(root)
    with _opened(root, folder, make=True):
        pass


def make_parents(folder: Path) -> None:
    """Make a folder, and all that are missing above it, with mode 0700."""
    for path in (*reversed(folder.parents), folder):  # `mkdir` makes the parents as the umask says
        if not path.is_dir():
            path.mkdir(mode=0o700, exist_ok=True)


def listed(folder: Path) -> list[os.DirEntry[str]]:
    """The entries of a folder; none if it does not exist.

    Use this to find out whether a file exists: a network file system remembers for a while that a file was missing.
    """
    try:
        return _entries(folder)
    except (FileNotFoundError, NotADirectoryError):
        return []


def oldest_first(entries: Iterable[os.DirEntry[str]]) -> list[Path]:
    """Entries by age; those that another kernel has removed meanwhile are left out."""
    changed_at = {}
    for entry in entries:
        with contextlib.suppress(FileNotFoundError):
            changed_at[Path(entry)] = entry.stat(follow_symlinks=False).st_mtime
    return sorted(changed_at, key=changed_at.__getitem__)


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
            if make:
                _make_private(descriptor, path)
        yield descriptor
    finally:
        os.close(descriptor)


def _make_private(folder: int, path: Path) -> None:
    """Let nobody else write a folder that files of ours are put into."""
    found = os.fstat(folder)
    if found.st_uid != os.geteuid():
        raise PermissionError(errno.EPERM, "it belongs to another user", str(path))
    if found.st_mode & 0o022:
        os.fchmod(folder, 0o700)
