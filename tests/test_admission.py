"""How many turns run at once, and who is next."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from contextlib import AsyncExitStack

import pytest
import strategies  # noqa: F401  # loads the profile
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock, wait_all_tasks_blocked

from picoclaw_trio.admission import Admission, AdmissionStatistics
from picoclaw_trio.errors import BusyError

EMPTY = AdmissionStatistics(0, 0)
# (what happened, to whom, when): "in", "out", or the code of a refusal
Log = list[tuple[str, str, float]]


async def run_turn(admission: Admission, log: Log, name: str, seconds: float, holder: int = 0) -> None:
    """Take a place, keep it for so many seconds, and write down what happened."""
    try:
        async with admission.turn(holder):
            log.append(("in", name, trio.current_time()))
            await trio.sleep(seconds)
            log.append(("out", name, trio.current_time()))
    except BusyError as error:
        log.append((str(error.code), name, trio.current_time()))


def told(log: Log, what: str) -> list[tuple[str, float]]:
    return [(name, at) for event, name, at in log if event == what]


def check_free(admission: Admission) -> None:
    """Nobody runs or waits, and no place has been lost."""
    assert EMPTY == admission.statistics()


async def start(nursery: trio.Nursery, admission: Admission, log: Log, name: str, holder: int = 0) -> trio.CancelScope:
    """Begin a turn that lasts until it is cancelled, and let it get where it can."""
    scope = trio.CancelScope()

    async def run() -> None:
        with scope:
            await run_turn(admission, log, name, 1e9, holder)

    nursery.start_soon(run)
    await wait_all_tasks_blocked()
    return scope


# --- Places and the waiting room -----------------------------------------------------------------------------------


async def test_turns_run_at_once_up_to_the_limit_and_the_next_waits_for_a_place(autojump_clock: MockClock) -> None:
    admission, log = Admission(2, 10, 10.0), Log()
    async with trio.open_nursery() as nursery:
        for name, seconds in (("a", 1.0), ("b", 2.5), ("c", 1.0), ("d", 1.0)):
            nursery.start_soon(run_turn, admission, log, name, seconds)
            await wait_all_tasks_blocked()
        assert AdmissionStatistics(2, 2) == admission.statistics()

    assert [("a", 0.0), ("b", 0.0), ("c", 1.0), ("d", 2.0)] == told(log, "in")
    check_free(admission)


async def test_a_free_place_is_taken_without_a_checkpoint() -> None:
    admission = Admission(1, 0, 0.0)
    with trio.CancelScope() as scope:
        scope.cancel()
        async with admission.turn(0):
            assert AdmissionStatistics(1, 0) == admission.statistics()

    assert not scope.cancelled_caught
    check_free(admission)


async def test_one_who_finds_the_waiting_room_full_is_refused_at_once(autojump_clock: MockClock) -> None:
    admission, log = Admission(1, 2, 10.0), Log()
    async with trio.open_nursery() as nursery:
        for name in "abcd":
            nursery.start_soon(run_turn, admission, log, name, 1.0)
            await wait_all_tasks_blocked()
        assert AdmissionStatistics(1, 2) == admission.statistics()

    assert [("d", 0.0)] == told(log, "overloaded")
    assert [("a", 0.0), ("b", 1.0), ("c", 2.0)] == told(log, "in")
    check_free(admission)


async def test_without_a_waiting_room_everyone_beyond_the_limit_is_refused(autojump_clock: MockClock) -> None:
    admission, log = Admission(1, 0, 10.0), Log()
    async with trio.open_nursery() as nursery:
        for name in "ab":
            nursery.start_soon(run_turn, admission, log, name, 1.0)
            await wait_all_tasks_blocked()

    assert [("b", 0.0)] == told(log, "overloaded")
    check_free(admission)


async def test_one_waits_no_longer_than_max_wait(autojump_clock: MockClock) -> None:
    admission, log = Admission(1, 10, 2.5), Log()
    async with trio.open_nursery() as nursery:
        for name in "abc":
            nursery.start_soon(run_turn, admission, log, name, 7.0)
            await trio.sleep(1.0)
        await trio.sleep(2.0)
        assert AdmissionStatistics(1, 0) == admission.statistics()

    assert [("b", 3.5), ("c", 4.5)] == told(log, "overloaded")
    check_free(admission)


@pytest.mark.parametrize(("max_waiting", "max_wait"), [(0, 10.0), (10, 0.0)])
async def test_a_refusal_tells_the_client_to_come_back(max_waiting: int, max_wait: float) -> None:
    admission = Admission(1, max_waiting, max_wait)
    async with admission.turn(0):
        with pytest.raises(BusyError) as caught:
            async with admission.turn(0):
                raise AssertionError("there is no second place")

    assert (503, "overloaded", {"Retry-After": "1"}) == (caught.value.status, caught.value.code, caught.value.headers)
    check_free(admission)


async def test_a_turn_that_fails_gives_its_place_back() -> None:
    admission = Admission(1, 0, 0.0)
    for _ in range(3):
        with pytest.raises(ZeroDivisionError):
            async with admission.turn(0):
                raise ZeroDivisionError

    check_free(admission)


# --- Fairness ------------------------------------------------------------------------------------------------------


async def order_of(holders: Sequence[str]) -> list[str]:
    """In which order turns of a second each are let in, one at a time, that came all at once in the given order."""
    admission, log = Admission(1, 1000, 1e6), Log()
    async with trio.open_nursery() as nursery:
        for name in holders:
            nursery.start_soon(run_turn, admission, log, name, 1.0, ord(name[0]))
            await wait_all_tasks_blocked()
    check_free(admission)
    assert [float(place) for place in range(len(holders))] == [at for _, at in told(log, "in")]
    return [name for name, _ in told(log, "in")]


async def test_a_flood_of_one_holder_does_not_starve_another(autojump_clock: MockClock) -> None:
    came = ["a1", "a2", "a3", "a4", "a5", "a6", "b1", "b2", "c1"]

    assert ["a1", "a2", "b1", "c1", "a3", "b2", "a4", "a5", "a6"] == await order_of(came)


async def test_turns_of_one_holder_are_let_in_as_they_came(autojump_clock: MockClock) -> None:
    assert ["a1", "a2", "a3", "a4"] == await order_of(["a1", "a2", "a3", "a4"])


async def test_one_who_comes_again_stands_behind_the_other_holders(autojump_clock: MockClock) -> None:
    admission, log = Admission(1, 10, 100.0), Log()
    async with trio.open_nursery() as nursery:
        for name in ("a1", "b1", "c1"):
            nursery.start_soon(run_turn, admission, log, name, 1.0, ord(name[0]))
            await wait_all_tasks_blocked()
        await trio.sleep(1.5)  # b1 runs, c1 waits
        nursery.start_soon(run_turn, admission, log, "b2", 1.0, ord("b"))

    assert [("a1", 0.0), ("b1", 1.0), ("c1", 2.0), ("b2", 3.0)] == told(log, "in")


def in_turn(holders: Sequence[int]) -> list[int]:
    """Places in *holders*, in the order of a round over the holders, the first one apart: it did not wait."""
    lines: dict[int, deque[int]] = {}
    for place, holder in enumerate(holders[1:], 1):
        lines.setdefault(holder, deque()).append(place)
    order = [0] if holders else []
    while lines:
        for holder in list(lines):
            order.append(lines[holder].popleft())
            if not lines[holder]:
                del lines[holder]
    return order


@given(st.lists(st.integers(0, 3), max_size=10))
def test_places_go_to_the_holders_in_turn(holders: list[int]) -> None:
    names = [f"{chr(ord('a') + holder)}{place}" for place, holder in enumerate(holders)]
    order = trio.run(order_of, names, clock=MockClock(autojump_threshold=0))

    assert [names[place] for place in in_turn(holders)] == order


# --- Sharing the room ----------------------------------------------------------------------------------------------


async def outcome_of(names: Sequence[str], max_waiting: int) -> tuple[list[str], list[str]]:
    """Who is let in and who is sent away, of some that come all at once for turns of a second each, one at a time."""
    admission, log = Admission(1, max_waiting, 1e6), Log()
    async with trio.open_nursery() as nursery:
        for name in names:
            nursery.start_soon(run_turn, admission, log, name, 1.0, ord(name[0]))
            await wait_all_tasks_blocked()
    check_free(admission)
    assert {0.0} >= {at for _, at in told(log, "overloaded")}
    return [name for name, _ in told(log, "in")], [name for name, _ in told(log, "overloaded")]


async def test_in_a_full_room_the_newest_of_the_longest_line_goes_for_a_shorter_one(autojump_clock: MockClock) -> None:
    came = ["a0", "b1", "a1", "a2", "a3", "c1", "c2", "a4"]

    assert (["a0", "b1", "a1", "c1", "a2", "c2"], ["a3", "a4"]) == await outcome_of(came, 5)


async def test_the_waiting_room_is_shared_by_all_holders_alike(autojump_clock: MockClock) -> None:
    came = ["a0", "a1", "a2", "a3", "b1", "c1", "d1"]

    assert (["a0", "a1", "b1", "c1"], ["a3", "a2", "d1"]) == await outcome_of(came, 3)


async def test_one_whose_line_is_shorter_by_one_makes_nobody_go(autojump_clock: MockClock) -> None:
    came = ["a0", "a1", "a2", "b1", "b2"]

    assert (["a0", "a1", "b1", "a2"], ["b2"]) == await outcome_of(came, 3)


async def test_a_flood_of_one_holder_gets_no_other_refused(autojump_clock: MockClock) -> None:
    admission, log = Admission(4, 16, 5.0), Log()

    async def come_again_and_again(name: str, holder: int) -> None:
        while True:
            await run_turn(admission, log, name, 0.2, holder)
            await trio.sleep(0.1)

    with trio.move_on_after(8.0):
        async with trio.open_nursery() as nursery:
            for _ in range(40):
                nursery.start_soon(come_again_and_again, "a", 0)
            await trio.sleep(1.0)
            for _ in range(8):
                nursery.start_soon(come_again_and_again, "b", 1)

    assert {"a"} == {name for name, _ in told(log, "overloaded")}
    assert {"a", "b"} == {name for name, _ in told(log, "in")}


async def test_a_room_made_smaller_sends_nobody_away_and_is_shared_still(autojump_clock: MockClock) -> None:
    admission, log = Admission(1, 10, 100.0), Log()
    async with trio.open_nursery() as nursery:
        for name in ("a0", "a1", "a2", "a3"):
            nursery.start_soon(run_turn, admission, log, name, 1.0, ord(name[0]))
            await wait_all_tasks_blocked()
        admission.set_limits(1, 1, 100.0)
        await wait_all_tasks_blocked()
        assert AdmissionStatistics(1, 3) == admission.statistics()
        for name in ("b1", "b2"):
            nursery.start_soon(run_turn, admission, log, name, 1.0, ord(name[0]))
            await wait_all_tasks_blocked()
        assert AdmissionStatistics(1, 3) == admission.statistics()

    assert [("a3", 0.0), ("b2", 0.0)] == told(log, "overloaded")
    assert ["a0", "a1", "b1", "a2"] == [name for name, _ in told(log, "in")]
    check_free(admission)


async def test_one_may_be_cancelled_as_it_is_sent_away_for_another(autojump_clock: MockClock) -> None:
    for _ in range(20):  # in either order: the scheduler throws a coin
        admission, log = Admission(1, 2, 100.0), Log()
        async with trio.open_nursery() as nursery:
            await start(nursery, admission, log, "a0")
            await start(nursery, admission, log, "a1")
            newest = await start(nursery, admission, log, "a2")
            nursery.start_soon(run_turn, admission, log, "b", 1.0, 1)
            await trio.lowlevel.checkpoint()
            newest.cancel()
            await wait_all_tasks_blocked()
            assert AdmissionStatistics(1, 2) == admission.statistics()
            nursery.cancel_scope.cancel()
        check_free(admission)


async def test_one_may_be_sent_away_for_another_that_is_cancelled_as_it_comes(autojump_clock: MockClock) -> None:
    admission, log = Admission(1, 2, 100.0), Log()
    async with trio.open_nursery() as nursery:
        for name in ("a0", "a1", "a2"):
            await start(nursery, admission, log, name)
        with trio.CancelScope() as scope:
            scope.cancel()
            await run_turn(admission, log, "b", 1.0, 1)
        await wait_all_tasks_blocked()
        assert AdmissionStatistics(1, 1) == admission.statistics()
        nursery.cancel_scope.cancel()

    assert [("a2", 0.0)] == told(log, "overloaded")
    check_free(admission)


async def test_one_who_is_sent_away_as_its_time_in_line_ends_is_refused_once(autojump_clock: MockClock) -> None:
    for _ in range(20):  # in either order: the scheduler throws a coin
        admission, log = Admission(1, 2, 2.0), Log()
        begun = trio.current_time()
        async with trio.open_nursery() as nursery:
            for name, holder in (("a0", 0), ("a1", 0), ("a2", 0)):
                nursery.start_soon(run_turn, admission, log, name, 3.0, holder)
                await wait_all_tasks_blocked()
            await trio.sleep_until(begun + 2.0)
            await run_turn(admission, log, "b", 1.0, 1)

        assert [("a1", begun + 2.0), ("a2", begun + 2.0)] == sorted(told(log, "overloaded"))
        assert [("a0", begun), ("b", begun + 3.0)] == told(log, "in")
        check_free(admission)


async def test_one_who_is_sent_away_just_before_draining_is_told_of_the_stop(autojump_clock: MockClock) -> None:
    for _ in range(20):  # or just after it: the scheduler throws a coin
        admission, log = Admission(1, 2, 100.0), Log()
        async with trio.open_nursery() as nursery:
            for name in ("a0", "a1", "a2"):
                nursery.start_soon(run_turn, admission, log, name, 1.0)
                await wait_all_tasks_blocked()
            nursery.start_soon(run_turn, admission, log, "b", 1.0, 1)
            await trio.lowlevel.checkpoint()
            admission.drain()

        assert ["a1", "a2", "b"] == sorted(name for name, _ in told(log, "shutting_down"))
        check_free(admission)


# (what happens, to whom): one of three holders comes, or one of those who are there goes.
STEPS = st.tuples(st.sampled_from(["comes", "comes", "comes", "goes"]), st.integers(0, 11))


async def check_shares(max_turns: int, max_waiting: int, steps: Sequence[tuple[str, int]]) -> None:
    """Have all the steps happen, one after the other, and see after each who is where."""
    admission = Admission(max_turns, max_waiting, math.inf)
    lines: dict[int, list[trio.CancelScope]] = {0: [], 1: [], 2: []}
    running: list[trio.CancelScope] = []
    refused: list[tuple[int, trio.CancelScope]] = []

    async def visit(holder: int) -> None:
        with trio.CancelScope() as scope:
            lines[holder].append(scope)
            try:
                async with admission.turn(holder):
                    lines[holder].remove(scope)
                    running.append(scope)
                    await trio.sleep_forever()
            except BusyError:
                refused.append((holder, scope))
            finally:
                (running if scope in running else lines[holder]).remove(scope)

    async with trio.open_nursery() as nursery:
        for what, number in steps:
            before = {holder: [*line] for holder, line in lines.items()}
            refused.clear()
            if what == "goes":
                there = [*running, *lines[0], *lines[1], *lines[2]]
                if there:
                    there[number % len(there)].cancel()
                await wait_all_tasks_blocked()
                assert [] == refused
            else:
                nursery.start_soon(visit, number % 3)
                await wait_all_tasks_blocked()
                check_arrival(number % 3, max_waiting, before, lines, refused)
            waiting = sum(map(len, lines.values()))
            assert AdmissionStatistics(len(running), waiting) == admission.statistics()
            assert waiting <= max_waiting
            assert len(running) <= max_turns
            assert not waiting or len(running) == max_turns
        nursery.cancel_scope.cancel()
    check_free(admission)


def check_arrival(
    newcomer: int,
    max_waiting: int,
    before: dict[int, list[trio.CancelScope]],
    after: dict[int, list[trio.CancelScope]],
    refused: Sequence[tuple[int, trio.CancelScope]],
) -> None:
    """Nobody is sent away within a holder's share of the room, and otherwise only as the rule says."""
    share = max_waiting // sum(bool(line) or holder == newcomer for holder, line in before.items())
    longest = max(map(len, before.values()))
    assert len(refused) <= 1
    for holder, scope in refused:
        if holder == newcomer:
            assert before == after
            assert share <= len(before[newcomer])
            assert longest <= len(before[newcomer]) + 1
        else:
            assert share <= len(after[holder])
            assert longest == len(before[holder]) > len(before[newcomer]) + 1
            assert before[holder] == [*after[holder], scope]
            assert len(after[newcomer]) == len(before[newcomer]) + 1


