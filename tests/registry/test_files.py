"""Nobody's files are lost: what this package removes it has made, and what lies behind a link it leaves alone."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from IPython.core.interactiveshell import InteractiveShell
from support.state_folder import another_machine, private

import cml_dask_magics
from cml_dask_magics.fleet.opening import claim, open_fleet
from cml_dask_magics.magics.kernel_clusters import kernel_clusters
from cml_dask_magics.magics.notice import notice
from cml_dask_magics.model.record import Owner, Record, SessionRecord, record_from_json, record_to_json
from cml_dask_magics.model.settings import default_state_directory, make_settings
from cml_dask_magics.platforms import local
from cml_dask_magics.platforms.local import LocalSessions
from cml_dask_magics.registry import files
from cml_dask_magics.registry.certificates import write_certificates
from cml_dask_magics.registry.files import create_private, listed, make_folder, named, remove, rename, write_private
from cml_dask_magics.registry.lease import Lease
from cml_dask_magics.registry.registry import NameTakenError, Registry, RegistryError
from cml_dask_magics.registry.run_folder import close_run, make_run

HERE = Owner("", socket.gethostname(), 1)
OURS = named("key.pem")


def make_record(name: str = "default", token: str = "0000aaaa", backend: str = "local") -> Record:
    return Record(name, token, backend, time.time(), HERE, settings={}, requested=1)


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry(tmp_path / "proj")


def write(path: Path, text: str = "the user's") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def swap(folder: Path, behind: Path) -> None:
    """Move a folder away and put a link to it in its place."""
    folder.rename(behind)
    folder.symlink_to(behind)


def tree(folder: Path) -> dict[str, str]:
    """Every file below a folder, with what is in it."""
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


# Writing


@pytest.mark.parametrize("writer", [write_private, create_private])
def test_a_draft_that_is_somebody_elses_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, writer: Callable[[Path, str], None]
) -> None:
    monkeypatch.setattr(files.secrets, "token_hex", lambda _: "0000aaaa")
    write(tmp_path / ".record.json.0000aaaa")
    with pytest.raises(FileExistsError):
        writer(tmp_path / "record.json", "ours")
    assert tree(tmp_path) == {".record.json.0000aaaa": "the user's"}


@pytest.mark.parametrize("links", [None, errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK])
def test_what_is_created_takes_nobodys_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: int | None
) -> None:
    def link(*_: object) -> None:
        assert links is not None
        raise OSError(links, "no links here")

    if links is not None:
        monkeypatch.setattr(os, "link", link)
    create_private(tmp_path / "record.json", "first")
    with pytest.raises(FileExistsError):
        create_private(tmp_path / "record.json", "second")
    assert tree(tmp_path) == {"record.json": "first"}
    assert (tmp_path / "record.json").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("told", [errno.EEXIST, errno.EIO])
def test_a_network_that_lost_the_answer_has_created_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, told: int
) -> None:
    real = os.link

    def link(source: Path, target: Path) -> None:
        real(source, target)
        raise OSError(told, os.strerror(told))

    monkeypatch.setattr(os, "link", link)
    create_private(tmp_path / "record.json", "ours")
    assert tree(tmp_path) == {"record.json": "ours"}


# Removing


def test_only_regular_files_whose_names_are_known_are_removed(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    for name in ("key.pem", ".key.pem.0123abcd", "key.pem~", "my key.pem", ".key.pem.old", "deep/key.pem"):
        write(folder / name)
    assert sorted(remove(tmp_path, folder, OURS, and_folder=True)) == [".key.pem.old", "deep", "key.pem~", "my key.pem"]
    (folder / "key.pem").mkdir()
    assert "key.pem" in remove(tmp_path, folder, OURS)
    assert sorted(tree(folder)) == [".key.pem.old", "deep/key.pem", "key.pem~", "my key.pem"]


def test_a_link_with_one_of_our_names_is_left_as_is_what_lies_behind_it(tmp_path: Path) -> None:
    users = write(tmp_path / "users.pem")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "key.pem").symlink_to(users)
    assert remove(tmp_path, tmp_path / "folder", OURS, and_folder=True) == ["key.pem"]
    assert users.read_text() == "the user's"


def test_a_folder_that_is_empty_goes_and_one_that_was_never_there_is_no_error(tmp_path: Path) -> None:
    write(tmp_path / "folder" / "key.pem")
    assert remove(tmp_path, tmp_path / "folder", OURS) == [] and (tmp_path / "folder").is_dir()
    assert remove(tmp_path, tmp_path / "folder", OURS, and_folder=True) == []
    assert list(tmp_path.iterdir()) == []
    assert remove(tmp_path, tmp_path / "folder" / "logs", OURS, and_folder=True) == []


@pytest.mark.parametrize("where", ["a", "a/b", "a/b/c"])
def test_nothing_is_removed_renamed_or_made_behind_a_link(tmp_path: Path, where: str) -> None:
    root = tmp_path / "state"
    write(root / "a" / "b" / "c" / "key.pem")
    swap(root / where, tmp_path / "behind")
    before = tree(tmp_path / "behind")
    for act in (
        lambda: remove(root, root / "a/b/c", OURS, and_folder=True),
        lambda: rename(root, root / "a/b/c", "key.pem", "other.pem"),
        lambda: make_folder(root, root / "a/b/c"),
    ):
        with pytest.raises(NotADirectoryError) as error:
            act()
        assert error.value.filename == str(root / where)
    assert tree(tmp_path / "behind") == before and len(before) == 1


def test_the_state_folder_itself_may_be_a_link(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "proj").symlink_to(tmp_path / "disk")
    registry = Registry(tmp_path / "proj")
    registry.claim(make_record())
    registry.forget(make_record())
    assert sorted(tree(tmp_path / "disk")) == ["cml-dask-magics/runs/default-0000aaaa/.cml-dask-magics"]


def test_the_package_removes_nothing_by_another_way() -> None:
    removing = re.compile(r"\b(rmtree|unlink|rmdir|removedirs|os\.remove|shutil\.move)\b")
    package = Path(cml_dask_magics.__file__).parent
    found = {path.name for path in package.rglob("*.py") if removing.search(path.read_text())}
    assert found == {"files.py", "session_keeper.py"}  # which knows one folder, that it has made itself


# The state folder


def test_by_default_everything_is_where_it_was_before_there_was_a_private_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    monkeypatch.setattr(sys, "platform", "linux")
    assert Registry(default_state_directory()).directory == tmp_path / "cml-dask-magics"


def test_a_users_project_survives_up_and_down_and_up_again(state: Path, shell: InteractiveShell) -> None:
    """The state folder is a project: 14 folders in its ``runs``, and files in folders of a cluster's name."""
    for number in range(14):
        write(state / "runs" / f"experiment-{number:08x}" / "results.csv")
        os.utime(state / "runs" / f"experiment-{number:08x}", (1000 + number,) * 2)
    for name in ("notes.txt", "record.json", "lease.json", "lock", "sub/notes.txt"):
        write(state / "clusters" / "default" / name)
    write(state / "local-sessions" / "x.json")
    write(private(state) / "clusters" / "default" / "notes.txt")
    before = tree(state)
    for _ in range(2):
        shell.run_line_magic("dask_up", "1")
        assert kernel_clusters.names(state) == ["default"]
        shell.run_line_magic("dask_down", "")
    assert kernel_clusters.names(state) == []
    after = tree(state)
    assert {path: after.get(path) for path in before} == before
    new = {path.parts[0] for path in map(Path, set(after) - set(before))}
    assert new == {"cml-dask-magics"}
    assert [entry.name for entry in listed(private(state) / "clusters" / "default")] == ["notes.txt"]


