"""The Dask side bar in a real JupyterLab: what a person clicks there, and what it shows of our clusters."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest
import yaml
from playwright.sync_api import expect
from support.jupyter_in_session import CHROMIUM, browser_page, jupyter, open_notebook, run_all, write_notebook
from support.notebook import Notebook
from support.readme import readme_configuration
from workspace import Session, Workspace

pytestmark = [
    pytest.mark.dask,
    pytest.mark.long,
    pytest.mark.workspace,
    pytest.mark.skipif(
        not CHROMIUM and not os.environ.get("CI"), reason="no chromium here (Debian: apt-get install chromium)"
    ),
]

SHOWN_S = 60_000


@pytest.fixture
def configured(workspace: Workspace) -> Iterator[None]:
    """The shared home has the file that the README gives."""
    path = workspace.home / ".config" / "dask" / "labextension.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(readme_configuration()))
    yield
    path.unlink()


def open_side_bar(page: Any) -> Any:
    """Open the Dask side bar; gives it."""
    page.locator("li.lm-TabBar-tab[data-id='dask-dashboard-launcher']").click()
    side_bar = page.locator("#dask-dashboard-launcher")
    side_bar.get_by_text("CLUSTERS").wait_for()
    return side_bar


def press_new(side_bar: Any) -> None:
    side_bar.locator(".dask-DaskClusterManager").get_by_text("NEW", exact=True).click()


def clusters(side_bar: Any) -> Any:
    """The clusters that it lists."""
    return side_bar.locator("li.dask-ClusterListingItem")


def rescale(page: Any, cluster: Any, workers: int | None = None, limits: tuple[int, int] | None = None) -> None:
    """Press SCALE on a cluster and fill in the dialog."""
    cluster.get_by_role("button", name="SCALE", exact=True).click()
    dialog = page.locator(".jp-Dialog")
    number, least, most = (dialog.locator(".dask-ScalingInput").nth(index) for index in range(3))
    if limits is not None:
        dialog.locator(".dask-ScalingCheckbox").check()
        # In this order: the dialog keeps the least at or under the most.
        most.fill(str(limits[1]))
        least.fill(str(limits[0]))
    else:
        number.fill(str(workers))
    dialog.get_by_role("button", name="SCALE").click()


def test_the_side_bar_starts_lists_scales_adapts_and_stops_two_clusters(
    notebook: Notebook, configured: None, tmp_path: Path
) -> None:
    workspace = notebook.workspace
    with jupyter(notebook.session, tmp_path) as address, browser_page() as page:
        page.goto(f"{address}/lab")
        side_bar = open_side_bar(page)
        press_new(side_bar)
        expect(clusters(side_bar)).to_have_count(1, timeout=SHOWN_S)
        press_new(side_bar)
        expect(clusters(side_bar)).to_have_count(2, timeout=SHOWN_S)
        first, second = clusters(side_bar).nth(0), clusters(side_bar).nth(1)
        for cluster in (first, second):
            expect(cluster).to_contain_text("Number of Workers: 2")
            expect(cluster).to_contain_text("Number of Cores: 2")
            expect(cluster).to_contain_text("Memory: 2.70 GiB")
            expect(cluster).to_contain_text("Scheduler Address: tls://100.")
        assert len(workspace.alive()) == 6

        rescale(page, first, workers=3)
        expect(first).to_contain_text("Number of Workers: 3", timeout=SHOWN_S)
        assert len(workspace.alive()) == 7
        rescale(page, second, limits=(0, 1))
        expect(second).to_contain_text("Maximum Workers: 1", timeout=SHOWN_S)
        expect(second).to_contain_text("Number of Workers: 0", timeout=SHOWN_S)
        workspace.wait_until(lambda: len(workspace.alive()) == 5, 30)

        for left in (1, 0):
            clusters(side_bar).first.get_by_role("button", name="SHUTDOWN").click()
            expect(clusters(side_bar)).to_have_count(left, timeout=SHOWN_S)
        assert not workspace.alive()
        assert not page.locator(".jp-Dialog").is_visible(), "no error is shown"


def test_a_start_that_fails_is_said_in_the_side_bar(notebook: Notebook, configured: None, tmp_path: Path) -> None:
    workspace = notebook.workspace
    with jupyter(notebook.session, tmp_path) as address, browser_page() as page:
        page.goto(f"{address}/lab")
        side_bar = open_side_bar(page)
        workspace.fault("launch_refused")
        press_new(side_bar)
        dialog = page.locator(".jp-Dialog")
        dialog.get_by_text("Cluster Start Error").wait_for()
        expect(dialog).to_contain_text("quota exceeded")
        dialog.get_by_role("button").first.click()
        workspace.clear_faults()
        assert not workspace.alive()
        press_new(side_bar)
        expect(clusters(side_bar)).to_have_count(1, timeout=SHOWN_S)
        clusters(side_bar).first.get_by_role("button", name="SHUTDOWN").click()
        expect(clusters(side_bar)).to_have_count(0, timeout=SHOWN_S)


class ThisMachine:
    """Stands in for a session: a browser that reaches the dashboard must be on the same loopback."""

    def __init__(self, config: Path) -> None:
        self._config = config

    def command(self, argv: list[str]) -> tuple[list[str], dict[str, str]]:
        return argv, os.environ | {"DASK_CONFIG": str(self._config)}


def test_its_panes_show_the_cluster_of_the_notebook(state: Path, tmp_path: Path) -> None:
    work = "import time\nwork = client.map(time.sleep, [0.2] * 500, pure=False)"
    write_notebook(tmp_path / "panes.ipynb", ["%load_ext cml_dask_magics\n%dask_up 2 --local", work])
    session = cast("Session", ThisMachine(tmp_path / "config"))
    with jupyter(session, tmp_path) as server, browser_page(viewport={"width": 1600, "height": 1000}) as page:
        open_notebook(page, server, "panes.ipynb")
        run_all(page)
        panel = page.locator(".cdm-panel").first
        panel.get_by_text("2 of 2 workers").first.wait_for()
        link = panel.get_by_role("link").first.get_attribute("href")
        side_bar = open_side_bar(page)
        side_bar.get_by_text("Dashboard not connected").wait_for()
        side_bar.get_by_title("Auto-detect dashboard URL").click()
        side_bar.get_by_role("button", name="Task Stream", exact=True).wait_for()
        assert side_bar.get_by_placeholder("Dask Dashboard URL").input_value() == link.removesuffix("status")

        workers = [row.split()[0] for row in panel.get_by_role("rowheader").all_inner_texts() if "scheduler" not in row]
        assert len(workers) == 2
        for pane in ("Task Stream", "Graph", "Workers"):
            side_bar.get_by_role("button", name=pane, exact=True).click()
            address = f"{link.removesuffix('status')}individual-{pane.lower().replace(' ', '-')}"
            shown = page.frame_locator(f"iframe[src^='{address}']")
            shown.locator("canvas").first.wait_for()
        for worker in workers:
            shown.get_by_text(worker).first.wait_for()
