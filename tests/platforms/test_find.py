"""Which platform a kernel launches its sessions on."""

import sys
import types
from unittest import mock

import pytest

from cml_dask_magics.platforms.find import check_dashboard_port, check_launch_options, find_platform
from cml_dask_magics.platforms.local import LocalSessions


@pytest.fixture(autouse=True)
def outside(monkeypatch):
    """A machine without CML, whatever runs these tests."""
    for variable in ("CDSW_ENGINE_ID", "CDSW_READONLY_PORT", "CDSW_DOMAIN"):
        monkeypatch.delenv(variable, raising=False)
    for module in ("cml", "cml.workers_v1", "cdsw"):
        monkeypatch.setitem(sys.modules, module, None)  # importing it fails


@pytest.fixture
def install(monkeypatch):
    def as_module(name):
        module = types.ModuleType(name)
        for call in ("launch_workers", "list_workers", "await_workers", "stop_workers"):
            setattr(module, call, mock.Mock(return_value=[]))
        if "." in name:
            package = types.ModuleType(name.partition(".")[0])
            package.__path__ = []
            monkeypatch.setitem(sys.modules, package.__name__, package)
        monkeypatch.setitem(sys.modules, name, module)
        return module

    return as_module


def inside(monkeypatch):
    monkeypatch.setenv("CDSW_ENGINE_ID", "jo2eyrnz0fchov1b")
    monkeypatch.setenv("CDSW_DOMAIN", "ml-xxxx.example.site")


def test_the_newer_module_is_used_where_both_are(monkeypatch, install, tmp_path):
    inside(monkeypatch)
    install("cdsw")
    newer = install("cml.workers_v1")
    platform = find_platform(tmp_path)
    assert (platform.backend, platform.scheduler_port) == ("cml", 8786)
    platform.api.stop_workers("ab12")
    newer.stop_workers.assert_called_once_with("ab12")
    assert (platform.session, platform.domain) == ("jo2eyrnz0fchov1b", "ml-xxxx.example.site")


def test_the_older_module_will_do(monkeypatch, install, tmp_path):
    inside(monkeypatch)
    older = install("cdsw")
    platform = find_platform(tmp_path)
    assert platform.backend == "cdsw"
    platform.api.launch_workers(1, cpu=1, memory=2, code="!true", env={})
    older.launch_workers.assert_called_once_with(1, cpu=1, memory=2, code="!true", env={})


def test_where_there_is_no_cml_it_is_this_machine(tmp_path):
    platform = find_platform(tmp_path)
    assert platform.backend == "local"
    assert isinstance(platform.api, LocalSessions)
    assert platform.scheduler_port == 0
    assert platform.session == ""
    assert list(tmp_path.iterdir()) == []


def test_a_session_without_the_api_is_told_and_not_quietly_overloaded(monkeypatch, tmp_path):
    inside(monkeypatch)
    with pytest.raises(RuntimeError) as error:
        find_platform(tmp_path)
    message = str(error.value)
    for words in ("jo2eyrnz0fchov1b", "cml.workers_v1", "cdsw", "--local"):
        assert words in message
    assert "\n" not in message


def test_local_chooses_this_machine_everywhere(monkeypatch, install, tmp_path):
    inside(monkeypatch)
    install("cml.workers_v1")
    assert find_platform(tmp_path, local=True).backend == "local"


def test_a_module_that_breaks_when_imported_is_told_as_one_that_is_missing(monkeypatch, tmp_path):
    inside(monkeypatch)
    (tmp_path / "cdsw.py").write_text("import os\nos.environ['CDSW_NO_SUCH_VARIABLE']\n")
    monkeypatch.delitem(sys.modules, "cdsw")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(RuntimeError, match="CDSW_NO_SUCH_VARIABLE"):
        find_platform(tmp_path)


def test_a_package_that_happens_to_be_called_alike_is_no_platform(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "cdsw", types.ModuleType("cdsw"))
    assert find_platform(tmp_path).backend == "local"


@pytest.mark.parametrize("value", [None, "", "http", "0", "65536", "-1", "80.5", " 8090", "9" * 5000])
def test_a_dashboard_without_a_port_is_told_before_anything_is_launched(monkeypatch, install, tmp_path, value):
    inside(monkeypatch)
    install("cml.workers_v1")
    if value is not None:
        monkeypatch.setenv("CDSW_READONLY_PORT", value)
    with pytest.raises(ValueError) as error:
        check_dashboard_port(find_platform(tmp_path))
    message = str(error.value)
    assert "CDSW_READONLY_PORT" in message
    assert "--dashboard-port" in message
    assert "\n" not in message
    if value:
        assert value[:20] in message


def test_a_proper_port_is_taken_and_a_machine_of_ones_own_needs_none(monkeypatch, install, tmp_path):
    check_dashboard_port(find_platform(tmp_path))
    inside(monkeypatch)
    install("cml.workers_v1")
    monkeypatch.setenv("CDSW_READONLY_PORT", "8090")
    check_dashboard_port(find_platform(tmp_path))


def oldest(n, cpu, memory, nvidia_gpu=0, kernel="python3", script="", code="", env={}):  # noqa: B006 - as published
    """The published client's signature."""


def newer(n, cpu, memory, nvidia_gpu=0, kernel="python3", script="", code="", env={}, name="", label_id=None):  # noqa: B006
    """A later one."""


@pytest.mark.parametrize(
    ("release", "options", "words"),
    [
        (newer, {"workers": {"label_id": 2}, "scheduler": {}}, None),
        (newer, {"workers": {}, "scheduler": {"label": 2}}, "has no label in this release.* it takes kernel, label_id"),
        (oldest, {"workers": {"label_id": 2}, "scheduler": {}}, "has no label_id .* it takes kernel"),
    ],
)
def test_a_keyword_that_the_release_does_not_have_is_told_with_those_that_it_has(
    monkeypatch, install, tmp_path, release, options, words
):
    inside(monkeypatch)
    install("cml.workers_v1").launch_workers = release
    platform = find_platform(tmp_path)
    if words is None:
        check_launch_options(platform, options)
        return
    with pytest.raises(ValueError, match=words):
        check_launch_options(platform, options)


def test_on_this_machine_the_platforms_keywords_are_of_no_account(tmp_path):
    check_launch_options(find_platform(tmp_path), {"scheduler": {}, "workers": {"accelerator_label_id": 2}})
