from __future__ import annotations

import socket

import pytest
import trio
import trio.testing

from picoclaw_trio.plain_socket import PlainSocket


async def pair() -> tuple[PlainSocket, trio.SocketStream]:
    ours, theirs = socket.socketpair()
    return PlainSocket(ours), trio.SocketStream(trio.socket.from_stdlib_socket(theirs))


async def test_socket_writes_all_to_a_slow_reader() -> None:
    ours, theirs = await pair()
    data = bytes(range(256)) * 2**14
    received = bytearray()
    async with ours, theirs, trio.open_nursery() as nursery:
        nursery.start_soon(ours.send_all, data)
        while len(received) < len(data):
            received += await theirs.receive_some()
    assert data == received


async def test_socket_that_is_closed_wakes_its_reader() -> None:
    ours, theirs = await pair()
    async with theirs, trio.open_nursery() as nursery:

        async def read() -> None:
            with pytest.raises(trio.ClosedResourceError):
                await ours.receive_some(1)

        nursery.start_soon(read)
        await trio.testing.wait_all_tasks_blocked()
        await ours.aclose()
        with pytest.raises(trio.ClosedResourceError):
            await ours.receive_some(1)
        with pytest.raises(trio.BrokenResourceError):
            ours.send_nowait(b"x")


async def test_socket_whose_other_side_is_gone_says_so() -> None:
    ours, theirs = await pair()
    await theirs.aclose()
    async with ours:
        assert b"" == await ours.receive_some(1)
        with pytest.raises(trio.BrokenResourceError):
            ours.send_nowait(b"x")


async def test_socket_has_something_to_read_from_the_first_byte_to_the_end() -> None:
    ours, theirs = await pair()
    async with ours:
        assert not ours.is_readable()
        await theirs.send_all(b"x")
        assert ours.is_readable()
        assert b"x" == await ours.receive_some(1)
        assert not ours.is_readable()
        await theirs.aclose()
        assert ours.is_readable()


async def test_socket_may_be_closed_twice() -> None:
    ours, theirs = await pair()
    async with theirs:
        ours.close()
        ours.close()
        await ours.aclose()
