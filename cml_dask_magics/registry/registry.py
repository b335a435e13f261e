"""Durable records of clusters, so that any kernel of the user can find, use and stop what another one started.

``clusters/NAME/`` holds a cluster's record, ``runs/NAME-TOKEN/`` what the sessions of one start read and write. Both
are in a private folder of the state folder. Knows neither Dask nor the platform.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import re
import secrets
import stat
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from cml_dask_magics.model.record import NAME, Record, record_from_json, record_to_json
from cml_dask_magics.model.settings import PRIVATE_FOLDER
from cml_dask_magics.model.times import USUAL, Times
from cml_dask_magics.registry.files import (
    MOST_BYTES,
    create_private,
    listed,
    make_folder,
    named,
    oldest_first,
    open_private,
    remove,
    write_private,
)
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
# A folder with an empty file for each run folder that is open, so that nobody has to look into all of them.
_OPEN_RUNS = "open"
_RECORD_FILE, _MENDED_FILE, _LOCK_FILE = "record.json", ".mended", "lock"
_KEPT_RUNS = 10
_LOCK_TRIES = 100
# What is seen without the lock may be a claim that began since, half written. It holds the lock: the next look waits
# for it. Who may not write there never gets the lock, and acts on the last look.
_LOOKS = 3
_DELETED = "it was deleted"
_CLOCK_TICK_S = 2.0
# Errors of opening a file that last. Others may be temporary, on a network file system.
_UNREADABLE = frozenset({errno.EACCES, errno.EPERM, errno.EISDIR, errno.ELOOP})
# The values of env in a record, however broken it is.
_ENV = re.compile(rb'("env"\s*:\s*)\{(?:[^"}]|"(?:[^"\\]|\\.)*(?:"|\\?\Z))*(?:\}|\Z)', re.DOTALL)


class NameTakenError(RuntimeError):
    """The name is taken by another cluster."""


class GoneError(RuntimeError, KeyError):
    """The cluster has no record any more: it was stopped."""

    def __init__(self, name: str) -> None:
        super().__init__(f"cluster {name!r} is not on record any more: it was stopped, here or from another kernel")

    def __str__(self) -> str:
        """The message as it is; `KeyError` would put it in quotes."""
        return str(self.args[0])


class RegistryError(RuntimeError):
    """The state folder cannot be used; the message says why and what to do."""


@dataclass(frozen=True)
class _Loaded:
    """What a file held when it was last read or written here: its text, the record in it, and by what it is known."""

    text: str
    record: Record
    stamp: tuple[int, int, int] | None = None


class Registry:
    """The records of one state folder.

    Parameters
    ----------
    state_directory : Path
        The state folder; made when something is written.
    times : Times, optional

    Attributes
    ----------
    directory : Path
        The private folder in it, which holds everything. Older releases put their files into the state folder itself.
        A cluster on record there is used and stopped there, because its sessions have these paths.
    """

    def __init__(self, state_directory: Path, times: Times = USUAL) -> None:
        self.state_directory = state_directory
        self._times = times
        self.directory = state_directory / PRIVATE_FOLDER
        self._lock = threading.RLock()
        self._locked: set[str] = set()
        self._loaded: dict[Path, _Loaded] = {}

    def names(self) -> list[str]:
        """Sorted names of the clusters that have a record, or whose record was deleted while sessions may run."""
        try:
            on_record = {name for name in self._names_in(self.directory) if self._is_private(name)}
            open_runs = {cluster_of(run) for run in self._marked_open()}
        except OSError as error:
            raise self.unusable(error) from error
        with contextlib.suppress(OSError, RegistryError):  # the user's folders, perhaps without access for us
            on_record |= {name for name in self._names_in(self.state_directory) if self._is_older(name)}
        return sorted(on_record | open_runs)

    def root(self, name: str) -> Path:
        """The folder with the cluster's ``clusters/NAME``: `directory`, or the state folder for an older release's."""
        return self.state_directory if self._is_older(name) and not self._is_private(name) else self.directory

    def run_folder(self, record: Record) -> Path:
        """The folder that the sessions of the record's cluster share."""
        run = Path("runs", f"{record.name}-{record.token}")
        older, private = self.state_directory / run, self.directory / run
        return older if older.is_dir() and not older.is_symlink() and not private.is_dir() else private

    def latest_log_folder(self, name: str) -> Path | None:
        """The log folder of the newest start of a cluster, running or ended."""
        runs = self._runs(name)
        if (record := self.read(name)) is not None:  # perhaps an older release's
            runs.append(self.run_folder(record))
        logs = oldest_first(entry for run in runs for entry in listed(run) if entry.name == LOGS and _is_folder(entry))
        return logs[-1] if logs else None

    def read(self, name: str, known: Record | None = None) -> Record | None:
        """The record of a cluster, or None.

        A broken record is moved to ``broken/``. It is replaced, as is a deleted one, by `known`, or else by what is in
        the run folder: the settings and the ids of the sessions that printed something. So the sessions can still be
        found, used and stopped.

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
        if found == _DELETED and not self._left_of(name, found):
            return None
        looks = 0
        while True:
            looks += 1
            with self.exclusive(name) as locked:
                found = self._load(path)  # another kernel may have mended it meanwhile
                if isinstance(found, Record):
                    return found
                runs = self._left_of(name, found)
                if not runs and found == _DELETED:
                    return None
                if locked or looks == _LOOKS:
                    return self._mend(name, found, known, runs)

    def peek(self, name: str) -> Record | None:
        """As `read`, but writes nothing: what is broken stays as it is, to be mended by whoever uses it."""
        found = self._load(self._record_path(name))
        if isinstance(found, Record):
            return found
        runs = self._left_of(name, found)
        return salvaged_record(name, runs[-1] if runs else None) if runs or found != _DELETED else None

    def claim(self, record: Record, fill: Callable[[Path], None] = lambda _: None) -> Path:
        """Take a name for a new cluster, exclusively, and write its record.

        Parameters
        ----------
        record : Record
        fill : callable
            Called with the run folder, to write what must be there before the cluster is visible to others.

        Returns
        -------
        Path
            The new run folder, mode 0700, with an empty ``logs`` folder.

        Raises
        ------
        NameTakenError
            If the name has a record.
        RegistryError
            If the state folder cannot be written.
        """
        run = self.directory / "runs" / f"{record.name}-{record.token}"
        if run.name in (entry.name for entry in listed(run.parent)):  # the same start
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
                # A copy, for when the record is broken or deleted. As long as it is here, there must be a record.
                write_private(run / CLAIM_FILE, record_to_json(record))
                self._mark_older()
                self._mark_open(run)
        except BaseException as error:  # Ctrl-C too: the name would stay taken
            with contextlib.suppress(RegistryError):
                self.forget(record)
            with contextlib.suppress(OSError):
                self._mark_closed(run.name)
                remove_run(self.state_directory, run)
            if isinstance(error, OSError):
                raise self.unusable(error) from error
            raise
        return run

    def update(self, name: str, change: Callable[[Record], Record], known: Record | None = None) -> Record:
        """Read, change and write one record, with its lock held.

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
        looks = 0
        while True:
            looks += 1
            with self.exclusive(name) as locked:
                record = self.read(name, known)
                if record is None:
                    raise GoneError(name)
                if locked or looks == _LOOKS:
                    return self._changed(record, change(record))

    def _changed(self, record: Record, changed: Record) -> Record:
        """Write a record that was changed, with its lock held."""
        if changed != record:
            path, text = self._record_path(record.name), record_to_json(changed)
            try:
                write_private(path, text)
            except OSError as error:
                raise self.unusable(error) from error
            self._loaded[path] = _Loaded(text, changed)
        return changed

    def forget(self, record: Record) -> None:
        """Remove the record and the secrets of a cluster whose sessions have all ended, and the oldest logs.

        Raises
        ------
        RegistryError
            If they cannot be removed.
        """
        folder = self.folder(record.name)
        try:
            with self.exclusive(record.name) as locked:
                # First this: an open run folder without a record means that the record was deleted.
                run = self.run_folder(record)
                self._mark_closed(run.name)
                close_run(self.state_directory, run)
                current = self.read(record.name)
                # Not a later start's record. Without a record and a lock, files that appear are a new claim's.
                if current.token == record.token if current is not None else locked:
                    # Without the record the name is free. Who takes it waits for the lock, which is removed last.
                    gone = [named(LEASE_FILE, _MENDED_FILE), named(_LOCK_FILE)]
                    if current is not None:
                        gone.insert(0, named(_RECORD_FILE))
                    remove(self.state_directory, folder, *gone, and_folder=True)
        except OSError as error:
            raise self.unusable(error) from error
        with contextlib.suppress(OSError):  # errors with old logs are not this cluster's
            self._prune()

    def _prune(self) -> None:
        """Remove the oldest run folders of ended clusters, as many as there is time for; the next end goes on."""
        deadline = time.monotonic() + self._times.prune_s
        runs, kept = self._runs(), 0
        for name in set(self._marked_open()) - {run.name for run in runs}:  # removed by hand
            self._mark_closed(name)
        for run in reversed(runs):
            if time.monotonic() > deadline:
                return
            names = {entry.name for entry in listed(run) if not entry.is_symlink()}
            if MARK not in names or CLAIM_FILE in names:
                continue
            kept += 1
            with contextlib.suppress(OSError, RegistryError):
                if kept > _KEPT_RUNS and self._is_over(run):
                    remove_run(self.state_directory, run)

    def _is_over(self, run: Path) -> bool:
        """Whether a run folder is of no cluster on record."""
        found = self._load(self._record_path(cluster_of(run.name)))
        return self.run_folder(found) != run if isinstance(found, Record) else found == _DELETED

    def logged_sessions(self, record: Record) -> set[str]:
        """Ids of the sessions that print to this cluster's folder: proof that they belong to it."""
        return set(session_logs(self.run_folder(record) / LOGS))

    def folder(self, name: str) -> Path:
        """The folder of a cluster's record."""
        return self.root(name) / "clusters" / name

    def _is_private(self, name: str) -> bool:
        """Whether the private folder has a record of that name, valid or not."""
        try:
            return any(entry.name == _RECORD_FILE for entry in listed(self.directory / "clusters" / name))
        except OSError:  # reading the record tells why
            return True

    def _is_older(self, name: str) -> bool:
        """Whether an older release left a valid record of that name; other files there are the user's."""
        return isinstance(self._load(self.state_directory / "clusters" / name / _RECORD_FILE), Record)

    def _load(self, path: Path) -> Record | str:
        """The record in a file, or why there is none, in words. A file that is as it was is not read again."""
        try:
            # Opened, because on a network file system only that tells how a file is now.
            with os.fdopen(open_private(path), encoding="utf-8") as file:
                found = os.fstat(file.fileno())
                stamp = found.st_ino, found.st_mtime_ns, found.st_size
                known = self._loaded.get(path)
                if known is not None and known.stamp == stamp:
                    return known.record
                text = file.read(MOST_BYTES)
            # What was read before, or written here, need not be understood again.
            record = known.record if known is not None and known.text == text else record_from_json(text)
            if record.name != path.parent.name:
                return f"it is the record of another cluster, {record.name!r}"
            # One that was written just now may be replaced within the same tick of the file system's clock.
            is_old = time.time() - found.st_mtime > _CLOCK_TICK_S
            self._loaded[path] = _Loaded(text, record, stamp if is_old else None)
            return record
        except (FileNotFoundError, NotADirectoryError):
            return _DELETED
        except OSError as error:
            if error.errno not in _UNREADABLE:
                raise self.unusable(error) from error
            return f"it could not be read: {error.strerror}"
        except ValueError as error:  # UnicodeDecodeError is one
            return f"it could not be read: {error}"

    @staticmethod
    def _names_in(root: Path) -> list[str]:
        return [entry.name for entry in listed(root / "clusters") if NAME.fullmatch(entry.name)]

    def _runs(self, name: str = "") -> list[Path]:
        """Run folders of a cluster, or of all, oldest first."""
        return oldest_first(
            entry
            for runs in listed(self.directory)
            if runs.name == "runs" and _is_folder(runs)
            for entry in listed(Path(runs))
            if _is_folder(entry) and (cluster := cluster_of(entry.name)) and name in ("", cluster)
        )

    def _left_of(self, name: str, found: str) -> list[Path]:
        """Run folders of a cluster that has no valid record; those that are closed tell of no deleted one."""
        return self._open_runs(name) or (self._runs(name) if found != _DELETED else [])

    def _open_runs(self, name: str) -> list[Path]:
        """Run folders of a cluster that `forget` has not closed, oldest first."""
        if self._has_marks():
            marked = [run for run in self._marked_open() if cluster_of(run) == name]
            runs = [run for run in self._runs(name) if run.name in marked] if marked else []
        else:
            runs = self._runs(name)
        return [run for run in runs if _has(str(run), CLAIM_FILE)]

    def _marked_open(self) -> list[str]:
        """Names of the run folders that `forget` has not closed."""
        return [entry.name for entry in listed(self.directory / _OPEN_RUNS) if cluster_of(entry.name)]

    def _mark_open(self, run: Path) -> None:
        make_folder(self.state_directory, self.directory / _OPEN_RUNS)
        write_private(self.directory / _OPEN_RUNS / run.name, "")

    def _mark_closed(self, run: str) -> None:
        remove(self.state_directory, self.directory / _OPEN_RUNS, named(run))

    def _has_marks(self) -> bool:
        return any(entry.name == _OPEN_RUNS for entry in listed(self.directory))

    def _mark_older(self) -> None:
        """Mark the run folders that an older release left open, once."""
        if not self._has_marks():
            for run in self._runs():
                if _has(str(run), CLAIM_FILE):
                    self._mark_open(run)

    def _record_path(self, name: str) -> Path:
        return self.folder(name) / _RECORD_FILE

    @contextlib.contextmanager
    def exclusive(self, name: str, *, make: bool = False) -> Iterator[bool]:
        """Hold the lock of a cluster's record, against all threads and kernels; yields whether it is held.

        It is not if the cluster has no folder, or the folder cannot be written.

        Parameters
        ----------
        name : str
        make : bool
            Whether to make the cluster's folder, if there is none.
        """
        with self._lock:
            # If a caller holds it already, a second descriptor would wait for the first.
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
        """A descriptor that holds the lock; None if there is no such cluster, or its folder cannot be written."""
        folder = self.folder(name)
        for _ in range(_LOCK_TRIES):
            if make:
                make_folder(self.state_directory, folder)
            elif not {_RECORD_FILE, _LOCK_FILE} & {entry.name for entry in listed(folder)}:  # empty, or a user's files
                return None
            try:
                flags = os.O_CREAT | os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
                descriptor = os.open(folder / _LOCK_FILE, flags, 0o600)
            except OSError as error:
                if make and isinstance(error, FileNotFoundError):  # removed just now
                    continue
                return None
            try:
                with contextlib.suppress(OSError):  # no locks here; files are still written whole
                    fcntl.flock(descriptor, fcntl.LOCK_EX)
                # `forget` may have removed this lock while we waited for it.
                if _is_at(descriptor, folder / _LOCK_FILE):
                    return descriptor
            except BaseException:  # Ctrl-C while waiting
                os.close(descriptor)
                raise
            os.close(descriptor)
        return None

    def _mend(self, name: str, reason: str, known: Record | None, runs: list[Path]) -> Record:
        """Replace a record that is broken or gone."""
        path = self._record_path(name)
        aside = self.directory / "broken" / f"{name}-{int(time.time())}-{secrets.token_hex(2)}.json"
        if known is not None:  # but other kernels may have launched more since
            record = replace(known, launching=(*known.launching, unknown_launches(known)))
        else:
            record = salvaged_record(name, runs[-1] if runs else None)
        kept = f"; it is kept as {aside}" if os.path.lexists(path) else ""
        record = record.with_event(f"the record was mended ({reason}{kept})")
        # If it cannot be written, the broken record stays where it is, and the next reader tries again.
        with contextlib.suppress(OSError):
            make_folder(self.state_directory, path.parent)
            mended = path.with_name(_MENDED_FILE)
            write_private(mended, record_to_json(record))
            if kept:
                make_folder(self.state_directory, aside.parent)
                _set_aside(path, aside, record)
            mended.replace(path)
        return record

    def unusable(self, error: OSError) -> RegistryError:
        """The error that tells the user of one with a file of the state folder."""
        return RegistryError(
            f"the state folder {self.directory} cannot be used: {error.strerror or error} ({error.filename}); "
            "make it writable or set state-directory in the configuration to another folder"
        )


