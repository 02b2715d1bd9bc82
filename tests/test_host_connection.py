from __future__ import annotations

import socket
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import Any

import h2.events
import h2.settings
import pytest
import trio
import trio.testing
from host_client import (
    GET,
    WAIT,
    Client,
    answer,
    answering,
    connect,
    connect2,
    connect_tls,
    hello,
    read_body,
    serving,
    write_certificate,
)

from picoclaw_trio import host

BIG = 2**24  # more than both kernels' buffers hold


@pytest.fixture
def quick_timeout() -> Any:
    host.mend(write_timeout=0.5)
    yield
    host.mend()


class Pouring:
    """An application that writes a big answer, and tells how that went."""

    def __init__(self, size: int = BIG) -> None:
        self.size = size
        self.left, self.ended = trio.Event(), trio.Event()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._watch, receive)
            await answer(send, bytes(self.size))
            self.ended.set()

    async def _watch(self, receive: Any) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        self.left.set()


# Errors


async def test_error_in_protocol_code_costs_one_connection_and_one_line(caplog: pytest.LogCaptureFixture) -> None:
    async with serving(hello, server_names=["x"]) as port, connect(port) as innocent:
        async with connect(port) as client:
            await client.send(b"GET / HTTP/1.1\r\nHost: \xff\r\n\r\n")  # Hypercorn decodes the name of the host
            assert b"" == await client.read_to_the_end()
        assert 200 == (await innocent.ask()).status

    [line] = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert "UnicodeDecodeError" in line
    assert "\n" not in line


# Writing


@pytest.mark.usefixtures("quick_timeout")
async def test_client_that_does_not_read_is_cut_off() -> None:
    pouring = Pouring()
    async with serving(answering(pouring)) as port, connect(port) as client:
        await client.send(GET)
        with trio.fail_after(WAIT):
            await pouring.ended.wait()
            await pouring.left.wait()
        assert (await client.read_to_the_end()).endswith(b"<reset>")


@pytest.mark.usefixtures("quick_timeout")
async def test_http2_client_that_does_not_read_is_cut_off() -> None:
    pouring = Pouring()
    async with serving(answering(pouring)) as port, connect2(port) as client:
        client.connection.update_settings({h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: 2 * BIG})
        client.connection.increment_flow_control_window(2 * BIG)
        client.open_stream()
        await client.flush()
        with trio.fail_after(WAIT):
            await pouring.ended.wait()
            await pouring.left.wait()


@pytest.mark.usefixtures("quick_timeout")
async def test_tls_client_that_does_not_read_is_cut_off(tmp_path: Path) -> None:
    pouring = Pouring()
    authority, settings = write_certificate(tmp_path)
    async with serving(answering(pouring), **settings) as port, connect_tls(port, authority) as stream:
        await stream.send_all(GET)
        with trio.fail_after(WAIT):
            await pouring.ended.wait()
            await pouring.left.wait()


@pytest.mark.usefixtures("quick_timeout")
async def test_client_that_reads_slowly_is_not_cut_off() -> None:
    async with serving(answering(Pouring(2**22))) as port:
        with socket.socket() as plain:
            plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2**13)
            plain.setblocking(False)
            sock = trio.socket.from_stdlib_socket(plain)
            await sock.connect(("127.0.0.1", port))
            await sock.send(GET)
            size = 0
            started_at = trio.current_time()
            while size < 2**22:
                data = await sock.recv(2**16)
                assert data
                size += len(data)
                await trio.sleep_until(started_at + size / 2**21)  # 2 s for all, four times the limit


async def test_write_that_is_cancelled_ends_the_connection() -> None:
    async def impatient(scope: Any, receive: Any, send: Any) -> None:
        with trio.move_on_after(0.05):
            await answer(send, bytes(BIG))

    async with serving(answering(impatient)) as port, connect(port) as client:
        await client.send(GET)
        await trio.testing.wait_all_tasks_blocked(0.1)
        assert len(await client.read_to_the_end()) < BIG


async def test_stop_does_not_wait_for_a_client_that_does_not_read() -> None:
    async with AsyncExitStack() as stack, serving(answering(Pouring()), graceful_timeout=0.1) as port:
        client = await stack.enter_async_context(connect(port))
        await client.send(GET)
        await client.read_until(b"\r\n\r\n")
        # Had the write timeout been waited for, the server would not have ended in time.


