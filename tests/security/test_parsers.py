"""What people type is understood or refused in words, and reaches the sessions as it was typed: no other command runs.

``CASES=10000 pytest tests/security`` tries more of everything.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dask
import hypothesis
import pytest
from hypothesis import strategies as st
from IPython.core.error import UsageError
from IPython.core.interactiveshell import InteractiveShell
from support.cases import ANYTHING, MANY

from cml_dask_magics.fleet import shell_lines
from cml_dask_magics.magics.command_line import LineParser, down_parser, status_parser, up_parser
from cml_dask_magics.model import readers
from cml_dask_magics.model.settings import (
    OPTIONS,
    as_typed,
    make_settings,
    settings_from_json,
    settings_to_json,
)

PARSERS = {parser.name: parser for parser in (up_parser(), down_parser(), status_parser())}
MORE = ["--logs", "--all", "1", "2:4", "A=b c", "5", "min", "off", "'", '"', "\\", "--", "-h", "=", " "]
PIECES = st.sampled_from([*PARSERS["dask_up"].flags, *MORE])
LINES = st.text() | st.lists(PIECES | st.text(max_size=8), max_size=8).map(" ".join)


@pytest.fixture(autouse=True)
def _nowhere(tmp_path: Path) -> Iterator[None]:
    with dask.config.set({"cml-dask-magics.state-directory": str(tmp_path / "state")}):
        yield


@pytest.mark.parametrize("parser", PARSERS.values(), ids=PARSERS.keys())
def test_any_line_is_understood_or_refused_in_one_sentence(parser: LineParser) -> None:
    @MANY
    @hypothesis.given(LINES)
    def parse(line: str) -> None:
        try:
            typed = parser.parse(line)
            if typed is not None and parser.name == "dask_up":
                make_settings(as_typed, **{key: value for key, value in vars(typed).items() if value is not None})
        except (UsageError, ValueError) as error:
            assert str(error) and "\0" not in str(error)

    parse()


@pytest.mark.parametrize("option", OPTIONS, ids=lambda option: option.name)
def test_any_value_of_an_option_is_understood_or_refused_in_words(option: Any) -> None:
    @MANY
    @hypothesis.example([0, 10**400])
    @hypothesis.example(10**5000)
    @hypothesis.given(ANYTHING | st.text() | st.dictionaries(st.text(max_size=5), ANYTHING, max_size=3))
    def read(value: Any) -> None:
        try:
            settings = make_settings(**{option.name.replace("-", "_"): value})
        except ValueError as error:
            assert str(error)
        else:
            assert settings_from_json(json.loads(json.dumps(settings_to_json(settings)))).name == settings.name

    read()


UNITS = st.sampled_from(
    ["", "B", "kB", "MiB", "GiB", "TiB", "EiB", "s", "ms", "min", "mins", "m", "h", "hours", "days", "µs", "xx"]
)


@MANY
@hypothesis.given(
    st.floats().map(str) | st.integers().map(str) | st.text(max_size=4), st.text(" \t", max_size=2), UNITS
)
def test_any_size_and_any_duration_lies_between_the_limits(number: str, space: str, unit: str) -> None:
    for read, low, high in ((readers.gib, 0.5, 65536), (readers.seconds, 1, 365 * 86400), (readers.cores, 0.1, 1024)):
        try:
            value = read(f"{number}{space}{unit}")
        except ValueError as error:
            assert str(error)
        else:
            assert low <= value <= high


@MANY
@hypothesis.given(
    st.dictionaries(
        st.from_regex(r"[A-Za-z_][A-Za-z0-9_]{0,9}", fullmatch=True).filter(lambda key: not key.startswith("C")),
        st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])),
        max_size=3,
    ),
    st.integers(1, 100),
)
def test_what_is_quoted_on_a_line_arrives_as_it_was_meant(env: dict[str, str], n: int) -> None:
    options = " ".join(f"--env {shlex.quote(f'{key}={value}')}" for key, value in env.items())
    typed = PARSERS["dask_up"].parse(f"{n} {options}")
    assert typed is not None
    settings = make_settings(as_typed, **{key: value for key, value in vars(typed).items() if value is not None})
    assert (settings.n_workers, settings.env) == (n, env)


# The way into a session: its kernel's IPython, then a shell

SHOW = r"""#!/bin/sh
printf '%s\0' "$@" "$VALUE" >"$CML_DASK_FOLDER/arrived"
"""
TRAPS = ("id", "touch", "cat", "ls", "python", "python3", "sh", "bash", "env", "true", "pwned", "dask")
NAMES = st.text(
    st.characters(exclude_characters="\0/", exclude_categories=["Cs"])
    | st.sampled_from("{}$`'\"\\;|&<>*?~!#%()[] \n-"),
    min_size=1,
    max_size=30,
).filter(lambda name: name not in (".", ".."))
VALUES = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=30)


@pytest.fixture
def session(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> InteractiveShell:
    """The kernel of a session in which every name that a line could hold is another one's, and so is every command."""
    traps = tmp_path / "traps"
    traps.mkdir()
    for name in TRAPS:
        (traps / name).write_text(f"#!/bin/sh\n: >{shlex.quote(str(tmp_path / 'pwned'))}\n")
        (traps / name).chmod(0o700)
    monkeypatch.setenv("PATH", str(traps))
    monkeypatch.setenv("SHELL", "/bin/sh")
    monkeypatch.setitem(sys.modules, "__main__", sys.modules["__main__"])
    shell = InteractiveShell()
    shell.user_ns.update(x="replaced", id="replaced", HOME="replaced", VALUE="replaced", PATH="replaced")
    shell.system = shell.system_raw  # type: ignore[method-assign]  # through /bin/sh, without a terminal's slowness
    return shell