def test_a_users_file_keeps_its_folder_and_nothing_else_of_a_cluster_stays_there(registry: Registry) -> None:
    users = write(registry.directory / "clusters" / "default" / "notes.txt")
    for token in ("0000aaaa", "0000bbbb"):
        registry.claim(make_record(token=token))
        Lease(registry, "default", HERE).hold()
        write(registry.folder("default") / ".record.json.0123abcd", "of a kernel that was killed")
        registry.forget(make_record(token=token))
        assert [entry.name for entry in listed(users.parent)] == ["notes.txt"]
    assert users.read_text() == "the user's"


def test_a_claim_that_fails_takes_only_its_own_away(registry: Registry) -> None:
    users = write(registry.directory / "clusters" / "default" / "notes.txt")

    def fill(run: Path) -> None:
        write(run / "notes.txt")
        write(run / "key.pem")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(RegistryError, match="No space left"):
        registry.claim(make_record(), fill)
    assert [entry.name for entry in listed(users.parent)] == ["notes.txt"]
    run = registry.run_folder(make_record())
    assert sorted(entry.name for entry in listed(run)) == [".cml-dask-magics", "notes.txt"]


# Run folders


def end_starts(registry: Registry, n: int, first: int = 0) -> list[Path]:
    """Start and end a cluster so many times; the run folders, the oldest first."""
    runs = []
    for number in range(first, first + n):
        record = make_record(token=f"{number:08x}")
        run = registry.claim(record)
        (run / "logs" / "a1.log").write_text("hello\n")
        registry.forget(record)
        os.utime(run, (1000 + number,) * 2)
        runs.append(run)
    return runs


