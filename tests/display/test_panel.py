"""What a user sees in a cluster's panel, and what its buttons do."""

from __future__ import annotations

import asyncio
import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import comm
import ipywidgets
import msgspec
import pytest
from comm import DummyComm
from support.statuses import NASTY, NOW, Page, cluster, history, several, starting, worker

from cml_dask_magics.display.actions import PanelActions
from cml_dask_magics.display.html.table import COLUMNS
from cml_dask_magics.display.panel import widgets as panel_widgets
from cml_dask_magics.display.panel.panel import Panel
from cml_dask_magics.model.status import ClusterStatus, Event

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


@pytest.fixture
def full(actions: FakeActions) -> Iterator[Panel]:
    """A panel with every control."""
    every = PanelActions(actions.scale, actions.stop, actions.adapt, actions.keep, actions.restart, actions.log)
    shown = Panel(every, log_every_s=0.0)
    shown.draw(cluster(), NOW)
    yield shown
    actions.go.set()
    shown.close()


def many(count: int, **changes: Any) -> ClusterStatus:
    return cluster(requested=count, workers=tuple(worker(index, **changes) for index in range(count)))


def only(panel: Panel, kind: type) -> Any:
    (found,) = (widget for widget in widgets(panel) if type(widget) is kind)
    return found


def listed(panel: Panel) -> list[str]:
    """The workers that the panel lists."""
    return re.findall(r"worker\d{4}", words(panel))


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

    def adapt(self, low: int, high: int) -> None:
        self._act(f"adapt {low} {high}")

    def keep(self) -> None:
        self._act("keep")

    def restart(self, session: str) -> None:
        self._act(f"restart {session}")

    def log(self, session: str) -> list[str]:
        self._act(f"log {session}")
        return [f"{session} line {index} {NASTY}" for index in range(300)]

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

    return list(visible(panel.widget))


def words(panel: Panel) -> str:
    values = [widget.value for widget in widgets(panel) if isinstance(widget, ipywidgets.HTML)]
    return " ".join(" ".join(Page(value).words) for value in values if "<style>" not in value)


def button(panel: Panel, description: str) -> Any:
    return next(w for w in widgets(panel) if isinstance(w, ipywidgets.Button) and w.description == description)


def buttons(panel: Panel) -> dict[str, bool]:
    """The visible buttons, without those of the table, and whether each can be pressed."""
    table = {"", *(column.title for column in COLUMNS)}
    found = [w for w in widgets(panel) if isinstance(w, ipywidgets.Button)]
    return {w.description: not w.disabled for w in found if w.description.strip(" ▲▼◂▸") not in table}


def box(panel: Panel) -> Any:
    return next(w for w in widgets(panel) if isinstance(w, ipywidgets.BoundedIntText))


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 60
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
    assert all("etl" in facts for facts in shown.facts())


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
    panel.draw(
        cluster(requested=1000, workers=tuple(msgspec.structs.replace(w, cpu_percent=99.0) for w in workers)), NOW
    )
    assert 0 < len(str(sent)) < 20_000


def test_scale_asks_the_cluster_and_shows_at_once_that_it_was_pressed(panel: Panel, actions: FakeActions) -> None:
    box(panel).value = 6
    button(panel, "Scale").click()
    assert "scaling to 6 …" in words(panel)
    assert buttons(panel) == {"Scale": False, "Stop": True}
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


def test_an_action_that_hangs_does_not_keep_the_cluster_from_being_stopped(
    panel: Panel, actions: FakeActions, monkeypatch: pytest.MonkeyPatch
) -> None:
    hanging = threading.Event()
    monkeypatch.setattr(actions, "scale", lambda n: hanging.wait(10))
    shown = Panel(PanelActions(actions.scale, actions.stop))
    shown.draw(cluster(), NOW)
    button(shown, "Scale").click()
    button(shown, "Stop").click()
    button(shown, "Stop them").click()
    assert "scaling to 4 …" in words(shown) and "stopping …" in words(shown)
    assert buttons(shown) == {"Scale": False, "Stop": False}
    actions.go.set()
    until(lambda: shown.finished)
    hanging.set()
    assert "Stopped 4 workers after 12 min" in words(shown)
    shown.close()


