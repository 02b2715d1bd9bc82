"""What the memory makes of files that were cut off, damaged or put there by others, and of disks that fail."""

from __future__ import annotations

import errno
import os
import random
import re
import shutil
import signal
import tempfile
from pathlib import Path

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from memory_stage import (
    KEY,
    SCRIPT,
    STORED,
    answer,
    contents,
    die_at_step,
    memory_in,
    names,
    play,
    recalled,
    shown,
    take_turn,
    talk_for_ever,
    texts_of,
    transcript_path,
)
from small_disk import SmallDisk
from state_disks import ForgetfulDisk, RefusingDisk, StallingDisk, WatchedDisk, received, started
from trio.testing import MockClock

from picoclaw_trio.errors import SessionBusyError, StateError
from picoclaw_trio.memory import Memory, Said, files
from picoclaw_trio.memory.leases import DISK_TIMEOUT

KILLS = int(os.environ.get("PICOCLAW_TEST_KILLS", "30"))


async def played(folder: Path) -> bytes:
    async with memory_in(folder) as memory:
        await play(memory)
    return contents(folder)


async def refusal(folder: Path) -> str:
    """Why the session in *folder* has no turn now."""
    async with memory_in(folder) as memory:
        with pytest.raises(StateError) as caught:
            await take_turn(memory, "x", reply="X")
    return caught.value.reason


def set_aside(folder: Path) -> list[bytes]:
    return [(folder / name).read_bytes() for name in names(folder) if ".damaged-" in name]


async def is_stored(memory: Memory, key: str, reasons: list[str]) -> bool:
    """Take a turn, and say whether it was stored; if it was not, add to *reasons* why."""
    try:
        await take_turn(memory, "x", reply="X", key=key)
    except StateError as exc:
        reasons.append(exc.reason)
        return False
    return True


# Cut off


async def test_turn_that_was_cut_off_at_any_byte_was_never_there(tmp_path: Path) -> None:
    whole = await played(tmp_path)
    ends = [found.end() for found in re.finditer(rb'^{"(transcript|end)":.*\n', whole, re.MULTILINE)]
    async with memory_in(tmp_path) as memory:
        for length in range(ends[2], len(whole)):
            transcript_path(tmp_path).write_bytes(whole[:length])
            stored = STORED[sum(end <= length for end in ends) - 1]
            assert stored == texts_of(await memory.show(KEY))
            await take_turn(memory, "y", reply="Y")
            assert [*stored, "y", "Y"] == texts_of(await memory.show(KEY))
    assert 1 == len(names(tmp_path))


async def test_zeros_of_a_power_cut_are_cut_off(tmp_path: Path) -> None:
    whole = await played(tmp_path)
    transcript_path(tmp_path).write_bytes(whole + b"\0" * 4096)
    async with memory_in(tmp_path) as memory:
        await take_turn(memory, "y", reply="Y")
    assert [*STORED[-1], "y", "Y"] == await shown(tmp_path)
    assert b"\0" not in contents(tmp_path)


# Damaged


