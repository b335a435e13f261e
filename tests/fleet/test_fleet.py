"""The sessions of one cluster: all on record, all stopped, and nobody else's touched."""

import contextlib
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
from dataclasses import replace

import pytest
from support.memory_platform import HTML, Workspace

from cml_dask_magics.cluster.snapshot import snapshot
from cml_dask_magics.cluster.start import Readiness, partly_ready_message
from cml_dask_magics.fleet.failure import describe_failure
from cml_dask_magics.fleet.fleet import Fleet, StillUpError
from cml_dask_magics.fleet.pending import why_pending
from cml_dask_magics.model.lifecycle import with_usage_of
from cml_dask_magics.model.record import Launch, Owner, Record, record_to_json
from cml_dask_magics.model.settings import Settings
from cml_dask_magics.model.status import WorkerFigures
from cml_dask_magics.model.times import Times
from cml_dask_magics.platforms.api import Platform
from cml_dask_magics.platforms.pool import SessionPool
from cml_dask_magics.registry.files import write_private
from cml_dask_magics.registry.registry import Registry
from cml_dask_magics.registry.run_folder import read_tail

MINE, OTHER = "kernelsession", "othersession"


# Seconds of waiting made short; what they prove stays the same.
TIMES = Times(missing_s=0.3, stop_again_s=1.2, suspects_s=0.6)
HURRIED = replace(TIMES, stop_s=0.5)


@pytest.fixture
def workspace():
    workspace = Workspace()
    foreign = [workspace.add(MINE), workspace.add(OTHER)]
    yield workspace
    stops = [ids for _, call, ids in workspace.calls if call == "stop"]
    assert all(stops)
    assert not any(session in ids for ids in stops for session in foreign)
    assert set(foreign) <= set(workspace.up())


@pytest.fixture
def ours(workspace):
    """Ids of the sessions of clusters that are up."""
    return lambda: [session for session in workspace.up() if workspace.sessions[session].code]


@pytest.fixture
def registry(tmp_path):
    return Registry(tmp_path / "state")


def make_settings(directory, **fields):
    settings = Settings(
        n_workers=2, name="default", cpu=1.5, memory_gib=4, gpu=1, processes=1, scheduler_cpu=1, scheduler_memory_gib=2,
        scheduler_here=False, adapt=None, wait=None, timeout_s=300, idle_timeout_s=3600, env={"A": "1"},
        dashboard_port=None, local=False, tls=True, dashboard=True, background=False, client="client",
        cluster="cluster", state_directory=directory, python="python3",
        launch_options={"scheduler": {}, "workers": {}}, max_workers=500, dashboard_link="{app_url}/status",
    )  # fmt: skip
    return replace(settings, **fields)


@pytest.fixture
def make_fleet(workspace, registry):
    """A cluster that was claimed just now, seen from a kernel in a session; or the same from another kernel."""

    def make(name="default", session=MINE, token="0000aaaa", again=False, times=TIMES):
        if again:
            record = registry.read(name)
        else:
            record = Record(
                name=name,
                token=token,
                backend="cml",
                created_at=time.time(),
                owner=Owner(session, socket.gethostname(), os.getpid()),
                settings={},
                requested=2,
            )
            registry.claim(record)
        pool = SessionPool(Platform("cml", workspace.caller(session), session=session), times)
        return Fleet(registry, pool, record, make_settings(registry.state_directory), times)

    return make


@pytest.fixture
def cluster(make_fleet):
    return make_fleet()


def dead_pid():
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def recorded(registry, name="default"):
    return {session.id for session in registry.read(name).sessions}


def log(cluster, session, text="hello\n"):
    (cluster.folder / "logs" / f"{session}.log").write_text(text)


