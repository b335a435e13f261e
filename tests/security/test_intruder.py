"""A pod of somebody else on the network tries every port and every way in; and no key or secret lies about.

The tests look at one cluster, and change nothing.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import pytest
from distributed.security import Security
from support.notebook import Notebook
from workspace import Workspace

from cml_dask_magics.registry.certificates import write_certificates

pytestmark = [pytest.mark.dask, pytest.mark.workspace, pytest.mark.xdist_group("intruder")]

SECRET = "s3cret-4711-of-the-user"

SCAN = """
import json, selectors, socket, sys
found = {}
for host in sys.argv[1:]:
    found[host] = []
    for port in range(1, 65536):
        with socket.socket() as probe:
            probe.settimeout(5)
            if probe.connect_ex((host, port)) == 0:
                found[host].append(port)
print(json.dumps(found))
"""

# Dask's server speaks first: whoever reads a byte of it is in.
TRY = """
import json, socket, ssl, sys

def plain(address):
    with socket.create_connection(address, timeout=10) as connection:
        connection.settimeout(0.5)
        try:
            return bool(connection.recv(1))
        except TimeoutError:
            pass
        connection.settimeout(10)
        connection.sendall(b"GET / HTTP/1.1\\r\\nHost: x\\r\\n\\r\\n")
        answer = b""
        while piece := connection.recv(100):
            answer += piece
        return not (answer == b"" or answer[0] == 0x15)  # nothing, or an alert of TLS

def tls(address, *files):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    if files:
        context.load_cert_chain(*files)
    with socket.create_connection(address, timeout=10) as connection:
        with context.wrap_socket(connection) as wrapped:
            return bool(wrapped.recv(1))

ways, addresses = json.loads(sys.argv[1]), json.loads(sys.argv[2])
found = {way: [] for way in ways}
for way, files in ways.items():
    for address in map(tuple, addresses):
        try:
            got_in = plain(address) if files is None else tls(address, *files)
        except (OSError, ssl.SSLError):
            got_in = False
        if got_in:
            found[way].append(address)
print(json.dumps(found))
"""
# What every process of a session was started with, and has in its environment.
LOOK = """
import json, pathlib
found = {}
for process in pathlib.Path("/proc").glob("[0-9]*"):
    try:
        words = [(process / name).read_bytes().decode(errors="replace") for name in ("cmdline", "environ")]
    except OSError:
        continue
    found[process.name] = words
print(json.dumps(found))
"""


# A page asks the dashboard, in the scheduler's own session, for its websocket.
LISTEN = """
import http.client, json, sys, urllib.request
urllib.request.urlopen("http://127.0.0.1:8090/status").close()  # until the dashboard is there
answers = []
for origin in sys.argv[1:]:
    connection = http.client.HTTPConnection("127.0.0.1", 8090, timeout=10)
    connection.request("GET", "/status/ws", headers={
        "Origin": origin, "Upgrade": "websocket", "Connection": "Upgrade",
        "Sec-WebSocket-Key": "MDAwMDAwMDAwMDAwMDAwMA==", "Sec-WebSocket-Version": "13",
    })
    answers.append(connection.getresponse().status)
    connection.close()
print(json.dumps(answers))
"""


@pytest.fixture(scope="module")
def desk() -> Iterator[Notebook]:
    """A notebook with a cluster of two workers, one of them with a secret that was not typed."""
    with Workspace(start_delay_s=0.2) as workspace:
        session = workspace.open_session()
        kernel = session.kernel(env={"SECRET": SECRET})
        notebook = Notebook(workspace, session, kernel, workspace.launch_foreign(session))
        notebook.run("%load_ext cml_dask_magics\n%dask_up 2 --env SECRET")
        yield notebook
        notebook.run("%dask_down --all")
        assert not workspace.alive()


@pytest.fixture(scope="module")
def addresses(desk: Notebook) -> list[tuple[str, int]]:
    """Every port that is open to the network, by a scan from a pod of somebody else."""
    if desk.workspace.isolation != "namespaces":
        pytest.skip("there is no network to scan without network namespaces")
    shown = desk.status()
    hosts = [session["ip_address"] for session in (shown["scheduler"], *shown["workers"])]
    result = intruder(desk).exec(["python3", "-c", SCAN, *hosts], timeout=200)
    found: dict[str, list[int]] = json.loads(result.stdout)
    assert found[hosts[0]] == [8786]  # the scheduler; its dashboard is not among them
    assert all(len(found[host]) == 2 for host in hosts[1:])  # worker and nanny
    return [(host, port) for host, ports in found.items() for port in ports]


def intruder(desk: Notebook) -> Any:
    return desk.workspace.open_session()


def certificate_files(folder: Path) -> list[str]:
    return [str(folder / "cert.pem"), str(folder / "key.pem")]


def test_no_port_lets_an_intruder_in_whatever_he_shows(
    desk: Notebook, addresses: list[tuple[str, int]], tmp_path: Path
) -> None:
    folder = desk.workspace.home / "of-the-intruder"
    for name in ("another", "self-signed"):
        (folder / name).mkdir(parents=True)
    write_certificates(folder / "another")
    self_signed = Security.temporary()
    (folder / "self-signed" / "cert.pem").write_text(self_signed.tls_client_cert)
    (folder / "self-signed" / "key.pem").write_text(self_signed.tls_client_key)
    ways = {
        "plain": None,
        "no certificate": [],
        "self-signed": certificate_files(folder / "self-signed"),
        "another cluster's": certificate_files(folder / "another"),
        "its own": certificate_files(run_folder(desk)),  # of the cluster: what the others are measured by
    }
    result = intruder(desk).exec(["python3", "-c", TRY, json.dumps(ways), json.dumps(addresses)], timeout=200)
    found = json.loads(result.stdout)
    assert sorted(map(tuple, found.pop("its own"))) == sorted(addresses), result.stderr
    assert found == {"plain": [], "no certificate": [], "self-signed": [], "another cluster's": []}
    assert desk.run("print(client.submit(sum, range(10), pure=False).result())").strip() == "45"


def run_folder(desk: Notebook) -> Path:
    (folder,) = (path.parent for path in desk.workspace.home.rglob("key.pem") if path.parent.parent.name == "runs")
    return folder


def pieces_of_keys(desk: Notebook) -> list[str]:
    """Lines of the cluster's private key and certificate, as they stand and as they would be escaped."""
    folder = run_folder(desk)
    lines = [(folder / name).read_text().splitlines()[2] for name in ("key.pem", "cert.pem")]
    assert all(len(line) > 40 for line in lines)
    return lines


