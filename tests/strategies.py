"""What Hypothesis makes for more than one test file: JSON values, and their texts in every spelling."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

# No test fails because the machine is busy.
settings.register_profile("any machine", deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")

INTEGERS = st.integers(-(2**63), 2**64 - 1)
FLOATS = st.floats(allow_nan=False, allow_infinity=False)
SCALARS = st.none() | st.booleans() | INTEGERS | FLOATS | st.text()
JSON = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4), max_leaves=8
)
# Texts of the kind that looks like JSON's own marks.
TRICKY_TEXT = st.text(st.sampled_from('":\\ \t\n{}[],u003aé\x00'), max_size=8)
TRICKY_OBJECTS = st.dictionaries(
    TRICKY_TEXT,
    st.recursive(
        TRICKY_TEXT,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TRICKY_TEXT, inner, max_size=3),
        max_leaves=8,
    ),
)


@st.composite
def spelled(draw: st.DrawFn, values: st.SearchStrategy[Any]) -> tuple[Any, bytes]:
    """A value, and one of the many JSON texts that spell it: white space, escapes and all."""
    value = draw(values)
    spaces = st.text(st.sampled_from(" \t\r\n"), max_size=2)
    separators = draw(spaces) + "," + draw(spaces), draw(spaces) + ":" + draw(spaces)
    text = json.dumps(
        value, ensure_ascii=draw(st.booleans()), separators=separators, indent=draw(st.none() | st.integers(0, 2))
    )
    if draw(st.booleans()):
        text = escape_colons(text)
    return value, (draw(spaces) + text + draw(spaces)).encode()


def escape_colons(text: str) -> str:
    r"""The same JSON with every colon within a string written as ``\u003a``, and every space as ``\u0020``."""
    pieces, is_inside, is_escaped = [], False, False
    for character in text:
        if is_inside and not is_escaped and character in ": ":
            pieces.append(f"\\u{ord(character):04x}")
        else:
            pieces.append(character)
        if character == '"' and not is_escaped:
            is_inside = not is_inside
        is_escaped = is_inside and character == "\\" and not is_escaped
    return "".join(pieces)
