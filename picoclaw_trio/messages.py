"""The messages of a request: roles, content parts, tool calls, checked and otherwise left as they came.

Theory: types are checked first, for all messages, then what each role needs; so a wrong type anywhere is told before
anything that is missing. Function calls of old become tool calls, since upstreams of today know no other.
Editing rule: a role is a row of ``ROLES``, a content part a row of ``PARTS``.

Source: https://platform.openai.com/docs/api-reference/chat/create#chat-create-messages
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import attrs

from .errors import RequestError
from .shapes import Check, Json, check_list, check_object, check_string, check_typed_object, of_type

# Several times as many as a long session of an agent has.
MAX_MESSAGES = 10_000


@attrs.frozen
class Message:
    """One message of a conversation: its role, and the object as the client sent it."""

    role: str
    body: Mapping[str, Json]


def check_message_types(messages: Json) -> None:
    """Types of the known fields of each message; a list that is none is left to ``decode_messages``."""
    if type(messages) is not list:
        return
    if len(messages) > MAX_MESSAGES:
        message = f"'messages' must have at most {MAX_MESSAGES:,} messages."
        raise RequestError(message, "messages", "array_above_max_length")
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


def decode_messages(messages: Json) -> tuple[Message, ...]:
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
        message = modernise(message)
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
    check_bodies(call, at)
    check_string(call.get("id"), f"{at}.id")
    if call["type"] == "function":
        _check_called(call.get("function"), f"{at}.function")


def check_bodies(value: Mapping[str, Json], at: str) -> None:
    """What a tool or a call may hold, whatever its type says: we look into both."""
    for name in ("function", "custom"):
        if value.get(name) is not None:
            check_object(value[name], f"{at}.{name}")


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


def modernise(message: dict[str, Json]) -> dict[str, Json]:
    """Function calls of before 2023-11 as tool calls: upstreams of today know no other. The name serves as the id.

    Args:
        message: a function's, or an assistant's whose ``function_call`` has a name, or is null.
    """
    message = dict(message)
    if message["role"] == "function":
        message["role"] = "tool"
        message["tool_call_id"] = message.get("tool_call_id") or message["name"]
    call = message.pop("function_call", None)
    if call is not None and not message.get("tool_calls"):
        message["tool_calls"] = [{"id": call["name"], "type": "function", "function": call}]
    return message
