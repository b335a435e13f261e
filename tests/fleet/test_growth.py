"""What a cluster costs as it grows: requests to the platform, writes and bytes. Times are for `make bench`."""

from __future__ import annotations

import pytest
from support.crowd import Cost, costs

SIZES = (4, 400, 2000)


@pytest.fixture(scope="module")
def by_size(tmp_path_factory: pytest.TempPathFactory) -> dict[int, dict[str, Cost]]:
    return {n: costs(tmp_path_factory.mktemp(f"of-{n}") / "state", n) for n in SIZES}


def test_requests_and_writes_are_as_many_for_any_number_of_sessions(by_size: dict[int, dict[str, Cost]]) -> None:
    few, *others = by_size.values()
    for many in others:
        for step in few:
            # Until a listing shows the end of what was stopped, it is asked for again.
            again = 2 if step in ("halve", "end") else 0
            assert many[step].requests <= few[step].requests + again, step
            assert many[step].writes == few[step].writes, step
    assert sum(cost.requests for cost in few.values()) <= 25
    assert sum(cost.writes for cost in few.values()) <= 20


def test_bytes_grow_no_faster_than_the_number_of_sessions(by_size: dict[int, dict[str, Cost]]) -> None:
    for fewer, more in ((4, 400), (400, 2000)):
        for step, cost in by_size[more].items():
            # Ids and ports get longer.
            assert cost.written_bytes <= by_size[fewer][step].written_bytes * more / fewer * 1.02, step
    assert by_size[2000]["lose one"].written_bytes < 500 * 2000


@pytest.mark.parametrize("n", SIZES)
def test_the_news_of_one_session_does_not_cost_what_the_others_would(
    by_size: dict[int, dict[str, Cost]], n: int
) -> None:
    found = by_size[n]
    assert found["launch"].encoded == n + 1
    assert found["lose one"].encoded == 0
    # It is on record when it is launched, when it runs and when its worker has come.
    assert found["replace it"].encoded + found["its news"].encoded <= 3
    assert found["nothing new"].encoded <= n + 1
