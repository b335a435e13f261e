"""Run a notebook from top to bottom and print its cells and their results as they come.

    python notebooks/run.py notebooks/quickstart.ipynb [--output executed.ipynb]

The kernel is this very interpreter. When a cell fails, or on Ctrl-C, the notebook's last code cell (`%dask_down`)
still runs, so that no cluster is left behind, and the exit status is 1.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import os
import re
import signal
import struct
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import nbformat
from jupyter_client.kernelspec import KernelSpec, KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from jupyter_core.utils import ensure_async
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, DeadKernelError
from nbformat import NotebookNode

CELL_TIMEOUT, SOURCE_LINES = 900, 4  # seconds; the lines of each cell that are printed
ANSI = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


class ThisInterpreter(KernelSpecManager):
    """Knows one kernel, whatever its name: the interpreter that runs this script."""

    def get_kernel_spec(self, kernel_name: str) -> KernelSpec:
        argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
        return KernelSpec(argv=argv, language="python", display_name=kernel_name)


class PrintingClient(NotebookClient):
    def __init__(self, nb: NotebookNode, folder: Path) -> None:
        super().__init__(nb, resources={"metadata": {"path": str(folder)}}, timeout=CELL_TIMEOUT)
        self.interrupt_on_timeout = True
        self.on_cell_start = self.print_source
        self.on_cell_executed = self.print_redrawn
        self.on_cell_error = self.print_error
        self.redrawn = self.interrupted = False
        self.sockets = TemporaryDirectory(prefix="kernel-")
        self.tasks: list[asyncio.Future[None]] = []

    def create_kernel_manager(self) -> AsyncKernelManager:
        self.km = AsyncKernelManager(kernel_name="python3", kernel_spec_manager=ThisInterpreter())
        self.km.transport, self.km.ip = "ipc", f"{self.sockets.name}/socket"  # private, unlike TCP
        return self.km

    def interrupt(self) -> None:
        """What the stop button does: the running cell gets a KeyboardInterrupt, and no other cell starts."""
        self.interrupted = True
        if self.km is not None:
            self.tasks.append(asyncio.ensure_future(ensure_async(self.km.interrupt_kernel())))

    async def run_cells(self, indices: list[int], last: int) -> None:
        """Run these cells; whatever goes wrong, the cell `last` too, unless the kernel is dead."""
        async with self.async_setup_kernel():
            for number in (signal.SIGINT, signal.SIGTERM):
                asyncio.get_running_loop().add_signal_handler(number, self.interrupt)
            try:
                for index in indices:
                    await self.async_execute_cell(self.nb.cells[index], index)
                    if self.interrupted:
                        raise InterruptedError
            except DeadKernelError:
                raise
            except Exception:
                if index != last:
                    await self.async_execute_cell(self.nb.cells[last], last)
                raise
            finally:
                self.set_widgets_metadata()

    def print_source(self, cell: NotebookNode, **_: Any) -> None:
        self.redrawn = False
        lines = cell.source.strip().splitlines()
        if cell.cell_type == "code":
            if len(lines) > SOURCE_LINES + 1:
                lines[SOURCE_LINES:] = [f"... ({len(lines) - SOURCE_LINES} more lines)"]
            say("", *(f"  | {line}" for line in lines))
        elif lines and lines[0].startswith("#"):
            say(f"\n{lines[0]}")

    def process_message(self, msg: dict[str, Any], cell: NotebookNode, cell_index: int) -> NotebookNode | None:
        self.redrawn |= msg["msg_type"] == "update_display_data"
        output = super().process_message(msg, cell, cell_index)
        if output is not None and output.output_type != "error":
            say(as_text(output), end="" if output.output_type == "stream" else "\n")
        return output

    def print_redrawn(self, cell: NotebookNode, **_: Any) -> None:
        """Print a display that was redrawn in place once more, as it ended."""
        for output in cell.outputs:
            if self.redrawn and output.output_type == "display_data":
                say(as_text(output))

    def print_error(self, execute_reply: dict[str, Any], **_: Any) -> None:
        say("\n".join(ANSI.sub("", line) for line in execute_reply["content"].get("traceback", [])))


def say(*lines: str, end: str = "\n") -> None:
    try:
        print(*lines, sep="\n", end=end, flush=True)
    except BrokenPipeError:  # nobody reads on, as in `... | head`; the cells still run, up to the last
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def as_text(output: NotebookNode) -> str:
    if output.output_type == "stream":
        return str(output.text)
    if png := output.data.get("image/png"):
        width, height = struct.unpack(">II", base64.b64decode(png)[16:24])
        return f"[plot: {width}x{height} png]"
    return str(output.data.get("text/plain", ""))


async def run(nb: NotebookNode, folder: Path) -> int:
    code = [index for index, cell in enumerate(nb.cells) if cell.cell_type == "code"]
    try:
        await PrintingClient(nb, folder).run_cells(list(range(len(nb.cells))), last=code[-1])
    except DeadKernelError:
        say("\nThe kernel died. A new one runs the first and the last cell.")
        await PrintingClient(nb, folder).run_cells([code[0], code[-1]], last=code[-1])
        return 1
    except (CellExecutionError, InterruptedError):
        return 1
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(description="Run a notebook from top to bottom and print its results.")
    parser.add_argument("notebook", type=Path)
    parser.add_argument("--output", type=Path, help="where to store the executed notebook; its plots go next to it")
    options = parser.parse_args()
    nb = nbformat.read(options.notebook, as_version=4)  # type: ignore[no-untyped-call]
    try:
        return asyncio.run(run(nb, options.notebook.resolve().parent))
    finally:
        if options.output:
            nbformat.write(nb, options.output)  # type: ignore[no-untyped-call]
            outputs = [output for cell in nb.cells for output in cell.get("outputs", ())]
            plots = [output.data["image/png"] for output in outputs if "image/png" in output.get("data", {})]
            for number, png in enumerate(plots, start=1):
                options.output.with_name(f"{options.output.stem}-plot{number}.png").write_bytes(base64.b64decode(png))


if __name__ == "__main__":
    sys.exit(main())
