"""What a client sees of each failure."""

from __future__ import annotations

import math

import pytest
import strategies  # noqa: F401  # loads the profile
from hypothesis import example, given
from hypothesis import strategies as st

from picoclaw_trio.errors import (
    STATUS_KINDS,
    UPSTREAM_FAILURES,
    AuthError,
    BusyError,
    ConfigError,
    GatewayError,
    InternalError,
    Problem,
    RequestError,
    StateError,
    UpstreamError,
)

NO_RETRY = {"x-should-retry": "false"}

# {kind: (status, type, code, headers)}: the table of failing turns, written out once more.
ANSWERS: dict[str, tuple[int, str, str, dict[str, str]]] = {
    "rejected": (400, "invalid_request_error", "invalid_request", {}),
    "auth": (502, "server_error", "upstream_auth", NO_RETRY),
    "unknown_model": (502, "server_error", "upstream_model", NO_RETRY),
    "unsupported": (502, "server_error", "upstream_unsupported", NO_RETRY),
    "rate_limited": (429, "rate_limit_error", "rate_limit_exceeded", {"Retry-After": "1"}),
    "server": (502, "server_error", "upstream_error", {}),
    "backend_timeout": (502, "server_error", "upstream_error", {}),
    "unreachable": (502, "server_error", "upstream_error", {}),
    "lost": (502, "server_error", "upstream_error", {}),
    "garbled": (502, "server_error", "upstream_error", {}),
    "timeout": (504, "server_error", "upstream_timeout", NO_RETRY),
}


def from_status(
    status: int | None, message: str = "", param: str | None = None, code: str | None = None
) -> UpstreamError:
    return UpstreamError.from_status(status, message=message, param=param, code=code, retry_after=None)


def test_the_table_of_this_file_has_every_kind() -> None:
    assert set(UPSTREAM_FAILURES) == set(ANSWERS)


@pytest.mark.parametrize("kind", ANSWERS)
def test_each_kind_of_failure_has_its_answer(kind: str) -> None:
    error = UpstreamError(kind)

    assert ANSWERS[kind] == (error.status, error.type, error.code, dict(error.headers))
    assert (kind, None, None, False) == (error.kind, error.param, error.retry_after, error.spoken)


@pytest.mark.parametrize("kind", ANSWERS)
def test_a_failure_tells_the_client_what_happened_and_the_log_what_was_said(kind: str) -> None:
    bare, told = UpstreamError(kind), UpstreamError(kind, "it was full", detail="10.0.0.1 said no")

    assert bare.message.startswith("The model's server ")
    assert bare.message.removesuffix(".") + ": it was full." == told.message
    assert "10.0.0.1" not in told.message
    assert "10.0.0.1 said no" == told.detail


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        (None, "1"),
        (0.0, "1"),
        (-5.0, "1"),
        (0.2, "1"),
        (1.0, "1"),
        (1.1, "2"),
        (29.5, "30"),
        (30.0, "30"),
        (30.1, "30"),
        (3600.0, "30"),
        (math.inf, "30"),
        (-math.inf, "1"),
        (math.nan, "1"),
    ],
)
def test_retry_after_is_whole_seconds_from_1_to_30(asked: float | None, told: str) -> None:
    assert {"Retry-After": told} == UpstreamError("rate_limited", retry_after=asked).headers


@given(st.none() | st.floats())
def test_any_retry_after_becomes_1_to_30(asked: float | None) -> None:
    assert 1 <= int(UpstreamError("rate_limited", retry_after=asked).headers["Retry-After"]) <= 30


@pytest.mark.parametrize("kind", sorted(set(ANSWERS) - {"rate_limited"}))
def test_only_a_rate_limit_tells_when_to_come_back(kind: str) -> None:
    assert "Retry-After" not in UpstreamError(kind, retry_after=5.0).headers


# {an upstream's status: kind of failure}
STATUSES: dict[int | None, str] = {
    None: "server",
    400: "rejected",
    401: "auth",
    402: "auth",
    403: "auth",
    404: "unknown_model",
    408: "server",
    409: "server",
    413: "rejected",
    422: "rejected",
    425: "server",
    429: "rate_limited",
    500: "server",
    502: "server",
    503: "server",
    504: "backend_timeout",
    520: "server",
    522: "server",
    524: "backend_timeout",
    529: "server",
    599: "server",
    201: "garbled",
    204: "garbled",
    301: "garbled",
    405: "garbled",
    410: "garbled",
    418: "garbled",
    451: "garbled",
}


def test_the_table_of_this_file_has_every_status() -> None:
    assert set(STATUS_KINDS) <= set(STATUSES)


WORDS = st.sampled_from(["Rate limit reached", "insufficient_quota", "context length exceeded", "timeout", "401"])


