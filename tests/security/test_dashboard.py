"""The dashboard shows this cluster, to its user's own pages."""

from __future__ import annotations

import contextlib
import http.client
import re
import socket
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import dask
import pytest

from cml_dask_magics import CMLCluster
from cml_dask_magics.fleet.session_guards import dashboard_hosts, is_own_host, is_own_page

pytestmark = pytest.mark.dask

WEBSOCKET = {
    "Upgrade": "websocket",
    "Connection": "Upgrade",
    "Sec-WebSocket-Key": "MDAwMDAwMDAwMDAwMDAwMA==",
    "Sec-WebSocket-Version": "13",
}


def asked(link: str, path: str, **headers: str) -> int:
    """The status of the answer to a request."""
    port = urlsplit(link).port
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    with contextlib.closing(connection):
        connection.request("GET", path, headers=headers)
        status = connection.getresponse().status
    return asked(link, path, **headers) if status == 307 else status  # that was before the dashboard was there


def listened(link: str, origin: str, **headers: str) -> bool:
    """Whether a page may open the dashboard's websocket."""
    status = asked(link, "/status/ws", Origin=origin, **WEBSOCKET, **headers)
    assert status in (101, 403)
    return status == 101


@pytest.fixture
def other() -> Iterator[socket.socket]:
    """A server of somebody else."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.5)
        yield server


@pytest.fixture
def link(state: Path) -> Iterator[str]:
    """The dashboard of a running scheduler, behind a proxy of which Dask's own setting tells."""
    template = "https://lab.example.site/proxy/{port}/status"
    with dask.config.set({"distributed.dashboard.link": template}), CMLCluster(n_workers=0, local=True) as cluster:
        port = cluster.scheduler_info["services"]["dashboard"]
        assert cluster.dashboard_link == template.format(port=port)
        yield f"http://127.0.0.1:{port}/status"


def test_it_serves_nothing_of_other_hosts_and_no_page_of_others_listens(link: str, other: socket.socket) -> None:
    port, own = other.getsockname()[1], urlsplit(link).port
    assert asked(link, "/status") == 200
    assert asked(link, f"/proxy/{port}/127.0.0.1/secret") == 404
    assert asked(link, f"/proxy/{port}/127.0.0.1/secret", Origin="http://127.0.0.1", **WEBSOCKET) == 404
    with pytest.raises(TimeoutError):
        other.accept()

    assert listened(link, f"http://127.0.0.1:{own}")
    assert listened(link, "http://localhost:8888")  # JupyterLab's side bar
    assert listened(link, "https://lab.example.site")
    assert listened(link, "https://hub.example.site", Host="hub.example.site")  # a proxy that hands the host on
    for origin in ("https://evil.example", "http://127.0.0.1.evil.example", "https://lab.example.site.evil.example"):
        assert not listened(link, origin)
    assert not listened(link, "null")
    # A name of somebody else's that points to this machine.
    assert asked(link, "/status", Host=f"evil.example:{own}") == 403
    assert not listened(link, f"http://evil.example:{own}", Host=f"evil.example:{own}")


def test_the_link_is_the_port_that_the_scheduler_bound_and_not_who_bound_it_first(
    state: Path, other: socket.socket
) -> None:
    taken = other.getsockname()[1]
    with CMLCluster(n_workers=0, local=True, dashboard_port=taken) as cluster:
        assert urlsplit(cluster.dashboard_link).port not in (None, taken)
        assert cluster.status().dashboard_link == cluster.dashboard_link
        assert asked(cluster.dashboard_link, "/status") == 200


def test_without_a_dashboard_nothing_is_served_and_nothing_linked(state: Path) -> None:
    with CMLCluster(n_workers=0, local=True, no_dashboard=True) as cluster:
        assert cluster.dashboard_link == "" and cluster.status().dashboard_link is None
        port = cluster.scheduler_info["services"]["dashboard"]
        for path in ("/", "/status", "/info/main/workers.html", "/metrics", "/json/counts.json"):
            assert asked(f"http://127.0.0.1:{port}", path) == 404


@pytest.mark.parametrize(
    ("asked_for", "is_own"),
    [
        ("127.0.0.1:8787", True),
        ("localhost:8787", True),
        ("[::1]:8787", True),
        ("hub.example.site", True),  # another port: through a proxy
        ("hub.example.site:8000", True),
        ("lab.example.site:8787", True),
        ("evil.example:8787", False),
        ("127.0.0.1.evil.example:8787", False),
        ("[:8787", False),
    ],
)
def test_whose_name_it_is_asked_by(asked_for: str, is_own: bool) -> None:
    assert is_own_host(asked_for, 8787, ["lab.example.site"]) is is_own


def test_the_hosts_of_links_are_known_by_the_platform_and_by_the_settings() -> None:
    hosts = dashboard_hosts("https://{session}-dash.proxy.site/", "ml.example.site", "x0")
    assert set(hosts) >= {"x0.ml.example.site", "read-only-x0.ml.example.site", "x0-dash.proxy.site"}
    assert not is_own_page("https://x1.ml.example.site", "x0.ml.example.site", hosts)  # somebody else's session
    with dask.config.set({"distributed.dashboard.link": "{NOT_SET_HERE}proxy/{port}/status"}):
        assert dashboard_hosts("{app_url}", "", "x0") == []


def test_a_list_of_origins_of_the_users_adds_to_ours(state: Path) -> None:
    key = "distributed.scheduler.dashboard.bokeh-application.allow_websocket_origin"
    with dask.config.set({key: ["more.example:443"]}), CMLCluster(n_workers=0, local=True) as cluster:
        assert listened(cluster.dashboard_link, "https://more.example:443")
        assert not listened(cluster.dashboard_link, "https://evil.example")
        assert re.match(r"http://127\.0\.0\.1:\d+/status", cluster.dashboard_link)