def test_every_id_is_on_record_before_launch_returns(cluster, registry, ours):
    cluster.launches.launch("scheduler", 1)
    cluster.launches.launch("worker", 3)
    record = registry.read("default")
    assert recorded(registry) == set(ours())
    assert sorted(session.role for session in record.sessions) == ["scheduler", "worker", "worker", "worker"]
    assert {session.launched_from for session in record.sessions} == {MINE}
    worker = next(session for session in record.sessions if session.role == "worker")
    assert (worker.cpu, worker.memory_gib, worker.gpu) == (1.5, 4, 1)
    assert worker.app_url.startswith("https://")
    assert record.launching == ()


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        (
            {"cpu": 1, "memory_gib": 2, "gpu": 0},
            "3 cores and 6 GiB; .* %dask_up 1 --scheduler-here --cpu 1 --memory 2.",
        ),
        (
            {"cpu": 0.5, "memory_gib": 2, "gpu": 0, "name": "etl"},
            "2 cores and 6 GiB; .* %dask_up 2 --name etl --scheduler-here --cpu 0.5 --memory 2.",
        ),
        ({"cpu": 4, "memory_gib": 16}, "no GPU is free, .* --scheduler-here --cpu 1 --memory 6 --gpu 1."),
        ({"gpu": 2, "processes": 2}, " --scheduler-here --cpu 1 --memory 4 --gpu 2."),
        ({"gpu": 0, "processes": 4}, " --scheduler-here --cpu 1 --memory 4 --processes 4."),
        ({"cpu": 0.3, "memory_gib": 2, "scheduler_cpu": 0.3, "gpu": 0}, "asks for 0.9 cores and 6 GiB."),
    ],
)
def test_why_sessions_may_be_pending_is_told_with_what_would_fit(make_fleet, fields, words):
    cluster = make_fleet()
    cluster.launches.settings = replace(cluster.settings, **fields)
    cluster.launches.launch("scheduler", 1)
    cluster.launches.launch("worker", 2)
    assert not why_pending(cluster, after_s=0)  # no listing has shown anything yet
    cluster.observe(cluster.pool.listing())
    assert not why_pending(cluster, after_s=60)
    told = why_pending(cluster, after_s=0)
    assert told.startswith("3 sessions are still pending. ") and "2 cores and 8 GiB" in told
    assert re.search(f"{words}$", told), told


def test_a_start_that_timed_out_names_the_other_clusters_that_may_take_room(make_fleet, registry):
    make_fleet("etl", token="0000bbbb").launches.launch("worker", 1)
    make_fleet("empty", token="0000cccc")
    here = make_fleet("here", token="0000dddd")
    here.launches.launch("worker", 1)
    here.journal.update(lambda record: replace(record, backend="local"))
    cluster = make_fleet()
    cluster.launches.launch("worker", 1)
    cluster.observe(cluster.pool.listing())
    said = describe_failure(cluster, [], "no worker connected", timed_out=True)
    assert "still pending" in said and "Your other clusters may take room, too: etl.\n" in said


def test_a_kernel_that_dies_inside_the_launch_leaves_word_that_there_is_something_to_find(cluster, registry, workspace):
    seen = []
    workspace.on_launch = lambda _: seen.append(registry.read("default").launching)
    cluster.launches.launch("worker", 2)
    assert len(seen[0]) == 1
    assert (seen[0][0].n, seen[0][0].role, seen[0][0].owner) == (2, "worker", cluster.journal.kernel)
    assert not seen[0][0].answered


def test_two_kernels_that_see_the_same_worker_missing_launch_one(cluster, make_fleet, registry, workspace, ours):
    other = make_fleet(again=True)
    workspace.on_launch = lambda _: other.launches.grow(1, automatic=True)
    cluster.launches.grow(1, automatic=True)
    assert len(ours()) == 1 and recorded(registry) == set(ours())


def test_nothing_is_launched_for_a_cluster_that_another_kernel_is_stopping(cluster, make_fleet, workspace, ours):
    make_fleet(again=True).journal.update(lambda record: replace(record, state="stopping"))
    with pytest.raises(RuntimeError, match="is being stopped"):
        cluster.launches.grow(2, automatic=True)
    assert ours() == []


def test_a_launch_that_is_answered_when_its_cluster_is_being_stopped_is_stopped_too(
    cluster, make_fleet, workspace, ours
):
    other = make_fleet(again=True)
    workspace.on_launch = lambda _: other.journal.update(lambda record: replace(record, state="stopping"))
    with pytest.raises(RuntimeError, match="is being stopped"):
        cluster.launches.grow(2)
    assert ours() == []


