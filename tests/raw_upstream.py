"""Upstreams and proxies that do byte for byte what a test wants, over real sockets; and cancelling at any step."""

from __future__ import annotations

import re
import ssl
import time
from base64 import b64decode
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial
from ipaddress import ip_address
from typing import TypeAlias

import attrs
import trio
from trio.lowlevel import Task

Script: TypeAlias = Callable[[trio.abc.Stream], Awaitable[None]]


@attrs.define(eq=False)
class Upstream:
    """Where a listener is, and how many connections it has accepted and still has."""

    address: str
    scheme: str
    accepted: int = 0
    open_now: int = 0

    @property
    def url(self) -> str:
        return f"{self.scheme}://{self.address}/v1/chat/completions"

    async def wait_open(self, count: int) -> None:
        """Wait until exactly *count* of the accepted connections are open at our end."""
        give_up_at = time.monotonic() + 5  # not Trio's clock, which a test may have stopped
        while self.open_now != count:
            assert time.monotonic() < give_up_at, f"{self.open_now} connections are open, not {count}"
            await trio.lowlevel.checkpoint()


@asynccontextmanager
async def open_upstream(
    script: Script, *, host: str = "127.0.0.1", tls: ssl.SSLContext | None = None
) -> AsyncIterator[Upstream]:
    """Run *script* for each connection; the connection is closed when it returns."""
    [listener] = await trio.open_tcp_listeners(0, host=host)
    port = listener.socket.getsockname()[1]
    upstream = Upstream(f"[{host}]:{port}" if ":" in host else f"{host}:{port}", "https" if tls else "http")

    async def serve(tcp: trio.SocketStream) -> None:
        upstream.accepted += 1
        upstream.open_now += 1
        try:
            stream = trio.SSLStream(tcp, tls, server_side=True, https_compatible=True) if tls else tcp
            with suppress(trio.BrokenResourceError):
                await script(stream)
        finally:
            tcp.socket.close()
            upstream.open_now -= 1

    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, serve, [listener])
        try:
            yield upstream
        finally:
            nursery.cancel_scope.cancel()


async def read_head(stream: trio.abc.Stream) -> tuple[bytes, bytes]:
    """Everything up to the first empty line, and what came with it. (b"", b"") at the end of the stream."""
    data = b""
    while b"\r\n\r\n" not in data:
        piece = await stream.receive_some(65_536)
        if not piece:
            return b"", b""
        data += piece
    head, _, rest = data.partition(b"\r\n\r\n")
    return head, rest


async def read_request(stream: trio.abc.Stream) -> tuple[bytes, bytes] | None:
    """One request's head and body, or None at the end of the stream."""
    head, body = await read_head(stream)
    if not head:
        return None
    missing = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0]) - len(body)
    pieces = [body]
    while missing:
        piece = await stream.receive_some(65_536)
        if not piece:
            return None
        pieces.append(bytes(piece))
        missing -= len(piece)
    return head, b"".join(pieces)


def answer(body: bytes = b"hello", *headers: str, status: str = "200 OK", version: str = "HTTP/1.1") -> bytes:
    lines = [f"{version} {status}", *headers, f"content-length: {len(body)}", "", ""]
    return "\r\n".join(lines).encode() + body


def always(data: bytes, *, then_close: bool = False) -> Script:
    """A script that answers each request with *data*."""

    async def script(stream: trio.abc.Stream) -> None:
        while await read_request(stream) is not None:
            await stream.send_all(data)
            if then_close:
                return

    return script


def split_answers(*scripts: Script) -> Script:
    """A script that is another one for each connection; the last one for all that follow."""
    left = list(scripts)

    async def script(stream: trio.abc.Stream) -> None:
        await (left.pop(0) if len(left) > 1 else left[0])(stream)

    return script


