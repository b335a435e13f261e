"""The record of one start of a cluster, as one kernel reads and writes it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

from cml_dask_magics.model.record import Owner, Record
from cml_dask_magics.registry.registry import GoneError, Registry, RegistryError


class Journal:
    """Reads and writes the record of one start of a cluster.

    All methods block and may be called from any thread.

    Parameters
    ----------
    registry : Registry
    record : Record
        The cluster's record in `registry`.
    kernel : Owner
        The kernel that reads and writes.
    """

    def __init__(self, registry: Registry, record: Record, kernel: Owner) -> None:
        self.registry = registry
        self.kernel = kernel
        self._record = record
        # Changes that could not be written, in order. They hold here, and are written with the next change that can be.
        self._unwritten: list[Callable[[Record], Record]] = []
        self._lock = threading.RLock()  # what is read must not replace what was written later

    @property
    def record(self) -> Record:
        """The record as this kernel last read or wrote it."""
        return self._record

    @property
    def folder(self) -> Path:
        """The run folder: what the sessions share."""
        return self.registry.run_folder(self._record)

    def update(self, change: Callable[[Record], Record]) -> Record:
        """Change the record on disk and here, for changes that must be on disk before anything else happens.

        Raises
        ------
        GoneError
            If the cluster has no record any more: it was stopped.
        RegistryError
            If it cannot be written; the record stays as it was.
        """

        def change_ours(record: Record) -> Record:
            if record.token != self._record.token:
                raise GoneError(record.name)
            return change(self._caught_up(record))

        with self._lock:
            self._record = self.registry.update(self._record.name, change_ours, known=self._record)
            self._unwritten.clear()
            return self._record

    def note(self, change: Callable[[Record], Record]) -> Record:
        """Change the record here, and on disk as soon as possible: for changes that must not fail.

        Parameters
        ----------
        change : callable
            May be called more than once.
        """
        with self._lock:
            try:
                return self.update(change)
            except GoneError:
                pass
            except RegistryError:
                self._unwritten.append(change)
            self._record = change(self._record)
            return self._record

    def log(self, message: str) -> None:
        """Add an event to the record, for all kernels to read."""
        self.note(lambda record: record.with_event(message))

    def refresh(self) -> bool:
        """Read the record again; False if this start of the cluster has none any more."""
        with self._lock:
            record = self.registry.read(self._record.name, known=self._record)
            if record is None or record.token != self._record.token:
                return False
            self._record = self._caught_up(record)
            return True

    def forget(self, record: Record) -> None:
        """Remove the record from disk, and keep `record` here.

        Raises
        ------
        RegistryError
            If it cannot be removed.
        """
        with self._lock:
            self.registry.forget(record)
            self._record = record
            self._unwritten.clear()

    def _caught_up(self, record: Record) -> Record:
        """A record that was read, with the changes that could not be written."""
        for change in self._unwritten:
            record = change(record)
        return record
