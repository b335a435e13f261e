"""A record is a file: whatever it says, nothing of others is stopped, and nothing of ours is left behind."""

from __future__ import annotations

import itertools
import json
import shutil
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from hypothesis import strategies as st
from IPython.core.interactiveshell import InteractiveShell
from support.cases import ANYTHING, MANY
from support.on_record import MINE, OTHER, TIMES, World

from cml_dask_magics.cluster.snapshot import snapshot
from cml_dask_magics.display.document import to_json
from cml_dask_magics.display.text import to_text
from cml_dask_magics.fleet import opening
from cml_dask_magics.fleet.fleet import Fleet, StillUpError
from cml_dask_magics.fleet.opening import claim, open_fleet
from cml_dask_magics.magics.kernel_clusters import kernel_clusters
from cml_dask_magics.magics.notice import notice
from cml_dask_magics.model.record import SessionRecord, record_from_json
from cml_dask_magics.model.settings import make_settings
from cml_dask_magics.registry.files import write_private


def tamper(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change what a file of JSON says."""
    data = json.loads(path.read_text())
    change(data)
    write_private(path, json.dumps(data))


def add_session(world: World, session: str, launched_from: str, **fields: Any) -> None:
    """Write a session into a cluster's record that is none of its sessions."""
    added = asdict(SessionRecord(session, "worker", 1, 2, 0, time.time(), launched_from=launched_from, **fields))
    tamper(world.record_of(), lambda data: data["sessions"].append(added))


@pytest.mark.parametrize("claims_to_be_from", [MINE, OTHER, ""])
def test_a_session_of_others_in_a_record_is_named_and_not_stopped(
    world: World, shell: InteractiveShell, capsys: pytest.CaptureFixture[str], claims_to_be_from: str
) -> None:
    world.start()
    for other in world.others:
        add_session(world, other, claims_to_be_from)
    shell.run_line_magic("dask_down", "")
    said = capsys.readouterr().out
    assert "Stopped cluster 'default': 3 sessions" in said and "Not stopped" in said
    assert all(other in said for other in world.others)
    assert not world.ours() and world.registry.names() == []


def test_a_kernel_that_steers_stops_nobody_elses_session_either(world: World) -> None:
    world.start()
    long_ago = time.time() - 10 * TIMES.stopping_s
    for other in world.others:
        add_session(world, other, MINE, stopping_at=long_ago)
    cluster = world.open()
    cluster.finish_stopping()
    assert {session.id for session in cluster.record.sessions} == world.ours(), "they are off the record"
    assert all(other in cluster.record.events[-1][1] for other in world.others)
    cluster.end()
    assert not world.ours()


def test_a_session_that_the_listing_lacks_is_told_to_stop_only_if_it_is_the_clusters(world: World) -> None:
    cluster = world.start()
    (elsewhere,) = (other for other in world.others if world.workspace.sessions[other].caller == OTHER)
    gone = min(world.ours())
    world.workspace.hidden[gone] = 1000
    add_session(world, elsewhere, MINE)
    cluster = world.open()
    cluster.watch()
    deadline = time.monotonic() + 60
    while {gone, elsewhere} & {s.id for s in cluster.record.sessions} and time.monotonic() < deadline:
        time.sleep(0.02)
    cluster.unwatch()
    assert world.stopped() == {gone}
    cluster.end()


@pytest.mark.parametrize("status", ["scheduling", "running"])
@pytest.mark.parametrize("session", [MINE, OTHER])
def test_a_session_of_ours_that_never_wrote_is_stopped_by_any_kernel(
    world: World, pretend: Callable[[Any], None], status: str, session: str
) -> None:
    world.workspace.first_status = status
    before = world.start(log=False)
    sessions = world.ours()
    pretend(world.workspace.caller(session))
    assert world.open().end().disowned == ()
    assert not world.ours() and world.stopped() == sessions and world.registry.names() == []
    assert not [path for path in before.folder.iterdir() if "launched" in path.name]


@pytest.mark.parametrize("status", ["succeeded", "failed"])
def test_a_session_that_ended_needs_no_log_to_be_forgotten(world: World, status: str) -> None:
    world.workspace.first_status = status
    world.lose_notes(world.start(log=False))
    assert world.open().end().disowned == ()
    assert world.registry.names() == []


def test_a_session_that_waits_and_of_which_the_record_alone_tells_is_named_and_not_stopped(world: World) -> None:
    world.workspace.first_status = "scheduling"
    cluster = world.start(log=False)
    world.lose_notes(cluster)
    sessions = world.ours()
    assert set(world.open().end().disowned) == sessions
    assert not world.stopped() and not (cluster.folder / "scheduler.json").exists(), "they exit when they start"
    world.workspace.set("succeeded", *sessions)


def test_another_cluster_of_this_kernel_loses_no_session_to_a_record(world: World) -> None:
    first, other = (claim(make_settings(name=name), times=TIMES) for name in ("default", "other"))
    first.launches.launch("worker", 1)
    other.launches.launch("worker", 1)
    (mine,), (its,) = first.plan, other.plan
    add_session(world, its, MINE)
    assert first.journal.refresh() and its in first.plan
    assert not first.proof.of(its), "the watch would stop it"
    assert world.open().end().disowned == (its,)
    assert world.stopped() == {mine} and world.ours() == {its}
    other.end()


@pytest.mark.parametrize("status", ["scheduling", "running"])
def test_what_this_kernel_launched_can_be_stopped_by_another_object_of_the_same_cluster(
    world: World, status: str
) -> None:
    world.workspace.first_status = status
    claim(make_settings(), times=TIMES).launches.launch("worker", 2)
    assert world.open().end().disowned == () and not world.ours()


@pytest.mark.parametrize("bare", [False, True], ids=["with times", "bare"])
def test_a_session_of_ours_that_just_began_to_run_is_waited_for_and_stopped(world: World, bare: bool) -> None:
    world.workspace.bare = bare
    before = world.start(log=False)
    world.lose_notes(before)
    sessions = world.ours()
    threading.Timer(0.1, lambda: [world.log(before, session) for session in sessions]).start()
    assert world.open().end().disowned == ()
    assert not world.ours() and world.stopped() == sessions


def test_what_this_kernel_launched_needs_no_file(world: World) -> None:
    cluster = claim(make_settings(), times=TIMES)
    cluster.launches.launch("worker", 2)
    shutil.rmtree(cluster.folder / "logs")
    world.lose_notes(cluster)
    assert cluster.end().sessions == 2 and not world.ours()


def test_a_worker_that_is_connected_needs_no_log(world: World) -> None:
    world.lose_notes(world.start(log=False))
    cluster = world.open()
    cluster.note_connected(world.ours(), {})
    assert cluster.end().sessions == 3 and not world.ours()


def test_a_session_that_shows_late_that_it_is_ours_is_taken_in_again(world: World) -> None:
    before = world.start(log=False)
    world.lose_notes(before)
    late = min(session.id for session in before.record.sessions if session.role == "worker")
    for session in world.ours() - {late}:
        world.log(before, session)
    cluster = world.open()
    cluster.stop([late])
    assert late not in {session.id for session in cluster.record.sessions} and late in world.ours()
    world.log(before, late)
    cluster.orphans.adopt([])
    assert late in {session.id for session in cluster.record.sessions}
    cluster.end()
    assert not world.ours()


def test_without_a_listing_nothing_is_forgotten_that_may_be_ours(world: World) -> None:
    before = world.start(log=False)
    world.lose_notes(before)
    world.workspace.list_down = ConnectionResetError("reset")
    with pytest.raises(StillUpError, match="reset"):
        world.open().end()
    assert world.registry.names() == ["default"] and not world.stopped()
    world.workspace.list_down = None
    for session in world.ours():
        world.log(before, session)
    world.open().end()
    assert not world.ours()


@pytest.mark.parametrize("role", ["record", "claim"])
def test_a_record_of_another_name_is_none_of_this_folders(world: World, role: str) -> None:
    first, other = world.start(), world.start("other")
    sessions = {session.id for session in other.record.sessions}
    if role == "record":
        shutil.copy(world.record_of("other"), world.record_of())
    else:
        shutil.copy(other.folder / "claim.json", first.folder / "claim.json")
        write_private(world.record_of(), "garbage")
    cluster = world.open()
    assert (cluster.record.name, cluster.settings.name) == ("default", "default")
    assert cluster.end().sessions == 3
    assert world.ours() == sessions, "the other cluster is none the worse"
    world.open("other").end()


@pytest.mark.parametrize(
    "session", ["../../../../outside/x0", "", ".x", "a" * 65, "a/b", "a\0b", "a\n", "-x", "a b", "ä", "*"]
)
def test_an_id_that_can_be_none_breaks_the_record_and_reaches_nobody(world: World, session: str) -> None:
    cluster = world.start()
    ours = world.ours()
    tamper(world.record_of(), lambda data: data["sessions"][0].update(id=session))
    found = world.open()
    assert {each.id for each in found.record.sessions} == ours, "their logs tell of them"
    write_private(cluster.folder / "scheduler.session", session)
    found.end()
    assert world.stopped() == ours and not world.ours()


@pytest.mark.parametrize("session", ["../x", "", None, 5, "a" * 65, "a\0b", ["a"]])
def test_an_id_that_can_be_none_is_not_taken_from_the_platform(world: World, session: Any) -> None:
    cluster = claim(make_settings(), times=TIMES)
    world.workspace.launch_answer = [{"id": session, "status": "running"}, {"message": "no", "engineId": session}]
    launched = cluster.launches.launch("worker", 2)
    assert not launched.sessions and not launched.strays and launched.doubtful
    assert not cluster.record.sessions
    cluster.end()
    world.workspace.set("stopped", *world.ours())  # they find their folder closed


BROKEN = {
    "a time of the next universe": lambda data: data.update(created_at=1e18),
    "an event of the next universe": lambda data: data["events"].append([1e18, "boo"]),
    "a session of the next universe": lambda data: data["sessions"][0].update(running_at=1e18),
    "a number beyond all": lambda data: data.update(requested=10**400),
    "not a number": lambda data: data.update(core_s=float("nan")),
    "a timeout beyond all": lambda data: data["settings"].update(timeout_s=10**400),
    "another name": lambda data: data.update(name="other"),
}


@pytest.mark.parametrize("how", BROKEN)
def test_one_record_that_cannot_be_read_hides_no_other(world: World, shell: InteractiveShell, how: str) -> None:
    world.start("broken"), world.start("good")
    tamper(world.record_of("broken"), BROKEN[how])
    assert "broken" in notice() and "good" in notice()
    shown, _ = kernel_clusters.statuses(world.registry.state_directory)
    assert sorted(status.name for status in shown) == ["broken", "good"]
    assert to_json(shown) and to_text(shown)
    shell.run_line_magic("dask_down", "--all")
    assert not world.ours() and world.registry.names() == []


def paths(data: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The way to each value in a document."""
    inner = list(data.items()) if isinstance(data, dict) else list(enumerate(data)) if isinstance(data, list) else []
    return [*([path] if path else []), *(way for key, value in inner for way in paths(value, (*path, key)))]


def changed(data: Any, path: tuple[Any, ...], value: Any) -> Any:
    """A document with another value at the end of a way."""
    copy = json.loads(json.dumps(data))
    place = copy
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    return copy


def use(cluster: Fleet) -> None:
    """Look at a cluster in every way."""
    shown = [snapshot(cluster, "running", {})]
    assert to_json(shown) and to_text(shown)
    cluster.liveness()


@pytest.mark.parametrize("file", ["record.json", "claim.json"])
def test_whatever_stands_in_a_field_nothing_of_others_is_touched_and_nothing_of_ours_is_left(
    world: World, monkeypatch: pytest.MonkeyPatch, file: str
) -> None:
    monkeypatch.setattr(opening, "write_certificates", lambda folder: write_private(folder / "ca.pem", "dear to make"))
    times, sleep = replace(TIMES, suspects_s=0.01), time.sleep
    monkeypatch.setattr(time, "sleep", lambda seconds: sleep(seconds / 100))  # nothing here takes time
    others, numbers = sorted(world.others), itertools.count()

    @MANY
    @hypothesis.given(st.integers(0, 10**6), ANYTHING | st.sampled_from(others))
    def tampered(number: int, value: Any) -> None:
        name = f"c{next(numbers)}"
        cluster = world.start(name, env={"A": "topsecret"})
        cluster.journal.log("hello")
        path = cluster.folder / file if file == "claim.json" else world.record_of(name)
        record, whole = world.record_of(name).read_text(), json.loads(path.read_text())
        ways = paths(whole)
        way = ways[number % len(ways)]
        try:
            text = json.dumps(changed(whole, way, value))
        except ValueError:  # an integer of more digits than Python writes
            text = "9" * 5000
        if file == "claim.json":
            world.record_of(name).unlink()
        write_private(path, text)
        try:
            found = open_fleet(world.registry, name, times)
        except RuntimeError as error:  # its platform is another one
            assert way == ("backend",) and name in str(error)
            write_private(world.record_of(name), record)
            found = open_fleet(world.registry, name, times)
        assert found is not None and found.record.name == name
        use(found)
        assert len(list((world.registry.directory / "broken").glob("*"))) <= 1, "it is mended once"
        found.end()
        # It told of another start: now the folder tells of this one.
        if way == ("token",) and (again := open_fleet(world.registry, name, times)) is not None:
            again.end()
        assert name not in world.registry.names() and not world.ours() & {s.id for s in cluster.record.sessions}
        assert not world.stopped() & world.others
        for aside in (world.registry.directory / "broken").glob("*"):
            assert "topsecret" not in aside.read_text()
            aside.unlink()
        world.workspace.calls.clear()
        for session in cluster.record.sessions:  # there are so many
            del world.workspace.sessions[session.id]

    tampered()


@MANY
@hypothesis.given(ANYTHING)
def test_a_record_is_read_or_refused_in_words(data: Any) -> None:
    try:
        text = json.dumps(data)
    except ValueError:  # an integer of more digits than Python writes
        return
    with pytest.raises(ValueError):
        record_from_json(text)


def test_a_cluster_whose_sessions_are_proven_is_scaled_and_stopped_by_the_next_kernel(world: World) -> None:
    world.start()
    cluster = world.open()
    (victim, *_) = sorted(session.id for session in cluster.record.sessions if session.role == "worker")
    cluster.stop([victim])
    assert world.stopped() == {victim}
    assert replace(cluster.end(), uptime_s=0).sessions == 2
