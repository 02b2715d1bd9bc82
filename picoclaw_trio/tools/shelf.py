"""Which tools there are, and which of them a turn gets.

Theory: the built-in tools are made of the configuration, those of MCP servers come and go with their servers. A turn
gets what ``tools.allow`` names for its door, narrowed by the agent's own file, without what its client brings under
the same name.
Editing rule: a tool that is not named for a door cannot be had there by any other road.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Iterator, Mapping
from contextlib import asynccontextmanager
from fnmatch import fnmatchcase

import attrs
import trio

from ..config import Config, Door
from ..config.tools import MCP_PREFIX
from .box import Limits, ToolBox
from .files import file_tools
from .mcp_servers import McpServers, open_mcp_servers
from .programs import exec_tool, program_limiter
from .values import Tool
from .web_fetch import web_fetch_tool


@attrs.frozen
class Tools:
    """Every tool of a gateway."""

    config: Config
    built_in: Mapping[str, Tool]
    mcp: McpServers
    running: trio.CapacityLimiter
    programs: trio.CapacityLimiter

    def offers(self, door: Door) -> bool:
        """Whether anything at all is allowed at *door*."""
        allow = self.config.tools.allow
        return bool(allow.http if door == "http" else allow.terminal)

    def box(self, door: Door, narrowed: Collection[str] | None = None, taken: Collection[str] = ()) -> ToolBox | None:
        """The tools of one turn; None where it has none.

        Args:
            narrowed: names to which the agent keeps itself, as in ``tools.allow``; None: it does not.
            taken: names of the client's tools.
        """
        settings = self.config.tools
        tools = {
            tool.name: tool
            for tool in self._all()
            if settings.allow.permits(door, tool.name)
            and tool.name not in taken
            and (narrowed is None or any(fnmatchcase(tool.name, pattern) for pattern in narrowed))
        }
        if not tools:
            return None
        turn = trio.CapacityLimiter(settings.max_parallel)
        return ToolBox(tools, Limits(settings.timeout, settings.max_result_chars, turn, self.running))

    def servers(self, door: Door) -> Mapping[str, str]:
        """The state of each MCP server, where that door may have tools of any."""
        allow = self.config.tools.allow
        names = allow.http if door == "http" else allow.terminal
        return self.mcp.states() if any(name.startswith(MCP_PREFIX) for name in names) else {}

    async def wait_started(self) -> None:
        """Return when no MCP server is still at its first start; each has a time limit for that."""
        await self.mcp.wait_started()

    def _all(self) -> Iterator[Tool]:
        yield from self.built_in.values()
        yield from self.mcp.tools()

    def with_config(self, config: Config) -> Tools:
        """The same servers and limits in use, under other permissions."""
        self.running.total_tokens = config.tools.max_running
        return attrs.evolve(self, config=config, built_in=_built_in(config, self.programs))


@asynccontextmanager
async def open_tools(config: Config) -> AsyncIterator[Tools]:
    """The tools that *config* speaks of. MCP servers are started, without waiting for them, and ended on leaving."""
    folder = config.path.parent if config.path else config.home
    async with open_mcp_servers(config.tools.mcp, folder=folder) as mcp:
        programs = program_limiter()
        yield Tools(config, _built_in(config, programs), mcp, trio.CapacityLimiter(config.tools.max_running), programs)


def _built_in(config: Config, programs: trio.CapacityLimiter) -> dict[str, Tool]:
    """Those that are allowed to anybody; the others are not even made."""
    settings, allowed = config.tools, config.tools.allow.names
    tools = [tool for tool in file_tools(config.workspace) if tool.name in allowed]
    if "exec" in allowed:
        tools.append(exec_tool(settings.exec, config.workspace, programs))
    if "web_fetch" in allowed:
        tools.append(web_fetch_tool(settings.web_fetch))
    return {tool.name: tool for tool in tools}
