"""Durable records of clusters, so that any kernel of the user can find, use and stop what another one started.

One folder a cluster name under ``clusters/`` holds the record; ``runs/NAME-TOKEN/`` holds what the sessions of
one start read and write. Knows neither Dask nor sessions: it is files.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import secrets
import shutil
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from cml_dask_magics.records import NAME, Record, record_from_json, record_to_json
from cml_dask_magics.runs import CLAIM_FILE, LOGS, close_run, salvaged_record, session_logs, unknown_launches

_KEPT_RUNS = 10
_KEPT_STARTS = 10
# Why a file cannot be opened, where asking again changes nothing; other reasons may be a network's passing weakness.
_UNREADABLE = frozenset({errno.EACCES, errno.EPERM, errno.EISDIR, errno.ELOOP})


class NameTakenError(RuntimeError):
    """Another claim of the name stands."""


class GoneError(RuntimeError, KeyError):
    """The cluster has no record any more: somebody has stopped it."""

    def __init__(self, name: str) -> None:
        super().__init__(f"cluster {name!r} is not on record any more: it was stopped, here or from another kernel")

    def __str__(self) -> str:
        return str(self.args[0])


class RegistryError(RuntimeError):
    """The state folder cannot be used; the message says why and what to do."""


class Registry:
    """The records of one state folder.

    Parameters
    ----------
    directory : Path
        The state folder; made when something is written.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._lock = threading.RLock()
        self._locked: set[str] = set()

    def names(self) -> list[str]:
        """Names of the clusters that have a record, or whose sessions may run though it was deleted; sorted."""
        try:
            # Listed, not asked for: see `_runs`.
            on_record = {path.parent.name for path in self.directory.glob("clusters/*/*") if path.name == "record.json"}
        except OSError as error:
            raise self._unusable(error) from error
        on_record = {name for name in on_record if NAME.fullmatch(name)}
        return sorted(on_record | {self._run_of(run) for run in self._open_runs("*")})

    def run_folder(self, record: Record) -> Path:
        """The folder that the sessions of this start share."""
        return self.directory / "runs" / f"{record.name}-{record.token}"

    def latest_log_folder(self, name: str) -> Path | None:
        """Where the sessions of the newest start of a cluster, running or ended, print to."""
        folders = [
            folder for folder in self.directory.glob(f"runs/{name}-*/{LOGS}") if self._run_of(folder.parent) == name
        ]
        return max(folders, key=lambda folder: folder.stat().st_mtime, default=None)

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
        try:
            return record_from_json(path.read_text())
        except (FileNotFoundError, NotADirectoryError):
            reason = "it was deleted"
            if not self._open_runs(name):
                return None
        except OSError as error:
            if error.errno not in _UNREADABLE:
                raise self._unusable(error) from error
            reason = f"it could not be read: {error.strerror}"
        except ValueError as error:  # UnicodeDecodeError is one
            reason = f"it could not be read: {error}"
        with self.exclusive(name):
            try:  # another kernel may have mended it meanwhile
                return record_from_json(path.read_text())
            except (FileNotFoundError, NotADirectoryError):
                runs = self._open_runs(name)
                return self._mend(name, reason, known, runs) if runs else None
            except ValueError:
                return self._mend(name, reason, known, self._runs(name))
            except OSError as error:
                if error.errno not in _UNREADABLE:
                    raise self._unusable(error) from error
                return self._mend(name, reason, known, self._runs(name))

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
        folder = self._record_path(record.name).parent
        draft, stale = self._hidden(record.name), self._hidden(record.name)
        run = self.run_folder(record)
        made: list[Path] = []
        try:
            for parent in (self.directory, folder.parent, run.parent):
                parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            for new in (run, run / LOGS, draft):
                new.mkdir(mode=0o700)
                made.append(new)
            fill(run)
            write_private(draft / "record.json", record_to_json(record))
            if folder.exists() and not self._record_path(record.name).exists():
                folder.rename(stale)  # its record was deleted by hand; a claim always comes with one
                shutil.rmtree(stale, ignore_errors=True)
            # A rename onto a folder that is not empty fails: of two claims at once, one wins, with its record whole.
            draft.rename(folder)
            made.append(folder)
            # For whoever must go on without the record, because it is broken or deleted. As long as this is here, there
            # must be a record.
            write_private(run / CLAIM_FILE, record_to_json(record))
        except OSError as error:
            for new in reversed(made):
                shutil.rmtree(new, ignore_errors=True)
            if self._record_path(record.name).exists():
                raise NameTakenError(record.name) from None
            raise self._unusable(error) from error
        except BaseException:  # Ctrl-C: nobody would ever know that the name was taken
            for new in made:
                shutil.rmtree(new, ignore_errors=True)
            self.forget(record)
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
        gone = self._hidden(record.name)
        try:
            # First this: a run folder that is open and has no record is one whose record was deleted.
            close_run(self.run_folder(record))
            with self.exclusive(record.name), contextlib.suppress(FileNotFoundError):
                current = self.read(record.name)
                if current is not None and current.token == record.token:  # and not one that was started since
                    self._record_path(record.name).parent.rename(gone)
                    shutil.rmtree(gone, ignore_errors=True)
        except OSError as error:
            raise self._unusable(error) from error
        # Old output that cannot be removed, another cluster's record that cannot be read: not this cluster's trouble.
        with contextlib.suppress(OSError, RegistryError):
            ended = [run for run in self.directory.glob("runs/*") if self._record_of(run) is None]
            for run in sorted(ended, key=lambda run: run.stat().st_mtime)[:-_KEPT_RUNS]:
                shutil.rmtree(run, ignore_errors=True)

    def note_start(self, backend: str, took_s: float) -> None:
        """Remember how long a start took; the next one's estimate comes of the last ten."""
        starts = self._starts()
        starts[backend] = [*starts.get(backend, []), round(took_s, 1)][-_KEPT_STARTS:]
        with contextlib.suppress(OSError):  # an estimate is no reason to fail
            write_private(self.directory / "starts.json", json.dumps(starts))

    def usual_start_s(self, backend: str) -> float | None:
        """How many seconds starts on a platform usually took, their median; None if there were none."""
        known = self._starts().get(backend)
        return statistics.median(known) if known else None

    def _starts(self) -> dict[str, list[float]]:
        try:
            starts = json.loads((self.directory / "starts.json").read_text())
            return {str(backend): [float(took_s) for took_s in known] for backend, known in starts.items()}
        except (OSError, ValueError, TypeError, AttributeError):
            return {}

    def logged_sessions(self, record: Record) -> set[str]:
        """Ids of the sessions that have started to print for this cluster: proof that they are its own."""
        return set(session_logs(self.run_folder(record) / LOGS))

    def folder(self, name: str) -> Path:
        """Where a cluster's record lies."""
        return self.directory / "clusters" / name

    def _runs(self, name: str, file: str = "") -> list[Path]:
        """Run folders of a cluster (of all, for ``*``) that hold a file of that name, the oldest first."""
        found = [run for run in self.directory.glob(f"runs/{name}-*") if name in ("*", self._run_of(run))]
        # Listed, not asked for: a file that is not there yet might go on missing for a kernel that asked too early.
        runs = [run for run in found if not file or any(path.name == file for path in run.glob("*"))]
        return sorted(runs, key=lambda run: run.stat().st_mtime)

    def _open_runs(self, name: str) -> list[Path]:
        """Run folders of clusters that have not been forgotten."""
        return self._runs(name, CLAIM_FILE)

    def _record_of(self, run: Path) -> Record | None:
        name = self._run_of(run)
        record = self.read(name) if name in self.names() else None
        return record if record is not None and self.run_folder(record) == run else None

    @staticmethod
    def _run_of(run: Path) -> str:
        return run.name.rpartition("-")[0]

    def _hidden(self, name: str) -> Path:
        return self.directory / "clusters" / f".{name}.{secrets.token_hex(4)}"

    def _record_path(self, name: str) -> Path:
        return self.folder(name) / "record.json"

    @contextlib.contextmanager
    def exclusive(self, name: str) -> Iterator[None]:
        """Alone with what is on record of a cluster, among all threads and kernels that ask."""
        path = self._record_path(name).with_name("lock")
        with self._lock:
            if name in self._locked:  # by a caller further up: a second descriptor would wait for the first
                yield
                return
            try:
                descriptor = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
            except OSError:  # no such cluster, or a folder that cannot be written: the caller's own access says so
                yield
                return
            self._locked.add(name)
            try:
                with contextlib.suppress(OSError):  # a file system without locks: the rename still keeps records whole
                    fcntl.flock(descriptor, fcntl.LOCK_EX)
                yield
            finally:
                self._locked.discard(name)
                os.close(descriptor)

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
            path.parent.mkdir(mode=0o700, exist_ok=True)
            mended = path.with_name(".mended")
            write_private(mended, record_to_json(record))
            if kept:
                aside.parent.mkdir(mode=0o700, exist_ok=True)
                try:
                    shutil.copy2(path, aside)
                except OSError:  # what nobody can open can still be moved
                    path.rename(aside)
            mended.replace(path)
        return record

    def _unusable(self, error: OSError) -> RegistryError:
        return RegistryError(
            f"the state folder {self.directory} cannot be used: {error.strerror or error} ({error.filename}); "
            "make it writable or set state-directory in the configuration to another folder"
        )


def write_private(path: Path, text: str) -> None:
    """Write a file that only its owner reads, whole or not at all: to a temporary file, then renamed."""
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with os.fdopen(os.open(draft, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
