"""No value of ``env`` stands anywhere but where a start anew needs it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from IPython.core.error import UsageError
from IPython.core.interactiveshell import InteractiveShell
from support.on_record import TIMES, World

from cml_dask_magics.cluster.snapshot import snapshot
from cml_dask_magics.display.document import to_json
from cml_dask_magics.display.text import to_text
from cml_dask_magics.fleet.opening import claim
from cml_dask_magics.model.settings import make_settings
from cml_dask_magics.registry.files import write_private

SECRET = 'zebra"secret\\ with {braces}, "env": {x} and \u00fcmlauts'


def holding(state: Path, secret: str) -> set[str]:
    """Names of the files that hold a secret, plain or as JSON."""
    forms = [secret.encode(), json.dumps(secret).encode()[1:-1]]
    return {
        path.name if path.parent.name != "broken" else "broken"
        for path in state.rglob("*")
        if path.is_file() and any(form in path.read_bytes() for form in forms)
    }


def test_the_settings_and_the_record_are_printed_without_it(world: World) -> None:
    world.start(env={"TOKEN": "topsecret"})
    cluster = world.open()
    assert cluster.settings.env == {"TOKEN": "topsecret"}, "a start anew needs it"
    shown = snapshot(cluster, "running", {})
    for words in (repr(cluster.settings), str(cluster.record), repr(shown), to_json([shown]), to_text([shown])):
        assert "topsecret" not in words
    cluster.end()
    assert holding(world.registry.state_directory, "topsecret") == set()


CUTS: dict[str, Any] = {
    "cut in its middle": lambda text: text[: text.index("zebra") + 4],
    "cut behind it": lambda text: text[: text.index("}", text.index("mlauts")) + 1],
    "with another version": lambda text: text.replace('"version": 2', '"version": 99'),
    "with garbage before": lambda text: "\0\xff" + text,
    "with garbage in its name": lambda text: text.replace('"env"', '"e\0nv"'),
    "on one line": lambda text: json.dumps(json.loads(text) | {"version": 99}, separators=(",", ":")),
    "loose": lambda text: text.replace('"env": {', '"env"  :\n {').replace('"version": 2', '"version": 99'),
}


@pytest.mark.parametrize("loose", [False, True], ids=["private", "for the group"])
@pytest.mark.parametrize("how", CUTS)
def test_a_record_that_is_set_aside_is_stripped_of_it(world: World, how: str, loose: bool) -> None:
    world.start(env={"PLAIN": "1", "TOKEN": SECRET, "OTHER": "othersecret"})
    assert holding(world.registry.state_directory, SECRET) == {"record.json", "claim.json"}
    write_private(world.record_of(), CUTS[how](world.record_of().read_text()))
    world.record_of().chmod(0o664 if loose else 0o600)
    found = world.open()
    (aside,) = (world.registry.directory / "broken").iterdir()
    assert '"created_at"' in aside.read_text(), "all else is kept"
    for secret in (SECRET, "othersecret", "zebra", "braces", "mlauts"):
        assert "broken" not in holding(world.registry.state_directory, secret)
    assert found.settings.env["TOKEN"] == SECRET, "of the claim"
    found.end()
    assert holding(world.registry.state_directory, SECRET) == set() and not world.ours()


LINES = [
    "--env topsecret",
    "--env =topsecret",
    "--env 'KEY OF MINE=topsecret'",
    "--env 1KEY=topsecret",
    "--env CDSW_TOKEN=topsecret",
    "--env A=hello topsecret",
    "--env A=hello 2 topsecret",
    "--env A= topsecret",
    "--env A topsecret",
    "--env A='topsecret",
    '--env A="topsecret',
    "--env A=1 --env topsecret --memory lots",
    "topsecret --env A=1",
    "--env A=1 --bogus=topsecret",
    "--env --env topsecret",
    "--env A=topsecret\0",
]


@pytest.mark.parametrize("line", LINES)
def test_no_error_repeats_it(shell: InteractiveShell, capsys: pytest.CaptureFixture[str], line: str) -> None:
    with pytest.raises(UsageError) as error:
        shell.run_line_magic("dask_up", line)
    said = capsys.readouterr()
    assert "topsecret" not in f"{error.value} {said.out} {said.err}"
    assert "--env" in str(error.value) or "--memory" in str(error.value) or "NUL" in str(error.value)


@pytest.mark.parametrize(
    "env", [["topsecret"], {"topsecret": None}, "topsecret", [("topsecret",)], {"a b": "topsecret"}]
)
def test_no_error_in_python_repeats_it(env: Any) -> None:
    with pytest.raises(ValueError, match="env must be") as error:
        make_settings(env=env)
    assert "topsecret" not in str(error.value)


def test_a_platform_that_repeats_the_request_does_not_give_it_away(world: World) -> None:
    world.workspace.refuse = ["bad request: {'env': {'TOKEN': 'topsecret', 'A': '1'}}"]
    cluster = claim(make_settings(env={"TOKEN": "topsecret", "A": "1"}), times=TIMES)
    cluster.launches.launch("worker", 1)
    ((_, reason),) = cluster.launches.refusals
    assert "bad request" in reason and "topsecret" not in reason and "'A': '1'" in reason
    cluster.end()
