"""What a user sees in a cluster's panel, and what its buttons do."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from typing import Any

import ipywidgets
import pytest
from test_render import NASTY, NOW, Page, cluster, starting, worker

from cml_dask_magics.panel import Panel, PanelActions
from cml_dask_magics.status import Event

VIEW = "application/vnd.jupyter.widget-view+json"


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Every message that any widget sends to browsers."""
    messages: list[dict[str, Any]] = []
    monkeypatch.setattr(ipywidgets.Widget, "_send", lambda _, message, buffers=None: messages.append(message))
    return messages


@pytest.fixture
def actions() -> FakeActions:
    return FakeActions()


@pytest.fixture
def panel(actions: FakeActions) -> Iterator[Panel]:
    shown = Panel(PanelActions(scale=actions.scale, stop=actions.stop))
    shown.draw(cluster(), NOW)
    yield shown
    actions.go.set()
    shown.close()


class FakeActions:
    """A cluster's actions: they wait for ``go``, then raise ``error`` if there is one."""

    def __init__(self) -> None:
        self.go = threading.Event()
        self.error: BaseException | None = None
        self.calls: list[str] = []
        self.threads: set[threading.Thread] = set()

    def scale(self, n: int) -> None:
        self._act(f"scale {n}")

    def stop(self) -> str:
        self._act("stop")
        return "Stopped 4 workers after 12 min: 0.42 core-hours."

    def _act(self, call: str) -> None:
        self.calls.append(call)
        self.threads.add(threading.current_thread())
        assert self.go.wait(10)
        if self.error is not None:
            raise self.error


def widgets(panel: Panel) -> list[Any]:
    """Every widget a browser shows for the panel, hidden ones left out."""

    def visible(widget: Any) -> Iterator[Any]:
        if widget.layout.display != "none":
            yield widget
            for child in getattr(widget, "children", ()):
                yield from visible(child)

    return list(visible(panel._root))


def words(panel: Panel) -> str:
    values = [widget.value for widget in widgets(panel) if isinstance(widget, ipywidgets.HTML)]
    return " ".join(" ".join(Page(value).words) for value in values if "<style>" not in value)


def button(panel: Panel, description: str) -> Any:
    return next(w for w in widgets(panel) if isinstance(w, ipywidgets.Button) and w.description == description)


def buttons(panel: Panel) -> dict[str, bool]:
    """The visible buttons and whether each can be pressed."""
    return {w.description: not w.disabled for w in widgets(panel) if isinstance(w, ipywidgets.Button)}


def box(panel: Panel) -> Any:
    return next(w for w in widgets(panel) if isinstance(w, ipywidgets.BoundedIntText))


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_the_panel_shows_what_the_cluster_is_and_does(panel: Panel) -> None:
    shown = words(panel)
    for fact in ("default", "running", "4 of 4 workers", "worker0003", "100.66.1.3", "stops in 48 min if idle"):
        assert fact in shown
    assert "https://scheduler1.example.site/status" in shown
    assert box(panel).value == 4


def test_before_anything_is_known_the_panel_says_that_it_starts(actions: FakeActions) -> None:
    shown = Panel(PanelActions(actions.scale, actions.stop), name="etl")
    assert "etl" in words(shown)
    assert "starting" in words(shown)
    assert buttons(shown) == {"Scale": False, "Stop": False}
    assert set(shown.mimebundle()) == {VIEW, "text/html", "text/plain"}


def test_a_start_shows_progress_and_can_be_stopped(panel: Panel) -> None:
    panel.draw(starting(), NOW)
    assert "2 of 4 workers ready · 1 starting · 1 pending" in words(panel)
    assert buttons(panel) == {"Scale": False, "Stop": True}


def test_nothing_is_sent_when_nothing_changed(panel: Panel, sent: list[dict[str, Any]]) -> None:
    panel.draw(cluster(), NOW)
    panel.draw(cluster(), NOW + timedelta(seconds=20))
    assert sent == []


def test_only_what_changed_is_sent(panel: Panel, sent: list[dict[str, Any]]) -> None:
    panel.draw(replace(cluster(), events=(Event(NOW, "worker lost"),)), NOW)
    assert len(sent) == 1
    assert "worker lost" in str(sent[0])


