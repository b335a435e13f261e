"""Launching, listing, following and stopping on a platform that answers whatever it likes."""

import threading
import time
from unittest import mock

import pytest
from support.memory_platform import HTML, Answer, Workspace

from cml_dask_magics.model.times import Times
from cml_dask_magics.platforms.api import Platform, PlatformError
from cml_dask_magics.platforms.pool import SessionPool

MINE, OTHER = "kernelsession", "othersession"


@pytest.fixture
def workspace():
    return Workspace()


@pytest.fixture
def times():
    """Seconds of waiting made short; what they prove stays the same."""
    return Times(missing_s=0.3, stop_again_s=1.2)


@pytest.fixture
def pool(workspace, times):
    return SessionPool(Platform("cml", workspace.caller(MINE), session=MINE), times)


@pytest.fixture(autouse=True)
def the_trap_is_never_sprung(workspace):
    """Whatever a test does: the platform is never told to stop without ids, nor what nobody launched here."""
    foreign = workspace.add(MINE)
    yield
    stops = [ids for _, call, ids in workspace.calls if call == "stop"]
    assert all(ids and all(ids) for ids in stops)
    assert not any(foreign in ids for ids in stops)
    assert foreign in workspace.up()


def launch(pool, n, **options):
    return pool.launch(
        n, name="dask-worker default", cpu=1, memory_gib=2, gpu=0, code="!true", env={"A": "1"}, options=options
    )


def test_sessions_are_named_where_the_release_can():
    def with_name(n, cpu, memory, nvidia_gpu=0, kernel="python3", script="", code="", env={}, name=""):  # noqa: B006
        named.append(name)
        return [{"id": "ab12"}]

    def without(n, cpu, memory, nvidia_gpu=0, kernel="python3", script="", code="", env={}):  # noqa: B006
        return [{"id": "ab12"}]

    named = []
    for release in (with_name, without):
        api = mock.Mock(launch_workers=release, list_workers=list)
        assert ids_of(launch(SessionPool(Platform("cml", api)), 1)) == ["ab12"]
    assert named == ["dask-worker default"]


def ids_of(launched):
    return [info.id for info in launched.sessions]


def test_a_launch_gives_every_session_its_id_in_one_call(pool, workspace):
    launched = launch(pool, 4, accelerator_label_id=7)
    assert len(set(ids_of(launched))) == 4
    assert (launched.refusals, launched.strays, launched.suspects) == ((), (), ())
    assert workspace.count("launch") == 1
    for info in launched.sessions:
        session = workspace.sessions[info.id]
        assert (session.cpu, session.memory, session.env, session.code) == (1, 2, {"A": "1"}, "!true")
        assert session.extra == {"accelerator_label_id": 7}
        assert (info.phase, info.ip_address) == ("pending", None)


def test_a_refusal_keeps_the_sessions_that_came_and_the_words_of_the_platform(pool, workspace):
    workspace.refuse = [None, "quota exceeded: 4 cores", None]
    launched = launch(pool, 4)
    assert len(launched.sessions) == 3
    assert launched.refusals == ("quota exceeded: 4 cores",)


def test_a_refused_session_that_was_created_all_the_same_is_known(pool, workspace):
    workspace.refuse = [("bad profile", True)]
    launched = launch(pool, 2)
    assert launched.refusals == ("bad profile",)
    assert len(launched.strays) == 1
    assert sorted([*ids_of(launched), *launched.strays]) == [s for s in workspace.up() if workspace.sessions[s].env]


@pytest.mark.parametrize("created", [0, 2])
def test_a_launch_that_breaks_leaves_no_session_that_nobody_suspects(pool, workspace, created):
    workspace.break_launch = created, ConnectionResetError("Connection reset by peer")
    launched = launch(pool, 3)
    assert launched.sessions == ()
    assert len(launched.refusals) == 3
    assert "Connection reset by peer" in launched.refusals[0]
    assert sorted(launched.suspects) == [s for s in workspace.up() if workspace.sessions[s].env]


