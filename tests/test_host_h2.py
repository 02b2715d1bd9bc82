from __future__ import annotations

import math
import ssl
from pathlib import Path
from typing import Any

import h2.events
import h2.settings
import pytest
import trio
import trio.testing
from host_client import (
    WAIT,
    Client,
    Client2,
    Slow,
    answer,
    answering,
    connect2,
    hello,
    serving,
    write_certificate,
)
from hyperframe.frame import PriorityFrame

from picoclaw_trio import host


async def test_http2_by_prior_knowledge() -> None:
    async with serving(hello) as port, connect2(port) as client:
        for path in ("/a", "/b"):
            assert f"GET {path}".encode() == (await client.read_answer(client.open_stream((":path", path)))).body


async def test_http2_over_tls(tmp_path: Path) -> None:
    authority, settings = write_certificate(tmp_path)
    context = ssl.create_default_context()
    authority.configure_trust(context)
    context.set_alpn_protocols(["h2"])
    async with serving(hello, **settings) as port:
        stream = await trio.open_ssl_over_tcp_stream(
            "127.0.0.1", port, ssl_context=context, https_compatible=True, happy_eyeballs_delay=1
        )
        async with stream:
            client = Client2(stream)
            client.connection.initiate_connection()
            assert b"GET /" == (await client.read_answer(client.open_stream())).body


@answering
async def refuse_at_once(scope: Any, receive: Any, send: Any) -> None:
    if scope["method"] == "GET":
        await answer(send, b"ok")
    else:
        await answer(send, b"no", 401)


async def test_http2_data_after_the_answer_does_not_use_up_the_window() -> None:
    async with serving(refuse_at_once) as port, connect2(port) as client:
        for _ in range(4):
            stream_id = client.open_stream((":method", "POST"), end=False)
            assert 401 == (await client.read_answer(stream_id)).status
            for _ in range(6):  # 96 KiB each time, of a window of 64 KiB
                while client.connection.local_flow_control_window(stream_id) < 2**14:
                    await client.wait_event(h2.events.WindowUpdated, stream_id=stream_id)
                client.connection.send_data(stream_id, bytes(2**14))
                await client.flush()
            client.connection.end_stream(stream_id)
        assert 200 == (await client.read_answer(client.open_stream())).status


@pytest.mark.parametrize(
    "headers",
    [
        [(b":method", b"GET"), (b":path", b"/\xc3\xa4"), (b":scheme", b"http"), (b":authority", b"x")],
        [(b":method", b"GET"), (b":path", b"x"), (b":scheme", b"http"), (b":authority", b"x")],
        [(b":method", b"CONNECT"), (b":authority", b"x:443")],
        [
            (b":method", b"CONNECT"),
            (b":protocol", b"websocket"),
            (b":path", b"/"),
            (b":scheme", b"http"),
            (b":authority", b"x"),
            (b"sec-websocket-version", b"13"),
        ],
    ],
)
async def test_http2_request_that_is_not_for_us_is_refused(headers: list[tuple[bytes, bytes]]) -> None:
    async with serving(hello) as port, connect2(port) as client:
        innocent = client.open_stream()
        await client.flush()
        stream_id = client.connection.get_next_available_stream_id()
        client.connection.send_headers(stream_id, [*headers, (b"x-request-id", b"my-id")], end_stream=True)

        assert b"GET /" == (await client.read_answer(innocent)).body
        refused = await client.read_answer(stream_id)
        assert (400, "bad_request") == (refused.status, refused.error["code"])
        assert "my-id" == refused.headers["x-request-id"]


async def test_http2_request_that_is_refused_and_given_up_at_once_leaves_the_others_whole() -> None:
    async with serving(hello) as port, connect2(port) as client:
        innocent = client.open_stream()
        given_up = client.open_stream((":method", "CONNECT"), (":protocol", "x"))
        client.connection.reset_stream(given_up)
        assert b"GET /" == (await client.read_answer(innocent)).body


async def test_http2_refusal_fits_into_a_window_of_nothing() -> None:
    async with serving(hello) as port, connect2(port) as client:
        client.connection.update_settings({h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: 0})
        refused = await client.read_answer(client.open_stream((":method", "CONNECT"), (":protocol", "x")))
        assert (400, b"") == (refused.status, refused.body)


async def test_http2_priorities_are_ignored() -> None:
    async with serving(hello) as port, connect2(port) as client:
        for stream_id in range(3, 4003, 2):
            await client.stream.send_all(PriorityFrame(stream_id, depends_on=0, stream_weight=1).serialize())
        assert 200 == (await client.read_answer(client.open_stream())).status


