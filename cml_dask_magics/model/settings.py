"""Every option once: its default, its unit, how it is read and what is allowed; and the settings that come of them.

Importing this module is cheap (no Dask), so that the magics can build their help from it.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from cml_dask_magics.model import readers
from cml_dask_magics.model.words import counted, cut, meant

SECTION = "cml-dask-magics"
# In the state folder, which may be one of the user's; everything of ours is in there.
PRIVATE_FOLDER = "cml-dask-magics"
_DEFAULTS_FILE = Path(__file__).with_name("cml_dask_magics.yaml")


@dataclass(frozen=True)
class Settings:
    """Everything that a cluster is made of, validated.

    Sizes are cores and GiB, durations seconds; ``None`` means "all" for `wait`, "never" for
    `idle_timeout_s`, "off" for `adapt` and ``CDSW_READONLY_PORT`` for `dashboard_port`. `n_workers`, `adapt`, `wait`
    and `max_workers` count sessions, each of which has `processes` Dask workers. `launch_options` holds the keywords
    for ``scheduler`` and for ``workers``. `given` are the fields that came with the call, and from nowhere else.
    """

    n_workers: int
    name: str
    cpu: float
    memory_gib: float
    gpu: int
    processes: int
    scheduler_cpu: float
    scheduler_memory_gib: float
    scheduler_here: bool
    adapt: tuple[int, int] | None
    wait: int | None
    timeout_s: float
    idle_timeout_s: float | None
    env: dict[str, str] = field(repr=False)  # its values may be secrets
    dashboard_port: int | None
    local: bool
    tls: bool
    dashboard: bool
    background: bool
    client: str
    cluster: str
    state_directory: Path
    python: str
    launch_options: dict[str, dict[str, Any]]
    max_workers: int
    dashboard_link: str
    given: frozenset[str] = field(default=frozenset(), compare=False)


@dataclass(frozen=True)
class Option:
    """One option: how it is called, read and explained.

    Parameters
    ----------
    name : str
        As in the configuration; ``--name`` on a line and ``name`` with underscores as a keyword.
    field : str
        The field of `Settings` that it fills.
    read : callable
        From what the user gave to the field's value; raises ``ValueError`` saying what is allowed.
    metavar : str
        How help names the value; empty for a switch.
    help : str
        What it is, with its unit and default.
    of_call : bool
        Whether it belongs to one call, and not to the cluster: it is not on record.
    default : Any
        As `read` takes it. `cml_dask_magics.yaml` holds the same, for users to copy.
    new : bool
        Whether records of earlier releases lack it; they stand for the default.
    """

    name: str
    field: str
    read: Callable[[Any], Any]
    metavar: str = ""
    help: str = ""
    default: Any = None
    of_call: bool = False
    new: bool = False


def _directory(value: Any) -> Path:
    if value is None:
        return default_state_directory()
    if not isinstance(value, (str, os.PathLike)) or not str(value) or "\0" in str(value):
        raise ValueError("the path of a folder, without a NUL character")
    try:
        return Path(value).expanduser().absolute()
    except RuntimeError as error:  # ~nobody
        raise ValueError(f"the path of a folder ({error})") from None


def _unless(value: Any) -> bool:
    return not readers.switch(value)


_WORKERS = readers.integer("a whole number of workers", 0)
_WAIT = readers.integer("a whole number of workers, 1 or more", 1)
_PORT = readers.integer("a port from 1 to 65535", 1, 65535)
_PROCESSES = readers.integer("a whole number of Dask workers, from 1 to 1024", 1, 1024)

OPTIONS: tuple[Option, ...] = (
    Option("n-workers", "n_workers", _WORKERS, "N", "number of workers, each in a session of its own", 2),
    Option("name", "name", readers.name, "NAME", "which cluster: letters, digits, - and _, up to 40", "default"),
    Option("cpu", "cpu", readers.cores, "CORES", "cores of each worker", 1),
    Option("memory", "memory_gib", readers.gib, "GIB", "GiB of each worker: 4, 4GiB or 4096MiB", 2),
    Option("gpu", "gpu", readers.integer("a whole number of GPUs, 0 or more", 0, 1024), "N", "GPUs of each worker", 0),
    Option("processes", "processes", lambda v: None if v is None else _PROCESSES(v), "N",
           "Dask workers in each session, which share its cores and memory; N and MIN:MAX count the sessions; "
           "default: one for each GPU, or 1", new=True),
    Option("scheduler-cpu", "scheduler_cpu", readers.cores, "CORES", "cores of the scheduler", 1),
    Option("scheduler-memory", "scheduler_memory_gib", readers.gib, "GIB", "GiB of the scheduler", 2),
    Option("scheduler-here", "scheduler_here", readers.switch, "",
           "the scheduler as a process of this session: leaves a small quota to the workers", False, new=True),
    Option("adapt", "adapt", readers.adapt, "MIN:MAX", "let Dask scale between MIN and MAX workers; default: off"),
    Option("wait", "wait", lambda v: None if v is None else _WAIT(v), "N",
           "how many workers to wait for; default: all"),
    Option("timeout", "timeout_s", readers.seconds, "DURATION", "how long to wait for them: 90s, 5 min", "5 min"),
    Option("idle-timeout", "idle_timeout_s", readers.seconds_or_off, "DURATION",
           "stop the cluster after this long without work; off for never", "1 hour"),
    Option("env", "env", readers.env, "KEY[=VALUE]",
           "into the workers' environment, KEY alone with the value that it has in the kernel; may be repeated", {}),
    Option("dashboard-port", "dashboard_port", lambda v: None if v is None else _PORT(v), "PORT",
           "port of the dashboard; default: CDSW_READONLY_PORT, a free port on a local cluster"),
    Option("local", "local", readers.switch, "",
           "processes of this machine instead of CML sessions; the only way where there is no CML", False),
    Option("no-tls", "tls", _unless, "",
           "plain tcp://: anybody on the network can run code as you, and read your other clusters' keys", False),
    Option("no-dashboard", "dashboard", _unless, "", "serve no dashboard", False, new=True),
    Option("background", "background", readers.switch, "",
           "return at once; `client` is set when the workers are ready", False, of_call=True),
    Option("client", "client", readers.variable, "VAR", "variable to put the client into", "client", of_call=True),
    Option("cluster", "cluster", readers.variable, "VAR", "variable to put the cluster into", "cluster", of_call=True),
    Option("state-directory", "state_directory", _directory),
    Option("python", "python", readers.python),
    Option("launch-options", "launch_options", readers.launch_options, default={}),
    Option("max-workers", "max_workers", readers.integer("a whole number, 1 or more", 1), default=100),
    Option("dashboard-link", "dashboard_link", readers.template, default="{app_url}/status"),
)  # fmt: skip

Spelling = Callable[[str], str]
"""How the user writes an option, given its name in the configuration."""


def as_typed(name: str) -> str:
    """An option as it is typed on a magic's line."""
    return "N" if name == "n-workers" else f"--{name}"


