"""Text that may come from anywhere, made fit to be shown: what a terminal would obey is spelled out instead.

Theory: a terminal takes orders in band: cursor, colours, title, clipboard, answers typed back. A model, a tool or a
file must not give any, nor turn the order of the letters around. Line breaks and tabs only move on, so they stay.
Editing rule: what others have written goes through ``visible`` on its way to a terminal; ``ORDERS`` says what is not
harmless.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from itertools import islice

import orjson

from .shapes import Json

# C0 but tab and line feed, DEL, C1; then what overrides the direction of writing.
ORDERS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
# DEL, C1, what ends a line for some, and what sets the direction of writing; JSON has no more of them than texts hold.
ESCAPED = re.compile(r"[\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")
# Accents that are characters of their own, and joiners.
NO_COLUMN = frozenset({"Mn", "Me", "Cf"})
MAX_ARGUMENTS = 100_000
MAX_WORD = 40
MAX_WORDS = 8
MAX_LINE = 72
MAX_DEPTH = 4


def visible(text: str) -> str:
    """*text* with every order to the terminal spelled out: ``^[`` for escape, ``<U+009B>`` for those beyond ASCII."""
    return ORDERS.sub(_spell, text.replace("\r\n", "\n"))


def visible_json(text: str) -> str:
    """The same JSON, with whatever a terminal might obey as ``\\uXXXX``; C0 stands so in all JSON."""
    return ESCAPED.sub(lambda match: f"\\u{ord(match.group()):04x}", text)


def _spell(match: re.Match[str]) -> str:
    code = ord(match.group())
    return f"^{chr(code ^ 0x40)}" if code < 0x80 else f"<U+{code:04X}>"


def pad(text: str, columns: int) -> str:
    """*text* with blanks after it up to *columns* of a terminal, where some characters take two and some none."""
    return text + " " * (columns - columns_of(text))


def columns_of(text: str) -> int:
    """How many columns of a terminal *text* takes."""
    marks = sum(unicodedata.category(char) in NO_COLUMN for char in text)
    return len(text) - marks + sum(unicodedata.east_asian_width(char) in "WF" for char in text)


def one_line(text: str, length: int = MAX_LINE) -> str:
    """The beginning of *text* on one line of at most *length* characters."""
    text = " ".join(text[: 4 * length].split())
    return text if len(text) <= length else text[: length - 1] + "…"


def short_arguments(arguments: str) -> str:
    """What a call is about, on a part of a line: the values of its arguments, JSON text, cut where they are long."""
    try:
        values = orjson.loads(arguments[:MAX_ARGUMENTS])
    except orjson.JSONDecodeError:  # too long, or not JSON at all
        values = arguments
    return one_line(" ".join(one_line(word, MAX_WORD) for word in islice(_words(values), MAX_WORDS)))


def _words(value: Json, depth: int = 0) -> Iterator[str]:
    """Strings and numbers, a few levels deep; names, true, false and null say too little."""
    if isinstance(value, dict | list) and depth < MAX_DEPTH:
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _words(inner, depth + 1)
    elif isinstance(value, str) or type(value) in (int, float):
        yield str(value)