def test_healing_does_not_launch_what_was_taken_away_meanwhile(cluster, registry, ours):
    cluster.journal.update(lambda record: replace(record, requested=1))
    cluster.launches.grow(3, automatic=True)
    assert len(ours()) == 1


def test_what_a_salvaged_record_names_and_has_ended_is_no_loss_and_not_asked_for(cluster, workspace, registry, ours):
    write_private(cluster.folder / "scheduler.json", '{"address": "tcp://127.0.0.1:1"}')
    write_private(cluster.folder / "claim.json", record_to_json(replace(cluster.record, settings={"cpu": 1})))
    cluster.launches.launch("worker", 3)
    for session in ours():
        log(cluster, session)
    gone, *left = ours()
    workspace.set("stopped", gone)
    (registry.folder("default") / "record.json").unlink()
    registry.read("default")
    assert cluster.journal.refresh()
    assert len(cluster.record.sessions) == 3
    cluster.observe(cluster.pool.listing())
    assert cluster.record.requested == 2 and cluster.lost == {} and cluster.plan == set(left)


def test_a_launch_in_which_a_kernel_died_is_waited_for_no_longer(cluster, registry, ours):
    dead = Owner(MINE, socket.gethostname(), dead_pid())
    cluster.journal.update(lambda record: replace(record, launching=(Launch("0", "worker", 2, time.time(), dead),)))
    cluster.launches.grow(2)
    assert len(ours()) == 2


def test_a_worker_that_is_withdrawn_is_no_loss_whoever_sees_it_end(cluster, make_fleet, workspace, registry):
    cluster.launches.launch("worker", 2)
    first, second = sorted(recorded(registry))
    cluster.withdraw([first], lambda record: replace(record, requested=1))
    other = make_fleet(again=True)
    workspace.set("stopped", first)
    other.observe(other.pool.listing())
    assert other.lost == {} and other.plan == {second}
    assert registry.read("default").requested == 1
    assert not any("ended" in message for _, message in registry.read("default").events)


def test_replacements_that_never_connected_are_counted_until_one_does(cluster, workspace, registry):
    for failed in (1, 2):
        cluster.launches.grow(1, automatic=True)
        workspace.set("failed", *recorded(registry))
        cluster.observe(cluster.pool.listing())
        assert registry.read("default").failed_replacements == failed
    cluster.launches.grow(1, automatic=True)
    cluster.note_connected(recorded(registry), {})
    assert registry.read("default").failed_replacements == 0
    workspace.set("failed", *recorded(registry))
    cluster.observe(cluster.pool.listing())
    assert registry.read("default").failed_replacements == 0, "it had connected"


def test_usage_counts_the_memory_that_a_session_really_has(cluster, registry):
    cluster.launches.launch("worker", 2)
    known, other = recorded(registry)
    cluster.note_connected([known, other], {known: 3_900_000_000, other: 0})
    sessions = {session.id: session for session in registry.read("default").sessions}
    assert sessions[known].memory_gib == sessions[other].memory_gib == 4, "what was asked for"
    assert (sessions[known].real_memory_gib, sessions[other].real_memory_gib) == (3_900_000_000 / 2**30, None)
    for session, has in ((known, 3.9 * 10**9 / 2**30), (other, 4)):
        ended = replace(sessions[session], running_at=1000.0, ended_at=4600.0)
        assert with_usage_of(cluster.record, [ended], 0).gib_s == pytest.approx(has * 3600)


def test_what_a_broken_launch_created_is_adopted_once_it_shows_that_it_is_ours(cluster, workspace, registry, ours):
    workspace.break_launch = 2, ConnectionResetError("reset")
    cluster.launches.launch("worker", 2)
    first, second = ours()
    log(cluster, first)
    cluster.orphans.adopt([])
    assert recorded(registry) == {first}
    log(cluster, second)
    workspace.set("failed", second)
    cluster.orphans.adopt([])
    assert recorded(registry) == {first}, "what has ended is not taken in"


