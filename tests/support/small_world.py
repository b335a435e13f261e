"""A whole world in memory for the state machine: a platform whose sessions behave, kernels that die, and its own time.

Everything of the package below Dask is real, and what changes the size: registry, records, fleets, leases, supervisors,
scalers. What Dask would tell (which worker is connected, and which to end first) the world tells. A kernel that is
killed does nothing more, not even what its ``finally`` says.
"""

from __future__ import annotations

import contextlib
import itertools
import json
from collections import Counter
from collections.abc import Callable, Collection, Coroutine, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast
from unittest import mock

from cml_dask_magics.cluster.scaling import Scaler
from cml_dask_magics.cluster.scheduler import SchedulerView
from cml_dask_magics.fleet import fleet, launches, opening, orphans, proof, supervisor
from cml_dask_magics.fleet.fleet import Fleet, StillUpError
from cml_dask_magics.fleet.supervisor import Seen, Supervisor, Todo
from cml_dask_magics.model import lifecycle
from cml_dask_magics.model import record as record_module
from cml_dask_magics.model.record import Owner
from cml_dask_magics.model.settings import Settings, make_settings
from cml_dask_magics.model.status import WorkerFigures
from cml_dask_magics.platforms import pool
from cml_dask_magics.platforms.api import Platform, PlatformError
from cml_dask_magics.registry import lease, liveness, registry, run_folder
from cml_dask_magics.registry.registry import NameTakenError, Registry, RegistryError
from support.memory_platform import MemoryAPI, MemorySession, Workspace

_OF_THE_FLEET = (opening, fleet, launches, orphans, proof, supervisor)
_MODULES = (*_OF_THE_FLEET, lease, lifecycle, liveness, record_module, registry, run_folder, pool)
EXPECTED = (RegistryError, NameTakenError, StillUpError, PlatformError, KeyError, RuntimeError, OSError)


async def _in_this_thread(work: Callable[..., Any], *args: Any) -> Any:
    return work(*args)


class Killed(BaseException):
    """SIGKILL."""


class Clock:
    """The world's time, in the shape of the module `time`; whoever sleeps lets the world go on."""

    def __init__(self) -> None:
        self.now, self.offset = 1000.0, 1_700_000_000.0
        self.on_sleep: Callable[[], None] = lambda: None

    def monotonic(self) -> float:
        return self.now

    def time(self) -> float:
        return self.now + self.offset

    def sleep(self, seconds: float) -> None:
        self.now += max(seconds, 0.05)
        self.on_sleep()


@dataclass
class Held:
    """A cluster as one kernel holds it."""

    fleet: Fleet
    supervisor: Supervisor
    scaler: Scaler
    watch: Any
    heard_at: float
    ends_it: bool  # when it lets go of it
    steers: bool = False
    workers: set[str] = field(default_factory=set)  # as its scheduler told last


@dataclass
class Kernel:
    """A notebook's kernel in a CML session."""

    session: str
    pid: int
    held: dict[str, Held] = field(default_factory=dict)
    alive: bool = True
    kill_at: int | None = None  # after so many more steps that the outside could see


