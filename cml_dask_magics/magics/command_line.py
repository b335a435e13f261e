"""The magics' command lines: options, help and completion."""

from __future__ import annotations

import argparse
import re
import shlex
from typing import Any

from IPython.core.error import UsageError
from IPython.core.magic_arguments import MagicArgumentParser

from cml_dask_magics.model.settings import OPTIONS
from cml_dask_magics.model.words import cut, meant

_NUMBER = re.compile(r"[-+]?[0-9][0-9.]*")
# Up to a # outside quotes at the beginning of a word: a comment.
_BEFORE_COMMENT = re.compile(r"""(?:"(?:\\.|[^"\\])*"|'[^']*'|\\.|[^'"\\])*?(?<!\S)(?=\#)""", re.DOTALL)
_DURATIONS = "|".join(f"--{option.name}" for option in OPTIONS if option.metavar == "DURATION")


class LineParser:
    """One magic's command line.

    Parameters
    ----------
    name : str
        The magic, without ``%``.
    description : str
        The first paragraph of its help.
    """

    def __init__(self, name: str, description: str) -> None:
        self.name = name
        self._parser = MagicArgumentParser(prog=name, description=description)
        self._parser.allow_abbrev = False
        self._valued: dict[str, str] = {}
        self._switches: set[str] = set()
        self._bare: set[str] = set()

    def add(self, *flags: str, example: str = "", **kwargs: Any) -> None:
        """Add an argument, as `argparse` does; `example` is a value of an option that cannot do without."""
        self._parser.add_argument(*flags, **kwargs)
        options = {flag for flag in flags if flag.startswith("--")}
        is_bare = kwargs.get("action") == "store_true"
        if is_bare or kwargs.get("nargs") == "?":
            self._switches |= options
            self._bare |= options if is_bare else set()
        else:
            self._valued.update(dict.fromkeys(options, example))

    @property
    def flags(self) -> list[str]:
        """Every option, for completion."""
        return sorted({*self._switches, *self._valued, "--help"})

    def help(self) -> str:
        """The text of ``%magic?``."""
        return self._parser.format_help()

    def parse(self, line: str) -> argparse.Namespace | None:
        """Parse what the user typed; None if that asks for help.

        Raises
        ------
        UsageError
            For bad input; IPython shows it as one line, without a traceback.
        """
        if "\0" in line:
            raise UsageError(f"%{self.name}: the line has a NUL character (\\0) in it; type it again")
        if before_comment := _BEFORE_COMMENT.match(line):
            line = before_comment.group()
        # Then what is wrong may be a part of a secret.
        shows = "--env" not in line
        try:
            words = shlex.split(line)
        except ValueError as error:
            where = cut(repr(line), 200) if shows else "the line, which is not shown, because it has --env"
            raise UsageError(f"%{self.name}: {error} in {where}") from None
        joined = self._joined(words)
        if "-h" in joined or "--help" in joined:
            return None
        self._check_values(joined)
        try:
            arguments, unknown = self._parser.parse_known_args(joined)
        except UsageError as error:
            raise UsageError(f"{error}; %{self.name}? says how") from None
        number = getattr(arguments, "n_workers", None) or "0"
        if not shows and (unknown or not _NUMBER.fullmatch(number)):
            raise UsageError(
                f"%{self.name} cannot read the line, which is not shown, because it has --env; a value with spaces in "
                f"it needs quotes, and %{self.name}? lists what there is"
            )
        if unknown:
            word = unknown[0].partition("=")[0] if unknown[0].startswith("-") else unknown[0]
            shown = cut(repr(word), 200)
            if word.startswith("-"):
                helps = meant(word, self.flags) or f"; %{self.name}? lists what there is"
                raise UsageError(f"unknown option {shown}{helps}")
            if self.name == "dask_up" and _NUMBER.fullmatch(word):
                raise UsageError(f"%{self.name} takes one number; not also {shown}")
            raise UsageError(f"unknown argument {shown}; %{self.name}? lists what there is")
        return arguments

    def _check_values(self, words: list[str]) -> None:
        """See that options that need a value have one, and that the others have none."""
        for word in words:
            option, equals, _ = word.partition("=")
            if option in self._valued and not equals:
                raise UsageError(f"{option} needs a value, such as {option} {self._valued[option]}")
            if option in self._bare and equals:
                raise UsageError(f"{option} takes no value")

    def _joined(self, words: list[str]) -> list[str]:
        """Join options with their values, so that a value may start with a hyphen: ``--cpu -1`` to ``--cpu=-1``.

        A duration keeps its unit, as in ``--timeout 5 min``.
        """
        valued, every = "|".join(self._valued) or "(?!)", "|".join({*self._valued, *self._switches})
        line = "\0".join(["", *words])
        line = re.sub(rf"\0({valued})\0(?!(?:{every})(?:\0|$))", r"\0\1=", line)
        line = re.sub(rf"(\0(?:{_DURATIONS})=[\d.]+)\0([^\W\d_]+)(?=\0|$)", r"\1 \2", line)
        return line.split("\0")[1:]


def up_parser() -> LineParser:
    """``%dask_up``: one flag for each option that has a help text."""
    parser = LineParser(
        "dask_up",
        "Make it so that the cluster NAME has N workers: start it, scale it or re-attach to it. Waits until the "
        "workers are ready, then puts `cluster` and `client` into the namespace. Dask's configuration can set other "
        "defaults. Example: %dask_up 4 --cpu 2 --memory 8",
    )
    for option in OPTIONS:
        if not option.help:  # only the configuration sets it
            continue
        shown = "" if option.default is None or option.default == {} else f"; default: {option.default}"
        text = f"{option.help}{shown}".replace("%", "%%")
        flag, given = f"--{option.name}", option.metavar if option.default in (None, {}) else str(option.default)
        if option.name == "n-workers":
            parser.add("n_workers", nargs="?", metavar=option.metavar, help=text)
        elif not option.metavar:
            parser.add(flag, action="store_true", default=None, help=text.replace("default: False", "default: off"))
        elif option.name == "env":
            parser.add(flag, metavar=option.metavar, action="append", example=given, help=text)
        else:
            parser.add(flag, metavar=option.metavar, example=given, help=text)
    return parser


def down_parser() -> LineParser:
    """``%dask_down``."""
    parser = LineParser(
        "dask_down",
        "Stop a cluster, wherever it was started from: `default`, or the only one there is. Returns when every one of "
        "its sessions has ended. Stops only what this package launched.",
    )
    parser.add(
        "names", nargs="*", metavar="NAME", help="clusters to stop; default: `default`, or the only one there is"
    )
    parser.add("--all", action="store_true", help="every cluster on record; default: off")
    return parser


def status_parser() -> LineParser:
    """``%dask_status``."""
    parser = LineParser("dask_status", "Show one cluster or all: a panel in a notebook, a table in a terminal.")
    parser.add("name", nargs="?", metavar="NAME", help="which cluster; default: all")
    parser.add("--text", action="store_true", help="as a table; default: off")
    parser.add("--json", action="store_true", help="as a JSON document; default: off")
    parser.add(
        "--logs", nargs="?", const="", metavar="SESSION",
        help="what the cluster's sessions printed last, or one session's; default: off",
    )  # fmt: skip
    return parser