def as_keyword(name: str) -> str:
    """An option as it is given to `CMLCluster`."""
    return name.replace("-", "_")


def make_settings(spelled: Spelling = as_keyword, **given: Any) -> Settings:
    """Settings from what the user gave, else Dask's configuration, else the default.

    Parameters
    ----------
    spelled : callable
        How messages are to name an option.
    **given
        Values by option name with underscores; ``None`` stands for "not given".

    Returns
    -------
    Settings

    Raises
    ------
    ValueError
        One sentence that names the option, the value and what is allowed. Nothing has been changed.
    """
    configured = _configuration()
    known = [as_keyword(option.name) for option in OPTIONS]
    if unknown := sorted(set(given) - set(known)):
        raise TypeError(f"unknown option {unknown[0]!r}{meant(unknown[0], known)}")
    values: dict[str, Any] = {}
    for option in sorted(OPTIONS, key=lambda option: option.name != "max-workers"):  # which an error of N names
        value, source = given.get(as_keyword(option.name)), spelled(option.name)
        if value is None:
            value = configured.get(option.name, option.default)
            if option.name in configured:
                source = f"{SECTION}.{option.name} in Dask's configuration"
        try:
            values[option.field] = option.read(value)
        except ValueError as error:
            allowed = str(error)
            if option.name == "n-workers":  # no line asks for none
                allowed += f" from {int(spelled is as_typed)} to {values['max_workers']}"
            raise ValueError(f"{source} must be {allowed}; not {_shown(option, value)}") from None
    if values["adapt"] and given.get("n_workers") is None:
        values["n_workers"] = max(1, values["adapt"][0])
    if values["processes"] is None:
        values["processes"] = max(1, values["gpu"])
    fields = {as_keyword(option.name): option.field for option in OPTIONS}
    settings = Settings(**values, given=frozenset(fields[key] for key, value in given.items() if value is not None))
    _check_together(settings, spelled)
    return settings


