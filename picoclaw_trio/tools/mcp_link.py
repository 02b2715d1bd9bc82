"""One session with one MCP server: opened, asked what it offers, called, and left.

Theory: the package's own client is entered and left by one task, the server's. Calls come from the turns' tasks and use
the session side by side; a cancelled call tells the server so and leaves the session as it is. Whatever breaks the
session raises in the server's task. A call that failed for another reason than the tool's own makes that task ask
for the list again, which shows whether the session still lives.
Editing rule: this room and what it imports are imported late: the ``mcp`` package is an extra, and slow to load.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import attrs
import httpx2
import structlog
import trio
from mcp.client.client import Client
from mcp.client.session import IncomingMessage
from mcp.client.subscriptions import SubscriptionLost
from mcp.shared.exceptions import MCPError
from mcp_types import (
    CONNECTION_CLOSED,
    CallToolRequest,
    CallToolRequestParams,
    CallToolResult,
    Implementation,
    InputRequiredResult,
    PaginatedRequestParams,
    ToolListChangedNotification,
)
from mcp_types import Tool as Offered
from mcp_types.version import MODERN_PROTOCOL_VERSIONS
from pydantic import TypeAdapter, ValidationError

from .._version import __version__
from ..config.tools import McpServerConfig
from ..shapes import Json
from .clean import clean_text
from .mcp_environment import added_environment, whole_environment
from .mcp_http import open_http
from .mcp_offers import MAX_TOOLS
from .mcp_results import result_text
from .mcp_stdio import ServerGone, open_process
from .values import ToolError

log = structlog.stdlib.get_logger("picoclaw_trio.tools.mcp")

US = Implementation(name="picoclaw-trio", version=__version__)
ANSWERS: TypeAdapter[CallToolResult | InputRequiredResult] = TypeAdapter(CallToolResult | InputRequiredResult)
MAX_PAGES = 64
MAX_REASON = 300
# Shorter values of a server's environment are switches and numbers, not keys; the log may show them.
MIN_SECRET = 6
# A server that says without end that its list has changed is asked twice a second at most.
PAUSE_BETWEEN_LISTS = 0.5
# Over HTTP nothing else tells that an idle server of the older protocol has gone, or that its list has changed.
MAX_LIST_AGE = 60.0
MIN_SUBSCRIBE_DELAY, MAX_SUBSCRIBE_DELAY = 1.0, 60.0

Keep = Callable[[list[Offered]], None]


@attrs.define(eq=False)
class Link:
    """A session that is open."""

    server: str
    _timeout: float
    _client: Client
    _doubt: trio.Event = attrs.field(factory=trio.Event)

    async def list_tools(self) -> list[Offered]:
        """What the server offers now; one more than is allowed at most.

        Raises:
            MCPError, ValidationError: it does not give a list.
        """
        found: list[Offered] = []
        cursor = None
        for _ in range(MAX_PAGES):
            page = await self._client.session.list_tools(params=PaginatedRequestParams(cursor=cursor))
            found += page.tools
            cursor = page.next_cursor
            if cursor is None or len(found) > MAX_TOOLS:
                break
        return found[: MAX_TOOLS + 1]

    async def follow(self, keep: Keep) -> None:
        """Give *keep* a new list whenever there may be one, and each minute. A task; what breaks the session ends it.

        Raises:
            MCPError, ValidationError: as ``list_tools``.
            trio.TooSlowError: it did not answer in time.
        """
        async with trio.open_nursery() as nursery:
            if self._client.protocol_version in MODERN_PROTOCOL_VERSIONS:
                nursery.start_soon(self._subscribe)
            while True:
                with trio.move_on_after(MAX_LIST_AGE):
                    await self._doubt.wait()
                self._doubt = trio.Event()
                with trio.fail_after(self._timeout):
                    keep(await self.list_tools())
                await trio.sleep(PAUSE_BETWEEN_LISTS)

    async def call(self, tool: str, arguments: Mapping[str, Json]) -> str:
        """Call *tool* and give its result as text.

        Raises:
            ToolError: it failed, or there was no result in time.
        Cancellation: the server is told; that may take up to 5 seconds where it reads nothing more.
        """
        request = CallToolRequest(params=CallToolRequestParams(name=tool, arguments=dict(arguments)))
        try:
            with trio.fail_after(self._timeout):
                result = await self._client.session.send_request(request, ANSWERS)
        except trio.TooSlowError as exc:
            raise self._failed(f"The MCP server {self.server} gave no result within {self._timeout:g} s.") from exc
        except MCPError as exc:
            if exc.code == CONNECTION_CLOSED:
                raise self._failed(f"The connection to the MCP server {self.server} broke during the call.") from exc
            reason = clean_text(exc.message, MAX_REASON)
            raise self._failed(f"The MCP server {self.server} refused the call: {reason}") from exc
        except (ValidationError, anyio.ClosedResourceError, anyio.BrokenResourceError) as exc:
            raise self._failed(f"The MCP server {self.server} gave an answer that makes no sense.") from exc
        if isinstance(result, InputRequiredResult):
            raise ToolError("The tool asks back, for a person or a model, and nobody is there to answer it.")
        return result_text(result)

    def doubt(self) -> None:
        """Have the list asked for again."""
        self._doubt.set()

    async def hear(self, message: IncomingMessage) -> None:
        """Take a message that answers nothing. A handler of the package's client."""
        if isinstance(message, ToolListChangedNotification):
            self.doubt()

    def _failed(self, text: str) -> ToolError:
        self.doubt()
        return ToolError(text)

    async def _subscribe(self) -> None:
        """Since 2026 a server tells of a new list only those who have asked to be told."""
        delay = MIN_SUBSCRIBE_DELAY
        while True:
            try:
                async with self._client.listen(tools_list_changed=True) as changes:
                    async for _ in changes:
                        self.doubt()
            except MCPError as exc:
                log.debug("an MCP server will not tell of changes", server=self.server, reason=exc.message)
                return
            except SubscriptionLost:
                self.doubt()
            await trio.sleep(delay)
            delay = min(2 * delay, MAX_SUBSCRIBE_DELAY)


