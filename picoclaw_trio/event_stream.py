"""The answer as server-sent events: begun late, never silent for long, ended or failed once.

Theory: until the first frame the answer may still become a status; the head goes out with that frame, or with the
first comment, and there are none before the turn has begun, so that whoever waits in vain gets a status. Frames are
written by the task that has them, so a slow client holds up whoever asks the model. A second task writes the comments
that keep proxies from giving up on a silent stream.
Editing rule: nothing but ``_send_locked`` sends, and only who holds the lock enters it.

Source: https://html.spec.whatwg.org/multipage/server-sent-events.html
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial

import attrs
import trio
from hypercorn.typing import ASGISendCallable

from . import sse

HEAD = [
    (b"content-type", sse.CONTENT_TYPE.encode()),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),  # nginx would collect the frames
]
# The first comment makes the status 200 for good, so it comes a tenth later than those that follow: by default a wait
# for a connection ends after the same 10 s, and is to end in a status.
FIRST_DELAY = 1.1


@attrs.define
class EventStream:
    """One stream of events.

    Args:
        head: gives the extra headers at the moment when the head is sent.
    """

    _send: ASGISendCallable
    _head: Callable[[], list[tuple[bytes, bytes]]]
    _lock: trio.Lock = attrs.field(factory=trio.Lock, init=False)
    _written_at: float = attrs.field(factory=trio.current_time, init=False)
    _ended: bool = attrs.field(default=False, init=False)
    is_begun: bool = attrs.field(default=False, init=False)

    async def send(self, *data: bytes) -> None:
        """Send events, in one write. Returns when the client's side has taken them."""
        await self._write(b"".join(map(sse.encode_event, data)))

    async def comment(self, text: str) -> None:
        """Send a comment, which no client takes for an event."""
        await self._write(sse.encode_comment(text))

    async def end(self, *data: bytes) -> None:
        """Send the last events and the end mark, in one write, and close the body."""
        await self._write(b"".join(map(sse.encode_event, (*data, sse.DONE))), is_last=True)

    async def fail(self, error: bytes) -> bool:
        """Send *error* as the last event and close the body; False, and nothing is sent, if none was sent before."""
        async with self._lock:
            if not self.is_begun:
                self._ended = True
                return False
            await self._send_locked(sse.encode_event(error), is_last=True)
            return True

    @asynccontextmanager
    async def commented(self, interval: float) -> AsyncIterator[Callable[[], None]]:
        """Send comments as ``run_comments`` does, from the call of what is given until the block ends.

        What the block raises comes out as it is, in no group.
        """
        raised: Exception | None = None
        async with trio.open_nursery() as nursery:
            try:
                yield partial(nursery.start_soon, self.run_comments, interval)
            except Exception as exc:  # raised again below, outside of the nursery, which would put it in a group
                raised = exc
            async with self._lock:  # half a comment would tear the connection
                nursery.cancel_scope.cancel()
        if raised is not None:
            raise raised

    async def run_comments(self, interval: float) -> None:
        """Send a comment after each *interval* seconds of silence, of which that from now on counts."""
        self._written_at = trio.current_time()
        while not self._ended:
            await trio.sleep_until(self._comment_at(interval))
            async with self._lock:  # a client that does not read holds it, and is not to be told more
                if trio.current_time() >= self._comment_at(interval):
                    await self._send_locked(sse.COMMENT, is_last=False)

    def _comment_at(self, interval: float) -> float:
        return self._written_at + interval * (1.0 if self.is_begun else FIRST_DELAY)

    async def _write(self, data: bytes, *, is_last: bool = False) -> None:
        try:
            self._lock.acquire_nowait()
        except trio.WouldBlock:
            await self._lock.acquire()
        try:
            await self._send_locked(data, is_last=is_last)
        finally:
            self._lock.release()

    async def _send_locked(self, data: bytes, *, is_last: bool) -> None:
        if self._ended:
            return
        self._ended = is_last
        if not self.is_begun:
            self.is_begun = True
            head = HEAD + self._head()
            self._head = list  # it led to whoever writes this stream, and so in a circle
            await self._send({"type": "http.response.start", "status": 200, "headers": head})
        await self._send({"type": "http.response.body", "body": data, "more_body": not is_last})
        self._written_at = trio.current_time()
