"""A mended Hypercorn in this process, and clients that do what no library does."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import attrs
import h2.config
import h2.connection
import h2.events
import orjson
import trio
import trustme
from hypercorn.config import Config
from hypercorn.trio import serve

Application = Callable[[Any, Any, Any], Awaitable[None]]

GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
# Seconds; what has not happened by then never will. More than any bound of the servers' but the write timeout.
WAIT = 15.0


@asynccontextmanager
async def serving(app: Application, stop: trio.Event | None = None, **settings: Any) -> AsyncIterator[int]:
    """Serve *app* on a free port, which is given, until the block ends; then all must end by itself.

    Given is 0 where *settings* name another kind of address. The server begins to stop when *stop* is set.
    """
    config = Config()
    config.bind = ["127.0.0.1:0"]
    config.errorlog = None
    config.graceful_timeout = 1.0
    for name, value in settings.items():
        setattr(config, name, value)
    stop = trio.Event() if stop is None else stop
    async with trio.open_nursery() as nursery:

        async def run(task_status: trio.TaskStatus[list[str]]) -> None:
            await serve(cast(Any, app), config, shutdown_trigger=stop.wait, task_status=task_status)

        [address] = await nursery.start(run)
        yield 0 if "bind" in settings else int(address.rpartition(":")[2])
        stop.set()
        nursery.cancel_scope.deadline = trio.current_time() + WAIT
    assert not nursery.cancel_scope.cancelled_caught, "the server did not end"


def answering(handle: Application) -> Application:
    """*handle* as an application that also has a lifespan."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            await handle(scope, receive, send)
            return
        while (message := await receive())["type"] != "lifespan.shutdown":
            await send({"type": f"{message['type']}.complete"})
        await send({"type": "lifespan.shutdown.complete"})

    return app


async def answer(send: Any, body: bytes, status: int = 200, *headers: tuple[bytes, bytes]) -> None:
    head = [(b"content-length", b"%d" % len(body)), *headers]
    await send({"type": "http.response.start", "status": status, "headers": head})
    await send({"type": "http.response.body", "body": body})


async def read_body(receive: Any) -> bytes:
    body, more = b"", True
    while more:
        message = await receive()
        body, more = body + message["body"], message["more_body"]
    return body


@answering
async def hello(scope: Any, receive: Any, send: Any) -> None:
    """An application that says where and by what method it was asked."""
    await answer(send, f"{scope['method']} {scope['path']}".encode())


class Slow:
    """An application that begins an answer and goes on until the client leaves or *go_on* is set."""

    def __init__(self) -> None:
        self.began, self.left, self.go_on = trio.Event(), trio.Event(), trio.Event()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await read_body(receive)
        self.began.set()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._watch, receive, nursery.cancel_scope)
            await self.go_on.wait()
            nursery.cancel_scope.cancel()
        if self.go_on.is_set():
            await answer(send, scope["path"].encode())

    async def _watch(self, receive: Any, scope: trio.CancelScope) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        self.left.set()
        scope.cancel()


@attrs.define
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def error(self) -> dict[str, Any]:
        found: dict[str, Any] = orjson.loads(self.body)["error"]
        return found


@attrs.define
class Client:
    """A connection of HTTP/1.1, byte by byte."""

    stream: trio.abc.Stream
    unread: bytes = b""

    async def send(self, data: bytes) -> None:
        await self.stream.send_all(data)

    async def ask(self, data: bytes = GET) -> Answer:
        await self.send(data)
        return await self.read_answer()

    async def read_answer(self) -> Answer:
        """One answer with a content-length."""
        head = await self.read_until(b"\r\n\r\n")
        line, *fields = head.decode().split("\r\n")[:-2]
        headers = dict(field.lower().split(": ", 1) for field in fields)
        status = int(line.split()[1])
        length = int(headers.get("content-length", 0))
        while len(self.unread) < length:
            await self._read_more()
        body, self.unread = self.unread[:length], self.unread[length:]
        return Answer(status, headers, body)

    async def read_until(self, end: bytes) -> bytes:
        while end not in self.unread:
            await self._read_more()
        found, _, self.unread = self.unread.partition(end)
        return found + end

    async def read_to_the_end(self) -> bytes:
        """All that comes until the server closes. Fails when it does not."""
        with trio.fail_after(WAIT):
            try:
                while data := await self.stream.receive_some():
                    self.unread += data
            except trio.BrokenResourceError:
                self.unread += b"<reset>"
        return self.unread

    async def _read_more(self) -> None:
        with trio.fail_after(WAIT):
            data = await self.stream.receive_some()
        assert data, f"the server closed after {self.unread!r}"
        self.unread += data


