"""What users can set, how it is read, and what they are told where it cannot be."""

import json
import math
import os
import subprocess
import sys

import dask.config
import hypothesis
import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st

from cml_dask_magics.model import settings as settings_module
from cml_dask_magics.model.settings import (
    OPTIONS,
    as_keyword,
    as_typed,
    check_wait,
    make_settings,
    settings_from_json,
    settings_to_json,
)


@pytest.fixture
def configure(tmp_path, monkeypatch):
    """Dask's configuration as it is with these files and variables, and nothing else of this machine's."""
    home, folder = tmp_path / "home", tmp_path / "dask"
    home.mkdir()
    folder.mkdir()
    for variable in [name for name in os.environ if name.startswith("DASK_")] + ["XDG_DATA_HOME"]:
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setattr(dask.config, "paths", [str(folder)])
    # As in a process that has not used the package yet.
    dask.config.defaults[:] = [defaults for defaults in dask.config.defaults if settings_module.SECTION not in defaults]

    def apply(text=None, filename="mine.yaml", **variables):
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        if text is not None:
            (folder / filename).write_text(text)
        dask.config.refresh(paths=[str(folder)])
        return folder

    apply()
    yield apply
    monkeypatch.undo()
    dask.config.refresh(paths=dask.config.paths)


def told(error):
    """The message, once it is known to be one line that a person can act on."""
    message = str(error.value)
    assert message
    assert "\n" not in message
    assert "Traceback" not in message
    return message


BAD = [
    ("n_workers", -3, "n_workers must be a whole number of workers from 0"),
    ("n_workers", "-3", "n_workers must be a whole number of workers from 0"),
    ("n_workers", "two", "n_workers must be a whole number of workers from 0"),
    ("n_workers", 2.5, "whole number"),
    ("n_workers", True, "whole number"),
    ("n_workers", "nan", "whole number"),
    ("n_workers", 1000000000, "at most 100"),
    ("n_workers", "1000000000", "at most 100"),
    ("n_workers", 101, "at most 100"),
    ("memory", 0, "GiB"),
    ("memory", "0", "GiB"),
    ("memory", "lots", "GiB"),
    ("memory", "-4GiB", "GiB"),
    ("memory", "nan", "GiB"),
    ("memory", [4], "GiB"),
    ("scheduler_memory", "lots", "scheduler_memory must be a size"),
    ("cpu", -1, "cores"),
    ("cpu", "-1", "cores"),
    ("cpu", 0, "cores"),
    ("cpu", "many", "cores"),
    ("scheduler_cpu", 0, "scheduler_cpu must be a number of cores"),
    ("gpu", -1, "whole number of GPUs"),
    ("gpu", 0.5, "whole number of GPUs"),
    ("name", "../x", "letters, digits"),
    ("name", "", "letters, digits"),
    ("name", "a" * 41, "letters, digits"),
    ("name", "a b", "letters, digits"),
    ("name", "ä", "letters, digits"),
    ("name", "a\n", "letters, digits"),
    ("adapt", "5:2", "MIN:MAX"),
    ("adapt", "x", "MIN:MAX"),
    ("adapt", "0:0", "MIN:MAX"),
    ("adapt", "1:2:3", "MIN:MAX"),
    ("adapt", "-1:3", "MIN:MAX"),
    ("adapt", "2:100000", "within 100 workers"),
    ("wait", 0, "whole number of workers"),
    ("timeout", "soon", "duration"),
    ("timeout", 0, "duration"),
    ("timeout", "-5 min", "duration"),
    ("timeout", "off", "duration"),
    ("idle_timeout", "soon", "duration"),
    ("idle_timeout", 0, "'off' for never"),
    ("dashboard_port", 0, "port from 1 to 65535"),
    ("dashboard_port", 65536, "port from 1 to 65535"),
    ("dashboard_port", "http", "port from 1 to 65535"),
    ("local", "perhaps", "true or false"),
    ("client", "2x", "Python variable"),
    ("client", "class", "Python variable"),
    ("cluster", "a.b", "Python variable"),
    ("client", "cluster", "two different variables"),
    ("state_directory", "", "path of a folder"),
    ("state_directory", 3, "path of a folder"),
    ("launch_options", {"env": {}}, "sets itself"),
    ("launch_options", ["a"], "mapping"),
    ("launch_options", {"workers": 2}, "mapping"),
    ("launch_options", {"scheduler": {"name": "mine"}}, "sets itself"),
    ("dashboard_link", "{host}/status", "template"),
    ("dashboard_link", "{app_url", "template"),
    ("max_workers", 0, "whole number"),
]


