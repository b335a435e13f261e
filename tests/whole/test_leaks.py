"""What stays behind in a kernel after many clusters: nothing."""

from __future__ import annotations

import json

import pytest
from support.notebook import Notebook

pytestmark = [pytest.mark.dask, pytest.mark.long, pytest.mark.workspace]

ROUND = """
%dask_up 1
%dask_status
cluster.scale(2)
%dask_down
"""
COUNT = """
import gc, json, os, threading
import comm, ipywidgets
def link(descriptor):
    try:
        return os.readlink(f"/proc/self/fd/{descriptor}")
    except OSError:  # the listing's own
        return ""
gc.collect()
print(json.dumps({
    # Not that which waits for this very cell to take long.
    "threads": sorted(each.name for each in threading.enumerate() if each.name != "cml-dask-magics busy"),
    # Not IPython's history, which comes and goes.
    "files": sum(name.startswith(("socket:", "pipe:")) for name in map(link, os.listdir("/proc/self/fd"))),
    "comms": len(comm.get_comm_manager().comms),
}))
"""


def test_round_after_round_leaves_no_threads_comms_or_open_files(notebook: Notebook) -> None:
    def after_a_round() -> dict[str, object]:
        notebook.run(ROUND)
        return dict(json.loads(notebook.run("client = cluster = None\n" + COUNT)))

    first = after_a_round()
    for _ in range(3):
        last = after_a_round()
    assert last == first
