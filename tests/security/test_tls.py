"""Where a cluster has TLS, only ``tls://`` is connected to, whatever file says otherwise."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from contract.patience import eventually
from hypothesis import strategies as st
from IPython.core.interactiveshell import InteractiveShell
from support.cases import ANYTHING, MANY
from support.on_record import World

from cml_dask_magics import CMLCluster
from cml_dask_magics.fleet.opening import settings_of
from cml_dask_magics.magics.kernel_clusters import kernel_clusters
from cml_dask_magics.model.record import Owner, Record
from cml_dask_magics.registry.certificates import client_security
from cml_dask_magics.registry.files import write_private
from cml_dask_magics.registry.liveness import scheduler_address

pytestmark = pytest.mark.dask

OPEN = ["tcp", "ws", "wss", "ucx", "inproc", "http", "TLS", ""]


@pytest.fixture
def trap() -> Iterator[tuple[int, list[bytes]]]:
    """A port on which somebody waits for a kernel that says more than that it is there."""
    heard: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.1)
        closing = threading.Event()

        def listen() -> None:
            while not closing.is_set():
                try:
                    connection, _ = server.accept()
                except TimeoutError:
                    continue
                with connection:
                    connection.settimeout(2)
                    try:
                        heard.append(connection.recv(5))
                    except OSError:
                        heard.append(b"")

        thread = threading.Thread(target=listen)
        thread.start()
        yield server.getsockname()[1], heard
        closing.set()
        thread.join()


def tamper(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    data = json.loads(path.read_text())
    change(data)
    write_private(path, json.dumps(data))


def say_plain(data: dict[str, Any]) -> None:
    data.update(state="running")
    data["settings"]["tls"] = False


@pytest.mark.parametrize("protocol", OPEN)
@pytest.mark.parametrize("where", ["scheduler.json", "record.json"])
def test_looking_at_a_cluster_says_nothing_to_whom_speaks_no_tls(
    world: World, shell: InteractiveShell, trap: tuple[int, list[bytes]], protocol: str, where: str
) -> None:
    port, heard = trap
    cluster = world.start()
    address = f"{protocol}://127.0.0.1:{port}" if protocol else f"127.0.0.1:{port}"
    tamper(world.record_of(), say_plain)
    if where == "record.json":
        tamper(world.record_of(), lambda data: data.update(scheduler_address=address))
    else:
        write_private(cluster.folder / "scheduler.json", json.dumps({"address": address}))
    assert world.open().settings.tls, "the certificates tell"
    assert scheduler_address(world.open().record, cluster.folder) is None
    shell.run_line_magic("dask_status", "--text")
    with pytest.raises(RuntimeError, match="did not come up"):
        CMLCluster.from_name("default")
    assert client_security({"address": address}) is None
    assert not any(heard)
    kernel_clusters.down(world.registry.state_directory, "default")
    assert not world.ours()


def test_whom_a_cluster_with_tls_connects_to_must_show_its_certificate(
    world: World, shell: InteractiveShell, trap: tuple[int, list[bytes]]
) -> None:
    port, heard = trap
    cluster = world.start(timeout=1)
    tamper(world.record_of(), say_plain)
    write_private(cluster.folder / "scheduler.json", json.dumps({"address": f"tls://127.0.0.1:{port}"}))
    with pytest.raises(RuntimeError):
        CMLCluster.from_name("default")
    deadline = time.monotonic() + 60
    while not any(heard) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert {each[:3] for each in heard if each} == {b"\x16\x03\x01"}, "a handshake, and nothing else"
    kernel_clusters.down(world.registry.state_directory, "default")


@pytest.mark.parametrize(
    "protocol", ["ws", pytest.param("wss", marks=pytest.mark.long), pytest.param("tcp", marks=pytest.mark.long)]
)
def test_a_new_session_says_nothing_to_whom_speaks_no_tls(
    state: Path, trap: tuple[int, list[bytes]], protocol: str
) -> None:
    port, heard = trap
    address = f"{protocol}://127.0.0.1:{port}"
    with CMLCluster(n_workers=1, local=True) as cluster:
        before = set(cluster.plan)
        (file,) = state.rglob("scheduler.json")
        write_private(file, json.dumps({"address": address}))
        cluster.scale(2)
        (new,) = set(cluster.plan) - before
        log = file.parent / "logs" / f"{new}.log"
        eventually(lambda: any(heard) or (log.exists() and "refused: " in log.read_text()))
        assert not any(heard)
        assert f"refused: {address} is no tls://host:port, and this cluster has TLS" in log.read_text()


async def refusals(address: str, dask_worker: Any = None, dask_scheduler: Any = None) -> list[str]:
    """What a session's process says when it is to connect and to listen, with its own arguments and with none."""
    from distributed.comm import connect, listen

    words = []
    for arguments in ((dask_worker or dask_scheduler).connection_args, {}):
        for attempt in (connect, lambda address, **arguments: listen(address, print, **arguments)):
            try:
                await attempt(address, **arguments)
            except RuntimeError as error:
                words.append(str(error))
    return words


