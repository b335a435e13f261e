"""Every option once: its default, its unit, how it is read and what is allowed; and the settings that come of them.

Importing this module is cheap (no Dask), so that the magics can build their help from it.
"""

from __future__ import annotations

import keyword
import math
import os
import re
import string
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

SECTION = "cml-dask-magics"
_DEFAULTS_FILE = Path(__file__).with_name("cml_dask_magics.yaml")
_MINUTES = re.compile(r"(?<=[\d.\s])mins?\b")
_RESERVED_ENV = ("CDSW_", "CML_DASK_")
_LAUNCH_ARGUMENTS = frozenset({"n", "cpu", "memory", "nvidia_gpu", "code", "script", "env"})


@dataclass(frozen=True)
class Settings:
    """Everything that a cluster is made of, validated.

    Sizes are cores and GiB, durations seconds; ``None`` means "all" for `wait`, "never" for
    `idle_timeout_s`, "off" for `adapt` and ``CDSW_READONLY_PORT`` for `dashboard_port`.
    """

    n_workers: int
    name: str
    cpu: float
    memory_gib: float
    gpu: int
    scheduler_cpu: float
    scheduler_memory_gib: float
    adapt: tuple[int, int] | None
    wait: int | None
    timeout_s: float
    idle_timeout_s: float | None
    env: dict[str, str]
    dashboard_port: int | None
    local: bool
    tls: bool
    background: bool
    client: str
    cluster: str
    state_directory: Path
    python: str
    launch_options: dict[str, Any]
    max_workers: int
    dashboard_link: str


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
    default : Any
        As `read` takes it. `cml_dask_magics.yaml` holds the same, for users to copy.
    """

    name: str
    field: str
    read: Callable[[Any], Any]
    metavar: str = ""
    help: str = ""
    default: Any = None


def _number(value: Any, allowed: str, low: float, high: float) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if isinstance(value, bool) or not low <= number <= high:
        raise ValueError(allowed)
    return number


def _integer(allowed: str, low: int, high: int = 10**9) -> Callable[[Any], int]:
    def read(value: Any) -> int:
        number = _number(value, allowed, low, high)
        if number != int(number):
            raise ValueError(allowed)
        return int(number)

    return read


def _cores(value: Any) -> float:
    return _number(value, "a number of cores from 0.1 to 1024, such as 2 or 0.5", 0.1, 1024)


def _gib(value: Any) -> float:
    allowed = "a size from 0.5 to 65536 GiB, such as 4, 4GiB or 4096MiB"
    if isinstance(value, str) and not _is_number(value):
        from dask.utils import parse_bytes

        try:
            value = parse_bytes(value) / 2**30
        except (ValueError, KeyError, IndexError):
            raise ValueError(allowed) from None
    return _number(value, allowed, 0.5, 65536)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _seconds(value: Any) -> float:
    allowed = "a duration from 1 second to 365 days, such as 90s, '5 min' or '1 hour'"
    if isinstance(value, str) and not _is_number(value):
        from dask.utils import parse_timedelta

        try:  # Dask knows m, minute and minutes, but not the common min
            value = parse_timedelta(_MINUTES.sub("m", value.strip()), default="s")
        except (ValueError, KeyError, IndexError):
            raise ValueError(allowed) from None
    return _number(value, allowed, 1, 365 * 86400)


def _seconds_or_off(value: Any) -> float | None:
    # YAML reads a bare off as False
    if value is None or value is False or value == "off":
        return None
    try:
        return _seconds(value)
    except ValueError as error:
        raise ValueError(f"{error}, or 'off' for never") from None


def _name(value: Any) -> str:
    if not isinstance(value, str) or not re.fullmatch(r"[A-Za-z0-9_-]{1,40}", value):
        raise ValueError("1 to 40 letters, digits, '-' and '_'")
    return value


def _adapt(value: Any) -> tuple[int, int] | None:
    if value is None or value is False or value == "off":
        return None
    try:
        low, high = value.split(":") if isinstance(value, str) else value
        low, high = int(low), int(high)
    except (TypeError, ValueError):
        low, high = 1, 0
    if not 0 <= low <= high or high < 1:
        raise ValueError("MIN:MAX workers with 0 <= MIN <= MAX and MAX at least 1, such as 2:10")
    return low, high


def _env(value: Any) -> dict[str, str]:
    pairs: Iterable[Any] = value.items() if isinstance(value, Mapping) else value
    env = {}
    for pair in pairs:
        key, separator, text = pair.partition("=") if isinstance(pair, str) else (pair[0], "=", str(pair[1]))
        # The value may be a secret: a message names the key alone.
        if not separator or not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", key) or "\0" in text:
            raise ValueError("KEY=VALUE, KEY made of letters, digits and '_'")
        if key.startswith(_RESERVED_ENV):
            raise ValueError(f"KEY=VALUE, KEY not starting with {' or '.join(_RESERVED_ENV)} (they belong to the platform)")
        env[key] = text
    return env


def _variable(value: Any) -> str:
    if not isinstance(value, str) or not value.isidentifier() or keyword.iskeyword(value):
        raise ValueError("the name of a Python variable")
    return value


def _switch(value: Any) -> bool:
    if isinstance(value, str) and value.lower() in ("true", "yes", "on", "false", "no", "off"):
        return value.lower() in ("true", "yes", "on")
    if not isinstance(value, bool):
        raise ValueError("true or false")
    return value


def _directory(value: Any) -> Path:
    if value is None:
        return default_state_directory()
    if not isinstance(value, (str, os.PathLike)) or not str(value) or "\0" in str(value):
        raise ValueError("the path of a folder")
    return Path(value).expanduser().absolute()


def _python(value: Any) -> str:
    if value is None:
        return sys.executable
    if not isinstance(value, str) or not value or "\0" in value:
        raise ValueError("the path of a Python interpreter")
    return os.path.expanduser(value)  # noqa: PTH111 - a bare "python3" must stay a bare name


def _launch_options(value: Any) -> dict[str, Any]:
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise ValueError("a mapping of keywords for launch_workers, such as {accelerator_label_id: 2}")
    if taken := sorted(_LAUNCH_ARGUMENTS & set(value)):
        raise ValueError(f"keywords other than {', '.join(taken)}, which this package sets itself")
    return dict(value)


def _template(value: Any) -> str:
    allowed = "a template over {app_url}, {session} and {domain}, such as '{app_url}/status'"
    try:
        fields = {name for _, name, _, _ in string.Formatter().parse(value) if name is not None}
    except (TypeError, ValueError):
        raise ValueError(allowed) from None
    if not fields <= {"app_url", "session", "domain"}:
        raise ValueError(allowed)
    return str(value)


_WORKERS = _integer("a whole number of workers from 1 to max-workers", 1)
_PORT = _integer("a port from 1 to 65535", 1, 65535)

OPTIONS: tuple[Option, ...] = (
    Option("n-workers", "n_workers", _WORKERS, "N", "number of workers", 2),
    Option("name", "name", _name, "NAME", "which cluster: letters, digits, - and _, up to 40", "default"),
    Option("cpu", "cpu", _cores, "CORES", "cores of each worker", 1),
    Option("memory", "memory_gib", _gib, "GIB", "GiB of each worker: 4, 4GiB or 4096MiB", 2),
    Option("gpu", "gpu", _integer("a whole number of GPUs, 0 or more", 0, 1024), "N", "GPUs of each worker", 0),
    Option("scheduler-cpu", "scheduler_cpu", _cores, "CORES", "cores of the scheduler", 1),
    Option("scheduler-memory", "scheduler_memory_gib", _gib, "GIB", "GiB of the scheduler", 2),
    Option("adapt", "adapt", _adapt, "MIN:MAX", "let Dask scale between MIN and MAX workers; default: off"),
    Option("wait", "wait", lambda v: None if v is None else _integer("a whole number of workers, 1 or more", 1)(v),
           "N", "how many workers to wait for; default: all"),
    Option("timeout", "timeout_s", _seconds, "DURATION", "how long to wait for them: 90s, 5 min", "5 min"),
    Option("idle-timeout", "idle_timeout_s", _seconds_or_off, "DURATION",
           "stop the cluster after this long without work; off for never", "1 hour"),
    Option("env", "env", _env, "KEY=VALUE", "into the workers' environment; may be repeated", {}),
    Option("dashboard-port", "dashboard_port", lambda v: None if v is None else _PORT(v), "PORT",
           "port of the dashboard; default: CDSW_READONLY_PORT, a free port on a local cluster"),
    Option("local", "local", _switch, "", "processes of this machine instead of CML sessions; default where there is no CML",
           False),
    Option("no-tls", "tls", lambda v: not _switch(v), "", "plain tcp:// instead of TLS", False),
    Option("background", "background", _switch, "", "return at once; the panel goes on telling", False),
    Option("client", "client", _variable, "VAR", "variable to put the client into", "client"),
    Option("cluster", "cluster", _variable, "VAR", "variable to put the cluster into", "cluster"),
    Option("state-directory", "state_directory", _directory),
    Option("python", "python", _python),
    Option("launch-options", "launch_options", _launch_options, default={}),
    Option("max-workers", "max_workers", _integer("a whole number, 1 or more", 1), default=500),
    Option("dashboard-link", "dashboard_link", _template, default="{app_url}/status"),
)  # fmt: skip


def make_settings(**given: Any) -> Settings:
    """Settings from what the user gave, else Dask's configuration, else the default.

    Parameters
    ----------
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
    unknown = sorted(set(given) - {option.name.replace("-", "_") for option in OPTIONS})
    if unknown:
        raise TypeError(f"unknown option {unknown[0]!r}")
    values: dict[str, Any] = {}
    for option in OPTIONS:
        value = given.get(option.name.replace("-", "_"))
        source = ""
        if value is None:
            value = configured.get(option.name, option.default)
            source = f" (from Dask's configuration, {SECTION}.{option.name})" if option.name in configured else ""
        try:
            values[option.field] = option.read(value)
        except ValueError as error:
            raise ValueError(f"{option.name} must be {error}; not {_shown(option, value)}{source}") from None
    settings = Settings(**values)
    _check_together(settings, n_given=given.get("n_workers") is not None)
    if settings.adapt and given.get("n_workers") is None:
        values["n_workers"] = max(1, settings.adapt[0])
    return Settings(**values)