def test_what_a_user_keeps_in_an_old_run_folder_survives_it(registry: Registry) -> None:
    first, second, third, *_ = end_starts(registry, 3)
    kept = [write(first / "notes.txt"), write(second / "logs" / "notes.txt"), write(third / "logs" / "deep" / "a1.log")]
    for number, run in enumerate((first, second, third)):
        os.utime(run, (number,) * 2)
    end_starts(registry, 11, first=3)
    assert all(path.read_text() == "the user's" for path in kept)
    assert not (first / "logs").exists() and not (second / "logs" / "a1.log").exists()


def test_a_folder_among_the_runs_that_lacks_name_or_mark_is_the_users(registry: Registry, tmp_path: Path) -> None:
    runs = registry.directory / "runs"
    unmarked, renamed, linked = end_starts(registry, 3)
    (unmarked / ".cml-dask-magics").unlink()
    renamed = renamed.rename(runs / "my-best-run")
    (linked / ".cml-dask-magics").unlink()
    (linked / ".cml-dask-magics").symlink_to(write(tmp_path / "mark"))
    before = {folder: tree(folder) for folder in (unmarked, renamed, linked)}
    for number, folder in enumerate(before):
        os.utime(folder, (number,) * 2)
    marked = end_starts(registry, 13, first=3)
    assert {folder: tree(folder) for folder in before} == before
    assert [run.exists() for run in marked] == [False] * 3 + [True] * 10


@pytest.mark.parametrize("old", [False, True], ids=["when its cluster ends", "when it is old"])
def test_what_is_behind_a_run_folder_that_was_swapped_for_a_link_survives(
    registry: Registry, tmp_path: Path, old: bool, caplog: pytest.LogCaptureFixture
) -> None:
    run = registry.claim(make_record(token="ffffffff"))
    write(run / "key.pem")
    write(run / "logs" / "a1.log")
    if old:
        registry.forget(make_record(token="ffffffff"))
    swap(run, tmp_path / "behind")
    before = tree(tmp_path / "behind")
    registry.forget(make_record(token="ffffffff"))
    end_starts(registry, 12)
    assert tree(tmp_path / "behind") == before and "logs/a1.log" in before
    assert registry.names() == []
    assert str(run) in caplog.text and "\n" not in caplog.messages[0]


def test_what_is_behind_logs_that_were_swapped_for_a_link_survives(registry: Registry, tmp_path: Path) -> None:
    (run,) = end_starts(registry, 1)
    swap(run / "logs", tmp_path / "behind")
    os.utime(run, (1, 1))
    end_starts(registry, 12, first=1)
    assert tree(tmp_path / "behind") == {"a1.log": "hello\n"}
    assert len([each for each in listed(run.parent) if each.name != run.name]) == 10, "the others are removed"


def test_a_link_among_the_secrets_of_a_run_is_not_followed(registry: Registry, tmp_path: Path) -> None:
    users = write(tmp_path / "ca.pem")
    run = registry.claim(make_record())
    (run / "ca.pem").symlink_to(users)
    write(run / "key.pem")
    registry.forget(make_record())
    end_starts(registry, 12)
    assert users.read_text() == "the user's"
    assert not (run / "key.pem").exists()


