"""What Dask does not do by itself: speak TLS alone, admit only who shows the certificate in time, guard its dashboard.

A copy of this file is in the cluster's run folder; scheduler, nannies and workers run it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import resource
import ssl
from collections.abc import Collection
from typing import Any
from urllib.parse import urlsplit

import dask.config
from dask.utils import parse_timedelta
from distributed.comm import registry
from distributed.comm.registry import backends
from distributed.comm.tcp import TLSBackend, TLSListener
from distributed.http.routing import RoutingApplication
from distributed.utils import format_dashboard_link
from tornado.iostream import StreamClosedError
from tornado.web import ErrorHandler

logger = logging.getLogger("distributed.comm")

_MOST_DESCRIPTORS = 2**20
_MOST_WAITING = 2000
_TOLD_EVERY_S = 30.0
_LOOPBACK = ("127.0.0.1", "localhost", "::1")
_PROXY = "distributed.http.proxy"
_SAFE_PROTOCOLS = ("tls", "inproc")


def raise_descriptor_limit() -> None:
    """Let this process, and those that it starts, open as many files and connections as the system allows."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = _MOST_DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, _MOST_DESCRIPTORS)
    if soft != resource.RLIM_INFINITY and soft < most:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
        except (OSError, ValueError) as error:
            print(f"At most {soft} files and connections at once: the limit cannot be raised ({error}).")


class Door:
    """Admits connections whose TLS handshake succeeds in time, and says now and then how many it refused.

    Who hangs up by himself is not refused: so does who only looks whether something listens here.

    Parameters
    ----------
    timeout_s : float
        How long a handshake may take.
    most : int
        How many may be under way at once. Above it, the host with the most of them loses its oldest.
    """

    def __init__(self, timeout_s: float, most: int) -> None:
        self._timeout_s = timeout_s
        self._most = most
        self._waiting: dict[str, dict[Any, None]] = {}
        self._refused = 0
        self._latest = ""
        self._tells: asyncio.TimerHandle | None = None

    async def admits(self, stream: Any, host: str) -> bool:
        """Whether the other side of a new connection shows the cluster's certificate in time."""
        waiting = self._waiting.setdefault(host, {})
        waiting[stream] = None
        if sum(map(len, self._waiting.values())) > self._most:
            most = max(self._waiting.values(), key=len)
            oldest = next(iter(most))
            del most[oldest]
            oldest.close()
        too_late = asyncio.get_running_loop().call_later(self._timeout_s, stream.close)
        try:
            await stream.wait_for_handshake()
        except OSError as error:
            if isinstance(error, StreamClosedError):  # by us
                self._refuse(host, f"no handshake within {self._timeout_s:g} s, or closed")
            elif not isinstance(error, (ssl.SSLEOFError, ConnectionError)):
                self._refuse(host, str(error))
            return False
        finally:
            too_late.cancel()
            waiting.pop(stream, None)
            if not waiting and self._waiting.get(host) is waiting:
                del self._waiting[host]
        return True

    def _refuse(self, host: str, why: str) -> None:
        self._refused += 1
        self._latest = f"{host}: {why}"
        if self._tells is None:  # the first at once, the others together
            self._tell()

    def _tell(self) -> None:
        self._tells = None
        if self._refused:
            who = "1 connection" if self._refused == 1 else f"{self._refused} connections"
            was = "was" if self._refused == 1 else "were"
            logger.warning(
                "%s without this cluster's certificate %s refused; the latest from %s", who, was, self._latest
            )
            self._refused = 0
            self._tells = asyncio.get_running_loop().call_later(_TOLD_EVERY_S, self._tell)


class GuardedListener(TLSListener):  # type: ignore[misc]
    """Dask's listener behind a `Door`."""

    async def start(self) -> None:
        """As Dask's."""
        await super().start()
        handle = self.tcp_server.handle_stream
        timeout_s = parse_timedelta(dask.config.get("distributed.comm.timeouts.connect"))  # so long Dask itself tries
        door = Door(timeout_s, min(_MOST_WAITING, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2))

        async def handle_admitted(stream: Any, address: Any) -> None:
            if await door.admits(stream, str(address[0])):
                await handle(stream, address)

        self.tcp_server.handle_stream = handle_admitted


class GuardedTLS(TLSBackend):  # type: ignore[misc]
    """Dask's ``tls://`` with guarded listeners."""

    def get_listener(self, loc: str, handle_comm: Any, deserialize: bool, **connection_args: Any) -> GuardedListener:
        """As Dask's."""
        return GuardedListener(loc, handle_comm, deserialize, **connection_args)


class CheckedBackend:
    """A protocol of Dask's other than ``tls://``, refused where encryption is required.

    Dask itself only refuses TCP then, but also connects to the ``ws://`` that a scheduler file may name.

    Parameters
    ----------
    scheme : str
    backend : distributed.comm.registry.Backend
        Dask's.
    """

    def __init__(self, scheme: str, backend: Any) -> None:
        self._scheme = scheme
        self._backend = backend

    def __getattr__(self, name: str) -> Any:
        """As Dask's."""
        return getattr(self._backend, name)

    def get_connector(self) -> CheckedBackend:
        """As Dask's."""
        return self

    async def connect(self, address: str, deserialize: bool = True, **connection_args: Any) -> Any:
        """As Dask's connectors do."""
        self._check(address, connection_args)
        return await self._backend.get_connector().connect(address, deserialize, **connection_args)

    def get_listener(self, loc: str, handle_comm: Any, deserialize: bool, **connection_args: Any) -> Any:
        """As Dask's."""
        self._check(loc, connection_args)
        return self._backend.get_listener(loc, handle_comm, deserialize, **connection_args)

    def _check(self, address: str, connection_args: dict[str, Any]) -> None:
        usual = dask.config.get("distributed.comm.require-encryption")
        if connection_args.get("require_encryption", usual):  # a task may have its own client do without
            raise RuntimeError(f"refused: {self._scheme}://{address} is no tls://host:port, and this cluster has TLS")


