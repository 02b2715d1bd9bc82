"""Both ends of a stream in a test's hands: an upstream that says what it is handed, a client that reads on demand."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import attrs
import httpx2
import orjson
import trio
from fakes import Exchange, Script, ScriptedUpstream, answers, chunk, completion, frame, says, streams, text_frames
from harness import Here, ask, entry, make_config, serve_here

from picoclaw_trio.upstream import RetryPolicy

PATH = "/v1/chat/completions"
LIMIT = 30.0  # seconds; what has not happened by then never will


@attrs.define
class Steered:
    """A script that writes each piece when the test hands it over, and ends the body when the test says so."""

    finished: trio.Event = attrs.field(factory=trio.Event)
    _send: trio.MemorySendChannel[bytes] = attrs.field(init=False)
    _receive: trio.MemoryReceiveChannel[bytes] = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self._send, self._receive = trio.open_memory_channel[bytes](0)

    async def __call__(self, exchange: Exchange) -> None:
        await exchange.begin_events()
        async for piece in self._receive:
            await exchange.write(piece)
        await exchange.end()
        self.finished.set()

    async def say(self, *pieces: bytes) -> None:
        with trio.fail_after(LIMIT):
            for piece in pieces:
                await self._send.send(piece)

    async def say_text(self, text: str) -> None:
        await self.say(frame(chunk({"content": text})))

    async def end(self) -> None:
        """Finish reason, end mark, end of the body."""
        await self.say(frame(chunk({}, "stop")), frame(b"[DONE]"))
        await self._send.aclose()


@attrs.define
class Endless:
    """A script that says the same again and again, as fast as it is taken, up to *limit* times."""

    piece: bytes
    limit: int = 2**31
    sent: int = 0  # bytes
    _moved: trio.Event = attrs.field(factory=trio.Event)

    async def __call__(self, exchange: Exchange) -> None:
        await exchange.begin_events()
        for _ in range(self.limit):
            await exchange.write(self.piece)
            self.sent += len(self.piece)
            self._moved.set()
            self._moved = trio.Event()
        await exchange.write(frame(chunk({}, "stop")) + frame(b"[DONE]"))
        await exchange.end()

    async def wait_stalled(self) -> None:
        """Return when nothing has been taken for half a second."""
        is_moving = True
        while is_moving:
            with trio.move_on_after(0.5) as quiet:
                await self._moved.wait()
            is_moving = not quiet.cancelled_caught


def says_as_asked(*pieces: str) -> Script:
    """A script that says the same as a stream and as a whole, whichever is asked for."""

    async def script(exchange: Exchange) -> None:
        if exchange.asked.body.get("stream"):
            await streams(*text_frames(*pieces))(exchange)
        else:
            await says("".join(pieces))(exchange)

    return script


def call(call_id: str, name: str, **arguments: Any) -> dict[str, Any]:
    """A tool call, as a model makes it."""
    function = {"name": name, "arguments": orjson.dumps(arguments).decode()}
    return {"id": call_id, "type": "function", "function": function}


def calls(*made: dict[str, Any], text: str | None = None) -> Script:
    """A reply with tool calls, whole or in frames, as it was asked for."""
    frames = [frame(chunk({"role": "assistant", "content": text}))]
    frames += [frame(chunk({"tool_calls": [{"index": index, **one}]})) for index, one in enumerate(made)]
    frames += [frame(chunk({}, "tool_calls")), frame(b"[DONE]")]

    async def script(exchange: Any) -> None:
        if exchange.asked.body.get("stream"):
            await streams(*frames)(exchange)
        else:
            await answers(200, completion(text, tool_calls=list(made), finish_reason="tool_calls"))(exchange)

    return script


def by_model(scripts: Mapping[str, Script]) -> Script:
    """A script that does what the one of the model asked for does; the names are those of aliases."""

    async def script(exchange: Exchange) -> None:
        await scripts[exchange.asked.body["model"].removesuffix("-up")](exchange)

    return script


@attrs.define
class Frames:
    """A streamed answer, block by block."""

    response: httpx2.Response
    _pieces: AsyncIterator[bytes]
    _unread: bytes = b""

    async def next(self) -> bytes | None:
        """The next event or comment without its blank line, or None when the body has ended."""
        while b"\n\n" not in self._unread:
            try:
                self._unread += await anext(self._pieces)
            except StopAsyncIteration:
                assert b"" == self._unread
                return None
        block, _, self._unread = self._unread.partition(b"\n\n")
        return block

    async def next_data(self) -> Any:
        """The JSON of the next event."""
        block = await self.next()
        assert block is not None
        assert block.startswith(b"data: ")
        return orjson.loads(block.removeprefix(b"data: "))

    async def next_delta(self) -> dict[str, Any]:
        (choice,) = (await self.next_data())["choices"]
        delta: dict[str, Any] = choice["delta"]
        return delta

    async def rest(self) -> list[bytes]:
        """All blocks to the body's end."""
        blocks = []
        while (block := await self.next()) is not None:
            blocks.append(block)
        return blocks


@asynccontextmanager
async def open_stream(client: httpx2.AsyncClient, **fields: Any) -> AsyncIterator[Frames]:
    """Ask for a stream; give its answer, whatever its status is."""
    with trio.fail_after(LIMIT):
        async with client.stream("POST", PATH, json=ask(stream=True, **fields)) as response:
            yield Frames(response, response.aiter_raw())


def chunks_of(body: bytes) -> list[dict[str, Any]]:
    """The JSON of each event of a whole body, which must end as it should."""
    *events, done, nothing = body.split(b"\n\n")
    assert b"" == nothing
    assert b"data: [DONE]" == done
    return [orjson.loads(event.removeprefix(b"data: ")) for event in events if not event.startswith(b":")]


def deltas_of(body: bytes) -> list[dict[str, Any]]:
    return [chunk["choices"][0]["delta"] for chunk in chunks_of(body) if chunk["choices"]]


def text_of(body: bytes) -> str:
    return "".join(delta.get("content") or "" for delta in deltas_of(body))


@asynccontextmanager
async def serving(home: Path, *upstreams: ScriptedUpstream, **api: Any) -> AsyncIterator[Here]:
    """A server that streams; the upstreams are one alias, in order."""
    names = [f"m{number}" for number, _ in enumerate(upstreams)]
    entries = [
        entry(name, upstream.url, fallbacks=names[number + 1 :])
        for number, (name, upstream) in enumerate(zip(names, upstreams, strict=True))
    ]
    with trio.fail_after(60):
        async with serve_here(home, make_config(*entries, **{"streaming": True, **api})) as server:
            server.gateway.upstream.policy = RetryPolicy(base_delay=0.01)
            yield server


async def stream_whole(client: httpx2.AsyncClient, **fields: Any) -> httpx2.Response:
    with trio.fail_after(LIMIT):
        return await client.post(PATH, json=ask(stream=True, **fields))


@asynccontextmanager
async def open_running(client: httpx2.AsyncClient, upstream: ScriptedUpstream) -> AsyncIterator[None]:
    """A turn that runs until the block ends."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(stream_whole, client)
        await upstream.wait_asked()
        yield
        nursery.cancel_scope.cancel()


async def until(condition: Any) -> None:
    """Return when *condition()* holds."""
    with trio.fail_after(LIMIT):
        while not condition():  # what is waited for has no event
            await trio.sleep(0.01)
