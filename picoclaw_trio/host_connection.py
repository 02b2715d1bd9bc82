"""One client's connection: its reader, its writes, and the times at which it ends.

Theory: a connection has one reader task, which lives as long as the connection, and one task for each request. Waiting
is never done by a further task: the reader's deadline is moved instead. Whoever finds nobody writing becomes the
writer, and the others leave their bytes to it. Nothing here knows HTTP.
Editing rule: each class stands in for one of Hypercorn 0.17 to 0.18, named in its docstring together with what is wrong
there; ``host.MENDS`` puts it in place.
"""

from __future__ import annotations

import logging
import math
import socket
import struct
from collections.abc import Callable
from contextlib import suppress
from typing import Any, ClassVar

import trio
from hypercorn.events import Closed, Event, RawData, Updated
from hypercorn.protocol.h11 import H11Protocol
from hypercorn.trio.tcp_server import MAX_RECV, TCPServer

from .plain_socket import PlainSocket

logger = logging.getLogger(__name__)

# The write timeout holds for each piece, so a slow client is served as long as it takes 2 KiB a second.
PIECE = 2**16
LINGER_TIMEOUT = 2.0
# Seconds for a request that comes, whole or in part, while the worker is stopping.
LAST_TIMEOUT = 2.0
# Or the kernel would offer the rest for many minutes to a client that does not read.
RESET = struct.pack("ii", 1, 0)


class IdleDeadline:
    """In place of ``TrioSingleTask``, which for every request cancels a task and starts another (19 % of the time)."""

    def __init__(self, timeout: float, draining: Any, has_unread: Callable[[], bool]) -> None:
        self.timeout = timeout
        self.draining = draining
        self.has_unread = has_unread
        self.scope = trio.CancelScope()
        self.is_new = True

    async def restart(self, task_group: object, action: object) -> None:
        self.start()

    def start(self) -> None:
        """From now on the connection is idle: it ends after the timeout, and soon when the worker is stopping."""
        self.draining.idle.add(self)
        if not self.draining.is_set():
            self.scope.deadline = trio.current_time() + self.timeout
        elif self.is_new:
            self.scope.deadline = trio.current_time() + LAST_TIMEOUT
        else:
            self.hurry()

    def hurry(self) -> None:
        """The worker is stopping: what has come in is still read, and answered where it is a request."""
        self.scope.deadline = trio.current_time() + LAST_TIMEOUT if self.has_unread() else -math.inf

    @property
    def was_hurried(self) -> bool:
        """Whether the connection is to end at once, since nothing had come in."""
        return self.scope.deadline == -math.inf

    def allow_last(self) -> None:
        """Something has come in after all."""
        self.scope = trio.CancelScope(deadline=trio.current_time() + LAST_TIMEOUT)

    def stop(self) -> None:
        self.is_new = False
        self.draining.idle.discard(self)
        self.scope.deadline = math.inf


class ReadAhead(Event):
    """Asks the connection to read on while an answer is under way, so that the client's leaving is seen.

    What comes next goes to *keep*; at the end that is nothing.
    """

    def __init__(self, keep: Callable[[bytes], None]) -> None:
        self.keep = keep


class Guard(Event):
    """Asks the connection to see to it that no write holds up its end. Handled as long as the connection lasts."""


