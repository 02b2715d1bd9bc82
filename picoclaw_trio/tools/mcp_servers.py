"""The MCP servers of the configuration: started with the gateway, watched, started anew when they die.

Theory: one task a server, in a nursery that lives as long as the gateway; it owns the session, and its end is the
server's end. Between two sessions it waits, longer each time. What a server offers is there while its session is, and
a call at any other time fails at once.
Editing rule: nothing here imports the ``mcp`` package, which may be missing; no failure of a server ends more than
its own session.
"""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Callable, Collection, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from random import uniform
from typing import Protocol

import attrs
import structlog
import trio

from ..config.tools import McpConfig, McpServerConfig
from ..shapes import Json
from .mcp_offers import Offer, ambiguous_names, make_tools
from .values import Tool, ToolError

log = structlog.stdlib.get_logger("picoclaw_trio.tools.mcp")

NOT_INSTALLED = "the package mcp, version 2, is not installed: pip install 'picoclaw-trio[mcp]'"
# What a session may take to be left, where it is not a process: a last request that says goodbye.
LEAVE_TIMEOUT = 2.0


@attrs.frozen
class Restarts:
    """When a server is started anew.

    Attributes:
        delay: seconds after the first failure; doubled with each further one, and up to half of it left off by lot.
        max_delay: seconds that are never exceeded.
        settled: seconds after which a session counts as a success, so that the next failure is a first one.
    """

    delay: float = 1.0
    max_delay: float = 300.0
    settled: float = 60.0

    def draw(self, failures: int) -> float:
        """The pause after so many failures in a row."""
        most = min(self.max_delay, self.delay * 2.0 ** min(failures - 1, 30))
        return uniform(most / 2, most)  # noqa: S311  # spreads restarts; no secret depends on it


class Link(Protocol):
    """What is used here of a session; ``mcp_link`` has it."""

    async def list_tools(self) -> Collection[Offer]: ...
    async def follow(self, keep: Callable[[Collection[Offer]], None]) -> None: ...
    async def call(self, tool: str, arguments: Mapping[str, Json]) -> str: ...


class Opener(Protocol):
    def __call__(
        self, name: str, config: McpServerConfig, folder: Path, *, is_old: bool
    ) -> AbstractAsyncContextManager[Link]: ...


@attrs.frozen
class Package:
    """What the ``mcp`` package is used through, once it is loaded."""

    open_link: Opener
    describe: Callable[[BaseException], str]


@attrs.define(eq=False)
class Server:
    """One server: its state, and what it offers at this moment."""

    name: str
    config: McpServerConfig
    folder: Path
    restarts: Restarts
    is_ambiguous: bool
    state: str = "starting"
    tools: tuple[Tool, ...] = ()
    _link: Link | None = None
    _failures: int = 0
    _is_old: bool = False
    started: trio.Event = attrs.field(factory=trio.Event, init=False)  # it has run or failed, once

    async def run(self, package: Package) -> None:
        """Keep a session. A task for the gateway's nursery; never ends."""
        while True:
            began_at = trio.current_time()
            try:
                await self._hold_session(package.open_link)
            except* Exception as failures:
                # Whatever a server, or the package that speaks with it, does wrong: the gateway serves on. As a group,
                # for a server may fail in the moment in which its session is cancelled.
                self._fail(package.describe(failures))
            is_settled = trio.current_time() - began_at >= self.restarts.settled
            self._failures = 1 if is_settled else self._failures + 1
            await trio.sleep(self.restarts.draw(self._failures))

    async def call(self, tool: str, arguments: Mapping[str, Json]) -> str:
        """Call a tool of this moment's session.

        Raises:
            ToolError: as the session's, or there is none.
        """
        if self._link is None:
            raise ToolError(f"The MCP server {self.name} is not running at the moment.")
        return await self._link.call(tool, arguments)

    async def _hold_session(self, open_link: Opener) -> None:
        with trio.CancelScope(deadline=trio.current_time() + self.config.timeout) as scope:
            async with open_link(self.name, self.config, self.folder, is_old=self._is_old) as link:
                try:
                    self._keep(await link.list_tools())
                    scope.deadline = math.inf
                    self._begin(link)
                    await link.follow(self._keep)
                finally:
                    self._end()
                    scope.deadline = min(scope.deadline, trio.current_time() + LEAVE_TIMEOUT)
        if scope.cancelled_caught:
            raise trio.TooSlowError

    def _begin(self, link: Link) -> None:
        self._link = link
        self.state = "running"
        self.started.set()
        log.info("an MCP server runs", server=self.name, tools=len(self.tools))

    def _keep(self, offers: Collection[Offer]) -> None:
        self.tools = make_tools(self.name, offers, self.call, is_ambiguous=self.is_ambiguous)

    def _end(self) -> None:
        self._link = None
        self.tools = ()

    def _fail(self, reason: str) -> None:
        if self.state != "running":
            # It may be one of those that cannot bear the question for their revision, or that know no other way.
            self._is_old = not self._is_old
        self.state = f"failed: {reason}"
        self.started.set()
        log.warning("an MCP server failed", server=self.name, reason=reason)


@attrs.frozen
class McpServers:
    """All servers that are enabled."""

    _servers: tuple[Server, ...] = ()

    def tools(self) -> tuple[Tool, ...]:
        """What they offer at this moment, in the order of the configuration and of the names."""
        return tuple(tool for server in self._servers for tool in server.tools)

    def states(self) -> Mapping[str, str]:
        """For each of them ``starting``, ``running`` or ``failed: <why>``."""
        return {server.name: server.state for server in self._servers}

    async def wait_started(self) -> None:
        """Return when each has run or failed, once."""
        for server in self._servers:
            await server.started.wait()


@asynccontextmanager
async def open_mcp_servers(
    config: McpConfig, *, folder: Path, restarts: Restarts = Restarts()
) -> AsyncIterator[McpServers]:
    """Start the servers, without waiting for them; leaving ends them all.

    Where the ``mcp`` package is missing nothing is offered, and the log says so.

    Args:
        folder: where a relative ``env_file`` is looked up.

    Cancellation: as on leaving, processes are ended before it goes on; that takes at most some 6 seconds.
    """
    enabled = {name: server for name, server in config.servers.items() if config.enabled and server.enabled}
    ambiguous = ambiguous_names(enabled)
    servers = tuple(Server(name, server, folder, restarts, name in ambiguous) for name, server in enabled.items())
    async with trio.open_nursery() as nursery:
        if servers:
            nursery.start_soon(_run, servers)
        yield McpServers(servers)
        nursery.cancel_scope.cancel()


async def _run(servers: tuple[Server, ...]) -> None:
    try:
        package = await trio.to_thread.run_sync(_load, abandon_on_cancel=True)
    except ImportError as exc:
        log.error("MCP servers are configured and cannot be used", reason=NOT_INSTALLED, error=str(exc))
        for server in servers:
            server.state = f"failed: {NOT_INSTALLED}"
            server.started.set()
        return
    async with trio.open_nursery() as nursery:
        for server in servers:
            nursery.start_soon(server.run, package)


def _load() -> Package:
    """In a thread: to load the package takes a second."""
    from .mcp_link import describe, open_link

    return Package(open_link, describe)
