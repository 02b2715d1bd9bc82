"""Turns that wait for their client: what the agent's own tools gave beside calls that the client was to run.

Theory: a reply may call tools of ours and of the client's at once. Ours have run by the time the client gets its own
calls; when it comes back with their results, the model must see ours too, though the client never did. Where the
gateway remembers conversations they hold it anyway; elsewhere it is kept here, in memory, for a while. Whatever was
forgotten meanwhile the model can ask for again.
Editing rule: an entry is found by the caller and by one of the client's calls, with its id, its name and its arguments:
some upstreams number the calls of each reply anew, so an id alone may be another conversation's, too.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Hashable, Iterable, Iterator, Sequence
from contextlib import suppress
from typing import TypeAlias

import attrs
import orjson

from .messages import Message
from .shapes import Json

MAX_TURNS = 256
MAX_BYTES = 32 * 1024 * 1024

# (caller, what makes a call the same)
Key: TypeAlias = tuple[Hashable, str]


@attrs.frozen
class Kept:
    keys: tuple[Key, ...]
    messages: tuple[Message, ...]
    size: int


@attrs.define
class Unfinished:
    """The last turns of that kind: at most ``MAX_TURNS``, and the last one of whatever size."""

    _turns: OrderedDict[int, Kept] = attrs.field(factory=OrderedDict, init=False)
    # {key: the last turn with that call}
    _numbers: dict[Key, int] = attrs.field(factory=dict, init=False)
    _last: int = attrs.field(default=0, init=False)
    _size: int = attrs.field(default=0, init=False)

    def keep(self, caller: Hashable, calls: Iterable[Json], messages: Sequence[Message]) -> None:
        """Remember *messages* in the place of the one that the client got, which made these *calls*."""
        keys = tuple((caller, _identity(call)) for call in calls)
        kept = Kept(keys, tuple(messages), sum(len(orjson.dumps(message.body)) for message in messages))
        self._last += 1
        self._turns[self._last] = kept
        self._size += kept.size
        self._numbers.update(dict.fromkeys(keys, self._last))
        while len(self._turns) > MAX_TURNS or (self._size > MAX_BYTES and len(self._turns) > 1):
            self._forget_oldest()

    def restore(self, caller: Hashable, messages: tuple[Message, ...]) -> tuple[Message, ...]:
        """*messages* with what was kept in the place of what the client knows of it."""
        if not self._turns:
            return messages
        return tuple(whole for message in messages for whole in self._restored(caller, message))

    def _restored(self, caller: Hashable, message: Message) -> Iterator[Message]:
        for call in message.body.get("tool_calls") or () if message.role == "assistant" else ():
            number = self._numbers.get((caller, _identity(call)))
            if number is not None:
                yield from self._turns[number].messages
                return
        yield message

    def _forget_oldest(self) -> None:
        number, kept = self._turns.popitem(last=False)
        self._size -= kept.size
        for key in kept.keys:
            if self._numbers.get(key) == number:
                del self._numbers[key]


def _identity(call: Json) -> str:
    """What stays of a call when a client writes its arguments anew, with other blanks or in another order."""
    body = call.get("function") or call.get("custom") or {}
    arguments = body.get("arguments", body.get("input"))
    # What is no JSON nobody writes anew.
    with suppress(TypeError, ValueError, RecursionError):
        arguments = json.dumps(orjson.loads(arguments or ""), sort_keys=True)
    return json.dumps([call["id"], body.get("name"), arguments])
