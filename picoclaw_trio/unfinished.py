"""Turns that wait for their client: what the agent's own tools gave beside calls that the client was to run.

Theory: a reply may call tools of ours and of the client's at once. Ours have run by the time the client gets its own
calls; when it comes back with their results, the model must see ours too, though the client never did. Where the
gateway remembers conversations they hold it anyway; elsewhere it is kept here, in memory, for a while. Whatever was
forgotten meanwhile the model can ask for again.
Editing rule: an entry is found by the caller and the id of a client's call, never by what was said.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence

import attrs

from .messages import Message

MAX_KEPT = 256


@attrs.define
class Unfinished:
    """The last ``MAX_KEPT`` turns of that kind."""

    # {(caller, id of a client's call): the turn's messages, the one with that call among them}
    _kept: OrderedDict[tuple[str, str], tuple[Message, ...]] = attrs.field(factory=OrderedDict, init=False)

    def keep(self, caller: str, call_ids: Iterable[str], messages: Sequence[Message]) -> None:
        """Remember *messages* in the place of the one that the client got, which made these calls."""
        for call_id in call_ids:
            self._kept[caller, call_id] = tuple(messages)
            self._kept.move_to_end((caller, call_id))
        while len(self._kept) > MAX_KEPT:
            self._kept.popitem(last=False)

    def restore(self, caller: str, messages: tuple[Message, ...]) -> tuple[Message, ...]:
        """*messages* with what was kept in the place of what the client knows of it."""
        if not self._kept:
            return messages
        return tuple(whole for message in messages for whole in self._restored(caller, message))

    def _restored(self, caller: str, message: Message) -> Iterator[Message]:
        for call in message.body.get("tool_calls") or () if message.role == "assistant" else ():
            kept = self._kept.get((caller, call["id"]))
            if kept is not None:
                yield from kept
                return
        yield message
