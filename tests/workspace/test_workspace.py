"""The simulated workspace is as mean as the platform: each test is named after what would be lost if it were kinder."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from workspace import FAULTS, Limits, NetworkError, Session, Workspace, remove_leftovers
from workspace.asking import SLEEP, Notebook, finished, running
from workspace.control import ControlError
from workspace.memory import workspaces_with_groups
from workspace.network import namespaces
from workspace.processes import lives

# What they look at changes seldom; whoever changes it runs them by name.
pytestmark = [pytest.mark.long, pytest.mark.workspace]


@pytest.fixture(scope="module")
def shared() -> Iterator[Workspace]:
    with Workspace(start_delay_s=0.1, address_delay_s=0.05, nfs_negative_s=2.0, stop_grace_s=1.0) as workspace:
        yield workspace


@pytest.fixture(scope="module")
def shared_notebook(shared: Workspace) -> Notebook:
    return Notebook(shared.open_session())


@pytest.fixture
def workspace(shared: Workspace) -> Iterator[Workspace]:
    """The shared workspace; afterwards without faults, limits and launched sessions."""
    yield shared
    shared.clear_faults()
    shared.configure(
        start_delay_s=0.1, quota=Limits(), capacity=Limits(), bare_list=False, app_url_slash=True, stop_grace_s=1.0
    )
    for session in shared.alive(foreign=True):
        shared.end_session(session)
    shared.wait_until(lambda: not shared.alive(foreign=True))


@pytest.fixture
def notebook(workspace: Workspace, shared_notebook: Notebook) -> Notebook:
    assert workspace is shared_notebook.session.workspace
    return shared_notebook


# -- launch -----------------------------------------------------------------------------------------------------------


def test_an_address_could_be_read_before_the_session_runs(workspace: Workspace, notebook: Notebook) -> None:
    workspace.configure(start_delay_s=0.6, address_delay_s=0.4)
    (launched,) = notebook.launch()
    assert launched.get("ip_address", "unknown") == "unknown"
    assert launched["status"] in ("scheduling", "starting")
    seen = [launched]

    def known() -> bool:
        seen.append(notebook.listed()[launched["id"]])
        return bool(seen[-1].get("ip_address", "unknown") != "unknown")

    workspace.wait_until(known)
    workspace.configure(address_delay_s=0.05)
    assert ("running", "unknown") in [(one["status"], one.get("ip_address")) for one in seen]
    assert seen[-1]["ip_address"] == workspace.session(launched["id"]).address
    assert seen[-1]["app_url"] == f"https://{launched['id']}.ml-sim.example.site/"
    workspace.configure(app_url_slash=False)
    assert not notebook.listed()[launched["id"]]["app_url"].endswith("/")


def test_launched_sessions_could_be_told_apart_by_their_order(workspace: Workspace, notebook: Notebook) -> None:
    orders = []
    for _ in range(3):
        ids = [one["id"] for one in notebook.launch(6)]
        created = sorted(ids, key=lambda one: workspace.session(one).created_at)
        orders.append(ids == created)
        workspace.configure(start_delay_s=60)
    assert not all(orders)
    assert len(workspace.alive()) == 18


def test_sessions_of_one_call_could_start_together(workspace: Workspace, notebook: Notebook) -> None:
    workspace.configure(start_delay_s=1.0, start_jitter=0.5)
    ids = [one["id"] for one in notebook.launch(4, code="pass")]
    for session in ids:
        finished(workspace, session)
    workspace.configure(start_jitter=0.2)
    waits = [truth.running_at - truth.created_at for truth in map(workspace.session, ids) if truth.running_at]
    assert len(waits) == 4
    assert max(waits) - min(waits) > 0.05


def test_a_refused_launch_could_raise(workspace: Workspace, notebook: Notebook) -> None:
    workspace.fault("launch_refused", times=2, message="bad profile")
    answers = notebook.launch(3)
    refused = [one for one in answers if "id" not in one]
    assert refused == [{"message": "bad profile"}] * 2
    assert len(workspace.alive()) == 1


def test_a_refused_launch_could_leave_nothing_behind(workspace: Workspace, notebook: Notebook) -> None:
    workspace.fault("launch_refused_after_creation", times=1)
    (answer,) = notebook.launch()
    assert "id" not in answer
    assert answer["message"]
    assert workspace.alive() == [answer["engineId"]]


@pytest.mark.parametrize(
    ("fault", "error", "created"),
    [
        ("launch_html", "JSONDecodeError", 1),
        ("launch_html_after_creation", "JSONDecodeError", 2),
        ("launch_reset", "RemoteDisconnected", 1),
        ("launch_reset_after_creation", "RemoteDisconnected", 2),
    ],
)
def test_a_launch_that_raises_could_have_launched_nothing(
    workspace: Workspace, notebook: Notebook, fault: str, error: str, created: int
) -> None:
    workspace.configure(start_delay_s=60)
    workspace.fault(fault, times=1)
    assert notebook.raises(f"api.launch_workers(2, 0.5, 1, code={SLEEP!r})") == error
    assert len(workspace.alive()) == created


def test_a_slow_launch_could_show_no_session_while_it_waits(workspace: Workspace, notebook: Notebook) -> None:
    workspace.fault("launch_slow", times=1, delay_s=1.0)
    run = notebook.kernel.run_nowait(f"api.launch_workers(1, 0.5, 1, code={SLEEP!r})")
    workspace.wait_until(workspace.alive)
    notebook.kernel.pump(0.1)
    assert not run.done
    notebook.kernel.wait(run)


def test_launch_could_always_answer_with_every_field(workspace: Workspace, notebook: Notebook) -> None:
    workspace.fault("launch_bare", times=1)
    assert [set(one) for one in notebook.launch()] == [{"id"}]


def test_a_quota_could_refuse_nothing_and_a_full_workspace_could_start_everything(
    workspace: Workspace, notebook: Notebook
) -> None:
    workspace.configure(quota=Limits(sessions=3), capacity=Limits(cores=1.0))
    answers = notebook.launch(4)
    ids = [one["id"] for one in answers if "id" in one]
    assert [one["message"] for one in answers if "id" not in one] == [
        "quota exceeded: the workspace has no room for another session of this size"
    ]
    assert len(ids) == 3

    def states() -> list[str]:
        return sorted(one["status"] for one in notebook.listed().values() if one["id"] in ids)

    workspace.wait_until(lambda: states() == ["running", "running", "scheduling"])
    time.sleep(0.3)
    assert states() == ["running", "running", "scheduling"]
    notebook.stop(next(one for one in ids if notebook.listed()[one]["status"] == "running"))
    workspace.wait_until(lambda: states() == ["running", "running", "stopped"])


# -- code --------------------------------------------------------------------------------------------------------------


def test_braces_and_dollars_in_code_could_reach_the_shell_as_they_are(workspace: Workspace, notebook: Notebook) -> None:
    expanded, untouched, plain = (
        notebook.launch(code=code)[0]["id"]
        for code in (
            "name = 'value'\n!echo {name.upper()} $name",
            "name = 'value'\n!echo {name} $CDSW_ENGINE_ID",  # one unknown name, and IPython leaves the line alone
            "!echo $CDSW_ENGINE_ID $GREETING",
        )
    )
    for session in (expanded, untouched, plain):
        assert finished(workspace, session) == "succeeded"
    assert workspace.output(expanded).split() == ["VALUE", "value"]
    assert workspace.output(untouched).split() == ["{name}", untouched]
    assert workspace.output(plain).split() == [plain]


@pytest.mark.parametrize("code", ["!no-such-command", "!exit 3", "raise SystemExit(4)", "1/0"])
def test_a_failed_command_could_show_in_the_status(workspace: Workspace, notebook: Notebook, code: str) -> None:
    (launched,) = notebook.launch(code=code)
    assert finished(workspace, launched["id"]) == "succeeded"
    assert notebook.listed()[launched["id"]]["status"] == "succeeded"


def test_output_could_be_read_through_the_platform(workspace: Workspace, notebook: Notebook) -> None:
    (launched,) = notebook.launch(code="print('a ' + 'se' + 'cret' + ' word')")
    finished(workspace, launched["id"])
    assert workspace.output(launched["id"]) == "a secret word\n"
    assert "secret" not in json.dumps(notebook.listed())


def test_a_script_could_be_ignored(workspace: Workspace, notebook: Notebook) -> None:
    (workspace.home / "job.py").write_text("print('the script')")
    (launched,) = notebook.launch(code="print('the code')", script="job.py")
    finished(workspace, launched["id"])
    assert workspace.output(launched["id"]) == "the script\n"


def test_a_session_could_see_more_of_this_machine_than_cml_shows(
    workspace: Workspace, notebook: Notebook, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LEAKED_FROM_THE_TEST", "1")
    (launched,) = notebook.launch(code="import os, json; print(json.dumps(dict(os.environ)))", env={"GIVEN": "yes {x}"})
    finished(workspace, launched["id"])
    seen = json.loads(workspace.output(launched["id"]))
    person = notebook.session.truth
    assert seen["CDSW_ENGINE_ID"] == launched["id"]
    assert seen["CDSW_MASTER_ID"] == person.id
    assert seen["CDSW_MASTER_IP"] == person.address
    assert seen["CDSW_IP_ADDRESS"] == workspace.session(launched["id"]).address
    assert (seen["CDSW_APP_PORT"], seen["CDSW_READONLY_PORT"], seen["CDSW_PUBLIC_PORT"]) == ("8100", "8090", "8080")
    assert seen["GIVEN"] == "yes {x}"
    assert seen["HOME"] == str(workspace.home)
    assert notebook.ask("os.environ['CDSW_MASTER_ID']") == ""
    assert "LEAKED_FROM_THE_TEST" not in seen
    assert not [name for name in seen if name.startswith(("PYTEST", "VIRTUAL"))]


# -- list --------------------------------------------------------------------------------------------------------------


def test_another_session_could_list_what_it_did_not_launch(workspace: Workspace, notebook: Notebook) -> None:
    ids = {one["id"] for one in notebook.launch(2)}
    other = workspace.open_session()
    seen = json.loads(other.python("import json, cml.workers_v1 as api; print(json.dumps(api.list_workers()))").stdout)
    assert seen == []
    assert ids <= set(notebook.listed())
    (session,) = other.python(
        f"import cml.workers_v1 as api; print(api.stop_workers({min(ids)!r}))"
    ).stdout.splitlines()
    assert session == "[<Response [204]>]"  # but a stop by id works from everywhere
    assert finished(workspace, min(ids)) == "stopped"
    other.close()


def test_finished_sessions_could_leave_the_list(workspace: Workspace, notebook: Notebook) -> None:
    (launched,) = notebook.launch(code="pass")
    finished(workspace, launched["id"])
    shown = notebook.listed()[launched["id"]]
    assert shown["status"] == "succeeded"
    assert shown["finished_at"].endswith("Z")
    orders = {tuple(notebook.listed()) for _ in range(5)}
    assert len(orders) > 1


def test_the_list_could_always_hold_every_field(workspace: Workspace, notebook: Notebook) -> None:
    (launched,) = notebook.launch()
    running(workspace, launched["id"])
    workspace.configure(bare_list=True)
    assert notebook.listed()[launched["id"]] == {"id": launched["id"], "status": "running"}
    workspace.configure(bare_list=False)
    workspace.fault("list_missing_fields", times=1, fields=["ip_address", "app_url"])
    assert not {"ip_address", "app_url"} & set(notebook.listed()[launched["id"]])
    assert {"ip_address", "app_url"} <= set(notebook.listed()[launched["id"]])


def test_the_list_could_always_answer(workspace: Workspace, notebook: Notebook) -> None:
    workspace.fault("list_reset", times=1)
    assert notebook.raises("api.list_workers()") == "RemoteDisconnected"
    workspace.fault("list_html", times=1)
    assert notebook.raises("api.list_workers()") == "JSONDecodeError"
    workspace.fault("list_not_a_list", times=1)
    assert notebook.ask("api.list_workers()") == {"message": "internal error"}
    workspace.fault("list_slow", times=1, delay_s=0.5)
    began = time.monotonic()
    assert isinstance(notebook.ask("api.list_workers()"), list)
    assert time.monotonic() - began > 0.5


def test_the_list_could_always_be_true(workspace: Workspace, notebook: Notebook) -> None:
    first, second = sorted(one["id"] for one in notebook.launch(2))
    running(workspace, first, second)
    workspace.fault("list_missing", times=1, ids=[first])
    assert first not in notebook.listed()
    assert first in notebook.listed()
    before = len(notebook.listed())
    workspace.fault("list_missing", times=1)
    assert len(notebook.listed()) == before - 1
    workspace.fault("list_unknown_status", times=1, ids=[second], word="reticulating")
    listed = notebook.listed()
    assert (listed[first]["status"], listed[second]["status"]) == ("running", "reticulating")
    workspace.fault("list_foreign", times=1, count=3000)
    assert len(notebook.listed()) == before + 3000


# -- stop --------------------------------------------------------------------------------------------------------------


def test_stop_without_ids_could_spare_what_others_launched(workspace: Workspace, notebook: Notebook) -> None:
    mine = {one["id"] for one in notebook.launch(2)}
    bystander = workspace.launch_foreign(notebook.session)
    elsewhere = workspace.open_session()
    safe = workspace.launch_foreign(elsewhere)
    running(workspace, *mine, bystander, safe)
    notebook.ask("api.stop_workers(*[])")
    for session in (*mine, bystander):
        assert finished(workspace, session) == "stopped"
    assert workspace.session(safe).status == "running"
    assert [call.caller for call in workspace.calls("stop_without_ids")] == [notebook.session.id]
    elsewhere.close()
    assert not workspace.alive(foreign=True)


def test_stop_without_ids_could_return_a_list_where_there_is_nothing(workspace: Workspace) -> None:
    other = workspace.open_session()
    assert other.python("import cml.workers_v1 as api; print(api.stop_workers())").stdout == "None\n"
    other.close()


def test_a_stop_could_raise_when_it_fails(workspace: Workspace, notebook: Notebook) -> None:
    (launched,) = notebook.launch()
    session = launched["id"]
    running(workspace, session)
    workspace.fault("stop_error", times=1)
    assert notebook.stop(session) == [500]
    workspace.fault("stop_ignored", times=1)
    assert notebook.stop(session) == [204]
    workspace.fault("stop_reset", times=1)
    assert notebook.raises(f"api.stop_workers({session!r})") == "RemoteDisconnected"
    assert notebook.stop("no-such-session") == [404]
    assert notebook.ask(f"[r.status_code for r in api.stop_workers({{'id': {session!r}}})]") == [404]
    time.sleep(0.2)
    assert workspace.alive() == [session]
    workspace.fault("stop_slow", times=1, delay_s=0.5)
    began = time.monotonic()
    assert notebook.stop(session) == [204]
    assert time.monotonic() - began > 0.5
    assert finished(workspace, session) == "stopped"
    assert {call.ids for call in workspace.calls("stop")} >= {(session,)}


def test_a_stop_could_be_over_when_it_returns(workspace: Workspace, notebook: Notebook) -> None:
    code = "import signal, time\nsignal.signal(signal.SIGTERM, print)\nprint('deaf')\nwhile True: time.sleep(1)"
    session = notebook.launch(code=code)[0]["id"]
    workspace.wait_until(lambda: "deaf" in workspace.output(session))
    assert notebook.stop(session) == [204]
    assert workspace.session(session).status == "running"
    began = time.monotonic()
    assert finished(workspace, session) == "stopped"
    assert time.monotonic() - began > 0.5  # SIGKILL came only after the grace time


def test_a_stop_could_leave_processes_behind(workspace: Workspace, notebook: Notebook) -> None:
    (launched,) = notebook.launch(
        code="import subprocess\nsubprocess.Popen(['sleep', '601'], start_new_session=True)\n!sleep 602"
    )
    running(workspace, launched["id"])
    pids = workspace.session(launched["id"]).pids
    notebook.stop(launched["id"])
    finished(workspace, launched["id"])
    assert not [pid for pid in pids if lives(pid)]


def test_the_end_of_the_code_could_leave_processes_behind(workspace: Workspace, notebook: Notebook) -> None:
    (launched,) = notebook.launch(code="import subprocess\nsubprocess.Popen(['sleep', '603'], start_new_session=True)")
    assert finished(workspace, launched["id"]) == "succeeded"
    assert workspace.processes(launched["id"]) == {}


def test_workers_could_outlive_the_session_that_launched_them(workspace: Workspace) -> None:
    other = workspace.open_session()
    launched = workspace.launch_foreign(other)
    running(workspace, launched)
    other.close()
    assert workspace.session(launched).status == "stopped"
    assert workspace.session(launched).pids == ()


# -- await -------------------------------------------------------------------------------------------------------------


def test_await_could_notice_sessions_that_the_list_does_not_show(workspace: Workspace, notebook: Notebook) -> None:
    (launched,) = notebook.launch()
    running(workspace, launched["id"])
    time.sleep(0.1)
    answer = notebook.ask(f"api.await_workers([{launched['id']!r}, 'lost'], False, 60)")
    assert [one["id"] for one in answer["workers"]] == [launched["id"]]
    assert answer["failures"] == []
    assert notebook.ask(f"api.await_workers([{launched['id']!r}], False, 0)")["workers"] == []


def test_await_could_return_as_soon_as_a_session_runs(workspace: Workspace, notebook: Notebook) -> None:
    workspace.configure(start_delay_s=0.5)
    (launched,) = notebook.launch()
    began = time.monotonic()
    assert notebook.ask(f"api.await_workers([{launched['id']!r}], False, 60)")["failures"] == []
    assert time.monotonic() - began >= 5


# -- faults of sessions ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "options", "status", "ran"),
    [
        ("session_fails_before_running", {}, "failed", False),
        ("session_fails_before_running", {"status": "timedout"}, "timedout", False),
        ("session_dies_before_code", {}, "failed", True),
        ("session_killed", {"after_s": 0.1}, "failed", True),
        ("session_killed", {"after_s": 0.1, "status": "timedout"}, "timedout", True),
    ],
)
def test_every_session_could_live(
    workspace: Workspace, notebook: Notebook, fault: str, options: dict[str, Any], status: str, ran: bool
) -> None:
    workspace.fault(fault, times=1, **options)
    (launched,) = notebook.launch()
    assert finished(workspace, launched["id"]) == status
    assert (workspace.session(launched["id"]).running_at is not None) == ran
    assert notebook.listed()[launched["id"]]["status"] == status


def test_every_session_could_start(workspace: Workspace, notebook: Notebook) -> None:
    workspace.fault("session_never_starts", times=1)
    (launched,) = notebook.launch()
    time.sleep(0.6)
    assert notebook.listed()[launched["id"]]["status"] == "scheduling"
    assert workspace.alive() == [launched["id"]]
    notebook.stop(launched["id"])
    assert finished(workspace, launched["id"]) == "stopped"


def test_every_running_session_could_have_an_address(workspace: Workspace, notebook: Notebook) -> None:
    workspace.fault("session_address_unknown", times=1)
    (launched,) = notebook.launch()
    running(workspace, launched["id"])
    shown = notebook.listed()[launched["id"]]
    assert (shown["status"], shown["ip_address"]) == ("running", "unknown")


def test_a_running_session_could_be_safe_from_the_platform(workspace: Workspace, notebook: Notebook) -> None:
    one, other = (launched["id"] for launched in notebook.launch(2))
    running(workspace, one, other)
    workspace.end_session(one, "failed")
    assert finished(workspace, one) == "failed"
    assert workspace.kill_process(other, "sleep 600")
    assert finished(workspace, other) == "succeeded"


def test_an_unknown_fault_could_be_switched_on_unnoticed(workspace: Workspace) -> None:
    with pytest.raises(ControlError, match="no fault is called"):
        workspace.fault("launch_refuses")
    workspace.fault("launch_refused", skip=1, times=1)
    workspace.clear_faults()
    assert "launch_refused" in FAULTS


def test_a_fault_could_only_strike_the_first_launches(workspace: Workspace, notebook: Notebook) -> None:
    workspace.configure(start_delay_s=60)
    workspace.fault("launch_refused", skip=1, times=1)
    assert ["id" in notebook.launch()[0] for _ in range(3)] == [True, False, True]


def test_a_fault_could_strike_all_launches_alike(workspace: Workspace, notebook: Notebook) -> None:
    workspace.configure(start_delay_s=60)
    workspace.fault("launch_refused", code="worker", skip=1)
    codes = ["worker", "scheduler", "worker", "scheduler", "worker"]
    assert ["id" in notebook.launch(code=code)[0] for code in codes] == [True, True, False, True, False]


# -- the network -------------------------------------------------------------------------------------------------------

SERVE = (
    "import http.server, os\n"
    "server = http.server.HTTPServer(({host!r}, 8090), http.server.SimpleHTTPRequestHandler)\n"
    "print('sleep')\nserver.serve_forever()"
)


def fetch(session: Session, address: str) -> str:
    """Return "yes" or the name of the error when a session asks another one's port 8090."""
    code = (
        "import socket\n"
        f"try: socket.create_connection(({address!r}, 8090), 0.7).close(); print('yes')\n"
        "except OSError as error: print(type(error).__name__)"
    )
    return session.python(code).stdout.strip()