def test_closing_a_run_removes_all_that_a_start_puts_there(tmp_path: Path) -> None:
    run = tmp_path / "default-0000aaaa"
    make_run(run)
    write_certificates(run)
    for name in (
        "claim.json",
        "scheduler.json",
        "scheduler.former.json",
        "scheduler.session",
        "session.json",
        "session.py",
        "session_keeper.py",
        "session_guards.py",
    ):
        write_private(run / name, "")
    write(run / "notes.txt")
    close_run(tmp_path, run)
    assert sorted(entry.name for entry in listed(run)) == [".cml-dask-magics", "logs", "notes.txt"]


def test_ending_a_cluster_renames_no_scheduler_file_behind_a_link(state: Path, tmp_path: Path) -> None:
    cluster = claim(make_settings(local=True))
    swap(cluster.folder, tmp_path / "behind")
    before = tree(tmp_path / "behind")
    cluster.end()
    assert tree(tmp_path / "behind") == before and "scheduler.json" in before
    assert kernel_clusters.names(state) == []


# Folders of ours that are links


@pytest.mark.parametrize("folder", ["", "clusters", "runs"])
def test_where_a_folder_of_ours_is_a_link_a_claim_says_so_and_puts_nothing_behind_it(
    registry: Registry, tmp_path: Path, folder: str
) -> None:
    make_folder(registry.state_directory, registry.directory)
    if not folder:
        registry.directory.rmdir()
    write(tmp_path / "users" / "sub" / "notes.txt")
    (registry.directory / folder).symlink_to(tmp_path / "users")
    with pytest.raises(RegistryError, match="a link, or a file, stands where") as error:
        registry.claim(make_record())
    assert str(registry.directory / folder) in str(error.value) and "\n" not in str(error.value)
    assert sorted(path.name for path in tmp_path.glob("users/**/*")) == ["notes.txt", "sub"]
    assert registry.names() == []


@pytest.mark.parametrize("folder", ["", "clusters", "clusters/default", "runs"])
def test_where_a_folder_of_ours_became_a_link_nothing_behind_it_is_removed(
    registry: Registry, tmp_path: Path, folder: str
) -> None:
    run = registry.claim(make_record())
    write(run / "key.pem")
    lease = Lease(registry, "default", HERE)
    lease.hold()
    swap(registry.directory / folder, tmp_path / "behind")
    before = tree(tmp_path / "behind")
    lease.release()
    if folder == "runs":  # its record can be removed all the same
        registry.forget(make_record())
        assert registry.names() == []
    else:
        with pytest.raises(RegistryError, match="a link, or a file, stands where"):
            registry.forget(make_record())
        assert registry.read("default") is not None
    assert tree(tmp_path / "behind") == before and before


def test_a_record_that_is_broken_is_not_mended_behind_a_link(registry: Registry, tmp_path: Path) -> None:
    write(tmp_path / "users" / "default" / "record.json")
    make_folder(registry.state_directory, registry.directory)
    (registry.directory / "clusters").symlink_to(tmp_path / "users")
    assert registry.read("default") is not None
    assert tree(tmp_path / "users")["default/record.json"] == "the user's"


def test_a_file_in_the_place_of_a_record_is_set_aside_whole(registry: Registry, tmp_path: Path) -> None:
    users = write(tmp_path / "users.json")
    write(registry.directory / "clusters" / "file" / "record.json", "a file")
    write(registry.directory / "clusters" / "folder" / "record.json" / "notes.txt", "in a folder")
    (registry.directory / "clusters" / "link").mkdir()
    (registry.directory / "clusters" / "link" / "record.json").symlink_to(users)
    for name in registry.names():
        record = registry.read(name)
        assert record is not None and record.state == "stopping"
        registry.forget(record)
    assert sorted(tree(registry.directory / "broken").values()) == ["a file", "in a folder", "the user's"]
    assert users.read_text() == "the user's" and registry.names() == []


# Processes of this machine