@asynccontextmanager
async def open_link(name: str, config: McpServerConfig, folder: Path, *, is_old: bool = False) -> AsyncIterator[Link]:
    """Connect to the server *name* and agree on the protocol. To be entered and left by one task.

    ``is_old``: begin as the revisions before 2026 do, for a server that cannot bear to be asked for its revision first.

    Raises:
        Exception: here or on leaving, perhaps in a group; ``describe`` has the words.
    Cancellation: a process is ended before it goes on, with its children.
    """
    links: list[Link] = []

    async def hear(message: IncomingMessage) -> None:
        for link in links:
            await link.hear(message)

    transport = await _transport(name, config, folder)
    mode = "legacy" if is_old else "auto"
    async with Client(transport, mode=mode, message_handler=hear, client_info=US, cache=None) as client:
        links.append(Link(name, config.timeout, client))
        yield links[0]


async def _transport(name: str, config: McpServerConfig, folder: Path) -> AbstractAsyncContextManager[Any]:
    if config.type == "stdio" or (config.type is None and config.command is not None):
        if config.command is None:
            raise ValueError("its configuration has no command")
        added = await added_environment(config, folder)
        secrets = [value for value in added.values() if len(value) >= MIN_SECRET]
        return open_process(name, [config.command, *config.args], whole_environment(added), secrets)
    if config.url is None:
        raise ValueError("its configuration has no url")
    return open_http(config)


def describe(exc: BaseException) -> str:
    """Why a session ended, for the log and the status page: without an address, a header or an environment."""
    match exc:
        case BaseExceptionGroup(exceptions=(first, *_)):
            return describe(first)
        case ServerGone() | UnicodeDecodeError():
            return str(exc)
        case trio.TooSlowError():
            return "it did not answer in time"
        case MCPError(code=code, message=message):
            return f"it answered with error {code}: {clean_text(message, MAX_REASON)}"
        case httpx2.HTTPStatusError(response=response):
            return f"it answered with status {response.status_code}"
        case httpx2.HTTPError():
            return f"the connection failed ({type(exc).__name__})"
        case ValidationError():
            return "it gave an answer that makes no sense"
        case OSError(strerror=str(text)):
            return text.lower()
        case ValueError():
            return str(exc)
    return f"an unexpected {type(exc).__name__}"