def guard_protocols() -> None:
    """Have this process connect to and listen on ``tls://`` alone (and within itself), where encryption is required."""
    dasks_own = registry.get_backend

    def get_backend(scheme: str) -> Any:
        backend = dasks_own(scheme)
        return backend if scheme in _SAFE_PROTOCOLS else CheckedBackend(scheme, backend)

    registry.get_backend = get_backend


def guard_listeners() -> None:
    """Have Dask's listeners of this process drop connections that do not show the cluster's certificate in time."""
    if isinstance(backends["tls"], TLSBackend):  # not the experimental one of asyncio
        backends["tls"] = GuardedTLS()
    # The door tells of failed handshakes; Tornado would for each.
    logging.getLogger("tornado.general").addFilter(lambda record: not str(record.msg).startswith("SSL Error on"))


def guard_dashboard(hosts: Collection[str] | None) -> None:
    """Have the scheduler's dashboard show this cluster, to its user's pages alone.

    It serves nothing of other hosts (Dask's ``/proxy``; the workers here have no pages), and takes websockets from
    pages of this machine and of the given hosts: any other page that the user's browser has open could read it, too.

    Parameters
    ----------
    hosts : collection of str, optional
        Where the links to the dashboard lead; None for no dashboard at all.
    """
    if hosts is None:  # the server that Dask starts all the same has no pages
        dask.config.set({"distributed.scheduler.http.routes": []})
        return
    routes = dask.config.get("distributed.scheduler.http.routes")
    origins = "distributed.scheduler.dashboard.bokeh-application.allow_websocket_origin"
    ours: dict[str, Any] = {"distributed.scheduler.http.routes": [route for route in routes if route != _PROXY]}
    if "*" in dask.config.get(origins):  # Dask's default; a list of the user's adds to ours
        ours[origins] = ["127.0.0.1"]
    dask.config.set(ours)
    known = frozenset(hosts)
    dasks_own = RoutingApplication.find_handler

    def find_handler(application: Any, request: Any, **more: Any) -> Any:
        own_port = request.connection.stream.socket.getsockname()[1]
        if not is_own_host(request.host, own_port, known):
            return application.get_handler_delegate(request, ErrorHandler, {"status_code": 403})
        return dasks_own(application, request, **more)

    RoutingApplication.find_handler = find_handler


def guard_websockets(hosts: Collection[str]) -> None:
    """The rest of `guard_dashboard`, for when Bokeh has been imported."""
    from bokeh.server.views.ws import WSHandler

    known = frozenset(hosts)
    bokehs_own = WSHandler.check_origin

    def check_origin(handler: Any, origin: str) -> bool:
        return is_own_page(origin, handler.request.host, known) or bool(bokehs_own(handler, origin))

    WSHandler.check_origin = check_origin  # type: ignore[assignment, method-assign]


def is_own_host(asked: str, own_port: int, hosts: Collection[str]) -> bool:
    """Whether a request asks for the dashboard, by one of its names or through a proxy.

    A name with our own port that is none of ours is one that somebody else has point to this machine, so that a browser
    takes the dashboard for a part of that one's pages.

    Parameters
    ----------
    asked : str
        The host that the request asks for.
    own_port : int
        The port that the dashboard listens on.
    hosts : collection of str
        As for `guard_dashboard`.
    """
    try:
        host = urlsplit(f"//{asked}")
        return host.port != own_port or host.hostname in (*_LOOPBACK, *hosts)
    except ValueError:
        return False


def is_own_page(origin: str, asked: str, hosts: Collection[str]) -> bool:
    """Whether a page may listen to the dashboard: one of this machine, of where the links lead, or of the same host.

    A proxy that hands the host on, such as JupyterHub's, has the dashboard and its own pages on one.
    """
    try:
        page = urlsplit(origin)
        return page.hostname in (*_LOOPBACK, *hosts) or page.netloc.lower() == asked.lower()
    except ValueError:
        return False


def dashboard_hosts(template: str, domain: str, session: str) -> list[str]:
    """The hosts that lead to a session's dashboard, by the platform's links and by Dask's own.

    Parameters
    ----------
    template : str
        The setting ``dashboard-link``.
    domain : str
        The platform's domain; empty on this machine.
    session : str
        The session that the platform shows it of.
    """
    links = []
    with contextlib.suppress(KeyError):  # it names a variable of the kernel's machine
        links.append(format_dashboard_link("127.0.0.1", 0))
    if domain:
        links += [
            f"https://{session}.{domain}",
            f"https://read-only-{session}.{domain}",
            template.format(app_url=f"https://{session}.{domain}", session=session, domain=domain),
        ]
    return [host for host in (urlsplit(link).hostname for link in links) if host]
