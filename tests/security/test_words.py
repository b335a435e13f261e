"""Words from outside stay words: no escape sequence reaches a terminal, and no page of them a screen."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import hypothesis
import pytest
from hypothesis import strategies as st
from IPython.core.error import UsageError
from IPython.core.interactiveshell import InteractiveShell
from support.cases import ANYTHING, MANY
from support.memory_platform import Answer
from support.on_record import TIMES, World

from cml_dask_magics import CMLCluster
from cml_dask_magics.cluster.snapshot import snapshot
from cml_dask_magics.display.document import to_json
from cml_dask_magics.display.text import to_text
from cml_dask_magics.fleet.failure import describe_failure
from cml_dask_magics.fleet.opening import claim
from cml_dask_magics.model.record import SESSION
from cml_dask_magics.model.settings import make_settings
from cml_dask_magics.model.words import clean, short
from cml_dask_magics.platforms.api import Platform, PlatformError
from cml_dask_magics.platforms.pool import SessionPool
from cml_dask_magics.registry.files import write_private

HOSTILE = "boo \x1b]0;owned\x07\x1b[2J\x1b[31m\u202egnp.exe\x00\x9b1m\rover"


def is_safe(text: str) -> bool:
    return all(character.isprintable() or character == "\n" for character in text)


def test_what_the_platform_says_is_told_without_its_escape_sequences(
    world: World, shell: InteractiveShell, capsys: pytest.CaptureFixture[str]
) -> None:
    world.workspace.refuse = [HOSTILE] * 3
    with pytest.raises(RuntimeError) as error:
        shell.run_line_magic("dask_up", "2 --timeout 5s")
    assert "boo" in str(error.value) and is_safe(str(error.value))
    said = capsys.readouterr()
    assert is_safe(said.out + said.err)


def test_what_sessions_printed_is_told_without_its_escape_sequences(
    world: World, shell: InteractiveShell, capsys: pytest.CaptureFixture[str]
) -> None:
    cluster = world.start()
    for session in world.ours():
        write_private(cluster.folder / "logs" / f"{session}.log", f"{HOSTILE}\nValueError: {HOSTILE}\n{'x' * 10**6}\n")
    shell.run_line_magic("dask_status", "--logs")
    said = capsys.readouterr().out
    assert "boo" not in said, "only the end of a long line is read"
    for session in world.ours():
        write_private(cluster.folder / "logs" / f"{session}.log", f"{HOSTILE}\nValueError: {HOSTILE}\n{'x' * 9999}\n")
    capsys.readouterr()
    shell.run_line_magic("dask_status", "--logs")
    said = capsys.readouterr().out
    assert said.count("boo") == 6 and is_safe(said)
    story = describe_failure(world.open(), [], "it failed")
    assert "boo" in story and is_safe(story) and len(story) < 20000
    world.open().end()


def test_what_listing_and_stopping_answer_is_told_without_its_escape_sequences(world: World) -> None:
    cluster = claim(make_settings(), times=replace(TIMES, stop_s=0.3))
    cluster.launches.launch("worker", 1)
    world.workspace.stop_modes["*"] = "ignore"
    world.workspace.stop_answers = lambda _: [Answer(500, HOSTILE + "x" * 10**6)]
    with pytest.raises(RuntimeError) as error:
        cluster.end()
    assert "boo" in str(error.value) and is_safe(str(error.value)) and len(str(error.value)) < 2000
    world.workspace.list_errors = [ConnectionError(HOSTILE)]
    with pytest.raises(PlatformError, match="boo") as error:
        cluster.pool.listing()
    assert is_safe(str(error.value))
    world.workspace.stop_modes.clear()
    world.workspace.stop_answers = lambda answers: answers
    cluster.end()


def test_a_megabyte_is_cut_wherever_it_stands(world: World) -> None:
    word = "y" * 10**6
    answer = {"id": "x0", "status": word, "ip_address": word, "app_url": f"https://{word}/"}

    class API:
        def launch_workers(self, *_: Any, **__: Any) -> Any:
            return [answer, {"message": word}, {"id": word, "message": word}]

        def list_workers(self) -> Any:
            return [answer, {"id": word, "status": "running"}]

        def stop_workers(self, *ids: str) -> Any:
            return [Answer(500, word) for _ in ids]

    pool = SessionPool(Platform("cml", API()), TIMES)  # type: ignore[arg-type]
    request: dict[str, Any] = {"name": "", "cpu": 1, "memory_gib": 1, "gpu": 0, "code": "", "env": {}, "options": {}}
    launched = pool.launch(3, **request)
    assert [info.id for info in launched.sessions] == ["x0"]
    assert all(len(words) <= 400 for words in launched.refusals)
    (info,) = pool.listing().values()
    assert len(info.status) <= 40 and info.ip_address is None and info.app_url is None
    left = pool.stop(["x0"], visible=["x0"], timeout_s=0.1)
    assert len(left["x0"]) < 500


def test_a_record_of_megabytes_is_shown_in_a_screenful(world: World) -> None:
    world.start()
    data = json.loads(world.record_of().read_text())
    data["events"] = [[1.0, "z" * 10**6]]
    data["sessions"][0].update(ip_address="z" * 10**6, app_url="https://" + "z" * 10**6)
    data.update(trouble={"at": data["created_at"], "message": "z" * 10**6, "paused": ""}, backend="z" * 10**6)
    data["backend"] = "cml"
    write_private(world.record_of(), json.dumps(data))
    shown = [snapshot(world.open(), "running", {})]
    assert len(to_json(shown)) < 20000 and len(to_text(shown)) < 20000
    world.open().end()


@pytest.mark.parametrize("line", ["--name a\0b", "3\0", "--env A=x\0y"])
def test_a_nul_that_is_typed_is_named(shell: InteractiveShell, line: str) -> None:
    for magic in ("dask_up", "dask_down", "dask_status"):
        with pytest.raises(UsageError, match="NUL") as error:
            shell.run_line_magic(magic, line)
        assert "\0" not in str(error.value)


@pytest.mark.parametrize("option", ["env", "state_directory", "python"])
def test_a_nul_that_is_given_is_named(option: str) -> None:
    with pytest.raises(ValueError, match="NUL") as error:
        make_settings(**{option: {"A": "a\0b"} if option == "env" else "a\0b"})
    assert "\0" not in str(error.value)


@MANY
@hypothesis.given(st.text() | st.just(HOSTILE))
def test_cleaned_words_are_safe_and_keep_their_letters(text: str) -> None:
    assert is_safe(clean(text)) and len(clean(text)) == len(text)
    assert "\n" not in short(text) and is_safe(short(text)) and len(short(text * 100)) <= 300
    if text.isprintable():
        assert clean(text) == text


class Answers:
    """A platform that answers anything."""

    def __init__(self, answer: Any) -> None:
        self.answer = answer

    def launch_workers(self, *_: Any, **__: Any) -> Any:
        return self.answer

    def list_workers(self) -> Any:
        return self.answer

    def stop_workers(self, *_: str) -> Any:
        return self.answer


FIELDS = st.sampled_from(["id", "status", "ip_address", "app_url", "created_at", "message", "engineId", "code"])
SESSIONS = st.lists(st.dictionaries(FIELDS, ANYTHING | st.sampled_from(["x0", "running", "2026-01-31T12:00:00Z"])))


@MANY
@hypothesis.given(ANYTHING | SESSIONS, st.integers(1, 3))
def test_whatever_the_platform_answers_is_taken_in_or_told_in_words(answer: Any, n: int) -> None:
    pool = SessionPool(Platform("cml", Answers(answer)), replace(TIMES, missing_s=0.0))  # type: ignore[arg-type]
    request: dict[str, Any] = {"name": "", "cpu": 1, "memory_gib": 1, "gpu": 0, "code": "", "env": {}, "options": {}}
    launched = pool.launch(n, **request)
    ids = {info.id for info in launched.sessions} | set(launched.strays)
    assert all(SESSION.fullmatch(session) for session in ids)
    assert all(is_safe(words) and len(words) < 500 for words in launched.refusals)
    assert len(launched.sessions) + len(launched.refusals) >= n or launched.doubtful
    try:
        listing = pool.listing()
    except PlatformError as error:
        assert is_safe(str(error)) and len(str(error)) < 500
    else:
        for info in listing.values():
            words = (info.id, info.status, info.ip_address or "", info.app_url or "")
            assert all(is_safe(each) and len(each) <= 2000 for each in words)
    said = pool._ask_to_stop(["x0"])
    assert all(is_safe(words) and len(words) < 500 for words in said.values())


def test_an_error_of_a_cluster_that_is_made_in_python_is_as_clean(world: World) -> None:
    world.workspace.refuse = [HOSTILE] * 3
    with pytest.raises(RuntimeError) as error:
        CMLCluster(2, timeout=5)
    assert "boo" in str(error.value) and is_safe(str(error.value))
