"""The run folder, which the sessions of one start of a cluster share: its files, and how it is made, read and closed.

If a record is broken or deleted, this folder is all that is known of the cluster.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import secrets
import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from cml_dask_magics.model.record import SESSION, Launch, Owner, Record, SessionRecord, record_from_json
from cml_dask_magics.model.words import clean
from cml_dask_magics.registry.files import (
    listed,
    named,
    open_private,
    read_private,
    remove,
    why_not_private,
    write_private,
)

logger = logging.getLogger(__name__)

SCHEDULER_FILE = "scheduler.json"
# The scheduler file's name once the cluster is being stopped.
FORMER_SCHEDULER_FILE = "scheduler.former.json"
SCHEDULER_SESSION_FILE = "scheduler.session"
SESSION_PROGRAM, SESSION_DATA = "session.py", "session.json"
# What the sessions' program runs.
SESSION_KEEPER, SESSION_GUARDS = "session_keeper.py", "session_guards.py"
LOG_SUFFIX = ".log"
CLAIM_FILE = "claim.json"
LOGS = "logs"
# In every run folder that we made; a folder without it is never removed.
MARK = ".cml-dask-magics"
_RUN_FOLDER = re.compile(r"([A-Za-z0-9_-]{1,40})-[0-9a-f]{8}")
# `certificates` writes them.
CERTIFICATES = ("ca.pem", "cert.pem", "key.pem")
# All files beside the logs.
_NAMES = (
    CLAIM_FILE, SCHEDULER_FILE, FORMER_SCHEDULER_FILE, SCHEDULER_SESSION_FILE,
    SESSION_DATA, SESSION_PROGRAM, SESSION_KEEPER, SESSION_GUARDS,
)  # fmt: skip
_FILES = named(*_NAMES, *CERTIFICATES)
# Begins the name of a file with the sessions that a launch call returned.
_LAUNCHED = "launched-"
_LAUNCHED_FILES = re.compile(rf"\.?{_LAUNCHED}[0-9a-f]{{8}}(\.[0-9a-f]{{8}})?")  # with temporary ones, as for `named`
_LOG = re.compile(rf"({SESSION.pattern})" + re.escape(LOG_SUFFIX))
_TAIL_BYTES = 65536
_NOBODY = Owner("", "", 0)


def session_logs(folder: Path) -> dict[str, Path]:
    """The log files in a folder, by session id; only those that this user's sessions can have written."""
    found = {}
    with contextlib.suppress(OSError):
        for entry in sorted(listed(folder), key=lambda entry: entry.name):
            match = _LOG.fullmatch(entry.name)
            if match is not None and not _why_not_private(entry):
                found[match[1]] = folder / entry.name
    return found


def _why_not_private(entry: os.DirEntry[str]) -> str:
    try:
        return why_not_private(entry.stat(follow_symlinks=False))
    except FileNotFoundError:  # listed, but not found: a network file system may remember that it was missing
        return "" if entry.is_file(follow_symlinks=False) else "it is gone"