def test_a_gateways_html_page_becomes_one_short_line(pool, workspace):
    workspace.break_launch = 1, ValueError(f"Expecting value: line 1 column 1 (char 0): {HTML}")
    (words, *_) = launch(pool, 1).refusals
    assert "\n" not in words
    assert "502 Bad Gateway" in words
    assert len(words) < 400


@pytest.mark.parametrize("answer", [HTML, {}, 5, True])
def test_a_launch_answered_with_nonsense_is_a_refusal_with_suspects(pool, workspace, answer):
    workspace.launch_answer = answer
    launched = launch(pool, 2)
    assert launched.sessions == ()
    assert len(launched.refusals) == 2
    assert len(launched.suspects) == 2


@pytest.mark.parametrize("answer", [[None], ["text"], [{"id": ""}], [{"id": None, "message": None}], [{}], [[]]])
def test_a_session_answered_with_nonsense_is_a_refusal_and_not_a_crash(pool, workspace, answer):
    workspace.launch_answer = answer
    launched = launch(pool, 1)
    assert launched.sessions == ()
    assert len(launched.refusals) == 1
    assert launched.refusals[0]


def test_sessions_missing_from_a_short_answer_are_suspected(pool, workspace):
    workspace.launch_answer = []
    launched = launch(pool, 2)
    assert len(launched.refusals) == 2
    assert len(launched.suspects) == 2


def test_an_option_that_an_older_release_does_not_know_is_a_refusal_that_names_it(pool, workspace):
    launched = launch(pool, 1, resource_profile_id=3)
    assert "resource_profile_id" in launched.refusals[0]
    assert len(workspace.up()) == 1


def test_a_listing_is_read_with_whatever_is_missing_from_it(pool, workspace):
    workspace.bare = True
    session = workspace.add(MINE)
    info = pool.listing()[session]
    assert (info.phase, info.ip_address, info.app_url) == ("running", None, None)


@pytest.mark.parametrize(
    ("status", "phase"),
    [
        ("running", "running"),
        ("succeeded", "ended"),
        ("failed", "ended"),
        ("stopped", "ended"),
        ("timedout", "ended"),
        ("scheduling", "pending"),
        ("starting", "pending"),
        ("a word of tomorrow", "pending"),
        (None, "pending"),
        ({}, "pending"),
    ],
)
def test_a_status_that_nobody_has_heard_of_means_not_there_yet(pool, workspace, status, phase):
    workspace.sessions[session := workspace.add(MINE)].status = status if isinstance(status, str) else "x"
    workspace.list_errors = [[{"id": session, "status": status}, {"status": "running"}, None, "text"]]
    assert pool.listing()[session].phase == phase


def test_an_unknown_address_is_no_address(pool, workspace):
    session = workspace.add(MINE, "scheduling")
    assert pool.listing()[session].ip_address is None
    workspace.set("running", session)
    assert pool.listing()[session].ip_address.startswith("100.66.")


@pytest.mark.parametrize("answer", [ConnectionError("reset"), ValueError(HTML), None, HTML, {"workers": []}])
def test_a_listing_that_fails_is_one_error_with_the_platforms_words(pool, workspace, answer):
    workspace.list_errors = [answer]
    with pytest.raises(PlatformError) as error:
        pool.listing()
    assert "list_workers" in str(error.value)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 400


def test_stopping_returns_when_every_session_is_seen_ended(pool, workspace):
    ids = ids_of(launch(pool, 3))
    workspace.stop_modes["*"] = "slow"
    assert pool.stop(ids, visible=ids, timeout_s=60) == {}
    assert all(workspace.sessions[session].over for session in ids)


def test_stopping_nothing_never_reaches_the_platform(pool, workspace):
    for nothing in ([], set(), {}, ()):
        assert pool.stop(nothing, visible=(), timeout_s=1) == {}
    pool.stop([""], visible=[], timeout_s=0.1)
    assert workspace.count("stop") == 0


def test_what_has_ended_already_is_not_stopped_again(pool, workspace):
    ids = ids_of(launch(pool, 2))
    workspace.set("succeeded", *ids)
    assert pool.stop(ids, visible=ids, timeout_s=1) == {}
    assert workspace.count("stop") == 0


