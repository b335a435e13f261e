"""Whether a session on record is the cluster's: a record is a file, and what it says may be wrong.

A session is taken for the cluster's if this kernel launched it for the cluster, if its workers are connected to the
cluster's scheduler, or if the cluster's folder tells of it: it wrote its log there, as the first thing that it does, or
the kernel that launched it wrote it down.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Set

from cml_dask_magics.model.times import Times
from cml_dask_magics.platforms.api import PlatformError
from cml_dask_magics.platforms.pool import SessionPool
from cml_dask_magics.registry.journal import Journal
from cml_dask_magics.registry.run_folder import launched_sessions, started_sessions


class Proof:
    """Tells a cluster's sessions from others that stand in its record.

    All methods block and may be called from any thread.

    Parameters
    ----------
    journal : Journal
        The cluster's record.
    pool : SessionPool
    launched : set of str
        Sessions that this kernel has launched for the cluster so far.
    times : Times
    """

    def __init__(self, journal: Journal, pool: SessionPool, launched: Set[str], times: Times) -> None:
        self._journal = journal
        self._pool = pool
        self._launched = launched
        self._times = times
        self._connected: set[str] = set()

    def note_connected(self, sessions: Collection[str]) -> None:
        """Take note of sessions whose workers are connected to the cluster's scheduler."""
        self._connected.update(sessions)

    def of(self, session: str) -> bool:
        """Whether there is proof that a session is the cluster's."""
        return bool(self._proven({session}))

    def may_be_stopped(self, sessions: Collection[str]) -> set[str]:
        """Those of `sessions` that are the cluster's, or have ended."""
        return self._look(sessions)[0]

    def wait_for(self, sessions: Collection[str], deadline: float) -> bool:
        """Wait until some of `sessions` may be stopped; False at the `deadline`, or after `Times.suspects_s`.

        A session that was just started, or a network file system, may take so long to show a log. One that starts later
        ends by itself, if it finds that its cluster has ended, or else its log tells of it then.

        Raises
        ------
        PlatformError
            If there is no listing until then.
        """
        deadline = min(deadline, time.monotonic() + self._times.suspects_s)
        while sessions:
            ours, failure = self._look(sessions)
            if ours:
                return True
            if time.monotonic() > deadline:
                if failure is not None:
                    raise failure
                break
            time.sleep(0.2)
        return False

    def _look(self, sessions: Collection[str]) -> tuple[set[str], PlatformError | None]:
        """Which of `sessions` may be stopped, and why there is no listing, if it was needed and failed."""
        proven = self._proven(set(sessions))
        unproven = set(sessions) - proven
        if not unproven:
            return proven, None
        try:
            listing = self._pool.listing()
        except PlatformError as error:
            return proven, error
        ended = {session for session in unproven if session in listing and listing[session].phase == "ended"}
        return proven | ended, None

    def _proven(self, sessions: Set[str]) -> set[str]:
        proven = set(sessions & (self._launched | self._connected))
        for sessions_of in (started_sessions, launched_sessions):  # the latter may have many files to read
            if unproven := sessions - proven:
                proven |= unproven & sessions_of(self._journal.folder)
        return proven
