"""The error message when a cluster does not start: for each session its state, the reason, and its last output."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator

from cml_dask_magics.fleet.fleet import Fleet
from cml_dask_magics.fleet.pending import other_clusters, why_pending
from cml_dask_magics.model.record import Role
from cml_dask_magics.model.words import cut

_SHOWN_SESSIONS = 10
_SHOWN_LINES = 8
_READ_LINES = 500
_LINE_LENGTH = 500
_ERROR = re.compile(r"(\w+\.)*\w*(Error|Exception)\b.*:")


class StartFailedError(RuntimeError):
    """A cluster did not start."""


def describe_failure(
    fleet: Fleet,
    connected: Collection[str],
    reason: str,
    added: Collection[str] | None = None,
    timed_out: bool = False,
) -> str:
    """The error message, for after everything has been stopped.

    Parameters
    ----------
    fleet : Fleet
        The sessions, before they are stopped.
    connected : collection of str
        Ids of the sessions whose Dask process was connected.
    reason : str
        Why the start failed, in a few words.
    added : collection of str, optional
        When a running cluster was to grow: the sessions of this call.
    timed_out : bool
        Whether nothing else failed, so that it matters why sessions may still be pending.
    """
    sessions = list(_session_lines(fleet, connected, added))
    failed = "did not start" if added is None else "could not be scaled"
    why = why_pending(fleet, after_s=0) if timed_out else ""
    more = [f"  and {len(sessions) - _SHOWN_SESSIONS} more sessions"] if len(sessions) > _SHOWN_SESSIONS else []
    return "\n".join(
        [
            f"cluster {fleet.record.name!r} {failed}: {reason}. "
            "Every session that this call launched has been stopped.",
            *sessions[:_SHOWN_SESSIONS],
            *more,
            *([f"  {why}{other_clusters(fleet)}"] if why else []),
            f"  All that they printed: {fleet.folder / 'logs'}",
        ]
    )


def _session_lines(fleet: Fleet, connected: Collection[str], added: Collection[str] | None) -> Iterator[str]:
    for role, reason in fleet.launches.refusals if added is None else ():
        yield f"  a session for a {role} was refused: {reason}"
    for session in fleet.lost.values():
        if added is None or session.id in added:
            status = fleet.ended_as(session.id)
            ended = f"ended ({status})" if status not in ("", "succeeded") else "ended"  # it says that of any exit
            came = session.connected_at is not None or session.role == "scheduler"
            before = "before the cluster was ready" if came else "before its worker connected"
            yield f"  session {session.id} ({session.role}) {ended} {before}{_printed(fleet, session.id)}"
    words = {"pending": "was not started by the platform yet", "running": "was ready"}
    scheduler = fleet.record.scheduler
    address = fleet.scheduler_address()
    if scheduler is not None and connected:
        connected = {*connected, scheduler.id}
    sessions = [session for session in fleet.record.sessions if added is None or session.id in added]
    for session, state in zip(sessions, fleet.states(sessions, connected), strict=True):
        printed = _printed(fleet, session.id) if state != "running" else ""
        if state == "starting":
            words["starting"] = _starting_words(session.role, address)
        yield f"  session {session.id} ({session.role}) {words.get(state, state)}{printed}"


def _starting_words(role: Role, address: str | None) -> str:
    """What is said of a session that runs and is not connected, given the scheduler's address once there is one."""
    if role == "worker":
        return "runs, but its worker did not connect"
    return f"is up at {address}" if address is not None else "runs, but its scheduler did not come up"


def _printed(fleet: Fleet, session: str) -> str:
    lines = fleet.tail(session, _READ_LINES)
    if not lines:
        return "; it printed nothing"
    lines = [cut(line, _LINE_LENGTH) for line in lines]
    last = lines[-_SHOWN_LINES:]
    # Later errors are often consequences of the first one, which may be far above the last lines.
    first_error = next((line.strip() for line in lines if _ERROR.match(line)), None)
    cause = f"; its first error was {first_error}" if first_error and first_error not in map(str.strip, last) else ""
    return f"{cause}; the last lines that it printed:\n" + "\n".join(f"    | {line}" for line in last)
