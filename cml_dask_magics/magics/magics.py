"""The three line magics: ``%dask_up``, ``%dask_down`` and ``%dask_status``.

Importing this module imports neither Dask nor ipywidgets; the first use does.
"""

from __future__ import annotations

import argparse
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from IPython.core.error import UsageError
from IPython.core.getipython import get_ipython

from cml_dask_magics.magics.command_line import LineParser, down_parser, status_parser, up_parser
from cml_dask_magics.magics.notice import cluster_names, notice
from cml_dask_magics.model import readers
from cml_dask_magics.model.settings import Settings, as_typed, make_settings, state_directory
from cml_dask_magics.model.words import clean

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell

    from cml_dask_magics.cluster.cluster import CMLCluster
    from cml_dask_magics.magics.kernel_clusters import Up


E = TypeVar("E", bound=BaseException)


class DaskMagics:
    """The magics of one shell.

    Parameters
    ----------
    shell : InteractiveShell
    """

    def __init__(self, shell: InteractiveShell) -> None:
        self.shell = shell
        self.parsers = {parser.name: parser for parser in (up_parser(), down_parser(), status_parser())}

    def register(self) -> None:
        """Register the magics with their help and completion."""
        for name, parser in self.parsers.items():
            self.shell.register_magic_function(_magic(parser, getattr(self, name)), "line", name)
            self.shell.set_hook("complete_command", self._completer(parser), str_key=f"%{name}")

    def dask_up(self, parsed: argparse.Namespace) -> None:
        """``%dask_up``: see `command_line.up_parser`."""
        typed = {key: value for key, value in vars(parsed).items() if value is not None}
        settings = _settings(**typed)
        if settings.n_workers == 0:
            raise UsageError("N must be a whole number of workers, 1 or more; not 0 (%dask_down stops a cluster)")
        from cml_dask_magics.display.screens import screens
        from cml_dask_magics.magics.kernel_clusters import interrupted_words, kernel_clusters

        controls = kernel_clusters.controls(settings.state_directory, settings.name)
        up = None
        try:
            with screens.starting(self.shell, controls) as on_status:
                up = kernel_clusters.up(settings, on_status)
            self._hand_over(up, settings)
        except BaseException as error:
            if up is not None and up.done in ("started", "starting"):  # too late for the start to undo itself
                kernel_clusters.down(settings.state_directory, settings.name)
            if isinstance(error, KeyboardInterrupt):
                print(interrupted_words(settings.state_directory, settings.name), file=sys.stderr)
                raise _in_words(KeyboardInterrupt()) from None
            if isinstance(error, (RuntimeError, OSError, ValueError)):
                raise _user_error(error) from None
            raise

    def _hand_over(self, up: Up, settings: Settings) -> None:
        """Put the cluster and its client into the user's namespace."""
        from cml_dask_magics.magics.kernel_clusters import kernel_clusters

        if settings.background and up.cluster.starting:
            threading.Thread(
                target=self._push_client_when_up, args=(up, settings.client), name="dask_up client", daemon=True
            ).start()
        else:
            self.shell.push({settings.client: kernel_clusters.client(up.cluster)})
        self.shell.push({settings.cluster: up.cluster})
        self._tell(up, settings.client)

    def dask_down(self, typed: argparse.Namespace) -> None:
        """``%dask_down``: see `command_line.down_parser`."""
        from cml_dask_magics.display.words import ended_words
        from cml_dask_magics.magics.kernel_clusters import interrupted_words, kernel_clusters

        directory = _state_directory()
        names = list(map(_name, typed.names))
        try:
            there_are = kernel_clusters.names(directory)
            wanted = there_are if typed.all else names or _the_one(there_are)
            if not wanted:
                print("There is no cluster to stop.")
            failures = []
            for name in dict.fromkeys(wanted):
                try:
                    ended = kernel_clusters.down(directory, name)
                except RuntimeError as error:  # go on with the others
                    failures.append(clean(str(error)))
                except KeyboardInterrupt:
                    print(interrupted_words(directory, name), file=sys.stderr)
                    raise _in_words(KeyboardInterrupt()) from None
                else:
                    no_such = f"There is no cluster {name!r} to stop; {_known(there_are)}."
                    print(ended_words(ended) if ended is not None else no_such)
        except (RuntimeError, OSError) as error:
            raise _user_error(error) from None
        if failures:
            raise _in_words(RuntimeError("\n".join(failures)))

    def dask_status(self, typed: argparse.Namespace) -> None:
        """``%dask_status``: see `command_line.status_parser`."""
        if sum((typed.text, typed.json, typed.logs is not None)) > 1:
            raise UsageError("--text, --json and --logs exclude each other; give one of them")
        from cml_dask_magics.display.document import to_json
        from cml_dask_magics.display.screens import in_notebook, screens
        from cml_dask_magics.display.text import to_text
        from cml_dask_magics.magics.kernel_clusters import kernel_clusters

        directory = _state_directory()
        name = None if typed.name is None else _name(typed.name)
        try:
            if typed.logs is not None:
                which = name or next(iter(_the_one(kernel_clusters.names(directory))), "default")
                _print_logs(which, kernel_clusters.logs(directory, which, typed.logs or None))
                return
            statuses, problems = kernel_clusters.statuses(directory, name)
        except (RuntimeError, OSError, ValueError) as error:
            raise _user_error(error) from None
        for problem in problems:
            print(clean(problem), file=sys.stderr)
        if name is not None and not statuses:
            raise UsageError(f"there is no cluster {name!r}; {_known(kernel_clusters.names(directory))}")
        if typed.json:
            print(to_json(statuses))
        elif typed.text or not statuses or not in_notebook(self.shell):
            print(to_text(statuses))
        else:
            screens.panels([(status, kernel_clusters.controls(directory, status.name)) for status in statuses])

    def _tell(self, up: Up, client: str) -> None:
        from cml_dask_magics.display.screens import in_notebook

        for note in up.notes:
            print(clean(note), file=sys.stderr)
        if up.done == "starting":
            print(f"`{client}` follows when the workers are ready; %dask_status shows how far they are.")
        if not in_notebook(self.shell):
            link = up.cluster.dashboard_link
            print(f"Cluster {up.cluster.name!r} {up.done}: {up.cluster!r}" + (f"\nDashboard: {link}" if link else ""))

    def _push_client_when_up(self, up: Up, variable: str) -> None:
        from cml_dask_magics.magics.kernel_clusters import kernel_clusters

        if up.cluster.wait_until_started():
            self.shell.push({variable: kernel_clusters.client(up.cluster)})
        else:
            failure = up.cluster.failure or f"Cluster {up.cluster.name!r} was stopped while it started."
            print(clean(str(failure)), file=sys.stderr)

    def _completer(self, parser: LineParser) -> Any:
        def complete(_shell: Any, event: Any) -> list[str]:
            words = event.line.split()
            previous = words[-1] if event.line.endswith(" ") else words[-2] if len(words) > 1 else ""
            if previous == "--name" or (parser.name != "dask_up" and not event.symbol.startswith("-")):
                return cluster_names()
            return parser.flags

        return complete