class World:
    """The platform, its sessions, and the kernels that use the package."""

    def __init__(self, directory: Path, count: Counter[str]) -> None:
        self.count = count  # of what came of the rounds of supervisors
        self.clock = Clock()
        self.clock.on_sleep = self.go_on
        self.workspace = Workspace()
        self.registry = Registry(directory)
        self.settings: Settings = replace(
            make_settings(name="x", no_tls=True), state_directory=directory, timeout_s=30.0, local=False
        )
        self.pids = itertools.count(1)
        self.kernels = [Kernel("k1", next(self.pids)), Kernel("k1", next(self.pids)), Kernel("k2", next(self.pids))]
        self.current = self.kernels[0]
        self.stuck = False  # the platform starts nothing
        self.broken_environment = False  # what starts ends at once
        self.full = False  # no worker has room for another one's data
        self.connected: set[str] = set()
        self.load = 0  # how many workers Dask's adaptive scaling would have

    # The platform's side

    def go_on(self) -> None:
        """Let sessions start, find each other and end, as they do without anybody's help."""
        for session in list(self.workspace.sessions.values()):
            if session.status == "scheduling" and not self.stuck:
                session.status = "running"
                if session.code:
                    self._run(session)
        for session in list(self.workspace.sessions.values()):
            if session.code and session.status == "running":
                self._follow(session)

    def _run(self, session: MemorySession) -> None:
        folder = Path(session.env["CML_DASK_FOLDER"])
        with contextlib.suppress(FileNotFoundError):
            (folder / "logs" / f"{session.id}.log").write_text("hello\n")
        if not (folder / "scheduler.json").exists() or self.broken_environment:
            session.status = "succeeded"
        elif " scheduler " in session.code:
            (folder / "scheduler.session").write_text(session.id)
            address = f"tcp://127.0.0.1:{session.number}"
            (folder / "scheduler.json").write_text(json.dumps({"address": address}))

    def _follow(self, session: MemorySession) -> None:
        if " scheduler " in session.code:
            return
        scheduler = self.scheduler_of(session)
        if scheduler is None:
            return
        if scheduler.status == "running":
            self.connected.add(session.id)
        else:  # a worker ends with its scheduler
            session.status = "succeeded"

    def scheduler_of(self, session: MemorySession) -> MemorySession | None:
        folder = session.env["CML_DASK_FOLDER"]
        return next(
            (
                each
                for each in self.workspace.sessions.values()
                if " scheduler " in each.code and each.env["CML_DASK_FOLDER"] == folder and each.status != "scheduling"
            ),
            None,
        )

    def answers(self, address: str, timeout_s: float = 0.0) -> bool:
        number = int(address.rpartition(":")[2])
        return any(s.number == number and s.status == "running" for s in self.workspace.sessions.values())

    def hear(self, held: Held) -> None:
        """Have the cluster's scheduler tell which workers it knows, if it lives."""
        folder = str(held.fleet.folder)
        up = [
            s
            for s in self.workspace.sessions.values()
            if s.env.get("CML_DASK_FOLDER") == folder and s.status == "running"
        ]
        if any(" scheduler " in session.code for session in up):
            held.heard_at = self.clock.now
            held.workers = self.connected & {session.id for session in up}

    def end_idle(self, session: MemorySession) -> None:
        """Let a scheduler end because nobody worked for its idle timeout."""
        log = Path(session.env["CML_DASK_FOLDER"]) / "logs" / f"{session.id}.log"
        with log.open("a") as file:
            file.write(f"distributed.scheduler - INFO - Scheduler {supervisor._IDLE_WORDS} for 60.00 s\n")
        session.status = "succeeded"

    def ours(self) -> list[MemorySession]:
        return [s for s in self.workspace.sessions.values() if s.code and not s.over]

    # The package's side

    def checkpoint(self) -> None:
        """A moment at which a kernel may be killed: something outside of it is about to change, or just did."""
        kernel = self.current
        if not kernel.alive:
            raise Killed
        if kernel.kill_at is not None:
            kernel.kill_at -= 1
            if kernel.kill_at < 0:
                kernel.alive = False
                raise Killed

    @contextlib.contextmanager
    def patched(self) -> Iterator[None]:
        """The package in this world."""

        def mortal(call: Callable[..., Any]) -> Callable[..., Any]:
            def mortal_call(*args: Any, **kwargs: Any) -> Any:
                self.checkpoint()
                answer = call(*args, **kwargs)
                self.checkpoint()
                return answer

            return mortal_call

        def find_platform(*_: Any, **__: Any) -> Platform:
            return Platform("cml", _MortalAPI(self), session=self.current.session)

        def this_kernel(session: str) -> Owner:
            return Owner(session, session, self.current.pid)

        with contextlib.ExitStack() as stack:
            for module in _MODULES:
                if hasattr(module, "time"):
                    stack.enter_context(mock.patch.object(module, "time", self.clock))
                for name in ("write_private", "create_private", "remove", "rename"):
                    if hasattr(module, name):
                        stack.enter_context(mock.patch.object(module, name, mortal(getattr(module, name))))
                if hasattr(module, "this_kernel"):
                    stack.enter_context(mock.patch.object(module, "this_kernel", this_kernel))
                if hasattr(module, "answers"):
                    stack.enter_context(mock.patch.object(module, "answers", self.answers))
                if hasattr(module, "kernel_may_live"):
                    stack.enter_context(mock.patch.object(module, "kernel_may_live", self._may_live))
            stack.enter_context(mock.patch.object(opening, "find_platform", find_platform))
            stack.enter_context(mock.patch("asyncio.to_thread", _in_this_thread))
            stack.enter_context(mock.patch.object(opening, "check_dashboard_port", lambda _: None))
            stack.enter_context(mock.patch("os.fsync", lambda _: None))
            yield

    def _may_live(self, owner: Owner) -> bool:
        # As on the platform: only kernels of the same session can be looked at.
        if owner.hostname != self.current.session:
            return True
        return any(kernel.alive and kernel.pid == owner.pid for kernel in self.kernels)

    @contextlib.contextmanager
    def acting(self, kernel: Kernel, quietly: bool = True) -> Iterator[None]:
        """Let a kernel do something, and possibly die of it, or be told (`quietly`: unheard) why it cannot be done."""
        self.current = kernel
        opening._pools.clear()
        try:
            yield
        except Killed:
            kernel.held.clear()
        except EXPECTED:
            if not quietly:
                raise

    def hold(self, kernel: Kernel, cluster: Fleet, ends_it: bool) -> Held:
        watch = pool._Watch(cluster.visible, cluster.observe, cluster.proof.of)
        supervisor = Supervisor(cluster)
        told = cast(SchedulerView, _Told(self, cluster))
        scaler = Scaler(cluster, told, lambda: self._figures(held.workers), supervisor)
        held = Held(cluster, supervisor, scaler, watch, self.clock.now, ends_it)
        kernel.held[cluster.record.name] = held
        return held

    def _figures(self, workers: set[str]) -> dict[str, WorkerFigures]:
        return {each: WorkerFigures(each, each, 1, 0, 0, 0.0, 0, 0, 0, is_paused=False) for each in workers}

    def held(self) -> list[tuple[Kernel, str]]:
        """Which living kernel holds which cluster."""
        return [(kernel, name) for kernel in self.kernels if kernel.alive for name in kernel.held]

    def poll(self, held: Held) -> None:
        with contextlib.suppress(PlatformError):
            held.fleet.pool._tell(held.watch, held.fleet.pool.listing())

    def up(self, kernel: Kernel, name: str, n: int) -> None:
        """What ``%dask_up n --name name`` does, without Dask."""
        held = kernel.held.get(name)
        if held is not None and (not held.fleet.journal.refresh() or self.lost(held)):
            self.let_go(kernel, name)
            held = None
        if held is None:
            found = opening.open_fleet(self.registry, name)
            if found is None or liveness.liveness(found.record, found.folder, 3.0) == "silent":
                self._start(kernel, name, n)
                return
            held = self.attach(kernel, name, ends_it=True)
        self.scale(held, n)

    def attach(self, kernel: Kernel, name: str, ends_it: bool = False) -> Held:
        """What ``CMLCluster.from_name`` does: it launches nothing."""
        found = opening.open_fleet(self.registry, name)
        if found is None or liveness.liveness(found.record, found.folder, 3.0) != "answers":
            raise RuntimeError("there is none, or it does not answer")
        return self.hold(kernel, found, ends_it)

    def lost(self, held: Held) -> bool:
        record = held.fleet.record
        return record.state in ("stopping", "lost") or record.scheduler is None

    def _start(self, kernel: Kernel, name: str, n: int) -> None:
        cluster = opening.claim(replace(self.settings, name=name, n_workers=n))
        held = self.hold(kernel, cluster, ends_it=True)
        try:
            launch = cluster.launches.launch
            refused = [launch("scheduler", 1).refusals, launch("worker", n).refusals]
            deadline = self.clock.now + 30
            while not any(refused) and not cluster.lost and self.clock.now < deadline:
                self.poll(held)
                self.hear(held)
                if len(held.workers) >= n:
                    break
                self.clock.sleep(0.5)
            if any(refused) or cluster.lost or not held.workers:
                raise RuntimeError("did not start")
            cluster.journal.update(lambda record: replace(record, state="running"))
        except Exception:
            try:
                cluster.end()
            finally:
                self.let_go(kernel, name)
            raise
        held.supervisor.begin(held.workers)

    def scale(self, held: Held, n: int) -> None:
        """What ``cluster.scale(n)`` does."""
        held.fleet.journal.update(lambda record: replace(record, adapt=None))
        self.at_once(held.scaler.to(n))

    def at_once(self, work: Coroutine[Any, Any, None]) -> None:
        """Do what waits for nobody in this world."""
        try:
            work.send(None)
        except StopIteration:
            return
        raise AssertionError("it waits")

    def adapt(self, held: Held, n: int) -> None:
        held.fleet.journal.update(lambda record: replace(record, adapt=(0, n), failed_replacements=0))

    def _follow_load(self, held: Held) -> None:
        """What Dask's adaptive scaling asks for in the kernel that steers."""
        cluster = held.fleet
        assert cluster.record.adapt is not None
        n = min(self.load, cluster.record.adapt[1])
        if n < len(cluster.plan):
            self.at_once(held.scaler.let_go(sorted(cluster.plan)[n:]))
        elif n > len(cluster.plan):
            self.at_once(held.scaler.follow_load(n))

    def steer(self, kernel: Kernel, name: str) -> None:
        """What a kernel does about a cluster every two seconds: it looks, has its supervisor act, and does the rest."""
        held = kernel.held[name]
        self.poll(held)
        self.hear(held)
        # It may be silent for ten seconds.
        seen = Seen(held.workers, max(0.0, self.clock.now - held.heard_at - 10), self.clock.now)
        before, calls = held.fleet.record.state, len(self.workspace.calls)
        todo = held.supervisor.round(seen)
        launched = any(call == "launch" for _, call, _ in self.workspace.calls[calls:])
        self.count.update(
            rounds=1,
            steering=todo.steers,
            heals=launched,
            trims=todo.shrink,
            taken_over=todo.steers and before == "starting" and held.fleet.record.state == "running",
            ended_idle=todo.end,
            stopped_elsewhere=bool(todo.gone) and not todo.end,
            lost=todo.forget_workers,
        )
        self._do(kernel, name, todo)

    def _do(self, kernel: Kernel, name: str, todo: Todo) -> None:
        """What `CMLCluster` does of what a supervisor leaves to do."""
        held = kernel.held[name]
        held.steers = todo.steers
        if todo.forget_workers:
            held.workers = set()
        if todo.gone:
            try:
                if held.ends_it or todo.end:
                    held.fleet.end()
            finally:
                self.let_go(kernel, name)
            return
        record = held.fleet.record
        if todo.shrink:
            self.at_once(held.scaler.trim())
        elif held.steers and record.adapt is not None and not self.lost(held):
            self._follow_load(held)

    def let_go(self, kernel: Kernel, name: str) -> None:
        held = kernel.held.pop(name, None)
        if held is not None and kernel.alive:
            held.supervisor.release()

    def down(self, kernel: Kernel, name: str) -> None:
        held = kernel.held.get(name)
        cluster = held.fleet if held is not None else opening.open_fleet(self.registry, name)
        try:
            if cluster is not None:
                cluster.end()
        finally:
            self.let_go(kernel, name)


