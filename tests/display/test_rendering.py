"""What a cluster's snapshot says as JSON, text, a progress line and HTML."""

from __future__ import annotations

import json
import math
import sys
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from typing import Any

import msgspec
import pytest
from support.statuses import GIB, NASTY, NOW, Page, cluster, history, several, starting, worker

from cml_dask_magics.display import document
from cml_dask_magics.display import text as render
from cml_dask_magics.display import words as render_words
from cml_dask_magics.display.html import pieces as render_html
from cml_dask_magics.display.html.looks import classed, inline
from cml_dask_magics.display.html.table import table
from cml_dask_magics.display.listing import SORTS, Wanted, choose
from cml_dask_magics.display.panel.page import page_piece
from cml_dask_magics.display.safe import safe_url
from cml_dask_magics.display.words import totals
from cml_dask_magics.model.status import ClusterStatus, Event, SessionStatus
from cml_dask_magics.model.words import format_bytes, format_memory


def pieces(status: ClusterStatus, dress: Any = classed) -> str:
    return (
        render_html.head(status, totals(status), dress)
        + render_html.facts(status, NOW, dress)
        + render_html.links(status, dress)
        + render_html.advice(status, totals(status), dress)
        + render_html.tiles(status, totals(status), dress)
        + render_html.progress(status, totals(status), dress)
        + table(status.scheduler, choose(status.workers, Wanted()).rows, NOW, dress)
        + render_html.events(status.events, NOW, dress)
    )


def test_a_script_that_reads_json_finds_exactly_the_promised_keys() -> None:
    whole = json.loads(document.to_json([cluster()]))
    (found,) = whole["clusters"]
    assert list(whole) == ["clusters"]
    assert list(found) == [
        *("name", "state", "backend", "created_at", "idle_timeout_s", "idle_s", "requested", "adapt", "tls"),
        *("scheduler", "workers", "dashboard_link", "usage", "events"),
    ]
    assert found["created_at"] == "2026-01-31T12:00:00Z"
    assert found["scheduler"] == {
        "session": "scheduler1",
        "state": "running",
        "ip_address": "100.66.1.99",
        "address": "tls://100.66.1.99:8786",
    }
    assert found["workers"][1] == {
        "session": "worker0001",
        "state": "running",
        "ip_address": "100.66.1.1",
        "address": "tls://100.66.1.1:40331",
        "nthreads": 2,
        "cpu_percent": 50.0,
        "memory_bytes": GIB // 2,
        "memory_limit_bytes": 2 * GIB,
        "executing": 1,
        "workers": [
            {
                "name": "worker0001",
                "address": "tls://100.66.1.1:40331",
                "nthreads": 2,
                "cpu_percent": 50.0,
                "memory_bytes": GIB // 2,
                "memory_limit_bytes": 2 * GIB,
                "executing": 1,
            }
        ],
    }
    assert found["usage"] == {"core_hours": 0.42, "gib_hours": 0.9, "gpu_hours": 0.0}
    assert found["events"][1] == {"at": "2026-01-31T12:12:00Z", "message": "4 workers ready"}
    assert '"idle_timeout_s": 3600,' in document.to_json([cluster()])


def test_json_tells_unknown_from_zero_and_is_always_valid() -> None:
    odd = cluster(
        adapt=(1, 8), scheduler=None, idle_timeout_s=None, idle_s=math.nan, workers=(worker(0, cpu_percent=math.inf),)
    )
    found = json.loads(document.to_json([odd]))["clusters"][0]
    assert found["adapt"] == [1, 8]
    assert found["scheduler"] is found["idle_timeout_s"] is found["idle_s"] is None
    assert found["workers"][0]["cpu_percent"] is None
    assert json.loads(document.to_json([])) == {"clusters": []}


def test_times_of_other_zones_are_written_in_utc() -> None:
    berlin = timezone(timedelta(hours=1))
    at = datetime(2026, 1, 31, 13, 0, tzinfo=berlin)
    assert document.to_dict(cluster(created_at=at))["created_at"] == "2026-01-31T12:00:00Z"


def test_text_says_everything_the_panel_says() -> None:
    text = render.to_text([cluster()], width=120, now=NOW)
    for fact in (
        *("default: running, 4 of 4 workers", "on CML", "up 12 min", "stops in 48 min if idle"),
        *("0.42 core-hours", "0.90 GiB-hours", "https://scheduler1.example.site/status"),
        *("Scheduler: scheduler1, 100.66.1.99, running", "worker0003", "100.66.1.3", "50 %", "512 MiB / 2 GiB"),
        *("12:12:00 4 workers ready", "12:00:00 Cluster started"),
    ):
        assert fact in text
    assert max(map(len, text.splitlines())) <= 120


