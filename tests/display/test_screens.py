"""Where a cluster is shown: what a notebook gets to see, what it keeps, and what is left behind."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import ipywidgets
import pytest
from IPython.core.events import EventManager
from support.statuses import cluster, worker

from cml_dask_magics.display import screens as screens_module
from cml_dask_magics.display.actions import Controls, OnEnd, PanelActions
from cml_dask_magics.display.panel import output as panel_output
from cml_dask_magics.display.panel.output import VIEW
from cml_dask_magics.display.screens import CellWatch, Screens
from cml_dask_magics.display.words import utc_now
from cml_dask_magics.model.status import ClusterStatus, StatusCallback


@dataclass
class Told:
    """What a cluster that is made up tells whoever follows it."""

    draw: StatusCallback
    end: OnEnd


@dataclass
class Stage:
    """Screens, and clusters that are made up to be shown on them."""

    screens: Screens
    followed: dict[str, Told] = field(default_factory=dict)

    def show(self, *statuses: ClusterStatus) -> None:
        """As ``%dask_status`` does, in a kernel that holds every cluster."""
        self.screens.panels([(status, self.controls(status.name)) for status in statuses])

    def controls(self, name: str) -> Controls:
        """Those of a cluster of that name."""

        def follow(on_status: StatusCallback, on_end: OnEnd, wanted: Callable[[], bool]) -> None:
            self.followed[name] = Told(on_status, on_end)

        return Controls(name, name, PanelActions(print, str), held=lambda: True, follow=follow)

    def draw(self, status: ClusterStatus) -> None:
        """The cluster tells how it is."""
        self.followed[status.name].draw(status)

    def end(self, *names: str) -> None:
        """These clusters end."""
        for name in names:
            self.followed.pop(name).end(f"Stopped cluster {name!r}.", "ended")


@pytest.fixture
def outputs(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, dict[str, Any]]]:
    """What the front end is told to display or to update, by the output's id."""
    told: list[tuple[str, dict[str, Any]]] = []

    def tell(bundle: dict[str, Any], raw: bool, display_id: str) -> None:
        assert raw
        told.append((display_id, bundle))

    for name in ("display", "update_display"):
        monkeypatch.setattr(panel_output, name, tell)
    return told


