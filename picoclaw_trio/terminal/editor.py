"""Lines typed at a terminal: with the standard library's readline, or without where there is none.

Theory: readline's state belongs to the process, so it is set up once and taken down at the end. History is ours: what
a person sent becomes one entry, however many lines it has. Of the two libraries that may stand behind the module only
GNU's says what was typed when Ctrl-C came, and takes a paste as one piece.
Editing rule: nothing else imports readline.
"""

from __future__ import annotations

import os
import signal
import sys
import termios
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from functools import partial
from types import FrameType, ModuleType
from typing import Any, Protocol

import attrs

from .history import HistoryFile

# The terminal puts marks around what is pasted, or does so no more.
MARK_PASTES, LEAVE_PASTES = "\x1b[?2004h", "\x1b[?2004l"

Complete = Callable[[str, str], list[str]]


class Editor(Protocol):
    """Gets a line from a person.

    Attributes:
        pastes_whole: a paste with line breaks in it comes as one line.
    """

    pastes_whole: bool

    def read_line(self, prompt: str) -> str | None:
        """One line without its end; None at the end of all lines."""
        ...

    def remember(self, text: str) -> None:
        """Offer *text* again, in this run and in later ones."""
        ...

    def dropped(self) -> str | None:
        """What was on the line that Ctrl-C has ended; None where nobody knows."""
        ...

    def quiet(self) -> AbstractContextManager[None]:
        """What is typed within is not shown in the midst of other text, but offered on the next line."""
        ...


@attrs.define
class PlainEditor:
    """No line editing but the terminal's own."""

    pastes_whole: bool = False

    def read_line(self, prompt: str) -> str | None:
        # The prompt is for the person, and standard output may lead elsewhere.
        try:
            return input(prompt if sys.stdout.isatty() else "")
        except (EOFError, OSError):  # the end, or the terminal is gone
            return None

    def remember(self, text: str) -> None: ...

    def dropped(self) -> str | None:
        return None

    def quiet(self) -> AbstractContextManager[None]:
        return nullcontext()  # it would not be shown on the next line either


@attrs.define
class ReadlineEditor(PlainEditor):
    """The standard library's readline."""

    _readline: ModuleType = attrs.field(kw_only=True)
    _file: HistoryFile = attrs.field(kw_only=True)
    _is_gnu: bool = attrs.field(kw_only=True)

    def read_line(self, prompt: str) -> str | None:
        text = ""
        while True:
            self._readline.set_pre_input_hook(partial(self._offer, text) if text else None)
            try:
                with _stop_raised() if self._is_gnu else nullcontext():
                    return super().read_line(prompt)
            except _Stopped:  # the terminal is as it was before the line
                print(flush=True)
                signal.raise_signal(signal.SIGTSTP)
                text = self._readline.get_line_buffer()

    def _offer(self, text: str) -> None:
        self._readline.insert_text(text)
        self._readline.redisplay()

    def remember(self, text: str) -> None:
        last = self._readline.get_current_history_length()
        if not last or self._readline.get_history_item(last) != text:
            self._readline.add_history(text)
            self._file.add(text)

    def dropped(self) -> str | None:
        return self._readline.get_line_buffer() if self._is_gnu else None

    @contextmanager
    def quiet(self) -> Iterator[None]:
        with _modes_kept() as modes, _pastes_marked() if self.pastes_whole else nullcontext():
            before = [*modes]
            modes[3] &= ~termios.ECHO
            termios.tcsetattr(sys.stdin, termios.TCSANOW, modes)
            leave, mark = (LEAVE_PASTES, MARK_PASTES) if self.pastes_whole else ("", "")
            with _stops_between(partial(_set_terminal, before, leave), partial(_set_terminal, modes, mark)):
                yield


