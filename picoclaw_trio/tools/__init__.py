"""The tools that an agent may call: files, programs, the web, and whatever MCP servers offer."""

from .box import Limits, ToolBox, ToolResult
from .shelf import Tools, open_tools
from .values import Tool, ToolError

__all__ = ["Limits", "Tool", "ToolBox", "ToolError", "ToolResult", "Tools", "open_tools"]