def test_a_session_that_does_not_stop_is_named_with_the_reason(pool, workspace):
    ids = ids_of(launch(pool, 3))
    workspace.stop_modes = {ids[0]: "refuse", ids[1]: "ignore"}
    left = pool.stop(ids, visible=ids, timeout_s=1.6)
    assert set(left) == set(ids[:2])
    assert "500" in left[ids[0]]
    assert "\n" not in left[ids[0]]
    assert "scheduling" in left[ids[1]]
    assert workspace.count("stop") >= 2  # asked again


def test_a_session_that_stops_at_the_second_asking_is_stopped(pool, workspace):
    ids = ids_of(launch(pool, 1))
    workspace.stop_modes["*"] = "refuse"
    threading.Timer(0.5, workspace.stop_modes.clear).start()
    assert pool.stop(ids, visible=ids, timeout_s=60) == {}
    assert workspace.sessions[ids[0]].over


@pytest.mark.parametrize("answer", [None, [], (), "text", 204, {"status": "ok"}])
def test_a_stop_that_answers_nothing_useful_is_judged_by_the_listing(pool, workspace, answer):
    ids = ids_of(launch(pool, 2))
    workspace.stop_answers = lambda _: answer
    workspace.stop_modes = {ids[0]: "ignore"}
    assert set(pool.stop(ids, visible=ids, timeout_s=0.5)) == {ids[0]}


@pytest.mark.parametrize("code", [None, "204", "gone", object()])
def test_a_response_without_a_proper_code_does_not_break_the_stopping(pool, workspace, code):
    ids = ids_of(launch(pool, 1))
    workspace.stop_answers = lambda _: [Answer(code)]
    assert pool.stop(ids, visible=ids, timeout_s=1) == {}
    assert workspace.sessions[ids[0]].over


def test_a_stop_that_raises_is_told_in_the_platforms_words(pool, workspace):
    ids = ids_of(launch(pool, 1))
    workspace.stop_modes["*"] = "ignore"
    workspace.stop_answers = lambda _: ConnectionError(HTML)
    left = pool.stop(ids, visible=ids, timeout_s=0.5)
    assert "ConnectionError" in left[ids[0]]
    assert "\n" not in left[ids[0]]


def test_stopping_outlives_listings_that_fail(pool, workspace):
    ids = ids_of(launch(pool, 2))
    workspace.list_errors = [ConnectionError("reset"), None, HTML]
    assert pool.stop(ids, visible=ids, timeout_s=60) == {}


def test_without_any_listing_nothing_counts_as_ended(pool, workspace):
    ids = ids_of(launch(pool, 1))
    workspace.list_down = ConnectionError("down")
    assert set(pool.stop(ids, visible=ids, timeout_s=0.5)) == set(ids)


def test_missing_from_one_listing_is_no_proof_of_the_end(pool, workspace):
    ids = ids_of(launch(pool, 1))
    workspace.stop_modes["*"] = "ignore"
    workspace.hidden = {ids[0]: 2}
    assert set(pool.stop(ids, visible=ids, timeout_s=1)) == set(ids)


def test_a_session_that_is_missing_for_good_counts_as_ended(pool, workspace):
    ids = ids_of(launch(pool, 1))
    workspace.hidden = {ids[0]: 10**6}
    assert pool.stop(ids, visible=ids, timeout_s=60) == {}


@pytest.mark.parametrize("times", [Times(stop_again_s=0.05)])
def test_a_platform_that_takes_its_time_does_not_make_stopping_endless(pool, workspace):
    # Each call takes longer than the pause after which a stop is repeated.
    ids = ids_of(launch(pool, 1))
    workspace.stop_modes["*"] = "ignore"
    workspace.list_delay_s = 0.1
    left = []
    stopping = threading.Thread(
        target=lambda: left.append(pool.stop(ids, visible=ids, timeout_s=0.5)), daemon=True, name="stopping"
    )
    stopping.start()
    stopping.join(60)
    workspace.stop_modes.clear()
    stopping.join(60)
    assert [set(each) for each in left] == [set(ids)]


