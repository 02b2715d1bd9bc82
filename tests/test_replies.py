"""Deltas fold into the message that they spell, however it was cut."""

from __future__ import annotations

import copy
from collections.abc import Iterable

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import JSON

from picoclaw_trio.replies import MAX_COUNT, Delta, ExtraDelta, Fold, Reply, TextDelta, ToolCallDelta, Usage
from picoclaw_trio.shapes import Json


def fold(events: Iterable[Delta]) -> Fold:
    folded = Fold()
    for event in events:
        folded.add(event)
    return folded


def spell(*events: Delta) -> dict[str, Json]:
    """The message without the fields that are null."""
    return {name: value for name, value in fold(events).message().items() if value is not None and name != "role"}


def call(index: int = 0, id: str | None = None, name: str | None = None, arguments: str | None = None) -> ToolCallDelta:
    """A piece of a tool call, with what is given."""
    function = {key: value for key, value in (("name", name), ("arguments", arguments)) if value is not None}
    first: dict[str, Json] = {} if id is None else {"id": id, "type": "function"}
    return ToolCallDelta(index, {**first, **({"function": function} if function else {})})


def whole_call(id: str, name: str, arguments: str) -> dict[str, Json]:
    return {"id": id, "type": "function", "function": {"name": name, "arguments": arguments}}


def test_nothing_said_is_a_message_of_nulls() -> None:
    assert {"role": "assistant", "content": None, "refusal": None} == Fold().message()


def test_pieces_of_text_are_joined_in_order() -> None:
    assert {"content": "Hello"} == spell(TextDelta("He"), TextDelta(""), TextDelta("llo"))


def test_an_empty_text_was_said_all_the_same() -> None:
    assert {"content": ""} == spell(TextDelta(""))


@pytest.mark.parametrize("field", ["refusal", "reasoning_content", "reasoning"])
def test_an_empty_piece_of_another_field_says_nothing(field: str) -> None:
    assert {} == spell(TextDelta("", field))


def test_fields_grow_side_by_side() -> None:
    events = [TextDelta("H", "reasoning_content"), TextDelta("a"), TextDelta("m", "reasoning_content"), TextDelta("b")]

    assert {"reasoning_content": "Hm", "content": "ab"} == spell(*events)


def test_content_is_null_beside_a_refusal_or_a_call() -> None:
    assert {"refusal": "No."} == spell(TextDelta(""), TextDelta("No.", "refusal"))
    assert {"tool_calls": [whole_call("1", "look", "")]} == spell(TextDelta(""), call(0, "1", "look", ""))


def test_text_beside_a_refusal_or_a_call_stays() -> None:
    assert {"content": "I", "refusal": "No."} == spell(TextDelta("I"), TextDelta("No.", "refusal"))
    assert "I look." == spell(TextDelta("I look."), call(0, "1", "look", ""))["content"]


def test_arguments_of_calls_side_by_side_are_joined_each_with_its_own() -> None:
    events = [
        call(1, "b", "buy", ""),
        call(0, "a", "look", '{"x'),
        call(1, arguments='{"y":'),
        call(0, arguments='":1}'),
        call(1, arguments="2}"),
    ]

    assert [whole_call("a", "look", '{"x":1}'), whole_call("b", "buy", '{"y":2}')] == spell(*events)["tool_calls"]


def test_calls_stand_in_the_order_of_their_index() -> None:
    events = [call(index, str(index), "look", "") for index in (7, -1, 2)]

    assert ["-1", "2", "7"] == [call["id"] for call in spell(*events)["tool_calls"]]


@pytest.mark.parametrize(
    "again",
    [
        {"id": "a", "type": "function", "function": {"name": "look", "arguments": "}"}},
        {"id": "", "type": "", "function": {"name": "", "arguments": "}"}},
        {"id": None, "type": None, "function": {"name": None, "arguments": "}"}},
        {"function": {"arguments": "}"}},
    ],
)
def test_an_id_or_name_that_comes_again_or_empty_takes_nothing_back(again: dict[str, Json]) -> None:
    assert {"tool_calls": [whole_call("a", "look", "{}")]} == spell(call(0, "a", "look", "{"), ToolCallDelta(0, again))


def test_null_says_nothing() -> None:
    nulls = ToolCallDelta(0, {"id": None, "type": None, "function": {"name": None, "arguments": None}})

    assert {"tool_calls": [whole_call("a", "look", "{}")]} == spell(call(0, "a", "look", "{}"), nulls)
    assert {"tool_calls": [whole_call("a", "look", "{}")]} == spell(nulls, call(0, "a", "look", "{}"))


def test_the_input_of_a_custom_call_grows_too() -> None:
    events = [
        ToolCallDelta(0, {"id": "a", "type": "custom", "custom": {"name": "sing", "input": "la"}}),
        ToolCallDelta(0, {"custom": {"input": " la"}}),
    ]

    assert [{"id": "a", "type": "custom", "custom": {"name": "sing", "input": "la la"}}] == spell(*events)["tool_calls"]


