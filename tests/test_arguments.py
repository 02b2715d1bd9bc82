"""Arguments of tools: what a model gave, held against what was declared."""

from __future__ import annotations

from typing import Any

import attrs
import pytest

from picoclaw_trio.tools import ToolError
from picoclaw_trio.tools.arguments import flag, make_tool, number, one_of, quoted, read_arguments, text, texts


@attrs.frozen
class Everything:
    word: str = text("a word", max_chars=5, min_chars=1)
    words: tuple[str, ...] = texts("words", max_items=2, max_chars=3, default=())
    share: float = number("a share", minimum=0, maximum=1, default=0.5)
    sure: bool = flag("is it", default=False)


@pytest.mark.parametrize(
    ("given_arguments", "reason"),
    [
        ({}, 'the argument "word" is missing'),
        ({"word": None}, 'the argument "word" must be a string, not null'),
        ({"word": 1}, 'the argument "word" must be a string, not a number'),
        ({"word": ["a"]}, 'the argument "word" must be a string, not a list'),
        ({"word": ""}, 'the argument "word" must not be empty'),
        ({"word": "abcdef"}, 'the argument "word" has 6 characters; at most 5 are possible'),
        ({"word": "\ud800"}, 'the argument "word" holds half of a character (a lone surrogate)'),
        ({"word": "a", "wrod": 1}, 'there is no argument "wrod"; there are: word, words, share, sure'),
        ({"word": "a", "words": "ab"}, 'the argument "words" must be a list of strings, not a string'),
        ({"word": "a", "words": ["a", 2]}, 'the argument "words[1]" must be a string, not a number'),
        ({"word": "a", "words": ["abcd"]}, 'the argument "words[0]" has 4 characters; at most 3 are possible'),
        ({"word": "a", "words": ["a"] * 3}, 'the argument "words" has 3 items; at most 2 are possible'),
        ({"word": "a", "share": True}, 'the argument "share" must be a number, not a boolean'),
        ({"word": "a", "share": 2}, 'the argument "share" must be between 0 and 1, not 2'),
        ({"word": "a", "share": float("nan")}, 'the argument "share" must be between 0 and 1, not nan'),
        ({"word": "a", "sure": "true"}, 'the argument "sure" must be true or false, not a string'),
        ({"word": "a", "sure": 1}, 'the argument "sure" must be true or false, not a number'),
    ],
)
def test_wrong_argument_is_named(given_arguments: dict[str, Any], reason: str) -> None:
    with pytest.raises(ToolError) as caught:
        read_arguments(Everything, given_arguments)
    assert reason == str(caught.value)


def test_null_for_an_optional_argument_is_its_absence() -> None:
    assert Everything(word="a") == read_arguments(Everything, {"word": "a", "share": None, "words": None})
    assert Everything(word="a", words=("b",)) == read_arguments(Everything, {"word": "a", "words": ["b"]})


@attrs.frozen
class Choice:
    colour: str = one_of("a colour", "red", "green", default="red")


async def test_tool_is_called_with_what_was_checked() -> None:
    async def run(choice: Choice) -> str:
        return choice.colour

    tool = make_tool("choose", "Choose.", Choice, run)
    assert {
        "type": "object",
        "properties": {"colour": {"type": "string", "description": "a colour", "enum": ["red", "green"]}},
        "required": [],
        "additionalProperties": False,
    } == tool.parameters
    assert "green" == await tool.run({"colour": "green"})
    with pytest.raises(ToolError, match='the argument "colour" must be one of: red, green; not "blue"'):
        await tool.run({"colour": "blue"})


def test_quoted_text_is_one_short_line() -> None:
    assert '"Größe"' == quoted("Größe")
    assert '"a\\nb\\u202e"' == quoted("a\nb\u202e")
    assert '"aaa…"' == quoted("aaaa", 3)