async def test_http2_application_waits_while_the_window_is_shut() -> None:
    sent = 0

    async def pour(scope: Any, receive: Any, send: Any) -> None:
        nonlocal sent
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for number in range(64):
            await send({"type": "http.response.body", "body": bytes(2**14), "more_body": number < 63})
            sent += 1

    async with serving(answering(pour)) as port, connect2(port) as client:
        stream_id = client.open_stream()
        await client.wait_event(h2.events.ResponseReceived, stream_id=stream_id)
        for _ in range(4):  # 64 KiB: all that the window allows
            await client.wait_event(h2.events.DataReceived)
        await trio.testing.wait_all_tasks_blocked(0.05)
        assert sent < 8

        client.connection.increment_flow_control_window(2**20)
        client.connection.increment_flow_control_window(2**20, stream_id)
        for _ in range(60):
            await client.wait_event(h2.events.DataReceived)
        await client.wait_event(h2.events.StreamEnded)


@pytest.mark.parametrize("size", [100, 2**20])
async def test_http2_application_is_let_go_when_the_client_leaves(size: int) -> None:
    ended = trio.Event()

    async def pour(scope: Any, receive: Any, send: Any) -> None:
        await answer(send, bytes(size))
        ended.set()

    async with serving(answering(pour)) as port:
        async with connect2(port) as client:
            client.connection.update_settings({h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: 0})
            await client.wait_event(h2.events.ResponseReceived, stream_id=client.open_stream())
            await trio.testing.wait_all_tasks_blocked()
            assert not ended.is_set()
        with trio.fail_after(WAIT):
            await ended.wait()


@pytest.mark.parametrize("in_pieces", [False, True])
async def test_http2_requests_under_way_and_new_ones_are_answered_to_the_end_while_the_server_stops(
    in_pieces: bool,
) -> None:
    began, go_on = trio.Event(), trio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["path"] == "/slow":
            began.set()
            await go_on.wait()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"whole", "more_body": in_pieces})
        if in_pieces:
            await send({"type": "http.response.body", "body": b"", "more_body": False})

    stopping = trio.Event()

    async def serve(task_status: trio.TaskStatus[int]) -> None:
        async with serving(answering(app), graceful_timeout=WAIT) as port:
            task_status.started(port)
            await stopping.wait()

    async with trio.open_nursery() as nursery, connect2(await nursery.start(serve)) as client:
        slow = client.open_stream((":path", "/slow"))
        await client.flush()
        await began.wait()
        stopping.set()
        await trio.testing.wait_all_tasks_blocked()
        assert b"whole" == (await client.read_answer(client.open_stream())).body
        go_on.set()
        assert b"whole" == (await client.read_answer(slow)).body
        await Client(client.stream).read_to_the_end()


@pytest.mark.parametrize("cancelled", [False, True])
async def test_http2_answer_that_is_left_unfinished_is_reset(cancelled: bool) -> None:
    async def crash(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        with trio.move_on_after(0 if cancelled else math.inf):
            await send({"type": "http.response.body", "body": b"half", "more_body": True})
            raise RuntimeError("a bug")

    async with serving(answering(crash), keep_alive_timeout=0.5) as port, connect2(port) as client:
        await client.wait_event(h2.events.StreamReset, stream_id=client.open_stream())
        await Client(client.stream).read_to_the_end()  # it does not count as busy


@pytest.mark.parametrize("more", [False, True])
@pytest.mark.parametrize("size", [100, 2**20])
async def test_http2_stream_whose_window_stays_shut_is_reset(size: int, more: bool) -> None:
    left = trio.Event()

    async def pour(scope: Any, receive: Any, send: Any) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(write, scope, send)
            while (await receive())["type"] != "http.disconnect":
                pass
            left.set()
            nursery.cancel_scope.cancel()

    async def write(scope: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        if scope["path"] != "/empty":
            await send({"type": "http.response.body", "body": bytes(size), "more_body": more})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    host.mend(write_timeout=0.2)
    try:
        async with serving(answering(pour), keep_alive_timeout=0.5) as port, connect2(port) as client:
            client.connection.update_settings({h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: 0})
            innocent = client.open_stream((":path", "/empty"))
            assert 200 == (await client.read_answer(innocent)).status
            left = trio.Event()
            await client.wait_event(h2.events.StreamReset, stream_id=client.open_stream())
            with trio.fail_after(WAIT):
                await left.wait()
            await Client(client.stream).read_to_the_end()
    finally:
        host.mend()


async def test_http2_connection_whose_only_request_was_given_up_times_out() -> None:
    async with serving(answering(Slow()), keep_alive_timeout=0.3) as port, connect2(port) as client:
        stream_id = client.open_stream()
        await client.flush()
        await trio.testing.wait_all_tasks_blocked()
        client.connection.reset_stream(stream_id)
        await client.flush()
        await Client(client.stream).read_to_the_end()
