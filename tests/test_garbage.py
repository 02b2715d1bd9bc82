"""Requests leave nothing to the garbage collector, which therefore may look seldom."""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest
import trio
from fakes import Script, ScriptedUpstream, answers, error_body, frame, says, streams, text_frames
from harness import HEADERS, ask, entry, make_config, serve_here
from host_client import Client, connect

from picoclaw_trio.upstream import RetryPolicy

TIMES = 5
BROKEN = (*text_frames("Hel")[:2], frame(error_body("Broken.")))

# {what happens: (what the upstream does, streamed)}; not of connections that break off, where h11 leaves something.
TURNS: dict[str, tuple[tuple[Script, ...], bool]] = {
    "plain": ((says(),), False),
    "streamed": ((streams(*text_frames("Hel", "lo")),), True),
    "refused by the upstream": ((answers(400, error_body("no")),), False),
    "asked again": ((answers(500, error_body("busy")), says()), False),
    "answered by another": ((answers(401, error_body("no")), says()), False),
    "failed": ((answers(500, error_body("busy")),), False),
    "broken off within a stream": ((streams(*BROKEN),), True),
}


@pytest.fixture
def no_collector() -> Iterator[None]:
    gc.disable()
    yield
    gc.set_debug(0)
    gc.garbage.clear()
    gc.enable()


def find_garbage() -> Counter[str]:
    gc.set_debug(gc.DEBUG_SAVEALL)
    gc.collect()
    return Counter(f"{type(item).__module__}.{type(item).__qualname__}" for item in gc.garbage)


def request(stream: bool) -> bytes:
    body = httpx2.Request("POST", "http://x", json=ask(model="one", stream=stream)).content
    lines = ["POST /v1/chat/completions HTTP/1.1", "Host: x", f"Content-Length: {len(body)}"]
    lines += [f"{name}: {value}" for name, value in HEADERS.items()]
    return "\r\n".join([*lines, "", ""]).encode() + body


async def run(client: Client, stream: bool) -> None:
    await client.send(request(stream))
    head = await client.read_until(b"\r\n\r\n")
    if b"chunked" in head:
        await client.read_until(b"0\r\n\r\n")
        return
    length = int(head.lower().partition(b"content-length: ")[2].split()[0])
    while len(client.unread) < length:
        client.unread += await client.stream.receive_some()
    client.unread = client.unread[length:]


@pytest.mark.usefixtures("no_collector")
@pytest.mark.parametrize("case", TURNS)
async def test_turn_leaves_nothing_to_the_collector(case: str, tmp_path: Path, upstream: ScriptedUpstream) -> None:
    scripts, stream = TURNS[case]
    config = make_config(entry("one", upstream.url, fallbacks=["two"]), entry("two", upstream.url), streaming=True)
    async with serve_here(tmp_path, config) as server:
        server.gateway.upstream.policy = RetryPolicy(base_delay=0.001)
        async with connect(httpx2.URL(server.url).port or 0) as client:
            for number in range(TIMES + 1):
                upstream.asked.clear()
                upstream.scripts = scripts
                await run(client, stream)
                await trio.testing.wait_all_tasks_blocked()
                if number == 0:  # what is made once
                    gc.collect()
            found = find_garbage()
    assert {} == {name: count for name, count in found.items() if count >= TIMES}
