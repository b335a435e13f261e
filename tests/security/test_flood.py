"""A session can be neither filled nor stalled: its log has a bound, and who shows no certificate is dropped."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import random
import resource
import socket
import ssl
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import dask
import pytest
from distributed.comm.core import connect
from distributed.security import Security
from hypothesis import given
from hypothesis import strategies as st
from tornado.iostream import StreamClosedError

from cml_dask_magics import CMLCluster
from cml_dask_magics.fleet.session_guards import Door, GuardedListener
from cml_dask_magics.fleet.session_keeper import BoundedFile, Repeats, keep
from cml_dask_magics.registry.registry import Registry
from cml_dask_magics.registry.run_folder import read_tail

pytestmark = [pytest.mark.dask, pytest.mark.usefixtures("by_value")]


def written(lines: list[bytes]) -> list[bytes]:
    """What is left of lines that come one after the other."""
    repeats = Repeats()
    return [piece for line in lines for piece in repeats.feed(line)] + list(repeats.flush())


def test_repeated_lines_are_counted_and_not_repeated() -> None:
    lines = [b"begin\n"] + [b"same\n"] * 1001 + [b"end\n"]
    assert written(lines) == [b"begin\n", b"same\n", b"[the line above came 1,000 more times]\n", b"end\n"]


def test_blocks_of_lines_are_counted_whatever_the_time_in_front_of_them() -> None:
    block = [b"2026-01-31 12:00:%02d,123 - asyncio - ERROR - no more\n", b"Traceback:\n", b"  line\n", b"OSError\n"]
    lines = [line % (n % 60) if b"%" in line else line for n in range(500) for line in block] + [b"Traceback:\n"]
    found = written(lines)
    assert found[:4] == lines[:4]
    assert b"".join(found[4:]).count(b"\n") < 30 and b"more times]" in b"".join(found)
    assert found[-1] == b"Traceback:\n"


@given(st.lists(st.sampled_from([b"a\n", b"b\n", b"c\n"]), max_size=20))
def test_what_repeats_a_little_is_kept_as_it_came(lines: list[bytes]) -> None:
    assert written(lines) == lines


@given(st.lists(st.sampled_from([b"a\n", b"b\n", b"c\n"]), max_size=200))
def test_no_line_goes_uncounted(lines: list[bytes]) -> None:
    count = 0
    for line in written(lines):
        if line.startswith(b"[the "):
            words = line.split()
            of_block = 1 if words[1] == b"line" else int(words[1])
            count += of_block * int(words[words.index(b"came") + 1].replace(b",", b""))
        else:
            count += 1
    assert count == len(lines)


def test_a_full_log_keeps_its_newest_half_and_its_end_is_always_readable(tmp_path: Path) -> None:
    path = tmp_path / "x.log"
    path.write_bytes(b"from the shell\n")
    log = BoundedFile(str(path), most_bytes=10_000)
    for number in range(5000):
        log.write(b"line %05d\n" % number)
        assert read_tail(path, 1) == [f"line {number:05d}"]
        assert path.stat().st_size <= 10_000
    kept = path.read_text().splitlines()
    assert kept[0].startswith("[older output was removed") and len(kept) > 400
    assert kept[1:] == [f"line {number:05d}" for number in range(5000 - len(kept) + 1, 5000)]


def test_a_log_on_a_full_disk_costs_its_lines_and_says_so(tmp_path: Path, full_disk: Any) -> None:
    path = tmp_path / "x.log"
    path.touch()
    log = BoundedFile(str(path))
    with full_disk():
        log.write(b"lost\n")
    log.write(b"kept\n")
    assert path.read_text() == "[5 bytes of output could not be written]\nkept\n"
    BoundedFile(str(tmp_path / "missing.log")).write(b"nobody waits for this\n")
    assert not (tmp_path / "missing.log").exists()


def test_output_without_an_end_is_shown_and_what_comes_last_of_all_is_not_lost(tmp_path: Path) -> None:
    path = tmp_path / "x.log"
    path.touch()
    source, output = os.pipe()
    life, our_life = os.pipe()
    keeper = threading.Thread(target=keep, args=(BoundedFile(str(path)), source, life))
    keeper.start()
    os.write(output, b"50 %\r")
    while path.read_bytes() != b"50 %\r":
        pass
    os.write(output, b"done\nlast words")
    os.close(our_life)  # as when Dask's process is killed, while something of it still holds the other
    keeper.join()
    assert path.read_bytes() == b"50 %\rdone\nlast words"
    for descriptor in (source, output, life):
        os.close(descriptor)


@pytest.mark.long
def test_a_sessions_log_is_bounded_whatever_its_tasks_print(state: Path) -> None:
    def shout() -> None:
        for number in range(240):
            print("\n".join(f"{number} {random.random()} {'.' * 400}" for _ in range(250)))
        print("the end of it")

    with CMLCluster(n_workers=1, local=True) as cluster, cluster.get_client() as client:
        client.submit(shout, pure=False).result()
        (session,) = cluster.plan
        folder = Registry(state).latest_log_folder(cluster.name)
        assert folder is not None
        log = folder / f"{session}.log"
        while "the end of it" not in read_tail(log, 5):
            pass
        assert 9e6 < log.stat().st_size <= 20e6
        client.submit(lambda: [print("again") for _ in range(100_000)], pure=False).result()
        while not any("more times]" in line for line in read_tail(log, 5)):
            pass


ALERT = bytes.fromhex("15030300020246")  # TLS: this is no protocol version that I know


@pytest.fixture(scope="module")
def security() -> Security:
    return Security.temporary()


def test_who_shows_no_certificate_is_dropped_and_told_of_once(
    security: Security, caplog: pytest.LogCaptureFixture
) -> None:
    async def run() -> None:
        served: list[Any] = []

        async def handle(comm: Any) -> None:
            served.append(await comm.read())

        listener = GuardedListener("127.0.0.1", handle, **security.get_listen_args("scheduler"))
        with dask.config.set({"distributed.comm.timeouts.connect": "0.3s"}):
            await listener.start()
        address = listener.get_host_port()
        idle = [await asyncio.open_connection(*address) for _ in range(20)]
        plain = [await asyncio.open_connection(*address) for _ in range(20)]
        for _, writer in plain:
            writer.write(b"GET / HTTP/1.1\r\n\r\n")
        for reader, writer in [*idle, *plain]:
            with contextlib.suppress(ConnectionError):
                assert await reader.read() in (b"", ALERT)
            writer.close()
        comm = await connect(f"tls://127.0.0.1:{address[1]}", **security.get_connection_args("client"))
        await comm.write("let in")
        while not served:
            await asyncio.sleep(0.01)
        assert served == ["let in"]
        await comm.close()
        listener.stop()

    with caplog.at_level(logging.WARNING):
        asyncio.run(run())
    assert len([record for record in caplog.records if "refused" in record.getMessage()]) == 1


def test_who_only_looks_whether_something_listens_raises_no_alarm(
    security: Security, caplog: pytest.LogCaptureFixture
) -> None:
    async def run() -> None:
        async def handle(comm: Any) -> None:
            pytest.fail("nobody showed a certificate")

        listener = GuardedListener("127.0.0.1", handle, **security.get_listen_args("scheduler"))
        await listener.start()
        address = listener.get_host_port()
        for _ in range(20):
            reader, writer = await asyncio.open_connection(*address)
            writer.write_eof()
            await reader.read()  # until it is dropped
            writer.close()
        assert not caplog.records
        reader, writer = await asyncio.open_connection(*address)
        writer.write(b"GET / HTTP/1.1\r\n\r\n")
        with contextlib.suppress(ConnectionError):
            await reader.read()
        while not caplog.records:
            await asyncio.sleep(0.01)
        writer.close()
        listener.stop()

    with caplog.at_level(logging.WARNING):
        asyncio.run(run())
    (record,) = caplog.records
    message = record.getMessage()
    assert message.startswith(
        "1 connection without this cluster's certificate was refused; the latest from 127.0.0.1: "
    )
    assert "HTTP_REQUEST" in message, "the reason is said"


class Stream:
    """A connection whose handshake takes until it is closed, or for ever."""

    def __init__(self) -> None:
        self._closed = asyncio.get_running_loop().create_future()

    def close(self) -> None:
        self._closed.set_exception(StreamClosedError())

    async def wait_for_handshake(self) -> None:
        await self._closed

    @property
    def closed(self) -> bool:
        return self._closed.done()


def test_when_too_many_wait_the_host_with_the_most_loses_its_oldest() -> None:
    async def run() -> None:
        door = Door(timeout_s=1000, most=5)
        streams = [(Stream(), host) for host in ("bad", "good", "bad", "bad", "bad", "good", "bad")]
        waiting = [asyncio.ensure_future(door.admits(stream, host)) for stream, host in streams]
        await asyncio.sleep(0.05)
        assert [stream.closed for stream, _ in streams] == [True, False, True, False, False, False, False]
        for (stream, _), future in zip(streams, waiting, strict=True):
            if not stream.closed:
                stream.close()
            assert await future is False

    asyncio.run(run())


FLOOD = """
import socket, sys, time
held = [socket.create_connection(("127.0.0.1", int(sys.argv[1]))) for _ in range(750)]
print("held", flush=True)
sys.stdin.read()
"""
LIMITED = """
import os, subprocess, sys
from distributed import Client
from cml_dask_magics import CMLCluster

