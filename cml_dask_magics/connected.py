"""A Dask cluster object that is connected to a scheduler of ours: what it sees, what it shows, how it lets go.

The lower half of `CMLCluster`; starts, scales and stops nothing.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Collection
from dataclasses import replace
from typing import Any

from distributed.core import Status, rpc
from distributed.deploy.cluster import Cluster
from distributed.objects import SchedulerInfo
from distributed.protocol.pickle import dumps
from distributed.utils import Log, Logs
from tornado.ioloop import IOLoop, PeriodicCallback

from cml_dask_magics.claims import ANSWER_TIMEOUT_S
from cml_dask_magics.config import Settings
from cml_dask_magics.fleet import Fleet
from cml_dask_magics.records import SessionRecord
from cml_dask_magics.security import read_security
from cml_dask_magics.snapshot import sample, session_of, snapshot, utc
from cml_dask_magics.status import ClusterState, ClusterStatus, Sample

_REFRESH_S = 5.0
_FOLLOW_S = 1.0
_HISTORY_S = 300.0
_NAMED_WORKERS = 3
LOST_AFTER_S = 15.0

StatusCallback = Callable[[ClusterStatus], None]


class CallableStatus:
    """What `CMLCluster.status` is: equal to Dask's `Status` for Dask, and a method for everybody else."""

    def __init__(self, status: Status, snapshot: Callable[[], Any]) -> None:
        self._status = status
        self._snapshot = snapshot

    def __call__(self) -> Any:
        return self._snapshot()

    def __eq__(self, other: object) -> bool:
        return bool(self._status == (other._status if isinstance(other, CallableStatus) else other))

    def __hash__(self) -> int:
        return hash(self._status)

    def __repr__(self) -> str:
        return repr(self._status)

    @property
    def name(self) -> str:
        """Dask's word for the state."""
        return str(self._status.name)


