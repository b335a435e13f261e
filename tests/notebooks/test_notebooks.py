"""Three notebooks' worth of real work, in a real kernel, on this machine and one of them in the simulated workspace.

Their cells stand in notebooks/. Whatever they compute is computed once more here, without a cluster; and no cell may
show an error or a warning, whenever it comes.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import pickle
import re
import shutil
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import dask
import dask.array as da
import dask.dataframe as dd  # noqa: F401 - timeseries needs it
import nbformat
import numpy as np
import pandas as pd
import psutil
import pytest
from jupyter_client.kernelspec import KernelSpec, KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient
from support.notebook import Notebook
from support.scripts import environment, processes_of
from workspace import Run

pytestmark = [pytest.mark.dask, pytest.mark.long]

HERE = Path(__file__).resolve().parent
CELL_TIMEOUT_S = 120
WIDGET = "application/vnd.jupyter.widget-view+json"

# What other packages print that is no business of ours: patterns for whole lines, and why they come.
ALLOWED = (
    # Dask says so of every cluster that adapts.
    r".* - distributed\.deploy\.adaptive(_core)? - INFO - Adaptive scaling (started|stopped): .*",
    # Dask 2024.8 warns of its own `dask.datasets.timeseries`; Python shows the line of source below it.
    r".*/dask_expr/_collection\.py:\d+: UserWarning: dask_expr does not support the DataFrameIOFunction protocol .*",
    r"  warnings\.warn\(",
)


class Cell(NamedTuple):
    title: str
    source: str


def cells_of(name: str) -> list[Cell]:
    """The cells of notebooks/NAME.py, by the titles that stand behind their `# %%`."""
    _, *parts = re.split(r"^# %% ", (HERE / f"{name}.py").read_text(), flags=re.MULTILINE)
    titled = [part.partition("\n")[::2] for part in parts]
    return [Cell(title, re.sub(r"^# (?=%\w)", "", source, flags=re.MULTILINE).strip()) for title, source in titled]


def with_results(cells: list[Cell], names: str) -> list[Cell]:
    """The cells with more of them around the last, which tell the test what the names stand for."""
    kept = "{" + ", ".join(f"{name!r}: {name}" for name in names.split()) + "}"
    status = Cell("(status)", "%dask_status --json")
    results = Cell(
        "(results)", f"import pickle\nwith open('results.pickle', 'wb') as file:\n    pickle.dump({kept}, file)"
    )
    late = Cell("(what comes late)", "import time\n\ntime.sleep(1)")
    return [*cells[:-1], status, results, cells[-1], late]


# --- running them on this machine


class ThisInterpreter(KernelSpecManager):
    """Knows one kernel, whatever its name: the interpreter that runs this test."""

    def get_kernel_spec(self, kernel_name: str) -> KernelSpec:
        return KernelSpec(
            argv=[sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"], language="python"
        )


class Recorder(NotebookClient):
    """Notes what each cell has shown, also what comes after its end, which nbclient throws away."""

    def __init__(self, cells: list[Cell], folder: Path, sockets: str) -> None:
        nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell.source) for cell in cells])
        resources = {"metadata": {"path": str(folder)}}
        super().__init__(nb, resources=resources, timeout=CELL_TIMEOUT_S, allow_errors=True)  # the last one always runs
        self.by_message: dict[str, Run] = {}
        self.sockets = sockets

    def create_kernel_manager(self) -> AsyncKernelManager:
        self.km = AsyncKernelManager(kernel_name="python3", kernel_spec_manager=ThisInterpreter())
        self.km.transport, self.km.ip = "ipc", f"{self.sockets}/socket"
        return self.km

    async def async_start_new_kernel_client(self) -> Any:
        client = await super().async_start_new_kernel_client()
        receive = client.iopub_channel.get_msg

        async def received(*args: Any, **kwargs: Any) -> Any:
            message = await receive(*args, **kwargs)
            cause = message["parent_header"].get("msg_id", "")
            if message["msg_type"] == "execute_input":
                self.by_message[cause] = Run(cause)
            if cause in self.by_message:
                self.by_message[cause].take(message)
            return message

        client.iopub_channel.get_msg = received
        return client


class Executed(NamedTuple):
    """What each cell has shown, by its title, and the folder in which they ran."""

    runs: dict[str, Run]
    folder: Path

    @property
    def results(self) -> dict[str, Any]:
        """What the names stand for that were asked for."""
        return dict(pickle.loads((self.folder / "results.pickle").read_bytes()))

    def displays(self, title: str) -> list[dict[str, Any]]:
        """What the cell displayed, as it was then: without what became of it later."""
        shown = ("display_data", "execute_result")
        messages = self.runs[title].messages
        return [message["content"]["data"] for message in messages if message["msg_type"] in shown]

    def check_nothing_went_wrong(self) -> None:
        for title, run in self.runs.items():
            assert run.error is None, f"{title}: {run.error}"
            lines = [line for line in run.stderr.splitlines() if line.strip()]
            ours = [line for line in lines if not any(re.fullmatch(pattern, line) for pattern in ALLOWED)]
            assert not ours, f"{title}: {run.stderr}"
            assert not re.search("Traceback|Warning|WARNING|ERROR", run.stdout), f"{title}: {run.stdout}"
        status = json.loads(self.runs["(status)"].stdout)["clusters"]
        assert [cluster["state"] for cluster in status] == ["running"]
        assert "Stopped cluster 'default'" in self.runs["Down"].stdout


@pytest.fixture
def execute(tmp_path: Path) -> Callable[[str, str], Executed]:
    """Runs a notebook beside its module, in a folder and a home of its own, and sees that no process stays behind."""

    def call(name: str, names: str) -> Executed:
        folder = tmp_path / "work"
        folder.mkdir()
        shutil.copy(HERE / "station.py", folder)
        cells = with_results(cells_of(name), names)
        env = environment(tmp_path / "home")
        try:
            with TemporaryDirectory(prefix="kernel-") as sockets:  # short: the length of their paths is limited
                recorder = Recorder(cells, folder, sockets)
                asyncio.run(recorder.async_execute(env=env))
        finally:
            left = wait_for_end(tmp_path / "home")
        assert not left, "processes outlived the notebook"
        titles = [cell.title for cell in cells]
        executed = Executed(dict(zip(titles, recorder.by_message.values(), strict=True)), folder)
        executed.check_nothing_went_wrong()
        return executed

    return call


def wait_for_end(home: Path, patience_s: float = 10.0) -> list[Any]:
    """What is left of the processes of this home when they had time to end; then it is killed."""
    deadline = time.monotonic() + patience_s
    while (left := processes_of(home)) and time.monotonic() < deadline:
        time.sleep(0.1)
    for process in left:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    return left


def here(*collections: Any) -> Any:
    """What they hold, computed without any cluster."""
    return dask.compute(*collections, scheduler="synchronous")


# --- arrays and futures


def test_arrays_futures_delayed_and_bags(execute: Callable[[str, str], Executed]) -> None:
    executed = execute(
        "arrays",
        "moments medians column_spreads singular collatz_steps sum_of_squares integral pieces looked_up missing"
        " most_divisors frequencies scaled_to logs adapted total",
    )
    found = executed.results

    noise, tall = here(
        da.random.default_rng(7).normal(10, 2, size=(3_000, 2_000), chunks=(750, 500)),
        da.random.default_rng(8).normal(size=(20_000, 30), chunks=(5_000, 30)),
    )
    assert found["moments"] == pytest.approx([noise.mean(), noise.std(), np.count_nonzero(noise > 12)])
    assert found["total"] == pytest.approx(noise.sum())
    np.testing.assert_allclose(found["medians"], np.median(noise, axis=1))
    padded = np.concatenate([noise[-1:], noise, noise[:1]])
    np.testing.assert_allclose(found["column_spreads"], ((padded[:-2] + noise + padded[2:]) / 3).std(axis=0))
    np.testing.assert_allclose(found["singular"], np.linalg.svd(tall, compute_uv=False))

    assert found["collatz_steps"][26] == max(found["collatz_steps"][:30]) == 111  # 27 is known for its long way
    assert len(found["collatz_steps"]) == 300
    assert found["sum_of_squares"] == 63 * 64 * 127 // 6
    assert found["integral"] == pytest.approx(2 / 3, abs=1e-4)
    assert found["pieces"] == quadrature_pieces(0.0, 1.0) > 10
    assert (found["looked_up"], found["missing"]) == (2, "three")
    assert found["most_divisors"] == 12
    sentences = ["the rain that falls", "on the plain is the rain", "that the plain sees"] * 40
    assert found["frequencies"] == Counter(" ".join(sentences).split())
    assert found["adapted"] == 500 * 501 // 2
    assert found["scaled_to"] == 3
    logs = [str(log) for log in found["logs"].values()]
    assert sum("distributed.worker - INFO - " in log for log in logs) == 3
    assert sum("distributed.scheduler - INFO - " in log for log in logs) == 1
    complaints = re.findall(r" - (?:WARNING|ERROR|CRITICAL) - (.*)", "\n".join(logs))
    assert complaints == ["Compute Failed"]  # the task that fails on purpose

    (client,) = executed.displays("Look at the client")
    assert "Connection method" in client["text/html"] and "CMLCluster" in client["text/html"]
    assert "<Client: 'tls://" in client["text/plain"]
    panel, facts = executed.displays("Look at the cluster")  # the second is what a saved notebook keeps of the first
    assert WIDGET in panel
    assert "default: running, 2 of 2 workers" in facts["text/plain"] and "2 of 2 workers" in facts["text/html"]
    (array,) = executed.displays("A large random array")
    assert "<svg" in array["text/html"]
    assert WIDGET in executed.displays("Futures, and how far they are")[0]


def quadrature_pieces(low: float, high: float) -> int:
    """Into how many pieces the notebook must cut what lies between."""
    middle = (low + high) / 2
    ends, half = math.sqrt(low) + math.sqrt(high), math.sqrt(middle)
    if abs((high - low) * (ends + 2 * half) / 4 - (high - low) * ends / 2) < 1e-5:
        return 1
    return quadrature_pieces(low, middle) + quadrature_pieces(middle, high)


# --- DataFrames

DATAFRAMES = "n_stored listed csv_sum by_name spans bands by_team above_mean lowest hourly rolling night_quantiles"


def test_dataframes(execute: Callable[[str, str], Executed]) -> None:
    executed = execute("dataframes", DATAFRAMES)
    check_dataframes(executed.results)
    assert "<table" in executed.displays("The first of them")[0]["text/html"]


@pytest.mark.workspace
def test_dataframes_on_sessions(notebook: Notebook) -> None:
    folder = notebook.workspace.home / "analysis" / "weather of März"
    folder.mkdir(parents=True)
    try:
        shutil.copy(HERE / "station.py", folder)
        notebook.new_kernel(folder=folder)
        runs = {
            cell.title: notebook.kernel.run(cell.source, CELL_TIMEOUT_S)
            for cell in with_results(cells_of("dataframes"), DATAFRAMES)
        }
        executed = Executed(runs, folder)
        executed.check_nothing_went_wrong()
        check_dataframes(executed.results)
    finally:
        shutil.rmtree(folder.parent)


def check_dataframes(found: dict[str, Any]) -> None:
    """Compare with plain pandas."""
    series = dask.datasets.timeseries(start="2024-03-01", end="2024-03-15", freq="60s", partition_freq="2D", seed=5)
    (frame,) = here(series)
    frame["name"] = frame["name"].astype(object)
    assert found["n_stored"] == len(frame) == 14 * 24 * 60
    assert found["listed"] == [f"part.{number}.parquet" for number in range(7)]
    assert found["csv_sum"] == pytest.approx(frame.x.sum())

    groups = frame.groupby("name")
    by_name = found["by_name"].sort_index()
    assert by_name.index.tolist() == sorted(set(frame["name"]))
    same(by_name["x", "mean"], groups.x.mean())
    same(by_name["x", "max"], groups.x.max())
    same(by_name["y", "std"], groups.y.std())
    same(by_name["id", "count"], groups.id.count())
    same(found["spans"], groups.y.max() - groups.y.min())

    edges = [-1.0, -0.5, 0.0, 0.5, 1.0]
    counts = dict(zip(["low", "below", "above", "high"], np.histogram(-frame.x, edges)[0][::-1].tolist(), strict=True))
    assert found["bands"].to_dict() == counts
    for team, names in {"red": ["Alice", "Charlie"], "blue": ["Bob", "Dan"]}.items():
        assert found["by_team"][team] == pytest.approx(frame.x[frame["name"].isin(names)].sum())
    assert found["above_mean"] == (frame.x > frame.groupby("id").x.transform("mean")).sum()
    assert found["lowest"] == sorted(frame.x)[:5]

    hourly = found["hourly"].x
    assert hourly.index[-1] == pd.Timestamp(
        "2024-03-15"
    )  # Dask adds the hour that begins where the last partition ends
    same(hourly[:-1], frame.x.groupby(frame.index.floor("h")).mean())
    running = np.convolve(frame.x, np.ones(60) / 60, mode="valid")
    assert found["rolling"].isna().sum() == 59
    np.testing.assert_allclose(found["rolling"].dropna(), running, atol=1e-12)
    night = frame.x[(frame.index >= "2024-03-09 22:00") & (frame.index < "2024-03-10 06:00")]
    assert len(night) == 8 * 60
    np.testing.assert_allclose(found["night_quantiles"], np.quantile(night, [0.25, 0.5, 0.75]))


def same(found: Any, expected: Any) -> None:
    """The same numbers under the same labels, in whatever order."""
    np.testing.assert_allclose(found.reindex(expected.index).to_numpy(), expected.to_numpy())
    assert len(found) == len(expected)


# --- machine learning


def test_machine_learning(execute: Callable[[str, str], Executed]) -> None:
    import xgboost
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.model_selection import GridSearchCV, cross_val_score
    from sklearn.tree import DecisionTreeClassifier

    found = execute(
        "learning",
        "local_points local_far scaled_moments directions shares incremental_right best best_score booster losses"
        " predicted local_test local_test_far forest_scores",
    ).results

    centres = np.array([[0.0, 0.0], [6.0, 1.0], [2.0, 7.0]])
    label, spread = here(
        da.random.default_rng(3).integers(0, 3, size=3_000, chunks=750),
        da.random.default_rng(4).normal(size=(3_000, 2), chunks=(750, 2)),
    )
    points, far = centres[label] + spread, (label > 0).astype(int)
    np.testing.assert_allclose(found["local_points"], points)
    assert (found["local_far"] == far).all()
    np.testing.assert_allclose(found["scaled_moments"], [[0, 0], [1, 1]], atol=1e-9)

    _, singular, directions = np.linalg.svd(points - points.mean(axis=0), full_matrices=False)
    np.testing.assert_allclose(abs(found["directions"]), abs(directions))  # a direction's sign is a matter of taste
    np.testing.assert_allclose(found["shares"], singular**2 / sum(singular**2))

    grid = {"max_depth": [1, 2, 4], "min_samples_leaf": [1, 20]}
    search = GridSearchCV(DecisionTreeClassifier(random_state=0), grid, cv=3).fit(points, far)
    assert found["best"] == search.best_params_
    assert found["best_score"] == pytest.approx(search.best_score_)

    booster = found["booster"]
    assert booster.num_boosted_rounds() == 10
    np.testing.assert_allclose(found["predicted"], booster.predict(xgboost.DMatrix(found["local_test"])), rtol=1e-5)
    rows = {tuple(row) for row in points.tolist()}
    assert all(tuple(row) in rows for row in found["local_test"].tolist())
    assert found["losses"] == sorted(found["losses"], reverse=True)

    forest = RandomForestClassifier(10, max_depth=4, random_state=0)
    np.testing.assert_allclose(found["forest_scores"], cross_val_score(forest, points, far, cv=4))
