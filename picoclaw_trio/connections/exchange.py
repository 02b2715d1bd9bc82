"""One question and its answer over one open connection, HTTP/1.1 as h11 understands it.

Theory: reading follows the reader. Bytes are taken from the socket only when somebody wants the next piece, so a slow
reader slows the upstream. The one exception is a long upload, during which we listen, since an upstream that has
refused it stops reading and would let us hang. Each wait for the upstream has one limit, each failure one class.
Editing rule: whatever h11, zlib or a stream raises is translated here, once. No text repeats a header or a body.
"""

from __future__ import annotations

import math
import zlib
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TypeAlias

import attrs
import h11
import trio

from .dialing import ExchangeError, Wire
from .inflating import Inflater

Headers: TypeAlias = Sequence[tuple[bytes, bytes]]
Early: TypeAlias = "deque[h11.Event | ExchangeError]"

# One TLS record is 16 KiB, one read of the socket at most this: what is in memory for a reader that does not read.
MAX_READ = 65_536
MAX_HEAD = 65_536
# A body up to this goes into the socket's buffer together with the head; a longer one may have to wait for its reader.
MAX_SHORT_BODY = 65_536
# Longer bodies are handed over piecewise, since TLS makes a copy of all that it is handed.
MAX_WRITE = 1_048_576
# How much of an answer we keep while the question is still being sent: bytes, and each part counts for EARLY_PART more.
MAX_EARLY = 4_194_304
EARLY_PART = 1024
# The end of an idle connection that met our request half-way arrives within one round trip. See Connection.is_stale.
STALE_TIMEOUT = 1.0
# What h11 is told when a question goes out: that it was a POST, which is all that the framing of its answer asks for.
# Its bytes are not sent. To have h11 check and write the real head each time costs a twentieth of a request.
ASKED = h11.Request(method="POST", target="/", headers=[("host", "a"), ("content-length", "0")])
END = h11.EndOfMessage()


class ConnectionLost(ExchangeError):
    """The connection broke when the question had been sent, perhaps in part.

    ``answered`` tells whether a byte of the answer had come. If not, the upstream may still have done the work.
    """

    def __init__(self, peer: str, answered: bool) -> None:
        super().__init__(f"{peer} closed the connection {'within' if answered else 'before'} its answer")
        self.answered = answered


class ProtocolError(ExchangeError):
    """What came is no HTTP/1 answer, or a broken one."""


class ResponseTooLarge(ExchangeError):
    """The body, unpacked, has more bytes than the reader wanted."""


class TimedOut(ExchangeError):
    """The upstream took too long. ``phase`` is connect, answer or read."""

    def __init__(self, peer: str, phase: str, seconds: float) -> None:
        super().__init__(f"{peer} took more than {seconds:g} s in phase {phase}")
        self.phase = phase


@attrs.define(eq=False)
class Connection:
    """An open connection that carries one exchange after the other. *peer* names the other side in error texts."""

    peer: str
    wire: Wire
    _http: h11.Connection = attrs.field(factory=lambda: h11.Connection(h11.CLIENT, MAX_HEAD))
    _early: Early = attrs.field(factory=deque)
    _sent_at: float = math.inf
    _answered: bool = False
    _ended: bool = False

    async def ask(self, head: bytes, body: bytes) -> h11.Response:
        """Send a POST and wait for the head of its answer; interim ones (1xx) are skipped.

        Raises:
            ConnectionLost, ProtocolError: close the connection then.
        Cancellation: close the connection then.
        """
        await trio.lowlevel.checkpoint_if_cancelled()  # to send a short question is no checkpoint
        self._http.send(ASKED)
        self._http.send(END)
        if len(body) <= MAX_SHORT_BODY:
            await self._send(head + body)
        else:
            await self._upload(head, body)
        while type(event := await self.next_event()) is not h11.Response:
            pass
        return event

    async def next_event(self) -> h11.Event:
        """Wait for the next part of the answer."""
        while (event := self.next_event_nowait()) is None:
            await self.receive()
        return event

    def next_event_nowait(self) -> h11.Event | None:
        """The next part of the answer, or None when more bytes must be received first."""
        if not self._early:
            return self._parse()
        item = self._early.popleft()
        if isinstance(item, ExchangeError):
            raise item
        return item

    async def receive(self) -> None:
        """Wait for bytes. A cancellation loses none."""
        try:
            data = bytes(await self.wire.stream.receive_some(MAX_READ))
        except (trio.BrokenResourceError, trio.ClosedResourceError) as exc:
            raise ConnectionLost(self.peer, self._answered) from exc
        # h11 would wait for the end of a line, and other protocols do not send one.
        if not self._answered and not b"HTTP/".startswith(data[:5]):
            raise ProtocolError(f"{self.peer} does not speak HTTP")
        if data:
            self._answered = True
        else:
            self._ended = True
        self._http.receive_data(data)

    def renew(self) -> bool:
        """Make ready for the next exchange; False where there cannot be one."""
        http = self._http
        both_done = http.our_state is h11.DONE and http.their_state is h11.DONE
        if not both_done or self._sent_at == math.inf or http.trailing_data != (b"", False):
            return False
        http.start_next_cycle()
        self._sent_at, self._answered = math.inf, False
        return True

    def is_stale(self) -> bool:
        """Whether a reused connection that broke had most likely been closed before our request reached the other side.

        In general a POST whose connection broke must not be sent again: the upstream may be at work on it, and be paid
        for it (RFC 9110 section 9.2.2). The one safe case in practice: not a byte of an answer came, and the end came
        either before the request was out, so that nobody can have read all of it, or within the time that the
        news of a closed idle connection takes. An upstream that takes a request up and then fails says so in HTTP, and
        one that dies with it is no longer running it. That this connection has worked before makes it likely
        that its idle limit is the cause; on a fresh one it cannot be.
        """
        return not self._answered and trio.current_time() - self._sent_at < STALE_TIMEOUT

    def _parse(self) -> h11.Event | None:
        try:
            event = self._http.next_event()
        except h11.RemoteProtocolError as exc:
            if self._ended:
                raise ConnectionLost(self.peer, self._answered) from exc
            raise ProtocolError(f"{self.peer} does not speak proper HTTP") from exc
        return None if isinstance(event, type) else event  # a type: h11.NEED_DATA

    async def _send(self, *pieces: bytes | memoryview) -> None:
        try:
            for piece in pieces:
                await self.wire.send_all(piece)
        except trio.ClosedResourceError as exc:
            raise ConnectionLost(self.peer, self._answered) from exc
        except trio.BrokenResourceError:
            return  # an answer may have come before the end: who reads will see
        self._sent_at = trio.current_time()

    async def _upload(self, head: bytes, body: bytes) -> None:
        """Send a long body until it is out or the whole answer is in: a 413, say, of an upstream that reads no more."""
        view = memoryview(body)
        pieces = [view[start : start + MAX_WRITE] for start in range(0, len(body), MAX_WRITE)]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._listen, nursery.cancel_scope)
            with suppress(ConnectionLost):  # the listener meets it too, and keeps it
                await self._send(head, *pieces)
            # If it broke, the listener stays: of a broken TLS stream only a read that has begun still gets something.
            if self._sent_at < math.inf:
                nursery.cancel_scope.cancel()

    async def _listen(self, uploading: trio.CancelScope) -> None:
        """Keep what comes for the reader; end *uploading* when no more will come, or when it is too much."""
        room = MAX_EARLY
        while room > 0:
            try:
                event = self._parse()
                if event is None:
                    await self.receive()
                    continue
            except ExchangeError as exc:
                self._early.append(exc)
                break
            self._early.append(event)
            if isinstance(event, h11.EndOfMessage):
                break
            room -= EARLY_PART + len(event.data if isinstance(event, h11.Data) else b"")
        uploading.cancel()