class _Told:
    """What a `Scaler` asks of a scheduler: it chooses workers, and moves their data, if it lives and has room."""

    def __init__(self, world: World, fleet: Fleet) -> None:
        self._world = world
        self._fleet = fleet

    async def spare(self, n: int, session_of: Callable[[Any], str]) -> list[str]:
        self._check_alive()
        return sorted(self._fleet.plan, reverse=True)[:n]

    async def retire(self, names: Collection[str]) -> set[str]:
        self._check_alive()
        return set(names) if self._world.full else set()

    async def look(self) -> None:
        pass

    def _check_alive(self) -> None:
        scheduler = self._fleet.record.scheduler
        if scheduler is None or self._world.workspace.sessions[scheduler.id].status != "running":
            raise OSError("the scheduler does not answer")


class _MortalAPI(MemoryAPI):
    """The four calls, in each of which the kernel may be killed before and after."""

    def __init__(self, world: World) -> None:
        super().__init__(world.workspace, world.current.session)
        self._world = world
        self._kernel = world.current

    def launch_workers(self, *args: Any, **kwargs: Any) -> Any:
        return self._mortal(super().launch_workers, *args, **kwargs)

    def list_workers(self) -> Any:
        return self._mortal(super().list_workers)

    def stop_workers(self, *ids: Any) -> Any:
        return self._mortal(super().stop_workers, *ids)

    def _mortal(self, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        self._world.checkpoint()
        answer = call(*args, **kwargs)
        self._world.checkpoint()
        return answer