def test_a_narrow_terminal_loses_no_id_and_breaks_no_link() -> None:
    link = "https://" + "x" * 90 + ".example.site/status"
    text = render.to_text([cluster(dashboard_link=link)], width=60, now=NOW)
    assert link in text
    assert "worker0003" in text
    assert "100.66.1.3" in text


def of_several(**changes: Any) -> ClusterStatus:
    """Two sessions of four workers each."""
    return cluster(**{"requested": 2, "processes": 4, "workers": (several(0), several(1)), **changes})


def test_sessions_with_several_workers_are_counted_as_sessions_and_as_workers() -> None:
    assert render_words.workers_words(of_several()) == "2 of 2 sessions, 8 workers"
    assert render_words.workers_words(of_several(adapt=(1, 3))) == "2 of 2 sessions, 8 workers, adaptive 1 to 3"
    sums = totals(of_several())
    assert (sums.ready, sums.workers, sums.nthreads, sums.executing) == (2, 8, 16, 8)
    # One of four workers is still missing: their session is not ready, and what the three do counts.
    three = several(1)
    three = msgspec.structs.replace(three, state="starting", workers=three.workers[:3], nthreads=6, executing=3)
    partly = of_several(workers=(several(0), three), state="degraded")
    assert render_words.workers_words(partly) == "1 of 2 sessions, 7 workers"
    assert totals(partly).nthreads == 14
    assert render_words.count_words(partly) == ["1 of 2 sessions ready", "1 starting"]
    assert "1 session is not connected yet" in render_words.advice_words(partly)


def test_the_workers_of_a_session_stand_under_it_in_the_text() -> None:
    lines = render.to_text([of_several()], width=120, now=NOW).splitlines()
    at = next(number for number, line in enumerate(lines) if line.startswith("worker0001 "))
    assert " ".join(lines[at].split()) == "worker0001 100.66.1.1 running 206 % 2 / 8 GiB 8 4"
    assert [line.split()[0] for line in lines[at + 1 : at + 5]] == [f"worker0001-{n}" for n in range(4)]
    assert " ".join(lines[at + 4].split()) == "worker0001-3 53 % 512 MiB / 2 GiB 2 1"
    assert lines[0] == "default: running, 2 of 2 sessions, 8 workers"
    assert not any(line.startswith("  worker") for line in render.to_text([cluster()], now=NOW).splitlines())


def test_json_has_the_sums_of_a_session_and_each_of_its_workers() -> None:
    session = json.loads(document.to_json([of_several()]))["clusters"][0]["workers"][1]
    assert (session["nthreads"], session["memory_limit_bytes"], session["executing"]) == (8, 8 * GIB, 4)
    assert [worker["name"] for worker in session["workers"]] == [f"worker0001-{n}" for n in range(4)]
    assert session["address"] == session["workers"][0]["address"]
    assert sum(worker["cpu_percent"] for worker in session["workers"]) == session["cpu_percent"] == 206


@pytest.mark.parametrize("dress", [classed, inline])
def test_the_workers_of_a_session_are_folded_under_its_row(dress: Any) -> None:
    page = Page(pieces(of_several(), dress))
    folds = page.tags("details")
    assert [fold["data-session"] for fold in folds] == ["worker0000", "worker0001"]
    assert all("open" not in fold for fold in folds), "they are folded at first"
    assert [summary["aria-label"] for summary in page.tags("summary")] == [
        f"4 workers of session worker000{n}" for n in range(2)
    ]
    assert "worker0001-3" in page.words and "Sessions with 8 workers" in page.words
    assert not Page(pieces(cluster(), dress)).tags("details")
    assert NASTY not in pieces(of_several(workers=(several(0, session=NASTY),)), dress)


def test_without_a_cluster_the_text_says_how_to_start_one() -> None:
    assert render.to_text([]) == "No cluster is running. %dask_up starts one."


def test_several_clusters_are_all_in_the_text() -> None:
    text = render.to_text([cluster(), cluster(name="etl")], width=100, now=NOW)
    assert "default: running" in text
    assert "etl: running" in text


def test_text_is_plain_and_keeps_what_looks_like_markup() -> None:
    nasty = cluster(name=NASTY, workers=(worker(0, session=NASTY),), events=(Event(NOW, NASTY),))
    text = render.to_text([nasty], width=200, now=NOW)
    assert "\x1b" not in text
    assert text.count("[bold]") == 3  # name, id, event


