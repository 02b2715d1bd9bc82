"""What was said is there when the session's next turn begins: real files, and memory opened again and again."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from memory_stage import (
    KEY,
    answer,
    contents,
    memory_in,
    names,
    recalled,
    shown,
    take_turn,
    texts_of,
    transcript_path,
    user,
)
from raw_upstream import run_cancelled_at

from picoclaw_trio.errors import RequestError, SessionBusyError, StateError
from picoclaw_trio.memory import Said
from picoclaw_trio.memory.files import file_stem
from picoclaw_trio.messages import Message


async def test_next_turn_remembers_what_was_said_before(tmp_path: Path) -> None:
    async with memory_in(tmp_path) as memory:
        await take_turn(memory, "a", reply="A")
        async with recalled(memory, "b") as recollection:
            assert ["a", "A", "b"] == texts_of(recollection.messages)


async def test_next_start_remembers_it_too(tmp_path: Path) -> None:
    async with memory_in(tmp_path) as memory:
        await take_turn(memory, "a", reply="A")
        await take_turn(memory, "a", "A", "b", reply="B")
    async with memory_in(tmp_path) as memory, recalled(memory, "c") as recollection:
        assert ["a", "A", "b", "B", "c"] == texts_of(recollection.messages)
        assert () == recollection.left_out
        assert recollection.summary is None


async def test_turn_is_on_disk_when_record_returns(tmp_path: Path) -> None:
    async with memory_in(tmp_path) as memory, recalled(memory, "a") as recollection:
        await recollection.record([Said(answer("A"))])
        assert ["a", "A"] == await shown(tmp_path)


async def test_turn_without_an_answer_was_never_there(tmp_path: Path) -> None:
    async with memory_in(tmp_path) as memory:
        async with recalled(memory, "a"):
            pass
        assert [] == names(tmp_path)
        await take_turn(memory, "a", reply="A")
        async with recalled(memory, "b"):
            pass
    assert ["a", "A"] == await shown(tmp_path)
    assert 1 == len(names(tmp_path))


async def test_replaced_end_is_replaced_for_good(tmp_path: Path) -> None:
    async with memory_in(tmp_path) as memory:
        for texts, reply in ((("a",), "A"), (("a", "A", "b"), "B"), (("a", "A", "x"), "X"), (("a", "A", "x"), "Y")):
            await take_turn(memory, *texts, reply=reply)
    assert ["a", "A", "x", "Y"] == await shown(tmp_path)


async def test_sessions_know_nothing_of_each_other(tmp_path: Path) -> None:
    async with memory_in(tmp_path) as memory:
        await take_turn(memory, "a", reply="A", key="openai:ann")
        async with recalled(memory, "b", key="openai:bob") as recollection:
            assert ["b"] == texts_of(recollection.messages)


async def test_steps_of_the_agents_own_are_kept(tmp_path: Path) -> None:
    own = {"id": "1", "type": "function", "function": {"name": "look", "arguments": "{}"}}
    steps = (
        Said(Message("assistant", {"role": "assistant", "content": None, "tool_calls": [own]}), internal=True),
        Said(Message("tool", {"role": "tool", "tool_call_id": "1", "content": "4"}), internal=True),
        Said(Message("assistant", {"role": "assistant", "content": "It is 4.", "tool_calls": [own]}), own_calls=("1",)),
        Said(Message("tool", {"role": "tool", "tool_call_id": "1", "content": "4"}), internal=True),
    )
    async with memory_in(tmp_path) as memory:
        async with recalled(memory, "a") as recollection:
            await recollection.record(steps)
        assert (Said(user("a")), *steps) == await memory.show(KEY)
        assert [2] == [found.messages for found in await memory.sessions()]


async def test_client_may_call_its_fields_as_it_likes(tmp_path: Path) -> None:
    odd = {"role": "user", "content": "a", "keep": 0, "begin": 7, "end": 1, "summary": "?", "sum": "", "name": "Ann"}
    async with memory_in(tmp_path) as memory:
        await take_turn(memory, "a", reply="A")
        async with memory.recall(KEY, [Message("user", odd)] * 3, window=1000, wait=0) as recollection:
            await recollection.record([Said(answer("B"))])
        assert odd == (await memory.show(KEY))[-2].message.body


async def test_files_are_for_their_owner_alone(tmp_path: Path) -> None:
    folder = tmp_path / "home" / "openai_history"
    async with memory_in(folder) as memory:
        await take_turn(memory, "a", reply="A")
    [path] = folder.iterdir()

    assert 0o700 == stat.S_IMODE(folder.stat().st_mode)
    assert 0o600 == stat.S_IMODE(path.stat().st_mode)


# What does not fit


async def test_what_no_longer_fits_is_left_out_at_once_and_for_good(tmp_path: Path) -> None:
    words = [letter * 1000 for letter in "aAbBcC"]
    async with memory_in(tmp_path) as memory:
        for end in (1, 3, 5):
            await take_turn(memory, *words[:end], reply=words[end])
        async with recalled(memory, *words, "d", window=2000) as recollection:
            assert words[:4] == texts_of(recollection.left_out)
            assert [*words[4:], "d"] == texts_of(recollection.messages)
            await recollection.record([Said(answer("D"))], summary="about a and b")
        async with recalled(memory, *words, "d", "D", "e", window=2000) as recollection:
            assert () == recollection.left_out
            assert "about a and b" == recollection.summary
            assert [*words[4:], "d", "D", "e"] == texts_of(recollection.messages)
            await recollection.record([Said(answer("E"))])
    assert [*words, "d", "D", "e", "E"] == await shown(tmp_path)


async def test_summary_stands_until_there_is_another_one(tmp_path: Path) -> None:
    async with memory_in(tmp_path) as memory:
        for number, summary in enumerate([None, "first", None, "second"]):
            async with recalled(memory, f"{number}" * 1000, window=600) as recollection:
                assert [None, None, "first", "first"][number] == recollection.summary
                await recollection.record([Said(answer("A" * 1000))], summary=summary)
    async with memory_in(tmp_path) as memory, recalled(memory, "x", window=600) as recollection:
        assert "second" == recollection.summary
        assert ["x"] == texts_of(recollection.messages)


async def test_summary_that_has_not_changed_is_not_stored_again(tmp_path: Path) -> None:
    async with memory_in(tmp_path) as memory:
        for text in "abc":
            async with recalled(memory, text) as recollection:
                await recollection.record([Said(answer("A"))], summary="about nothing")
    assert 1 == contents(tmp_path).count(b"about nothing")


async def test_editing_what_was_summed_up_takes_the_summary_back(tmp_path: Path) -> None:
    words = [letter * 1000 for letter in "aAbBcC"]
    async with memory_in(tmp_path) as memory:
        for end in (1, 3):
            await take_turn(memory, *words[:end], reply=words[end])
        async with recalled(memory, *words[:5], window=1000) as recollection:
            await recollection.record([Said(answer(words[5]))], summary="about a and b")
        async with recalled(memory, *words[:2], "x", window=2000) as recollection:
            assert recollection.summary is None
            assert [*words[:2], "x"] == texts_of(recollection.messages)
            await recollection.record([Said(answer("X"))])
    async with memory_in(tmp_path) as memory, recalled(memory, "y") as recollection:
        assert recollection.summary is None
        assert [*words[:2], "x", "X", "y"] == texts_of(recollection.messages)


# Names

HOSTILE = (
    "openai:../../../etc/passwd",
    "openai:/etc/passwd",
    "openai:.",
    "openai:..",
    "openai:",
    "",
    "openai:a\0b",
    "openai:a\nb",
    "openai:a b",
    "openai:a_b",
    "openai:a:b",
    "openai:A:b",
    "openai:a-b",
    "openai:a/b",
    "openai:\N{LATIN SMALL LETTER E WITH ACUTE}",
    "openai:e\N{COMBINING ACUTE ACCENT}",
    "openai:\N{SNOWMAN}" * 64,
    "openai:" + "x" * 512,
    "openai:" + "x" * 511 + "y",
    "openai:" + "\N{PILE OF POO}" * 512,
    "openai:NUL",
    "openai:nul",
    "openai:-rf",
    "openai:x.lock",
    "openai:x.jsonl",
    "cli:ann",
)


async def test_any_name_has_a_file_of_its_own(tmp_path: Path) -> None:
    folder = tmp_path / "history"
    async with memory_in(folder) as memory:
        for number, key in enumerate(HOSTILE):
            await take_turn(memory, f"{number}", reply="A", key=key)
        for number, key in enumerate(HOSTILE):
            assert [f"{number}", "A"] == texts_of(await memory.show(key))
        assert set(HOSTILE) == {found.key for found in await memory.sessions()}
    assert len(HOSTILE) == len({name.lower() for name in names(folder, ".jsonl")}) == len(names(folder))
    assert ["history"] == names(tmp_path)


@given(st.lists(st.text(max_size=80), unique=True, max_size=5))
def test_names_are_plain_and_differ(keys: list[str]) -> None:
    stems = {file_stem(key) for key in keys}

    assert len(keys) == len(stems)
    assert all(len(stem) < 100 and stem.replace("-", "").isalnum() and stem.isascii() for stem in stems)
    assert stems == {stem.lower() for stem in stems}


def test_name_tells_whose_it_is() -> None:
    assert file_stem("openai:Ann Smith").startswith("openai-ann-smith-")


async def test_name_that_is_no_text_is_refused(tmp_path: Path) -> None:
    async with memory_in(tmp_path) as memory:
        with pytest.raises(RequestError):
            await take_turn(memory, "a", reply="A", key="openai:\ud800")
    assert [] == names(tmp_path)


# How much is kept


def make_old(folder: Path, key: str, seconds: float) -> None:
    path = folder / f"{file_stem(key)}.jsonl"
    status = path.stat()
    os.utime(path, (status.st_atime, status.st_mtime - seconds))


async def test_least_recently_used_conversations_go(tmp_path: Path) -> None:
    async with memory_in(tmp_path, max_sessions=3) as memory:
        for age, key in enumerate("abc"):
            await take_turn(memory, "x", reply="X", key=key)
            make_old(tmp_path, key, 100 - age)
        await take_turn(memory, "y", reply="Y", key="a")
        await take_turn(memory, "x", reply="X", key="d")
        assert {"a", "c", "d"} == {found.key for found in await memory.sessions()}
    async with memory_in(tmp_path, max_sessions=1) as memory:
        assert ["d"] == [found.key for found in await memory.sessions()]


async def test_files_of_others_are_neither_counted_nor_removed(tmp_path: Path) -> None:
    (tmp_path / "notes.jsonl").write_text("mine\n")
    (tmp_path / f"{'0' * 32}.jsonl").mkdir()
    async with memory_in(tmp_path, max_sessions=1, session_ttl=60) as memory:
        os.utime(tmp_path / "notes.jsonl", (0, 0))
        await take_turn(memory, "x", reply="X")
    async with memory_in(tmp_path, max_sessions=1, session_ttl=60) as memory:
        assert [KEY] == [found.key for found in await memory.sessions()]
    assert 3 == len(names(tmp_path))


async def test_conversation_of_a_running_turn_stays(tmp_path: Path) -> None:
    async with memory_in(tmp_path, max_sessions=1) as memory:
        await take_turn(memory, "x", reply="X", key="a")
        make_old(tmp_path, "a", 100)
        async with recalled(memory, "y", key="a") as recollection:
            await take_turn(memory, "x", reply="X", key="b")
            make_old(tmp_path, "b", 10)
            await recollection.record([Said(answer("Y"))])
        assert {"a"} == {found.key for found in await memory.sessions()}
        assert ["x", "X", "y", "Y"] == texts_of(await memory.show("a"))


async def test_conversation_that_nobody_used_for_too_long_is_forgotten(tmp_path: Path) -> None:
    async with memory_in(tmp_path, session_ttl=60) as memory:
        for key in "ab":
            await take_turn(memory, "x", reply="X", key=key)
            make_old(tmp_path, key, 61)
        assert () == await memory.show("a")
        await take_turn(memory, "y", reply="Y", key="a")
        assert ["y", "Y"] == texts_of(await memory.show("a"))
    async with memory_in(tmp_path, session_ttl=60) as memory:
        assert ["a"] == [found.key for found in await memory.sessions()]


async def test_conversation_does_not_expire_while_its_turn_runs(tmp_path: Path) -> None:
    """Also where the turn writes the file anew, since most of what is in it was replaced."""
    async with memory_in(tmp_path, session_ttl=60) as memory:
        await take_turn(memory, "x", reply="X")
        await take_turn(memory, "x", "X", "long", reply="y" * 100_000)
        await take_turn(memory, "x", "X", "short", reply="Y")
        async with recalled(memory, "z") as recollection:
            make_old(tmp_path, KEY, 61)
            await recollection.record([Said(answer("Z"))])
        assert ["x", "X", "short", "Y", "z", "Z"] == texts_of(await memory.show(KEY))


async def test_turn_is_refused_whose_conversation_was_taken_away(tmp_path: Path) -> None:
    async with memory_in(tmp_path) as memory:
        await take_turn(memory, "x", reply="X")
        await take_turn(memory, "x", "X", "long", reply="y" * 100_000)
        await take_turn(memory, "x", "X", "short", reply="Y")
        async with recalled(memory, "z") as recollection:
            transcript_path(tmp_path).unlink()
            with pytest.raises(StateError):
                await recollection.record([Said(answer("Z"))])
        assert () == await memory.show(KEY)
        await take_turn(memory, "z", reply="Z")
        assert ["z", "Z"] == texts_of(await memory.show(KEY))


# For people


async def test_conversations_are_listed_the_least_recently_used_first(tmp_path: Path) -> None:
    async with memory_in(tmp_path) as memory:
        assert () == await memory.sessions()
        for age, key in enumerate(["openai:b", "openai:a"]):
            await take_turn(memory, "x", reply="X", key=key)
            make_old(tmp_path, key, 10 - age)
        await take_turn(memory, "x", "X", "y", reply="Y", key="openai:a")
        found = await memory.sessions()

    assert [("openai:b", 2), ("openai:a", 4)] == [(one.key, one.messages) for one in found]
    assert [len(contents(tmp_path, one.key)) for one in found] == [one.bytes for one in found]


async def test_what_is_forgotten_is_gone(tmp_path: Path) -> None:
    async with memory_in(tmp_path) as memory:
        await take_turn(memory, "x", reply="X")
        assert await memory.forget(KEY)
        assert not await memory.forget(KEY)
        assert [] == names(tmp_path)
        async with recalled(memory, "y") as recollection:
            assert ["y"] == texts_of(recollection.messages)
            with pytest.raises(SessionBusyError):
                await memory.forget(KEY, wait=0)


# Cancelled


async def test_turn_cancelled_at_any_checkpoint_is_stored_as_a_whole_or_not_at_all(tmp_path: Path) -> None:
    async with memory_in(tmp_path) as memory:
        await take_turn(memory, "a", reply="A")
        step, outcomes = 0, []
        while await run_cancelled_at(step := step + 1, lambda: take_turn(memory, "a", "A", "b", reply="B")):
            outcomes.append(texts_of(await memory.show(KEY)))
            with trio.fail_after(5):  # a cancellation does not wait for the thread that takes back what it did
                while len(names(tmp_path)) > 1:
                    await trio.sleep(0.001)
            await take_turn(memory, "a", reply="A", wait=5)
            assert ["a", "A"] == texts_of(await memory.show(KEY))

    assert [["a", "A"], ["a", "A", "b", "B"]] == [
        found for place, found in enumerate(outcomes) if outcomes.index(found) == place
    ]


async def test_leaving_with_an_error_passes_it_on_as_it_is(tmp_path: Path) -> None:
    with pytest.raises(KeyError):
        async with memory_in(tmp_path) as memory, recalled(memory, "a"):
            raise KeyError
    assert [] == names(tmp_path)
    with trio.move_on_after(0):
        async with memory_in(tmp_path / "never"):
            pass


async def test_what_killed_processes_left_goes_and_files_of_others_stay(tmp_path: Path) -> None:
    stem = file_stem("openai:ann")
    others = {"my-backup.tmp", "editor.lock", "notes.txt", f"{stem}.jsonl.tmp", f"x{stem[-32:]}.tmp", f"{stem}0.lock"}
    for name in (*others, f"{stem}.tmp", f"{stem}.lock", f"{stem[-32:]}.lock", "probe.lock", "probe.tmp"):
        (tmp_path / name).write_text("mine")
    async with memory_in(tmp_path):
        pass

    assert others == set(os.listdir(tmp_path))