def settings_to_json(settings: Settings) -> dict[str, Any]:
    """What a cluster was started with as plain JSON values, for its record; what belongs to one call is not in it."""
    values = asdict(settings) | {"state_directory": str(settings.state_directory)}
    return {option.field: values[option.field] for option in OPTIONS if not option.of_call}


def settings_from_json(data: Mapping[str, Any]) -> Settings:
    """The settings that `settings_to_json` took apart; what belongs to one call is as by default.

    Parameters
    ----------
    data : mapping
        Of a record of any version.

    Raises
    ------
    TypeError
        If there is a field too many or too few, or of the wrong kind.
    """
    if not isinstance(data, Mapping):
        raise TypeError("settings must be a mapping")
    of_call = {option.field: option.default for option in OPTIONS if option.of_call}
    new = {option.field: option.default for option in OPTIONS if option.new}
    if set(data) | set(of_call) | set(new) != {option.field for option in OPTIONS}:
        raise TypeError("settings of another release")
    negated = {option.field for option in OPTIONS if option.read is _unless}  # no-tls is an option, tls a setting
    given = {**new, **data, **of_call} | {name: not data[name] for name in negated & set(data)}
    try:
        values = {option.field: option.read(given[option.field]) for option in OPTIONS}
        # Earlier releases had one worker in a session, whatever it had of GPUs.
        return Settings(**{**values, "processes": values["processes"] or 1})
    except ValueError as error:
        raise TypeError(f"settings of the wrong kind: {error}") from None


def _shown(option: Option, value: Any) -> str:
    """The value as the message shows it: except where it may hold a secret, and no page of it."""
    if option.name == "env":
        return "what was given, which is not shown, because it may be a secret"
    try:
        return cut(repr(value), 200)
    except ValueError:  # Python writes no integer of thousands of digits
        return f"such a {type(value).__name__}"


def too_many(n: int, settings: Settings) -> str:
    """What is wrong with `n` workers, which are more than ``max-workers``: what they cost, and how to have them."""
    cores, gib = n * settings.cpu, n * settings.memory_gib
    return (
        f"at most {settings.max_workers}, not {n}: {counted(n, settings.processes)} would be {cores:,.0f} cores and "
        f"{gib:,.0f} GiB. If that is meant, raise the setting max-workers before the cluster starts: "
        f"dask.config.set({{'{SECTION}.max-workers': {n}}})"
    )


def check_wait(settings: Settings, spelled: Spelling) -> None:
    """Check that no more workers are to be waited for than there will be.

    Raises
    ------
    ValueError
        If there are.
    """
    n, wait = settings.n_workers, settings.wait
    if wait is not None and wait > n:
        raise ValueError(f"{spelled('wait')} must be at most the number of workers, {n}; not {wait}")


