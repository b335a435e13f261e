"""No value of ``env`` stands anywhere but where a start anew needs it."""

from __future__ import annotations

import json
import traceback
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from hypothesis import strategies as st
from IPython.core.error import UsageError
from IPython.core.interactiveshell import InteractiveShell
from support.cases import MANY
from support.memory_platform import Answer
from support.on_record import TIMES, World

from cml_dask_magics.cluster.snapshot import snapshot
from cml_dask_magics.display.document import to_json
from cml_dask_magics.display.text import to_text
from cml_dask_magics.fleet.opening import claim
from cml_dask_magics.model.settings import make_settings
from cml_dask_magics.model.words import short
from cml_dask_magics.platforms.api import PlatformError
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


PEM = "\n".join(["-----BEGIN KEY-----", *(f"MIIEvQ{line}+/zebra=" for line in range(30)), "-----END KEY-----", ""])
VALUES = {
    "a word": "zebra",
    "several lines": PEM,
    "lines of Windows": "zebra\r\nokapi\r\n",
    "spaces": "  zebra  in   the\tokapi ",
    "signs": SECRET,
    "an apostrophe": "it's a zebra's okapi",
    "signs of HTML": "zebra&<okapi>",
    "signs of patterns": "zebra.*(okapi)[a-z]+$^|",
    "control characters": "zebra\x1b[31mokapi\x7f\x85",
    "other letters": "zebra\u65e5\u672c\U0001f993okapi",
}
ECHOES: dict[str, Callable[[str], str]] = {
    "plain": lambda value: f"bad request: TOKEN={value}, A=1",
    "on one line": lambda value: " ".join(f"bad request: TOKEN={value}, A=1".split()),
    "indented": lambda value: "bad request: TOKEN=" + value.replace("\n", "\n        ") + ", A=1",
    "where it is cut": lambda value: "bad request ".ljust(295, ".") + value,
    "after many spaces": lambda value: "bad request " + " " * (50 * 300 - 40) + value,
    "in JSON": lambda value: "bad request: " + json.dumps({"env": {"TOKEN": value, "A": "1"}}),
    "in JSON with its letters": lambda value: "bad request: " + json.dumps([value], ensure_ascii=False),
    "in JSON without HTML": lambda value: "bad request: " + without_html(json.dumps([value], ensure_ascii=False)),
    "in a dict": lambda value: str({"bad request": {"TOKEN": value}}),
    "in JSON in a tuple": lambda value: str(("bad request", json.dumps({"TOKEN": value}))),
    "in a dict in a tuple": lambda value: str(("the bad request's end", str({"TOKEN": value}))),
}
ELLIPSIS = "\N{HORIZONTAL ELLIPSIS}"


def without_html(text: str) -> str:
    """JSON as some libraries write it, such as Go's."""
    return text.replace("&", r"\u0026").replace("<", r"\u003c").replace(">", r"\u003e")


def is_hidden(words: str) -> bool:
    """Whether words say what they are about, and show that something is left out, of which no trace is in them."""
    traces = ("zebra", "okapi", "MIIEvQ", "braces", "mlauts")
    return "bad request" in words and ELLIPSIS in words and not any(trace in words for trace in traces)


@pytest.mark.parametrize("value", VALUES.values(), ids=VALUES)
@pytest.mark.parametrize("echo", ECHOES.values(), ids=ECHOES)
def test_no_way_to_repeat_the_request_gives_it_away(echo: Callable[[str], str], value: str) -> None:
    for said in (echo(value), {"error": echo(value)}):
        assert is_hidden(short(said, secrets=[value, "other", "1"]))


@MANY
@hypothesis.given(st.text(max_size=20), st.sampled_from(sorted(ECHOES)))
def test_whatever_it_is_made_of_it_is_hidden_whole(inner: str, echo: str) -> None:
    value = f"zebra{inner}okapi"
    assert is_hidden(short(ECHOES[echo](value), secrets=[value]))


def test_values_that_are_no_secrets_are_left_in_what_the_platform_says() -> None:
    assert short("1 is not true  of abc", secrets=["1", "", "   ", "     ", "  1    ", "abc"]) == "1 is not true of abc"


@pytest.mark.parametrize("name", ["several lines", "signs"])
def test_a_platform_that_repeats_the_request_does_not_give_it_away(world: World, name: str) -> None:
    said = ECHOES["in JSON"](VALUES[name])
    cluster = claim(make_settings(env={"TOKEN": VALUES[name], "A": "1"}), times=replace(TIMES, stop_s=0.1))
    pool, workspace = cluster.pool, world.workspace
    workspace.refuse = [said, f"{ELLIPSIS} bad request: {{'env': {{'A': '1'}}}}"]
    cluster.launches.launch("worker", 2)
    for answer in ([{"error": said}], {"error": said}):
        workspace.launch_answer = answer
        cluster.launches.launch("worker", 1)
    workspace.break_launch = (0, ConnectionError(said))
    cluster.launches.launch("worker", 1)
    words = [reason for _, reason in cluster.launches.refusals]
    assert len(words) == 5 and any("'A': '1'" in each for each in words), "what is no secret is told"

    for answer in (ConnectionError(said), {"error": said}):
        workspace.list_errors = [answer]
        with pytest.raises(PlatformError) as error:
            pool.listing()
        words.append("".join(traceback.format_exception(error.value)))

    cluster.launches.launch("worker", 1)
    session = cluster.record.sessions[-1].id
    workspace.stop_modes["*"] = "ignore"
    for answer in ([Answer(500, said)], ConnectionError(said)):
        workspace.stop_answers = lambda _, answer=answer: answer
        words += pool.stop([session], visible=[session], timeout_s=0).values()
    assert len(words) == 9 and all(map(is_hidden, words)), words
    workspace.stop_modes.clear()
    workspace.stop_answers = lambda answers: answers
    cluster.end()


def test_a_kernel_that_finds_the_cluster_hides_it_too(world: World) -> None:
    world.start(env={"TOKEN": "zebra"})
    cluster = world.open()
    world.workspace.list_errors = [ConnectionError("bad request: zebra")]
    with pytest.raises(PlatformError) as error:
        cluster.pool.listing()
    assert is_hidden(str(error.value))
    cluster.end()


def test_the_platforms_states_are_told_as_they_are_whatever_env_says(world: World) -> None:
    cluster = claim(make_settings(env={"MODE": "running", "THEN": "failed", "TOKEN": "zebra"}), times=TIMES)
    cluster.launches.launch("worker", 3)
    first, second, third = (session.id for session in cluster.record.sessions)
    world.workspace.set("running", first)
    world.workspace.set("failed", second)
    world.workspace.set("bad request: zebra", third)
    listing = cluster.pool.listing()
    assert (listing[first].phase, listing[first].status) == ("running", "running")
    assert (listing[second].phase, listing[second].status) == ("ended", "failed")
    assert listing[third].phase == "pending" and is_hidden(listing[third].status)
    cluster.end()
