"""What a program writes, kept within a bound: the beginning and the end, and a count of all of it.

Editing rule: nothing here grows with what is added.
"""

from __future__ import annotations

import codecs


class Output:
    """One stream of a program, as text; bytes that are no UTF-8 become U+FFFD."""

    def __init__(self, max_chars: int) -> None:
        self._max = max_chars
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._head = self._tail = ""
        self.chars = 0

    def add(self, data: bytes, *, final: bool = False) -> None:
        text = self._decoder.decode(data, final)
        self.chars += len(text)
        room = self._max - len(self._head)
        self._head += text[:room]
        self._tail = (self._tail + text[room:])[-self._max :]

    def cut(self, max_chars: int) -> str:
        """All of it, or its beginning and its end, *max_chars* characters together, which is at most the bound."""
        if self.chars <= max_chars:
            return self._head
        half = max_chars // 2
        start, end = self._head[: max_chars - half], (self._head + self._tail)[-half:] if half else ""
        return f"{start}\n[… {self.chars - max_chars} characters are left out here …]\n{end}"


def share(first: Output, second: Output, max_chars: int) -> tuple[str, str]:
    """Both streams within *max_chars*: each gets half, and what the other does not need."""
    half = max_chars // 2
    most_of_first = max(max_chars - half, max_chars - second.chars)
    text = first.cut(most_of_first)
    return text, second.cut(max_chars - min(first.chars, most_of_first))
