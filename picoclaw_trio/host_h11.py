"""HTTP/1.1 as Hypercorn speaks it, with its faults mended.

Theory: h11 knows the protocol; Hypercorn moves events between it, the connection and the application. What is wrong is
wrong in that middle, where bytes that nobody expects end the server or hide the client's leaving. Requests that can be
understood in two ways are refused here, before any application sees them.
Editing rule: ``H11`` stands in for a class of Hypercorn 0.17 to 0.18; ``host.MENDS`` puts it in place.
"""

from __future__ import annotations

import re
from typing import Any

import h11
import trio
from hypercorn.events import Closed, RawData, Updated
from hypercorn.events import Event as ConnectionEvent
from hypercorn.protocol.events import Body, EndBody, Event, Request, Response
from hypercorn.protocol.h11 import STREAM_ID, H2ProtocolAssumedError, H11Protocol

from .host_connection import ReadAhead
from .host_requests import Flush, Headers, Stream, refusal

# A client that has sent so much behind its request is not read further until it has its answer; but after a pause all
# the same, for what it has sent hides that it has gone. Who sends more than the second figure is cut off.
AHEAD_BYTES = 2**16
MAX_AHEAD_BYTES = 2**18
AHEAD_PAUSE = 1.0
# Pieces of a body that are taken in one go. A read is one, but for a client that sends byte by byte.
MAX_PIECES = 64
AUTHORITY = re.compile(rb"https?://[^/?#]*", re.IGNORECASE)


def origin_form(target: bytes) -> bytes | None:
    """Path and query of a request target (RFC 9112 3.2), or None when it asks for something else than a resource."""
    if authority := AUTHORITY.match(target):
        target = target[authority.end() :]
        return target if target.startswith(b"/") else b"/" + target
    return target if target.startswith(b"/") or target == b"*" else None


def is_ambiguous(version: bytes, headers: Headers) -> bool:
    """Whether another server could see another end of this request (RFC 9112 6.1); h11 sees to the lengths alone."""
    names = {name for name, _ in headers}
    if b"transfer-encoding" in names:
        return version != b"1.1" or b"content-length" in names
    return version not in (b"1.0", b"1.1")