@attrs.define(eq=False)
class Response:
    """An answer whose head has come. Valid within the ``async with`` of ``ConnectionPool.post``, for one reader."""

    status: int
    headers: Headers
    _connection: Connection
    _read_timeout: float
    # Gets the connection as soon as the body's end has come.
    _release: Callable[[Connection], None]
    _inflater: Inflater | None = None
    is_whole: bool = False

    def __attrs_post_init__(self) -> None:
        coding = (self.header("content-encoding") or "identity").lower()
        if coding != "identity":
            self._inflater = Inflater(coding)

    def header(self, name: str) -> str | None:
        """The value of the first header of that name, in whatever case, or None."""
        wanted = name.lower().encode("latin-1")
        return next((value.decode("latin-1") for key, value in self.headers if key == wanted), None)

    async def read(self, max_bytes: int) -> bytes:
        """The rest of the body, unpacked.

        Raises:
            ResponseTooLarge: it is longer than *max_bytes*; what came is gone.
            ConnectionLost, ProtocolError, TimedOut: as for ``receive``.
        """
        pieces, room = [], max_bytes
        while piece := await self.receive():
            room -= len(piece)
            if room < 0:
                raise ResponseTooLarge(f"{self._connection.peer} sent more than {max_bytes} bytes")
            pieces.append(piece)
        return b"".join(pieces)

    async def receive(self) -> bytes:
        """The next piece of the body, unpacked, at most 64 KiB; b"" at its end. Nothing is read ahead of the reader.

        Raises:
            ConnectionLost: it broke off, with ``answered`` true.
            ProtocolError: what comes is not what the head promised.
            TimedOut: nothing came for read_timeout.
        Cancellation: loses nothing; the next call goes on where this one was.
        """
        if self._inflater is None:
            return await self._receive_packed()
        try:
            while not (piece := self._inflater.take()):
                packed = await self._receive_packed()
                if not packed:
                    break
                self._inflater.put(packed)
        except zlib.error as exc:
            raise ProtocolError(f"{self._connection.peer} sent a body that cannot be unpacked") from exc
        if not piece and not self._inflater.is_whole():
            raise ProtocolError(f"{self._connection.peer} sent a packed body that stops half-way")
        return piece

    async def _receive_packed(self) -> bytes:
        while not (pieces := self._take_arrived()) and not self.is_whole:
            with trio.move_on_after(self._read_timeout) as scope:
                await self._connection.receive()
            if scope.cancelled_caught:
                raise TimedOut(self._connection.peer, "read", self._read_timeout)
        return pieces

    def _take_arrived(self) -> bytes:
        """All that has come of the body in one piece, since each costs its reader a turn."""
        pieces = []
        while not self.is_whole and (event := self._connection.next_event_nowait()) is not None:
            if isinstance(event, h11.Data):
                pieces.append(event.data)
            else:
                self.is_whole = True
                self._release(self._connection)
        return b"".join(pieces)

    def settle(self) -> None:
        """Take the body's end if it has come unread, as after the last event of an event stream."""
        with suppress(ExchangeError):
            self._take_arrived()
