"""What a session does to be ready soon: copies of itself for its workers, and a dashboard that comes later."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from types import SimpleNamespace

import pytest
from distributed import Scheduler
from tornado.httpclient import AsyncHTTPClient

from cml_dask_magics.fleet import in_session

pytestmark = pytest.mark.dask
copies = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere each worker starts a Python of its own")

# A session's program in small: it keeps copies of itself, and starts processes as a nanny does.
PROGRAM = """
import multiprocessing, os, sys

from cml_dask_magics.fleet.in_session import keep_spares

def work(connection):
    connection.send((os.getppid(), len(sys.orig_argv), os.environ.get("MORE")))
    sys.exit(connection.recv())

def run(exit_code):
    context = multiprocessing.get_context("spawn")
    ours, its = context.Pipe()
    process = context.Process(target=work, args=(its,))
    process.start()
    its.close()
    parent, arguments, more = ours.recv()
    assert parent == os.getpid()
    ours.send(exit_code)
    process.join()
    assert process.exitcode == exit_code
    return "new" if arguments > 2 else "copy", more

if __name__ == "__main__":
    keep_spares(2)
    children = open(f"/proc/self/task/{os.getpid()}/children").read().split()
    assert len(children) == 2
"""


def done(tmp_path: Path, main: str) -> subprocess.CompletedProcess[str]:
    """A run of a program that begins with `PROGRAM`."""
    program = tmp_path / "program.py"
    program.write_text(PROGRAM + textwrap.indent(textwrap.dedent(main), "    "))
    # As in a session, NumPy starts no threads.
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, str(program)], env=environment, capture_output=True, text=True, timeout=60)


def run(tmp_path: Path, main: str) -> list[str]:
    """What it printed."""
    ended = done(tmp_path, main)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout.splitlines()


@copies
def test_a_copy_is_a_child_like_any_other_and_when_there_is_none_left_python_is_started(tmp_path: Path) -> None:
    assert run(tmp_path, "for exit_code in (0, 3, 4): print(run(exit_code))") == [
        "('copy', None)",
        "('copy', None)",
        "('new', None)",
    ]


@copies
def test_in_another_environment_python_is_started(tmp_path: Path) -> None:
    assert run(tmp_path, "os.environ['MORE'] = 'yes'; print(run(0))") == ["('new', 'yes')"]


@copies
def test_a_copy_that_was_killed_is_not_missed(tmp_path: Path) -> None:
    main = """
    for child in children:
        os.kill(int(child), 9)
    for child in children:
        os.waitid(os.P_PID, int(child), os.WEXITED | os.WNOWAIT)
    print(run(0))
    """
    assert run(tmp_path, main) == ["('new', None)"]


@copies
def test_with_several_threads_there_are_no_copies(tmp_path: Path) -> None:
    main = """
    import threading
    threading.Thread(target=threading.Event().wait, daemon=True).start()
    keep_spares(1)
    now = open(f"/proc/self/task/{os.getpid()}/children").read().split()
    print(now == children)
    """
    assert run(tmp_path, main) == ["True"]


@copies
def test_copies_end_with_their_parent(tmp_path: Path) -> None:
    """However it ends: the copies hold the end of a pipe that closes when all of them have ended."""
    ended = done(tmp_path, "print('ready', flush=True); os.kill(os.getpid(), 9)")
    assert ended.returncode == -9 and ended.stdout == "ready\n" and not ended.stderr


async def pages(after_s: float, wait_s: float, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, str, bytes]]:
    """Status, final address and text of pages that are asked for together, some time after a scheduler's start."""
    monkeypatch.setattr(in_session, "DASHBOARD_AFTER_S", after_s)
    scheduler_class = in_session.scheduler_with_a_late_dashboard(Scheduler, lambda: None)
    async with scheduler_class(
        host="127.0.0.1", port=0, dashboard=True, dashboard_address="127.0.0.1:0", http_prefix=""
    ) as scheduler:
        assert scheduler.id.startswith("Scheduler-")
        await asyncio.sleep(wait_s)
        client = AsyncHTTPClient(force_instance=True)
        root = f"http://127.0.0.1:{scheduler.http_server.port}"
        asked = [client.fetch(root + path, raise_error=False) for path in ("/", "/health", "/individual-plots.json")]
        answers = [
            (each.code, each.effective_url.removeprefix(root), each.body) for each in await asyncio.gather(*asked)
        ]
        client.close()
    return answers


@pytest.mark.parametrize(("after_s", "wait_s"), [(600.0, 0.0), (0.0, 0.0), (0.0, 1.0)])
def test_whoever_asks_gets_the_dashboard_whether_it_is_there_yet_or_not(
    after_s: float, wait_s: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    status, health, plots = asyncio.run(pages(after_s, wait_s, monkeypatch))
    assert status[:2] == (200, "/status") and b"bokeh" in status[2]
    assert health == (200, "/health", b"ok")
    assert plots[0] == 200 and b"individual-task-stream" in plots[2]


def test_who_has_to_wait_is_sent_on_below_the_path_of_a_proxy() -> None:
    async def location(path: str) -> str:
        scheduler_class = in_session.scheduler_with_a_late_dashboard(Scheduler, lambda: None)
        async with scheduler_class(
            host="127.0.0.1", port=0, dashboard=True, dashboard_address="127.0.0.1:0", http_prefix=""
        ) as scheduler:
            page = f"http://127.0.0.1:{scheduler.http_server.port}{path}"
            answer = await AsyncHTTPClient().fetch(page, follow_redirects=False, raise_error=False)
            return str(answer.headers["Location"])

    assert asyncio.run(location("/info/main/workers.html?a=b/c")) == "./workers.html?a=b/c"
    assert asyncio.run(location("/")) == "./"


def test_without_bokeh_dask_s_page_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "distributed.dashboard.scheduler", None)
    status, health, _ = asyncio.run(pages(600.0, 0.0, monkeypatch))
    assert status[:2] == (200, "/status") and b"pip install" in status[2]
    assert health[0] == 200


@pytest.mark.parametrize(
    ("gpus", "visible", "of_each"),
    [
        (4, None, [(1, "0"), (1, "1"), (1, "2"), (1, "3")]),
        (6, None, [(2, "0,4"), (2, "1,5"), (1, "2"), (1, "3")]),
        (4, "GPU-a,GPU-b,GPU-c,GPU-d", [(1, "GPU-a"), (1, "GPU-b"), (1, "GPU-c"), (1, "GPU-d")]),
        (4, "0,1,2,3,4,5,6,7", [(1, "0"), (1, "1"), (1, "2"), (1, "3")]),
        (2, None, [(1, None), (1, None), (None, None), (None, None)]),
    ],
)
def test_four_workers_have_as_many_gpus_together_as_the_session(
    monkeypatch: pytest.MonkeyPatch, gpus: int, visible: str | None, of_each: list[tuple[int | None, str | None]]
) -> None:
    monkeypatch.setattr(in_session, "INHERITED", {"gpu": gpus, "processes": 4}, raising=False)
    if visible is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    dealt = []
    for number in range(4):
        nanny = SimpleNamespace(name=f"ab-12-{number}", env={}, resources=None)
        in_session.dask_setup(nanny)
        dealt.append(((nanny.resources or {}).get("GPU"), nanny.env.get("CUDA_VISIBLE_DEVICES")))
    assert dealt == of_each
