"""The panel in real front ends: what a person sees and clicks, in JupyterLab 4 and Notebook 7."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from nbconvert import HTMLExporter
from playwright.sync_api import expect
from support.jupyter_in_session import (
    CHROMIUM,
    browser_page,
    end_kernels,
    jupyter,
    open_notebook,
    run_all,
    save,
    set_panel_width,
    write_notebook,
)
from support.notebook import Notebook

pytestmark = [
    pytest.mark.dask,
    pytest.mark.long,
    pytest.mark.workspace,
    pytest.mark.skipif(
        not CHROMIUM and not os.environ.get("CI"), reason="no chromium here (Debian: apt-get install chromium)"
    ),
]

UP = "%load_ext cml_dask_magics\n%dask_up 2"


@pytest.mark.parametrize("app", ["jupyterlab", "notebook"])
def test_the_panel_is_seen_starting_scales_stops_and_survives_a_reload(
    notebook: Notebook, tmp_path: Path, app: str
) -> None:
    workspace = notebook.workspace
    workspace.configure(start_delay_s=3)
    write_notebook(tmp_path / "panel.ipynb", [UP])
    try:
        with jupyter(notebook.session, tmp_path, app) as address, browser_page() as page:
            open_notebook(page, address, "panel.ipynb", app)
            run_all(page)
            panel = page.locator(".cdm-panel").first
            panel.get_by_text("0 of 2 workers").first.wait_for()
            assert "starting" in panel.inner_text()
            page.locator(".cdm-panel").first.get_by_text("2 of 2 workers").first.wait_for()
            truth = {session.id: session.address for session in workspace.sessions() if session.id in workspace.alive()}
            assert len(truth) == 3
            for session, ip_address in truth.items():
                page.locator(".cdm-panel").first.get_by_text(session).first.wait_for()
                assert ip_address in page.locator(".cdm-panel").first.inner_text()

            # Saved, so that the reload finds the output.
            page.keyboard.press("Control+s")
            page.wait_for_timeout(1000)
            page.reload()
            page.locator(".cdm-panel").first.get_by_text("2 of 2 workers").first.wait_for()

            panel = page.locator(".cdm-panel").first
            panel.get_by_label("Workers", exact=True).or_(panel.locator("input[type=number]")).first.fill("3")
            panel.get_by_role("button", name="Scale", exact=True).click()
            panel.get_by_text("3 of 3 workers").first.wait_for()
            assert len(workspace.alive()) == 4

            panel.get_by_role("button", name="Stop", exact=True).click()
            panel.get_by_text("Stop 3 workers and the scheduler?").wait_for()
            assert len(workspace.alive()) == 4, "asking stops nothing"
            panel.get_by_role("button", name="Stop them").click()
            page.get_by_text("Stopped cluster 'default': 4 sessions").first.wait_for()
            assert not workspace.alive()
            page.wait_for_timeout(2000)
            assert page.get_by_text("Stopped cluster 'default': 4 sessions").first.is_visible(), "and it stays"
    finally:
        workspace.configure(start_delay_s=0.5)


LONG = "import time\nclient.submit(time.sleep, 25, pure=False).result()"


@pytest.mark.parametrize("ipykernel", ["", "7.3", "6"])
def test_buttons_work_while_a_cell_computes_or_say_that_they_wait(
    notebook: Notebook, tmp_path: Path, ipykernel: str
) -> None:
    """They work where the kernel has subshells, as ipykernel has since 7.0."""
    write_notebook(tmp_path / "panel.ipynb", ["%load_ext cml_dask_magics\n%dask_up 1", LONG])
    with jupyter(notebook.session, tmp_path, ipykernel=ipykernel) as address, browser_page() as page:
        open_notebook(page, address, "panel.ipynb")
        run_all(page)
        panel = page.locator(".cdm-panel").first
        panel.get_by_text("1 of 1 worker").first.wait_for()
        cell = page.locator(".jp-Cell >> nth=1")
        running = cell.locator(".jp-InputPrompt", has_text="[*]")
        running.wait_for()
        page.wait_for_timeout(3000)
        waits = panel.get_by_text("buttons act when the cell is done")
        if ipykernel == "6":
            waits.wait_for()
            press(panel, "Stop")
            page.get_by_text("Pressed: it acts when the cell is done").wait_for()
            assert running.is_visible()
            panel.get_by_text("Stop 1 worker and the scheduler?").wait_for()
            assert not running.is_visible() and not waits.is_visible()
            press(panel, "Stop them")
            page.get_by_text("Stopped cluster 'default': 2 sessions").first.wait_for()
            return
        assert not waits.is_visible()
        panel.locator("input[type=number]").first.fill("2")
        press(panel, "Scale")
        panel.get_by_text("2 of 2 workers").first.wait_for()
        assert running.is_visible(), "it worked while the cell ran"
        press(panel, "Stop")
        press(panel, "Stop them")
        page.get_by_text("Stopped cluster 'default': 3 sessions").first.wait_for()
        assert not notebook.workspace.alive()
        cell.get_by_text("CancelledError").first.wait_for()


def test_interrupt_ends_the_cell_and_not_what_a_button_began(notebook: Notebook, tmp_path: Path) -> None:
    write_notebook(tmp_path / "panel.ipynb", ["%load_ext cml_dask_magics\n%dask_up 1", LONG])
    with jupyter(notebook.session, tmp_path) as address, browser_page() as page:
        open_notebook(page, address, "panel.ipynb")
        run_all(page)
        panel = page.locator(".cdm-panel").first
        panel.get_by_text("1 of 1 worker").first.wait_for()
        cell = page.locator(".jp-Cell >> nth=1")
        cell.locator(".jp-InputPrompt", has_text="[*]").wait_for()
        notebook.workspace.fault("launch_slow", times=1, delay_s=10)
        panel.locator("input[type=number]").first.fill("2")
        press(panel, "Scale")
        panel.get_by_text("scaling to 2").first.wait_for()
        page.click(".lm-MenuBar-itemLabel:text-is('Kernel')")
        page.click(".lm-Menu-itemLabel:text-matches('^Interrupt Kernel')")
        cell.get_by_text("KeyboardInterrupt").first.wait_for()
        panel.get_by_text("2 of 2 workers").first.wait_for()


CROWD = """
from datetime import datetime, timezone
from cml_dask_magics.display.actions import PanelActions
from cml_dask_magics.display.panel.panel import Panel
from cml_dask_magics.display.panel.output import Output
from cml_dask_magics.model.status import ClusterStatus, SessionStatus
states = ["failed"] * 2 + ["pending"] * 3 + ["running"] * 40
workers = tuple(
    SessionStatus(f"worker{i:02}", state, ip_address=f"100.66.9.{i}", cpu_percent=float(i), nthreads=1)
    for i, state in enumerate(states)
)
now = datetime.now(timezone.utc)
crowd = Panel(PanelActions(scale=print, stop=str))
crowd.draw(ClusterStatus("crowd", "degraded", "cml", now, 45, workers=workers))
Output(crowd.widget, crowd.facts).display()
"""


TOO_WIDE = """
panel => [...panel.querySelectorAll('.cdm-grid :is(td, th, button), .cdm-grid')]
    .filter(cell => cell.scrollWidth > cell.clientWidth + 1).map(cell => cell.textContent)
