"""What upstreams are asked, and what is made of whatever they answer."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import orjson
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from strategies import JSON

from picoclaw_trio.answers import Heading, encode_completion, encode_delta_chunk
from picoclaw_trio.errors import UPSTREAM_FAILURES, UpstreamError
from picoclaw_trio.messages import Message
from picoclaw_trio.replies import ExtraDelta, Fold, Reply, TextDelta, Usage
from picoclaw_trio.shapes import Json
from picoclaw_trio.upstream_reply import (
    FINISH_REASONS,
    Chunk,
    complete_calls,
    decode_chunk,
    decode_completion,
    decode_error,
    decode_retry_after,
    merge_endings,
)
from picoclaw_trio.upstream_request import ModelSettings, UpstreamRequest, encode_request

# --- Questions -----------------------------------------------------------------------------------------------------

SETTINGS = ModelSettings("gpt-x", None, {})
BODIES: list[dict[str, Json]] = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": [{"x": 1}]}]


def asked(settings: ModelSettings, *, stream: bool = False, **parameters: Json) -> Any:
    messages = [Message(body["role"], body) for body in BODIES]
    return orjson.loads(encode_request(UpstreamRequest(messages, parameters, stream), settings))


def test_a_request_has_the_model_the_messages_and_the_parameters_as_they_came() -> None:
    assert {"model": "gpt-x", "messages": BODIES, "temperature": 0.5, "stop": ["a"]} == asked(
        SETTINGS, temperature=0.5, stop=["a"]
    )


def test_a_stream_is_asked_for_with_usage() -> None:
    body = asked(SETTINGS, stream=True)

    assert (True, {"include_usage": True}) == (body["stream"], body["stream_options"])


def test_without_a_stream_neither_field_is_sent() -> None:
    assert {"model", "messages"} == set(asked(SETTINGS))


@pytest.mark.parametrize(
    ("field", "given", "sent"),
    [
        (None, {"max_tokens": 5}, {"max_tokens": 5}),
        (None, {"max_tokens": 5, "max_completion_tokens": 6}, {"max_tokens": 5, "max_completion_tokens": 6}),
        ("max_tokens", {}, {}),
        ("max_tokens", {"max_tokens": 5}, {"max_tokens": 5}),
        ("max_tokens", {"max_completion_tokens": 6}, {"max_tokens": 6}),
        ("max_completion_tokens", {"max_tokens": 5}, {"max_completion_tokens": 5}),
        ("max_completion_tokens", {"max_completion_tokens": 0}, {"max_completion_tokens": 0}),
        ("max_tokens", {"max_tokens": 5, "max_completion_tokens": 6}, {"max_tokens": 6}),
        ("num_predict", {"max_tokens": 5}, {"num_predict": 5}),
    ],
)
def test_the_token_limit_goes_by_the_name_that_the_target_wants(
    field: str | None, given: dict[str, Json], sent: dict[str, Json]
) -> None:
    body = asked(ModelSettings("gpt-x", field, {}), **given)

    assert sent == {name: value for name, value in body.items() if name not in ("model", "messages")}


@pytest.mark.parametrize(
    ("model", "field", "given", "sent"),
    [
        ("gpt-x", None, {}, {"max_tokens": 100}),
        ("gpt-5-mini", None, {}, {"max_completion_tokens": 100}),
        ("openai/o1", None, {}, {"max_completion_tokens": 100}),
        ("glm-4", None, {}, {"max_completion_tokens": 100}),
        ("gpt-5-mini", "max_tokens", {}, {"max_tokens": 100}),
        ("gpt-x", "num_predict", {}, {"num_predict": 100}),
        ("gpt-5-mini", None, {"max_tokens": 5}, {"max_tokens": 5}),
        ("gpt-x", None, {"max_completion_tokens": 5}, {"max_completion_tokens": 5}),
        ("gpt-x", "max_tokens", {"max_completion_tokens": 5}, {"max_tokens": 5}),
    ],
)
def test_the_targets_own_token_limit_holds_for_a_request_that_tells_none(
    model: str, field: str | None, given: dict[str, Json], sent: dict[str, Json]
) -> None:
    body = asked(ModelSettings(model, field, {}, max_tokens=100), **given)

    assert sent == {name: value for name, value in body.items() if name not in ("model", "messages")}


@pytest.mark.parametrize(("given", "sent"), [({}, 0.0), ({"temperature": 1.5}, 1.5), ({"temperature": 0}, 0)])
def test_the_targets_own_temperature_holds_for_a_request_that_tells_none(given: dict[str, Json], sent: float) -> None:
    assert sent == asked(ModelSettings("gpt-x", None, {}, temperature=0.0), **given)["temperature"]


def test_the_extra_body_comes_last_and_wins() -> None:
    extra = {"model": "other", "temperature": 1, "stream_options": None, "max_tokens": 9, "thinking": {"type": "off"}}
    body = asked(ModelSettings("gpt-x", "max_tokens", extra), stream=True, temperature=0, max_tokens=5)

    assert extra == {name: body[name] for name in extra}


@given(st.dictionaries(st.text(), JSON), st.dictionaries(st.text(), JSON), st.booleans())
def test_any_parameters_go_out_as_they_are(parameters: dict[str, Json], extra: dict[str, Json], stream: bool) -> None:
    request = UpstreamRequest([Message("user", BODIES[1])], parameters, stream)
    own: dict[str, Json] = {"stream": True, "stream_options": {"include_usage": True}} if stream else {}
    sent = {"model": "gpt-x", "messages": [BODIES[1]], **parameters, **own, **extra}

    assert sent == orjson.loads(encode_request(request, ModelSettings("gpt-x", None, extra)))


# --- Whole answers -------------------------------------------------------------------------------------------------

FUNCTION: dict[str, Json] = {"name": "look", "arguments": '{"at": 1}'}
CALL: dict[str, Json] = {"id": "call_1", "type": "function", "function": FUNCTION}
MESSAGE: dict[str, Json] = {"role": "assistant", "content": "Hi", "refusal": None}
LOGPROB: dict[str, Json] = {"token": "Hi", "logprob": -0.1, "bytes": [72, 105], "top_logprobs": []}


def completion(message: Json = MESSAGE, **fields: Json) -> bytes:
    """A whole answer with this message; *fields* are those of its choice."""
    return orjson.dumps({"id": "x", "choices": [{"index": 0, "message": message, "finish_reason": "stop", **fields}]})


def fold(chunks: Iterable[Chunk]) -> Fold:
    folded = Fold()
    for chunk in chunks:
        for event in chunk.events:
            folded.add(event)
    return folded


def said(raw: bytes) -> dict[str, Json]:
    """The message that a whole answer folds into."""
    return fold([decode_completion(raw)]).message()


def called(*calls: Json) -> Any:
    """The tool calls that a message with *calls* folds into."""
    return said(completion({**MESSAGE, "content": None, "tool_calls": list(calls)}))["tool_calls"]


def failure(raw: bytes) -> UpstreamError:
    """The failure of an answer, which must be the same whole and as a chunk."""
    with pytest.raises(UpstreamError) as whole:
        decode_completion(raw)
    with pytest.raises(UpstreamError) as chunk:
        decode_chunk(raw)
    assert (whole.value.kind, whole.value.message) == (chunk.value.kind, chunk.value.message)
    return whole.value


@pytest.mark.parametrize(
    "message",
    [
        MESSAGE,
        {**MESSAGE, "content": ""},
        {**MESSAGE, "content": None},
        {**MESSAGE, "content": None, "refusal": "No."},
        {**MESSAGE, "content": None, "tool_calls": [CALL]},
        {**MESSAGE, "tool_calls": [CALL, {**CALL, "id": "call_2"}]},
        {
            **MESSAGE,
            "content": None,
            "tool_calls": [{"id": "c", "type": "custom", "custom": {"name": "n", "input": ""}}],
        },
        {**MESSAGE, "content": None, "tool_calls": [{**CALL, "extra_content": {"google": {"signature": "x"}}}]},
        {**MESSAGE, "reasoning_content": "Hm"},
        {**MESSAGE, "reasoning": "Hm", "reasoning_details": [{"type": "reasoning.text", "text": "Hm"}]},
        {**MESSAGE, "annotations": [], "function_call": FUNCTION},
    ],
)
def test_a_whole_answer_folds_into_its_own_message(message: dict[str, Json]) -> None:
    assert message == said(completion(message))
    assert message == fold([decode_chunk(completion(message))]).message()


def test_fields_of_null_and_a_missing_role_or_refusal_are_put_right() -> None:
    assert MESSAGE == said(completion({"content": "Hi", "audio": None, "function_call": None, "tool_calls": None}))
    assert MESSAGE == said(completion({**MESSAGE, "role": "model", "tool_calls": []}))


def test_a_whole_answer_tells_its_ending() -> None:
    body = {
        "choices": [{"message": MESSAGE, "finish_reason": "length"}],
        "usage": {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3},
        "model": "gpt-x-2",
        "system_fingerprint": "fp_1",
        "service_tier": "flex",
    }
    chunk = decode_completion(orjson.dumps(body))

    assert ("length", Usage(1, 2, 3), "gpt-x-2", "fp_1", "flex") == (
        chunk.finish_reason,
        chunk.usage,
        chunk.model,
        chunk.fingerprint,
        chunk.service_tier,
    )


@pytest.mark.parametrize("value", [None, "", 1, [], {}])
def test_a_model_fingerprint_or_tier_that_is_no_text_is_none(value: Json) -> None:
    body = {"choices": [{"message": MESSAGE}], "model": value, "system_fingerprint": value, "service_tier": value}
    chunk = decode_completion(orjson.dumps(body))

    assert (None, None, None) == (chunk.model, chunk.fingerprint, chunk.service_tier)


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        *[(reason, reason) for reason in sorted(FINISH_REASONS)],
        ("max_tokens", "length"),
        ("MAX_TOKENS", "length"),
        ("SAFETY", "content_filter"),
        ("tool_use", "tool_calls"),
        ("STOP", "stop"),
        ("end_turn", "stop"),
        ("eos", "stop"),
        ("error", "stop"),
        (None, None),
        ("", None),
        (1, None),
        (False, None),
        ([], None),
        (["stop"], None),
        ({"type": "stop"}, None),
    ],
)
def test_a_finish_reason_is_one_of_openais_or_none(value: Json, reason: str | None) -> None:
    assert reason == decode_completion(completion(finish_reason=value)).finish_reason
    assert reason == decode_chunk(completion(finish_reason=value)).finish_reason


@pytest.mark.parametrize(
    ("value", "usage"),
    [
        (None, None),
        ({}, None),
        ([], None),
        ("many", None),
        (7, None),
        ({"prompt_tokens": 3}, Usage(3, 0, 3)),
        ({"completion_tokens": 4}, Usage(0, 4, 4)),
        ({"prompt_tokens": 3, "completion_tokens": 4}, Usage(3, 4, 7)),
        ({"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 9}, Usage(3, 4, 9)),
        ({"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": None}, Usage(3, 4, 7)),
        ({"prompt_tokens": "3", "completion_tokens": None, "total_tokens": -1}, Usage(0, 0, 0)),
        ({"prompt_tokens": 2**64 - 1, "completion_tokens": 4}, Usage(0, 4, 4)),
        ({"prompt_tokens": True, "completion_tokens": 4.0, "total_tokens": [1]}, Usage(0, 0, 0)),
        (
            {"prompt_tokens": 3, "cost": 0.1, "x": None, "details": {"a": 1}},
            Usage(3, 0, 3, {"cost": 0.1, "details": {"a": 1}}),
        ),
    ],
)
def test_usage_has_three_counts_whatever_came(value: Json, usage: Usage | None) -> None:
    raw = orjson.dumps({"choices": [{"message": MESSAGE}], "usage": value})

    assert usage == decode_completion(raw).usage
    assert usage == decode_chunk(orjson.dumps({"choices": [], "usage": value})).usage


# --- Texts of odd shapes -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ([{"type": "text", "text": "He"}, {"type": "text", "text": "llo"}], "Hello"),
        (
            [{"type": "thinking", "thinking": [{"type": "text", "text": "Hm"}]}, {"type": "text", "text": "Hello"}],
            "Hello",
        ),
        ([None, "x", {"text": 1}, {"type": "text"}, {"text": "Hello"}], "Hello"),
        ([], ""),
        ({"answer": 42}, '{"answer":42}'),
        (42, "42"),
        (1.5, "1.5"),
        (True, None),
        (None, None),
    ],
)
def test_a_content_of_another_shape_is_put_right(content: Json, text: str | None) -> None:
    assert text == said(completion({**MESSAGE, "content": content}))["content"]


# --- Logprobs ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("message", "bearer"),
    [
        (MESSAGE, TextDelta("Hi", "content", {"content": [LOGPROB]})),
        ({**MESSAGE, "reasoning": "Hm"}, TextDelta("Hi", "content", {"content": [LOGPROB]})),
        ({**MESSAGE, "content": None, "refusal": "No."}, TextDelta("No.", "refusal", {"content": [LOGPROB]})),
        ({**MESSAGE, "content": None, "reasoning": "Hm"}, TextDelta("Hm", "reasoning", {"content": [LOGPROB]})),
        ({**MESSAGE, "content": None, "tool_calls": [CALL]}, TextDelta("", "content", {"content": [LOGPROB]})),
    ],
)
def test_logprobs_go_with_one_text_and_change_no_message(message: dict[str, Json], bearer: TextDelta) -> None:
    chunk = decode_completion(completion(message, logprobs={"content": [LOGPROB]}))

    assert [bearer] == [event for event in chunk.events if type(event) is TextDelta and event.logprobs is not None]
    assert message == fold([chunk]).message()


@pytest.mark.parametrize("logprobs", [None, [], [LOGPROB], "x", 1, True])
def test_logprobs_that_are_no_object_are_left_out(logprobs: Json) -> None:
    assert fold([decode_completion(completion(logprobs=logprobs))]).logprobs is None


# --- Tool calls of odd shapes --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "text"),
    [({"at": 1}, '{"at":1}'), ({}, "{}"), ([1], "[1]"), (1, "1"), (True, "true"), ("", ""), ("{}", "{}")],
)
def test_arguments_that_are_no_text_become_their_json(arguments: Json, text: str) -> None:
    [call] = called({**CALL, "function": {**FUNCTION, "arguments": arguments}})

    assert {**CALL, "function": {"name": "look", "arguments": text}} == call


def test_arguments_of_null_say_nothing() -> None:
    pieces = [
        {"index": 0, "id": "call_1", "type": "function", "function": {"name": "look", "arguments": None}},
        {"index": 0, "id": None, "function": {"name": None, "arguments": '{"at": 1}'}},
    ]
    chunks = [decode_chunk(orjson.dumps({"choices": [{"delta": {"tool_calls": [piece]}}]})) for piece in pieces]

    assert [CALL] == fold(chunks).message()["tool_calls"]


def test_an_id_or_name_that_is_no_text_becomes_its_json() -> None:
    [call] = called({"id": 7, "type": "function", "function": {"name": 5, "arguments": "{}"}})

    assert {"id": "7", "type": "function", "function": {"name": "5", "arguments": "{}"}} == call


@pytest.mark.parametrize("index", [{}, {"index": None}, {"index": "0"}, {"index": 1.5}, {"index": True}])
def test_calls_without_a_proper_index_keep_their_places(index: dict[str, Json]) -> None:
    assert [{**CALL, "id": "a"}, {**CALL, "id": "b"}] == called(
        {**CALL, "id": "a", **index}, {**CALL, "id": "b", **index}
    )


def test_the_index_of_a_call_decides_its_place_and_is_no_part_of_it() -> None:
    assert [{**CALL, "id": "a"}, {**CALL, "id": "b"}] == called(
        {**CALL, "id": "b", "index": 5}, {**CALL, "id": "a", "index": 2}
    )


@pytest.mark.parametrize(
    "calls",
    [
        5,
        1.5,
        True,
        "look",
        {"0": CALL},
        ["look"],
        [None],
        [5],
        [[CALL]],
        [{**CALL, "function": "look"}],
        [{**CALL, "function": 5}],
        [{**CALL, "function": [FUNCTION]}],
        [{"id": "1", "type": "custom", "custom": "sing"}],
    ],
)
def test_tool_calls_that_cannot_be_understood_are_garbled(calls: Json) -> None:
    assert "garbled" == failure(completion({**MESSAGE, "tool_calls": calls})).kind


def test_missing_ids_types_and_arguments_are_made_up() -> None:
    message = complete_calls(
        {"tool_calls": [{"function": {"name": "look"}}, {"id": "", "type": "", "function": FUNCTION}]}
    )
    first, second = message["tool_calls"]

    assert ("function", {"name": "look", "arguments": "{}"}) == (first["type"], first["function"])
    assert ("function", FUNCTION) == (second["type"], second["function"])
    assert first["id"].startswith("call_")
    assert first["id"] != second["id"]


@pytest.mark.parametrize(
    "message",
    [
        MESSAGE,
        {**MESSAGE, "tool_calls": [CALL]},
        {**MESSAGE, "tool_calls": [{"id": "1", "type": "custom", "custom": {"name": "n", "input": ""}}]},
    ],
)
def test_a_whole_message_is_not_changed(message: dict[str, Json]) -> None:
    assert message == complete_calls(message)


# --- Chunks --------------------------------------------------------------------------------------------------------


def chunk_of(**fields: Json) -> Chunk:
    return decode_chunk(orjson.dumps({"object": "chat.completion.chunk", **fields}))


def test_a_chunk_gives_its_delta_and_ending() -> None:
    chunk = chunk_of(
        choices=[{"index": 0, "delta": {"role": "assistant", "content": "Hi"}, "finish_reason": "stop"}], model="m"
    )

    assert Chunk((TextDelta("Hi"),), "stop", None, "m") == chunk


@pytest.mark.parametrize("choices", [[], None, {}, "x", [None], ["x"], [[]]])
def test_a_chunk_without_a_choice_bears_usage_or_nothing(choices: Json) -> None:
    usage = {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}

    assert Chunk((), None, Usage(1, 2, 3)) == chunk_of(choices=choices, usage=usage)
    assert Chunk() == chunk_of(choices=choices)
    assert Chunk() == chunk_of()


@pytest.mark.parametrize("delta", [{}, None, "", [], {"role": "assistant"}, {"role": "assistant", "content": None}])
def test_an_empty_delta_gives_no_event(delta: Json) -> None:
    assert () == chunk_of(choices=[{"delta": delta}]).events
    assert () == chunk_of(choices=[{}]).events


def test_a_whole_message_in_a_stream_is_its_delta() -> None:
    assert (TextDelta("Hi"),) == chunk_of(choices=[{"message": MESSAGE}]).events
    assert (TextDelta("Hi"),) == chunk_of(choices=[{"delta": {}, "message": MESSAGE}]).events


def test_fields_unknown_to_us_travel_on() -> None:
    assert (ExtraDelta({"annotations": [1]}),) == chunk_of(choices=[{"delta": {"annotations": [1], "x": None}}]).events


def test_the_later_ending_wins_where_it_says_something() -> None:
    first = Chunk((TextDelta("Hi"),), "length", Usage(1, 2, 3), "m", "fp", "flex")

    assert Chunk((), "length", Usage(1, 2, 3), "m", "fp", "flex") == merge_endings(first, Chunk())
    assert Chunk((), "stop", Usage(4, 5, 9), "n", "fq", "auto") == merge_endings(
        first, Chunk((), "stop", Usage(4, 5, 9), "n", "fq", "auto")
    )


# --- Failures ------------------------------------------------------------------------------------------------------

NO_JSON = {
    "empty": b"",
    "HTML": b"<html>Bad gateway</html>",
    "an event stream": b"data: {}\n\n",
    "cut off": b'{"choices":[{"message":{"content":"Hi"',
    "invalid UTF-8": b'{"a":"\xff"}',
    "a byte order mark": b"\xef\xbb\xbf{}",
    "NaN": b'{"a":NaN}',
    "1e999": b'{"a":1e999}',
    "a lone surrogate": b'{"a":"\\ud800"}',
    "a list": b"[]",
    "null": b"null",
    "a text": b'"Hi"',
    "too deep": b'{"a":' + b"[" * 250 + b"]" * 250 + b"}",
    "far too deep": b"[" * 100_000,
}


@pytest.mark.parametrize("raw", NO_JSON.values(), ids=NO_JSON.keys())
def test_an_answer_that_is_no_json_object_is_garbled(raw: bytes) -> None:
    assert ("garbled", 502, "upstream_error") == (failure(raw).kind, failure(raw).status, failure(raw).code)


def test_what_was_garbled_is_told_to_the_log_alone() -> None:
    error = failure(b"<html>10.0.0.1 is down</html>" + b" x" * 1000)

    assert error.detail.startswith("<html>10.0.0.1 is down</html>")
    assert 200 == len(error.detail)
    assert "10.0.0.1" not in error.message


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"choices": None},
        {"choices": []},
        {"choices": {}},
        {"choices": "x"},
        {"choices": [None]},
        {"choices": [[]]},
        {"choices": [{}]},
        {"choices": [{"message": None}]},
        {"choices": [{"message": "Hi"}]},
        {"choices": [{"text": "Hi"}]},
    ],
)
def test_a_whole_answer_without_a_choice_is_garbled(fields: dict[str, Json]) -> None:
    with pytest.raises(UpstreamError) as caught:
        decode_completion(orjson.dumps({"id": "x", **fields}))

    assert "garbled" == caught.value.kind


# {error within a 200: kind of failure}
ERRORS_WITHIN: list[tuple[Json, str]] = [
    ({"message": "overloaded"}, "server"),
    ({"message": "overloaded", "code": None}, "server"),
    ({"message": "overloaded", "code": "server_error"}, "server"),
    ({"message": "slow down", "code": 429}, "rate_limited"),
    ({"message": "no key", "code": 401}, "auth"),
    ({"message": "no credit", "code": 402}, "auth"),
    ({"message": "no model", "code": 404}, "unknown_model"),
    ({"message": "too long", "code": 400}, "rejected"),
    ({"message": "bad gateway", "code": 502}, "server"),
    ({"message": "odd", "code": 200}, "server"),
    ({"message": "odd", "code": 600}, "server"),
    ({"message": "odd", "code": True}, "server"),
    ({"message": "odd", "code": 1e300}, "server"),
    ({"code": 429}, "rate_limited"),
    ("overloaded", "server"),
    (["overloaded"], "server"),
    (True, "server"),
    (1, "server"),
]


@pytest.mark.parametrize(("error", "kind"), ERRORS_WITHIN)
def test_an_error_object_within_a_200_is_a_failure(error: Json, kind: str) -> None:
    assert kind == failure(orjson.dumps({"error": error})).kind
    assert kind == failure(orjson.dumps({"error": error, "choices": [{"message": MESSAGE, "delta": {}}]})).kind


@pytest.mark.parametrize("error", [None, False, "", {}, [], 0])
def test_an_empty_error_beside_an_answer_is_none(error: Json) -> None:
    raw = orjson.dumps({"error": error, "choices": [{"message": MESSAGE}]})

    assert MESSAGE == said(raw)


def test_a_rejection_within_a_200_has_its_own_words() -> None:
    error = failure(b'{"error":{"message":"Too long.","code":400,"param":"messages"}}')

    assert (400, "Too long.", "messages", "invalid_request") == (error.status, error.message, error.param, error.code)


@pytest.mark.parametrize(
    ("raw", "message", "param", "code"),
    [
        (b'{"error":{"message":"No.","param":"n","code":"bad"}}', "No.", "n", "bad"),
        (b'{"error":{"message":"No.","param":null,"code":null}}', "No.", None, "invalid_request"),
        (b'{"error":{"message":"No.","param":["n"],"code":400}}', "No.", None, "invalid_request"),
        (b'{"error":{"message":{"text":"No."}}}', '{"text":"No."}', None, "invalid_request"),
        (b'{"error":{}}', '{"error":{}}', None, "invalid_request"),
        (b'{"error":{"type":"x"}}', "The model's server refused the request.", None, "invalid_request"),
        (b'{"error":"No."}', "No.", None, "invalid_request"),
        (b'{"detail":"No."}', '{"detail":"No."}', None, "invalid_request"),
        (b"<html>No.</html>", "<html>No.</html>", None, "invalid_request"),
        (b"\xff", "\ufffd", None, "invalid_request"),
        (b"x " * 1000, "x " * 100, None, "invalid_request"),
        (b"", "The model's server refused the request.", None, "invalid_request"),
        (b"[1]", "[1]", None, "invalid_request"),
    ],
)
def test_a_rejection_has_the_upstreams_own_words_in_whatever_shape(
    raw: bytes, message: str, param: str | None, code: str
) -> None:
    error = decode_error(422, raw, None)

    assert ("rejected", 422, message, param, code) == (error.kind, error.status, error.message, error.param, error.code)


def test_the_status_of_the_answer_wins_over_the_code_within() -> None:
    assert "server" == decode_error(503, b'{"error":{"message":"x","code":400}}', None).kind


def test_retry_after_travels_with_the_failure() -> None:
    error = decode_error(429, b"slow down", 7.0)

    assert ("rate_limited", 7.0, {"Retry-After": "7"}) == (error.kind, error.retry_after, error.headers)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (None, None),
        ("0", 0.0),
        ("7", 7.0),
        ("7.5", 7.5),
        ("-5", 0.0),
        ("nan", 0.0),
        ("1e400", float("inf")),
        ("", None),
        ("soon", None),
        ("Mon, 00 Jan 2026 00:00:00 GMT", None),
        ("Mon, 01 Jan 99999999999999999999 00:00:00 GMT", None),
        ("Sun, 06 Nov 1994 08:49:00 GMT", 0.0),
    ],
)
def test_retry_after_is_seconds_from_now_on_and_never_less_than_none(value: str | None, seconds: float | None) -> None:
    assert seconds == decode_retry_after(value, 784_111_770.0)


@pytest.fixture(params=["UTC", "America/New_York", "Asia/Tokyo"])
def zone(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The machine stands in this time zone."""
    with monkeypatch.context() as context:
        context.setenv("TZ", request.param)
        time.tzset()
        yield
    time.tzset()


