"""Every benchmark, one after the other, as a table with goals; `make bench` runs this.

python benchmarks/bench.py

Writes the figures to ``docs/figures.json``, and from that file ``docs/figures.md`` and the README's part between its
two marks. ``--render`` only does the latter. Figures are medians, of rounds in which what is compared takes turns.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import subprocess
import sys
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

from figures import Figure, show, shown

ROOT = Path(__file__).resolve().parent.parent
FILE, PAGE, README = ROOT / "docs" / "figures.json", ROOT / "docs" / "figures.md", ROOT / "README.md"
MODULES = ("load", "start", "local_start", "status", "refresh", "many", "tls")
IN_THE_README = ("start", "local_start", "status", "refresh")
_MARKED = re.compile(r"(?<=<!-- figures -->\n).*?(?=<!-- end of figures -->)", re.DOTALL)


def measured(module: str) -> list[Figure]:
    """What a benchmark measures, in a process of its own."""
    code = f"import json, sys, {module}; found = {module}.rows(); json.dump(found, open(sys.argv[1], 'w'))"
    into = ROOT / "docs" / f".{module}.json"
    try:
        subprocess.run([sys.executable, "-c", code, str(into)], cwd=Path(__file__).parent, check=True)
        return [Figure(*row) for row in json.loads(into.read_text())]
    finally:
        into.unlink(missing_ok=True)


def machine() -> str:
    """What they were measured on."""
    versions = f"Python {platform.python_version()}, Dask {version('distributed')}, ipykernel {version('ipykernel')}"
    return f"{len(os.sched_getaffinity(0))} cores of a shared machine for all of it, {versions}"


def tables(found: dict[str, Any], modules: tuple[str, ...] = MODULES) -> str:
    """The figures as a Markdown table, and below it which of them fall short."""
    rows = [Figure(*row) for module in modules for row in found["figures"].get(module, [])]
    lines = ["| | measured | goal |", "| --- | --: | --: |"]
    for row in rows:
        goal = "" if row.at_most is None else f"at most {shown(row.at_most, row.unit)}"
        lines.append(f"| {_as_code(row.name)} | {shown(row.value, row.unit)} | {goal} |")
    short = [_as_code(row.name) for row in rows if row.falls_short]
    verdict = f"Over their goal: {'; '.join(short)}." if short else "None is over its goal."
    return "\n".join([*lines, "", f"Medians, measured on {found['at']}, on {found['machine']}. {verdict}", ""])


def render() -> None:
    """Write the page and the README's part from the file."""
    found = json.loads(FILE.read_text())
    PAGE.write_text(f"# Figures\n\nMade by `make bench`.\n\n{tables(found)}")
    README.write_text(_MARKED.sub(lambda _: tables(found, IN_THE_README), README.read_text()))


def _as_code(name: str) -> str:
    """A name whose magics and classes are set as code."""
    return re.sub(r"%\w+( [0-9]| --\w+)*|\w+\([0-9]\)", r"`\g<0>`", name)


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--render", action="store_true", help="only write what is made from docs/figures.json")
    parser.add_argument("modules", nargs="*", choices=[*MODULES, []], help="only these; the others stay as they are")
    options = parser.parse_args()
    if not options.render:
        modules = options.modules or MODULES
        known = json.loads(FILE.read_text())["figures"] if FILE.exists() else {}
        for module in modules:
            print(f"\n{module}", flush=True)
            known[module] = measured(module)
            show(known[module])
        figures = {module: known[module] for module in MODULES if module in known}
        now = f"{datetime.now(timezone.utc):%Y-%m-%d}"
        FILE.write_text(json.dumps({"at": now, "machine": machine(), "figures": figures}, indent=1) + "\n")
    render()


if __name__ == "__main__":
    main()
