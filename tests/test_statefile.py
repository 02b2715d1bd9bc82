from __future__ import annotations

import errno
import logging
import math
import os
import random
import signal
import tempfile
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from raw_upstream import run_cancelled_at
from small_disk import SmallDisk
from state_disks import (
    ALWAYS,
    NEVER,
    RefusingDisk,
    StallingDisk,
    WatchedDisk,
    change_for_ever,
    change_own_and_shared,
    held,
    names,
    obey,
    started,
    stored,
)
from trio.testing import MockClock, wait_all_tasks_blocked

from picoclaw_trio.errors import StateError
from picoclaw_trio.state.changes import NO_CHANGE, Change
from picoclaw_trio.state.disk import Disk
from picoclaw_trio.state.sessions import Sessions, open_sessions
from picoclaw_trio.state.statefile import WRITE_TIMEOUT, Folding
from picoclaw_trio.state.storage import DOCUMENT_NAME, JOURNAL_NAME, LOCK_NAME

KILLS = int(os.environ.get("PICOCLAW_TEST_KILLS", "30"))
NAMES = {DOCUMENT_NAME, JOURNAL_NAME, LOCK_NAME}


async def found(home: Path) -> dict[str, str]:
    """What another process that starts now would find."""
    return await trio.to_thread.run_sync(stored, home)


async def reason(change: Change) -> str:
    with pytest.raises(StateError) as caught:
        await change.wait()
    return caught.value.reason


def open_files() -> int:
    return len(os.listdir("/dev/fd"))


# Durable, and shared by those who wait


async def test_change_shows_at_once_and_is_on_disk_when_wait_returns(tmp_path: Path) -> None:
    async with open_sessions(tmp_path, folding=NEVER) as sessions:
        change = sessions.select("global", "m1")
        assert "m1" == sessions.selected("global")
        assert not change.is_durable
        await change.wait()

        assert change.is_durable
        assert b'"m1"' in (tmp_path / JOURNAL_NAME).read_bytes()
        assert {"global": "m1"} == await found(tmp_path)


async def test_changes_made_together_share_one_write(tmp_path: Path) -> None:
    disk = WatchedDisk()
    async with open_sessions(tmp_path, disk=disk, folding=NEVER) as sessions:
        disk.steps.clear()
        async with trio.open_nursery() as nursery:
            for number in range(64):
                nursery.start_soon(sessions.select(f"openai:{number}", "m").wait)

        assert ["lock", "write", "sync_data"] == disk.steps
    assert 64 == len(await found(tmp_path))


async def test_changes_during_a_write_share_the_next_one(tmp_path: Path) -> None:
    disk = StallingDisk()
    async with open_sessions(tmp_path, disk=disk, folding=NEVER) as sessions:
        disk.steps.clear()
        changes = [sessions.select("openai:first", "m")]
        await trio.to_thread.run_sync(disk.has_stalled.wait)
        changes += [sessions.select(f"openai:{number}", "m") for number in range(64)]
        disk.go_on.set()
        for change in changes:
            await change.wait()

        assert 2 * ["lock", "write", "sync_data"] == disk.steps


async def test_stored_alias_selected_again_and_again_writes_nothing(tmp_path: Path) -> None:
    disk = WatchedDisk()
    async with open_sessions(tmp_path, disk=disk, folding=NEVER) as sessions:
        for key in ("global", "openai:a"):
            await sessions.select(key, "m").wait()
        disk.steps.clear()
        for key in ("global", "openai:a"):
            assert NO_CHANGE is sessions.select(key, "m")
            for _ in range(100):
                await sessions.select(key, "m").wait()

        assert [] == disk.steps


async def test_alias_that_is_still_being_written_is_waited_for(tmp_path: Path) -> None:
    disk = StallingDisk()
    async with open_sessions(tmp_path, disk=disk) as sessions:
        sessions.select("global", "m")
        await trio.to_thread.run_sync(disk.has_stalled.wait)
        again = sessions.select("global", "m")
        assert not again.is_durable
        disk.go_on.set()
        await again.wait()

        assert again.is_durable
        assert "m" == sessions.selected("global")
        assert NO_CHANGE is sessions.select("global", "m")


