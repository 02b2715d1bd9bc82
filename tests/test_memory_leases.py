"""One turn of a session at a time: in one process, between processes, and when one of them dies."""

from __future__ import annotations

import os
import signal
from functools import partial
from pathlib import Path

import pytest
import trio
from memory_stage import KEY, answer, hold_session, memory_in, names, recalled, shown, take_turn, talk, texts_of
from state_disks import RefusingDisk, started
from trio.testing import MockClock, wait_all_tasks_blocked

from picoclaw_trio.errors import SessionBusyError, StateError
from picoclaw_trio.memory import Memory, Said
from picoclaw_trio.memory.leases import MAX_WAITING


async def is_busy(memory: Memory, key: str = KEY, wait: float = 0.0) -> bool:
    try:
        async with recalled(memory, "x", key=key, wait=wait):
            return False
    except SessionBusyError:
        return True


def test_busy_session_is_a_conflict_that_clients_come_back_from() -> None:
    error = SessionBusyError()

    assert (409, "session_busy", {"Retry-After": "1"}) == (error.status, error.code, error.headers)


async def test_second_turn_sees_what_the_first_one_stored(tmp_path: Path) -> None:
    async with memory_in(tmp_path) as memory, trio.open_nursery() as nursery, recalled(memory, "a") as recollection:
        nursery.start_soon(lambda: take_turn(memory, "b", reply="B"))
        await wait_all_tasks_blocked()
        await recollection.record([Said(answer("A"))])
    assert ["a", "A", "b", "B"] == await shown(tmp_path)


async def test_turns_come_in_the_order_in_which_they_were_asked_for(tmp_path: Path) -> None:
    async with memory_in(tmp_path) as memory:
        async with trio.open_nursery() as nursery, recalled(memory, "first"):
            for number in range(MAX_WAITING):
                nursery.start_soon(partial(take_turn, memory, f"{number}", reply="A", wait=60.0))
                await wait_all_tasks_blocked()
        assert [f"{number}" for number in range(MAX_WAITING)] == texts_of(await memory.show(KEY))[::2]


async def test_one_too_many_is_told_at_once(tmp_path: Path) -> None:
    async with memory_in(tmp_path) as memory, trio.open_nursery() as nursery, recalled(memory, "first"):
        for _ in range(MAX_WAITING):
            nursery.start_soon(lambda: take_turn(memory, "x", reply="X", wait=60.0))
        await wait_all_tasks_blocked()
        with trio.fail_after(1):
            assert await is_busy(memory, wait=60.0)
        assert not await is_busy(memory, key="openai:bob")
        nursery.cancel_scope.cancel()


async def test_waiting_ends_after_the_time_that_was_given(tmp_path: Path, mock_clock: MockClock) -> None:
    async with memory_in(tmp_path) as memory, recalled(memory, "first"), trio.open_nursery() as nursery:
        outcomes = []

        async def wait(seconds: float) -> None:
            outcomes.append((await is_busy(memory, wait=seconds), trio.current_time() - began))

        began = trio.current_time()
        nursery.start_soon(wait, 5.0)
        await wait_all_tasks_blocked()
        mock_clock.jump(4.9)
        await wait_all_tasks_blocked()
        assert [] == outcomes
        mock_clock.jump(0.1)
        await wait_all_tasks_blocked()
        assert [(True, 5.0)] == outcomes


async def test_sessions_do_not_wait_for_each_other(tmp_path: Path) -> None:
    async with memory_in(tmp_path) as memory:
        async with recalled(memory, "a", key="openai:a") as first, recalled(memory, "b", key="openai:b") as second:
            await second.record([Said(answer("B"))])
            await first.record([Said(answer("A"))])
        assert {"openai:a", "openai:b"} == {found.key for found in await memory.sessions()}


async def test_waiter_that_is_cancelled_leaves_the_line(tmp_path: Path) -> None:
    async with memory_in(tmp_path) as memory:
        async with recalled(memory, "first"):
            async with trio.open_nursery() as nursery:
                for _ in range(MAX_WAITING):
                    nursery.start_soon(lambda: take_turn(memory, "x", reply="X", wait=60.0))
                await wait_all_tasks_blocked()
                nursery.cancel_scope.cancel()
            assert await is_busy(memory, wait=0.01)
        assert not await is_busy(memory)
    assert [] == names(tmp_path)


async def test_lock_that_cannot_be_made_is_a_failure_and_leaves_the_session_free(tmp_path: Path) -> None:
    disk = RefusingDisk({"lock"})
    async with memory_in(tmp_path, disk=disk) as memory:
        for _ in range(2):
            with pytest.raises(StateError):
                await is_busy(memory)
        disk.refused = set()
        assert not await is_busy(memory)


# Between processes


async def test_session_is_taken_for_all_processes_until_its_turn_ends(tmp_path: Path) -> None:
    with started(hold_session, tmp_path, KEY) as (connection, _):
        assert "held" == await trio.to_thread.run_sync(connection.recv)
        async with memory_in(tmp_path) as memory:
            assert await is_busy(memory)
            assert await is_busy(memory, wait=0.05)
            assert not await is_busy(memory, key="openai:bob")
            async with trio.open_nursery() as nursery:
                nursery.start_soon(lambda: take_turn(memory, "a", reply="A", wait=30.0))
                await trio.to_thread.run_sync(connection.send, "end it")
            assert "free" == await trio.to_thread.run_sync(connection.recv)
            assert ["a", "A"] == texts_of(await memory.show(KEY))


async def test_session_of_a_process_that_dies_is_free_at_once(tmp_path: Path) -> None:
    with started(hold_session, tmp_path, KEY) as (connection, process):
        assert "held" == await trio.to_thread.run_sync(connection.recv)
        async with memory_in(tmp_path) as memory:
            assert await is_busy(memory)
            os.kill(process.pid, signal.SIGKILL)
            await trio.to_thread.run_sync(process.join)
            assert not await is_busy(memory)
    assert [] == names(tmp_path)


async def test_what_a_dead_process_left_is_removed_by_the_next_start(tmp_path: Path) -> None:
    with started(hold_session, tmp_path, KEY) as (connection, process):
        assert "held" == await trio.to_thread.run_sync(connection.recv)
        async with memory_in(tmp_path):
            assert 1 == len(names(tmp_path, ".lock")), "it is in use"
        os.kill(process.pid, signal.SIGKILL)
        await trio.to_thread.run_sync(process.join)
    async with memory_in(tmp_path):
        assert [] == names(tmp_path)


def test_no_turn_is_lost_between_processes(tmp_path: Path) -> None:
    parties = [started(talk, tmp_path, name, 15) for name in ("p1", "p2", "p3")]
    with parties[0] as first, parties[1] as second, parties[2] as third:
        assert 3 * ["done"] == [connection.recv() for connection, _ in (first, second, third)]
        for _, process in (first, second, third):
            process.join()
    words = trio.run(shown, tmp_path)[::2]

    assert sorted(f"p{party}-{number}" for party in (1, 2, 3) for number in range(15)) == sorted(words)
    assert 1 == len(names(tmp_path))