@settings(max_examples=60, deadline=None)
@given(place=st.integers(0, 10_000), byte=st.integers(0, 255))
async def test_changed_byte_leaves_what_comes_before_it_and_the_file_is_kept(place: int, byte: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        whole = await played(folder)
        place %= len(whole)
        changed = whole[:place] + bytes([byte]) + whole[place + 1 :]
        transcript_path(folder).write_bytes(changed)
        found = await shown(folder)
        assert found in STORED
        async with memory_in(folder) as memory:
            await take_turn(memory, "y", reply="Y")
        assert [*found, "y", "Y"] == await shown(folder)
        is_cut_off = changed[:-1] == whole[:-1]  # its last byte alone
        assert ([] if found == STORED[-1] or is_cut_off else [changed]) == set_aside(folder)


async def test_missing_turn_is_noticed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    lines = (await played(tmp_path)).splitlines(keepends=True)
    ends = [index for index, line in enumerate(lines) if line.startswith(b'{"end":')]
    transcript_path(tmp_path).write_bytes(b"".join([*lines[: ends[0] + 1], *lines[ends[1] + 1 :]]))
    async with memory_in(tmp_path) as memory:
        await take_turn(memory, "y", reply="Y")
    assert 1 == len(set_aside(tmp_path))
    assert "has a turn that cannot be read; it is kept as" in caplog.text
    assert [*STORED[1], "y", "Y"] == await shown(tmp_path)


@pytest.mark.parametrize(
    "foreign", [b"hello", b"{}\n", b"\xff\xfe\n", b"[1]\n", b'{"transcript":1,"session":"other"}\n', b""]
)
async def test_file_that_is_none_of_ours_is_kept_aside(tmp_path: Path, foreign: bytes) -> None:
    transcript_path(tmp_path).write_bytes(foreign)
    async with memory_in(tmp_path) as memory:
        await memory.sessions()
        await take_turn(memory, "a", reply="A")
        assert [KEY] == [found.key for found in await memory.sessions()]
    assert ["a", "A"] == await shown(tmp_path)
    assert [foreign] == set_aside(tmp_path)


async def test_file_of_a_newer_version_is_left_alone(tmp_path: Path) -> None:
    newer = b'{"transcript":2,"session":"openai:ann","shape":"unknown"}\n\x00\x01'
    transcript_path(tmp_path).write_bytes(newer)

    assert "written by a newer version" in await refusal(tmp_path)
    assert newer == contents(tmp_path)
    assert 1 == len(names(tmp_path))


async def test_folder_or_pipe_in_the_place_of_a_file_is_a_refusal(tmp_path: Path) -> None:
    path = transcript_path(tmp_path)
    path.mkdir()
    assert "is not a file" in await refusal(tmp_path)
    path.rmdir()
    os.mkfifo(path)
    with trio.fail_after(5):
        assert "is not a file" in await refusal(tmp_path)
        async with memory_in(tmp_path) as memory:
            assert () == await memory.sessions()
            await take_turn(memory, "x", reply="X", key="openai:bob")


async def test_folder_that_is_none_is_a_refusal(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(StateError):
        async with memory_in(tmp_path / "file"):
            pass


async def test_transcript_removed_by_hand_while_its_turn_runs_is_not_made_of_half_a_turn(tmp_path: Path) -> None:
    await played(tmp_path)
    async with memory_in(tmp_path) as memory:
        async with recalled(memory, "y") as recollection:
            transcript_path(tmp_path).unlink()
            with pytest.raises(StateError):
                await recollection.record([Said(answer("Y"))])
        await take_turn(memory, "z", reply="Z")
    assert ["z", "Z"] == await shown(tmp_path)


# Bounded


async def test_answers_asked_for_again_and_again_do_not_fill_the_disk(tmp_path: Path) -> None:
    async with memory_in(tmp_path) as memory:
        await take_turn(memory, "a", reply="A")
        for number in range(60):
            await take_turn(memory, "a", "A", "b", reply=f"{number}" * 4000)
            assert 150_000 > len(contents(tmp_path))
        assert ["a", "A", "b", "59" * 4000] == texts_of(await memory.show(KEY))


async def test_answer_that_could_not_be_replaced_is_still_there_after_the_file_was_written_anew(tmp_path: Path) -> None:
    disk = RefusingDisk()
    async with memory_in(tmp_path, disk=disk) as memory:
        await take_turn(memory, "a", reply="A")
        for _ in range(4):
            await take_turn(memory, "a", "A", "b", reply="B" * 40_000)
        size = len(contents(tmp_path))
        disk.refused = {"sync_data"}
        with pytest.raises(StateError):
            await take_turn(memory, "a", "A", "b", reply="C")
        assert size > len(contents(tmp_path))
        assert ["a", "A", "b", "B" * 40_000] == texts_of(await memory.show(KEY)) == await shown(tmp_path)


async def test_oldest_turns_of_a_huge_conversation_go(tmp_path: Path) -> None:
    words = [f"{number:02}" + "x" * 1_500_000 for number in range(24)]
    async with memory_in(tmp_path) as memory:
        for end in range(1, 24, 2):
            async with recalled(memory, *words[:end], window=10**9) as recollection:
                assert words[end - 1] == texts_of(recollection.messages)[-1]
                await recollection.record([Said(answer(words[end]))])
            assert files.MAX_LIVE_BYTES + 3_100_000 > len(contents(tmp_path))
        left = texts_of(await memory.show(KEY))
        [found] = await memory.sessions()

        async with recalled(memory, *words[:21], window=10**9) as recollection:  # asked again in the middle
            assert left[: left.index(words[20]) + 1] == texts_of(recollection.messages)

    assert words[-len(left) :] == left
    assert 6 <= len(left) < 14
    assert len(left) == found.messages


# A disk that fails

STEPS = ("lock", "create", "write", "sync", "sync_data", "rename")


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EIO])
@pytest.mark.parametrize("step", STEPS)
async def test_refused_step_stores_nothing(tmp_path: Path, step: str, code: int) -> None:
    disk = RefusingDisk(code=code)
    reasons: list[str] = []
    async with memory_in(tmp_path, disk=disk) as memory:
        await take_turn(memory, "a", reply="A")
        for key in ("new", KEY):
            before = texts_of(await memory.show(key))
            disk.refused = {step}
            is_needed = key == "new" or step in ("lock", "write", "sync_data")
            assert is_needed != await is_stored(memory, key, reasons)
            assert before == texts_of(await memory.show(key))[: len(before)] or not is_needed
            disk.refused = set()
            await take_turn(memory, "b", reply="B", key=key)
            assert ["b", "B"] == texts_of(await memory.show(key))[-2:]
    assert {os.strerror(code)} == {reason.rpartition(": ")[2] for reason in reasons}
    assert 2 == len(names(tmp_path, ".jsonl")) == len(names(tmp_path))