def test_what_a_kernel_launched_as_it_was_killed_is_stopped_though_it_starts_late(cluster, make_fleet, workspace, ours):
    class Killed(BaseException):
        pass

    def kill(_ids):
        raise Killed

    workspace.on_launch = kill
    with pytest.raises(Killed):
        cluster.launches.launch("worker", 2)
    workspace.on_launch = None
    late = ours()
    other = make_fleet(again=True)
    threading.Timer(0.2, lambda: [log(other, session) for session in late]).start()
    other.end()
    assert len(late) == 2 and ours() == []


def test_a_record_that_somebody_deletes_is_written_again_by_the_kernel_that_knows_it(cluster, registry):
    write_private(cluster.folder / "scheduler.json", "")
    cluster.launches.launch("worker", 2)
    before = cluster.record
    shutil.rmtree(registry.folder("default"))
    assert cluster.journal.refresh()
    assert recorded(registry) == {session.id for session in before.sessions}
    assert "deleted" in registry.read("default").events[-1][1]


def test_a_refused_session_that_was_created_all_the_same_is_on_record_and_stopped(cluster, registry, workspace, ours):
    workspace.refuse = [("bad profile", True)]
    cluster.launches.launch("worker", 2)
    assert recorded(registry) == set(ours())
    assert cluster.launches.refusals == (("worker", "bad profile"),)
    cluster.end()
    assert ours() == []


def test_sessions_of_a_broken_launch_are_stopped_once_they_show_that_they_are_ours(cluster, registry, workspace, ours):
    workspace.break_launch = 2, ConnectionResetError("reset")
    cluster.launches.launch("worker", 2)
    assert registry.read("default").launching != ()
    assert recorded(registry) == set()
    for session in ours():
        log(cluster, session)
    ended = cluster.end()
    assert ours() == []
    assert ended.sessions == 2
    assert registry.names() == []


@pytest.mark.timeout(30)
def test_a_session_of_a_broken_launch_that_printed_and_ended_does_not_hold_the_ending_up(
    cluster, registry, workspace, ours
):
    workspace.break_launch = 1, ConnectionResetError("reset")
    cluster.launches.launch("worker", 1)
    (session,) = ours()
    log(cluster, session)
    workspace.set("succeeded", session)
    cluster.end()
    assert registry.names() == []


def test_a_foreign_session_that_appeared_during_a_broken_launch_is_left_alone(cluster, registry, workspace):
    appeared = []
    workspace.on_launch = lambda _: appeared.append(workspace.add(MINE))
    workspace.break_launch = 0, ConnectionResetError("reset")
    launched = cluster.launches.launch("worker", 1)
    assert set(launched.suspects) == set(appeared)
    cluster.end()
    assert set(appeared) <= set(workspace.up())
    assert registry.names() == []


def test_a_launch_that_broke_while_nothing_could_be_listed_stays_unaccounted_for(cluster, registry, workspace, ours):
    workspace.break_launch = 1, ConnectionResetError("reset")
    workspace.list_down = ConnectionResetError("reset")
    cluster.launches.launch("scheduler", 1)
    workspace.list_down = None
    assert registry.read("default").launching != ()
    (session,) = ours()
    log(cluster, session)
    cluster.end()
    assert ours() == []


def test_what_was_launched_is_stopped_by_a_later_kernel_that_never_saw_it_start(
    cluster, make_fleet, registry, workspace, ours
):
    workspace.break_launch = 2, ConnectionResetError("reset")
    cluster.launches.launch("worker", 2)
    for session in ours():
        log(cluster, session)
    make_fleet(again=True).end()
    assert ours() == []
    assert registry.names() == []


def test_another_session_of_the_project_can_end_the_cluster(cluster, make_fleet, registry, ours):
    cluster.launches.launch("scheduler", 1)
    cluster.launches.launch("worker", 2)
    for session in ours():
        log(cluster, session)
    ended = make_fleet(session=OTHER, again=True).end()
    assert ended.sessions == 3
    assert ours() == []
    assert registry.names() == []


