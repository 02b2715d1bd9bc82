from __future__ import annotations

import gzip
import socket
import ssl
import struct
import zlib
from collections.abc import AsyncIterator
from typing import TypeVar

import pytest
import trio
import trustme
from hypothesis import given, settings
from hypothesis import strategies as st
from raw_upstream import Script, Upstream, always, answer, open_upstream, read_head, read_request
from trio.testing import wait_all_tasks_blocked

from picoclaw_trio.connections import (
    ConnectionLost,
    ConnectionPool,
    ProtocolError,
    ResponseTooLarge,
    open_pool,
    parse_url,
)
from picoclaw_trio.connections.dialing import dial, trust_system
from picoclaw_trio.connections.exchange import Connection

E = TypeVar("E", bound=Exception)
OK = b"HTTP/1.1 200 OK\r\n"
MIB = 1_048_576


@pytest.fixture
async def pool() -> AsyncIterator[ConnectionPool]:
    async with open_pool() as pool:
        yield pool


async def ask(pool: ConnectionPool, upstream: Upstream, body: bytes = b"{}") -> tuple[int, bytes]:
    async with pool.post(parse_url(upstream.url), [], body) as response:
        return response.status, await response.read(100 * MIB)


async def ask_once(pool: ConnectionPool, data: bytes, *, then_close: bool = True) -> tuple[int, bytes]:
    """Get *data* as the answer."""
    async with open_upstream(always(data, then_close=then_close)) as upstream:
        return await ask(pool, upstream)


async def fail_once(pool: ConnectionPool, data: bytes, error: type[E], *, then_close: bool = True) -> E:
    """Get *data* as the answer, and the error that comes of it."""
    async with open_upstream(always(data, then_close=then_close)) as upstream:
        with pytest.raises(error) as caught:
            await ask(pool, upstream)
    return caught.value


def chunked(*chunks: bytes, headers: bytes = b"") -> bytes:
    body = b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in (*chunks, b""))
    return OK + headers + b"transfer-encoding: chunked\r\n\r\n" + body


# Requests


async def test_request_is_one_write_with_all_that_it_needs(pool: ConnectionPool) -> None:
    seen = []

    async def script(stream: trio.abc.Stream) -> None:
        seen.append(await stream.receive_some(65_536))
        await stream.send_all(answer())

    async with open_upstream(script) as upstream:
        url = parse_url(f"http://{upstream.address}/v1/chat?a=b")
        async with pool.post(url, [(b"Authorization", b"Bearer x")], b'{"a": 1}'):
            pass
    expected = (
        f"POST /v1/chat?a=b HTTP/1.1\r\nhost: {upstream.address}\r\naccept-encoding: identity\r\n"
        'Authorization: Bearer x\r\ncontent-length: 8\r\n\r\n{"a": 1}'
    )
    assert expected.encode().lower() == seen[0].lower()


async def test_large_bodies_go_both_ways(pool: ConnectionPool) -> None:
    async def echo(stream: trio.abc.Stream) -> None:
        while request := await read_request(stream):
            await stream.send_all(answer(request[1]))

    body = bytes(range(256)) * 80_000
    async with open_upstream(echo) as upstream:
        for _ in range(2):
            assert (200, body) == await ask(pool, upstream, body)
        assert 1 == upstream.accepted


@settings(max_examples=30, deadline=None)
@given(st.lists(st.binary(max_size=300), min_size=2, max_size=4))
def test_each_request_tells_the_length_of_its_own_body(bodies: list[bytes]) -> None:
    """The rest of the head is kept from one request to the next."""
    seen = []

    async def script(stream: trio.abc.Stream) -> None:
        while request := await read_request(stream):
            seen.append(request[1])
            await stream.send_all(answer())

    async def ask_all() -> None:
        async with open_pool() as pool, open_upstream(script) as upstream:
            for body in bodies:
                await ask(pool, upstream, body)
            assert 1 == upstream.accepted

    trio.run(ask_all)
    assert bodies == seen


async def test_kept_head_belongs_to_its_address_and_headers(pool: ConnectionPool) -> None:
    heads = []

    async def script(stream: trio.abc.Stream) -> None:
        while request := await read_request(stream):
            heads.append(request[0])
            await stream.send_all(answer())

    async with open_upstream(script) as upstream:
        for path, key in (("/a", b"1"), ("/a", b"2"), ("/b", b"2"), ("/a", b"1")):
            async with pool.post(parse_url(f"http://{upstream.address}{path}"), [(b"x-key", key)], b"{}"):
                pass
    assert [(b"/a", b"1"), (b"/a", b"2"), (b"/b", b"2"), (b"/a", b"1")] == [
        (head.split()[1], head.partition(b"x-key: ")[2].split()[0]) for head in heads
    ]