def test_a_stop_that_fails_while_another_action_hangs_can_be_tried_again(actions: FakeActions) -> None:
    panel = Panel(PanelActions(actions.scale, stop=lambda: str(1 / 0)))
    panel.draw(cluster(), NOW)
    button(panel, "Scale").click()
    until(lambda: actions.calls == ["scale 4"])
    button(panel, "Stop").click()
    button(panel, "Stop them").click()
    until(lambda: "Could not stop: division by zero" in words(panel))
    assert buttons(panel) == {"Scale": False, "Stop": True}
    assert "scaling to 4 …" in words(panel)
    actions.go.set()
    panel.close()


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


def test_stop_asks_first_and_cancel_keeps(panel: Panel, actions: FakeActions) -> None:
    button(panel, "Stop").click()
    assert "Stop 4 workers and the scheduler?" in words(panel)
    assert buttons(panel) == {"Stop them": True, "Cancel": True}
    button(panel, "Cancel").click()
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
    assert "worker0003" in words(panel) and "100.66.1.3" in words(panel), "what it was made of, as last seen"
    assert "worker0003" in panel.facts()[0]
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
    assert box(panel).continuous_update, "known while it is being typed"
    box(panel).value = 9
    panel.draw(cluster(requested=6), NOW)
    assert box(panel).value == 9
    panel.draw(cluster(requested=9), NOW)
    panel.draw(cluster(requested=3), NOW)
    assert box(panel).value == 3


def test_no_more_workers_can_be_asked_for_than_the_setting_allows(panel: Panel, actions: FakeActions) -> None:
    actions.go.set()
    panel.draw(cluster(max_workers=7), NOW)
    box(panel).value = 500
    button(panel, "Scale").click()
    until(lambda: actions.calls == ["scale 7"])


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
    html, text = panel.facts()
    assert "<script" not in html
    assert text.startswith("default: failed. Session ab12 was refused.\n")


def test_where_widgets_do_not_show_the_same_facts_do(panel: Panel) -> None:
    html, text = panel.facts(NOW)
    for facts in (html, text):
        assert "VBox" not in facts
        assert "worker0003" in facts
    assert "style=" in html
    assert "class=" not in html
    assert "As it was at 2026-01-31 12:12:00 UTC" in html


def test_every_button_says_what_it_does(panel: Panel) -> None:
    shown = {w.tooltip for w in widgets(panel) if isinstance(w, ipywidgets.Button)}
    button(panel, "Stop").click()
    shown |= {w.tooltip for w in widgets(panel) if isinstance(w, ipywidgets.Button)}
    assert len(shown) == 4 + 7
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


def test_controls_without_an_action_are_not_there(panel: Panel, full: Panel) -> None:
    assert set(buttons(full)) == {"Scale", "Stop", "Keep"}
    assert set(buttons(panel)) == {"Scale", "Stop"}
    assert not any(isinstance(widget, ipywidgets.ToggleButton) for widget in widgets(panel))
    only(full, ipywidgets.ToggleButton).value = True
    assert set(buttons(full)) == {"Scale", "Stop", "Keep", "Adapt", "Restart worker", "Log"}


def test_a_countdown_can_be_started_anew_while_it_runs(full: Panel, actions: FakeActions) -> None:
    actions.go.set()
    button(full, "Keep").click()
    until(lambda: actions.calls == ["keep"])
    full.draw(cluster(idle_s=None), NOW)
    assert "Keep" not in buttons(full)


def test_adaptive_scaling_is_asked_for_and_shown(full: Panel, actions: FakeActions) -> None:
    only(full, ipywidgets.ToggleButton).value = True
    boxes = {w.description: w for w in widgets(full) if isinstance(w, ipywidgets.BoundedIntText)}
    boxes["Adaptive from"].value, boxes["to"].value = 8, 2
    actions.go.set()
    button(full, "Adapt").click()
    until(lambda: actions.calls == ["adapt 2 8"])
    full.draw(cluster(adapt=(2, 8)), NOW)
    assert "on: 2 to 8 workers" in words(full)


