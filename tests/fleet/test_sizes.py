"""How much memory workers may use, of what their session has, and how many this machine has room for."""

import math
from dataclasses import replace
from pathlib import Path

import pytest

from cml_dask_magics.fleet import sizes
from cml_dask_magics.fleet.in_session import OTHERS_BYTES, room_bytes, worker_limit_bytes
from cml_dask_magics.fleet.opening import claim
from cml_dask_magics.model.settings import as_typed, make_settings
from cml_dask_magics.platforms.api import Platform

GB, GIB = 10**9, 2**30
CML = Platform("cml", api=None)


def machine(memory_gib):
    return Platform("local", api=None, memory_gib=memory_gib)


def settings(**fields):
    return replace(make_settings(state_directory=Path("/nowhere")), **fields)


# What was asked for; what such a session of CML really has; what its worker may use; what is left, all in GB.
TABLE = [
    (0.5, 0.4, 0.20, 0.20),  # half: too little is left for a task that grows quickly, and a note says so
    (1, 0.9, 0.45, 0.45),
    (2, 1.9, 1.45, 0.45),
    (4, 3.9, 3.45, 0.45),
    (8, 7.9, 7.11, 0.79),
    (16, 15.9, 14.83, 1.07),
    (64, 63.9, 62.83, 1.07),
    (128, 127.9, 126.83, 1.07),
]


@pytest.mark.parametrize(("asked", "has", "limit", "left"), TABLE)
def test_a_worker_leaves_room_for_everything_else_in_its_session(asked, has, limit, left):
    found = worker_limit_bytes(has * GB, asked * GIB, 1)
    assert found == pytest.approx(limit * GB, abs=0.01 * GB)
    assert has * GB - found == pytest.approx(left * GB, abs=0.01 * GB)
    assert sizes.expected_limit_bytes(settings(memory_gib=asked), CML) == pytest.approx(found, abs=1)


@pytest.mark.parametrize(("asked", "has"), [row[:2] for row in TABLE[1:]])
def test_a_task_that_grows_quickly_costs_its_worker_and_not_the_session(asked, has):
    # Dask's nanny ends a worker at 95 %.
    whole = 0.95 * worker_limit_bytes(has * GB, asked * GIB, 1) + OTHERS_BYTES + 0.25 * GB
    assert whole < has * GB
    assert has * GB - worker_limit_bytes(has * GB, asked * GIB, 1) >= 0.25 * GIB


@pytest.mark.parametrize("processes", [1, 2, 4, 8])
@pytest.mark.parametrize("has", [1.9, 3.9, 15.9, 119.9])
def test_workers_share_the_memory_of_their_session(has, processes):
    limit = worker_limit_bytes(has * GB, 2 * has * GB, processes)
    left = has * GB - processes * limit
    assert limit > 0 and (
        left >= room_bytes(processes) - processes or left == pytest.approx(has * GB / 2, abs=processes)
    )


def test_a_session_whose_limit_cannot_be_seen_has_no_more_than_was_asked_for():
    assert worker_limit_bytes(256 * GIB, 4 * GIB, 1) == worker_limit_bytes(4 * GIB, 4 * GIB, 1) < 4 * GIB
    assert worker_limit_bytes(math.inf, 4 * GIB, 1) < 4 * GIB


@pytest.mark.parametrize("n", [1, 2, 8, 30])
@pytest.mark.parametrize("processes", [1, 4])
def test_all_workers_together_may_not_use_more_than_this_machine_has(n, processes):
    here = machine(23.5)
    asked = settings(n_workers=n, memory_gib=8, processes=processes)
    fitted, notes = sizes.fitted_together(asked, here, as_typed)
    assert n * processes * sizes.expected_limit_bytes(fitted, here) <= 23.5 * GIB
    assert bool(notes) == (fitted.memory_gib < 8) == (n > 2)
    assert all(note.startswith("--memory 8 for each of") and "23.5 GiB" in note for note in notes)
    assert n <= sizes.most_sessions(fitted, here)
    sizes.check_number(n, fitted, here)


def test_room_is_made_for_as_many_as_adaptive_scaling_may_start():
    fitted, notes = sizes.fitted_together(settings(n_workers=1, adapt=(1, 10)), machine(8), as_typed)
    assert fitted.memory_gib == 0.8 and "10 workers" in notes[0]


def test_more_workers_than_this_machine_can_hold_are_refused_with_what_to_do():
    with pytest.raises(ValueError, match=r"8 GiB have room for 16 workers at most, not for 60 workers; ask for fewer"):
        sizes.fitted_together(settings(n_workers=60), machine(8), as_typed)
    with pytest.raises(ValueError, match=r"no room for 9 workers .* but for 5; .* with a smaller --memory"):
        sizes.check_number(9, settings(memory_gib=2), machine(8))
    sizes.check_number(100, settings(memory_gib=2), CML)
    assert sizes.most_sessions(settings(memory_gib=2), CML) == 100


def test_what_is_too_little_for_dask_is_refused_and_what_is_hardly_enough_is_told():
    def told(platform=CML, **fields):
        return sizes.check_worker_memory(settings(**fields), platform, as_typed)

    assert not told() and not told(memory_gib=1) and not told(memory_gib=2, processes=4)
    (note,) = told(memory_gib=0.5)
    assert note.startswith("with --memory 0.5 a task") and "with 1 or more" in note
    assert "with 1.5 or more" in told(memory_gib=1, processes=2)[0]
    with pytest.raises(
        ValueError, match=r"--memory 1 leaves each of 8 workers \(--processes\) 0.052 GiB.* 3.5 or more"
    ):
        told(memory_gib=1, processes=8)
    # Nobody ends sessions of this machine for their memory.
    assert not told(machine(16), memory_gib=0.5)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"n_workers": 2, "gpu": 2}, True),
        ({"n_workers": 1, "adapt": "1:3", "gpu": 1}, True),
        ({"n_workers": 1, "gpu": 2}, False),
        ({"n_workers": 2}, False),
    ],
)
def test_sessions_that_share_the_gpus_of_this_machine_are_a_note(tmp_path, fields, said):
    cluster = claim(make_settings(state_directory=tmp_path / "state", local=True, memory=1, **fields))
    assert any("share its GPUs" in note for note in cluster.notes) is said
    cluster.end()
