"""What the panel costs the kernel each second, beside Dask's own cluster widget.

python benchmarks/refresh.py --sizes 4 1000 5000 --seconds 10

A real scheduler in another process knows so many workers, whose figures all change every second; the kernel holds that
cluster over TLS, with a record of as many sessions, which the Workers API lists. Counted is all CPU of its process:
reading the news, the record and the platform's list, the supervisor's rounds, adding up, drawing, and the messages to
the browser as JSON. While the panel is seen there is a refresh each second. Dask's widget is drawn twice a second,
whatever changed, from what is there already.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import types
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from figures import Figure, show

SIZES = (4, 1000, 5000)
SEEN_MS, UNSEEN_MS = {1000: 10.0, 5000: 30.0}, {4: 2.0, 1000: 10.0}
SESSION = "notebook00000000"
GIB = 2**30
_sent_bytes = 0


def session_id(index: int) -> str:
    """Of one worker's session."""
    return f"w{index:015x}"


def ip_address(index: int) -> str:
    """Its address."""
    return f"100.66.{index // 250}.{index % 250}"


def run_scheduler(workers: int, folder: Path) -> None:
    """Run a scheduler whose workers are entries in its books, with new figures every second."""
    from distributed import Scheduler, Security
    from distributed.core import Status
    from distributed.scheduler import WorkerState

    def figures(index: int, second: int) -> dict[str, Any]:
        return {
            "task_counts": {"executing": (index + second) % 3},
            "cpu": float((index * 7 + second * 13) % 200),
            "memory": GIB + (index * 31 + second * 97) % 900 * 2**20,
            "spilled_bytes": {"memory": 0, "disk": 0},
            "managed_bytes": GIB // 2,
            "time": time.time(),
            "host_net_io": {"read_bps": 1000.0 + second, "write_bps": 900.0 + second},
            "host_disk_io": {"read_bps": 0.0, "write_bps": 0.0},
            "num_fds": 40,
        }

    async def main() -> None:
        files = {"tls_ca_file": "ca.pem", "tls_scheduler_cert": "cert.pem", "tls_scheduler_key": "key.pem"}
        security = Security(require_encryption=True, **{key: str(folder / name) for key, name in files.items()})
        scheduler = await Scheduler(
            host="127.0.0.1", port=0, protocol="tls", security=security, dashboard=False, idle_timeout=3600
        )
        for index in range(workers):
            address = f"tls://{ip_address(index)}:40331"
            state = WorkerState(
                address=address, status=Status.running, pid=100, name=session_id(index), nthreads=2,
                memory_limit=4 * GIB, local_directory="/tmp/dask-scratch-space/worker-x", nanny=None,
                server_id=f"Worker-{index}", services={"dashboard": 40000}, versions={}, extra={}, scheduler=scheduler,
            )  # fmt: skip
            scheduler.workers[address] = state
        print(scheduler.address, flush=True)
        second = 0
        while True:
            for index, worker in enumerate(scheduler.workers.values()):
                worker.metrics = figures(index, second)
                worker.last_seen = time.time()
            second += 1
            await asyncio.sleep(1)

    asyncio.run(main())


def counting_comm() -> Any:
    """A class that stands for a browser: takes messages as a kernel does, as JSON, and counts their bytes."""
    from comm.base_comm import BaseComm

    class CountingComm(BaseComm):  # type: ignore[misc]
        def publish_msg(self, msg_type: str, data: Any = None, **_: Any) -> None:
            global _sent_bytes
            _sent_bytes += len(json.dumps({"type": msg_type, "data": data}, ensure_ascii=False).encode())

    return CountingComm


def workers_api(workers: int) -> Any:
    """Cloudera's module of that name, whose sessions all run."""
    running = {"status": "running", "cpu": 1, "memory": 2, "created_at": "2026-01-31T12:00:00Z"}
    listed = [
        {"id": session, "ip_address": address, "app_url": f"https://{session}.ml.example.site/", **running}
        for session, address in [("scheduler0000000", "127.0.0.1")]
        + [(session_id(index), ip_address(index)) for index in range(workers)]
    ]
    answer = json.dumps(listed)
    module: Any = types.ModuleType("cml.workers_v1")
    module.list_workers = lambda: json.loads(answer)
    for call in ("launch_workers", "stop_workers", "await_workers"):  # nobody launches or stops anything here
        setattr(module, call, lambda *_, **__: [])
    return module


def on_record(workers: int, folder: Path) -> Path:
    """Put a running cluster with that many workers on record; returns its run folder."""
    from dataclasses import replace

    from cml_dask_magics.model.record import Record, SessionRecord
    from cml_dask_magics.model.settings import make_settings, settings_to_json
    from cml_dask_magics.registry.certificates import write_certificates
    from cml_dask_magics.registry.kernels import this_kernel
    from cml_dask_magics.registry.registry import Registry

    settings = replace(make_settings(name="default"), state_directory=folder, n_workers=workers, max_workers=workers)
    now = time.time()
    ran = {"launched_at": now - 300, "running_at": now - 290, "connected_at": now - 285, "launched_from": SESSION}
    sessions = [SessionRecord("scheduler0000000", "scheduler", 1, 2, 0, ip_address="127.0.0.1", **ran)] + [
        SessionRecord(
            session_id(index), "worker", 1, 2, 0, ip_address=ip_address(index), real_memory_gib=1.8,
            app_url=f"https://{session_id(index)}.ml.example.site/", **ran,
        )
        for index in range(workers)
    ]  # fmt: skip
    record = Record(
        "default", "0123abcd", "cml", now - 300, this_kernel(SESSION), settings_to_json(settings), workers,
        state="running", sessions=tuple(sessions), events=((now - 285, f"{workers} workers ready in 18.2 s"),),
    )  # fmt: skip
    return Registry(folder).claim(record, write_certificates)


