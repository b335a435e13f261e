"""What tasks and clients share on a cluster."""

from __future__ import annotations

import pickle
import time
from typing import Any

import dask.array as da
from distributed import Client, Event, Future, Lock, Queue, Semaphore, Variable, get_client

from contract.patience import PATIENCE_S, unique


def a_lock_lets_one_task_in_at_a_time(client: Client) -> None:
    lock, at = unique("lock"), unique("at")

    def alone(_: int) -> bool:
        with Lock(lock):
            here = Variable(at)
            here.set(_)
            time.sleep(0.02)
            return bool(here.get(timeout=10) == _)

    assert client.gather(client.map(alone, range(6), pure=False)) == [True] * 6


def a_semaphore_lets_so_many_in_at_a_time(client: Client) -> None:
    semaphore = Semaphore(max_leases=1, name=unique("semaphore"))

    def inside(number: int) -> int:
        with semaphore:
            return number

    assert client.gather(client.map(inside, range(4), pure=False)) == [0, 1, 2, 3]
    assert semaphore.get_value() == 0


def an_event_wakes_a_task(client: Client) -> None:
    event = Event(unique("event"))
    future = client.submit(lambda: event.wait(timeout=PATIENCE_S), pure=False)
    event.set()
    assert future.result(timeout=PATIENCE_S) is True


def a_queue_carries_data_and_futures(client: Client) -> None:
    queue = Queue(unique("queue"))
    client.submit(queue.put, {"from": "a task"}, pure=False).result(timeout=PATIENCE_S)
    assert queue.get(timeout=PATIENCE_S) == {"from": "a task"}
    queue.put(client.submit(sum, [1, 2, 3]))
    assert queue.get(timeout=PATIENCE_S).result(timeout=PATIENCE_S) == 6


def a_variable_is_seen_by_another_client(cluster: Any, client: Client) -> None:
    name = unique("variable")
    Variable(name, client=client).set(client.submit(sum, [4, 5]))
    with Client(cluster, set_as_default=False) as other:
        assert Variable(name, client=other).get(timeout=PATIENCE_S).result(timeout=PATIENCE_S) == 9


def a_published_dataset_is_found_by_another_client(cluster: Any, client: Client) -> None:
    name = unique("dataset")
    array = client.persist(da.arange(100, chunks=20))
    client.publish_dataset(**{name: array})
    with Client(cluster, set_as_default=False) as other:
        assert name in other.list_datasets()
        assert other.compute(other.get_dataset(name).sum()).result(timeout=PATIENCE_S) == 4950
        other.unpublish_dataset(name)
    assert name not in client.list_datasets()


def an_actor_keeps_its_state(client: Client) -> None:
    class Counter:
        n = 0

        def add(self, number: int) -> int:
            self.n += number
            return self.n

    counter = client.submit(Counter, actor=True).result(timeout=PATIENCE_S)
    assert counter.add(2).result(timeout=PATIENCE_S) == 2
    assert counter.add(3).result(timeout=PATIENCE_S) == 5 and counter.n == 5


def a_future_can_be_pickled_and_named_by_its_key(client: Client) -> None:
    future = client.submit(sum, [1, 2, 3])
    assert pickle.loads(pickle.dumps(future)).key == future.key
    assert Future(future.key, client).result(timeout=PATIENCE_S) == 6


def the_newest_client_is_the_current_one_here_and_the_workers_have_theirs(client: Client) -> None:
    assert Client.current() is client and get_client() is client
    scheduler = client.submit(lambda: get_client().scheduler.address, pure=False).result(timeout=PATIENCE_S)
    assert scheduler == client.scheduler.address
