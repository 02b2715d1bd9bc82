"""Where text goes: answers and what was asked for to standard output, everything else to standard error.

Theory: standard output holds nothing but what was asked for, so it can be piped on, and then as the model said it.
Notes of what is happening are for whoever sits there: they are dropped where standard error is no terminal. Where both
streams are terminals they are one, so whether a line is begun is known for both together.
Editing rule: nothing else of the room prints, and nothing here moves the cursor but line breaks.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from io import TextIOWrapper
from typing import TextIO

import attrs

from ..visible import visible

DIM, PLAIN = "\x1b[2m", "\x1b[0m"


@attrs.define
class _Line:
    """The line that is being written: has it begun?"""

    is_begun: bool = False


@attrs.define
class _Stream:
    """One of the two standard streams."""

    to: TextIO
    is_terminal: bool
    line: _Line

    def write(self, text: str, *, is_dim: bool = False) -> None:
        if text:
            self.line.is_begun = not text.endswith("\n")
            shown = visible(text) if self.is_terminal else text
            self.to.write(f"{DIM}{shown}{PLAIN}" if is_dim else shown)
            self.to.flush()


@attrs.define
class Screen:
    """Standard output and standard error.

    Attributes:
        is_dim: notes and reasoning are told from answers by their colour.
    """

    _out: _Stream
    _err: _Stream
    is_dim: bool

    @classmethod
    def of_process(cls, environ: Mapping[str, str]) -> Screen:
        """This process's streams; what their encoding cannot say becomes a question mark."""
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, TextIOWrapper):
                stream.reconfigure(errors="replace")
        return cls.on(sys.stdout, sys.stderr, environ)

    @classmethod
    def on(cls, stdout: TextIO, stderr: TextIO, environ: Mapping[str, str]) -> Screen:
        out = _Stream(stdout, stdout.isatty(), _Line())
        err = _Stream(stderr, stderr.isatty(), _Line())
        if out.is_terminal and err.is_terminal:
            err.line = out.line
        has_colours = environ.get("TERM", "dumb") != "dumb" and not environ.get("NO_COLOR")
        return cls(out, err, err.is_terminal and has_colours)

    @property
    def shows_notes(self) -> bool:
        return self._err.is_terminal

    @property
    def mixes(self) -> bool:
        """Answers and notes stand on one terminal."""
        return self._out.line is self._err.line

    def say(self, text: str) -> None:
        """A piece of an answer."""
        self._out.write(text)

    def line(self, text: str) -> None:
        """Whole lines that were asked for."""
        self.end_line()
        self._out.write(f"{text}\n")

    def note(self, text: str) -> None:
        """What is happening, on a line of its own."""
        self.begin_note(f"{text}\n")

    def begin_note(self, text: str) -> None:
        """The same, and the line may go on."""
        self.end_note_line()
        self.go_on(text)

    def go_on(self, text: str) -> None:
        """A further piece of a note."""
        if self._err.is_terminal:
            self._err.write(text.removesuffix("\n"), is_dim=self.is_dim)
            self._err.write(text[len(text.removesuffix("\n")) :])

    def end_note_line(self) -> None:
        """Go on at the beginning of a line, where notes are shown; the answer in a pipe stays as it is."""
        if self._err.is_terminal and self._err.line.is_begun:
            self._err.write("\n")

    def error(self, text: str) -> None:
        self.end_line()
        self._err.write(f"error: {text}\n")

    def warn(self, text: str) -> None:
        """What whoever asked should know, though they may not sit there."""
        self.end_line()
        self._err.write(f"warning: {text}\n")

    def end_line(self) -> None:
        """End what is begun: a line of an answer, of a note, or one of each."""
        for stream in (self._out, self._err):
            if stream.line.is_begun:
                stream.write("\n")