def test_a_refresh_of_a_thousand_busy_workers_is_small(panel: Panel, sent: list[dict[str, Any]]) -> None:
    workers = tuple(worker(index) for index in range(1000))
    panel.draw(cluster(requested=1000, workers=workers), NOW)
    sent.clear()
    panel.draw(cluster(requested=1000, workers=tuple(replace(w, cpu_percent=99.0) for w in workers)), NOW)
    assert 0 < len(str(sent)) < 20_000


def test_scale_asks_the_cluster_and_shows_at_once_that_it_was_pressed(panel: Panel, actions: FakeActions) -> None:
    box(panel).value = 6
    button(panel, "Scale").click()
    assert "scaling to 6 …" in words(panel)
    assert buttons(panel) == {"Scale": False, "Stop": False}
    actions.go.set()
    until(lambda: buttons(panel) == {"Scale": True, "Stop": True})
    assert actions.calls == ["scale 6"]
    assert "scaling" not in words(panel)


def test_an_action_that_hangs_holds_up_neither_the_kernel_nor_drawing(panel: Panel, actions: FakeActions) -> None:
    button(panel, "Scale").click()
    panel.draw(cluster(name="still-drawn"), NOW)
    assert "still-drawn" in words(panel)
    assert "scaling to 4 …" in words(panel)
    until(lambda: actions.threads)
    (thread,) = actions.threads
    assert thread is not threading.current_thread()
    assert thread.daemon


def test_clicks_that_queued_up_act_once(panel: Panel, actions: FakeActions) -> None:
    pressed = button(panel, "Scale")
    for _ in range(3):
        pressed.click()
    actions.go.set()
    until(lambda: buttons(panel)["Scale"])
    assert actions.calls == ["scale 4"]


@pytest.mark.parametrize("error", [RuntimeError(f"quota {NASTY}"), ValueError(), asyncio.CancelledError()])
def test_an_error_is_shown_in_the_panel_and_the_buttons_work_again(
    panel: Panel, actions: FakeActions, error: BaseException
) -> None:
    actions.error = error
    actions.go.set()
    button(panel, "Scale").click()
    until(lambda: "Could not scale to 4: " in words(panel))
    assert (NASTY.partition("\x1b")[0] if str(error) else type(error).__name__) in words(panel)
    assert buttons(panel) == {"Scale": True, "Stop": True}
    actions.error = None
    button(panel, "Scale").click()
    until(lambda: "Could not" not in words(panel))


def test_stop_asks_first_and_keep_keeps(panel: Panel, actions: FakeActions) -> None:
    button(panel, "Stop").click()
    assert "Stop 4 workers and the scheduler?" in words(panel)
    assert buttons(panel) == {"Stop them": True, "Keep": True}
    button(panel, "Keep").click()
    assert buttons(panel) == {"Scale": True, "Stop": True}
    assert actions.calls == []


def test_stop_confirmed_ends_the_cluster_and_leaves_a_summary(panel: Panel, actions: FakeActions) -> None:
    button(panel, "Stop").click()
    button(panel, "Stop them").click()
    assert "stopping …" in words(panel)
    assert not any(buttons(panel).values())
    actions.go.set()
    until(lambda: buttons(panel) == {})
    assert actions.calls == ["stop"]
    assert "Stopped 4 workers after 12 min: 0.42 core-hours." in words(panel)
    assert "ended" in words(panel)


def test_a_stop_that_fails_says_so_and_can_be_tried_again(panel: Panel, actions: FakeActions) -> None:
    actions.error = RuntimeError("2 sessions are still up: a, b")
    actions.go.set()
    button(panel, "Stop").click()
    button(panel, "Stop them").click()
    until(lambda: "Could not stop: 2 sessions are still up: a, b" in words(panel))
    assert buttons(panel) == {"Scale": True, "Stop": True}


@pytest.mark.parametrize(
    ("state", "can"),
    [
        ("starting", {"Scale": False, "Stop": True}),
        ("degraded", {"Scale": True, "Stop": True}),
        ("lost", {"Scale": False, "Stop": True}),
        ("stopping", {"Scale": False, "Stop": False}),
    ],
)
def test_buttons_are_off_while_they_cannot_work(panel: Panel, state: Any, can: dict[str, bool]) -> None:
    panel.draw(cluster(state=state), NOW)
    assert buttons(panel) == can


