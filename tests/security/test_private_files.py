"""State, run and record files are read only where nobody else can have written them, and everything is private."""

from __future__ import annotations

import json
import os
import shutil
import socket
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

import pytest
from IPython.core.interactiveshell import InteractiveShell
from support.on_record import World
from support.state_folder import private

from cml_dask_magics.fleet.opening import claim
from cml_dask_magics.magics.kernel_clusters import kernel_clusters
from cml_dask_magics.magics.notice import notice
from cml_dask_magics.model.settings import make_settings
from cml_dask_magics.model.times import Times
from cml_dask_magics.platforms.local import LocalSessions
from cml_dask_magics.registry import files
from cml_dask_magics.registry.certificates import read_security
from cml_dask_magics.registry.files import make_folder, open_private, read_private, write_private
from cml_dask_magics.registry.lease import Lease
from cml_dask_magics.registry.registry import Registry, RegistryError
from cml_dask_magics.registry.run_folder import read_tail, scheduler_session, session_logs
from cml_dask_magics.registry.start_times import note_start, usual_start_s

pytestmark = pytest.mark.timeout(120)  # where a file is a pipe, a wait has no end
NOBODY = 65534
root_only = pytest.mark.skipif(os.geteuid() != 0, reason="only root can make folders that belong to another user")


def pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path, 0o600)


def link(path: Path) -> None:
    path.rename(path.with_name("elsewhere"))
    path.symlink_to("elsewhere")


def folder(path: Path) -> None:
    path.unlink()
    path.mkdir(0o700)


def bound(path: Path) -> None:
    path.unlink()
    with socket.socket(socket.AF_UNIX) as server:
        here = Path.cwd()
        os.chdir(path.parent)  # such an address is short
        server.bind(path.name)
        os.chdir(here)


def of_others(path: Path) -> None:
    os.chown(path, NOBODY, NOBODY)


def for_all(path: Path) -> None:
    path.chmod(0o666)


def for_the_group(path: Path) -> None:
    path.chmod(0o660)


def in_a_folder_for_all(path: Path) -> None:
    path.parent.chmod(0o777)


def in_a_folder_of_others(path: Path) -> None:
    os.chown(path.parent, NOBODY, NOBODY)


SPOILING = [pipe, link, folder, bound, for_all, for_the_group, in_a_folder_for_all]
if os.geteuid() == 0:  # only root can make files that belong to another user
    SPOILING += [of_others, in_a_folder_of_others]
spoilt = pytest.mark.parametrize("spoil", SPOILING)


@spoilt
def test_a_file_that_may_be_anothers_is_refused_in_words(tmp_path: Path, spoil: Callable[[Path], None]) -> None:
    path = tmp_path / "ours" / "file.json"
    make_folder(tmp_path, path.parent)
    write_private(path, "{}")
    assert read_private(path) == "{}"
    spoil(path)
    with pytest.raises(OSError) as error:
        open_private(path)
    assert error.value.filename == str(path) and error.value.strerror


@spoilt
def test_a_record_that_may_be_anothers_is_set_aside_and_its_sessions_are_stopped(
    world: World, shell: InteractiveShell, capsys: pytest.CaptureFixture[str], spoil: Callable[[Path], None]
) -> None:
    world.start(), world.start("other")
    spoil(world.record_of())
    shell.run_line_magic("reload_ext", "cml_dask_magics")
    said = capsys.readouterr().out
    assert "default" in said and "other" in said
    shell.run_line_magic("dask_status", "--json")
    shown = {cluster["name"]: cluster for cluster in json.loads(capsys.readouterr().out)["clusters"]}
    assert any("mended" in event["message"] for event in shown["default"]["events"]) and "other" in shown
    if spoil in (in_a_folder_for_all, in_a_folder_of_others):
        os.chown(world.record_of().parent, os.geteuid(), -1)
        world.record_of().parent.chmod(0o700)
    shell.run_line_magic("dask_down", "--all")
    assert not world.ours() and world.registry.names() == []


OF_A_RUN = ("claim.json", "scheduler.json", "scheduler.session", "session.json", "session.py")


@pytest.mark.parametrize(
    ("name", "spoil"),
    [
        *((name, spoil) for name in OF_A_RUN for spoil in SPOILING),
        # The sessions' own logs lie in that folder, too.
        *(("logs/x0.log", spoil) for spoil in SPOILING if spoil not in (in_a_folder_for_all, in_a_folder_of_others)),
    ],
)
def test_a_file_of_a_run_that_may_be_anothers_holds_nothing_up_and_tells_nothing(
    world: World, name: str, spoil: Callable[[Path], None]
) -> None:
    cluster = world.start()
    path = cluster.folder / name
    content = '{"address": "tls://127.0.0.1:1"}' if name == "scheduler.json" else "x0"
    write_private(path, path.read_text() if path.exists() and name != "scheduler.json" else content)
    spoil(path)
    assert "default" in notice()
    found = world.open()
    found.liveness()
    if name == "scheduler.session":
        assert scheduler_session(found.folder) == ""
    if name == "logs/x0.log":
        assert read_tail(path, 5) == [] and "x0" not in session_logs(path.parent)
    os.chown(path.parent, os.geteuid(), -1)
    path.parent.chmod(0o700)
    found.end()
    assert not world.ours() and world.registry.names() == []


