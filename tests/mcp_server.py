"""A server made with the protocol's own package, for the tests: ``mcp_server.py stdio`` or ``mcp_server.py http|sse``.

Over HTTP it serves on a free loopback port and writes the number to standard output. ``MCP_TEST_FILE`` names a file to
which it adds a line for what the tests want to see from outside.
"""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from pathlib import Path

import uvicorn
from mcp.server.mcpserver import Context, Image, MCPServer
from mcp_types import CallToolResult, EmbeddedResource, ResourceLink, TextContent, TextResourceContents

server = MCPServer("tests")


def note(text: str) -> None:
    if path := os.environ.get("MCP_TEST_FILE"):
        with Path(path).open("a") as file:
            file.write(f"{text}\n")


@server.tool()
def add(a: int, b: int) -> str:
    """Add two numbers."""
    return str(a + b)


@server.tool(structured_output=False)
def only_structured() -> CallToolResult:
    return CallToolResult(content=[], structured_content={"answer": 42})


@server.tool()
def fail() -> str:
    raise ValueError("the disk is full")


@server.tool()
def picture() -> Image:
    return Image(data=b"0123456789", format="png")


@server.tool(structured_output=False)
def mixed() -> CallToolResult:
    resource = TextResourceContents(uri="memo://one", text="a memo")
    return CallToolResult(
        content=[
            TextContent(text="first"),
            EmbeddedResource(resource=resource),
            ResourceLink(name="more", uri="https://example.org/more"),
        ]
    )


@server.tool(name="odd.name/with spaces")
def odd_name() -> str:
    return "odd"


@server.tool()
def big(size: int) -> str:
    return "x" * size


@server.tool()
def environment(name: str) -> str:
    return os.environ.get(name, "unset")


@server.tool()
def say(text: str) -> str:
    print(text, file=sys.stderr, flush=True)
    return "said"


@server.tool()
async def hang() -> str:
    note("hangs")
    try:
        await asyncio.Event().wait()
    except asyncio.CancelledError:
        note("cancelled")
        raise
    return "never"


# Tools that call each other's other half: both must be under way at once for either to end.
meeting = asyncio.Barrier(2)


@server.tool()
async def meet(name: str) -> str:
    await meeting.wait()
    return f"{name} met"


@server.tool()
def die() -> str:
    os._exit(3)


@server.tool()
async def learn(context: Context) -> str:
    """Offer one tool more from now on."""
    server.add_tool(add, name="learned")
    await context.notify_tools_changed()
    return "learned"


async def serve(kind: str) -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    app = server.sse_app() if kind == "sse" else server.streamable_http_app()
    print(listener.getsockname()[1], flush=True)
    await uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=1)).serve([listener])


if __name__ == "__main__":
    if sys.argv[1] == "stdio":
        note(f"pid {os.getpid()}")
        server.run()
    else:
        asyncio.run(serve(sys.argv[1]))