@given(st.integers(1, 2), st.integers(0, 7), st.lists(STEPS, max_size=25))
def test_each_holder_keeps_its_share_of_the_room_whoever_comes_and_goes(
    max_turns: int, max_waiting: int, steps: list[tuple[str, int]]
) -> None:
    trio.run(check_shares, max_turns, max_waiting, steps, clock=MockClock(autojump_threshold=0))


# --- Cancellation --------------------------------------------------------------------------------------------------


async def test_one_who_is_cancelled_while_waiting_leaves_the_line(autojump_clock: MockClock) -> None:
    admission, log = Admission(1, 2, 100.0), Log()
    async with trio.open_nursery() as nursery:
        first = await start(nursery, admission, log, "a")
        second = await start(nursery, admission, log, "b")
        await start(nursery, admission, log, "c")
        second.cancel()
        await wait_all_tasks_blocked()
        assert AdmissionStatistics(1, 1) == admission.statistics()
        await start(nursery, admission, log, "d")
        first.cancel()
        await wait_all_tasks_blocked()
        assert AdmissionStatistics(1, 1) == admission.statistics()
        nursery.cancel_scope.cancel()

    assert ["a", "c"] == [name for name, _ in told(log, "in")]
    check_free(admission)


async def test_one_who_is_cancelled_just_after_the_hand_over_gives_the_place_on(autojump_clock: MockClock) -> None:
    admission, log = Admission(1, 2, 100.0), Log()
    async with trio.open_nursery() as nursery:
        turn = admission.turn(0)
        await turn.__aenter__()
        second = await start(nursery, admission, log, "b")
        await start(nursery, admission, log, "c")
        # Without a checkpoint between: the place is handed over, and then its new owner is cancelled.
        await turn.__aexit__(None, None, None)
        second.cancel()
        assert AdmissionStatistics(1, 1) == admission.statistics()
        await wait_all_tasks_blocked()
        assert AdmissionStatistics(1, 0) == admission.statistics()
        assert "c" == told(log, "in")[-1][0]
        nursery.cancel_scope.cancel()

    check_free(admission)


