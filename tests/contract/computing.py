"""Work for a cluster: tasks and collections, where they run, and what becomes of their errors."""

from __future__ import annotations

import operator
import os
import threading
import time
import traceback
from pathlib import Path

import dask
import dask.array as da
import dask.bag as db
import dask.dataframe as dd
import distributed
import joblib
import numpy as np
import pandas as pd
from distributed import Client, Event, Queue, as_completed, fire_and_forget, get_client, get_worker, wait, worker_client
from distributed.client import futures_of

from contract.patience import PATIENCE_S, eventually, unique


def _twice(number: int) -> int:
    """Belongs to a module that this process can import: workers get its name, not its code."""
    return 2 * number


def a_function_of_a_module_beside_this_one_runs_on_workers(client: Client) -> None:
    assert client.submit(_twice, 21).result(timeout=PATIENCE_S) == 42


def a_task_gives_its_result(client: Client) -> None:
    future = client.submit(operator.add, 1, 2)
    assert future.result(timeout=PATIENCE_S) == 3 and future.done() and future.status == "finished"
    assert client.submit(operator.mul, future, 5).result(timeout=PATIENCE_S) == 15


def many_tasks_are_gathered_in_order(client: Client) -> None:
    futures = client.map(lambda number: number**2, range(100))
    assert client.gather(futures) == [number**2 for number in range(100)]


def results_come_as_they_are_completed(client: Client) -> None:
    futures = client.map(lambda number: number + 1, range(10))
    assert {result for _, result in as_completed(futures, with_results=True)} == set(range(1, 11))


def waiting_for_a_task_can_time_out(client: Client) -> None:
    gate = unique("gate")
    future = client.submit(lambda: Event(gate).wait(), pure=False)
    try:
        wait(future, timeout=0.2)
    except (TimeoutError, distributed.TimeoutError):
        assert not future.done()
    else:
        raise AssertionError("it did not wait")
    finally:
        Event(gate).set()
    assert future.result(timeout=PATIENCE_S)


def delayed_functions_are_computed_on_the_cluster_by_default(client: Client) -> None:
    where = dask.delayed(lambda: get_worker().address)()
    (address,) = dask.compute(where)
    assert address in client.nthreads()


def an_array_is_computed(client: Client) -> None:
    array = da.arange(40_000, chunks=5_000).reshape(200, 200)
    numbers = np.arange(40_000).reshape(200, 200)
    assert (array @ array.T).sum().compute() == (numbers @ numbers.T).sum()


def a_data_frame_is_grouped_and_shuffled(client: Client) -> None:
    frame = pd.DataFrame({"key": np.arange(1000) % 7, "value": np.arange(1000.0)})
    lazy = dd.from_pandas(frame, npartitions=4)
    pd.testing.assert_series_equal(
        lazy.groupby("key").value.sum().compute().sort_index(), frame.groupby("key").value.sum(), check_dtype=False
    )
    assert sorted(lazy.shuffle("key").value.compute()) == sorted(frame.value)


def a_bag_is_folded(client: Client) -> None:
    assert db.from_sequence(range(100), npartitions=4).filter(lambda n: n % 2).map(
        lambda n: n * 10
    ).sum().compute() == (sum(n * 10 for n in range(100) if n % 2))


def a_persisted_collection_stays_on_the_workers(client: Client) -> None:
    array = da.ones(1000, chunks=250).persist()
    wait(array, timeout=PATIENCE_S)
    futures = futures_of(array)
    assert len(futures) == 4 and all(client.who_has(futures).values())
    assert array.sum().compute() == 1000


def scattered_data_is_where_it_was_sent(client: Client) -> None:
    one, other = client.nthreads()
    there = client.scatter("data", workers=[one])
    assert list(client.who_has([there]).values()) == [(one,)]
    assert there.key in client.has_what()[one] and there.key not in client.has_what()[other]
    assert client.submit(str.upper, there).result(timeout=PATIENCE_S) == "DATA"


