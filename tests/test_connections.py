from __future__ import annotations

import contextlib
import os
import random
import socket
import ssl
import struct
from collections.abc import AsyncIterator
from functools import partial

import pytest
import trio
import trustme
from hypercorn.config import Config
from hypercorn.trio import serve
from raw_upstream import (
    Script,
    Upstream,
    always,
    answer,
    http_proxy,
    open_upstream,
    read_request,
    run_cancelled_at,
    split_answers,
)
from trio.testing import MockClock, wait_all_tasks_blocked

from picoclaw_trio.connections import (
    ConnectError,
    ConnectionLost,
    ConnectionPool,
    Statistics,
    TimedOut,
    Timeouts,
    open_pool,
    parse_url,
)

HEADERS = [(b"authorization", b"Bearer sk-secret"), (b"content-type", b"application/json")]


@pytest.fixture
async def pool() -> AsyncIterator[ConnectionPool]:
    async with open_pool() as pool:
        yield pool


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def server_tls(authority: trustme.CA) -> ssl.SSLContext:
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1", "localhost").configure_cert(tls)
    return tls


@pytest.fixture
def client_tls(authority: trustme.CA) -> ssl.SSLContext:
    tls = ssl.create_default_context()
    authority.configure_trust(tls)
    return tls


async def ask(pool: ConnectionPool, upstream: Upstream, body: bytes = b"{}", timeouts: Timeouts | None = None) -> bytes:
    async with pool.post(parse_url(upstream.url), HEADERS, body, timeouts=timeouts or Timeouts()) as response:
        return await response.read(1_000_000)


def reset(stream: trio.abc.Stream) -> None:
    """Close with a RST."""
    assert isinstance(stream, trio.SocketStream)
    stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    stream.socket.close()


async def name_the_connection(stream: trio.abc.Stream) -> None:
    """Answer with the client's port, which is the connection's name."""
    assert isinstance(stream, trio.SocketStream)
    port = stream.socket.getpeername()[1]
    await always(answer(str(port).encode()))(stream)


# Keeping and reusing


async def test_second_request_uses_the_first_ones_connection(pool: ConnectionPool) -> None:
    async with open_upstream(always(answer(b"hello"))) as upstream:
        assert b"hello" == await ask(pool, upstream)
        assert b"hello" == await ask(pool, upstream)

        assert 1 == upstream.accepted
        assert Statistics(idle=1, active=0, opened=1, reused=1, closed=0) == pool.statistics()


async def test_connection_is_free_as_soon_as_the_body_has_ended(pool: ConnectionPool) -> None:
    async with (
        open_upstream(always(answer(b"hello"))) as upstream,
        pool.post(parse_url(upstream.url), HEADERS, b"{}") as response,
    ):
        assert 1 == pool.statistics().active
        await response.read(100)

        assert (1, 0) == (pool.statistics().idle, pool.statistics().active)
        assert b"" == await response.receive()


async def test_leaving_after_the_end_spares_a_connection_that_another_request_has_by_now(pool: ConnectionPool) -> None:
    async with open_upstream(always(answer(b"hello"))) as upstream:
        url = parse_url(upstream.url)
        async with contextlib.AsyncExitStack() as second:
            async with pool.post(url, HEADERS, b"{}") as first:
                await first.read(100)
                response = await second.enter_async_context(pool.post(url, HEADERS, b"{}"))
            assert b"hello" == await response.read(100)

        assert Statistics(idle=1, active=0, opened=1, reused=1, closed=0) == pool.statistics()


async def test_connection_used_last_is_taken_first(pool: ConnectionPool) -> None:
    async with open_upstream(name_the_connection) as upstream:
        url = parse_url(upstream.url)
        async with pool.post(url, HEADERS, b"{}") as one, pool.post(url, HEADERS, b"{}") as two:
            first, last = await two.read(100), await one.read(100)

        assert first != last
        assert [last, last] == [await ask(pool, upstream), await ask(pool, upstream)]


