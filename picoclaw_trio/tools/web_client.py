"""One GET: the host resolved once, every address checked, and the connection made to one of those that were.

Theory: a name that is resolved a second time may have changed meanwhile, so nothing here resolves twice. Nothing of a
caller's is sent: no cookie, no credential, and no proxy of the environment is asked, since it would do the resolving.
Each answer has a connection of its own, which is closed when it has been read or dropped.
Editing rule: every way out closes the socket at once; every failure is a ``ToolError`` that tells no address.
"""

from __future__ import annotations

import ssl
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import attrs
import h11
import trio

from .._version import __version__
from ..connections.addresses import Url
from ..connections.inflating import Inflater
from .public_addresses import AddressRules
from .values import ToolError

MAX_HEAD = 65_536
MAX_RECEIVE = 65_536
MAX_ADDRESSES = 8
# So that an address that swallows everything leaves time for the next.
CONNECT_TIMEOUT = 5.0
HEADERS = [
    (b"user-agent", f"picoclaw-trio/{__version__}".encode()),
    (b"accept", b"text/html, text/plain;q=0.9, application/json;q=0.9, */*;q=0.5"),
    (b"accept-encoding", b"gzip, deflate"),
    (b"connection", b"close"),
]

# What ``getaddrinfo`` gives: (family, kind of socket, protocol, canonical name, (address, port, ...)) for each.
Found = tuple[int, int, int, str, tuple[Any, ...]]
Resolve = Callable[[str, int], Awaitable[list[Found]]]
Trust = Callable[[], ssl.SSLContext]


async def resolve_host(host: str, port: int) -> list[Found]:
    """All addresses of *host*, in whatever way it is spelt."""
    found = await trio.socket.getaddrinfo(host, port, type=trio.socket.SOCK_STREAM)
    return [(family, kind, protocol, name, address) for family, kind, protocol, name, address in found]


@attrs.frozen
class Page:
    """An answer. ``body`` is unpacked; ``is_cut``: it was longer."""

    status: int
    reason: str
    headers: dict[str, str]
    body: bytes
    is_cut: bool


@attrs.define
class WebClient:
    """Fetches from where *rules* let it."""

    rules: AddressRules
    resolve: Resolve
    trust: Trust
    max_bytes: int
    _tls: ssl.SSLContext | None = None

    async def get(self, url: Url) -> Page:
        """GET *url*; a redirect is an answer like any other, but its body is not read.

        Raises:
            ToolError: it is not to be fetched, or there is no whole answer.
        Cancellation: the connection is closed at once.
        """
        addresses = await self._check(url)
        async with self._connect(url, addresses) as stream:
            try:
                return await self._exchange(stream, url)
            except (trio.BrokenResourceError, h11.RemoteProtocolError) as exc:
                raise ToolError(f"{url.address} broke off its answer, or did not answer in HTTP.") from exc
            except zlib.error as exc:
                raise ToolError(f"{url.address} packed its answer in a way that cannot be undone.") from exc

    async def _check(self, url: Url) -> list[Found]:
        """The addresses of the host, all of which may be connected to."""
        host, port = url.address.host, url.address.port
        if port < 1024 and port not in (80, 443):
            raise ToolError(f"Port {port} is not one for web pages.")
        try:
            found = await self.resolve(host, port)
        except OSError as exc:
            raise ToolError(f"There is no host {host}, or it cannot be looked up.") from exc
        if not found or not all(self.rules.permit(str(address[0])) for *_, address in found):
            raise ToolError(f"{host} is not on the public internet, so it is not fetched.")
        return found[:MAX_ADDRESSES]

    @asynccontextmanager
    async def _connect(self, url: Url, addresses: list[Found]) -> AsyncIterator[trio.abc.Stream]:
        plain = await _open_socket(url, addresses)
        try:
            yield plain if url.address.scheme == "http" else await self._start_tls(plain, url)
        finally:
            plain.socket.close()

    async def _start_tls(self, plain: trio.SocketStream, url: Url) -> trio.abc.Stream:
        if self._tls is None:
            # It reads the system's certificates: some 30 ms.
            self._tls = await trio.to_thread.run_sync(self.trust)
        secure = trio.SSLStream(plain, self._tls, server_hostname=url.address.host, https_compatible=True)
        try:
            await secure.do_handshake()
        except trio.BrokenResourceError as exc:
            why = getattr(exc.__cause__, "verify_message", None) or "the handshake failed"
            raise ToolError(f"TLS with {url.address} failed: {why}.") from exc
        return secure

    async def _exchange(self, stream: trio.abc.Stream, url: Url) -> Page:
        http = h11.Connection(h11.CLIENT, MAX_HEAD)
        request = h11.Request(method=b"GET", target=url.target, headers=[(b"host", url.authority), *HEADERS])
        await stream.send_all((http.send(request) or b"") + (http.send(h11.EndOfMessage()) or b""))
        head = await _next_event(http, stream)
        while isinstance(head, h11.InformationalResponse):
            head = await _next_event(http, stream)
        assert isinstance(head, h11.Response)
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in head.headers}
        is_redirect = 300 <= head.status_code < 400
        body, is_cut = (b"", False) if is_redirect else await self._read_body(http, stream, headers)
        return Page(head.status_code, head.reason.decode("latin-1"), headers, body, is_cut)

    async def _read_body(
        self, http: h11.Connection, stream: trio.abc.Stream, headers: dict[str, str]
    ) -> tuple[bytes, bool]:
        """The body, unpacked, up to its bound. What comes packed is bounded too: it may unpack to nothing."""
        coding = headers.get("content-encoding", "identity").strip().lower()
        inflater = None if coding in ("identity", "") else Inflater(coding)
        body, packed = bytearray(), 0
        while isinstance(event := await _next_event(http, stream), h11.Data):
            packed += len(event.data)
            for piece in _unpack(inflater, bytes(event.data)):
                body += piece
                if len(body) > self.max_bytes:
                    return bytes(body[: self.max_bytes]), True
            if packed > self.max_bytes:
                return bytes(body), True
            await trio.lowlevel.checkpoint()
        if inflater and not inflater.is_whole():
            raise zlib.error
        return bytes(body), False


def _unpack(inflater: Inflater | None, data: bytes) -> Iterator[bytes]:
    if inflater is None:
        yield data
        return
    inflater.put(data)
    while piece := inflater.take():
        yield piece


async def _next_event(http: h11.Connection, stream: trio.abc.Stream) -> h11.Event:
    while (event := http.next_event()) is h11.NEED_DATA:
        http.receive_data(bytes(await stream.receive_some(MAX_RECEIVE)))
    if isinstance(event, h11.ConnectionClosed) or event is h11.PAUSED:
        raise h11.RemoteProtocolError("no answer")
    assert isinstance(event, h11.Event)
    return event


async def _open_socket(url: Url, addresses: list[Found]) -> trio.SocketStream:
    """A connection to the first of *addresses* that takes one."""
    for family, kind, protocol, _, address in addresses:
        opened = trio.socket.socket(family, kind, protocol)
        is_connected = False
        try:
            with trio.move_on_after(CONNECT_TIMEOUT):
                await opened.connect(address)
                is_connected = True
        except OSError:
            pass  # the next may be better; what the model gets to know is the same for all reasons
        finally:
            if not is_connected:
                opened.close()
        if is_connected:
            return trio.SocketStream(opened)
    raise ToolError(f"No connection to {url.address} could be opened.")
