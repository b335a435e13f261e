"""The platform's calls with some sessions beside the kernel: each reaches the right place, whatever is answered."""

from unittest import mock

import pytest

from cml_dask_magics.platforms.api import Platform, PlatformError
from cml_dask_magics.platforms.here import HERE, SomeHere
from cml_dask_magics.platforms.pool import SessionPool

SESSION = "jo2eyrnz0fchov1b"


@pytest.fixture
def api():
    """The platform's own calls."""
    return mock.Mock(
        launch_workers=mock.Mock(return_value=[{"id": "there1"}]),
        list_workers=mock.Mock(return_value=[{"id": "there1", "status": "running"}]),
        stop_workers=mock.Mock(side_effect=lambda *ids: [mock.Mock(status_code=204)] * len(ids)),
    )


@pytest.fixture
def some_here(api, tmp_path):
    """Calls of one CML session, beside whose kernel nothing is left behind."""
    calls = SomeHere(api, tmp_path, SESSION)
    yield calls
    api.list_workers.return_value = []
    for session in calls.list_workers():
        calls.stop_workers(session["id"])


def launch_here(calls, code="!sleep 60"):
    (session,) = calls.launch_workers(1, cpu=1, memory=2, nvidia_gpu=0, code=code, env={HERE: "1"}, name="dask x")
    return session["id"]


def test_only_what_is_meant_to_be_here_is(some_here, api):
    here = launch_here(some_here)
    api.launch_workers.assert_not_called()
    some_here.launch_workers(2, cpu=1, memory=2, code="!true", env={}, accelerator_label_id=3)
    api.launch_workers.assert_called_once_with(2, cpu=1, memory=2, code="!true", env={}, accelerator_label_id=3)
    assert {session["id"] for session in some_here.list_workers()} == {here, "there1"}


def test_each_is_stopped_where_it_is_and_the_platform_never_without_ids(some_here, api):
    here = launch_here(some_here)
    assert [answer.status_code for answer in some_here.stop_workers(here)] == [204]
    api.stop_workers.assert_not_called()
    other = launch_here(some_here)
    some_here.stop_workers("there1", other)
    api.stop_workers.assert_called_once_with("there1")
    assert {each["id"]: each["status"] for each in some_here.list_workers()}[other] == "stopped"


def test_what_is_beside_the_kernel_of_another_session_is_left_to_end_by_itself(some_here, api, tmp_path):
    here = launch_here(some_here)
    elsewhere = SomeHere(api, tmp_path, "another0session0")
    assert [session["id"] for session in elsewhere.list_workers()] == ["there1"]
    assert [answer.status_code for answer in elsewhere.stop_workers(here)] == [204]
    api.stop_workers.assert_not_called()
    assert {each["id"]: each["status"] for each in some_here.list_workers()}[here] == "running"


@pytest.mark.parametrize("answer", ["<html>502 Bad Gateway</html>", None, {"message": "down"}])
def test_a_listing_that_is_none_is_no_proof_of_any_end(some_here, api, answer):
    launch_here(some_here)
    api.list_workers.return_value = answer
    with pytest.raises(PlatformError, match="instead of a list"):
        SessionPool(Platform("cml", some_here, session=SESSION)).listing()


def test_a_platform_that_answers_nothing_to_a_stop_is_taken_at_its_word_as_otherwise(some_here, api):
    api.stop_workers.side_effect = None
    api.stop_workers.return_value = None
    assert [answer.status_code for answer in some_here.stop_workers("there1", "there2")] == [204, 204]


def test_it_is_found_again_after_a_restart_of_the_kernel(some_here, api, tmp_path):
    here = launch_here(some_here)
    after = SomeHere(api, tmp_path, SESSION)
    assert here in {session["id"] for session in after.list_workers()}
    after.stop_workers(here)
    assert {each["id"]: each["status"] for each in after.list_workers()}[here] == "stopped"
