"""What Dask writes to disk is in a folder that nobody could have prepared, and that goes with its session."""

from __future__ import annotations

import fcntl
import os
import signal
import stat
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import dask
import psutil
import pytest
from contract.patience import eventually
from support.state_folder import local_sessions

from cml_dask_magics import CMLCluster
from cml_dask_magics.fleet import session_keeper
from cml_dask_magics.fleet.session_keeper import MARK, SCRATCH, clear_leftovers, make_scratch

pytestmark = pytest.mark.dask


@pytest.fixture
def disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where temporary files of this machine are."""
    folder = tmp_path / "disk"
    folder.mkdir(mode=0o777)
    folder.chmod(0o1777)
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr(tempfile, "tempdir", None)
    return folder


def spilled_to(cluster: CMLCluster) -> Path:
    """The folder of the one worker."""
    with cluster.get_client() as client:
        (folder,) = client.run(lambda dask_worker: dask_worker.local_directory).values()
    return Path(folder)


def session_of(state: Path, cluster: CMLCluster) -> psutil.Process:
    """The process of the one worker's session."""
    (identity,) = cluster.plan
    (session,) = (each for each in local_sessions(state)._sessions() if each.id == identity)
    process = session.process()
    assert process is not None
    return process


def test_what_others_prepared_is_not_used_and_nothing_is_left(state: Path, disk: Path) -> None:
    prepared = disk / "dask-scratch-space"  # by another user of the machine, for whoever comes
    prepared.mkdir(mode=0o777)
    prepared.chmod(0o777)
    with CMLCluster(n_workers=1, local=True) as cluster:
        folder = spilled_to(cluster)
        own = disk / folder.relative_to(disk).parts[0]
        assert own.name.startswith(SCRATCH)
        for each in (own, *own.rglob("*")):
            about = each.lstat()
            assert about.st_uid == os.getuid() and not stat.S_ISLNK(about.st_mode)
        assert stat.S_IMODE(own.stat().st_mode) == 0o700
        assert len(list(disk.glob(f"{SCRATCH}*"))) == 2  # the scheduler has one, too
        log = next(state.glob(f"**/logs/{next(iter(cluster.plan))}.log")).read_text()
        assert f"Scratch space of this session: {own}, with " in log
    assert list(disk.iterdir()) == [prepared] and not list(prepared.iterdir())


def test_it_goes_when_dasks_process_is_killed(state: Path, disk: Path) -> None:
    with CMLCluster(n_workers=1, local=True) as cluster:
        own = disk / spilled_to(cluster).relative_to(disk).parts[0]
        session_of(state, cluster).kill()
        eventually(lambda: not own.exists())