def settings_to_json(settings: Settings) -> dict[str, Any]:
    """Settings as plain JSON values, for a record."""
    return asdict(settings) | {"state_directory": str(settings.state_directory)}


def settings_from_json(data: Mapping[str, Any]) -> Settings:
    """The settings that `settings_to_json` took apart.

    Raises
    ------
    TypeError
        If there is a field too many or too few.
    """
    adapt = data.get("adapt")
    return Settings(
        **{
            **data,
            "adapt": (int(adapt[0]), int(adapt[1])) if adapt else None,
            "state_directory": Path(str(data.get("state_directory"))),
        }
    )


def _shown(option: Option, value: Any) -> str:
    """The value as the message shows it: whole, except where it may hold a secret."""
    if option.name != "env":
        return repr(value)
    keys = value if isinstance(value, Mapping) else [str(pair).partition("=")[0] for pair in value]
    return "the value of " + ", ".join(repr(str(key)) for key in keys)


def _check_together(settings: Settings, n_given: bool) -> None:
    n, most = settings.n_workers, settings.max_workers
    if n > most:
        raise ValueError(f"n-workers must be from 1 to {most} (the setting max-workers); not {n}")
    if settings.adapt:
        low, high = settings.adapt
        if high > most:
            raise ValueError(f"adapt must stay within {most} workers (the setting max-workers); not {low}:{high}")
        if n_given and not low <= n <= high:
            raise ValueError(f"n-workers must lie between the {low} and {high} of adapt; not {n}")
    elif settings.wait is not None and settings.wait > n:
        raise ValueError(f"wait must be at most the number of workers, {n}; not {settings.wait}")
    if settings.client == settings.cluster:
        raise ValueError(f"client and cluster must be two different variables; not both {settings.client!r}")


