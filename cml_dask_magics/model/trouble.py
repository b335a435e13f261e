"""What went wrong with a worker: plain data, and the sentences that tell the user. All functions here are pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from cml_dask_magics.model.words import format_bytes, format_memory, plural

SHOWN_S = 600.0
"""How long a trouble is shown beside the cluster's state, and not said again."""

_ADVICE = "give workers more memory (--memory) or smaller pieces"
_FIRST = 3  # deaths of different workers that are each told


@dataclass(frozen=True)
class GivenUp:
    """Tasks of one kind that Dask gave up, because too many workers had died while they held them.

    Parameters
    ----------
    key : str
        One of them.
    n : int
        How many were given up together.
    total : int
        How many of this kind were given up by now, since it was last quiet.
    workers : tuple of str
        Names of the workers that died over `key`, in their order; a worker that was restarted may be there again.
    over_memory : int
        How many of these deaths were by their nanny, for their memory.
    """

    key: str
    n: int
    total: int
    workers: tuple[str, ...]
    over_memory: int


@dataclass(frozen=True)
class Trouble:
    """A worker that died without having been told to, or has too much in its memory to go on well.

    Parameters
    ----------
    number : int
        Counts the troubles of one scheduler, from 1.
    kind : "died", "meant", "paused", "stuck", "crowded" or "cramped"
        Meant: it died in a restart that was asked for, which is no trouble.
        Stuck: paused, and without tasks or data of Dask's whose end would free memory. Crowded: it spills, and the
        others have little. Cramped: its disk has less room than its session has memory.
    at : float
        Seconds since the epoch.
    worker : str
        Its name.
    memory_bytes, limit_bytes : int
        What its process held when the scheduler last heard of it, and what it may hold; 0 for no limit.
    unmanaged_bytes : int
        How much of `memory_bytes` is no data of Dask's.
    managed_bytes, others_bytes : int
        How much data of Dask's it holds, in memory and on disk; and the others on average.
    nth, nth_of_worker : int
        The how manieth trouble of this kind this is, of all workers and of this one.
    over_memory : bool
        Whether its nanny ended it for its memory.
    run_again : int
        How many tasks have to run again.
    lost : str
        One of the scattered data that only it had.
    n_lost : int
        How many there were.
    given_up : tuple of GivenUp
        Tasks that failed with its death.
    scratch_bytes : int
        How much room a cramped one had on its disk when it started.
    """

    number: int
    kind: Literal["died", "meant", "paused", "stuck", "crowded", "cramped"]
    at: float
    worker: str
    memory_bytes: int
    limit_bytes: int
    unmanaged_bytes: int
    managed_bytes: int
    others_bytes: int
    nth: int
    nth_of_worker: int
    over_memory: bool = False
    run_again: int = 0
    lost: str = ""
    n_lost: int = 0
    given_up: tuple[GivenUp, ...] = ()
    scratch_bytes: int = 0


def is_news(trouble: Trouble) -> bool:
    """Whether this trouble is told with a sentence of its own: of many alike, the first ones, the 10th, the 100th."""
    first = trouble.nth <= _FIRST and trouble.nth_of_worker == 1
    return first or trouble.n_lost > 0 or _passes_power_of_ten(trouble.nth, 1)


def is_news_of(given_up: GivenUp) -> bool:
    """The same for tasks that were given up."""
    return given_up.total == given_up.n or _passes_power_of_ten(given_up.total, given_up.n)


