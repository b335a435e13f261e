"""The platform's four calls, and sessions that are processes of the one that calls, beside its kernel.

That is for schedulers: they take nothing of the user's quota, outlive the kernel, and end with its session, as the
workers do that it launched.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cml_dask_magics.platforms.api import WorkersAPI
from cml_dask_magics.platforms.local import LocalSessions, Response

HERE = "CML_DASK_HERE"
"""The variable of a session to be launched that makes it one beside the kernel."""


class SomeHere:
    """`api.WorkersAPI` of the platform, which launches beside the kernel whatever has `HERE` in its environment.

    Parameters
    ----------
    api : WorkersAPI
        The platform's own calls.
    directory : Path
        Where the sessions of this machine are recorded, in a folder for each CML session: the others share the
        project's files, but not its processes.
    session : str
        The id of the CML session that this is.
    """

    def __init__(self, api: WorkersAPI, directory: Path, session: str) -> None:
        self._api = api
        self._directory = directory
        port, domain = os.environ.get("CDSW_READONLY_PORT", ""), os.environ.get("CDSW_DOMAIN", "")
        self._here = LocalSessions(
            directory / f"of-{session}",
            address=os.environ.get("CDSW_IP_ADDRESS") or "0.0.0.0",
            # By the platform's documentation; the Workers API tells the address of no session that a person opened.
            app_url=f"https://read-only-{session}.{domain}/",
            environment={"CDSW_READONLY_PORT": port} if port else {},
        )

        # Wrapped, it shows what the platform's takes, which differs between releases.
        @functools.wraps(api.launch_workers)
        def launch_workers(n: int, *, env: Mapping[str, str], **request: Any) -> list[dict[str, Any]]:
            if HERE not in env:
                return api.launch_workers(n, env=env, **request)
            size_and_code = {key: request[key] for key in ("cpu", "memory", "code")}
            return self._here.launch_workers(n, env=env, **size_and_code)

        self.launch_workers = launch_workers

    def list_workers(self) -> list[dict[str, Any]]:
        """The sessions that this one launched, there and here."""
        there = self._api.list_workers()
        # What is no list is for `pool` to complain about.
        return [*there, *self._here.list_workers()] if isinstance(there, (list, tuple)) else there

    def stop_workers(self, *worker_id: str) -> list[Any]:
        """Stop sessions by id; one beside another session's kernel ends by itself once its cluster's files are gone."""
        beside_a_kernel = {path.stem for path in self._directory.glob("of-*/*.json")}
        mine = {session["id"] for session in self._here.list_workers()}
        here = [session for session in worker_id if session in mine]
        there = [session for session in worker_id if session not in beside_a_kernel]
        answers = dict.fromkeys(worker_id, Response(204))
        if here:
            answers |= dict(zip(here, self._here.stop_workers(*here), strict=True))
        # Never without ids: that would stop all of the user's sessions.
        if there:
            said = self._api.stop_workers(*there)
            if isinstance(said, Sequence) and len(said) == len(there):
                answers |= dict(zip(there, said, strict=True))
        return [answers[session] for session in worker_id]

    def await_workers(
        self, ids: Sequence[Any], wait_for_completion: bool = True, timeout_seconds: int = 60
    ) -> Mapping[str, Any]:
        """Wait for sessions of the platform, as its own call does; those here run at once."""
        return self._api.await_workers(ids, wait_for_completion, timeout_seconds)