@pytest.mark.parametrize(
    "header",
    [
        (b"authorization", b"Bearer sk-secret\n"),
        (b"host", b"sk-secret"),
        (b"a b", b""),
        (b"Content-Length", b"0"),
        (b"transfer-encoding", b"chunked"),
    ],
)
async def test_header_that_cannot_be_sent_is_refused_without_being_repeated(
    pool: ConnectionPool, header: tuple[bytes, bytes]
) -> None:
    with pytest.raises(ValueError, match="one of the headers") as caught:
        async with pool.post(parse_url("http://127.0.0.1:9"), [header], b""):
            pass
    assert "secret" not in str(caught.value)
    assert caught.value.__context__ is None


# Framing of answers


@pytest.mark.parametrize(
    ("data", "body", "is_kept"),
    [
        (answer(b"hello"), b"hello", True),
        (chunked(b"hel", b"lo"), b"hello", True),
        (OK + b"\r\nhello", b"hello", False),
        (answer(b"hello", "connection: close"), b"hello", False),
        (answer(b"hello", version="HTTP/1.0"), b"hello", False),
        (b"HTTP/1.0 200 OK\r\n\r\nhello", b"hello", False),
        (b"HTTP/1.1 204 No Content\r\n\r\n", b"", True),
        (answer(b""), b"", True),
        (
            b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n" + answer(b"hello"),
            b"hello",
            True,
        ),
    ],
)
async def test_body_ends_where_the_head_says(pool: ConnectionPool, data: bytes, body: bytes, is_kept: bool) -> None:
    async with open_upstream(always(data, then_close=not is_kept)) as upstream:
        assert body == (await ask(pool, upstream))[1]
        assert is_kept == bool(pool.statistics().idle)


@pytest.mark.parametrize("status", ["301 Moved Permanently", "401 Unauthorized", "429 Slow Down", "503 Busy"])
async def test_any_status_is_passed_on(pool: ConnectionPool, status: str) -> None:
    assert (int(status[:3]), b"x") == await ask_once(pool, answer(b"x", "location: http://a/", status=status))


async def test_header_names_have_no_case(pool: ConnectionPool) -> None:
    async with (
        open_upstream(always(answer(b"", "Retry-AFTER: 7", "X-A: 1", "x-a: 2"))) as upstream,
        pool.post(parse_url(upstream.url), [], b"") as response,
    ):
        got = [response.header(name) for name in ("retry-after", "Retry-After", "x-a", "none")]
        assert ["7", "7", "1", None] == got


async def test_pieces_come_as_they_arrive(pool: ConnectionPool) -> None:
    go_on, stop = trio.Event(), trio.Event()

    async def script(stream: trio.abc.Stream) -> None:
        await read_request(stream)
        await stream.send_all(OK + b"transfer-encoding: chunked\r\n\r\n3\r\none\r\n")
        await go_on.wait()
        await stream.send_all(b"3\r\ntwo\r\n5\r\nthree\r\n")
        await stop.wait()
        await stream.send_all(b"0\r\n\r\n")

    async with open_upstream(script) as upstream, pool.post(parse_url(upstream.url), [], b"") as response:
        assert b"one" == await response.receive()
        go_on.set()
        assert b"twothree" == await response.receive()
        stop.set()
        assert b"" == await response.receive()


async def test_slow_reader_stops_the_upstream(pool: ConnectionPool) -> None:
    sent = 0
    offered = 200 * MIB

    async def script(stream: trio.abc.Stream) -> None:
        nonlocal sent
        await read_request(stream)
        await stream.send_all(OK + b"content-length: %d\r\n\r\n" % offered)
        while sent < offered:
            await stream.send_all(bytes(MIB))
            sent += MIB

    async with open_upstream(script) as upstream, pool.post(parse_url(upstream.url), [], b"") as response:
        await response.receive()
        await wait_all_tasks_blocked(0.05)
        assert sent < 32 * MIB  # what the two sockets hold


async def test_answer_longer_than_wanted_is_refused(pool: ConnectionPool) -> None:
    async with open_upstream(always(answer(b"x" * 1001))) as upstream:
        with pytest.raises(ResponseTooLarge):
            async with pool.post(parse_url(upstream.url), [], b"") as response:
                await response.read(1000)
        async with pool.post(parse_url(upstream.url), [], b"") as response:
            assert 1001 == len(await response.read(1001))


