"""What is on record: taken by one, lost by none, readable by the next kernel, and mended where it is broken."""

import json
import os
import shutil
import stat
import subprocess
import sys
import threading
import time
from dataclasses import replace
from unittest import mock

import hypothesis
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.state_folder import private

from cml_dask_magics.model.record import (
    Launch,
    Owner,
    Record,
    SessionRecord,
    TroubleRecord,
    record_from_json,
    record_to_json,
)
from cml_dask_magics.registry import registry as registry_module
from cml_dask_magics.registry.files import write_private
from cml_dask_magics.registry.registry import NameTakenError, Registry, RegistryError


def make_record(name="default", token="0000aaaa", **fields):
    defaults = {
        "backend": "cml",
        "created_at": time.time(),
        "owner": Owner("kernelsession", "host", 1),
        "settings": {},
        "requested": 2,
    }
    return Record(name=name, token=token, **{**defaults, **fields})


def session(session_id, **fields):
    return SessionRecord(id=session_id, role="worker", cpu=1, memory_gib=2, gpu=0, launched_at=time.time(), **fields)


@pytest.fixture
def registry(tmp_path):
    return Registry(tmp_path / "state")


def record_path(registry, name="default"):
    return registry.directory / "clusters" / name / "record.json"


def test_what_is_claimed_is_what_another_kernel_reads(registry):
    record = make_record(sessions=(session("a1"),), events=((1.0, "began"),), adapt=(1, 4))
    run = registry.claim(record)
    assert run.is_dir()
    assert run == Registry(registry.state_directory).run_folder(record)
    assert Registry(registry.state_directory).read("default") == record
    assert registry.names() == ["default"]


def test_an_unknown_cluster_is_none_and_no_error(registry):
    assert registry.read("default") is None
    assert registry.names() == []
    assert not registry.directory.exists()


def test_nobody_else_can_look_into_the_folders_or_files(registry):
    run = registry.claim(make_record())
    write_private(run / "key.pem", "secret")
    for path in [registry.directory, *registry.directory.rglob("*")]:
        mode = stat.S_IMODE(path.stat().st_mode)
        assert mode == (0o700 if path.is_dir() else 0o600), path


def test_a_taken_name_stays_with_whoever_has_it(registry):
    first = make_record()
    registry.claim(first)
    with pytest.raises(NameTakenError):
        registry.claim(make_record(token="1111bbbb"))
    assert registry.read("default") == first
    assert registry.run_folder(first).is_dir()
    assert not registry.run_folder(make_record(token="1111bbbb")).exists()


def test_a_claim_that_is_interrupted_leaves_nothing(registry, monkeypatch):
    def create_and_be_interrupted(path, text):
        write_private(path, text)
        monkeypatch.undo()
        raise KeyboardInterrupt

    monkeypatch.setattr(registry_module, "create_private", create_and_be_interrupted)
    with pytest.raises(KeyboardInterrupt):
        registry.claim(make_record())
    assert registry.names() == [] and not list(registry.directory.glob("*/*"))


def test_a_claim_made_twice_does_not_take_the_run_folder_away(registry):
    record = make_record()
    run = registry.claim(record)
    write_private(run / "key.pem", "secret")
    with pytest.raises(NameTakenError):
        registry.claim(record)
    assert (run / "key.pem").exists()


RACE = """
import sys, time
from pathlib import Path
from cml_dask_magics.model.record import Launch, Owner, Record, SessionRecord, record_from_json, record_to_json
from cml_dask_magics.registry.registry import NameTakenError, Registry
directory, me, start = Path(sys.argv[1]), sys.argv[2], float(sys.argv[3])
registry = Registry(directory)
for i in range(100):
    while time.time() < start + i * 0.008:
        pass
    owner, settings = Owner(me, "host", 1), {"x": me * 50}
    record = Record(f"c{i}", me, "cml", created_at=1.0, owner=owner, settings=settings, requested=1)
    try:
        registry.claim(record)
    except NameTakenError:
        seen = registry.read(f"c{i}")
        print("lost", i, seen.token, seen.settings["x"] == seen.token * 50, flush=True)
    else:
        print("won", i, me, True, flush=True)
"""