def test_text_in_a_notebook_is_returned_and_not_displayed(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[object] = []
    monkeypatch.setattr("rich.console._is_jupyter", lambda: True)
    monkeypatch.setattr("IPython.display.display", lambda *objects, **_: shown.append(objects))
    assert "4 of 4 workers" in render.to_text([cluster()])
    assert not shown


def test_the_progress_line_tells_who_is_where() -> None:
    line = render.progress_line(starting(), 12.3)
    assert line == "default: 2 of 4 workers ready · 1 starting · 1 pending · 12 s"
    early = cluster(scheduler=SessionStatus("s", "pending"), workers=(worker(0, state="failed"),))
    assert "0 of 4 workers ready · scheduler pending · 1 failed" in render.progress_line(early, 0)


@pytest.mark.parametrize(
    ("seconds", "coarse", "exact"),
    [
        (0, "0 s", "0 s"),
        (12.9, "12 s", "12 s"),
        (60, "1 min", "1 min"),
        (72, "1 min", "1 min 12 s"),
        (3600, "1 h", "1 h"),
        (7530, "2 h 5 min", "2 h 5 min"),
        (3605, "1 h", "1 h 5 s"),
        (273600, "3 d 4 h", "3 d 4 h"),
        (-5, "0 s", "0 s"),
        (math.nan, "0 s", "0 s"),
    ],
)
def test_durations_read_as_people_say_them(seconds: float, coarse: str, exact: str) -> None:
    assert render_words.format_duration_s(seconds) == coarse
    assert render_words.format_duration_s(seconds, exact=True) == exact


@pytest.mark.parametrize(
    ("size", "words"),
    [
        (0, "0 B"),
        (512, "512 B"),
        (96 * 2**20, "96 MiB"),
        (2 * GIB, "2 GiB"),
        (1.5 * GIB, "1.5 GiB"),
        (128 * GIB, "128 GiB"),
    ],
)
def test_sizes_read_as_people_say_them(size: float, words: str) -> None:
    assert format_bytes(size) == words


def test_memory_is_said_with_its_limit_and_no_unit_twice() -> None:
    assert format_memory(96 * 2**20, 2 * GIB) == "96 MiB / 2 GiB"
    assert format_memory(3 * GIB // 2, 2 * GIB) == "1.5 / 2 GiB"
    assert format_memory(GIB, 0) == "1 GiB"


def test_what_is_old_says_how_old_it_is() -> None:
    now = cluster().created_at
    assert render_words.fact_words(cluster(heard_s=72.4), now)[-1] == "last heard of 1 min 12 s ago"
    for heard_s in (None, 0.0, 5.2):  # it reports every five seconds while nobody looks
        assert not any("heard" in words for words in render_words.fact_words(cluster(heard_s=heard_s), now))


@pytest.mark.parametrize(
    ("timeout_s", "idle_s", "words"),
    [
        (None, 5.0, "does not stop by itself"),
        (3600.0, None, "stops after 1 h idle"),
        (3600.0, 720.0, "stops in 48 min if idle"),
        (3600.0, 3700.0, "idle for too long: about to stop"),
    ],
)
def test_the_idle_countdown_tells_when_the_cluster_stops(
    timeout_s: float | None, idle_s: float | None, words: str
) -> None:
    assert render_words.idle_words(cluster(idle_timeout_s=timeout_s, idle_s=idle_s)) == words


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, ""),
        ({"state": "lost"}, "%dask_up starts it again with the same settings"),
        ({"state": "degraded", "requested": 5}, "1 worker is not connected yet."),
        ({"state": "degraded", "requested": 7}, "3 workers are not connected yet."),
        (
            {"state": "degraded", "requested": 5, "replaces_lost": False},
            "1 worker is missing, and the last replacements ended before they connected: the events say why. "
            "%dask_up tries again.",
        ),
        ({"workers": (worker(0, state="failed"),)}, "1 session failed."),
        ({"state": "starting", "why_pending": "1 session is still pending."}, "1 session is still pending."),
    ],
)
def test_what_is_wrong_is_said_with_what_helps(changes: dict[str, Any], words: str) -> None:
    status = cluster(**changes)
    assert words in render_words.advice_words(status)
    assert bool(render_words.advice_words(status)) == bool(words)