# The three forms of RFC 9110 section 5.6.7, all of them in GMT.
@pytest.mark.parametrize(
    "date", ["Sun, 06 Nov 1994 08:49:37 GMT", "Sunday, 06-Nov-94 08:49:37 GMT", "Sun Nov  6 08:49:37 1994"]
)
@pytest.mark.usefixtures("zone")
def test_date_in_retry_after_is_one_of_greenwich_in_each_of_its_forms(date: str) -> None:
    assert 7.0 == decode_retry_after(date, 784_111_770.0)


@pytest.mark.parametrize("levels", [240, 900, 100_000])
def test_an_error_of_any_depth_is_told(levels: int) -> None:
    raw = b'{"error":{"message":' + b"[" * levels + b"]" * levels + b"}}"

    assert "rejected" == decode_error(400, raw, None).kind


# --- Streamed and whole are the same -------------------------------------------------------------------------------


@st.composite
def pieces_of(draw: st.DrawFn, text: str) -> list[str]:
    """*text* cut anywhere."""
    places = sorted(draw(st.lists(st.integers(0, len(text)), max_size=4)))
    return [text[start:end] for start, end in zip([0, *places], [*places, len(text)], strict=True)]


@st.composite
def interleaved(draw: st.DrawFn, lanes: list[list[dict[str, Json]]]) -> list[dict[str, Json]]:
    """One list of all lanes' items; those of one lane stay in order."""
    lanes = [list(lane) for lane in lanes if lane]
    mixed = []
    while lanes:
        lane = draw(st.sampled_from(lanes))
        mixed.append(lane.pop(0))
        lanes = [lane for lane in lanes if lane]
    return mixed


