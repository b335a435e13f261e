"""The HTTP side of the Workers API: launch, list and stop as a session sees them, faults included."""

from __future__ import annotations

import json
import random
import threading
import time
from dataclasses import dataclass
from typing import Any

from .faults import Faults
from .records import Record
from .table import Refused, Table

GATEWAY_PAGE = "<html><head><title>502 Bad Gateway</title></head><body><h1>502 Bad Gateway</h1></body></html>"
REFUSAL = "quota exceeded"


class Reset(Exception):  # noqa: N818 (an answer, not an error of ours)
    """The connection is to be cut without an answer."""


@dataclass(frozen=True)
class Reply:
    """What goes back over the wire."""

    body: str = ""
    status: int = 200
    content_type: str = "application/json"

    @classmethod
    def json(cls, value: Any, status: int = 200) -> Reply:
        """Return a reply that holds a JSON document."""
        return cls(json.dumps(value), status)


class PlatformAPI:
    """Answers sessions' requests, and remembers each of them for the test."""

    def __init__(self, table: Table, faults: Faults) -> None:
        self._table = table
        self._faults = faults
        self._calls: list[dict[str, Any]] = []
        self._lock = threading.Lock()

    def calls(self) -> list[dict[str, Any]]:
        """Return every request so far, the oldest first."""
        with self._lock:
            return [dict(call) for call in self._calls]

    def handle(self, method: str, path: str, caller: str, body: dict[str, Any]) -> Reply:
        """Answer one request of session `caller`; raises Reset where the connection is to be cut."""
        parts = path.strip("/").split("/")
        if (method, parts) == ("POST", ["api", "workers"]):
            return self._launch(caller, body)
        if (method, parts) == ("GET", ["api", "workers"]):
            return self._list(caller)
        if method == "PUT" and parts[:2] == ["api", "workers"] and parts[3:] == ["stop"]:
            return self._stop(caller, parts[2])
        if (method, parts) == ("POST", ["api", "stop-without-ids"]):  # a note for the log; the stops follow by id
            self._log("stop_without_ids", caller)
            return Reply(status=204)
        return Reply.json({"message": f"no such resource: {path}"}, 404)

    def _launch(self, caller: str, request: dict[str, Any]) -> Reply:
        call = self._log("launch", caller)
        call["given"] = request
        code = str(request.get("code") or "")

        def take(name: str, session: str | None = None) -> dict[str, Any] | None:
            return self._faults.take(name, session, code)

        if (refused := take("launch_refused")) is not None:
            return Reply.json({"message": refused.get("message", REFUSAL)}, int(refused.get("status_code", 200)))
        if take("launch_reset") is not None:
            raise Reset
        if take("launch_html") is not None:
            return Reply(GATEWAY_PAGE, 502, "text/html")
        try:
            record = self._table.launch(caller, request)
        except Refused as refusal:
            call["message"] = str(refusal)
            return Reply.json({"message": str(refusal)})
        call["ids"] = [record.id]
        if (slow := take("launch_slow", record.id)) is not None:
            time.sleep(float(slow.get("delay_s", 3.0)))
        if (refused := take("launch_refused_after_creation", record.id)) is not None:
            return Reply.json({"message": refused.get("message", REFUSAL), "engineId": record.id})
        if take("launch_html_after_creation", record.id) is not None:
            return Reply(GATEWAY_PAGE, 502, "text/html")
        if take("launch_reset_after_creation", record.id) is not None:
            raise Reset
        shown = record.public(self._table.settings)
        return Reply.json({"id": record.id} if take("launch_bare", record.id) is not None else shown)

    def _list(self, caller: str) -> Reply:
        take = self._faults.take
        self._log("list", caller)
        if (slow := take("list_slow")) is not None:
            time.sleep(float(slow.get("delay_s", 3.0)))
        if take("list_reset") is not None:
            raise Reset
        if take("list_html") is not None:
            return Reply(GATEWAY_PAGE, 502, "text/html")
        if take("list_not_a_list") is not None:
            return Reply.json({"message": "internal error"}, 500)
        records = self._table.launched_by(caller)
        shown = [record.public(self._table.settings) for record in records]
        if (missing := take("list_missing")) is not None and shown:
            left_out = missing.get("ids") or [random.choice(shown)["id"]]
            shown = [entry for entry in shown if entry["id"] not in left_out]
        if (odd := take("list_unknown_status")) is not None:
            for entry in shown:
                if entry["id"] in (odd.get("ids") or [entry["id"]]):
                    entry["status"] = odd.get("word", "unknown")
        if (lacking := take("list_missing_fields")) is not None:
            drop = lacking.get("fields") or set(shown[0] if shown else ()) - {"id", "status"}
            shown = [{key: value for key, value in entry.items() if key not in drop} for entry in shown]
        if (foreign := take("list_foreign")) is not None:
            shown += [_stranger(number) for number in range(int(foreign.get("count", 3000)))]
            random.shuffle(shown)
        return Reply.json(shown)

    def _stop(self, caller: str, session: str) -> Reply:
        take = self._faults.take
        self._log("stop", caller, session)
        record: Record | None = self._table.get(session)
        if record is None:
            return Reply.json({"message": f"no session {session}"}, 404)
        if (slow := take("stop_slow", session)) is not None:
            time.sleep(float(slow.get("delay_s", 3.0)))
        if (error := take("stop_error", session)) is not None:
            return Reply.json({"message": "internal error"}, int(error.get("status_code", 500)))
        if take("stop_reset", session) is not None:
            raise Reset
        if take("stop_ignored", session) is None:
            self._table.stop(record)
        return Reply(status=204)

    def _log(self, call: str, caller: str, *ids: str) -> dict[str, Any]:
        entry = {"call": call, "caller": caller, "ids": list(ids), "at": time.time(), "message": ""}
        with self._lock:
            self._calls.append(entry)
        return entry


def _stranger(number: int) -> dict[str, Any]:
    status = ("running", "succeeded", "failed", "scheduling")[number % 4]
    return {
        "id": f"stranger{number:08d}",
        "status": status,
        "ip_address": f"100.99.{number // 250 % 250}.{number % 250}",
    }
