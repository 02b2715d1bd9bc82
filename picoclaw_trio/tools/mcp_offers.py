"""What an MCP server offers, made fit for a model: names that are ours, texts and schemas within bounds.

Theory: a tool's name here depends on nothing but its server's name and its own, so that ``tools.allow`` means the same
tool whichever servers are up. A name that fits stays readable; every other gets a hash at its end, and a name that only
looks as if it had one gets one too, so no server can take another's name.
Editing rule: pure functions only. What a server says is somebody else's text: nothing of it is kept without a bound.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator, Mapping
from hashlib import sha256
from typing import Protocol

import attrs
import orjson
import structlog

from ..config.tools import MCP_PREFIX
from ..shapes import Json, load
from .values import Tool

log = structlog.stdlib.get_logger("picoclaw_trio.tools.mcp")

# OpenAI's bound for the name of a function.
MAX_NAME = 64
MAX_TOOLS = 128
MAX_DESCRIPTION = 4_096
MAX_SCHEMA_BYTES = 32_768
FITTING_NAME = re.compile(rf"[A-Za-z0-9_-]{{1,{MAX_NAME}}}")
HASHED_NAME = re.compile(r".*_[0-9a-f]{10}")

Call = Callable[[str, Mapping[str, Json]], Awaitable[str]]


class Offer(Protocol):
    """A tool as a server lists it."""

    @property
    def name(self) -> str: ...
    @property
    def description(self) -> str | None: ...
    @property
    def input_schema(self) -> dict[str, Json]: ...


def public_name(server: str, tool: str, *, is_ambiguous: bool = False) -> str:
    """The name under which a model calls *tool* of *server*: ``mcp_<server>_<tool>``, at most 64 of [A-Za-z0-9_-].

    ``is_ambiguous``: another server's name begins this one's, so that a plain name could be a tool of either.
    """
    plain = f"{MCP_PREFIX}{server}_{tool}"
    if not is_ambiguous and FITTING_NAME.fullmatch(plain) and not HASHED_NAME.fullmatch(plain):
        return plain
    digest = sha256(f"{server}\0{tool}".encode(errors="replace")).hexdigest()[:10]
    return f"{re.sub('[^A-Za-z0-9_-]', '_', plain)[: MAX_NAME - 11]}_{digest}"


def ambiguous_names(servers: Iterable[str]) -> frozenset[str]:
    """Those of *servers* whose name continues another's: with ``a`` and ``a_b``, ``mcp_a_b_c`` could be of either."""
    names = frozenset(servers)
    return frozenset(name for name in names for other in names if name.startswith(f"{other}_"))


def make_tools(server: str, offers: Collection[Offer], call: Call, *, is_ambiguous: bool = False) -> tuple[Tool, ...]:
    """The tools that *offers* of *server* become, in the order of their names; ``call`` gets a tool's own name.

    What does not fit is left out, with a line in the log: a tool without a usable schema, one too many, a name twice.
    """
    tools: dict[str, Tool] = {}
    for offer in offers:
        tool = _make_tool(server, offer, call, is_ambiguous)
        if isinstance(tool, str):
            log.warning("a tool is left out", server=server, tool=offer.name[:MAX_NAME], reason=tool)
        elif len(tools) == MAX_TOOLS:
            log.warning("tools are left out", server=server, reason=f"it offers more than {MAX_TOOLS}")
            break
        else:
            tools.setdefault(tool.name, tool)
    return tuple(tools[name] for name in sorted(tools))


def _make_tool(server: str, offer: Offer, call: Call, is_ambiguous: bool) -> Tool | str:
    """The tool, or why there is none."""
    schema = _clean_schema(offer.input_schema)
    if isinstance(schema, str):
        return schema
    name = public_name(server, offer.name, is_ambiguous=is_ambiguous)
    return Tool(name, clean_text(offer.description or "", MAX_DESCRIPTION), schema, _Call(offer.name, call))


@attrs.frozen
class _Call:
    tool: str
    call: Call

    def __call__(self, arguments: Mapping[str, Json]) -> Awaitable[str]:
        return self.call(self.tool, arguments)


def _clean_schema(schema: Mapping[str, Json]) -> dict[str, Json] | str:
    """A copy that can be sent to any upstream, or what is wrong with the schema."""
    try:
        raw = orjson.dumps({"type": "object", **schema})
        copied = load(raw)
    except (ValueError, TypeError):  # nested too deep, or a number or text that JSON does not have
        return "its schema cannot be written as JSON"
    if len(raw) > MAX_SCHEMA_BYTES:
        return f"its schema is larger than {MAX_SCHEMA_BYTES} bytes"
    return copied if copied["type"] == "object" else "its schema is not one of an object"


def clean_text(text: str, limit: int) -> str:
    """*text* without control characters but newlines and tabs, cut to *limit* characters."""
    cleaned = "".join(_printable(text[: limit + 1]))
    return cleaned if len(cleaned) <= limit else f"{cleaned[: limit - 1]}…"


def _printable(text: str) -> Iterator[str]:
    return (char if char.isprintable() or char in "\n\t" else "\N{REPLACEMENT CHARACTER}" for char in text)