@asynccontextmanager
async def connect(port: int) -> AsyncIterator[Client]:
    async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
        yield Client(stream)


UNCHECKED = h2.config.H2Configuration(
    header_encoding="utf-8", validate_outbound_headers=False, normalize_outbound_headers=False
)


@attrs.define
class Client2:
    """A connection of HTTP/2. Windows are opened only when told to."""

    stream: trio.abc.Stream
    connection: h2.connection.H2Connection = attrs.Factory(lambda: h2.connection.H2Connection(UNCHECKED))
    events: list[h2.events.Event] = attrs.Factory(list)

    async def flush(self) -> None:
        await self.stream.send_all(self.connection.data_to_send())

    def open_stream(self, *headers: tuple[str, str], end: bool = True) -> int:
        stream_id: int = self.connection.get_next_available_stream_id()
        fields = {":method": "GET", ":path": "/", ":scheme": "http", ":authority": "x", **dict(headers)}
        self.connection.send_headers(stream_id, [*fields.items()], end_stream=end)
        return stream_id

    async def wait_event(self, kind: type[h2.events.Event], **attributes: Any) -> Any:
        """The first event of this kind and with these attributes; it is then forgotten."""
        await self.flush()
        with trio.fail_after(WAIT):
            while True:
                for event in self.events:
                    if type(event) is kind and all(getattr(event, n) == v for n, v in attributes.items()):
                        self.events.remove(event)
                        return event
                data = await self.stream.receive_some()
                assert data, f"the server closed after {self.events}"
                self.events += self.connection.receive_data(data)
                await self.flush()

    async def read_answer(self, stream_id: int) -> Answer:
        headers = dict((await self.wait_event(h2.events.ResponseReceived, stream_id=stream_id)).headers)
        await self.wait_event(h2.events.StreamEnded, stream_id=stream_id)
        pieces = [e.data for e in self.events if isinstance(e, h2.events.DataReceived) and e.stream_id == stream_id]
        return Answer(int(headers[":status"]), headers, b"".join(pieces))


@asynccontextmanager
async def connect2(port: int) -> AsyncIterator[Client2]:
    """By prior knowledge."""
    async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
        client = Client2(stream)
        client.connection.initiate_connection()
        await client.flush()
        yield client


@asynccontextmanager
async def connect_tls(port: int, authority: trustme.CA, *protocols: str) -> AsyncIterator[trio.SSLStream[Any]]:
    """
    Args:
        protocols: what is offered by ALPN.
    """
    tls = ssl.create_default_context()
    authority.configure_trust(tls)
    if protocols:
        tls.set_alpn_protocols([*protocols])
    tcp = await trio.open_tcp_stream("127.0.0.1", port)
    async with trio.SSLStream(tcp, tls, server_hostname="127.0.0.1", https_compatible=True) as stream:
        yield stream


def write_certificate(folder: Path) -> tuple[trustme.CA, dict[str, Any]]:
    """An authority, and the settings of a server that it vouches for."""
    authority = trustme.CA()
    issued = authority.issue_cert("127.0.0.1")
    issued.private_key_pem.write_to_path(folder / "key.pem")
    issued.cert_chain_pems[0].write_to_path(folder / "cert.pem")
    return authority, {"certfile": str(folder / "cert.pem"), "keyfile": str(folder / "key.pem")}
