"""The panels of several clusters as a list, of which one is open."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import ipywidgets

from cml_dask_magics.display.panel.output import Output, style_of
from cml_dask_magics.display.panel.panel import Panel
from cml_dask_magics.display.panel.widgets import change, close


class ClusterList:
    """One set of widgets, which can be displayed many times.

    Parameters
    ----------
    panels : sequence of Panel
    """

    def __init__(self, panels: Sequence[Panel]) -> None:
        self._lock = threading.Lock()
        self.panels: Sequence[Panel] = ()
        self._accordion = ipywidgets.Accordion()
        style = ipywidgets.HTML()
        self._root = ipywidgets.VBox([style, self._accordion])
        self._root.add_class("cdm-several")
        style.value = style_of(self._root)
        self.output = Output(self._root, self._facts)
        self.hold(panels)

    def hold(self, panels: Sequence[Panel]) -> None:
        """Show these panels, the first one open."""
        with self._lock:
            if panels != self.panels:
                self.panels = panels
                children, lines = [panel.widget for panel in panels], [panel.line for panel in panels]
                change(self._accordion, children=tuple(children), titles=tuple(lines), selected_index=0)

    def draw(self) -> None:
        """Update the lines; sends nothing if none changed. From any thread."""
        with self._lock:
            change(self._accordion, titles=tuple(panel.line for panel in self.panels))

    @property
    def finished(self) -> bool:
        """Whether all clusters in it have ended."""
        return all(panel.finished for panel in self.panels)

    def close(self) -> None:
        """Remove the list from all pages, but not the panels."""
        with self._lock:
            self._accordion.children = ()
            close(self._root)

    def _facts(self) -> tuple[str, str]:
        facts = [panel.facts() for panel in self.panels]
        return "".join(html for html, _ in facts), "\n\n".join(text for _, text in facts)
