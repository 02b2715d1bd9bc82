"""Questions and commands from standard input: typed at a terminal, pasted there, or through a pipe.

Theory: a pipe gives one question a line, whatever is in it: it may be a text that nobody has looked at. At a terminal a
line that begins with a slash is a command; a question may have several lines: a line goes on where it ends with a
backslash, three double quotes alone on a line open and close a block, and what is pasted is one piece. The last is told
by the terminal itself (bracketed paste) where the line editor knows of it; elsewhere lines that come faster than anyone
types belong together.
Editing rule: what a command does is for ``commands``; how lines make one text, and whether it is one, is decided here.
"""

from __future__ import annotations

import select
import sys
from collections.abc import Callable, Iterator
from typing import Protocol

import attrs

PROMPT, MORE = "> ", ". "
BLOCK = '"""'
# Seconds: a terminal hands a paste on in one go, fingers need three times as long for a key.
PASTE_PAUSE = 0.03


@attrs.frozen
class Entry:
    """A question, or a command; *text* has no line break at its end."""

    text: str
    is_command: bool = False

    @property
    def retyped(self) -> str:
        """What gives the same where it is typed or offered again."""
        return f" {self.text}" if _is_command(self.text) and not self.is_command else self.text


class Lines(Protocol):
    """Where questions come from.

    Attributes:
        has_begun: the text that was read last, or is just read, has whole lines.
    """

    has_begun: bool

    def read(self) -> Entry | None:
        """The next question or command; None at the end.

        Raises:
            KeyboardInterrupt, Ended: what was typed is dropped.
        """
        ...


@attrs.define
class PipedLines:
    """One question a line."""

    has_begun: bool = False

    def read(self) -> Entry | None:
        line = sys.stdin.readline()
        return Entry(line.removesuffix("\n").removesuffix("\r")) if line else None


@attrs.define
class TypedLines:
    """A person's questions.

    Args:
        read_line: shows its argument and gives what is typed up to the end of the line, which may hold line breaks
            where it was pasted; None at the end.
        pastes_whole: the terminal tells what is pasted.
    """

    _read_line: Callable[[str], str | None]
    _pastes_whole: bool
    has_begun: bool = attrs.field(default=False, init=False)  # the text that is read has lines already

    def read(self) -> Entry | None:
        self.has_begun = False
        first = self._read_line(PROMPT)
        self.has_begun = True
        if first is None:
            return None
        if first.strip() == BLOCK:
            return Entry("\n".join(self._block()).strip("\n"))
        text = "\n".join(self._continued(first)).strip("\n")
        if _is_command(text):
            return Entry(text, is_command=True)
        return Entry(text if self._pastes_whole else "\n".join([text, *self._pasted()]).strip("\n"))

    def _block(self) -> Iterator[str]:
        while (line := self._read_line(MORE)) is not None and line.strip() != BLOCK:
            yield line

    def _continued(self, line: str | None) -> Iterator[str]:
        while line is not None and _goes_on(line):
            yield line[:-1]
            line = self._read_line(MORE)
        if line is not None:
            yield line

    def _pasted(self) -> Iterator[str]:
        while select.select([sys.stdin], [], [], PASTE_PAUSE)[0] and (line := self._read_line("")) is not None:
            yield line


def _is_command(text: str) -> bool:
    """A blank in front makes it a question."""
    return text.startswith("/") and "\n" not in text


def _goes_on(line: str) -> bool:
    """Two backslashes at the end are two backslashes."""
    return (len(line) - len(line.rstrip("\\"))) % 2 == 1