def http_proxy(seen: list[bytes], *, user: str = "") -> Script:
    """A proxy that tunnels, and answers forwarded requests itself. The heads that it is sent go to *seen*."""

    async def script(stream: trio.abc.Stream) -> None:
        head, _ = await read_head(stream)
        seen.append(head)
        login = re.search(rb"(?i:proxy-authorization): Basic (\S+)", head)
        if user and (login is None or b64decode(login[1]) != user.encode()):
            await stream.send_all(answer(status="407 Proxy Authentication Required"))
        elif head.startswith(b"CONNECT "):
            host, _, port = head.split()[1].decode().rpartition(":")
            await _tunnel(stream, host, int(port), b"HTTP/1.1 200 OK\r\n\r\n")
        else:
            await stream.send_all(answer(b"forwarded"))

    return script


def socks_proxy(seen: list[bytes], *, user: bytes = b"", reply: int = 0) -> Script:
    """RFC 1928, as a server. What it is asked to connect to goes to *seen*; *reply* other than 0 is a refusal."""

    async def script(stream: trio.abc.Stream) -> None:
        read = partial(_read_exactly, stream)
        methods = await read((await read(2))[1])
        method = 2 if user else 0
        if method not in methods:
            await stream.send_all(b"\x05\xff")
            return
        await stream.send_all(bytes([5, method]))
        if user:
            name = await read((await read(2))[1])
            password = await read((await read(1))[0])
            good = name + b":" + password == user
            await stream.send_all(b"\x01\x00" if good else b"\x01\x01")
            if not good:
                return
        kind = (await read(4))[3]
        host = await read({1: 4, 4: 16}.get(kind) or (await read(1))[0])
        port = int.from_bytes(await read(2), "big")
        seen.append(host)
        done = bytes([5, reply, 0, 1, 127, 0, 0, 1, 0, 80])
        if reply:
            await stream.send_all(done)
            return
        await _tunnel(stream, host.decode() if kind == 3 else str(ip_address(host)), port, done)

    return script


async def _read_exactly(stream: trio.abc.Stream, count: int) -> bytes:
    data = b""
    while len(data) < count:
        piece = await stream.receive_some(count - len(data))
        if not piece:
            raise trio.BrokenResourceError
        data += piece
    return data


async def _tunnel(client: trio.abc.Stream, host: str, port: int, opened: bytes) -> None:
    async def copy(source: trio.abc.Stream, target: trio.abc.Stream) -> None:
        with suppress(trio.BrokenResourceError):
            async for data in source:
                await target.send_all(data)
        nursery.cancel_scope.cancel()

    async with await trio.open_tcp_stream(host, port) as server, trio.open_nursery() as nursery:
        await client.send_all(opened)
        nursery.start_soon(copy, client, server)
        nursery.start_soon(copy, server, client)


@attrs.define(eq=False)
class CancelAtStep(trio.abc.Instrument):
    """Cancels *scope* when *root*, or a task that it started, has just come to its *number*-th pause."""

    root: Task
    scope: trio.CancelScope
    number: int
    steps: int = 0

    def after_task_step(self, task: Task) -> None:
        if self._is_within_root(task):
            self.steps += 1
            if self.steps == self.number:
                self.scope.cancel()

    def _is_within_root(self, task: Task | None) -> bool:
        while task is not None and task is not self.root:
            task = task.parent_nursery.parent_task if task.parent_nursery else None
        return task is not None


async def run_cancelled_at(number: int, scenario: Callable[[], Awaitable[object]]) -> bool:
    """Run *scenario* as a task of its own, cancelled at its *number*-th pause. False: it ended before that."""

    async def run() -> None:
        with trio.CancelScope() as scope:
            instrument = CancelAtStep(trio.lowlevel.current_task(), scope, number)
            instruments.append(instrument)
            trio.lowlevel.add_instrument(instrument)
            await scenario()

    instruments: list[CancelAtStep] = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(run)
    [instrument] = instruments
    trio.lowlevel.remove_instrument(instrument)
    return instrument.steps >= number