@spoilt
@pytest.mark.parametrize("name", ["ca.pem", "cert.pem", "key.pem"])
def test_nothing_connects_with_a_certificate_that_may_be_anothers(
    world: World, name: str, spoil: Callable[[Path], None]
) -> None:
    cluster = world.start()
    assert read_security(cluster.folder, tls=True).tls_ca_file
    spoil(cluster.folder / name)
    with pytest.raises(RuntimeError, match=r"certificate .*\.pem cannot be used") as error:
        read_security(cluster.folder, tls=True)
    assert str(cluster.folder) in str(error.value)
    os.chown(cluster.folder, os.geteuid(), -1)
    cluster.folder.chmod(0o700)
    world.open().end()


@spoilt
def test_a_lease_that_may_be_anothers_is_nobodys(tmp_path: Path, world: World, spoil: Callable[[Path], None]) -> None:
    cluster = world.start()
    lease = Lease(world.registry, "default", cluster.journal.kernel)
    lease.hold()
    path = world.registry.folder("default") / "lease.json"
    spoil(path)
    Lease(world.registry, "default", cluster.journal.kernel).hold()
    path.parent.chmod(0o700), os.chown(path.parent, os.geteuid(), -1)
    if path.is_dir() and not path.is_symlink():
        path.rmdir()
    (path.parent / "elsewhere").unlink(missing_ok=True)
    world.open().end()


@spoilt
def test_start_times_and_sessions_of_this_machine_that_may_be_anothers_count_for_nothing(
    tmp_path: Path, spoil: Callable[[Path], None]
) -> None:
    for place in ("times", "sessions"):
        make_folder(tmp_path, tmp_path / place)
    note_start(tmp_path / "times", "cml", 9.0)
    assert usual_start_s(tmp_path / "times", "cml") == 9
    spoil(tmp_path / "times" / "starts.json")
    assert usual_start_s(tmp_path / "times", "cml") is None
    session = {
        "id": "x",
        "pid": os.getpid(),
        "pid_started": "",
        "created_at": 1.0,
        "cpu": 1,
        "memory": 1,
        "app_url": "",
    }
    write_private(tmp_path / "sessions" / "x.json", json.dumps(session))
    platform = LocalSessions(tmp_path / "sessions")
    assert [each["id"] for each in platform.list_workers()] == ["x"]
    spoil(tmp_path / "sessions" / "x.json")
    assert platform.list_workers() == []


@root_only
def test_a_folder_that_another_user_planted_is_not_written_into(tmp_path: Path) -> None:
    registry = Registry(tmp_path / "state")
    registry.directory.mkdir(parents=True)
    os.chown(registry.directory, NOBODY, NOBODY)
    with pytest.raises(RegistryError, match="belongs to another user"):
        claim(make_settings(state_directory=registry.state_directory, local=True))
    assert list(registry.directory.iterdir()) == []


def test_a_folder_that_others_may_write_is_made_private_when_something_is_put_into_it(world: World) -> None:
    world.registry.directory.mkdir(parents=True)
    world.registry.directory.chmod(0o777)
    world.start()
    assert stat.S_IMODE(world.registry.directory.stat().st_mode) == 0o700
    world.open().end()


def test_a_home_that_the_group_may_write_is_no_hindrance(world: World) -> None:
    world.registry.state_directory.mkdir(parents=True)
    world.registry.state_directory.chmod(0o775)
    world.start()
    assert stat.S_IMODE(world.registry.state_directory.stat().st_mode) == 0o775
    world.open().end()
    assert not world.ours()


def test_where_files_have_other_modes_than_they_are_given_nothing_is_launched(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "why_not_private", lambda _: "other users may write it")
    with pytest.raises(RegistryError, match=r"is not private: other users may write it .*state-directory"):
        claim(make_settings())
    assert world.workspace.count("launch") == 0


# Modes

MADE = """
import sys
from pathlib import Path
from cml_dask_magics.fleet.opening import claim
from cml_dask_magics.model.settings import make_settings
from cml_dask_magics.registry.lease import Lease
from cml_dask_magics.registry.start_times import note_start
cluster = claim(make_settings(local=True))
cluster.launches.launch("scheduler", 1)
cluster.launches.launch("worker", 1)
registry = cluster.journal.registry
Lease(registry, "default", cluster.journal.kernel).hold()
note_start(registry.directory, "local", 1.0)
(registry.folder("default") / "record.json").write_text("garbage")
registry.read("default")
import time
while len(list((cluster.folder / "logs").iterdir())) < 2 or not (cluster.folder / "scheduler.json").stat().st_size:
    time.sleep(0.05)
print(cluster.folder)
"""


