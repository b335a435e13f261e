"""What can be typed after a magic, and what its help says."""

import re

import pytest
from IPython.core.error import UsageError

from cml_dask_magics.magics.command_line import down_parser, status_parser, up_parser
from cml_dask_magics.model.settings import OPTIONS

UP = up_parser()
TYPED = [option for option in OPTIONS if option.help]


def up(line):
    return {key: value for key, value in vars(UP.parse(line)).items() if value is not None}


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("", {}),
        ("4", {"n_workers": "4"}),
        ("-3", {"n_workers": "-3"}),
        ("4 --cpu 2", {"n_workers": "4", "cpu": "2"}),
        ("--cpu 2 4", {"n_workers": "4", "cpu": "2"}),
        ("--cpu=2", {"cpu": "2"}),
        ("--cpu -1", {"cpu": "-1"}),
        ("--memory 4GiB --scheduler-memory 8", {"memory": "4GiB", "scheduler_memory": "8"}),
        ("--timeout 5 min", {"timeout": "5 min"}),
        ("--timeout '5 min' 4", {"timeout": "5 min", "n_workers": "4"}),
        ("--timeout=90s", {"timeout": "90s"}),
        ("--timeout 90 4", {"timeout": "90", "n_workers": "4"}),
        ("--timeout 90", {"timeout": "90"}),
        ("--timeout 1.5 hours --cpu 2", {"timeout": "1.5 hours", "cpu": "2"}),
        ("--timeout 90 --cpu 2", {"timeout": "90", "cpu": "2"}),
        ("--timeout 90 --timeout 5 min", {"timeout": "5 min"}),
        ("--idle-timeout 1 hour 3", {"idle_timeout": "1 hour", "n_workers": "3"}),
        ("--idle-timeout off", {"idle_timeout": "off"}),
        ("--env A=1 --env B=2", {"env": ["A=1", "B=2"]}),
        ("--env 'A=hello world'", {"env": ["A=hello world"]}),
        ('--env A="x y" --env B=a=b', {"env": ["A=x y", "B=a=b"]}),
        ("--env A=", {"env": ["A="]}),
        ("--env A=-1 --env -x", {"env": ["A=-1", "-x"]}),
        ("--name ''", {"name": ""}),
        ("--name=", {"name": ""}),
        ("--name -x", {"name": "-x"}),
        ("--local --no-tls --background", {"local": True, "no_tls": True, "background": True}),
        ("--adapt 2:10 --wait 1", {"adapt": "2:10", "wait": "1"}),
        ("--name ä --client c", {"name": "ä", "client": "c"}),
        ("2 # two workers, it's enough", {"n_workers": "2"}),
        ("# the defaults", {}),
        ("--env 'A=1 #2' --env B=#3 4 #5", {"env": ["A=1 #2", "B=#3"], "n_workers": "4"}),
        (r"--env A=it\'s\ \#1 # '", {"env": ["A=it's #1"]}),
    ],
)
def test_a_line_is_read_as_people_mean_it(line, expected):
    assert up(line) == expected


@pytest.mark.parametrize("option", [option for option in TYPED if option.metavar and option.name != "n-workers"])
def test_every_option_with_a_value_can_be_typed_in_both_ways(option):
    value = ["A=1"] if option.name == "env" else "A=1"
    assert up(f"--{option.name} A=1") == {option.name.replace("-", "_"): value}
    assert up(f"--{option.name}=A=1") == {option.name.replace("-", "_"): value}


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ("--frobnicate", "--frobnicate"),
        ("--frobnicate 4", "--frobnicate"),
        ("--mem 4", "--mem"),
        ("--cpus=4", "--cpus"),
        ("-n 4", "-n"),
        ("4 5", "5"),
        ("--max-workers 10", "--max-workers"),
        ("--cpu", "--cpu"),
        ("--cpu --name x", "--cpu"),
        ("--name --local", "--name"),
        ("--timeout", "--timeout"),
        ("--local=yes", "local"),
        ("--name 'x", "--name 'x"),
        ("--cpus 2", "unknown option '--cpus'; do you mean --cpu?"),
        ("--mem=4", "unknown option '--mem'; do you mean --memory?"),
        ("2 3", "%dask_up takes one number; not also '3'"),
        ("2 workers", "unknown argument 'workers'"),
        ("--cpu", "--cpu needs a value, such as --cpu 1"),
        ("--adapt --local", "--adapt needs a value, such as --adapt MIN:MAX"),
        ("--env", "--env needs a value, such as --env KEY[=VALUE]"),
        ("--local=yes", "--local takes no value"),
        ("--frobnicate 4", "unknown option '--frobnicate'; %dask_up? lists what there is"),
    ],
)
def test_a_slip_is_one_line_that_names_it(line, named):
    with pytest.raises(UsageError) as error:
        UP.parse(line)
    message = str(error.value)
    assert named in message
    assert "\n" not in message