def test_a_cluster_that_stops_by_itself_takes_its_question_back(panel: Panel) -> None:
    button(panel, "Stop").click()
    panel.draw(cluster(state="stopping"), NOW)
    assert buttons(panel) == {"Scale": False, "Stop": False}


def test_the_number_that_the_user_is_typing_is_left_alone(panel: Panel) -> None:
    panel.draw(cluster(requested=5), NOW)
    assert box(panel).value == 5
    box(panel).value = 9
    panel.draw(cluster(requested=6), NOW)
    assert box(panel).value == 9
    panel.draw(cluster(requested=9), NOW)
    panel.draw(cluster(requested=3), NOW)
    assert box(panel).value == 3


def test_after_the_end_nothing_is_drawn_pressed_or_left_open(panel: Panel, actions: FakeActions) -> None:
    pressed = button(panel, "Scale")
    before = set(ipywidgets.widgets.widget._instances)
    panel.finish("Gone after 12 min.")
    panel.draw(cluster(name="ghost"), NOW)
    pressed.click()
    assert actions.calls == []
    assert "Gone after 12 min." in words(panel)
    assert "ghost" not in words(panel)
    assert len(before) - len(set(ipywidgets.widgets.widget._instances)) > 20


def test_a_panel_that_is_closed_leaves_no_widget_behind(actions: FakeActions) -> None:
    before = set(ipywidgets.widgets.widget._instances)
    threads = threading.active_count()
    for _ in range(5):
        shown = Panel(PanelActions(actions.scale, actions.stop))
        shown.draw(cluster(), NOW)
        shown.finish("over")
        shown.close()
    assert set(ipywidgets.widgets.widget._instances) == before
    assert threading.active_count() == threads


def test_a_failure_keeps_its_lines_and_shows_them_as_text(panel: Panel) -> None:
    panel.finish(f"Session ab12 was refused.\n  {NASTY}", kind="failed")
    assert "failed" in words(panel)
    assert "Session ab12 was refused.\n  <script>" in words(panel)
    bundle = panel.mimebundle()
    assert set(bundle) == {"text/html", "text/plain"}
    assert "<script" not in bundle["text/html"]
    assert bundle["text/plain"].startswith("default: failed. Session ab12 was refused.\n")


def test_where_widgets_do_not_show_the_same_facts_do(panel: Panel) -> None:
    bundle = panel._repr_mimebundle_(include=None, exclude=None)
    assert set(bundle) == {VIEW, "text/html", "text/plain"}
    for kind in ("text/html", "text/plain"):
        assert "VBox" not in bundle[kind]
        assert "worker0003" in bundle[kind]
    assert "style=" in bundle["text/html"]
    assert "class=" not in bundle["text/html"]


def test_a_panel_displayed_ten_times_is_one_set_of_widgets(panel: Panel, sent: list[dict[str, Any]]) -> None:
    models = {panel._repr_mimebundle_()[VIEW]["model_id"] for _ in range(10)}
    assert len(models) == 1
    assert sent == []


def test_every_button_says_what_it_does(panel: Panel) -> None:
    shown = {w.tooltip for w in widgets(panel) if isinstance(w, ipywidgets.Button)}
    button(panel, "Stop").click()
    shown |= {w.tooltip for w in widgets(panel) if isinstance(w, ipywidgets.Button)}
    assert len(shown) == 4
    assert all(shown)


def test_drawing_from_many_threads_at_once_ends_in_one_consistent_panel(panel: Panel) -> None:
    def draw(seed: int) -> None:
        for index in range(20):
            panel.draw(cluster(name=f"name-{seed}-{index}", events=(Event(NOW, f"event-{seed}-{index}"),)), NOW)

    drawers = [threading.Thread(target=draw, args=(seed,)) for seed in range(5)]
    for thread in drawers:
        thread.start()
    for thread in drawers:
        thread.join()
    shown = words(panel)
    name = shown[shown.index("name-") + 5 :].split()[0]
    assert f"event-{name}" in shown
