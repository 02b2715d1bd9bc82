"""Who is answered, and how long, when a server begins to stop; in this process, to the tick."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio
import trio.testing
from host_client import (
    GET,
    Client,
    answer,
    answering,
    connect,
    connect2,
    connect_tls,
    serving,
    write_certificate,
)

from picoclaw_trio import host_accept, host_connection, host_worker


def get(path: str) -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode()


@attrs.define
class Busy:
    """An application that says whether its server stops, and at ``/slow`` waits to be told to go on."""

    stop: trio.Event = attrs.field(factory=trio.Event)
    began: trio.Event = attrs.field(factory=trio.Event)
    go_on: trio.Event = attrs.field(factory=trio.Event)
    cut: trio.Event = attrs.field(factory=trio.Event)
    expected: int = 200  # at ``/slow``

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["path"] == "/slow":
            self.began.set()
            await self.go_on.wait()
        elif scope["path"] == "/endless":
            try:
                await trio.sleep_forever()
            finally:
                self.cut.set()
        elif scope["path"] == "/hold":
            host_worker.hold_open()
        elif scope["path"] == "/release":
            host_worker.release()
        elif scope["path"] == "/cut":
            host_worker.cut_connections(trio.current_time())
        await answer(send, b"stopping" if host_worker.is_draining() else b"serving")

    async def begin_stop(self) -> None:
        self.stop.set()
        await trio.testing.wait_all_tasks_blocked()


@asynccontextmanager
async def open_stopping() -> AsyncIterator[tuple[int, Busy]]:
    """A server that has begun to stop, and that goes on because of one request, at most until the block ends."""
    busy = Busy()
    async with serving(answering(busy), busy.stop, graceful_timeout=60.0) as port, connect(port) as client:
        await client.send(get("/slow"))
        await busy.began.wait()
        await busy.begin_stop()
        yield port, busy
        busy.go_on.set()
        assert busy.expected == (await client.read_answer()).status


async def check_closed(port: int) -> None:
    with pytest.raises(OSError, match="all attempts to connect"):
        await trio.open_tcp_stream("127.0.0.1", port)


async def test_nobody_comes_in_when_nobody_was_there() -> None:
    async with serving(answering(Busy())) as port:
        pass
    await check_closed(port)


async def test_who_comes_during_a_stop_gets_an_answer_and_the_end() -> None:
    async with open_stopping() as (port, _):
        for _ in range(2):
            async with connect(port) as client:
                given = await client.ask()
                assert (b"stopping", "close") == (given.body, given.headers["connection"])
                assert b"" == await client.read_to_the_end()
        async with connect2(port) as second:
            assert b"stopping" == (await second.read_answer(second.open_stream())).body
    await check_closed(port)


async def test_who_comes_during_a_stop_gets_an_answer_over_tls(tmp_path: Path) -> None:
    authority, settings = write_certificate(tmp_path)
    busy = Busy()
    async with (
        serving(answering(busy), busy.stop, graceful_timeout=60.0, **settings) as port,
        connect_tls(port, authority) as early,
    ):
        await early.send_all(get("/slow"))
        await busy.began.wait()
        await busy.begin_stop()
        async with connect_tls(port, authority) as late:
            assert b"stopping" == (await Client(late).ask()).body
        busy.go_on.set()
        assert b"stopping" == (await Client(early).read_answer()).body
    await check_closed(port)


async def test_who_comes_during_a_stop_does_not_hold_it_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Silence ends with the last of the others; what takes long has a little while then."""
    monkeypatch.setattr(host_connection, "LAST_TIMEOUT", 60.0)
    async with (
        open_stopping() as (port, busy),
        connect(port) as silent,
        connect(port) as half,
        connect(port) as asking,
    ):
        await half.send(GET[:-2])
        await asking.send(get("/endless"))
        await trio.testing.wait_all_tasks_blocked()
        busy.go_on.set()
        for client in (silent, half):
            assert b"" == await client.read_to_the_end()
        assert not busy.cut.is_set()
        assert 500 == (await asking.read_answer()).status


async def test_silence_during_a_stop_is_not_borne_for_long() -> None:
    async with open_stopping() as (port, _), connect(port) as client:
        assert b"" == await client.read_to_the_end()


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
async def test_request_that_came_about_when_a_stop_began_is_answered(after: bool) -> None:
    """It waits in the kernel when the order to stop is given, or when that is obeyed: the server has not read it."""

    async def what_comes(receive: Any) -> bytes:
        """The request, and whether its client seems to have gone."""
        kinds = []
        with trio.move_on_after(0.05):
            while "http.disconnect" not in kinds:
                kinds.append((await receive())["type"])
        return " ".join(kinds).encode()

    async def view(scope: Any, receive: Any, send: Any) -> None:
        if scope["path"] == "/stop":
            steps: list[Callable[[], object]] = [
                partial(sock.send, GET),
                host_worker._worker.get().terminated.set_nowait,
            ]
            for step in reversed(steps) if after else steps:
                step()
        await answer(send, await what_comes(receive))

    async with serving(answering(view)) as port, connect(port) as client, connect(port) as idle:
        sock = socket.create_connection(("127.0.0.1", port))
        early = Client(trio.SocketStream(trio.socket.from_stdlib_socket(sock)))
        async with early.stream:
            for each, data in ((idle, GET), (early, GET), (client, get("/stop"))):
                assert b"http.request" == (await each.ask(data)).body
            given = await early.read_answer()
            assert (b"http.request", "close") == (given.body, given.headers["connection"])
            for each in (idle, early):
                assert b"" == await each.read_to_the_end()


async def test_application_may_keep_the_door_open() -> None:
    busy = Busy()
    async with serving(answering(busy), busy.stop, graceful_timeout=60.0) as port:
        async with connect(port) as client:
            assert b"serving" == (await client.ask(get("/hold"))).body
        await busy.begin_stop()
        for path in ("/", "/", "/release"):
            async with connect(port) as client:
                assert b"stopping" == (await client.ask(get(path))).body
    await check_closed(port)


async def test_application_may_cut_all_connections() -> None:
    async with open_stopping() as (port, busy), connect(port) as asking, connect(port) as cutting:
        await asking.send(get("/endless"))
        await trio.testing.wait_all_tasks_blocked()
        busy.expected = 500
        await cutting.send(get("/cut"))
        assert 500 == (await asking.read_answer()).status
        assert busy.cut.is_set()
        await check_closed(port)


async def test_who_waits_to_be_let_in_when_the_stop_is_over_is_answered() -> None:
    busy, workers = Busy(), []

    async def view(scope: Any, receive: Any, send: Any) -> None:
        workers.append(host_worker._worker.get())
        await busy(scope, receive, send)

    async with serving(answering(view), busy.stop, graceful_timeout=60.0) as port, AsyncExitStack() as stack:
        async with connect(port) as client:
            await client.ask(get("/hold"))
        await busy.begin_stop()
        waiting = []
        for _ in range(host_accept.ACCEPT_BATCH + 6):
            sock = socket.create_connection(("127.0.0.1", port))
            sock.send(GET)
            waiting.append(Client(trio.SocketStream(trio.socket.from_stdlib_socket(sock))))
        workers[0].released.set()
        for client in waiting:
            await stack.enter_async_context(client.stream)
            assert b"stopping" == (await client.read_answer()).body
