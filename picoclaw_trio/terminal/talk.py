"""A session as the terminal has it: asking, and looking at what is kept.

Theory: the terminal walks the same line as the endpoint, from the plan to the commit; what was said is in the memory
and nowhere else, so a session goes on where it was left, whoever has it open. A model that is named here is for this
run only.
Editing rule: whatever touches the gateway is a piece of work for the engine; nothing prints here but a printer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import attrs

from ..gateway import Gateway
from ..memory import Conversation, Said
from ..messages import Message
from ..pipeline import answer
from ..plan import Caller
from ..replies import Reply
from ..upstream import Emit
from ..wire import ChatRequest
from .engine import Engine
from .printer import Printer
from .screen import Screen

T = TypeVar("T")
PREFIX = "cli:"
MAX_NAME = 200
REMARKS = {"length": "cut off at the model's limit of tokens", "content_filter": "cut off by a content filter"}
NO_TEXT = "the model gave no text"


@attrs.define
class Talk:
    """One session and who answers in it.

    Attributes:
        session: its name, without what tells it from other doors' sessions.
        model: alias that answers; None: the one that the agent or the configuration names.
        shows_reasoning: print what the model thinks, too.
        unanswered: the last question, if it has not come to an answer.
    """

    engine: Engine
    screen: Screen
    session: str
    model: str | None = None
    shows_reasoning: bool = False
    unanswered: str | None = None

    @property
    def key(self) -> str:
        return f"{PREFIX}{self.session}"

    @property
    def answering(self) -> str:
        """The alias that answers."""
        named = self.model or self.look(lambda gateway: gateway.default_alias)
        return named or "none: model_list is empty"

    def look(self, see: Callable[[Gateway], T]) -> T:
        """What *see* finds in the gateway."""

        async def look(gateway: Gateway, emit: Emit) -> T:
            return see(gateway)

        return self.engine.run(look)

    def ask(self, text: str) -> None:
        """Ask *text* and print the answer as it comes; both are remembered when the answer is whole.

        Raises:
            GatewayError: the turn failed; nothing is remembered, but a part may have been printed.
            KeyboardInterrupt, Ended: it was cancelled; likewise.
        """
        # What a terminal or an argument holds need not be text.
        self.unanswered = text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
        self._walk([Message("user", {"role": "user", "content": self.unanswered})], only_adds=True)
        self.unanswered = None

    def ask_again(self) -> bool:
        """Ask the last question once more; its answer, if it had one, is replaced. False where there is none.

        Raises: as ``ask``.
        """
        if self.unanswered is not None:
            self.ask(self.unanswered)
            return True
        seen = [*as_seen(self.kept())]
        while seen and seen[-1].role != "user":
            seen.pop()
        if seen:
            self._walk(seen)
        return bool(seen)

    def _walk(self, messages: Sequence[Message], *, only_adds: bool = False) -> None:
        self._tell_damage()
        self._wait_for_servers()
        request = ChatRequest(self.model, None, tuple(messages), True, False, {})
        caller = Caller(self.key, None, holder=None, door="terminal", remembers=True, only_adds=only_adds)

        async def walk(gateway: Gateway, emit: Emit) -> Reply:
            return await answer(gateway, request, caller, emit)

        printer = Printer(self.screen, self.answering, self.shows_reasoning)
        try:
            reply = self.engine.run(walk, printer.show)
        finally:
            printer.end()
        if remark := REMARKS.get(reply.finish_reason) or ("" if reply.text else NO_TEXT):
            self.screen.note(f"({remark})")

    def _tell_damage(self) -> None:
        async def look(gateway: Gateway, emit: Emit) -> str | None:
            return await gateway.memory.complaint(self.key)

        if complaint := self.engine.run(look):
            self.screen.warn(f"{complaint}; what comes before counts, and the file is kept as *.damaged-*")

    def _wait_for_servers(self) -> None:
        """The first question waits until the tools are there that it may need."""
        states = self.look(lambda gateway: gateway.tools.servers("terminal"))
        starting = [name for name, state in states.items() if state == "starting"]

        async def wait(gateway: Gateway, emit: Emit) -> None:
            await gateway.tools.wait_started()

        if starting:
            self.screen.note(f"· waiting for MCP servers: {', '.join(starting)} …")
            self.engine.run(wait)

    def kept(self) -> tuple[Said, ...]:
        """What is remembered of this session."""

        async def look(gateway: Gateway, emit: Emit) -> tuple[Said, ...]:
            return await gateway.memory.show(self.key)

        return self.engine.run(look)

    def sessions(self) -> list[Conversation]:
        """All of the terminal's, the latest first."""

        async def look(gateway: Gateway, emit: Emit) -> tuple[Conversation, ...]:
            return await gateway.memory.sessions()

        return [found for found in reversed(self.engine.run(look)) if found.key.startswith(PREFIX)]

    def change_session(self, name: str) -> None:
        self.session, self.unanswered = name, None

    def forget(self) -> None:
        """Forget this session, on disk too."""

        async def forget(gateway: Gateway, emit: Emit) -> None:
            await gateway.memory.forget(self.key)

        self.engine.run(forget)
        self.unanswered = None


def as_seen(kept: Sequence[Said]) -> Iterator[Message]:
    """What was said without the steps in between: the text of all steps of a turn is one answer."""
    steps: list[str] = []
    for said in kept:
        if said.message.role == "assistant":
            steps.append(said.message.body.get("content") or "")
            if not said.internal:
                text = "\n\n".join(filter(None, steps))
                yield Message("assistant", {"role": "assistant", "content": text})
                steps = []
        elif not said.internal:
            yield said.message


def session_name_problem(name: str) -> str | None:
    """Why no session can have this *name*; None if it can."""
    if not name or name != name.strip():
        return "The name of a session must not be empty, nor begin or end with a blank."
    if len(name) > MAX_NAME or not name.isprintable():
        return f"The name of a session must be at most {MAX_NAME} printable characters."
    return None