def test_what_went_wrong_with_a_worker_stands_beside_the_state_and_cannot_break_it() -> None:
    status = cluster(state="degraded", requested=5, trouble=f"worker ab12 went over its 2 GiB: {NASTY}")
    text, html = render.to_text([status], width=200, now=NOW), render_html.to_html(status, NOW)
    assert "1 worker is not connected yet.\nWorker ab12 went over its 2 GiB: <script>" in text
    assert "\x1b" not in text
    page = " ".join(Page(html).words)
    assert "1 worker is not connected yet" in page and "Worker ab12 went over its 2 GiB" in page
    assert "<script>" not in html
    assert render_words.trouble_words(cluster()) == ""


def test_a_paused_worker_is_seen_in_its_row() -> None:
    status = cluster(workers=(worker(0, is_paused=True), worker(1, state="starting", is_paused=True)))
    (row, other) = Page(table(None, status.workers, NOW, classed)).words, render.to_text([status], now=NOW)
    assert "▲" in row and any("paused" in cell for cell in row)
    assert other.count("paused") == 1


def test_html_says_everything_the_text_says() -> None:
    page = Page(render_html.to_html(cluster(), NOW))
    words = " ".join(page.words)
    for fact in (
        *("default", "running", "4 of 4 workers", "on CML", "up 12 min", "stops in 48 min if idle"),
        *("0.42 core-hours", "scheduler1", "100.66.1.99", "worker0003", "100.66.1.3", "50 %", "512 MiB / 2 GiB"),
        *("12:12:00", "4 workers ready", "25 %", "of 8 GiB"),
    ):
        assert fact in words
    (link,) = page.tags("a")
    assert link["href"] == "https://scheduler1.example.site/status"
    assert link["target"] == "_blank"
    assert link["rel"] == "noopener noreferrer"
    assert all(header["scope"] in ("col", "row") for header in page.tags("th"))


def test_a_saved_page_needs_no_script_no_style_sheet_and_nothing_to_load() -> None:
    page = Page(render_html.to_html(cluster(history=history()), NOW))
    assert {tag for tag, _ in page.elements}.isdisjoint({"script", "style", "link", "img", "iframe"})
    assert not any(name.startswith("on") for _, attributes in page.elements for name in attributes)
    assert not any("class" in attributes for _, attributes in page.elements)


def test_a_saved_page_of_a_start_shows_every_phase_and_how_long_it_takes() -> None:
    page = Page(render_html.to_html(starting(), NOW))
    words = " ".join(page.words)
    assert "starting 7 s" in words
    assert "pending 1 min 12 s" in words
    assert "starting for 12 s" in words
    (bar,) = (attributes for _, attributes in page.elements if attributes.get("role") == "progressbar")
    assert (bar["aria-valuenow"], bar["aria-valuemax"]) == ("2", "4")


@pytest.mark.parametrize("dress", [classed, inline])
def test_text_from_elsewhere_is_shown_and_never_run(dress: Any) -> None:
    nasty = cluster(
        name=NASTY,
        backend=NASTY,
        dashboard_link=f"https://x/{NASTY}",
        scheduler=SessionStatus(NASTY, "failed", ip_address=NASTY),
        workers=(worker(0, session=NASTY, ip_address=NASTY, address=NASTY, state="failed"),),
        events=(Event(NOW, NASTY),),
    )
    html = pieces(nasty, dress) + render_html.summary(NASTY, NASTY, "failed", dress) + render_html.busy(NASTY, dress)
    html += render_html.log(NASTY, [NASTY], dress) + render_html.last_seen(nasty, NOW, dress)
    page = Page(html)
    assert not page.tags("script")
    assert "<script" not in html
    assert "\x1b" not in html
    assert not any(name.startswith("on") for _, attributes in page.elements for name in attributes)
    assert "".join(page.words).count("<script>alert(1)</script>\"'&[bold]") >= 10


@pytest.mark.parametrize(
    "url",
    [
        "javascript:alert(1)",
        "JavaScript:alert(1)",
        "java\nscript:alert(1)",
        "data:text/html,<script>",
        "//example.site",
        "https:///status",
        "http://[broken",
        "https://a b",
        "/\\example.site/status",
        "///example.site/status",
        "status",
        "",
    ],
)
def test_a_link_that_a_browser_should_not_follow_is_text(url: str) -> None:
    page = Page(render_html.to_html(cluster(dashboard_link=url), NOW))
    assert not page.tags("a")
    assert safe_url(url) is None


