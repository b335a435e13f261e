"""Where a cluster is shown: the panel in a notebook, a progress line in a terminal."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from IPython.core.getipython import get_ipython
from IPython.display import display
from rich.console import Console

from cml_dask_magics.cluster.cluster import CMLCluster
from cml_dask_magics.display.listing import PAGE_ROWS
from cml_dask_magics.display.panel.cluster_list import Several
from cml_dask_magics.display.panel.output import Output
from cml_dask_magics.display.panel.panel import Panel, PanelActions
from cml_dask_magics.display.text import format_bytes, format_duration_s, progress_line, to_html, to_text
from cml_dask_magics.magics import kernel_clusters
from cml_dask_magics.model.status import ClusterStatus, Ended, StatusCallback


class _Shown:
    """A cluster's one panel, and the outputs that show it."""

    def __init__(self, panel: Panel) -> None:
        self.panel = panel
        self.output = Output(panel.widget, panel.facts)
        self._kept: tuple[Any, ...] = ()
        self._kept_at = -_KEEP_EVERY_S

    def draw(self, status: ClusterStatus) -> None:
        """Show a snapshot."""
        self.panel.draw(status)
        gist = _gist(status)
        changed = gist != self._kept and time.monotonic() - self._kept_at >= _KEEP_EVERY_S
        if changed:
            self._kept, self._kept_at = gist, time.monotonic()
            self.output.refresh()
        _tell_several(self.panel, changed)

    def finish(self, words: str, kind: Any = "ended") -> None:
        """Leave a summary where the panel was.

        A page that was reloaded since takes no news of an output, only of widgets. So the summary's few widgets stay
        until the next cluster ends; then these go, and so many clusters leave no more behind than one.
        """
        self.panel.finish(words, kind=kind)
        self.output.end()
        _tell_several(self.panel, True)
        with _finishing:
            _finished.append(self)
            _sweep()


_KEEP_EVERY_S = 5.0
"""What a saved notebook keeps of a panel is brought up to date no more often than this."""

_shown: dict[str, _Shown] = {}
_finished: list[_Shown] = []
_finishing = threading.Lock()
_several: Several | None = None


def in_notebook(shell: Any) -> bool:
    """Whether a front end shows what is displayed; a terminal has no kernel."""
    return getattr(shell, "kernel", None) is not None


@contextlib.contextmanager
def starting(shell: Any, name: str, state_directory: Path) -> Iterator[StatusCallback]:
    """Show a cluster while it comes up; gives what is to be called with each snapshot."""
    if in_notebook(shell):
        shown = _shown_for(name, state_directory)
        shown.output.display()
        # Clicks wait in the kernel's queue until the cell is done; the panel says so.
        shown.panel.busy(True)
        try:
            yield shown.draw
        except BaseException as error:
            if kernel_clusters.held(name) is None and _shown.pop(name, None) is shown:
                shown.finish(str(error) or "Interrupted; every session that was launched has been stopped.", "failed")
            raise
        finally:
            shown.panel.busy(False)
            if _shown.get(name) is shown:
                follow(name)
                shown.output.refresh()
    elif sys.stdout.isatty():
        with Console().status(f"{name}: asking the platform for sessions") as line:
            yield lambda status: line.update(progress_line(status))
    else:
        yield lambda _status: None


def panels(state_directory: Path, statuses: Sequence[ClusterStatus]) -> None:
    """Display clusters: one as its panel, several as one line each of which one is open.

    A cluster that this kernel could not attach to is shown as a snapshot.
    """
    live = [status for status in statuses if kernel_clusters.held(status.name) is not None]
    for status in statuses:
        if status not in live:
            _display_facts(status)
    for status in live:
        _shown_for(status.name, state_directory).draw(status)
    if len(live) == 1:
        _shown[live[0].name].output.display()
    elif live:
        _display_several([_shown[status.name].panel for status in live])
    for status in live:
        follow(status.name)


def show_cluster(cluster: CMLCluster) -> None:
    """What ``cluster`` in a cell shows: its panel; where no front end takes widgets, its facts as HTML and as text."""
    live = not cluster.closed and not cluster.asynchronous and in_notebook(get_ipython())
    if live and kernel_clusters.hold(cluster):
        panels(cluster.settings.state_directory, [cluster.picture()])
    elif cluster.closed:
        print(f"{cluster!r} is closed")
    else:
        _display_facts(cluster.picture())