def test_another_session_does_not_forget_what_it_found_in_the_logs_and_could_not_stop(
    cluster, make_fleet, registry, workspace, ours
):
    workspace.break_launch = 1, ConnectionResetError("reset")
    cluster.launches.launch("worker", 1)
    (session,) = ours()
    log(cluster, session)
    workspace.stop_modes = {session: "refuse"}
    with pytest.raises(StillUpError):
        make_fleet(session=OTHER, again=True, times=HURRIED).end()
    assert registry.names() == ["default"]
    workspace.stop_modes = {}
    make_fleet(session=OTHER, again=True).end()
    assert ours() == []


def test_sessions_launched_while_another_kernel_ends_the_cluster_are_not_left_behind(
    cluster, make_fleet, registry, workspace, ours
):
    workspace.on_launch = lambda _: make_fleet(again=True).end()
    with contextlib.suppress(KeyError, RuntimeError):
        cluster.launches.launch("worker", 2)
    workspace.on_launch = None
    with contextlib.suppress(KeyError, RuntimeError):
        cluster.end()
    assert ours() == []
    assert registry.names() == []


@pytest.fixture
def full_after_launch(workspace, full_disk):
    """The disk is full from the next launch call on, while it is entered."""

    @contextlib.contextmanager
    def entered():
        with contextlib.ExitStack() as stack:
            workspace.on_launch = lambda _: stack.enter_context(full_disk())
            yield
        workspace.on_launch = None

    return entered


def test_sessions_that_cannot_be_recorded_are_stopped_at_once_and_others_can_be_launched(
    cluster, registry, full_after_launch, ours
):
    with full_after_launch(), pytest.raises(RuntimeError, match="state folder"):
        cluster.launches.grow(2)
    assert ours() == []
    cluster.launches.grow(2)
    assert len(ours()) == 2 and cluster.plan == set(ours()) <= recorded(registry)
    assert registry.read("default").launching == ()


def test_a_session_that_can_neither_be_recorded_nor_stopped_is_not_forgotten(
    make_fleet, registry, workspace, full_after_launch, ours
):
    cluster = make_fleet(times=HURRIED)
    workspace.stop_modes = {"*": "refuse"}
    with full_after_launch(), pytest.raises(RuntimeError, match="state folder"):
        cluster.launches.grow(1)
    (left,) = ours()
    workspace.stop_modes = {}
    cluster.launches.grow(1)
    assert len(cluster.plan) == 1 and left not in cluster.plan and left in recorded(registry)
    cluster.end()
    assert ours() == []


def test_what_a_call_launched_that_could_not_be_written_down_is_found_by_its_log(
    cluster, registry, workspace, full_after_launch, ours
):
    workspace.break_launch = 1, ConnectionResetError("reset")
    with full_after_launch(), pytest.raises(RuntimeError, match="state folder"):
        cluster.launches.grow(1)
    (session,) = ours()
    log(cluster, session)
    cluster.orphans.adopt(set())
    assert recorded(registry) == {session} == cluster.plan


def test_what_a_call_launched_that_was_broken_off_is_found_by_its_log_and_not_waited_for(
    cluster, registry, workspace, ours
):
    workspace.break_launch = 1, KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        cluster.launches.grow(2)
    (session,) = ours()
    log(cluster, session)
    cluster.orphans.adopt(set())
    cluster.launches.grow(2)
    assert session in recorded(registry) == set(ours()) and len(ours()) == 2


def test_a_call_whose_program_cannot_be_written_says_so_and_is_not_waited_for(cluster, registry, workspace, ours):
    in_its_place = cluster.folder / "session.json"
    in_its_place.mkdir()
    with pytest.raises(RuntimeError, match=r"state folder .* cannot be used: .*session\.json"):
        cluster.launches.grow(2)
    assert workspace.count("launch") == 0 and registry.read("default").launching == ()
    in_its_place.rmdir()
    cluster.launches.grow(2)
    assert len(ours()) == 2 and recorded(registry) == set(ours())


def test_a_full_disk_does_not_keep_anybody_from_stopping_the_sessions(cluster, full_disk, ours):
    cluster.launches.launch("worker", 2)
    with full_disk(), contextlib.suppress(RuntimeError):
        cluster.end()
    assert ours() == []


