"""What is said of a worker that died or is paused: what happened, with sizes, and what helps."""

from __future__ import annotations

from dataclasses import replace

import pytest

from cml_dask_magics.model.trouble import (
    GivenUp,
    Trouble,
    death_words,
    given_up_words,
    is_news,
    is_news_of,
    memory_words,
)

GIB = 2**30
LIMIT = round(1.6 * GIB)
DIED = Trouble(1, "died", 0.0, "ab12", round(1.5 * GIB), LIMIT, 0, 0, 0, nth=1, nth_of_worker=1, run_again=3)
OVER = replace(DIED, over_memory=True)
LITTLE = replace(DIED, memory_bytes=GIB // 10)
FAILED = GivenUp("grow-12", 1, 1, ("ab12", "cd34", "ef56", "gh78"), over_memory=4)
TWICE = replace(FAILED, workers=("ab12", "cd34", "ab12", "cd34"))
ALONE = replace(FAILED, workers=("ab12",) * 4)
HELPS = "give workers more memory (--memory) or smaller pieces"
ENDED = "session ab12 was ended by the platform (failed)"


@pytest.mark.parametrize(
    ("trouble", "ended", "is_back", "words"),
    [
        (OVER, "", False, f"worker ab12 went over its 1.6 GiB and was restarted; 3 tasks run again: {HELPS}"),
        (replace(OVER, run_again=0), "", True, f"worker ab12 went over its 1.6 GiB and was restarted: {HELPS}"),
        (
            DIED,
            "failed",
            False,
            f"{ENDED}, as happens to one that goes over its memory; its worker held 1.5 of 1.6 GiB when last heard; "
            f"3 tasks run again: {HELPS}",
        ),
        (
            replace(LITTLE, run_again=1),  # tasks may grow faster than their worker tells
            "failed",
            False,
            f"{ENDED}, as happens to one that goes over its memory; its worker held 102 MiB of 1.6 GiB when last "
            f"heard; 1 task runs again: {HELPS}",
        ),
        (
            replace(LITTLE, run_again=0),  # it did nothing: not for its memory
            "failed",
            False,
            f"{ENDED}; its worker held 102 MiB of 1.6 GiB when last heard: its log may say why (%dask_status x --logs "
            "ab12)",
        ),
        (
            LITTLE,
            "succeeded",
            False,
            "session ab12 ended unexpectedly; its worker held 102 MiB of 1.6 GiB when last "
            "heard; 3 tasks run again: its log may say why (%dask_status x --logs ab12)",
        ),
        (
            LITTLE,
            "timedout",
            False,
            "session ab12 ended unexpectedly (timedout); its worker held 102 MiB of 1.6 GiB when last "
            "heard; 3 tasks run again: its log may say why (%dask_status x --logs ab12)",
        ),
        (
            DIED,
            "",
            True,
            "worker ab12 died and was restarted; it held 1.5 of 1.6 GiB when last heard; 3 tasks run again: " + HELPS,
        ),
        (
            replace(DIED, memory_bytes=0, limit_bytes=0, run_again=0),
            "",
            False,
            "worker ab12 is gone: its log may say why (%dask_status x --logs ab12)",
        ),
        (
            replace(OVER, run_again=0, lost="table", n_lost=1),
            "",
            False,
            f"worker ab12 went over its 1.6 GiB and was restarted; 'table' that was scattered to it is lost for good: "
            f"{HELPS}",
        ),
        (
            replace(OVER, run_again=0, lost="a", n_lost=3),
            "",
            False,
            "worker ab12 went over its 1.6 GiB and was restarted; 'a' and 2 more that were scattered to it are lost "
            f"for good: {HELPS}",
        ),
        (
            replace(OVER, nth=10, run_again=0),
            "",
            False,
            f"the 10th death of a worker by now: worker ab12 went over its 1.6 GiB and was restarted: {HELPS}",
        ),
    ],
)
def test_a_death_is_said_with_what_is_known_of_it(trouble: Trouble, ended: str, is_back: bool, words: str) -> None:
    assert death_words(trouble, "x", "ab12", ended, is_back) == words


@pytest.mark.parametrize(
    ("given_up", "ended", "words"),
    [
        (FAILED, 0, f"task 'grow-12' failed: 4 workers went over their memory (1.6 GiB) while they ran it: {HELPS}"),
        (
            replace(FAILED, n=12, total=12),
            0,
            "task 'grow-12' and 11 more of its kind failed: 4 workers went over their memory (1.6 GiB) while they ran "
            f"it: {HELPS}",
        ),
        (
            replace(FAILED, over_memory=1),
            3,
            "task 'grow-12' failed: 4 workers went over their memory (1.6 GiB) or were ended by the platform while "
            f"they ran it: {HELPS}",
        ),
        (
            replace(FAILED, over_memory=2),
            0,
            "task 'grow-12' failed: 4 workers died while they had it, 2 of them over their memory (1.6 GiB): " + HELPS,
        ),
        (
            replace(FAILED, over_memory=0),
            0,
            "task 'grow-12' failed: 4 workers died while they had it: the log of the last one may say why "
            "(%dask_status x --logs cd34)",
        ),
        (
            TWICE,
            0,
            f"task 'grow-12' failed: 2 workers went over their memory (1.6 GiB) 4 times while they ran it: {HELPS}",
        ),
        (ALONE, 0, f"task 'grow-12' failed: 1 worker went over its memory (1.6 GiB) 4 times while it ran it: {HELPS}"),
        (
            replace(ALONE, over_memory=3),
            1,
            "task 'grow-12' failed: 1 worker went over its memory (1.6 GiB) or was ended by the platform, 4 times in "
            f"all, while it ran it: {HELPS}",
        ),
        (
            replace(TWICE, over_memory=2),
            0,
            "task 'grow-12' failed: 2 workers died 4 times while they had it, 2 of these times over their memory (1.6 "
            f"GiB): {HELPS}",
        ),
        (
            replace(ALONE, over_memory=0),
            0,
            "task 'grow-12' failed: 1 worker died 4 times while it had it: the log of the last one may say why "
            "(%dask_status x --logs cd34)",
        ),
        (
            replace(FAILED, workers=("ab12",), over_memory=1),
            0,
            f"task 'grow-12' failed: 1 worker went over its memory (1.6 GiB) while it ran it: {HELPS}",
        ),
    ],
)
def test_a_task_that_failed_is_said_with_the_deaths_over_it(given_up: GivenUp, ended: int, words: str) -> None:
    assert given_up_words(given_up, LIMIT, "x", "cd34", ended) == words


def test_a_paused_worker_is_said_with_what_it_waits_for() -> None:
    paused = replace(DIED, kind="paused", memory_bytes=round(1.3 * GIB), unmanaged_bytes=round(1.2 * GIB))
    assert memory_words(paused) == (
        "worker ab12 is paused; it holds 1.3 of 1.6 GiB and starts no new tasks until it has spilled or freed some: "
        "give workers more memory (--memory) or smaller pieces, or take more workers"
    )
    crowded = replace(paused, kind="crowded", managed_bytes=round(2.4 * GIB), others_bytes=GIB // 10)
    assert memory_words(crowded) == (
        "worker ab12 holds most of the data; it has 2.4 GiB and spills to disk, the others have 102 MiB on average: "
        "spread it with client.rebalance(), and let Dask choose where tasks and scattered data go (no workers=)"
    )
    assert memory_words(replace(paused, kind="cramped", scratch_bytes=GIB)) == (
        "worker ab12 has 1 GiB of disk for scratch space, less than memory; what it spills, or keeps for a shuffle, "
        "may find no room: Dask's setting temporary-directory names another disk"
    )
    assert memory_words(replace(paused, kind="stuck")) == (
        "worker ab12 is stuck; it is paused at 1.3 of 1.6 GiB and runs nothing, because earlier tasks left 1.2 GiB "
        "behind, as a leak does, which Dask can neither spill nor free: restart it (in the panel, or "
        "client.restart()); more memory (--memory) makes it last longer"
    )


def test_of_a_hundred_deaths_a_few_are_told() -> None:
    of_one = [replace(DIED, nth=n, nth_of_worker=n) for n in range(1, 101)]
    of_many = [replace(DIED, nth=n) for n in range(1, 101)]
    assert [trouble.nth for trouble in of_one if is_news(trouble)] == [1, 10, 100]
    assert [trouble.nth for trouble in of_many if is_news(trouble)] == [1, 2, 3, 10, 100]
    assert is_news(replace(DIED, nth=7, nth_of_worker=7, lost="table", n_lost=1))


def test_of_many_tasks_that_fail_the_first_ones_and_each_power_of_ten_are_told() -> None:
    by_fours = [replace(FAILED, n=4, total=total) for total in range(4, 121, 4)]
    assert [given_up.total for given_up in by_fours if is_news_of(given_up)] == [4, 12, 100]