class ConnectedCluster(Cluster):  # type: ignore[misc]
    """The view of one cluster through its scheduler, its sessions and its record.

    Parameters
    ----------
    fleet : Fleet
        The cluster's sessions.
    asynchronous : bool
        As for `distributed.deploy.Cluster`.
    loop : tornado.ioloop.IOLoop, optional
    """

    scheduler_comm: Any
    scheduler_info: Any
    periodic_callbacks: dict[str, Any]
    _adaptive: Any

    def __init__(self, fleet: Fleet, asynchronous: bool, loop: IOLoop | None) -> None:
        self._fleet = fleet
        self._dask_status = Status.created
        self._unreachable_since: float | None = None
        self._idle_s: float | None = None
        self._history: deque[Sample] = deque(maxlen=int(_HISTORY_S / _FOLLOW_S))
        self._peak_memory_bytes = 0
        self._seen: set[str] | None = None
        self._on_end: Callable[[Any], None] | None = None
        self.failure: Exception | None = None
        self.warning: str | None = None
        super().__init__(asynchronous=asynchronous, loop=loop, quiet=True, name=fleet.record.name)
        # Dask's stream tells of workers that come and go, but only to the last who asked for it: with two kernels on
        # one cluster the first must look for itself.
        self.periodic_callbacks["refresh"] = PeriodicCallback(self._refresh, _REFRESH_S * 1000)

    @property
    def settings(self) -> Settings:
        """What the cluster was started with."""
        return self._fleet.settings

    @property
    def closed(self) -> bool:
        """Whether this object has let go of its cluster."""
        return bool(self._dask_status == Status.closed)

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
    def observed(self) -> set[str]:
        """Ids of the sessions whose worker the scheduler knows; the workers are named after them."""
        return {session_of(worker["name"]) for worker in self.scheduler_info["workers"].values()}

    @property
    def dashboard_link(self) -> str:
        """Where a browser of the user finds the dashboard; empty while that is not known."""
        scheduler = self._scheduler_session()
        if scheduler is None or not scheduler.app_url or self.scheduler_comm is None:
            return ""
        return self.settings.dashboard_link.format(
            app_url=scheduler.app_url.rstrip("/"), session=scheduler.id, domain=self._fleet.pool.platform.domain
        )

    def __eq__(self, other: object) -> bool:
        # Not by name, as Dask has it: its get_client would give the client of an earlier cluster of the same name.
        return isinstance(other, ConnectedCluster) and self._fleet.record.token == other._fleet.record.token

    def __hash__(self) -> int:
        return hash(self._fleet.record.token)

    @property
    def peak_memory_bytes(self) -> int:
        """The most memory that the workers held together, as far as this object saw."""
        return self._peak_memory_bytes

    def _read_only_link(self) -> str | None:
        """The platform's other address of what a session serves on ``CDSW_READONLY_PORT``, by its documentation."""
        scheduler, domain = self._scheduler_session(), self._fleet.pool.platform.domain
        if scheduler is None or self.scheduler_comm is None or not domain:
            return None
        return f"https://read-only-{scheduler.id}.{domain}/status"

    def keep(self) -> Any:
        """Start the idle countdown anew, as work would."""
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
        return self.sync(self._restart_worker, session)

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
            if wanted():
                on_status(await self._status())

        self._on_end = on_end
        if "follow" in self.periodic_callbacks:
            self.periodic_callbacks.pop("follow").stop()
        callback = self.periodic_callbacks["follow"] = PeriodicCallback(tell, _FOLLOW_S * 1000)
        assert self.loop is not None
        self.loop.add_callback(callback.start)

    async def _connect(self, address: str) -> None:
        self.security = read_security(self._fleet.folder, self.settings.tls)
        self.scheduler_comm = rpc(address, connection_args=self.security.get_connection_args("client"))
        await super()._start()
        await asyncio.to_thread(self._fleet.update, lambda record: replace(record, scheduler_address=address))

    async def _disconnect(self) -> None:
        if self.scheduler_comm is not None:
            await self.scheduler_comm.close_rpc()
            self.scheduler_comm = None

    async def _detach(self) -> None:
        """Let go of scheduler and platform; the cluster goes on."""
        self._fleet.unwatch()
        # The stream to a scheduler that was cut off ends when the network says so; closing must not wait for that.
        if self._watch_worker_status_task is not None and self._watch_worker_status_comm is not None:
            self._watch_worker_status_comm.abort()
        await super()._close()
        if self._on_end is not None:
            self._on_end(self)

    async def _refresh(self) -> None:
        """Take in what the scheduler knows of its workers: Dask's own stream tells no CPU and memory."""
        if self.scheduler_comm is None:
            return
        try:
            info, idle_since = await asyncio.wait_for(
                asyncio.gather(self.scheduler_comm.identity(), self.scheduler_comm.check_idle()), ANSWER_TIMEOUT_S
            )
        except (OSError, TimeoutError, asyncio.TimeoutError):
            self._unreachable_since = self._unreachable_since or time.monotonic()
            return
        self._unreachable_since = None
        self._idle_s = max(0.0, time.time() - idle_since) if idle_since else None
        self.scheduler_info = SchedulerInfo(info)
        self._remember()

    def _remember(self) -> None:
        """Keep what the graphs and the events tell of this look at the workers."""
        seen = sample(self.scheduler_info["workers"])
        self._peak_memory_bytes = max(self._peak_memory_bytes, seen.memory_bytes)
        if not self._history or (seen.at - self._history[-1].at).total_seconds() >= _FOLLOW_S * 0.9:
            self._history.append(seen)

    async def _log_comings_and_goings(self) -> None:
        """Put into the record which workers joined and left since the last look; the start tells its own story."""
        if self._fleet.record.state != "running" or self._unreachable_since is not None:
            return
        now, before = self.observed, self._seen
        self._seen = now
        if before is None:
            return
        for who, what in ((now - before, "joined"), (before - now, "left")):
            if who:
                await asyncio.to_thread(self._fleet.log, f"{_named(who)} {what}")

    def _status_now(self) -> Any:
        if self.closed:
            raise RuntimeError(
                f"this object has let go of cluster {self.name!r}; from_name re-attaches, if it still runs"
            )
        return self.sync(self._status)

    async def _status(self) -> ClusterStatus:
        await self._refresh()
        await self._log_comings_and_goings()
        on_record = await asyncio.to_thread(self._fleet.refresh)
        return snapshot(
            self._fleet,
            self._state() if on_record else "lost",  # another kernel stopped it
            self.scheduler_info["workers"],
            scheduler_address=self.scheduler_address if self.scheduler_comm is not None else None,
            dashboard_link=self.dashboard_link or None,
            read_only_link=self._read_only_link(),
            idle_s=self._idle_s,
            history=tuple(self._history),
            peak_memory_bytes=self._peak_memory_bytes,
        )

    def _state(self) -> ClusterState:
        record = self._fleet.record
        if record.state == "stopping" or self.failure is not None:
            return "stopping"
        stream = self._watch_worker_status_task
        silent_s = time.monotonic() - self._unreachable_since if self._unreachable_since is not None else 0.0
        if silent_s > LOST_AFTER_S or (silent_s and stream is not None and stream.done()):
            return "lost"
        if record.state == "starting":
            return "starting"
        return "running" if len(self.observed) >= record.requested else "degraded"

    def _scheduler_session(self) -> SessionRecord | None:
        return next((session for session in self._fleet.record.sessions if session.role == "scheduler"), None)

    async def _get_logs(self, cluster: bool = True, scheduler: bool = True, workers: Any = True) -> Logs:
        logs = await super()._get_logs(cluster=False, scheduler=scheduler, workers=workers)
        if cluster:
            events = self._fleet.record.events
            logs["Cluster"] = Log("\n".join(f"{utc(at):%Y-%m-%d %H:%M:%S} {message}" for at, message in events))
        return logs


def _named(sessions: Collection[str]) -> str:
    """Workers by the ids of their sessions, as long as they are few."""
    if len(sessions) > _NAMED_WORKERS:
        return f"{len(sessions)} workers"
    return ("worker " if len(sessions) == 1 else "workers ") + ", ".join(sorted(sessions))
