"""Tool calls in pieces, joined as official SDKs join them."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from picoclaw_trio.call_pieces import CallPieces
from picoclaw_trio.replies import ToolCallDelta


def join(pieces: list[ToolCallDelta]) -> list[dict[str, Any]]:
    """What a client makes of the pieces: strings of one index are put together, a type replaces the one before."""
    calls: list[dict[str, Any]] = []
    for piece in pieces:
        assert piece.index <= len(calls)
        if piece.index == len(calls):
            calls.append({"id": "", "type": "", "name": "", "arguments": ""})
        call, told = calls[piece.index], piece.call
        call["id"] += told.get("id", "")
        call["type"] = told.get("type", call["type"])
        for name, text in told.get("function", {}).items():
            call[name] += text
    return calls


def mend(*pieces: tuple[int, dict[str, Any]]) -> list[dict[str, Any]]:
    calls = CallPieces()
    return join([calls.mend(ToolCallDelta(index, call)) for index, call in pieces])


def function(arguments: str = "", name: str | None = None) -> dict[str, Any]:
    return {"function": {"arguments": arguments, **({} if name is None else {"name": name})}}


LOOK = {"id": "a", "type": "function", "name": "look", "arguments": '{"x": 1}'}
HEAR = {"id": "b", "type": "function", "name": "hear", "arguments": "{}"}
WAYS: dict[str, list[tuple[int, dict[str, Any]]]] = {
    "as OpenAI does": [
        (0, {"id": "a", "type": "function", **function("", "look")}),
        (0, function('{"x"')),
        (0, function(": 1}")),
        (1, {"id": "b", "type": "function", **function("", "hear")}),
        (1, function("{}")),
    ],
    "whole calls": [
        (0, {"id": "a", "type": "function", **function('{"x": 1}', "look")}),
        (1, {"id": "b", "type": "function", **function("{}", "hear")}),
    ],
    "everything repeated": [
        (0, {"id": "a", "type": "function", **function('{"x"', "look")}),
        (0, {"id": "a", "type": "function", **function(": 1}", "look")}),
        (1, {"id": "b", "type": "function", **function("{}", "hear")}),
    ],
    "empty strings afterwards": [
        (0, {"id": "a", "type": "function", **function('{"x"', "look")}),
        (0, {"id": "", "type": "", **function(": 1}", "")}),
        (1, {"id": "b", "type": "", **function("{}", "hear")}),
    ],
    "one index for all": [
        (0, {"id": "a", "type": "function", **function('{"x"', "look")}),
        (0, function(": 1}")),
        (0, {"id": "b", "type": "function", **function("{}", "hear")}),
    ],
    "counted from one": [
        (1, {"id": "a", "type": "function", **function('{"x": 1}', "look")}),
        (2, {"id": "b", "type": "function", **function("{}", "hear")}),
    ],
    "name after the id": [
        (0, {"id": "a"}),
        (0, {"type": "function", **function('{"x": 1}', "look")}),
        (1, {"id": "b", **function("{}", "hear")}),
    ],
    "interleaved": [
        (0, {"id": "a", "type": "function", **function('{"x"', "look")}),
        (1, {"id": "b", "type": "function", **function("{", "hear")}),
        (0, function(": 1}")),
        (1, function("}")),
    ],
}


@pytest.mark.parametrize("way", WAYS)
def test_calls_are_whole_in_whatever_way_they_come(way: str) -> None:
    assert [LOOK, HEAR] == mend(*WAYS[way])


def test_missing_id_is_made_once_and_no_later_one_replaces_it() -> None:
    (call,) = mend((0, function("{", "look")), (0, {"id": "late", **function("}")}))

    assert call["id"].startswith("call_")
    assert ("look", "{}", "function") == (call["name"], call["arguments"], call["type"])


def test_made_ids_differ() -> None:
    first, second = mend((0, function("{}", "look")), (1, function("{}", "look")))

    assert first["id"] != second["id"]


def test_type_and_further_fields_of_a_call_stay_as_they_are() -> None:
    calls = CallPieces()
    piece = ToolCallDelta(0, {"id": "a", "type": "custom", "custom": {"name": "sh", "input": "ls"}, "extra": 1})

    assert piece == calls.mend(piece)


@given(st.lists(st.tuples(st.text("xyz", max_size=3), st.booleans()), min_size=1, max_size=8))
def test_arguments_are_joined_unchanged(pieces: list[tuple[str, bool]]) -> None:
    (call,) = mend(*((0, {"id": "a" if repeats else None, **function(text, "look")}) for text, repeats in pieces))

    assert "".join(text for text, _ in pieces) == call["arguments"]
    assert "look" == call["name"]
