"""The platform's four calls over processes of this machine: as real sessions are, and never somebody else's process."""

import errno
import json
import os
import signal
import socket
import subprocess
import sys
import time

import psutil
import pytest
from distributed import Client
from support.state_folder import another_machine

from cml_dask_magics.platforms import local
from cml_dask_magics.platforms.api import Platform
from cml_dask_magics.platforms.local import LocalSessions
from cml_dask_magics.platforms.pool import SessionPool


@pytest.fixture
def api(tmp_path):
    api = LocalSessions(tmp_path / "local-sessions", grace_s=0.3)
    yield api
    if api.directory.is_dir():
        api.stop_workers(*[session["id"] for session in api.list_workers()])


def launch(api, code, n=1, **fields):
    return api.launch_workers(n, cpu=1, memory=2, code=code, **fields)


def status(api, session):
    return next(each["status"] for each in api.list_workers() if each["id"] == session["id"])


def until(true, timeout_s=60):
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if value := true():
            return value
        time.sleep(0.02)
    raise AssertionError("it did not come to that")


def record(api, session):
    return json.loads((api.directory / f"{session['id']}.json").read_text())


def alive(pid):
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def read_pid(path):
    return int(until(lambda: path.exists() and path.read_text().strip()))


def test_a_session_looks_as_the_platforms_does(api):
    launched = launch(api, "!sleep 60", n=3)
    assert len({session["id"] for session in launched}) == 3
    for session in api.list_workers():
        assert len(session["id"]) == 16
        assert session["id"].isalnum()
        assert (session["status"], session["ip_address"]) == ("running", "127.0.0.1")
        assert (session["cpu"], session["memory"], session["finished_at"]) == (1, 2, None)
        assert session["app_url"].startswith("http://127.0.0.1:")
        assert session["created_at"].endswith("Z")


def test_a_session_has_the_platforms_environment_and_ours_cannot_displace_its_id(api, tmp_path, monkeypatch):
    monkeypatch.setenv("CDSW_ENGINE_ID", "kernelsession")
    out = tmp_path / "env.txt"
    env = {"OUT": str(out), "A": "it's $HOME {x}", "CDSW_ENGINE_ID": "forged", "CDSW_READONLY_PORT": "8123"}
    (session,) = launch(api, '!env -0 > "$OUT.part" && mv "$OUT.part" "$OUT"', env=env)
    until(out.exists)
    seen = dict(pair.split("=", 1) for pair in out.read_text().split("\0") if pair)
    assert seen["CDSW_ENGINE_ID"] == session["id"]
    assert seen["CDSW_MASTER_ID"] == "kernelsession"
    assert seen["CDSW_IP_ADDRESS"] == "127.0.0.1"
    assert seen["A"] == "it's $HOME {x}"
    assert seen["CDSW_READONLY_PORT"] == "8123"
    assert session["app_url"] == "http://127.0.0.1:8123/"
    assert all(seen[name] for name in ("CDSW_DOMAIN", "CDSW_PROJECT_ID", "CDSW_APP_PORT", "CDSW_PUBLIC_PORT"))


def test_a_session_whose_command_is_over_has_succeeded_whatever_came_of_it(api):
    launched = [*launch(api, "!exit 3"), *launch(api, "!no-such-command-here")]
    for session in launched:
        until(lambda session=session: status(api, session) == "succeeded")
    (shown, _) = api.list_workers()
    assert shown["finished_at"]
    assert shown["finished_at"] == api.list_workers()[0]["finished_at"]


def test_code_without_an_exclamation_mark_is_python_in_ipython(api, tmp_path):
    code = (
        "import os\nfrom IPython import get_ipython\nopen(os.environ['OUT'], 'w').write(type(get_ipython()).__name__)"
    )
    launch(api, code, env={"OUT": str(tmp_path / "out"), "HOME": str(tmp_path)})
    assert "Shell" in until(lambda: (tmp_path / "out").exists() and (tmp_path / "out").read_text())


def test_a_script_runs_as_well(api, tmp_path):
    (tmp_path / "script.py").write_text("import os; open(os.environ['OUT'], 'w').write('ran')")
    api.launch_workers(
        1,
        cpu=1,
        memory=2,
        script=str(tmp_path / "script.py"),
        env={"OUT": str(tmp_path / "out"), "HOME": str(tmp_path)},
    )
    assert until(lambda: (tmp_path / "out").exists() and (tmp_path / "out").read_text()) == "ran"


KERNEL = """
import sys, time
from pathlib import Path
from cml_dask_magics.platforms.local import LocalSessions
(session,) = LocalSessions(Path(sys.argv[1])).launch_workers(1, cpu=1, memory=2, code="!sleep 60")
print(session["id"], flush=True)
time.sleep(60)
"""


def test_a_session_survives_the_kernel_and_a_later_one_finds_and_stops_it(api):
    kernel = subprocess.Popen([sys.executable, "-c", KERNEL, str(api.directory)], stdout=subprocess.PIPE, text=True)
    session = {"id": kernel.stdout.readline().strip()}
    kernel.kill()
    kernel.wait()
    kernel.stdout.close()
    time.sleep(0.3)
    assert status(api, session) == "running"
    pid = record(api, session)["pid"]
    assert alive(pid)
    assert [answer.status_code for answer in api.stop_workers(session["id"])] == [204]
    assert not alive(pid)
    assert status(api, session) == "stopped"


