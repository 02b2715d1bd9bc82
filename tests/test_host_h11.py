from __future__ import annotations

import math
from collections import Counter
from typing import Any

import pytest
import trio
import trio.testing
from host_client import (
    GET,
    WAIT,
    Client,
    Slow,
    answer,
    answering,
    connect,
    hello,
    read_body,
    serving,
)

POST = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\nbody"


# What follows a request


@pytest.mark.parametrize("extra", [b"", b"\r\n", b"\n", GET, GET[:20], b"x" * 60_000, b"x" * 200_000])
async def test_client_that_leaves_is_noticed_whatever_it_sent_before(extra: bytes) -> None:
    slow = Slow()
    async with serving(answering(slow)) as port:
        async with connect(port) as client:
            await client.send(POST + extra[:30_000])
            with trio.fail_after(WAIT):
                await slow.began.wait()
            await client.send(extra[30_000:])
        with trio.fail_after(WAIT):
            await slow.left.wait()


async def test_client_that_leaves_during_an_upgrade_request_is_noticed() -> None:
    slow = Slow()
    async with serving(answering(slow)) as port:
        async with connect(port) as client:
            await client.send(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: upgrade\r\nUpgrade: magic\r\n\r\n")
            await slow.began.wait()
        with trio.fail_after(WAIT):
            await slow.left.wait()


async def test_requests_in_one_packet_are_answered_in_order() -> None:
    slow = Slow()
    async with serving(answering(slow)) as port, connect(port) as client:
        requests = [POST.replace(b"/ ", b"/%d " % number, 1) for number in range(4)]
        await client.send(b"\r\n".join(requests))
        await slow.began.wait()
        slow.go_on.set()

        assert [b"/0", b"/1", b"/2", b"/3"] == [(await client.read_answer()).body for _ in range(4)]


async def test_more_than_is_read_ahead_is_answered_too() -> None:
    async with serving(hello) as port, connect(port) as client, trio.open_nursery() as nursery:
        nursery.start_soon(client.send, GET * 2_500)
        for _ in range(2_500):
            assert b"GET /" == (await client.read_answer()).body


async def test_client_that_sends_far_too_much_behind_a_request_is_cut_off() -> None:
    slow = Slow()
    async with serving(answering(slow)) as port, connect(port) as client:
        await client.send(GET)
        await slow.began.wait()
        with pytest.raises(trio.BrokenResourceError):
            await client.send(bytes(2**24))  # more than both kernels' buffers hold
        with trio.fail_after(WAIT):
            await slow.left.wait()


async def test_no_more_than_a_bound_is_read_ahead_however_many_are_answered() -> None:
    sent = 0
    taken: list[int] = []
    enough = trio.Event()

    async def note(scope: Any, receive: Any, send: Any) -> None:
        taken.append(sent)
        if len(taken) == 400:
            enough.set()
        await answer(send, b"")

    async def send_on(client: Client) -> None:
        nonlocal sent
        while True:
            await client.send(GET * 2**10)
            sent += len(GET) * 2**10

    async def read_on(client: Client) -> None:
        while True:
            await client.stream.receive_some()

    async with serving(answering(note)) as port, connect(port) as client, trio.open_nursery() as nursery:
        nursery.start_soon(send_on, client)
        nursery.start_soon(read_on, client)
        with trio.fail_after(WAIT):
            await enough.wait()
        nursery.cancel_scope.cancel()
    assert max(taken) < 2**23  # which is in the kernels' buffers; 64 KiB for each answer would be thrice that


async def test_connection_ends_when_a_stream_is_left_with_requests_waiting() -> None:
    async def pour(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        while True:
            await send({"type": "http.response.body", "body": b"x" * 1000, "more_body": True})

    async def stream(scope: Any, receive: Any, send: Any) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pour, scope, receive, send)
            while (await receive())["type"] != "http.disconnect":
                pass
            nursery.cancel_scope.cancel()

    async with serving(answering(stream), graceful_timeout=math.inf) as port, connect(port) as client:
        await client.send(GET * 3)
        await client.read_until(b"x")
    # The server ends only when no task is left, not even a parked one.


@pytest.mark.parametrize("blank", [b"\r\n", b"\n", b"\r\n\r\n"])
async def test_blank_lines_between_requests_are_ignored(blank: bytes) -> None:
    async with serving(hello) as port, connect(port) as client:
        for request in (POST + blank, blank + GET, GET):
            assert 200 == (await client.ask(request)).status


async def test_blank_lines_alone_are_no_end_of_the_connection() -> None:
    async with serving(hello) as port, connect(port) as client:
        for _ in range(3):
            await client.send(b"\r\n")
            await trio.testing.wait_all_tasks_blocked()
        assert 200 == (await client.ask()).status


LAST = [POST.replace(b"Host", b"Connection: close\r\nHost"), POST.replace(b"/1.1", b"/1.0")]


@pytest.mark.parametrize("request_", LAST)
@pytest.mark.parametrize("extra", [b"\r\n", b"x", GET, b"x" * 300_000])
@pytest.mark.parametrize("when", ["with it", "during its turn"])
async def test_what_follows_the_last_request_is_ignored(request_: bytes, extra: bytes, when: str) -> None:
    slow = Slow()
    async with serving(answering(slow)) as port, connect(port) as client:
        await client.send(request_ + (extra if when == "with it" else b""))
        await slow.began.wait()
        if when == "during its turn":
            await client.send(extra)
        await trio.testing.wait_all_tasks_blocked(0.05)
        assert not slow.left.is_set()
        slow.go_on.set()
        assert (200, b"/") == ((last := await client.read_answer()).status, last.body)
        assert b"" == await client.read_to_the_end()


@pytest.mark.parametrize("request_", LAST)
async def test_client_that_leaves_during_the_last_request_is_noticed(request_: bytes) -> None:
    slow = Slow()
    async with serving(answering(slow)) as port:
        async with connect(port) as client:
            await client.send(request_ + b"\r\n")
            await slow.began.wait()
        with trio.fail_after(WAIT):
            await slow.left.wait()


# What is refused


@pytest.mark.parametrize(
    ("status", "code", "request_"),
    [
        (400, "bad_request", b"\x00\x01\x02\r\n\r\n"),
        (400, "bad_request", b"GET / HTTP/1.1\r\n\r\n"),
        (400, "bad_request", b"GET / HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n"),
        (400, "bad_request", b"GET / HTTP/1.1\r\nHost: x\r\n A: folded\r\nB\r\n\r\n"),
        (400, "bad_request", b"GET / HTTP/1.2\r\nHost: x\r\n\r\n"),
        (400, "bad_request", b"GET / HTTP/0.9\r\nHost: x\r\n\r\n"),
        (400, "bad_request", b"GET / HTTP/9.9\r\nHost: x\r\n\r\n"),
        (400, "bad_request", b"GET ?a=b HTTP/1.1\r\nHost: x\r\n\r\n"),
        (400, "bad_request", b"GET ftp://x/ HTTP/1.1\r\nHost: x\r\n\r\n"),
        (400, "bad_request", b"CONNECT x:443 HTTP/1.1\r\nHost: x\r\n\r\n"),
        (400, "bad_request", b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\nContent-Length: 5\r\n\r\nbody"),
        (400, "bad_request", b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 4, 5\r\n\r\nbody"),
        (400, "bad_request", b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: +4\r\n\r\nbody"),
        (
            400,
            "bad_request",
            b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        ),
        (
            400,
            "bad_request",
            b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n0\r\n\r\n",
        ),
        (400, "bad_request", b"POST / HTTP/1.0\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
        (501, "not_implemented", b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip, chunked\r\n\r\n"),
        (431, "headers_too_large", b"GET / HTTP/1.1\r\nHost: x\r\nA: " + b"a" * 70_000),
    ],
)
async def test_what_can_be_understood_in_two_ways_is_refused(status: int, code: str, request_: bytes) -> None:
    async with serving(hello) as port, connect(port) as client:
        refused = await client.ask(request_ + GET)

        assert (status, code) == (refused.status, refused.error["code"])
        assert ("invalid_request_error", None) == (refused.error["type"], refused.error["param"])
        assert ("application/json", "close") == (refused.headers["content-type"], refused.headers["connection"])
        assert refused.headers["x-request-id"].startswith("req_")
        assert b"" == await client.read_to_the_end()


@pytest.mark.parametrize(
    "request_",
    [
        b"GET x HTTP/1.1\r\n%sHost: x\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\n%sContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\n%sTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    ],
)
async def test_refusal_bears_the_clients_own_id_if_it_is_sane(request_: bytes) -> None:
    async with serving(answering(Slow())) as port:
        for given, expected in ((b"my-id", "my-id"), (b"not sane", "req_"), (b"x" * 200, "req_")):
            async with connect(port) as client:
                refused = await client.ask(request_ % (b"X-Request-Id: %s\r\n" % given))
                assert (400, True) == (refused.status, refused.headers["x-request-id"].startswith(expected))


async def test_refusal_does_not_bear_the_id_of_an_earlier_request() -> None:
    async with serving(hello) as port, connect(port) as client:
        await client.ask(GET.replace(b"Host", b"X-Request-Id: earlier\r\nHost"))
        assert (await client.ask(b"\x00\r\n\r\n")).headers["x-request-id"].startswith("req_")


async def test_refused_head_request_gets_no_body() -> None:
    async with serving(hello) as port, connect(port) as client:
        await client.send(b"HEAD ?a HTTP/1.1\r\nHost: x\r\n\r\n")
        answer = await client.read_to_the_end()
        assert answer.startswith(b"HTTP/1.1 400 ")
        assert answer.endswith(b"\r\n\r\n")


async def test_bad_chunk_ends_the_request_with_400() -> None:
    slow = Slow()
    async with serving(answering(slow)) as port, connect(port) as client:
        refused = await client.ask(b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n")
        assert 400 == refused.status
        assert b"" == await client.read_to_the_end()


@pytest.mark.parametrize(
    ("path", "target"),
    [
        ("/a", b"/a?b"),
        ("/a", b"http://x/a"),
        ("/a/b", b"HTTPS://x:1/a/b?c"),
        ("/", b"http://x"),
        ("/", b"http://x?b"),
        ("//a", b"//a"),
        ("*", b"*"),
    ],
)
async def test_target_may_name_the_server(path: str, target: bytes) -> None:
    async with serving(hello) as port, connect(port) as client:
        asked = await client.ask(b"OPTIONS %s HTTP/1.1\r\nHost: x\r\n\r\n" % target)
        assert f"OPTIONS {path}" == asked.body.decode()


# Upgrades

WEBSOCKET = (
    b"GET /ws HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
)


@pytest.mark.parametrize(
    "upgrade",
    [
        WEBSOCKET + b"\r\n",
        WEBSOCKET + b"\r\nx",
        WEBSOCKET + b"Sec-WebSocket-Extensions: \xff\r\n\r\n",
        WEBSOCKET + b"Sec-WebSocket-Protocol: \xff\r\n\r\n",
        b"GET /ws HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
        b"GET /ws HTTP/1.1\r\nHost: x\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n"
        b"HTTP2-Settings: AAMAAABkAAQAAP__\r\n\r\n",
    ],
)
async def test_upgrade_is_answered_as_an_ordinary_request(upgrade: bytes) -> None:
    async with serving(hello) as port, connect(port) as other:
        async with connect(port) as client:
            asked = await client.ask(upgrade)
            assert (200, b"GET /ws") == (asked.status, asked.body)
        assert 200 == (await other.ask()).status


# 100 Continue

EXPECT = b"POST %s HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n"


@answering
async def read_or_refuse(scope: Any, receive: Any, send: Any) -> None:
    if scope["path"] == "/refuse":
        await answer(send, b"no", 401)
    else:
        await answer(send, await read_body(receive))


async def test_continue_is_sent_when_the_body_is_read() -> None:
    async with serving(read_or_refuse) as port, connect(port) as client:
        await client.send(EXPECT % b"/read")
        assert b"HTTP/1.1 100 \r\n\r\n" == await client.read_until(b"\r\n\r\n")
        assert b"body" == (await client.ask(b"body")).body
        assert 200 == (await client.ask(POST)).status


async def test_no_continue_when_the_request_is_refused_unread() -> None:
    async with serving(read_or_refuse) as port, connect(port) as client:
        refused = await client.ask(EXPECT % b"/refuse")
        assert (401, "close") == (refused.status, refused.headers["connection"])
        assert b"" == await client.read_to_the_end()


async def test_no_continue_for_who_has_sent_the_body_already() -> None:
    async with serving(read_or_refuse) as port, connect(port) as client:
        assert (200, b"body") == ((asked := await client.ask(EXPECT % b"/read" + b"body")).status, asked.body)


# Bodies


async def test_body_that_comes_byte_by_byte_lets_others_have_their_turn() -> None:
    turns = 0
    taken: list[int] = []
    whole = trio.Event()

    def take(message: Any) -> None:
        taken.append(turns)
        if not message.get("more_body", False):
            whole.set()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        receive.__self__.attach(take)
        await whole.wait()
        await answer(send, b"")

    async with serving(answering(app)) as port, connect(port) as client, trio.open_nursery() as nursery:

        async def take_turns() -> None:
            nonlocal turns
            while True:
                turns += 1
                await trio.lowlevel.checkpoint()

        nursery.start_soon(take_turns)
        head = b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
        assert 200 == (await client.ask(head + b"1\r\nx\r\n" * 2000 + b"0\r\n\r\n")).status
        nursery.cancel_scope.cancel()

    assert 2002 == len(taken)  # the end of the body, and that of the request, too
    assert max(Counter(taken).values()) < 200
