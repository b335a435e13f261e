"""Where a cluster is shown: the panel in a notebook, a progress line in a terminal."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from IPython.display import display
from rich.console import Console

from cml_dask_magics import operations, render
from cml_dask_magics.cluster import CMLCluster
from cml_dask_magics.connected import StatusCallback
from cml_dask_magics.fleet import Ended
from cml_dask_magics.panel import Panel, PanelActions
from cml_dask_magics.status import ClusterStatus

_panels: dict[str, Panel] = {}


def in_notebook(shell: Any) -> bool:
    """Whether a front end shows what is displayed; a terminal has no kernel."""
    return getattr(shell, "kernel", None) is not None


@contextlib.contextmanager
def starting(shell: Any, name: str, state_directory: Path) -> Iterator[StatusCallback]:
    """Show a cluster while it comes up; gives what is to be called with each snapshot.

    What is shown last stays in the saved notebook.
    """
    if in_notebook(shell):
        panel = _panel(name, state_directory)
        handle = display(panel.mimebundle(), raw=True, display_id=True)
        try:
            yield panel.draw
            follow(name)
        except BaseException as error:
            if operations.held(name) is None:
                _panels.pop(name, None)
                panel.finish(str(error) or "interrupted; everything that was launched has been stopped", kind="failed")
            raise
        finally:
            handle.update(panel.mimebundle(), raw=True)
    elif sys.stdout.isatty():
        with Console().status(f"{name}: asking the platform for sessions") as line:
            yield lambda status: line.update(render.progress_line(status))
    else:
        yield lambda _status: None


def panel(name: str, state_directory: Path, status: ClusterStatus) -> None:
    """Display a cluster's panel, or where this kernel holds no such cluster, a snapshot of it."""
    if operations.held(name) is None:
        bundle = {"text/html": render.to_html(status), "text/plain": render.to_text([status])}
        display(bundle, raw=True)
        return
    shown = _panel(name, state_directory)
    shown.draw(status)
    display(shown.mimebundle(), raw=True)
    follow(name)


def follow(name: str) -> None:
    """Have the cluster's panel, if there is one, follow the cluster until it ends."""
    panel = _panels.get(name)
    if panel is not None:
        operations.follow(name, panel.draw, _on_end(name, panel))


def ended_words(ended: Ended) -> str:
    """What was stopped, in one sentence."""
    usage = ended.usage
    gpu = f", {usage.gpu_hours:.2f} GPU-hours" if usage.gpu_hours else ""
    sessions = f"{ended.sessions} session" + ("s" if ended.sessions != 1 else "")
    return (
        f"Stopped cluster {ended.name!r}: {sessions} after {render.format_duration_s(ended.uptime_s)}; "
        f"used {usage.core_hours:.2f} core-hours, {usage.gib_hours:.2f} GiB-hours{gpu}."
    )


def _panel(name: str, state_directory: Path) -> Panel:
    if name not in _panels:

        def stop() -> str:
            ended = operations.down(name, state_directory)
            return ended_words(ended) if ended is not None else f"Cluster {name!r} was stopped already."

        _panels[name] = Panel(PanelActions(scale=lambda n: operations.scale(name, n), stop=stop), name)
    return _panels[name]


def _on_end(name: str, panel: Panel) -> Callable[[CMLCluster], None]:
    def finish(cluster: CMLCluster) -> None:
        if _panels.get(name) is panel:
            del _panels[name]
        if cluster.failure is not None:
            panel.finish(str(cluster.failure), kind="failed")
        elif cluster.ended is not None:
            panel.finish(ended_words(cluster.ended))
        else:
            panel.finish(f"This kernel no longer follows the cluster; %dask_status {name} shows it.")

    return finish