def test_loopback_could_be_shared_between_sessions(workspace: Workspace, notebook: Notebook) -> None:
    if workspace.isolation != "namespaces":
        assert notebook.session.address.startswith("127.66.")
        return
    private, public = (notebook.launch(code=SERVE.format(host=host))[0]["id"] for host in ("127.0.0.1", "0.0.0.0"))
    workspace.wait_until(lambda: workspace.output(private) and workspace.output(public))
    inside = Session(workspace, private)
    workspace.wait_until(lambda: fetch(inside, "127.0.0.1") == "yes")
    assert fetch(notebook.session, "127.0.0.1") == "ConnectionRefusedError"
    assert fetch(notebook.session, workspace.session(private).address) == "ConnectionRefusedError"
    assert fetch(notebook.session, workspace.session(public).address) == "yes"
    assert fetch(inside, workspace.session(public).address) == "yes"


def test_a_session_could_be_cut_off_for_ever(workspace: Workspace, notebook: Notebook) -> None:
    if workspace.isolation != "namespaces":
        with pytest.raises(NetworkError, match="namespaces"):
            workspace.cut_network(notebook.session.id)
        return
    (launched,) = notebook.launch(code=SERVE.format(host="0.0.0.0"))
    address = workspace.session(launched["id"]).address
    workspace.wait_until(lambda: fetch(notebook.session, address) == "yes")
    workspace.cut_network(launched["id"])
    assert fetch(notebook.session, address) in ("TimeoutError", "OSError")
    assert notebook.listed()[launched["id"]]["status"] == "running"
    workspace.heal_network(launched["id"])
    workspace.wait_until(lambda: fetch(notebook.session, address) == "yes")


