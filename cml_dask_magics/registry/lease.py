"""Which kernel steers a cluster: replaces lost workers, follows its load, ends it when it is lost.

A small file beside the record names that kernel and counts its heartbeats. Clocks of different sessions may differ, so
a lease has expired for a kernel that has not seen the count change for a while.
"""

from __future__ import annotations

import contextlib
import json
import secrets
import time
from dataclasses import asdict, dataclass

from cml_dask_magics.model.record import Owner
from cml_dask_magics.model.times import USUAL, Times
from cml_dask_magics.registry.files import named, read_private, remove, write_private
from cml_dask_magics.registry.kernels import kernel_may_live
from cml_dask_magics.registry.registry import LEASE_FILE, Registry


@dataclass(frozen=True)
class _Held:
    """The file's content: who holds the lease, in which kernel, and its heartbeats."""

    holder: str
    kernel: Owner
    beats: int


class Lease:
    """The lease of one cluster, for one `CMLCluster` object that may take it.

    Parameters
    ----------
    registry : Registry
    name : str
        The cluster.
    kernel : Owner
        This kernel.
    times : Times, optional
    """

    def __init__(self, registry: Registry, name: str, kernel: Owner, times: Times = USUAL) -> None:
        self._registry = registry
        self._name = name
        self._kernel = kernel
        self._times = times
        self._holder = secrets.token_hex(8)  # a kernel may attach to a cluster twice
        self._path = registry.folder(name) / LEASE_FILE
        self._beat_at: float | None = None
        self._seen: _Held | None = None
        self._seen_at = 0.0

    def hold(self) -> bool:
        """Take the lease if it is free, or keep it; returns whether it is ours.

        Call it more often than every `Times.lease_s`. It writes every `Times.beat_s`.
        """
        now = time.monotonic()
        if self._beat_at is not None and now - self._beat_at < self._times.beat_s:
            return True
        try:
            with self._registry.exclusive(self._name):
                ours = self._take(now)
        except OSError:  # a full disk, or the cluster is gone: who cannot write the lease does not steer
            ours = False
        self._beat_at = now if ours else None
        return ours

    def release(self) -> None:
        """Give the lease up."""
        self._beat_at = None
        with contextlib.suppress(OSError), self._registry.exclusive(self._name):
            held = self._read()
            if held is not None and held.holder == self._holder:
                remove(self._registry.state_directory, self._path.parent, named(LEASE_FILE))

    def _take(self, now: float) -> bool:
        """Write the lease if it is free or ours; returns whether it was ours already."""
        held = self._read()
        ours = held is not None and held.holder == self._holder
        if held is not None and not ours and not self._is_over(held, now):
            return False
        self._write(_Held(self._holder, self._kernel, held.beats + 1 if held is not None else 0))
        # Without file locks two may take it at once: the next call shows who has it.
        return ours

    def _is_over(self, held: _Held, now: float) -> bool:
        if held != self._seen:
            self._seen, self._seen_at = held, now
        return now - self._seen_at > self._times.lease_s or not kernel_may_live(held.kernel)

    def _read(self) -> _Held | None:
        try:
            data = json.loads(read_private(self._path))
            held = _Held(str(data["holder"]), Owner(**data["kernel"]), int(data["beats"]))
            return held if isinstance(held.kernel.pid, int) else None
        except FileNotFoundError:
            return None
        except PermissionError:  # another user's; it is replaced
            return None
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):  # incomplete or invalid: nobody's
            return None

    def _write(self, held: _Held) -> None:
        write_private(self._path, json.dumps(asdict(held)))