async def test_connections_of_two_addresses_are_kept_apart(pool: ConnectionPool) -> None:
    async with open_upstream(always(answer(b"a"))) as a, open_upstream(always(answer(b"b"))) as b:
        assert [b"a", b"b", b"a", b"b"] == [await ask(pool, upstream) for upstream in (a, b, a, b)]
        assert Statistics(idle=2, active=0, opened=2, reused=2, closed=0) == pool.statistics()


async def test_connections_with_and_without_a_proxy_are_kept_apart(pool: ConnectionPool) -> None:
    async with open_upstream(always(answer(b"direct"))) as upstream, open_upstream(http_proxy([])) as proxy:
        url = parse_url(upstream.url)
        assert b"direct" == await ask(pool, upstream)
        async with pool.post(url, HEADERS, b"", proxy=f"http://{proxy.address}") as response:
            assert b"forwarded" == await response.read(100)


async def test_idle_connections_are_bounded_and_the_oldest_goes() -> None:
    async with open_pool(max_idle=2) as pool, open_upstream(name_the_connection) as upstream:
        url = parse_url(upstream.url)
        async with (
            pool.post(url, HEADERS, b"{}") as one,
            pool.post(url, HEADERS, b"{}") as two,
            pool.post(url, HEADERS, b"{}") as three,
        ):
            names = [await response.read(100) for response in (one, two, three)]

            assert Statistics(idle=2, active=0, opened=3, reused=0, closed=1) == pool.statistics()
            await upstream.wait_open(2)
        async with pool.post(url, HEADERS, b"{}") as one, pool.post(url, HEADERS, b"{}") as two:
            assert names[:0:-1] == [await one.read(100), await two.read(100)]


async def test_idle_connection_that_has_expired_is_not_taken(mock_clock: MockClock) -> None:
    async with open_pool(idle_timeout=4.5) as pool, open_upstream(always(answer())) as upstream:
        await ask(pool, upstream)
        mock_clock.jump(4.4)
        await ask(pool, upstream)
        assert 1 == upstream.accepted

        mock_clock.jump(4.5)
        await ask(pool, upstream)
        assert Statistics(idle=1, active=0, opened=2, reused=1, closed=1) == pool.statistics()


async def test_giving_back_closes_what_has_expired_elsewhere(mock_clock: MockClock) -> None:
    async with (
        open_pool(idle_timeout=4.5) as pool,
        open_upstream(always(answer())) as quiet,
        open_upstream(always(answer())) as busy,
    ):
        await ask(pool, quiet)
        mock_clock.jump(4.5)
        await ask(pool, busy)

        assert Statistics(idle=1, active=0, opened=2, reused=0, closed=1) == pool.statistics()
        await quiet.wait_open(0)


async def test_sweeper_closes_idle_connections_when_nobody_asks(mock_clock: MockClock, nursery: trio.Nursery) -> None:
    async with open_pool(idle_timeout=4.5) as pool, open_upstream(always(answer())) as upstream:
        nursery.start_soon(pool.run_sweeper)
        await wait_all_tasks_blocked()
        mock_clock.jump(1.0)
        await ask(pool, upstream)

        mock_clock.jump(3.5)
        await wait_all_tasks_blocked()
        assert 1 == pool.statistics().idle
        mock_clock.jump(4.5)
        await upstream.wait_open(0)
        assert 0 == pool.statistics().idle


async def test_leaving_the_pool_closes_idle_and_active_connections() -> None:
    async with open_upstream(always(answer(b"hello"))) as upstream:
        async with contextlib.AsyncExitStack() as stack:
            async with open_pool() as pool:
                await ask(pool, upstream)
                response = await stack.enter_async_context(pool.post(parse_url(upstream.url), HEADERS, b"{}"))
                async with pool.post(parse_url(upstream.url), HEADERS, b"{}") as other:
                    await other.read(100)
                assert 2 == upstream.open_now
            await upstream.wait_open(0)
            assert Statistics(idle=0, active=0, opened=2, reused=1, closed=2) == pool.statistics()
            assert b"hello" == await response.read(100)  # had come with the head
        with pytest.raises(ConnectError):
            await ask(pool, upstream)
        await upstream.wait_open(0)