def death_words(
    trouble: Trouble, cluster: str, session: str, ended: str = "", is_back: bool = False, how: str = "died"
) -> str:
    """How a worker died, what that means, and what helps.

    Parameters
    ----------
    trouble : Trouble
    cluster, session : str
        The cluster's name, and the id of the worker's session.
    ended : str
        The platform's word for how the session ended, ``succeeded`` whatever its exit; empty if it has not.
    is_back : bool
        Whether a worker of this name is connected again.
    how : str
        What its nanny printed of how the process ended: ``was killed by signal 9``.
    """
    worker, limit = trouble.worker, trouble.limit_bytes
    # One that ended in another manner than a kill was not ended for its memory.
    is_other_end = not ended and how != "died" and not how.endswith("signal 9")
    was_full = 0 < limit <= 2 * trouble.memory_bytes and not is_other_end
    # What grows fast is ended before its worker has told how much it holds.
    is_killed = ended == "failed" or (not ended and how.endswith("signal 9"))
    is_for_memory = trouble.over_memory or was_full or (is_killed and trouble.run_again > 0)
    as_usual = ", as happens to one that goes over its memory" if is_for_memory and is_killed else ""
    who = "its worker" if ended else "it"
    if ended == "failed":
        what = f"session {session} was ended by the platform (failed){as_usual}"
    elif ended:
        what = f"session {session} ended unexpectedly" + (f" ({ended})" if ended != "succeeded" else "")
    elif trouble.over_memory:
        what = f"worker {worker} went over its {format_bytes(limit)} and was restarted"
    elif is_back:
        what = f"worker {worker} {how} and was restarted{as_usual}"
    else:
        what = f"worker {worker} is gone"
    parts = [what if ended else f"{_nth(trouble, 'death of a worker')}{what}"]
    if trouble.memory_bytes and (ended or not trouble.over_memory):
        parts.append(f"{who} held {format_memory(trouble.memory_bytes, limit, ' of ')} when last heard")
    if trouble.run_again:
        parts.append(f"{plural(trouble.run_again, 'task')} {'runs' if trouble.run_again == 1 else 'run'} again")
    if trouble.n_lost:
        more = f" and {trouble.n_lost - 1:,} more" if trouble.n_lost > 1 else ""
        is_lost = "was scattered to it is" if trouble.n_lost == 1 else "were scattered to it are"
        parts.append(f"{trouble.lost!r}{more} that {is_lost} lost for good")
    helps = _ADVICE if is_for_memory else f"its log may say why (%dask_status {cluster} --logs {session})"
    return f"{'; '.join(parts)}: {helps}"


def given_up_words(given_up: GivenUp, limit_bytes: int, cluster: str, session: str, ended: int = 0) -> str:
    """Which tasks failed because workers died over them, and what helps.

    Parameters
    ----------
    given_up : GivenUp
    limit_bytes : int
        What a worker may hold.
    cluster, session : str
        The cluster's name, and the id of the last worker's session.
    ended : int
        How many of the workers died because the platform ended their session, as it does for memory.
    """
    more = given_up.total - 1
    task = f"task {given_up.key!r}" + (f" and {more:,} more of its kind" if more else "")
    died, different, over = len(given_up.workers), len(set(given_up.workers)), given_up.over_memory
    workers, is_again = plural(different, "worker"), different < died
    they, their, were = ("it", "its", "was") if different == 1 else ("they", "their", "were")
    times = f" {died} times" if is_again else ""
    limit = f" ({format_bytes(limit_bytes)})" if limit_bytes else ""
    if over + ended < died:
        why = f"{workers} died{times} while {they} had it"
        if over:
            why += f", {over} of {'these times' if is_again else 'them'} over {their} memory{limit}"
    elif ended:
        in_all = f",{times} in all," if is_again else ""
        why = f"{workers} went over {their} memory{limit} or {were} ended by the platform{in_all} while {they} ran it"
    else:
        why = f"{workers} went over {their} memory{limit}{times} while {they} ran it"
    log = f"the log of the last one may say why (%dask_status {cluster} --logs {session})"
    helps = _ADVICE if over + ended else log
    return f"{task} failed: {why}: {helps}"


def memory_words(trouble: Trouble) -> str:
    """What it means that a worker is paused, stuck, crowded or cramped, and what helps."""
    holds = format_memory(trouble.memory_bytes, trouble.limit_bytes, " of ")
    worker = f"{_nth(trouble, 'such case')}worker {trouble.worker}"
    if trouble.kind == "crowded":
        has, others = format_bytes(trouble.managed_bytes), format_bytes(trouble.others_bytes)
        return (
            f"{worker} holds most of the data; it has {has} and spills to disk, the others have {others} on average: "
            "spread it with client.rebalance(), and let Dask choose where tasks and scattered data go (no workers=)"
        )
    if trouble.kind == "cramped":
        return (
            f"{worker} has {format_bytes(trouble.scratch_bytes)} of disk for scratch space, less than memory; what it "
            "spills, or keeps for a shuffle, may find no room: Dask's setting temporary-directory names another disk"
        )
    if trouble.kind == "stuck":
        return (
            f"{worker} is stuck; it is paused at {holds} and runs nothing, because earlier tasks left "
            f"{format_bytes(trouble.unmanaged_bytes)} behind, as a leak does, which Dask can neither spill nor free: "
            "restart it (in the panel, or client.restart()); more memory (--memory) makes it last longer"
        )
    return (
        f"{worker} is paused; it holds {holds} and starts no new tasks until it has spilled or freed some: give "
        "workers more memory (--memory) or smaller pieces, or take more workers"
    )


def _passes_power_of_ten(count: int, by: int) -> bool:
    """Whether a count that has grown by so much has come to 10, 100, 1,000 or another of them."""
    return count >= 10 and len(str(count)) > len(str(count - by))


def _nth(trouble: Trouble, noun: str) -> str:
    return f"the {trouble.nth:,}th {noun} by now: " if trouble.nth >= 10 else ""