@pytest.mark.long
def test_what_a_session_left_that_was_killed_whole_goes_with_the_next_start(
    state: Path, disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with CMLCluster(n_workers=1, local=True) as cluster:
        left = disk / spilled_to(cluster).relative_to(disk).parts[0]
        process = session_of(state, cluster)
        members = [process, *process.children(recursive=True)]
        for member in members:
            member.send_signal(signal.SIGSTOP)
        for member in members:
            member.kill()
        psutil.wait_procs(members, timeout=10)
        assert left.is_dir()
        long_ago = time.time() - 3600
        for folder in disk.glob(f"{SCRATCH}*"):
            os.utime(folder, (long_ago, long_ago))
        with CMLCluster(n_workers=0, local=True):
            eventually(lambda: not left.exists())
        assert len(list(disk.glob(f"{SCRATCH}*"))) >= 1  # that of the first cluster's scheduler, which lives


def test_only_what_we_made_and_nobody_uses_is_cleared(disk: Path, tmp_path: Path) -> None:
    users = tmp_path / "users"
    users.mkdir()
    (users / "thesis.txt").write_text("the user's")

    here = os.uname().nodename

    def old(name: str, mark: bool = True, mode: int = 0o700, machine: str = here) -> Path:
        folder = disk / f"{SCRATCH}{name}"
        folder.mkdir()
        if mark:
            (folder / MARK).write_text(machine)
        (folder / "in it").symlink_to(users)
        folder.chmod(mode)
        os.utime(folder, (0, 0))
        return folder

    leftover, unmarked, shared = old("leftover"), old("unmarked", mark=False), old("shared", mode=0o777)
    others, nobodys = old("others", machine=f"{here}-2"), old("nobodys", machine="")
    linked = disk / f"{SCRATCH}linked"
    linked.symlink_to(users)
    used, lock = make_scratch(None, 0)
    os.utime(used, (0, 0))
    fresh = disk / f"{SCRATCH}fresh"  # made, but not locked yet
    fresh.mkdir(mode=0o700)
    (fresh / MARK).write_text(here)
    clear_leftovers(disk)
    assert not leftover.exists()
    assert {unmarked, shared, others, nobodys, linked, Path(used), fresh} == set(disk.iterdir())
    assert (users / "thesis.txt").read_text() == "the user's"
    os.close(lock)
    clear_leftovers(disk)
    assert not Path(used).exists()


def test_another_machines_is_left_where_locks_do_not_reach_over_machines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    folder, lock = make_scratch(str(home), 0)
    os.close(lock)  # as it looks from elsewhere on a mount with `nolock`
    os.utime(folder, (0, 0))
    assert stat.S_IMODE(Path(folder).stat().st_mode) == 0o700
    with monkeypatch.context() as patch:
        patch.setattr(session_keeper, "_this_machine", lambda: b"another-host")
        clear_leftovers(home)
        assert Path(folder).is_dir()
    clear_leftovers(home)
    assert not Path(folder).exists()


def test_its_room_is_told_and_said_to_be_small(disk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, lock = make_scratch(None, needed_bytes=0)
    assert capsys.readouterr().out.startswith(f"Scratch space of this session: {folder}, with ")
    os.close(lock)
    _, lock = make_scratch(None, needed_bytes=2**70)
    assert "may find no room" in capsys.readouterr().out
    os.close(lock)


def test_the_users_own_choice_is_where_it_is(state: Path, disk: Path, tmp_path: Path) -> None:
    with dask.config.set({"temporary-directory": str(tmp_path / "mine" / "scratch")}):
        with CMLCluster(n_workers=1, local=True) as cluster:
            assert spilled_to(cluster).is_relative_to(tmp_path / "mine" / "scratch")
        with CMLCluster(n_workers=1, local=True, env={"DASK_TEMPORARY_DIRECTORY": str(tmp_path / "env")}) as cluster:
            assert spilled_to(cluster).is_relative_to(tmp_path / "env")
    assert not list(disk.iterdir()) and not list((tmp_path / "mine" / "scratch").iterdir())


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_it_is_on_a_disk_and_neither_in_memory_nor_in_the_shared_home(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mounts = tmp_path / "mountinfo"
    line = "1 0 0:1 / {} rw - {} none rw\n"
    home, fast, disk = (tmp_path / name for name in ("home", "fast", "disk"))
    mounts.write_text(line.format("/", "overlay") + line.format(home, "nfs4") + line.format(fast, "tmpfs"))
    for folder in (home, fast, disk):
        folder.mkdir()
    monkeypatch.setattr(session_keeper, "MOUNTS", str(mounts))
    assert [session_keeper.is_on_a_disk(str(folder)) for folder in (home, fast, disk)] == [False, False, True]
    monkeypatch.setenv("TMPDIR", str(home))
    monkeypatch.setattr(tempfile, "tempdir", None)
    folder, lock = make_scratch(None, 0)
    os.close(lock)
    assert Path(folder).parent == Path("/tmp")
    Path(folder, MARK).unlink()
    Path(folder).rmdir()


def test_its_lock_ends_with_the_last_process_that_has_it(disk: Path) -> None:
    folder, lock = make_scratch(None, 0)
    holder = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, pass_fds=(lock,))
    os.close(lock)
    probe = os.open(folder, os.O_RDONLY)
    with pytest.raises(BlockingIOError):
        fcntl.flock(probe, fcntl.LOCK_EX | fcntl.LOCK_NB)
    holder.communicate(b"\n")
    fcntl.flock(probe, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.close(probe)