@st.composite
def streamed_replies(draw: st.DrawFn) -> tuple[bytes, list[bytes]]:
    """A whole answer, and the same answer in chunks."""
    message: dict[str, Json] = {"role": "assistant", "content": draw(st.none() | st.text(min_size=1)), "refusal": None}
    for field in draw(st.sets(st.sampled_from(["refusal", "reasoning_content", "reasoning"]))):
        message[field] = draw(st.text(min_size=1))
    lanes: list[list[dict[str, Json]]] = [
        [{field: piece} for piece in draw(pieces_of(text))]
        for field, text in message.items()
        if field != "role" and text is not None
    ]
    tokens = draw(st.lists(st.builds(lambda text: {**LOGPROB, "token": text}, st.text()), max_size=4))
    logprobs = {"content": tokens, "refusal": None} if message["content"] is not None else None
    calls = draw(st.lists(st.tuples(st.text(min_size=1), st.text(min_size=1), st.text()), max_size=3))
    for index, (call_id, name, arguments) in enumerate(calls):
        head: Json = {"index": index, "id": call_id, "type": "function", "function": {"name": name, "arguments": ""}}
        tail: list[Json] = [{"index": index, "function": {"arguments": piece}} for piece in draw(pieces_of(arguments))]
        lanes.append([{"tool_calls": [piece]} for piece in (head, *tail)])
    if calls:
        message["tool_calls"] = [
            {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}
            for call_id, name, arguments in calls
        ]
    chunks: list[dict[str, Json]] = [{"choices": [{"index": 0, "delta": delta}]} for delta in draw(interleaved(lanes))]
    bearers = [chunk["choices"][0] for chunk in chunks if "content" in chunk["choices"][0]["delta"]]
    for choice in bearers[:-1]:
        choice["logprobs"] = {"content": tokens[:1], "refusal": None}
        tokens = tokens[1:]
    for choice in bearers[-1:]:
        choice["logprobs"] = {"content": tokens, "refusal": None}
    whole = {"choices": [{"index": 0, "message": message, "logprobs": logprobs, "finish_reason": "stop"}]}
    first = {"choices": [{"index": 0, "delta": {"role": "assistant"}}]}
    last = {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}
    return orjson.dumps(whole), [orjson.dumps(chunk) for chunk in (first, *chunks, last)]


