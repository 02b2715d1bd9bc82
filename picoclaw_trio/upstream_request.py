"""What an upstream is asked: a conversation and its fields, in the spelling of one target, as bytes.

Theory: what the client sent goes on as it came; a target's settings fill in what it did not say and have the last word.
Editing rule: a target's wish is a field of ``ModelSettings``.

Source: https://platform.openai.com/docs/api-reference/chat/create
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import attrs
import orjson

from .messages import Message
from .shapes import Json

TOKEN_LIMITS = ("max_tokens", "max_completion_tokens")
# Parts of the ids of models that want the second of these, and may refuse the first.
WANT_COMPLETION_LIMIT = ("glm", "o1", "gpt-5")


@attrs.frozen
class UpstreamRequest:
    """What a model is asked: the conversation and the fields that go with it, without a target.

    ``keep_text`` false: whoever asks has the text from the events, so the reply need not hold it again.
    """

    messages: Sequence[Message]
    parameters: Mapping[str, Json]
    stream: bool
    keep_text: bool = True


@attrs.frozen
class ModelSettings:
    """How one target wants its requests.

    Attributes:
        model: the id that the upstream knows.
        max_tokens_field: its spelling of the token limit; None to pass on the client's.
        extra_body: fields to merge in last.
        max_tokens, temperature: for a request that does not say; None to leave them to the upstream.
    """

    model: str
    max_tokens_field: str | None
    extra_body: Mapping[str, Json]
    max_tokens: int | None = None
    temperature: float | None = None


def encode_request(request: UpstreamRequest, settings: ModelSettings) -> bytes:
    """The body of ``POST {base}/chat/completions``."""
    body: dict[str, Json] = {
        "model": settings.model,
        "messages": [message.body for message in request.messages],
        **request.parameters,
    }
    _add_defaults(body, settings)
    if settings.max_tokens_field is not None:
        _rename_token_limit(body, settings.max_tokens_field)
    if request.stream:
        body["stream"] = True
        body["stream_options"] = {"include_usage": True}
    body.update(settings.extra_body)
    return orjson.dumps(body)


def _add_defaults(body: dict[str, Json], settings: ModelSettings) -> None:
    if settings.temperature is not None:
        body.setdefault("temperature", settings.temperature)
    if settings.max_tokens is not None and not any(name in body for name in TOKEN_LIMITS):
        wants_other = any(part in settings.model for part in WANT_COMPLETION_LIMIT)
        body[TOKEN_LIMITS[wants_other]] = settings.max_tokens


def _rename_token_limit(body: dict[str, Json], field: str) -> None:
    limits = [body.pop(name) for name in TOKEN_LIMITS if name in body]
    if limits:
        body[field] = limits[-1]
