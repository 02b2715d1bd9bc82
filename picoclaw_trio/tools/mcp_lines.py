"""Lines out of what a program writes: of bounded length, in a bounded number.

Theory: a program may write a gigabyte without a newline, or a million lines a second; neither may cost us more than a
bound. A line that is too long keeps its head and its tail, since either may say what it answers.
Editing rule: no I/O here, and no clock but the one that is handed in.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import attrs

EDGE = 256


@attrs.frozen
class Line:
    """A line without its end. Where it was too long ``is_whole`` is False and only its first and last 256 bytes are."""

    head: bytes
    tail: bytes = b""
    is_whole: bool = True


@attrs.define
class LineSplitter:
    """Takes bytes as they come and gives the lines that have ended."""

    max_bytes: int
    _kept: bytearray = attrs.field(factory=bytearray)
    _head: bytes | None = None

    def feed(self, data: bytes) -> Iterator[Line]:
        """The lines that *data* ends. To be used up before the next call."""
        *ended, rest = data.split(b"\n")
        for piece in ended:
            self._take(piece)
            yield self._end()
        self._take(rest)

    def _take(self, piece: bytes) -> None:
        self._kept += piece
        if self._head is None and len(self._kept) > self.max_bytes:
            self._head = bytes(self._kept[:EDGE])
        if self._head is not None:
            del self._kept[:-EDGE]

    def _end(self) -> Line:
        kept, head = bytes(self._kept).removesuffix(b"\r"), self._head
        self._kept.clear()
        self._head = None
        return Line(kept) if head is None else Line(head, kept, is_whole=False)


@attrs.define
class Ration:
    """So many a window of time, and a count of what was beyond that."""

    count: int
    seconds: float
    clock: Callable[[], float]
    _window_ends_at: float = 0.0
    _used: int = 0
    dropped: int = 0

    def allows(self) -> bool:
        """Whether one more is within the ration; if not it is counted in ``dropped``."""
        if self.clock() >= self._window_ends_at:
            self._window_ends_at = self.clock() + self.seconds
            self._used = 0
        self._used += 1
        if self._used > self.count:
            self.dropped += 1
        return self._used <= self.count

    def take_dropped(self) -> int:
        """How many were dropped since the last time that this was asked."""
        dropped, self.dropped = self.dropped, 0
        return dropped