async def test_one_who_is_cancelled_just_before_the_hand_over_gives_the_place_on(autojump_clock: MockClock) -> None:
    admission, log = Admission(1, 2, 100.0), Log()
    async with trio.open_nursery() as nursery:
        turn = admission.turn(0)
        await turn.__aenter__()
        second = await start(nursery, admission, log, "b")
        await start(nursery, admission, log, "c")
        # Without a checkpoint between: the one in line is cancelled, and before it knows the place is handed over.
        second.cancel()
        await turn.__aexit__(None, None, None)
        assert AdmissionStatistics(1, 1) == admission.statistics()
        await wait_all_tasks_blocked()
        assert AdmissionStatistics(1, 0) == admission.statistics()
        assert ["c"] == [name for name, _ in told(log, "in")]
        nursery.cancel_scope.cancel()

    check_free(admission)


async def test_all_in_line_may_be_cancelled_as_the_place_is_handed_over(autojump_clock: MockClock) -> None:
    admission, log = Admission(1, 5, 100.0), Log()
    async with trio.open_nursery() as nursery:
        turn = admission.turn(0)
        await turn.__aenter__()
        scopes = [await start(nursery, admission, log, name) for name in "bcd"]
        for scope in scopes[:2]:
            scope.cancel()
        await turn.__aexit__(None, None, None)
        scopes[2].cancel()

    assert [] == told(log, "overloaded")
    check_free(admission)


