"""Opening a byte stream to an upstream: TCP, then a proxy, then TLS, each where it is asked for.

Theory: a stream is opened seldom, so this room may be slow and clear. It knows nothing of requests. What it opens it
hands over whole, or it closes the socket at once, without an await, whatever the reason: an error, a cancellation.
Editing rule: every failure leaves as ConnectError, and no text of it holds a user name, a password or a header.
"""

from __future__ import annotations

import os
import socket
import ssl
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import TypeAlias

import attrs
import h11
import trio
import truststore

from ..plain_socket import PlainSocket
from .addresses import Address, Proxy, parse_ip

Trust: TypeAlias = Callable[[], ssl.SSLContext]

# A NAT box forgets a silent connection after four to six minutes, and a model may think for longer than that.
KEEPALIVE_OPTIONS = (("TCP_KEEPIDLE", 60), ("TCP_KEEPINTVL", 15), ("TCP_KEEPCNT", 4))
MAX_PROXY_HEAD = 65_536
# RFC 1928 section 6
SOCKS_REPLIES = {
    1: "general failure",
    2: "not allowed by its rules",
    3: "network unreachable",
    4: "host unreachable",
    5: "connection refused",
    6: "time to live ran out",
    7: "command not supported",
    8: "kind of address not supported",
}


class ExchangeError(Exception):
    """There is no answer, or not all of one. The text is for the log: it names hosts, never keys or passwords."""


class ConnectError(ExchangeError):
    """No connection could be opened, so nothing was sent: to ask again, here or elsewhere, is safe."""


@attrs.frozen(eq=False)
class Wire:
    """An open stream and the socket at its bottom, the same where there is no TLS. It can be closed without waiting."""

    stream: PlainSocket | trio.abc.Stream
    socket: PlainSocket | trio.socket.SocketType

    async def send_all(self, data: bytes | memoryview) -> None:
        """Send; a checkpoint only where that has to wait."""
        if isinstance(self.stream, PlainSocket):
            data = data[self.stream.send_nowait(data) :]
        if data:
            await self.stream.send_all(data)

    def close(self) -> None:
        """Close at once. TLS gets no goodbye: where an HTTP/1.1 message ends does not depend on one."""
        self.socket.close()

    def is_quiet(self) -> bool:
        """Whether nothing has come in, neither bytes nor an end, that nobody has read."""
        if self.socket.is_readable():
            return False
        # A TLS stream may hold records that it took from the socket together with the answer's last one.
        return not isinstance(self.stream, trio.SSLStream) or not self.stream._incoming.pending


def trust_system() -> ssl.SSLContext:
    """A client's TLS settings with the system's certificates; SSL_CERT_FILE and SSL_CERT_DIR name others."""
    if sys.platform == "linux":
        # truststore would use OpenSSL's own here, but read them anew for each handshake: 20 ms instead of 0.1.
        return ssl.create_default_context()
    return truststore.SSLContext(ssl.PROTOCOL_TLS_CLIENT)


async def dial(address: Address, proxy: Proxy | None, trust: Trust) -> Wire:
    """Open a stream to *address*, through *proxy* if it is not None.

    The stream ends at the proxy itself where ``proxy.forwards(address)``. *trust* gives the TLS settings where the
    way needs some.

    Raises:
        ConnectError: with the reason in words.
    Cancellation: the socket is closed.
    """
    tcp = await _connect(proxy.address if proxy else address)
    try:
        _keep_alive(tcp)
        stream = await _climb(tcp, address, proxy, trust)
        if stream is not tcp:
            return Wire(stream, tcp.socket)
        plain = PlainSocket(socket.socket(fileno=tcp.socket.detach()))
        return Wire(plain, plain)
    except BaseException as exc:
        tcp.socket.close()
        if isinstance(exc, trio.BrokenResourceError):
            raise ConnectError(f"{proxy.address if proxy else address} broke the connection off") from exc
        raise


async def _connect(address: Address) -> trio.SocketStream:
    try:
        return await trio.open_tcp_stream(address.host, address.port)
    except OSError as exc:
        raise ConnectError(f"cannot connect to {address}: {_why(exc)}") from exc


def _keep_alive(tcp: trio.SocketStream) -> None:
    with suppress(OSError):  # a connection that has been reset already; whoever uses it will see
        tcp.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_KEEPALIVE, 1)
        for name, value in KEEPALIVE_OPTIONS:
            if hasattr(trio.socket, name):
                tcp.setsockopt(trio.socket.IPPROTO_TCP, getattr(trio.socket, name), value)


