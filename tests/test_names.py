"""Name servers that are silent, and who has to wait for them."""

from __future__ import annotations

import socket
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
import trio.testing
from raw_upstream import always, answer, open_upstream

from picoclaw_trio.connections import ConnectionPool, open_pool, parse_url
from picoclaw_trio.connections.names import LOOKUPS_OF_A_NAME

SILENT = "http://silent.example/v1/chat/completions"
MANY = 60  # more than Trio has threads for all who need one
LIMIT = 15.0


async def ask(pool: ConnectionPool, url: str) -> bytes:
    async with pool.post(parse_url(url), [], b"{}") as response:
        return await response.read(1000)


class Names:
    """The system's look-up, but that of one name waits until it is let go."""

    def __init__(self) -> None:
        self.look_up = socket.getaddrinfo
        self.let_go = threading.Event()
        self.asked = 0

    def __call__(self, host: Any, *options: Any) -> Any:
        # In the main thread Trio only tries whether it is a number.
        if b"silent.example" == host and threading.current_thread() is not threading.main_thread():
            self.asked += 1
            assert self.let_go.wait(60)
        return self.look_up(host, *options)


@asynccontextmanager
async def many_waiting(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[tuple[ConnectionPool, Names]]:
    """Many want an answer from a host whose name server is silent."""
    names = Names()
    monkeypatch.setattr(socket, "getaddrinfo", names)
    async with open_pool() as pool, trio.open_nursery() as nursery:
        for _ in range(MANY):
            nursery.start_soon(ask, pool, SILENT)
        await trio.testing.wait_all_tasks_blocked(0.01)
        with trio.fail_after(LIMIT):
            yield pool, names
        names.let_go.set()
        nursery.cancel_scope.cancel()


async def test_silent_name_server_holds_up_no_other_name(monkeypatch: pytest.MonkeyPatch) -> None:
    async with many_waiting(monkeypatch) as (pool, _), open_upstream(always(answer())) as upstream:
        assert b"hello" == await ask(pool, upstream.url.replace("127.0.0.1", "localhost"))


async def test_silent_name_server_takes_no_thread_of_others(monkeypatch: pytest.MonkeyPatch) -> None:
    async with many_waiting(monkeypatch) as (_, names):
        assert "done" == await trio.to_thread.run_sync(lambda: "done")
        assert LOOKUPS_OF_A_NAME == names.asked


async def test_names_are_looked_up_as_before_when_the_pool_is_closed() -> None:
    async with open_pool():
        pass
    assert await trio.socket.getaddrinfo("localhost", 80)
    assert trio.socket.set_custom_hostname_resolver(None) is None