async def test_a_place_that_comes_at_the_last_moment_is_not_lost(autojump_clock: MockClock) -> None:
    admission, log = Admission(1, 5, 1.0), Log()
    async with trio.open_nursery() as nursery:
        for name in "ab":
            nursery.start_soon(run_turn, admission, log, name, 1.0)
            await wait_all_tasks_blocked()

    assert [("b", 1.0)] == told(log, "in")[1:] + told(log, "overloaded")
    check_free(admission)


async def test_a_running_turn_that_is_cancelled_gives_its_place_to_the_next(autojump_clock: MockClock) -> None:
    admission, log = Admission(1, 5, 100.0), Log()
    async with trio.open_nursery() as nursery:
        first = await start(nursery, admission, log, "a")
        await start(nursery, admission, log, "b")
        await trio.sleep(3.0)
        first.cancel()
        await wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()

    assert [("a", 0.0), ("b", 3.0)] == told(log, "in")
    check_free(admission)


# --- Other limits --------------------------------------------------------------------------------------------------


async def test_a_higher_limit_lets_in_at_once_who_is_next(autojump_clock: MockClock) -> None:
    admission, log = Admission(1, 10, 100.0), Log()
    async with trio.open_nursery() as nursery:
        for name in ("a1", "a2", "a3", "b1", "b2"):
            nursery.start_soon(run_turn, admission, log, name, 10.0, ord(name[0]))
            await wait_all_tasks_blocked()
        await trio.sleep(2.0)
        admission.set_limits(3, 10, 100.0)
        assert AdmissionStatistics(3, 2) == admission.statistics()

    assert [("a1", 0.0), ("a2", 2.0), ("b1", 2.0)] == sorted(told(log, "in")[:3])
    check_free(admission)