@given(st.sampled_from([*STATUSES]), WORDS | st.text(), WORDS | st.text())
def test_no_word_of_an_upstream_decides_what_a_failure_is(status: int | None, message: str, code: str) -> None:
    assert STATUSES[status] == from_status(status, message, code=code).kind


@pytest.mark.parametrize(("status", "kind"), STATUSES.items())
def test_each_status_of_an_upstream_is_a_kind_of_failure(status: int | None, kind: str) -> None:
    assert kind == from_status(status).kind


@pytest.mark.parametrize("status", [400, 413, 422])
def test_a_rejected_request_keeps_the_upstreams_own_words(status: int) -> None:
    error = from_status(status, "Too many images.", "messages[0]", "too_many_images")

    assert (status, "invalid_request_error", "Too many images.", "messages[0]", "too_many_images") == (
        error.status,
        error.type,
        error.message,
        error.param,
        error.code,
    )


@pytest.mark.parametrize("status", [400, 413, 422])
def test_a_rejected_request_without_words_has_ours(status: int) -> None:
    error = from_status(status)

    assert (status, "The model's server refused the request.", None, "invalid_request") == (
        error.status,
        error.message,
        error.param,
        error.code,
    )


@pytest.mark.parametrize("status", [None, 401, 403, 404, 408, 418, 429, 500, 503])
def test_any_other_failure_keeps_the_upstreams_words_for_the_log(status: int | None) -> None:
    error = from_status(status, "key sk-1 of 10.0.0.1 expired", "p", "c")

    assert f"status {status}: key sk-1 of 10.0.0.1 expired" == error.detail
    assert "sk-1" not in error.message
    assert ANSWERS[error.kind][:3] == (error.status, error.type, error.code)
    assert error.param is None


@given(st.none() | st.integers(100, 599))
@example(400)
def test_any_status_gives_an_answer_of_the_table(status: int | None) -> None:
    error = from_status(status)

    assert 400 <= error.status <= 599
    assert error.kind in ANSWERS


OTHERS: list[tuple[GatewayError, int, str, str | None, dict[str, str]]] = [
    (RequestError("No.", "n", "c"), 400, "invalid_request_error", "c", {}),
    (RequestError("No.", status=404), 404, "invalid_request_error", None, {}),
    (AuthError(), 401, "invalid_request_error", "invalid_api_key", {"WWW-Authenticate": "Bearer"}),
    (BusyError("Full.", "overloaded"), 503, "server_error", "overloaded", {"Retry-After": "1"}),
    (BusyError("Bye.", "shutting_down"), 503, "server_error", "shutting_down", {"Retry-After": "1"}),
    (StateError("disk"), 503, "server_error", "state_unavailable", {}),
    (InternalError("req_1"), 500, "server_error", "internal_error", {}),
    (ConfigError("c.json", ()), 500, "server_error", "invalid_configuration", {}),
]


@pytest.mark.parametrize(("error", "status", "type", "code", "headers"), OTHERS)
def test_each_other_error_has_its_answer(
    error: GatewayError, status: int, type: str, code: str | None, headers: dict[str, str]
) -> None:
    assert (status, type, code, headers) == (error.status, error.type, error.code, dict(error.headers))
    assert error.message == str(error)


def test_a_state_error_keeps_its_reason_for_the_log() -> None:
    error = StateError("/home/ann/state.json: disk full")

    assert "/home/ann" not in error.message
    assert "/home/ann/state.json: disk full" == error.reason


def test_an_internal_error_tells_the_request_id() -> None:
    assert "req_1" in InternalError("req_1").message


def test_a_configuration_error_lists_every_problem_with_its_address() -> None:
    problems = Problem("$.a", "is no bool"), Problem("$.b[2].c", "is missing")

    assert "c.json:\n  $.a: is no bool\n  $.b[2].c: is missing" == ConfigError("c.json", problems).message


def test_the_headers_of_one_error_cannot_change_those_of_the_next() -> None:
    with pytest.raises(TypeError):
        UpstreamError("auth").headers["x"] = "y"  # type: ignore[index]  # a read-only mapping


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (
            UpstreamError("auth", detail="status 401: No."),
            "server refused the gateway's credentials. (status 401: No.)",
        ),
        (UpstreamError("lost"), "cut the connection before its answer was whole."),
        (StateError("/x: the disk is full"), "so the request was not carried out. (/x: the disk is full)"),
    ],
)
def test_whoever_runs_the_gateway_is_told_the_reason_and_a_client_is_not(error: GatewayError, told: str) -> None:
    assert error.told_here.endswith(told)
    assert error.told_here.startswith(error.message)


def test_words_of_an_upstream_are_not_told_twice() -> None:
    error = UpstreamError.from_status(400, message="Too long.", param=None, code=None, retry_after=None)
    assert "Too long." == error.told_here
