"""Bad days: an upstream that does everything wrong, clients that do too, all at once, and a server that does not mind.

Ten thousand requests by default; ``PICOCLAW_TEST_CHAOS`` asks for more or fewer, ``PICOCLAW_TEST_SEED`` repeats a run.
"""

from __future__ import annotations

import itertools
import math
import os
import random
import socket
import struct
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import attrs
import httpx2
import orjson
import pytest
import trio
from fakes import (
    Asked,
    Exchange,
    ScriptedUpstream,
    answers,
    completion,
    cuts,
    error_body,
    frame,
    hangs,
    streams,
    text_frames,
)
from harness import TOKEN, Here, ask, entry, make_config, open_client, open_server, serve_here
from serving import logged, port_of
from test_load import MAX_GROWTH_BYTES, count_descriptors, resident_bytes, settle

from picoclaw_trio.admission import AdmissionStatistics

REQUESTS = int(os.environ.get("PICOCLAW_TEST_CHAOS", "10000"))
SEED = int(os.environ.get("PICOCLAW_TEST_SEED", "1"))
CLIENTS = 32
PATIENCE = 20.0
PATH = "/v1/chat/completions"
# What a whole, sane request may be answered with on such a day.
EXPECTED = frozenset({200, 429, 502, 503, 504})
WORST_HANG_UP = 1.0
# The text of a request tells the upstream that its client will leave; a number that follows tells which request it is.
STAYS, LEAVES = "Hello", "Bye"
RESET = struct.pack("ii", 1, 0)


def bad_upstream(dice: random.Random) -> Callable[[Exchange], Awaitable[None]]:
    """A script that does something else each time, and for those who will leave often nothing at all."""

    async def delays(exchange: Exchange) -> None:
        await trio.sleep(dice.uniform(0, 0.05))
        await answers(200, completion())(exchange)

    async def cuts_within(exchange: Exchange) -> None:
        await begins(exchange)
        await exchange.cut()

    async def stops_within(exchange: Exchange) -> None:
        await begins(exchange)
        await hangs(exchange)

    async def begins(exchange: Exchange) -> None:
        await exchange.begin_events()
        await exchange.write(text_frames("Hel")[1])

    whole = streams(*text_frames("Hel", "lo!"))
    acts = [
        *[answers(200, completion())] * 8,
        *[whole] * 4,
        delays,
        answers(429, error_body("slow down"), retry_after="0"),
        answers(500, error_body("oops")),
        answers(502, b"<html>bad gateway</html>"),
        answers(200, b"not json"),
        answers(200, {"choices": []}),
        streams(frame(b"{broken")),
        streams(frame({"error": {"message": "broke", "code": 503}})),
        cuts,
        cuts_within,
        stops_within,
        hangs,
    ]
    silences = [hangs, stops_within]

    async def script(exchange: Exchange) -> None:
        is_silent = text_of(exchange.asked).startswith(LEAVES) and dice.random() < 0.8
        await dice.choice(silences if is_silent else acts)(exchange)

    return script


def text_of(asked: Asked) -> str:
    return str(asked.body["messages"][-1]["content"])


