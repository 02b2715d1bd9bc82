from __future__ import annotations

import pytest

from picoclaw_trio.errors import UPSTREAM_FAILURES
from picoclaw_trio.health import COOL_DOWNS, Allowance, Health


def test_every_kind_but_the_request_s_own_fault_has_a_cool_down() -> None:
    assert set(UPSTREAM_FAILURES) - {"rejected"} == set(COOL_DOWNS)


@pytest.mark.parametrize("kind", COOL_DOWNS)
def test_failed_target_is_fit_again_after_its_cool_down(kind: str) -> None:
    health = Health(Allowance(0))
    health.note_failure(kind, None, 100.0)
    first = COOL_DOWNS[kind][0]

    assert not health.is_fit(100.0 + first - 0.001)
    assert health.is_fit(100.0 + first)


def test_cool_down_doubles_with_each_failure_in_a_row_up_to_the_longest() -> None:
    health = Health(Allowance(0))
    pauses = []
    for _ in range(10):
        health.note_failure("server", None, 0.0)
        pauses.append(health.cool_until)

    assert [2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 120.0, 120.0, 120.0, 120.0] == pauses


def test_a_reply_ends_the_cool_down_and_the_doubling() -> None:
    health = Health(Allowance(0))
    health.note_failure("server", None, 0.0)
    health.note_failure("server", None, 0.0)
    health.note_reply()
    assert health.is_fit(0.0)

    health.note_failure("server", None, 0.0)
    assert 2.0 == health.cool_until


def test_a_rate_limited_target_stays_away_as_long_as_it_was_told() -> None:
    health = Health(Allowance(0))
    health.note_failure("rate_limited", 42.0, 0.0)
    assert 42.0 == health.cool_until


def test_no_upstream_can_send_itself_away_for_ever() -> None:
    health = Health(Allowance(0))
    health.note_failure("rate_limited", 1e9, 0.0)
    assert 300.0 == health.cool_until


def test_a_refused_request_says_nothing_about_the_target() -> None:
    health = Health(Allowance(0))
    health.note_failure("rejected", None, 0.0)
    assert health.is_fit(0.0)


def test_no_limit_means_no_wait() -> None:
    allowance = Allowance(0)
    assert [0.0] * 1000 == [allowance.take(0.0) for _ in range(1000)]


def test_a_minute_s_requests_may_come_at_once_and_then_one_at_a_time() -> None:
    allowance = Allowance(3)

    assert [0.0, 0.0, 0.0] == [allowance.take(0.0) for _ in range(3)]
    assert 20.0 == allowance.take(0.0)
    assert 0.0 == allowance.take(20.0)
    assert 20.0 == allowance.take(20.0)


def test_asking_for_the_wait_takes_nothing() -> None:
    allowance = Allowance(1)
    assert [0.0, 0.0] == [allowance.wait(0.0), allowance.wait(0.0)]
    assert 0.0 == allowance.take(0.0)
    assert 60.0 == allowance.wait(0.0)


def test_target_without_allowance_is_not_fit() -> None:
    health = Health(Allowance(1))
    health.allowance.take(0.0)
    assert not health.is_fit(0.0)
    assert health.is_fit(60.0)