async def test_stop_does_not_wait_for_an_http2_client_that_does_not_read() -> None:
    async with AsyncExitStack() as stack, serving(answering(Pouring()), graceful_timeout=0.1) as port:
        client = await stack.enter_async_context(connect2(port))
        client.connection.update_settings({h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: 2 * BIG})
        client.connection.increment_flow_control_window(2 * BIG)
        client.open_stream()
        await client.flush()
        await trio.testing.wait_all_tasks_blocked(0.1)


async def test_http2_request_that_is_cancelled_while_writing_leaves_the_others_whole() -> None:
    """Headers are what a request writes by itself; so many are more than the kernel takes at once."""
    cancelled = 0

    async def write(scope: Any, receive: Any, send: Any) -> None:
        nonlocal cancelled
        if scope["path"] == "/hasty":
            with trio.move_on_after(0.1) as limit:
                await answer(send, b"", 200, *[(b"x", bytes(2**16).hex().encode())] * 10)
            cancelled += limit.cancelled_caught
        else:
            await answer(send, b"whole")

    async with serving(answering(write)) as port, connect2(port) as client:
        client.connection.decoder.max_header_list_size = 2**24
        for _ in range(2):
            client.open_stream((":path", "/hasty"))
        await client.flush()
        await trio.testing.wait_all_tasks_blocked(0.2)
        assert b"whole" == (await client.read_answer(client.open_stream())).body
        assert cancelled


async def test_streamed_pieces_leave_at_once() -> None:
    go_on = trio.Event()

    async def stream(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"x/y")]})
        await send({"type": "http.response.body", "body": b"", "more_body": True})  # the head alone
        await go_on.wait()
        await send({"type": "http.response.body", "body": b"piece", "more_body": True})
        await trio.sleep_forever()

    async with serving(answering(stream), graceful_timeout=0.0) as port, connect(port) as client:
        await client.send(GET)
        await client.read_until(b"\r\n\r\n")
        go_on.set()
        await client.read_until(b"piece")


# Ends


async def test_idle_connection_ends_after_its_timeout() -> None:
    async with serving(hello, keep_alive_timeout=0.2) as port:
        started_at = trio.current_time()
        async with connect(port) as client:
            assert b"" == await client.read_to_the_end()
        assert 0.2 <= trio.current_time() - started_at


async def test_each_request_moves_the_timeout() -> None:
    async with serving(hello, keep_alive_timeout=0.4) as port, connect(port) as client:
        started_at = asked_at = trio.current_time()
        while asked_at < started_at + 0.8:
            asked_at = trio.current_time()
            assert 200 == (await client.ask()).status
        assert b"" == await client.read_to_the_end()
        assert asked_at + 0.4 <= trio.current_time()  # it begins anew once the server has read the last request


async def test_answer_may_take_longer_than_the_timeout() -> None:
    async def slow(scope: Any, receive: Any, send: Any) -> None:
        await trio.sleep(0.7)
        await answer(send, b"late")

    async with serving(answering(slow), keep_alive_timeout=0.5) as port, connect(port) as client:
        assert b"late" == (await client.ask()).body


@pytest.mark.parametrize("first", [b"", GET, b"\r\n\r\n", b"PRI * HTTP/2.0\r\n\r\n"])
async def test_head_that_comes_slowly_ends_the_connection(first: bytes) -> None:
    async with serving(hello, keep_alive_timeout=0.3) as port, connect(port) as client:
        await client.send(first)

        async def dribble() -> None:
            for byte in GET[:-1] * 10:
                try:
                    await client.send(bytes([byte]))
                except trio.BrokenResourceError:
                    return
                await trio.sleep(0.02)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(dribble)
            started_at = trio.current_time()
            await client.read_to_the_end()
            assert trio.current_time() - started_at < 2
            nursery.cancel_scope.cancel()


async def test_stop_ends_idle_connections_at_once_and_lets_answers_finish() -> None:
    began, go_on = trio.Event(), trio.Event()

    async def slow(scope: Any, receive: Any, send: Any) -> None:
        if scope["path"] == "/slow":
            began.set()
            await go_on.wait()
        await answer(send, b"done")

    stop = trio.Event()
    async with (
        serving(answering(slow), stop, graceful_timeout=WAIT) as port,
        connect(port) as new,
        connect(port) as used,
        connect2(port) as second,
        connect(port) as busy,
    ):
        await used.ask()
        await second.read_answer(second.open_stream())
        await busy.send(b"GET /slow HTTP/1.1\r\nHost: x\r\n\r\n")
        await began.wait()
        stop.set()
        for client in (new, used, Client(second.stream)):
            assert b"" == await client.read_to_the_end()
        go_on.set()
        last = await busy.read_answer()
        assert (b"done", "close") == (last.body, last.headers["connection"])
        assert b"" == await busy.read_to_the_end()


