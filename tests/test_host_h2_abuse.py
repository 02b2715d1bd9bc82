"""HTTP/2 frames that no library sends: each costs its own connection at most, and ends in bounded time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import h2.errors
import h2.events
import pytest
import trio
import trio.testing
from host_client import WAIT, Slow, answer, answering, connect, connect2, hello, read_body, serving
from hyperframe.frame import (
    ContinuationFrame,
    DataFrame,
    Frame,
    GoAwayFrame,
    HeadersFrame,
    PingFrame,
    RstStreamFrame,
    SettingsFrame,
    WindowUpdateFrame,
)

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + SettingsFrame(0).serialize()
GET = bytes.fromhex("828684") + b"\x41\x01x"  # :method GET, :scheme http, :path /, :authority x
ENDS = ["END_HEADERS", "END_STREAM"]


def bytes_of(*frames: Frame) -> bytes:
    return b"".join(frame.serialize() for frame in frames)


# Each at the beginning of a connection, which must then be closed, if only after its idle time.
FRAMES: dict[str, bytes] = {
    "reset of a stream that never was": bytes_of(RstStreamFrame(1, error_code=8)),
    "reset of the connection's own stream number": bytes_of(WindowUpdateFrame(0, window_increment=2**31 - 1)) * 2,
    "data for a stream that never was": bytes_of(DataFrame(1, b"x")),
    "data without headers": bytes_of(DataFrame(5, b"x" * 16384)),
    "even stream": bytes_of(HeadersFrame(2, GET, flags=ENDS)),
    "stream numbers that go down": bytes_of(HeadersFrame(5, GET, flags=ENDS), HeadersFrame(3, GET, flags=ENDS)),
    "headers that are no headers": bytes_of(HeadersFrame(1, b"\xff" * 40, flags=ENDS)),
    "headers twice": bytes_of(HeadersFrame(1, GET, flags=["END_HEADERS"]), HeadersFrame(1, GET, flags=["END_HEADERS"])),
    "continuation of nothing": bytes_of(ContinuationFrame(1, GET, flags=["END_HEADERS"])),
    "headers without end": bytes_of(HeadersFrame(1, GET), *[ContinuationFrame(1, b"\x00\x01a\x01b" * 100)] * 200),
    "headers that stop half-way": bytes_of(HeadersFrame(1, GET)),
    "headers that grow when they are unpacked": bytes_of(
        HeadersFrame(1, GET + b"\x40\x01a\x7f\xa1\x1e" + b"a" * 4000, flags=[]),
        ContinuationFrame(1, b"\xbe" * 10_000, flags=["END_HEADERS"]),
    ),
    "window that overflows": bytes_of(
        HeadersFrame(1, GET, flags=ENDS),
        *[WindowUpdateFrame(1, window_increment=2**31 - 1)] * 2,
    ),
    "goodbye": bytes_of(HeadersFrame(1, GET, flags=ENDS), GoAwayFrame(0, last_stream_id=0)),
    "settings that cannot be": bytes_of(SettingsFrame(0, settings={SettingsFrame.INITIAL_WINDOW_SIZE: 2**31})),
    "frame that is too large": bytes_of(DataFrame(1, b"x" * 20_000)),
    "frame of no known kind": b"\x00\x00\x04\xee\x00\x00\x00\x00\x00junk",
}


@pytest.mark.parametrize("name", FRAMES)
async def test_http2_nonsense_ends_its_own_connection_in_bounded_time(name: str) -> None:
    go_on = trio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["path"] == "/innocent":
            await go_on.wait()
        await answer(send, scope["path"].encode())

    async with serving(answering(app), keep_alive_timeout=0.5) as port, connect2(port) as innocent:
        waiting = innocent.open_stream((":path", "/innocent"))
        await innocent.flush()
        async with connect(port) as client:
            with suppress(trio.BrokenResourceError):  # closed before all was sent
                await client.send(PREFACE + FRAMES[name])
            await client.read_to_the_end()
        go_on.set()
        assert b"/innocent" == (await innocent.read_answer(waiting)).body


MANY = 2000


async def flood(port: int, *frames: bytes) -> list[Frame]:
    """Send all this, as far as the server takes it, and give what comes until it closes."""
    async with connect(port) as client, trio.open_nursery() as nursery:

        async def send() -> None:
            with suppress(trio.BrokenResourceError):  # the server has had enough
                for frame in (PREFACE, *frames):
                    await client.send(frame)

        nursery.start_soon(send)
        return [*frames_of((await client.read_to_the_end()).removesuffix(b"<reset>"))]


def frames_of(data: bytes) -> Iterator[Frame]:
    while data:
        frame, length = Frame.parse_frame_header(memoryview(data[:9]))
        frame.parse_body(memoryview(data[9 : 9 + length]))
        yield frame
        data = data[9 + length :]


def opened_and_reset(number: int) -> bytes:
    stream_id = 2 * number + 1
    headers = HeadersFrame(stream_id, GET, flags=ENDS).serialize()
    return headers + RstStreamFrame(stream_id, error_code=8).serialize()


BEGUN = HeadersFrame(1, bytes.fromhex("838684") + b"\x41\x01x", flags=["END_HEADERS"]).serialize()
FLOODS = {
    "resets": [opened_and_reset(number) for number in range(MANY)],
    "pings": [PingFrame(0, b"12345678").serialize()] * MANY,
    "answers to pings": [PingFrame(0, b"12345678", flags=["ACK"]).serialize()] * MANY,
    "settings": [SettingsFrame(0, settings={SettingsFrame.HEADER_TABLE_SIZE: 100}).serialize()] * MANY,
    "empty data": [BEGUN, *[DataFrame(1, b"").serialize()] * MANY],
    "padding": [BEGUN, *[DataFrame(1, b"", pad_length=9, flags=["PADDED"]).serialize()] * MANY],
    "data byte by byte": [BEGUN, *[DataFrame(1, b"x").serialize()] * 10 * MANY],
}


@pytest.mark.parametrize("kind", FLOODS)
@pytest.mark.parametrize("at_once", [False, True])
async def test_http2_flood_of_cheap_frames_ends_its_connection_and_leaves_nothing(kind: str, at_once: bool) -> None:
    slow, begun = Slow(), 0

    async def app(scope: Any, receive: Any, send: Any) -> None:
        nonlocal begun
        begun += 1
        await slow(scope, receive, send)

    async with serving(answering(app)) as port:
        await trio.testing.wait_all_tasks_blocked()
        tasks = trio.lowlevel.current_statistics().tasks_living
        frames = FLOODS[kind]
        answers = await flood(port, *([b"".join(frames)] if at_once else frames))
        with trio.fail_after(2 * WAIT):
            while trio.lowlevel.current_statistics().tasks_living > tasks:
                await trio.testing.wait_all_tasks_blocked(0.01)

    [goodbye] = [frame for frame in answers if isinstance(frame, GoAwayFrame)]
    assert h2.errors.ErrorCodes.ENHANCE_YOUR_CALM == goodbye.error_code
    assert begun < MANY / 2  # 500 at once, and what the time of the flood allows
    # The server ends only when no task is left, not even a parked one.


async def test_http2_client_may_give_up_all_its_streams_now_and_then() -> None:
    async with serving(answering(Slow())) as port, connect2(port) as client:
        for _ in range(3):
            for stream_id in [client.open_stream() for _ in range(100)]:
                client.connection.reset_stream(stream_id, h2.errors.ErrorCodes.CANCEL)
            client.connection.ping(b"12345678")
            await client.wait_event(h2.events.PingAckReceived)


async def test_http2_body_may_come_token_by_token() -> None:
    async def echo(scope: Any, receive: Any, send: Any) -> None:
        await answer(send, await read_body(receive))

    async with serving(answering(echo)) as port, connect2(port) as client:
        stream_id = client.open_stream((":method", "POST"), end=False)
        for _ in range(2000):
            client.connection.send_data(stream_id, b"ab, ")
            await client.flush()
        client.connection.end_stream(stream_id)
        assert b"ab, " * 2000 == (await client.read_answer(stream_id)).body


async def test_http2_frames_that_come_at_once_let_others_have_their_turn() -> None:
    turns = 0
    begun: list[int] = []

    async def note(scope: Any, receive: Any, send: Any) -> None:
        begun.append(turns)
        await answer(send, b"")

    async with serving(answering(note)) as port, trio.open_nursery() as nursery:

        async def take_turns() -> None:
            nonlocal turns
            while True:
                turns += 1
                await trio.lowlevel.checkpoint()

        nursery.start_soon(take_turns)
        await flood(port, b"".join(FLOODS["resets"][:400]) + GoAwayFrame(0).serialize())
        nursery.cancel_scope.cancel()

    assert 400 == len(begun)
    assert max(Counter(begun).values()) < 200


@pytest.mark.parametrize("last", [GoAwayFrame(0), DataFrame(2, b"x")], ids=["goodbye", "error"])
async def test_http2_connection_that_ends_with_a_stream_open_is_not_kept_as_an_idle_one(last: Frame) -> None:
    began = trio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        began.set()
        await answer(send, b"x")

    async with serving(answering(app), keep_alive_timeout=60.0) as port:
        await trio.testing.wait_all_tasks_blocked()
        tasks = trio.lowlevel.current_statistics().tasks_living
        async with connect(port) as client:
            shut = SettingsFrame(0, settings={SettingsFrame.INITIAL_WINDOW_SIZE: 0})
            await client.send(PREFACE + bytes_of(shut, HeadersFrame(1, GET, flags=ENDS)))
            await began.wait()
            await client.send(bytes_of(last))
            await client.read_to_the_end()
            with trio.fail_after(WAIT):  # less than the timeout; and the client does not close
                while trio.lowlevel.current_statistics().tasks_living > tasks:
                    await trio.testing.wait_all_tasks_blocked(0.01)


@pytest.mark.parametrize("moment", ["with its headers", "within its body", "while it is answered", "after its end"])
async def test_http2_request_may_be_reset_at_any_moment(moment: str) -> None:
    began, left = trio.Event(), trio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["path"] == "/other":
            await hello(scope, receive, send)
            return
        async with trio.open_nursery() as nursery:
            nursery.start_soon(begin, send)
            began.set()
            while (await receive())["type"] != "http.disconnect":
                pass
            left.set()
            nursery.cancel_scope.cancel()

    async def begin(send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"first", "more_body": moment != "after its end"})

    async with serving(answering(app)) as port, connect2(port) as client:
        stream_id = client.open_stream((":method", "POST"), end=False)
        if moment != "with its headers":
            await client.flush()
            await began.wait()
        if moment == "within its body":
            client.connection.send_data(stream_id, b"half")
        if moment == "while it is answered":
            await client.wait_event(h2.events.DataReceived, stream_id=stream_id)
        if moment == "after its end":
            await client.wait_event(h2.events.StreamEnded, stream_id=stream_id)
        client.connection.reset_stream(stream_id, h2.errors.ErrorCodes.CANCEL)
        other = client.open_stream((":path", "/other"))
        assert b"GET /other" == (await client.read_answer(other)).body
        with trio.fail_after(WAIT):
            if moment != "with its headers" or began.is_set():
                await left.wait()