def flat(text):
    return re.sub(r"\s+", " ", text)


@pytest.mark.parametrize("option", TYPED, ids=lambda option: option.name)
def test_help_shows_every_option_with_its_unit_and_default(option):
    flag = "N " if option.name == "n-workers" else f"--{option.name} "
    entries = flat(UP.help()).partition("positional arguments:")[2]
    assert f"{flag}" in entries
    described = flat(option.help)
    assert described in entries
    entry = described + re.split(r" --[a-z]", entries.partition(described)[2])[0]
    if option.name != "env":  # none is its default
        assert "default" in entry
    if option.default not in (None, {}, False):
        assert f"default: {option.default}" in entry


@pytest.mark.parametrize(
    "unit", ["cores of each worker", "GiB of each worker", "GiB of the scheduler", "GPUs", "5 min"]
)
def test_help_names_the_units(unit):
    assert unit in flat(UP.help())


def test_help_has_an_example():
    assert "Example: %dask_up 4 --cpu 2 --memory 8" in flat(UP.help())


def test_help_of_the_other_magics_shows_their_options():
    assert "--all" in down_parser().help()
    for flag in ("--text", "--json", "--logs"):
        assert flag in status_parser().help()


def test_tab_offers_every_option_and_nothing_else():
    assert UP.flags == sorted(["--help", *(f"--{option.name}" for option in TYPED if option.name != "n-workers")])
    assert down_parser().flags == ["--all", "--help"]
    assert status_parser().flags == ["--help", "--json", "--logs", "--text"]


@pytest.mark.parametrize(
    ("line", "names", "everything"),
    [("", [], False), ("a", ["a"], False), ("a b", ["a", "b"], False), ("--all", [], True), ("-- -a", ["-a"], False)],
)
def test_several_clusters_can_be_taken_down(line, names, everything):
    typed = down_parser().parse(line)
    assert (typed.names, typed.all) == (names, everything)


def test_a_cluster_whose_name_starts_with_a_hyphen_can_be_named_again():
    # %dask_up --name -a is accepted: the same name must then reach the other two magics, or it must be refused.
    from cml_dask_magics.model import readers as values

    try:
        name = values.name("-a")
    except ValueError:
        return
    assert down_parser().parse(name).names == [name]
    assert status_parser().parse(name).name == name


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("", (None, False, False, None)),
        ("etl", ("etl", False, False, None)),
        ("etl --text", ("etl", True, False, None)),
        ("--json", (None, False, True, None)),
        ("etl --logs", ("etl", False, False, "")),
        ("etl --logs jo2eyrnz0fchov1b", ("etl", False, False, "jo2eyrnz0fchov1b")),
        ("--logs=jo2eyrnz0fchov1b", (None, False, False, "jo2eyrnz0fchov1b")),
    ],
)
def test_status_is_asked_for_in_every_form(line, expected):
    typed = status_parser().parse(line)
    assert (typed.name, typed.text, typed.json, typed.logs) == expected


@pytest.mark.parametrize("parser", [down_parser(), status_parser()], ids=lambda parser: parser.name)
def test_an_unknown_option_of_the_other_magics_is_named(parser):
    with pytest.raises(UsageError, match="--frobnicate"):
        parser.parse("--frobnicate")