"""


def listed(panel: Any) -> list[str]:
    """Ids of the workers that the panel lists."""
    return [row.split()[0] for row in panel.get_by_role("rowheader").all_inner_texts() if "scheduler" not in row]


def press(panel: Any, name: str) -> None:
    """Press the button of that name."""
    panel.get_by_role("button", name=name, exact=True).click()


def copied(page: Any) -> str:
    """What lies on the clipboard."""
    return str(page.evaluate("navigator.clipboard.readText()"))


def test_each_control_does_what_it_says(notebook: Notebook, tmp_path: Path) -> None:
    workspace = notebook.workspace

    def idle_s() -> float:
        (cluster,) = json.loads(notebook.run("%dask_status --json"))["clusters"]
        return float(cluster["idle_s"] or 0)

    write_notebook(tmp_path / "panel.ipynb", [UP])
    with jupyter(notebook.session, tmp_path) as address, browser_page() as page:
        page.context.grant_permissions(["clipboard-read", "clipboard-write"], origin=address)
        open_notebook(page, address, "panel.ipynb")
        run_all(page)
        panel = page.locator(".cdm-panel").first
        panel.get_by_text("2 of 2 workers").first.wait_for()
        worker = listed(panel)[0]
        ip_address = next(session.address for session in workspace.sessions() if session.id == worker)

        # An address is copied by a click, and by the keyboard, even when its row has been drawn anew meanwhile.
        press(panel, worker)
        panel.get_by_text(f"Copied {worker}").wait_for()
        assert copied(page) == worker
        panel.get_by_role("button", name=worker, exact=True).focus()
        page.keyboard.press("Tab")
        row = page.evaluate_handle("document.activeElement")
        assert row.inner_text() == ip_address
        page.wait_for_function("row => !row.isConnected", arg=row)
        page.keyboard.press("Enter")
        panel.get_by_text(f"Copied {ip_address}").wait_for()
        assert copied(page) == ip_address
        page.keyboard.press("Control+s")  # JupyterLab's own keys work from there, too
        page.locator(".jp-mod-dirty").first.wait_for(state="detached")

        # Seen from another kernel; one that looked for the cluster too early does not find it for a while.
        notebook.new_kernel()
        workspace.wait_until(lambda: idle_s() > 8, 60)  # more than the 5 s between two reports
        before = idle_s()
        press(panel, "Keep")
        workspace.wait_until(lambda: idle_s() < before, 30)

        press(panel, "More ▾")
        panel.get_by_label("Session", exact=True).select_option(worker)
        press(panel, "Log")
        starts = panel.get_by_role("log").get_by_text("Start worker at")
        lines = panel.get_by_role("log").inner_text
        starts.first.wait_for()
        before = lines().count("Start worker at")

        press(panel, "Restart worker")
        panel.get_by_text(f"the worker of session {worker} was restarted").first.wait_for()
        panel.get_by_text("2 of 2 workers").first.wait_for()
        assert worker in workspace.alive(), "the session lives on"
        workspace.wait_until(lambda: lines().count("Start worker at") > before, 30)

        panel.get_by_label("Adaptive from").fill("1")
        panel.get_by_label("to", exact=True).fill("3")
        press(panel, "Adapt")
        panel.get_by_text("adaptive 1 to 3").first.wait_for()
        panel.get_by_text("on: 1 to 3 workers").wait_for()
        # A number that is being typed stays, although Dask scales the cluster meanwhile.
        number = panel.get_by_label("Workers", exact=True).or_(panel.locator("input[type=number]")).first
        number.fill("4")
        panel.get_by_text("1 of 1 worker").first.wait_for()

        # In a narrow window nothing of the table lies over anything else.
        page.locator("body").press("Control+b")
        set_panel_width(page, panel, 560)
        assert panel.evaluate(TOO_WIDE) == []

        # Stop works while the platform lets another action wait.
        workspace.fault("launch_slow", delay_s=8)
        assert number.input_value() == "4"
        (left,) = listed(panel)
        press(panel, "Scale")
        panel.get_by_text("scaling to 4 …").wait_for()
        press(panel, "Stop")
        press(panel, "Stop them")
        page.get_by_text("Stopped cluster 'default'").first.wait_for()
        # The summary lists what it was made of.
        page.get_by_role("cell", name=left).or_(page.get_by_role("rowheader", name=left)).first.wait_for()
        workspace.wait_until(lambda: not workspace.alive(), 30)


def test_the_workers_of_a_session_unfold_by_the_keyboard_and_stay_so(notebook: Notebook, tmp_path: Path) -> None:
    write_notebook(tmp_path / "panel.ipynb", ["%load_ext cml_dask_magics\n%dask_up 1 --cpu 2 --memory 3 --processes 2"])
    with jupyter(notebook.session, tmp_path) as address, browser_page() as page:
        open_notebook(page, address, "panel.ipynb")
        run_all(page)
        panel = page.locator(".cdm-panel").first
        panel.get_by_text("1 of 1 session, 2 workers").first.wait_for()
        (session,) = [one.id for one in notebook.workspace.sessions() if one.alive and "--nworkers" in one.code]
        worker = panel.get_by_text(f"{session}-1", exact=True)
        assert not worker.is_visible()
        panel.locator("summary").focus()
        page.keyboard.press("Enter")
        worker.wait_for()
        # Drawn anew, as the worker's figures change.
        drawn = worker.element_handle()
        page.wait_for_function("row => !row.isConnected", arg=drawn)
        assert worker.is_visible()
        assert page.evaluate("document.activeElement.getAttribute('aria-label')") == f"2 workers of session {session}"
        page.keyboard.press("Enter")
        worker.wait_for(state="hidden")
        page.wait_for_timeout(2500)
        assert not worker.is_visible(), "nor does the next drawing unfold it"
        press(panel, "Stop")
        press(panel, "Stop them")
        page.get_by_text("Stopped cluster 'default'").first.wait_for()


def test_several_clusters_are_one_list_that_follows_them(notebook: Notebook, tmp_path: Path) -> None:
    cells = [
        "%load_ext cml_dask_magics\n%dask_up 1 --name first",
        "%dask_up 1 --name second",
        "%dask_status",
        CROWD,
    ]
    write_notebook(tmp_path / "several.ipynb", cells)
    with jupyter(notebook.session, tmp_path) as address, browser_page() as page:
        open_notebook(page, address, "several.ipynb")
        run_all(page)
        several = page.locator(".cdm-several")
        several.get_by_text("● first: running · 1 of 1 worker").wait_for()
        several.get_by_text("● second: running · 1 of 1 worker").click()
        panel = several.locator(".cdm-panel:visible")
        panel.get_by_text("second", exact=True).wait_for()
        address_of_second = panel.get_by_role("rowheader").nth(1).inner_text()

        panel.locator("input[type=number]").first.fill("2")
        press(panel, "Scale")
        several.get_by_text("● second: running · 2 of 2 workers").wait_for()
        several.get_by_text("● first: running").click()
        press(panel, "Stop")
        press(panel, "Stop them")
        several.get_by_text("■ first: ended").wait_for()

        # Forty-five workers, made up: filter, order, pages.
        crowd = page.locator(".cdm-panel").filter(has_text="crowd")
        crowd.get_by_text("1 to 20 of 45 workers").wait_for()
        assert listed(crowd)[0] == "worker00", "failed ones first"
        press(crowd, "CPU")
        crowd.get_by_role("button", name="CPU ▼").wait_for()
        expect(crowd.get_by_role("rowheader").first).to_have_text("worker44")
        press(crowd, "▸")
        expect(crowd.get_by_role("rowheader").first).to_have_text("worker24")
        crowd.get_by_placeholder("Filter").fill("worker3")
        crowd.get_by_text("1 to 10 of 10 workers that match").wait_for()
        crowd.get_by_placeholder("Filter").fill("")
        crowd.locator("select:visible").select_option("pending")
        crowd.get_by_text("1 to 3 of 3 workers that match").wait_for()
        assert sorted(listed(crowd)) == ["worker02", "worker03", "worker04"]

        # Saved, and looked at when its kernel is gone.
        save(page)
        end_kernels(page, address)
        page.reload()
        page.get_by_text(address_of_second).first.wait_for()
        # JupyterLab draws the cells one after the other.
        expect(page.get_by_text("As it was at"), "one for each place that showed what was alive").to_have_count(3)
        expect(page.get_by_text("Stopped cluster 'first'").first).to_be_visible()
        assert not page.get_by_text("Error displaying widget").first.is_visible()


def test_a_notebook_whose_kernel_is_gone_shows_the_cluster_as_it_was(notebook: Notebook, tmp_path: Path) -> None:
    path = tmp_path / "panel.ipynb"
    write_notebook(path, [UP])
    with jupyter(notebook.session, tmp_path, "notebook") as address, browser_page() as page:
        open_notebook(page, address, "panel.ipynb", "notebook")
        run_all(page)
        page.locator(".cdm-panel").get_by_text("2 of 2 workers").first.wait_for()
        assert not page.get_by_text("As it was at").is_visible(), "the live panel stands alone"
        save(page)
        end_kernels(page, address)
        page.reload()
        page.get_by_text("As it was at").wait_for()
        addresses = [one.address for one in notebook.workspace.sessions() if one.id in notebook.workspace.alive()]
        assert len(addresses) == 3
        shown, _ = HTMLExporter().from_filename(str(path))
        for ip_address in addresses:
            expect(page.get_by_text(ip_address, exact=True)).to_be_visible()
            assert shown.count(f">{ip_address}<") == 1, "once in what nbconvert makes of it"
        assert not page.get_by_text("Error displaying widget").is_visible()
