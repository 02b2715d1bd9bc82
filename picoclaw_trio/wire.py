"""The client's side of the OpenAI API: request bytes to a frozen ``ChatRequest``.

Theory: a request is checked in the order in which the answers are promised: JSON and types, ``stream``, the shape of
the messages, values that we cannot honour. Whatever is valid stays exactly as the client wrote it, so that an upstream
gets the content parts, tools and numbers that were sent. Null means absent; unknown fields are ignored.
Editing rule: a known field is a row of ``FIELDS``; messages have a room of their own.

Source: https://platform.openai.com/docs/api-reference/chat/create
"""

from __future__ import annotations

from collections.abc import Mapping

import attrs

from .errors import DO_NOT_RETRY, RequestError
from .messages import Message, check_bodies, check_message_types, decode_messages
from .shapes import (
    Check,
    Json,
    check_bool,
    check_integer,
    check_number,
    check_object,
    check_string,
    check_string_or_object,
    check_typed_object,
    decode_object,
    list_of,
    wrong_type,
)

MAX_USER_CHARACTERS = 512


@attrs.frozen
class ChatRequest:
    """A checked request for a chat completion.

    Attributes:
        model: alias that the client named; None where it named none.
        user: the client's own name for the session; None for the default session.
        messages: at least one, as they came (``function`` messages as ``tool``).
        stream: the answer is wanted as server-sent events.
        include_usage: a stream is to end with a usage chunk.
        parameters: the other known fields that were given (sampling, tools ...), as they came.
    """

    model: str | None
    user: str | None
    messages: tuple[Message, ...]
    stream: bool
    include_usage: bool
    parameters: Mapping[str, Json]


def decode_chat_request(raw: bytes, *, streaming: bool) -> ChatRequest:
    """Check the body of a request and give it as a value.

    Args:
        raw: the whole body.
        streaming: whether ``"stream": true`` is served; where not, it is refused with 501.

    Raises:
        RequestError: status 400 or 501; ``param`` names the place.
    """
    body = decode_object(raw)
    parameters = {name: value for name, value in body.items() if value is not None and name in FIELDS}
    for name, value in parameters.items():
        FIELDS[name](value, name)
    messages = body.get("messages")
    check_message_types(messages)
    stream = bool(parameters.pop("stream", False))
    if stream and not streaming:
        raise _streaming_disabled()
    checked = decode_messages(messages)
    check_honourable(parameters)
    options = parameters.pop("stream_options", {})
    return ChatRequest(
        model=parameters.pop("model", None) or None,
        user=parameters.pop("user", None) or None,
        messages=checked,
        stream=stream,
        include_usage=stream and bool(options.get("include_usage")),
        parameters=parameters,
    )


def _streaming_disabled() -> RequestError:
    return RequestError(
        "Streaming is switched off here. Set gateway.openai_api.streaming to true in the gateway's configuration, "
        'or send the request without "stream": true.',
        "stream",
        "streaming_disabled",
        status=501,
        headers=DO_NOT_RETRY,
    )


def check_user(value: Json, param: str) -> None:
    check_string(value, param)
    if len(value) > MAX_USER_CHARACTERS:
        raise RequestError(f"'{param}' must have at most {MAX_USER_CHARACTERS} characters.", param, "string_too_long")


def check_stop(value: Json, param: str) -> None:
    if type(value) is list:
        list_of(check_string)(value, param)
    elif type(value) is not str:
        raise wrong_type(param, "a string or an array of strings", value)


def check_numbers_object(value: Json, param: str) -> None:
    check_object(value, param)
    for name, item in value.items():
        check_number(item, f"{param}.{name}")


def check_stream_options(value: Json, param: str) -> None:
    check_object(value, param)
    if value.get("include_usage") is not None:
        check_bool(value["include_usage"], f"{param}.include_usage")


def check_tool(value: Json, param: str) -> None:
    check_typed_object(value, param)
    check_bodies(value, param)
    if value["type"] == "function":
        check_object(value.get("function"), f"{param}.function")
        check_string(value["function"].get("name"), f"{param}.function.name")


# {field: what checks it}. Editing rule: a field that is to reach the upstream needs a row here, nothing else.
FIELDS: Mapping[str, Check] = {
    "audio": check_object,
    "frequency_penalty": check_number,
    "function_call": check_string_or_object,
    "functions": list_of(check_object),
    "logit_bias": check_numbers_object,
    "logprobs": check_bool,
    "max_completion_tokens": check_integer,
    "max_tokens": check_integer,
    "metadata": check_object,
    "modalities": list_of(check_string),
    "model": check_string,
    "n": check_integer,
    "parallel_tool_calls": check_bool,
    "prediction": check_object,
    "presence_penalty": check_number,
    "prompt_cache_key": check_string,
    "reasoning_effort": check_string,
    "response_format": check_typed_object,
    "safety_identifier": check_string,
    "seed": check_integer,
    "service_tier": check_string,
    "stop": check_stop,
    "store": check_bool,
    "stream": check_bool,
    "stream_options": check_stream_options,
    "temperature": check_number,
    "tool_choice": check_string_or_object,
    "tools": list_of(check_tool),
    "top_logprobs": check_integer,
    "top_p": check_number,
    "user": check_user,
    "verbosity": check_string,
    "web_search_options": check_object,
}


def check_honourable(parameters: Mapping[str, Json]) -> None:
    """Refuse what would otherwise be dropped in silence: several choices, and audio as output."""
    if parameters.get("n", 1) != 1:
        raise RequestError("'n' must be 1: this gateway gives one choice an answer.", "n", "unsupported_value")
    if "audio" in parameters or "audio" in parameters.get("modalities", ()):
        param = "audio" if "audio" in parameters else "modalities"
        raise RequestError("Audio output is not served by this gateway.", param, "unsupported_value")