async def heard_by_itself(protocol: str) -> str:
    """What a session's process hears when it connects to itself."""
    from distributed.comm import connect, listen

    async def answer(comm: Any) -> None:
        await comm.write("heard")

    async with listen(f"{protocol}://127.0.0.1:0", answer) as listener:
        comm = await connect(listener.contact_address)
        return str(await comm.read())


@pytest.mark.usefixtures("by_value")
def test_no_process_of_a_session_connects_or_listens_without_tls(state: Path, trap: tuple[int, list[bytes]]) -> None:
    port, heard = trap
    address = f"ws://127.0.0.1:{port}"
    with CMLCluster(n_workers=1, local=True) as cluster, cluster.get_client() as client:
        said = [client.run_on_scheduler(refusals, address), *client.run(refusals, address, nanny=True).values()]
        said += client.run(refusals, address).values()  # a copy of its session's process
        client.restart()
        said += client.run(refusals, address).values()  # an interpreter of its own
        assert said == [[f"refused: {address} is no tls://host:port, and this cluster has TLS"] * 4] * 4
        assert not any(heard)


@pytest.mark.usefixtures("by_value")
@pytest.mark.filterwarnings("ignore:.*runs without TLS")
def test_without_tls_the_sessions_connect_as_dask_does(state: Path) -> None:
    with CMLCluster(n_workers=1, local=True, no_tls=True) as cluster, cluster.get_client() as client:
        for protocol in ("tcp", "ws"):
            assert client.run_on_scheduler(heard_by_itself, protocol) == "heard"
            assert [*client.run(heard_by_itself, protocol).values()] == ["heard"]


def test_a_lost_cluster_is_started_anew_with_tls_whatever_its_record_says(world: World) -> None:
    cluster = world.start()
    tamper(world.record_of(), say_plain)
    record = world.registry.read("default")
    assert record is not None and record.settings["tls"] is False
    before = settings_of(record, cluster.folder)
    assert before is not None and before.tls
    world.open().end()


def test_a_cluster_that_was_started_without_tls_has_none(world: World) -> None:
    cluster = world.start(no_tls=True)
    assert not world.open().settings.tls
    write_private(cluster.folder / "scheduler.json", '{"address": "tcp://127.0.0.1:8786"}')
    assert scheduler_address(cluster.record, cluster.folder) == "tcp://127.0.0.1:8786"
    write_private(cluster.folder / "scheduler.json", '{"address": "ws://127.0.0.1:8786"}')
    assert scheduler_address(cluster.record, cluster.folder) is None
    world.open().end()


ADDRESSES = st.one_of(
    ANYTHING,
    st.builds("{}://{}:{}".format, st.sampled_from(["tls", "tcp", "ws"]), st.text(max_size=20), st.integers(-1, 99999)),
    st.from_regex(r"tls://.{0,30}"),
)


@pytest.mark.parametrize("tls", [True, False])
def test_whatever_a_scheduler_file_says_an_address_comes_out_or_none(tmp_path: Path, tls: bool) -> None:
    run = tmp_path / "run"
    run.mkdir(0o700)
    record = Record("default", "0000aaaa", "cml", 1.0, Owner("", "", 1), settings={"tls": tls}, requested=1)

    @MANY
    @hypothesis.given(ADDRESSES | ANYTHING.map(lambda value: {"address": value}), st.booleans())
    def read(said: Any, whole: bool) -> None:
        try:
            text = json.dumps(said if isinstance(said, dict) else {"address": said})
        except ValueError:
            text = str(said)
        write_private(run / "scheduler.json", (text if whole else text[:-2]).encode(errors="replace"))
        address = scheduler_address(record, run)
        assert address is None or (address.isprintable() and " " not in address and len(address) < 300)
        assert address is None or address.startswith("tls://" if tls else "tcp://")

    read()
