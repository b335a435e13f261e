"""Whether a recorded cluster still answers."""

import json
import os
import socket
import subprocess
import sys
import time

import pytest

from cml_dask_magics.model.record import Owner, Record
from cml_dask_magics.registry.kernels import other_machine
from cml_dask_magics.registry.liveness import liveness, scheduler_address


def make_record(**fields):
    owner = fields.pop("owner", Owner("", socket.gethostname(), os.getpid()))
    defaults = {"created_at": time.time(), "settings": {"timeout_s": 300}, "requested": 1}
    return Record(name="default", token="0000aaaa", backend="cml", owner=owner, **{**defaults, **fields})


@pytest.fixture
def listener():
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def closed_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def dead_pid():
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


@pytest.mark.parametrize(
    ("backend", "host", "named"),
    [
        ("local", "another-host", "another-host"),
        ("local", socket.gethostname(), ""),
        ("local", "", ""),  # a record that was salvaged without it
        ("cml", "another-host", ""),  # whose sessions the platform lists and stops
    ],
)
def test_only_processes_are_of_one_machine(backend, host, named):
    record = Record("default", "0000aaaa", backend, 1.0, Owner("", host, 1), settings={}, requested=1)
    assert other_machine(record) == named


def test_a_scheduler_that_listens_answers(tmp_path, listener):
    record = make_record(scheduler_address=f"tls://127.0.0.1:{listener}", state="running")
    assert liveness(record, tmp_path, 1) == "answers"


def test_a_scheduler_that_only_its_file_knows_of_answers(tmp_path, listener):
    (tmp_path / "scheduler.json").write_text(json.dumps({"address": f"tls://127.0.0.1:{listener}"}))
    assert liveness(make_record(), tmp_path, 1) == "answers"


@pytest.mark.parametrize("state", ["starting", "running", "stopping"])
def test_a_scheduler_that_is_gone_is_silent(tmp_path, state):
    record = make_record(scheduler_address=f"tls://127.0.0.1:{closed_port()}", state=state)
    assert liveness(record, tmp_path, 1) == "silent"


def test_an_address_that_swallows_everything_costs_no_more_than_the_timeout(tmp_path):
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        address = full.getsockname()
        others = []
        for _ in range(4):  # a full queue of connections: the next one hangs
            other = socket.socket()
            other.setblocking(False)
            other.connect_ex(address)
            others.append(other)
        began = time.monotonic()
        answer = liveness(make_record(scheduler_address=f"tls://127.0.0.1:{address[1]}"), tmp_path, 0.3)
        assert time.monotonic() - began < 60  # the system itself gives up after more than two minutes
        assert answer == "silent"
        for other in others:
            other.close()


def test_a_cluster_whose_kernel_is_at_it_is_starting(tmp_path):
    (tmp_path / "scheduler.json").write_text("")
    assert liveness(make_record(), tmp_path, 1) == "starting"


def test_a_cluster_whose_kernel_died_while_starting_is_silent(tmp_path):
    record = make_record(owner=Owner("", socket.gethostname(), dead_pid()))
    assert liveness(record, tmp_path, 1) == "silent"


def test_a_process_id_that_came_round_again_does_not_keep_a_dead_start_alive(tmp_path):
    # Long after the start's deadline, whoever has that process id now is not the kernel that was starting it.
    record = make_record(created_at=time.time() - 86400, owner=Owner("", socket.gethostname(), 1))
    assert liveness(record, tmp_path, 1) == "silent"


@pytest.mark.parametrize(("age_s", "expected"), [(10, "starting"), (86400, "silent")])
def test_a_kernel_of_another_session_is_given_its_time_and_no_more(tmp_path, age_s, expected):
    record = make_record(created_at=time.time() - age_s, owner=Owner("other", "another-host", 1))
    assert liveness(record, tmp_path, 1) == expected


@pytest.mark.parametrize("state", ["running", "stopping"])
def test_a_cluster_without_an_address_that_is_not_starting_is_silent(tmp_path, state):
    assert liveness(make_record(state=state), tmp_path, 1) == "silent"


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "5", "null", '{"address": ', '{"other": 1}', '"tls://1.2.3.4:5"', "\0"]
)
def test_a_scheduler_file_that_is_half_written_means_not_yet(tmp_path, text):
    (tmp_path / "scheduler.json").write_text(text)
    assert scheduler_address(make_record(), tmp_path) is None
    assert liveness(make_record(), tmp_path, 1) == "starting"


@pytest.mark.parametrize(
    "address",
    ["tls://127.0.0.1:port", "tls://127.0.0.1:99999", "tls://[::1", "tls://" + "a" * 70 + ":80", "nonsense", ""],
)
def test_an_address_that_is_none_is_silent_and_not_a_crash(tmp_path, address):
    (tmp_path / "scheduler.json").write_text(json.dumps({"address": address}))
    assert liveness(make_record(state="running"), tmp_path, 1) == "silent"


@pytest.mark.parametrize("address", [None, 5, {"tls": 1}])
def test_an_address_of_the_wrong_kind_means_not_yet(tmp_path, address):
    (tmp_path / "scheduler.json").write_text(json.dumps({"address": address}))
    assert scheduler_address(make_record(), tmp_path) is None


@pytest.mark.parametrize("settings", [{}, {"timeout_s": None}, {"timeout_s": "soon"}])
def test_a_record_without_proper_settings_does_not_break_loading(tmp_path, settings):
    record = make_record(settings=settings, created_at=time.time() - 86400, owner=Owner("other", "another-host", 1))
    assert liveness(record, tmp_path, 1) == "silent"


def test_looking_imports_no_dask():
    program = (
        "import sys; import cml_dask_magics.registry.liveness; "
        "print('dask' in sys.modules or 'distributed' in sys.modules)"
    )
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "False"


@pytest.mark.parametrize("timeout_s", [10**400, float("nan"), float("inf"), -1, "soon", None])
def test_a_timeout_that_can_be_none_is_none(tmp_path, timeout_s):
    assert liveness(make_record(settings={"timeout_s": timeout_s}), tmp_path, 1) == "starting"
    record = make_record(settings={"timeout_s": timeout_s}, created_at=time.time() - 1000)
    assert liveness(record, tmp_path, 1) == "silent"
