"""Keys put out of sight where an upstream repeats what it was sent.

Theory: an error may tell the whole request, as it was or as JSON, an address or a web page would spell it. Letters and
digits are the same in all of them; any other sign has a few spellings, so a key is a pattern. What is cut is hidden
before, since half of a key is none that could be known.
Editing rule: nothing here raises, and nothing keeps a text.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from html.entities import html5
from typing import TypeAlias

Hide: TypeAlias = Callable[[str], str]

MIN_SECRET_LENGTH = 8  # what is shorter is no key, and would tear holes into any sentence


def hide_nothing(text: str) -> str:
    return text


def hider(values: Iterable[str]) -> Hide:
    """What puts ``***`` in the place of each word of *values*, the longest first."""
    words = {word for value in values for word in value.split() if len(word) >= MIN_SECRET_LENGTH}
    if not words:
        return hide_nothing
    spellings = ("".join(map(_spellings, word)) for word in sorted(words, key=len, reverse=True))
    pattern = re.compile("|".join(spellings))
    return lambda text: pattern.sub("***", text)


def _spellings(sign: str) -> str:
    """A pattern of *sign* as it is, after backslashes, and as JSON, an address (also one in another) or HTML has it."""
    if sign.isalnum():
        return sign
    plain, code = re.escape(sign), f"{ord(sign):x}"
    names = "|".join(name for name, signs in html5.items() if signs == sign and name.endswith(";")) or "#;"
    return rf"(?:\\{{0,3}}{plain}|(?i:\\+u0*{code}|%(?:25)*{code}|&#x0*{code};)|&#0*{ord(sign)};|&(?:{names}))"