@pytest.mark.parametrize(("option", "value", "allowed"), BAD)
def test_a_bad_value_costs_one_clear_sentence_and_nothing_else(configure, tmp_path, option, value, allowed):
    configure()
    with pytest.raises(ValueError) as error:
        make_settings(**{option: value})
    message = told(error)
    assert option in message
    shown = str(value).strip("'") if "\n" not in str(value) else repr(value)
    assert shown in message
    assert allowed in message
    assert list((tmp_path / "home").rglob("*")) == []


@pytest.mark.parametrize(
    ("line", "allowed"),
    [
        ("n-workers: two", "whole number"),
        ("n_workers: two", "whole number"),
        ("memory: lots", "GiB"),
        ("idle-timeout: soon", "duration"),
        ("env: {A B: x}", "KEY=VALUE"),
        ("adapt: 5:2", "MIN:MAX"),
        ("client: 2x", "variable"),
    ],
)
def test_a_bad_value_in_a_file_is_told_with_the_key_to_mend(configure, line, allowed):
    configure(f"cml-dask-magics:\n  {line}\n")
    with pytest.raises(ValueError) as error:
        make_settings()
    message = told(error)
    assert allowed in message
    assert f"cml-dask-magics.{line.partition(':')[0].replace('_', '-')}" in message


@pytest.mark.parametrize("env", [["NOVALUE"], ["=x"], ["2A=x"], ["A-B=x"], {"A B": "x"}, ["A=x\0y"]])
def test_an_environment_variable_that_is_none_is_refused(configure, env):
    configure()
    with pytest.raises(ValueError) as error:
        make_settings(env=env)
    assert "env must be KEY=VALUE" in told(error)


def test_a_variable_of_the_kernel_needs_no_value_on_the_line(configure, monkeypatch):
    configure()
    monkeypatch.setenv("TOKEN_OF_MINE", "hunter2")
    assert make_settings(env=["TOKEN_OF_MINE", "A=b=c", "EMPTY="]).env == {
        "TOKEN_OF_MINE": "hunter2",
        "A": "b=c",
        "EMPTY": "",
    }
    assert make_settings(env={"TOKEN_OF_MINE": None}).env == {"TOKEN_OF_MINE": "hunter2"}
    monkeypatch.delenv("TOKEN_OF_MINE")
    with pytest.raises(ValueError) as error:
        make_settings(env=["TOKEN_OF_MINE"])
    assert "has none of that name" in told(error) and "TOKEN_OF_MINE" not in told(error), "it may be a secret"


@pytest.mark.parametrize("key", ["CDSW_ENGINE_ID", "CDSW_READONLY_PORT", "CML_DASK_FOLDER", "CML_DASK_PYTHON"])
def test_env_cannot_break_what_the_platform_and_the_package_set(configure, key):
    configure()
    with pytest.raises(ValueError) as error:
        make_settings(env=[f"{key}=x"])
    assert key in told(error)


@pytest.mark.parametrize(
    "env",
    [
        ["OK=1", "CDSW_TOKEN=hunter2"],
        ["2TOKEN=hunter2"],
        {"A B": "hunter2"},
        [("A B", "hunter2")],
        ["A=hunter2\0"],
        "TOKEN=hunter2",
    ],
)
def test_no_message_gives_a_secret_in_env_away(configure, env):
    configure()
    with pytest.raises(ValueError) as error:
        make_settings(env=env)
    letters = "".join(character for character in told(error) if character.isalnum())
    assert "hunter2" not in letters


