"""HTTP/2 as Hypercorn speaks it, with its faults mended.

Theory: h2 knows the protocol; Hypercorn moves events between it, the connection and the application. A connection is
shared, so what is wrong with one request must stay with its stream.
Editing rule: each class stands in for one of Hypercorn 0.17 to 0.18, named in its docstring together with what is wrong
there; ``host.MENDS`` puts it in place.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import h2.errors
import h2.events
import h2.exceptions
import trio
from hypercorn.events import Closed, RawData, Updated
from hypercorn.events import Event as ConnectionEvent
from hypercorn.protocol.events import Event, StreamClosed
from hypercorn.protocol.h2 import BUFFER_HIGH_WATER, BUFFER_LOW_WATER, BufferCompleteError, H2Protocol, StreamBuffer

from .host_connection import PIECE, Connection, Guard
from .host_requests import Headers, refusal

# Bytes that are taken at once: with the shortest frames that is some 200 of them, or 80 requests.
SLICE = 2**11
# Frames that cost us alone: so many at once, and so many a second. An application that resets all its 100 streams now
# and then, or asks a few times a second whether we live, stays far below.
MAX_CREDIT = 500.0
CREDIT_RATE = 100.0
# Bytes below which a frame of a body is one of them, at a tenth: some clients send their JSON token by token.
TINY_DATA = 16
FRAMES_FOR_NOTHING = (
    h2.events.StreamReset,
    h2.events.PingReceived,
    h2.events.PingAckReceived,
    h2.events.RemoteSettingsChanged,
    h2.events.SettingsAcknowledged,
)


class Stalled(Exception):
    """The client keeps a stream's window shut."""


class Buffer(StreamBuffer):
    """What a stream of HTTP/2 has yet to send. In place of ``StreamBuffer``.

    That one lets the application go on while the client's window is shut, and so takes any amount; or has it wait for a
    client that has stopped to read, without end. Our ``push`` and ``drain`` raise ``Stalled`` then.
    """

    @property
    def finished(self) -> bool:
        """Whether all was put in. (``complete`` is when all was taken out.)"""
        return self._complete

    async def push(self, data: bytes) -> None:
        if self._complete:
            raise BufferCompleteError
        self.buffer.extend(data)
        await self._is_empty.clear()
        if len(self.buffer) >= BUFFER_HIGH_WATER:
            await self._paused.clear()
            await self._wait(self._paused)

    async def drain(self) -> None:
        await self._wait(self._is_empty)

    async def _wait(self, event: Any) -> None:
        while not event.is_set():
            size = len(self.buffer)
            with trio.move_on_after(Connection.write_timeout):
                await event.wait()
            if not event.is_set() and len(self.buffer) > size - PIECE:
                raise Stalled

    async def pop(self, max_length: int) -> bytes:
        data = bytes(self.buffer[:max_length])
        del self.buffer[:max_length]
        if len(self.buffer) < BUFFER_LOW_WATER:
            await self._paused.set()
        if not self.buffer:
            await self._is_empty.set()
        return data