def _configuration() -> dict[str, Any]:
    """This package's section of Dask's configuration, keys with hyphens."""
    try:
        import dask.config
        import yaml
    except ValueError as error:  # dask.config reads every file when it is imported
        raise ValueError(f"Dask's configuration cannot be read; mend the file that it names: {error}") from None
    with _DEFAULTS_FILE.open() as file:
        dask.config.update_defaults(yaml.safe_load(file))
    for folder in map(Path, dask.config.paths):
        for path in [folder] if folder.is_file() else sorted(folder.glob("*.yaml")) if folder.is_dir() else []:
            _check_readable(path)
    section = dask.config.get(SECTION, {})
    if not isinstance(section, Mapping):
        raise ValueError(f"{SECTION} in Dask's configuration must be a mapping of options; not {section!r}")
    configured = {str(key).replace("_", "-"): value for key, value in section.items()}
    if unknown := sorted(set(configured) - {option.name for option in OPTIONS}):
        raise ValueError(f"{SECTION}.{unknown[0]} in Dask's configuration is not an option of this package; "
                         f"there are: {', '.join(option.name for option in OPTIONS)}")  # fmt: skip
    return configured


def _check_readable(path: Path) -> None:
    # Dask skips a file that it may not read, and the user's settings with it, without a word.
    try:
        path.open().close()
    except OSError as error:
        raise ValueError(f"configuration file {path} cannot be read ({error.strerror}); mend it or remove it") from None


def default_state_directory() -> Path:
    """The folder for records and logs: under the user's home, which all sessions of a CML project share."""
    import platformdirs

    return Path(platformdirs.user_data_dir(SECTION, appauthor=False))


def state_directory() -> Path:
    """Where the records are, without importing Dask (0.15 s) unless its files set the folder.

    For ``%load_ext``, which must be quick.

    Raises
    ------
    ValueError
        If the configuration names something that is no folder.
    """
    variable = os.environ.get("DASK_CML_DASK_MAGICS__STATE_DIRECTORY")
    if variable:
        return _directory(variable)
    if "dask.config" not in sys.modules and not _files_set_state_directory():
        return default_state_directory()
    return make_settings().state_directory


def _files_set_state_directory() -> bool:
    # The folders are those of dask.config._get_paths; JSON and YAML both spell the keys out.
    folders = [Path(os.environ.get("DASK_ROOT_CONFIG", "/etc/dask")), Path(sys.prefix, "etc", "dask")]
    folders += [Path.home() / ".config" / "dask", Path(os.environ.get("DASK_CONFIG", os.devnull))]
    for folder in folders:
        for path in [folder] if folder.is_file() else folder.glob("*.[yj]*") if folder.is_dir() else []:
            try:
                text = path.read_text()
            except (OSError, ValueError):
                continue
            if re.search(r"state[-_]directory", text):
                return True
    return False
