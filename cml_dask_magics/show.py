"""Where a cluster is shown: the panel in a notebook, a progress line in a terminal."""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ipywidgets
from IPython.display import display
from rich.console import Console

from cml_dask_magics import operations, render
from cml_dask_magics.cluster import CMLCluster
from cml_dask_magics.fleet import Ended
from cml_dask_magics.panel import Panel, PanelActions
from cml_dask_magics.status import ClusterStatus
from cml_dask_magics.watching import StatusCallback


@dataclass
class _Shown:
    """A cluster's one panel, and the outputs that show it."""

    panel: Panel
    outputs: list[Any] = field(default_factory=list)

    def display(self) -> None:
        """Show it in one more place."""
        self.outputs.append(display(self.panel.mimebundle(), raw=True, display_id=True))

    def refresh_outputs(self) -> None:
        """Bring what a saved notebook keeps of each output up to date."""
        for output in self.outputs:
            output.update(self.panel.mimebundle(), raw=True)

    def finish(self, words: str, kind: Any = "ended") -> None:
        """Leave a summary where the panel was.

        A page that was reloaded since takes no news of an output, only of widgets. So the summary's few widgets stay
        until the next cluster ends; then these go, and so many clusters leave no more behind than one.
        """
        self.panel.finish(words, kind=kind)
        self.refresh_outputs()
        with _finishing:
            for former in _finished:
                former.panel.close()
            _finished[:] = [self]


_shown: dict[str, _Shown] = {}
_finished: list[_Shown] = []
_finishing = threading.Lock()


def in_notebook(shell: Any) -> bool:
    """Whether a front end shows what is displayed; a terminal has no kernel."""
    return getattr(shell, "kernel", None) is not None


@contextlib.contextmanager
def starting(shell: Any, name: str, state_directory: Path) -> Iterator[StatusCallback]:
    """Show a cluster while it comes up; gives what is to be called with each snapshot."""
    if in_notebook(shell):
        shown = _shown_for(name, state_directory)
        shown.display()
        # Clicks wait in the kernel's queue until the cell is done; the panel says so.
        shown.panel.busy(True)
        try:
            yield shown.panel.draw
        except BaseException as error:
            if operations.held(name) is None and _shown.pop(name, None) is shown:
                shown.finish(str(error) or "Interrupted; every session that was launched has been stopped.", "failed")
            raise
        finally:
            shown.panel.busy(False)
            if _shown.get(name) is shown:
                follow(name)
                shown.refresh_outputs()
    elif sys.stdout.isatty():
        with Console().status(f"{name}: asking the platform for sessions") as line:
            yield lambda status: line.update(render.progress_line(status))
    else:
        yield lambda _status: None


def panels(state_directory: Path, statuses: Sequence[ClusterStatus]) -> None:
    """Display clusters: one as its panel, several as one line each of which one is open.

    A cluster that this kernel could not attach to is shown as a snapshot.
    """
    live = [status for status in statuses if operations.held(status.name) is not None]
    for status in statuses:
        if status not in live:
            bundle = {"text/html": render.to_html(status), "text/plain": render.to_text([status])}
            display(bundle, raw=True)
    for status in live:
        _shown_for(status.name, state_directory).panel.draw(status)
    if len(live) == 1:
        _shown[live[0].name].display()
    elif live:
        _display_several(live)
    for status in live:
        follow(status.name)


def follow(name: str) -> None:
    """Have the cluster's panel, if there is one, follow the cluster until it ends, while somebody sees it."""
    shown = _shown.get(name)
    if shown is not None:
        panel = shown.panel
        operations.follow(name, panel.draw, _on_end(name, shown), wanted=lambda: panel.shown)


def ended_words(ended: Ended, peak_memory_bytes: int = 0) -> str:
    """What was stopped, in one sentence."""
    usage = ended.usage
    gpu = f", {usage.gpu_hours:.2f} GPU-hours" if usage.gpu_hours else ""
    peak = f"; {render.format_bytes(peak_memory_bytes)} of memory at most" if peak_memory_bytes else ""
    sessions = f"{ended.sessions} session" + ("s" if ended.sessions != 1 else "")
    return (
        f"Stopped cluster {ended.name!r}: {sessions} after {render.format_duration_s(ended.uptime_s)}; "
        f"used {usage.core_hours:.2f} core-hours, {usage.gib_hours:.2f} GiB-hours{gpu}{peak}."
    )


def _display_several(live: Sequence[ClusterStatus]) -> None:
    lines = [render.progress_line(status) for status in live]
    roots = [_shown[status.name].panel.widget for status in live]
    several = ipywidgets.Accordion(children=roots, titles=lines, selected_index=0)
    bundle = dict(several._repr_mimebundle_())
    bundle["text/html"] = "".join(render.to_html(status) for status in live)
    bundle["text/plain"] = render.to_text(live)
    display(bundle, raw=True)


def _shown_for(name: str, state_directory: Path) -> _Shown:
    if name not in _shown:

        def stop() -> str:
            ended = operations.down(name, state_directory)
            return ended_words(ended) if ended is not None else f"Cluster {name!r} was stopped already."

        actions = PanelActions(
            scale=lambda n: operations.scale(name, n),
            stop=stop,
            adapt=lambda low, high: operations.adapt(name, low, high),
            keep=lambda: operations.keep(name),
            restart=lambda session: operations.restart_worker(name, session),
            log=lambda session: operations.logs(state_directory, name, session)[session],
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
            shown.finish(ended_words(cluster.ended, cluster.peak_memory_bytes))
        else:
            shown.finish(f"This kernel no longer follows the cluster; %dask_status {name} shows it.")

    return finish
