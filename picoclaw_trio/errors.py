"""Every error that crosses a doorway between rooms, with the status, type and code that a client will see.

Theory: a room that refuses something raises the class that says whose fault it is; the door turns it into a status,
or, once bytes have left, into an error frame. Nobody looks at a message to decide anything.
Editing rule: a new failure is a new class or a new ``kind`` here; other rooms give a status to ``RequestError`` alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import MappingProxyType

import attrs

NO_HEADERS: Mapping[str, str] = MappingProxyType({})
# Official SDKs ask again on 408, 409, 429 and every 5xx; where that could only cost, this header stops them.
DO_NOT_RETRY: Mapping[str, str] = MappingProxyType({"x-should-retry": "false"})


class GatewayError(Exception):
    """An answer other than the one that was asked for.

    Attributes:
        status: HTTP status, 400 to 599.
        type: OpenAI's error type, e.g. ``invalid_request_error``.
        message: for people; holds no secret, no host name, no inside of the gateway.
        param: address of the offending field (``messages[2].role``), or None.
        code: machine-readable reason, never a number, or None.
        headers: extra response headers.

    Source: https://platform.openai.com/docs/guides/error-codes
    """

    def __init__(
        self,
        status: int,
        type: str,
        message: str,
        param: str | None = None,
        code: str | None = None,
        *,
        headers: Mapping[str, str] = NO_HEADERS,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.type = type
        self.message = message
        self.param = param
        self.code = code
        self.headers = headers

    @property
    def told_here(self) -> str:
        """What is wrong, for whoever runs the gateway; it may hold hosts and another's words."""
        return self.message


class RequestError(GatewayError):
    """The client asked for something that we refuse; asking again unchanged cannot help."""

    def __init__(
        self,
        message: str,
        param: str | None = None,
        code: str | None = None,
        *,
        status: int = 400,
        headers: Mapping[str, str] = NO_HEADERS,
    ) -> None:
        super().__init__(status, "invalid_request_error", message, param, code, headers=headers)


class AuthError(GatewayError):
    """No token, or not one of ours. Never says which part was wrong."""

    def __init__(self) -> None:
        super().__init__(
            401,
            "invalid_request_error",
            "Missing or invalid bearer token. Send the header 'Authorization: Bearer <token>' with one of "
            "the tokens of gateway.openai_api.bearer_tokens.",
            code="invalid_api_key",
            headers={"WWW-Authenticate": "Bearer"},
        )


class BusyError(GatewayError):
    """We cannot take this request now; the same request may succeed a moment later."""

    def __init__(self, message: str, code: str, *, retry_after: int = 1) -> None:
        super().__init__(503, "server_error", message, code=code, headers={"Retry-After": str(retry_after)})


