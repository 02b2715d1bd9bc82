"""The agent in the terminal: one question and its answer, or a conversation.

Theory: this thread waits for a person, the engine's for everything else. Ctrl-C belongs to whatever is waited for: a
turn is cancelled, a line is cleared, and only who insists at an empty prompt leaves by it. Whatever ends the program,
the terminal is given back as it was and the gateway is closed.
Editing rule: what ends the conversation is decided here, what is printed in ``screen``, what a command does in
``commands``.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from io import TextIOWrapper

import attrs

from ..config import Config
from ..errors import GatewayError
from .about import session_line
from .commands import TO_LEAVE, complete, run_command
from .editor import Editor, PlainEditor, open_editor, terminal_kept
from .engine import open_engine
from .history import HistoryFile
from .lines import Entry, Lines, PipedLines, TypedLines
from .screen import Screen
from .signals import Signals
from .talk import Talk

HISTORY_NAME = "terminal_history"
HINT = "/exit or Ctrl-D ends, and so does Ctrl-C once more."
SHORT_HINT = "/exit or Ctrl-D ends."


def run_once(config: Config, text: str, *, model: str | None, session: str) -> None:
    """One question; prints the reply.

    Raises:
        GatewayError: the model is not configured, or the turn failed.
        SystemExit: a signal ended it, or nobody reads the answer.
    """
    signals = Signals()
    with _open_talk(config, signals, model, session) as talk:
        if talk.screen.shows_notes and (resumed := session_line(talk)):
            talk.screen.note(resumed)
        talk.ask(text)


def run_conversation(config: Config, *, model: str | None, session: str) -> bool:
    """Read questions from standard input until its end, or ``/exit`` at a terminal; print the replies.

    A turn that fails is told and the conversation goes on. Ctrl-C during a turn ends that turn.

    Returns:
        False if a question of a pipe was not answered, which nobody may have seen.

    Raises:
        GatewayError: the model is not configured, or the state cannot be opened.
        SystemExit: a signal ended it, or nobody reads the answers.
    """
    if isinstance(sys.stdin, TextIOWrapper):
        sys.stdin.reconfigure(errors="surrogateescape")
    signals = Signals()
    with _open_talk(config, signals, model, session) as talk:
        if not sys.stdin.isatty():
            return Conversation(talk, signals, PlainEditor(), PipedLines()).go_on()
        history = HistoryFile(config.home / HISTORY_NAME)
        with terminal_kept(), open_editor(history, partial(complete, talk), os.environ) as editor:
            talk.screen.note(f"Model: {talk.answering}. /help lists the commands, Ctrl-D ends.")
            if resumed := session_line(talk):
                talk.screen.note(resumed)
            lines = TypedLines(editor.read_line, editor.pastes_whole)
            Conversation(talk, signals, editor, lines, is_typed=True).go_on()
            return True


@contextmanager
def _open_talk(config: Config, signals: Signals, model: str | None, session: str) -> Iterator[Talk]:
    screen = Screen.of_process(os.environ)
    with signals.handled(), _reader_may_leave(), open_engine(config, signals) as engine:
        talk = Talk(engine, screen, session, model)
        if model is not None:
            talk.look(lambda gateway: gateway.router.check_alias(model))
        yield talk


@contextmanager
def _reader_may_leave() -> Iterator[None]:
    """Whoever reads our output through a pipe may have enough of it.

    Raises:
        SystemExit: they have.
    """
    try:
        yield
    except BrokenPipeError as exc:
        # Python writes out at its end what could not be written, and would complain again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(1) from exc


@attrs.define
class Conversation:
    """Questions and answers, until one side has enough."""

    talk: Talk
    signals: Signals
    editor: Editor
    lines: Lines
    is_typed: bool = False
    _is_warned: bool = attrs.field(default=False, init=False)

    def go_on(self) -> bool:
        """Go on to the end; gives whether all that was asked was done."""
        is_well = True
        while (entry := self._read()) is not None and not _asks_to_leave(entry):
            if entry.text.strip():
                self.editor.remember(entry.retyped)
                is_well = self._carry_out(entry) and is_well
        return is_well

    def _read(self) -> Entry | None:
        """The next question or command; None at the end."""
        while True:
            if self.is_typed:
                self.signals.pass_over()
            try:
                with self.signals.raised():
                    entry = self.lines.read()
            except KeyboardInterrupt:
                if not self.is_typed:
                    raise
                if self._is_to_leave():
                    return None
                continue
            self._is_warned = False
            if entry is None and self.is_typed:
                self.talk.screen.note("")  # what comes next, comes on a line of its own
            return entry

    def _is_to_leave(self) -> bool:
        """After Ctrl-C: at an empty prompt it says how to leave, and leaves the second time."""
        dropped = self.editor.dropped()
        self.talk.screen.note("")
        if dropped or self.lines.has_begun:
            self._is_warned = False
        elif dropped is None:  # nobody knows whether the prompt was empty
            self.talk.screen.note(SHORT_HINT)
        elif self._is_warned:
            return True
        else:
            self.talk.screen.note(HINT)
            self._is_warned = True
        return False

    def _carry_out(self, entry: Entry) -> bool:
        """False if it failed, which has been told, or was cancelled."""
        with self.editor.quiet():
            try:
                if entry.is_command:
                    self._print(run_command(self.talk, entry.text))
                else:
                    self.talk.ask(entry.text)
                return True
            except GatewayError as exc:
                self.talk.screen.error(exc.told_here)
            except KeyboardInterrupt:
                self.talk.screen.note("(cancelled)")
            return False

    def _print(self, lines: str | None) -> None:
        if lines is not None:
            self.talk.screen.line(lines)


def _asks_to_leave(entry: Entry) -> bool:
    return entry.is_command and entry.text.strip() in TO_LEAVE
