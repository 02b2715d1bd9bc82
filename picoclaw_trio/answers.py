"""The gateway's own JSON: completions, chunks, errors and lists of models, as bytes.

Theory: one function for each thing that a client can receive; each gives the whole set of fields that strict clients
require, also where a value is null.
Editing rule: no JSON for a client is put together anywhere else.

Source: https://platform.openai.com/docs/api-reference/chat/object
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import attrs
import orjson

from .errors import GatewayError
from .replies import Delta, ExtraDelta, Reply, TextDelta, ToolCallDelta, Usage
from .shapes import Json


@attrs.frozen
class Heading:
    """What all chunks of one answer share: its id, the second when it was begun, and the alias that answers."""

    id: str
    created: int
    model: str
    further: Mapping[str, Json] = attrs.field(factory=dict)  # as from ``told_of_the_whole``


def encode_completion(heading: Heading, reply: Reply) -> bytes:
    """A ``chat.completion`` object. ``usage`` is left out where the upstream told none."""
    completion: dict[str, Json] = {
        "id": heading.id,
        "object": "chat.completion",
        "created": heading.created,
        "model": heading.model,
        "choices": [
            {
                "index": 0,
                "message": reply.message,
                "logprobs": _logprobs(reply.logprobs),
                "finish_reason": reply.finish_reason,
            }
        ],
    }
    if reply.usage is not None:
        completion["usage"] = _usage(reply.usage)
    completion.update(told_of_the_whole(reply))
    return orjson.dumps(completion)


def told_of_the_whole(reply: Reply) -> dict[str, Json]:
    """What the upstream told of the answer as a whole, beside its usage."""
    told = {"service_tier": reply.service_tier, "system_fingerprint": reply.fingerprint}
    return {name: value for name, value in told.items() if value is not None}


def _logprobs(logprobs: Mapping[str, Json] | None) -> dict[str, Json] | None:
    return None if logprobs is None else {"content": None, "refusal": None, **logprobs}


def _usage(usage: Usage) -> dict[str, Json]:
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.total_tokens,
        **usage.details,
    }


def encode_role_chunk(heading: Heading) -> bytes:
    """The first ``chat.completion.chunk``: the role, and no text yet."""
    return _chunk(heading, {"role": "assistant", "content": ""})


def encode_delta_chunk(heading: Heading, event: Delta) -> bytes:
    """A ``chat.completion.chunk`` with one piece of the message."""
    if type(event) is TextDelta:
        return _chunk(heading, {event.field: event.text}, logprobs=event.logprobs)
    if type(event) is ToolCallDelta:
        return _chunk(heading, {"tool_calls": [{"index": event.index, **event.call}]})
    assert type(event) is ExtraDelta
    return _chunk(heading, event.fields)


def encode_finish_chunk(heading: Heading, reply: Reply) -> bytes:
    """The ``chat.completion.chunk`` that tells why the model stopped."""
    return _chunk(heading, {}, finish_reason=reply.finish_reason)


def encode_usage_chunk(heading: Heading, usage: Usage) -> bytes:
    """The last ``chat.completion.chunk`` where the client asked for usage: no choice, only counts."""
    return orjson.dumps({**_chunk_heading(heading), "choices": [], "usage": _usage(usage)})


def _chunk(
    heading: Heading,
    delta: Mapping[str, Json],
    *,
    logprobs: Mapping[str, Json] | None = None,
    finish_reason: str | None = None,
) -> bytes:
    choice = {"index": 0, "delta": delta, "logprobs": _logprobs(logprobs), "finish_reason": finish_reason}
    return orjson.dumps({**_chunk_heading(heading), "choices": [choice]})


def _chunk_heading(heading: Heading) -> dict[str, Json]:
    return {
        "id": heading.id,
        "object": "chat.completion.chunk",
        "created": heading.created,
        "model": heading.model,
        **heading.further,
    }


def encode_error(error: GatewayError) -> bytes:
    """OpenAI's error envelope, as a body or as the data of an error frame."""
    return orjson.dumps(
        {"error": {"message": error.message, "type": error.type, "param": error.param, "code": error.code}}
    )


def encode_models(aliases: Iterable[str], created: int, owner: str) -> bytes:
    """The list object of ``GET /v1/models``."""
    return orjson.dumps({"object": "list", "data": [_model(alias, created, owner) for alias in aliases]})


def encode_model(alias: str, created: int, owner: str) -> bytes:
    """The object of ``GET /v1/models/{id}``."""
    return orjson.dumps(_model(alias, created, owner))


def _model(alias: str, created: int, owner: str) -> dict[str, Json]:
    return {"id": alias, "object": "model", "created": created, "owned_by": owner}