def test_no_key_and_no_secret_lies_where_others_look(desk: Notebook) -> None:
    desk.run("print(client.submit(sum, range(10), pure=False).result())")
    keys = pieces_of_keys(desk)
    shown = {
        "requests": json.dumps([vars(call) for call in desk.workspace.calls() if call.call != "launch"], default=str),
        "codes": json.dumps([desk.workspace.session(session).code for session in desk.workspace.alive()]),
        "status": desk.run("%dask_status --json\n%dask_status --text"),
        "logs": desk.run("%dask_status --logs"),
        "outputs": "".join(desk.workspace.output(session) for session in desk.workspace.alive()),
        "panel": json.dumps(desk.kernel.run("cluster").displays, default=str),
        "names": desk.run("print(cluster, client, cluster.status())"),
    }
    for session in desk.workspace.alive():
        looked = json.loads(desk.workspace.exec_in(session, ["python3", "-c", LOOK]).stdout)
        shown[f"commands of {session}"] = "\n".join(command for command, _ in looked.values())
        environments = "\n".join(environment for _, environment in looked.values())
        assert not any(key in environments for key in keys)
        is_scheduler = session == desk.status()["scheduler"]["session"]
        assert (SECRET in environments) is not is_scheduler  # the workers' environment is what it is for
    launches = [vars(call) for call in desk.workspace.calls("launch")]
    shown["launch requests"] = json.dumps(launches, default=str).replace(f'"SECRET": "{SECRET}"', "")
    assert all(text for where, text in shown.items() if where != "outputs")
    for where, text in shown.items():
        assert not any(key in text for key in (*keys, SECRET, "PRIVATE KEY")), where


def test_the_dashboard_listens_to_the_platforms_pages_of_this_session_alone(desk: Notebook) -> None:
    scheduler, domain = desk.status()["scheduler"]["session"], "ml-sim.example.site"
    link = desk.status()["dashboard_link"]
    own = [link.removesuffix("/status"), f"https://read-only-{scheduler}.{domain}", "http://127.0.0.1:8090"]
    others = [f"https://{desk.session.id}.{domain}", f"https://{domain}", f"{own[0]}.evil.example", "null"]
    answers = desk.workspace.exec_in(scheduler, ["python3", "-c", LISTEN, *own, *others])
    assert json.loads(answers.stdout) == [101] * len(own) + [403] * len(others), answers.stderr


def test_every_file_of_the_cluster_is_its_owners_alone(desk: Notebook) -> None:
    for path in (run_folder(desk), *run_folder(desk).rglob("*")):
        assert path.stat().st_mode & 0o077 == 0, path


@pytest.mark.long
def test_no_key_and_no_secret_is_in_an_executed_notebook(desk: Notebook) -> None:
    cells = [
        "%load_ext cml_dask_magics",
        "%dask_up 1 --name saved --env SECRET",
        f"import os\nassert [*client.run(lambda: len(os.environ['SECRET'])).values()] == [{len(SECRET)}]",
        "cluster",
        "client",
        "%dask_status saved",
        "%dask_status saved --text",
        "%dask_status saved --json",
        "%dask_status saved --logs",
        "from pathlib import Path\nkeys = [p.read_text() for p in Path.home().rglob('runs/saved-*/key.pem')]\n"
        "assert len(keys) == 1\nPath('keys-of-saved').write_text(keys[0]);",
        "%dask_down saved",
    ]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    path = desk.workspace.home / "to-save.ipynb"
    nbformat.write(notebook, path)
    command = ["python3", "-m", "nbconvert", "--to", "notebook", "--execute", "--inplace", path.name]
    result = desk.session.exec(command, timeout=200, env={"SECRET": SECRET})
    assert result.returncode == 0, result.stderr
    saved = path.read_text()
    key = (desk.workspace.home / "keys-of-saved").read_text().splitlines()[2]
    assert "Stopped cluster 'saved'" in saved
    assert SECRET not in saved and key not in saved and "PRIVATE KEY" not in saved
