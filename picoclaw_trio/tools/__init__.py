"""The tools that an agent may call: files, programs, the web, and whatever MCP servers offer."""

from .values import Tool, ToolError

__all__ = ["Tool", "ToolError"]