async def test_answer_without_keep_alive_closes_the_connection(pool: ConnectionPool) -> None:
    async with open_upstream(always(answer(b"bye", "connection: close"))) as upstream:
        assert [b"bye", b"bye"] == [await ask(pool, upstream), await ask(pool, upstream)]
        assert Statistics(idle=0, active=0, opened=2, reused=0, closed=2) == pool.statistics()


async def test_hypercorn_keeps_the_connection_alive(pool: ConnectionPool, nursery: trio.Nursery) -> None:
    async def app(scope, receive, send) -> None:  # type: ignore[no-untyped-def]  # as ASGI defines it
        assert "http" == scope["type"]
        message = await receive()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": message["body"]})

    config = Config()
    config.bind = ["127.0.0.1:0"]
    stop = trio.Event()
    addresses = await nursery.start(partial(serve, app, config, shutdown_trigger=stop.wait))
    url = parse_url(f"{addresses[0]}/echo")
    for body in (b"one", b"two"):
        async with pool.post(url, HEADERS, body) as response:
            assert (200, body) == (response.status, await response.read(100))

    assert Statistics(idle=1, active=0, opened=1, reused=1, closed=0) == pool.statistics()
    stop.set()


# Leaving early


async def endless(stream: trio.abc.Stream) -> None:
    await read_request(stream)
    await stream.send_all(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n")
    await stream.receive_some()  # b"" or a reset: the client is gone


async def test_leaving_before_the_end_closes_at_once(pool: ConnectionPool) -> None:
    async with open_upstream(endless) as upstream:
        async with pool.post(parse_url(upstream.url), HEADERS, b"{}") as response:
            assert b"hello" == await response.receive()

        assert Statistics(idle=0, active=0, opened=1, reused=0, closed=1) == pool.statistics()
        await upstream.wait_open(0)


async def test_an_exception_closes_at_once(pool: ConnectionPool) -> None:
    async with open_upstream(endless) as upstream:
        with pytest.raises(RuntimeError, match="mine"):
            async with pool.post(parse_url(upstream.url), HEADERS, b"{}"):
                raise RuntimeError("mine")

        assert Statistics(idle=0, active=0, opened=1, reused=0, closed=1) == pool.statistics()
        await upstream.wait_open(0)


async def test_leaving_after_the_last_event_keeps_a_connection_whose_end_had_come(pool: ConnectionPool) -> None:
    stream_of_events = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\ne\r\ndata: [DONE]\n\n\r\n0\r\n\r\n"
    async with open_upstream(always(stream_of_events)) as upstream:
        for _ in range(2):
            async with pool.post(parse_url(upstream.url), HEADERS, b"{}"):
                pass
        assert 1 == upstream.accepted


async def test_cancelled_receive_loses_nothing(pool: ConnectionPool) -> None:
    go_on = trio.Event()

    async def script(stream: trio.abc.Stream) -> None:
        await read_request(stream)
        await stream.send_all(b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhello")
        await go_on.wait()
        await stream.send_all(b"world")

    async with (
        open_upstream(script) as upstream,
        pool.post(parse_url(upstream.url), HEADERS, b"{}") as response,
    ):
        assert b"hello" == await response.receive()
        with trio.move_on_after(0) as scope:
            await response.receive()
        assert scope.cancelled_caught
        go_on.set()

        assert b"world" == await response.read(100)
        assert 1 == pool.statistics().idle


async def test_nothing_is_asked_for_who_is_cancelled_already(pool: ConnectionPool) -> None:
    asked = []

    async def script(stream: trio.abc.Stream) -> None:
        while request := await read_request(stream):
            asked.append(request[1])
            await stream.send_all(answer())

    async with open_upstream(script) as upstream:
        await ask(pool, upstream, b"one")
        with trio.CancelScope() as scope:
            scope.cancel()
            await ask(pool, upstream, b"two")
        await upstream.wait_open(0)
    assert [b"one"] == asked


# Connections that died while idle, and the one retry


async def test_connection_that_the_upstream_closed_is_noticed_before_use(pool: ConnectionPool) -> None:
    async with open_upstream(always(answer(), then_close=True)) as upstream:
        for _ in range(3):
            await ask(pool, upstream)
            await upstream.wait_open(0)

        assert Statistics(idle=1, active=0, opened=3, reused=0, closed=2) == pool.statistics()


@pytest.mark.parametrize("extra", [b"\r\n", answer(status="408 Request Timeout")])
@pytest.mark.parametrize("together", [True, False])
async def test_bytes_that_nobody_asked_for_end_the_connection(
    pool: ConnectionPool, extra: bytes, together: bool
) -> None:
    read, sent = trio.Event(), trio.Event()

    async def script(stream: trio.abc.Stream) -> None:
        await read_request(stream)
        await stream.send_all(answer() + extra if together else answer())
        await read.wait()
        await stream.send_all(b"" if together else extra)
        sent.set()
        await stream.receive_some()

    async with open_upstream(split_answers(script, always(answer(b"right")))) as upstream:
        await ask(pool, upstream)
        read.set()
        await sent.wait()

        assert b"right" == await ask(pool, upstream)
        assert 2 == upstream.accepted


async def test_tls_records_that_nobody_asked_for_end_the_connection(
    server_tls: ssl.SSLContext, client_tls: ssl.SSLContext
) -> None:
    class Collecting(trio.abc.SendStream):
        """Both records leave in one write, so that the client's TLS takes them from the socket together."""

        def __init__(self, stream: trio.abc.SendStream) -> None:
            self.stream = stream
            self.held: list[bytes] | None = None

        async def send_all(self, data: bytes | bytearray | memoryview) -> None:
            if self.held is not None:
                self.held.append(bytes(data))
            else:
                await self.stream.send_all(data)

        async def wait_send_all_might_not_block(self) -> None:
            await self.stream.wait_send_all_might_not_block()

        async def aclose(self) -> None:
            await self.stream.aclose()

    async def script(tcp: trio.abc.Stream) -> None:
        sending = Collecting(tcp)
        stream = trio.SSLStream(trio.StapledStream(sending, tcp), server_tls, server_side=True)
        await read_request(stream)
        sending.held = []
        await stream.send_all(answer(b"asked for"))
        await stream.send_all(answer(b"not asked for"))
        await tcp.send_all(b"".join(sending.held))
        await tcp.receive_some()

    async def usual(tcp: trio.abc.Stream) -> None:
        await always(answer(b"right"))(trio.SSLStream(tcp, server_tls, server_side=True))

    async with open_pool(tls=client_tls) as pool, open_upstream(split_answers(script, usual)) as upstream:
        upstream.scheme = "https"
        assert b"asked for" == await ask(pool, upstream)
        assert b"right" == await ask(pool, upstream)


def dies_at_the_second(seen: list[str], *, by_reset: bool = False, after: bytes = b"") -> Script:
    """Answer one request; read another, send *after*, and close."""

    async def script(stream: trio.abc.Stream) -> None:
        await read_request(stream)
        seen.append("answered")
        await stream.send_all(answer())
        if await read_request(stream):
            seen.append("dropped")
            if after:
                await stream.send_all(after)
            if by_reset:
                reset(stream)

    return script


@pytest.mark.parametrize("by_reset", [False, True])
async def test_reused_connection_that_ends_before_any_answer_is_retried_on_a_fresh_one(
    pool: ConnectionPool, by_reset: bool
) -> None:
    seen: list[str] = []
    async with open_upstream(
        split_answers(dies_at_the_second(seen, by_reset=by_reset), always(answer(b"again")))
    ) as upstream:
        await ask(pool, upstream)

        assert b"again" == await ask(pool, upstream)
        assert ["answered", "dropped"] == seen
        assert Statistics(idle=1, active=0, opened=2, reused=1, closed=1) == pool.statistics()


async def test_a_retry_is_not_retried(pool: ConnectionPool) -> None:
    seen: list[str] = []

    async def drop(stream: trio.abc.Stream) -> None:
        await read_request(stream)
        seen.append("dropped again")

    async with open_upstream(split_answers(dies_at_the_second(seen), drop)) as upstream:
        await ask(pool, upstream)
        with pytest.raises(ConnectionLost):
            await ask(pool, upstream)

        assert ["answered", "dropped", "dropped again"] == seen


async def test_fresh_connection_that_ends_is_not_retried(pool: ConnectionPool) -> None:
    seen = []

    async def drop(stream: trio.abc.Stream) -> None:
        seen.append(await read_request(stream))

    async with open_upstream(drop) as upstream:
        with pytest.raises(ConnectionLost) as caught:
            await ask(pool, upstream)

        assert not caught.value.answered
        assert 1 == len(seen)
        assert Statistics(idle=0, active=0, opened=1, reused=0, closed=1) == pool.statistics()


async def test_reused_connection_is_not_retried_after_one_byte_of_an_answer(pool: ConnectionPool) -> None:
    seen: list[str] = []
    async with open_upstream(dies_at_the_second(seen, after=b"H")) as upstream:
        await ask(pool, upstream)
        with pytest.raises(ConnectionLost) as caught:
            await ask(pool, upstream)

        assert caught.value.answered
        assert ["answered", "dropped"] == seen


async def test_reused_connection_is_not_retried_when_the_upstream_had_time_to_work(
    pool: ConnectionPool, mock_clock: MockClock
) -> None:
    seen = []

    async def script(stream: trio.abc.Stream) -> None:
        await read_request(stream)
        await stream.send_all(answer())
        seen.append(await read_request(stream))
        await wait_all_tasks_blocked()
        mock_clock.jump(1.0)

    async with open_upstream(script) as upstream:
        await ask(pool, upstream)
        with pytest.raises(ConnectionLost):
            await ask(pool, upstream)

        assert 1 == len(seen)
        assert 1 == upstream.accepted


async def test_reused_connection_that_ends_during_an_upload_is_retried(
    pool: ConnectionPool, mock_clock: MockClock
) -> None:
    """However long it took: nobody can have read all of it."""

    async def script(stream: trio.abc.Stream) -> None:
        await read_request(stream)
        await stream.send_all(answer())
        await stream.receive_some(1000)
        await wait_all_tasks_blocked()
        mock_clock.jump(30.0)

    async def count(stream: trio.abc.Stream) -> None:
        request = await read_request(stream)
        assert request is not None
        await stream.send_all(answer(str(len(request[1])).encode()))

    async with open_upstream(split_answers(script, count)) as upstream:
        await ask(pool, upstream)
        assert b"20000000" == await ask(pool, upstream, b"x" * 20_000_000)


# Time limits


async def test_upstream_that_does_not_answer_times_out(pool: ConnectionPool, mock_clock: MockClock) -> None:
    async def script(stream: trio.abc.Stream) -> None:
        await read_request(stream)
        await wait_all_tasks_blocked()
        mock_clock.jump(7.0)
        await stream.receive_some()

    async with open_upstream(script) as upstream:
        with pytest.raises(TimedOut) as caught:
            await ask(pool, upstream, timeouts=Timeouts(connect=5.0, answer=7.0, read=5.0))
        await upstream.wait_open(0)

    assert "answer" == caught.value.phase
    assert 7.0 == trio.current_time()


async def test_upstream_that_stops_half_way_times_out(pool: ConnectionPool, mock_clock: MockClock) -> None:
    async def script(stream: trio.abc.Stream) -> None:
        await read_request(stream)
        await stream.send_all(b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhello")
        await wait_all_tasks_blocked()
        mock_clock.jump(7.0)
        await stream.receive_some()

    async with open_upstream(script) as upstream:
        with pytest.raises(TimedOut) as caught:
            await ask(pool, upstream, timeouts=Timeouts(connect=5.0, answer=5.0, read=7.0))
        await upstream.wait_open(0)

    assert "read" == caught.value.phase
    assert 7.0 == trio.current_time()


async def test_time_that_the_reader_takes_does_not_count(pool: ConnectionPool, mock_clock: MockClock) -> None:
    async with open_upstream(always(answer(b"x" * 100_000))) as upstream:
        url = parse_url(upstream.url)
        async with pool.post(url, HEADERS, b"{}", timeouts=Timeouts(answer=1.0, read=1.0)) as response:
            mock_clock.jump(1000.0)
            assert 100_000 == len(await response.read(100_000))


async def test_connection_that_does_not_come_about_times_out(pool: ConnectionPool, mock_clock: MockClock) -> None:
    async def never_shakes_hands(stream: trio.abc.Stream) -> None:
        await stream.receive_some()
        await wait_all_tasks_blocked()
        mock_clock.jump(7.0)
        await stream.receive_some()

    async with open_upstream(never_shakes_hands) as upstream:
        upstream.scheme = "https"
        with pytest.raises(TimedOut) as caught:
            await ask(pool, upstream, timeouts=Timeouts(connect=7.0))
        await upstream.wait_open(0)

    assert "connect" == caught.value.phase
    assert Statistics(idle=0, active=0, opened=0, reused=0, closed=0) == pool.statistics()


# Cancellation


def open_files() -> int:
    return len(os.listdir("/dev/fd"))


async def check_cancelled_everywhere(script: Script, bodies: list[bytes], **tls: ssl.SSLContext) -> int:
    """Ask with each body in turn, cancelled at every step once; nothing may be left. Returns the number of steps."""
    number, was_cancelled = 0, True
    async with open_upstream(script, tls=tls.get("server")) as upstream:
        while was_cancelled:
            number += 1
            before = open_files()
            async with open_pool(tls=tls.get("client")) as pool:

                async def scenario(pool: ConnectionPool = pool) -> None:
                    for body in bodies:
                        await ask(pool, upstream, body)

                was_cancelled = await run_cancelled_at(number, scenario)
                assert 0 == pool.statistics().active
                await upstream.wait_open(pool.statistics().idle)
                assert before + 2 * upstream.open_now == open_files()
                await ask(pool, upstream)
            await upstream.wait_open(0)
    return number - 1


async def test_cancelling_at_any_step_leaves_nothing() -> None:
    # To connect takes two tasks, and each exchange pauses at its receiving.
    assert 8 <= await check_cancelled_everywhere(always(answer()), [b"{}", b"{}"])


async def test_cancelling_at_any_step_of_a_retry_leaves_nothing() -> None:
    assert 12 <= await check_cancelled_everywhere(dies_at_the_second([]), [b"{}", b"{}"])


async def test_cancelling_at_any_step_of_an_upload_leaves_nothing() -> None:
    assert 10 <= await check_cancelled_everywhere(always(answer()), [b"x" * 500_000])


async def test_cancelling_at_any_step_with_tls_leaves_nothing(
    server_tls: ssl.SSLContext, client_tls: ssl.SSLContext
) -> None:
    steps = await check_cancelled_everywhere(always(answer()), [b"{}", b"{}"], server=server_tls, client=client_tls)
    assert 15 <= steps


async def test_cancelling_many_at_once_leaves_nothing(pool: ConnectionPool) -> None:
    choose = random.Random(1)
    async with open_upstream(always(answer())) as upstream:
        before = open_files()
        for _ in range(20):
            async with trio.open_nursery() as nursery:
                for _ in range(16):
                    nursery.start_soon(run_cancelled_at, choose.randint(1, 12), partial(ask, pool, upstream))
            await upstream.wait_open(pool.statistics().idle)

        statistics = pool.statistics()
        assert 0 == statistics.active
        assert statistics.opened == statistics.idle + statistics.closed
        assert before + 2 * statistics.idle == open_files()
        assert b"hello" == await ask(pool, upstream)