def broadcast_data_is_on_every_worker(client: Client) -> None:
    def lies_on() -> set[str]:
        everywhere = client.scatter(np.arange(1000), broadcast=True)
        (where,) = client.who_has([everywhere]).values()
        return set(where)

    # Every two seconds Dask's memory manager drops copies that no task needs: perhaps just before one looks.
    assert any(lies_on() == set(client.nthreads()) for _ in range(5))


def data_can_be_replicated_and_moved(client: Client) -> None:
    one, other = client.nthreads()
    data = client.scatter([bytes(1000) for _ in range(4)], workers=[one])

    def lies_on() -> set[str]:
        client.replicate(data[:1], n=2)
        return set(client.who_has(data[:1])[data[0].key])

    assert any(lies_on() == {one, other} for _ in range(5))  # as above
    client.rebalance()
    assert client.gather(data) == [bytes(1000)] * 4


def a_large_result_travels_from_worker_to_worker_and_here(client: Client) -> None:
    one, other = client.nthreads()
    made = client.submit(np.arange, 1_000_000, workers=[one])
    moved = client.submit(lambda numbers: numbers + 1, made, workers=[other])
    assert np.array_equal(moved.result(timeout=PATIENCE_S), np.arange(1, 1_000_001))


def a_task_runs_on_the_worker_that_was_asked_for(client: Client) -> None:
    for address in client.nthreads():
        future = client.submit(lambda: get_worker().address, workers=[address], pure=False)
        assert future.result(timeout=PATIENCE_S) == address
        name = client.scheduler_info()["workers"][address]["name"]
        future = client.submit(lambda: get_worker().address, workers=[name], pure=False)
        assert future.result(timeout=PATIENCE_S) == address


def a_task_that_needs_a_resource_finds_the_workers_that_were_given_it(client: Client) -> None:
    future = client.submit(operator.add, 1, 1, resources={"contract-seat": 1}, pure=False)
    assert future.result(timeout=PATIENCE_S) == 2


def urgent_tasks_go_first(client: Client) -> None:
    worker, gate, order = min(client.nthreads()), unique("gate"), Queue(unique("order"))
    blocker = client.submit(lambda: Event(gate).wait(), workers=[worker], pure=False)
    eventually(lambda: client.processing()[worker])
    futures = [
        client.submit(order.put, word, priority=priority, workers=[worker], pure=False)
        for word, priority in (("low", -10), ("high", 10))
    ]
    # The worker itself must know both before it chooses.
    eventually(lambda: client.run(lambda dask_worker: len(dask_worker.state.ready), workers=[worker])[worker] == 2)
    Event(gate).set()
    wait([blocker, *futures], timeout=PATIENCE_S)
    assert [order.get(timeout=PATIENCE_S) for _ in futures] == ["high", "low"]


def an_error_comes_back_with_the_line_that_raised_it(client: Client) -> None:
    def fails() -> None:
        raise LookupError("nothing there")

    future = client.submit(fails, pure=False)
    try:
        future.result(timeout=PATIENCE_S)
    except LookupError as error:
        assert "nothing there" in str(error)
        assert "fails" in [frame.name for frame in traceback.extract_tb(error.__traceback__)]
    else:
        raise AssertionError("no error came")
    assert future.status == "error" and isinstance(future.exception(), LookupError)
    assert "fails" in "".join(traceback.format_tb(future.traceback()))


def a_task_that_fails_once_is_tried_again(client: Client) -> None:
    tried = unique("tried")

    def fails_once() -> str:
        if not Event(tried).is_set():
            Event(tried).set()
            raise OSError("not yet")
        return "now"

    assert client.submit(fails_once, retries=2, pure=False).result(timeout=PATIENCE_S) == "now"


def a_failed_task_can_be_retried_by_hand(client: Client) -> None:
    mended = Event(unique("mended"))

    def fails_until_mended() -> str:
        if not mended.is_set():
            raise OSError("not yet")
        return "now"

    future = client.submit(fails_until_mended, pure=False)
    assert isinstance(future.exception(timeout=PATIENCE_S), OSError)
    mended.set()
    future.retry()
    assert future.result(timeout=PATIENCE_S) == "now"


