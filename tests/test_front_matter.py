"""What ``AGENT.md`` may say before its text, well-formed and not."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from picoclaw_trio.front_matter import (
    MAX_FRONT_MATTER_CHARS,
    NO_TOOLS,
    NOTHING_SAID,
    FrontMatter,
    split_front_matter,
)


def split(text: str) -> tuple[FrontMatter, str, list[str]]:
    told: list[str] = []
    return (*split_front_matter(text, told.append), told)


def front(yaml: str) -> tuple[FrontMatter, list[str]]:
    found, body, told = split(f"---\n{yaml}\n---\nBody")
    assert "Body" == body
    return found, told


def test_every_known_field_is_read_and_others_are_passed_over() -> None:
    found, told = front(
        "name: Pico\ndescription: Looks after the garage.\ntools: [read_file, list_dir]\nmodel: local\nmaxTurns: 12\n"
        "skills: [weather]\nmcpServers: {a: b}\nsince: 2026-01-01"
    )

    assert FrontMatter("Pico", "Looks after the garage.", ("read_file", "list_dir"), "local", 12) == found
    assert [] == told


@pytest.mark.parametrize(
    "text",
    ["", "Hello", "Hello\n---\nname: x\n---\n", "---\nname: x", "----\nname: x\n---\n", " ---\nname: x\n---\n"],
)
def test_text_without_front_matter_is_all_body(text: str) -> None:
    assert (NOTHING_SAID, text, []) == split(text)


@pytest.mark.parametrize("text", ["---\nBe kind.\n---\nBe brief.", "---\n- a\n- b\n---\nHello"])
def test_prose_between_rules_is_no_front_matter(text: str) -> None:
    assert (NOTHING_SAID, text, []) == split(text)


@pytest.mark.parametrize("text", ["---\n---\nHello", "---\n\n# only a comment\n---\nHello", "---  \n---\t\nHello"])
def test_front_matter_may_be_empty(text: str) -> None:
    assert (NOTHING_SAID, "Hello", []) == split(text)


@pytest.mark.parametrize(
    ("yaml", "tools"),
    [
        ("tools: []", ()),
        ("tools:", ()),
        ("tools: null", ()),
        ("tools: read_file", ("read_file",)),
        ("tools: read_file, list_dir", ("read_file", "list_dir")),
        ("tools:\n  - ' read_file '\n  - ''\n  - read_file", ("read_file",)),
        ("tools:\n  allow: [mcp_files_*]", ("mcp_files_*",)),
        ("name: Pico", None),
    ],
)
def test_tools_may_be_given_in_several_ways(yaml: str, tools: tuple[str, ...] | None) -> None:
    found, told = front(yaml)

    assert (tools, []) == (found.tools, told)


@pytest.mark.parametrize(
    "yaml",
    [
        "tools: {deny: [exec]}",
        "tools: {allow: [read_file], deny: [exec]}",
        "tools: [[read_file]]",
        "tools: {allow: {read_file: true}}",
        f"tools: [{'a, ' * 300}]",
    ],
)
def test_tools_that_cannot_be_understood_allow_none(yaml: str) -> None:
    found, told = front(yaml)

    assert () == found.tools
    assert 1 == len(told)


@pytest.mark.parametrize(
    "yaml",
    [
        "name: [unclosed",
        "tools: [exec\nname: x",
        "\ttools: exec",
        "a: b: c",
        "name: *nobody",
        "name: \x07",
        "? [a]\n: b",
        "name: !!python/object/apply:os.system [id]\n- x",
        f"name: {'x' * MAX_FRONT_MATTER_CHARS}",
        f"name: {'[' * 4000}",
        f"name: {'{a: ' * 1500}",
        "- " * 3000,
    ],
    ids=range(12),
)
def test_front_matter_that_is_not_yaml_is_told_allows_no_tools_and_keeps_the_body(yaml: str) -> None:
    found, told = front(yaml)

    assert NO_TOOLS == found
    assert 1 == len(told)
    assert "front matter" in told[0]


def test_warning_names_the_line_of_the_file_and_nothing_in_it() -> None:
    _, told = front("name: Pico\nmodel: [sk-secret\n")

    assert ["the front matter is not YAML (line 4), so no tools are allowed"] == told


@pytest.mark.parametrize("escape", [r"\U00110000", r"\UFFFFFFFF"])
def test_escape_of_what_no_text_can_hold_allows_no_tools(escape: str) -> None:
    found, told = front(f'name: "{escape}"')

    assert ((), ["the front matter is not YAML, so no tools are allowed"]) == (found.tools, told)


def test_aliases_that_multiply_cost_nothing() -> None:
    bomb = "\n".join(["a0: &a0 [x,x,x,x,x,x,x,x,x]", *(f"a{n}: &a{n} [{f'*a{n - 1},' * 9}]" for n in range(1, 20))])

    found, told = front(f"{bomb}\nname: Pico\ntools: *a19")

    assert ("Pico", (), 1) == (found.name, found.tools, len(told))


def test_alias_of_what_it_stands_in_allows_no_tools() -> None:
    found, told = front("tools: &a [*a]")

    assert ((), 1) == (found.tools, len(told))


def test_nothing_but_text_is_made_of_yaml() -> None:
    found, told = front("name: 007\ndescription: 2026-01-01\nmodel: !!binary aGVsbG8=")

    assert FrontMatter("007", "2026-01-01", None, "aGVsbG8=") == found
    assert [] == told


@pytest.mark.parametrize("steps", ["0", "1001", "-1", "1.5", "many", "[1]", "9" * 5000, "²", "0x10"])
def test_wrong_number_of_steps_is_told_and_passed_over(steps: str) -> None:
    found, told = front(f"maxTurns: {steps}")

    assert (None, 1) == (found.max_steps, len(told))


@pytest.mark.parametrize("key", ["name", "description", "model"])
@pytest.mark.parametrize("value", ["[a]", "{a: b}", "x" * 1025])
def test_wrong_text_is_told_and_passed_over(key: str, value: str) -> None:
    found, told = front(f"{key}: {value}")

    assert (NOTHING_SAID, 1) == (found, len(told))


@pytest.mark.parametrize("value", ["", "~", "null", "''", "'  '"])
def test_blank_fields_are_not_given(value: str) -> None:
    found, told = front(f"name: {value}\nmodel: {value}\nmaxTurns: {value}")

    assert (NOTHING_SAID, []) == (found, told)


@given(st.text(max_size=300))
def test_no_text_can_break_it_and_none_is_lost(text: str) -> None:
    _, body, _ = split(text)
    assert text.endswith(body)


@given(st.text(max_size=300))
def test_no_front_matter_can_break_it(text: str) -> None:
    split(f"---\n{text}\n---\nBody")