def test_another_sessions_session_needs_more_than_its_absence(pool, workspace):
    theirs = workspace.add(OTHER)
    workspace.stop_modes[theirs] = "refuse"
    left = pool.stop([theirs], visible=[], timeout_s=1)
    assert "500" in left[theirs]


def test_another_sessions_session_is_stopped_by_its_id(pool, workspace):
    theirs, untouched = workspace.add(OTHER), workspace.add(OTHER)
    assert pool.stop([theirs], visible=[], timeout_s=60) == {}
    assert workspace.sessions[theirs].over
    assert not workspace.sessions[untouched].over


class Watcher:
    """Notes what it is told."""

    def __init__(self, pool, ids):
        self.told = []
        self.news = threading.Event()
        self.unwatch = pool.watch(lambda: ids, self.tell, lambda _: True)

    def tell(self, infos):
        self.told.append(infos)
        self.news.set()

    def wait_until(self, true, timeout_s=60):
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            self.news.clear()
            if self.told and true(self.told[-1]):
                return True
            self.news.wait(0.05)
        return False


@pytest.fixture
def watch(pool):
    watchers = []

    def start(ids):
        watchers.append(Watcher(pool, ids))
        return watchers[-1]

    yield start
    for watcher in watchers:
        watcher.unwatch()
    assert poller_ends(pool)


def poller_ends(pool, timeout_s=60):
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        poller = pool._poller
        if poller is None or not poller.is_alive():
            return True
        time.sleep(0.02)
    return False


def test_changes_are_told_to_whoever_watches(pool, workspace, watch):
    ids = ids_of(launch(pool, 2))
    watcher = watch(ids)
    assert watcher.wait_until(lambda infos: {info.phase for info in infos.values()} == {"pending"})
    workspace.set("running", *ids)
    assert watcher.wait_until(lambda infos: all(infos[session].ip_address for session in ids))
    workspace.set("failed", ids[0])
    assert watcher.wait_until(lambda infos: infos[ids[0]].phase == "ended")
    assert watcher.told[-1][ids[0]].status == "failed"
    assert all(set(infos) <= set(ids) for infos in watcher.told)


def test_a_session_that_a_listing_misses_once_is_not_told_as_dead(pool, workspace, watch):
    workspace.first_status = "running"
    ids = ids_of(launch(pool, 1))
    watcher = watch(ids)
    assert watcher.wait_until(lambda infos: ids[0] in infos)
    workspace.hidden = {ids[0]: 1}
    pool._wake.set()
    before = len(watcher.told)
    assert watcher.wait_until(lambda infos: len(watcher.told) > before + 2 and ids[0] in infos)
    assert all(info.phase != "ended" for infos in watcher.told for info in infos.values())


def test_a_session_that_vanished_is_told_as_ended(pool, workspace, watch):
    ids = ids_of(launch(pool, 1))
    watcher = watch(ids)
    assert watcher.wait_until(lambda infos: ids[0] in infos)
    workspace.hidden = {ids[0]: 10**6}
    assert watcher.wait_until(lambda infos: ids[0] in infos and infos[ids[0]].phase == "ended")


def test_listings_that_fail_do_not_end_the_watch(pool, workspace, watch):
    ids = ids_of(launch(pool, 1))
    workspace.list_errors = [ConnectionError("reset"), None, HTML]
    assert watch(ids).wait_until(lambda infos: ids[0] in infos)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_one_cluster_that_cannot_take_the_news_does_not_blind_the_others(pool, workspace, watch):
    ids = ids_of(launch(pool, 1))
    asked = threading.Event()

    def stumble(_infos):
        asked.set()
        raise OSError("No space left on device")

    unwatch = pool.watch(lambda: ids, stumble, lambda _: True)
    try:
        assert asked.wait(60)
        watcher = watch(ids)
        assert watcher.wait_until(lambda infos: ids[0] in infos)
        told = len(watcher.told)
        assert watcher.wait_until(lambda _: len(watcher.told) > told)
    finally:
        unwatch()