async def test_leaving_writes_what_nobody_waited_for(tmp_path: Path) -> None:
    async with open_sessions(tmp_path) as sessions:
        sessions.select("openai:a", "m1")

    assert {"openai:a": "m1"} == await found(tmp_path)


async def test_clean_stop_leaves_everything_in_the_document(tmp_path: Path) -> None:
    async with open_sessions(tmp_path, folding=NEVER) as sessions:
        await sessions.select("openai:a", "m1").wait()
        assert b"m1" not in (tmp_path / DOCUMENT_NAME).read_bytes()
        exported = sessions.export()

    assert exported == (tmp_path / DOCUMENT_NAME).read_bytes()
    assert NAMES == names(tmp_path)


async def test_document_is_brought_up_to_date_when_things_are_quiet(tmp_path: Path) -> None:
    async with open_sessions(tmp_path, folding=Folding(quiet_delay=0.001)) as sessions:
        await sessions.select("openai:a", "m1").wait()
        with trio.fail_after(10):
            while b"m1" not in (tmp_path / DOCUMENT_NAME).read_bytes():
                await trio.lowlevel.checkpoint()


async def test_nobody_folds_what_others_are_writing_when_quiet_oneself(tmp_path: Path, mock_clock: MockClock) -> None:
    disk = WatchedDisk()
    async with open_sessions(tmp_path, disk=disk) as ours, open_sessions(tmp_path, folding=NEVER) as theirs:
        await ours.select("openai:a", "m1").wait()
        await wait_all_tasks_blocked()
        disk.steps.clear()
        mock_clock.jump(1)
        await trio.to_thread.run_sync(partial(wait_for_steps, disk, 13))
        for number in range(10):
            await theirs.select("openai:b", f"m{number}").wait()
            assert f"m{number}" == ours.selected("openai:b")
            mock_clock.jump(1)
            await wait_all_tasks_blocked(0.001)

        assert 13 == len(disk.steps)


def wait_for_steps(disk: WatchedDisk, count: int) -> None:
    while len(disk.steps) < count:
        os.sched_yield()


async def test_journal_stays_bounded_under_load(tmp_path: Path) -> None:
    async with open_sessions(tmp_path, folding=Folding(min_bytes=2_000, quiet_delay=math.inf)) as sessions:
        sizes = []
        for number in range(100):
            await sessions.select("openai:a", f"m{number}").wait()
            sizes.append((tmp_path / JOURNAL_NAME).stat().st_size)

    assert max(sizes) < 2_500
    assert {"openai:a": "m99"} == await found(tmp_path)


async def test_leaving_closes_every_file_and_refuses_further_changes(tmp_path: Path) -> None:
    async with open_sessions(tmp_path):
        pass
    before = open_files()
    async with open_sessions(tmp_path) as sessions:
        await sessions.select("global", "m").wait()
    with pytest.raises(StateError):
        sessions.select("global", "m2")

    assert "m" == sessions.selected("global")
    assert before == open_files()


@pytest.mark.parametrize("error", [ValueError("v"), KeyboardInterrupt(), ExceptionGroup("g", [ValueError("v")])])
async def test_error_of_the_body_comes_out_as_it_is(tmp_path: Path, error: BaseException) -> None:
    caught: BaseException | None = None
    try:
        async with open_sessions(tmp_path) as sessions:
            sessions.select("global", "m")
            raise error
    except BaseException as exc:
        caught = exc

    assert error is caught
    assert {"global": "m"} == await found(tmp_path)


# When the disk refuses


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EIO, errno.EMFILE])
@pytest.mark.parametrize("step", ["lock", "write", "sync_data"])
async def test_refused_change_is_undone_and_the_next_one_tries_again(tmp_path: Path, step: str, code: int) -> None:
    disk = RefusingDisk(code=code)
    async with open_sessions(tmp_path, disk=disk, folding=NEVER) as sessions:
        await sessions.select("openai:a", "m1").wait()
        disk.refused = {step}
        changes = [sessions.select("openai:a", "m2"), sessions.select("openai:b", "m2"), sessions.delete("openai:a")]
        reasons = {await reason(change) for change in changes}

        assert 1 == len(reasons)
        assert sessions.problem in reasons
        assert str(sessions.problem).endswith(os.strerror(code))
        assert {"openai:a": "m1"} == held(sessions) == await found(tmp_path)

        disk.refused = set()
        await sessions.select("openai:b", "m3").wait()
        assert sessions.problem is None
        assert {"openai:a": "m1", "openai:b": "m3"} == held(sessions) == await found(tmp_path)
    assert NAMES == names(tmp_path)


