"""The magics in a terminal's IPython, on processes of this machine."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as FuturesTimeoutError
from dataclasses import replace
from pathlib import Path
from typing import Any

import dask
import distributed
import pytest
from distributed.comm.tcp import TLSConnector
from IPython.core.error import UsageError
from IPython.core.interactiveshell import InteractiveShell
from IPython.utils.capture import capture_output
from support.state_folder import local_sessions, private

import cml_dask_magics
from cml_dask_magics.cluster.scheduler import SchedulerView
from cml_dask_magics.display.panel.output import VIEW
from cml_dask_magics.fleet import shell_lines
from cml_dask_magics.magics import kernel_clusters as kernel_clusters_module
from cml_dask_magics.magics.kernel_clusters import kernel_clusters
from cml_dask_magics.model.settings import make_settings

pytestmark = pytest.mark.dask

BAD_LINES = {
    "0": "N must be",
    "-3": "N must be a whole number of workers from 1 to 100; not '-3'",
    "two": "N must be a whole number of workers from 1 to 100; not 'two'",
    "1000000000": "max-workers",
    "1.5": "N must be",
    "--memory 0": "--memory",
    "--memory lots": "--memory",
    "--cpu -1": "--cpu",
    "--cpu": "--cpu",
    "--name ../x": "--name",
    "--name ''": "--name",
    "--name": "--name",
    "--adapt 5:2": "--adapt",
    "--adapt x": "--adapt",
    "--idle-timeout soon": "--idle-timeout",
    "--timeout -3": "--timeout",
    "--env NOVALUE": "--env",
    "--env CDSW_ENGINE_ID=x": "--env",
    "--client 2x": "--client",
    "--client cluster": "--client",
    "--cluster if": "--cluster",
    "--wait 5": "--wait",
    "--gpu 0.5": "--gpu",
    "--dashboard-port 99999": "--dashboard-port",
    "--frobnicate": "--frobnicate",
    "3 4": "'4'",
    "--name 'unbalanced": "quotation",
}


@pytest.mark.parametrize(("line", "named"), BAD_LINES.items())
def test_bad_input_is_one_sentence_and_changes_nothing(
    shell: InteractiveShell, state: Path, line: str, named: str
) -> None:
    with pytest.raises(UsageError) as caught:
        shell.run_line_magic("dask_up", line)
    said = str(caught.value)
    assert named in said and "\n" not in said
    value = line.split()[-1].strip("'")
    assert value in said or "env" in said
    assert not state.exists()
    assert "cluster" not in shell.user_ns and "client" not in shell.user_ns


@pytest.mark.parametrize("magic", ["dask_up", "dask_down", "dask_status"])
@pytest.mark.parametrize("asked", ["--help", "-h", "3 --cpu 2 --help"])
def test_help_is_printed_where_people_ask_for_it(
    shell: InteractiveShell, state: Path, capsys: pytest.CaptureFixture[str], magic: str, asked: str
) -> None:
    shell.run_line_magic(magic, asked if magic == "dask_up" else asked.split()[-1])
    printed = capsys.readouterr().out
    assert printed.strip() == shell.magics_manager.magics["line"][magic].__doc__.strip()
    assert not state.exists()


def test_bad_input_is_shown_without_a_traceback(shell: InteractiveShell, capsys: pytest.CaptureFixture[str]) -> None:
    shell.run_cell("%dask_up --cpu -1")
    shown = capsys.readouterr()
    assert "UsageError: --cpu must be" in shown.out + shown.err and "Traceback" not in shown.out + shown.err


def test_what_fails_is_shown_without_our_traceback(
    shell: InteractiveShell, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shell_lines, "scheduler_line", lambda *_: "exit 3")
    assert isinstance(shell.run_cell("%dask_up 1").error_in_exec, RuntimeError)
    shown = capsys.readouterr()
    assert "RuntimeError: cluster 'default' did not start" in shown.out + shown.err
    assert "Traceback" not in shown.out + shown.err and "magics.py" not in shown.out + shown.err


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError("cannot connect")])
def test_what_goes_wrong_when_the_cluster_is_up_leaves_nothing_either(
    shell: InteractiveShell, state: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    def connect(_: Any) -> None:
        raise error

    monkeypatch.setattr(kernel_clusters_module, "Client", connect)
    with pytest.raises((KeyboardInterrupt, RuntimeError)):
        shell.run_line_magic("dask_up", "1")
    assert kernel_clusters.names(state) == []
    assert [each for each in local_sessions(state).list_workers() if each["status"] == "running"] == []
    assert "cluster" not in shell.user_ns and "client" not in shell.user_ns


def test_a_mistake_in_the_configuration_stops_nobody_from_stopping(
    shell: InteractiveShell, state: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shell.run_line_magic("dask_up", "1")
    with dask.config.set({"cml-dask-magics.cpus": 2}):
        with pytest.raises(UsageError, match=r"cml-dask-magics\.cpus"):
            shell.run_line_magic("dask_up", "1")
        shell.run_line_magic("dask_status", "--text")
        shell.run_line_magic("dask_down", "")
    printed = capsys.readouterr().out
    assert "default: running" in printed and "Stopped cluster 'default'" in printed
    assert kernel_clusters.names(state) == []


def test_a_state_folder_that_cannot_be_written_is_named(
    shell: InteractiveShell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("DASK_CML_DASK_MAGICS__STATE_DIRECTORY", str(tmp_path / "file" / "state"))
    with dask.config.set({"cml-dask-magics.state-directory": str(tmp_path / "file" / "state")}):
        with pytest.raises(RuntimeError, match="cannot be used") as caught:
            shell.run_line_magic("dask_up", "1")
        assert str(tmp_path / "file") in str(caught.value) and "state-directory" in str(caught.value)


def test_a_broken_configuration_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "dask.yaml").write_text("cml-dask-magics: {cpu: [")
    run = subprocess.run(
        [sys.executable, "-m", "IPython", "--colors=NoColor", "-c", "%load_ext cml_dask_magics\n%dask_up 1"],
        env={"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "DASK_CONFIG": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    said = run.stdout + run.stderr
    assert str(tmp_path / "dask.yaml") in said and "UsageError" in said


def test_up_work_status_and_down(shell: InteractiveShell, state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shell.run_line_magic("dask_up", "1 --client c --cluster k --env GREETING=hello --timeout 2 min")
    assert shell.user_ns["c"].submit(sum, range(10)).result() == 45
    assert shell.user_ns["k"].name == "default"
    assert "'default' started" in capsys.readouterr().out
    shell.run_line_magic("dask_up", "2 --client c --cluster k")
    assert len(shell.user_ns["k"].observed) == 2
    capsys.readouterr()
    shell.run_line_magic("dask_status", "--json")
    document = json.loads(capsys.readouterr().out)
    cluster = document["clusters"][0]
    assert cluster["backend"] == "local" and cluster["requested"] == 2 and len(cluster["workers"]) == 2
    assert all(worker["ip_address"] == "127.0.0.1" for worker in cluster["workers"])
    shell.run_line_magic("dask_status", "")
    text = capsys.readouterr().out
    assert "default: running, 2 of 2 workers" in text and cluster["dashboard_link"] in text
    shell.run_line_magic("dask_status", f"--logs {cluster['workers'][0]['session']}")
    assert "Registered to" in capsys.readouterr().out
    shell.run_line_magic("dask_down", "")
    assert "Stopped cluster 'default': 3 sessions" in capsys.readouterr().out
    assert kernel_clusters.names(state) == []
    shell.run_line_magic("dask_down", "")
    assert "no cluster" in capsys.readouterr().out


def test_several_clusters_must_be_named_to_be_stopped(
    shell: InteractiveShell, state: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shell.run_line_magic("dask_up", "1 --name one --client c1 --cluster k1")
    shell.run_line_magic("dask_up", "1 --name two --client c2 --cluster k2")
    with pytest.raises(UsageError, match="one, two"):
        shell.run_line_magic("dask_down", "")
    with pytest.raises(UsageError, match="there are: one, two"):
        shell.run_line_magic("dask_status", "three")
    assert [status.name for status in kernel_clusters.statuses(state)[0]] == ["one", "two"]
    shell.run_line_magic("dask_down", "one")
    assert kernel_clusters.names(state) == ["two"]
    shell.run_line_magic("dask_down", "--all")
    assert kernel_clusters.names(state) == []
    assert capsys.readouterr().out.count("Stopped cluster") == 2


def test_the_cluster_of_the_last_up_is_the_one_that_dask_computes_with(shell: InteractiveShell) -> None:
    shell.run_line_magic("dask_up", "1 --name one")
    kept = shell.user_ns["client"].submit(sum, [1, 2])
    shell.run_line_magic("dask_up", "1 --name two")
    shell.run_line_magic("dask_up", "--name one")
    computed_by = dask.delayed(lambda: distributed.get_worker().scheduler.address)().compute()
    assert computed_by == shell.user_ns["cluster"].scheduler_address == shell.user_ns["client"].scheduler.address
    assert shell.user_ns["cluster"].name == "one" and kept.result() == 3
    again = shell.user_ns["client"]
    shell.run_line_magic("dask_up", "--name one")
    assert shell.user_ns["client"] is again


def test_a_client_that_looks_for_a_lost_scheduler_is_closed_without_a_word(
    shell: InteractiveShell, state: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shell.run_line_magic("dask_up", "1")
    cluster, client = shell.user_ns["cluster"], shell.user_ns["client"]
    local_sessions(state).stop_workers(cluster.status().scheduler.session)
    deadline = time.monotonic() + 30
    while client.status != "connecting" and time.monotonic() < deadline:
        time.sleep(0.05)
    assert client.status == "connecting"
    shell.run_line_magic("dask_down", "")
    assert client.status == "closed"
    assert [record for record in caplog.records if record.name == "distributed.client"] == []


@pytest.mark.long
def test_logs_are_those_of_the_cluster_that_runs(shell: InteractiveShell, capsys: pytest.CaptureFixture[str]) -> None:
    shell.run_line_magic("dask_up", "1")
    shell.run_line_magic("dask_down", "")
    shell.run_line_magic("dask_up", "1 --name night-run")
    capsys.readouterr()
    shell.run_line_magic("dask_status", "--logs")
    headers = [line for line in capsys.readouterr().out.splitlines() if line.startswith("==>")]
    assert len(headers) == 2 and all("cluster night-run, session" in line for line in headers)
    with pytest.raises(UsageError, match=r"no output of a cluster 'none'; there are: night-run"):
        shell.run_line_magic("dask_status", "none --logs")
    shell.run_line_magic("dask_down", "night-run")
    shell.run_line_magic("dask_status", "night-run --logs")
    assert "cluster night-run, session" in capsys.readouterr().out
    with pytest.raises(RuntimeError, match="cluster 'night-run' was stopped; %dask_up --name night-run starts it"):
        shell.user_ns["cluster"].scale(2)


def test_options_that_a_running_cluster_cannot_take_are_said(
    shell: InteractiveShell, capsys: pytest.CaptureFixture[str]
) -> None:
    shell.run_line_magic("dask_up", "1")
    shell.run_line_magic("dask_up", "--memory 4")
    assert "memory" in capsys.readouterr().err
    assert len(shell.user_ns["cluster"].plan) == 1, "without N a running cluster is not scaled"


@pytest.mark.parametrize("line", ["--text --json", "--json --logs"])
def test_one_way_of_showing_at_a_time(shell: InteractiveShell, line: str) -> None:
    with pytest.raises(UsageError, match="exclude each other"):
        shell.run_line_magic("dask_status", line)


def test_help_shows_every_option_with_its_default(shell: InteractiveShell) -> None:
    from cml_dask_magics.model.settings import OPTIONS

    for name in ("dask_up", "dask_down", "dask_status"):
        text = shell.object_inspect_mime(f"%{name}")["text/plain"]
        assert f"%{name}" in text
    text = " ".join(shell.find_line_magic("dask_up").__doc__.split())
    for option in OPTIONS:
        if option.help and option.name != "n-workers":
            assert f"--{option.name}" in text
        if option.help and option.default not in (None, {}, False):
            assert f"default: {option.default}" in text


def test_tab_completes_options_and_cluster_names(shell: InteractiveShell, state: Path) -> None:
    record = private(state) / "clusters" / "night-run" / "record.json"
    record.parent.mkdir(parents=True)
    record.touch()
    assert "--idle-timeout" in shell.complete("--idle", "%dask_up 2 --idle", 17)[1]
    assert "night-run" in shell.complete("", "%dask_down ", 11)[1]
    assert "night-run" in shell.complete("ni", "%dask_status ni", 15)[1]
    assert "night-run" in shell.complete("", "%dask_up --name ", 16)[1]
    assert "--all" in shell.complete("--a", "%dask_down --a", 14)[1]
    record.unlink()


def test_unloading_takes_the_magics_away_and_leaves_the_clusters(shell: InteractiveShell, state: Path) -> None:
    shell.run_line_magic("dask_up", "1")
    shell.run_line_magic("reload_ext", "cml_dask_magics")
    shell.run_line_magic("unload_ext", "cml_dask_magics")
    assert shell.find_line_magic("dask_up") is None
    assert "--all" not in shell.complete("--a", "%dask_down --a", 14)[1]
    assert kernel_clusters.names(state) == ["default"]
    assert shell.user_ns["client"].submit(sum, [1, 2]).result() == 3
    shell.run_line_magic("load_ext", "cml_dask_magics")


def test_a_scale_that_fails_names_its_own_timeout(shell: InteractiveShell) -> None:
    shell.run_line_magic("dask_up", "1")
    cluster = shell.user_ns["cluster"]
    with pytest.raises(RuntimeError, match=r"could not be scaled: no new worker connected within 0\.1 s"):
        cluster.scale_until_ready(2, wait=None, timeout_s=0.1)
    assert len(cluster.plan) == 1
    events = [event.message for event in cluster.status().events]
    scaled = next(index for index, message in enumerate(events) if message.startswith("scaled to 2 workers by"))
    assert "back to 1 worker: scaling to 2 did not succeed" in events[scaled:]


@pytest.mark.parametrize("again", ["2", ""])
def test_up_waits_for_workers_that_were_asked_for_before(shell: InteractiveShell, again: str) -> None:
    shell.run_line_magic("dask_up", "1")
    cluster = shell.user_ns["cluster"]
    cluster.scale(2)
    assert len(cluster.observed) == 1, "scale does not wait"
    shell.run_line_magic("dask_up", again)
    assert len(cluster.observed) == 2


@pytest.mark.parametrize("n", [1, 3])
def test_up_waits_for_a_start_in_the_background(shell: InteractiveShell, n: int) -> None:
    shell.run_line_magic("dask_up", "2 --background")
    shell.run_line_magic("dask_up", str(n))
    cluster = shell.user_ns["cluster"]
    assert len(cluster.observed) == len(cluster.plan) == cluster.wanted == n
    assert shell.user_ns["client"].submit(sum, [1, 2]).result() == 3


def test_up_may_wait_for_as_many_as_run_already(shell: InteractiveShell) -> None:
    shell.run_line_magic("dask_up", "3")
    shell.run_line_magic("dask_up", "--wait 3")
    cluster = shell.user_ns["cluster"]
    assert len(cluster.observed) == 3
    with pytest.raises(UsageError, match="--wait must be at most the number of workers, 2; not 3"):
        shell.run_line_magic("dask_up", "2 --wait 3")
    assert len(cluster.plan) == 3


def test_up_waits_for_a_start_in_the_background_no_longer_than_it_is_told(shell: InteractiveShell) -> None:
    shell.run_line_magic("dask_up", "1 --background")
    with pytest.raises(RuntimeError, match=r"cluster 'default' is not up after 0\.01 s; it goes on starting"):
        kernel_clusters.up(replace(make_settings(), timeout_s=0.01))
    shell.run_line_magic("dask_up", "")
    assert len(shell.user_ns["cluster"].observed) == 1


def test_a_cluster_that_is_being_stopped_is_shown_so_and_started_again_when_it_has_ended(
    shell: InteractiveShell, capsys: pytest.CaptureFixture[str], slow_stop: Any
) -> None:
    shell.run_line_magic("dask_up", "1")
    cluster = shell.user_ns["cluster"]
    controls = kernel_clusters.controls(cluster.settings.state_directory, "default")
    with ThreadPoolExecutor() as pool:
        stopping = pool.submit(controls.actions.stop)
        assert slow_stop.asked.wait(60)
        capsys.readouterr()
        shell.run_line_magic("dask_status", "--json")
        printed = capsys.readouterr()
        assert json.loads(printed.out)["clusters"][0]["state"] == "stopping" and printed.err == ""
        up_again = pool.submit(kernel_clusters.up, make_settings(n_workers=1, name="default"))
        with pytest.raises(FuturesTimeoutError):
            up_again.result(1)
        slow_stop.goes_on.set()
        assert "Stopped cluster 'default'" in stopping.result(60)
        assert up_again.result(60).done == "started"
    capsys.readouterr()
    shell.run_line_magic("dask_status", "--json")
    assert json.loads(capsys.readouterr().out)["clusters"][0]["state"] == "running"
    assert kernel_clusters.is_held(cluster.settings.state_directory, "default")


def test_workers_that_do_not_come_are_warned_of_and_stay_in_the_plan(
    shell: InteractiveShell, capsys: pytest.CaptureFixture[str]
) -> None:
    shell.run_line_magic("dask_up", "1")
    cluster = shell.user_ns["cluster"]
    cluster.scale(2)
    cluster.scale_until_ready(2, wait=None, timeout_s=0.01)
    assert "1 of 2 workers are ready after 0.01 s; the other joins" in cluster.warning
    assert len(cluster.plan) == 2
    shell.run_line_magic("dask_up", "2")
    assert len(cluster.observed) == 2 and capsys.readouterr().err == ""


def test_looking_at_a_cluster_that_this_kernel_holds_opens_no_connection(
    shell: InteractiveShell, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shell.run_line_magic("dask_up", "1")
    opened: list[str] = []

    async def connect(self: Any, address: str, *_: Any, **__: Any) -> Any:
        opened.append(address)
        raise OSError

    monkeypatch.setattr(TLSConnector, "connect", connect)
    shell.run_line_magic("dask_status", "")
    printed = capsys.readouterr().out
    assert "default: running, 1 of 1 worker" in printed and "last heard" not in printed
    # Nor while its scheduler is silent.
    monkeypatch.setattr(SchedulerView, "heard_s", property(lambda _: 12.0))
    shell.run_line_magic("dask_status", "--text")
    printed = capsys.readouterr().out
    assert "default: running, 1 of 1 worker" in printed and "last heard of 12 s ago" in printed
    assert opened == []


def test_a_cluster_is_shown_as_its_panel_whether_or_not_a_magic_made_it(
    shell: InteractiveShell, monkeypatch: pytest.MonkeyPatch
) -> None:
    shell.run_line_magic("dask_up", "1")
    monkeypatch.setattr(shell, "kernel", object(), raising=False)
    with cml_dask_magics.CMLCluster(1) as other:
        for cluster in (shell.user_ns["cluster"], other):
            with capture_output() as captured:
                cluster._ipython_display_()
            assert [VIEW in output.data for output in captured.outputs] == [True, False]
            assert f"{cluster.name}: running" in captured.outputs[1].data["text/plain"]


LOADING = """
import sys
from IPython.core.interactiveshell import InteractiveShell
InteractiveShell.instance().run_line_magic("load_ext", "cml_dask_magics")
heavy = {"dask", "distributed", "ipywidgets", "rich", "psutil"} & set(sys.modules)
assert not heavy, heavy
"""


def test_loading_imports_nothing_heavy_and_prints_nothing(state: Path) -> None:
    run = subprocess.run([sys.executable, "-c", LOADING], capture_output=True, text=True, check=True)
    assert run.stdout == "" and run.stderr == ""


def test_loading_names_what_is_on_record_and_does_not_answer(state: Path) -> None:
    folder = private(state) / "clusters" / "old"
    folder.mkdir(parents=True)
    (folder / "record.json").write_text("{")
    run = subprocess.run(
        [sys.executable, "-m", "IPython", "--colors=NoColor", "-c", "%load_ext cml_dask_magics\n%dask_down --all"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "on record, but not answering: old" in run.stdout and "%dask_down old" in run.stdout
    assert kernel_clusters.names(state) == []
    assert [path.read_text() for path in (private(state) / "broken").iterdir()] == ["{"]
