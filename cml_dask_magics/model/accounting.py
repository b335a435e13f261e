"""What a cluster's sessions have used: core-hours, GiB-hours and GPU-hours, from their records."""

from __future__ import annotations

import time
from dataclasses import replace

from cml_dask_magics.model.record import Record, SessionRecord
from cml_dask_magics.model.status import Usage


def usage(record: Record) -> Usage:
    """What the sessions that left the record have used."""
    return Usage(record.core_s / 3600, record.gib_s / 3600, record.gpu_s / 3600)


def with_usage_until_now(record: Record) -> Record:
    """The record with what the sessions in it have used so far added."""
    now = time.time()
    for session in record.sessions:
        record = with_usage_of(record, replace(session, ended_at=session.ended_at or now))
    return record


def with_usage_of(record: Record, session: SessionRecord) -> Record:
    """The record with what an ended session has used added. What never ran used nothing."""
    if session.running_at is None or session.ended_at is None:
        return record
    used_s = max(0.0, session.ended_at - session.running_at)
    return replace(
        record,
        core_s=record.core_s + session.cpu * used_s,
        gib_s=record.gib_s + session.memory_gib * used_s,
        gpu_s=record.gpu_s + session.gpu * used_s,
    )