def test_a_cluster_of_several_workers_a_session_is_scaled_in_sessions(full: Panel, actions: FakeActions) -> None:
    full.draw(cluster(requested=2, processes=4, workers=(several(0), several(1))), NOW)
    descriptions = [widget.description for widget in widgets(full) if isinstance(widget, ipywidgets.BoundedIntText)]
    assert "Sessions" in descriptions and "Workers" not in descriptions
    assert "2 of 2 sessions, 8 workers" in words(full) and "4 workers" in words(full).replace("8 workers", "")
    button(full, "Stop").click()
    assert "Stop 2 sessions and the scheduler?" in words(full)


def test_a_worker_that_hangs_can_be_picked_and_restarted(full: Panel, actions: FakeActions) -> None:
    only(full, ipywidgets.ToggleButton).value = True
    picker = next(w for w in widgets(full) if getattr(w, "description", "") == "Session")
    picker.value = "worker0002"
    full.draw(many(3), NOW)
    assert picker.value == "worker0002"
    button(full, "Restart worker").click()
    assert "restarting worker0002 …" in words(full)
    assert not buttons(full)["Restart worker"]
    actions.go.set()
    until(lambda: buttons(full)["Restart worker"])
    assert actions.calls == ["restart worker0002"]
    picker.value = "scheduler1"
    assert not buttons(full)["Restart worker"]
    assert buttons(full)["Log"]


def test_a_log_shows_its_end_as_text_and_is_followed_until_it_is_closed(full: Panel, actions: FakeActions) -> None:
    actions.go.set()
    only(full, ipywidgets.ToggleButton).value = True
    button(full, "Log").click()
    until(lambda: "worker0000 line 299 <script>" in words(full))
    assert "line 99 " not in words(full)
    assert "line 100 " in words(full)
    full.draw(cluster(), NOW)
    until(lambda: len(actions.calls) == 2)
    until(lambda: not any(thread.name == "panel log" for thread in threading.enumerate()))
    button(full, "Close").click()
    full.draw(cluster(), NOW)
    time.sleep(0.1)
    assert len(actions.calls) == 2
    assert "line 299" not in words(full)


def test_a_log_that_cannot_be_read_says_why(full: Panel, actions: FakeActions) -> None:
    actions.error = RuntimeError("no such file")
    actions.go.set()
    only(full, ipywidgets.ToggleButton).value = True
    button(full, "Log").click()
    until(lambda: "Could not read the log: no such file" in words(full))


def test_sorting_filter_and_page_stay_from_one_refresh_to_the_next(panel: Panel) -> None:
    panel.draw(many(100), NOW)
    assert listed(panel) == [f"worker{index:04}" for index in range(20)]
    button(panel, "Session").click()
    button(panel, "Session ▲").click()
    assert listed(panel)[0] == "worker0099"
    button(panel, "▸").click()
    panel.draw(many(100, cpu_percent=3.0), NOW)
    assert listed(panel)[0] == "worker0079"
    assert "21 to 40 of 100 workers" in words(panel)
    only(panel, ipywidgets.Text).value = "worker005"
    panel.draw(many(100, cpu_percent=4.0), NOW)
    assert listed(panel) == [f"worker{index:04}" for index in range(59, 49, -1)]
    assert "1 to 10 of 10 workers that match" in words(panel)
    button(panel, "Session ▼").click()
    assert listed(panel)[0] == "worker0050"


def test_a_filter_that_nothing_matches_says_so_and_can_be_taken_back(panel: Panel) -> None:
    panel.draw(many(20), NOW)
    only(panel, ipywidgets.Dropdown).value = "failed"
    assert "No worker matches." in words(panel)
    panel.draw(many(3), NOW)
    only(panel, ipywidgets.Dropdown).value = ""
    assert len(listed(panel)) == 3


def test_a_page_that_is_gone_gives_way_to_the_last_one(panel: Panel) -> None:
    panel.draw(many(60), NOW)
    button(panel, "▸").click()
    button(panel, "▸").click()
    panel.draw(many(30), NOW)
    assert listed(panel) == [f"worker{index:04}" for index in range(20, 30)]


