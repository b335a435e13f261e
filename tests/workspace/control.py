"""The test's own connection to the server."""

from __future__ import annotations

import http.client
import json
import socket
from typing import Any


class ControlError(RuntimeError):
    """The server could not do what the test asked for."""


class Control:
    """Calls methods of the server's ControlAPI by name."""

    def __init__(self, path: str) -> None:
        self._path = path

    def call(self, method: str, /, timeout_s: float = 60.0, **arguments: Any) -> Any:
        """Return the method's result; raises ControlError with the server's words."""
        connection = http.client.HTTPConnection("localhost")
        connection.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.sock.settimeout(timeout_s)
        try:
            connection.sock.connect(self._path)
            connection.request("POST", f"/control/{method}", json.dumps(arguments))
            answer = connection.getresponse()
            value = json.loads(answer.read())
        finally:
            connection.close()
        if answer.status != 200:
            raise ControlError(f"{value['error']}\n{value['trace']}")
        return value