class H11(H11Protocol):
    """HTTP/1.1. In place of ``H11Protocol``, where

    * bytes behind a request, be it one blank line, hide that the client has gone, and park the reader for ever;
    * any byte behind the last request of a connection is an error, and takes the answer's place;
    * ``Content-Length`` beside ``Transfer-Encoding``, and any version of HTTP, are accepted;
    * an upgrade to a WebSocket followed by one byte, or with a non-ASCII extension, ends the server;
    * ``100 Continue`` is sent before the application has seen the head;
    * an answer takes three writes.
    """

    connection: h11.Connection

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.unsent: list[bytes] = []
        self.gone = False
        self.is_head = False
        self.asked: Headers = []  # the headers of the request under way
        self.parked: trio.CancelScope | None = None

    @property
    def has_whole_request(self) -> bool:
        return self.connection.their_state in (h11.DONE, h11.MUST_CLOSE, h11.CLOSED)

    async def handle(self, event: ConnectionEvent) -> None:
        if isinstance(event, RawData):
            if not (self.gone or self._has_last_request()):
                await self._receive(event.data)
        elif isinstance(event, Closed):
            self.gone = True
            await self._close_stream()
            self._resume()

    async def _receive(self, data: bytes) -> None:
        # RFC 9112 2.2: blank lines before a request are to be ignored, and h11 refuses them.
        if data[:1] in (b"\r", b"\n") and self._is_between_requests():
            data = data.lstrip(b"\r\n")
            if not data:
                return
        self.connection.receive_data(data)
        await self._handle_events()

    def _is_between_requests(self) -> bool:
        return self.connection.their_state in (h11.IDLE, h11.DONE) and not self.connection.trailing_data[0]

    def _has_last_request(self) -> bool:
        """Whether the connection's last request is whole: what follows is ignored (RFC 9112 9.6)."""
        return self.connection.their_state in (h11.MUST_CLOSE, h11.CLOSED)

    # What comes

    async def _handle_events(self) -> None:
        pieces = 0
        while not (self.gone or self._has_last_request()):
            try:
                event = self.connection.next_event()
            except h11.RemoteProtocolError as error:
                await self._refuse(error.error_status_hint)
                break
            if isinstance(event, h11.Request):
                await self._begin(event)
            elif isinstance(event, h11.Data) and self.stream is not None:
                await self.stream.handle(Body(STREAM_ID, event.data))
                pieces += 1
                if pieces % MAX_PIECES == 0:
                    await trio.lowlevel.cancel_shielded_checkpoint()  # so that the others have their turn
            elif isinstance(event, h11.EndOfMessage) and self.stream is not None:
                await self.stream.handle(EndBody(STREAM_ID))
            elif event is h11.PAUSED:
                await self._read_ahead()
            else:  # more is needed, or the answer came before the whole request
                break

    async def _begin(self, request: h11.Request) -> None:
        if (request.method, request.target, request.http_version) == (b"PRI", b"*", b"2.0"):
            raise H2ProtocolAssumedError(b"PRI * HTTP/2.0\r\n\r\n" + self.connection.trailing_data[0])
        self.is_head = request.method == b"HEAD"
        self.asked = list(request.headers)
        target = origin_form(request.target)
        if target is None or is_ambiguous(request.http_version, self.asked):
            await self._refuse(400)
            return
        await self.send(Updated(idle=False))
        # Never a WSStream: an upgrade that is not answered with 101 is an ordinary request.
        self.stream = Stream(
            self.app,
            self.config,
            self.context,
            self.task_group,
            self.ssl,
            self.client,
            self.server,
            self.stream_send,
            STREAM_ID,
        )
        method, version = request.method.decode("ascii").upper(), request.http_version.decode("ascii")
        await self.stream.handle(Request(STREAM_ID, self.asked, version, method, target, self.connection_state))
        if self.connection.they_are_waiting_for_100_continue and self.stream.app_put is not None:
            self.stream.app_put.ask = self._send_continue
        self.keep_alive_requests += 1
        await self.context.mark_request()

    async def _read_ahead(self) -> None:
        """Wait until the answer under way has been given, or the client has gone, or has sent far too much."""
        with trio.CancelScope() as self.parked:
            while not self.gone:
                ahead, ended = self.connection.trailing_data
                if ended:
                    await self.handle(Closed())
                elif len(ahead) > MAX_AHEAD_BYTES:
                    await self.send(Closed())
                else:
                    if len(ahead) >= AHEAD_BYTES:
                        await trio.sleep(AHEAD_PAUSE)
                    await self.send(ReadAhead(self._keep))
        self.parked = None

    def _keep(self, data: bytes) -> None:
        self.connection.receive_data(data)

    def _resume(self) -> None:
        if self.parked is not None:
            self.parked.cancel()

    # What goes

    async def stream_send(self, event: Event) -> None:
        if isinstance(event, Response) and event.status_code >= 200:
            self._collect_head(event)
        elif isinstance(event, Body):
            self._collect(h11.Data(data=event.data))
        elif isinstance(event, EndBody):
            await self._send_h11_event(h11.EndOfMessage())
        elif isinstance(event, Flush):
            await self._flush()
            await trio.lowlevel.checkpoint()  # no write is one, and a stream must not keep the others waiting
        else:
            await super().stream_send(event)

    def _collect_head(self, event: Response) -> None:
        headers = [*event.headers, *self.config.response_headers("h11")]
        ends = self.context.terminated.is_set() or self.keep_alive_requests >= self.config.keep_alive_max_requests
        if ends or self.connection.their_state is h11.SEND_BODY:  # a request cut short ends the connection
            headers.append((b"connection", b"close"))
        self._collect(h11.Response(headers=headers, status_code=event.status_code))

    async def _send_continue(self) -> None:
        if self.connection.they_are_waiting_for_100_continue:
            await self._send_h11_event(h11.InformationalResponse(status_code=100, headers=[]))

    async def _refuse(self, status: int) -> None:
        if self.connection.our_state in {h11.IDLE, h11.SEND_RESPONSE}:
            await self._send_error_response(status)
        await self.send(Closed())

    async def _send_error_response(self, status_code: int) -> None:
        headers, body = refusal(status_code, self.asked)
        headers += [(b"connection", b"close"), *self.config.response_headers("h11")]
        self._collect(h11.Response(status_code=status_code, headers=headers))
        if not self.is_head:
            self._collect(h11.Data(data=body))
        await self._send_h11_event(h11.EndOfMessage())

    def _collect(self, event: Any) -> None:
        try:
            self.unsent.append(self.connection.send(event))
        except h11.LocalProtocolError:
            if self.connection.their_state is not h11.ERROR:
                raise

    async def _send_h11_event(self, event: Any) -> None:
        self._collect(event)
        await self._flush()

    async def _flush(self) -> None:
        data = b"".join(self.unsent)
        self.unsent.clear()
        if data:
            await self.send(RawData(data))

    async def _maybe_recycle(self) -> None:
        await self._flush()
        self.is_head, self.asked = False, []
        await super()._maybe_recycle()
        ahead = self.connection.trailing_data[0]
        if self.connection.our_state is h11.IDLE and ahead[:1] in (b"\r", b"\n"):
            self.connection = h11.Connection(h11.SERVER, self.config.h11_max_incomplete_size)
            if ahead := ahead.lstrip(b"\r\n"):
                self.connection.receive_data(ahead)
        self._resume()