@pytest.mark.parametrize("env", [5, [5], {1: "x"}, [["A"]], [None], b"A=1"])
def test_env_of_another_shape_is_a_bad_value_and_not_a_crash(configure, env):
    configure()
    with pytest.raises(ValueError) as error:
        make_settings(env=env)
    assert "env" in told(error)


@pytest.mark.parametrize(
    ("option", "value", "field", "expected"),
    [
        ("n_workers", "4", "n_workers", 4),
        ("memory", 4, "memory_gib", 4.0),
        ("memory", "4", "memory_gib", 4.0),
        ("memory", "4GiB", "memory_gib", 4.0),
        ("memory", "4 GiB", "memory_gib", 4.0),
        ("memory", "4096MiB", "memory_gib", 4.0),
        ("memory", 0.5, "memory_gib", 0.5),
        ("cpu", "0.5", "cpu", 0.5),
        ("processes", "4", "processes", 4),
        ("gpu", 4, "processes", 4),
        ("timeout", "90s", "timeout_s", 90.0),
        ("timeout", "5 min", "timeout_s", 300.0),
        ("timeout", "5min", "timeout_s", 300.0),
        ("timeout", "2 mins", "timeout_s", 120.0),
        ("timeout", "3 minutes", "timeout_s", 180.0),
        ("timeout", "90", "timeout_s", 90.0),
        ("timeout", 12.5, "timeout_s", 12.5),
        ("idle_timeout", "1 hour", "idle_timeout_s", 3600.0),
        ("idle_timeout", "2 hours", "idle_timeout_s", 7200.0),
        ("idle_timeout", "off", "idle_timeout_s", None),
        ("idle_timeout", False, "idle_timeout_s", None),
        ("adapt", "2:10", "adapt", (2, 10)),
        ("adapt", (0, 3), "adapt", (0, 3)),
        ("adapt", [1, 3], "adapt", (1, 3)),
        ("adapt", "off", "adapt", None),
        ("env", ["A=1", "B=x=y", "C="], "env", {"A": "1", "B": "x=y", "C": ""}),
        ("env", {"A": 1}, "env", {"A": "1"}),
        ("no_tls", True, "tls", False),
        ("local", "yes", "local", True),
        ("dashboard_port", "8100", "dashboard_port", 8100),
        ("wait", "1", "wait", 1),
        ("client", "c2", "client", "c2"),
    ],
)
def test_what_people_write_is_understood(configure, option, value, field, expected):
    configure()
    assert getattr(make_settings(**{option: value}), field) == expected


def test_without_anything_given_or_configured_the_documented_defaults_hold(configure, tmp_path):
    configure()
    settings = make_settings()
    assert (settings.n_workers, settings.name, settings.cpu, settings.memory_gib, settings.gpu) == (
        2,
        "default",
        1,
        2,
        0,
    )
    assert (settings.scheduler_cpu, settings.scheduler_memory_gib, settings.processes) == (1, 2, 1)
    assert (settings.adapt, settings.wait, settings.dashboard_port) == (None, None, None)
    assert (settings.timeout_s, settings.idle_timeout_s) == (300, 3600)
    assert (settings.local, settings.tls, settings.background) == (False, True, False)
    assert (settings.client, settings.cluster) == ("client", "cluster")
    assert (settings.max_workers, settings.env) == (100, {})
    assert settings.launch_options == {"scheduler": {}, "workers": {}}
    assert settings.scheduler_here is False
    assert settings.python == sys.executable
    assert settings.dashboard_link == "{app_url}/status"
    assert settings.state_directory.is_relative_to(tmp_path / "home")


def test_the_file_that_users_copy_holds_the_same_defaults_as_the_code():
    with settings_module._DEFAULTS_FILE.open() as file:
        section = yaml.safe_load(file)
    assert list(section) == ["cml-dask-magics"]
    copied = section["cml-dask-magics"]
    assert list(copied) == [option.name for option in OPTIONS]
    for option in OPTIONS:
        assert option.read(copied[option.name]) == option.read(option.default), option.name


