"""Shows clusters: the panel in a notebook, a progress line in a terminal."""

from __future__ import annotations

import contextlib
import functools
import sys
import threading
import time
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any

from IPython.core.getipython import get_ipython
from IPython.display import display
from rich.console import Console

from cml_dask_magics.display.actions import Controls
from cml_dask_magics.display.html.pieces import to_html
from cml_dask_magics.display.listing import PAGE_ROWS
from cml_dask_magics.display.panel.cluster_list import ClusterList
from cml_dask_magics.display.panel.output import Output
from cml_dask_magics.display.panel.panel import Panel
from cml_dask_magics.display.text import progress_line, to_text
from cml_dask_magics.display.words import Kind
from cml_dask_magics.model.status import ClusterStatus, StatusCallback


def in_notebook(shell: Any) -> bool:
    """Whether the shell is a Jupyter kernel."""
    return getattr(shell, "kernel", None) is not None


def show_facts(status: ClusterStatus) -> None:
    """Display a snapshot as HTML and as text, without widgets."""
    display({"text/html": to_html(status), "text/plain": to_text([status])}, raw=True)


class Screens:
    """The displays of this kernel: a panel for each cluster, a list of several, and summaries of those that ended.

    Parameters
    ----------
    keep_every_s : float
        The HTML of a panel that a saved notebook keeps is refreshed at most once in this time.
    """

    def __init__(self, keep_every_s: float = 5.0) -> None:
        self._keep_every_s = keep_every_s
        self._shown: dict[Hashable, _Shown] = {}
        self._finished: list[_Shown] = []
        self._list: ClusterList | None = None
        self._lock = threading.Lock()
        self._cells: CellWatch | None = None

    @contextlib.contextmanager
    def starting(self, shell: Any, controls: Controls) -> Iterator[StatusCallback]:
        """Show a cluster while it starts; gives the callback for snapshots."""
        if in_notebook(shell):
            shown = self._panel_of(controls)
            shown.output.display()
            self._watch_cells(shell)
            try:
                yield functools.partial(self._draw, shown)
            except BaseException as error:
                if not controls.held() and self._shown.get(controls.key) is shown:
                    words = str(error) or "Interrupted; every session that was launched has been stopped."
                    self._finish(controls, shown, words, "failed")
                raise
            finally:
                if self._shown.get(controls.key) is shown:
                    self.follow(controls)
                    shown.output.refresh()
        elif sys.stdout.isatty():
            began = time.monotonic()
            with Console().status(f"{controls.name}: looking for the cluster") as line:
                yield lambda status: line.update(progress_line(status, time.monotonic() - began))
        else:
            yield lambda _status: None

    def panels(self, clusters: Sequence[tuple[ClusterStatus, Controls]]) -> None:
        """Display clusters: one as its panel, several as a list of which one is open.

        A cluster that this kernel does not hold is shown as a snapshot.
        """
        live = []
        for status, controls in clusters:
            if controls.held():
                live.append(controls)
                self._draw(self._panel_of(controls), status)
            else:
                show_facts(status)
        if len(live) == 1:
            self._panel_of(live[0]).output.display()
        elif live:
            self._display_list([self._panel_of(controls).panel for controls in live])
        if live and (shell := get_ipython()) is not None:
            self._watch_cells(shell)
        for controls in live:
            self.follow(controls)

    def follow(self, controls: Controls) -> None:
        """Keep the cluster's panel, if there is one, up to date while it is visible and until the cluster ends."""
        shown = self._shown.get(controls.key)
        if shown is not None:
            panel = shown.panel
            finish = functools.partial(self._finish, controls, shown)
            controls.follow(functools.partial(self._draw, shown), finish, lambda: panel.shown)

    def _watch_cells(self, shell: Any) -> None:
        """Have the panels say from now on, in cells that run for long, if their buttons have to wait."""
        if self._cells is None or self._cells.shell is not shell:
            self._cells = CellWatch(shell, self._tell_busy)

    def _tell_busy(self, busy: bool) -> None:
        for shown in list(self._shown.values()):
            shown.panel.busy(busy)

    def _panel_of(self, controls: Controls) -> _Shown:
        if controls.key not in self._shown:
            self._shown[controls.key] = _Shown(controls, self._keep_every_s)
            if self._cells is not None and self._cells.busy:
                self._shown[controls.key].panel.busy(True)
        return self._shown[controls.key]

    def _draw(self, shown: _Shown, status: ClusterStatus) -> None:
        self._tell_list(shown.panel, shown.draw(status))

    def _finish(self, controls: Controls, shown: _Shown, words: str, kind: Kind) -> None:
        """Turn the panel into a summary.

        A page that was reloaded since receives updates of widgets only, not of outputs. So the summary's widgets stay
        until the next cluster ends.
        """
        if self._shown.get(controls.key) is shown:
            del self._shown[controls.key]
        shown.panel.finish(words, kind)
        shown.output.end()
        self._tell_list(shown.panel, True)
        with self._lock:
            self._finished.append(shown)
            self._sweep()

    def _display_list(self, live: Sequence[Panel]) -> None:
        """Show a list of clusters; reuses the former list while a cluster in it is alive."""
        with self._lock:
            if self._list is None or self._list.finished:
                former, self._list = self._list, ClusterList(live)
                if former is not None:
                    former.close()
            else:
                self._list.hold(live)
            self._sweep()
            output = self._list.output
        output.display()

    def _tell_list(self, panel: Panel, changed: bool) -> None:
        listed = self._list  # another thread may replace it
        if listed is not None and panel in listed.panels:
            listed.draw()
            if listed.finished:
                listed.output.end()
            elif changed:
                listed.output.refresh()

    def _sweep(self) -> None:
        """Release all summaries except the last one and those in the list of clusters."""
        last = self._finished[-1].panel if self._finished else None
        if self._list is not None and self._list.finished and last not in self._list.panels:
            self._list.close()
            self._list = None
        listed = self._list.panels if self._list is not None else ()
        for shown in [each for each in self._finished if each.panel is not last and each.panel not in listed]:
            self._finished.remove(shown)
            shown.panel.close()


