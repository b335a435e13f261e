"""The sessions of a workspace and their lives: from request over scheduling and running to the end."""

from __future__ import annotations

import random
import string
import threading
import time
from pathlib import Path
from typing import Any

from . import processes
from .faults import Faults
from .memory import MemoryGroups
from .network import Network
from .pods import Pod, session_argv
from .records import Record, environment, with_gpus
from .settings import Settings


class Refused(Exception):  # noqa: N818 (an answer, not an error of ours)
    """The platform says no to a launch, with this message."""


class Table:
    """All sessions of one workspace; safe to use from many threads."""

    def __init__(self, settings: Settings, network: Network, groups: MemoryGroups | None, faults: Faults) -> None:
        self.settings = settings
        self._network = network
        self._groups = groups
        self._faults = faults
        self._random = random.Random(settings.seed)
        self._records: dict[str, Record] = {}
        self._changed = threading.Condition()
        self._closing = False

    def open(self, python: str) -> Record:
        """Start a session that a person opened, ready at once."""
        with self._changed:
            size = {"cpu": self.settings.opened_cpu, "memory": self.settings.opened_memory}
            record = self._new("", size, python=python)
        self._run(record, [])
        assert record.pod is not None
        record.pod.await_furnished()
        record.address_known_at = time.time()
        threading.Thread(target=self._follow, args=(record,), daemon=True).start()
        return record

    def launch(self, caller: str, request: dict[str, Any], foreign: bool = False) -> Record:
        """Create a session for `caller` and let it start in its own time; raises Refused."""
        with self._changed:
            master = self._records.get(caller)
            if master is None or master.ended:
                raise Refused(f"unknown session {caller!r}")
            used = [record for record in self._records.values() if record.launched_by and not record.ended]
            if self._closing or not self.settings.quota.allow(*_sum(used, request)):
                raise Refused("quota exceeded: the workspace has no room for another session of this size")
            # What a worker launches belongs to its master, as the published client asks for it.
            record = self._new(master.launched_by or caller, request, foreign=foreign)
        threading.Thread(target=self._live, args=(record,), daemon=True).start()
        return record

    def launched_by(self, caller: str) -> list[Record]:
        """Return the sessions of `caller`, finished ones too, in no order."""
        with self._changed:
            found = [record for record in self._records.values() if record.launched_by == caller]
        self._random.shuffle(found)
        return found

    def get(self, session: str) -> Record | None:
        """Return one session."""
        with self._changed:
            return self._records.get(session)

    def stop(self, record: Record, status: str = "stopped", hard: bool = False) -> None:
        """Begin to end a session, and all that it launched; returns before it is over."""
        with record.lock:
            if record.ended:
                return
            if not record.stop.is_set():
                record.end_status = status
                record.stop.set()
            pod = record.pod
        self.wake()
        if pod is not None:
            target, arguments = (pod.kill, ()) if hard else (pod.terminate, (self.settings.stop_grace_s,))
            threading.Thread(target=target, args=arguments, daemon=True).start()

    def set_link(self, session: str, up: bool) -> None:
        """Cut or heal the network of one session."""
        self._network.set_link(self._records[session].place, up)

    def wake(self) -> None:
        """Let those who wait for room look again: the settings changed."""
        with self._changed:
            self._changed.notify_all()

    def truth(self) -> list[dict[str, Any]]:
        """Return every session with the processes that really live."""
        with self._changed:
            records = list(self._records.values())
        if self._network.isolation == "namespaces":
            inodes = {}
            for record in records:
                try:
                    inodes[record.place.inode] = record.id
                except OSError:  # no namespace yet, or no more
                    continue
            living = processes.by_network(inodes)
        else:
            living = processes.by_environment("CDSW_ENGINE_ID", {record.id for record in records})
        return [record.truth(living.get(record.id, [])) for record in records]

    def close(self) -> None:
        """Kill everything, and return when it is dead."""
        with self._changed:
            self._closing = True
            records = [record for record in self._records.values() if not record.ended]
        for record in records:
            self.stop(record, hard=True)
        deadline = time.monotonic() + 15
        with self._changed:
            self._changed.wait_for(lambda: all(r.ended for r in records), timeout=deadline - time.monotonic())

    def _new(self, master: str, request: dict[str, Any], foreign: bool = False, python: str = "") -> Record:
        session = "".join(self._random.choices(string.ascii_lowercase + string.digits, k=16))
        place = self._network.reserve()
        above = self._records.get(master)
        python = python or (above.python if above else self.settings.python)
        variables = environment(
            self.settings, python, session, place.address, master, above.place.address if above else ""
        )
        gpus = int(request.get("nvidia_gpu") or 0)
        variables = with_gpus(variables, gpus)
        variables.update({name: str(value) for name, value in (request.get("env") or {}).items()})
        record = Record(
            session,
            master,
            place,
            float(request["cpu"]),
            float(request["memory"]),
            gpus,
            self._code(request),
            request,
            variables,
            python,
            foreign,
        )
        if master and not foreign:
            for name in ("never_starts", "fails_before_running", "dies_before_code", "address_unknown", "killed"):
                options = self._faults.take(f"session_{name}", session, record.code)
                if options is not None:
                    record.faults[name] = options
        self._records[session] = record
        return record

    def _code(self, request: dict[str, Any]) -> str:
        script = request.get("script")
        return Path(self.settings.home, script).read_text() if script else str(request.get("code") or "")

    def _live(self, record: Record) -> None:
        settings = self.settings
        spread = settings.start_jitter * settings.start_delay_s
        delay_s = max(0.0, settings.start_delay_s + self._random.uniform(-spread, spread))
        if "never_starts" in record.faults:
            record.stop.wait()
        else:
            self._await_room(record)
            record.stop.wait(delay_s)
        if record.stop.is_set():
            return self._end(record, record.end_status)
        if "fails_before_running" in record.faults:
            return self._end(record, record.faults["fails_before_running"].get("status", "failed"))
        if "dies_before_code" in record.faults:
            record.status, record.running_at = "running", time.time()
            record.stop.wait(record.faults["dies_before_code"].get("after_s", 0.2))
            return self._end(record, "failed")
        try:
            argv = session_argv(record.python, Path(settings.root), record.id, record.code, settings.notices)
            self._run(record, argv)
        except Exception:
            self._end(record, "failed")
            raise
        if "address_unknown" not in record.faults:
            record.address_known_at = time.time() + settings.address_delay_s
        if "killed" in record.faults:
            options = record.faults["killed"]
            blow = threading.Timer(
                options.get("after_s", 0.5), self.stop, (record, options.get("status", "failed"), True)
            )
            blow.daemon = True
            blow.start()
        return self._follow(record)

    def _await_room(self, record: Record) -> None:
        """Wait in `scheduling` for room in the workspace and in the user's quota; leaving that status takes it."""
        with self._changed:
            self._changed.wait_for(lambda: record.stop.is_set() or self._has_room(record))
            if not record.stop.is_set():
                record.status = "starting"

    def _has_room(self, record: Record) -> bool:
        size = {"cpu": record.cpu, "memory": record.memory}
        the_user_s = [one for one in self._records.values() if one.holds_room]
        launched = [one for one in the_user_s if one.launched_by]
        settings = self.settings
        return settings.capacity.allow(*_sum(launched, size)) and settings.user_quota.allow(*_sum(the_user_s, size))

    def _run(self, record: Record, argv: list[str]) -> None:
        root = Path(self.settings.root)
        variables = dict(record.environment)
        group = self._groups.make(record.id, record.memory) if self._groups else None
        look = self.settings.memory_look
        pod = Pod(self._network, record.place, record.id, root, variables, self.settings.home, argv, group, look)
        with record.lock:
            record.environment = variables
            record.pod = pod
            record.status, record.running_at = "running", time.time()
            stopped = record.stop.is_set()
        if stopped:
            pod.kill()

    def _follow(self, record: Record) -> None:
        assert record.pod is not None
        record.pod.wait()
        self._end(record, "failed" if record.pod.out_of_memory and not record.stop.is_set() else record.end_status)

    def _end(self, record: Record, status: str) -> None:
        """Show the session as ended; what it launched ends with it."""
        with record.lock:
            record.status, record.finished_at = status, time.time()
        for launched in self.launched_by(record.id):
            self.stop(launched)
        self.wake()


def _sum(used: list[Record], request: dict[str, Any]) -> tuple[int, float, float]:
    """Return the sessions in use, their cores and their GiB, with one more session."""
    cores = sum(record.cpu for record in used) + float(request["cpu"])
    gib = sum(record.memory for record in used) + float(request["memory"])
    return len(used) + 1, cores, gib
