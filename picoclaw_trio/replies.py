"""What a model says: the events of a turn, and the reply that they fold into.

Theory: an upstream's answer, streamed or whole, becomes the same events, and the events fold into one ``Reply``; so a
client that streams and one that does not get the same words by the same road. Fields that we do not know by name
travel on as they came.
Editing rule: what a delta may carry stands here; the two encodings (upstream's JSON in, client's JSON out) stand in
``upstream_reply`` and ``answers``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

import attrs

from .shapes import Json

MAX_COUNT = 2**53 - 1  # the largest number that every reader of JSON knows; any sum of such can be written


@attrs.frozen
class Usage:
    """Token counts as the upstream told them; ``details`` holds its further fields as they came."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    details: Mapping[str, Json] = attrs.field(factory=dict)

    def plus(self, more: Usage) -> Usage:
        """Both together; of a detail that is no number, or gets too large to be a count, the last value counts."""
        return Usage(
            self.prompt_tokens + more.prompt_tokens,
            self.completion_tokens + more.completion_tokens,
            self.total_tokens + more.total_tokens,
            _add_details(self.details, more.details),
        )


def _add_details(one: Mapping[str, Json], other: Mapping[str, Json]) -> dict[str, Json]:
    return {**one, **{name: _add_detail(one.get(name), value) for name, value in other.items()}}


def _add_detail(one: Json, other: Json) -> Json:
    if isinstance(one, dict) and isinstance(other, dict):
        return _add_details(one, other)
    numbers = type(one) in (int, float) and type(other) in (int, float)
    return one + other if numbers and abs(one + other) <= MAX_COUNT else other


@attrs.frozen
class ReplyStarted:
    """A target begins to speak: the alias that answers, and what its upstream calls the model. Before any delta."""

    alias: str
    upstream_model: str


@attrs.frozen
class TextDelta:
    """A piece of text of one field of the message: ``content``, ``refusal``, ``reasoning_content`` or ``reasoning``.

    ``logprobs`` belongs to this piece: ``{"content": [...], "refusal": [...]}``.
    """

    text: str
    field: str = "content"
    logprobs: Mapping[str, Json] | None = None


@attrs.frozen
class ToolCallDelta:
    """A piece of the call at *index*: of ``{"id", "type", "function": {"name", "arguments"}}`` what is new."""

    index: int
    call: Mapping[str, Json]


@attrs.frozen
class ExtraDelta:
    """Fields of the message without an event of their own, e.g. ``annotations``.

    The last value of each counts; objects are joined like tool calls, since the old ``function_call`` comes in pieces.
    """

    fields: Mapping[str, Json]


@attrs.frozen
class ToolStarted:
    """One of the agent's own tools begins to run. *arguments*: JSON as the model wrote it, which may be none."""

    call_id: str
    name: str
    arguments: str


@attrs.frozen
class ToolFinished:
    """One of the agent's own tools has given its result, or an error in its place."""

    call_id: str
    name: str
    failed: bool


@attrs.frozen
class Reply:
    """A whole reply of a model.

    Attributes:
        message: OpenAI's assistant message, ``{"role", "content", "refusal", ["tool_calls"], ...}``.
        finish_reason: ``stop``, ``length``, ``tool_calls``, ``content_filter`` or ``function_call``.
        logprobs: ``{"content": [...], "refusal": [...]}`` or None.
        usage: None where the upstream told none.
        alias: the alias that answered (another than the one asked for, where a fallback did).
        upstream_model: the model id that the upstream says answered.
        fingerprint: the upstream's ``system_fingerprint``.
        service_tier: the tier that the upstream says it used.
    """

    message: Mapping[str, Json]
    finish_reason: str
    logprobs: Mapping[str, Json] | None = None
    usage: Usage | None = None
    alias: str = ""
    upstream_model: str | None = None
    fingerprint: str | None = None
    service_tier: str | None = None

    @property
    def text(self) -> str:
        """The visible text; empty where the reply has only tool calls."""
        return self.message.get("content") or ""


Delta: TypeAlias = TextDelta | ToolCallDelta | ExtraDelta
# What may be given on while a turn runs; its end is the reply that it returns, or the error that it raises.
Progress: TypeAlias = ReplyStarted | Delta | ToolStarted | ToolFinished


@attrs.define
class Fold:
    """Folds deltas into the message that they spell."""

    texts: dict[str, list[str]] = attrs.field(factory=dict)
    calls: dict[int, dict[str, Json]] = attrs.field(factory=dict)
    extra: dict[str, Json] = attrs.field(factory=dict)
    logprobs: dict[str, Json] | None = None

    def add(self, event: Delta) -> None:
        if type(event) is TextDelta:
            # An empty text is one that was said, unless it only bears logprobs.
            if event.text or (event.field == "content" and event.logprobs is None):
                self.texts.setdefault(event.field, []).append(event.text)
            if event.logprobs is not None:
                self.logprobs = self.logprobs or {}
                _join_logprobs(self.logprobs, event.logprobs)
        elif type(event) is ToolCallDelta:
            _join(self.calls.setdefault(event.index, {}), event.call)
        else:
            assert type(event) is ExtraDelta
            _join(self.extra, event.fields)

    def message(self) -> dict[str, Json]:
        """The assistant message so far; ``content`` is None where none was said."""
        message: dict[str, Json] = {"role": "assistant", "content": None, "refusal": None}
        message.update({field: "".join(pieces) for field, pieces in self.texts.items()})
        message.update(_spell(self.extra))
        if self.calls:
            message["tool_calls"] = [_spell(self.calls[index]) for index in sorted(self.calls)]
        if self.calls or message["refusal"]:
            message["content"] = message["content"] or None  # a stream begins with "" whatever follows
        return message


def _join_logprobs(joined: dict[str, Json], more: Mapping[str, Json]) -> None:
    for name, value in more.items():
        if isinstance(value, list):
            before = joined.get(name)
            if not isinstance(before, list):
                before = joined[name] = []
            before += value
        elif value is not None or name not in joined:
            joined[name] = value


# Strings that arrive in pieces; every other string of a call (id, type, name) arrives once, or again unchanged.
GROWING = frozenset({"arguments", "input"})


class _Pieces(list[str]):
    """A growing string: joined once, at the end."""


def _join(joined: dict[str, Any], more: Mapping[str, Json]) -> None:
    for name, value in more.items():
        before = joined.get(name)
        if isinstance(value, dict):
            if not isinstance(before, dict):
                before = joined[name] = {}
            _join(before, value)
        elif name in GROWING and isinstance(value, str):
            if not isinstance(before, _Pieces):
                before = joined[name] = _Pieces()
            before.append(value)
        elif value is not None and (value != "" or before is None):
            joined[name] = value  # an id or a name that is empty in a later piece takes nothing back


def _spell(joined: Mapping[str, Any]) -> dict[str, Json]:
    return {name: _spell_value(value) for name, value in joined.items()}


def _spell_value(value: Any) -> Json:
    if isinstance(value, _Pieces):
        return "".join(value)
    return _spell(value) if isinstance(value, dict) else value