def test_a_link_may_be_a_path_of_the_host_as_behind_a_jupyterhub() -> None:
    link = "/user/me/proxy/8787/status"
    (shown,) = Page(render_html.to_html(cluster(dashboard_link=link), NOW)).tags("a")
    assert shown["href"] == link


def test_quotes_in_a_link_stay_inside_it() -> None:
    url = "https://x/\"onmouseover='alert(1)'"
    (link,) = Page(render_html.to_html(cluster(dashboard_link=url), NOW)).tags("a")
    assert link["href"] == url
    assert set(link) <= {"href", "target", "rel", "style"}


def test_a_thousand_workers_are_twenty_rows_and_a_count() -> None:
    status = cluster(requested=1000, workers=tuple(worker(index) for index in range(1000)))
    page = Page(render_html.to_html(status, NOW))
    assert len([header for header in page.tags("th") if header["scope"] == "row"]) == 21
    assert "… and 980 more" in "".join(page.words)
    assert "… and 980 more" in render.to_text([status], max_rows=20)
    assert len(pieces(status)) < 20_000


def test_a_failed_worker_is_seen_among_a_thousand_healthy_ones() -> None:
    workers = (*(worker(index) for index in range(999)), worker(999, state="failed"))
    words = "".join(Page(render_html.to_html(cluster(workers=workers), NOW)).words)
    assert "worker0999" in words


@pytest.mark.parametrize("state", ["starting", "running", "degraded", "stopping", "lost"])
def test_every_state_is_a_word_and_a_sign_besides_its_colour(state: Any) -> None:
    words = "".join(Page(render_html.head(cluster(state=state), totals(cluster()), classed)).words)
    assert state in words
    assert words[words.index(state) - 2] in "●◐◑▲✖"


def test_a_worker_that_reports_nonsense_does_not_break_the_page() -> None:
    odd = worker(0, cpu_percent=math.nan, memory_bytes=-5, memory_limit_bytes=0, nthreads=0)
    html = pieces(cluster(requested=0, workers=(odd,)))
    assert "nan" not in html
    assert Page(html)


def test_the_newest_event_stands_first_and_an_old_one_has_its_date() -> None:
    happened = tuple(Event(NOW - timedelta(days=days), f"{days} days ago") for days in range(9, -1, -1))
    words = Page(render_html.events(happened, NOW, classed)).words
    assert [word.strip() for word in words if "ago" in word] == [f"{days} days ago" for days in range(5)]
    assert "2026-01-30 12:12:00" in words


def test_the_style_sheet_knows_every_class_in_use() -> None:
    sheet = page_piece().replace(" {", "{")
    used = {attributes["class"] for _, attributes in Page(pieces(starting())).elements if attributes.get("class")}
    assert used
    assert all(f".{name}{{" in sheet for names in used for name in names.split())


def test_rendering_needs_no_widgets_and_no_dask() -> None:
    import subprocess

    probe = (
        "import sys, cml_dask_magics.display.text; "
        "sys.exit(bool({'ipywidgets', 'distributed', 'rich.console'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", probe], check=False).returncode == 0


def test_graphs_show_the_last_five_minutes_and_say_them_in_words() -> None:
    page = Page(render_html.to_html(cluster(history=history()), NOW))
    graphs = page.tags("svg")
    assert [graph["role"] for graph in graphs] == ["img"] * 3
    labels = [graph["aria-label"] or "" for graph in graphs]
    assert [label.partition(" over")[0] for label in labels] == ["CPU", "Memory", "Tasks running"]
    assert "between 1 % and 99 %" in labels[0]
    assert "between 2 GiB and 3 GiB" in labels[1]


def test_a_graph_of_what_does_not_change_does_not_change() -> None:
    still = [replace(sample, memory_bytes=GIB, executing=0) for sample in history(cpu_percent=100.0)]
    later = [replace(sample, at=sample.at + timedelta(seconds=7)) for sample in still]
    status = cluster(history=tuple(still))
    assert "<svg" in render_html.tiles(status, totals(status), classed)
    assert render_html.tiles(status, totals(status), classed) == render_html.tiles(
        replace(status, history=tuple(later)), totals(status), classed
    )


def test_a_graph_shows_a_gap_where_nobody_looked() -> None:
    seen = history()
    whole = render_html.tiles(cluster(history=seen), totals(cluster()), classed)
    gap = render_html.tiles(cluster(history=seen[:100] + seen[200:]), totals(cluster()), classed)
    assert gap.count("M") > whole.count("M")