def test_a_ctrl_c_in_the_terminal_does_not_reach_a_session(api):
    (session,) = launch(api, "!sleep 60")
    pid = record(api, session)["pid"]
    assert os.getsid(pid) != os.getsid(0)
    assert os.getpgid(pid) != os.getpgid(0)


@pytest.mark.parametrize("started", ["", "0:1", "another-boot:12345"])
def test_a_process_id_in_use_again_is_never_taken_for_ours(api, started):
    foreign = subprocess.Popen(["sleep", "60"])
    try:
        (session,) = launch(api, "!exit 0")
        until(lambda: status(api, session) == "succeeded")
        forged = {**record(api, session), "pid": foreign.pid, "pid_started": started, "finished_at": None}
        (api.directory / f"{session['id']}.json").write_text(json.dumps(forged))
        assert status(api, session) == "succeeded"
        api.stop_workers(session["id"])
        assert foreign.poll() is None
    finally:
        foreign.kill()
        foreign.wait()


GRANDCHILDREN = {
    "plain": 'sleep 60 & echo $! > "$OUT"; sleep 60',
    "ignores SIGTERM": 'sh -c \'trap "" TERM; echo $$ > "$OUT"; while :; do sleep 0.1; done\' & sleep 60',
    "in a session of its own": "setsid sh -c 'echo $$ > \"$OUT\"; sleep 60; true' & sleep 60",
    "orphaned": "(sh -c 'echo $$ > \"$OUT\"; sleep 60; true' &) ; sleep 60",
}


@pytest.mark.parametrize("code", GRANDCHILDREN.values(), ids=GRANDCHILDREN.keys())
def test_a_session_is_stopped_with_everything_that_it_started(api, tmp_path, code):
    (session,) = launch(api, f"!{code}", env={"OUT": str(tmp_path / "pid")})
    grandchild, pid = read_pid(tmp_path / "pid"), record(api, session)["pid"]
    assert alive(grandchild)
    api.stop_workers(session["id"])
    assert not alive(grandchild)
    assert not alive(pid)


def test_a_session_that_ended_by_itself_leaves_nothing_running(api, tmp_path):
    # A pod that ends takes everything in it along; nobody asks to stop a session that has ended.
    (session,) = launch(api, '!sleep 60 & echo $! > "$OUT"', env={"OUT": str(tmp_path / "pid")})
    grandchild = read_pid(tmp_path / "pid")
    until(lambda: status(api, session) == "succeeded")
    try:
        SessionPool(Platform("local", api)).stop([session["id"]], visible=[session["id"]], timeout_s=3)
        assert not alive(grandchild)
    finally:
        api.stop_workers(session["id"])


def test_no_zombie_is_left_of_a_session(api):
    pids = [record(api, session)["pid"] for session in [*launch(api, "!exit 0"), *launch(api, "!sleep 60", n=2)]]
    api.stop_workers(*[session["id"] for session in api.list_workers()])
    until(lambda: not any(psutil.pid_exists(pid) for pid in pids))


def test_other_sessions_go_on_when_one_is_stopped(api):
    one, two = launch(api, "!sleep 60", n=2)
    api.stop_workers(one["id"])
    assert (status(api, one), status(api, two)) == ("stopped", "running")
    assert alive(record(api, two)["pid"])


def test_stopping_without_ids_stops_nothing_here(api):
    (session,) = launch(api, "!sleep 60")
    assert api.stop_workers() == []
    assert status(api, session) == "running"


def test_an_unknown_session_is_a_404_and_the_others_are_stopped(api):
    (session,) = launch(api, "!sleep 60")
    answers = api.stop_workers("nobody", session, session["id"])
    assert [answer.status_code for answer in answers] == [404, 204, 204]
    assert status(api, session) == "stopped"
    assert [answer.status_code for answer in api.stop_workers(session["id"])] == [204]


def test_awaiting_tells_who_runs_and_who_has_ended(api):
    short, long = launch(api, "!exit 0")[0], launch(api, "!sleep 60")[0]
    until(lambda: status(api, short) == "succeeded")
    waited = api.await_workers([short, long["id"]], wait_for_completion=False, timeout_seconds=5)
    assert {session["id"] for session in waited["workers"]} == {short["id"], long["id"]}
    waited = api.await_workers([short, long], timeout_seconds=0.3)
    assert [session["id"] for session in waited["workers"]] == [short["id"]]
    assert [session["id"] for session in waited["failures"]] == [long["id"]]


