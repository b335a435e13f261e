"""Looking into a cluster: logs, events, profiles, reports, versions, plugins."""

from __future__ import annotations

import gzip
import logging
import operator
import time
from pathlib import Path
from typing import Any

import distributed
import msgpack
from distributed import Client, SchedulerPlugin, WorkerPlugin, get_task_stream, get_worker, performance_report, wait

from contract.patience import PATIENCE_S, eventually, unique


def a_performance_report_is_written(client: Client, folder: Path) -> None:
    file = folder / "report.html"
    with performance_report(filename=str(file)):
        client.submit(operator.add, 1, 2, pure=False).result(timeout=PATIENCE_S)
    assert "Dask Performance Report" in file.read_text(encoding="utf-8")


def the_task_stream_tells_what_ran_where(client: Client) -> None:
    with get_task_stream(client) as stream:
        future = client.submit(operator.add, 1, 2, pure=False)
        future.result(timeout=PATIENCE_S)
    (task,) = [each for each in stream.data if each["key"] == future.key]
    assert task["worker"] in client.nthreads() and task["status"] == "OK"


def a_profile_says_where_time_went(client: Client) -> None:
    def busy() -> None:
        deadline = time.monotonic() + 0.3
        while time.monotonic() < deadline:
            sum(range(1000))

    client.submit(busy, pure=False).result(timeout=PATIENCE_S)
    eventually(lambda: client.profile()["count"] > 0)


def versions_agree_everywhere(client: Client) -> None:
    versions = client.get_versions(check=True)
    assert versions.keys() == {"scheduler", "workers", "client"}
    assert versions["workers"].keys() == client.nthreads().keys()


def the_state_of_everything_can_be_dumped(client: Client, folder: Path) -> None:
    future = client.submit(operator.add, 1, 2, pure=False)
    wait(future, timeout=PATIENCE_S)
    client.dump_cluster_state(str(folder / "dump"))
    (file,) = folder.iterdir()
    with gzip.open(file) as packed:  # not by Dask's DumpArtefact, which stumbles over a number as a key
        dump = msgpack.unpackb(packed.read(), strict_map_key=False)
    assert future.key in dump["scheduler"]["tasks"] and dump["workers"].keys() == client.nthreads().keys()


def a_plugin_lives_on_every_worker_until_it_is_taken_back(client: Client) -> None:
    class Marks(WorkerPlugin):
        def setup(self, worker: Any) -> None:
            worker.contract_mark = "set"

        def teardown(self, worker: Any) -> None:
            worker.contract_mark = "taken back"

    name = unique("plugin")
    client.register_plugin(Marks(), name=name)
    assert set(client.run(lambda dask_worker: dask_worker.contract_mark).values()) == {"set"}
    client.unregister_worker_plugin(name)
    assert set(client.run(lambda dask_worker: dask_worker.contract_mark).values()) == {"taken back"}


def a_plugin_lives_on_the_scheduler_until_it_is_taken_back(client: Client) -> None:
    class Counts(SchedulerPlugin):
        transitions = 0

        def transition(self, *args: Any, **kwargs: Any) -> None:
            self.transitions += 1

    name = unique("plugin")
    client.register_plugin(Counts(), name=name)
    client.submit(operator.add, 1, 2, pure=False).result(timeout=PATIENCE_S)
    assert client.run_on_scheduler(lambda dask_scheduler: dask_scheduler.plugins[name].transitions) > 0
    client.unregister_scheduler_plugin(name)
    assert client.run_on_scheduler(lambda dask_scheduler: name not in dask_scheduler.plugins)


def what_workers_log_can_be_read_here(client: Client) -> None:
    name = unique("logger")
    heard: dict[str, str] = {}

    class Hears(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            heard[vars(record)["worker"]] = record.getMessage()

    def heard_from_everybody() -> bool:
        # Again: the first may have come before the subscription.
        client.run(lambda: logging.getLogger(name).warning("from %s", "a worker"))
        return heard == dict.fromkeys(client.nthreads(), "from a worker")

    logger, handler = logging.getLogger(name), Hears()
    logger.addHandler(handler)
    client.forward_logging(name, level=logging.INFO)
    try:
        eventually(heard_from_everybody)
    finally:
        client.unforward_logging(name)
        logger.removeHandler(handler)


def logs_of_scheduler_and_workers_can_be_asked_for(client: Client) -> None:
    assert client.get_scheduler_logs()
    assert client.get_worker_logs().keys() == client.nthreads().keys()
    assert client.get_worker_logs(nanny=True).keys() == client.nthreads().keys()


def what_tasks_print_is_seen_here(client: Client) -> None:
    seen: list[Any] = []
    client.subscribe_topic("print", lambda event: seen.append(event[1]))

    def seen_here() -> bool:
        # Again: the first may have come before the subscription.
        client.submit(distributed.print, "hello from a task", pure=False).result(timeout=PATIENCE_S)
        return any("hello from a task" in str(event) for event in seen)

    eventually(seen_here)
    client.unsubscribe_topic("print")


def events_are_logged_and_told(client: Client) -> None:
    topic = unique("topic")
    told: list[Any] = []

    def tells_of(who: str) -> bool:
        client.log_event(topic, {"from": "here"})  # again: the first may have come before the subscription
        return who in [event["from"] for event in told]

    client.subscribe_topic(topic, lambda event: told.append(event[1]))
    eventually(lambda: tells_of("here"))
    client.submit(lambda: get_worker().log_event(topic, {"from": "a task"}), pure=False).result(timeout=PATIENCE_S)
    eventually(lambda: tells_of("a task"))
    assert {event["from"] for _, event in client.get_events(topic)} == {"here", "a task"}
    client.unsubscribe_topic(topic)


def metadata_is_kept_on_the_scheduler(client: Client) -> None:
    key = unique("key")
    client.set_metadata(key, {"x": 1})
    assert client.get_metadata(key) == {"x": 1}


def the_client_knows_cores_and_what_each_worker_does(client: Client) -> None:
    assert list(client.ncores().values()) == [1, 1] and client.nthreads() == client.ncores()
    assert client.processing().keys() == client.has_what().keys() == client.nthreads().keys()
    future = client.submit(bytearray, 1000, pure=False)
    wait(future, timeout=PATIENCE_S)
    assert client.nbytes(summary=False)[future.key] >= 1000 and client.story(future.key)
