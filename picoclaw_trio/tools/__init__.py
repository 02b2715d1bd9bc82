"""The tools that an agent may call: files, programs, the web, and whatever MCP servers offer."""

from .box import Limits, ToolBox, ToolResult
from .values import Tool, ToolError

__all__ = ["Limits", "Tool", "ToolBox", "ToolError", "ToolResult"]