def run_kernel(workers: int, seconds: int) -> dict[str, float]:
    """Hold such a cluster and show it; the figures of one second, seen and unseen, as medians."""
    os.environ |= {"CDSW_ENGINE_ID": SESSION, "CDSW_DOMAIN": "ml.example.site", "CDSW_READONLY_PORT": "8100"}
    package: Any = types.ModuleType("cml")
    package.workers_v1 = sys.modules["cml.workers_v1"] = workers_api(workers)
    sys.modules["cml"] = package

    import comm
    import dask
    from IPython.core.displaypub import CapturingDisplayPublisher
    from IPython.core.interactiveshell import InteractiveShell
    from ipywidgets.widgets.widget import _instances

    comm.create_comm = counting_comm()
    InteractiveShell.instance().display_pub = CapturingDisplayPublisher()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        dask.config.set({"cml-dask-magics.state-directory": str(folder)})
        run = on_record(workers, folder)
        argv = [sys.executable, __file__, "--scheduler", str(workers), "--folder", str(run)]
        with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as scheduler:
            try:
                assert scheduler.stdout is not None
                address = scheduler.stdout.readline().strip()
                (run / "scheduler.json").write_text(json.dumps({"address": address}))
                from cml_dask_magics import CMLCluster
                from cml_dask_magics.display.screens import screens
                from cml_dask_magics.magics.kernel_clusters import kernel_clusters

                cluster = CMLCluster.from_name("default")
                kernel_clusters.hold(cluster)
                status = cluster.status()
                assert len(status.workers) == workers and status.state == "running", status.state
                screens.panels([(status, kernel_clusters.controls(folder, "default"))])
                (panel,) = [w for w in _instances.values() if "cdm-panel" in getattr(w, "_dom_classes", ())]
                panel._view_count = 1
                time.sleep(20)  # until the platform is listed at its slowest
                seen = list(measured(seconds))
                panel._view_count = 0
                time.sleep(6)
                unseen = list(measured(3 * seconds))
                theirs = list(dask_draws(cluster, rounds=5))
                cluster.close()
            finally:
                scheduler.kill()
    return {
        "seen_ms": statistics.median(ms for ms, _ in seen),
        "seen_bytes": statistics.median(size for _, size in seen),
        "unseen_ms": statistics.mean(ms for ms, _ in unseen),
        "unseen_bytes": statistics.mean(size for _, size in unseen),
        "dask_ms": 2 * statistics.median(ms for ms, _ in theirs),
        "dask_bytes": 2 * statistics.median(size for _, size in theirs),
    }


def dask_draws(cluster: Any, rounds: int) -> Iterator[tuple[float, int]]:
    """Milliseconds of CPU and bytes of drawing Dask's own widget of the same workers, once."""
    import ipywidgets
    from distributed.deploy.cluster import Cluster

    html = ipywidgets.HTML()
    for _ in range(rounds):
        html.value = ""  # as its figures never stay the same
        size, began = _sent_bytes, time.process_time_ns()
        html.value = Cluster._repr_html_(cluster)
        yield (time.process_time_ns() - began) / 1e6, _sent_bytes - size


def measured(seconds: int) -> Iterator[tuple[float, int]]:
    """Milliseconds of CPU of this process, and bytes sent, of each of so many seconds."""
    for _ in range(seconds):
        size, began = _sent_bytes, time.process_time_ns()
        time.sleep(1)
        yield (time.process_time_ns() - began) / 1e6, _sent_bytes - size


def rows(sizes: Sequence[int] = SIZES, seconds: int = 10) -> list[Figure]:
    """Each size in a fresh process."""
    found = []
    for n in sizes:
        argv = [sys.executable, __file__, "--kernel", str(n), "--seconds", str(seconds)]
        of = json.loads(subprocess.run(argv, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=True).stdout)
        who = f"{n:,} workers"
        found += [
            Figure(f"panel, {who}: CPU each second", of["seen_ms"], "ms", SEEN_MS.get(n)),
            Figure(f"Dask's widget, {who}: CPU each second", of["dask_ms"], "ms"),
            Figure(f"panel, {who}: sent each second", of["seen_bytes"] / 1000, "kB", 20.0),
            Figure(f"Dask's widget, {who}: sent each second", of["dask_bytes"] / 1000, "kB"),
            Figure(f"nobody looks, {who}: CPU each second", of["unseen_ms"], "ms", UNSEEN_MS.get(n)),
        ]
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=list(SIZES))
    parser.add_argument("--seconds", type=int, default=10)
    parser.add_argument("--kernel", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--scheduler", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.scheduler is not None:
        run_scheduler(options.scheduler, options.folder)
    elif options.kernel is not None:
        print(json.dumps(run_kernel(options.kernel, options.seconds)))
    else:
        show(rows(options.sizes, options.seconds))


if __name__ == "__main__":
    main()