@pytest.mark.parametrize(("first", "last"), [([1], [2]), ([1], []), (1, 0), (True, False), ("a", "b"), ("a", [1])])
def test_an_extra_field_has_its_last_value(first: Json, last: Json) -> None:
    assert {"extra": last} == spell(ExtraDelta({"extra": first}), ExtraDelta({"extra": last}))


def test_an_extra_field_of_null_takes_nothing_back() -> None:
    assert {"extra": 1} == spell(ExtraDelta({"extra": 1}), ExtraDelta({"extra": None}))


def test_a_function_call_of_old_is_joined_like_a_tool_call() -> None:
    events = [
        ExtraDelta({"function_call": {"name": "look", "arguments": ""}}),
        ExtraDelta({"function_call": {"arguments": '{"x'}}),
        ExtraDelta({"function_call": {"arguments": '":1}'}}),
    ]

    assert {"function_call": {"name": "look", "arguments": '{"x":1}'}} == spell(*events)


LOGPROBS: list[Json] = [{"token": token, "logprob": -0.5, "bytes": None, "top_logprobs": []} for token in "abc"]


def test_logprobs_are_joined_in_order() -> None:
    events = [
        TextDelta("a", logprobs={"content": [LOGPROBS[0]], "refusal": None}),
        TextDelta("-"),
        TextDelta("b", logprobs={"content": LOGPROBS[1:], "refusal": None}),
    ]

    assert {"content": LOGPROBS, "refusal": None} == fold(events).logprobs


def test_logprobs_of_null_take_nothing_back() -> None:
    events = [
        TextDelta("a", logprobs={"content": LOGPROBS}),
        TextDelta("", logprobs={"content": None, "refusal": None}),
    ]

    assert {"content": LOGPROBS, "refusal": None} == fold(events).logprobs


def test_without_logprobs_there_are_none() -> None:
    assert fold([TextDelta("a")]).logprobs is None


def test_an_empty_text_that_bears_logprobs_says_nothing() -> None:
    folded = fold([TextDelta("", logprobs={"content": LOGPROBS})])

    assert (None, {"content": LOGPROBS}) == (folded.message()["content"], folded.logprobs)


def test_the_text_of_a_reply_is_its_content() -> None:
    assert ["Hi", "", ""] == [Reply(message, "stop").text for message in ({"content": "Hi"}, {"content": None}, {})]


EVENTS = st.one_of(
    st.builds(TextDelta, st.text(), st.sampled_from(["content", "refusal", "reasoning"])),
    st.builds(TextDelta, st.text(), logprobs=st.dictionaries(st.sampled_from(["content", "refusal", "x"]), JSON)),
    st.builds(
        ToolCallDelta,
        st.integers(-1, 2),
        st.dictionaries(
            st.sampled_from(["id", "type", "function", "custom", "arguments", "input"]),
            JSON | st.dictionaries(st.sampled_from(["name", "arguments", "input"]), JSON),
        ),
    ),
    st.builds(ExtraDelta, st.dictionaries(st.sampled_from(["annotations", "function_call", "arguments"]), JSON)),
)


@given(st.lists(EVENTS, max_size=6))
def test_any_events_fold_and_are_not_changed_by_it(events: list[Delta]) -> None:
    before = copy.deepcopy(events)
    folded = fold(events)
    message, logprobs = folded.message(), folded.logprobs

    assert message == folded.message()
    assert before == events
    assert (message, logprobs) == (fold(before).message(), fold(before).logprobs)


@given(st.lists(EVENTS, max_size=4), st.lists(EVENTS, max_size=4))
def test_a_message_does_not_grow_after_it_was_given(events: list[Delta], more: list[Delta]) -> None:
    folded = fold(events)
    message = folded.message()
    before = copy.deepcopy(message)
    for event in more:
        folded.add(event)

    assert before == message


def test_a_megabyte_of_arguments_in_small_pieces_is_whole() -> None:
    folded = fold(call(0, arguments="abcd") for _ in range(250_000))

    assert "abcd" * 250_000 == folded.message()["tool_calls"][0]["function"]["arguments"]


def add(*details: Json) -> Json:
    """The detail of several usages, added and written as JSON."""
    usage = Usage(1, 1, 2, {"x": details[0]})
    for detail in details[1:]:
        usage = usage.plus(Usage(1, 1, 2, {"x": detail}))
    return orjson.loads(orjson.dumps(dict(usage.details)))["x"]


@pytest.mark.parametrize(
    ("details", "total"),
    [
        ([1, 2, 3], 6),
        ([0.5, 1], 1.5),
        ([{"a": {"b": 1}}, {"a": {"b": 2, "c": 3}}], {"a": {"b": 3, "c": 3}}),
        (["low", "high"], "high"),
        ([1, None, True, 2], 2),
        ([MAX_COUNT - 1, 1], MAX_COUNT),
        ([MAX_COUNT, 2], 2),
        ([2**63, 2**63], 2**63),
        ([2**64 - 1, 2**64 - 1, 7], 7),
        ([-(2**63), -(2**63)], -(2**63)),
        ([1e308, 1e308], 1e308),
    ],
)
def test_details_of_usage_are_added_as_long_as_they_are_counts(details: list[Json], total: Json) -> None:
    assert total == add(*details)