def test_a_session_could_not_know_itself(workspace: Workspace, notebook: Notebook) -> None:
    if workspace.isolation != "namespaces":
        return
    code = (
        "import os, socket\n"
        "probe = socket.socket(type=socket.SOCK_DGRAM)\n"
        "probe.connect(('8.8.8.8', 80))\n"  # sends nothing: the route tells the address
        "print(probe.getsockname()[0], socket.gethostname(), socket.gethostbyname(socket.gethostname()))"
    )
    session = notebook.session
    assert session.python(code).stdout.split() == [session.address, session.id, session.address]
    (launched,) = notebook.launch()
    running(workspace, launched["id"])
    listing = session.exec(["ps", "-e", "-o", "args="]).stdout
    assert "sleep 600" not in listing  # a pid of another session means nothing here


# -- the shared home ---------------------------------------------------------------------------------------------------


def test_a_missing_file_could_appear_at_once(workspace: Workspace, notebook: Notebook) -> None:
    path = workspace.home / "late.json"
    assert notebook.ask(f"os.path.exists({str(path)!r})") is False
    path.write_text("here")
    born = time.monotonic()
    assert notebook.raises(f"open({str(path)!r}).read()") == "FileNotFoundError"
    assert notebook.raises(f"os.stat({str(path)!r})") == "FileNotFoundError"
    assert notebook.ask(f"__import__('pathlib').Path({str(path)!r}).exists()") is False
    assert "late.json" in notebook.ask(f"os.listdir({str(workspace.home)!r})")
    workspace.wait_until(lambda: notebook.ask(f"os.path.exists({str(path)!r})"))
    assert time.monotonic() - born > 1.0
    path.write_text("changed")
    assert notebook.ask(f"open({str(path)!r}).read()") == "changed"


