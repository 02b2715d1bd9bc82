"""One HTTP request and its answer as values, and the Quart-Trio connection that carries them.

Theory: the server's messages become an ``HttpRequest`` whose body arrives while the view runs; an ``HttpAnswer`` goes
back in as few messages as it needs, since each costs a write. Quart's own request and response classes would build
their headers and contexts anew for each request, which no view here reads.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Any, Protocol
from urllib.parse import urlsplit

import attrs
import trio
from hypercorn.typing import ASGIReceiveCallable, ASGISendCallable, HTTPScope
from quart_trio.asgi import TrioASGIHTTPConnection

from .errors import BusyError, RequestError
from .event_stream import EventStream
from .host_requests import Inbox
from .replies import Reply

JSON = "application/json"
DOUBLED_SLASHES = re.compile(r"/{2,}")


@attrs.define(eq=False)
class Body:
    """The body of one request, piece by piece; bounded in size and time.

    Args:
        max_bytes: what is taken at the most.
        announced: bytes that the client said it will send; 0 where it did not say.

    Attributes:
        ask: has the client begin to send, where it waits to be asked (``Expect: 100-continue``).
    """

    max_bytes: int
    announced: int
    ask: Callable[[], Awaitable[None]] | None = attrs.field(default=None, init=False)
    _data: bytearray = attrs.field(factory=bytearray, init=False)  # a list of pieces of a byte would be large
    _size: int = attrs.field(default=0, init=False)
    _ended: trio.Event = attrs.field(factory=trio.Event, init=False)
    _is_refused: bool = attrs.field(default=False, init=False)

    @property
    def is_whole(self) -> bool:
        """Nothing of it is still to come."""
        return self._ended.is_set()

    def append(self, data: bytes) -> None:
        self._size += len(data)
        if self._size <= self.max_bytes:
            self._data += data
        else:
            self._data.clear()
            self._ended.set()

    def set_complete(self) -> None:
        self._ended.set()

    def refuse(self) -> None:
        """Wait for it no longer: the server stops, and would begin nothing with it."""
        self._is_refused = not self.is_whole
        self._ended.set()

    async def read(self, timeout: float) -> bytes:
        """The whole body.

        Args:
            timeout: seconds until its last byte.

        Raises:
            RequestError: status 413 or 408.
            BusyError: code ``shutting_down``: it was refused meanwhile.
        """
        self._check_size()
        if not self._ended.is_set():
            with trio.move_on_after(timeout) as scope:
                if self.ask is not None:
                    await self.ask()
                await self._ended.wait()
            if scope.cancelled_caught:
                message = f"The request body did not arrive within {timeout:g} s."
                raise RequestError(message, code="request_timeout", status=408)
        self._check_size()
        if self._is_refused:
            raise BusyError("The gateway is shutting down.", "shutting_down")
        return bytes(self._data)

    def _check_size(self) -> None:
        if max(self.announced, self._size) > self.max_bytes:
            message = f"The request body is larger than {self.max_bytes} bytes."
            raise RequestError(message, code="request_too_large", status=413)


@attrs.define
class HttpRequest:
    """One request: its head, a body that may still be arriving, and the way to answer piece by piece.

    Attributes:
        id: the request's id, on each line of the log.
        answer_headers: what its answer bears, whatever it is.
        session, alias, reply: for the record of the request, as soon as they are known.
        events: the stream that answers this request, once the view has opened one.
    """

    scope: HTTPScope
    path: str
    body: Body
    send: ASGISendCallable
    id: str = ""
    answer_headers: dict[str, str] = attrs.field(factory=dict)
    session: str | None = None
    alias: str | None = None
    reply: Reply | None = None
    events: EventStream | None = None

    @property
    def method(self) -> str:
        return self.scope["method"]

    @property
    def client_address(self) -> str | None:
        """The other side's IP address; None on a Unix socket."""
        client = self.scope["client"]
        return client[0] if client else None

    def header(self, name: bytes) -> str | None:
        """The first header of this lower-case *name*."""
        for key, value in self.scope["headers"]:
            if key == name:
                return value.decode("latin-1")
        return None


@attrs.define
class HttpAnswer:
    """A whole answer. Headers are ASCII."""

    status: int
    body: bytes
    headers: dict[str, str] = attrs.field(factory=dict)
    content_type: str = JSON


class Connection(TrioASGIHTTPConnection):
    """Carries one request from the server's messages to the application, and its answer back.

    In the place of Quart-Trio's (0.12, 0.13), which takes the end of an answer for the client's going away and cancels
    itself in the middle of the server's tidying up: then the connection is neither closed nor timed out, ever.
    """

    app: Application  # type: ignore[assignment]  # narrower on purpose: nothing else of Quart's is used here
    _answered: bool = False

    async def __call__(self, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        async def send_and_note(message: Any) -> None:
            self._answered = message["type"] == "http.response.body" and not message.get("more_body", False)
            await send(message)

        request = HttpRequest(self.scope, _path(self.scope["path"]), self._body(), send_and_note)
        inbox = getattr(receive, "__self__", None)
        if isinstance(inbox, Inbox):
            with trio.CancelScope() as scope:
                request.body.ask = inbox.ask
                inbox.attach(partial(self._take, request.body, scope))
                await self._answer(request)
        else:  # a server that is not mended
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._take_all, partial(self._take, request.body, nursery.cancel_scope), receive)
                await self._answer(request)
                nursery.cancel_scope.cancel()

    def _body(self) -> Body:
        announced = next(
            (int(value) for name, value in self.scope["headers"] if name == b"content-length" and value.isdigit()), 0
        )
        return Body(self.app.max_body_bytes, announced)

    async def _answer(self, request: HttpRequest) -> None:
        answer = await self.app.answer_request(request)
        if answer is not None:
            await _send_answer(request.send, answer)

    def _take(self, body: Body, request_scope: trio.CancelScope, message: Any) -> None:
        """Take one of the server's messages: a piece of the body, or that there will be no more."""
        if message["type"] == "http.request":
            body.append(message.get("body", b""))
            if not message.get("more_body", False):
                body.set_complete()
        elif not self._answered:
            request_scope.cancel()

    async def _take_all(self, take: Callable[[Any], None], receive: ASGIReceiveCallable) -> None:
        message: Any = {}
        while message.get("type") != "http.disconnect":
            message = await receive()
            take(message)


class Application(Protocol):
    """What answers requests."""

    @property
    def max_body_bytes(self) -> int:
        """What is taken of a body at the most."""

    async def answer_request(self, request: HttpRequest) -> HttpAnswer | None:
        """The answer, or None where it has been sent piece by piece."""


def _path(path: str) -> str:
    """The path alone, also where a whole URL was sent; the doubled slashes of joined addresses count as one."""
    if not path.startswith("/"):
        try:
            path = urlsplit(path).path or "/"
        except ValueError:
            path = "/"
    return DOUBLED_SLASHES.sub("/", path)


async def _send_answer(send: ASGISendCallable, answer: HttpAnswer) -> None:
    head = encode_headers(answer.headers)
    if answer.status != 204:
        head += [(b"content-type", answer.content_type.encode("ascii")), (b"content-length", b"%d" % len(answer.body))]
    await send({"type": "http.response.start", "status": answer.status, "headers": head})
    await send({"type": "http.response.body", "body": answer.body, "more_body": False})


def encode_headers(headers: Mapping[str, str]) -> list[tuple[bytes, bytes]]:
    return [(name.lower().encode("ascii"), value.encode("ascii")) for name, value in headers.items()]