def test_a_refresh_of_five_thousand_workers_sends_no_more_than_one_of_a_thousand(
    panel: Panel, sent: list[dict[str, Any]]
) -> None:
    sizes = []
    for count in (1000, 5000):
        panel.draw(replace(many(count), history=history()), NOW)
        sent.clear()
        panel.draw(replace(many(count, cpu_percent=99.0, spilled_bytes=5), history=history()[:-1]), NOW)
        sizes.append(len(json.dumps(sent)))
    assert max(sizes) < 20_000
    assert abs(sizes[1] - sizes[0]) < 200


def test_old_events_can_be_looked_up(panel: Panel) -> None:
    happened = tuple(Event(NOW - timedelta(minutes=60 - index), f"event {index}.") for index in range(60))
    panel.draw(cluster(events=happened), NOW)
    assert words(panel).count("event ") == 5
    button(panel, "More events").click()
    assert words(panel).count("event ") == 50
    assert words(panel).index("event 59.") < words(panel).index("event 10.")
    button(panel, "Fewer events").click()
    assert words(panel).count("event ") == 5


def test_the_panel_says_when_a_click_has_to_wait(panel: Panel) -> None:
    panel.busy(True)
    assert "buttons act when the cell is done" in words(panel)
    panel.busy(False)
    assert "busy" not in words(panel)


def test_it_does_not_say_so_where_clicks_are_heard_beside_the_cell(
    panel: Panel, monkeypatch: pytest.MonkeyPatch
) -> None:
    subshells: list[str] = []
    manager = SimpleNamespace(list_subshell=lambda: subshells)
    kernel = SimpleNamespace(shell_channel_thread=SimpleNamespace(manager=manager))
    monkeypatch.setattr(panel_widgets, "get_ipython", lambda: SimpleNamespace(kernel=kernel))
    panel.busy(True)
    assert "buttons act when the cell is done" in words(panel)
    # A front end takes a moment to ask for one.
    subshells.append("jupyterlab's")
    panel.draw(cluster(), NOW)
    assert "busy" not in words(panel)
    kernel.shell_channel_thread = None  # a kernel that has none, though it could
    panel.draw(cluster(), NOW)
    assert "buttons act when the cell is done" in words(panel)


def test_clicks_go_where_the_front_end_sends_them_though_the_kernel_knows_better(monkeypatch: Any) -> None:
    class Comm(DummyComm):
        """As in ipykernel 7.4: it sends to where the widget last published from."""

        def _reply_subshell_for(self, data: Any, default: Any) -> Any:
            return None

    monkeypatch.setattr(comm, "create_comm", lambda *_, **__: Comm())
    panel = Panel(PanelActions(scale=print, stop=str))
    for each in widgets(panel):
        assert each.comm._reply_subshell_for({}, "of the front end") == "of the front end"
    panel.close()


def test_a_panel_that_was_closed_on_the_page_is_not_shown_and_any_other_may_be(panel: Panel) -> None:
    assert panel.shown
    panel.widget._view_count = 2
    panel.widget._view_count = 1
    assert panel.shown
    panel.widget._view_count = 0
    assert not panel.shown
    panel.widget._view_count = 1
    assert panel.shown


def test_a_picture_that_cannot_be_drawn_leaves_a_panel_that_goes_on(panel: Panel) -> None:
    with pytest.raises(TypeError):
        panel.draw(cluster(workers=(worker(0, cpu_percent="broken"),)), NOW)
    panel.draw(cluster(name="mended"), NOW)
    assert "mended" in words(panel)


def test_a_panel_with_every_control_leaves_no_widget_behind(actions: FakeActions) -> None:
    before = set(ipywidgets.widgets.widget._instances)
    shown = Panel(PanelActions(actions.scale, actions.stop, actions.adapt, actions.keep, actions.restart, actions.log))
    shown.draw(many(100), NOW)
    only(shown, ipywidgets.ToggleButton).value = True
    shown.finish("over")
    shown.close()
    assert set(ipywidgets.widgets.widget._instances) == before