def a_task_can_be_cancelled(client: Client) -> None:
    gate = unique("gate")
    future = client.submit(lambda: Event(gate).wait(), pure=False)
    client.cancel(future)
    eventually(future.cancelled)
    Event(gate).set()
    eventually(lambda: not any(client.processing().values()))


def a_task_can_use_the_cluster_by_get_client(client: Client) -> None:
    def total() -> int:
        inner = get_client()
        return sum(inner.gather(inner.map(lambda number: number * 2, range(5))))

    assert client.submit(total, pure=False).result(timeout=PATIENCE_S) == 20


def a_task_can_use_the_cluster_by_worker_client(client: Client) -> None:
    def total() -> int:
        with worker_client() as inner:
            return sum(inner.gather(inner.map(lambda number: number * 3, range(5))))

    assert client.submit(total, pure=False).result(timeout=PATIENCE_S) == 30


def a_task_can_compute_a_collection(client: Client) -> None:
    assert client.submit(lambda: int(da.ones(100, chunks=10).sum().compute()), pure=False).result(PATIENCE_S) == 100


def a_forgotten_task_goes_on(client: Client) -> None:
    done = Event(unique("done"))

    def slowly() -> None:
        time.sleep(0.2)
        done.set()

    fire_and_forget(client.submit(slowly, pure=False))
    assert done.wait(timeout=PATIENCE_S)


def functions_run_on_every_worker_and_on_the_scheduler(client: Client) -> None:
    assert client.run(lambda dask_worker: dask_worker.address) == {address: address for address in client.nthreads()}
    assert client.run_on_scheduler(lambda dask_scheduler: len(dask_scheduler.workers)) == 2
    one = min(client.nthreads())
    assert client.run(operator.add, 1, 2, workers=[one]) == {one: 3}


def a_file_is_uploaded_and_imported(client: Client, folder: Path) -> None:
    module = unique("uploaded")
    file = folder / f"{module}.py"
    file.write_text("def answer():\n    return 42\n")
    client.upload_file(str(file))
    assert client.submit(lambda: __import__(module).answer(), pure=False).result(timeout=PATIENCE_S) == 42
    assert set(client.run(lambda: __import__(module).answer()).values()) == {42}


def joblib_computes_on_the_cluster(client: Client) -> None:
    with joblib.parallel_config(backend="dask"):
        assert joblib.Parallel()(joblib.delayed(operator.mul)(n, n) for n in range(20)) == [n * n for n in range(20)]
        addresses = set(joblib.Parallel()(joblib.delayed(lambda: get_worker().address)() for _ in range(4)))
    assert addresses <= set(client.nthreads())


def the_cluster_is_an_executor_of_the_standard_library(client: Client) -> None:
    with client.get_executor() as executor:
        assert list(executor.map(abs, [-1, -2])) == [1, 2]
        future = executor.submit(pow, 2, 10)
        assert future.result(timeout=PATIENCE_S) == 1024


def a_worker_that_dies_comes_back_and_its_results_are_made_again(client: Client) -> None:
    futures = client.map(lambda number: number + 1000, range(20), pure=False)
    wait(futures, timeout=PATIENCE_S)
    victim = min(client.nthreads())
    client.run(lambda: threading.Timer(0.05, os._exit, [1]).start(), workers=[victim])
    eventually(lambda: victim not in client.nthreads())
    assert client.gather(futures) == list(range(1000, 1020))
    eventually(lambda: len(client.nthreads()) == 2)


def a_restart_forgets_the_work_and_brings_all_workers_back(client: Client) -> None:
    before = client.run(os.getpid)
    future = client.submit(operator.add, 1, 2)
    wait(future, timeout=PATIENCE_S)
    client.restart(timeout=PATIENCE_S)
    assert future.cancelled()
    after = client.run(os.getpid)
    assert len(after) == 2 and not set(after.values()) & set(before.values())
    assert client.submit(operator.add, 1, 2).result(timeout=PATIENCE_S) == 3
