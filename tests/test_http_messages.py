"""One request's way through the connection, in Hypercorn as we mend it and as it came."""

from __future__ import annotations

import math
import sys
import tracemalloc
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import trio
from host_client import GET, WAIT, connect, serving
from quart_trio import QuartTrio

from picoclaw_trio import host
from picoclaw_trio.event_stream import EventStream
from picoclaw_trio.host_requests import Inbox
from picoclaw_trio.http_messages import Body, Connection, HttpAnswer, HttpRequest

View = Callable[[HttpRequest], Awaitable[HttpAnswer | None]]
EXPECT = b"POST / HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n"


class App(QuartTrio):
    asgi_http_class = Connection
    max_body_bytes = 1_000_000

    def __init__(self, view: View) -> None:
        super().__init__("tests", static_folder=None)
        self.answer_request = view


async def say_hello(request: HttpRequest) -> HttpAnswer:
    return HttpAnswer(200, b"hello")


async def echo(request: HttpRequest) -> HttpAnswer:
    return HttpAnswer(200, await request.body.read(WAIT))


@pytest.fixture(params=["mended", "stock"])
def any_hypercorn(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hypercorn as we mend it, and as it came: there the end of an answer cancels a request that is not mended."""
    if request.param == "stock":
        for module, name, _, _ in host.MENDS:
            monkeypatch.setattr(f"{module}.{name}", vars(sys.modules[module])[name].__base__)
        monkeypatch.setattr("hypercorn.trio.run.trio", trio)


@pytest.mark.usefixtures("any_hypercorn")
@pytest.mark.parametrize(
    "request_", [GET.replace(b"Host", b"Connection: close\r\nHost"), b"GET / HTTP/1.0\r\nHost: x\r\n\r\n"]
)
async def test_last_answer_ends_the_connection(request_: bytes) -> None:
    async with serving(App(say_hello)) as port, connect(port) as client:
        assert b"hello" == (await client.ask(request_)).body
        assert b"" == await client.read_to_the_end()


@pytest.mark.usefixtures("any_hypercorn")
async def test_connection_is_used_again_and_then_times_out() -> None:
    async with serving(App(say_hello), keep_alive_timeout=0.3) as port, connect(port) as client:
        for _ in range(3):
            assert b"hello" == (await client.ask()).body
        assert b"" == await client.read_to_the_end()


async def test_client_that_leaves_cancels_its_request() -> None:
    began, cancelled = trio.Event(), trio.Event()

    async def view(request: HttpRequest) -> None:
        began.set()
        try:
            await trio.sleep_forever()
        finally:
            cancelled.set()

    async with serving(App(view)) as port:
        async with connect(port) as client:
            await client.send(GET)
            await began.wait()
        with trio.fail_after(WAIT):
            await cancelled.wait()


@pytest.mark.usefixtures("any_hypercorn")
async def test_streamed_answer_comes_in_pieces_and_ends() -> None:
    go_on = trio.Event()

    async def view(request: HttpRequest) -> None:
        events = EventStream(request.send, list)
        await events.send(b"first")
        await go_on.wait()
        await events.end(b"second")

    async with serving(App(view), keep_alive_timeout=0.3) as port, connect(port) as client:
        await client.send(GET)
        await client.read_until(b"data: first\n\n\r\n")
        go_on.set()
        await client.read_until(b"data: second\n\ndata: [DONE]\n\n\r\n0\r\n\r\n")
        assert b"" == await client.read_to_the_end()


async def test_body_is_read_whole_and_again() -> None:
    async with serving(App(echo)) as port, connect(port) as client:
        for size in (0, 10, 300_000):
            body = bytes(size)
            head = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % size
            assert body == (await client.ask(head + body)).body


async def test_body_of_single_bytes_takes_no_more_memory_than_another() -> None:
    size = 100_000
    body = Body(size, 0)
    tracemalloc.start()
    try:
        for _ in range(size):
            body.append(b"x")
        body.set_complete()
        taken, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert taken < 2 * size
    assert b"x" * size == await body.read(1)


async def test_client_that_leaves_in_the_middle_of_its_body_cancels_its_request() -> None:
    began, cancelled = trio.Event(), trio.Event()

    async def view(request: HttpRequest) -> None:
        began.set()
        try:
            await request.body.read(WAIT)
        finally:
            cancelled.set()

    async with serving(App(view)) as port:
        async with connect(port) as client:
            await client.send(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\nbo")
            await began.wait()
        with trio.fail_after(WAIT):
            await cancelled.wait()


async def test_client_that_left_before_its_request_began_cancels_it() -> None:
    inbox, sent, scopes = Inbox(10), [], []

    async def view(request: HttpRequest) -> HttpAnswer:
        scopes.append(trio.current_effective_deadline())
        await trio.lowlevel.checkpoint()
        return HttpAnswer(200, b"to nobody")

    async def send(message: object) -> None:
        sent.append(message)

    await inbox({"type": "http.request", "body": b"", "more_body": False})
    inbox.close()
    scope: Any = {"type": "http", "path": "/", "headers": []}
    await Connection(App(view), scope)(inbox.receive, send)
    assert [-math.inf] == scopes
    assert [] == sent


async def test_end_of_an_answer_does_not_cancel_what_the_request_still_does() -> None:
    finished = trio.Event()

    async def view(request: HttpRequest) -> None:
        events = EventStream(request.send, list)
        await events.end(b"all")
        await trio.lowlevel.checkpoint()
        finished.set()

    async with serving(App(view)) as port, connect(port) as client:
        await client.send(GET)
        await client.read_until(b"0\r\n\r\n")
        with trio.fail_after(WAIT):
            await finished.wait()


async def test_body_that_nobody_reads_holds_up_neither_the_answer_nor_the_client_s_leaving() -> None:
    went_on, cancelled = trio.Event(), trio.Event()

    async def view(request: HttpRequest) -> HttpAnswer:
        try:
            await went_on.wait()
            await trio.sleep_forever()
        finally:
            cancelled.set()

    head = b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    async with serving(App(view)) as port:
        async with connect(port) as client:
            await client.send(head + b"1\r\nx\r\n" * 1000)
            went_on.set()
        with trio.fail_after(WAIT):
            await cancelled.wait()


async def test_server_that_says_nothing_after_the_answer_is_not_waited_for() -> None:
    async with App(say_hello).test_app() as app:
        with trio.fail_after(WAIT):
            answer = await app.test_client().get("/")
    assert 200 == answer.status_code


async def test_body_is_asked_for_when_it_is_wanted() -> None:
    async with serving(App(echo)) as port, connect(port) as client:
        await client.send(EXPECT)
        assert b"HTTP/1.1 100 \r\n\r\n" == await client.read_until(b"\r\n\r\n")
        assert b"body" == (await client.ask(b"body")).body
        assert b"again" == (await client.ask(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nagain")).body


async def test_body_is_not_asked_for_when_it_is_not_wanted() -> None:
    async def refuse(request: HttpRequest) -> HttpAnswer:
        await trio.sleep(0.01)
        return HttpAnswer(401, b"no")

    async with serving(App(refuse)) as port, connect(port) as client:
        assert 401 == (await client.ask(EXPECT)).status
        assert b"" == await client.read_to_the_end()
