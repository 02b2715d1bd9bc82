from __future__ import annotations

import json
import tempfile
from pathlib import Path

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from state_disks import NEVER, held

from picoclaw_trio.errors import RequestError
from picoclaw_trio.state.changes import NO_CHANGE
from picoclaw_trio.state.sessions import SessionInfo, open_sessions
from picoclaw_trio.state.storage import DOCUMENT_NAME, JOURNAL_NAME

HOUR = 3600


@attrs.define
class Clock:
    now: float = 1_790_000_000.5

    def __call__(self) -> float:
        return self.now


async def test_nothing_is_selected_at_first(tmp_path: Path) -> None:
    async with open_sessions(tmp_path) as sessions:
        assert sessions.selected("global") is None
        assert () == sessions.list()


async def test_scopes_never_see_each_other(tmp_path: Path) -> None:
    keys = ["global", "openai:default", "openai:alice", "openai:global", "cli:alice"]
    async with open_sessions(tmp_path) as sessions:
        for number, key in enumerate(keys):
            await sessions.select(key, f"m{number}").wait()
    async with open_sessions(tmp_path) as sessions:
        assert [f"m{number}" for number in range(len(keys))] == [sessions.selected(key) for key in keys]


async def test_list_and_export_tell_what_is_held_and_when_it_was_selected(tmp_path: Path) -> None:
    clock = Clock(0)
    async with open_sessions(tmp_path, clock=clock) as sessions:
        await sessions.select("openai:alice", "m1").wait()
        clock.now = 60
        sessions.select("global", "m2")

        assert (SessionInfo("openai:alice", "m1", 0), SessionInfo("global", "m2", 60)) == sessions.list()
        assert {
            "version": 1,
            "global": {"model": "m2", "updated_at": "1970-01-01T00:01:00Z"},
            "sessions": {"openai:alice": {"model": "m1", "updated_at": "1970-01-01T00:00:00Z"}},
        } == json.loads(sessions.export())


async def test_deleted_session_is_gone_after_the_next_start_too(tmp_path: Path) -> None:
    async with open_sessions(tmp_path) as sessions:
        for key in ("openai:a", "openai:b", "global"):
            sessions.select(key, "m")
        for key in ("openai:a", "global"):
            await sessions.delete(key).wait()
            assert sessions.selected(key) is None
        assert NO_CHANGE is sessions.delete("openai:a")
    async with open_sessions(tmp_path) as sessions:
        assert {"openai:b": "m"} == held(sessions)


KEYS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=512)


