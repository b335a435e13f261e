"""Takes the README's pictures: a real JupyterLab in a session of the simulated workspace, driven by a real Chromium.

    pip install -e '.[test,browser]'
    python docs/take_screenshots.py docs

Needs Debian's ``chromium`` (or ``--chromium PATH``).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
PORT = 8888
CHROMIUM_FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
CELLS = [
    "%load_ext cml_dask_magics\n%dask_up 4 --cpu 2 --memory 8",
    "work = client.map(lambda i: sum(range(i)), [10**7] * 400, pure=False)",
]


def notebook() -> dict[str, object]:
    """The cells as a notebook."""
    cells = [
        {"cell_type": "code", "id": f"cell-{i}", "metadata": {}, "execution_count": None, "outputs": [], "source": code}
        for i, code in enumerate(CELLS)
    ]
    metadata = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    return {"cells": cells, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}


def inside(folder: Path, chromium: str) -> None:
    """In the session: start JupyterLab, run the notebook in the browser, take pictures."""
    from playwright.sync_api import sync_playwright

    Path("panel.ipynb").write_text(json.dumps(notebook()))
    flags = ["--no-browser", "--ip=127.0.0.1", f"--port={PORT}", "--allow-root"]
    flags += ["--IdentityProvider.token="]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    lab = subprocess.Popen([sys.executable, "-m", "jupyterlab", *flags], **quiet)
    try:
        _await(f"http://127.0.0.1:{PORT}/api")
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=chromium, args=CHROMIUM_FLAGS)
            page = browser.new_page(viewport={"width": 1280, "height": 700}, device_scale_factor=1.5)
            page.goto(f"http://127.0.0.1:{PORT}/lab/tree/panel.ipynb")
            page.wait_for_selector(".jp-NotebookPanel .jp-Cell")
            page.click(".jp-NotebookPanel .jp-Cell >> nth=0")
            page.click(".lm-MenuBar-itemLabel:text-is('Run')")
            page.click(".lm-Menu-itemLabel:text-is('Run All Cells')")
            panel = page.locator(".cdm-panel").first
            panel.wait_for(timeout=60_000)
            page.click("text=/^No$/")  # Jupyter's offer of news
            page.wait_for_timeout(2500)
            panel.screenshot(path=folder / "panel-starting.png")
            page.wait_for_selector("text=4 of 4 workers", timeout=120_000)
            page.wait_for_timeout(8000)  # let the tasks show
            page.locator(".cdm-panel").first.screenshot(path=folder / "panel.png")
            page.screenshot(path=folder / "jupyterlab.png")
            browser.close()
    finally:
        lab.terminate()
        lab.wait()


def _await(address: str) -> None:
    for _ in range(300):
        try:
            urllib.request.urlopen(address, timeout=1).close()
            return
        except OSError:
            time.sleep(0.2)
    raise SystemExit(f"nobody answers at {address}")


def main() -> None:
    """Open a session of a simulated workspace and take the pictures there."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="where the pictures go")
    parser.add_argument("--chromium", default="/usr/bin/chromium")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    folder = options.folder.resolve()
    if options.inside:
        inside(folder, options.chromium)
        return
    sys.path.insert(0, str(REPOSITORY / "tests"))
    from workspace import Workspace

    with Workspace(start_delay_s=6) as workspace:
        argv = [sys.executable, __file__, str(folder), "--chromium", options.chromium, "--inside"]
        run = workspace.open_session().exec([os.fspath(word) for word in argv], timeout=300)
        sys.stdout.write(run.stdout + run.stderr)
        raise SystemExit(run.returncode)


if __name__ == "__main__":
    main()
