"""Code means on workers and scheduler what it means in the notebook, also where the notebook lies in a subfolder."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.notebook import Notebook
from workspace import Workspace

# They look at one cluster, and change nothing: it starts once.
pytestmark = [pytest.mark.dask, pytest.mark.workspace, pytest.mark.xdist_group("folders")]

# With all that a path may have in it and a careless command line stumbles over.
FOLDER = "analysis/näme with space & $quote'"

YAML = """\
distributed:
  scheduler:
    allowed-failures: 7
my-project:
  greeting: "grüß {gott}, $HOME and 'all'"
"""

# Runs a function everywhere, and is content only if it returns the same everywhere.
EVERYWHERE = """
def everywhere(function):
    here = function()
    there = client.run(function)
    assert len(there) == 2
    for place, value in {**there, "scheduler": client.run_on_scheduler(function)}.items():
        assert value == here, (place, value, here)
    return here
"""


@pytest.fixture(scope="module")
def folder(workspace: Workspace) -> Iterator[Path]:
    """A subfolder of the shared home, where the notebook's kernel works."""
    folder = workspace.home / FOLDER
    folder.mkdir(parents=True)
    (folder / "beside.py").write_text("def where():\n    return __file__, 'beside'\n")
    (folder / "lib").mkdir()
    (folder / "lib" / "further.py").write_text("def where():\n    return __file__, 'further'\n")
    (folder / "yaml").mkdir()
    (folder / "yaml" / "mine.yaml").write_text(YAML)
    yield folder
    shutil.rmtree(workspace.home / "analysis")


@pytest.fixture(scope="module")
def notebook(workspace: Workspace, folder: Path) -> Iterator[Notebook]:
    """A notebook in that folder, with a path and a configuration of its own, and its cluster of two workers."""
    session = workspace.open_session()
    notebook = Notebook(workspace, session, session.kernel(), workspace.launch_foreign(session))
    notebook.new_kernel(folder=folder, DASK_CONFIG=str(folder / "yaml"))
    notebook.run(f"import sys\nsys.path.insert(0, {str(folder / 'lib')!r})")
    notebook.run("import dask\ndask.config.set({'distributed.worker.memory.target': 0.55, 'array.chunk-size': '7MiB'})")
    notebook.run("from pathlib import Path\nPath('input.txt').write_text('from the kernel')")
    notebook.run("%dask_up 2")
    notebook.run(EVERYWHERE)
    yield notebook
    notebook.run("%dask_down --all")
    left, bystanders = workspace.alive(), workspace.alive(foreign=True)
    session.close()
    assert not left, "sessions outlived the tests"
    assert notebook.bystander in bystanders, "a session that is not ours was stopped"


def test_modules_beside_the_notebook_and_on_its_path_import_everywhere(notebook: Notebook, folder: Path) -> None:
    notebook.run("import beside, further")
    # By name, as a function of a module travels: whoever receives it must import the module.
    for module, file in ("beside", folder / "beside.py"), ("further", folder / "lib" / "further.py"):
        found = eval(notebook.run(f"print(client.submit({module}.where).result())"))
        assert found == (str(file), module)
        assert eval(notebook.run(f"print(everywhere({module}.where))")) == found
    # And where the import stands in a function of the notebook's own.
    notebook.run("def inside():\n    import beside, further\n    return beside.where(), further.where()\n")
    notebook.run("assert client.submit(inside).result() == everywhere(inside) == inside()")


def test_a_relative_path_means_the_same_file_everywhere(notebook: Notebook, folder: Path) -> None:
    assert eval(notebook.run("import os; print([everywhere(os.getcwd)])")) == [str(folder)]
    notebook.run("assert everywhere(lambda: Path('input.txt').read_text()) == 'from the kernel'")
    notebook.run("client.submit(lambda: Path('output.txt').write_text('from a worker')).result()")
    assert (folder / "output.txt").read_text() == "from a worker"


def test_what_the_kernel_configured_holds_everywhere(notebook: Notebook, folder: Path) -> None:
    said = {
        "my-project.greeting": "grüß {gott}, $HOME and 'all'",
        "distributed.scheduler.allowed-failures": 7,
        "distributed.worker.memory.target": 0.55,
        "array.chunk-size": "7MiB",
    }
    read = f"everywhere(lambda: {{key: dask.config.get(key) for key in {list(said)!r}}})"
    assert eval(notebook.run(f"print({read})")) == said
    # Not only can it be read: Dask goes by it.
    notebook.run("assert client.run_on_scheduler(lambda dask_scheduler: dask_scheduler.allowed_failures) == 7")
    targets = "client.run(lambda dask_worker: dask_worker.memory_manager.memory_target_fraction)"
    assert eval(notebook.run(f"print(sorted({targets}.values()))")) == [0.55, 0.55]