@settings(max_examples=30, deadline=None)
@given(st.dictionaries(KEYS, KEYS, min_size=1, max_size=4))
async def test_any_text_is_a_key_and_an_alias(aliases: dict[str, str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        for is_in_document in (False, True, True):
            async with open_sessions(Path(folder), folding=NEVER) as sessions:
                if not is_in_document:
                    for change in aliases.items():
                        await sessions.select(*change).wait()
                assert aliases == {key: sessions.selected(key) for key in aliases}


@pytest.mark.parametrize("text", ["\ud800", "a\udfff", "", "x" * 1025])
async def test_text_that_cannot_be_stored_is_refused_and_no_more_than_that(tmp_path: Path, text: str) -> None:
    async with open_sessions(tmp_path) as sessions:
        assert sessions.selected(text) is None
        assert NO_CHANGE is sessions.delete(text)
        with pytest.raises(RequestError) as key:
            sessions.select(text, "m")
        with pytest.raises(RequestError) as alias:
            sessions.select("global", text)
        await sessions.select("openai:a", "m").wait()

        assert ("user", "model") == (key.value.param, alias.value.param)
        assert {"openai:a": "m"} == held(sessions)


@pytest.mark.parametrize("now", [-5.0, 1e20])
async def test_clock_that_is_wrong_spoils_nothing(tmp_path: Path, now: float) -> None:
    async with open_sessions(tmp_path, clock=Clock(now)) as sessions:
        await sessions.select("global", "m").wait()
    async with open_sessions(tmp_path) as sessions:
        assert "m" == sessions.selected("global")


# Bounds


async def test_least_recently_used_session_goes_when_there_are_too_many(tmp_path: Path) -> None:
    async with open_sessions(tmp_path, max_sessions=3) as sessions:
        await sessions.select("global", "m").wait()
        for key in ("openai:1", "openai:2", "openai:3"):
            await sessions.select(key, "m").wait()
        sessions.selected("openai:1")
        sessions.select("openai:2", "m")
        await sessions.select("openai:4", "m").wait()

        assert {"global", "openai:1", "openai:2", "openai:4"} == held(sessions).keys()
    async with open_sessions(tmp_path) as sessions:
        assert ["openai:1", "openai:2", "openai:4", "global"] == list(held(sessions))


async def test_bound_holds_for_changes_made_together(tmp_path: Path) -> None:
    async with open_sessions(tmp_path, max_sessions=3) as sessions:
        for first in (0, 10):
            changes = [sessions.select(f"openai:{first + number}", "m") for number in range(10)]
            for change in changes:
                await change.wait()

            assert [f"openai:{first + number}" for number in (7, 8, 9)] == list(held(sessions))


async def test_bound_that_was_lowered_holds_from_the_start(tmp_path: Path) -> None:
    async with open_sessions(tmp_path) as sessions:
        for number in range(10):
            sessions.select(f"openai:{number}", "m")
    async with open_sessions(tmp_path, max_sessions=2) as sessions:
        pass

    assert ["openai:8", "openai:9"] == list(json.loads((tmp_path / DOCUMENT_NAME).read_bytes())["sessions"])
    assert {"openai:8": "m", "openai:9": "m"} == held(sessions)


async def test_bound_holds_for_what_another_process_adds(tmp_path: Path) -> None:
    async with open_sessions(tmp_path, max_sessions=3) as ours, open_sessions(tmp_path, max_sessions=3) as theirs:
        for number in range(5):
            await (ours, theirs)[number % 2].select(f"openai:{number}", "m").wait()

        assert ["openai:2", "openai:3", "openai:4"] == list(held(ours)) == list(held(theirs))


async def test_session_that_nobody_used_for_its_time_to_live_goes(tmp_path: Path) -> None:
    clock = Clock()
    async with open_sessions(tmp_path, session_ttl=HOUR, clock=clock) as sessions:
        for key in ("openai:a", "openai:b", "global"):
            await sessions.select(key, "m").wait()
        clock.now += HOUR / 2
        sessions.selected("openai:b")
        clock.now += HOUR / 2 + 1

        assert [None, "m", "m"] == [sessions.selected(key) for key in ("openai:a", "openai:b", "global")]
        assert {"openai:b", "global"} == held(sessions).keys()
        assert b"openai:a" not in sessions.export()
        change = sessions.select("openai:a", "m")
        assert not change.is_durable
        await change.wait()
        clock.now += 2 * HOUR
        await sessions.select("openai:c", "m").wait()
    assert ["openai:c"] == list(json.loads((tmp_path / DOCUMENT_NAME).read_bytes())["sessions"])


async def test_use_is_known_to_other_processes_and_after_the_next_start(tmp_path: Path) -> None:
    clock = Clock()
    async with (
        open_sessions(tmp_path, session_ttl=HOUR, clock=clock) as ours,
        open_sessions(tmp_path, session_ttl=HOUR, clock=clock) as theirs,
    ):
        await ours.select("openai:a", "m").wait()
        for _ in range(4):
            clock.now += HOUR / 2
            assert ours.select("openai:a", "m").is_durable
            await ours.select("openai:x", str(clock.now)).wait()  # whatever is written after it
        clock.now += HOUR / 2

        assert "m" == theirs.selected("openai:a")
    async with open_sessions(tmp_path, session_ttl=HOUR, clock=clock) as sessions:
        assert "m" == sessions.selected("openai:a")


async def test_use_is_written_once_an_hour_at_most(tmp_path: Path) -> None:
    clock = Clock()
    async with open_sessions(tmp_path, clock=clock, folding=NEVER) as sessions:
        await sessions.select("openai:a", "m").wait()
        await sessions.select("global", "m").wait()
        uses = []
        for passed in (HOUR, 1, HOUR, 1, HOUR):
            clock.now += passed
            for _ in range(10):
                assert NO_CHANGE is sessions.select("openai:a", "m")
                sessions.selected("global")
            await sessions.select("openai:b", str(clock.now)).wait()  # is written with what came before
            uses.append((tmp_path / JOURNAL_NAME).read_bytes().count(b'{"use":"openai:a"'))

        assert [0, 1, 1, 2, 2] == uses