async def test_turn_that_can_neither_be_stored_nor_be_taken_back_does_not_count(tmp_path: Path) -> None:
    disk = RefusingDisk()
    async with memory_in(tmp_path, disk=disk) as memory:
        await take_turn(memory, "a", reply="A")
        disk.refused = {"sync_data", "truncate"}
        with pytest.raises(StateError):
            await take_turn(memory, "b", reply="B")
        assert ["a", "A"] == texts_of(await memory.show(KEY))
        with pytest.raises(StateError):
            await take_turn(memory, "b", reply="B")
        disk.refused = set()
        await take_turn(memory, "c", reply="C")
        assert ["a", "A", "c", "C"] == texts_of(await memory.show(KEY)) == await shown(tmp_path)


async def test_full_disk_refuses_turns_until_there_is_room(small_disk: SmallDisk) -> None:
    async with memory_in(small_disk.home, disk=small_disk.disk) as memory:
        await take_turn(memory, "a", reply="A")
        small_disk.fill()
        stored = ["a", "A"]
        reasons: list[str] = []
        while await is_stored(memory, KEY, reasons):  # the transcript's last block has room for some
            stored += ["x", "X"]
            assert len(stored) < 400, "the disk was never full"
        assert stored == texts_of(await memory.show(KEY))
        with pytest.raises(StateError):
            await memory.check_writable()
        small_disk.empty()
        await take_turn(memory, "c", reply="C")
        assert [*stored, "c", "C"] == texts_of(await memory.show(KEY)) == await shown(small_disk.home)


async def test_write_that_hangs_is_given_up_and_keeps_its_session_until_it_ends(
    tmp_path: Path, mock_clock: MockClock
) -> None:
    disk = StallingDisk()
    async with memory_in(tmp_path, disk=disk) as memory:
        disk.go_on.set()
        await take_turn(memory, "a", reply="A")
        disk.go_on.clear()
        disk.has_stalled.clear()

        async def lose() -> None:
            with pytest.raises(StateError) as caught:
                await take_turn(memory, "b", reply="B")
            assert "took longer than 10 s" in caught.value.reason

        async with trio.open_nursery() as nursery:
            nursery.start_soon(lose)
            await trio.to_thread.run_sync(disk.has_stalled.wait)
            mock_clock.jump(DISK_TIMEOUT)
        with pytest.raises(SessionBusyError):
            await take_turn(memory, "c", reply="C", wait=0)
        disk.go_on.set()
        mock_clock.rate = 1
        await take_turn(memory, "c", reply="C")
        assert ["a", "A", "c", "C"] == texts_of(await memory.show(KEY))