class StateError(GatewayError):
    """The state file could not be written, and nothing has changed, in memory or on disk.

    ``reason`` is for the log and the terminal: it may name paths.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(
            503,
            "server_error",
            "The gateway could not store this session's state, so the request was not carried out.",
            code="state_unavailable",
        )
        self.reason = reason

    @property
    def told_here(self) -> str:
        return f"{self.message} ({self.reason})"


class SessionBusyError(GatewayError):
    """Another turn of the same session runs, and did not end in the time that this one could wait.

    Official SDKs ask again on 409, after the time that they are told.
    """

    def __init__(self) -> None:
        super().__init__(
            409,
            "invalid_request_error",
            "Another turn of this session is still running. Turns of one session run one after the other.",
            code="session_busy",
            headers={"Retry-After": "1"},
        )


class InternalError(GatewayError):
    """A bug of ours. Tells the request id and nothing else of the inside."""

    def __init__(self, request_id: str) -> None:
        super().__init__(
            500,
            "server_error",
            f"The gateway failed internally. Its log has the details under request id {request_id}.",
            code="internal_error",
        )


# {kind of failure of an upstream: (status, code, headers, what the client is told)}. The table of failing turns.
# "rejected" alone passes the upstream's own status and words on: the request is the client's.
UPSTREAM_FAILURES: Mapping[str, tuple[int, str, Mapping[str, str], str]] = {
    "rejected": (400, "invalid_request", NO_HEADERS, "refused the request"),
    "auth": (502, "upstream_auth", DO_NOT_RETRY, "refused the gateway's credentials"),
    "unknown_model": (502, "upstream_model", DO_NOT_RETRY, "does not know the model that is configured for it"),
    "unsupported": (502, "upstream_unsupported", DO_NOT_RETRY, "speaks a protocol that this gateway does not"),
    "rate_limited": (429, "rate_limit_exceeded", NO_HEADERS, "is rate-limited"),
    "server": (502, "upstream_error", NO_HEADERS, "failed"),
    "backend_timeout": (502, "upstream_error", NO_HEADERS, "got no answer in time from the one behind it"),
    "unreachable": (502, "upstream_error", NO_HEADERS, "could not be reached"),
    "lost": (502, "upstream_error", NO_HEADERS, "cut the connection before its answer was whole"),
    "garbled": (502, "upstream_error", NO_HEADERS, "gave an answer that could not be understood"),
    "timeout": (504, "upstream_timeout", DO_NOT_RETRY, "did not answer in time"),
}
UPSTREAM_TYPES: Mapping[int, str] = {400: "invalid_request_error", 429: "rate_limit_error"}
STATUS_KINDS: Mapping[int, str] = {
    **dict.fromkeys((400, 413, 422), "rejected"),
    **dict.fromkeys((401, 402, 403), "auth"),
    404: "unknown_model",
    429: "rate_limited",
    **dict.fromkeys((408, 409, 425), "server"),
    **dict.fromkeys((504, 524), "backend_timeout"),  # 524 is Cloudflare's; any other 5xx is "server"
}
# Official SDKs wait as long as they are told, one of them without bound.
MAX_RETRY_AFTER = 30.0


class UpstreamError(GatewayError):
    """A model's server did not give a reply.

    Attributes:
        kind: a key of ``UPSTREAM_FAILURES``; decides what is tried next and what the client gets.
        detail: for the log and the terminal: what the upstream said, or the operating system did.
        retry_after: seconds that the upstream asked us to wait, or None.
        spoken: a piece of the reply had been given to the client before.
    """

    def __init__(
        self, kind: str, message: str | None = None, *, detail: str = "", retry_after: float | None = None
    ) -> None:
        status, code, headers, told = UPSTREAM_FAILURES[kind]
        if kind == "rate_limited":
            wait = math.ceil(min(max(1.0, retry_after or 1.0), MAX_RETRY_AFTER))
            headers = {"Retry-After": str(wait)}
        text = f"The model's server {told}" + (f": {message}." if message else ".")
        super().__init__(status, UPSTREAM_TYPES.get(status, "server_error"), text, code=code, headers=headers)
        self.kind = kind
        self.detail = detail
        self.retry_after = retry_after
        self.spoken = False

    @classmethod
    def from_status(
        cls, status: int | None, *, message: str, param: str | None, code: str | None, retry_after: float | None
    ) -> UpstreamError:
        """The failure that an upstream's own error object tells of; *status* is None where it came without one."""
        other = "server" if status is None or status >= 500 else "garbled"
        kind = other if status is None else STATUS_KINDS.get(status, other)
        error = cls(kind, detail=f"status {status}: {message}", retry_after=retry_after)
        if kind == "rejected" and status is not None:
            error.status = status
            error.message = message or error.message
            error.param = param
            error.code = code or error.code
        return error

    @property
    def told_here(self) -> str:
        return f"{self.message} ({self.detail})" if self.detail and self.message not in self.detail else self.message


@attrs.frozen
class Problem:
    """One thing that is wrong with a configuration: ``$.model_list[2].api_base`` and what is wrong there."""

    address: str
    message: str

    def __str__(self) -> str:
        return f"{self.address}: {self.message}"


class ConfigError(GatewayError):
    """The configuration cannot be used. ``problems`` has every one of them, in the order of the file."""

    def __init__(self, source: str, problems: tuple[Problem, ...]) -> None:
        self.source = source
        self.problems = problems
        lines = "".join(f"\n  {problem}" for problem in problems)
        super().__init__(500, "server_error", f"{source}:{lines}", code="invalid_configuration")