def test_of_two_kernels_that_take_a_name_at_once_one_wins_and_the_other_sees_a_whole_record(tmp_path):
    start = time.time() + 1.0
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", RACE, str(tmp_path / "state"), me, str(start)], stdout=subprocess.PIPE, text=True
        )
        for me in ("aaaaaaaa", "bbbbbbbb")
    ]
    lines = [line.split() for racer in racers for line in racer.communicate()[0].splitlines()]
    assert all(racer.returncode == 0 for racer in racers)
    winners = {int(i): token for outcome, i, token, _ in lines if outcome == "won"}
    assert sorted(winners) == list(range(100))
    assert sum(outcome == "won" for outcome, *_ in lines) == 100
    for outcome, i, token, whole in lines:
        assert whole == "True"
        if outcome == "lost":
            assert token == winners[int(i)]
    assert len(list((private(tmp_path / "state") / "runs").iterdir())) == 100


COUNT = """
import sys
from dataclasses import replace
from pathlib import Path
from cml_dask_magics.registry.registry import Registry
registry = Registry(Path(sys.argv[1]))
for _ in range(60):
    registry.update("default", lambda record: replace(record, requested=record.requested + 1))
"""


@pytest.mark.parametrize("age_s", [0, 60])
def test_a_record_that_stayed_as_it_was_is_not_read_again_and_one_that_changed_is(registry, monkeypatch, age_s):
    claimed = make_record(requested=2)
    registry.claim(claimed)
    file = record_path(registry)
    now = file.stat().st_mtime
    os.utime(file, (now - age_s, now - age_s))
    read = mock.Mock(wraps=record_from_json)
    monkeypatch.setattr(registry_module, "record_from_json", read)
    assert [registry.read(claimed.name) for _ in range(3)] == [claimed] * 3
    assert read.call_count == 1
    if not age_s:  # within one tick of a coarse clock a file may be replaced by one that looks alike
        stamp = file.stat()
        with file.open("r+") as same:
            text = same.read().replace('"requested": 2', '"requested": 3')
            same.seek(0)
            same.write(text)
        os.utime(file, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
        assert registry.read(claimed.name).requested == 3
    Registry(registry.state_directory).update(claimed.name, lambda record: replace(record, requested=7))
    assert registry.read(claimed.name).requested == 7


def test_no_change_is_lost_when_several_kernels_and_threads_write_at_once(registry):
    registry.claim(make_record(requested=0))
    kernels = [subprocess.Popen([sys.executable, "-c", COUNT, str(registry.state_directory)]) for _ in range(3)]

    def count():
        for _ in range(60):
            registry.update("default", lambda record: replace(record, requested=record.requested + 1))

    threads = [threading.Thread(target=count) for _ in range(2)]
    for thread in threads:
        thread.start()
    for worker in [*threads]:
        worker.join()
    assert [kernel.wait() for kernel in kernels] == [0, 0, 0]
    assert registry.read("default").requested == 5 * 60
    assert sorted(path.name for path in record_path(registry).parent.iterdir()) == ["lock", "record.json"]


def test_a_record_that_went_away_is_not_written_again(registry):
    record = make_record()
    registry.claim(record)
    registry.forget(record)
    with pytest.raises(KeyError):
        registry.update("default", lambda record: record)
    assert registry.names() == []


def test_a_change_that_fails_leaves_the_record_as_it_was(registry):
    record = make_record()
    registry.claim(record)

    def fail(_record):
        raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        registry.update("default", fail)
    with pytest.raises(TypeError):
        registry.update("default", lambda record: replace(record, settings={"x": object()}))
    assert registry.read("default") == record
    assert registry.update("default", lambda record: replace(record, requested=9)).requested == 9


def test_forgetting_removes_secrets_and_keeps_the_logs(registry):
    record = make_record()
    run = registry.claim(record)
    for name in ("ca.pem", "cert.pem", "key.pem", "scheduler.json"):
        write_private(run / name, "secret")
    (run / "logs" / "a1.log").write_text("hello\n")
    registry.forget(record)
    assert registry.names() == []
    assert sorted(path.name for path in run.iterdir()) == [".cml-dask-magics", "logs"]
    assert (run / "logs" / "a1.log").read_text() == "hello\n"
    assert registry.latest_log_folder("default") == run / "logs"
    registry.forget(record)  # again is no error
    registry.claim(make_record(token="1111bbbb"))


def test_forgetting_late_does_not_forget_the_cluster_that_came_after(registry):
    old, new = make_record(), make_record(token="1111bbbb", sessions=(session("a1"),))
    registry.claim(old)
    registry.forget(old)
    registry.claim(new)
    registry.forget(old)
    assert registry.read("default") == new


def test_old_logs_do_not_pile_up_but_a_running_cluster_keeps_its_folder(registry):
    running = make_record("etl", "ffffffff")
    registry.claim(running)
    for number in range(14):
        record = make_record(token=f"{number:08x}")
        run = registry.claim(record)
        registry.forget(record)
        os.utime(run, (1000 + number, 1000 + number))
    os.utime(registry.run_folder(running), (1, 1))
    last = make_record(token="99999999")
    registry.claim(last)
    registry.forget(last)
    assert registry.run_folder(running).is_dir()
    assert registry.run_folder(last).is_dir()
    assert len(list(registry.directory.glob("runs/default-*"))) == 10


def test_a_cluster_is_not_taken_for_one_whose_name_begins_alike(registry):
    records = [make_record(name, token) for name, token in (("a", "11111111"), ("a-b", "22222222"), ("a-", "33333333"))]
    for record in records:
        run = registry.claim(record)
        (run / "logs" / f"of{record.token}.log").touch()
    for record in records:
        assert registry.logged_sessions(record) == {f"of{record.token}"}
        assert registry.latest_log_folder(record.name) == registry.run_folder(record) / "logs"
    for record in records:
        record_path(registry, record.name).write_text("garbage")
        assert [found.id for found in registry.read(record.name).sessions] == [f"of{record.token}"]
    registry.forget(records[0])
    assert registry.names() == ["a-", "a-b"]
    assert registry.run_folder(records[1]).is_dir()


BROKEN = {
    "empty": "",
    "cut short": None,
    "not JSON": "{oops",
    "binary": b"\xff\xfe\x00",
    "a list": "[]",
    "nested": "[" * 100000,
    "newer": json.dumps({"version": 3}),
    "other fields": json.dumps({"version": 1, "name": "default"}),
}


@pytest.mark.parametrize("content", BROKEN.values(), ids=BROKEN.keys())
def test_a_broken_record_is_set_aside_and_its_sessions_can_still_be_stopped(registry, content):
    record = make_record(sessions=(session("a1"), session("b2")))
    run = registry.claim(record)
    for name in ("a1", "b2"):
        (run / "logs" / f"{name}.log").write_text("hello\n")
    path = record_path(registry)
    raw = path.read_bytes()[:-20] if content is None else content if isinstance(content, bytes) else content.encode()
    path.write_bytes(raw)
    salvaged = registry.read("default")
    assert {found.id for found in salvaged.sessions} == {"a1", "b2"}
    assert salvaged.state == "stopping"
    assert registry.run_folder(salvaged) == run
    (aside,) = (registry.directory / "broken").iterdir()
    assert aside.read_bytes() == raw
    assert str(aside) in salvaged.events[-1][1]
    assert Registry(registry.state_directory).read("default") == salvaged
    registry.forget(salvaged)
    assert registry.names() == []


def test_two_broken_records_of_one_second_are_both_kept(registry):
    registry.claim(make_record())
    for content in ("one", "two"):
        record_path(registry).write_text(content)
        registry.read("default")
    assert sorted(path.read_text() for path in (registry.directory / "broken").iterdir()) == ["one", "two"]


def test_a_full_disk_does_not_cost_the_record_that_was_to_be_mended(registry, full_disk):
    registry.claim(make_record())
    record_path(registry).write_text("broken")
    with full_disk():
        assert registry.read("default").state == "stopping"
    assert record_path(registry).read_text() == "broken"
    assert registry.names() == ["default"]
    assert registry.read("default") is not None


def test_a_deleted_record_is_told_from_what_its_sessions_left(registry):
    record = make_record(settings={"cpu": 2, "memory_gib": 4, "scheduler_cpu": 1}, requested=5)
    run = registry.claim(record)
    for name in ("a1", "b2", "c3"):
        (run / "logs" / f"{name}.log").write_text("hello\n")
    write_private(run / "scheduler.json", '{"address": "tls://127.0.0.1:1"}')
    (run / "scheduler.session").write_text("b2")
    shutil.rmtree(registry.folder("default"))
    assert registry.names() == ["default"]
    found = Registry(registry.state_directory).read("default")
    assert {session.id: (session.role, session.cpu) for session in found.sessions} == {
        "a1": ("worker", 2),
        "b2": ("scheduler", 1),
        "c3": ("worker", 2),
    }
    assert (found.state, found.requested, found.settings) == ("running", 2, record.settings)
    assert found.launching and "deleted" in found.events[-1][1]
    registry.forget(found)
    assert registry.names() == [] and registry.read("default") is None


def test_a_cluster_that_is_gone_does_not_come_back_from_its_run_folder(registry):
    record = make_record()
    write_private(registry.claim(record) / "scheduler.json", "{}")
    registry.forget(record)
    assert registry.read("default", known=record) is None and registry.names() == []


@pytest.mark.parametrize("stray", [".nfs000000000123", ".ipynb_checkpoints", "a1.log~", ".log", "notes.txt"])
def test_what_editors_and_file_systems_leave_beside_the_logs_is_no_session(registry, stray):
    record = make_record()
    run = registry.claim(record)
    (run / "logs" / "a1.log").touch()
    (run / "logs" / stray).touch()
    assert registry.logged_sessions(record) == {"a1"}


def test_a_record_file_that_was_deleted_by_hand_does_not_block_the_name(registry):
    record = make_record()
    registry.claim(record)
    registry.update("default", lambda record: replace(record, requested=3))
    record_path(registry).unlink()
    registry.claim(make_record(token="1111bbbb"))
    assert registry.read("default").token == "1111bbbb"


def test_a_folder_that_cannot_be_written_is_told_and_how_to_choose_another(tmp_path):
    (tmp_path / "file").write_text("")
    registry = Registry(tmp_path / "file" / "state")
    with pytest.raises(RegistryError) as error:
        registry.claim(make_record())
    message = str(error.value)
    assert str(tmp_path / "file") in message
    assert "state-directory" in message
    assert "\n" not in message
    assert registry.read("default") is None
    assert list(tmp_path.iterdir()) == [tmp_path / "file"]


def test_a_full_disk_leaves_the_record_whole_and_no_litter(registry, full_disk):
    record = make_record()
    registry.claim(record)
    with full_disk(), pytest.raises(RegistryError):
        registry.update("default", lambda record: replace(record, requested=9))
    assert registry.read("default") == record
    assert sorted(path.name for path in record_path(registry).parent.iterdir()) == ["lock", "record.json"]
    with full_disk(), pytest.raises(RegistryError):
        registry.claim(make_record("other"))
    assert registry.names() == ["default"]
    assert [path.name for path in (registry.directory / "runs").iterdir()] == ["default-0000aaaa"]


TEXT = st.text(max_size=20)
FLOATS = st.floats(0, 1e11)
SESSIONS = st.builds(
    SessionRecord,
    id=st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}", fullmatch=True),
    role=st.sampled_from(["scheduler", "worker"]),
    cpu=FLOATS,
    memory_gib=FLOATS,
    gpu=st.integers(0, 8),
    launched_at=FLOATS,
    launched_from=TEXT,
    running_at=st.none() | FLOATS,
    connected_at=st.none() | FLOATS,
    automatic=st.booleans(),
    stopping_at=st.none() | FLOATS,
    salvaged=st.booleans(),
    ended_at=st.none() | FLOATS,
    ip_address=st.none() | TEXT,
    app_url=st.none() | TEXT,
)
OWNERS = st.builds(Owner, TEXT, TEXT, st.integers(0, 2**22))
LAUNCHES = st.builds(
    Launch, TEXT, st.sampled_from(["scheduler", "worker"]), st.integers(0, 9), FLOATS, OWNERS, st.booleans()
)
RECORDS = st.builds(
    Record,
    name=st.from_regex(r"[A-Za-z0-9_-]{1,40}", fullmatch=True),
    token=st.from_regex(r"[0-9a-f]{8}", fullmatch=True),
    backend=TEXT,
    created_at=FLOATS,
    owner=OWNERS,
    settings=st.dictionaries(TEXT, st.none() | TEXT | st.integers()),
    requested=st.integers(0, 500),
    state=st.sampled_from(["starting", "running", "stopping", "lost"]),
    adapt=st.none() | st.tuples(st.integers(0, 9), st.integers(9, 99)),
    scheduler_address=st.none() | TEXT,
    sessions=st.lists(SESSIONS, max_size=3).map(tuple),
    launching=st.lists(LAUNCHES, max_size=2).map(tuple),
    failed_replacements=st.integers(0, 9),
    core_s=FLOATS,
    events=st.lists(st.tuples(FLOATS, TEXT), max_size=3).map(tuple),
    trouble=st.none() | st.builds(TroubleRecord, FLOATS, TEXT, TEXT, st.booleans()),
    troubles_written=st.integers(0, 9),
)
QUICK = hypothesis.settings(max_examples=60, deadline=None, database=None)