async def test_a_lower_limit_sends_nobody_away_and_lets_nobody_in_until_it_is_kept(autojump_clock: MockClock) -> None:
    admission, log = Admission(3, 10, 100.0), Log()
    async with trio.open_nursery() as nursery:
        for name, seconds in (("a", 1.0), ("b", 2.0), ("c", 3.0), ("d", 1.0), ("e", 1.0)):
            nursery.start_soon(run_turn, admission, log, name, seconds)
            await wait_all_tasks_blocked()
        admission.set_limits(1, 1, 100.0)
        assert AdmissionStatistics(3, 2) == admission.statistics()
        nursery.start_soon(run_turn, admission, log, "f", 1.0)

    assert [("f", 0.0)] == told(log, "overloaded")
    assert [("d", 3.0), ("e", 4.0)] == told(log, "in")[3:]
    check_free(admission)


async def test_a_longer_wait_holds_for_who_comes_later(autojump_clock: MockClock) -> None:
    admission, log = Admission(1, 10, 1.0), Log()
    async with trio.open_nursery() as nursery:
        for name in "ab":
            nursery.start_soon(run_turn, admission, log, name, 5.0)
            await wait_all_tasks_blocked()
        admission.set_limits(1, 10, 2.0)
        nursery.start_soon(run_turn, admission, log, "c", 5.0)

    assert [("b", 1.0), ("c", 2.0)] == told(log, "overloaded")
    check_free(admission)