class H2(H2Protocol):
    """HTTP/2. In place of ``H2Protocol``, where

    * a read of 64 KiB is thousands of frames, which keep all others waiting, and a client may send them without end;
    * data after the answer, a path that is not ASCII, CONNECT, or a thousand priorities end the server;
    * data after the answer is never acknowledged, so that the connection's window shrinks until nothing moves;
    * an application that writes waits for ever when the client closes the connection, or opens no window;
    * an answer that its application leaves unfinished never ends for the client;
    * a connection whose last stream was reset does not count as idle, and so is never timed out;
    * a request that comes while the worker stops is reset as if all were well, and the last answer may lack its end.
    """

    stream_buffers: dict[int, Buffer]  # type: ignore[assignment]  # ours, by ``host.MENDS``

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.guarding = trio.CancelScope()
        self.credit = Credit()

    async def initiate(self, headers: list[tuple[bytes, bytes]] | None = None, settings: bytes | None = None) -> None:
        self.task_group.spawn(self._guard)
        await super().initiate(headers, settings)

    async def _guard(self) -> None:
        with self.guarding:
            await self.send(Guard())

    async def handle(self, event: ConnectionEvent) -> None:
        if isinstance(event, RawData):
            await self._receive(event.data)
        elif isinstance(event, Closed):
            await super().handle(event)
            self.guarding.cancel()
            for buffer in self.stream_buffers.values():
                await buffer.close()

    async def _receive(self, data: bytes) -> None:
        """Take in what was read, a little at a time; in between the others have their turn."""
        for start in range(0, len(data), SLICE):
            is_last = start + SLICE >= len(data)
            try:
                events = self.connection.receive_data(data[start : start + SLICE])
            except h2.exceptions.ProtocolError:
                await self._hang_up()
                return
            if not (events or is_last):
                continue  # within a larger frame
            if not self.credit.spend(sum(map(cost, events))):
                self.connection.close_connection(h2.errors.ErrorCodes.ENHANCE_YOUR_CALM)
                await self._hang_up()
                return
            await self._handle_events(events)
            if self.closed:
                return
            if not is_last:
                await trio.lowlevel.cancel_shielded_checkpoint()  # what was read is not to be lost

    async def _hang_up(self) -> None:
        await self._flush()
        await self.send(Closed())

    async def _handle_events(self, events: list[h2.events.Event]) -> None:
        for event in events:
            if isinstance(event, h2.events.DataReceived) and event.stream_id not in self.streams:
                self.connection.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            elif isinstance(event, h2.events.RequestReceived) and not is_for_us(event.headers):
                with suppress(h2.exceptions.ProtocolError):  # it may have been reset already
                    self._refuse(event.stream_id, event.headers)
            elif isinstance(event, h2.events.RequestReceived):
                await self._begin(event)
            elif not isinstance(event, h2.events.PriorityUpdated):  # RFC 9113 5.3.2: may be ignored
                await super()._handle_events([event])
                if isinstance(event, h2.events.StreamReset):
                    await self._forget(event.stream_id)
                    await self.send(Updated(idle=self.idle))
        await self._flush()

    async def _begin(self, request: h2.events.RequestReceived) -> None:
        """Also while the worker stops: the application knows what to answer then."""
        await self._create_stream(request)
        await self.send(Updated(idle=False))
        if self.keep_alive_requests > self.config.keep_alive_max_requests:
            self.connection.close_connection()

    async def stream_send(self, event: Event) -> None:
        buffer = self.stream_buffers.get(event.stream_id)
        if isinstance(event, StreamClosed) and buffer is not None and not buffer.finished:
            with suppress(h2.exceptions.ProtocolError):
                self.connection.reset_stream(event.stream_id, h2.errors.ErrorCodes.INTERNAL_ERROR)
            await self._flush()
            await self._window_updated(event.stream_id)  # where the stream's buffer is put away
        elif isinstance(event, StreamClosed) and buffer is not None and buffer.complete:
            await self._send_data(event.stream_id)  # the end, for what follows may be the end of the connection
        try:
            await super().stream_send(event)
        except Stalled:
            await self._give_up(event.stream_id)

    async def _send_data(self, stream_id: int) -> None:
        """Send a piece of an answer; its end goes with the last one, so that nothing comes between them."""
        buffer = self.stream_buffers[stream_id]
        try:
            window = self.connection.local_flow_control_window(stream_id)
            data = await buffer.pop(max(0, min(window, self.connection.max_outbound_frame_size)))
            if data or buffer.complete:
                self.connection.send_data(stream_id, data, end_stream=buffer.complete)
            else:
                self.priority.block(stream_id)
        except h2.exceptions.ProtocolError:  # the stream or the connection has been closed meanwhile
            await buffer.close()
        if buffer.complete:
            await self._forget(stream_id)
        await self._flush()

    async def _forget(self, stream_id: int) -> None:
        """Put away what a stream had to send; whoever waits for that goes on."""
        buffer = self.stream_buffers.pop(stream_id, None)
        if buffer is not None:
            await buffer.close()
            self.priority.remove_stream(stream_id)

    async def _give_up(self, stream_id: int) -> None:
        """End this one stream as if its client had."""
        with suppress(h2.exceptions.ProtocolError):
            self.connection.reset_stream(stream_id, h2.errors.ErrorCodes.CANCEL)
        await self._flush()
        await self._close_stream(stream_id)
        await self._window_updated(stream_id)
        await self.send(Updated(idle=self.idle))

    def _refuse(self, stream_id: int, asked: Headers) -> None:
        headers, body = refusal(400, asked)
        fits = len(body) <= self.connection.local_flow_control_window(stream_id)
        self.connection.send_headers(stream_id, [(b":status", b"400"), *headers], end_stream=not fits)
        if fits:
            self.connection.send_data(stream_id, body, end_stream=True)

    async def _flush(self) -> None:
        if data := self.connection.data_to_send():
            await self.send(RawData(data))
            await trio.lowlevel.checkpoint()  # no write is one, and a stream must not keep the others waiting


def is_for_us(headers: Headers) -> bool:
    """Whether this is a request to an origin server, and not to a proxy (CONNECT)."""
    fields = dict(headers)
    method, path = fields.get(b":method", b""), fields.get(b":path", b"")
    return method.isascii() and method != b"CONNECT" and path.isascii() and path[:1] in (b"/", b"*")


class Credit:
    """What a client may still send of the frames that cost us alone."""

    def __init__(self) -> None:
        self.left = MAX_CREDIT
        self.counted_at = trio.current_time()

    def spend(self, amount: float) -> bool:
        """Whether there was so much left."""
        now = trio.current_time()
        self.left = min(MAX_CREDIT, self.left + CREDIT_RATE * (now - self.counted_at)) - amount
        self.counted_at = now
        return self.left >= 0


def cost(event: h2.events.Event) -> float:
    """What of its client's credit a frame takes."""
    if isinstance(event, h2.events.DataReceived):
        if event.stream_ended is not None or len(event.data) >= TINY_DATA:
            return 0.0
        return 0.1 if event.data else 1.0
    return float(isinstance(event, FRAMES_FOR_NOTHING))