@QUICK
@given(record=RECORDS)
def test_a_record_comes_back_as_it_was_written(record):
    assert record_from_json(record_to_json(record)) == record


def test_a_record_of_version_1_is_read_and_becomes_one_of_this_version(registry):
    record = make_record(sessions=(session("a1"),))
    registry.claim(record)
    path = registry.folder("default") / "record.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "version": 1}))
    assert registry.read("default") == record
    registry.update("default", lambda record: record.with_event("changed"))
    assert json.loads(path.read_text())["version"] == 2
    assert not list((registry.directory).glob("broken/*"))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXT | st.just(float("inf")),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=5,
)


@hypothesis.settings(max_examples=300, deadline=None, database=None)
@hypothesis.example(field="requested", value=float("inf"))
@hypothesis.example(field="settings", value=[])
@hypothesis.example(field="sessions", value=[5])
@given(field=st.sampled_from([*Record.__dataclass_fields__, "of tomorrow"]), value=JSON)
def test_a_record_with_any_field_gone_wrong_is_read_or_refused_but_never_a_crash(field, value):
    data = {**json.loads(record_to_json(make_record(sessions=(session("a1"),)))), field: value}
    try:
        record = record_from_json(json.dumps(data))
    except ValueError as error:
        assert str(error)
    else:
        assert isinstance(record.settings, dict)
        assert all(isinstance(found.id, str) and found.id for found in record.sessions)
        record.with_event("more")


@QUICK
@given(text=st.text(max_size=200))
def test_any_text_is_a_record_or_a_value_error(text):
    with pytest.raises(ValueError):
        record_from_json(text)


@pytest.mark.parametrize("field", ["launched_at", "running_at", "cpu", "memory_gib", "gpu", "ended_at"])
def test_a_session_with_a_field_of_the_wrong_kind_is_found_out_on_reading(field):
    data = json.loads(record_to_json(make_record(sessions=(session("a1"),))))
    data["sessions"][0][field] = "soon"
    with pytest.raises(ValueError):
        record_from_json(json.dumps(data))


def test_events_do_not_grow_without_end():
    record = make_record()
    for number in range(80):
        record = record.with_event(str(number))
    assert len(record.events) == 50
    assert record.events[-1][1] == "79"