def test_a_terminals_line_counts_from_the_command_and_not_from_the_clusters_start(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []

    @contextlib.contextmanager
    def status(words: str) -> Iterator[Any]:
        told.append(words)
        yield SimpleNamespace(update=told.append)

    here = SimpleNamespace(stdout=SimpleNamespace(isatty=lambda: True))
    monkeypatch.setattr(screens_module, "sys", here)
    monkeypatch.setattr(screens_module, "Console", lambda: SimpleNamespace(status=status))
    with stage.screens.starting(SimpleNamespace(), stage.controls("etl")) as on_status:
        on_status(replace(cluster(name="etl"), created_at=utc_now() - timedelta(hours=3)))
    assert told[0] == "etl: looking for the cluster"
    assert told[1].startswith("etl: 4 of 4 workers ready") and " h" not in told[1]


def widgets() -> set[str]:
    """Every widget there is."""
    return set(ipywidgets.widgets.widget._instances)


def lists() -> Sequence[Any]:
    """The lists of clusters that are not closed."""
    instances = ipywidgets.widgets.widget._instances
    return [each for each in instances.values() if isinstance(each, ipywidgets.Accordion)]


def lines() -> tuple[str, ...]:
    """What the one list of clusters says."""
    (listed,) = lists()
    return tuple(listed.titles)


@pytest.fixture
def stage() -> Iterator[Stage]:
    """However much a test shows, once all is over a summary of one cluster is left, with its few widgets."""
    ipywidgets.Widget.close_all()
    stage = Stage(Screens(keep_every_s=0.0))
    yield stage
    stage.end(*stage.followed)
    left = []
    for name in ("last", "very last"):
        stage.show(cluster(name=name))
        stage.end(name)
        left.append(len(widgets()))
    assert not lists()
    assert left[0] == left[1] < 20
    ipywidgets.Widget.close_all()


def test_a_cluster_is_shown_once_live_and_once_as_facts_and_in_plain_text_once(
    stage: Stage,
    outputs: list[tuple[str, dict[str, Any]]],
) -> None:
    stage.show(cluster())
    (_, live), (_, facts) = outputs
    assert set(live) == {VIEW}
    assert set(facts) == {"text/html", "text/plain"}
    assert "worker0003" in facts["text/html"] and "worker0003" in facts["text/plain"]


def test_a_panel_displayed_ten_times_is_one_set_of_widgets_and_one_update(
    stage: Stage,
    outputs: list[tuple[str, dict[str, Any]]],
) -> None:
    stage.show(cluster())
    before = widgets()
    for _ in range(9):
        stage.show(cluster())
    assert widgets() == before
    assert len({bundle[VIEW]["model_id"] for _, bundle in outputs if VIEW in bundle}) == 1
    outputs.clear()
    stage.draw(cluster(state="degraded"))
    assert len(outputs) == 1


def test_what_a_notebook_keeps_changes_with_the_cluster_and_not_with_its_figures(
    stage: Stage,
    outputs: list[tuple[str, dict[str, Any]]],
) -> None:
    stage.show(cluster())
    outputs.clear()
    for percent in range(10):
        stage.draw(cluster(workers=tuple(worker(index, cpu_percent=percent) for index in range(4)), idle_s=percent))
    assert outputs == []
    stage.draw(cluster(workers=tuple(worker(index) for index in range(5))))
    assert ["worker0004" in facts["text/html"] for _, facts in outputs] == [True]


def test_what_a_notebook_keeps_is_not_sent_again_and_again_while_workers_come_and_go(
    stage: Stage, outputs: list[tuple[str, dict[str, Any]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    stage.screens = Screens(keep_every_s=3600.0)
    stage.show(cluster())
    outputs.clear()
    for count in range(10):
        stage.draw(cluster(workers=tuple(worker(index) for index in range(count))))
    assert outputs == []


def test_after_the_end_there_is_one_summary_which_needs_no_widgets(
    stage: Stage, outputs: list[tuple[str, dict[str, Any]]]
) -> None:
    stage.show(cluster())
    (live, _), (facts, _) = outputs
    outputs.clear()
    stage.end("default")
    shown = dict(outputs)
    assert shown[live] == {}
    assert "Stopped cluster &#x27;default&#x27;" in shown[facts]["text/html"]
    assert "worker0003" in shown[facts]["text/html"], "and what it was made of"
    assert facts not in shown[facts]["text/html"], "no live widget's style sheet hides it"


def test_a_list_of_clusters_follows_them_and_sends_nothing_when_nothing_changed(
    stage: Stage, outputs: list[tuple[str, dict[str, Any]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    stage.show(cluster(name="a"), cluster(name="b"))
    assert lines() == ("● a: running · 4 of 4 workers", "● b: running · 4 of 4 workers")
    assert "a: running" in outputs[-1][1]["text/plain"] and "b: running" in outputs[-1][1]["text/plain"]
    stage.draw(cluster(name="b", state="degraded", requested=5))
    assert lines() == ("● a: running · 4 of 4 workers", "▲ b: degraded · 4 of 5 workers")
    sent: list[dict[str, Any]] = []
    monkeypatch.setattr(ipywidgets.Accordion, "_send", lambda _, message, buffers=None: sent.append(message))
    stage.draw(replace(cluster(name="b", state="degraded", requested=5), idle_s=800.0))
    assert sent == []
    stage.end("a")
    assert lines()[0] == "■ a: ended"
    outputs.clear()
    stage.end("b")
    assert lines() == ("■ a: ended", "■ b: ended")
    assert {} in [bundle for _, bundle in outputs], "only the summaries are left of the list"


def test_the_list_of_clusters_is_one_however_often_it_is_shown(
    stage: Stage, outputs: list[tuple[str, dict[str, Any]]]
) -> None:
    both = [cluster(name="a"), cluster(name="b")]
    stage.show(*both)
    before = widgets()
    for _ in range(9):
        stage.show(*both)
    assert widgets() == before
    stage.show(*both, cluster(name="c"))
    assert len(lines()) == 3
    stage.end("c")
    stage.show(*both)
    assert len(lines()) == 2


def test_a_new_list_is_made_when_all_of_the_former_have_ended(
    stage: Stage, outputs: list[tuple[str, dict[str, Any]]]
) -> None:
    stage.show(cluster(name="a"), cluster(name="b"))
    (former,) = lists()
    stage.end("a", "b")
    stage.show(cluster(name="a"), cluster(name="c"))
    assert lists() != [former]
    assert all("running" in line for line in lines())


def test_a_cell_that_runs_for_long_is_told_of_and_that_it_is_done() -> None:
    shell = SimpleNamespace(events=EventManager(None, {"pre_run_cell": None, "post_run_cell": None}))
    told: list[bool] = []
    late = threading.Event()
    CellWatch(shell, lambda busy: (told.append(busy), late.set()), after_s=0.05)  # in a cell that runs
    assert late.wait(10) and told == [True]
    shell.events.trigger("post_run_cell", None)
    assert told == [True, False]
    shell.events.trigger("pre_run_cell", None)
    shell.events.trigger("post_run_cell", None)
    time.sleep(0.2)
    assert told == [True, False], "a short cell is not told of"


def test_a_cell_that_runs_another_is_busy_until_it_is_done_itself() -> None:
    shell = SimpleNamespace(events=EventManager(None, {"pre_run_cell": None, "post_run_cell": None}))
    told: list[bool] = []
    late = threading.Event()
    CellWatch(shell, lambda busy: (told.append(busy), late.set()), after_s=0.05)
    shell.events.trigger("pre_run_cell", None)
    shell.events.trigger("post_run_cell", None)
    assert late.wait(10) and told == [True]
    shell.events.trigger("post_run_cell", None)
    assert told == [True, False]
