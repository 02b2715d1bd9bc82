"""One request on its way to the application and back: what waits for it, its task, its stream, and its errors.

Theory: the connection's reader puts pieces of the body into an inbox, the application takes them out in a task of its
own, and whichever ends first lets the other go. An answer that Hypercorn gives by itself has OpenAI's error body.
Editing rule: each class stands in for one of Hypercorn 0.17 to 0.18, named in its docstring together with what is wrong
there; ``host.MENDS`` puts it in place.
"""

from __future__ import annotations

import re
import secrets
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

import orjson
import trio
from hypercorn.config import Config
from hypercorn.protocol.events import Body, EndBody, Event, Response, StreamClosed
from hypercorn.protocol.http_stream import ASGIHTTPState, HTTPStream
from hypercorn.trio.task_group import TaskGroup, _handle

Headers = list[tuple[bytes, bytes]]

# It goes back to the client and onto lines of the log.
SANE_REQUEST_ID = re.compile(rb"[A-Za-z0-9._:/+=@-]{1,128}")
# {status: (code, message)}
REFUSALS = {
    400: ("bad_request", "The request is not valid HTTP, or can be understood in more than one way."),
    404: ("not_found", "This host name is not served here."),
    431: ("headers_too_large", "The request's header fields are too large."),
    500: ("internal_error", "The gateway failed internally. Its log has the details."),
    501: ("not_implemented", "The request's transfer coding is not supported."),
}


def request_id(asked: Iterable[tuple[bytes, bytes]]) -> str:
    """The request's id: the client's own, if it sent a sane one, else a new one.

    Args:
        asked: the request's headers, with lower-case names.
    """
    given = next((value for name, value in asked if name == b"x-request-id"), b"")
    return given.decode("ascii") if SANE_REQUEST_ID.fullmatch(given) else f"req_{secrets.token_hex(16)}"


def refusal(status: int, asked: Iterable[tuple[bytes, bytes]]) -> tuple[Headers, bytes]:
    """Headers and body of an error in OpenAI's shape, for what never reaches the application or was left unanswered.

    Args:
        asked: the request's headers, as far as they are known.
    """
    code, message = REFUSALS.get(status, REFUSALS[400])
    kind = "server_error" if status == 500 else "invalid_request_error"
    body = orjson.dumps({"error": {"message": message, "type": kind, "param": None, "code": code}})
    return [
        (b"content-type", b"application/json"),
        (b"content-length", b"%d" % len(body)),
        (b"x-request-id", request_id(asked).encode("ascii")),
    ], body


class Inbox:
    """What waits for one request's application: at most *limit* pieces of the body, and that the client has gone.

    In place of a memory channel, in which that news can find no room, and which has no end when the application has
    one: both would park the connection's reader for ever.

    An application that wants no task of its own to wait here (5 % of a request's processor time) has its messages
    handed to it, see ``attach``.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.messages: deque[Any] = deque()
        self.closed = False
        self.changed = trio.lowlevel.ParkingLot()
        self.ask: Callable[[], Awaitable[None]] | None = None  # to be called before the first wait for a body
        self.take: Callable[[Any], None] | None = None

    def attach(self, take: Callable[[Any], None]) -> None:
        """Give *take* what waits, and from now on each message as soon as it comes; nothing waits for room any more.

        It is called by the connection's reader, so it must neither raise nor take its time. The last is the client's
        leaving, or the end of the answer.
        """
        while self.messages:
            take(self.messages.popleft())
        if not self.closed:
            self.take = take
        self.changed.unpark_all()

    async def __call__(self, message: Any) -> None:
        """Put *message* in, waiting for room. Does nothing once the inbox is closed."""
        if message["type"] == "http.disconnect":
            self.close()
        while len(self.messages) >= self.limit and not self.closed:
            await self.changed.park()
        if not self.closed:
            self._put(message)

    def _put(self, message: Any) -> None:
        if self.take is not None:
            self.take(message)
        else:
            self.messages.append(message)
            self.changed.unpark_all()

    async def receive(self) -> Any:
        while not self.messages:
            if self.closed:  # said already; who asks again must not keep the others waiting
                await trio.lowlevel.checkpoint()
                return {"type": "http.disconnect"}
            if self.ask is not None:
                ask, self.ask = self.ask, None
                await ask()
            await self.changed.park()
        self.changed.unpark_all()
        return self.messages.popleft()

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            self._put({"type": "http.disconnect"})
            self.take = None


class Requests(TaskGroup):
    """The tasks of one connection. In place of ``TaskGroup``, for the sake of ``Inbox``."""

    async def spawn_app(self, app: Any, config: Config, scope: Any, send: Any) -> Inbox:
        inbox = Inbox(config.max_app_queue_size)
        to_thread, from_thread = trio.to_thread.run_sync, trio.from_thread.run
        self.spawn(_handle, app, config, scope, inbox.receive, send, to_thread, from_thread)
        return inbox


class Flush(Event):
    """A piece of an answer is complete and must leave now."""


class Stream(HTTPStream):
    """One request. In place of ``HTTPStream``, where

    * the head leaves before the first piece of the body, against ASGI, so that what fails between them is no error 500;
    * errors have no body, and the one for a host name that is not served leaves the connection hanging.
    """

    app_put: Any = None
    head: Any = None

    async def app_send(self, message: Any) -> None:
        if message is None:
            await super().app_send(None)
        elif message["type"] == "http.response.start" and self.state is ASGIHTTPState.REQUEST:
            self.head = message
        else:
            await self._send_with_head(message)
            if message.get("more_body", False):
                await self.send(Flush(self.stream_id))

    async def _send_with_head(self, message: Any) -> None:
        if self.head is not None:
            head, self.head = self.head, None
            try:
                await super().app_send(head)
            except trio.Cancelled:
                self.state = ASGIHTTPState.RESPONSE  # it may be on its way, so that a second one must not follow
                raise
        await super().app_send(message)

    async def _send_error_response(self, status_code: int) -> None:
        headers, body = refusal(status_code, self.scope["headers"])
        if self.scope["http_version"] != "2":
            headers.append((b"connection", b"close"))
        await self.send(Response(self.stream_id, headers, status_code))
        if self.scope["method"] != "HEAD":
            await self.send(Body(self.stream_id, body))
        await self.send(EndBody(self.stream_id))
        self.state = ASGIHTTPState.CLOSED
        summary: Any = {"status": status_code, "headers": headers}
        await self.config.log.access(self.scope, summary, time.time() - self.start_time)
        if self.app_put is None:  # no application will say that it has finished
            self.closed = True
            await self.send(StreamClosed(self.stream_id))
