"""Durable records of clusters, so that any kernel of the user can find, use and stop what another one started.

One folder a cluster name under ``clusters/`` holds the record; ``runs/NAME-TOKEN/`` holds what the sessions of
one start read and write. Both lie in a private folder of the state folder. Knows neither Dask nor sessions: it is
files.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from cml_dask_magics.model.record import NAME, Record, record_from_json, record_to_json
from cml_dask_magics.model.settings import PRIVATE_FOLDER
from cml_dask_magics.registry.files import create_private, listed, make_folder, named, remove, write_private
from cml_dask_magics.registry.run_folder import (
    CLAIM_FILE,
    LOGS,
    MARK,
    close_run,
    cluster_of,
    make_run,
    remove_run,
    salvaged_record,
    session_logs,
    unknown_launches,
)

LEASE_FILE = "lease.json"
_RECORD_FILE, _MENDED_FILE, _LOCK_FILE = "record.json", ".mended", "lock"
_KEPT_RUNS = 10
_LOCK_TRIES = 100
_DELETED = "it was deleted"
# Why a file cannot be opened, where asking again changes nothing; other reasons may be a network's passing weakness.
_UNREADABLE = frozenset({errno.EACCES, errno.EPERM, errno.EISDIR, errno.ELOOP})


class NameTakenError(RuntimeError):
    """Another claim of the name stands."""


class GoneError(RuntimeError, KeyError):
    """The cluster has no record any more: somebody has stopped it."""

    def __init__(self, name: str) -> None:
        super().__init__(f"cluster {name!r} is not on record any more: it was stopped, here or from another kernel")

    def __str__(self) -> str:
        """The message; a `KeyError` would quote it."""
        return str(self.args[0])


class RegistryError(RuntimeError):
    """The state folder cannot be used; the message says why and what to do."""


class Registry:
    """The records of one state folder.

    Parameters
    ----------
    state_directory : Path
        The state folder; made when something is written.

    Attributes
    ----------
    directory : Path
        The private folder in it, where everything is. Releases before there was one put their files into the state
        folder itself: a cluster that is on record there is used and stopped there, as its sessions know the paths.
    """

    def __init__(self, state_directory: Path) -> None:
        self.state_directory = state_directory
        self.directory = state_directory / PRIVATE_FOLDER
        self._lock = threading.RLock()
        self._locked: set[str] = set()

    def names(self) -> list[str]:
        """Names of the clusters that have a record, or whose sessions may run though it was deleted; sorted."""
        try:
            on_record = {name for name in self._names_in(self.directory) if self._is_private(name)}
            open_runs = {cluster_of(run.name) for run in self._open_runs()}
        except OSError as error:
            raise self._unusable(error) from error
        with contextlib.suppress(OSError):  # folders of the user's, which may be closed to us
            on_record |= {name for name in self._names_in(self.state_directory) if self._is_older(name)}
        return sorted(on_record | open_runs)

    def root(self, name: str) -> Path:
        """The folder in whose ``clusters`` a name is: `directory`, or the state folder as an older release left it."""
        return self.state_directory if self._is_older(name) and not self._is_private(name) else self.directory

    def run_folder(self, record: Record) -> Path:
        """The folder that the sessions of this start share."""
        run = Path("runs", f"{record.name}-{record.token}")
        older = self.state_directory / run
        return older if older.is_dir() and not older.is_symlink() else self.directory / run

    def latest_log_folder(self, name: str) -> Path | None:
        """Where the sessions of the newest start of a cluster, running or ended, print to."""
        runs = self._runs(name)
        if (record := self.read(name)) is not None:  # of an older release, perhaps
            runs.append(self.run_folder(record))
        logs = [entry for run in runs for entry in listed(run) if entry.name == LOGS and _is_folder(entry)]
        newest = max(logs, key=lambda entry: entry.stat().st_mtime, default=None)
        return Path(newest) if newest is not None else None

    def read(self, name: str, known: Record | None = None) -> Record | None:
        """The record of a cluster, or None.

        A broken record is moved to ``broken/``; what takes its place, and that of one that somebody deleted, is
        `known`, or else what the run folder tells: the settings and the ids of the sessions that printed something.
        So its sessions can be found, used and stopped.

        Parameters
        ----------
        name : str
        known : Record, optional
            The record as the caller last saw it.
        """
        path = self._record_path(name)
        found = self._load(path)
        if isinstance(found, Record):
            return found
        if found == _DELETED and not self._open_runs(name):
            return None
        with self.exclusive(name):
            found = self._load(path)  # another kernel may have mended it meanwhile
            if isinstance(found, Record):
                return found
            runs = self._open_runs(name) if found == _DELETED else self._runs(name)
            return self._mend(name, found, known, runs) if runs or found != _DELETED else None

    def claim(self, record: Record, fill: Callable[[Path], None] = lambda _: None) -> Path:
        """Take a name for a new cluster, exclusively, with everything the record says.

        Parameters
        ----------
        record : Record
        fill : callable
            Called with the run folder, to put into it what must be there before anybody can know of the cluster.

        Returns
        -------
        Path
            The run folder, made, mode 0700, with an empty ``logs`` folder.

        Raises
        ------
        NameTakenError
            If the name has a record.
        RegistryError
            If the state folder cannot be written.
        """
        run = self.directory / "runs" / f"{record.name}-{record.token}"
        if run.name in (entry.name for entry in listed(run.parent)):  # of this very start
            raise NameTakenError(record.name)
        try:
            make_folder(self.state_directory, run.parent)
            make_run(run)
            fill(run)
            with self.exclusive(record.name, make=True):
                if self.root(record.name) != self.directory:
                    raise NameTakenError(record.name)
                try:
                    create_private(self._record_path(record.name), record_to_json(record))
                except FileExistsError:
                    raise NameTakenError(record.name) from None
                # For whoever must go on without the record, because it is broken or deleted. As long as this is here,
                # there must be a record.
                write_private(run / CLAIM_FILE, record_to_json(record))
        except BaseException as error:  # Ctrl-C, too: nobody would ever know that the name was taken
            with contextlib.suppress(RegistryError):
                self.forget(record)
            with contextlib.suppress(OSError):
                remove_run(self.state_directory, run)
            if isinstance(error, OSError):
                raise self._unusable(error) from error
            raise
        return run

    def update(self, name: str, change: Callable[[Record], Record], known: Record | None = None) -> Record:
        """Read, change and write one record, alone among all kernels that use this folder.

        Parameters
        ----------
        name : str
        change : callable
        known : Record, optional
            As for `read`.

        Raises
        ------
        GoneError
            If the cluster has no record (any more).
        RegistryError
            If it cannot be written; the record stays as it was.
        """
        with self.exclusive(name):
            record = self.read(name, known)
            if record is None:
                raise GoneError(name)
            changed = change(record)
            if changed != record:
                try:
                    write_private(self._record_path(name), record_to_json(changed))
                except OSError as error:
                    raise self._unusable(error) from error
            return changed

    def forget(self, record: Record) -> None:
        """Remove the record and the secrets of a cluster whose sessions have all ended; its logs are kept a while.

        Raises
        ------
        RegistryError
            If they cannot be removed.
        """
        folder = self.folder(record.name)
        try:
            with self.exclusive(record.name) as alone:
                # First this: a run folder that is open and has no record is one whose record was deleted.
                close_run(self.state_directory, self.run_folder(record))
                current = self.read(record.name)
                # Not one that was started since; and what is there now, where nothing was, is of a claim under way.
                if current.token == record.token if current is not None else alone:
                    # As soon as the record is gone the name is free; who takes it waits for the lock, which goes last.
                    gone = [named(LEASE_FILE, _MENDED_FILE), named(_LOCK_FILE)]
                    if current is not None:
                        gone.insert(0, named(_RECORD_FILE))
                    remove(self.state_directory, folder, *gone, and_folder=True)
        except OSError as error:
            raise self._unusable(error) from error
        # Old output that cannot be removed, another cluster's record that cannot be read: not this cluster's trouble.
        with contextlib.suppress(OSError, RegistryError):
            runs = self._runs(having=MARK)  # first: what is claimed meanwhile is none of them
            current_runs = {self.run_folder(each) for name in self.names() if (each := self.read(name)) is not None}
            for run in [run for run in runs if run not in current_runs][:-_KEPT_RUNS]:
                with contextlib.suppress(OSError):
                    remove_run(self.state_directory, run)

    def logged_sessions(self, record: Record) -> set[str]:
        """Ids of the sessions that have started to print for this cluster: proof that they are its own."""
        return set(session_logs(self.run_folder(record) / LOGS))

    def folder(self, name: str) -> Path:
        """Where a cluster's record lies."""
        return self.root(name) / "clusters" / name

    def _is_private(self, name: str) -> bool:
        """Whether there is a record of that name, whatever is in it, in the private folder."""
        return any(entry.name == _RECORD_FILE for entry in listed(self.directory / "clusters" / name))

    def _is_older(self, name: str) -> bool:
        """Whether an older release left a record of that name; whatever else is there is the user's."""
        record = self._load(self.state_directory / "clusters" / name / _RECORD_FILE)
        return isinstance(record, Record) and record.name == name

    def _load(self, path: Path) -> Record | str:
        """The record in a file, or why there is none, in words."""
        try:
            return record_from_json(path.read_text())
        except (FileNotFoundError, NotADirectoryError):
            return _DELETED
        except OSError as error:
            if error.errno not in _UNREADABLE:
                raise self._unusable(error) from error
            return f"it could not be read: {error.strerror}"
        except ValueError as error:  # UnicodeDecodeError is one
            return f"it could not be read: {error}"

    @staticmethod
    def _names_in(root: Path) -> list[str]:
        return [entry.name for entry in listed(root / "clusters") if NAME.fullmatch(entry.name)]

    def _runs(self, name: str = "", having: str = "") -> list[Path]:
        """Run folders of a cluster, or of all, and if so only those `having` a file of that name; the oldest first."""
        found = [
            entry
            for runs in listed(self.directory)
            if runs.name == "runs" and _is_folder(runs)
            for entry in listed(Path(runs))
            if _is_folder(entry)
            and (cluster := cluster_of(entry.name))
            and name in ("", cluster)
            and (not having or _has(entry.path, having))
        ]
        return [Path(entry) for entry in sorted(found, key=lambda entry: entry.stat(follow_symlinks=False).st_mtime)]

    def _open_runs(self, name: str = "") -> list[Path]:
        """Run folders of clusters that have not been forgotten."""
        return self._runs(name, having=CLAIM_FILE)

    def _record_path(self, name: str) -> Path:
        return self.folder(name) / _RECORD_FILE

    @contextlib.contextmanager
    def exclusive(self, name: str, *, make: bool = False) -> Iterator[bool]:
        """Alone with what is on record of a cluster, among all threads and kernels that ask; whether it is locked.

        It is not where there is nothing to lock, or nobody can write.

        Parameters
        ----------
        name : str
        make : bool
            Whether to make the cluster's folder, if there is none.
        """
        with self._lock:
            # By a caller further up: a second descriptor would wait for the first.
            descriptor = self._locked_file(name, make) if name not in self._locked else None
            if descriptor is None:
                yield name in self._locked
                return
            self._locked.add(name)
            try:
                yield True
            finally:
                self._locked.discard(name)
                os.close(descriptor)

    def _locked_file(self, name: str, make: bool) -> int | None:
        """The lock, held; None where there is no such cluster, or nobody can write: the caller's own access says so."""
        folder = self.folder(name)
        for _ in range(_LOCK_TRIES):
            if make:
                make_folder(self.state_directory, folder)
            elif not {_RECORD_FILE, _LOCK_FILE} & {entry.name for entry in listed(folder)}:  # at most a user's files
                return None
            try:
                descriptor = os.open(folder / _LOCK_FILE, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            except OSError as error:
                if make and isinstance(error, FileNotFoundError):  # somebody has just removed the folder
                    continue
                return None
            try:
                with contextlib.suppress(OSError):  # a file system without locks: records are whole all the same
                    fcntl.flock(descriptor, fcntl.LOCK_EX)
                # Who forgets a cluster removes the lock: then it is another one that counts by now.
                if _is_at(descriptor, folder / _LOCK_FILE):
                    return descriptor
            except BaseException:  # Ctrl-C while waiting
                os.close(descriptor)
                raise
            os.close(descriptor)
        return None

    def _mend(self, name: str, reason: str, known: Record | None, runs: list[Path]) -> Record:
        """Put what is known in the place of a record that is broken or gone."""
        path = self._record_path(name)
        aside = self.directory / "broken" / f"{name}-{int(time.time())}-{secrets.token_hex(2)}.json"
        if known is not None:  # but other kernels may have launched more since
            record = replace(known, launching=(*known.launching, unknown_launches(known)))
        else:
            record = salvaged_record(name, runs[-1] if runs else None)
        kept = f"; it is kept as {aside}" if os.path.lexists(path) else ""
        record = record.with_event(f"the record was mended ({reason}{kept})")
        # A disk that is full, or that cannot be written, keeps the broken one where it is: the next reader tries again.
        with contextlib.suppress(OSError):
            make_folder(self.state_directory, path.parent)
            mended = path.with_name(_MENDED_FILE)
            write_private(mended, record_to_json(record))
            if kept:
                make_folder(self.state_directory, aside.parent)
                try:
                    os.link(path, aside, follow_symlinks=False)  # so that there is a record all the time
                except OSError:
                    path.rename(aside)
            mended.replace(path)
        return record

    def _unusable(self, error: OSError) -> RegistryError:
        return RegistryError(
            f"the state folder {self.directory} cannot be used: {error.strerror or error} ({error.filename}); "
            "make it writable or set state-directory in the configuration to another folder"
        )


def _is_folder(entry: os.DirEntry[str]) -> bool:
    """Whether it is one, and no link to one."""
    return entry.is_dir(follow_symlinks=False)


def _has(folder: str, name: str) -> bool:
    """Whether a folder has a file of that name; a link is none."""
    return any(entry.name == name and entry.is_file(follow_symlinks=False) for entry in listed(Path(folder)))


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.lstat())
    except OSError:
        return False