def test_a_copy_of_the_defaults_file_changes_nothing(configure):
    plain = make_settings()
    configure(settings_module._DEFAULTS_FILE.read_text())
    assert make_settings() == plain


@pytest.mark.parametrize("key", ["scheduler-memory", "scheduler_memory"])
@pytest.mark.parametrize("section", ["cml-dask-magics", "cml_dask_magics"])
def test_a_file_may_spell_keys_with_hyphens_or_underscores(configure, section, key):
    configure(f"{section}:\n  {key}: 8\n")
    assert make_settings().scheduler_memory_gib == 8


@pytest.mark.parametrize("filename", ["mine.yaml", "mine.yml", "mine.json"])
def test_every_kind_of_file_that_dask_reads_counts(configure, filename):
    configure('{"cml-dask-magics": {"n-workers": 7}}', filename)
    assert make_settings().n_workers == 7


def test_a_variable_sets_an_option(configure):
    configure(
        DASK_CML_DASK_MAGICS__N_WORKERS="8",
        DASK_CML_DASK_MAGICS__IDLE_TIMEOUT="2 hours",
        DASK_CML_DASK_MAGICS__NO_TLS="true",
        DASK_CML_DASK_MAGICS__ADAPT="2:10",
    )
    settings = make_settings(adapt="off")
    assert (settings.n_workers, settings.idle_timeout_s, settings.tls, settings.adapt) == (8, 7200, False, None)
    assert make_settings().adapt == (2, 10)


def test_a_variable_wins_over_a_file_and_what_is_given_over_both(configure):
    configure("cml-dask-magics:\n  n-workers: 7\n  cpu: 3\n", DASK_CML_DASK_MAGICS__N_WORKERS="8")
    assert make_settings().n_workers == 8
    assert make_settings().cpu == 3
    assert make_settings(n_workers=9).n_workers == 9


def test_what_is_set_in_the_notebook_counts_at_once(configure):
    configure()
    with dask.config.set({"cml-dask-magics.n-workers": 6}):
        assert make_settings().n_workers == 6
    assert make_settings().n_workers == 2


def test_a_misspelt_key_in_a_file_is_not_silently_ignored(configure):
    configure("cml-dask-magics:\n  n-wrokers: 7\n")
    with pytest.raises(ValueError) as error:
        make_settings()
    assert "n-wrokers" in told(error)
    assert "n-workers" in told(error)


@pytest.mark.parametrize("text", ["cml-dask-magics: 5\n", "cml-dask-magics: [a]\n"])
def test_a_section_that_is_no_mapping_is_told(configure, text):
    configure(text)
    with pytest.raises(ValueError) as error:
        make_settings()
    assert "cml-dask-magics" in told(error)


def test_a_section_with_every_line_commented_out_means_the_defaults(configure):
    configure("cml-dask-magics:\n#  n-workers: 7\n")
    assert make_settings().n_workers == 2


@pytest.mark.parametrize("option", ["env", "launch-options"])
def test_a_key_with_nothing_after_it_means_the_default(configure, option):
    configure(f"cml-dask-magics:\n  {option}:\n")
    settings = make_settings()
    configure("")
    assert getattr(settings, option.replace("-", "_")) == getattr(make_settings(), option.replace("-", "_"))


def test_the_sexagesimal_trap_of_yaml_is_told_and_not_a_riddle(configure):
    # An unquoted 2:10 is the number 130 to YAML.
    configure("cml-dask-magics:\n  adapt: 2:10\n")
    try:
        assert make_settings().adapt == (2, 10)
    except ValueError as error:
        assert "quote" in str(error)


@pytest.mark.parametrize("filename", ["mine.yaml", "mine.yml", "mine.json"])
def test_an_unreadable_file_is_named_instead_of_skipped(configure, filename):
    folder = configure()
    (folder / filename).symlink_to(folder / "gone")  # unreadable for root, too
    with pytest.raises(ValueError) as error:
        make_settings()
    assert filename in told(error)