class Connection(TCPServer):
    """One client's connection.

    In place of ``TCPServer``, where an error in protocol code ends the whole worker, a write to a client that does not
    read waits for ever and cannot be cancelled, a stop waits for a client that does not begin TLS, an answer that comes
    before the whole request can be lost to a reset, and each write costs a lock, a cancel scope and a turn of the
    scheduler.
    """

    write_timeout: ClassVar[float] = 30.0
    stream: Any

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.idle = IdleDeadline(self.config.keep_alive_timeout, self.context.terminated, self._has_unread)
        self.idle_task = self.idle  # type: ignore[assignment]  # has all that is used of it
        self.unsent = bytearray()  # not empty: some task is writing it
        self.written = trio.lowlevel.ParkingLot()
        self.writing = trio.CancelScope()  # of the latest piece
        self.ending = False
        self.finished = False

    async def run(self) -> None:
        """Serve the client until one side closes. An error in here costs this connection only, and one line of log."""
        try:
            if not isinstance(self.stream, trio.SSLStream) or await self._shake_hands():
                await super().run()
        except* Exception as errors:
            logger.error("A connection was dropped after an error: %r", errors.exceptions)
            logger.debug("This is the error", exc_info=errors)
        finally:
            self.idle.stop()

    async def _shake_hands(self) -> bool:
        """Begin TLS, as Hypercorn would, but hurry when the worker stops. False when the client does not do its part.

        To Hypercorn a client that has connected and says nothing is none that it could send away.
        """
        limit = IdleDeadline(self.config.ssl_handshake_timeout, self.context.terminated, self._has_unread)
        try:
            with limit.scope:
                limit.start()
                await trio.lowlevel.wait_readable(self.stream.transport_stream.socket)
                limit.has_unread = lambda: True  # it has begun, and may take its little while
                await self.stream.do_handshake()
                return True
        except trio.BrokenResourceError:
            pass
        finally:
            limit.stop()
        return False

    async def protocol_send(self, event: Event) -> None:
        if isinstance(event, RawData):
            await self._write(event.data)
        elif isinstance(event, Updated):
            if self.finished:
                pass  # a stream that ends now must not lengthen the time to linger
            elif event.idle:
                self.idle.start()
            else:
                self.idle.stop()
        elif isinstance(event, ReadAhead):
            event.keep(await self._receive())
        elif isinstance(event, Guard):
            await self._guard()
        elif isinstance(event, Closed):
            await self._finish()
            await self.protocol.handle(Closed())

    async def _read_data(self) -> None:
        late, goes_on = b"", True
        while goes_on:
            with self.idle.scope:
                data, late = late, b""
                late = await self._read_on(data)
            # A busy worker comes here some time after the order to hurry, and a request may be in by then.
            goes_on = self.idle.was_hurried and (late != b"" or self._has_unread())
            if goes_on:
                self.idle.allow_last()
        await self.protocol.handle(Closed())

    async def _read_on(self, data: bytes) -> bytes:
        """Hand on *data*, if there is any, and what comes, to its end. Gives what has come too late for the scope."""
        if data:
            await self.protocol.handle(RawData(data))
        data = b"more"
        while data:
            data = await self._receive()
            if data and self.idle.was_hurried:
                return data
            if not self.finished:
                await self.protocol.handle(RawData(data))
        return b""

    async def _receive(self) -> bytes:
        """What the client sent; nothing when it, or we, have closed."""
        try:
            if self.config.read_timeout is None:
                return bytes(await self.stream.receive_some(MAX_RECV))
            with trio.fail_after(self.config.read_timeout):
                return bytes(await self.stream.receive_some(MAX_RECV))
        except (trio.BrokenResourceError, trio.ClosedResourceError, trio.TooSlowError):
            return b""

    def _has_unread(self) -> bool:
        transport = getattr(self.stream, "transport_stream", self.stream)
        readable = transport if isinstance(transport, PlainSocket) else transport.socket
        return transport.socket.fileno() >= 0 and readable.is_readable()

    async def _write(self, data: bytes) -> None:
        """Write *data* after all that was given before. Who is cancelled while another task writes leaves his to it."""
        try:
            if not self.unsent and isinstance(self.stream, PlainSocket):
                data = data[self.stream.send_nowait(data) :]
            if data:
                await self._write_rest(data)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            await self._break_off()
            await self.protocol.handle(Closed())

    async def _write_rest(self, data: bytes) -> None:
        under_way = bool(self.unsent)
        self.unsent += data
        if under_way:
            await self.written.park()
            return
        while self.unsent:
            await self._write_piece()
        self.written.unpark_all()

    async def _write_piece(self) -> None:
        piece = bytes(self.unsent[:PIECE])
        # Half a frame would spoil the other requests of an HTTP/2 connection, so there a write ends only with all.
        shared = not (self.ending or isinstance(self.protocol.protocol, H11Protocol))
        limit = self.writing = trio.CancelScope(deadline=trio.current_time() + self.write_timeout, shield=shared)
        try:
            with limit:
                await self.stream.send_all(piece)
        except trio.Cancelled:
            await self._break_off()
            raise
        if limit.cancelled_caught:
            raise trio.BrokenResourceError("the client does not read")
        del self.unsent[:PIECE]

    async def _guard(self) -> None:
        try:
            await trio.sleep_forever()
        finally:
            self.ending = True
            self.writing.shield = False

    async def _break_off(self) -> None:
        """Close without a word: what was being written is torn."""
        self.unsent.clear()
        self.written.unpark_all()
        transport = getattr(self.stream, "transport_stream", self.stream)
        with suppress(OSError):
            transport.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        await trio.aclose_forcefully(self.stream)

    async def _finish(self) -> None:
        """Say that nothing more will come. What the client is still sending, the reader throws away for a while.

        To close at once with something unread would reset the connection, and the client may lose the answer. Over TLS
        that nothing more will come shows only when we close.
        """
        self.finished = True
        self.idle.scope.deadline = trio.current_time() + LINGER_TIMEOUT
        try:
            if not isinstance(self.stream, trio.SSLStream):
                await self.stream.send_eof()
            if getattr(self.protocol.protocol, "has_whole_request", False):
                await self._close()
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            await self._close()

    async def _close(self) -> None:
        with trio.move_on_after(self.write_timeout):  # TLS says goodbye, which can block like any write
            await self.stream.aclose()