def test_ending_stops_everything_and_then_forgets(cluster, registry, workspace, ours):
    workspace.stop_modes["*"] = "slow"
    cluster.launches.launch("scheduler", 1)
    cluster.launches.launch("worker", 2)
    ended = cluster.end()
    assert (ended.name, ended.sessions) == ("default", 3)
    assert ended.uptime_s >= 0
    assert ours() == []
    assert registry.names() == []


def test_the_record_stays_while_a_session_is_up_and_ending_can_be_repeated(cluster, registry, workspace, ours):
    cluster.launches.launch("worker", 3)
    stubborn, deaf = ours()[:2]
    workspace.stop_modes = {stubborn: "refuse", deaf: "ignore"}
    cluster.times = HURRIED
    with pytest.raises(StillUpError) as error:
        cluster.end()
    message = str(error.value)
    assert stubborn in message
    assert deaf in message
    assert "500" in message
    assert "%dask_down default" in message
    assert "\n" not in message
    assert recorded(registry) >= {stubborn, deaf}
    assert registry.read("default").state == "stopping"
    workspace.stop_modes, cluster.times = {}, TIMES
    cluster.end()
    assert ours() == []
    assert registry.names() == []
    assert cluster.end().sessions == 0  # once more is no error


def test_nothing_is_launched_into_a_cluster_that_is_being_ended(cluster, workspace):
    cluster.launches.launch("worker", 1)
    cluster.end()
    with pytest.raises(RuntimeError, match="being stopped"):
        cluster.launches.launch("worker", 1)
    assert workspace.count("launch") == 1


def test_ending_a_cluster_that_another_kernel_ended_leaves_the_next_one_alone(cluster, make_fleet, registry, ours):
    cluster.launches.launch("worker", 1)
    make_fleet(again=True).end()
    new = make_fleet(token="1111bbbb")
    new.launches.launch("worker", 2)
    cluster.end()
    assert recorded(registry) == set(ours())
    assert len(ours()) == 2
    assert cluster.journal.refresh() is False
    new.end()


def test_ending_late_does_not_forget_the_cluster_that_came_in_between(cluster, make_fleet, registry, workspace, ours):
    cluster.launches.launch("worker", 1)
    came = []

    def meanwhile(responses):
        # Another kernel finishes the old cluster and starts a new one while our stop is under way.
        workspace.stop_answers = lambda answers: answers
        registry.forget(cluster.record)
        came.append(make_fleet(token="1111bbbb"))
        came[0].launch("worker", 2)
        return responses

    workspace.stop_answers = meanwhile
    with contextlib.suppress(KeyError):
        cluster.end()
    assert registry.names() == ["default"]
    assert recorded(registry) == set(ours())
    came[0].end()


def test_stopping_some_sessions_stops_exactly_those(cluster, registry, workspace, ours):
    cluster.launches.launch("worker", 3)
    victim, *others = ours()
    cluster.stop([victim, "unknown"])
    assert sorted(others) == ours()
    assert recorded(registry) == set(others)
    assert cluster.lost == {}
    calls = workspace.count("stop")
    cluster.stop([])
    cluster.stop(["unknown"])
    assert workspace.count("stop") == calls


def state_of(cluster, session, connected):
    (state,) = cluster.states([session], connected=[session.id] if connected else ())
    return state


def test_a_session_that_dies_by_itself_is_noticed_and_told(cluster, registry, workspace):
    workspace.first_status = "running"
    cluster.launches.launch("worker", 2)
    dead, alive = recorded(registry)
    cluster.observe(cluster.pool.listing())
    workspace.set("failed", dead)
    cluster.observe(cluster.pool.listing())
    assert set(cluster.lost) == {dead}
    assert recorded(registry) == {alive}
    assert state_of(cluster, cluster.lost[dead], False) == "failed"
    assert dead in registry.read("default").events[-1][1]
    assert "failed" in registry.read("default").events[-1][1]


