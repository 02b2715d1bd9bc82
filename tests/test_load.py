"""Many requests at once, and then nothing left of them."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import orjson
import pytest
import trio
from fakes import ScriptedUpstream
from harness import TOKEN, Server, ask, entry, make_config, open_server, serve_here

CONNECTIONS = 64
REQUESTS = int(os.environ.get("PICOCLAW_TEST_LOAD", "20000"))
WARM_UP = CONNECTIONS * 20
MAX_GROWTH_BYTES = 12 * 1024 * 1024


def make_request(port: int) -> bytes:
    body = orjson.dumps(ask(model="one"))
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nAuthorization: Bearer {TOKEN}\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


async def read_answer(stream: trio.SocketStream) -> bytes:
    """One answer with a Content-Length, whole."""
    data = b""
    while b"\r\n\r\n" not in data:
        data += await stream.receive_some() or b"\r\n\r\n"
    head, _, body = data.partition(b"\r\n\r\n")
    length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0] or 0)
    while len(body) < length:
        more = await stream.receive_some()
        if not more:
            break
        body += more
    return head.partition(b"\r\n")[0]


async def load(port: int, requests: int) -> Counter[bytes]:
    """Send that many requests over kept-alive connections; the status lines that came, counted."""
    seen: Counter[bytes] = Counter()
    left = requests
    request = make_request(port)

    async def ask_on() -> None:
        nonlocal left
        stream = await trio.open_tcp_stream("127.0.0.1", port)
        async with stream:
            while left > 0:
                left -= 1
                await stream.send_all(request)
                seen[await read_answer(stream)] += 1

    async with trio.open_nursery() as nursery:
        for _ in range(CONNECTIONS):
            nursery.start_soon(ask_on)
    return seen


def count_descriptors(server: Server) -> int:
    return len(os.listdir(f"/proc/{server.process.pid}/fd"))


def resident_bytes(server: Server) -> int:
    pages = int(Path(f"/proc/{server.process.pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.slow
async def test_load_of_many_requests_leaves_no_error_no_descriptor_and_flat_memory(
    tmp_path: Path, upstream: ScriptedUpstream
) -> None:
    config = make_config(entry("one", upstream.url), gateway={"log_level": "warn"})
    async with open_server(tmp_path, config) as server:
        await load(server.port, WARM_UP)
        upstream.asked.clear()
        idle, memory = count_descriptors(server), resident_bytes(server)
        seen = await load(server.port, REQUESTS)

        assert {b"HTTP/1.1 200 ": REQUESTS} == dict(seen)
        with trio.fail_after(30):
            while count_descriptors(server) > idle:
                await trio.sleep(0.1)
        assert MAX_GROWTH_BYTES > resident_bytes(server) - memory
        assert b"error" not in bytes(server.log).lower()
        assert 0 == await server.stop()


async def test_load_leaves_no_task(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    async with serve_here(tmp_path, make_config(entry("one", upstream.url))) as server:
        port = int(server.url.rpartition(":")[2])
        await load(port, CONNECTIONS)
        await settle(upstream)
        tasks = trio.lowlevel.current_statistics().tasks_living
        await load(port, 20 * CONNECTIONS)
        await settle(upstream)
        with trio.fail_after(30):
            while trio.lowlevel.current_statistics().tasks_living > tasks:
                await trio.sleep(0.01)
        assert 0 == server.gateway.admission.statistics().running


async def settle(upstream: ScriptedUpstream) -> None:
    """Until the idle connections to the upstream have expired, each of which is a task of its own."""
    with trio.fail_after(30):  # they expire after 4.5 s, which is looked for as often
        while upstream.open_connections:
            await trio.sleep(0.05)
