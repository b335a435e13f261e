"""The lines that sessions run: they must arrive at the shell as they were meant, whatever folders are called."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from distributed.cli import dask_scheduler, dask_worker
from distributed.protocol.pickle import dumps
from hypothesis import given
from hypothesis import strategies as st

from cml_dask_magics.cluster.scheduler import worker_key
from cml_dask_magics.fleet import shell_lines
from cml_dask_magics.model.settings import Settings

pytestmark = [pytest.mark.dask, pytest.mark.xdist_group("shell lines")]


def make_settings(**fields):
    settings = Settings(
        n_workers=2, name="default", cpu=2, memory_gib=4, gpu=0, processes=1, scheduler_cpu=1, scheduler_memory_gib=2,
        scheduler_here=False, adapt=None,
        wait=None, timeout_s=300, idle_timeout_s=3600, env={}, dashboard_port=None, local=False, tls=True,
        dashboard=True, background=False, client="client", cluster="cluster", state_directory=Path("/nowhere"),
        python=sys.executable, launch_options={"scheduler": {}, "workers": {}}, max_workers=500,
        dashboard_link="{app_url}/status",
    )  # fmt: skip
    return replace(settings, **fields)


HOSTILE = {
    "plain": "plain",
    "spaces": "a b  c",
    "quotes": 'it\'s "quoted" `id`',
    "braces": "{1+1} {x} }{",
    "variables": "$HOME $x ${x} $(id) %PATH%",
    "unicode": "dossier été 日本",
    "shell": "a;touch pwned|&& > < * ? [a] ~ # !",
    "newline": "a\nb",
    "backslash": "a\\nb\\",
    "hyphen": "--help",
}

# A session's kernel runs the line as a cell; what it starts instead of Dask shows the arguments that arrived.
KERNEL = """
import json, os, sys
from IPython.core.interactiveshell import InteractiveShell
shell = InteractiveShell()
shell.user_ns.update(x="replaced", id="replaced", HOME="replaced")
for case in json.load(sys.stdin):
    os.environ.update(case["env"])
    shell.run_cell(case["line"])
