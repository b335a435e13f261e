"""Which of several kernels steers a cluster."""

import json
import os
import socket
import subprocess
import sys
import time

import pytest

from cml_dask_magics.model.record import Owner, Record
from cml_dask_magics.model.times import USUAL
from cml_dask_magics.registry import lease as lease_module
from cml_dask_magics.registry.lease import Lease
from cml_dask_magics.registry.registry import Registry

HERE = Owner("", socket.gethostname(), os.getpid())
ELSEWHERE = Owner("s1", "another-pod", 77)


@pytest.fixture
def registry(tmp_path):
    registry = Registry(tmp_path / "state")
    registry.claim(Record("default", "0000aaaa", "cml", time.time(), HERE, settings={}, requested=1))
    return registry


@pytest.fixture
def clock(monkeypatch):
    """The lease's own clock, to be set forward."""

    class Clock:
        now = 1000.0

        def monotonic(self):
            return self.now

    clock = Clock()
    monkeypatch.setattr(lease_module, "time", clock)
    return clock


def holds(lease, clock):
    """Whether it has the lease, as its second look tells: the first only takes it."""
    lease.hold()
    clock.now += 2
    return lease.hold()


def test_of_two_kernels_one_steers_and_goes_on_steering(registry, clock):
    first, second = Lease(registry, "default", HERE), Lease(registry, "default", ELSEWHERE)
    assert holds(first, clock)
    for _ in range(50):
        clock.now += 2
        assert (first.hold(), second.hold()) == (True, False)


def test_a_kernel_that_says_nothing_any_more_is_followed_by_another(registry, clock):
    first, second = Lease(registry, "default", ELSEWHERE), Lease(registry, "default", HERE)
    assert holds(first, clock)
    assert not second.hold()
    clock.now += USUAL.lease_s + 1
    assert holds(second, clock)
    assert not first.hold(), "it was away for too long, and sees that"


def test_a_kernel_of_this_machine_that_died_is_followed_at_once(registry, clock):
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    dead = Owner("", socket.gethostname(), process.pid)
    assert holds(Lease(registry, "default", dead), clock)
    assert holds(Lease(registry, "default", HERE), clock)


def test_a_kernel_that_lets_go_is_followed_at_once(registry, clock):
    first = Lease(registry, "default", ELSEWHERE)
    assert holds(first, clock)
    first.release()
    assert holds(Lease(registry, "default", HERE), clock)


def test_no_time_of_day_is_told_to_kernels_whose_clocks_differ(registry, clock):
    assert holds(Lease(registry, "default", HERE), clock)
    assert set(json.loads((registry.folder("default") / "lease.json").read_text())) == {"holder", "kernel", "beats"}


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "null", '{"holder": 1}', '{"holder": "x", "kernel": {}, "beats": 0}']
)
def test_a_lease_that_is_nonsense_keeps_nobody_from_steering(registry, clock, content):
    (registry.folder("default") / "lease.json").write_text(content)
    assert holds(Lease(registry, "default", HERE), clock)


def test_who_cannot_write_does_not_steer(registry, clock, full_disk):
    lease = Lease(registry, "default", HERE)
    with full_disk():
        assert not holds(lease, clock)
    assert holds(lease, clock)


def test_two_that_take_it_at_once_without_locks_find_out_whose_it_is(registry, clock, monkeypatch):
    first, second = Lease(registry, "default", HERE), Lease(registry, "default", ELSEWHERE)
    read = Lease._read
    with monkeypatch.context() as patch:  # both read before either has written
        patch.setattr(Lease, "_read", lambda self: None)
        assert (first.hold(), second.hold()) == (False, False)
    assert Lease._read is read
    assert (first.hold(), second.hold()) == (False, True)


def test_a_cluster_that_is_gone_is_steered_by_nobody(registry, clock):
    lease = Lease(registry, "default", HERE)
    registry.forget(registry.read("default"))
    assert not holds(lease, clock)
    assert registry.names() == []
