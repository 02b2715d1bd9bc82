"""An MCP server that is reached over HTTP: the package's transports, with bounds and the end of the connection told.

Theory: a connection that has ended is told to the session only as the end of a stream; here it becomes an exception in
the server's task, which is what starts it anew.
Editing rule: the address and the headers of a server are secrets: no text from here holds them.
"""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import cache
from typing import Any

import anyio
import attrs
import httpx2
import trio
from anyio.streams.memory import MemoryObjectSendStream
from mcp.client.sse import sse_client
from mcp.client.streamable_http import streamable_http_client
from mcp.shared.message import SessionMessage

from ..config.tools import McpServerConfig
from ..connections.addresses import environment_proxy, parse_url
from ..connections.dialing import trust_system
from .mcp_stdio import MAX_MESSAGE_BYTES, ServerGone

CONNECT_TIMEOUT = 10.0
# Where a call has been cancelled its connection may stay until the server ends it; past this many a request fails,
# which ends the session and closes them all.
MAX_CONNECTIONS = 64


@asynccontextmanager
async def open_http(config: McpServerConfig) -> AsyncIterator[Any]:
    """Give what a session of the ``mcp`` package reads from and writes to.

    Raises:
        ServerGone: on leaving, in a group: the connection has ended.
        httpx2.HTTPError: here or on leaving, in a group: it failed.
        ValueError: the address cannot be used.
    """
    tls = await trio.to_thread.run_sync(_trust)
    into, inbox = anyio.create_memory_object_stream[SessionMessage | Exception](0)
    with into, inbox:
        async with _transport(config, tls) as (source, outbox), trio.open_nursery() as nursery:
            nursery.start_soon(_pass_on, source, into)
            yield inbox, outbox
            nursery.cancel_scope.cancel()


@cache
def _trust() -> ssl.SSLContext:
    return trust_system()


def _transport(config: McpServerConfig, tls: ssl.SSLContext) -> AbstractAsyncContextManager[Any]:
    assert config.url is not None
    if config.type == "sse":
        headers = {name: secret.reveal() for name, secret in config.headers.items()}
        return sse_client(config.url, headers, config.timeout, None, _factory(config, tls))  # type: ignore[arg-type]  # None: a server may be silent for long
    return _streamable(config, tls)


@asynccontextmanager
async def _streamable(config: McpServerConfig, tls: ssl.SSLContext) -> AsyncIterator[Any]:
    assert config.url is not None
    async with _client(config, tls) as client:
        transport = streamable_http_client(config.url, http_client=client, max_sse_event_size=MAX_MESSAGE_BYTES)
        async with transport as streams:
            yield streams


def _factory(config: McpServerConfig, tls: ssl.SSLContext) -> Callable[..., httpx2.AsyncClient]:
    def make(**_given: Any) -> httpx2.AsyncClient:
        return _client(config, tls)

    return make


def _client(config: McpServerConfig, tls: ssl.SSLContext) -> httpx2.AsyncClient:
    assert config.url is not None
    headers = {name: secret.reveal() for name, secret in config.headers.items()}
    return httpx2.AsyncClient(
        headers={"accept-encoding": "identity", **headers},
        # How long an answer may take is decided for each call, and a stream may be silent as long as it likes.
        timeout=httpx2.Timeout(config.timeout, connect=min(CONNECT_TIMEOUT, config.timeout), read=None),
        limits=httpx2.Limits(max_connections=MAX_CONNECTIONS),
        verify=tls,
        # The library would send loopback addresses to a proxy too.
        trust_env=environment_proxy(parse_url(config.url).address) is not None,
        event_hooks={"response": [_bound]},
    )


async def _bound(response: httpx2.Response) -> None:
    """Let an answer be only so large. An event stream has a bound for each event instead."""
    is_events = response.headers.get("content-type", "").lower().startswith("text/event-stream")
    is_packed = response.headers.get("content-encoding", "identity").lower() != "identity"
    assert isinstance(response.stream, httpx2.AsyncByteStream)
    if is_packed or not is_events:
        response.stream = _BoundedStream(response.stream, 0 if is_packed else MAX_MESSAGE_BYTES)


@attrs.define
class _BoundedStream(httpx2.AsyncByteStream):
    _stream: httpx2.AsyncByteStream
    _left: int

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for data in self._stream:
            self._left -= len(data)
            if self._left < 0:
                # This one costs only the request that it answers.
                raise httpx2.StreamError("the answer is too large, or packed though that was not asked for")
            yield data

    async def aclose(self) -> None:
        await self._stream.aclose()


async def _pass_on(source: Any, into: MemoryObjectSendStream[SessionMessage | Exception]) -> None:
    async for item in source:
        await into.send(item)
    raise ServerGone("the connection ended")