def test_a_session_goes_through_its_states(cluster, registry, workspace):
    cluster.launches.launch("worker", 1)
    (session,) = recorded(registry)
    cluster.observe(cluster.pool.listing())
    assert state_of(cluster, cluster.record.sessions[0], False) == "pending"
    workspace.set("running", session)
    cluster.observe(cluster.pool.listing())
    assert state_of(cluster, cluster.record.sessions[0], False) == "starting"
    assert state_of(cluster, cluster.record.sessions[0], True) == "running"
    assert registry.read("default").sessions[0].ip_address.startswith("100.66.")
    workspace.stop_modes["*"] = "ignore"
    cluster.times = HURRIED
    with pytest.raises(StillUpError):
        cluster.stop([session])
    cluster.times = TIMES
    assert state_of(cluster, cluster.record.sessions[0], True) == "stopping"
    workspace.stop_modes = {}
    cluster.end()


def test_usage_counts_what_ran_for_as_long_as_it_ran(cluster, registry, workspace):
    cluster.launches.launch("scheduler", 1)
    cluster.launches.launch("worker", 2)
    now = time.time()

    def aged(record):
        ran = [replace(session, running_at=now - 3600) for session in record.sessions]
        one = next(session for session in ran if session.role == "worker")
        return replace(
            record, sessions=tuple(replace(session, running_at=None) if session is one else session for session in ran)
        )

    cluster.journal.update(aged)
    usage = cluster.usage()  # the scheduler (1 core, 2 GiB) and one worker (1.5 cores, 4 GiB, a GPU) for an hour
    assert usage.core_hours == pytest.approx(2.5, abs=0.01)
    assert usage.gib_hours == pytest.approx(6, abs=0.01)
    assert usage.gpu_hours == pytest.approx(1, abs=0.01)
    worker = next(s.id for s in cluster.record.sessions if s.role == "worker" and s.running_at is not None)
    cluster.stop([worker])
    assert cluster.usage().core_hours == pytest.approx(2.5, abs=0.01)
    ended = cluster.end()
    assert ended.usage.core_hours == pytest.approx(2.5, abs=0.01)
    assert ended.usage.gpu_hours == pytest.approx(1, abs=0.01)


def test_watching_writes_down_what_the_platform_shows(cluster, registry, workspace):
    cluster.launches.launch("worker", 1)
    workspace.set("running", *recorded(registry))
    cluster.watch()
    deadline = time.monotonic() + 60
    while registry.read("default").sessions[0].running_at is None and time.monotonic() < deadline:
        time.sleep(0.05)
    cluster.unwatch()
    assert registry.read("default").sessions[0].running_at is not None
    cluster.end()


def test_watching_never_takes_another_sessions_sessions_for_dead(cluster, make_fleet, registry, workspace, ours):
    workspace.first_status = "running"
    cluster.launches.launch("worker", 1)
    elsewhere = make_fleet(session=OTHER, again=True)
    elsewhere.watch()
    # The pauses between so many listings are longer together than a session may be missing from them.
    before, deadline = workspace.count("list"), time.monotonic() + 60
    while workspace.count("list") < before + 4:
        assert time.monotonic() < deadline, "nobody lists any more"
        time.sleep(0.02)
    elsewhere.unwatch()
    assert elsewhere.lost == {}
    assert recorded(registry) == set(ours())


@pytest.mark.parametrize("answer", [ConnectionError(HTML), None])
def test_listings_that_fail_do_not_keep_the_cluster_from_ending(cluster, registry, workspace, ours, answer):
    cluster.launches.launch("worker", 2)
    workspace.list_errors = [answer] * 3
    cluster.end()
    assert ours() == []
    assert registry.names() == []


def test_the_story_of_a_failure_names_every_session_why_and_what_it_printed(cluster, registry, workspace):
    workspace.refuse = ["quota exceeded"]
    cluster.launches.launch("scheduler", 1)
    workspace.first_status = "running"
    cluster.launches.launch("worker", 2)
    dead, stuck = recorded(registry)
    log(cluster, dead, "first\nModuleNotFoundError: No module named 'dask'\n")
    cluster.observe(cluster.pool.listing())
    workspace.set("timedout", dead)
    cluster.observe(cluster.pool.listing())
    story = describe_failure(cluster, [], "a session was refused or died")
    assert "a session for a scheduler was refused" in story and "quota exceeded" in story
    assert f"session {dead} (worker) ended (timedout) before its worker connected; the last lines" in story
    assert "No module named 'dask'" in story
    assert f"session {stuck} (worker) runs, but its worker did not connect; it printed nothing" in story