def read_tail(path: Path, lines: int) -> list[str]:
    """The last lines of a file that may be long, binary or missing, safe to show."""
    try:
        with os.fdopen(open_private(path), "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - _TAIL_BYTES))
            return [clean(line) for line in file.read(2 * _TAIL_BYTES).decode(errors="replace").splitlines()[-lines:]]
    except OSError:
        return []


def uses_tls(record: Record, run: Path) -> bool:
    """Whether a cluster was started with TLS: one that has certificates was, whatever its record says."""
    with contextlib.suppress(OSError):
        if {entry.name for entry in listed(run)} & set(CERTIFICATES):
            return True
    return record.settings.get("tls") is not False


def scheduler_session(run: Path) -> str:
    """The id of the session in which the scheduler runs; empty while it has not started."""
    session = _read_text(run / SCHEDULER_SESSION_FILE)
    return session if SESSION.fullmatch(session) else ""


def note_launched(run: Path, launch: Launch, sessions: Iterable[str]) -> None:
    """Write down which sessions a launch call returned: proof of whose they are, even before they start.

    Where that cannot be written, their logs have to show it.
    """
    with contextlib.suppress(OSError):
        write_private(run / f"{_LAUNCHED}{launch.id}", " ".join(sessions))


def launched_sessions(run: Path) -> set[str]:
    """Ids of the sessions that launch calls for the cluster returned."""
    paths = [run / entry.name for entry in listed(run) if entry.name.startswith(_LAUNCHED)]
    return {session for path in paths for session in _read_text(path).split()}


def started_sessions(run: Path) -> set[str]:
    """Ids of the cluster's sessions that have started."""
    return {*session_logs(run / LOGS), scheduler_session(run)}


def cluster_of(run: str) -> str:
    """The cluster's name in a run folder's name, ``NAME-TOKEN``; empty if it is no such name."""
    match = _RUN_FOLDER.fullmatch(run)
    return match[1] if match is not None else ""


def make_run(run: Path) -> None:
    """Make a run folder, with an empty folder for logs and the mark that it is ours. Its parent must exist."""
    run.mkdir(mode=0o700)
    (run / LOGS).mkdir(mode=0o700)
    write_private(run / MARK, "Made by cml-dask-magics, which removes it when it is old. Keep nothing here.\n")


def close_run(root: Path, run: Path) -> None:
    """Remove what sessions need to start, with the secrets; the logs stay.

    A session that starts late finds no scheduler file and exits (see `fleet.shell_lines`).

    Parameters
    ----------
    root : Path
        The state folder.
    run : Path
        The run folder.
    """
    try:
        remove(root, run, _FILES, _LAUNCHED_FILES)
    except NotADirectoryError as error:  # the files behind a link are the user's; the cluster must stop all the same
        logger.warning("%s is left as it is: %s (%s)", run, error.strerror, error.filename)


def remove_run(root: Path, run: Path) -> None:
    """Remove an ended cluster's run folder with its logs, except for files that are not ours."""
    remove(root, run / LOGS, _LOG, and_folder=True)
    if set(remove(root, run, _FILES, _LAUNCHED_FILES)) <= {MARK}:
        remove(root, run, named(MARK), and_folder=True)


def salvaged_record(name: str, run: Path | None) -> Record:
    """A record made from a run folder alone: the settings of the claim, and the sessions that printed something.

    Parameters
    ----------
    name : str
        The cluster.
    run : Path or None
        Its run folder, if there is one.
    """
    if run is None:
        return Record(name, secrets.token_hex(4), "", time.time(), _NOBODY, settings={}, requested=0, state="stopping")
    claimed: Record | None = None
    with contextlib.suppress(OSError, ValueError):
        claimed = record_from_json(read_private(run / CLAIM_FILE))
    if claimed is None or claimed.name != name or run.name != f"{name}-{claimed.token}":
        token = run.name.rpartition("-")[2]
        claimed = Record(name, token, "", time.time(), _NOBODY, settings={}, requested=0)
    scheduler = scheduler_session(run)
    sessions = tuple(
        replace(session_record(claimed, session, scheduler), salvaged=True) for session in session_logs(run / LOGS)
    )
    return replace(
        claimed,
        # Without its settings it can be stopped, but not used.
        state="running" if claimed.settings and _read_text(run / SCHEDULER_FILE) else "stopping",
        requested=sum(session.role == "worker" for session in sessions),
        sessions=sessions,
        launching=(unknown_launches(claimed),),
    )


def unknown_launches(record: Record) -> Launch:
    """A launch that stands for sessions of the cluster that its record may lack."""
    return Launch(secrets.token_hex(4), "worker", 0, record.created_at, _NOBODY, answered=True)


def session_record(record: Record, session: str, scheduler: str) -> SessionRecord:
    """The record of a session that no launch call returned, sized by the cluster's settings.

    Parameters
    ----------
    record : Record
        The cluster's.
    session, scheduler : str
        Ids of the session, and of the session in which the scheduler runs.
    """
    is_scheduler = session == scheduler
    prefix = "scheduler_" if is_scheduler else ""
    return SessionRecord(
        id=session,
        role="scheduler" if is_scheduler else "worker",
        cpu=_size(record.settings.get(f"{prefix}cpu")),
        memory_gib=_size(record.settings.get(f"{prefix}memory_gib")),
        gpu=0 if is_scheduler else int(_size(record.settings.get("gpu"))),
        launched_at=time.time(),
        launched_from=record.owner.session,
    )


def _size(value: Any) -> float:
    """A size in a record's settings, which nobody has checked; 0 if it can be none."""
    return value if isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < 10**6 else 0


def _read_text(path: Path) -> str:
    try:
        return read_private(path)
    except (OSError, ValueError):
        return ""