async def test_a_higher_limit_lets_nobody_in_while_draining(autojump_clock: MockClock) -> None:
    admission, log = Admission(1, 10, 100.0), Log()
    async with trio.open_nursery() as nursery:
        for name in "ab":
            nursery.start_soon(run_turn, admission, log, name, 5.0)
            await wait_all_tasks_blocked()
        # Without a checkpoint between: who stands in line has been sent away, but does not know it yet.
        admission.drain()
        admission.set_limits(2, 10, 100.0)

    assert [("b", 0.0)] == told(log, "shutting_down")
    check_free(admission)


# --- Shutting down -------------------------------------------------------------------------------------------------


async def test_draining_lets_run_what_runs_and_sends_everyone_else_away_at_once(autojump_clock: MockClock) -> None:
    admission, log = Admission(2, 5, 100.0), Log()
    async with trio.open_nursery() as nursery:
        for holder, name in enumerate("abcde"):
            nursery.start_soon(run_turn, admission, log, name, 5.0, holder % 2)
            await wait_all_tasks_blocked()
        await trio.sleep(1.0)
        admission.drain()
        await wait_all_tasks_blocked()
        assert AdmissionStatistics(2, 0) == admission.statistics()
        nursery.start_soon(run_turn, admission, log, "f", 5.0)

    assert [("c", 1.0), ("d", 1.0), ("e", 1.0), ("f", 1.0)] == sorted(told(log, "shutting_down"))
    assert [("a", 5.0), ("b", 5.0)] == sorted(told(log, "out"))
    check_free(admission)