@pytest.mark.dask
def test_what_people_wrote_against_the_platform_runs_here_too(api):
    """Cloudera's example: launch the scheduler, await it, look up its address, launch the workers, await them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    (scheduler,) = api.launch_workers(n=1, cpu=1, memory=2, code=f"!dask scheduler --port {port} --no-dashboard")
    waited = api.await_workers([scheduler], wait_for_completion=False, timeout_seconds=90)
    assert not waited["failures"]
    (ip_address,) = [each["ip_address"] for each in api.list_workers() if each["id"] == scheduler["id"]]
    workers = api.launch_workers(n=2, cpu=1, memory=2, code=f"!dask worker tcp://{ip_address}:{port} --no-dashboard")
    assert not api.await_workers(workers, wait_for_completion=False, timeout_seconds=90)["failures"]
    with Client(f"tcp://{ip_address}:{port}", timeout=60) as client:
        client.wait_for_workers(2, timeout=60)
        assert sum(client.gather(client.map(lambda i: i * i, range(10)))) == 285
    answers = api.stop_workers(scheduler, *workers)
    assert [answer.status_code for answer in answers] == [204, 204, 204]
    assert {status(api, each) for each in (scheduler, *workers)} == {"stopped"}


def test_a_process_that_cannot_be_started_is_a_refusal_and_the_others_keep_their_ids(api):
    (refused,) = launch(api, "!sleep 60", env={"LONG": "x" * 10**7})
    assert "id" not in refused
    assert "Argument list too long" in refused["message"]
    assert api.list_workers() == []
    assert list(api.directory.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_a_refusal_too(tmp_path):
    (tmp_path / "file").touch()
    (refused,) = launch(LocalSessions(tmp_path / "file" / "local-sessions"), "!sleep 60")
    assert "id" not in refused
    assert refused["message"]


def test_a_session_that_cannot_be_remembered_does_not_run_on(api, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(local, "write_private", full)
    (refused,) = launch(api, '!echo $$ > "$OUT"; sleep 60', env={"OUT": str(tmp_path / "pid")})
    assert "No space left" in refused["message"]
    time.sleep(0.2)
    assert not (tmp_path / "pid").exists() or not alive(read_pid(tmp_path / "pid"))


@pytest.mark.parametrize("content", ["", "{", "[]", "5", '{"id": "x"}'])
def test_a_file_that_is_no_session_is_passed_over(api, content):
    (session,) = launch(api, "!sleep 60")
    (api.directory / "broken.json").write_text(content)
    assert [each["id"] for each in api.list_workers()] == [session["id"]]


def test_ended_sessions_are_forgotten_after_an_hour_and_running_ones_never(api):
    over, running = launch(api, "!exit 0")[0], launch(api, "!sleep 60")[0]
    until(lambda: status(api, over) == "succeeded")
    for session, changes in ((over, {"finished_at": time.time() - 4000}), (running, {"created_at": 1.0})):
        (api.directory / f"{session['id']}.json").write_text(json.dumps({**record(api, session), **changes}))
    (third,) = launch(api, "!sleep 60")
    assert {session["id"] for session in api.list_workers()} == {running["id"], third["id"]}
    assert not (api.directory / f"{over['id']}.out").exists()


def test_another_machines_session_is_as_its_file_says_and_left_alone(api):
    (session,) = launch(api, "!sleep 60")
    pid, before = record(api, session)["pid"], record(api, session)
    assert before["host"] == socket.gethostname()
    with another_machine():
        assert status(api, session) == "running"
        (answer,) = api.stop_workers(session["id"])
        assert (answer.status_code, answer.text) == (409, f"it is a process of machine {before['host']}")
        assert alive(pid)
    os.kill(pid, signal.SIGKILL)
    until(lambda: not alive(pid))
    with another_machine():
        (own,) = launch(api, "!exit 0")
        assert status(api, session) == "running" and record(api, session) == before
        until(lambda: status(api, own) == "succeeded")
    assert status(api, session) == "succeeded"
    with another_machine():
        assert status(api, session) == "succeeded"
        assert [answer.status_code for answer in api.stop_workers(session["id"])] == [204]


def test_a_session_on_file_without_a_machine_is_this_ones(api):
    (session,) = launch(api, "!sleep 60")
    older = record(api, session)
    del older["host"]
    (api.directory / f"{session['id']}.json").write_text(json.dumps(older))
    assert status(api, session) == "running"
    assert [answer.status_code for answer in api.stop_workers(session["id"])] == [204]
    assert status(api, session) == "stopped"


def test_what_sessions_leave_on_disk_is_private(api):
    launch(api, "!echo hello")
    assert api.directory.stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in api.directory.iterdir()} == {0o600}


def test_a_session_killed_from_outside_is_seen_to_be_over(api):
    (session,) = launch(api, "!sleep 60")
    os.kill(record(api, session)["pid"], signal.SIGKILL)
    until(lambda: status(api, session) == "succeeded")


@pytest.mark.parametrize("call", ["list_workers", "stop_workers"])
def test_files_that_cannot_be_read_for_a_while_are_no_sessions_that_ended(api, monkeypatch, call):
    launch(api, "!sleep 60")
    with monkeypatch.context() as patch:

        def stale(_):
            raise OSError(errno.ESTALE, "Stale file handle")

        patch.setattr(local, "listed", stale)
        with pytest.raises(OSError, match="Stale"):
            getattr(api, call)()
    assert [session["status"] for session in api.list_workers()] == ["running"]