@contextmanager
def open_editor(file: HistoryFile, complete: Complete, environ: Mapping[str, str]) -> Iterator[Editor]:
    """The best editor that there is, with the history of *file*.

    Args:
        complete: gives what may stand for the last word: of the words before it, and its beginning.
    """
    readline = _load_readline()
    if readline is None:
        yield PlainEditor()
        return
    is_gnu = "libedit" not in (readline.__doc__ or "")
    knows_pastes = is_gnu and environ.get("TERM", "dumb") != "dumb" and _version(readline) >= 7
    for binding in _bindings(is_gnu, knows_pastes):
        readline.parse_and_bind(binding)
    readline.set_auto_history(False)
    readline.set_completer_delims(" \t\n")
    readline.set_completer(_completer(readline, complete))
    for entry in file.load():
        readline.add_history(entry)
    try:
        yield ReadlineEditor(knows_pastes, readline=readline, file=file, is_gnu=is_gnu)
    finally:
        readline.set_completer(None)
        readline.set_pre_input_hook(None)
        readline.clear_history()


class _Stopped(BaseException):
    """The program is to stop until it is brought back, as Ctrl-Z asks for."""


@contextmanager
def _stop_raised() -> Iterator[None]:
    """Have a line left before a stop, and begun again after it: meanwhile others have the terminal and its cursor.

    Raises:
        _Stopped: the program is to stop; nobody has stopped it yet.
    """

    def on_stop(signum: int, frame: FrameType | None) -> None:
        raise _Stopped

    with _on_stop(on_stop):
        yield


@contextmanager
def _stops_between(leave: Callable[[], None], enter: Callable[[], None]) -> Iterator[None]:
    """Have the terminal left before a stop, and entered again after it: the shell has it meanwhile."""

    def on_stop(signum: int, frame: FrameType | None) -> None:
        leave()
        signal.signal(signum, signal.SIG_DFL)
        signal.raise_signal(signum)
        signal.signal(signum, on_stop)
        enter()

    with _on_stop(on_stop):
        yield


@contextmanager
def _on_stop(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Have *handler* called instead of a stop, unless somebody has ordered otherwise before."""
    before = signal.getsignal(signal.SIGTSTP)
    if before == signal.SIG_DFL:
        signal.signal(signal.SIGTSTP, handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTSTP, before)


def _set_terminal(modes: list[Any], order: str) -> None:
    """For handlers of signals. Does nothing in the background, where it would stop the program."""
    with suppress(OSError, termios.error):  # it is gone
        if os.tcgetpgrp(sys.stdin.fileno()) == os.getpgrp():
            termios.tcsetattr(sys.stdin, termios.TCSANOW, modes)
            os.write(sys.stdout.fileno(), order.encode())  # print may be what was interrupted


def _load_readline() -> ModuleType | None:
    """None where Python has none, or would not use it since standard output leads elsewhere."""
    if not sys.stdout.isatty():
        return None
    try:
        import readline
    except ImportError:
        return None
    return readline


def _version(readline: ModuleType) -> int:
    return int(str(getattr(readline, "_READLINE_LIBRARY_VERSION", "0")).partition(".")[0])


def _bindings(is_gnu: bool, knows_pastes: bool) -> Iterator[str]:
    if is_gnu:
        yield "tab: complete"
        yield "set show-all-if-ambiguous on"
    else:
        yield "bind ^I rl_complete"
    if knows_pastes:
        yield "set enable-bracketed-paste on"


def _completer(readline: ModuleType, complete: Complete) -> Callable[[str, int], str | None]:
    """Readline asks for one after the other, until there is none."""
    found: list[str] = []

    def give(text: str, index: int) -> str | None:
        if index == 0:
            found[:] = complete(readline.get_line_buffer()[: readline.get_begidx()], text)
        return found[index] if index < len(found) else None

    return give


@contextmanager
def terminal_kept() -> Iterator[None]:
    """Give the terminal back as it was, whatever happens within."""
    with _modes_kept():
        yield


@contextmanager
def _pastes_marked() -> Iterator[None]:
    """Readline has pastes marked while it reads; what is pasted meanwhile is to be one piece for it too."""
    print(MARK_PASTES, end="", flush=True)
    try:
        yield
    finally:
        with suppress(OSError):  # it is gone
            print(LEAVE_PASTES, end="", flush=True)


@contextmanager
def _modes_kept() -> Iterator[list[Any]]:
    modes = termios.tcgetattr(sys.stdin)
    try:
        yield [*modes]
    finally:
        with suppress(termios.error):  # it is gone
            termios.tcsetattr(sys.stdin, termios.TCSANOW, modes)