# Killed


async def test_kill_at_any_step_leaves_whole_turns(tmp_path: Path) -> None:
    disk = WatchedDisk()
    async with memory_in(tmp_path / "counted", disk=disk) as memory:
        await play(memory)
    for number in range(1, len(disk.steps) + 1):
        folder = tmp_path / f"{number}"
        with started(die_at_step, folder, number) as (connection, _):
            acknowledged = received(connection)
        done = acknowledged[-1] if acknowledged else 0
        assert await shown(folder) in STORED[done : done + 2]
        assert [] == names(folder, ".lock") + names(folder, ".tmp")


async def test_power_cut_at_any_step_loses_nothing_acknowledged(tmp_path: Path) -> None:
    done = 0

    def check(folder: Path) -> None:
        assert _read(folder) in STORED[done : done + 2]

    home, scratch = tmp_path / "home", tmp_path / "scratch"
    home.mkdir()
    scratch.mkdir()
    disk = ForgetfulDisk(home, scratch, check)
    async with memory_in(home, disk=disk) as memory:
        for texts, reply in SCRIPT:
            await take_turn(memory, *texts, reply=reply)
            done += 1
    disk.close()


def _read(folder: Path) -> list[str]:
    transcript, _ = files.Files(folder, WatchedDisk()).read(KEY)
    return texts_of(tuple(transcript.entries))


def test_kill_at_any_moment_loses_nothing_acknowledged(tmp_path: Path) -> None:
    """One process that talks all the time; killed again and again, its session has every turn that it was told of."""
    stored: list[str] = []
    for number in range(max(5, KILLS // 3)):
        begun = ""
        with started(talk_for_ever, tmp_path, f"r{number}", KEY) as (connection, process):
            for _ in range(random.randrange(1, 40)):
                connection.recv()
                connection.recv()
            os.kill(process.pid, signal.SIGKILL)
            rest = received(connection)
        words = [word for kind, word in rest if kind == "begun"]
        begun = words[-1] if words else ""
        found = trio.run(shown, tmp_path)[::2]
        assert stored == found[: len(stored)]
        mine = [word for word in found if word.startswith(f"r{number}-")]
        assert [f"r{number}-{index}" for index in range(len(mine))] == mine
        acknowledged = [word for kind, word in rest if kind == "done"]
        assert set(acknowledged) <= set(mine)
        assert not begun or len(mine) >= int(begun.partition("-")[2])
        stored = found


async def test_folder_that_was_removed_is_made_again_where_the_home_stands(tmp_path: Path) -> None:
    folder = tmp_path / "home" / "memory"
    async with memory_in(folder) as memory:
        await take_turn(memory, "x", reply="X")
        shutil.rmtree(folder)
        await take_turn(memory, "y", reply="Y")
        assert ["y", "Y"] == texts_of(await memory.show(KEY))
        assert 0o700 == folder.stat().st_mode & 0o777

        shutil.rmtree(folder.parent)
        with pytest.raises(StateError):
            await take_turn(memory, "z", reply="Z")
        assert not folder.parent.exists()


async def test_folder_is_probed_at_most_once_a_second(tmp_path: Path, mock_clock: MockClock) -> None:
    disk = WatchedDisk()
    async with memory_in(tmp_path, disk=disk) as memory:
        disk.steps.clear()
        for _ in range(3):
            async with trio.open_nursery() as nursery:
                for _ in range(10):
                    nursery.start_soon(memory.check_writable)
            mock_clock.jump(0.5)

    assert 2 == disk.steps.count("lock")


async def test_why_nothing_can_be_kept_is_told_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, mock_clock: MockClock
) -> None:
    folder = tmp_path / "memory"
    async with memory_in(folder) as memory:
        folder.rmdir()
        folder.write_bytes(b"in the way")
        for _ in range(2):
            with pytest.raises(StateError):
                await memory.check_writable()
            assert not await is_stored(memory, KEY, [])
        folder.unlink()
        mock_clock.jump(1)
        await memory.check_writable()
        assert [] == names(folder)
        assert await is_stored(memory, KEY, [])

    (line,) = caplog.messages
    assert "a conversation cannot be read or kept" in line
    assert str(folder) in line
