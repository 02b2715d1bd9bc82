"""What stands in YAML before the text of ``AGENT.md``: whose prompt it is, and to what it narrows the agent.

Theory: YAML is read without its types, so a value is a text, a list or an object. Fields of PicoClaw's other parts are
passed over. ``tools`` takes permissions away, so wherever it cannot be understood it takes all of them.
Editing rule: nothing here raises; what is wrong is told to *warn*, and never repeats what stands in the file.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attrs

from .plain_yaml import NotYamlError, read_yaml

MAX_FRONT_MATTER_CHARS = 8 * 1024
MAX_FIELD_CHARS = 1024
MAX_TOOLS = 256
MAX_STEPS = 1000
RULE = "---"
Warn = Callable[[str], None]


@attrs.frozen
class FrontMatter:
    """The fields that we know; None where they are not given.

    Attributes:
        tools: names of the only tools that the agent may use, of those that the configuration permits.
        model: an alias.
        max_steps: replies that a model may give in one turn; ``maxTurns`` in the file.
    """

    name: str | None = None
    description: str | None = None
    tools: tuple[str, ...] | None = None
    model: str | None = None
    max_steps: int | None = None


NOTHING_SAID = FrontMatter()
# What could not be read may have said anything about tools.
NO_TOOLS = FrontMatter(tools=())


def split_front_matter(text: str, warn: Warn) -> tuple[FrontMatter, str]:
    """Part *text* into what its front matter says and what follows.

    Front matter stands between two lines of three dashes, the first of which begins the text. A text without, or with
    prose between such lines, is all body.
    """
    first, *lines = text.split("\n")
    ends = [rest.rstrip() for rest in (first, *lines)]
    if ends[0] != RULE or RULE not in ends[1:]:
        return NOTHING_SAID, text
    end = ends.index(RULE, 1)
    front = _read("\n".join(lines[: end - 1]), warn)
    return (NOTHING_SAID, text) if front is None else (front, "\n".join(lines[end:]))


def _read(source: str, warn: Warn) -> FrontMatter | None:
    """The fields in *source*; None if it is prose."""
    if len(source) > MAX_FRONT_MATTER_CHARS:
        warn(f"the front matter is longer than {MAX_FRONT_MATTER_CHARS} characters, so no tools are allowed")
        return NO_TOOLS
    try:
        fields = read_yaml(source)
    except NotYamlError as exc:
        # The line counts from 0 and from the one after the first rule.
        place = "" if exc.line is None else f" (line {exc.line + 2})"
        warn(f"the front matter is not YAML{place}, so no tools are allowed")
        return NO_TOOLS
    if fields is None:
        return NOTHING_SAID
    return _front_matter(fields, warn) if isinstance(fields, dict) else None


def _front_matter(fields: dict[Any, Any], warn: Warn) -> FrontMatter:
    return FrontMatter(
        name=_text(fields, "name", warn),
        description=_text(fields, "description", warn),
        tools=_tools(fields["tools"], warn) if "tools" in fields else None,
        model=_text(fields, "model", warn),
        max_steps=_steps(fields, warn),
    )


def _text(fields: dict[Any, Any], key: str, warn: Warn) -> str | None:
    value = fields.get(key, "")
    if isinstance(value, str) and len(value) <= MAX_FIELD_CHARS:
        return None if _is_blank(value) else value.strip()
    warn(f"{key} is no text of at most {MAX_FIELD_CHARS} characters, and is passed over")
    return None


def _is_blank(text: str) -> bool:
    """Whether *text* is one of YAML's ways to write nothing."""
    return text.strip() in ("", "~", "null", "Null", "NULL")


def _tools(value: object, warn: Warn) -> tuple[str, ...]:
    """Names with commas between them or a list of names, by itself or under the only key ``allow``; blank: none."""
    if isinstance(value, dict) and set(value) == {"allow"}:
        value = value["allow"]
    if isinstance(value, str):
        value = [] if _is_blank(value) else value.split(",")
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value) or len(value) > MAX_TOOLS:
        warn(f"tools is no list of at most {MAX_TOOLS} names, so no tools are allowed")
        return ()
    return tuple(dict.fromkeys(name.strip() for name in value if name.strip()))


def _steps(fields: dict[Any, Any], warn: Warn) -> int | None:
    value = fields.get("maxTurns", "")
    if isinstance(value, str) and _is_blank(value):
        return None
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) <= 9:
        steps = int(value)
        if 1 <= steps <= MAX_STEPS:
            return steps
    warn(f"maxTurns is no whole number from 1 to {MAX_STEPS}, and is passed over")
    return None