def test_a_missing_folder_could_let_its_files_be_seen(workspace: Workspace, notebook: Notebook) -> None:
    folder = workspace.home / "later"
    assert notebook.ask(f"os.path.exists({str(folder / 'file')!r})") is False
    folder.mkdir()
    (folder / "other").write_text("")
    assert notebook.ask(f"os.path.exists({str(folder / 'other')!r})") is False
    assert notebook.raises(f"open({str(folder / 'mine')!r}, 'w')") == "FileNotFoundError"


@pytest.mark.parametrize(
    "make",
    [
        "open({path!r}, 'w').close()",
        "os.close(os.open({path!r}, os.O_CREAT | os.O_WRONLY))",
        "open({path!r} + '.new', 'w').close(); os.replace({path!r} + '.new', {path!r})",
        "__import__('pathlib').Path({path!r}).touch()",
        "os.makedirs({path!r})",
        "os.symlink('/dev/null', {path!r})",
    ],
)
def test_a_process_could_miss_what_it_made_itself(workspace: Workspace, notebook: Notebook, make: str) -> None:
    path = str(workspace.home / f"own-{time.monotonic_ns()}")
    assert notebook.ask(f"os.path.exists({path!r})") is False
    assert notebook.kernel.run(make.format(path=path)).error is None
    assert notebook.ask(f"os.path.exists({path!r})") is True