@given(streamed_replies())
def test_a_streamed_answer_folds_into_the_same_message_as_a_whole_one(answer: tuple[bytes, list[bytes]]) -> None:
    raw, pieces = answer
    whole, streamed = fold([decode_completion(raw)]), fold(decode_chunk(piece) for piece in pieces)

    assert whole.message() == streamed.message()
    assert whole.logprobs == streamed.logprobs
    assert orjson.loads(raw)["choices"][0]["message"] == whole.message()


def test_a_stream_that_begins_with_an_empty_text_folds_into_null_beside_calls_and_refusals() -> None:
    first = chunk_of(choices=[{"delta": {"role": "assistant", "content": "", "refusal": None}}])
    refused = chunk_of(choices=[{"delta": {"refusal": "No."}}])
    calling = chunk_of(choices=[{"delta": {"tool_calls": [{"index": 0, **CALL}]}}])

    assert {**MESSAGE, "content": None, "refusal": "No."} == fold([first, refused]).message()
    assert {**MESSAGE, "content": None, "tool_calls": [CALL]} == fold([first, calling]).message()


# --- Anything at all -----------------------------------------------------------------------------------------------


def any_of(**fields: st.SearchStrategy[Json]) -> st.SearchStrategy[Json]:
    """An object with some of these fields, each right in shape or anything; or anything in its place."""
    optional = {name: JSON | right for name, right in fields.items()}
    return st.fixed_dictionaries({}, optional=optional) | st.dictionaries(st.sampled_from(sorted(fields)), JSON)


