"""What is kept of each request: one line in the log and some numbers; never a word of it, never a secret."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Iterator

import structlog
import trio

from . import metrics
from .errors import GatewayError, UpstreamError
from .http_messages import HttpRequest
from .replies import Reply

log = structlog.stdlib.get_logger("picoclaw_trio.requests")
LOGGER = logging.getLogger("picoclaw_trio.requests")

CLIENT_WENT_AWAY = 499  # nginx's status for it; nobody is there to get it
# Asked every few seconds by whoever watches over us: they would hide all else in the log.
QUIET_PATHS = frozenset({"/health", "/ready", "/metrics"})


class RequestRecord:
    """The record of one request, from its beginning to ``close``."""

    def __init__(self, request: HttpRequest) -> None:
        self._request = request
        self._began_at = trio.current_time()
        self._error: GatewayError | None = None

    def note_error(self, error: GatewayError) -> None:
        self._error = error

    def close(self, status: int) -> None:
        """Count the request and write its line. *status* is 200 also where a stream had begun and then failed."""
        seconds = trio.current_time() - self._began_at
        metrics.note_request(status)
        if self._request.reply is not None:
            _count_reply(self._request.reply, seconds)
        if self._request.path not in QUIET_PATHS and LOGGER.isEnabledFor(logging.INFO):
            fields = {name: value for name, value in self._fields(status, seconds) if value is not None}
            log.info("client went away" if status == CLIENT_WENT_AWAY else "request", **fields)
        if self._error is not None:
            _let_go(self._error)
            self._error = None

    def _fields(self, status: int, seconds: float) -> Iterator[tuple[str, object]]:
        request, reply, error = self._request, self._request.reply, self._error
        yield from {"method": request.method, "path": request.path, "status": status}.items()
        yield "seconds", round(seconds, 4)
        yield "client", request.client_address
        yield "session", request.session
        yield "retry", request.header(b"x-stainless-retry-count")  # official SDKs count their attempts there
        yield "model", request.alias if reply is None else reply.alias
        if reply is not None:
            yield "upstream_model", reply.upstream_model
            if reply.usage is not None:
                yield "prompt_tokens", reply.usage.prompt_tokens
                yield "completion_tokens", reply.usage.completion_tokens
        if error is not None:
            yield from {"code": error.code, "param": error.param}.items()
            yield "failure", error.kind if isinstance(error, UpstreamError) else None


def _let_go(error: BaseException | None) -> None:
    """Empty the frames that an error has come through. They hold all that the turn had made, and often the error."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__


def _count_reply(reply: Reply, seconds: float) -> None:
    metrics.note_turn(reply.alias, seconds)
    if reply.usage is not None:
        metrics.note_tokens(reply.alias, reply.usage.prompt_tokens, reply.usage.completion_tokens)
