"""Launches, watches and stops sessions of the platform, whose answers may be incomplete, wrong or late.

Knows neither Dask nor clusters.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from cml_dask_magics.model.lifecycle import Phase, SessionInfo
from cml_dask_magics.model.record import SESSION
from cml_dask_magics.model.times import USUAL, Times
from cml_dask_magics.model.words import short
from cml_dask_magics.platforms.api import Platform, PlatformError, launch_keywords

logger = logging.getLogger(__name__)

_ENDED = frozenset({"succeeded", "failed", "stopped", "timedout"})
_MISSES_THAT_PROVE = 3
# No status, address or link of a session is longer; more than that is cut, or left out.
_STATUS_LENGTH, _ADDRESS_LENGTH, _LINK_LENGTH = 40, 253, 2000
_STOPPED = "stopped"


@dataclass(frozen=True)
class Launched:
    """The result of one launch call.

    Parameters
    ----------
    sessions : tuple of SessionInfo
        Sessions that were launched.
    refusals : tuple of str
        The platform's message for each session that it refused, or the error of the call.
    strays : tuple of str
        Ids of sessions that the platform refused but created anyway.
    suspects : tuple of str
        Ids that appeared during a call that failed or answered for too few sessions; they may be another launch's.
    doubtful : bool
        Whether there may be sessions whose id is unknown.
    """

    sessions: tuple[SessionInfo, ...] = ()
    refusals: tuple[str, ...] = ()
    strays: tuple[str, ...] = ()
    suspects: tuple[str, ...] = ()
    doubtful: bool = False


@dataclass
class _Absence:
    """In how many listings in a row a session has been missing, and since when."""

    listings: int = 0
    since: float = 0.0

    def note(self, missing: bool) -> None:
        if missing and self.listings == 0:
            self.since = time.monotonic()
        self.listings = self.listings + 1 if missing else 0

    def proves(self, missing_s: float) -> bool:
        return self.listings >= _MISSES_THAT_PROVE and time.monotonic() - self.since >= missing_s


@dataclass
class _Watch:
    """A callback for listings of some sessions."""

    ids: Callable[[], Collection[str]]
    tell: Callable[[Mapping[str, SessionInfo]], None]
    is_ours: Callable[[str], bool]
    absences: dict[str, _Absence] = field(default_factory=dict)


class SessionPool:
    """The sessions of one platform, for all clusters of this kernel.

    All methods block and may be called from any thread.

    Parameters
    ----------
    platform : Platform
    times : Times, optional
    """

    def __init__(self, platform: Platform, times: Times = USUAL) -> None:
        self.platform = platform
        self._times = times
        self._secrets: set[str] = set()
        self._watches: dict[int, _Watch] = {}
        self._poll_lock = threading.Lock()
        self._poller: threading.Thread | None = None
        self._wake = threading.Event()

    def hide(self, secrets: Iterable[str]) -> None:
        """Let nothing that the platform says from now on repeat any of these."""
        self._secrets.update(secrets)

    def launch(
        self,
        n: int,
        *,
        name: str,
        cpu: float,
        memory_gib: float,
        gpu: int,
        code: str,
        env: Mapping[str, str],
        options: Mapping[str, Any],
    ) -> Launched:
        """Launch `n` sessions with one call. Never raises; errors are in the result.

        The platform shows `name` beside each of them, where its release can; `options` are more keywords of its own.
        """
        shown = {"name": name} if "name" in (launch_keywords(self.platform.api) or ()) else {}
        before = self._listed_ids()
        try:
            answers = self.platform.api.launch_workers(
                n, cpu=cpu, memory=memory_gib, nvidia_gpu=gpu, code=code, env=dict(env), **shown, **options
            )
            if not isinstance(answers, (list, tuple)):
                raise PlatformError(f"launch_workers answered {self._short(answers)} instead of a list")
        except Exception as error:
            return Launched(refusals=(self._words(error),) * n, suspects=self._appeared_since(before), doubtful=True)
        sessions, refusals, strays = [], [], []
        doubtful = len(answers) < n
        for answer in answers:
            if (info := self._read_session(answer)) is not None:
                sessions.append(info)
                continue
            refusals.append(self._message(answer))
            if isinstance(answer, Mapping) and _is_session(answer.get("engineId")):
                strays.append(answer["engineId"])
            elif not isinstance(answer, Mapping) or not answer.get("message"):
                doubtful = True  # neither a session nor a refusal
        self._wake.set()
        if not doubtful:
            return Launched(tuple(sessions), tuple(refusals), tuple(strays))
        refusals += ["the platform did not answer for it"] * (n - len(answers))
        known = {info.id for info in sessions} | set(strays)
        suspects = tuple(session for session in self._appeared_since(before) if session not in known)
        return Launched(tuple(sessions), tuple(refusals), tuple(strays), suspects, doubtful=True)

    def listing(self) -> dict[str, SessionInfo]:
        """The sessions that this kernel's session launched, by id.

        Raises
        ------
        PlatformError
            If the call failed.
        """
        try:
            answers = self.platform.api.list_workers()
        except Exception as error:
            raise PlatformError(f"list_workers failed: {self._words(error)}") from None  # which may repeat secrets
        if not isinstance(answers, (list, tuple)):
            raise PlatformError(f"list_workers answered {self._short(answers)} instead of a list")
        infos = (self._read_session(answer) for answer in answers)
        return {info.id: info for info in infos if info is not None}

    def stop(self, ids: Collection[str], *, visible: Collection[str], timeout_s: float) -> dict[str, str]:
        """Stop sessions and wait until a listing shows that they ended.

        Parameters
        ----------
        ids : collection of str
            Sessions to stop.
        visible : collection of str
            Those of `ids` that are in this kernel's listing, because its session launched them. The others count as
            ended when the platform answers 204.
        timeout_s : float

        Returns
        -------
        dict
            The platform's answer for each session that still runs, by id. Empty when all have ended.
        """
        left = dict.fromkeys(ids, "no answer yet")
        deadline, ask_at, wait_s, asked = time.monotonic() + timeout_s, 0.0, 0.1, False
        absences = {session: _Absence() for session in left}
        while left:
            try:
                listing = self.listing()
            except PlatformError as error:
                left = dict.fromkeys(left, str(error))
            else:
                for session in list(left):
                    info = listing.get(session)
                    absences[session].note(info is None)
                    # Where the listing cannot show it, the 204 has to do; where it can, absence must last.
                    gone = (
                        absences[session].proves(self._times.missing_s)
                        if session in visible
                        else left[session] == _STOPPED
                    )
                    if (info is None and gone) or (info is not None and info.phase == "ended"):
                        del left[session]
                    elif info is not None and left[session] == _STOPPED:
                        left[session] = f"the platform took the stop, but still shows it as {info.status}"
            now = time.monotonic()
            if not left or (asked and now >= deadline):
                break
            if now >= ask_at:
                left |= self._ask_to_stop(left)
                asked, ask_at = True, time.monotonic() + self._times.stop_again_s
            time.sleep(wait_s)
            wait_s = min(1.0, wait_s * 1.5)
        return left

    def watch(
        self,
        ids: Callable[[], Collection[str]],
        tell: Callable[[Mapping[str, SessionInfo]], None],
        is_ours: Callable[[str], bool],
    ) -> Callable[[], None]:
        """Call `tell` with each new listing of the sessions `ids()`, from the poller's thread.

        A session that is missing from all listings for some seconds counts as ended, so `ids` must only name sessions
        that this kernel's session launched. If `is_ours` says that it is, it is told to stop, too.

        Returns
        -------
        callable
            Ends the watch.
        """
        watch = _Watch(ids, tell, is_ours)
        with self._poll_lock:
            self._watches[id(watch)] = watch
            if self._poller is None or not self._poller.is_alive():
                self._poller = threading.Thread(target=self._poll, name="cml-dask-magics-poller", daemon=True)
                self._poller.start()
            self._wake.set()

        def unwatch() -> None:
            with self._poll_lock:
                self._watches.pop(id(watch), None)
            self._wake.set()

        return unwatch

    def look_now(self) -> None:
        """Make the poller list at once."""
        self._wake.set()

    def _poll(self) -> None:
        times = self._times
        interval_s = times.poll_first_s
        while True:
            with self._poll_lock:
                watches = list(self._watches.values())
                if not watches:
                    self._poller = None
                    return
            pending = False
            with contextlib.suppress(PlatformError):  # try again at the next interval
                listing = self.listing()
                for watch in watches:
                    try:
                        pending |= self._tell(watch, listing)
                    except Exception:  # keep watching the other clusters
                        logger.warning("a listing could not be taken in", exc_info=True)
            interval_s = min(interval_s * 1.3, times.poll_pending_s if pending else times.poll_quiet_s)
            if self._wake.wait(interval_s):
                self._wake.clear()
                interval_s = times.poll_first_s

    def _tell(self, watch: _Watch, listing: Mapping[str, SessionInfo]) -> bool:
        """Pass a listing on to a watcher; returns whether some of its sessions are still pending."""
        infos = {}
        for session in watch.ids():
            info = listing.get(session)
            absence = watch.absences.setdefault(session, _Absence())
            absence.note(info is None)
            if info is not None:
                infos[session] = info
            elif absence.proves(self._times.missing_s):
                # Should it be there all the same, it must not go on where nobody knows it any more.
                if watch.is_ours(session):
                    self._ask_to_stop([session])
                infos[session] = SessionInfo(session, "ended", "gone from the platform's list")
        watch.tell(infos)
        waiting = any(info.phase == "pending" or info.ip_address is None for info in infos.values())
        return waiting or any(session not in infos for session in watch.ids())

    def _ask_to_stop(self, ids: Collection[str]) -> dict[str, str]:
        """Ask the platform to stop sessions; the only place that does. Returns its answers, by id."""
        asked = [session for session in ids if session]
        if not asked:  # a call without ids would stop all of the user's sessions
            return {}
        try:
            responses = self.platform.api.stop_workers(*asked)
        except Exception as error:
            return dict.fromkeys(asked, f"stop_workers failed: {self._words(error)}")
        if not isinstance(responses, Sequence) or len(responses) != len(asked):
            return dict.fromkeys(asked, _STOPPED)  # older releases return nothing; the listing decides
        said = {}
        for session, response in zip(asked, responses, strict=True):
            code = getattr(response, "status_code", None)
            if not isinstance(code, int):  # the listing decides
                code = 204
            said[session] = (
                _STOPPED
                if 200 <= code < 300 or code == 404
                else f"stop answered HTTP {code} {self._short(getattr(response, 'text', ''))}"
            )
        return said

    def _appeared_since(self, before: set[str] | None) -> tuple[str, ...]:
        # Without both listings there is nothing to compare; the fleet finds the sessions by their output.
        after = self._listed_ids()
        return tuple(sorted(after - before)) if before is not None and after is not None else ()

    def _listed_ids(self) -> set[str] | None:
        try:
            return set(self.listing())
        except PlatformError:
            return None

    def _read_session(self, answer: Any) -> SessionInfo | None:
        """Parse one session of an answer; None if it has no id, or none that can be one."""
        if not isinstance(answer, Mapping) or not _is_session(answer.get("id")):
            return None
        said = answer.get("status", "unknown")
        status = short(said, _STATUS_LENGTH)
        phase: Phase = "running" if status == "running" else "ended" if status in _ENDED else "pending"
        ip_address, app_url = answer.get("ip_address"), answer.get("app_url")
        known = ip_address not in ("", "unknown") and _is_word(ip_address, _ADDRESS_LENGTH)
        return SessionInfo(
            id=answer["id"],
            phase=phase,
            status=self._short(said, _STATUS_LENGTH) if phase == "pending" else status,
            ip_address=ip_address if known else None,
            app_url=app_url if _is_word(app_url, _LINK_LENGTH) else None,
            created_at=_seconds(answer.get("created_at")),
        )

    def _message(self, answer: Any) -> str:
        message = answer.get("message") if isinstance(answer, Mapping) else None
        return self._short(message) if message else f"the platform answered {self._short(answer)}"

    def _words(self, error: BaseException) -> str:
        return f"{type(error).__name__}: {self._short(error)}"

    def _short(self, said: object, most: int = 300) -> str:
        return short(said, most, frozenset(self._secrets))


def _is_session(session: Any) -> bool:
    """Whether that can be a session's id."""
    return isinstance(session, str) and SESSION.fullmatch(session) is not None


def _is_word(text: Any, most: int) -> bool:
    """Whether it is text without spaces and control characters, and not too long."""
    return isinstance(text, str) and 0 < len(text) <= most and text.isprintable() and " " not in text


def _seconds(moment: Any) -> float | None:
    """Seconds since the epoch of a time such as ``2026-01-31T12:00:00Z``; None if it cannot be parsed."""
    try:
        at = datetime.fromisoformat(moment.replace("Z", "+00:00"))
        return at.timestamp() if at.tzinfo else None
    except (AttributeError, TypeError, ValueError, OverflowError):
        return None
