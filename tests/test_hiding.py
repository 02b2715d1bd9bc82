"""Keys in what upstreams say."""

from __future__ import annotations

import html
import json
from collections.abc import Callable
from urllib.parse import quote, quote_plus

import pytest
from hypothesis import given
from hypothesis import strategies as st

from picoclaw_trio.hiding import MIN_SECRET_LENGTH, hide_nothing, hider

KEY = "sk/aB+cD=12,3{4}[56]\"'<&%7:\\~"
SPELLINGS: dict[str, Callable[[str], str]] = {
    "plain": str,
    "JSON": json.dumps,
    "PHP's JSON": lambda key: json.dumps(key).replace("/", "\\/"),
    "JSON in JSON": lambda key: json.dumps(json.dumps(key).replace("/", "\\/")),
    "all of it JSON's": lambda key: "".join(c if c.isalnum() else f"\\u{ord(c):04X}" for c in key),
    "a query": lambda key: quote(key, safe=""),
    "a query in small letters": lambda key: quote(key, safe="").replace("%2F", "%2f").replace("%2B", "%2b"),
    "a path": quote,
    "a form": quote_plus,
    "an address in an address": lambda key: quote(quote(key, safe=""), safe=""),
    "HTML": html.escape,
    "HTML outside of tags": lambda key: html.escape(key, quote=False),
    "HTML in numbers": lambda key: "".join(c if c.isalnum() else f"&#{ord(c)};" for c in key),
    "HTML in other numbers": lambda key: "".join(c if c.isalnum() else f"&#x{ord(c):X};" for c in key),
    "HTML in names": lambda key: key.replace("&", "&amp;").replace("/", "&sol;").replace("+", "&plus;"),
}


@pytest.mark.parametrize("spell", SPELLINGS.values(), ids=SPELLINGS)
def test_key_is_known_in_whatever_spelling(spell: Callable[[str], str]) -> None:
    hidden = hider([KEY])(f"it was <{spell(KEY)}>, not x")

    assert "it was <***>, not x" == hidden.replace('"', "").replace("\\", "")


@given(st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=MIN_SECRET_LENGTH, max_size=60))
def test_no_key_is_left_in_any_spelling(key: str) -> None:
    for spell in SPELLINGS.values():
        assert "***" in hider([key])(f"({spell(key)})")


def test_each_word_of_each_value_is_hidden_the_longest_whole() -> None:
    hide = hider(["Bearer one-secret", "one-secret-and-more", "two"])

    assert "Bearer ***, ***, two" == hide("Bearer one-secret, one-secret-and-more, two")


@pytest.mark.parametrize("values", [[], ["short"], ["", "a b c"]])
def test_where_there_is_no_key_nothing_is_hidden(values: list[str]) -> None:
    assert hide_nothing is hider(values)
    assert "short a b c" == hide_nothing("short a b c")
