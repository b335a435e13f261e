"""The four calls of the Workers API as the vendor's client makes them, over the simulated workspace's unix socket.

Its quirks are the published client's: answers are not checked, results come in no order, a stop without ids stops
everything, a stop by dict asks for a session that does not exist, waiting goes in steps of 5 s.
"""

from __future__ import annotations

import http.client
import inspect
import json
import os
import random
import socket
import time
from collections.abc import Callable
from concurrent import futures
from typing import Any
from urllib.parse import quote

THREAD_POOL_SIZE = 10
POLL_INTERVAL_S = 5


class Response:
    """What the HTTP library of the vendor's client returns, as far as callers look at it."""

    def __init__(self, status_code: int, text: str) -> None:
        self.status_code = status_code
        self.text = text
        self.ok = status_code < 400

    def json(self) -> Any:
        """Parse the body; raises json.JSONDecodeError on a gateway's page."""
        return json.loads(self.text)

    def __repr__(self) -> str:
        return f"<Response [{self.status_code}]>"


class _Connection(http.client.HTTPConnection):
    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.connect(os.environ["SIM_WORKSPACE_SOCKET"])


def _oldest(
    n: int,
    cpu: float,
    memory: float,
    nvidia_gpu: int = 0,
    kernel: str = "python3",
    script: str = "",
    code: str = "",
    env: dict[str, str] = {},  # noqa: B006 (the vendor's signature)
) -> list[dict[str, Any]]:
    """What `launch_workers` takes on every release."""
    raise NotImplementedError


def launcher(keywords: list[str]) -> Callable[..., list[dict[str, Any]]]:
    """Return the `launch_workers` of a release that takes these keywords, too."""
    signature = inspect.signature(_oldest)
    newer = [inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD, default=None) for name in keywords]
    signature = signature.replace(parameters=[*signature.parameters.values(), *newer])

    def launch_workers(*args: Any, **kwargs: Any) -> list[dict[str, Any]]:
        """Ask for `n` sessions, one request each, ten at a time."""
        given = signature.bind(*args, **kwargs)
        given.apply_defaults()
        body = dict(given.arguments)
        return _together([lambda: _request("POST", "/api/workers", body).json() for _ in range(body.pop("n"))])

    launch_workers.__signature__ = signature  # type: ignore[attr-defined]
    return launch_workers


launch_workers = launcher([name for name in os.environ["SIM_LAUNCH_KEYWORDS"].split(",") if name])


def list_workers() -> list[dict[str, Any]]:
    """Return the sessions that this session launched."""
    answer: list[dict[str, Any]] = _request("GET", "/api/workers").json()
    return answer


def stop_workers(*ids: Any) -> list[Response] | None:
    """Stop sessions by id; without ids, every one of this session."""
    if not ids:
        _request("POST", "/api/stop-without-ids")
        ids = tuple(worker["id"] for worker in list_workers())
        if not ids:
            return None
    # The published client looks up the ids of dicts, then asks with the dicts all the same: a 404.
    return _together([lambda one=one: _request("PUT", f"/api/workers/{quote(str(one), safe='')}/stop") for one in ids])


def await_workers(
    ids: list[Any], wait_for_completion: bool = True, timeout_seconds: float = 60
) -> dict[str, list[dict[str, Any]]]:
    """Wait until sessions run, or until they end; sessions that the list does not show are not waited for."""
    waited_s = 0
    result: dict[str, list[dict[str, Any]]] = {"workers": [], "failures": []}
    awaited = {one if isinstance(one, str) else one["id"] for one in ids}
    while timeout_seconds != 0 and waited_s <= timeout_seconds:
        for worker in list_workers():
            if worker["id"] not in awaited:
                continue
            verdict = _verdict(worker, wait_for_completion)
            if verdict is None:
                break
            result[verdict].append(worker)
            awaited.remove(worker["id"])
        else:
            return result
        time.sleep(POLL_INTERVAL_S)
        waited_s += POLL_INTERVAL_S
    if awaited:
        result["failures"] += [worker for worker in list_workers() if worker["id"] in awaited]
    return result


def _verdict(worker: dict[str, Any], wait_for_completion: bool) -> str | None:
    status = worker["status"]
    if status in ("failed", "timedout", "stopped"):
        return "failures"
    if status == "succeeded":
        return "workers" if wait_for_completion else "failures"
    if not wait_for_completion and status == "running" and worker.get("ip_address") != "unknown":
        return "workers"
    return None


def _together(requests: list[Any]) -> list[Any]:
    """Make requests ten at a time; all are made, then the first error shows, if there is one."""
    pool = futures.ThreadPoolExecutor(THREAD_POOL_SIZE)
    pending = [pool.submit(request) for request in requests]
    done = list(futures.wait(pending).done)
    pool.shutdown(wait=False)
    random.shuffle(done)
    return [one.result() for one in done]


def _request(method: str, path: str, body: Any = None) -> Response:
    connection = _Connection("localhost")
    headers = {"X-Engine-Id": os.environ["CDSW_ENGINE_ID"], "Content-Type": "application/json"}
    try:
        connection.request(method, path, json.dumps(body) if body is not None else None, headers)
        answer = connection.getresponse()
        return Response(answer.status, answer.read().decode())
    finally:
        connection.close()