@pytest.fixture
def tidy() -> Iterator[list[Path]]:
    """State folders whose clusters are stopped in the end."""
    made: list[Path] = []
    yield made
    for state in made:
        kernel_clusters.down(state, "default")


@pytest.mark.parametrize("umask", [0o000, 0o027, 0o077], ids=oct)
def test_whatever_the_umask_is_all_that_is_made_is_this_users_alone(
    tmp_path: Path, tidy: list[Path], umask: int
) -> None:
    state = tmp_path / "a" / "b" / "state"
    tidy.append(state)
    environment = {**os.environ, "DASK_CML_DASK_MAGICS__STATE_DIRECTORY": str(state)}
    made = subprocess.run(
        [sys.executable, "-c", f"import os; os.umask({umask})\n{MADE}"],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert made.returncode == 0, made.stderr
    names = set()
    for path in (tmp_path / "a", *(tmp_path / "a").rglob("*")):
        names.add(path.name)
        mode = stat.S_IMODE(path.lstat().st_mode)
        assert mode == (0o700 if path.is_dir() else 0o600), f"{path}: {mode:o}"
    for name in ("record.json", "lock", "lease.json", "claim.json", "key.pem", "scheduler.json", "scheduler.session"):
        assert name in names
    for name in ("session.json", "session.py", "starts.json", "broken", "open", "local-sessions", "logs"):
        assert name in names


# As many as there are


@pytest.fixture
def syscalls(monkeypatch: pytest.MonkeyPatch) -> mock.Mock:
    """Counts how often a folder is listed or a file opened."""
    count = mock.Mock()
    for name in ("scandir", "open"):
        real = getattr(os, name)

        def call(*args: object, real: Callable[..., object] = real, **kwargs: object) -> object:
            count(*args)
            return real(*args, **kwargs)

        monkeypatch.setattr(os, name, call)
    return count


def pile_up(registry: Registry, number: int, first: int = 0) -> None:
    """Make the run folders of so many starts that have ended."""
    runs = registry.directory / "runs"
    make_folder(registry.state_directory, runs)
    for each in range(first, first + number):
        (runs / f"default-{each:08x}" / "logs").mkdir(parents=True)
        (runs / f"default-{each:08x}" / ".cml-dask-magics").touch()
        os.utime(runs / f"default-{each:08x}", (1000 + each,) * 2)


def test_stale_run_folders_cost_loading_nothing(world: World, syscalls: mock.Mock) -> None:
    world.start()
    costs = []
    for number in (0, 300, 3000):
        pile_up(world.registry, number, first=number)
        syscalls.reset_mock()
        assert "default" in notice()
        costs.append(syscalls.call_count)
    assert costs[0] == costs[1] == costs[2]
    shutil.rmtree(world.registry.directory / "runs" / "default-00000bb8")
    world.open().end()


def test_stale_run_folders_are_removed_a_few_at_a_time(world: World) -> None:
    def left_by_an_end(prune_s: float) -> int:
        world.registry = Registry(world.registry.state_directory, Times(prune_s=prune_s))
        world.start()
        world.open().end()
        return len(list((world.registry.directory / "runs").iterdir()))

    pile_up(world.registry, 200)
    assert left_by_an_end(0.0) == 201, "there was no time at all"
    assert left_by_an_end(60.0) == 10, "the newest"


def test_loading_writes_nothing(world: World, shell: InteractiveShell) -> None:
    world.start(), world.start("broken"), world.start("deleted")
    write_private(world.record_of("broken"), "garbage")
    shutil.rmtree(world.record_of("deleted").parent)

    def seen() -> dict[str, tuple[int, int]]:
        root = world.registry.state_directory
        found = {str(path): path.lstat() for path in (root, *root.rglob("*"))}
        return {path: (each.st_mtime_ns, each.st_ino) for path, each in found.items()}

    before = seen()
    said = notice()
    shell.run_line_magic("reload_ext", "cml_dask_magics")
    assert all(name in said for name in ("default", "broken", "deleted"))
    assert seen() == before
    shell.run_line_magic("dask_down", "--all")
    assert not world.ours()


def test_a_state_folder_of_a_release_without_marks_is_marked_by_the_next_start(world: World) -> None:
    old = world.start("old")
    shutil.rmtree(private(world.registry.state_directory) / "open")
    shutil.rmtree(world.record_of("old").parent)
    world.start("new")
    assert world.registry.names() == ["new", "old"]
    for name in ("new", "old"):
        world.open(name).end()
    assert not world.ours() and old.folder.is_dir()