# What is no answer, or half of one


@pytest.mark.parametrize(
    "garbage",
    [b"SSH-2.0-OpenSSH_9.6", b"\x15\x03\x01\x00\x02", b"HTTQ", b"HTTP/9\r\n\r\n", b"HTTP/1.1 200 OK\r\n:\r\n\r\n"],
)
async def test_garbage_is_refused_without_waiting_for_more(pool: ConnectionPool, garbage: bytes) -> None:
    await fail_once(pool, garbage, ProtocolError, then_close=False)
    assert 1 == pool.statistics().closed


async def test_broken_chunk_is_refused(pool: ConnectionPool) -> None:
    data = OK + b"transfer-encoding: chunked\r\n\r\nxyz\r\n"
    await fail_once(pool, data, ProtocolError, then_close=False)


async def test_endless_head_is_refused(pool: ConnectionPool) -> None:
    async def script(stream: trio.abc.Stream) -> None:
        await read_request(stream)
        await stream.send_all(OK)
        while True:
            await stream.send_all(b"x: %b\r\n" % (b"y" * 1000))

    async with open_upstream(script) as upstream:
        with pytest.raises(ProtocolError):
            await ask(pool, upstream)


async def test_head_of_sixty_thousand_bytes_is_read(pool: ConnectionPool) -> None:
    headers = [f"x-{number}: {'y' * 990}" for number in range(60)]

    assert (200, b"hello") == await ask_once(pool, answer(b"hello", *headers))


@pytest.mark.parametrize(
    ("data", "answered"),
    [
        (b"", False),
        (b"HTTP/1.1 20", True),
        (b"HTTP/1.1 100 Continue\r\n\r\n", True),
        (OK + b"content-length: 10\r\n\r\nhello", True),
        (OK + b"transfer-encoding: chunked\r\n\r\n5\r\nhello\r\n", True),
    ],
)
async def test_answer_that_breaks_off_says_whether_it_had_begun(
    pool: ConnectionPool, data: bytes, answered: bool
) -> None:
    assert answered == (await fail_once(pool, data, ConnectionLost)).answered


# Packed bodies


@pytest.mark.parametrize(
    ("coding", "pack"), [("gzip", gzip.compress), ("GZIP", gzip.compress), ("deflate", zlib.compress)]
)
async def test_packed_body_is_unpacked(pool: ConnectionPool, coding: str, pack: object) -> None:
    assert callable(pack)
    text = b"hello" * 100_000
    assert (200, text) == await ask_once(pool, answer(pack(text), f"content-encoding: {coding}"))


async def test_packed_stream_is_unpacked_as_it_arrives(pool: ConnectionPool) -> None:
    packer = zlib.compressobj(wbits=31)
    go_on = trio.Event()

    async def script(stream: trio.abc.Stream) -> None:
        await read_request(stream)
        await stream.send_all(OK + b"content-encoding: gzip\r\n\r\n")
        await stream.send_all(packer.compress(b"one") + packer.flush(zlib.Z_SYNC_FLUSH))
        await go_on.wait()
        await stream.send_all(packer.compress(b"two") + packer.flush())

    async with open_upstream(script) as upstream, pool.post(parse_url(upstream.url), [], b"") as response:
        assert b"one" == await response.receive()
        go_on.set()
        assert [b"two", b""] == [await response.receive(), await response.receive()]


async def test_limit_holds_for_the_unpacked_bytes(pool: ConnectionPool) -> None:
    bomb = gzip.compress(bytes(100 * MIB))
    async with open_upstream(always(answer(bomb, "content-encoding: gzip"))) as upstream:
        with pytest.raises(ResponseTooLarge):
            async with pool.post(parse_url(upstream.url), [], b"") as response:
                await response.read(MIB)


@pytest.mark.parametrize(
    ("coding", "body"),
    [("gzip", gzip.compress(b"hello")[:-1]), ("gzip", b"hello"), ("br", b"hello"), ("deflate", b"\xff\xff")],
)
async def test_body_that_cannot_be_unpacked_is_refused(pool: ConnectionPool, coding: str, body: bytes) -> None:
    await fail_once(pool, answer(body, f"content-encoding: {coding}"), ProtocolError)


# Answers that come during the upload


@pytest.fixture(scope="module")
def tls() -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """The server's and the client's."""
    authority = trustme.CA()
    server, client = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH), ssl.create_default_context()
    authority.issue_cert("127.0.0.1").configure_cert(server)
    authority.configure_trust(client)
    return server, client


