# DataFrames: files in a relative folder, shuffles, time series, and functions of a module beside the notebook.
# A cell begins at each `# %%`, and `# %name` is a magic; ../test_notebooks.py runs the cells and checks their numbers.

# %% Load
# %load_ext cml_dask_magics

# %% Up
# %dask_up 2 --memory 3

# %% A fortnight of readings, one a minute
import dask
import dask.dataframe as dd

readings = dask.datasets.timeseries(start="2024-03-01", end="2024-03-15", freq="60s", partition_freq="2D", seed=5)
readings

# %% The first of them
readings.head()

# %% Written and read in a folder that has no full path
readings.to_parquet("readings")
stored = dd.read_parquet("readings")
n_stored = len(stored)

# %% Workers and kernel mean the same folder
from pathlib import Path


def names():
    return sorted(file.name for file in Path("readings").iterdir())


listed = names()
assert all(there == listed for there in client.run(names).values())

# %% Files that tasks open by themselves
import pandas as pd

stored[["id", "x"]].to_csv("readings-csv")
pieces = [dask.delayed(pd.read_csv)(file) for file in Path("readings-csv").iterdir()]
csv_sum = dask.delayed(sum)([piece.x.sum() for piece in pieces]).compute()

# %% Groups
by_name = stored.groupby("name").agg({"x": ["mean", "max"], "y": "std", "id": "count"}).compute()

# %% An aggregation of one's own
span = dd.Aggregation(
    "span",
    chunk=lambda groups: (groups.max(), groups.min()),
    agg=lambda highs, lows: (highs.max(), lows.min()),
    finalize=lambda highs, lows: highs - lows,
)
spans = stored.groupby("name").y.agg(span).compute()

# %% A function of the module beside the notebook
import station

bands = stored.map_partitions(station.with_band).band.value_counts().compute()

# %% Joined with a small table
teams = pd.DataFrame({"name": ["Alice", "Bob", "Charlie", "Dan"], "team": ["red", "blue", "red", "blue"]})
by_team = stored.merge(teams, on="name", how="inner").groupby("team").x.sum().compute()

# %% Joined with itself: every row goes to another worker
means = stored.groupby("id").x.mean(split_out=2).rename("mean_x").reset_index()
joined = stored.merge(means, on="id", how="left")
above_mean = (joined.x > joined.mean_x).sum().compute()

# %% Sorted by another column
by_x = stored[["x", "name"]].set_index("x")
lowest = by_x.head(5, npartitions=-1).index.tolist()

# %% On the workers from now on
from dask.distributed import wait

readings = readings.persist()
wait(readings)

# %% Hours of minutes
hourly = readings[["x", "y"]].resample("1h").mean().compute()

# %% A window that moves over the edges of partitions
rolling = readings.x.rolling(60).mean().compute()

# %% One night
night = readings.loc["2024-03-09 22:00":"2024-03-10 05:59"]
night_quantiles = night.x.compute().quantile([0.25, 0.5, 0.75])

# %% Down
# %dask_down
