"""Bad days: an upstream that does everything wrong, clients that do too, all at once, and a server that does not mind.

Ten thousand requests by default; ``PICOCLAW_TEST_CHAOS`` asks for more or fewer, ``PICOCLAW_TEST_SEED`` repeats a run.
"""

from __future__ import annotations

import itertools
import os
import random
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path

import attrs
import httpx2
import orjson
import pytest
import trio
from fakes import Exchange, ScriptedUpstream, answers, completion, cuts, error_body, frame, hangs, streams, text_frames
from harness import TOKEN, Server, ask, entry, make_config, open_client, open_server
from test_load import MAX_GROWTH_BYTES, count_descriptors, resident_bytes

REQUESTS = int(os.environ.get("PICOCLAW_TEST_CHAOS", "10000"))
SEED = int(os.environ.get("PICOCLAW_TEST_SEED", "1"))
CLIENTS = 32
PATIENCE = 20.0
PATH = "/v1/chat/completions"
# What a whole, sane request may be answered with on such a day.
EXPECTED = frozenset({200, 429, 502, 503, 504})
WORST_HANG_UP = 1.0


def bad_upstream(dice: random.Random) -> Callable[[Exchange], Awaitable[None]]:
    """A script that does something else each time."""

    async def delays(exchange: Exchange) -> None:
        await trio.sleep(dice.uniform(0, 0.05))
        await answers(200, completion())(exchange)

    async def cuts_within(exchange: Exchange) -> None:
        await exchange.begin_events()
        await exchange.write(text_frames("Hel")[1])
        await exchange.cut()

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
        hangs,
    ]

    async def script(exchange: Exchange) -> None:
        await dice.choice(acts)(exchange)

    return script


@attrs.define
class Crowd:
    """Clients of all manners, and what they saw."""

    server: Server
    upstream: ScriptedUpstream
    dice: random.Random
    sent: int = 0  # whole heads of requests, each of which the server must count once
    left: int = 0  # of these, the ones whose client may have gone before the server took them up
    seen: Counter[int] = attrs.field(factory=Counter)
    complaints: list[str] = attrs.field(factory=list)

    def request(self, *, stream: bool = False, token: str = TOKEN, body: bytes | None = None) -> bytes:
        body = orjson.dumps(ask("Hello", model="one", stream=stream)) if body is None else body
        head = f"POST {PATH} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\nConnection: close\r\n"
        return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body

    async def exchange(self, data: bytes, *, end: bool = False) -> bytes:
        """Send, say that this was all if *end*, and read to the end."""
        stream = await trio.open_tcp_stream("127.0.0.1", self.server.port)
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
        """Leave at any moment from the first byte of the body on."""
        data = self.request(stream=self.dice.random() < 0.5)
        whole = self.dice.random() < 0.7
        head_end = data.index(b"\r\n\r\n") + 4
        self.sent += 1
        self.left += 1
        stream = await trio.open_tcp_stream("127.0.0.1", self.server.port)
        async with stream:
            await stream.send_all(data if whole else data[: self.dice.randrange(head_end, len(data))])
            with trio.move_on_after(self.dice.uniform(0, 0.1)):
                await stream.receive_some()

    async def stalls(self) -> None:
        """Ask for a stream and read none of it for a while."""
        self.sent += 1
        stream = await trio.open_tcp_stream("127.0.0.1", self.server.port)
        async with stream:
            await stream.send_all(self.request(stream=True))
            await trio.sleep(self.dice.uniform(0, 0.5))

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


async def measure_hang_up(server: Server, upstream: ScriptedUpstream) -> float:
    """Seconds from a client's hang-up to the end of its upstream connection, while the upstream is silent."""
    upstream.scripts = [hangs]
    count = len(upstream.asked)
    stream = await trio.open_tcp_stream("127.0.0.1", server.port)
    async with stream:
        await stream.send_all(Crowd(server, upstream, random.Random()).request())
        asked = await upstream.wait_asked(count + 1)
    left_at = trio.current_time()
    await asked.gone.wait()
    return trio.current_time() - left_at


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


@pytest.mark.slow
async def test_server_outlives_a_bad_day(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    dice = random.Random(SEED)
    targets = [entry("one", upstream.url, request_timeout=0.5, fallbacks=["two"]), entry("two", upstream.url)]
    config = make_config(
        *targets, streaming=True, turn_timeout=3, wrong_tokens_per_minute=0, gateway={"log_level": "error"}
    )
    config["agents"] = {"defaults": {"max_llm_retries": 1, "llm_retry_backoff_secs": 0.02}}
    async with open_server(tmp_path, config) as server:
        crowd = Crowd(server, upstream, dice)
        upstream.scripts = [bad_upstream(dice)]
        left = [CLIENTS * 8]
        async with trio.open_nursery() as nursery:
            for _ in range(CLIENTS):
                nursery.start_soon(crowd.live, left)
        memory, descriptors = resident_bytes(server), count_descriptors(server)
        left[0] = REQUESTS
        async with trio.open_nursery() as nursery:
            for _ in range(CLIENTS):
                nursery.start_soon(crowd.live, left)
        worst = max([await measure_hang_up(server, upstream) for _ in range(20)])
        crowd.sent += 20
        print(f"{crowd.sent} requests, answers {dict(crowd.seen)}; slowest hang-up {worst:.3f} s")

        assert [] == crowd.complaints
        assert WORST_HANG_UP > worst
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
