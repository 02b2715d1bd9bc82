from __future__ import annotations

from typing import Any

import pytest
import trio
import trio.testing
from host_client import GET, WAIT, Client, answer, answering, connect, connect2, hello, read_body, serving

from picoclaw_trio.host_requests import Inbox

DISCONNECT = {"type": "http.disconnect"}


def piece(number: int) -> dict[str, Any]:
    return {"type": "http.request", "body": bytes([number]), "more_body": True}


# Errors


@answering
async def crash(scope: Any, receive: Any, send: Any) -> None:
    raise RuntimeError("a bug")


async def test_application_that_crashes_is_answered_for() -> None:
    async with serving(crash) as port, connect(port) as client:
        asked = await client.ask()
        assert (500, "internal_error", "server_error") == (asked.status, asked.error["code"], asked.error["type"])
        assert asked.headers["x-request-id"].startswith("req_")
        assert b"" == await client.read_to_the_end()


@pytest.mark.parametrize(("app", "names", "status"), [(crash, [], 500), (hello, ["y"], 404)])
async def test_answer_for_the_application_bears_the_clients_own_id(app: Any, names: list[str], status: int) -> None:
    async with serving(app, server_names=names) as port, connect(port) as client, connect2(port) as client2:
        asked = await client.ask(GET.replace(b"Host", b"X-Request-Id: my-id\r\nHost"))
        assert (status, "my-id") == (asked.status, asked.headers["x-request-id"])
        asked = await client2.read_answer(client2.open_stream(("x-request-id", "my-id")))
        assert (status, "my-id") == (asked.status, asked.headers["x-request-id"])


async def test_application_that_crashes_before_its_body_is_answered_for_too() -> None:
    async def crash_later(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        raise RuntimeError("a bug")

    async with serving(answering(crash_later)) as port:
        async with connect(port) as client:
            assert 500 == (await client.ask()).status
        async with connect2(port) as client2:
            assert 500 == (await client2.read_answer(client2.open_stream())).status


async def test_head_request_of_an_application_that_crashes_gets_no_body() -> None:
    async with serving(crash) as port, connect(port) as client:
        await client.send(GET.replace(b"GET", b"HEAD"))
        assert (await client.read_to_the_end()).endswith(b"\r\n\r\n")


async def test_http2_application_that_crashes_is_answered_for() -> None:
    async with serving(crash) as port, connect2(port) as client:
        for _ in range(2):
            asked = await client.read_answer(client.open_stream())
            assert (500, "internal_error") == (asked.status, asked.error["code"])


async def test_host_name_that_is_not_served_ends_the_connection() -> None:
    async with serving(hello, server_names=["y"]) as port, connect(port) as client:
        asked = await client.ask()
        assert (404, "not_found") == (asked.status, asked.error["code"])
        assert b"" == await client.read_to_the_end()


async def test_http2_host_name_that_is_not_served_ends_the_stream_alone() -> None:
    async with serving(hello, server_names=["y"], keep_alive_timeout=0.3) as port, connect2(port) as client:
        assert 404 == (await client.read_answer(client.open_stream())).status
        assert 200 == (await client.read_answer(client.open_stream((":authority", "y")))).status
        await Client(client.stream).read_to_the_end()  # the refused stream does not count as busy


# Bodies


@pytest.mark.parametrize("read", [False, True])
async def test_application_that_does_not_read_keeps_nobody(read: bool) -> None:
    async def refuse(scope: Any, receive: Any, send: Any) -> None:
        if read:
            await receive()
        await trio.testing.wait_all_tasks_blocked()  # no more of the body finds room
        await answer(send, b"no", 401)

    async with serving(answering(refuse), graceful_timeout=float("inf")) as port, connect(port) as client:
        await client.send(b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n" + b"1\r\nx\r\n" * 100)
        assert 401 == (await client.read_answer()).status
        assert b"" == await client.read_to_the_end()
    # The server ends only when no task is left, not even a parked one.


async def test_body_arrives_whole_and_in_order() -> None:
    async def echo(scope: Any, receive: Any, send: Any) -> None:
        await answer(send, await read_body(receive))

    body = bytes(range(256)) * 4096
    async with serving(answering(echo)) as port, connect(port) as client:
        head = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.send, head + body)
            assert body == (await client.read_answer()).body


async def test_full_inbox_waits_for_room() -> None:
    inbox = Inbox(2)
    async with trio.open_nursery() as nursery:
        for number in range(3):
            nursery.start_soon(inbox, piece(number))
            await trio.testing.wait_all_tasks_blocked()
        assert 2 == len(inbox.messages)
        assert [piece(0), piece(1), piece(2)] == [await inbox.receive() for _ in range(3)]


async def test_disconnect_always_fits_and_comes_last() -> None:
    inbox = Inbox(1)
    await inbox(piece(0))
    with trio.fail_after(WAIT):
        await inbox(DISCONNECT)
        await inbox(piece(1))
        assert [piece(0), DISCONNECT, DISCONNECT] == [await inbox.receive() for _ in range(3)]


async def test_disconnect_wakes_who_waits_on_either_side() -> None:
    for limit, waiter in ((1, Inbox.receive), (0, lambda inbox: inbox(piece(0)))):
        inbox = Inbox(limit)
        with trio.fail_after(WAIT):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(waiter, inbox)
                await trio.testing.wait_all_tasks_blocked()
                inbox.close()


async def test_attached_application_is_handed_what_waits_and_then_all_that_comes() -> None:
    inbox = Inbox(1)
    taken: list[Any] = []
    async with trio.open_nursery() as nursery:
        for number in range(2):
            nursery.start_soon(inbox, piece(number))
            await trio.testing.wait_all_tasks_blocked()
        inbox.attach(taken.append)
    for number in range(2, 5):  # more than there is room for
        await inbox(piece(number))
    inbox.close()
    await inbox(piece(5))
    assert [*map(piece, range(5)), DISCONNECT] == taken


async def test_application_that_is_attached_late_learns_that_the_client_has_gone() -> None:
    inbox = Inbox(1)
    taken: list[Any] = []
    inbox.close()
    inbox.attach(taken.append)
    assert [DISCONNECT] == taken
    assert DISCONNECT == await inbox.receive()
