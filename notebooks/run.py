"""Run a notebook from top to bottom and print its cells and their results.

    python notebooks/run.py notebooks/quickstart.ipynb [--output executed.ipynb]

The kernel is this interpreter. When a cell fails, or on Ctrl-C, the last code cell (`%dask_down`) still runs, so that
no cluster is left behind, and the exit status is 1.
"""

from __future__ import annotations

import argparse
import base64
import os
import re
import signal
import sys
import textwrap
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import nbformat
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient
from nbclient.exceptions import DeadKernelError
from nbformat import NotebookNode


class PrintingClient(NotebookClient):
    """A client that prints a cell's streams as they come."""

    def process_message(self, msg: dict[str, Any], cell: NotebookNode, cell_index: int) -> NotebookNode | None:
        """Take in one of the kernel's messages."""
        if msg["msg_type"] == "stream":
            say(msg["content"]["text"], end="")
        return super().process_message(msg, cell, cell_index)


def say(words: object, end: str = "\n") -> None:
    """Print, unless nobody reads on, as in `... | head`."""
    try:
        print(words, end=end, flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def run(nb: NotebookNode, folder: Path, indices: list[int]) -> int:
    """Run these cells; after an error or Ctrl-C, only the last of them. Returns the exit status."""
    sockets = TemporaryDirectory(prefix="kernel-")  # private, unlike TCP
    specs = KernelSpecManager(kernel_dirs=[])  # no installed kernels: uses this interpreter
    km = AsyncKernelManager(kernel_spec_manager=specs, transport="ipc", ip=f"{sockets.name}/socket")
    client = PrintingClient(nb, km, resources={"metadata": {"path": str(folder)}}, timeout=900)
    client.interrupt_on_timeout = True
    status = 0

    def interrupt(*_: object) -> None:
        nonlocal status
        status, indices[:-1] = 1, []
        os.killpg(km.provisioner.pgid, signal.SIGINT)

    with sockets, client.setup_kernel(cleanup_kc=True):
        signal.signal(signal.SIGINT, interrupt)
        signal.signal(signal.SIGTERM, interrupt)
        while indices:
            index = indices.pop(0)
            cell = nb.cells[index]
            if cell.cell_type == "code":
                say("\n" + textwrap.indent(cell.source, "  | ", lambda _: True))
            elif cell.source.startswith("#"):
                say("\n" + cell.source.partition("\n")[0])
            try:
                client.execute_cell(cell, index)
            except DeadKernelError:
                raise
            except Exception:
                status, indices[:-1] = 1, []
            for output in cell.get("outputs", ()):
                if output.output_type == "error":
                    say(re.sub(r"\x1b\[[0-9;]*m", "", "\n".join(output.traceback)))
                elif text := output.get("data", {}).get("text/plain"):
                    say(f"[plot: {text}]" if "image/png" in output.data else text)
    return status


def main() -> int:
    """Run the notebook; when its kernel dies, run its first and last code cell in a new one."""
    parser = argparse.ArgumentParser(description="Run a notebook from top to bottom and print its results.")
    parser.add_argument("notebook", type=Path)
    parser.add_argument("--output", type=Path, help="where to store the executed notebook; its plots go next to it")
    options = parser.parse_args()
    nb = nbformat.read(options.notebook, as_version=4)  # type: ignore[no-untyped-call]
    folder = options.notebook.resolve().parent
    code = [index for index, cell in enumerate(nb.cells) if cell.cell_type == "code"]
    try:
        return run(nb, folder, list(range(code[-1] + 1)))
    except DeadKernelError:
        say("\nThe kernel died. A new one runs the first and the last cell.")
        return run(nb, folder, [code[0], code[-1]]) or 1
    finally:
        if options.output:
            nbformat.write(nb, options.output)  # type: ignore[no-untyped-call]
            datas = [output.get("data", {}) for cell in nb.cells for output in cell.get("outputs", ())]
            for number, png in enumerate([data["image/png"] for data in datas if "image/png" in data], start=1):
                options.output.with_name(f"{options.output.stem}-plot{number}.png").write_bytes(base64.b64decode(png))


if __name__ == "__main__":
    sys.exit(main())