def _set_aside(path: Path, aside: Path, record: Record) -> None:
    """Keep what stands in a record's place: a file of ours without the values of env, anything else as it is.

    Parameters
    ----------
    path, aside : Path
        Where it stands, and where it is to go.
    record : Record
        What is known of the cluster.
    """
    content: bytes | None = None
    with contextlib.suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        try:
            if stat.S_ISREG(os.fstat(descriptor).st_mode):
                with os.fdopen(descriptor, "rb", closefd=False) as file:
                    content = file.read(MOST_BYTES)
        finally:
            os.close(descriptor)
    if content is None:
        path.rename(aside)
        return
    content = _ENV.sub(rb"\1{}", content)
    env = record.settings.get("env")
    for value in env.values() if isinstance(env, dict) else ():
        if isinstance(value, str):
            content = content.replace(json.dumps(value).encode(), b'""')
    write_private(aside, content)  # a copy, so that there is a record all the time


def _is_folder(entry: os.DirEntry[str]) -> bool:
    """Whether it is a folder, not a link to one."""
    return entry.is_dir(follow_symlinks=False)


def _has(folder: str, name: str) -> bool:
    """Whether a folder has a regular file of that name."""
    return any(entry.name == name and entry.is_file(follow_symlinks=False) for entry in listed(Path(folder)))


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.lstat())
    except OSError:
        return False
