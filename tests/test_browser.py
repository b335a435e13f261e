"""The panel in real front ends: what a person sees and clicks, in JupyterLab 4 and Notebook 7."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from conftest import Notebook
from jupyter_in_session import CHROMIUM, browser_page, jupyter, run_all, write_notebook

pytestmark = [
    pytest.mark.workspace,
    pytest.mark.skipif(
        not CHROMIUM and not os.environ.get("CI"), reason="no chromium here (Debian: apt-get install chromium)"
    ),
]

UP = "%load_ext cml_dask_magics\n%dask_up 2"


@pytest.mark.parametrize(("app", "place"), [("jupyterlab", "lab/tree"), ("notebook", "notebooks")])
def test_the_panel_is_seen_starting_scales_stops_and_survives_a_reload(
    notebook: Notebook, tmp_path: Path, app: str, place: str
) -> None:
    workspace = notebook.workspace
    workspace.configure(start_delay_s=3)
    write_notebook(tmp_path / "panel.ipynb", [UP])
    try:
        with jupyter(notebook.session, tmp_path, app) as address, browser_page() as page:
            page.goto(f"{address}/{place}/panel.ipynb")
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
