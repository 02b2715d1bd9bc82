"""The agent in the terminal: one question and its answer, or a conversation.

Theory: the same line as the endpoint's, from ``plan`` to ``commit``; only the last room differs, which prints. A line
that begins with a slash is a command and is known only here: text that comes over HTTP is never executed.
Editing rule: a command is a row of ``COMMANDS``.
"""

from __future__ import annotations

import signal
import sys
import termios
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from io import TextIOWrapper

import attrs
import trio

from .config import Config
from .errors import GatewayError
from .gateway import Gateway, open_gateway
from .messages import Message
from .pipeline import answer
from .plan import Caller
from .replies import Progress, TextDelta
from .wire import ChatRequest

PROMPT = "> "


@attrs.define
class Talk:
    """One conversation: what was said, and which model answers (None: the default agent's)."""

    gateway: Gateway
    session: str
    model: str | None = None
    messages: list[Message] = attrs.field(factory=list)

    async def ask(self, text: str) -> None:
        """Say *text* and print the agent's reply as it comes; both are remembered when the reply is whole.

        Raises:
            GatewayError: the turn failed; nothing is remembered, but a part may have been printed.
        """
        # What a terminal or an argument holds need not be text.
        said = text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
        question = Message("user", {"role": "user", "content": said})
        request = ChatRequest(self.model, None, (*self.messages, question), True, False, {})
        printer = Printer()
        try:
            reply = await answer(self.gateway, request, Caller(f"cli:{self.session}", None, holder=0), printer.take)
        finally:
            printer.end()
        self.messages += [question, Message("assistant", reply.message)]

    @property
    def answering(self) -> str:
        return self.model or self.gateway.config.default_alias or "none: model_list is empty"


@attrs.define
class Printer:
    """Prints one reply as it comes, and ends its line; prints nothing where there is none."""

    begun: bool = False

    async def take(self, *events: Progress) -> None:
        for event in events:
            if isinstance(event, TextDelta) and event.field in ("content", "refusal"):
                self.begun = True
                print(event.text, end="", flush=True)

    def end(self) -> None:
        if self.begun:
            print()


def run_once(config: Config, text: str, *, model: str | None, session: str) -> None:
    """One question; prints the reply.

    Raises:
        GatewayError: the model is not configured, or the turn failed.
    """

    async def run() -> None:
        async with open_gateway(config) as gateway:
            await _open_talk(gateway, model, session).ask(text)

    trio.run(run)


def run_conversation(config: Config, *, model: str | None, session: str) -> None:
    """Read lines from standard input until its end, ``/exit`` or Ctrl-C at the prompt; print the replies.

    A turn that fails is told and the conversation goes on. Ctrl-C during a turn ends that turn.

    Raises:
        GatewayError: the model is not configured, or the state cannot be opened.
    """

    async def run() -> None:
        async with open_gateway(config) as gateway:
            await _converse(_open_talk(gateway, model, session))

    with _terminal_kept(), suppress(KeyboardInterrupt):
        trio.run(run)


@contextmanager
def _terminal_kept() -> Iterator[None]:
    """Give the terminal back as it was: an interrupt at the prompt leaves the line editor in the middle of its work."""
    if not sys.stdin.isatty():
        yield
        return
    modes = termios.tcgetattr(sys.stdin)
    try:
        yield
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, modes)


def _open_talk(gateway: Gateway, model: str | None, session: str) -> Talk:
    if model is not None:
        gateway.router.check_alias(model)
    return Talk(gateway, session, model)


async def _converse(talk: Talk) -> None:
    if isinstance(sys.stdin, TextIOWrapper):
        sys.stdin.reconfigure(errors="surrogateescape")
    if sys.stdin.isatty():
        with suppress(ImportError):
            import readline  # noqa: F401  # importing it gives input() history and line editing
        print(f"Model: {talk.answering}. /help lists the commands, Ctrl-D ends.")
    while (line := await trio.to_thread.run_sync(_read_line, abandon_on_cancel=True)) is not None:
        if line.strip() in ("/exit", "/quit"):
            return
        if line.startswith("/"):
            print(run_command(talk, line))
        elif line.strip():
            await _run_turn(talk, line)


def _read_line() -> str | None:
    try:
        return input(PROMPT if sys.stdin.isatty() else "")
    except EOFError:
        return None


async def _run_turn(talk: Talk, text: str) -> None:
    with trio.open_signal_receiver(signal.SIGINT) as interrupts:
        async with trio.open_nursery() as nursery:

            async def cancel_on_interrupt() -> None:
                await anext(interrupts)
                print("(cancelled)")
                nursery.cancel_scope.cancel()

            nursery.start_soon(cancel_on_interrupt)
            try:
                await talk.ask(text)
            except GatewayError as exc:
                print(f"error: {exc.message}", file=sys.stderr)
            nursery.cancel_scope.cancel()


def run_command(talk: Talk, line: str) -> str:
    """Carry out one slash command; gives what to print."""
    words = line.split()
    for command in COMMANDS:
        called = command.words.split()
        if words[: len(called)] == called:
            return command.run(talk, words[len(called) :])
    return f"There is no command {words[0]}. /help lists them."


def _switch(talk: Talk, words: list[str]) -> str:
    if len(words) != 1:
        return "Usage: /switch model to NAME"
    try:
        talk.gateway.router.check_alias(words[0])
    except GatewayError as exc:
        return exc.message
    before, talk.model = talk.answering, words[0]
    return f"Switched model from {before} to {talk.answering}."


def _show(talk: Talk, words: list[str]) -> str:
    return f"Model: {talk.answering}"


def _list(talk: Talk, words: list[str]) -> str:
    names = talk.gateway.router.aliases
    return "\n".join(f"{'*' if name == talk.answering else ' '} {name}" for name in names) or "model_list is empty"


def _clear(talk: Talk, words: list[str]) -> str:
    talk.messages.clear()
    return "The conversation is forgotten."


def _help(talk: Talk, words: list[str]) -> str:
    return "\n".join(f"{f'{command.words} {command.argument}':24}{command.help}" for command in COMMANDS)


@attrs.frozen
class Command:
    """A slash command: the words that call it, what follows them, what it is for, and what carries it out."""

    words: str
    argument: str
    help: str
    run: Callable[[Talk, list[str]], str]


COMMANDS = (
    Command("/switch model to", "NAME", "answer with another model", _switch),
    Command("/show model", "", "which model answers", _show),
    Command("/list models", "", "the models that there are", _list),
    Command("/clear", "", "forget what was said", _clear),
    Command("/help", "", "this list; /exit or Ctrl-D ends", _help),
)