@pytest.mark.parametrize("content", [b"cml-dask-magics: [\n", b"cml-dask-magics: {a: \xff}\n", b"- 1\n"])
def test_a_malformed_file_costs_one_sentence_that_names_it(tmp_path, content):
    (tmp_path / "dask").mkdir()
    (tmp_path / "dask" / "broken.yaml").write_bytes(content)
    program = """
from cml_dask_magics.model.settings import make_settings
try:
    make_settings()
except ValueError as error:
    print(f"told: {error}")
"""
    environment = {**os.environ, "HOME": str(tmp_path), "DASK_CONFIG": str(tmp_path / "dask")}
    answer = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert answer.stdout.startswith("told: "), answer.stderr
    assert "broken.yaml" in answer.stdout
    assert len(answer.stdout.splitlines()) == 1


def test_an_unknown_keyword_is_an_error_as_everywhere_in_python(configure):
    configure()
    with pytest.raises(TypeError, match=r"unknown option 'n_wrokers'; do you mean n_workers\?"):
        make_settings(n_wrokers=3)


@pytest.mark.parametrize(
    ("key", "words"), [("cpus", "; do you mean cpu?"), ("frobnicate", "; there are: n-workers, name, cpu, ")]
)
def test_a_slip_in_the_configuration_is_told_with_what_may_be_meant(configure, key, words):
    configure(f"cml-dask-magics:\n  {key}: 2\n")
    with pytest.raises(ValueError) as error:
        make_settings()
    assert f"cml-dask-magics.{key} in Dask's configuration is not an option of this package{words}" in told(error)


def test_how_many_workers_may_be_asked_for_is_said_for_who_asks(configure):
    configure("cml-dask-magics:\n  max-workers: 7\n")
    with pytest.raises(ValueError, match=r"^N must be a whole number of workers from 1 to 7; not 'two'"):
        make_settings(as_typed, n_workers="two")
    with pytest.raises(ValueError, match=r"^n_workers must be a whole number of workers from 0 to 7; not -1"):
        make_settings(n_workers=-1)


def test_a_slip_of_the_hand_is_told_with_what_it_would_have_cost_and_how_it_could_be_meant(configure):
    configure()
    with pytest.raises(ValueError) as error:
        make_settings(n_workers=500, cpu=2, memory=8)
    message = told(error)
    assert "at most 100, not 500" in message and "1,000 cores and 4,000 GiB" in message
    raised = message.partition("dask.config.set(")[2].rstrip(")")
    with dask.config.set(eval(raised)):
        assert make_settings(n_workers=500).n_workers == 500


def test_max_workers_can_be_raised_and_lowered(configure):
    configure("cml-dask-magics:\n  max-workers: 1000\n")
    assert make_settings(n_workers=800).n_workers == 800
    with pytest.raises(ValueError, match="at most 1000"):
        make_settings(n_workers=1001)


def test_adaptive_scaling_starts_at_its_minimum_unless_told(configure):
    configure()
    assert make_settings(adapt="3:5").n_workers == 3
    assert make_settings(adapt="0:5").n_workers == 1
    assert make_settings(adapt="1:5", n_workers=4).n_workers == 4
    with pytest.raises(ValueError, match="between the 1 and 5"):
        make_settings(adapt="1:5", n_workers=6)


def test_waiting_for_more_workers_than_are_asked_for_is_refused_and_not_waited_out(configure):
    configure()
    with pytest.raises(ValueError, match="wait must be at most the number of workers, 2; not 3"):
        make_settings(n_workers=2, wait=3)
    # Without a number it may be for a cluster that has more: whoever starts one checks it.
    assert make_settings(wait=3).wait == 3
    for adapt in (None, "1:5"):
        with pytest.raises(ValueError, match=r"wait must be at most the number of workers, [12]; not 10"):
            check_wait(make_settings(wait=10, adapt=adapt), as_keyword)