@pytest.mark.parametrize("session_id", ["../../x", "../x", "other", ".x", ""])
def test_a_session_file_that_tells_of_another_file_costs_nobody_theirs(tmp_path: Path, session_id: str) -> None:
    api = LocalSessions(tmp_path / "state" / "private" / "local-sessions")
    for path in (tmp_path / "state", api.directory.parent):
        write(path / "x.json"), write(path / "x.out")
    api.directory.mkdir()
    old = {"pid": 1, "pid_started": "", "created_at": 1.0, "cpu": 1, "memory": 1, "app_url": "", "finished_at": 2.0}
    for name in ("forged.json", ".x.json"):
        write(api.directory / name, json.dumps({**old, "id": session_id}))
    for finished_at in (2.0, None):
        write(api.directory / "forged.json", json.dumps({**old, "id": session_id, "finished_at": finished_at}))
        before = tree(tmp_path)
        assert api.list_workers() == []
        (refused,) = api.launch_workers(1, 1, 1, code="!exit 0", env={"LONG": "x" * 10**7})
        assert "id" not in refused
        assert tree(tmp_path) == before


def test_old_sessions_are_not_forgotten_behind_a_link_and_new_ones_are_launched(tmp_path: Path) -> None:
    api = LocalSessions(tmp_path / "state" / "private" / "local-sessions")
    session = local._Process("abc", 1, "", 1.0, 1, 1, "", finished_at=2.0)
    write(tmp_path / "users" / "abc.json", json.dumps(vars(session)))
    write(tmp_path / "users" / "abc.out")
    before = tree(tmp_path / "users")
    api.directory.parent.mkdir(parents=True)
    api.directory.symlink_to(tmp_path / "users")
    (launched,) = api.launch_workers(1, 1, 1, code="!exit 0")
    after = tree(tmp_path / "users")
    assert {path: after.get(path) for path in before} == before
    assert f"{launched['id']}.json" in after


# What an older release left in the state folder itself


def older(state: Path, name: str = "default", sessions: tuple[str, ...] = (), backend: str = "local") -> Record:
    """A cluster as releases without a private folder have it on record."""
    recorded = tuple(SessionRecord(each, "worker", 1, 1, 0, time.time()) for each in sessions)
    record = replace(make_record(name, backend=backend), sessions=recorded, state="running")
    run = state / "runs" / f"{name}-{record.token}"
    for file in ("claim.json", "ca.pem", "key.pem"):
        write(run / file, record_to_json(record))
    for session in sessions:
        write(run / "logs" / f"{session}.log", "hello\n")
    for file in ("record.json", "lease.json", "lock"):
        write(state / "clusters" / name / file, record_to_json(record) if file == "record.json" else "")
    return record


def test_a_cluster_that_an_older_release_started_is_found_changed_and_stopped_where_it_is(state: Path) -> None:
    platform = LocalSessions(state / "local-sessions")
    (session,) = platform.launch_workers(1, 1, 1, code="!sleep 60")
    record = older(state, sessions=(session["id"],))
    write(state / "clusters" / "default" / "notes.txt")
    write(state / "runs" / "default-0000aaaa" / "notes.txt")
    registry = Registry(state)
    run = state / "runs" / "default-0000aaaa"
    assert kernel_clusters.names(state) == ["default"] and "default" in notice()
    assert registry.read("default") == record and registry.run_folder(record) == run
    assert kernel_clusters.logs(state, "default") == {session["id"]: ["hello"]}
    registry.update("default", lambda record: replace(record, requested=7))
    assert record_from_json((state / "clusters" / "default" / "record.json").read_text()).requested == 7
    assert not private(state).exists()
    with pytest.raises(NameTakenError):
        registry.claim(make_record(token="1111bbbb"))

    (shown,), problems = kernel_clusters.statuses(state)
    assert [worker.session for worker in shown.workers] == [session["id"]] and not problems
    fleet = open_fleet(registry, "default")
    assert fleet is not None
    launched = fleet.launches.launch("worker", 1).sessions
    assert {each.id for each in launched} < {each["id"] for each in platform.list_workers()}

    ended = kernel_clusters.down(state, "default")
    assert ended is not None and ended.sessions == 2
    assert [each["status"] for each in platform.list_workers() if each["status"] == "running"] == []
    assert kernel_clusters.names(state) == []
    assert tree(state / "clusters") == {"default/notes.txt": "the user's"}
    assert {name for name in tree(state / "runs") if "logs" not in name} == {"default-0000aaaa/notes.txt"}
    registry.claim(make_record(token="1111bbbb"))
    assert registry.folder("default") == private(state) / "clusters" / "default"
    registry.forget(make_record(token="1111bbbb"))


