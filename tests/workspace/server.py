"""The simulated platform's process: an HTTP API over a unix socket, for sessions (`/api`) and for tests (`/control`).

Run as a module with a settings file; it ends, and with it all sessions, when its standard input or its parent ends.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socketserver
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

from .control_api import ControlAPI
from .faults import Faults
from .memory import open_groups
from .network import open_network
from .platform_api import PlatformAPI, Reply, Reset
from .settings import Settings
from .table import Table


class _Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True
    request_queue_size = 256

    def __init__(self, path: str, platform: PlatformAPI, control: ControlAPI) -> None:
        self.platform = platform
        self.control = control
        super().__init__(path, _Handler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of clients that went away in the middle of an answer."""
        if not isinstance(sys.exc_info()[1], (BrokenPipeError, ConnectionResetError)):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    server: _Server

    def _answer(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        body = json.loads(self.rfile.read(length) or b"null")
        try:
            if self.path.startswith("/control/"):
                reply = self.server.control.call(self.path.removeprefix("/control/"), body or {})
            else:
                reply = self.server.platform.handle(
                    self.command, self.path, self.headers.get("X-Engine-Id", ""), body or {}
                )
        except Reset:
            self.close_connection = True
            return
        self._send(reply)

    def _send(self, reply: Reply) -> None:
        payload = reply.body.encode()
        self.send_response(reply.status)
        self.send_header("Content-Type", reply.content_type)
        if reply.status != 204:
            self.send_header("Content-Length", str(len(payload)))
        self.end_headers()
        if reply.status != 204:
            self.wfile.write(payload)

    do_GET = do_POST = do_PUT = _answer  # noqa: N815 (names that http.server gives)

    def address_string(self) -> str:
        """Return a name for the client: a unix socket has none."""
        return "session"

    def log_message(self, *_: Any) -> None:
        """Keep quiet: the calls are logged by the API itself."""


def main(settings_file: str) -> None:
    """Serve until told to stop or left alone."""
    settings = Settings.from_json(Path(settings_file).read_text())
    finished = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: finished.set())
    faults = Faults()
    network = open_network(settings.name, settings.isolation)
    groups, why = None, "they are switched off"
    if network.isolation == "namespaces" and settings.memory_limits:
        groups, why = open_groups(settings.name)
    table = Table(settings, network, groups, faults)
    platform = PlatformAPI(table, faults)
    server = _Server(f"{settings.root}/socket", platform, ControlAPI(table, faults, platform, finished))
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.1}, daemon=True).start()
    threading.Thread(target=_watch_parent, args=(os.getppid(), finished), daemon=True).start()
    threading.Thread(target=_watch_input, args=(finished,), daemon=True).start()
    print(json.dumps({"isolation": network.isolation, "memory_limits": groups is not None, "why": why}), flush=True)
    finished.wait()
    table.close()
    network.close()
    if groups:
        groups.close()
    shutil.rmtree(settings.root, ignore_errors=True)  # nobody else will where the test was killed


def _watch_input(finished: threading.Event) -> None:
    os.read(0, 1)
    finished.set()


def _watch_parent(parent: int, finished: threading.Event) -> None:
    """A child that the test forked may hold the input open for longer than the test lives."""
    while os.getppid() == parent:
        time.sleep(0.5)
    finished.set()


if __name__ == "__main__":
    main(sys.argv[1])
