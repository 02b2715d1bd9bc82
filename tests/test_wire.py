"""A client's request: every field, role and part, and the order in which they are checked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import orjson
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from strategies import FLOATS, INTEGERS, JSON

from picoclaw_trio.errors import RequestError
from picoclaw_trio.messages import MAX_MESSAGES, MESSAGE_FIELDS, PARTS, ROLES
from picoclaw_trio.shapes import Json
from picoclaw_trio.wire import FIELDS, ChatRequest, decode_chat_request

USER: dict[str, Json] = {"role": "user", "content": "Hello"}
FUNCTION: dict[str, Json] = {"name": "look", "arguments": "{}"}
CALL: dict[str, Json] = {"id": "call_1", "type": "function", "function": FUNCTION}
# A value for "leave this field out".
ABSENT = object()


def decode(body: Mapping[str, Json], *, streaming: bool = False) -> ChatRequest:
    return decode_chat_request(orjson.dumps(body), streaming=streaming)


def ask(**fields: Json) -> ChatRequest:
    """A request with one plain message, unless told otherwise."""
    return decode({"messages": [USER], **fields}, streaming=True)


def say(message: Json) -> ChatRequest:
    return decode({"messages": [message]})


def refused(body: Mapping[str, Json], *, streaming: bool = False) -> tuple[int, str | None, str | None]:
    """Status, ``param`` and ``code`` of the refusal."""
    with pytest.raises(RequestError) as caught:
        decode(body, streaming=streaming)
    assert "invalid_request_error" == caught.value.type
    assert caught.value.message
    return caught.value.status, caught.value.param, caught.value.code


def without(message: Mapping[str, Json], *names: str) -> dict[str, Json]:
    return {name: value for name, value in message.items() if name not in names}


# --- What is taken -------------------------------------------------------------------------------------------------


def test_messages_have_a_bound() -> None:
    assert MAX_MESSAGES == len(decode({"messages": [USER] * MAX_MESSAGES}).messages)
    assert (400, "messages", "array_above_max_length") == refused({"messages": [USER] * (MAX_MESSAGES + 1)})


def test_the_smallest_request_has_neither_model_nor_user_nor_parameters() -> None:
    request = decode({"messages": [USER]})

    assert (None, None, False, False, {}) == (
        request.model,
        request.user,
        request.stream,
        request.include_usage,
        request.parameters,
    )
    assert [("user", USER)] == [(message.role, message.body) for message in request.messages]


# {field: values that are right for it}; each comes out in ``parameters`` just so, but for the fields of HANDLED.
RIGHT: dict[str, list[Json]] = {
    "audio": [],
    "frequency_penalty": [0, -2.0, 1.5],
    "function_call": ["auto", {"name": "look"}],
    "functions": [[], [{"name": "look", "parameters": {"type": "object"}}]],
    "logit_bias": [{}, {"50256": -100, "7": 0.5}],
    "logprobs": [True, False],
    "max_completion_tokens": [0, 1, 128000],
    "max_tokens": [1, 2**63],
    "metadata": [{}, {"a": "b"}],
    "modalities": [[], ["text"]],
    "model": ["qwen3-coder-plus"],
    "n": [1],
    "parallel_tool_calls": [True, False],
    "prediction": [{"type": "content", "content": "x"}],
    "presence_penalty": [0, 2],
    "prompt_cache_key": ["", "a"],
    "reasoning_effort": ["low", "minimal"],
    "response_format": [{"type": "text"}, {"type": "json_schema", "json_schema": {"name": "n", "schema": {}}}],
    "safety_identifier": ["a"],
    "seed": [0, -1, 2**63],
    "service_tier": ["auto"],
    "stop": ["", "\n", [], ["a", "b"]],
    "store": [True, False],
    "stream": [True, False],
    "stream_options": [{}, {"include_usage": True}, {"include_usage": None, "include_obfuscation": False}],
    "temperature": [0, 1, 0.7],
    "tool_choice": ["auto", "none", {"type": "function", "function": {"name": "look"}}],
    "tools": [[], [{"type": "function", "function": {"name": "look"}}], [{"type": "custom", "custom": {}}]],
    "top_logprobs": [0, 20],
    "top_p": [0, 1, 0.9],
    "user": ["ann", "x" * 512, "ä" * 512, "😀" * 512],
    "verbosity": ["low"],
    "web_search_options": [{}],
}
# {field: (value of a wrong type, the place that is named)}
WRONG: dict[str, list[tuple[Json, str]]] = {
    "audio": [("a", "audio"), ([], "audio")],
    "frequency_penalty": [("0", "frequency_penalty"), (True, "frequency_penalty")],
    "function_call": [(True, "function_call"), ([], "function_call"), (1, "function_call")],
    "functions": [({}, "functions"), (["look"], "functions[0]"), ([{}, None], "functions[1]")],
    "logit_bias": [([], "logit_bias"), ({"7": "a"}, "logit_bias.7"), ({"1": 1, "2": None}, "logit_bias.2")],
    "logprobs": [(1, "logprobs"), ("true", "logprobs")],
    "max_completion_tokens": [(1.0, "max_completion_tokens"), ("1", "max_completion_tokens")],
    "max_tokens": [(True, "max_tokens"), (1.5, "max_tokens"), ({}, "max_tokens")],
    "metadata": [("a", "metadata"), ([], "metadata")],
    "modalities": [("text", "modalities"), ([1], "modalities[0]"), ([None], "modalities[0]")],
    "model": [(1, "model"), (["a"], "model"), ({}, "model"), (False, "model")],
    "n": [("1", "n"), (1.0, "n"), (True, "n")],
    "parallel_tool_calls": [("false", "parallel_tool_calls"), (0, "parallel_tool_calls")],
    "prediction": [("a", "prediction")],
    "presence_penalty": [("0", "presence_penalty"), ([], "presence_penalty")],
    "prompt_cache_key": [(1, "prompt_cache_key")],
    "reasoning_effort": [(1, "reasoning_effort"), ({}, "reasoning_effort")],
    "response_format": [
        ("json", "response_format"),
        ({}, "response_format.type"),
        ({"type": None}, "response_format.type"),
        ({"type": 1}, "response_format.type"),
    ],
    "safety_identifier": [(1, "safety_identifier")],
    "seed": [(1.5, "seed"), ("1", "seed"), (float(2**64), "seed")],
    "service_tier": [(True, "service_tier")],
    "stop": [(1, "stop"), ({}, "stop"), (["a", 1], "stop[1]"), ([None], "stop[0]"), (False, "stop")],
    "store": [("yes", "store"), (1, "store")],
    "stream": [("true", "stream"), (1, "stream"), (0, "stream"), ({}, "stream")],
    "stream_options": [
        (True, "stream_options"),
        ({"include_usage": 1}, "stream_options.include_usage"),
        ({"include_usage": "true"}, "stream_options.include_usage"),
    ],
    "temperature": [("0.7", "temperature"), (True, "temperature"), ([1], "temperature")],
    "tool_choice": [(True, "tool_choice"), ([], "tool_choice")],
    "tools": [
        ({}, "tools"),
        (["look"], "tools[0]"),
        ([{}], "tools[0].type"),
        ([{"type": 1}], "tools[0].type"),
        ([{"type": "function"}], "tools[0].function"),
        ([{"type": "function", "function": "look"}], "tools[0].function"),
        ([{"type": "function", "function": {}}], "tools[0].function.name"),
        ([{"type": "custom"}, {"type": "function", "function": {"name": 1}}], "tools[1].function.name"),
        ([{"type": "custom", "custom": "look"}], "tools[0].custom"),
        ([{"type": "custom", "function": ["look"]}], "tools[0].function"),
    ],
    "top_logprobs": [("1", "top_logprobs"), (1.0, "top_logprobs")],
    "top_p": [("1", "top_p"), (False, "top_p")],
    "user": [(1, "user"), (["ann"], "user"), ({}, "user"), (True, "user")],
    "verbosity": [(1, "verbosity")],
    "web_search_options": [(True, "web_search_options")],
}
# Fields that have a place of their own in a request, or are never served.
HANDLED = {"audio", "model", "stream", "stream_options", "user"}


def test_the_tables_of_this_file_have_every_field() -> None:
    assert set(FIELDS) == set(RIGHT) == set(WRONG)


@pytest.mark.parametrize("name", sorted(set(FIELDS) - HANDLED))
def test_a_field_of_the_right_type_comes_out_as_it_went_in(name: str) -> None:
    for value in RIGHT[name]:
        assert {name: value} == ask(**{name: value}).parameters


@pytest.mark.parametrize(("name", "value", "param"), [(name, *case) for name in WRONG for case in WRONG[name]])
def test_a_field_of_a_wrong_type_is_refused_by_its_name(name: str, value: Json, param: str) -> None:
    assert (400, param, "invalid_type") == refused({"messages": [USER], name: value})


@pytest.mark.parametrize("name", FIELDS)
def test_null_means_absent(name: str) -> None:
    assert ask() == ask(**{name: None})


def test_unknown_fields_are_ignored() -> None:
    assert ask() == ask(foo=1, Model="b", temperatur="hot", messages2=[], bar={"deep": [None]})


@pytest.mark.parametrize("name", ["model", "user"])
def test_an_empty_model_or_user_is_absent(name: str) -> None:
    assert ask() == ask(**{name: ""})


def test_model_and_user_come_out_exactly() -> None:
    request = ask(model=" Qwen3 ", user=" Änn/:\n")

    assert (" Qwen3 ", " Änn/:\n", {}) == (request.model, request.user, request.parameters)


@pytest.mark.parametrize("letter", ["x", "ä", "😀"])
def test_a_user_has_at_most_512_characters(letter: str) -> None:
    assert letter * 512 == ask(user=letter * 512).user
    assert (400, "user", "string_too_long") == refused({"messages": [USER], "user": letter * 513})


@pytest.mark.parametrize(
    ("fields", "stream", "include_usage"),
    [
        ({}, False, False),
        ({"stream": False}, False, False),
        ({"stream": True}, True, False),
        ({"stream": True, "stream_options": None}, True, False),
        ({"stream": True, "stream_options": {}}, True, False),
        ({"stream": True, "stream_options": {"include_usage": None}}, True, False),
        ({"stream": True, "stream_options": {"include_usage": False}}, True, False),
        ({"stream": True, "stream_options": {"include_usage": True}}, True, True),
        ({"stream": False, "stream_options": {"include_usage": True}}, False, False),
    ],
)
def test_usage_is_included_only_in_a_stream_that_asks_for_it(
    fields: dict[str, Json], stream: bool, include_usage: bool
) -> None:
    request = ask(**fields)

    assert (stream, include_usage, {}) == (request.stream, request.include_usage, request.parameters)


# --- The order of checks -------------------------------------------------------------------------------------------

# One violation of each row of the table of checks, to be laid over one another: the upper one must answer.
NO_JSON = b'{"messages":'
TYPE = {"temperature": "hot"}
STREAM = {"stream": True}
SHAPE = {"messages": [{"role": "robot", "content": "x"}]}
VALUE = {"n": 2}


def test_a_wrong_type_comes_before_stream() -> None:
    assert (400, "temperature", "invalid_type") == refused({**VALUE, **SHAPE, **STREAM, **TYPE})
    assert (400, "messages[0].role", "invalid_type") == refused({**VALUE, **STREAM, "messages": [{"role": 1}]})


def test_broken_json_comes_before_stream() -> None:
    with pytest.raises(RequestError) as caught:
        decode_chat_request(b'{"stream":true,"messages":[]', streaming=False)
    assert (400, "invalid_json") == (caught.value.status, caught.value.code)


def test_stream_comes_before_the_shape_of_messages() -> None:
    assert (501, "stream", "streaming_disabled") == refused({**VALUE, **SHAPE, **STREAM})
    wrong: list[Json] = [None, [], "Hello", {}, [{"role": "user"}], [{**USER, "content": [{"type": "x"}]}]]
    for messages in wrong:
        assert (501, "stream", "streaming_disabled") == refused({**STREAM, "messages": messages})


def test_the_shape_of_messages_comes_before_values_that_cannot_be_honoured() -> None:
    assert (400, "messages[0].role", "invalid_value") == refused({**VALUE, **SHAPE})
    assert (400, "messages", "missing_messages") == refused({**VALUE, "messages": []})


def test_a_value_that_cannot_be_honoured_is_refused_last() -> None:
    assert (400, "n", "unsupported_value") == refused({**VALUE, "messages": [USER]})


def test_with_streaming_on_the_same_order_holds_without_its_row() -> None:
    assert (400, "temperature", "invalid_type") == refused({**SHAPE, **STREAM, **TYPE}, streaming=True)
    assert (400, "messages[0].role", "invalid_value") == refused({**VALUE, **SHAPE, **STREAM}, streaming=True)
    assert (400, "n", "unsupported_value") == refused({**VALUE, **STREAM, "messages": [USER]}, streaming=True)


def test_the_refusal_of_a_stream_names_the_switch_and_stops_retries() -> None:
    with pytest.raises(RequestError) as caught:
        decode({"messages": [USER], "stream": True})

    assert "gateway.openai_api.streaming" in caught.value.message
    assert {"x-should-retry": "false"} == caught.value.headers


def test_stream_false_is_served_with_streaming_off() -> None:
    assert not decode({"messages": [USER], "stream": False}).stream


@pytest.mark.parametrize("n", [2, 0, -1, 128])
def test_n_other_than_1_is_refused(n: int) -> None:
    assert (400, "n", "unsupported_value") == refused({"messages": [USER], "n": n})


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"audio": {"voice": "alloy", "format": "mp3"}}, "audio"),
        ({"audio": {}}, "audio"),
        ({"modalities": ["text", "audio"]}, "modalities"),
        ({"modalities": ["audio"], "audio": {}}, "audio"),
    ],
)
def test_audio_output_is_refused(fields: dict[str, Json], param: str) -> None:
    assert (400, param, "unsupported_value") == refused({"messages": [USER], **fields})


# --- Messages ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("messages", [ABSENT, None, [], {}, "Hello", 1, True, {"role": "user", "content": "x"}])
def test_messages_missing_empty_or_no_list_are_refused(messages: Json) -> None:
    body = {} if messages is ABSENT else {"messages": messages}

    assert (400, "messages", "missing_messages") == refused(body)


@pytest.mark.parametrize("message", ["Hello", None, 1, [], [USER]])
def test_a_message_that_is_no_object_is_refused_by_its_place(message: Json) -> None:
    assert (400, "messages[1]", "invalid_type") == refused({"messages": [USER, message]})


# {type that is right for a field of a message: the fields of that type}; every other type is wrong for them.
MESSAGE_TYPES: dict[type, set[str]] = {
    str: {"role", "content", "name", "tool_call_id", "refusal"},
    list: {"content", "tool_calls"},
    dict: {"function_call"},
    bool: set(),
    int: set(),
    float: set(),
}
WRONG_MESSAGE_FIELDS = [
    (name, type_()) for name, _ in MESSAGE_FIELDS for type_, right in MESSAGE_TYPES.items() if name not in right
]


@pytest.mark.parametrize(("name", "value"), WRONG_MESSAGE_FIELDS)
def test_a_message_field_of_a_wrong_type_is_refused_by_its_place(name: str, value: Json) -> None:
    body = {"messages": [USER, USER, {**USER, name: value}]}

    assert (400, f"messages[2].{name}", "invalid_type") == refused(body)


def test_a_wrong_type_in_a_late_message_comes_before_a_bad_shape_in_an_early_one() -> None:
    body = {"messages": [{"role": "robot"}, {"role": "user", "content": 1}]}

    assert (400, "messages[1].content", "invalid_type") == refused(body)


@pytest.mark.parametrize("role", [ABSENT, None, "", "robot", "User", "user "])
def test_a_role_that_is_unknown_or_missing_is_refused(role: Json) -> None:
    message = {"content": "x"} if role is ABSENT else {"role": role, "content": "x"}

    assert (400, "messages[2].role", "invalid_value") == refused({"messages": [USER, USER, message]})


# {role: a message with all that the role needs}
WHOLE: dict[str, dict[str, Json]] = {
    "system": {"role": "system", "content": "Be brief."},
    "developer": {"role": "developer", "content": "Be brief."},
    "user": USER,
    "assistant": {"role": "assistant", "content": "Hi"},
    "tool": {"role": "tool", "content": "42", "tool_call_id": "call_1"},
    "function": {"role": "function", "content": "42", "name": "look"},
}
CONTENT_ROLES = ["system", "developer", "user", "assistant", "tool", "function"]


def test_the_table_of_this_file_has_every_role() -> None:
    assert set(ROLES) == set(WHOLE) == set(CONTENT_ROLES)


@pytest.mark.parametrize("role", sorted(set(WHOLE) - {"function"}))
def test_a_message_with_what_its_role_needs_comes_out_as_it_went_in(role: str) -> None:
    body = {**WHOLE[role], "name": "ann", "unknown": {"deep": [1]}}
    [message] = say(body).messages

    assert (role, body) == (message.role, message.body)


@pytest.mark.parametrize("role", CONTENT_ROLES)
@pytest.mark.parametrize("content", [ABSENT, None])
def test_a_message_without_content_is_refused(role: str, content: Json) -> None:
    message = without(WHOLE[role], "content") if content is ABSENT else {**WHOLE[role], "content": None}

    assert (400, "messages[1].content", "missing_field") == refused({"messages": [USER, message]})


@pytest.mark.parametrize("role", CONTENT_ROLES)
def test_an_empty_text_is_content_and_an_empty_list_is_not(role: str) -> None:
    assert "" == say({**WHOLE[role], "content": ""}).messages[0].body["content"]
    assert (400, "messages[0].content", "invalid_value") == refused({"messages": [{**WHOLE[role], "content": []}]})


@pytest.mark.parametrize("value", [ABSENT, None])
def test_a_tool_message_without_tool_call_id_is_refused(value: Json) -> None:
    message = without(WHOLE["tool"], "tool_call_id")
    message |= {} if value is ABSENT else {"tool_call_id": value}

    assert (400, "messages[0].tool_call_id", "missing_field") == refused({"messages": [message]})


@pytest.mark.parametrize(
    "message",
    [
        {"tool_calls": [CALL]},
        {"tool_calls": [CALL], "content": None},
        {"tool_calls": [CALL], "content": ""},
        {"tool_calls": [CALL], "content": "I look."},
        {"tool_calls": [CALL, {**CALL, "id": "call_2", "extra": {"signature": "x"}}]},
        {"tool_calls": [{"id": "call_1", "type": "custom", "custom": {"name": "n", "input": "x"}}]},
        {"refusal": "No."},
        {"refusal": "No.", "content": None},
        {"content": "Hi", "tool_calls": None, "refusal": None},
        {"content": "Hi", "tool_calls": []},
    ],
)
def test_an_assistant_message_needs_content_or_tool_calls_or_a_refusal(message: dict[str, Json]) -> None:
    body = {"role": "assistant", **message}

    assert body == say(body).messages[0].body


@pytest.mark.parametrize("message", [{}, {"tool_calls": []}, {"tool_calls": None}, {"refusal": ""}, {"refusal": None}])
def test_an_assistant_message_without_any_of_them_is_refused(message: dict[str, Json]) -> None:
    assert (400, "messages[0].content", "missing_field") == refused({"messages": [{"role": "assistant", **message}]})


@pytest.mark.parametrize(
    ("call", "place"),
    [
        ("look", ""),
        (None, ""),
        ([], ""),
        ({}, ".type"),
        (without(CALL, "type"), ".type"),
        ({**CALL, "type": 1}, ".type"),
        (without(CALL, "id"), ".id"),
        ({**CALL, "id": None}, ".id"),
        ({**CALL, "id": 1}, ".id"),
        (without(CALL, "function"), ".function"),
        ({**CALL, "type": "custom", "function": ["look"]}, ".function"),
        ({"id": "1", "type": "custom", "custom": "look"}, ".custom"),
        ({**CALL, "function": "look"}, ".function"),
        ({**CALL, "function": without(FUNCTION, "name")}, ".function.name"),
        ({**CALL, "function": {**FUNCTION, "name": None}}, ".function.name"),
        ({**CALL, "function": without(FUNCTION, "arguments")}, ".function.arguments"),
        ({**CALL, "function": {**FUNCTION, "arguments": {}}}, ".function.arguments"),
    ],
)
def test_a_malformed_tool_call_is_refused_by_its_place(call: Json, place: str) -> None:
    body = {"messages": [USER, {"role": "assistant", "tool_calls": [CALL, call]}]}

    assert (400, f"messages[1].tool_calls[1]{place}", "invalid_type") == refused(body)


# {type of a part: parts that are right}; {(malformed part, place that is named)}
RIGHT_PARTS: dict[str, list[dict[str, Json]]] = {
    "text": [{"type": "text", "text": ""}, {"type": "text", "text": "Hi", "cache_control": {"type": "ephemeral"}}],
    "image_url": [
        {"type": "image_url", "image_url": {"url": "https://example.test/a.png"}},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA==", "detail": "low"}},
    ],
    "input_audio": [{"type": "input_audio", "input_audio": {"data": "AA==", "format": "wav"}}],
    "file": [{"type": "file", "file": {"file_id": "file-1"}}, {"type": "file", "file": {"file_data": "AA=="}}],
    "refusal": [{"type": "refusal", "refusal": "No."}],
}
WRONG_PARTS: list[tuple[Json, str, str]] = [
    ("Hi", "", "invalid_type"),
    (None, "", "invalid_type"),
    ([], "", "invalid_type"),
    (1, "", "invalid_type"),
    ({}, ".type", "invalid_type"),
    ({"text": "Hi"}, ".type", "invalid_type"),
    ({"type": None, "text": "Hi"}, ".type", "invalid_type"),
    ({"type": ["text"], "text": "Hi"}, ".type", "invalid_type"),
    ({"type": "video", "video": {}}, ".type", "invalid_value"),
    ({"type": "Text", "text": "Hi"}, ".type", "invalid_value"),
    ({"type": "input_text", "text": "Hi"}, ".type", "invalid_value"),
    ({"type": "", "text": "Hi"}, ".type", "invalid_value"),
    ({"type": "text"}, ".text", "invalid_type"),
    ({"type": "text", "text": None}, ".text", "invalid_type"),
    ({"type": "text", "text": 1}, ".text", "invalid_type"),
    ({"type": "text", "text": ["Hi"]}, ".text", "invalid_type"),
    ({"type": "image_url"}, ".image_url", "invalid_type"),
    ({"type": "image_url", "image_url": "https://example.test/a.png"}, ".image_url", "invalid_type"),
    ({"type": "image_url", "image_url": {}}, ".image_url.url", "invalid_type"),
    ({"type": "image_url", "image_url": {"url": None}}, ".image_url.url", "invalid_type"),
    ({"type": "input_audio"}, ".input_audio", "invalid_type"),
    ({"type": "input_audio", "input_audio": "AA=="}, ".input_audio", "invalid_type"),
    ({"type": "file"}, ".file", "invalid_type"),
    ({"type": "file", "file": "file-1"}, ".file", "invalid_type"),
    ({"type": "refusal"}, ".refusal", "invalid_type"),
    ({"type": "refusal", "refusal": {}}, ".refusal", "invalid_type"),
]


def test_the_table_of_this_file_has_every_type_of_part() -> None:
    assert set(PARTS) == set(RIGHT_PARTS)


@pytest.mark.parametrize("role", sorted(set(WHOLE) - {"function"}))
def test_parts_of_every_type_come_out_as_they_went_in(role: str) -> None:
    body = {**WHOLE[role], "content": [part for parts in RIGHT_PARTS.values() for part in parts]}

    assert body == say(body).messages[0].body


@pytest.mark.parametrize(("part", "place", "code"), WRONG_PARTS)
def test_a_part_that_is_malformed_or_unknown_is_refused_by_its_place(part: Json, place: str, code: str) -> None:
    content = [RIGHT_PARTS["text"][0], part]

    assert (400, f"messages[1].content[1]{place}", code) == refused({"messages": [USER, {**USER, "content": content}]})


def test_parts_are_checked_beside_tool_calls_too() -> None:
    message = {"role": "assistant", "tool_calls": [CALL], "content": ["Hi"]}

    assert (400, "messages[0].content[0]", "invalid_type") == refused({"messages": [message]})


# --- Function calls of old -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"name": "look"}, {"name": "look", "tool_call_id": "look"}),
        ({"name": "look", "tool_call_id": "call_1"}, {"name": "look", "tool_call_id": "call_1"}),
        ({"name": "look", "tool_call_id": None}, {"name": "look", "tool_call_id": "look"}),
        ({"name": "look", "tool_call_id": ""}, {"name": "look", "tool_call_id": "look"}),
        ({"tool_call_id": "call_1"}, {"tool_call_id": "call_1"}),
    ],
)
def test_a_function_message_becomes_a_tool_message(given: dict[str, Json], expected: dict[str, Json]) -> None:
    [message] = say({"role": "function", "content": "42", **given}).messages

    assert ("tool", {"role": "tool", "content": "42", **expected}) == (message.role, message.body)


@pytest.mark.parametrize("given", [{}, {"name": None}, {"tool_call_id": ""}, {"tool_call_id": None, "name": None}])
def test_a_function_message_without_name_and_id_is_refused(given: dict[str, Json]) -> None:
    message = {"role": "function", "content": "42", **given}

    assert (400, "messages[0].name", "missing_field") == refused({"messages": [message]})


@pytest.mark.parametrize("content", [{}, {"content": None}, {"content": "I look."}])
def test_a_function_call_becomes_a_tool_call_named_by_its_function(content: dict[str, Json]) -> None:
    [message] = say({"role": "assistant", "function_call": FUNCTION, **content}).messages

    call = {"id": "look", "type": "function", "function": FUNCTION}
    assert {"role": "assistant", **content, "tool_calls": [call]} == message.body


def test_a_function_call_and_its_result_bear_the_same_id() -> None:
    asked, told = decode({"messages": [{"role": "assistant", "function_call": FUNCTION}, WHOLE["function"]]}).messages

    assert asked.body["tool_calls"][0]["id"] == told.body["tool_call_id"]


def test_tool_calls_win_over_a_function_call() -> None:
    [message] = say({"role": "assistant", "function_call": FUNCTION, "tool_calls": [CALL]}).messages

    assert {"role": "assistant", "tool_calls": [CALL]} == message.body


def test_a_function_call_of_null_is_left_out() -> None:
    assert WHOLE["assistant"] == say({**WHOLE["assistant"], "function_call": None}).messages[0].body


def test_a_function_call_of_another_role_stays_what_it_is() -> None:
    body = {**USER, "function_call": FUNCTION}

    assert body == say(body).messages[0].body


@pytest.mark.parametrize(
    ("function", "place"),
    [
        ({}, ".name"),
        ({"name": 1, "arguments": "{}"}, ".name"),
        ({"name": "look"}, ".arguments"),
        ({"name": "look", "arguments": {}}, ".arguments"),
    ],
)
def test_a_malformed_function_call_is_refused_by_its_place(function: Json, place: str) -> None:
    message = {"role": "assistant", "content": "Hi", "function_call": function}

    assert (400, f"messages[0].function_call{place}", "invalid_type") == refused({"messages": [message]})


# --- Anything at all -----------------------------------------------------------------------------------------------

KNOWN_NAMES = st.sampled_from([*FIELDS, "messages", "foo"])
MESSAGE_NAMES = st.sampled_from([name for name, _ in MESSAGE_FIELDS] + ["foo"])
ROLE_NAMES = st.sampled_from([*ROLES, "robot"])
PART_OBJECTS = st.builds(
    lambda kind, name, value: {"type": kind, name: value},
    st.sampled_from([*PARTS, "video"]),
    st.sampled_from([*PARTS, "foo"]),
    JSON | st.just({"url": "x"}),
)
CALL_OBJECTS = st.fixed_dictionaries(
    {},
    optional={
        "id": JSON | st.text(),
        "type": JSON | st.just("function"),
        "function": JSON | st.dictionaries(st.sampled_from(["name", "arguments"]), JSON | st.text()),
    },
)
ANY_MESSAGE = st.one_of(
    JSON,
    st.dictionaries(MESSAGE_NAMES, JSON),
    st.builds(lambda role, rest: {"role": role, **rest}, ROLE_NAMES, st.dictionaries(MESSAGE_NAMES, JSON)),
    st.builds(lambda role, parts: {"role": role, "content": parts}, ROLE_NAMES, st.lists(PART_OBJECTS | JSON)),
    st.builds(
        lambda calls, rest: {"role": "assistant", "tool_calls": calls, **rest},
        st.lists(CALL_OBJECTS),
        st.fixed_dictionaries({}, optional={"function_call": CALL_OBJECTS | JSON, "content": JSON}),
    ),
)


def outcome(raw: bytes, streaming: bool) -> ChatRequest | RequestError:
    """The request, or why there is none."""
    try:
        return decode_chat_request(raw, streaming=streaming)
    except RequestError as error:
        return error


def check_decodes_or_is_refused(raw: bytes, streaming: bool) -> None:
    """A request or a refusal with one of the two statuses: nothing else may come out."""
    result = outcome(raw, streaming)
    if isinstance(result, RequestError):
        assert result.status in ({400} if streaming else {400, 501})
        assert type(result.param) in (str, type(None))
        assert str is type(result.code)
    else:
        assert result.messages
        assert all(message.role in ROLES and message.role != "function" for message in result.messages)


@given(JSON, st.booleans())
def test_any_json_for_a_body_is_decoded_or_refused(body: Json, streaming: bool) -> None:
    check_decodes_or_is_refused(orjson.dumps(body), streaming)


@given(st.binary(), st.booleans())
def test_any_bytes_for_a_body_are_decoded_or_refused(raw: bytes, streaming: bool) -> None:
    check_decodes_or_is_refused(raw, streaming)


@given(st.dictionaries(KNOWN_NAMES, JSON, max_size=4), st.booleans())
def test_any_json_for_any_field_is_decoded_or_refused(fields: dict[str, Json], streaming: bool) -> None:
    check_decodes_or_is_refused(orjson.dumps({"messages": [USER], **fields}), streaming)


@given(st.lists(ANY_MESSAGE, max_size=3))
@example([{"role": "function", "content": "x", "tool_call_id": ""}])
@example([{"role": "assistant", "content": "x", "function_call": {}}])
def test_any_json_for_messages_is_decoded_or_refused(messages: list[Json]) -> None:
    check_decodes_or_is_refused(orjson.dumps({"messages": messages}), False)


@given(st.sampled_from(sorted(set(FIELDS))), JSON)
def test_a_refusal_of_one_field_names_that_field(name: str, value: Json) -> None:
    result = outcome(orjson.dumps({"messages": [USER], name: value}), streaming=True)

    if isinstance(result, RequestError):
        assert str(result.param).startswith(name)


TEXT_OR_PARTS = st.text() | st.lists(
    st.sampled_from([part for parts in RIGHT_PARTS.values() for part in parts]), min_size=1
)
CALLS = st.lists(
    st.builds(
        lambda call_id, name, arguments: {
            "id": call_id,
            "type": "function",
            "function": {"name": name, "arguments": arguments},
        },
        st.text(),
        st.text(),
        st.text(),
    ),
    min_size=1,
)
VALID_MESSAGE = st.one_of(
    st.fixed_dictionaries(
        {"role": st.sampled_from(["system", "developer", "user", "assistant"]), "content": TEXT_OR_PARTS},
        optional={"name": st.text(), "foo": JSON},
    ),
    st.fixed_dictionaries({"role": st.just("assistant"), "tool_calls": CALLS}, optional={"content": TEXT_OR_PARTS}),
    st.fixed_dictionaries({"role": st.just("tool"), "content": TEXT_OR_PARTS, "tool_call_id": st.text()}),
)
VALID_PARAMETERS = st.fixed_dictionaries(
    {},
    optional={
        "temperature": FLOATS | INTEGERS,
        "top_p": FLOATS,
        "seed": INTEGERS,
        "max_tokens": INTEGERS,
        "stop": st.text() | st.lists(st.text()),
        "logit_bias": st.dictionaries(st.text(), INTEGERS | FLOATS),
        "metadata": st.dictionaries(st.text(), JSON),
        "tools": st.lists(
            st.builds(
                lambda name, parameters: {"type": "function", "function": {"name": name, "parameters": parameters}},
                st.text(),
                JSON,
            )
        ),
        "response_format": st.builds(lambda schema: {"type": "json_schema", "json_schema": schema}, JSON),
        "parallel_tool_calls": st.booleans(),
    },
)


@given(st.lists(VALID_MESSAGE, min_size=1, max_size=4), VALID_PARAMETERS, st.dictionaries(st.just("foo"), JSON))
def test_a_valid_request_comes_out_exactly_as_it_went_in(
    messages: list[dict[str, Json]], parameters: dict[str, Json], others: dict[str, Json]
) -> None:
    request = decode({**others, **parameters, "messages": messages})

    assert messages == [message.body for message in request.messages]
    assert [message["role"] for message in messages] == [message.role for message in request.messages]
    assert parameters == request.parameters
    assert orjson.dumps(messages) == orjson.dumps([message.body for message in request.messages])


def test_a_request_is_frozen() -> None:
    request: Any = ask()

    with pytest.raises(AttributeError):
        request.model = "b"