def _why(exc: BaseException | None) -> str:
    """The reason in words: each attempt's own where several addresses were tried, the certificate's where it is one."""
    match exc:
        case OSError(__cause__=ExceptionGroup() as attempts):
            return ", ".join(sorted({_why(attempt) for attempt in attempts.exceptions}))
        case ssl.SSLCertVerificationError():
            return f"{exc.verify_message} (SSL_CERT_FILE may name a file of certificates to trust)"
        case ssl.SSLError():
            return (exc.reason or "closed half-way").lower().replace("_", " ")
        case socket.gaierror(strerror=str(text)):
            return text
        case OSError(errno=int(number)):
            return os.strerror(number)
    return "broken off"


async def _climb(stream: trio.abc.Stream, address: Address, proxy: Proxy | None, trust: Trust) -> trio.abc.Stream:
    if proxy is not None:
        if proxy.address.scheme == "https":
            stream = await _start_tls(stream, proxy.address, trust())
        if proxy.address.scheme == "socks5":
            await _ask_socks(stream, address, proxy)
        elif not proxy.forwards(address):
            await _ask_tunnel(stream, address, proxy)
    return await _start_tls(stream, address, trust()) if address.scheme == "https" else stream


async def _start_tls(stream: trio.abc.Stream, address: Address, tls: ssl.SSLContext) -> trio.abc.Stream:
    secure = trio.SSLStream(stream, tls, server_hostname=address.host, https_compatible=True)
    try:
        await secure.do_handshake()
    except trio.BrokenResourceError as exc:
        raise ConnectError(f"TLS with {address} failed: {_why(exc.__cause__)}") from exc
    return secure


async def _ask_tunnel(stream: trio.abc.Stream, address: Address, proxy: Proxy) -> None:
    """RFC 9110 section 9.3.6."""
    http = h11.Connection(h11.CLIENT, MAX_PROXY_HEAD)
    headers = [(b"host", str(address).encode("ascii")), *proxy.authorization()]
    await stream.send_all(http.send(h11.Request(method="CONNECT", target=str(address), headers=headers)) or b"")
    http.send(h11.EndOfMessage())
    try:
        while type(event := http.next_event()) is not h11.Response:
            if event is h11.NEED_DATA:
                http.receive_data(bytes(await stream.receive_some(MAX_PROXY_HEAD)))
    except h11.RemoteProtocolError as exc:
        raise ConnectError(f"the proxy {proxy.address} does not answer in HTTP") from exc
    if not 200 <= event.status_code < 300:
        raise ConnectError(f"the proxy {proxy.address} refused a tunnel to {address} with status {event.status_code}")


async def _ask_socks(stream: trio.abc.Stream, address: Address, proxy: Proxy) -> None:
    """RFC 1928, and RFC 1929 for the password."""
    await stream.send_all(b"\x05\x02\x00\x02" if proxy.user else b"\x05\x01\x00")
    _, method = await _receive_exactly(stream, 2)
    if method == 2 and proxy.user:
        user, password = proxy.user, proxy.password
        await stream.send_all(b"\x01%c%b%c%b" % (len(user), user, len(password), password))
        _, method = await _receive_exactly(stream, 2)
    if method:
        raise ConnectError(f"the proxy {proxy.address} did not let us in")
    ip, name = parse_ip(address.host), address.host.encode("ascii")
    where = bytes([1 if ip.version == 4 else 4]) + ip.packed if ip else b"\x03%c%b" % (len(name), name)
    await stream.send_all(b"\x05\x01\x00" + where + address.port.to_bytes(2, "big"))
    _, reply, _, kind = await _receive_exactly(stream, 4)
    if reply:
        reason = SOCKS_REPLIES.get(reply, f"reply {reply}")
        raise ConnectError(f"the proxy {proxy.address} could not reach {address}: {reason}")
    length = {1: 4, 4: 16}.get(kind) or (await _receive_exactly(stream, 1))[0]
    await _receive_exactly(stream, length + 2)


async def _receive_exactly(stream: trio.abc.Stream, count: int) -> bytes:
    data = b""
    while len(data) < count:
        piece = await stream.receive_some(count - len(data))
        if not piece:
            raise trio.BrokenResourceError
        data += piece
    return data