def _check_together(settings: Settings, spelled: Spelling) -> None:
    n, most, workers = settings.n_workers, settings.max_workers, spelled("n-workers")
    if n > most:
        raise ValueError(f"{workers} must be {too_many(n, settings)}")
    if settings.adapt:
        low, high = settings.adapt
        if high > most:
            raise ValueError(
                f"{spelled('adapt')} {low}:{high} must stay within {most} workers: {too_many(high, settings)}"
            )
        if not max(1, low) <= n <= high:
            raise ValueError(f"{workers} must lie between the {low} and {high} of {spelled('adapt')}; not {n}")
    if "n_workers" in settings.given:  # otherwise it may be for a cluster that has more
        check_wait(settings, spelled)
    if settings.client == settings.cluster:
        both = f"{spelled('client')} and {spelled('cluster')}"
        raise ValueError(f"{both} must be two different variables; not both {settings.client!r}")


def _configuration() -> dict[str, Any]:
    """This package's section of Dask's configuration, keys with hyphens."""
    _import_configuration()
    import dask.config
    import yaml

    section = dask.config.get(SECTION, None)
    if section is not None and not isinstance(section, Mapping):
        raise ValueError(f"{SECTION} in Dask's configuration must be a mapping of options; not {section!r}")
    if not any(SECTION in defaults for defaults in dask.config.defaults):
        with _DEFAULTS_FILE.open() as file:
            dask.config.update_defaults(yaml.safe_load(file))
    for path in _configuration_files(map(Path, dask.config.paths)):
        _check_readable(path)
    configured = {str(key).replace("_", "-"): value for key, value in (dask.config.get(SECTION, None) or {}).items()}
    known = [option.name for option in OPTIONS]
    if unknown := sorted(set(configured) - set(known)):
        there_are = meant(unknown[0], known) or f"; there are: {', '.join(known)}"
        raise ValueError(f"{SECTION}.{unknown[0]} in Dask's configuration is not an option of this package{there_are}")
    return configured


def _import_configuration() -> None:
    try:
        import dask.config  # noqa: F401
    except ValueError as error:  # it reads every file when it is imported
        words = " ".join(str(error).split())
        raise ValueError(f"Dask's configuration cannot be read; mend the file that it names: {words}") from None


def _configuration_files(folders: Iterable[Path]) -> Iterator[Path]:
    """The files that Dask reads of those folders; one of them may be a file itself."""
    for folder in folders:
        if folder.is_dir():
            yield from sorted(path for path in folder.iterdir() if path.suffix.lower() in (".yaml", ".yml", ".json"))
        elif folder.exists():
            yield folder


def _check_readable(path: Path) -> None:
    # Dask skips a file that it may not read, and the user's settings with it, without a word.
    try:
        path.open().close()
    except OSError as error:
        raise ValueError(f"configuration file {path} cannot be read ({error.strerror}); mend it or remove it") from None


def default_state_directory() -> Path:
    """The folder in which the private one lies: under the user's home, which all sessions of a CML project share."""
    import platformdirs

    return Path(platformdirs.user_data_dir())


def state_directory() -> Path:
    """Where the records are, without importing Dask (0.15 s) unless its files set the folder.

    For ``%load_ext``, which must be quick; and for what must work whatever else the configuration says.

    Raises
    ------
    ValueError
        If the configuration cannot be read, or names something that is no folder.
    """
    chosen = os.environ.get("DASK_CML_DASK_MAGICS__STATE_DIRECTORY")
    # Somebody may have set it there since.
    if "dask.config" in sys.modules or (not chosen and _files_set_state_directory()):
        _import_configuration()
        import dask.config

        chosen = dask.config.get(f"{SECTION}.state-directory", None)
    try:
        return _directory(chosen or None)
    except ValueError as error:
        raise ValueError(f"{SECTION}.state-directory must be {error}; not {cut(repr(chosen), 200)}") from None


def _files_set_state_directory() -> bool:
    # The folders are those of dask.config._get_paths; JSON and YAML both spell the keys out.
    folders = [Path(os.environ.get("DASK_ROOT_CONFIG", "/etc/dask")), Path(sys.prefix, "etc", "dask")]
    folders += [Path.home() / ".config" / "dask", Path(os.environ.get("DASK_CONFIG", os.devnull))]
    for path in _configuration_files(folders):
        try:
            text = path.read_text()
        except (OSError, ValueError):
            continue
        if re.search(r"state[-_]directory", text):
            return True
    return False
