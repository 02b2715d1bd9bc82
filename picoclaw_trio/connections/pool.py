"""Kept-alive HTTP/1.1 connections to upstreams: POST a body, read the answer as it arrives.

Theory: a connection is either in the hands of one request or idle in the free list of its lane (address and proxy),
never between the two: changing hands is synchronous, so no cancellation can lose one. An answer read to its end
gives its connection back at once; every other way out of ``post`` closes the socket on the spot, without an await.
Editing rule: a request is sent a second time in one case only, the one that ``Connection.is_stale`` describes.

Why h11 under a free list of our own: CPU time per request in microseconds, one task / 32 tasks, Python 3.11 and 3.13,
keep-alive, answers of 700 bytes from another process, 2-core AMD EPYC VM, 2026-11-23, median of 5 rounds of 1600:
httpx2.AsyncClient 506 / 544 and 553 / 485; httpcore2's connection objects under such a list 332 / 236 and 375 / 355;
h11 over Trio's streams 203 / 146 and 208 / 127.
"""

from __future__ import annotations

import math
import ssl
from collections import OrderedDict, deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import attrs
import h11
import trio

from .addresses import Address, Proxy, Url, environment_proxy, parse_proxy
from .dialing import ConnectError, dial, trust_system
from .exchange import Connection, ConnectionLost, Headers, Response, TimedOut
from .heads import write_head
from .names import own_threads


@attrs.frozen
class Timeouts:
    """How long each phase may take, in seconds.

    Attributes:
        connect: name lookup, TCP, proxy and TLS together.
        answer: from the first byte of the request sent to the answer's head received; inf where the caller has a limit
            of his own, since a second one takes 1 % of a request's processor time.
        read: from one piece of the answer to the next.
    """

    connect: float = 10.0
    answer: float = 120.0
    read: float = 120.0


DEFAULT_TIMEOUTS = Timeouts()


@attrs.frozen
class Statistics:
    """Connections now (idle, in use) and since the start (opened, taken from a free list, closed)."""

    idle: int
    active: int
    opened: int
    reused: int
    closed: int


@attrs.frozen(eq=False)
class Lane:
    """One way to one address, and its idle connections, the one used last at the right."""

    address: Address
    proxy: Proxy | None
    idle: deque[Connection] = attrs.field(factory=deque)

    @property
    def peer(self) -> str:
        """What to call the other side."""
        return f"{self.address} (by way of {self.proxy.address})" if self.proxy else str(self.address)

    @property
    def forwarder(self) -> Proxy | None:
        """The proxy that is sent the requests themselves, if there is one."""
        return self.proxy if self.proxy and self.proxy.forwards(self.address) else None