def register(shell: InteractiveShell) -> None:
    """Register the magics, and print which clusters of this user still run."""
    unregister(shell)
    DaskMagics(shell).register()
    if line := notice():
        print(line)


def unregister(shell: InteractiveShell) -> None:
    """Remove the magics from the shell; clusters keep running."""
    for name in ("dask_up", "dask_down", "dask_status"):
        shell.magics_manager.magics["line"].pop(name, None)
        shell.strdispatchers["complete_command"].strs.pop(f"%{name}", None)


def show_cluster(cluster: CMLCluster) -> None:
    """Show ``cluster`` in a cell: its panel, or without widgets its status as HTML and text."""
    from cml_dask_magics.display.screens import in_notebook, screens, show_facts
    from cml_dask_magics.magics.kernel_clusters import kernel_clusters

    live = not cluster.closed and not cluster.asynchronous and in_notebook(get_ipython())
    if live and kernel_clusters.hold(cluster):
        controls = kernel_clusters.controls(cluster.settings.state_directory, cluster.name)
        screens.panels([(cluster.cached_status(), controls)])
    elif cluster.closed:
        print(clean(cluster.why_detached) or f"{cluster!r} is closed")
    else:
        show_facts(cluster.cached_status())


def _magic(parser: LineParser, run: Callable[[argparse.Namespace], None]) -> Any:
    """A function of one line, whose docstring the shell shows as help."""

    def magic(line: str) -> None:
        typed = parser.parse(line)
        if typed is None:
            print(parser.help())
        else:
            run(typed)

    magic.__name__, magic.__doc__ = parser.name, parser.help()
    return magic


def _settings(**given: Any) -> Settings:
    try:
        return make_settings(as_typed, **given)
    except ValueError as error:
        raise UsageError(str(error)) from None


def _state_directory() -> Path:
    try:
        return state_directory()
    except ValueError as error:
        raise UsageError(str(error)) from None


def _name(typed: str) -> str:
    try:
        return readers.name(typed)
    except ValueError as error:
        raise UsageError(f"NAME must be {error}; not {typed!r}") from None


def _known(names: list[str]) -> str:
    return f"there are: {', '.join(names)}" if names else "no cluster is running"


def _the_one(names: list[str]) -> list[str]:
    if "default" in names or len(names) < 2:
        return ["default"] if "default" in names else names
    raise UsageError(f"there are {len(names)} clusters: {', '.join(names)}; name one, or --all")


def _user_error(error: Exception) -> Exception:
    words = clean(str(error))
    return UsageError(words) if isinstance(error, ValueError) else _in_words(RuntimeError(words))


def _in_words(error: E) -> E:
    """Have IPython show an error without our traceback, which does not help the user."""
    words = f"{type(error).__name__}: {error}".removesuffix(": ")
    error._render_traceback_ = lambda: [words]  # type: ignore[attr-defined]  # IPython's name
    return error


def _print_logs(cluster: str, logs: dict[str, list[str]]) -> None:
    for session, lines in logs.items():
        print(f"==> cluster {cluster}, session {session} <==")
        print("\n".join(lines) if lines else "(nothing)")
