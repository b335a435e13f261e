"""`CMLCluster.status`: a state for Dask, and a method for users."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from distributed.core import Status


class CallableStatus:
    """Equal to Dask's `Status`; called, it returns a snapshot."""

    def __init__(self, status: Status, snapshot: Callable[[], Any]) -> None:
        self._status = status
        self._snapshot = snapshot

    def __call__(self) -> Any:
        """The snapshot."""
        return self._snapshot()

    def __eq__(self, other: object) -> bool:
        """Compare with Dask's `Status`."""
        return bool(self._status == (other._status if isinstance(other, CallableStatus) else other))

    def __hash__(self) -> int:
        """The hash of Dask's `Status`."""
        return hash(self._status)

    def __repr__(self) -> str:
        """As Dask's `Status`."""
        return repr(self._status)

    @property
    def name(self) -> str:
        """The state's name."""
        return str(self._status.name)

    @property
    def value(self) -> str:
        """The state's name, as the value of Dask's `Status`."""
        return str(self._status.value)
