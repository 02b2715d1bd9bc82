"""An upstream that does what a test tells it, over real HTTP, and remembers what it was asked."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any

import attrs
import h11
import orjson
import trio

USAGE = {"prompt_tokens": 11, "completion_tokens": 7, "total_tokens": 18}


def completion(content: str | None = "Hello!", **changes: Any) -> dict[str, Any]:
    """A ``chat.completion`` as an upstream gives it; *changes* replace fields of the message."""
    finish_reason = changes.pop("finish_reason", "stop")
    message = {"role": "assistant", "content": content, **changes}
    return {
        "id": "chatcmpl-up",
        "object": "chat.completion",
        "created": 1,
        "model": "up-model-2026",
        "choices": [{"index": 0, "message": message, "finish_reason": finish_reason, "logprobs": None}],
        "usage": USAGE,
    }


def error_body(message: str, **fields: Any) -> dict[str, Any]:
    return {"error": {"message": message, "type": "invalid_request_error", "param": None, "code": None, **fields}}


@attrs.define
class Asked:
    """One request that arrived.

    Attributes:
        gone: its connection has been closed by the other side, or was cut by the script.
        ended_at: Trio time of that, or of the whole answer's last byte; infinite while neither has come.
    """

    head: h11.Request
    body: dict[str, Any]
    gone: trio.Event = attrs.field(factory=trio.Event)
    ended_at: float = math.inf

    def end(self, *, gone: bool) -> None:
        self.ended_at = min(self.ended_at, trio.current_time())
        if gone:
            self.gone.set()

    def header(self, name: str) -> str | None:
        wanted = name.lower().encode()
        return next((value.decode() for key, value in self.head.headers if key == wanted), None)


@attrs.define
class Exchange:
    """What a script has in its hands: the request, and the way to answer."""

    asked: Asked
    stream: trio.SocketStream
    http: h11.Connection

    async def send(self, status: int, body: bytes, content_type: str = "application/json", **headers: str) -> None:
        """A whole answer with a length."""
        extra = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
        base = [(b"content-type", content_type.encode()), (b"content-length", b"%d" % len(body))]
        data = self.http.send(h11.Response(status_code=status, headers=[*base, *extra]))
        data += self.http.send(h11.Data(data=body)) + self.http.send(h11.EndOfMessage())
        await self.stream.send_all(data)

    async def begin_events(self) -> None:
        """The head of an event stream, chunked."""
        headers = [(b"content-type", b"text/event-stream"), (b"transfer-encoding", b"chunked")]
        await self.stream.send_all(self.http.send(h11.Response(status_code=200, headers=headers)) or b"")

    async def write(self, data: bytes) -> None:
        """A piece of a body that was begun."""
        await self.stream.send_all(self.http.send(h11.Data(data=data)) or b"")

    async def end(self) -> None:
        await self.stream.send_all(self.http.send(h11.EndOfMessage()) or b"")

    async def cut(self) -> None:
        """Close without a goodbye."""
        await trio.aclose_forcefully(self.stream)


Script = Callable[[Exchange], Awaitable[None]]


def says(content: str | None = "Hello!", **changes: Any) -> Script:
    return answers(200, completion(content, **changes))


def answers(status: int, body: Any, **headers: str) -> Script:
    async def script(exchange: Exchange) -> None:
        raw = body if isinstance(body, bytes) else orjson.dumps(body)
        await exchange.send(status, raw, **headers)

    return script


async def hangs(exchange: Exchange) -> None:
    """Take the request and never answer."""
    await exchange.asked.gone.wait()


async def cuts(exchange: Exchange) -> None:
    """Take the request and close the connection."""
    await exchange.cut()


def streams(*frames: bytes, pause: float = 0.0) -> Script:
    """Send these bytes as an event stream, each as a piece of its own."""

    async def script(exchange: Exchange) -> None:
        await exchange.begin_events()
        for frame in frames:
            await exchange.write(frame)
            await trio.sleep(pause)
        await exchange.end()

    return script


def frame(data: Any) -> bytes:
    return b"data: " + (data if isinstance(data, bytes) else orjson.dumps(data)) + b"\n\n"


def chunk(delta: dict[str, Any], finish_reason: str | None = None, **fields: Any) -> dict[str, Any]:
    """A ``chat.completion.chunk`` as an upstream gives it."""
    choice = {"index": 0, "delta": delta, "finish_reason": finish_reason}
    head = {"id": "up", "object": "chat.completion.chunk", "created": 1, "model": "up-model-2026"}
    return {**head, "choices": [choice], **fields}


def text_frames(*pieces: str, usage: bool = True) -> list[bytes]:
    """The frames of a whole streamed reply."""
    frames = [frame(chunk({"role": "assistant", "content": ""}))]
    frames += [frame(chunk({"content": piece})) for piece in pieces]
    frames += [frame(chunk({}, "stop"))]
    if usage:
        frames += [frame({**chunk({}), "choices": [], "usage": USAGE})]
    return [*frames, frame(b"[DONE]")]


@attrs.define
class ScriptedUpstream:
    """A server on loopback. Each request takes the next of *scripts*, the last one again and again."""

    scripts: Sequence[Script] = (says(),)
    asked: list[Asked] = attrs.field(factory=list)
    url: str = ""
    open_connections: int = 0
    _arrived: trio.Condition = attrs.field(factory=trio.Condition)

    async def wait_asked(self, count: int = 1) -> Asked:
        """The request number *count* (from 1), once it has arrived."""
        async with self._arrived:
            while len(self.asked) < count:
                await self._arrived.wait()
        return self.asked[count - 1]

    async def wait_all_gone(self) -> None:
        """Every connection of every request so far has been closed or is idle."""
        for asked in self.asked:
            await asked.gone.wait()

    async def serve(self, stream: trio.SocketStream) -> None:
        self.open_connections += 1
        http = h11.Connection(h11.SERVER, 1_000_000)
        try:
            while http.our_state is h11.IDLE and await self._serve_one(stream, http):
                if {h11.DONE} == {*http.states.values()}:
                    http.start_next_cycle()
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        finally:
            self.open_connections -= 1
            await trio.aclose_forcefully(stream)

    async def _serve_one(self, stream: trio.SocketStream, http: h11.Connection) -> bool:
        asked = await _read_request(stream, http)
        if asked is None:
            return False
        script = self.scripts[min(len(self.asked), len(self.scripts) - 1)]
        self.asked.append(asked)
        async with self._arrived:
            self._arrived.notify_all()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_watch_end, stream, asked)
            try:
                await script(Exchange(asked, stream, http))
                asked.end(gone=False)
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                asked.end(gone=True)
            nursery.cancel_scope.cancel()
        return not asked.gone.is_set()


async def _read_request(stream: trio.SocketStream, http: h11.Connection) -> Asked | None:
    head, body = None, b""
    while True:
        event = http.next_event()
        if event is h11.NEED_DATA:
            http.receive_data(await stream.receive_some(65536))
        elif isinstance(event, h11.Request):
            head = event
        elif isinstance(event, h11.Data):
            body += event.data
        elif isinstance(event, h11.EndOfMessage):
            assert head is not None
            return Asked(head, orjson.loads(body or b"{}"))
        else:
            return None


async def _watch_end(stream: trio.SocketStream, asked: Asked) -> None:
    """A client that has asked says nothing more until it is answered, so what can be read is its end."""
    if stream.socket.fileno() >= 0:
        with suppress(trio.ClosedResourceError):
            await trio.lowlevel.wait_readable(stream.socket)
    asked.end(gone=True)


@asynccontextmanager
async def open_upstream(*scripts: Script) -> AsyncIterator[ScriptedUpstream]:
    upstream = ScriptedUpstream(scripts or (says(),))
    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(trio.serve_tcp, upstream.serve, 0)
        port = listeners[0].socket.getsockname()[1]
        upstream.url = f"http://127.0.0.1:{port}/v1"
        yield upstream
        nursery.cancel_scope.cancel()