@attrs.define
class Crowd:
    """Clients of all manners, and what they saw."""

    port: int
    dice: random.Random
    sent: int = 0  # whole heads of requests, each of which the server must count once
    left: int = 0  # of these, the ones whose client may have gone before the server took them up
    left_at: dict[str, float] = attrs.field(factory=dict)  # {text of a request: Trio time of its client's hang-up}
    seen: Counter[int] = attrs.field(factory=Counter)
    complaints: list[str] = attrs.field(factory=list)

    def request(self, *, stream: bool = False, token: str = TOKEN, body: bytes | None = None) -> bytes:
        body = orjson.dumps(ask(STAYS, model="one", stream=stream)) if body is None else body
        head = f"POST {PATH} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\nConnection: close\r\n"
        return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body

    async def exchange(self, data: bytes, *, end: bool = False) -> bytes:
        """Send, say that this was all if *end*, and read to the end."""
        stream = await trio.open_tcp_stream("127.0.0.1", self.port)
        async with stream:
            answer = b""
            try:
                await stream.send_all(data)
                if end:
                    await stream.send_eof()
                while piece := await stream.receive_some():
                    answer += piece
            except trio.BrokenResourceError:
                pass  # closed before all was sent: what has been read counts
            return answer

    async def expect(self, data: bytes, *allowed: int) -> None:
        self.sent += 1
        answer = await self.exchange(data)
        status = int(answer[9:12] or 0)
        self.seen[status] += 1
        if status not in allowed:
            self.complaints.append(f"{status} is none of {allowed}: {answer[:300]!r}")
        elif status >= 400 and b'{"error":{"message":' not in answer:
            self.complaints.append(f"no error object: {answer[:300]!r}")

    # Manners

    async def asks(self) -> None:
        await self.expect(self.request(), *EXPECTED)

    async def streams(self) -> None:
        await self.expect(self.request(stream=True), *EXPECTED)

    async def has_no_token(self) -> None:
        await self.expect(self.request(token="sk-wrong"), 401)

    async def sends_no_json(self) -> None:
        body = self.dice.choice([b"", b"[1]", b"\xff\xfe{", b"{" * 5000, b'{"messages": 5}', b'{"a":1,"a":2}', b"nan"])
        await self.expect(self.request(body=body), 400)

    async def asks_for_what_is_not_there(self) -> None:
        body = orjson.dumps(ask(model=self.dice.choice(["nobody", "\x00", "x" * 9999])))
        await self.expect(self.request(body=body), 404)

    async def talks_nonsense(self) -> None:
        """Not a request at all, so nobody counts it."""
        nonsense = self.dice.choice(
            [self.dice.randbytes(500) + b"\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"\r\n" * 50, b"A" * 70_000]
        )
        answer = await self.exchange(nonsense, end=True)
        if answer and int(answer[9:12] or 0) not in range(400, 500):
            self.complaints.append(f"nonsense was answered with {answer[:200]!r}")

    async def hangs_up(self) -> None:
        """Leave at any moment from the first byte of the body on, in any way."""
        text, data = self.last_request(stream=self.dice.random() < 0.5)
        head_end = data.index(b"\r\n\r\n") + 4
        if self.dice.random() < 0.3:
            data = data[: self.dice.randrange(head_end, len(data))]
        else:  # what follows the request must not hide that its client has left
            data += self.dice.choice([b"", b"", b"\r\n", b"GET / HT"])
        self.left += 1
        stream = await trio.open_tcp_stream("127.0.0.1", self.port)
        async with stream:
            await stream.send_all(data)
            with trio.move_on_after(self.dice.uniform(0, 0.1)):
                await stream.receive_some()
            self.left_at[text] = trio.current_time()
            await self.dice.choice([closes, resets, half_closes])(stream)

    async def stalls(self) -> None:
        """Ask for a stream, read none of it for a while, and leave."""
        text, data = self.last_request(stream=True)
        stream = await trio.open_tcp_stream("127.0.0.1", self.port)
        async with stream:
            await stream.send_all(data)
            await trio.sleep(self.dice.uniform(0, 0.5))
            self.left_at[text] = trio.current_time()

    def last_request(self, *, stream: bool) -> tuple[str, bytes]:
        """The text and the bytes of a request whose client will hang up.

        Nothing but the hang-up ends the silence of model "two" within a second.
        """
        self.sent += 1
        text = f"{LEAVES} {self.sent}"
        return text, self.request(body=orjson.dumps(ask(text, model=self.dice.choice(["one", "two"]), stream=stream)))

    async def live_all(self, requests: int) -> None:
        left = [requests]
        async with trio.open_nursery() as nursery:
            for _ in range(CLIENTS):
                nursery.start_soon(self.live, left)

    async def live(self, left: list[int]) -> None:
        manners = [
            *[self.asks] * 8,
            *[self.streams] * 6,
            *[self.hangs_up] * 4,
            self.stalls,
            self.has_no_token,
            self.sends_no_json,
            self.asks_for_what_is_not_there,
            self.talks_nonsense,
        ]
        while left[0] > 0:
            left[0] -= 1
            manner = self.dice.choice(manners)
            with trio.move_on_after(PATIENCE) as patience:
                await manner()
            if patience.cancelled_caught:
                self.complaints.append(f"{manner.__name__}: no answer within {PATIENCE} s")


async def closes(stream: trio.SocketStream) -> None:
    await stream.aclose()


async def resets(stream: trio.SocketStream) -> None:
    stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    await stream.aclose()


async def half_closes(stream: trio.SocketStream) -> None:
    """Say that nothing more will come, and see the server close."""
    try:
        await stream.send_eof()
        while await stream.receive_some():
            pass
    except trio.BrokenResourceError:
        pass  # it has closed already


async def measure_hang_ups(crowd: Crowd, upstream: ScriptedUpstream) -> list[float]:
    """Seconds from each hang-up to the end of each upstream connection that its request had then or got later.

    Whoever left before an upstream was asked, or after it had answered, has none.
    """
    asked = [(each, crowd.left_at[text]) for each in upstream.asked if (text := text_of(each)) in crowd.left_at]
    with trio.move_on_after(PATIENCE):
        while any(math.isinf(each.ended_at) for each, _ in asked):
            await trio.sleep(0.05)
    return [each.ended_at - left_at for each, left_at in asked if each.ended_at > left_at]


def counted(text: str) -> dict[int, int]:
    """The server's own count of requests by status."""
    name = 'picoclaw_requests_total{status="'
    lines = [line.removeprefix(name) for line in text.splitlines() if line.startswith(name)]
    return {int(line[:3]): int(float(line.rsplit(" ", 1)[1])) for line in lines}


async def read_settled_metrics(client: httpx2.AsyncClient) -> tuple[str, int]:
    """The numbers when the last turn of whoever hung up is over, and how many readings before stand in them."""
    with trio.fail_after(30):
        for reads in itertools.count():
            text = (await client.get("/metrics")).text
            if "picoclaw_turns_running 0.0" in text:
                return text, reads
            await trio.sleep(0.1)
    raise AssertionError


def bad_day(upstream: ScriptedUpstream, dice: random.Random) -> dict[str, Any]:
    """The configuration; the upstream's script is set."""
    upstream.scripts = [bad_upstream(dice)]
    targets = [entry("one", upstream.url, request_timeout=0.5, fallbacks=["two"]), entry("two", upstream.url)]
    config = make_config(
        *targets, streaming=True, turn_timeout=3, wrong_tokens_per_minute=0, gateway={"log_level": "error"}
    )
    config["agents"] = {"defaults": {"max_llm_retries": 1, "llm_retry_backoff_secs": 0.02}}
    return config


@pytest.mark.slow
async def test_server_outlives_a_bad_day(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    dice = random.Random(SEED)
    async with open_server(tmp_path, bad_day(upstream, dice)) as server:
        crowd = Crowd(server.port, dice)
        await crowd.live_all(CLIENTS * 8)
        memory, descriptors = resident_bytes(server), count_descriptors(server)
        await crowd.live_all(REQUESTS)
        delays = await measure_hang_ups(crowd, upstream)
        print(f"{crowd.sent} requests, answers {dict(crowd.seen)}")
        print(f"{len(crowd.left_at)} hang-ups, {len(delays)} with an upstream at work: slowest {max(delays):.3f} s")

        assert [] == crowd.complaints
        assert WORST_HANG_UP > max(delays)
        assert len(crowd.left_at) / 5 < len(delays)
        async with open_client(server.url) as client:
            text, reads = await read_settled_metrics(client)
        counts = counted(text)
        # Whoever hung up may have been answered all the same: there may be more of a kind than were seen.
        assert all(counts[status] >= number for status, number in crowd.seen.items())
        assert crowd.sent - crowd.left <= sum(counts.values()) - reads <= crowd.sent
        assert 500 not in counts
        with trio.fail_after(30):
            while count_descriptors(server) > descriptors:
                await trio.sleep(0.1)
        assert MAX_GROWTH_BYTES > resident_bytes(server) - memory
        assert b"Traceback" not in server.log
        assert 0 == await server.stop()


@pytest.mark.slow
async def test_bad_day_leaves_no_task(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    dice = random.Random(SEED)
    with logged():
        async with serve_here(tmp_path, bad_day(upstream, dice)) as server:
            await leave_no_task(server, upstream, dice)


async def leave_no_task(server: Here, upstream: ScriptedUpstream, dice: random.Random) -> None:
    crowd = Crowd(port_of(server), dice)
    with trio.fail_after(120):
        await crowd.live_all(CLIENTS)
        await settle(upstream)
        tasks = trio.lowlevel.current_statistics().tasks_living
        await crowd.live_all(REQUESTS // 10)
        await settle(upstream)

        while trio.lowlevel.current_statistics().tasks_living > tasks:
            await trio.sleep(0.01)
    assert [] == crowd.complaints
    assert AdmissionStatistics(running=0, waiting=0) == server.gateway.admission.statistics()