@pytest.mark.parametrize("is_folded", [False, True])
async def test_what_others_wrote_after_a_change_that_could_not_be_taken_back_is_seen(
    tmp_path: Path, is_folded: bool
) -> None:
    disk = RefusingDisk()
    async with open_sessions(tmp_path) as sessions:
        await sessions.select("openai:a", "m1").wait()
    async with open_sessions(tmp_path, folding=NEVER, disk=disk) as sessions, AsyncExitStack() as stack:
        others = await stack.enter_async_context(open_sessions(tmp_path, folding=NEVER))
        disk.refused = {"sync_data", "truncate"}
        await reason(sessions.select("openai:a", "m2"))
        disk.refused = set()
        await others.select("openai:b", "m3").wait()
        if is_folded:
            await stack.aclose()

        assert {"openai:a": "m2", "openai:b": "m3"} == held(sessions)
        await sessions.select("openai:c", "m4").wait()
    assert {"openai:a": "m2", "openai:b": "m3", "openai:c": "m4"} == await found(tmp_path)


async def test_alias_whose_write_was_refused_is_written_when_selected_again(tmp_path: Path) -> None:
    disk = RefusingDisk({"write"})
    disk.refused = set()
    async with open_sessions(tmp_path, disk=disk) as sessions:
        disk.refused = {"sync_data"}
        await reason(sessions.select("global", "m"))
        disk.refused = set()
        change = sessions.select("global", "m")
        assert not change.is_durable
        await change.wait()

        assert {"global": "m"} == await found(tmp_path)


@pytest.mark.parametrize(
    ("is_first_refused", "is_second_refused", "left"),
    [(True, False, "m3"), (False, True, "m2"), (True, True, "m1"), (False, False, "m3")],
)
async def test_later_change_of_the_same_key_stands_for_itself(
    tmp_path: Path, is_first_refused: bool, is_second_refused: bool, left: str
) -> None:
    disk = StallingDisk()
    disk.go_on.set()
    async with open_sessions(tmp_path, disk=disk, folding=NEVER) as sessions:
        await sessions.select("openai:a", "m1").wait()
        disk.go_on.clear()
        disk.has_stalled.clear()
        first = sessions.select("openai:a", "m2")
        await trio.to_thread.run_sync(disk.has_stalled.wait)
        second = sessions.select("openai:a", "m3")
        assert "m3" == sessions.selected("openai:a")
        outcomes = []
        for change, is_refused in ((first, is_first_refused), (second, is_second_refused)):
            disk.refused = {"sync_data"} if is_refused else set()
            disk.has_stalled.clear()
            disk.go_on.set()
            try:
                await change.wait()
                outcomes.append(True)
            except StateError:
                outcomes.append(False)

        assert [not is_first_refused, not is_second_refused] == outcomes
        assert left == sessions.selected("openai:a")
        disk.refused = set()
    assert {"openai:a": left} == await found(tmp_path)