with CMLCluster(n_workers=1, local=True, name="flooded") as cluster:
    port = cluster.scheduler_address.rpartition(":")[2]
    floods = [subprocess.Popen([sys.executable, "-c", sys.argv[1], port], stdin=-1, stdout=-1) for _ in range(2)]
    for flood in floods:
        assert flood.stdout.readline() == b"held\\n"
    for _ in range(3):  # somebody new gets in, and what runs goes on
        with Client(cluster.scheduler_address, security=cluster.security, timeout=60) as client:
            assert client.submit(sum, [1, 2], pure=False).result(timeout=60) == 3
            opened = client.run_on_scheduler(lambda: len(os.listdir("/proc/self/fd")))
            assert opened < 1024, opened
    for flood in floods:
        flood.communicate()
"""


@pytest.mark.long
@pytest.mark.skipif(sys.platform != "linux", reason="counts descriptors in /proc")
def test_1500_idle_connections_against_1024_descriptors(state: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-c", LIMITED, FLOOD],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (1024, 1024)),
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert result.returncode == 0, result.stderr
    logs = list(state.glob("**/logs/*.log"))
    assert len(logs) == 2
    for log in logs:
        assert log.stat().st_size < 100_000
        assert "Too many open files" not in log.read_text()


@pytest.mark.long
def test_thousands_of_bad_handshakes_write_a_few_lines(state: Path) -> None:
    with CMLCluster(n_workers=1, local=True) as cluster, cluster.get_client() as client:
        host, _, port = cluster.scheduler_address.removeprefix("tls://").rpartition(":")
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        for number in range(5000):
            with socket.create_connection((host, int(port))) as connection:
                if number % 50 == 0:
                    with contextlib.suppress(OSError), context.wrap_socket(connection) as wrapped:
                        wrapped.recv(1)
                else:
                    connection.send(b"GET / HTTP/1.1\r\n\r\n")
        assert client.submit(sum, [1, 2]).result() == 3
        assert all(log.stat().st_size < 20_000 for log in state.glob("**/logs/*.log"))


def test_sessions_may_open_what_the_system_allows(state: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, 2048), hard))
        with CMLCluster(n_workers=1, local=True) as cluster, cluster.get_client() as client:
            limits = [client.run_on_scheduler(soft_limit), *client.run(soft_limit).values()]
            limits += client.run(soft_limit, nanny=True).values()
        assert set(limits) == {min(hard, 2**20)}
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def soft_limit() -> int:
    import resource

    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]