def test_a_scheduler_that_is_up_is_not_blamed_for_workers_that_do_not_come(cluster, workspace):
    workspace.first_status = "running"
    cluster.launches.launch("scheduler", 1)
    cluster.observe(cluster.pool.listing())
    who = f"session {cluster.record.scheduler.id} (scheduler)"
    assert f"{who} runs, but its scheduler did not come up;" in describe_failure(cluster, [], "late")
    cluster.folder.joinpath("scheduler.json").write_text('{"address": "tls://100.66.0.9:8786"}')
    assert f"{who} is up at tls://100.66.0.9:8786;" in describe_failure(cluster, [], "late")


@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        (2, "1 of 2 workers are ready after 9 s; the other joins when the platform starts it"),
        (4, "1 of 4 workers are ready after 9 s; the other 3 join when the platform starts them"),
    ],
)
def test_what_is_missing_at_the_timeout_is_said_in_good_english(cluster, wanted, words):
    assert partly_ready_message(cluster, Readiness(1, wanted, 9.0), 9.0) == f"cluster 'default': {words}"


def test_a_session_that_crashed_is_not_said_to_have_succeeded(cluster, registry, workspace):
    workspace.first_status = "running"
    cluster.launches.launch("worker", 1)
    (dead,) = recorded(registry)
    cluster.observe(cluster.pool.listing())
    workspace.set("succeeded", dead)  # as the platform says whatever its exit was
    cluster.observe(cluster.pool.listing())
    assert registry.read("default").events[-1][1] == f"session {dead} (worker) ended by itself"
    story = describe_failure(cluster, [], "a session was refused or died")
    assert f"session {dead} (worker) ended before its worker connected; it printed nothing" in story


def test_the_snapshot_of_a_cluster_shows_its_sessions_and_what_failed(cluster, registry, workspace):
    workspace.first_status = "running"
    cluster.launches.launch("scheduler", 1)
    cluster.launches.launch("worker", 2)
    cluster.observe(cluster.pool.listing())
    workers = sorted(s.id for s in cluster.record.sessions if s.role == "worker")
    workspace.set("failed", workers[0])
    cluster.observe(cluster.pool.listing())
    address = "tls://100.66.0.9:40331"
    figures = WorkerFigures(address, workers[1], 2, 5, 9, 3.0, 0, 0, 0, is_paused=True)
    status = snapshot(cluster, "degraded", {workers[1]: [figures]})
    shown = {worker.session: worker for worker in status.workers}
    assert shown[workers[0]].state == "failed"
    assert (shown[workers[1]].state, shown[workers[1]].address, shown[workers[1]].nthreads) == ("running", address, 2)
    assert status.scheduler.state == "starting"
    assert [worker.state for worker in status.workers].count("running") == 1


def test_a_worker_that_its_nanny_restarts_is_not_said_to_start_for_as_long_as_its_session_runs(cluster, workspace):
    workspace.first_status = "running"
    cluster.launches.launch("worker", 1)
    cluster.observe(cluster.pool.listing())
    (session,) = cluster.record.sessions
    (new,) = snapshot(cluster, "starting", {}).workers
    assert new.state == "starting" and new.state_since is not None
    cluster.note_connected({session.id}, {})
    (restarted,) = snapshot(cluster, "degraded", {}).workers
    assert restarted.state == "starting" and restarted.state_since is None


def test_the_end_of_a_long_binary_or_missing_log_can_be_read(tmp_path):
    path = tmp_path / "x.log"
    path.write_bytes(b"\xff\xfe\n" * 100000 + b"last\n")
    assert read_tail(path, 1) == ["last"]
    assert len(read_tail(path, 3)) == 3
    assert read_tail(tmp_path / "gone.log", 3) == []
    assert read_tail(tmp_path, 3) == []
