"""The panel's table of workers, with sorting, a filter and pages, which a refresh keeps."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from typing import Any

import ipywidgets

from cml_dask_magics.display.html.looks import classed
from cml_dask_magics.display.html.table import COLUMNS, Column, table
from cml_dask_magics.display.listing import PAGE_ROWS, Chosen, Wanted, choose
from cml_dask_magics.display.panel.widgets import WRAP, boxed, button, change, show
from cml_dask_magics.model.status import ClusterStatus
from cml_dask_magics.model.words import unit

_FILTER_FROM = 8
"""With fewer workers there is no filter."""

_STATES = ("running", "starting", "pending", "stopping", "failed")


class WorkerTable:
    """Widgets that list a cluster's workers.

    Parameters
    ----------
    changed : callable
        Called when the reader sorts, filters or turns the page; calls ``draw``.
    lock : threading.RLock
        Held while the panel is changed.
    """

    def __init__(self, changed: Callable[[], None], lock: threading.RLock) -> None:
        self._changed, self._lock = changed, lock
        self._wanted = Wanted()
        self._text = ipywidgets.Text(
            placeholder="Filter: id, address or state",
            continuous_update=True,
            layout={"width": "210px"},
            tooltip="Show only workers whose id, address or state holds this text",
        )
        self._state = ipywidgets.Dropdown(
            options=[("all states", ""), *((state, state) for state in _STATES)],
            value="",
            layout={"width": "130px"},
            tooltip="Show only workers in this state",
        )
        self._where = ipywidgets.HTML()
        self._back = button("◂", "The page before", lambda _: self._turn(-1), look="cdm-small")
        self._on = button("▸", "The next page", lambda _: self._turn(1), look="cdm-small")
        self._titles = {column.key: self._title(column) for column in COLUMNS}
        self._rows = ipywidgets.HTML()
        titles = ipywidgets.HBox(list(self._titles.values()))
        titles.add_class("cdm-titles")
        grid = ipywidgets.VBox([titles, self._rows])
        grid.add_class("cdm-grid")
        self._tools = ipywidgets.HBox([self._text, self._state], layout=WRAP)
        self._pager = ipywidgets.HBox([self._where, self._back, self._on], layout=WRAP)
        bar = ipywidgets.HBox([self._tools, self._pager], layout=WRAP | {"justify_content": "space-between"})
        self.widget = ipywidgets.VBox([bar, grid])
        for part in (self.widget, self._tools, self._pager):
            show(part, False)
        self._text.observe(self._filter, "value")
        self._state.observe(self._filter, "value")

    def draw(self, status: ClusterStatus, now: datetime) -> Chosen:
        """Show a snapshot's workers; returns the visible ones."""
        wanted = self._wanted
        chosen = choose(status.workers, wanted)
        # There may be fewer pages than before.
        self._wanted = replace(wanted, page=chosen.page)
        narrowed = bool(wanted.text.strip() or wanted.state)
        scheduler = None if narrowed or chosen.page else status.scheduler
        shown = table(scheduler, chosen.rows, now, classed, wanted.sort, wanted.descending)
        if narrowed and not chosen.rows:
            shown = f"<div{classed('faint')}>No {unit(status.processes)} matches.</div>"
        change(self._rows, value=boxed(shown))
        show(self.widget, bool(status.workers) or status.scheduler is not None)
        show(self._tools, narrowed or len(status.workers) >= _FILTER_FROM)
        show(self._pager, narrowed or chosen.found > PAGE_ROWS)
        first, last = chosen.page * PAGE_ROWS + 1, chosen.page * PAGE_ROWS + len(chosen.rows)
        matching = " that match" if narrowed else ""
        where = f"{first:,} to {last:,} of {chosen.found:,} {unit(status.processes)}s{matching}" if chosen.rows else ""
        change(self._where, value=where and boxed(f"<span{classed('faint')}>{where}</span>"))
        change(self._back, disabled=chosen.page == 0)
        change(self._on, disabled=last >= chosen.found)
        return chosen

    def _title(self, column: Column) -> Any:
        title = button(column.title, f"Sort by {column.title}", lambda _: self._sort(column))
        title.layout.flex = f"0 0 {column.percent}%"
        title.layout.min_width = "0"
        if column.numbers:
            title.add_class("cdm-numbers")
        return title

    def _sort(self, column: Column) -> None:
        """First click: numbers from the highest, words from A. Second: reversed. Third: unsorted."""
        with self._lock:
            sort, descending = self._wanted.sort, self._wanted.descending
            if sort != column.key:
                wanted = Wanted(column.key, column.numbers)
            elif descending == column.numbers:
                wanted = Wanted(column.key, not descending)
            else:
                wanted = Wanted()
            self._wanted = replace(self._wanted, sort=wanted.sort, descending=wanted.descending, page=0)
            for each in COLUMNS:
                title = self._titles[each.key]
                chosen = each.key == wanted.sort
                arrow = f" {'▼' if wanted.descending else '▲'}" if chosen else ""
                change(title, description=each.title + arrow)
                (title.add_class if chosen else title.remove_class)("cdm-sorted")
            self._changed()

    def _filter(self, _: Any) -> None:
        with self._lock:
            self._wanted = replace(self._wanted, text=self._text.value, state=self._state.value, page=0)
            self._changed()

    def _turn(self, pages: int) -> None:
        with self._lock:
            self._wanted = replace(self._wanted, page=max(self._wanted.page + pages, 0))
            self._changed()
