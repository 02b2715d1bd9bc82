"""Text from anywhere, made fit to be shown."""

from __future__ import annotations

import unicodedata

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from picoclaw_trio.visible import MAX_LINE, one_line, pad, short_arguments, visible, visible_json


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain text, \u00e9, \U0001f99e\u200d, \u05d0", "plain text, \u00e9, \U0001f99e\u200d, \u05d0"),
        ("one\n\ttwo", "one\n\ttwo"),
        ("one\r\ntwo\rthree", "one\ntwo^Mthree"),
        ("\x1b[2J\x1b]0;title\x07", "^[[2J^[]0;title^G"),
        ("\x00\x08\x0b\x7f", "^@^H^K^?"),
        ("\x85\x9b31m", "<U+0085><U+009B>31m"),
        ("\u202eabc\u2069", "<U+202E>abc<U+2069>"),
    ],
)
def test_orders_are_spelled_out(text: str, shown: str) -> None:
    assert shown == visible(text)


@given(st.text())
def test_nothing_that_is_shown_is_a_control_character(text: str) -> None:
    assert {letter for letter in visible(text) if unicodedata.category(letter) == "Cc"} <= {"\n", "\t"}


@given(st.text() | st.text(alphabet="\x7f\x85\x9b\u061c\u200f\u2028\u2029\u202e\u2069é"))
def test_json_that_is_shown_is_the_same_without_orders(text: str) -> None:
    shown = visible_json(orjson.dumps({text: [text]}).decode())

    assert {text: [text]} == orjson.loads(shown)
    assert shown == visible(shown)
    assert [shown] == shown.splitlines()
    assert set("\u061c\u200e\u200f").isdisjoint(shown)


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [
        ({}, ""),
        ({"path": "notes/todo.md"}, "notes/todo.md"),
        ({"path": "a", "from": 3, "all": True, "to": None}, "a 3"),
        ({"program": "git", "arguments": ["log", "-1"]}, "git log -1"),
        ({"path": "a", "content": "one\n two  three " + "x" * 99}, "a one two three " + "x" * 25 + "…"),
        ({"a": {"b": {"c": {"d": {"e": "too deep"}}}}}, ""),
        ("text", "text"),
        ([["x"] * 99], "x x x x x x x x"),
    ],
)
def test_call_is_about_the_values_of_its_arguments(arguments: object, shown: str) -> None:
    assert shown == short_arguments(orjson.dumps(arguments).decode())


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [("", ""), ("{broken", "{broken"), ('"' + "x" * 200_000 + '"', '"' + "x" * 38 + "…"), ("[" * 2000, "[" * 39 + "…")],
)
def test_arguments_that_are_no_json_are_shown_as_they_are(arguments: str, shown: str) -> None:
    assert shown == short_arguments(arguments)


@given(st.text(), st.integers(1, 200))
def test_one_line_is_one_line(text: str, length: int) -> None:
    line = one_line(text, length)

    assert len(line) <= length
    assert "\n" not in line
    assert len(short_arguments(text)) <= MAX_LINE


@pytest.mark.parametrize(
    ("text", "blanks"),
    [
        ("abcd", 2),
        ("\u4f60\u597d", 2),
        ("\U0001f99e", 4),
        ("e\u0301", 5),
        ("caf\u00e9", 2),
        ("longer", 0),
        ("longest", 0),
    ],
)
def test_text_is_padded_to_columns_of_a_terminal(text: str, blanks: int) -> None:
    assert text + blanks * " " == pad(text, 6)
