"""What the display can do with a cluster, as callables that the holder of the cluster provides."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass

from cml_dask_magics.display.words import Kind
from cml_dask_magics.model.status import StatusCallback


@dataclass(frozen=True)
class PanelActions:
    """What the panel's controls do. Each may take long and may raise; for None there is no control.

    Parameters
    ----------
    scale : callable
        ``scale(n)``: give the cluster ``n`` workers.
    stop : callable
        ``stop()``: end the cluster; returns a summary of one or a few sentences.
    adapt : callable, optional
        ``adapt(minimum, maximum)``: let Dask scale within these limits.
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
"""``on_end(words, kind)``: called when a cluster has ended, with a summary and how it ended."""


@dataclass(frozen=True)
class Controls:
    """The access to one cluster that the display needs.

    Parameters
    ----------
    key : hashable
        Identifies the cluster in this kernel.
    name : str
    actions : PanelActions
        What the panel's buttons do.
    held : callable
        ``held()``: whether this kernel holds the cluster.
    follow : callable
        ``follow(on_status, on_end, wanted)``: call `on_status` with a snapshot every second while ``wanted()``, and
        `on_end` when the cluster has ended. Does nothing for a cluster that this kernel does not hold.
    """

    key: Hashable
    name: str
    actions: PanelActions
    held: Callable[[], bool]
    follow: Callable[[StatusCallback, OnEnd, Callable[[], bool]], None]