"""
SHOW = "#!{python}\nimport json, sys\nprint('ARGV ' + json.dumps(sys.argv[1:]))\nprint('oops', file=sys.stderr)\n"


@pytest.fixture(scope="module")
def arrived(tmp_path_factory):
    """By folder name: where it is, and what the scheduler's and the worker's program got as arguments."""
    tmp_path = tmp_path_factory.mktemp("kernel")
    cases, folders = [], {}
    for key, name in HOSTILE.items():
        folder = folders[key] = tmp_path / name
        (folder / "logs").mkdir(parents=True)
        for name in ("scheduler.json", "ca.pem", "cert.pem", "key.pem"):
            (folder / name).touch()
        program = folder / "show me"
        program.write_text(SHOW.format(python=sys.executable))
        program.chmod(0o700)
        settings = make_settings(python=str(program), gpu=1)
        lines = {
            "sched": (shell_lines.scheduler_line(settings, 8786), shell_lines.scheduler_environment(settings, folder)),
            "work": (shell_lines.worker_line(settings), shell_lines.worker_environment(settings, folder)),
        }
        for session, (line, environment) in lines.items():
            platform = {"CDSW_ENGINE_ID": session, "CDSW_IP_ADDRESS": "100.66.0.1", "CDSW_READONLY_PORT": "8090"}
            cases.append({"line": line, "env": {**environment, **platform}})
    (tmp_path / "home").mkdir()
    kernel = subprocess.run(
        [sys.executable, "-c", KERNEL],
        input=json.dumps(cases),
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "HOME": str(tmp_path / "home"), "IPYTHONDIR": str(tmp_path / "home")},
    )
    assert kernel.returncode == 0, kernel.stderr
    assert not (tmp_path / "pwned").exists()
    logs = {
        key: {session: (folder / "logs" / f"{session}.log").read_text() for session in ("sched", "work")}
        for key, folder in folders.items()
    }
    return folders, logs


def argv(log):
    (line,) = [line for line in log.splitlines() if line.startswith("ARGV ")]
    return json.loads(line.removeprefix("ARGV "))


@pytest.mark.parametrize("key", HOSTILE)
def test_a_line_reaches_dask_as_it_was_meant_wherever_the_folder_is(arrived, key):
    folders, logs = arrived
    folder = str(folders[key])
    scheduler, worker = argv(logs[key]["sched"]), argv(logs[key]["work"])
    assert scheduler[:2] == [f"{folder}/session.py", "scheduler"]
    assert worker[:2] == [f"{folder}/session.py", "worker"]
    for arguments in (scheduler, worker):
        assert arguments[arguments.index("--scheduler-file") + 1] == f"{folder}/scheduler.json"
        assert arguments[arguments.index("--host") + 1] == "100.66.0.1"
        assert arguments[arguments.index("--tls-key") + 1] == f"{folder}/key.pem"
    assert scheduler[scheduler.index("--dashboard-address") + 1] == "127.0.0.1:8090"
    assert worker[worker.index("--name") + 1] == "work"


def test_what_a_session_prints_is_kept_errors_included(arrived):
    folders, logs = arrived
    assert "oops" in logs["plain"]["work"]
    assert (folders["plain"] / "logs" / "work.log").stat().st_mode & 0o077 == 0


def test_this_dask_knows_every_option_of_the_lines(arrived):
    _, logs = arrived
    scheduler = dask_scheduler.main.make_context("scheduler", argv(logs["plain"]["sched"])[2:], resilient_parsing=False)
    assert scheduler.params["port"] in (8786, "8786")
    worker = dask_worker.main.make_context("worker", argv(logs["plain"]["work"])[2:], resilient_parsing=False)
    assert worker.params["resources"] == "GPU=1"
    assert worker.params["nthreads"] == 2


def run(line, folder, **environment):
    return subprocess.run(
        ["/bin/sh", "-c", line.removeprefix("!")],
        env={"PATH": os.environ["PATH"], "CML_DASK_FOLDER": str(folder), "CDSW_ENGINE_ID": "late", **environment},
        capture_output=True,
    )


def test_a_session_that_starts_after_its_cluster_was_stopped_ends_at_once(tmp_path):
    (tmp_path / "logs").mkdir()
    marker = tmp_path / "program"
    marker.write_text("#!/bin/sh\ntouch started\n")
    marker.chmod(0o700)
    for line in (shell_lines.worker_line(make_settings()), shell_lines.scheduler_line(make_settings(), 0)):
        run(line, tmp_path, CML_DASK_PYTHON=str(marker))
    assert [path.name for path in tmp_path.iterdir() if path.name == "started"] == []
    assert (tmp_path / "logs" / "late.log").read_text() == ""


def test_a_session_without_an_address_of_its_own_in_the_environment_listens_everywhere(tmp_path):
    (tmp_path / "logs").mkdir()
    (tmp_path / "scheduler.json").touch()
    program = tmp_path / "program"
    program.write_text(SHOW.format(python=sys.executable))
    program.chmod(0o700)
    run(shell_lines.worker_line(make_settings()), tmp_path, CML_DASK_PYTHON=str(program))
    arguments = argv((tmp_path / "logs" / "late.log").read_text())
    assert arguments[arguments.index("--host") + 1] == "0.0.0.0"


@pytest.mark.parametrize("tls", [True, False])
@pytest.mark.parametrize("gpu", [0, 2])
@pytest.mark.parametrize("idle", [None, 1, 31536000])
def test_nothing_that_ipython_or_a_user_could_change_stands_in_a_line(tls, gpu, idle):
    settings = make_settings(
        tls=tls,
        gpu=gpu,
        idle_timeout_s=idle,
        name="NAMEOFUSER",
        env={"KEYOFUSER": "SECRET"},
        python="/PYTHON/OF/USER",
        state_directory=Path("/FOLDER/OF/USER"),
        dashboard_port=8100,
    )
    for line in (shell_lines.scheduler_line(settings, 8786), shell_lines.worker_line(settings)):
        assert line.startswith("!")
        assert not set(line) & set("{}\n`")
        for words in ("OFUSER", "SECRET", "OF/USER", "PEM", "/nowhere"):
            assert words not in line
        assert ("--tls-key" in line) == tls
        assert (" tcp" in line) == (not tls)
    assert ("--idle-timeout" in shell_lines.scheduler_line(settings, 0)) == (idle is not None)


@pytest.mark.parametrize("seconds", [1, 90.5, 3600, 1234567, 31536000])
def test_the_idle_timeout_arrives_as_long_as_it_was_given(seconds):
    from dask.utils import parse_timedelta

    words = shell_lines.scheduler_line(make_settings(idle_timeout_s=seconds), 0).split()
    assert parse_timedelta(words[words.index("--idle-timeout") + 1]) == seconds


def test_a_worker_waits_for_the_scheduler_as_long_as_the_user_does():
    words = shell_lines.worker_line(make_settings(timeout_s=1800)).split()
    assert float(words[words.index("--death-timeout") + 1]) >= 1800
    words = shell_lines.worker_line(make_settings(timeout_s=1)).split()
    assert float(words[words.index("--death-timeout") + 1]) >= 60


def test_the_users_environment_reaches_workers_and_cannot_displace_what_the_lines_need(tmp_path):
    settings = make_settings(env={"A": "1", "CML_DASK_FOLDER": "/elsewhere"}, dashboard_port=8123)
    worker = shell_lines.worker_environment(settings, tmp_path)
    assert (worker["A"], worker["CML_DASK_FOLDER"]) == ("1", str(tmp_path))
    scheduler = shell_lines.scheduler_environment(settings, tmp_path)
    assert "A" not in scheduler
    assert scheduler["CDSW_READONLY_PORT"] == "8123"
    assert "CDSW_READONLY_PORT" not in shell_lines.scheduler_environment(make_settings(), tmp_path)


def test_the_users_port_is_the_dashboards_and_only_on_loopback():
    assert '"127.0.0.1:8123"' in shell_lines.scheduler_line(make_settings(dashboard_port=8123), 0)
    assert "127.0.0.1:0" in shell_lines.worker_line(make_settings())


@pytest.mark.parametrize(("cpu", "threads"), [(0.1, 1), (0.5, 1), (1, 1), (1.9, 1), (2, 2), (7.5, 7), (16, 16)])
def test_a_worker_has_a_thread_for_each_whole_core(cpu, threads):
    assert shell_lines.worker_nthreads(make_settings(cpu=cpu)) == threads
    assert f"--nthreads {threads} " in shell_lines.worker_line(make_settings(cpu=cpu))


@pytest.mark.parametrize(("cpu", "processes", "threads"), [(4, 4, 1), (26, 4, 6), (2, 4, 1), (8, 3, 2)])
def test_the_workers_of_a_session_share_its_cores(cpu, processes, threads):
    line = shell_lines.worker_line(make_settings(cpu=cpu, processes=processes))
    assert f"--nthreads {threads} " in line and f"--nworkers {processes}" in line
    assert "--nworkers" not in shell_lines.worker_line(make_settings())


# What lies at the border of what a session's id can be: one that ends like a worker's number.
IDS = st.one_of(
    st.from_regex(r"[a-z0-9]{1,16}", fullmatch=True), st.from_regex(r"[a-z0-9]{1,8}(-[0-9]{1,4}){1,2}", fullmatch=True)
)


@given(IDS, st.integers(1, 2000), st.integers(2, 2000))
def test_a_workers_session_is_known_by_its_name_whatever_that_ends_in(session, number, processes):
    assert shell_lines.session_reader(1)(session) == session
    assert shell_lines.session_reader(processes)(f"{session}-{number}") == session
    # Several, though there should be one: as an older release started them on GPUs.
    assert shell_lines.session_reader(1, frozenset({session}))(f"{session}-{number}") == session
    assert shell_lines.session_reader(1, frozenset({session, f"{session}-1"}))(f"{session}-1") == f"{session}-1"


def test_dasks_scheduler_reads_sessions_from_names_without_this_package():
    sent = dumps(worker_key(shell_lines.session_reader(4)))
    code = (
        "import sys, types; sys.modules['cml_dask_magics'] = None\n"
        "import pickle; key = pickle.loads(sys.stdin.buffer.read())\n"
        "print(key(types.SimpleNamespace(name='ab-12-3')))"
    )
    assert subprocess.run([sys.executable, "-c", code], input=sent, capture_output=True).stdout == b"ab-12\n"


def test_gpus_are_a_resource_where_dask_cuda_is_not_installed():
    assert " --resources GPU=2 " in shell_lines.worker_line(make_settings(gpu=2))
    for gpus, processes in ((4, 4), (3, 2), (1, 2)):  # dealt out in the session: not all have as many
        line = shell_lines.worker_line(make_settings(gpu=gpus, processes=processes))
        assert "--preload-nanny" in line and "--resources" not in line and "cuda" not in line
    for processes in (1, 2):
        line = shell_lines.worker_line(make_settings(gpu=0, processes=processes))
        assert "GPU" not in line and "--preload-nanny" not in line


def test_dask_cuda_is_used_where_it_is_installed(tmp_path, monkeypatch):
    (tmp_path / "dask_cuda").mkdir()
    (tmp_path / "dask_cuda" / "__init__.py").touch()
    monkeypatch.syspath_prepend(str(tmp_path))
    line = shell_lines.worker_line(make_settings(gpu=2, processes=2))
    assert '/session.py" cuda worker ' in line
    assert " --resources GPU=1 " in line and "--nworkers" not in line and "--preload-nanny" not in line
    # It makes one worker for each GPU, and nothing else.
    assert "cuda" not in shell_lines.worker_line(make_settings(gpu=2, processes=1))
    assert "cuda" not in shell_lines.worker_line(make_settings(gpu=0))
