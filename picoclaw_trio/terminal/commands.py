"""Slash commands: lines typed at a terminal that begin with a slash; text over HTTP or a pipe is never executed.

Editing rule: a command is a row of ``COMMANDS``; what it does is said in lines that it gives back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Literal, TypeAlias

import attrs

from ..errors import GatewayError
from .about import describe_context, describe_tools, list_sessions, session_line
from .talk import PREFIX, Talk, session_name_problem

Run: TypeAlias = Callable[[Talk, str], str | None]
Kind: TypeAlias = Literal["model", "session"]
TO_LEAVE = ("/exit", "/quit")


@attrs.frozen
class Command:
    """A slash command.

    Attributes:
        words: that call it.
        argument: what follows them, for people.
        help: what it is for.
        run: carries it out; gives what to print.
        kind: what its argument is one of.
    """

    words: str
    argument: str
    help: str
    run: Run
    kind: Kind | None = None

    @property
    def usage(self) -> str:
        return f"{self.words} {self.argument}".rstrip()

    def argument_of(self, line: str) -> str | None:
        """What follows the command's words in *line*; None if it is another command."""
        words, called = line.split(), self.words.split()
        return " ".join(words[len(called) :]) if words[: len(called)] == called else None


def run_command(talk: Talk, line: str) -> str | None:
    """Carry out one slash command; gives what to print."""
    for command in COMMANDS:
        if (argument := command.argument_of(line)) is not None:
            return command.run(talk, argument)
    first = line.split()[0]
    if usages := [
        usage for usage in (*TO_LEAVE, *(command.usage for command in COMMANDS)) if usage.split()[0] == first
    ]:
        return f"Usage: {', or '.join(usages)}"
    return f"There is no command {first}. /help lists them."


def complete(talk: Talk, before: str, beginning: str) -> list[str]:
    """What may stand for the last word of a line.

    Args:
        before: the line up to that word.
        beginning: what there is of it.
    """
    found = dict.fromkeys(_next_words(talk, before.split()))
    return [word for word in found if word.startswith(beginning)] if before or beginning.startswith("/") else []


def _next_words(talk: Talk, before: list[str]) -> Iterator[str]:
    if not before:
        yield from TO_LEAVE
    for command in COMMANDS:
        called = command.words.split()
        if len(before) < len(called) and called[: len(before)] == before:
            goes_on = command.argument or len(called) > len(before) + 1
            yield called[len(before)] + (" " if goes_on else "")
        elif before == called and command.kind == "model":
            yield from _models(talk)
        elif before == called and command.kind == "session":
            yield from (found.key.removeprefix(PREFIX) for found in talk.sessions())


def _models(talk: Talk) -> list[str]:
    return talk.look(lambda gateway: [*gateway.router.aliases])


def _switch_model(talk: Talk, name: str) -> str:
    if not name:
        return "Usage: /switch model to NAME"
    try:
        talk.look(lambda gateway: gateway.router.check_alias(name))
    except GatewayError as exc:
        return exc.message
    before, talk.model = talk.answering, name
    return f"Switched model from {before} to {talk.answering}."


def _show_model(talk: Talk, argument: str) -> str:
    return f"Model: {talk.answering}"


def _show_reasoning(talk: Talk, argument: str) -> str:
    talk.shows_reasoning = True
    if not talk.screen.is_dim:
        return "Reasoning cannot be told from answers here: this terminal, or NO_COLOR, forbids colours."
    return "Reasoning is shown."


def _hide_reasoning(talk: Talk, argument: str) -> str:
    talk.shows_reasoning = False
    return "Reasoning is hidden."


def _list_models(talk: Talk, argument: str) -> str:
    answering = talk.answering
    return "\n".join(f"{'*' if name == answering else ' '} {name}" for name in _models(talk)) or "model_list is empty"


def _sessions(talk: Talk, name: str) -> str:
    return _session(talk, name) if name else list_sessions(talk)


def _session(talk: Talk, name: str) -> str:
    if name:
        if problem := session_name_problem(name):
            return problem
        talk.change_session(name)
    return session_line(talk) or f"Session {talk.session}: new."


def _context(talk: Talk, argument: str) -> str:
    return describe_context(talk)


def _tools(talk: Talk, argument: str) -> str:
    return describe_tools(talk)


def _retry(talk: Talk, argument: str) -> str | None:
    return None if talk.ask_again() else "Nothing has been asked yet."


def _clear(talk: Talk, argument: str) -> str:
    talk.forget()
    return "The conversation is forgotten."


def _help(talk: Talk, argument: str) -> str:
    return "\n".join([*(f"{command.usage:24}{command.help}" for command in COMMANDS), *HINTS])


COMMANDS = (
    Command("/switch model to", "NAME", "answer with another model, in this run", _switch_model, "model"),
    Command("/show model", "", "which model answers", _show_model),
    Command("/show reasoning", "", "print what the model thinks, too", _show_reasoning),
    Command("/hide reasoning", "", "no more of it", _hide_reasoning),
    Command("/list models", "", "the models that there are", _list_models),
    Command("/sessions", "[NAME]", "the conversations that are kept; or go on with one", _sessions, "session"),
    Command("/session", "[NAME]", "which conversation this is; or go on with another", _session, "session"),
    Command("/context", "", "how full the model's window is", _context),
    Command("/tools", "", "the tools that the agent may use here", _tools),
    Command("/retry", "", "ask the last question again; the new answer counts", _retry),
    Command("/clear", "", "forget what was said in this session, on disk too", _clear),
    Command("/help", "", "this list", _help),
)
HINTS = (
    "",
    'A question goes on in the next line after a \\ at the end, or between two lines of """.',
    'One that begins with a / has a blank before it, or stands between two lines of """.',
    "Ctrl-C cancels an answer, or clears the line. /exit or Ctrl-D ends.",
)
