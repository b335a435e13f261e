"""Runs a session's code through a real IPython, so that `!`, `{expr}` and `$name` mean what they mean on the platform.

Run as a script: `session_main.py FILE`, FILE holding the code; what `notices` beside it holds is printed first.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any


def main() -> None:
    """Run the code and end; whatever it does, the platform calls it a success."""
    sys.path[0] = ""  # a kernel has the working folder there, not a script's
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]  # a kernel shows its output at once
    file = Path(sys.argv.pop(1))
    code = file.read_text()
    print(file.with_name("notices").read_text(), end="")

    from IPython.core.interactiveshell import InteractiveShell
    from traitlets.config import Config

    config = Config()
    config.HistoryManager.enabled = False
    config.InteractiveShell.colors = "NoColor"
    shell: Any = InteractiveShell.instance(config=config)
    shell.run_cell(code)


if __name__ == "__main__":
    main()
