"""Our own JSON: all that strict clients require is there, always."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types import Model
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from strategies import JSON

from picoclaw_trio import answers
from picoclaw_trio.answers import Heading
from picoclaw_trio.errors import (
    UPSTREAM_FAILURES,
    AuthError,
    BusyError,
    GatewayError,
    InternalError,
    RequestError,
    StateError,
    UpstreamError,
)
from picoclaw_trio.replies import Delta, ExtraDelta, Reply, TextDelta, ToolCallDelta, Usage
from picoclaw_trio.shapes import Json

HEADING = Heading("chatcmpl-1", 1_700_000_000, "qwen")
CALL: dict[str, Json] = {"id": "call_1", "type": "function", "function": {"name": "look", "arguments": "{}"}}
MESSAGE: dict[str, Json] = {"role": "assistant", "content": "Hi", "refusal": None}
LOGPROB: dict[str, Json] = {"token": "Hi", "logprob": -0.1, "bytes": [72, 105], "top_logprobs": []}
USAGE = Usage(3, 4, 7, {"completion_tokens_details": {"reasoning_tokens": 2}, "cost": 0.1})

REPLIES = {
    "text": Reply(MESSAGE, "stop"),
    "all there is": Reply(MESSAGE, "length", {"content": [LOGPROB], "refusal": None}, USAGE, "qwen", "m", "fp", "flex"),
    "logprobs without refusal": Reply(MESSAGE, "stop", {"content": [LOGPROB]}),
    "tool calls": Reply({**MESSAGE, "content": None, "tool_calls": [CALL]}, "tool_calls"),
    "a refusal": Reply({**MESSAGE, "content": None, "refusal": "No."}, "stop"),
    "a field of the upstream's": Reply({**MESSAGE, "reasoning_content": "Hm", "annotations": []}, "stop"),
}
DELTAS: dict[str, tuple[Delta, dict[str, Json]]] = {
    "text": (TextDelta("Hi"), {"content": "Hi"}),
    "a refusal": (TextDelta("No", "refusal"), {"refusal": "No"}),
    "reasoning": (TextDelta("Hm", "reasoning_content"), {"reasoning_content": "Hm"}),
    "a call": (ToolCallDelta(1, CALL), {"tool_calls": [{"index": 1, **CALL}]}),
    "a piece of a call": (
        ToolCallDelta(0, {"function": {"arguments": '{"'}}),
        {"tool_calls": [{"index": 0, "function": {"arguments": '{"'}}]},
    ),
    "an extra": (ExtraDelta({"annotations": [1]}), {"annotations": [1]}),
}
ALL_REPLIES = pytest.mark.parametrize("reply", REPLIES.values(), ids=REPLIES.keys())


def check_has(value: Mapping[str, Json], names: Sequence[str]) -> None:
    assert [] == [name for name in names if name not in value]


@ALL_REPLIES
def test_a_completion_has_every_field_that_is_required(reply: Reply) -> None:
    completion = orjson.loads(answers.encode_completion(HEADING, reply))

    check_has(completion, ["id", "object", "created", "model", "choices"])
    assert ("chatcmpl-1", "chat.completion", 1_700_000_000, "qwen") == (
        completion["id"],
        completion["object"],
        completion["created"],
        completion["model"],
    )
    [choice] = completion["choices"]
    check_has(choice, ["index", "message", "logprobs", "finish_reason"])
    check_has(choice["message"], ["role", "content", "refusal"])
    assert (0, reply.message, reply.finish_reason) == (choice["index"], choice["message"], choice["finish_reason"])
    if choice["logprobs"] is not None:
        check_has(choice["logprobs"], ["content", "refusal"])


@ALL_REPLIES
def test_the_sdk_finds_a_completion_valid(reply: Reply) -> None:
    raw = answers.encode_completion(HEADING, reply)

    assert reply.finish_reason == ChatCompletion.model_validate_json(raw).choices[0].finish_reason


def test_usage_tier_and_fingerprint_are_told_where_the_upstream_told_them() -> None:
    told = orjson.loads(answers.encode_completion(HEADING, REPLIES["all there is"]))
    silent = orjson.loads(answers.encode_completion(HEADING, REPLIES["text"]))

    counts = {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}
    assert {**counts, "completion_tokens_details": {"reasoning_tokens": 2}, "cost": 0.1} == told["usage"]
    assert ("flex", "fp") == (told["service_tier"], told["system_fingerprint"])
    assert {"id", "object", "created", "model", "choices"} == set(silent)


def check_chunk(raw: bytes) -> Any:
    """The only choice of a chunk, once all required fields were found in it."""
    chunk = orjson.loads(raw)
    ChatCompletionChunk.model_validate_json(raw)
    assert {
        "id": "chatcmpl-1",
        "object": "chat.completion.chunk",
        "created": 1_700_000_000,
        "model": "qwen",
        "choices": chunk["choices"],
    } == chunk
    [choice] = chunk["choices"]
    assert ["index", "delta", "logprobs", "finish_reason"] == list(choice)
    assert 0 == choice["index"]
    return choice


def test_the_first_chunk_tells_the_role_and_no_text() -> None:
    choice = check_chunk(answers.encode_role_chunk(HEADING))

    assert ({"role": "assistant", "content": ""}, None) == (choice["delta"], choice["finish_reason"])


@pytest.mark.parametrize(("event", "delta"), DELTAS.values(), ids=DELTAS.keys())
def test_a_chunk_has_every_field_that_is_required(event: Delta, delta: dict[str, Json]) -> None:
    choice = check_chunk(answers.encode_delta_chunk(HEADING, event))

    assert (delta, None, None) == (choice["delta"], choice["logprobs"], choice["finish_reason"])


def test_a_chunk_bears_the_logprobs_of_its_text() -> None:
    choice = check_chunk(answers.encode_delta_chunk(HEADING, TextDelta("Hi", logprobs={"content": [LOGPROB]})))

    assert {"content": [LOGPROB], "refusal": None} == choice["logprobs"]


@pytest.mark.parametrize("reason", ["stop", "length", "tool_calls", "content_filter", "function_call"])
def test_the_last_choice_tells_why_the_model_stopped(reason: str) -> None:
    choice = check_chunk(answers.encode_finish_chunk(HEADING, Reply(MESSAGE, reason)))

    assert ({}, reason) == (choice["delta"], choice["finish_reason"])


def test_what_the_upstream_told_of_the_whole_is_on_every_chunk() -> None:
    told = {"service_tier": "flex", "system_fingerprint": "fp"}
    heading = Heading("chatcmpl-1", 5, "qwen", answers.told_of_the_whole(REPLIES["all there is"]))
    chunks = [
        answers.encode_role_chunk(heading),
        answers.encode_delta_chunk(heading, TextDelta("Hi")),
        answers.encode_finish_chunk(heading, REPLIES["text"]),
        answers.encode_usage_chunk(heading, USAGE),
    ]

    assert [told] * 4 == [{name: orjson.loads(chunk)[name] for name in told} for chunk in chunks]
    assert {} == answers.told_of_the_whole(REPLIES["text"])


def test_the_usage_chunk_has_no_choice() -> None:
    raw = answers.encode_usage_chunk(HEADING, Usage(3, 4, 7))
    usage = ChatCompletionChunk.model_validate_json(raw).usage

    assert usage is not None
    assert (3, 4, 7) == (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens)
    assert [] == orjson.loads(raw)["choices"]


ERRORS: list[GatewayError] = [
    RequestError("No.", "messages[2].role", "invalid_value"),
    RequestError("No."),
    AuthError(),
    BusyError("Full.", "overloaded"),
    StateError("disk full"),
    InternalError("req_1"),
    *[UpstreamError(kind) for kind in UPSTREAM_FAILURES],
    UpstreamError.from_status(422, message="No.", param="n", code="bad_n", retry_after=None),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: f"{type(error).__name__} {error.code}")
def test_an_error_has_its_four_fields_and_nothing_else(error: GatewayError) -> None:
    body = orjson.loads(answers.encode_error(error))

    assert {"error"} == set(body)
    assert ["message", "type", "param", "code"] == list(body["error"])
    assert (str, str) == (type(body["error"]["message"]), type(body["error"]["type"]))
    assert type(body["error"]["param"]) in (str, type(None))
    assert type(body["error"]["code"]) in (str, type(None))
    assert "disk full" not in body["error"]["message"]


@given(st.text(), st.none() | st.text(), st.none() | st.text())
def test_any_words_of_an_error_come_out_as_they_are(message: str, param: str | None, code: str | None) -> None:
    told = orjson.loads(answers.encode_error(RequestError(message, param, code)))["error"]

    assert {"message": message, "type": "invalid_request_error", "param": param, "code": code} == told


def test_models_are_a_list_with_every_field_that_is_required() -> None:
    row = {"object": "model", "created": 5, "owned_by": "picoclaw"}

    assert {"object": "list", "data": [{"id": "a", **row}, {"id": "b/c", **row}]} == orjson.loads(
        answers.encode_models(["a", "b/c"], 5, "picoclaw")
    )
    assert {"object": "list", "data": []} == orjson.loads(answers.encode_models([], 5, "picoclaw"))


def test_a_model_has_every_field_that_is_required() -> None:
    raw = answers.encode_model("a", 5, "picoclaw")

    assert {"id": "a", "object": "model", "created": 5, "owned_by": "picoclaw"} == orjson.loads(raw)
    assert "a" == Model.model_validate_json(raw).id


@given(st.dictionaries(st.text(), JSON), st.text())
def test_any_message_comes_out_as_it_is(fields: dict[str, Json], content: str) -> None:
    message = {**fields, **MESSAGE, "content": content}

    assert message == orjson.loads(answers.encode_completion(HEADING, Reply(message, "stop")))["choices"][0]["message"]