def test_the_home_of_nobody_is_a_bad_folder_and_not_a_crash(configure):
    configure()
    with pytest.raises(ValueError) as error:
        make_settings(state_directory="~no-such-user-here/x")
    assert "state_directory" in told(error)


def test_a_state_folder_in_the_home_folder_may_be_written_with_a_tilde(configure, tmp_path):
    configure("cml-dask-magics:\n  state-directory: ~/records\n")
    assert make_settings().state_directory == tmp_path / "home" / "records"


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.just(10**400) | st.floats() | st.text() | st.binary(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.tuples(inner, inner) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=4,
)
NEARLY = st.sampled_from(["1e999GiB", "1e999 s", "1e999", "nan", "inf min", "1:1e9", "{app_url!r}", "\0", "~", "-"])


@pytest.mark.parametrize("option", OPTIONS, ids=lambda option: option.name)
@hypothesis.settings(max_examples=40, deadline=None, database=None)
@example(value=10**400)
@example(value=[0, 10**400])
@example(value=10**5000)
@example(value="1e999")
@example(value="1e999 s")
@example(value="1e999GiB")
@example(value=[float("inf"), float("inf")])
@example(value=[None])
@given(value=ANYTHING | NEARLY)
def test_whatever_is_given_is_understood_or_refused_but_never_a_crash(option, value):
    try:
        understood = option.read(value)
    except ValueError as error:
        assert str(error)
    else:
        assert not (isinstance(understood, float) and math.isnan(understood))


def test_a_link_template_that_is_accepted_can_be_filled_in(configure):
    configure()
    for template in ["{app_url}/status", "https://{session}.{domain}/", "{app_url:>{x}}", "{app_url:d}", "{app_url!z}"]:
        try:
            link = make_settings(dashboard_link=template).dashboard_link
        except ValueError:
            continue
        assert link.format(app_url="https://a/", session="s", domain="d")


VALUES = st.text(st.characters(codec="utf-8", exclude_characters="\0"))
GIVEN = st.fixed_dictionaries(
    {},
    optional={
        "n_workers": st.integers(1, 100),
        "name": st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,39}", fullmatch=True),
        "cpu": st.floats(0.1, 1024),
        "memory": st.floats(0.5, 65536),
        "gpu": st.integers(0, 8),
        "timeout": st.floats(1, 86400),
        "idle_timeout": st.just("off") | st.floats(1, 86400),
        "env": st.dictionaries(st.from_regex(r"[a-z_][A-Za-z0-9_]*", fullmatch=True), VALUES),
        "dashboard_port": st.integers(1, 65535),
        "no_tls": st.booleans(),
        "scheduler_here": st.booleans(),
        "launch_options": st.dictionaries(st.just("accelerator_label_id"), st.integers())
        | st.fixed_dictionaries({"workers": st.dictionaries(st.just("accelerator_label_id"), st.integers())}),
    },
)  # fmt: skip


@hypothesis.settings(
    max_examples=40,
    deadline=None,
    database=None,
    suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture],
)
@given(given=GIVEN)
@pytest.mark.usefixtures("configure")
def test_settings_survive_the_record_so_that_a_later_kernel_scales_alike(given):
    settings = make_settings(**given)
    assert settings_from_json(json.loads(json.dumps(settings_to_json(settings)))) == settings


@pytest.mark.parametrize(
    ("given", "scheduler", "workers"),
    [
        ({"a": 1}, {"a": 1}, {"a": 1}),
        ({"workers": {"a": 1}}, {}, {"a": 1}),
        ({"a": 1, "b": 2, "scheduler": {"a": 3}, "workers": {"c": 4}}, {"a": 3, "b": 2}, {"a": 1, "b": 2, "c": 4}),
    ],
)
def test_launch_options_are_for_both_or_for_one_alone(configure, given, scheduler, workers):
    configure(yaml.safe_dump({"cml-dask-magics": {"launch-options": given}}))
    assert make_settings().launch_options == {"scheduler": scheduler, "workers": workers}


