"""What the README tells its readers to do, for tests to do it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

README = Path(__file__).resolve().parents[2] / "README.md"


def readme_configuration() -> dict[str, Any]:
    """What the README tells the user to put into ``labextension.yaml``."""
    blocks = re.findall(r"```yaml\n(.*?)```", README.read_text(), re.DOTALL)
    (text,) = [block for block in blocks if "labextension" in block]
    configuration: dict[str, Any] = yaml.safe_load(text)
    return configuration