ANY_FUNCTION = any_of(name=st.text(), arguments=st.text(), input=st.text(), index=st.just(0))
ANY_CALL = any_of(index=st.integers(-1, 2), id=st.text(), type=st.text(), function=ANY_FUNCTION, custom=ANY_FUNCTION)
ANY_MESSAGE = any_of(
    role=st.just("assistant"),
    content=st.text() | st.lists(any_of(type=st.just("text"), text=st.text())),
    refusal=st.text(),
    reasoning=st.text(),
    tool_calls=st.lists(ANY_CALL | JSON, max_size=3),
    function_call=ANY_FUNCTION,
    annotations=st.lists(JSON),
)
ANY_CHOICE = any_of(
    message=ANY_MESSAGE,
    delta=ANY_MESSAGE,
    finish_reason=st.sampled_from(sorted(FINISH_REASONS)),
    logprobs=any_of(content=st.lists(JSON), refusal=st.lists(JSON)),
)
ANY_BODY = any_of(
    choices=st.lists(ANY_CHOICE, max_size=2),
    usage=any_of(prompt_tokens=st.integers(0, 9), completion_tokens=st.integers(0, 9), total_tokens=st.integers(0, 9)),
    model=st.text(),
    error=st.none() | any_of(message=st.text(), code=st.integers(0, 700) | st.text(), param=st.text()),
)
HEADING = Heading("x", 0, "a")


