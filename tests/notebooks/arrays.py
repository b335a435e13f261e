# Arrays, futures, delayed and bags, with the habits of people who know Dask's other clusters.
# A cell begins at each `# %%`, and `# %name` is a magic; ../test_notebooks.py runs the cells and checks their numbers.

# %% Load
# %load_ext cml_dask_magics

# %% Up
# %dask_up 2

# %% Look at the client
client

# %% Look at the cluster
cluster

# %% Ask what there is
info = client.scheduler_info()
assert len(info["workers"]) == 2
assert all(worker["nthreads"] == 1 for worker in info["workers"].values())

# %% A large random array
import dask
import dask.array as da
import numpy as np

noise = da.random.default_rng(7).normal(10, 2, size=(3_000, 2_000), chunks=(750, 500))
noise

# %% Reductions, several in one go
moments = dask.compute(noise.mean(), noise.std(), (noise > 12).sum())
assert abs(moments[0] - 10) < 0.01 and abs(moments[1] - 2) < 0.01

# %% Keep it on the workers
from dask.distributed import futures_of, wait

noise = noise.persist()
wait(noise)
assert {future.status for future in futures_of(noise)} == {"finished"}

# %% Other chunks
rows = noise.rechunk((300, -1))
assert rows.numblocks == (10, 1)
medians = da.median(rows, axis=1).compute()


# %% Each row with its neighbours
def with_neighbours(block):
    return (np.roll(block, 1, axis=0) + block + np.roll(block, -1, axis=0)) / 3


smooth = noise.map_overlap(with_neighbours, depth={0: 1}, boundary={0: "periodic"})
column_spreads = smooth.std(axis=0).compute()

# %% Singular values
tall = da.random.default_rng(8).normal(size=(20_000, 30), chunks=(5_000, 30))
left, singular, right = da.linalg.svd(tall)
singular, difference = dask.compute(singular, abs((left * singular) @ right - tall).max())
assert difference < 1e-10


# %% Futures, and how far they are
from dask.distributed import progress


def collatz(start):
    steps = 0
    while start != 1:
        start = 3 * start + 1 if start % 2 else start // 2
        steps += 1
    return steps


collatz_futures = client.map(collatz, range(1, 301))
progress(collatz_futures)

# %% What they found
collatz_steps = client.gather(collatz_futures)

# %% Futures built on each other
from operator import add

level = client.map(lambda number: number**2, range(64))
while len(level) > 1:
    level = [client.submit(add, one, other) for one, other in zip(level[::2], level[1::2], strict=True)]
sum_of_squares = level[0].result()

# %% A loop that makes new work of what comes back
from dask.distributed import as_completed


def integrate(low, high):
    # sqrt over one piece, with a trapezium and with two; a piece on which they differ is cut
    middle = (low + high) / 2
    coarse = (high - low) * (low**0.5 + high**0.5) / 2
    fine = (high - low) * (low**0.5 + 2 * middle**0.5 + high**0.5) / 4
    return low, high, fine, abs(fine - coarse)


integral, pieces = 0.0, 0
working = as_completed([client.submit(integrate, 0.0, 1.0)])
for future in working:
    low, high, area, error = future.result()
    if error < 1e-5:
        integral, pieces = integral + area, pieces + 1
    else:
        middle = (low + high) / 2
        working.update([client.submit(integrate, low, middle), client.submit(integrate, middle, high)])
assert abs(integral - 2 / 3) < 1e-4

# %% Data that is sent once, and a task that fails
(table,) = client.scatter([{"one": 1, "two": 2}], broadcast=True)
looked_up = client.submit(lambda table, name: table[name], table, "two").result()
try:
    client.submit(lambda table, name: table[name], table, "three").result()
except KeyError as error:
    missing = error.args[0]


# %% Delayed
@dask.delayed
def divisors(number):
    return sum(number % candidate == 0 for candidate in range(1, number + 1))


@dask.delayed
def most(counts):
    return max(counts)


most_divisors = most([divisors(number) for number in range(1, 101)]).compute()

# %% A bag of words
import dask.bag as db

sentences = ["the rain that falls", "on the plain is the rain", "that the plain sees"] * 40
words = db.from_sequence(sentences, npartitions=4).map(str.split).flatten()
frequencies = dict(words.frequencies().compute())

# %% One worker more, by hand
cluster.scale(3)
client.wait_for_workers(3)
scaled_to = len(client.scheduler_info()["workers"])

# %% What the sessions printed
logs = cluster.get_logs()
logs

# %% Let Dask decide
cluster.adapt(minimum=1, maximum=3)

# %% Work while it does
adapted = sum(client.gather(client.map(lambda number: number + 1, range(500))))

# %% Back to a fixed number
import time

cluster.scale(2)
while len(client.scheduler_info()["workers"]) != 2:
    time.sleep(0.1)

# %% The array is still there, whoever held it
total = noise.sum().compute()

# %% Down
# %dask_down