def test_a_line_runs_one_command_whatever_folder_and_values_are_called(
    session: InteractiveShell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    @MANY
    @hypothesis.given(NAMES, VALUES, st.booleans(), st.booleans())
    def run(name: str, value: str, tls: bool, is_scheduler: bool) -> None:
        hypothesis.assume(len(os.fsencode(name)) < 200)
        folder = tmp_path / "runs" / name
        (folder / "logs").mkdir(parents=True, exist_ok=True)
        (folder / "scheduler.json").touch()
        program = folder / "show me"
        program.write_text(SHOW)
        program.chmod(0o700)
        settings = make_settings(env={"VALUE": value}, python=str(program), no_tls=not tls)
        line, environment = (
            (shell_lines.scheduler_line(settings, 8786), shell_lines.scheduler_environment(settings, folder))
            if is_scheduler
            else (shell_lines.worker_line(settings), shell_lines.worker_environment(settings, folder))
        )
        given = {"CDSW_ENGINE_ID": "s1", "CDSW_IP_ADDRESS": "100.66.0.1", "CDSW_READONLY_PORT": "8090"}
        for variable, content in {"VALUE": "", **environment, **given}.items():
            monkeypatch.setenv(variable, content)
        before = {path.name for path in tmp_path.iterdir()}
        ran = session.run_cell(line)
        assert ran.success
        *arguments, arrived = (folder / "arrived").read_bytes().split(b"\0")[:-1]
        assert arrived == (b"" if is_scheduler else os.fsencode(value))
        where = os.fsencode(folder)
        assert arguments[:2] == [where + b"/session.py", b"scheduler" if is_scheduler else b"worker"]
        assert arguments[arguments.index(b"--scheduler-file") + 1] == where + b"/scheduler.json"
        if tls:
            assert arguments[arguments.index(b"--tls-key") + 1] == where + b"/key.pem"
        assert {path.name for path in tmp_path.iterdir()} == before, "no command but ours"
        made = {"arrived", "logs", "scheduler.json", "show me"} | ({"scheduler.session"} if is_scheduler else set())
        assert {path.name for path in folder.iterdir()} == made
        (folder / "arrived").unlink()
        (folder / "scheduler.session").unlink(missing_ok=True)

    run()


def test_the_traps_would_catch_a_command(session: InteractiveShell, tmp_path: Path) -> None:
    session.run_cell("!id")
    assert (tmp_path / "pwned").exists()
    assert (
        subprocess.run(["/bin/sh", "-c", "touch x"], env={"PATH": str(tmp_path / "traps")}, cwd=tmp_path).returncode
        == 0
    )
    assert not (tmp_path / "x").exists()