@attrs.define(eq=False)
class ConnectionPool:
    """Connections to any number of upstreams. Nobody waits for another's: how many there are is decided elsewhere."""

    _max_idle: int
    _idle_timeout: float
    _tls: ssl.SSLContext | None
    # One for each address and proxy ever asked for. All come from the configuration, so they are few.
    _lanes: dict[tuple[Address, str | None], Lane] = attrs.field(factory=dict)
    _active: dict[Connection, Lane] = attrs.field(factory=dict)
    # {connection: (lane, when it expires)}, the one that expires first at the front; it is the leftmost of its lane.
    _idle: OrderedDict[Connection, tuple[Lane, float]] = attrs.field(factory=OrderedDict)
    _opened: int = 0
    _reused: int = 0
    _closed: int = 0
    _is_open: bool = True

    @asynccontextmanager
    async def post(
        self,
        url: Url,
        headers: Headers,
        body: bytes,
        *,
        proxy: str | None = None,
        timeouts: Timeouts = DEFAULT_TIMEOUTS,
    ) -> AsyncIterator[Response]:
        """POST *body* and yield the answer as soon as its head has come, whatever its status; no redirect is followed.

        Args:
            headers: all but host, content-length and accept-encoding.
            proxy: see ``parse_proxy``; None: as the environment says, see ``environment_proxy``.

        Raises:
            ValueError: *headers* or *proxy* cannot be used; the text does not repeat them.
            ConnectError: nothing was sent.
            ConnectionLost, ProtocolError, TimedOut: here or while the answer is read.
        Cancellation: the connection is closed at once, as it is when the answer is not read to its end.
        """
        lane = self._lane(url.address, proxy)
        head = write_head(url, lane.forwarder, tuple(headers), len(body))
        connection, answer = await self._exchange(lane, head, body, timeouts)
        response = Response(answer.status_code, answer.headers, connection, timeouts.read, self._give_back)
        try:
            yield response
            response.settle()
        finally:
            # A whole one has given its connection back, and it may be another request's by now.
            if not response.is_whole:
                self._drop(connection)

    def statistics(self) -> Statistics:
        """The figures of this moment."""
        return Statistics(len(self._idle), len(self._active), self._opened, self._reused, self._closed)

    async def run_sweeper(self) -> None:
        """Close idle connections on time even when no request comes by. A task for the server's nursery; never ends.

        Without it they are closed at the next request's end, or with the pool.
        """
        while True:
            await trio.sleep(self._idle_timeout)
            self._sweep()

    def close(self) -> None:
        """Close everything. Requests under way fail with ConnectionLost; there can be no new ones."""
        self._is_open = False
        self._max_idle = 0
        self._sweep()
        for connection in tuple(self._active):
            self._drop(connection)

    def _lane(self, address: Address, proxy: str | None) -> Lane:
        lane = self._lanes.get((address, proxy))
        if lane is None:
            try:
                way = environment_proxy(address) if proxy is None else parse_proxy(proxy)
            except ValueError as exc:
                source = "that the environment names " if proxy is None else ""
                raise ConnectError(f"the proxy {source}for {address} cannot be used: {exc}") from exc
            lane = Lane(address, way)
            self._lanes[address, proxy] = lane
        return lane

    async def _exchange(
        self, lane: Lane, head: bytes, body: bytes, timeouts: Timeouts
    ) -> tuple[Connection, h11.Response]:
        connection = self._take(lane)
        if connection is not None:
            try:
                return connection, await self._ask(connection, head, body, timeouts.answer)
            except ConnectionLost:
                if not connection.is_stale():
                    raise
        connection = await self._open(lane, timeouts.connect)
        return connection, await self._ask(connection, head, body, timeouts.answer)

    async def _ask(self, connection: Connection, head: bytes, body: bytes, seconds: float) -> h11.Response:
        try:
            if seconds == math.inf:
                return await connection.ask(head, body)
            with trio.move_on_after(seconds):
                return await connection.ask(head, body)
            raise TimedOut(connection.peer, "answer", seconds)
        except BaseException:
            self._drop(connection)
            raise

    async def _open(self, lane: Lane, seconds: float) -> Connection:
        with trio.move_on_after(seconds):
            wire = await dial(lane.address, lane.proxy, self._trust)
            connection = Connection(lane.peer, wire)
            self._opened += 1
            self._active[connection] = lane
            if not self._is_open:
                self._drop(connection)
                raise ConnectError("the connection pool is closed")
            return connection
        raise TimedOut(lane.peer, "connect", seconds)

    def _trust(self) -> ssl.SSLContext:
        """Made when it is first needed: to read the system's certificates takes some 30 ms."""
        if self._tls is None:
            self._tls = trust_system()
        self._tls.set_alpn_protocols(["http/1.1"])
        return self._tls

    def _take(self, lane: Lane) -> Connection | None:
        now = trio.current_time()
        while lane.idle:
            connection = lane.idle.pop()
            _, expires_at = self._idle.pop(connection)
            # Whatever has come without being asked for, an end or a late answer: this connection is of no more use.
            if now < expires_at and connection.wire.is_quiet():
                self._reused += 1
                self._active[connection] = lane
                return connection
            self._shut(connection)
        return None

    def _give_back(self, connection: Connection) -> None:
        if not connection.renew():
            self._drop(connection)
        elif (lane := self._active.pop(connection, None)) is not None:
            lane.idle.append(connection)
            self._idle[connection] = lane, trio.current_time() + self._idle_timeout
            self._sweep()

    def _sweep(self) -> None:
        """Close what has expired and what is too much, the oldest first."""
        now = trio.current_time()
        while self._idle:
            connection, (lane, expires_at) = next(iter(self._idle.items()))
            if now < expires_at and len(self._idle) <= self._max_idle:
                return
            del self._idle[connection]
            lane.idle.popleft()
            self._shut(connection)

    def _drop(self, connection: Connection) -> None:
        """Close a connection that is in use; the pool's end may have done it before."""
        if self._active.pop(connection, None) is not None:
            self._shut(connection)

    def _shut(self, connection: Connection) -> None:
        self._closed += 1
        connection.wire.close()


@asynccontextmanager
async def open_pool(
    *, max_idle: int = 64, idle_timeout: float = 4.5, tls: ssl.SSLContext | None = None
) -> AsyncIterator[ConnectionPool]:
    """A pool that keeps at most *max_idle* connections for at most *idle_timeout* seconds; leaving closes all.

    The default is below the 5 s after which many servers close an idle connection (uvicorn, Node.js). *tls* None: the
    certificates that the system trusts.
    """
    pool = ConnectionPool(max_idle, idle_timeout, tls)
    with own_threads():
        try:
            yield pool
        finally:
            pool.close()
