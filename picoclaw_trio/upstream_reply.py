"""What an upstream answers: its JSON to events, its errors to ours.

Theory: upstreams are many and few of them are exact. What is missing is filled in, what has another shape is put
right, and what cannot be understood is an ``UpstreamError`` whose kind says what to do about it.
Editing rule: a quirk of an upstream is mended here, in the function that reads the field it stands in.

Source: https://platform.openai.com/docs/api-reference/chat/object and .../chat/streaming
"""

from __future__ import annotations

import email.utils
import secrets
from collections.abc import Iterator, Mapping
from datetime import UTC

import attrs
import orjson

from .errors import UpstreamError
from .hiding import Hide, hide_nothing
from .replies import MAX_COUNT, Delta, ExtraDelta, TextDelta, ToolCallDelta, Usage
from .shapes import Json, load

# Text fields of a message that arrive in pieces, by the names that upstreams use.
TEXT_FIELDS = ("reasoning_content", "reasoning", "content", "refusal")
FINISH_REASONS = frozenset({"stop", "length", "tool_calls", "content_filter", "function_call"})
# Words of upstreams for OpenAI's; any other word means "stop".
OTHER_FINISH_REASONS = {"max_tokens": "length", "safety": "content_filter", "tool_use": "tool_calls"}
# Characters of an upstream's own error message that go on to the client and the log.
MAX_TOLD = 2000
# ... and of an answer that nobody understands.
MAX_SHOWN = 200
# ... and of either, what keys are looked for in.
MAX_READ = 65_536

# Of the model's id: it goes into a header, percent-encoded, and into the log.
MAX_MODEL = 200


@attrs.frozen
class Chunk:
    """One unit of an upstream's answer: a chunk of a stream, or the whole of an unstreamed one."""

    events: tuple[Delta, ...] = ()
    finish_reason: str | None = None
    usage: Usage | None = None
    model: str | None = None
    fingerprint: str | None = None
    service_tier: str | None = None


def merge_endings(so_far: Chunk, more: Chunk) -> Chunk:
    """What two chunks say of the reply as a whole; the later one wins where both say something. No events."""
    return Chunk(
        (),
        more.finish_reason or so_far.finish_reason,
        more.usage or so_far.usage,
        more.model or so_far.model,
        more.fingerprint or so_far.fingerprint,
        more.service_tier or so_far.service_tier,
    )


def decode_completion(raw: bytes, hide: Hide = hide_nothing) -> Chunk:
    """A whole ``chat.completion``. *hide* is given what is told of it in an error.

    Raises:
        UpstreamError: kind ``garbled``: not JSON, or no choice in it; or as ``decode_chunk`` for an error object.
    """
    body = _decode_object(raw, hide)
    choice = _first_choice(body)
    if choice is None or not isinstance(choice.get("message"), dict):
        raise UpstreamError("garbled", "its answer holds no choice")
    return _chunk(body, choice, choice["message"])


def decode_chunk(data: bytes, hide: Hide = hide_nothing) -> Chunk:
    """The data of one event of a stream. *hide* is given what is told of it in an error.

    A chunk without a choice is one that carries usage or nothing.

    Raises:
        UpstreamError: kind ``garbled``: not a JSON object; or the kind that the error object within tells.
    """
    body = _decode_object(data, hide)
    choice = _first_choice(body)
    if choice is None:
        return _chunk(body, {}, {})
    # Some servers answer a streamed request with whole messages.
    delta = choice.get("delta") or choice.get("message") or {}
    return _chunk(body, choice, delta if isinstance(delta, dict) else {})


def _decode_object(raw: bytes, hide: Hide) -> dict[str, Json]:
    try:
        body = load(raw)
    except ValueError as exc:
        raise UpstreamError("garbled", "its answer is not JSON", detail=_shown(raw, hide)) from exc
    if not isinstance(body, dict):
        raise UpstreamError("garbled", "its answer is not a JSON object")
    if body.get("error"):
        raise _decode_error_object(None, body, None, hide)
    return body


def _first_choice(body: Mapping[str, Json]) -> dict[str, Json] | None:
    choices = body.get("choices")
    if isinstance(choices, list) and choices and isinstance(choices[0], dict):
        return choices[0]
    return None


def _chunk(body: Mapping[str, Json], choice: Mapping[str, Json], said: Mapping[str, Json]) -> Chunk:
    logprobs = choice.get("logprobs")
    events = tuple(_events(said, logprobs if isinstance(logprobs, dict) else None))
    return Chunk(
        events,
        _finish_reason(choice.get("finish_reason")),
        _usage(body.get("usage")),
        (_string(body.get("model")) or "")[:MAX_MODEL] or None,
        _string(body.get("system_fingerprint")),
        _string(body.get("service_tier")),
    )


def _string(value: Json) -> str | None:
    return value if isinstance(value, str) and value else None


def _finish_reason(value: Json) -> str | None:
    if not isinstance(value, str) or not value:
        return None  # some say "" as long as there is more to come
    return value if value in FINISH_REASONS else OTHER_FINISH_REASONS.get(value.lower(), "stop")


def _events(said: Mapping[str, Json], logprobs: Mapping[str, Json] | None) -> Iterator[Delta]:
    texts = {field: text for field in TEXT_FIELDS if (text := _text(said.get(field))) is not None}
    if logprobs is not None and not texts:
        texts["content"] = ""
    # Logprobs belong to the choice as a whole: they go with whichever text there is, the visible one first.
    bearer = next((field for field in ("content", "refusal", *texts) if field in texts), None)
    for field, text in texts.items():
        yield TextDelta(text, field, logprobs if field == bearer else None)
    yield from _tool_calls(said.get("tool_calls"))
    extra = {name: value for name, value in said.items() if name not in KNOWN and value is not None}
    if extra:
        yield ExtraDelta(extra)


