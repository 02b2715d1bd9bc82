from __future__ import annotations

import pytest

from picoclaw_trio.throttle import MAX_TOLD, Throttle, TooManyFailuresError


def fail(throttle: Throttle, address: str, times: int, now: float = 0.0) -> None:
    for _ in range(times):
        throttle.note_failure(address, now)


def test_allowance_can_be_used_up_at_once() -> None:
    throttle = Throttle(per_minute=10)
    fail(throttle, "192.0.2.1", 9)
    throttle.check("192.0.2.1", 0.0)
    fail(throttle, "192.0.2.1", 1)

    with pytest.raises(TooManyFailuresError) as caught:
        throttle.check("192.0.2.1", 0.0)

    assert 429 == caught.value.status
    assert "6" == caught.value.headers["Retry-After"]


def test_one_more_try_is_allowed_after_the_time_that_was_told() -> None:
    throttle = Throttle(per_minute=10)
    fail(throttle, "192.0.2.1", 10)
    throttle.check("192.0.2.1", 6.0)
    fail(throttle, "192.0.2.1", 1, now=6.0)

    with pytest.raises(TooManyFailuresError):
        throttle.check("192.0.2.1", 6.0)


def test_other_addresses_do_not_notice() -> None:
    throttle = Throttle(per_minute=1)
    fail(throttle, "192.0.2.1", 5)
    throttle.check("192.0.2.2", 0.0)


def test_an_ipv6_network_of_64_bits_counts_as_one_address() -> None:
    throttle = Throttle(per_minute=2)
    fail(throttle, "2001:db8::1", 1)
    fail(throttle, "2001:db8::2", 1)

    with pytest.raises(TooManyFailuresError):
        throttle.check("2001:db8::3", 0.0)
    throttle.check("2001:db8:0:1::3", 0.0)


def test_an_ipv4_address_counts_as_one_in_either_notation() -> None:
    throttle = Throttle(per_minute=1)
    fail(throttle, "::ffff:192.0.2.1", 1)
    with pytest.raises(TooManyFailuresError):
        throttle.check("192.0.2.1", 0.0)


def test_zero_switches_it_off() -> None:
    throttle = Throttle(per_minute=0)
    fail(throttle, "192.0.2.1", 1000)
    throttle.check("192.0.2.1", 0.0)


def test_nobody_is_slowed_where_the_address_is_unknown() -> None:
    throttle = Throttle(per_minute=1)
    for _ in range(5):
        throttle.note_failure(None, 0.0)
    throttle.check(None, 0.0)


def test_memory_is_bounded_and_the_least_recent_is_forgotten() -> None:
    throttle = Throttle(per_minute=1, max_addresses=2)
    for number in (1, 2, 3):
        fail(throttle, f"192.0.2.{number}", 1)

    throttle.check("192.0.2.1", 0.0)
    for number in (2, 3):
        with pytest.raises(TooManyFailuresError):
            throttle.check(f"192.0.2.{number}", 0.0)


def test_a_paid_debt_is_forgotten() -> None:
    throttle = Throttle(per_minute=1)
    fail(throttle, "192.0.2.1", 1)
    throttle.check("192.0.2.1", 60.0)
    assert not throttle._debts


@pytest.mark.parametrize("per_minute", [10, 6])
def test_a_debt_stays_under_another_limit(per_minute: int) -> None:
    throttle = Throttle(per_minute=10)
    fail(throttle, "192.0.2.1", 10)
    throttle.set_limit(per_minute)

    with pytest.raises(TooManyFailuresError):
        throttle.check("192.0.2.1", 0.0)


def test_a_debt_is_no_reason_to_wait_under_a_limit_that_allows_more() -> None:
    throttle = Throttle(per_minute=10)
    fail(throttle, "192.0.2.1", 10)
    throttle.set_limit(12)
    fail(throttle, "192.0.2.1", 1)
    throttle.check("192.0.2.1", 0.0)
    fail(throttle, "192.0.2.1", 1)

    with pytest.raises(TooManyFailuresError):
        throttle.check("192.0.2.1", 0.0)


def test_a_debt_under_a_lower_limit_is_as_high_as_it_can_be_there() -> None:
    throttle = Throttle(per_minute=60)
    fail(throttle, "192.0.2.1", 60)
    throttle.set_limit(2)
    with pytest.raises(TooManyFailuresError) as caught:
        throttle.check("192.0.2.1", 0.0)

    assert "30" == caught.value.headers["Retry-After"]
    throttle.check("192.0.2.1", 30.0)


def test_all_debts_are_forgotten_when_it_is_switched_off() -> None:
    throttle = Throttle(per_minute=1)
    fail(throttle, "192.0.2.1", 1)
    throttle.set_limit(0)
    throttle.check("192.0.2.1", 0.0)
    throttle.set_limit(1)
    throttle.check("192.0.2.1", 0.0)


def test_the_least_recent_is_forgotten_first_after_another_limit_too() -> None:
    throttle = Throttle(per_minute=2, max_addresses=2)
    fail(throttle, "192.0.2.1", 2)
    fail(throttle, "192.0.2.2", 2)
    throttle.set_limit(1)
    fail(throttle, "192.0.2.3", 1)

    throttle.check("192.0.2.1", 0.0)
    with pytest.raises(TooManyFailuresError):
        throttle.check("192.0.2.2", 0.0)


def test_address_is_told_once_a_minute_and_few_are_in_all() -> None:
    throttle, one, other = Throttle(1), "192.0.2.1", "192.0.2.2"
    asked = ((one, 0), (one, 59.9), (other, 59.9), (one, 60), (one, 61))
    told = [throttle.should_tell(address, now) for address, now in asked]
    assert [True, False, True, True, False] == told
    many = [f"10.0.{number // 256}.{number % 256}" for number in range(1000)]
    assert MAX_TOLD - 2 == sum(throttle.should_tell(address, 62) for address in many)
    assert throttle.should_tell(many[-1], 123)
