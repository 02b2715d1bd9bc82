"""Server-sent events: bytes to the data of events as they arrive, and data to bytes.

Theory: a parser without I/O. It is fed bytes cut anywhere, within a line ending or a character too, and gives whole
events; an event is the lines of one block, joined. Comments and fields that nobody here needs are dropped.
Editing rule: nothing in this file knows what the data mean, but for the end mark of OpenAI's streams.

Source: https://html.spec.whatwg.org/multipage/server-sent-events.html#event-stream-interpretation
"""

from __future__ import annotations

import re

import attrs

CONTENT_TYPE = "text/event-stream"
DONE = b"[DONE]"
COMMENT = b": keep-alive\n\n"
LINE_END = re.compile(rb"\r\n|\n|\r")
BYTE_ORDER_MARK = b"\xef\xbb\xbf"


class EventTooLarge(Exception):
    """An event, or a line of one, is longer than the parser may hold."""


@attrs.define
class Parser:
    """Incremental parser of one event stream.

    Args:
        max_event_bytes: bound on one event; a stream that goes beyond it raises ``EventTooLarge``.
    """

    max_event_bytes: int = 16 * 1024 * 1024
    _rest: bytearray = attrs.field(factory=bytearray, init=False)
    _data: list[bytes] = attrs.field(factory=list, init=False)
    _size: int = attrs.field(default=0, init=False)
    _started: bool = attrs.field(default=False, init=False)

    def feed(self, more: bytes) -> list[bytes]:
        """The data of each event that *more* completes."""
        searched = max(0, len(self._rest) - 1)
        self._rest += more
        events = [event for line in self._whole_lines(searched) if (event := self._take(line)) is not None]
        self._check_size(len(self._rest))
        return events

    def finish(self) -> list[bytes]:
        """The data of the event that the stream's end cut off from its blank line: none or one."""
        return self.feed(b"\n\n")

    def _whole_lines(self, position: int) -> list[bytes]:
        """Cut off each line whose end has come; *position* is where an end can first stand."""
        lines, start = [], 0
        while match := LINE_END.search(self._rest, position):
            # A carriage return at the very end may be the first half of a line ending.
            if match.group() == b"\r" and match.end() == len(self._rest):
                break
            lines.append(bytes(self._rest[start : match.start()]))
            start = position = match.end()
        del self._rest[:start]
        return lines

    def _check_size(self, more: int) -> None:
        if self._size + more > self.max_event_bytes:
            raise EventTooLarge

    def _take(self, line: bytes) -> bytes | None:
        self._check_size(len(line))
        if not self._started:
            line, self._started = line.removeprefix(BYTE_ORDER_MARK), True
        if line:
            self._take_field(line)
            return None
        data, self._data, self._size = self._data, [], 0
        return b"\n".join(data) if data else None

    def _take_field(self, line: bytes) -> None:
        name, _, value = line.partition(b":")
        if name == b"data":
            value = value.removeprefix(b" ")
            self._data.append(value)
            self._size += len(value) + 1


def encode_event(data: bytes) -> bytes:
    """One frame. *data* must hold no line break, as JSON does not."""
    return b"data: %b\n\n" % data


def encode_comment(text: str) -> bytes:
    """A frame that parsers pass over; what would end its line becomes a space."""
    return b": %b\n\n" % " ".join(text.split()).encode("utf-8", "replace")
