"""The state folder goes wrong: records are broken, the disk is full or cannot be written, there are no locks."""

from __future__ import annotations

import json
import shutil
import sys
import types
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from IPython.core.interactiveshell import InteractiveShell
from support import memory_platform
from support.faulty import Faulty, shell
from support.state_folder import private

from cml_dask_magics import CMLCluster
from cml_dask_magics.fleet.fleet import Fleet
from cml_dask_magics.fleet.opening import claim
from cml_dask_magics.model.settings import make_settings
from cml_dask_magics.model.times import Times

MINE, OTHER = "kernelsession", "othersession"


def truncate(path: Path) -> None:
    path.write_text(path.read_text()[:-20])


def fill_with_garbage(path: Path) -> None:
    path.write_bytes(b"\x00\xff{" * 100)


def make_newer(path: Path) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), "version": 99, "of tomorrow": {}}))


def make_unreadable(path: Path) -> None:
    """A link to itself: nobody can open it, while to root nothing else is forbidden."""
    path.unlink()
    path.symlink_to(path.name)


TIMES = Times(suspects_s=0.5)
BREAKING = {
    "truncated": truncate,
    "garbage": fill_with_garbage,
    "of a newer version": make_newer,
    "unreadable": make_unreadable,
}


@pytest.fixture
def platform(state: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[memory_platform.Workspace]:
    """The platform as a session sees it that has sessions of its own besides; it must never be told to stop those."""
    monkeypatch.setattr(CMLCluster, "times", TIMES)
    workspace = memory_platform.Workspace()
    workspace.first_status = "running"
    others = {workspace.add(MINE), workspace.add(OTHER)}
    monkeypatch.setitem(sys.modules, "cml", types.ModuleType("cml"))
    monkeypatch.setitem(sys.modules, "cml.workers_v1", workspace.caller(MINE))  # type: ignore[misc]
    monkeypatch.setenv("CDSW_ENGINE_ID", MINE)
    monkeypatch.setenv("CDSW_READONLY_PORT", "8090")
    yield workspace
    # The three checks, at the seam.
    assert set(workspace.up()) == others
    stops = [ids for _, call, ids in workspace.calls if call == "stop"]
    assert all(stops) and not [ids for ids in stops if others & set(ids)]
    assert not list(private(state).glob("clusters/*")) and len(list(private(state).glob("broken/*"))) == 1


def cluster_of_another_kernel(name: str) -> Fleet:
    """A cluster on record, as a kernel that is gone has left it: its sessions run and print, nothing answers."""
    cluster = claim(make_settings(name=name), times=TIMES)
    cluster.launches.launch("scheduler", 1)
    cluster.launches.launch("worker", 2)
    cluster.journal.update(lambda record: replace(record, state="running", scheduler_address="tls://127.0.0.1:1"))
    for session in cluster.record.sessions:
        (cluster.folder / "logs" / f"{session.id}.log").write_text("hello\n")
    return cluster


@pytest.mark.parametrize("breaking", BREAKING)
def test_a_record(
    platform: memory_platform.Workspace,
    state: Path,
    shell: InteractiveShell,
    capsys: pytest.CaptureFixture[str],
    breaking: str,
) -> None:
    """It is set aside and named; its sessions can still be stopped, and other clusters are none the worse."""
    broken, other = cluster_of_another_kernel("broken"), cluster_of_another_kernel("other")
    path = private(state) / "clusters" / "broken" / "record.json"
    BREAKING[breaking](path)
    capsys.readouterr()

    shell.run_line_magic("reload_ext", "cml_dask_magics")
    said = capsys.readouterr().out
    assert "broken" in said and "other" in said and "cannot tell" not in said

    shell.run_line_magic("dask_status", "--json")
    shown = {cluster["name"]: cluster for cluster in json.loads(capsys.readouterr().out)["clusters"]}
    assert sorted(shown) == ["broken", "other"]
    assert len(shown["broken"]["workers"]) + (shown["broken"]["scheduler"] is not None) == 3
    (aside,) = (private(state) / "broken").iterdir()
    assert any(str(aside) in event["message"] for event in shown["broken"]["events"])

    shell.run_line_magic("dask_down", "other")
    assert "Stopped cluster 'other': 3 sessions" in capsys.readouterr().out
    assert {session.id for session in broken.record.sessions} < set(platform.up())
    assert not {session.id for session in other.record.sessions} & set(platform.up())
    shell.run_line_magic("dask_down", "broken")
    assert "Stopped cluster 'broken': 3 sessions" in capsys.readouterr().out


def record_of(notebook: Faulty, name: str = "default") -> Path:
    return private(notebook.state) / "clusters" / name / "record.json"


@pytest.mark.long
@pytest.mark.workspace
def test_a_record_truncated_beside_a_cluster_that_works(notebook: Faulty) -> None:
    """After a restart both clusters are named, and work on with the sessions that they had."""
    notebook.run("%dask_up 1 --name other\n%dask_up 1")
    before = set(notebook.living())
    notebook.kernel.shutdown()
    truncate(record_of(notebook))
    said = notebook.new_kernel()
    assert "still running: default, other" in said
    notebook.run("%dask_up --name other")
    notebook.compute()
    notebook.run("%dask_up")
    notebook.compute()
    assert set(notebook.living()) == before
    assert notebook.run("%dask_down --all").count("2 sessions") == 2
    notebook.set_aside = 1


@pytest.mark.long
@pytest.mark.workspace
def test_a_record_deleted_while_running(notebook: Faulty) -> None:
    """The kernel that holds the cluster works on, and writes the record anew."""
    notebook.run("%dask_up 1")
    before = set(notebook.living())
    record_of(notebook).unlink()
    shown = notebook.status()
    assert shown["state"] == "running" and len(shown["workers"]) == 1
    notebook.run("%dask_up 2")
    notebook.compute()
    assert before < set(notebook.living()) and len(notebook.living()) == 3
    assert "Stopped cluster 'default': 3 sessions" in notebook.run("%dask_down")


@pytest.mark.long
@pytest.mark.workspace
@pytest.mark.parametrize("then", ["%dask_down", "%dask_up"])
def test_a_record_deleted_and_the_kernel_killed(notebook: Faulty, then: str) -> None:
    """The next kernel finds the cluster by what its sessions print."""
    notebook.run("%dask_up 1")
    before = set(notebook.living())
    notebook.kernel.kill()
    shutil.rmtree(record_of(notebook).parent)
    assert "default" in notebook.new_kernel()
    notebook.run(then)
    if then == "%dask_up":
        notebook.compute()
        assert set(notebook.living()) == before
        notebook.run("%dask_down")
    assert not notebook.living()


# IPython's history, which complains between the lines, is not what this is about.
FULL_DISK = """
import resource
get_ipython().history_manager.enabled = False
resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
"""
ROOM_AGAIN = "resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))"


@pytest.mark.long
@pytest.mark.workspace
def test_full_disk_before_a_start(notebook: Faulty) -> None:
    """An error that names the folder; nothing is launched."""
    notebook.run(FULL_DISK)
    said = notebook.fail("%dask_up 2")
    assert str(notebook.state) in said and "\n" not in said and not notebook.launched()
    notebook.run(ROOM_AGAIN)


@pytest.mark.long
@pytest.mark.workspace
def test_full_disk_while_running(notebook: Faulty) -> None:
    """The cluster works, is shown and can be stopped; it cannot grow, and an error says why."""
    notebook.run("%dask_up 1")
    notebook.run(FULL_DISK)
    notebook.compute()
    assert notebook.status()["state"] == "running"
    said = notebook.fail("%dask_up 3")
    assert str(notebook.state) in said and len(notebook.living()) == 2
    notebook.compute()
    assert "Stopped cluster 'default': 2 sessions" in notebook.run("%dask_down")


def make_read_only(notebook: Faulty) -> None:
    """Nobody in the notebook's session can write into the state folder."""
    if notebook.workspace.isolation == "namespaces":
        shell(notebook.session, "mount", "--bind", str(notebook.state), str(notebook.state))
        shell(notebook.session, "mount", "-o", "remount,bind,ro", str(notebook.state))
    else:
        shell(notebook.session, "chmod", "-R", "a-w", str(notebook.state))


def make_writable(notebook: Faulty) -> None:
    if notebook.workspace.isolation == "namespaces":
        shell(notebook.session, "umount", str(notebook.state))
    else:
        shell(notebook.session, "chmod", "-R", "u+w", str(notebook.state))


@pytest.mark.workspace
def test_read_only_before_a_start(notebook: Faulty) -> None:
    """An error that names the folder; nothing is launched."""
    notebook.state.mkdir(parents=True)
    make_read_only(notebook)
    said = notebook.fail("%dask_up 2")
    assert str(notebook.state) in said and "\n" not in said and not notebook.launched()


@pytest.mark.long
@pytest.mark.workspace
def test_read_only_while_running(notebook: Faulty) -> None:
    """The cluster works, is shown and is stopped; an error says that its record could not be removed."""
    notebook.run("%dask_up 1")
    make_read_only(notebook)
    notebook.compute()
    assert notebook.status()["state"] == "running"
    said = notebook.fail("%dask_down")
    assert str(notebook.state) in said and "state-directory" in said and "has been stopped" in said
    assert not notebook.living()
    make_writable(notebook)
    notebook.run("%dask_down")


@pytest.mark.long
@pytest.mark.workspace
def test_a_file_that_goes_on_missing(notebook: Faulty) -> None:
    """Nothing: what a kernel asked for too early is removed all the same when its cluster ends."""
    run = private(notebook.state) / "runs" / "default-0000aaaa"
    notebook.run(f"from pathlib import Path\nrun = Path({str(run)!r})\n(run / 'logs').mkdir(parents=True)")
    notebook.run("assert not (run / 'scheduler.json').exists()")
    (run / "scheduler.json").write_text("")
    notebook.run("assert not (run / 'scheduler.json').exists()")
    notebook.run("from cml_dask_magics.registry.run_folder import close_run\nclose_run(run.parents[2], run)")


NO_LOCKS = """
import errno, fcntl
def flock(*_):
    raise OSError(errno.ENOLCK, "No locks available")
fcntl.flock = flock
"""


@pytest.mark.long
@pytest.mark.workspace
def test_no_locks(notebook: Faulty) -> None:
    """Nothing: records are kept whole by renaming, and what one kernel did not write down another finds."""
    other = notebook.kernel_beside()
    notebook.run(NO_LOCKS)
    assert other.run(NO_LOCKS).error is None
    notebook.run("%dask_up 1")
    assert other.run("%dask_up").error is None
    first, second = notebook.kernel.run_nowait("%dask_up 3"), other.run_nowait("%dask_status --json")
    first, second = notebook.kernel.wait(first, 90), other.wait(second, 90)
    assert first.error is None and second.error is None, (first.error, second.error)
    notebook.compute()
    other.shutdown()
    assert "4 sessions" in notebook.run("%dask_down")
