"""A cluster without TLS: what it lets others do is said before, and for as long as it runs."""

from __future__ import annotations

from pathlib import Path

import dask
import pytest
from IPython.core.interactiveshell import InteractiveShell
from support.notebook import Notebook
from support.state_folder import kill
from support.statuses import cluster as status

from cml_dask_magics import CMLCluster
from cml_dask_magics.display.html.pieces import to_html
from cml_dask_magics.display.text import status_line, to_text
from cml_dask_magics.magics.kernel_clusters import kernel_clusters
from cml_dask_magics.magics.notice import notice

pytestmark = pytest.mark.dask

HERE = "any user of this machine can run code as you, and read your other clusters' keys"
THERE = "anybody on the network can run code as you, and read your other clusters' keys"


def in_one_line(text: str) -> str:
    return " ".join(text.split())


def test_every_view_of_it_says_so_for_as_long_as_it_runs() -> None:
    without, local = status(tls=False, backend="cml"), status(tls=False, backend="local")
    assert THERE in in_one_line(to_text([without])) and HERE in in_one_line(to_text([local]))
    assert THERE.replace("'", "&#x27;") in to_html(without)
    assert "without TLS" in status_line(without)
    assert "TLS" not in to_text([status()]) + to_html(status()) + status_line(status())


def test_here_it_works_by_configuration_too_with_the_warning(state: Path) -> None:
    with dask.config.set({"cml-dask-magics.no-tls": True}), pytest.warns(UserWarning, match=HERE):
        cluster = CMLCluster(n_workers=1, local=True, name="plain")
    with cluster, cluster.get_client() as client:
        assert client.submit(sum, [1, 2]).result() == 3
        assert cluster.scheduler_address.startswith("tcp://")
        assert cluster.status().tls is False
        assert f"plain runs without TLS: {HERE}" in notice()
        assert any(HERE in event.message for event in cluster.status().events)


@pytest.mark.long
def test_a_lost_one_is_started_anew_with_tls_unless_it_is_typed_again(
    shell: InteractiveShell, state: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shell.run_line_magic("dask_up", "1 --local --no-tls")
    assert HERE in capsys.readouterr().err
    cluster = shell.user_ns["cluster"]
    assert cluster.scheduler_address.startswith("tcp://")
    kill(state, cluster.status().scheduler.session)
    while cluster.status().state != "lost":
        pass
    shell.run_line_magic("dask_up", "")
    assert "and with TLS" in capsys.readouterr().err
    assert shell.user_ns["cluster"].scheduler_address.startswith("tls://")
    kernel_clusters.down(state, "default")


@pytest.mark.workspace
def test_inside_cml_it_has_to_be_typed(notebook: Notebook) -> None:
    notebook.new_kernel(DASK_CML_DASK_MAGICS__NO_TLS="true")
    run = notebook.kernel.run("%dask_up 1")
    assert "UsageError: cml-dask-magics.no-tls in Dask's configuration holds on this machine alone" in run.stderr
    assert "--no-tls" in run.stderr
    assert not notebook.workspace.alive()
    notebook.run("%dask_status")  # nothing else minds

    run = notebook.kernel.run("%dask_up 1 --no-tls")
    assert run.error is None and THERE in run.stderr
    shown = notebook.status()
    assert shown["tls"] is False and shown["scheduler"]["address"].startswith("tcp://")
    assert THERE in in_one_line(notebook.run("%dask_status --text"))
    assert f"default runs without TLS: {THERE}" in notebook.new_kernel()
    assert notebook.run("%dask_up\nprint(client.submit(sum, [1, 2]).result())").strip() == "3"
