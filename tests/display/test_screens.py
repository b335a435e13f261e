"""Where a cluster is shown: what a notebook gets to see, what it keeps, and what is left behind."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import ipywidgets
import pytest
from support.statuses import cluster, worker

from cml_dask_magics.display import screens
from cml_dask_magics.display.panel import output
from cml_dask_magics.display.panel.output import VIEW
from cml_dask_magics.magics import kernel_clusters

FOLDER = Path("unused")


@pytest.fixture
def outputs(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, dict[str, Any]]]:
    """What the front end is told to display or to update, by the output's id."""
    told: list[tuple[str, dict[str, Any]]] = []

    def tell(bundle: dict[str, Any], raw: bool, display_id: str) -> None:
        assert raw
        told.append((display_id, bundle))

    for name in ("display", "update_display"):
        monkeypatch.setattr(output, name, tell)
    return told


@pytest.fixture(autouse=True)
def nothing_left(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Clusters are made up, and whatever a test shows is over in the end; then two widgets' worth of it may be left."""
    monkeypatch.setattr(kernel_clusters, "held", lambda name: object())
    monkeypatch.setattr(kernel_clusters, "follow", lambda *args, **kwargs: True)
    monkeypatch.setattr(screens, "_KEEP_EVERY_S", 0.0)
    before = set(ipywidgets.widgets.widget._instances)
    yield
    end(*screens._shown)
    for name in ("last", "very last"):
        screens.panels(FOLDER, [cluster(name=name)])
        end(name)
    assert len(screens._finished) == 1
    screens._finished.pop().panel.close()
    assert screens._several is None
    assert set(ipywidgets.widgets.widget._instances) == before


def end(*names: str) -> None:
    for name in names:
        screens._shown.pop(name).finish(f"Stopped cluster {name!r}.")


def lines() -> tuple[str, ...]:
    assert screens._several is not None
    return tuple(screens._several._accordion.titles)


def test_a_cluster_is_shown_once_live_and_once_as_facts_and_in_plain_text_once(
    outputs: list[tuple[str, dict[str, Any]]],
) -> None:
    screens.panels(FOLDER, [cluster()])
    (_, live), (_, facts) = outputs
    assert set(live) == {VIEW}
    assert set(facts) == {"text/html", "text/plain"}
    assert "worker0003" in facts["text/html"] and "worker0003" in facts["text/plain"]


def test_a_panel_displayed_ten_times_is_one_set_of_widgets_and_one_update(
    outputs: list[tuple[str, dict[str, Any]]],
) -> None:
    screens.panels(FOLDER, [cluster()])
    widgets = set(ipywidgets.widgets.widget._instances)
    for _ in range(9):
        screens.panels(FOLDER, [cluster()])
    assert set(ipywidgets.widgets.widget._instances) == widgets
    assert len({bundle[VIEW]["model_id"] for _, bundle in outputs if VIEW in bundle}) == 1
    outputs.clear()
    screens._shown["default"].draw(cluster(state="degraded"))
    assert len(outputs) == 1


def test_what_a_notebook_keeps_changes_with_the_cluster_and_not_with_its_figures(
    outputs: list[tuple[str, dict[str, Any]]],
) -> None:
    screens.panels(FOLDER, [cluster()])
    outputs.clear()
    shown = screens._shown["default"]
    for percent in range(10):
        shown.draw(cluster(workers=tuple(worker(index, cpu_percent=percent) for index in range(4)), idle_s=percent))
    assert outputs == []
    shown.draw(cluster(workers=tuple(worker(index) for index in range(5))))
    assert ["worker0004" in facts["text/html"] for _, facts in outputs] == [True]


def test_what_a_notebook_keeps_is_not_sent_again_and_again_while_workers_come_and_go(
    outputs: list[tuple[str, dict[str, Any]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(screens, "_KEEP_EVERY_S", 3600.0)
    screens.panels(FOLDER, [cluster()])
    outputs.clear()
    for count in range(10):
        screens._shown["default"].draw(cluster(workers=tuple(worker(index) for index in range(count))))
    assert outputs == []


def test_after_the_end_there_is_one_summary_which_needs_no_widgets(outputs: list[tuple[str, dict[str, Any]]]) -> None:
    screens.panels(FOLDER, [cluster()])
    (live, _), (facts, _) = outputs
    outputs.clear()
    end("default")
    shown = dict(outputs)
    assert shown[live] == {}
    assert "Stopped cluster &#x27;default&#x27;" in shown[facts]["text/html"]
    assert "worker0003" in shown[facts]["text/html"], "and what it was made of"
    assert facts not in shown[facts]["text/html"], "no live widget's style sheet hides it"


def test_a_list_of_clusters_follows_them_and_sends_nothing_when_nothing_changed(
    outputs: list[tuple[str, dict[str, Any]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    screens.panels(FOLDER, [cluster(name="a"), cluster(name="b")])
    assert lines() == ("● a: running · 4 of 4 workers", "● b: running · 4 of 4 workers")
    assert "a: running" in outputs[-1][1]["text/plain"] and "b: running" in outputs[-1][1]["text/plain"]
    screens._shown["b"].draw(cluster(name="b", state="degraded", requested=5))
    assert lines() == ("● a: running · 4 of 4 workers", "▲ b: degraded · 4 of 5 workers")
    sent: list[dict[str, Any]] = []
    monkeypatch.setattr(ipywidgets.Accordion, "_send", lambda _, message, buffers=None: sent.append(message))
    screens._shown["b"].draw(replace(cluster(name="b", state="degraded", requested=5), idle_s=800.0))
    assert sent == []
    end("a")
    assert lines()[0] == "■ a: ended"
    outputs.clear()
    end("b")
    assert lines() == ("■ a: ended", "■ b: ended")
    assert {} in [bundle for _, bundle in outputs], "only the summaries are left of the list"


def test_the_list_of_clusters_is_one_however_often_it_is_shown(outputs: list[tuple[str, dict[str, Any]]]) -> None:
    both = [cluster(name="a"), cluster(name="b")]
    screens.panels(FOLDER, both)
    widgets = set(ipywidgets.widgets.widget._instances)
    for _ in range(9):
        screens.panels(FOLDER, both)
    assert set(ipywidgets.widgets.widget._instances) == widgets
    screens.panels(FOLDER, [*both, cluster(name="c")])
    assert len(lines()) == 3
    end("c")
    screens.panels(FOLDER, both)
    assert len(lines()) == 2


def test_a_new_list_is_made_when_all_of_the_former_have_ended(outputs: list[tuple[str, dict[str, Any]]]) -> None:
    screens.panels(FOLDER, [cluster(name="a"), cluster(name="b")])
    former = screens._several
    end("a", "b")
    screens.panels(FOLDER, [cluster(name="a"), cluster(name="c")])
    assert screens._several is not former
    assert all("running" in line for line in lines())