def test_what_a_record_of_an_earlier_release_lacks_is_as_by_default(configure):
    configure()
    data = settings_to_json(make_settings(cpu=3, scheduler_here=True))
    del data["scheduler_here"]
    assert settings_from_json(data) == make_settings(cpu=3)


def test_adaptive_limits_survive_the_record(configure):
    configure()
    settings = make_settings(adapt="2:9")
    assert settings_from_json(json.loads(json.dumps(settings_to_json(settings)))) == settings


def test_what_belongs_to_one_call_is_not_on_record_and_was_in_version_1(configure):
    configure()
    data = settings_to_json(make_settings(client="c", cluster="k", background=True))
    assert not {"client", "cluster", "background"} & set(data)
    of_version_1 = {**data, "client": "c", "cluster": "k", "background": True}
    assert settings_from_json(of_version_1) == settings_from_json(data) == make_settings()


def test_a_record_from_before_there_were_processes_is_of_sessions_with_one_worker(configure):
    configure()
    data = settings_to_json(make_settings(gpu=4))
    del data["processes"]
    assert settings_from_json(data).processes == 1


@pytest.mark.parametrize("field", ["n_workers", "state_directory", "dashboard_link", "adapt"])
def test_settings_of_another_release_are_recognised_as_such(configure, field):
    configure()
    data = settings_to_json(make_settings())
    with pytest.raises(TypeError):
        settings_from_json({key: value for key, value in data.items() if key != field})
    with pytest.raises(TypeError):
        settings_from_json({**data, "of_tomorrow": 1})


@pytest.mark.parametrize("settings", [[], "text", None, {"adapt": "ab"}, {"adapt": 5}])
def test_settings_of_the_wrong_kind_do_not_stop_a_cluster_from_being_opened(settings):
    # What the caller catches, to go on with default settings.
    with pytest.raises(TypeError):
        settings_from_json(settings)


def test_settings_are_made_a_thousand_times_without_growing_the_configuration(configure):
    configure()
    make_settings()
    before = len(dask.config.defaults)
    for _ in range(5):
        make_settings()
    assert len(dask.config.defaults) == before


FIND = """
import sys
from cml_dask_magics.model.settings import state_directory
print(state_directory())
print("dask" in sys.modules)
from cml_dask_magics.model.settings import make_settings
print(make_settings().state_directory)
"""


@pytest.mark.parametrize(
    ("text", "variable", "imports_dask"),
    [
        (None, None, False),
        ("cml-dask-magics:\n  n-workers: 3\n", None, False),
        ("cml-dask-magics:\n  state-directory: ~/elsewhere\n", None, True),
        ("cml_dask_magics:\n  state_directory: ~/elsewhere\n", None, True),
        (None, "~/by-variable", False),
        ("cml-dask-magics:\n  state-directory: ~/elsewhere\n", "~/by-variable", False),
    ],
)
def test_loading_looks_for_records_where_starting_puts_them_and_stays_quick(tmp_path, text, variable, imports_dask):
    folder = tmp_path / ".config" / "dask"
    folder.mkdir(parents=True)
    if text is not None:
        (folder / "mine.yml").write_text(text)
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("DASK_", "XDG_"))}
    environment["HOME"] = str(tmp_path)
    if variable is not None:
        environment["DASK_CML_DASK_MAGICS__STATE_DIRECTORY"] = variable
    answer = subprocess.run(
        [sys.executable, "-c", FIND], env=environment, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    assert answer[0] == answer[2]
    assert answer[1] == str(imports_dask)
    assert answer[0].startswith(str(tmp_path))


def test_a_folder_that_is_set_in_the_notebook_is_where_loading_looks(configure, tmp_path):
    configure(DASK_CML_DASK_MAGICS__STATE_DIRECTORY=str(tmp_path / "a"))
    with dask.config.set({"cml-dask-magics.state-directory": str(tmp_path / "b")}):
        assert settings_module.state_directory() == make_settings().state_directory