KNOWN = frozenset({"role", "tool_calls", *TEXT_FIELDS})


def _text(value: Json) -> str | None:
    """A list of parts, which some reasoning models give, as the text in it; an object or a number as its JSON."""
    if value is None or isinstance(value, bool):
        return None
    if isinstance(value, list):
        return "".join(part["text"] for part in value if isinstance(part, dict) and isinstance(part.get("text"), str))
    return _spelled(value)


def _spelled(value: Json) -> str:
    return value if isinstance(value, str) else orjson.dumps(value).decode()


def _tool_calls(calls: Json) -> Iterator[ToolCallDelta]:
    if not isinstance(calls, list | None):
        raise UpstreamError("garbled", "its answer holds tool calls that are no array")
    for position, call in enumerate(calls or ()):
        if not isinstance(call, dict):
            raise UpstreamError("garbled", "its answer holds a tool call that is no object")
        index = call.get("index")
        yield ToolCallDelta(index if type(index) is int else position, _mended_call(call))


# Arguments are JSON in a string; Ollama and others have sent the object itself.
CALL_STRINGS = frozenset({"id", "type", "name", "arguments", "input"})


def _mended_call(call: Mapping[str, Json]) -> dict[str, Json]:
    """What a call, or a piece of one, says, in OpenAI's shape."""
    mended = _mended(call)
    mended.pop("index", None)
    for name in mended.keys() & {"function", "custom"}:
        if not isinstance(mended[name], dict):
            raise UpstreamError("garbled", f"its answer holds a tool call whose {name} is no object")
        mended[name] = _mended(mended[name])
    return mended


def _mended(piece: Mapping[str, Json]) -> dict[str, Json]:
    given = {name: value for name, value in piece.items() if value is not None}
    return {name: _spelled(value) if name in CALL_STRINGS else value for name, value in given.items()}


def complete_calls(message: Mapping[str, Json]) -> Mapping[str, Json]:
    """The message with an id, a type and arguments for each tool call, where the upstream left them out."""
    calls = message.get("tool_calls")
    return {**message, "tool_calls": [_complete_call(call) for call in calls]} if calls else message


def _complete_call(call: Mapping[str, Json]) -> dict[str, Json]:
    whole = {
        **call,
        "id": call.get("id") or f"call_{secrets.token_hex(12)}",
        "type": call.get("type") or "function",
    }
    if "function" in call:
        whole["function"] = {"arguments": "{}", **call["function"]}
    return whole


COUNTS = ("prompt_tokens", "completion_tokens", "total_tokens")


def _usage(value: Json) -> Usage | None:
    if not isinstance(value, dict) or not value:
        return None
    prompt, completion, total = (_count(value.get(name)) for name in COUNTS)
    details = {name: item for name, item in value.items() if name not in COUNTS and item is not None}
    return Usage(prompt, completion, total or prompt + completion, details)


def _count(value: Json) -> int:
    return value if type(value) is int and 0 <= value <= MAX_COUNT else 0


def decode_error(status: int, raw: bytes, retry_after: float | None, hide: Hide = hide_nothing) -> UpstreamError:
    """What an answer with a status other than 200 says went wrong. *raw* may be anything, e.g. a proxy's HTML.

    *hide* is given each text of the upstream's that the error holds.
    """
    try:
        body = load(raw)
    except ValueError:
        body = None
    if not isinstance(body, dict) or not body.get("error"):
        body = {"error": {"message": _shown(raw, hide)}}
    return _decode_error_object(status, body, retry_after, hide)


def _decode_error_object(
    status: int | None, body: Mapping[str, Json], retry_after: float | None, hide: Hide
) -> UpstreamError:
    """An upstream's error object; *status* is None inside an answer that had begun with 200."""
    error = body["error"]
    told = error if isinstance(error, dict) else {"message": error}
    code = told.get("code")
    if status is None and isinstance(code, int) and 400 <= code <= 599:
        status = code  # OpenRouter and llama.cpp put the status there
    return UpstreamError.from_status(
        status,
        message=_told(_spelled(told.get("message") or ""), MAX_TOLD, hide),
        param=_told(_string(told.get("param")) or "", MAX_TOLD, hide) or None,
        code=_told(_string(code) or "", MAX_TOLD, hide) or None,
        retry_after=retry_after,
    )


def decode_retry_after(value: str | None, now: float) -> float | None:
    """Seconds from *now*, of seconds or an HTTP date (RFC 9110 sections 10.2.3 and 5.6.7); None where it is neither.

    Args:
        now: seconds since the epoch.
    """
    if value is None:
        return None
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        date = email.utils.parsedate_to_datetime(value)
        # The oldest of the three forms names no zone, and means GMT like the others.
        return max(0.0, (date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp() - now)
    except (ValueError, OverflowError):
        return None


def _shown(raw: bytes, hide: Hide) -> str:
    """The beginning of what was no JSON."""
    return _told(raw[:MAX_READ].decode(errors="replace"), MAX_SHOWN, hide)


def _told(text: str, max_chars: int, hide: Hide) -> str:
    """As much of *text* as is told."""
    return hide(text[:MAX_READ])[:max_chars]
