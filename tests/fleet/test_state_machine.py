"""Anything may happen in any order, and still: nothing is launched that nobody knows, nothing of others is stopped.

By default 1,500 steps at least; ``STEPS=100000 pytest tests/fleet/test_state_machine.py -s --hypothesis-seed=1`` does
more, and says how many.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import hypothesis
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from support.small_world import Kernel, World

from cml_dask_magics.model.lifecycle import FAILED_REPLACEMENTS, is_planned
from cml_dask_magics.model.record import SessionRecord, record_from_json, record_to_json

STEPS = int(os.environ.get("STEPS", "1500"))
STEPS_A_RUN = 30
HTML = "<html>502 Bad Gateway</html>"
NAMES = st.sampled_from(["a", "b"])
KERNELS = st.integers(0, 2)
WHICH = st.integers(0, 20)  # of those that there are at the time
count: Counter[str] = Counter()


def somebody_holds_a_cluster(life: Life) -> bool:
    return bool(life.world.held())


class Life(RuleBasedStateMachine):
    """What users, kernels and the platform do to clusters."""

    def __init__(self) -> None:
        super().__init__()
        in_memory = Path("/dev/shm")
        self.folder = Path(tempfile.mkdtemp(prefix="world-", dir=in_memory if in_memory.is_dir() else None))
        self.world = World(self.folder / "state", count)
        self.patches = contextlib.ExitStack()
        self.patches.enter_context(self.world.patched())
        self.foreign = {self.world.workspace.add("k1"), self.world.workspace.add("k2")}
        self.clock_offset = self.world.clock.offset
        self.comes_to_rest = False
        count["runs"] += 1

    def kernel(self, number: int) -> Kernel:
        kernel = self.world.kernels[number]
        if not kernel.alive:  # its person starts another one
            self.restart(number)
            kernel = self.world.kernels[number]
        return kernel

    # What users do

    @initialize(number=KERNELS, n=st.integers(1, 4), another=KERNELS, comes_to_rest=st.booleans())
    def at_first_there_is_a_cluster(self, number: int, n: int, another: int, comes_to_rest: bool) -> None:
        self.comes_to_rest = comes_to_rest
        self.up(number, "a", n)
        self.attach(another, "a")

    @rule(number=KERNELS, name=NAMES, n=st.integers(1, 4))
    def up(self, number: int, name: str, n: int) -> None:
        kernel = self.kernel(number)
        with self.world.acting(kernel):
            self.world.up(kernel, name, n)

    @rule(number=KERNELS, name=NAMES, n=st.integers(1, 4), after=st.integers(0, 40), another=KERNELS)
    def die_while_it_starts(self, number: int, name: str, n: int, after: int, another: int) -> None:
        self.kill_soon(number, after)
        self.up(number, name, n)
        self.world.clock.sleep(1)
        self.attach(another, name)

    @rule(number=KERNELS, name=NAMES)
    def attach(self, number: int, name: str) -> None:
        kernel = self.kernel(number)
        if name not in kernel.held:
            with self.world.acting(kernel):
                self.world.attach(kernel, name)

    @precondition(somebody_holds_a_cluster)
    @rule(which=WHICH, n=st.integers(0, 5))
    def scale(self, which: int, n: int) -> None:
        kernel, name = self.one_held(which)
        with self.world.acting(kernel):
            self.world.scale(kernel.held[name], n)

    @precondition(somebody_holds_a_cluster)
    @rule(which=WHICH, n=st.integers(3, 5), created=st.integers(1, 2))
    def scale_by_a_call_that_breaks(self, which: int, n: int, created: int) -> None:
        self.a_launch_breaks(created)
        self.scale(which, n)

    @precondition(somebody_holds_a_cluster)
    @rule(which=WHICH, n=st.integers(1, 5))
    def adapt(self, which: int, n: int) -> None:
        kernel, name = self.one_held(which)
        with self.world.acting(kernel):
            self.world.adapt(kernel.held[name], n)

    @rule(workers=st.integers(0, 5))
    def the_load_changes(self, workers: int) -> None:
        self.world.load = workers

    @rule(number=KERNELS, name=NAMES)
    def down(self, number: int, name: str) -> None:
        kernel = self.kernel(number)
        with self.world.acting(kernel):
            self.world.down(kernel, name)

    @precondition(somebody_holds_a_cluster)
    @rule(which=WHICH)
    def down_by_its_holder(self, which: int) -> None:
        kernel, name = self.one_held(which)
        with self.world.acting(kernel):
            self.world.down(kernel, name)

    @precondition(somebody_holds_a_cluster)
    @rule(which=WHICH)
    def steer(self, which: int) -> None:
        kernel, name = self.one_held(which)
        with self.world.acting(kernel):
            self.world.steer(kernel, name)

    @precondition(somebody_holds_a_cluster)
    @rule(which=WHICH, seconds=st.integers(1, 30))
    def steer_for_a_while(self, which: int, seconds: int) -> None:
        kernel, name = self.one_held(which)
        for _ in range(seconds // 2):
            if name in kernel.held:
                with self.world.acting(kernel):
                    self.world.steer(kernel, name)
            self.world.clock.sleep(2)

    def all_steer(self, rounds: int, interval_s: float) -> None:
        for _ in range(rounds):
            for kernel, name in self.world.held():
                if name in kernel.held:  # a kernel that dies over one lets go of the other
                    with self.world.acting(kernel):
                        self.world.steer(kernel, name)
            self.world.clock.sleep(interval_s)

    def one_held(self, which: int) -> tuple[Kernel, str]:
        held = self.world.held()
        return held[which % len(held)]

    # What befalls kernels

    @rule(number=KERNELS)
    def restart(self, number: int) -> None:
        old = self.world.kernels[number]
        old.alive = False
        self.world.kernels[number] = type(old)(old.session, next(self.world.pids))

    @rule(number=KERNELS, after=st.integers(0, 12))
    def kill_soon(self, number: int, after: int) -> None:
        self.kernel(number).kill_at = after
        count["killed"] += 1

    # What the platform does

    @rule(seconds=st.sampled_from([6, 20, 70]))
    def time_passes(self, seconds: int) -> None:
        self.all_steer(seconds // 2, 2)

    @rule(seconds=st.sampled_from([0.1, 1, 6, 70]))
    def all_kernels_hang(self, seconds: float) -> None:
        self.world.clock.sleep(seconds)

    @rule()
    def the_clock_is_set_back(self) -> None:
        self.world.clock.offset -= 3600

    @rule(which=WHICH, how=st.sampled_from(["failed", "succeeded", "timedout", "stopped"]))
    def a_session_ends(self, which: int, how: str) -> None:
        ours = self.world.ours()
        if ours:
            ours[which % len(ours)].status = how

    @rule(which=WHICH, how=st.sampled_from(["failed", "timedout"]))
    def a_worker_is_lost(self, which: int, how: str) -> None:
        workers = [s for s in self.world.ours() if s.id in self.world.connected]
        if workers:
            workers[which % len(workers)].status = how

    @rule(which=WHICH)
    def a_scheduler_ends_idle(self, which: int) -> None:
        schedulers = [s for s in self.world.ours() if " scheduler " in s.code and s.status == "running"]
        if schedulers:
            self.world.end_idle(schedulers[which % len(schedulers)])

    @rule(number=st.sampled_from(["k1", "k2"]))
    def somebody_launches_a_session_of_theirs(self, number: str) -> None:
        self.foreign.add(self.world.workspace.add(number, status="scheduling"))

    @rule(stuck=st.booleans(), broken=st.booleans())
    def the_weather_changes(self, stuck: bool, broken: bool) -> None:
        self.world.stuck, self.world.broken_environment = stuck, broken

    @rule(full=st.booleans())
    def the_workers_fill_up(self, full: bool) -> None:
        self.world.full = full

    @rule(refusals=st.lists(st.sampled_from([None, "quota", ("bad profile", True)]), max_size=4))
    def launches_are_refused(self, refusals: list[Any]) -> None:
        self.world.workspace.refuse = list(refusals)

    @rule(created=st.integers(0, 2))
    def a_launch_breaks(self, created: int) -> None:
        self.world.workspace.break_launch = created, ConnectionResetError("reset")

    @rule(answer=st.sampled_from([HTML, [], [{}], {"message": "gateway"}]))
    def a_launch_is_answered_with_nonsense(self, answer: Any) -> None:
        self.world.workspace.launch_answer = answer

    @rule(errors=st.lists(st.sampled_from([ConnectionResetError("reset"), HTML, {"message": "x"}]), max_size=4))
    def listings_fail(self, errors: list[Any]) -> None:
        self.world.workspace.list_errors = list(errors)

    @rule(which=WHICH, listings=st.integers(1, 2))
    def a_listing_misses_a_session(self, which: int, listings: int) -> None:
        ours = self.world.ours()
        if ours:
            session = ours[which % len(ours)].id
            self.world.workspace.hidden[session] = listings
            # Missed so often that it is taken for dead, it is told to stop; what then also ignores that is beyond help.
            self.world.workspace.stop_modes.pop(session, None)

    @rule(which=WHICH, mode=st.sampled_from(["refuse", "ignore", "slow", "obey"]))
    def a_stop_does_not_take(self, which: int, mode: str) -> None:
        ours = self.world.ours()
        if ours:
            self.world.workspace.stop_modes[ours[which % len(ours)].id] = mode

    @rule()
    def the_faults_go(self) -> None:
        self.world.workspace.refuse, self.world.workspace.list_errors = [], []
        self.world.workspace.break_launch = self.world.workspace.launch_answer = None
        self.world.workspace.stop_modes, self.world.workspace.hidden = {}, {}
        self.world.stuck = self.world.broken_environment = self.world.full = False

    # What happens to the state folder

    @rule(name=NAMES, how=st.sampled_from(["delete", "cut", "garbage"]))
    def a_record_suffers(self, name: str, how: str) -> None:
        path = self.world.registry.folder(name) / "record.json"
        if path.exists():
            if how == "delete":
                path.unlink()
            else:
                path.write_text(path.read_text()[:100] if how == "cut" else "\0garbage")

    @rule(name=NAMES, which=WHICH)
    def a_record_names_a_session_of_others(self, name: str, which: int) -> None:
        path = self.world.registry.folder(name) / "record.json"
        record = self.read_quietly(name)
        if record is not None:
            other = self.world.workspace.sessions[sorted(self.foreign)[which % len(self.foreign)]]
            added = SessionRecord(other.id, "worker", 1, 1, 0, self.world.clock.time(), launched_from=other.caller)
            sessions = (*(each for each in record.sessions if each.id != other.id), added)
            path.write_text(record_to_json(replace(record, sessions=sessions)))

    # What must hold

    @invariant()
    def nothing_of_others_is_stopped(self) -> None:
        workspace = self.world.workspace
        for _, call, ids in workspace.calls:
            if call == "stop":
                assert ids, "the call without ids stops everything of the user's"
                assert not self.foreign & set(ids), "somebody else's session was stopped"
        count["launched"] += sum(call == "launch" for _, call, _ in workspace.calls)
        workspace.calls.clear()
        assert self.foreign <= set(workspace.up())
        count["steps"] += 1

    @invariant()
    def every_session_that_lives_is_known(self) -> None:
        for session in self.world.ours():
            folder = Path(session.env["CML_DASK_FOLDER"])
            if session.status == "scheduling" and not (folder / "scheduler.json").exists():
                continue  # it ends as soon as it starts
            record = self.read_quietly(folder.name.rpartition("-")[0])
            if record is not None and self.world.registry.run_folder(record) == folder:
                assert session.id in {each.id for each in record.sessions} or record.launching, f"{session} is unknown"
            else:  # its record suffered just now, and the next look at it mends it
                assert (folder / "claim.json").exists(), f"{session} runs, and its cluster is gone"

    @invariant()
    def no_more_run_than_were_asked_for(self) -> None:
        for name in ("a", "b"):
            record = self.read_quietly(name)
            if record is None or record.state != "running" or record.launching:
                continue
            workers = [s for s in record.sessions if s.role == "worker" and s.id not in self.foreign]
            planned = [s for s in workers if s.stopping_at is None]
            assert len(planned) <= max(record.requested, 5)

    def read_quietly(self, name: str) -> Any:
        """The record as it lies there; None for one that suffered and was not read since."""
        try:
            return record_from_json((self.world.registry.folder(name) / "record.json").read_text())
        except (OSError, ValueError):
            return None

    def teardown(self) -> None:
        """In the end a new kernel in each session stops everything, whatever happened before."""
        try:
            world = self.world
            self.the_faults_go()
            world.clock.sleep(1)
            if self.comes_to_rest:  # in other runs all is stopped in the midst of it
                self.what_is_missing_is_replaced()
            for number in (0, 2):
                self.restart(number)
            for last in (False, True):
                for number in (0, 2):
                    kernel = world.kernels[number]
                    for name in world.registry.names():
                        with world.acting(kernel, quietly=not last):
                            world.down(kernel, name)
                world.clock.sleep(1)
            assert not world.ours(), "sessions are left that %dask_down --all did not stop"
            assert world.registry.names() == []
            self.nothing_of_others_is_stopped()
            folders = {Path(s.env["CML_DASK_FOLDER"]) for s in world.workspace.sessions.values() if s.code}
            still_open = [folder for folder in folders if (folder / "scheduler.json").exists()]
            assert not still_open, "sessions that start late would not end by themselves"
        finally:
            self.patches.close()
            shutil.rmtree(self.folder, ignore_errors=True)

    def what_is_missing_is_replaced(self) -> None:
        """Without faults, and with somebody who steers, there are as many workers as are asked for in the end."""
        self.world.count = Counter()  # these rounds are none of the steps'
        self.world.clock.offset = self.clock_offset
        for kernel in self.world.kernels:
            kernel.kill_at = None
        wrong: dict[str, Any] = {}
        for _ in range(50):  # half an hour: what another session launched, and is not seen, is waited for so long
            self.all_steer(4, 9)
            wrong = {}
            for name in {name for _, name in self.world.held()}:
                record = self.read_quietly(name)
                if record is None or record.state != "running" or record.adapt is not None:
                    continue
                planned = sum(map(is_planned, record.sessions))
                if planned != record.requested and record.failed_replacements < FAILED_REPLACEMENTS:
                    wrong[name] = record
            if not wrong:
                break
        assert not wrong, f"not as many workers as were asked for: {wrong}"


def test_whatever_happens_nothing_leaks_and_nothing_of_others_is_touched() -> None:
    settings = hypothesis.settings(
        max_examples=STEPS * 4 // 3 // STEPS_A_RUN + 1,  # some runs are shorter
        stateful_step_count=STEPS_A_RUN,
        deadline=None,
        database=None,
        suppress_health_check=list(hypothesis.HealthCheck),
        print_blob=True,
    )
    run_state_machine_as_test(Life, settings=settings)
    print(f"\n{dict(count)}")
    assert count["steps"] >= STEPS
    assert count["steering"] >= count["steps"] / 20, "the supervisor has too little to do"