@pytest.mark.parametrize("samples", [0, 1])
def test_without_a_past_there_is_no_graph(samples: int) -> None:
    assert "<svg" not in render_html.to_html(cluster(history=history(samples)), NOW)


def test_a_graph_of_nonsense_breaks_nothing() -> None:
    html = render_html.to_html(cluster(history=history(cpu_percent=math.nan)), NOW)
    assert "nan" not in html
    assert Page(html)


def test_memory_on_disk_is_told_apart_from_memory_in_use() -> None:
    spilling = cluster(workers=(worker(0, spilled_bytes=GIB),))
    html = render_html.to_html(spilling, NOW)
    assert "+ 1 GiB spilled" in html
    assert "repeating-linear-gradient" in html
    assert "1 GiB spilled" in render.to_text([spilling], width=140, now=NOW)


def test_the_read_only_address_is_a_second_link_and_as_safe_as_the_first() -> None:
    page = Page(render_html.to_html(cluster(read_only_link="https://read-only-x.example.site/status"), NOW))
    assert [link["href"] for link in page.tags("a")][1] == "https://read-only-x.example.site/status"
    assert len(Page(render_html.to_html(cluster(read_only_link="javascript:alert(1)"), NOW)).tags("a")) == 1
    assert "Read-only: https://x/" in render.to_text([cluster(read_only_link="https://x/")])


@pytest.mark.parametrize(
    ("usual_s", "words"),
    [
        (None, ""),
        (math.nan, ""),
        (7.2, "usually ready after about 7 s"),
        (36.4, "usually ready after about 35 s"),
        (100.0, "usually ready after about 1 min 30 s"),
    ],
)
def test_a_start_tells_how_long_it_usually_takes(usual_s: float | None, words: str) -> None:
    status = replace(starting(), usual_start_s=usual_s)
    assert render_words.estimate_words(status) == words
    for shown in (render_html.to_html(status, NOW), render.progress_line(status, 1)):
        assert ("usually ready" in shown) == bool(words)
        assert words in shown


def test_workers_are_found_by_text_and_state_and_sorted_by_any_column() -> None:
    workers = [
        worker(i, cpu_percent=float(i * 37 % 100), state="pending" if i % 10 == 0 else "running") for i in range(500)
    ]
    assert choose(workers, Wanted(text="WORKER0123")).found == 1
    assert choose(workers, Wanted(text="1.77")).found == 1
    assert choose(workers, Wanted(state="pending")).found == 50
    for sort, key in SORTS.items():
        for descending in (False, True):
            for page in (0, 3, 24):
                rows = choose(workers, Wanted(sort, descending, page=page)).rows
                expected = sorted(workers, key=key, reverse=descending)[page * 20 : page * 20 + 20]
                assert [key(row) for row in rows] == [key(row) for row in expected]


def test_addresses_are_sorted_as_numbers() -> None:
    workers = [worker(i, ip_address=ip) for i, ip in enumerate(["10.0.0.10", None, "10.0.0.9"])]
    assert [row.ip_address for row in choose(workers, Wanted("ip")).rows] == ["10.0.0.9", "10.0.0.10", None]


def test_workers_whose_figures_are_no_numbers_come_last_and_spoil_no_order() -> None:
    workers = [worker(i, cpu_percent=math.nan if i % 3 == 0 else float(i)) for i in range(600)]
    first = choose(workers, Wanted("cpu", descending=True)).rows[0]
    assert first.cpu_percent == 599
    last = choose(workers, Wanted("cpu", descending=True, page=29)).rows[-1]
    assert math.isnan(last.cpu_percent)


def test_the_line_of_a_cluster_in_a_list_changes_only_when_there_is_news() -> None:
    assert render.status_line(cluster()) == render.status_line(cluster(idle_s=800.0, history=history()))
    assert render.status_line(cluster()) == "● default: running · 4 of 4 workers"
    assert render.status_line(starting()) == "◐ default: starting · 2 of 4 workers · 1 starting · 1 pending"
    assert render.ended_line("etl", "failed") == "✖ etl: failed"


def test_a_summary_lists_the_first_sessions_as_they_were_last_seen() -> None:
    crowd = cluster(requested=50, workers=tuple(worker(index) for index in range(50)))
    words = " ".join(Page(render_html.last_seen(crowd, NOW, inline)).words)
    assert "2026-01-31 12:12:00 UTC" in words
    assert "scheduler1" in words and "100.66.1.19" in words and "worker0020" not in words
    assert "… and 30 more" in words
    assert render_html.last_seen(cluster(scheduler=None, workers=()), NOW, inline) == ""
