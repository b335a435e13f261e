"""What the display can do with a cluster: plain callables, handed in by whoever holds the cluster."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass

from cml_dask_magics.display.words import Kind
from cml_dask_magics.model.status import StatusCallback


@dataclass(frozen=True)
class PanelActions:
    """What the panel's controls do. Each may take as long as it needs, and may raise; one that is None has no control.

    Parameters
    ----------
    scale : callable
        ``scale(n)``: give the cluster ``n`` workers.
    stop : callable
        ``stop()``: end the cluster; returns a summary of one or a few sentences.
    adapt : callable, optional
        ``adapt(minimum, maximum)``: let Dask scale between the two.
    keep : callable, optional
        ``keep()``: restart the idle countdown.
    restart : callable, optional
        ``restart(session)``: restart the worker in a session.
    log : callable, optional
        ``log(session)``: the last 200 lines that it printed.
    """

    scale: Callable[[int], object]
    stop: Callable[[], str]
    adapt: Callable[[int, int], object] | None = None
    keep: Callable[[], object] | None = None
    restart: Callable[[str], object] | None = None
    log: Callable[[str], list[str]] | None = None


OnEnd = Callable[[str, Kind], None]
"""``on_end(words, kind)``: called when a cluster is over, with a summary and how it ended."""


@dataclass(frozen=True)
class Controls:
    """One cluster, as what shows it needs it.

    Parameters
    ----------
    key : hashable
        Tells it from every other cluster of this kernel.
    name : str
    actions : PanelActions
        What the panel's buttons do.
    held : callable
        ``held()``: whether this kernel holds the cluster; asks nobody.
    follow : callable
        ``follow(on_status, on_end, wanted)``: call `on_status` with a snapshot every second, as long as ``wanted()``,
        and `on_end` when it is over. Does nothing for a cluster that this kernel does not hold.
    """

    key: Hashable
    name: str
    actions: PanelActions
    held: Callable[[], bool]
    follow: Callable[[StatusCallback, OnEnd, Callable[[], bool]], None]
