"""A real JupyterLab or Notebook 7 in a session of the simulated workspace, and a real Chromium in front of it.

The server listens on a Unix socket, which crosses network namespaces; a forwarder makes it an address that a browser
can open.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from workspace import Session

CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser") or ""
# Headless, and without the services that a browser calls home for.
CHROMIUM_FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
KERNELSPEC = {"name": "python3", "display_name": "Python 3", "language": "python"}


def write_notebook(path: Path, cells: list[str]) -> None:
    """A notebook of code cells."""
    nodes: list[dict[str, Any]] = [
        {"cell_type": "code", "id": f"cell-{i}", "metadata": {}, "execution_count": None, "outputs": [], "source": code}
        for i, code in enumerate(cells)
    ]
    document = {"cells": nodes, "metadata": {"kernelspec": KERNELSPEC}, "nbformat": 4, "nbformat_minor": 5}
    path.write_text(json.dumps(document))


@contextlib.contextmanager
def jupyter(session: Session, folder: Path, app: str = "jupyterlab", ipykernel: str = "") -> Iterator[str]:
    """Run ``jupyterlab`` or ``notebook`` in the session, on that folder; gives its address.

    With another release of ipykernel, as ``6`` or ``7.3``, where one is given; `make` puts it beside the installed one.
    """
    path = folder / "jupyter.sock"
    settings = folder / ".jupyter" / "lab" / "user-settings" / "@jupyterlab" / "apputils-extension"
    settings.mkdir(parents=True, exist_ok=True)
    # Its own offer of news would lie over the page.
    (settings / "notification.jupyterlab-settings").write_text(
        '{"fetchNews": "false", "checkForUpdates": false, "doNotDisturbMode": true}'
    )
    argv = [sys.executable, "-m", app, "--no-browser", "--allow-root", f"--ServerApp.sock={path}"]
    argv += ["--IdentityProvider.token=", f"--ServerApp.root_dir={folder}", "--ServerApp.allow_remote_access=True"]
    argv += ["--LabApp.expose_app_in_browser=True", "--JupyterNotebookApp.expose_app_in_browser=True"]
    command, environment = session.command(argv)
    environment = environment | {"JUPYTER_CONFIG_DIR": str(folder / ".jupyter")}
    if ipykernel:
        other = Path(sys.prefix, f"ipykernel-{ipykernel}")
        assert other.is_dir(), f"{other} is missing: make test-all installs it"
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, (str(other), environment.get("PYTHONPATH"))))
    with (
        (folder / "jupyter.log").open("wb") as log,
        subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log) as server,
        _forwarded(path) as port,
    ):
        try:
            address = f"http://127.0.0.1:{port}"
            _await(f"{address}/api", folder / "jupyter.log")
            yield address
        except BaseException:
            print(f"The server's log:\n{(folder / 'jupyter.log').read_text()[-5000:]}")
            raise
        finally:
            server.terminate()
            try:
                server.wait(timeout=10)
            except subprocess.TimeoutExpired:
                server.kill()


@contextlib.contextmanager
def browser_page(**options: Any) -> Iterator[Any]:
    """A page of a headless Chromium; Playwright's options for the page."""
    from playwright.sync_api import expect, sync_playwright

    expect.set_options(timeout=60_000)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=list(CHROMIUM_FLAGS))
        page = browser.new_page(**{"viewport": {"width": 1280, "height": 900}, **options})
        page.set_default_timeout(60_000)
        page.on("console", lambda message: print(f"console {message.type}: {message.text[:500]}"))
        try:
            yield page
        except BaseException:
            print(f"The page, when the test failed:\n{page.locator('body').inner_text()}")
            raise
        finally:
            browser.close()


# A page that opens a notebook while it starts looks for a kernel before it knows which there are: it may then ask the
# user, start a second one, or stay without.
KERNEL_READY = """
async ([path, name]) => {
    const {commands, restored, serviceManager, shell} = window.jupyterapp;
    await restored;
    await serviceManager.ready;
    const notebook = path ? await commands.execute('docmanager:open', {path}) : shell.currentWidget;
    await notebook.context.ready;
    const kernels = notebook.sessionContext;
    const asks = await kernels.initialize();
    if (asks) await kernels.changeKernel({name});
    await kernels.ready;
    await kernels.session.kernel.info;
    return asks;
}
"""


def open_notebook(page: Any, address: str, name: str, app: str = "jupyterlab") -> None:
    """Open a notebook of the served folder in ``jupyterlab`` or ``notebook``, with a kernel that is ready."""
    in_lab = app == "jupyterlab"
    page.goto(f"{address}/lab?reset" if in_lab else f"{address}/notebooks/{name}")
    page.wait_for_function("window.jupyterapp?.shell.currentWidget")
    if page.evaluate(KERNEL_READY, [name if in_lab else "", KERNELSPEC["name"]]):
        page.locator(".jp-Dialog .jp-mod-reject").click()


def run_all(page: Any) -> None:
    """Run every cell of the notebook on the page, by the menu."""
    page.click(".jp-Notebook .jp-Cell >> nth=0")
    page.click(".lm-MenuBar-itemLabel:text-is('Run')")
    page.click(".lm-Menu-itemLabel:text-is('Run All Cells')")


def set_panel_width(page: Any, panel: Any, width: int) -> None:
    """Make the window as wide as the panel needs to be that wide."""
    for _ in range(2):
        window = page.viewport_size
        wider = width - panel.bounding_box()["width"]
        page.set_viewport_size({"width": round(window["width"] + wider), "height": 1000})
        page.wait_for_timeout(1500)


def save(page: Any) -> None:
    """Save the notebook on the page, by the menu (a widget keeps keys to itself), and wait until it is."""
    page.click(".lm-MenuBar-itemLabel:text-is('File')")
    page.click(".lm-Menu-itemLabel:text-matches('^Save( Notebook)?$')")
    page.locator(".jp-mod-dirty").first.wait_for(state="detached")


def end_kernels(page: Any, address: str) -> None:
    """Shut every kernel of the server down, as somebody does who leaves for the day."""
    token = next((each["value"] for each in page.context.cookies() if each["name"] == "_xsrf"), "")
    for session in page.request.get(f"{address}/api/sessions").json():
        answer = page.request.delete(f"{address}/api/sessions/{session['id']}", headers={"X-XSRFToken": token})
        assert answer.ok, answer.status


@contextlib.contextmanager
def _forwarded(path: Path) -> Iterator[int]:
    """A port of this machine's loopback whose connections go to a Unix socket."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=_accept, args=(listener, path), daemon=True).start()
        yield listener.getsockname()[1]


def _accept(listener: socket.socket, path: Path) -> None:
    with contextlib.suppress(OSError):  # the listener was closed
        while True:
            near, _ = listener.accept()
            far = socket.socket(socket.AF_UNIX)
            try:
                far.connect(str(path))
            except OSError:
                near.close()
                far.close()
                continue
            threading.Thread(target=_relay, args=(near, far), daemon=True).start()


def _relay(near: socket.socket, far: socket.socket) -> None:
    with near, far:
        back = threading.Thread(target=_copy, args=(far, near), daemon=True)
        back.start()
        _copy(near, far)
        back.join()


def _copy(source: socket.socket, sink: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            sink.sendall(data)
    with contextlib.suppress(OSError):
        sink.shutdown(socket.SHUT_WR)


def _await(address: str, log: Path) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            urllib.request.urlopen(address, timeout=2).close()
            return
        except (OSError, urllib.error.URLError):
            time.sleep(0.1)
    raise TimeoutError(f"nobody answers at {address}\n{log.read_text()[-2000:]}")
