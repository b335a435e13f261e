"""Takes pictures of the panel: a real JupyterLab in a session of the simulated workspace, driven by a real Chromium.

pip install -e '.[test]' && python docs/take_screenshots.py docs

Needs Debian's ``chromium`` (or ``CHROMIUM=path``). The README shows ``jupyterlab.png``, ``running-dark.png``,
``starting.png``, ``several.png`` and ``summary.png``; the others are to be looked at.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from PIL import Image
from support.jupyter_in_session import browser_page, jupyter, open_notebook, run_all, set_panel_width, write_notebook
from workspace import Session, Workspace

UP = "%load_ext cml_dask_magics\n%dask_up 4 --cpu 2 --memory 8"
WORK = "work = client.map(lambda i: sum(range(i)), [10**7] * 400, pure=False)"
VIEWPORT = {"width": 1200, "height": 760}
SEVERAL = [
    "%load_ext cml_dask_magics\n%dask_up 2 --name etl",
    "%dask_up 1 --name training",
    "%dask_up 1 --name tests",
    "%dask_status",
    "%dask_down tests",
]
DARK = '{"theme": "JupyterLab Dark"}'


def take(page: Any, address: str, folder: Path, suffix: str) -> None:
    """Walk one notebook through starting, running and stopped."""
    open_notebook(page, address, "panel.ipynb")
    run_all(page)
    panel = page.locator(".cdm-panel").first
    panel.wait_for()
    page.wait_for_timeout(2500)
    panel.screenshot(path=folder / f"starting{suffix}.png")
    panel.get_by_text("4 of 4 workers").first.wait_for()
    page.wait_for_timeout(30_000)  # let the graphs show something
    panel.screenshot(path=folder / f"running{suffix}.png")
    page.screenshot(path=folder / f"jupyterlab{suffix}.png")
    page.keyboard.press("Control+b")  # the file browser goes
    for width in (600, 560):
        set_panel_width(page, panel, width)
        panel.screenshot(path=folder / f"running-{width}{suffix}.png")
    panel.get_by_role("button", name="More ▾").click()
    panel.get_by_role("button", name="Log", exact=True).click()
    page.wait_for_timeout(1500)
    panel.screenshot(path=folder / f"more-560{suffix}.png")
    panel.get_by_role("button", name="Less ▴").click()
    page.set_viewport_size(VIEWPORT)
    panel.get_by_role("button", name="Stop", exact=True).click()
    page.wait_for_timeout(700)
    panel.screenshot(path=folder / f"asking{suffix}.png")
    panel.get_by_role("button", name="Stop them").click()
    page.get_by_text("Stopped cluster").first.wait_for()
    page.wait_for_timeout(700)
    summary = page.locator(".jp-OutputArea-child:visible").filter(has_text="Stopped cluster").first
    summary.locator(".jp-OutputArea-output > div").first.screenshot(path=folder / f"summary{suffix}.png")


def fail(page: Any, address: str, folder: Path, suffix: str) -> None:
    """A start that fails."""
    open_notebook(page, address, "failing.ipynb")
    run_all(page)
    page.get_by_text("did not start").first.wait_for()
    page.wait_for_timeout(1500)
    page.locator(".jp-OutputArea").first.screenshot(path=folder / f"failed{suffix}.png")


def several(page: Any, address: str, folder: Path, suffix: str) -> None:
    """Three clusters, of which one has been stopped."""
    open_notebook(page, address, "several.ipynb")
    run_all(page)
    shown = page.locator(".cdm-several")
    shown.get_by_text("● etl: running").wait_for()
    page.wait_for_timeout(8000)
    shown.get_by_text("▲").or_(shown.get_by_text("■")).first.wait_for()
    shown.screenshot(path=folder / f"several{suffix}.png")


def session_pictures(workspace: Workspace, session: Session, work: Path, folder: Path, dark: bool) -> None:
    """All pictures of one theme."""
    write_notebook(work / "panel.ipynb", [UP, WORK])
    write_notebook(work / "several.ipynb", SEVERAL)
    write_notebook(work / "failing.ipynb", ["%load_ext cml_dask_magics\n%dask_up 3 --name night-run"])
    if dark:
        settings = work / ".jupyter" / "lab" / "user-settings" / "@jupyterlab" / "apputils-extension"
        settings.mkdir(parents=True)
        (settings / "themes.jupyterlab-settings").write_text(DARK)
    suffix = "-dark" if dark else ""
    with (
        jupyter(session, work) as address,
        browser_page(viewport=VIEWPORT, device_scale_factor=1.25) as page,
    ):
        take(page, address, folder, suffix)
        several(page, address, folder, suffix)
        workspace.fault("launch_refused", skip=2, times=1, message="quota of 8 cores exceeded")
        fail(page, address, folder, suffix)
        workspace.clear_faults()


def main() -> None:
    """Open a session of a simulated workspace and take the pictures there, light and dark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="where the pictures go")
    folder = parser.parse_args().folder.resolve()
    with Workspace(start_delay_s=6) as workspace:
        for dark in (False, True):
            with tempfile.TemporaryDirectory() as work:
                session_pictures(workspace, workspace.open_session(), Path(work), folder, dark)
    for path in folder.glob("*.png"):
        # 256 colours are enough for a page, and a third of the size.
        Image.open(path).convert("RGB").quantize(256, dither=Image.Dither.NONE).save(path, optimize=True)


if __name__ == "__main__":
    main()