@pytest.mark.parametrize(
    "request_", [b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", b"GET / HTTP/1.0\r\n\r\n"]
)
async def test_connection_ends_after_the_last_answer(request_: bytes) -> None:
    async with serving(hello) as port, connect(port) as client:
        assert 200 == (await client.ask(request_)).status
        assert b"" == await client.read_to_the_end()


@pytest.mark.parametrize("tls", [False, True])
async def test_answer_before_the_whole_request_is_not_lost(tls: bool, tmp_path: Path) -> None:
    async def refuse(scope: Any, receive: Any, send: Any) -> None:
        await answer(send, b"too much", 413)

    async with AsyncExitStack() as stack:
        if tls:
            authority, settings = write_certificate(tmp_path)
            port = await stack.enter_async_context(serving(answering(refuse), **settings))
            client = Client(await stack.enter_async_context(connect_tls(port, authority)))
        else:
            port = await stack.enter_async_context(serving(answering(refuse)))
            client = await stack.enter_async_context(connect(port))
        await client.send(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 100000000\r\n\r\n")
        for _ in range(200):
            await client.send(bytes(2**16))
        refused = await client.read_answer()
        assert (b"too much", "close") == (refused.body, refused.headers["connection"])
        assert b"" == await client.read_to_the_end()


async def test_client_that_goes_on_sending_after_the_end_is_cut_off() -> None:
    async with serving(hello) as port, connect(port) as client:
        await client.ask(b"POST / HTTP/1.0\r\nContent-Length: 100000000\r\n\r\n")
        with trio.fail_after(WAIT), suppress(trio.BrokenResourceError):
            while True:
                await client.send(b"x")
                await trio.sleep(0.05)


async def test_tls_connection_serves_and_ends(tmp_path: Path) -> None:
    authority, settings = write_certificate(tmp_path)
    async with serving(hello, **settings) as port, connect_tls(port, authority) as stream:
        client = Client(stream)
        for _ in range(2):
            assert b"GET /" == (await client.ask()).body
        await client.ask(GET.replace(b"Host", b"Connection: close\r\nHost"))
        assert b"" == await client.read_to_the_end()


@pytest.mark.parametrize("sent", [b"", b"\x16\x03\x01\x00\xc8\x01"], ids=["nothing", "half a hello"])
async def test_stop_does_not_wait_for_a_client_that_does_not_begin_tls(sent: bytes, tmp_path: Path) -> None:
    _, settings = write_certificate(tmp_path)
    stop = trio.Event()
    async with serving(hello, stop, graceful_timeout=60.0, **settings) as port, connect(port) as client:
        await client.send(sent)
        await trio.testing.wait_all_tasks_blocked()
        stop.set()
        assert b"" == await client.read_to_the_end()


async def test_plain_request_to_a_tls_port_costs_its_connection_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    authority, settings = write_certificate(tmp_path)
    async with serving(hello, **settings) as port, connect_tls(port, authority) as stream:
        innocent = Client(stream)
        for request in (GET, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"):
            async with connect(port) as client:
                await client.send(request)
                assert b"HTTP" not in await client.read_to_the_end()
        assert b"GET /" == (await innocent.ask()).body
    assert [] == caplog.records


async def test_tls_client_that_does_not_begin_is_cut_off(tmp_path: Path) -> None:
    _, settings = write_certificate(tmp_path)
    async with serving(hello, ssl_handshake_timeout=0.1, **settings) as port, connect(port) as client:
        assert b"" == await client.read_to_the_end()


async def test_tls_client_that_leaves_is_noticed(tmp_path: Path) -> None:
    left = trio.Event()

    async def wait(scope: Any, receive: Any, send: Any) -> None:
        await read_body(receive)
        assert "http.disconnect" == (await receive())["type"]
        left.set()

    authority, settings = write_certificate(tmp_path)
    async with serving(answering(wait), **settings) as port:
        async with connect_tls(port, authority) as stream:
            await stream.send_all(GET * 2)
        with trio.fail_after(WAIT):
            await left.wait()


async def test_silence_may_be_limited(tmp_path: Path) -> None:
    async with serving(hello, read_timeout=0.1) as port, connect(port) as client:
        assert b"" == await client.read_to_the_end()