def test_the_meanness_could_break_the_standard_library(workspace: Workspace, notebook: Notebook) -> None:
    code = (
        "import shutil, tempfile, pathlib\n"
        f"folder = pathlib.Path(tempfile.mkdtemp(dir={str(workspace.home)!r}))\n"
        "(folder / 'a' / 'b').mkdir(parents=True)\n"
        "(folder / 'a' / 'b' / 'c.txt').write_text('x')\n"
        "assert [p.name for p in folder.rglob('*.txt')] == ['c.txt']\n"
        "shutil.copytree(folder, str(folder) + '2'); shutil.rmtree(folder); shutil.rmtree(str(folder) + '2')\n"
        "assert not folder.exists()\n"
        "assert os.stat in os.supports_follow_symlinks and os.access('/', os.R_OK)\n"
        "os.stat(0); open(os.dup(0)).close()"
    )
    run = notebook.kernel.run(code)
    assert run.error is None, run.error


def test_a_sitecustomize_of_the_user_could_be_hidden(workspace: Workspace, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text("import builtins; builtins.user_was_here = True")
    session = workspace.open_session()
    session_path = session.truth.environment["PYTHONPATH"]
    done = session.exec(
        [session.truth.python, "-c", "print(user_was_here)"], env={"PYTHONPATH": f"{session_path}:{tmp_path}"}
    )
    assert done.stdout == "True\n", done.stderr
    session.close()


def test_a_session_could_start_where_the_notebook_works(workspace: Workspace) -> None:
    folder = workspace.home / "some analysis"
    folder.mkdir()
    session = workspace.open_session()
    notebook = Notebook(session, folder)
    assert notebook.ask("os.getcwd()") == str(folder)
    assert notebook.raises("os.stat('')") == "FileNotFoundError"  # which does not make the folder one that is missing
    assert notebook.ask("os.listdir()") == []
    (launched,) = notebook.launch(code="import os; print(os.getcwd())")
    assert finished(workspace, launched["id"]) == "succeeded"
    assert workspace.output(launched["id"]).strip() == str(workspace.home)
    session.close()


# -- the notebook ------------------------------------------------------------------------------------------------------


def test_a_kernel_restart_could_end_the_session_and_its_workers(workspace: Workspace) -> None:
    session = workspace.open_session()
    launched = workspace.launch_foreign(session)
    running(workspace, launched)
    kernel = session.kernel()
    kernel.kill()
    assert not kernel.alive
    assert workspace.session(session.id).status == "running"
    assert workspace.session(launched).status == "running"
    again = session.kernel()
    assert again.run("6 * 7").displays == [{"text/plain": "42"}]
    again.shutdown()
    assert workspace.session(session.id).status == "running"
    session.close()


def test_an_interrupt_could_spare_what_the_kernel_runs(workspace: Workspace, notebook: Notebook) -> None:
    run = notebook.kernel.run_nowait("import subprocess; subprocess.run(['sleep', '77'])")
    workspace.wait_until(lambda: any("77" in argv for argv in workspace.processes(notebook.session.id).values()))
    notebook.kernel.interrupt()
    notebook.kernel.wait(run, 10)
    assert run.error is not None
    assert run.error.ename == "KeyboardInterrupt"
    assert not any("77" in argv for argv in workspace.processes(notebook.session.id).values())


def test_what_a_cell_shows_could_be_lost(notebook: Notebook) -> None:
    run = notebook.kernel.run(
        "import sys\nfrom IPython.display import display, HTML\nprint('out'); print('err', file=sys.stderr)\n"
        "handle = display(HTML('<b>1</b>'), display_id=True)\nhandle.update(HTML('<b>2</b>'))"
    )
    assert (run.stdout, run.stderr, run.error) == ("out\n", "err\n", None)
    assert [one["text/html"] for one in run.displays] == ["<b>2</b>"]
    with pytest.raises(TimeoutError):
        notebook.kernel.run("import time; time.sleep(1.5)", timeout=0.3)


def test_a_click_in_a_panel_could_be_lost(notebook: Notebook) -> None:
    notebook.kernel.run(
        "import ipywidgets\nbutton = ipywidgets.Button(description='Stop')\n"
        "button.on_click(lambda b: setattr(b, 'description', 'Stopped'))\nbutton"
    )
    (comm,) = (key for key, state in notebook.kernel.comms.items() if state.get("description") == "Stop")
    notebook.kernel.wait(notebook.kernel.send_comm(comm, {"method": "custom", "content": {"event": "click"}}))
    assert notebook.kernel.comms[comm]["description"] == "Stopped"


@pytest.mark.parametrize(("module", "works"), [("cdsw", "cdsw"), ("none", "os")])
def test_only_the_newer_module_could_be_tried(module: str, works: str) -> None:
    with Workspace(module=module) as workspace:
        session = workspace.open_session()
        assert session.python(f"import {works}").returncode == 0
        for absent in {"cml.workers_v1", "cdsw"} - {works}:
            assert "ModuleNotFoundError" in session.python(f"import {absent}").stderr
        if module == "cdsw":
            code = "import cdsw, inspect; print(inspect.signature(cdsw.launch_workers)); cdsw.launch_workers(1, 1, 1)"
            assert "accelerator_label_id" not in session.python(code).stdout
            assert len(workspace.sessions()) == 2


# -- beginning and end -------------------------------------------------------------------------------------------------


def test_a_workspace_could_leave_something_behind() -> None:
    with Workspace(start_delay_s=0.0) as workspace:
        session = workspace.open_session()
        session.kernel()
        launched = workspace.launch_foreign(session)
        running(workspace, launched)
        workspace.launch_foreign(session, code="pass")
        pids = [pid for one in workspace.sessions() for pid in one.pids]
        assert len(pids) > 4
    workspace.close()
    assert not [pid for pid in pids if lives(pid)]
    assert namespaces(workspace.name) == []
    assert workspace.name not in workspaces_with_groups()
    assert not workspace.root.exists()


ORPHAN = """
import sys, time
from workspace import Workspace
w = Workspace(start_delay_s=0.0, isolation=sys.argv[1])
s = w.open_session()
i = w.launch_foreign(s)
w.wait_until(lambda: any("sleep" in argv for argv in w.processes(i).values()))
print(w.name, w._server.pid, *w.session(i).pids, flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("isolation", ["auto", "processes"])
@pytest.mark.parametrize("victims", ["test", "test and server"])
def test_a_killed_test_could_leave_sessions_behind(isolation: str, victims: str) -> None:
    here = Path(__file__).resolve().parents[1]
    command = [sys.executable, "-c", ORPHAN, isolation]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(here)}
    ) as test:
        assert test.stdout is not None
        name, *numbers = test.stdout.readline().split()
        server, *pids = map(int, numbers)
        if victims == "test and server":
            os.kill(server, signal.SIGKILL)
        test.kill()
    deadline = time.monotonic() + 10
    while any(lives(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not [pid for pid in pids if lives(pid)]
    if victims == "test":  # the server sees to it
        while Path("/tmp", name).exists() and time.monotonic() < deadline:
            time.sleep(0.05)
    else:  # the next workspace does
        remove_leftovers()
    assert namespaces(name) == []
    assert name not in workspaces_with_groups()
    assert not Path("/tmp", name).exists()


def test_a_machine_without_namespaces_could_run_no_workspace() -> None:
    with Workspace(isolation="processes", start_delay_s=0.0) as workspace:
        session = workspace.open_session()
        assert (workspace.isolation, session.address[:7]) == ("processes", "127.66.")
        kernel = session.kernel()
        kernel.run("import cml.workers_v1 as api")
        kernel.run(f"ids = [one['id'] for one in api.launch_workers(2, 1, 1, code={SLEEP!r})]")
        workspace.wait_until(lambda: len(workspace.alive()) == 2)
        running(workspace, *workspace.alive())
        kernel.kill()
        assert len(workspace.alive()) == 2
        kernel = session.kernel()
        kernel.run("import cml.workers_v1 as api\napi.stop_workers(*[one['id'] for one in api.list_workers()])")
        workspace.wait_until(lambda: not workspace.alive())
        session.close()
        assert not [pid for one in workspace.sessions() for pid in one.pids]
