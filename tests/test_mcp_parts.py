"""The parts of speaking with MCP servers that need no server: names, schemas, lines, environments, results."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Callable, Collection, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from mcp_types import AudioContent, BlobResourceContents, CallToolResult, ContentBlock, EmbeddedResource, TextContent

from picoclaw_trio.config.tools import McpServerConfig
from picoclaw_trio.tools import ToolError
from picoclaw_trio.tools.mcp_environment import parse_assignments
from picoclaw_trio.tools.mcp_lines import EDGE, Line, LineSplitter, Ration
from picoclaw_trio.tools.mcp_offers import Offer, ambiguous_names, make_tools, public_name
from picoclaw_trio.tools.mcp_results import result_text
from picoclaw_trio.tools.mcp_servers import Link, Package, Restarts, Server

OBJECT = {"type": "object"}
SERVER_NAMES = st.from_regex(r"[A-Za-z0-9_-]{1,32}", fullmatch=True)


@attrs.frozen
class Offered:
    name: str
    input_schema: dict[str, Any] = attrs.field(factory=OBJECT.copy)
    description: str | None = None


async def call(tool: str, arguments: Mapping[str, Any]) -> str:
    return f"{tool} {dict(arguments)}"


@pytest.mark.parametrize(
    ("server", "tool", "name"),
    [
        ("files", "read_file", r"mcp_files_read_file"),
        ("files", "read.file", r"mcp_files_read_file_[0-9a-f]{10}"),
        ("files", "x" * 54, r"mcp_files_x{54}"),
        ("files", "x" * 55, r"mcp_files_x{43}_[0-9a-f]{10}"),
        ("files", "", r"mcp_files_"),
        ("files", "día", r"mcp_files_d_a_[0-9a-f]{10}"),
        # It looks like one of ours, and gets one of ours.
        ("files", "x_0123456789", r"mcp_files_x_0123456789_[0-9a-f]{10}"),
    ],
)
def test_name_is_plain_where_it_fits(server: str, tool: str, name: str) -> None:
    assert re.fullmatch(name, public_name(server, tool))


@given(SERVER_NAMES, st.text(max_size=80), SERVER_NAMES, st.text(max_size=80))
def test_no_two_tools_share_a_name(server: str, tool: str, other: str, another: str) -> None:
    ambiguous = ambiguous_names([server, other])
    names = [public_name(one, two, is_ambiguous=one in ambiguous) for one, two in ((server, tool), (other, another))]
    assert ((server, tool) == (other, another)) == (names[0] == names[1])
    assert all(re.fullmatch("[A-Za-z0-9_-]{1,64}", name) for name in names)


def test_server_whose_name_continues_another_gets_hashed_names() -> None:
    assert {"a_b", "a_b_c"} == ambiguous_names(["a", "a_b", "a_b_c", "ab", "b"])
    assert public_name("a", "b_c") != public_name("a_b", "c", is_ambiguous=True)


async def test_tool_is_called_by_its_own_name() -> None:
    (tool,) = make_tools("files", [Offered("read.it")], call)
    assert "read.it {'path': 'x'}" == await tool.run({"path": "x"})


DEEP: dict[str, Any] = {}
for _ in range(260):
    DEEP = {"properties": DEEP}


@pytest.mark.parametrize(
    "schema",
    [DEEP, {"type": "array"}, {"x": 10**30}, {"x": "y" * 40_000}, {"x": "\ud800"}],
    ids=["deep", "array", "number", "large", "surrogate"],
)
def test_tool_whose_schema_no_upstream_could_take_is_left_out(schema: dict[str, Any]) -> None:
    assert () == make_tools("files", [Offered("one", schema)], call)


def test_schema_without_a_type_is_one_of_an_object_and_ours_is_a_copy() -> None:
    schema: dict[str, Any] = {"properties": {}}
    (tool,) = make_tools("files", [Offered("one", schema)], call)
    schema["properties"]["added"] = {}
    assert {"type": "object", "properties": {}} == tool.parameters


@given(st.binary(max_size=60), st.integers(1, 9))
def test_lines_are_the_same_however_the_bytes_come(data: bytes, size: int) -> None:
    def split(step: int) -> list[Line]:
        splitter = LineSplitter(1000)
        pieces = [data[start : start + step] for start in range(0, len(data), step)]
        return [line for piece in pieces for line in splitter.feed(piece)]

    assert [Line(line.removesuffix(b"\r")) for line in data.split(b"\n")[:-1]] == split(size)


def test_line_that_is_too_long_keeps_its_head_and_its_tail() -> None:
    splitter = LineSplitter(1000)
    pieces = [b"<" + b"x" * 999, b"y" * 5000, b"z>\nshort\n"]
    lines = [line for piece in pieces for line in splitter.feed(piece)]
    long, short = lines
    assert (b"<" + b"x" * (EDGE - 1), b"y" * (EDGE - 2) + b"z>", False) == (long.head, long.tail, long.is_whole)
    assert Line(b"short") == short


def test_ration_is_renewed_with_each_window() -> None:
    now = [0.0]
    ration = Ration(2, 10.0, lambda: now[0])
    assert [True, True, False, False] == [ration.allows() for _ in range(4)]
    now[0] = 10.0
    assert ration.allows()
    assert [2, 0] == [ration.take_dropped(), ration.take_dropped()]


def test_file_of_variables_is_read() -> None:
    text = "# keys\n\nA=1\nexport B = two words # not three\nC=\"x # y\"\nD='z'\nE=\nF=a#b\n"
    assert {"A": "1", "B": "two words", "C": "x # y", "D": "z", "E": "", "F": "a#b"} == parse_assignments(text)


def test_line_that_is_no_assignment_is_named_by_its_number_only() -> None:
    with pytest.raises(ValueError, match=r"^line 2 of env_file is not NAME=value$"):
        parse_assignments("A=1\nsk-secret\n")


def test_binary_content_is_told_by_type_and_size() -> None:
    blob = BlobResourceContents(uri="file:///a.bin", blob="AAAA")
    content: list[ContentBlock] = [AudioContent(data="AAA=", mime_type="audio/wav"), EmbeddedResource(resource=blob)]
    text = "[sound, audio/wav, 2 bytes: not shown]\n[file file:///a.bin, of an unknown type, 3 bytes: not shown]"
    assert text == result_text(CallToolResult(content=content))


def test_structured_content_is_told_only_where_there_is_no_text() -> None:
    structured = {"é": 1}
    assert '{"é":1}' == result_text(CallToolResult(content=[], structured_content=structured))
    assert "one" == result_text(CallToolResult(content=[TextContent(text="one")], structured_content=structured))


def test_failed_result_is_an_error() -> None:
    with pytest.raises(ToolError, match="did not say why"):
        result_text(CallToolResult(content=[], is_error=True))


@given(st.integers(1, 10_000))
def test_pause_grows_to_its_bound(failures: int) -> None:
    most = min(300.0, 2.0 ** min(failures - 1, 30))
    assert most / 2 <= Restarts().draw(failures) <= most


class Idle:
    """A session with a server that offers nothing."""

    async def list_tools(self) -> Collection[Offer]:
        return ()

    async def follow(self, keep: Callable[[Collection[Offer]], None]) -> None:
        await trio.sleep_forever()

    async def call(self, tool: str, arguments: Mapping[str, Any]) -> str:
        raise NotImplementedError


@asynccontextmanager
async def open_dying(name: str, config: McpServerConfig, folder: Path, *, is_old: bool) -> AsyncIterator[Link]:
    async def die_when_left() -> None:
        try:
            await trio.sleep_forever()
        finally:
            raise OSError("it is gone")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(die_when_left)
        yield Idle()


async def test_server_that_dies_as_it_is_left_breaks_nothing() -> None:
    server = Server("s", McpServerConfig(command="x"), Path(), Restarts(), is_ambiguous=False)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(server.run, Package(open_dying, repr))
        await server.started.wait()
        assert "running" == server.state
        nursery.cancel_scope.cancel()

    assert server.state.startswith("failed: ")