class CellWatch:
    """Tells when a cell has been running for a while, and when it is done.

    Parameters
    ----------
    shell : InteractiveShell
        One that runs a cell just now.
    tell : callable
        ``tell(busy)``, from any thread.
    after_s : float
        Cells that take less are not told of.
    """

    def __init__(self, shell: Any, tell: Callable[[bool], None], after_s: float = 1.0) -> None:
        self.shell = shell
        self._tell = tell
        self._after_s = after_s
        self._lock = threading.Lock()
        self._timer: threading.Timer | None = None
        self._depth = 0  # cells may run cells
        self.busy = False
        """Whether a cell has been running for that long."""
        self._begin()
        shell.events.register("pre_run_cell", self._begin)
        shell.events.register("post_run_cell", self._end)

    def _begin(self, _info: Any = None) -> None:
        with self._lock:
            self._depth += 1
            if self._depth == 1:
                self._timer = timer = threading.Timer(self._after_s, lambda: self._tell_late(timer))
                timer.daemon, timer.name = True, "cml-dask-magics busy"
                timer.start()

    def _tell_late(self, timer: threading.Timer) -> None:
        with self._lock:
            if self._timer is timer:
                self.busy = True
                self._tell(True)

    def _end(self, _result: Any = None) -> None:
        with self._lock:
            self._depth -= 1
            if self._depth == 0 and self._timer is not None:
                self._timer.cancel()
                self._timer = None
                if self.busy:
                    self.busy = False
                    self._tell(False)


class _Shown:
    """A cluster's one panel, and the outputs that show it."""

    def __init__(self, controls: Controls, keep_every_s: float) -> None:
        self.panel = Panel(controls.actions, controls.name)
        self.output = Output(self.panel.widget, self.panel.facts)
        self._keep_every_s = keep_every_s
        self._kept: tuple[Any, ...] = ()
        self._kept_at = -keep_every_s

    def draw(self, status: ClusterStatus) -> bool:
        """Show a snapshot; returns whether the HTML that the notebook keeps was refreshed."""
        self.panel.draw(status)
        gist = _gist(status)
        changed = gist != self._kept and time.monotonic() - self._kept_at >= self._keep_every_s
        if changed:
            self._kept, self._kept_at = gist, time.monotonic()
            self.output.refresh()
        return changed


screens = Screens()
"""Survives a reload of the extension."""


def _gist(status: ClusterStatus) -> tuple[Any, ...]:
    """The part of a status whose change makes the kept HTML outdated; the first page of workers at most."""
    sessions = (status.scheduler, *status.workers[:PAGE_ROWS])
    seen = tuple((each.session, each.state, each.ip_address) for each in sessions if each is not None)
    return status.state, status.requested, status.adapt, status.dashboard_link, len(status.workers), seen