def check_answer(raw: bytes, folded: Fold) -> None:
    """Whatever came is a chunk that can be folded and passed on, or a failure of the table."""
    for decode in (decode_completion, decode_chunk):
        try:
            chunk = decode(raw)
        except UpstreamError:
            continue  # its kind is one of the table, or it could not have been made
        assert chunk.finish_reason is None or chunk.finish_reason in FINISH_REASONS
        for event in chunk.events:
            folded.add(event)
            encode_delta_chunk(HEADING, event)
    check_message(complete_calls(folded.message()))
    encode_completion(HEADING, Reply(complete_calls(folded.message()), "stop", folded.logprobs))


def check_message(message: Mapping[str, Json]) -> None:
    """The types that strict clients want."""
    assert "assistant" == message["role"]
    assert type(message["content"]) in (str, type(None))
    assert type(message["refusal"]) in (str, type(None))
    for call in message.get("tool_calls", ()):
        assert (str, str) == (type(call["id"]), type(call["type"]))
        function = call.get("function", {"name": "", "arguments": ""})
        assert str is type(function["arguments"])
        assert str is type(function.get("name", ""))


@given(st.lists(ANY_BODY, min_size=1, max_size=3))
@example([{"choices": [{"message": {"tool_calls": 5}}]}])
@example([{"choices": [{"delta": {"tool_calls": [{"function": {"name": []}}]}}]}])
def test_any_json_is_a_chunk_or_a_failure(bodies: list[Json]) -> None:
    folded = Fold()
    for body in bodies:
        check_answer(orjson.dumps(body), folded)