async def test_problem_is_logged_once_and_so_is_its_end(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    disk = RefusingDisk()
    async with open_sessions(tmp_path, disk=disk) as sessions:
        disk.refused = {"lock"}
        for number in range(3):
            await reason(sessions.select("global", f"m{number}"))
        disk.refused = set()
        await sessions.select("global", "m").wait()

    assert [logging.WARNING] * 2 == [record.levelno for record in caplog.records]
    assert ["cannot be written" in caplog.messages[0], "can be written again" in caplog.messages[1]] == [True, True]


async def test_fold_without_room_is_no_problem_and_is_not_tried_all_the_time(tmp_path: Path) -> None:
    disk = RefusingDisk()
    async with open_sessions(tmp_path, disk=disk, folding=ALWAYS) as sessions:
        await sessions.select("openai:a", "m").wait()
        disk.refused = {"create"}
        disk.steps.clear()
        for number in range(64):
            await sessions.select("openai:a", f"m{number}").wait()

        assert sessions.problem is None
        assert 1 <= disk.steps.count("create") <= 6
        disk.refused = set()
    assert {"openai:a": "m63"} == await found(tmp_path)


async def test_full_disk_refuses_changes_until_there_is_room(small_disk: SmallDisk) -> None:
    async with open_sessions(small_disk.home, disk=small_disk.disk, folding=NEVER) as sessions:
        await sessions.select("openai:a", "m1").wait()
        small_disk.fill()
        for number in range(200):  # the journal's last block has room for some
            kept = held(sessions)
            change = sessions.select("openai:a", f"{number}" * 20)
            try:
                await change.wait()
            except StateError:
                break
        else:
            pytest.fail("the disk is full")
        assert kept == held(sessions)
        assert "No space left on device" in str(sessions.problem)
        with pytest.raises(StateError):
            await sessions.check_writable()

        small_disk.empty()
        await sessions.select("openai:a", "m2").wait()
        assert sessions.problem is None
    assert {"openai:a": "m2"} == await found(small_disk.home)


async def test_disk_that_turns_read_only_refuses_changes_and_is_still_read(small_disk: SmallDisk) -> None:
    async with open_sessions(small_disk.home, disk=small_disk.disk, folding=NEVER) as sessions:
        await sessions.select("openai:a", "m1").wait()
        small_disk.protect()

        assert "Read-only file system" in await reason(sessions.select("openai:a", "m2"))
        assert {"openai:a": "m1"} == held(sessions)


async def test_folder_that_is_gone_refuses_changes_until_it_is_back(tmp_path: Path) -> None:
    home, away = tmp_path / "home", tmp_path / "away"
    async with open_sessions(home) as sessions:
        await sessions.select("openai:a", "m1").wait()
        home.rename(away)
        assert f"{home / LOCK_NAME}: No such file or directory" == await reason(sessions.select("openai:a", "m2"))
        assert "m1" == sessions.selected("openai:a")
        away.rename(home)
        await sessions.select("openai:b", "m3").wait()

    assert {"openai:a": "m1", "openai:b": "m3"} == await found(home)


@attrs.define
class VanishingDisk(Disk):
    """The folder is renamed as soon as something was synced there."""

    home: Path

    def sync_data(self, fd: int) -> None:
        super().sync_data(fd)
        self.home.rename(self.home.with_name("away"))


async def test_change_is_remembered_if_the_folder_goes_right_after_its_write(tmp_path: Path) -> None:
    async with open_sessions(tmp_path / "home", disk=VanishingDisk(tmp_path / "home")) as sessions:
        await sessions.select("openai:a", "m1").wait()

        assert {"openai:a": "m1"} == held(sessions)
    assert {"openai:a": "m1"} == await found(tmp_path / "away")


async def test_folder_that_was_emptied_is_what_counts(tmp_path: Path) -> None:
    async with open_sessions(tmp_path) as sessions:
        await sessions.select("openai:a", "m1").wait()
        for name in names(tmp_path):
            (tmp_path / name).unlink()
        await sessions.select("openai:b", "m2").wait()

        assert {"openai:b": "m2"} == held(sessions)


async def test_write_that_hangs_is_given_up_and_never_counts_later(tmp_path: Path, mock_clock: MockClock) -> None:
    disk = StallingDisk()
    async with open_sessions(tmp_path, disk=disk, folding=NEVER) as sessions:
        hanging = sessions.select("openai:a", "m1")
        await trio.to_thread.run_sync(disk.has_stalled.wait)
        mock_clock.jump(WRITE_TIMEOUT)
        assert "took longer than 10 s" in await reason(hanging)
        assert sessions.selected("openai:a") is None
        disk.go_on.set()
        await sessions.select("openai:b", "m2").wait()

        assert {"openai:b": "m2"} == held(sessions) == await found(tmp_path)


async def test_write_waits_for_its_turn_after_one_that_hangs(tmp_path: Path, mock_clock: MockClock) -> None:
    disk = StallingDisk()
    async with open_sessions(tmp_path, disk=disk, folding=NEVER) as sessions:
        disk.steps.clear()
        for key in ("openai:a", "openai:b"):
            change = sessions.select(key, "m")
            await trio.to_thread.run_sync(disk.has_stalled.wait)
            await wait_all_tasks_blocked()
            mock_clock.jump(WRITE_TIMEOUT)
            await reason(change)
        assert 1 == disk.steps.count("write")
        disk.go_on.set()
    assert {} == await found(tmp_path)


# The probe


async def test_probe_clears_a_problem_that_is_over_and_finds_a_new_one(tmp_path: Path, mock_clock: MockClock) -> None:
    disk = RefusingDisk()
    async with open_sessions(tmp_path, disk=disk) as sessions:
        disk.refused = {"write"}
        await reason(sessions.select("global", "m"))
        with pytest.raises(StateError):
            await sessions.check_writable()
        disk.refused = set()
        mock_clock.jump(1)
        await sessions.check_writable()
        assert sessions.problem is None
        disk.refused = {"lock"}
        mock_clock.jump(1)
        with pytest.raises(StateError):
            await sessions.check_writable()

        assert str(sessions.problem).endswith("Input/output error")
        disk.refused = set()
    assert NAMES == names(tmp_path)


async def test_probe_is_made_at_most_once_a_second(tmp_path: Path, mock_clock: MockClock) -> None:
    disk = WatchedDisk()
    async with open_sessions(tmp_path, disk=disk) as sessions:
        disk.steps.clear()
        for _ in range(3):
            async with trio.open_nursery() as nursery:
                for _ in range(10):
                    nursery.start_soon(sessions.check_writable)
            mock_clock.jump(0.5)

    assert 2 == disk.steps.count("create")


# Cancelled


async def test_write_of_others_goes_on_when_one_who_waits_is_cancelled(tmp_path: Path) -> None:
    disk = StallingDisk()
    async with open_sessions(tmp_path, disk=disk) as sessions:
        changes = [sessions.select("openai:a", "m1"), sessions.select("openai:b", "m2")]
        await trio.to_thread.run_sync(disk.has_stalled.wait)
        with trio.CancelScope() as scope:
            scope.cancel()
            await changes[0].wait()
        disk.go_on.set()
        await changes[1].wait()

    assert scope.cancelled_caught
    assert {"openai:a": "m1", "openai:b": "m2"} == await found(tmp_path)


async def test_whoever_is_cancelled_may_still_store_something_while_leaving(tmp_path: Path) -> None:
    with trio.CancelScope() as scope:
        async with open_sessions(tmp_path) as sessions:
            scope.cancel()
            with trio.CancelScope(shield=True):
                await sessions.select("openai:a", "m1").wait()
            await trio.lowlevel.checkpoint()

    assert scope.cancelled_caught
    assert {"openai:a": "m1"} == await found(tmp_path)


async def test_cancelled_at_any_pause_nothing_is_left_behind(tmp_path: Path) -> None:
    done: list[tuple[str, str]] = []
    begun: list[tuple[str, str]] = []
    homes = map(str, range(1_000_000))

    async def change(sessions: Sessions, key: str, alias: str) -> None:
        begun.append((key, alias))
        await sessions.select(key, alias).wait()
        done.append((key, alias))

    async def scenario() -> None:
        done.clear()
        begun.clear()
        async with open_sessions(tmp_path / next(homes), folding=ALWAYS) as sessions:
            await change(sessions, "openai:a", "m1")
            async with trio.open_nursery() as nursery:
                nursery.start_soon(change, sessions, "openai:a", "m2")
                nursery.start_soon(change, sessions, "openai:b", "m3")
            await sessions.check_writable()

    await scenario()
    before = open_files()
    number = 1
    while await run_cancelled_at(number, scenario):
        home = tmp_path / str(number)
        assert before == open_files()
        if home.exists():
            assert NAMES == names(home)
            assert dict(begun) == await found(home)  # leaving has written what was cancelled
        assert dict(done).items() <= dict(begun).items() or ("openai:a", "m1") in done
        number += 1
    assert number > 15


# Several processes


async def test_processes_see_what_another_one_has_made_durable(tmp_path: Path) -> None:
    async with open_sessions(tmp_path, folding=ALWAYS) as sessions:
        with started(obey, tmp_path) as (connection, process):

            async def order(*words: Any) -> Any:
                connection.send(words)
                return await trio.to_thread.run_sync(connection.recv)

            assert "ready" == await trio.to_thread.run_sync(connection.recv)
            for number in range(20):
                await sessions.select("global", f"ours-{number}").wait()
                assert f"ours-{number}" == await order("selected", "global")
                await order("select", "global", f"theirs-{number}")
                assert f"theirs-{number}" == sessions.selected("global")
            await order("delete", "global")
            assert sessions.selected("global") is None
            connection.send(None)
            await trio.to_thread.run_sync(process.join)
            assert 0 == process.exitcode


async def test_alias_that_another_process_selected_is_written_once_more_and_then_not(tmp_path: Path) -> None:
    """Its line may not be synced yet, and what is acknowledged here must not hang on that."""
    async with open_sessions(tmp_path, folding=NEVER) as ours, open_sessions(tmp_path, folding=NEVER) as theirs:
        await theirs.select("global", "m").wait()
        change = ours.select("global", "m")
        assert not change.is_durable
        await change.wait()

        assert NO_CHANGE is ours.select("global", "m")
        assert NO_CHANGE is theirs.select("global", "m")
        assert 2 == (tmp_path / JOURNAL_NAME).read_bytes().count(b'"set":"global"')


async def test_write_of_ones_own_makes_what_others_wrote_before_durable(tmp_path: Path) -> None:
    async with open_sessions(tmp_path) as ours, open_sessions(tmp_path) as theirs:
        await theirs.select("openai:a", "m").wait()
        await theirs.delete("openai:a").wait()
        await theirs.select("openai:b", "m").wait()
        assert "m" == ours.selected("openai:b")
        assert not ours.delete("openai:a").is_durable
        await ours.select("openai:c", "m").wait()

        assert NO_CHANGE is ours.select("openai:b", "m")
        assert NO_CHANGE is ours.delete("openai:a")


async def test_change_being_written_yields_to_a_later_one_of_another_process_at_once(tmp_path: Path) -> None:
    """Even while the loop has not heard yet that the thread has written."""
    disk = StallingDisk()
    with started(obey, tmp_path) as (connection, _):
        assert "ready" == await trio.to_thread.run_sync(connection.recv)
        async with open_sessions(tmp_path, disk=disk) as sessions:
            change = sessions.select("global", "ours")
            await trio.to_thread.run_sync(disk.has_stalled.wait)
            disk.go_on.set()
            connection.send(("select", "global", "theirs"))
            assert connection.recv() is None  # on the loop, so that nothing else runs there

            assert "theirs" == sessions.selected("global")
            assert change.is_durable
            await change.wait()
            assert "theirs" == sessions.selected("global")


def test_no_update_is_lost_between_processes(tmp_path: Path) -> None:
    names = ["p1", "p2", "p3"]
    parties = [started(change_own_and_shared, tmp_path, name, 60) for name in names]
    with parties[0] as first, parties[1] as second, parties[2] as third:
        assert 3 * ["m59"] == [connection.recv() for connection, _ in (first, second, third)]
        for _, process in (first, second, third):
            process.join()
    found = stored(tmp_path)

    assert {f"openai:{name}": "m59" for name in names}.items() <= found.items()
    assert found["openai:shared"] in {f"{name}-59" for name in names}


NOTHING = ""


def take(connection: Any, count: int, model: dict[str, set[str]]) -> None:
    """Follow *count* messages of ``change_for_ever``, or all: {key: the aliases that it may hold, or NOTHING}."""
    try:
        for _ in range(count):
            kind, aliases = connection.recv()
            for key, alias in aliases.items():
                model[key] = {alias} if kind == "done" else model.get(key, {NOTHING}) | {alias}
    except (EOFError, ConnectionResetError):
        pass


def test_kill_at_any_moment_loses_nothing_acknowledged(tmp_path: Path) -> None:
    """One process that changes sessions all the time; killed again and again, it starts with what is there."""
    model: dict[str, set[str]] = {}
    for number in range(KILLS):
        with started(change_for_ever, tmp_path, f"r{number}") as (connection, process):
            take(connection, random.randrange(1, 150), model)
            os.kill(process.pid, signal.SIGKILL)
            take(connection, 1_000_000, model)
        found = stored(tmp_path)
        assert found.keys() <= model.keys()
        assert [] == [key for key, aliases in model.items() if found.get(key, NOTHING) not in aliases]
        model = {key: {alias} for key, alias in found.items()}


def test_kill_of_one_process_disturbs_no_other(tmp_path: Path) -> None:
    models: dict[str, dict[str, set[str]]] = {"p1": {}, "p2": {}}
    with (
        started(change_for_ever, tmp_path, "p1") as (first, _),
        started(change_for_ever, tmp_path, "p2") as (second, _),
    ):
        for number in range(max(3, KILLS // 5)):
            with started(change_for_ever, tmp_path, f"killed{number}") as (third, process):
                take(third, random.randrange(1, 50), {})
                os.kill(process.pid, signal.SIGKILL)
            take(first, 10, models["p1"])
            take(second, 10, models["p2"])
    # Both were killed now, too, and wrote on for a while before that: their last words are lost, not their names.
    found = stored(tmp_path)
    for model in models.values():
        assert {key for key, aliases in model.items() if NOTHING not in aliases} <= found.keys()


# Any order of events


KEYS = st.sampled_from(["global", "openai:a", "openai:b", "cli:c"])
ALIASES = st.sampled_from(["m1", "m2", "m3"])
EVENTS = st.one_of(
    st.tuples(st.just("select"), st.integers(0, 1), st.lists(st.tuples(KEYS, ALIASES), min_size=1, max_size=4)),
    st.tuples(st.just("delete"), st.integers(0, 1), st.lists(st.tuples(KEYS), min_size=1, max_size=2)),
    st.tuples(
        st.just("refuse"), st.integers(0, 1), st.sampled_from(["lock", "write", "sync_data", "create", "rename"])
    ),
    st.tuples(st.just("reopen"), st.integers(0, 1), st.none()),
)


@attrs.define
class Party:
    """One of two processes, as far as the files can tell."""

    home: Path
    folding: Folding
    nursery: trio.Nursery
    disk: RefusingDisk = attrs.field(factory=RefusingDisk)
    sessions: Any = None
    leave: trio.Event = attrs.field(factory=trio.Event)
    left: trio.Event = attrs.field(factory=trio.Event)

    async def open(self) -> None:
        self.leave, self.left = trio.Event(), trio.Event()
        self.sessions = await self.nursery.start(self._run)

    async def close(self) -> None:
        self.disk.refused = set()
        self.leave.set()
        await self.left.wait()

    async def _run(self, task_status: trio.TaskStatus[Sessions]) -> None:
        async with open_sessions(self.home, disk=self.disk, folding=self.folding) as sessions:
            task_status.started(sessions)
            await self.leave.wait()
        self.left.set()

    async def change(self, method: str, calls: list[tuple[str, ...]], model: dict[str, str]) -> None:
        before = dict(model)
        changes = [getattr(self.sessions, method)(*call) for call in calls]
        for key, *alias in calls:
            model.pop(key, None)
            model.update(zip([key], alias, strict=False))
        assert model == held(self.sessions)
        is_refused = bool(self.disk.refused & {"lock", "write", "sync_data"})
        for change in changes:
            try:
                await change.wait()
            except StateError:
                assert is_refused
                model.clear()
                model.update(before)


@settings(max_examples=60, deadline=None)
@given(st.lists(EVENTS, max_size=20), st.sampled_from([1, 300, 1 << 20]))
async def test_any_order_of_events_leaves_what_was_acknowledged(events: list[Any], min_bytes: int) -> None:
    model: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as folder:
        async with trio.open_nursery() as nursery:
            folding = Folding(min_bytes=min_bytes, quiet_delay=math.inf)
            parties = [Party(Path(folder), folding, nursery) for _ in range(2)]
            for party in parties:
                await party.open()
            for event in events:
                await happen(event, parties, model)
                assert model == held(parties[0].sessions) == held(parties[1].sessions)
            for party in parties:
                await party.close()
        assert model == await found(Path(folder))


async def happen(event: Any, parties: list[Party], model: dict[str, str]) -> None:
    name, number, what = event
    party = parties[number]
    if name == "refuse":
        party.disk.refused ^= {what}
    elif name == "reopen":
        await party.close()
        await party.open()
    else:
        await party.change(name, what, model)
