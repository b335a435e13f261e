"""A Dask cluster object that is connected to a scheduler of ours: what it sees, what it shows, how it lets go.

The lower half of `CMLCluster`; starts, scales and stops no session.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from distributed.core import Status
from distributed.protocol.pickle import dumps
from distributed.utils import Log, Logs
from tornado.ioloop import IOLoop

from cml_dask_magics.cluster.snapshot import snapshot, utc
from cml_dask_magics.cluster.watching import SHOWN_INTERVAL_S, CallableStatus, Repeated, WatchingCluster
from cml_dask_magics.fleet.fleet import Fleet
from cml_dask_magics.fleet.shell_lines import session_of
from cml_dask_magics.model.lifecycle import cluster_state
from cml_dask_magics.model.record import SessionRecord
from cml_dask_magics.model.settings import Settings
from cml_dask_magics.model.status import ClusterState, ClusterStatus, StatusCallback
from cml_dask_magics.platforms.api import Platform
from cml_dask_magics.registry.certificates import read_security

LOST_AFTER_S = 15.0


class ConnectedCluster(WatchingCluster):
    """The view of one cluster through its scheduler, its sessions and its record.

    Parameters
    ----------
    fleet : Fleet
        The cluster's sessions.
    asynchronous : bool
        As for `distributed.deploy.Cluster`.
    loop : tornado.ioloop.IOLoop, optional
    """

    def __init__(self, fleet: Fleet, asynchronous: bool, loop: IOLoop | None) -> None:
        self._fleet = fleet
        self._on_end: Callable[[Any], None] | None = None
        self.failure: Exception | None = None
        self.warning: str | None = None
        # Why this object let go of its cluster, where nobody asked it to.
        self.parting_words = ""
        super().__init__(fleet.record.name, asynchronous, loop)

    @property
    def settings(self) -> Settings:
        """What the cluster was started with."""
        return self._fleet.settings

    @property
    def platform(self) -> Platform:
        """What its sessions run on."""
        return self._fleet.pool.platform

    @property
    def status(self) -> CallableStatus:
        """Dask's own state of the cluster object; called, the cluster at this moment, a `ClusterStatus`.

        The call gives an awaitable where the cluster is `asynchronous`.
        """
        return CallableStatus(self._dask_status, self._status_now)

    @status.setter
    def status(self, status: Status) -> None:
        self._dask_status = status

    @property
    def dashboard_link(self) -> str:
        """Where a browser of the user finds the dashboard; empty while that is not known."""
        scheduler = self._scheduler_session()
        if scheduler is None or not scheduler.app_url or self.scheduler_comm is None:
            return ""
        if self.platform.browser_is_here:
            return str(super().dashboard_link)
        return self.settings.dashboard_link.format(
            app_url=scheduler.app_url.rstrip("/"), session=scheduler.id, domain=self.platform.domain
        )

    def __eq__(self, other: object) -> bool:
        # Not by name, as Dask has it: its get_client would give the client of an earlier cluster of the same name.
        return isinstance(other, ConnectedCluster) and self._fleet.record.token == other._fleet.record.token

    def __hash__(self) -> int:
        return hash(self._fleet.record.token)

    def _read_only_link(self) -> str | None:
        """The platform's other address of what a session serves on ``CDSW_READONLY_PORT``, by its documentation."""
        scheduler, domain = self._scheduler_session(), self.platform.domain
        if scheduler is None or self.scheduler_comm is None or not domain:
            return None
        return f"https://read-only-{scheduler.id}.{domain}/status"

    def keep(self) -> Any:
        """Start the idle countdown anew, as work would."""
        self._check_open()
        return self.sync(self._keep)

    async def _keep(self) -> None:
        def now_active(dask_scheduler: Any) -> None:
            import time

            dask_scheduler.idle_since = time.time()

        # A function inside a function goes by value: the scheduler's session need not have this module.
        await self.scheduler_comm.run_function(function=dumps(now_active), args=dumps(()), kwargs=dumps({}))
        await asyncio.to_thread(self._fleet.log, "kept: the idle time starts anew")

    def restart_worker(self, session: str) -> Any:
        """Restart the worker process in a session; its session and its name stay.

        Raises
        ------
        RuntimeError
            If no worker of that session is connected, or it did not come back.
        """
        self._check_open()
        return self.sync(self._restart_worker, session)

    def get_logs(self, cluster: bool = True, scheduler: bool = True, workers: Any = True) -> Any:
        """What the cluster, its scheduler and its workers logged; see `distributed.deploy.Cluster.get_logs`."""
        self._check_open()
        return super().get_logs(cluster=cluster, scheduler=scheduler, workers=workers)

    def wait_for_workers(self, n_workers: int, timeout: float | None = None) -> Any:
        """Wait until so many workers are there; see `distributed.deploy.Cluster.wait_for_workers`."""
        self._check_open()
        return super().wait_for_workers(n_workers, timeout)

    async def _restart_worker(self, session: str) -> None:
        workers = self.scheduler_info["workers"].items()
        addresses = [address for address, worker in workers if session_of(worker["name"]) == session]
        if not addresses:
            raise RuntimeError(f"no worker of session {session} is connected to cluster {self.name!r}")
        outcome = await self.scheduler_comm.restart_workers(
            workers=addresses, timeout=60, on_error="return", stimulus_id=f"cml-dask-magics-restart-{time.time()}"
        )
        if set(outcome.values()) - {"OK"}:
            raise RuntimeError(f"the worker of session {session} was not restarted: {', '.join(outcome.values())}")
        await asyncio.to_thread(self._fleet.log, f"the worker of session {session} was restarted")

    def follow(self, on_status: StatusCallback, on_end: Callable[[Any], None], wanted: Callable[[], bool]) -> None:
        """Call `on_status` with a `ClusterStatus` every second, from Dask's thread, and `on_end` when this closes.

        There is one follower; a new one takes the place of the old. While `wanted` says no, nothing is asked or told.
        """

        async def tell() -> None:
            self._listen_often(wanted())
            if wanted():
                on_status(await self._snapshot())

        def begin() -> None:
            if "follow" in self.periodic_callbacks:
                self.periodic_callbacks.pop("follow").stop()
            following = self.periodic_callbacks["follow"] = Repeated(tell, SHOWN_INTERVAL_S)
            following.start()

        self._on_end = on_end
        assert self.loop is not None
        self.loop.add_callback(begin)

    async def _connect_to(self, address: str) -> None:
        await self._connect(address, read_security(self._fleet.folder, self.settings.tls))
        await asyncio.to_thread(self._fleet.update, lambda record: replace(record, scheduler_address=address))

    async def _detach(self) -> None:
        """Let go of scheduler and platform; the cluster goes on."""
        self._fleet.unwatch()
        await self._let_go()
        if self._on_end is not None:
            self._on_end(self)

    def _on_break(self) -> None:
        self._fleet.pool.look_now()

    def _check_open(self) -> None:
        """
        Raises
        ------
        RuntimeError
            If this object has let go of its cluster, or is about to.
        """
        if self._dask_status in (Status.closing, Status.closed):
            raise RuntimeError(
                self.parting_words
                or f"this object has let go of cluster {self.name!r}: it was closed. "
                f"CMLCluster.from_name({self.name!r}) re-attaches, if the cluster still runs"
            )

    def _status_now(self) -> Any:
        self._check_open()
        return self.sync(self._status)

    async def _status(self) -> ClusterStatus:
        """The cluster, as its scheduler is now."""
        await self._look()
        return await self._snapshot()

    async def _snapshot(self) -> ClusterStatus:
        """The cluster, as its scheduler last told and as it stands on record."""
        on_record = await asyncio.to_thread(self._fleet.refresh)
        return self.picture() if on_record else self._picture("lost")  # another kernel stopped it

    def picture(self) -> ClusterStatus:
        """The cluster as this kernel last heard of it, without asking anybody."""
        return self._picture(self._state())

    def _picture(self, state: ClusterState) -> ClusterStatus:
        return snapshot(
            self._fleet,
            state,
            self._workers,
            scheduler_address=self.scheduler_address if self.scheduler_comm is not None else None,
            dashboard_link=self.dashboard_link or None,
            read_only_link=self._read_only_link(),
            idle_s=self._idle_s,
            history=tuple(self._history),
            peak_memory_bytes=self._peak_memory_bytes,
        )

    def _state(self) -> ClusterState:
        record = self._fleet.record
        if self.failure is not None:
            return "stopping"
        gone = self._scheduler_session() is None or self.silent_s > LOST_AFTER_S
        return cluster_state(record, len(self.observed), scheduler_lost=gone and record.state != "starting")

    def _scheduler_session(self) -> SessionRecord | None:
        return next((session for session in self._fleet.record.sessions if session.role == "scheduler"), None)

    async def _get_logs(self, cluster: bool = True, scheduler: bool = True, workers: Any = True) -> Logs:
        logs = await super()._get_logs(cluster=False, scheduler=scheduler, workers=workers)
        if cluster:
            events = self._fleet.record.events
            logs["Cluster"] = Log("\n".join(f"{utc(at):%Y-%m-%d %H:%M:%S} {message}" for at, message in events))
        return logs
