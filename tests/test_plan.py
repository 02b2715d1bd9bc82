"""What goes to the model, and in which order."""

from __future__ import annotations

import attrs
import pytest

from picoclaw_trio.memory import Recollection
from picoclaw_trio.messages import Message
from picoclaw_trio.plan import SUMMARY_HEADING, Past, compose, tool_names
from picoclaw_trio.shapes import Json


def message(role: str, text: str) -> Message:
    return Message(role, {"role": role, "content": text})


REQUEST = (message("system", "brief"), message("user", "one"), message("developer", "kind"), message("user", "two"))


def told(conversation: tuple[Message, ...]) -> list[tuple[str, Json]]:
    return [(one.role, one.body["content"]) for one in conversation]


def test_a_request_goes_on_as_it_came() -> None:
    assert REQUEST is compose(None, REQUEST, None)


def test_the_agents_prompt_comes_first() -> None:
    assert (message("system", "me"), *REQUEST) == compose("me", REQUEST, None)


@attrs.define
class Kept:
    """As much of a recollection as a plan looks at."""

    messages: tuple[Message, ...]


@pytest.mark.parametrize("summary", [None, "long ago"])
def test_with_a_memory_what_steers_comes_before_what_was_said(summary: str | None) -> None:
    kept: Recollection = Kept((message("user", "zero"), message("user", "one")))  # type: ignore[assignment]
    past = [] if summary is None else [("system", SUMMARY_HEADING + summary)]
    assert [
        ("system", "me"),
        ("system", "brief"),
        ("developer", "kind"),
        *past,
        ("user", "zero"),
        ("user", "one"),
    ] == told(compose("me", REQUEST, Past(kept, summary, 0.0)))


@pytest.mark.parametrize(
    ("parameters", "names"),
    [
        ({}, set()),
        ({"tools": []}, set()),
        (
            {"tools": [{"type": "function", "function": {"name": "a"}}, {"type": "custom", "custom": {"name": "b"}}]},
            {"a", "b"},
        ),
        ({"functions": [{"name": "c"}]}, {"c"}),
    ],
)
def test_names_of_the_clients_tools_are_found_wherever_they_stand(parameters: Json, names: set[str]) -> None:
    assert names == tool_names(parameters)
