"""An MCP server over standard input and output, made of the protocol's own package: it keeps notes."""

from __future__ import annotations

from mcp.server import MCPServer

server = MCPServer("notes")
NOTES: list[str] = []


@server.tool()
def add(text: str) -> str:
    """Keep a note."""
    NOTES.append(text)
    return f"{len(NOTES)} kept"


@server.tool()
def read() -> str:
    """All notes."""
    return "\n".join(NOTES) or "(none)"


if __name__ == "__main__":
    server.run("stdio")
