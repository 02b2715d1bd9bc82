"""YAML as texts, lists and objects."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable
from typing import Any

import pytest

from picoclaw_trio.plain_yaml import MAX_DEPTH, NotYamlError, read_yaml


def count_calls(run: Callable[[], object]) -> int:
    calls = 0

    def note(*_: object) -> None:
        nonlocal calls
        calls += 1

    sys.setprofile(note)
    try:
        run()
    finally:
        sys.setprofile(None)
    return calls


def refuse(text: str) -> NotYamlError:
    with pytest.raises(NotYamlError) as info:
        read_yaml(text)
    return info.value


@pytest.mark.parametrize(
    ("text", "value"),
    [("", None), ("# nothing", None), ("007", "007"), ("{a: [1, null]}", {"a": ["1", "null"]}), ("[[", NotYamlError)],
)
def test_value_is_texts_lists_and_objects(text: str, value: Any) -> None:
    if value is NotYamlError:
        refuse(text)
    else:
        assert value == read_yaml(text)


@pytest.mark.parametrize(("opening", "closing"), [("[", "]"), ("{a: ", "}")])
def test_brackets_may_be_nested_to_a_depth(opening: str, closing: str) -> None:
    read_yaml(opening * MAX_DEPTH + closing * MAX_DEPTH)
    assert 1 == refuse("a:\n  " + opening * (MAX_DEPTH + 1) + closing * (MAX_DEPTH + 1)).line


@pytest.mark.parametrize("text", ["[" * 8000, "{" * 8000, "[']', " * 1600, "a: " + "[a, " * 2000])
def test_deep_nesting_is_not_read_to_its_end(text: str) -> None:
    assert 10_000 > count_calls(lambda: refuse(text))


def test_brackets_in_texts_nest_nothing() -> None:
    assert {"a": "[" * 100, "b": "]"} == read_yaml(f"a: '{'[' * 100}' # {'[' * 100}\nb: ']'")


def test_error_holds_nothing_of_the_text() -> None:
    error = refuse("a: b\nc: [sk-secret")

    assert 1 == error.line
    assert "sk-secret" not in "".join(traceback.format_exception(error, chain=True)) + repr(vars(error))
    assert error.__suppress_context__