def test_one_poller_serves_everybody_and_ends_with_the_last(pool, workspace, watch):
    ids = ids_of(launch(pool, 2))
    one, two = watch(ids[:1]), watch(ids[1:])
    poller = pool._poller
    assert one.wait_until(lambda infos: ids[0] in infos)
    assert two.wait_until(lambda infos: ids[1] in infos)
    assert pool._poller is poller
    one.unwatch()
    before = len(two.told)
    assert two.wait_until(lambda _: len(two.told) > before)
    two.unwatch()
    assert poller_ends(pool)
    listings = workspace.count("list")
    poller.join(60)
    assert not poller.is_alive() and pool._poller is None
    assert workspace.count("list") == listings


def test_a_poller_that_ended_starts_again_with_the_next_watch(pool, workspace, watch):
    ids = ids_of(launch(pool, 1))
    first = watch(ids)
    assert first.wait_until(lambda infos: ids[0] in infos)
    first.unwatch()
    assert poller_ends(pool)
    assert watch(ids).wait_until(lambda infos: ids[0] in infos)


class Pauses(threading.Event):
    """Notes for how long the poller means to pause, and whether something wakes it before."""

    def __init__(self):
        super().__init__()
        self.of_s = []
        self.cut_short = []

    def wait(self, timeout=None):
        self.of_s.append(timeout)
        woken = super().wait(timeout)
        self.cut_short.append(woken)
        return woken

    def noted_in_all(self, n):
        """All pauses, once there are `n`."""
        deadline = time.monotonic() + 60
        while len(self.of_s) < n:
            assert time.monotonic() < deadline, "it does not ask any more"
            time.sleep(0.01)
        return self.of_s

    def noted(self, n):
        """The next `n` pauses."""
        before = len(self.of_s)
        return self.noted_in_all(before + n)[before : before + n]


@pytest.fixture
def pauses(pool):
    pool._wake = Pauses()
    return pool._wake


@pytest.mark.parametrize("times", [Times(poll_first_s=0.02, poll_pending_s=0.1)])
def test_a_quiet_cluster_is_asked_after_less_and_less(pool, workspace, watch, pauses):
    workspace.first_status = "running"
    ids = ids_of(launch(pool, 1))
    watcher = watch(ids)
    assert watcher.wait_until(lambda infos: ids[0] in infos)
    early = sum(pauses.noted(3))
    late = sum(pauses.noted(3))
    assert late > early


@pytest.mark.parametrize("times", [Times(poll_first_s=0.02, poll_pending_s=0.1, missing_s=60)])
@pytest.mark.parametrize("shown", [True, False])
def test_a_session_that_is_awaited_is_asked_after_often(pool, workspace, watch, pauses, shown):
    # As long as it is pending, and also while the platform's list does not show it yet.
    ids = ids_of(launch(pool, 1))
    if not shown:
        workspace.hidden = {ids[0]: 10**6}
    watch(ids)
    # More often than every quarter of a second, however often it was asked already.
    assert max(pauses.noted(12)) <= 0.25


@pytest.mark.parametrize("times", [Times(poll_first_s=30, poll_quiet_s=30)])
def test_a_launch_wakes_a_poller_that_had_gone_quiet(pool, workspace, watch, pauses):
    watcher = watch([])
    assert watcher.wait_until(lambda _: True)
    pauses.noted_in_all(2)  # the first ended at once, by the watch
    before = len(watcher.told)
    launch(pool, 1)
    assert watcher.wait_until(lambda _: len(watcher.told) > before)
    assert all(pauses.cut_short), "the poller woke by itself"


def test_the_call_that_loses_sessions_is_never_made(pool, workspace, watch):
    ids = ids_of(launch(pool, 2))
    watch(ids)
    pool.stop(ids, visible=ids, timeout_s=5)
    assert workspace.count("await") == 0
    assert {call for _, call, _ in workspace.calls} == {"launch", "list", "stop"}
