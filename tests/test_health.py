from __future__ import annotations

import pytest
import strategies  # noqa: F401  # loads the profile
from hypothesis import given
from hypothesis import strategies as st

from picoclaw_trio.errors import UPSTREAM_FAILURES
from picoclaw_trio.health import COOL_DOWNS, Allowance, Health


def test_every_kind_but_the_request_s_own_fault_has_a_cool_down() -> None:
    assert set(UPSTREAM_FAILURES) - {"rejected"} == set(COOL_DOWNS)


@pytest.mark.parametrize("kind", COOL_DOWNS)
def test_failed_target_is_fit_again_after_its_cool_down(kind: str) -> None:
    health = Health()
    health.note_failure(kind, None, 90.0, 100.0)
    first = COOL_DOWNS[kind][0]

    assert not health.is_well(100.0 + first - 0.001)
    assert health.is_well(100.0 + first)


def test_cool_down_doubles_with_each_failure_in_a_row_up_to_the_longest() -> None:
    health = Health()
    pauses: list[float] = []
    for _ in range(10):
        began_at = health.cool_until if pauses else 0.0
        health.note_failure("server", None, began_at, began_at)
        pauses.append(health.cool_until - began_at)

    assert [2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 120.0, 120.0, 120.0, 120.0] == pauses


def test_a_reply_ends_the_cool_down_and_the_doubling() -> None:
    health = Health()
    health.note_failure("server", None, 0.0, 0.0)
    health.note_failure("server", None, 0.0, 0.0)
    health.note_reply(0.0)
    assert health.is_well(0.0)

    health.note_failure("server", None, 0.0, 0.0)
    assert 2.0 == health.cool_until


def test_a_reply_that_began_before_the_last_failure_ends_nothing() -> None:
    health = Health()
    health.note_failure("rate_limited", 60.0, 1.0, 2.0)
    health.note_failure("server", None, 1.5, 4.0)
    health.note_reply(3.9)
    assert not health.is_well(61.9)

    health.note_reply(4.0)
    assert health.is_well(4.1)


def test_failures_of_attempts_under_way_together_are_one_step_of_the_doubling() -> None:
    health = Health()
    for now in (10.0, 10.5, 11.0):
        health.note_failure("server", None, 9.9, now)
    assert 13.0 == health.cool_until  # two seconds from the last one on

    health.note_failure("server", None, 10.1, 12.0)  # it began when the first had failed
    assert 16.0 == health.cool_until


def test_attempts_that_overlap_without_end_go_on_doubling() -> None:
    health = Health()
    for number in range(4):
        health.note_failure("server", None, 10.0 * number, 10.0 * number + 11.0)
    assert 41.0 + 4.0 == health.cool_until


def test_failure_after_a_reply_is_a_new_trouble_however_early_its_attempt_began() -> None:
    health = Health()
    health.note_failure("server", None, 1.0, 2.0)
    health.note_reply(3.0)
    health.note_failure("server", None, 0.0, 5.0)
    assert 7.0 == health.cool_until


def test_shorter_cool_down_does_not_end_a_longer_one() -> None:
    health = Health()
    health.note_failure("rate_limited", 60.0, 0.0, 0.0)
    health.note_failure("unreachable", None, 1.0, 1.0)
    assert 60.0 == health.cool_until


def test_a_rate_limited_target_stays_away_as_long_as_it_was_told() -> None:
    health = Health()
    health.note_failure("rate_limited", 42.0, 0.0, 0.0)
    assert 42.0 == health.cool_until


def test_no_upstream_can_send_itself_away_for_ever() -> None:
    health = Health()
    health.note_failure("rate_limited", 1e9, 0.0, 0.0)
    assert 300.0 == health.cool_until


def test_a_refused_request_says_nothing_about_the_target() -> None:
    health = Health()
    health.note_failure("rejected", None, 0.0, 0.0)
    assert health.is_well(0.0)


def test_no_limit_means_no_wait() -> None:
    allowance = Allowance(0)
    assert [0.0] * 1000 == [allowance.reserve(0.0) for _ in range(1000)]
    assert 0.0 == allowance.wait(0.0)


def test_a_minute_s_requests_may_come_at_once_and_then_none_for_a_minute() -> None:
    allowance = Allowance(3)

    assert [1.0, 1.0, 1.0, 61.0, 61.0, 61.0, 121.0] == [allowance.reserve(1.0) for _ in range(7)]


def test_each_request_is_replaced_by_another_a_minute_after_it() -> None:
    allowance = Allowance(3)
    for now in (0.0, 10.0, 20.0):
        allowance.reserve(now)

    assert [60.0, 70.0, 80.0, 120.0] == [allowance.reserve(now) for now in (30.0, 31.0, 79.0, 79.0)]


def test_asking_for_the_wait_reserves_nothing() -> None:
    allowance = Allowance(1)
    assert [0.0, 0.0] == [allowance.wait(0.0), allowance.wait(0.0)]
    assert 0.0 == allowance.reserve(0.0)
    assert [50.0, 50.0, 0.0] == [allowance.wait(10.0), allowance.wait(10.0), allowance.wait(60.0)]


def test_slot_that_is_given_back_is_the_next_one_s() -> None:
    allowance = Allowance(1)
    allowance.reserve(0.0)
    allowance.give_back(allowance.reserve(1.0))

    assert [60.0, 120.0] == [allowance.reserve(2.0), allowance.reserve(2.0)]


def test_slot_that_is_given_back_in_the_middle_shortens_the_line() -> None:
    allowance = Allowance(3)
    slots = [allowance.reserve(now) for now in (0.0, 1.0, 2.0, 50.0, 50.0, 50.0)]
    assert 70.0 == allowance.wait(50.0)

    allowance.give_back(slots[4])
    assert 12.0 == allowance.wait(50.0)  # behind those who wait already


def test_slot_may_be_given_back_long_after_its_time() -> None:
    allowance = Allowance(1)
    slot = allowance.reserve(0.0)
    assert 0.0 == allowance.wait(100.0)

    allowance.give_back(slot)
    assert 100.0 == allowance.reserve(100.0)


def test_slots_that_are_given_back_bring_nobody_before_who_waits_already() -> None:
    allowance = Allowance(3)
    *_, first, second, _ = (allowance.reserve(now) for now in (0.0, 1.0, 2.0, 50.0, 50.0, 50.0))
    allowance.give_back(first)
    allowance.give_back(second)

    assert [62.0, 62.0, 122.0] == [allowance.reserve(50.0) for _ in range(3)]


# (quarters of a second since the last request, which of those that wait then gives up, if there are so many)
requests = st.lists(st.tuples(st.integers(0, 100), st.none() | st.integers(0, 3)), max_size=60)


@given(st.integers(1, 5), requests)
def test_no_minute_has_more_requests_than_allowed_and_none_is_served_before_one_that_came_earlier(
    rpm: int, requests: list[tuple[int, int | None]]
) -> None:
    allowance, now, slots = Allowance(rpm), 0.0, list[float]()
    for pause, given_up in requests:
        now += pause / 4
        expected = now + allowance.wait(now)
        slots.append(allowance.reserve(now))
        assert slots[-1] == expected >= now
        waiting = [index for index, slot in enumerate(slots) if slot > now]
        if given_up is not None and given_up < len(waiting):
            allowance.give_back(slots.pop(waiting[given_up]))

    assert sorted(slots) == slots
    assert all(later - earlier >= 60.0 for earlier, later in zip(slots, slots[rpm:], strict=False))