async def test_body_until_the_connections_end_needs_no_goodbye_of_tls(
    tls: tuple[ssl.SSLContext, ssl.SSLContext],
) -> None:
    server, client = tls
    script = always(OK + b"\r\nhello", then_close=True)
    async with open_upstream(script, tls=server) as upstream, open_pool(tls=client) as pool:
        assert (200, b"hello") == await ask(pool, upstream)


REFUSED = (413, b"too much")
REFUSAL = answer(b"too much", status="413 Content Too Large")


async def refuse_and_listen_no_more(stream: trio.abc.Stream) -> None:
    await read_head(stream)
    await stream.send_all(REFUSAL)
    await trio.sleep_forever()


async def refuse_and_close(stream: trio.abc.Stream) -> None:
    """The rest of the upload is met by a RST."""
    await read_head(stream)
    await stream.send_all(REFUSAL)


async def refuse_and_read_on(stream: trio.abc.Stream) -> None:
    await read_head(stream)
    await stream.send_all(REFUSAL)
    while await stream.receive_some(65_536):
        pass


@pytest.mark.parametrize("with_tls", [False, True])
@pytest.mark.parametrize("script", [refuse_and_listen_no_more, refuse_and_close, refuse_and_read_on])
async def test_answer_before_the_uploads_end_is_read(
    tls: tuple[ssl.SSLContext, ssl.SSLContext], with_tls: bool, script: Script
) -> None:
    server, client = tls if with_tls else (None, None)
    async with open_upstream(script, tls=server) as upstream, open_pool(tls=client) as pool:
        assert REFUSED == await ask(pool, upstream, b"x" * (20 * MIB))
        assert (0, 1) == (pool.statistics().idle, pool.statistics().closed)


async def test_answer_before_the_uploads_end_may_be_ended_by_half_a_close(pool: ConnectionPool) -> None:
    async def script(stream: trio.abc.Stream) -> None:
        assert isinstance(stream, trio.SocketStream)
        await read_head(stream)
        await stream.send_all(b"HTTP/1.1 413 Content Too Large\r\n\r\ntoo much")
        await stream.send_eof()
        await trio.sleep_forever()

    async with open_upstream(script) as upstream:
        assert REFUSED == await ask(pool, upstream, b"x" * (20 * MIB))


async def test_answer_is_read_though_the_connection_broke_before_the_question_was_out() -> None:
    closed = trio.Event()

    async def script(stream: trio.abc.Stream) -> None:
        assert isinstance(stream, trio.SocketStream)
        await stream.send_all(REFUSAL)
        stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # close by a RST
        stream.socket.close()
        closed.set()

    async with open_upstream(script) as upstream:
        wire = await dial(parse_url(upstream.url).address, None, trust_system)
        await closed.wait()
        connection = Connection("upstream", wire)
        head = b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 2\r\n\r\n"
        assert 413 == (await connection.ask(head, b"{}")).status_code
        assert not connection.renew()
        wire.close()


async def test_upstream_may_answer_at_length_while_it_reads(pool: ConnectionPool) -> None:
    """As one that echoes does: neither side may wait for the other to finish."""

    async def script(stream: trio.abc.Stream) -> None:
        await read_head(stream)
        await stream.send_all(OK + b"transfer-encoding: chunked\r\n\r\n")
        for _ in range(20):
            await stream.send_all(b"186a0\r\n" + b"y" * 100_000 + b"\r\n")
            await stream.receive_some(65_536)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(drain, stream)
            await stream.send_all(b"0\r\n\r\n")

    async def drain(stream: trio.abc.Stream) -> None:
        while await stream.receive_some(65_536):
            pass

    async with open_upstream(script) as upstream:
        status, body = await ask(pool, upstream, b"x" * (4 * MIB))
    assert (200, 2_000_000) == (status, len(body))


async def test_upload_to_something_else_than_http_is_refused(pool: ConnectionPool) -> None:
    async def script(stream: trio.abc.Stream) -> None:
        await stream.send_all(b"220 mail.example ESMTP\r\n")
        await trio.sleep_forever()

    async with open_upstream(script) as upstream:
        with pytest.raises(ProtocolError):
            await ask(pool, upstream, b"x" * (20 * MIB))


async def test_upload_that_breaks_off_is_a_lost_connection(pool: ConnectionPool) -> None:
    async def script(stream: trio.abc.Stream) -> None:
        await read_head(stream)

    async with open_upstream(script) as upstream:
        with pytest.raises(ConnectionLost) as caught:
            await ask(pool, upstream, b"x" * (20 * MIB))
        assert not caught.value.answered
        assert 1 == upstream.accepted
