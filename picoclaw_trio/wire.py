"""The client's side of the OpenAI API: request bytes to a frozen ``ChatRequest``.

Theory: a request is checked in the order in which the answers are promised: JSON and types, ``stream``, the shape of
the messages, values that we cannot honour. Whatever is valid stays exactly as the client wrote it, so that an upstream
gets the content parts, tools and numbers that were sent. Null means absent; unknown fields are ignored.
Editing rule: a known field stands in one table (``FIELDS`` or ``ROLES``); no other room looks at request JSON.

Source: https://platform.openai.com/docs/api-reference/chat/create
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import attrs

from .errors import DO_NOT_RETRY, RequestError
from .shapes import (
    Check,
    Json,
    check_bool,
    check_integer,
    check_list,
    check_number,
    check_object,
    check_string,
    check_string_or_object,
    decode_object,
    list_of,
    of_type,
    wrong_type,
)

MAX_USER_CHARACTERS = 512


@attrs.frozen
class Message:
    """One message of a conversation: its role, and the object as the client sent it."""

    role: str
    body: Mapping[str, Json]


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
    checked = _decode_messages(messages)
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


def check_typed_object(value: Json, param: str) -> None:
    """An object with a ``type``, such as a tool or a response format."""
    check_object(value, param)
    check_string(value.get("type"), f"{param}.type")


def check_tool(value: Json, param: str) -> None:
    check_typed_object(value, param)
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


# --- Messages ------------------------------------------------------------------------------------------------------


def check_message_types(messages: Json) -> None:
    """Types of the known fields of each message; a list that is none is left to ``_decode_messages``."""
    if type(messages) is not list:
        return
    for index, message in enumerate(messages):
        at = f"messages[{index}]"
        check_object(message, at)
        for name, check in MESSAGE_FIELDS:
            value = message.get(name)
            if value is not None:
                check(value, f"{at}.{name}")


MESSAGE_FIELDS: tuple[tuple[str, Check], ...] = (
    ("role", check_string),
    ("content", of_type("a string or an array of parts", str, list)),
    ("name", check_string),
    ("tool_call_id", check_string),
    ("tool_calls", check_list),
    ("function_call", check_object),
    ("refusal", check_string),
)


def _decode_messages(messages: Json) -> tuple[Message, ...]:
    if type(messages) is not list or not messages:
        raise RequestError("'messages' must be an array with at least one message.", "messages", "missing_messages")
    return tuple([_decode_message(message, f"messages[{index}]") for index, message in enumerate(messages)])


def _decode_message(message: dict[str, Json], at: str) -> Message:
    role = message.get("role")
    check_role = ROLES.get(role) if role is not None else None
    if check_role is None:
        known = ", ".join(ROLES)
        raise RequestError(f"'{at}.role' must be one of {known}.", f"{at}.role", "invalid_value")
    check_role(message, at)
    if type(message.get("content")) is list:
        for index, part in enumerate(message["content"]):
            _check_part(part, f"{at}.content[{index}]")
    if role == "function" or (role == "assistant" and "function_call" in message):
        message = _modernise(message)
    return Message(message["role"], message)


def _need(message: Mapping[str, Json], name: str, at: str) -> None:
    if message.get(name) is None:
        role = message["role"]
        raise RequestError(f"A message with role '{role}' needs '{name}'.", f"{at}.{name}", "missing_field")


def _check_content(message: Mapping[str, Json], at: str) -> None:
    _need(message, "content", at)
    if message["content"] == []:
        raise RequestError(f"'{at}.content' must not be an empty array.", f"{at}.content", "invalid_value")


def _check_assistant(message: Mapping[str, Json], at: str) -> None:
    for index, call in enumerate(message.get("tool_calls") or ()):
        _check_tool_call(call, f"{at}.tool_calls[{index}]")
    if message.get("function_call") is not None:
        _check_called(message["function_call"], f"{at}.function_call")
    if not (message.get("tool_calls") or message.get("function_call") or message.get("refusal")):
        _check_content(message, at)


def _check_tool_call(call: Json, at: str) -> None:
    check_typed_object(call, at)
    check_string(call.get("id"), f"{at}.id")
    if call["type"] == "function":
        _check_called(call.get("function"), f"{at}.function")


def _check_called(function: Json, at: str) -> None:
    check_object(function, at)
    check_string(function.get("name"), f"{at}.name")
    check_string(function.get("arguments"), f"{at}.arguments")


def _check_tool(message: Mapping[str, Json], at: str) -> None:
    _check_content(message, at)
    _need(message, "tool_call_id", at)


def _check_function(message: Mapping[str, Json], at: str) -> None:
    _check_content(message, at)
    if not message.get("tool_call_id"):
        _need(message, "name", at)


ROLES: Mapping[str, Callable[[Mapping[str, Json], str], None]] = {
    "system": _check_content,
    "developer": _check_content,
    "user": _check_content,
    "assistant": _check_assistant,
    "tool": _check_tool,
    "function": _check_function,
}

# {type of a content part: (field that it needs, check of that field)}
PARTS: Mapping[str, tuple[str, Check]] = {
    "text": ("text", check_string),
    "image_url": ("image_url", check_object),
    "input_audio": ("input_audio", check_object),
    "file": ("file", check_object),
    "refusal": ("refusal", check_string),
}


def _check_part(part: Json, at: str) -> None:
    check_typed_object(part, at)
    if part["type"] not in PARTS:
        known = ", ".join(PARTS)
        raise RequestError(f"'{at}.type' must be one of {known}.", f"{at}.type", "invalid_value")
    name, check = PARTS[part["type"]]
    check(part.get(name), f"{at}.{name}")
    if name == "image_url":
        check_string(part[name].get("url"), f"{at}.image_url.url")


def _modernise(message: dict[str, Json]) -> dict[str, Json]:
    """Function calls of before 2023-11 as tool calls: upstreams of today know no other. The name serves as the id."""
    message = dict(message)
    if message["role"] == "function":
        message["role"] = "tool"
        message["tool_call_id"] = message.get("tool_call_id") or message["name"]
    call = message.pop("function_call", None)
    if call is not None and not message.get("tool_calls"):
        message["tool_calls"] = [{"id": call["name"], "type": "function", "function": call}]
    return message