async def test_a_place_that_becomes_free_while_draining_is_nobodys(autojump_clock: MockClock) -> None:
    admission, log = Admission(1, 5, 100.0), Log()
    async with trio.open_nursery() as nursery:
        turn = admission.turn(0)
        await turn.__aenter__()
        await start(nursery, admission, log, "b")
        # Without a checkpoint between: who stands in line has been sent away, but does not know it yet.
        admission.drain()
        await turn.__aexit__(None, None, None)

    assert ["b"] == [name for name, _ in told(log, "shutting_down")]
    check_free(admission)


async def test_one_who_was_given_a_place_before_draining_keeps_it(autojump_clock: MockClock) -> None:
    admission, log = Admission(1, 5, 100.0), Log()
    async with trio.open_nursery() as nursery:
        turn = admission.turn(0)
        await turn.__aenter__()
        nursery.start_soon(run_turn, admission, log, "b", 1.0)
        await wait_all_tasks_blocked()
        await turn.__aexit__(None, None, None)
        admission.drain()

    assert [("b", 1.0)] == told(log, "out")
    check_free(admission)


async def test_what_still_runs_when_its_grace_is_over_is_ended(autojump_clock: MockClock) -> None:
    admission, log = Admission(2, 5, 100.0), Log()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(run_turn, admission, log, "short", 3.0)
        nursery.start_soon(run_turn, admission, log, "long", 30.0)
        await trio.sleep(1.0)
        admission.drain(4.0)

    assert [("short", 3.0)] == told(log, "out")
    assert [("long", 4.0)] == told(log, "shutting_down")
    check_free(admission)


async def test_of_two_ends_of_the_grace_the_earlier_one_counts(autojump_clock: MockClock) -> None:
    for first, second in ((2.0, 5.0), (5.0, 2.0)):
        admission, log = Admission(1, 0, 0.0), Log()
        begun = trio.current_time()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run_turn, admission, log, "a", 30.0)
            await wait_all_tasks_blocked()
            admission.drain(begun + first)
            admission.drain(begun + second)

        assert [("a", begun + 2.0)] == told(log, "shutting_down")


async def test_one_who_was_given_a_place_just_before_draining_has_the_same_grace(autojump_clock: MockClock) -> None:
    admission, log = Admission(1, 5, 100.0), Log()
    async with trio.open_nursery() as nursery:
        turn = admission.turn(0)
        await turn.__aenter__()
        nursery.start_soon(run_turn, admission, log, "b", 30.0)
        await wait_all_tasks_blocked()
        await turn.__aexit__(None, None, None)
        admission.drain(4.0)

    assert [("b", 4.0)] == told(log, "shutting_down")
    check_free(admission)


async def test_a_client_that_goes_away_while_draining_is_no_refusal(autojump_clock: MockClock) -> None:
    admission, log = Admission(1, 5, 100.0), Log()
    async with trio.open_nursery() as nursery:
        scope = await start(nursery, admission, log, "a")
        admission.drain(4.0)
        scope.cancel()

    assert [] == told(log, "shutting_down")
    check_free(admission)