def follow(name: str) -> None:
    """Have the cluster's panel, if there is one, follow the cluster until it ends, while somebody sees it."""
    shown = _shown.get(name)
    if shown is not None:
        panel = shown.panel
        kernel_clusters.follow(name, shown.draw, _on_end(name, shown), wanted=lambda: panel.shown)


def ended_words(ended: Ended, peak_memory_bytes: int = 0) -> str:
    """What was stopped, in one sentence."""
    usage = ended.usage
    gpu = f", {usage.gpu_hours:.2f} GPU-hours" if usage.gpu_hours else ""
    peak = f"; {format_bytes(peak_memory_bytes)} of memory at most" if peak_memory_bytes else ""
    sessions = f"{ended.sessions} session" + ("s" if ended.sessions != 1 else "")
    return (
        f"Stopped cluster {ended.name!r}: {sessions} after {format_duration_s(ended.uptime_s)}; "
        f"used {usage.core_hours:.2f} core-hours, {usage.gib_hours:.2f} GiB-hours{gpu}{peak}."
    )


def _display_facts(status: ClusterStatus) -> None:
    display({"text/html": to_html(status), "text/plain": to_text([status])}, raw=True)


def _display_several(live: Sequence[Panel]) -> None:
    """Show one list of clusters, the same one wherever it was shown before, as long as a cluster in it is alive."""
    global _several
    with _finishing:
        if _several is None or _several.finished:
            former, _several = _several, Several(live)
            if former is not None:
                former.close()
        else:
            _several.hold(live)
        _sweep()
    _several.output.display()


def _tell_several(panel: Panel, changed: bool) -> None:
    several = _several  # another thread may put another one in its place
    if several is not None and panel in several.panels:
        several.draw()
        if several.finished:
            several.output.end()
        elif changed:
            several.output.refresh()


def _sweep() -> None:
    """Release the summaries that no page needs: all but the last, and those on a list of clusters that is shown."""
    global _several
    last = _finished[-1].panel if _finished else None
    if _several is not None and _several.finished and last not in _several.panels:
        _several.close()
        _several = None
    listed = _several.panels if _several is not None else ()
    for shown in [each for each in _finished if each.panel is not last and each.panel not in listed]:
        _finished.remove(shown)
        shown.panel.close()


def _gist(status: ClusterStatus) -> tuple[Any, ...]:
    """What makes a picture of a cluster an old one; as much work for many workers as for few."""
    sessions = (status.scheduler, *status.workers[:PAGE_ROWS])
    seen = tuple((each.session, each.state, each.ip_address) for each in sessions if each is not None)
    return status.state, status.requested, status.adapt, status.dashboard_link, len(status.workers), seen


def _shown_for(name: str, state_directory: Path) -> _Shown:
    if name not in _shown:

        def stop() -> str:
            ended = kernel_clusters.down(name, state_directory)
            return ended_words(ended) if ended is not None else f"Cluster {name!r} was stopped already."

        actions = PanelActions(
            scale=lambda n: kernel_clusters.scale(name, n),
            stop=stop,
            adapt=lambda low, high: kernel_clusters.adapt(name, low, high),
            keep=lambda: kernel_clusters.keep(name),
            restart=lambda session: kernel_clusters.restart_worker(name, session),
            log=lambda session: kernel_clusters.logs(state_directory, name, session)[session],
        )
        _shown[name] = _Shown(Panel(actions, name))
    return _shown[name]


def _on_end(name: str, shown: _Shown) -> Callable[[CMLCluster], None]:
    def finish(cluster: CMLCluster) -> None:
        if _shown.get(name) is shown:
            del _shown[name]
        if cluster.failure is not None:
            shown.finish(str(cluster.failure), kind="failed")
        elif cluster.ended is not None:
            why = f"{cluster.parting_words}. " if cluster.parting_words else ""
            shown.finish(why + ended_words(cluster.ended, cluster.peak_memory_bytes))
        else:
            followed = f"This kernel no longer follows the cluster; %dask_status {name} shows it."
            shown.finish(cluster.parting_words or followed)

    return finish