def test_what_an_older_release_started_is_stopped_when_the_machine_has_another_name_by_now(state: Path) -> None:
    platform = LocalSessions(state / "local-sessions")
    (session,) = platform.launch_workers(1, 1, 1, code="!sleep 60")
    file = platform.directory / f"{session['id']}.json"
    write(file, json.dumps({key: value for key, value in json.loads(file.read_text()).items() if key != "host"}))
    older(state, sessions=(session["id"],))
    with another_machine():
        ended = kernel_clusters.down(state, "default")
    assert ended is not None and ended.sessions == 1
    assert [each["status"] for each in platform.list_workers()] == ["stopped"]


def test_of_two_records_of_one_name_the_private_one_counts_until_it_is_gone(registry: Registry) -> None:
    registry.claim(make_record(token="1111bbbb"))
    old = older(registry.state_directory)  # by a kernel that still has the older release
    current = registry.read("default")
    assert current is not None and current.token == "1111bbbb" and registry.names() == ["default"]
    registry.forget(current)
    assert registry.read("default") == old
    registry.forget(old)
    assert registry.names() == [] and tree(registry.state_directory / "clusters") == {}


@pytest.mark.parametrize("content", ["the user's", "{}", "", record_to_json(make_record("other"))])
def test_a_users_folder_that_looks_like_a_clusters_is_none(registry: Registry, content: str) -> None:
    write(registry.state_directory / "clusters" / "default" / "record.json", content)
    write(registry.state_directory / "runs" / "default-0000aaaa" / "claim.json", content)
    before = tree(registry.state_directory)
    assert registry.names() == [] and registry.read("default") is None
    registry.claim(make_record(token="1111bbbb"))
    registry.forget(make_record(token="1111bbbb"))
    after = tree(registry.state_directory)
    assert {path: after.get(path) for path in before} == before


# Several kernels at once

CLAIM_AND_FORGET = """
import errno, os, sys, time
from dataclasses import replace
from pathlib import Path
from typing import Any
from cml_dask_magics.model.record import Owner, Record
from cml_dask_magics.registry.registry import NameTakenError, Registry

def no_links(*_, **__):
    raise OSError(errno.EPERM, "no links here")

directory, me, how, won_by_me = Path(sys.argv[1]), sys.argv[2], sys.argv[3], Path(sys.argv[4]) / sys.argv[2]
if how == "no links":
    os.link = no_links
registry, won = Registry(directory), 0
while not won_by_me.with_name("enough").exists():
    token = f"{me}{won:04x}"
    record = Record("default", token, "cml", 1.0, Owner(me, "host", 1), settings={"x": token * 50}, requested=0)
    try:
        registry.claim(record)
    except NameTakenError:
        continue
    won += 1
    for _ in range(2):
        registry.update("default", lambda record: replace(record, requested=record.requested + 1))
    seen = registry.read("default")
    assert (seen.token, seen.requested) == (token, 2), f"{seen.token} instead of {token}"
    registry.forget(record)
    won_by_me.write_text(str(won))
"""