async def test_one_in_line_may_be_cancelled_as_draining_begins(autojump_clock: MockClock) -> None:
    admission, log = Admission(1, 5, 100.0), Log()
    async with trio.open_nursery() as nursery:
        first = await start(nursery, admission, log, "a")
        second = await start(nursery, admission, log, "b")
        admission.drain()
        second.cancel()
        await wait_all_tasks_blocked()
        assert AdmissionStatistics(1, 0) == admission.statistics()
        first.cancel()

    check_free(admission)


def test_the_door_is_open_until_draining() -> None:
    admission = Admission(1, 1, 1.0)
    admission.check_open()
    admission.drain()
    admission.drain()

    with pytest.raises(BusyError) as caught:
        admission.check_open()
    assert (503, "shutting_down", {"Retry-After": "1"}) == (
        caught.value.status,
        caught.value.code,
        caught.value.headers,
    )


# --- Any interleaving ----------------------------------------------------------------------------------------------

# (seconds until it comes, holder, seconds that it runs, seconds until it is cancelled): small numbers, so many meet.
VISITS = st.tuples(st.integers(0, 4), st.integers(0, 2), st.integers(0, 3), st.none() | st.integers(0, 6))


async def visit_all(
    admission: Admission,
    visits: Sequence[tuple[int, int, int, int | None]],
    limits: Sequence[tuple[int, int]],
    drain_at: int | None,
) -> None:
    """Have all the visits made, watch the limits all the while, and see that nothing is left at the end."""
    inside = 0
    most_turns = max(admission.max_turns, *(max_turns for max_turns, _ in limits))
    most_waiting = max(admission.max_waiting, *(max_waiting for _, max_waiting in limits))
    refusals: list[tuple[str | None, bool]] = []

    async def visit(comes: int, holder: int, seconds: int, cancelled: int | None) -> None:
        nonlocal inside
        with trio.move_on_at(math.inf if cancelled is None else float(cancelled)):
            await trio.sleep_until(comes)
            try:
                async with admission.turn(holder):
                    inside += 1
                    try:
                        counts = admission.statistics()
                        assert inside <= counts.running <= most_turns
                        assert 0 <= counts.waiting <= most_waiting
                        assert not counts.waiting or counts.running >= admission.max_turns
                        await trio.sleep(seconds)
                    finally:
                        inside -= 1
            except BusyError as error:
                refusals.append((error.code, admission.draining))

    with trio.fail_after(1000):
        async with trio.open_nursery() as nursery:
            for arguments in visits:
                nursery.start_soon(visit, *arguments)
            nursery.start_soon(change_limits, admission, limits)
            if drain_at is not None:
                await trio.sleep(drain_at)
                admission.drain(drain_at + 2.0)
    assert set(refusals) <= {("overloaded", False), ("shutting_down", True)}
    assert EMPTY == admission.statistics()
    if drain_at is None:
        async with AsyncExitStack() as places:
            for _ in range(admission.max_turns):
                await places.enter_async_context(admission.turn(0))
            assert AdmissionStatistics(admission.max_turns, 0) == admission.statistics()


async def change_limits(admission: Admission, limits: Sequence[tuple[int, int]]) -> None:
    """Another number of places, to run and to wait, each second."""
    for max_turns, max_waiting in limits:
        await trio.sleep(1)
        admission.set_limits(max_turns, max_waiting, admission.max_wait)


@given(
    st.lists(VISITS, max_size=12),
    st.lists(st.tuples(st.integers(1, 4), st.integers(0, 4)), min_size=1, max_size=4),
    st.integers(1, 3),
    st.integers(0, 4),
    st.integers(0, 4),
    st.none() | st.integers(0, 5),
)
def test_after_any_interleaving_nobody_runs_and_nobody_waits(
    visits: list[tuple[int, int, int, int | None]],
    limits: list[tuple[int, int]],
    max_turns: int,
    max_waiting: int,
    max_wait: int,
    drain_at: int | None,
) -> None:
    admission = Admission(max_turns, max_waiting, float(max_wait))
    trio.run(visit_all, admission, visits, limits, drain_at, clock=MockClock(autojump_threshold=0))