@given(st.lists(ANY_MESSAGE, min_size=1, max_size=3))
def test_any_message_is_folded_or_a_failure(messages: list[Json]) -> None:
    folded = Fold()
    for message in messages:
        check_answer(orjson.dumps({"choices": [{"message": message}]}), folded)


@given(st.lists(st.lists(ANY_CALL, max_size=2), min_size=1, max_size=4))
def test_any_tool_calls_are_folded_or_a_failure(pieces: list[list[Json]]) -> None:
    folded = Fold()
    for calls in pieces:
        check_answer(orjson.dumps({"choices": [{"delta": {"tool_calls": calls}, "message": {}}]}), folded)


@given(st.binary())
def test_any_bytes_are_a_chunk_or_a_failure(raw: bytes) -> None:
    check_answer(raw, Fold())


@given(st.integers(300, 599), st.binary() | JSON.map(orjson.dumps) | ANY_BODY.map(orjson.dumps))
def test_any_refusal_is_a_failure(status: int, raw: bytes) -> None:
    error = decode_error(status, raw, None)

    assert error.kind in UPSTREAM_FAILURES
    assert 400 <= error.status <= 599
    assert (str, True) == (type(error.message), bool(error.message))


def test_an_answer_of_the_greatest_depth_can_be_passed_on() -> None:
    deep: Json = "x"
    for _ in range(245):
        deep = [deep]
    raw = completion({**MESSAGE, "annotations": deep})

    check_answer(raw, Fold())
    assert deep == said(raw)["annotations"]