@pytest.mark.parametrize("how", ["links", "no links"])
def test_kernels_that_claim_and_forget_at_once_lose_no_record_and_see_no_half_one(
    registry: Registry, how: str, tmp_path: Path
) -> None:
    users = write(registry.directory / "clusters" / "default" / "notes.txt") if how == "links" else None
    wins = tmp_path / "wins"
    wins.mkdir()

    def won() -> list[int]:
        return [int(path.read_text() or 0) for path in (wins / "aaaa", wins / "bbbb") if path.exists()]

    arguments = [str(registry.state_directory), how, str(wins)]
    kernels = [
        subprocess.Popen(
            [sys.executable, "-c", CLAIM_AND_FORGET, arguments[0], me, *arguments[1:]],
        )
        for me in ("aaaa", "bbbb")
    ]
    path, seen = registry.directory / "clusters" / "default" / "record.json", 0
    began = time.monotonic()
    # For some seconds, and on a machine that has much else to do until both have won often enough.
    while time.monotonic() < began + 3 or (
        (len(won()) < 2 or min(won()) <= 5) and time.monotonic() < began + 60 and not any(k.poll() for k in kernels)
    ):
        record = registry.read("default")
        assert record is None or record.settings["x"] == record.token * 50
        if how == "links":
            try:
                record_from_json(path.read_text())  # whole, though nobody holds the lock
            except FileNotFoundError:
                continue
            seen += 1
    (wins / "enough").touch()
    assert [kernel.wait(60) for kernel in kernels] == [0, 0] and min(won()) > 5
    assert registry.names() == [] and not (registry.directory / "broken").exists()
    if users is not None:
        assert seen and [entry.name for entry in listed(users.parent)] == ["notes.txt"]


def test_who_waited_for_a_lock_that_was_removed_waits_for_the_one_that_counts(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It got hold of the lock in the instant in which the cluster was forgotten, and claimed by another."""
    registry.claim(make_record())
    lock = registry.folder("default") / "lock"
    real = os.open
    opened: list[int] = []

    def forget_and_claim_meanwhile(path: object, *rest: object, **more: object) -> int:
        descriptor = real(path, *rest, **more)  # type: ignore[arg-type]
        if path == lock:
            opened.append(descriptor)
            if len(opened) == 1:
                monkeypatch.undo()
                other = Registry(registry.state_directory)
                other.forget(make_record())
                other.claim(make_record(token="1111bbbb"))
                monkeypatch.setattr(os, "open", forget_and_claim_meanwhile)
        return descriptor

    monkeypatch.setattr(os, "open", forget_and_claim_meanwhile)
    with registry.exclusive("default"):
        assert os.path.samestat(os.fstat(opened[-1]), lock.stat())
    assert len(opened) == 2


def test_a_run_folder_that_another_kernel_removes_meanwhile_is_no_error(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = end_starts(registry, 2)
    real = os.scandir

    def remove_after_listing(path: Any) -> Any:
        entries = list(real(path))
        if path == old.parent and old.exists():
            shutil.rmtree(old)
        return contextlib.nullcontext(iter(entries))

    monkeypatch.setattr(os, "scandir", remove_after_listing)
    assert registry.latest_log_folder("default") == new / "logs"
    assert registry.read("default") is None and not old.exists()


@pytest.mark.parametrize("use", ["read", "update"])
def test_who_came_too_late_for_a_lock_takes_no_new_record_for_a_broken_one(
    registry: Registry, monkeypatch: pytest.MonkeyPatch, use: str
) -> None:
    """A new claim has it. Where there are no hard links, its record is empty for a moment."""
    record = claimed = make_record(token="1111bbbb")
    first = "" if use == "read" else record_to_json(replace(record, requested=3))
    folder = registry.directory / "clusters" / "default"
    write(folder / "record.json", "")
    half_claimed = threading.Event()

    def claim_slowly() -> None:
        other = Registry(registry.state_directory)
        with other.exclusive("default", make=True):
            write_private(folder / "record.json", first)
            half_claimed.set()
            time.sleep(0.3)
            write_private(folder / "record.json", record_to_json(claimed))

    claims = threading.Thread(target=claim_slowly)
    real = os.open

    def after_the_former_was_forgotten(path: object, *rest: object, **more: object) -> int:
        if path != folder / "lock" or claims.ident is not None:
            return real(path, *rest, **more)  # type: ignore[arg-type]
        remove(registry.state_directory, folder, named("record.json"), and_folder=True)
        try:
            return real(path, *rest, **more)  # type: ignore[arg-type]
        finally:
            claims.start()
            assert half_claimed.wait(10)

    monkeypatch.setattr(os, "open", after_the_former_was_forgotten)
    if use == "read":
        seen = registry.read("default")
    else:
        seen, record = registry.update("default", lambda seen: replace(seen, requested=5)), replace(record, requested=5)
    claims.join()
    assert seen == record == Registry(registry.state_directory).read("default")
    assert not (registry.directory / "broken").exists()
