"""What people published of their own runs: small quotas, plain links, notices of the runtime, releases of the API."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from support.notebook import Notebook
from workspace import ON_PREMISES, Limits, Workspace

pytestmark = [pytest.mark.dask, pytest.mark.workspace, pytest.mark.xdist_group("platform as it is")]

COMPUTE = "print(client.submit(sum, range(10)).result())"


@pytest.fixture(scope="module")
def on_premises() -> Iterator[Workspace]:
    """A workspace where nobody changed the quota of 2 cores and 8 GiB."""
    with Workspace(
        start_delay_s=0.5,
        user_quota=ON_PREMISES,
        opened_memory=2,
        app_url_scheme="http",
        notices="Loading add-on spark-hadoop ...\n",
        release="newest",
    ) as workspace:
        yield workspace


@pytest.fixture
def small(on_premises: Workspace) -> Iterator[Notebook]:
    """A notebook of 1 core and 2 GiB there, and nothing else of the user's."""
    session = on_premises.open_session()
    notebook = Notebook(on_premises, session, session.kernel(), "")
    notebook.run("%load_ext cml_dask_magics")
    yield notebook
    notebook.kernel.run("%dask_down --all", timeout=120)
    left = on_premises.alive()
    session.close()
    assert not left, "sessions outlived the test"


def test_where_a_notebook_leaves_one_core_a_worker_computes_with_the_scheduler_beside_the_kernel(
    small: Notebook,
) -> None:
    small.run("%dask_up 1 --scheduler-here")
    assert small.run(COMPUTE).strip() == "45"


def test_otherwise_it_is_told_within_the_timeout_what_would_fit(small: Notebook) -> None:
    said = small.fail("%dask_up 1 --timeout 5s")
    assert "within 5 s" in said and "1 session is still pending." in said and "2 cores and 8 GiB" in said
    assert "there would be room for %dask_up 1 --scheduler-here --cpu 1 --memory 2." in said
    assert not small.workspace.alive()


@pytest.mark.long
def test_what_is_told_of_small_sizes_is_true(small: Notebook) -> None:
    small.run("%dask_up 1 --scheduler-cpu 0.5 --cpu 0.5")
    assert small.run(COMPUTE).strip() == "45"


@pytest.mark.long
def test_a_session_that_waits_for_long_is_explained_in_panel_text_and_events(small: Notebook) -> None:
    small.run(
        "import cml_dask_magics, dataclasses\nfrom cml_dask_magics.model.times import Times\n"
        "cml_dask_magics.CMLCluster.times = Times(pending_s=2)\n"
        "%dask_up 1 --background"
    )
    small.workspace.wait_until(lambda: "still pending" in small.run("%dask_status --text"))
    panel = small.kernel.run("cluster").text
    assert "still pending" in panel and "%dask_up 1 --scheduler-here" in panel
    small.workspace.wait_until(lambda: any("still pending" in event["message"] for event in small.status()["events"]))
    # It starts when somebody makes room.
    small.workspace.configure(user_quota=Limits())
    small.workspace.wait_until(lambda: small.status()["state"] == "running")
    assert "still pending" not in small.run("%dask_status --text").partition("Worker")[0]
    small.workspace.configure(user_quota=ON_PREMISES)


def test_links_notices_and_names_are_as_the_platform_has_them(small: Notebook) -> None:
    small.run("%dask_up 1 --scheduler-cpu 0.5 --cpu 0.5 --name etl")
    status = small.status()
    scheduler, (worker,) = status["scheduler"]["session"], status["workers"]
    assert status["dashboard_link"] == f"http://{scheduler}.ml-sim.example.site/status"
    assert small.workspace.session(scheduler).name == "dask-scheduler etl"
    assert small.workspace.session(worker["session"]).name == "dask-worker etl"
    assert small.workspace.output(scheduler).startswith("Loading add-on")
    logs = small.run("%dask_status etl --logs")
    assert "Scheduler at" in logs and "add-on" not in logs, "what the runtime says is no output of ours"


def test_a_keyword_that_the_release_does_not_have_launches_nothing(small: Notebook) -> None:
    small.new_kernel(DASK_CML_DASK_MAGICS__LAUNCH_OPTIONS="{'workers': {'accelerator_label': 3}}")
    before = len(small.workspace.calls("launch"))
    said = small.kernel.run("%dask_up 1 --scheduler-here").stderr
    assert "UsageError: launch-options: launch_workers has no accelerator_label in this release" in said
    assert "accelerator_label_id, " in said and "rdma_network_selections" in said
    assert len(small.workspace.calls("launch")) == before
    small.new_kernel(DASK_CML_DASK_MAGICS__LAUNCH_OPTIONS="{'workers': {'accelerator_label_id': 3}}")
    small.run("%dask_up 1 --scheduler-cpu 0.5 --cpu 0.5")
    asked = {
        call.given["name"]: call.given.get("accelerator_label_id") for call in small.workspace.calls("launch")[-2:]
    }
    assert asked == {"dask-scheduler default": None, "dask-worker default": 3}


@pytest.mark.long
def test_the_end_of_the_notebooks_session_ends_workers_and_scheduler_and_leaves_the_settings(small: Notebook) -> None:
    small.run("%dask_up 1 --scheduler-here --idle-timeout off")
    small.workspace.end_session(small.session.id, "timedout", hard=False)
    small.workspace.wait_until(lambda: not small.workspace.alive())
    small.session = small.workspace.open_session()
    small.new_kernel()
    run = small.kernel.run("%dask_up")
    assert run.error is None and "again with the settings that it had (1 worker;" in run.stderr, run
    assert small.run(COMPUTE).strip() == "45" and len(small.workspace.alive()) == 1
