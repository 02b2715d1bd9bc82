"""Bad days: an upstream that does everything wrong, clients that do too, all at once, and a server that does not mind.

Some ten thousand requests by default; ``PICOCLAW_TEST_CHAOS`` asks for more or fewer, ``PICOCLAW_TEST_SEED`` repeats a
run.
"""

from __future__ import annotations

import itertools
import math
import os
import random
import socket
import struct
from collections import Counter
from collections.abc import Awaitable, Callable, Container
from contextlib import suppress
from pathlib import Path
from typing import Any

import attrs
import h11
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
from harness import TOKEN, Here, Kind, Server, ask, entry, make_config, open_client, open_server, serve_here
from serving import logged, port_of
from test_load import settle

from picoclaw_trio.admission import AdmissionStatistics

REQUESTS = int(os.environ.get("PICOCLAW_TEST_CHAOS", "7000"))
SEED = int(os.environ.get("PICOCLAW_TEST_SEED", "1"))
CLIENTS = 32
PATIENCE = 20.0
PATH = "/v1/chat/completions"
# What a whole, sane request may be answered with on such a day.
EXPECTED = frozenset({200, 429, 502, 503, 504})
# What nobody who hangs up can get.
UNMISTAKABLE = frozenset({401, 404})
WORST_HANG_UP = 1.0
# The share of the clients' doings after which each process has to stay as large as it is, but for this; it gets there
# with some thousand of them, so that fewer tell less.
WARM_UP, SETTLED, MAX_GROWTH_BYTES, MAX_EARLY_GROWTH_BYTES = 0.45, 9_000, 12_000_000, 24_000_000
# The text of a request tells the upstream that its client will leave, or wants much; a number that follows tells which
# request it is.
STAYS, LEAVES, WANTS_MUCH = "Hello", "Bye", "More"
SAID, SAID_MUCH = "Hello!", "Hello! " * 100_000  # more than a small receiver and the server's own buffers take
SMALL_BUFFER = 65536
# Requests of one flood, more than there is room for, and after how many others it comes.
FLOOD, FLOOD_INTERVAL = 160, 1000
MAX_TURNS, MAX_WAITING = 48, 16
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

    much = [answers(200, completion(SAID_MUCH)), streams(*text_frames(*[SAID_MUCH[:70_000]] * 10))]
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
        text = text_of(exchange.asked)
        is_silent = text.startswith(LEAVES) and dice.random() < 0.8
        await dice.choice(much if text == WANTS_MUCH else silences if is_silent else acts)(exchange)

    return script


def text_of(asked: Asked) -> str:
    return str(asked.body["messages"][-1]["content"])


@attrs.frozen
class Answer:
    """One whole answer."""

    status: int
    is_stream: bool
    body: bytes

    def complaint(self, text: str) -> str | None:
        """What is wrong with it as an answer to a request whose whole reply is *text*."""
        try:
            return self._complaint(text)
        except (ValueError, KeyError, IndexError, TypeError) as exc:
            return f"{exc!r}: {self.body[-300:]!r}"

    def _complaint(self, text: str) -> str | None:
        if self.is_stream:
            *frames, last = self.body.decode().removesuffix("\n\n").split("\n\n")
            chunks = [orjson.loads(frame.removeprefix("data: ")) for frame in frames if not frame.startswith(":")]
            choices = [choice for chunk in chunks for choice in chunk["choices"]]
            said = "".join(choice["delta"].get("content") or "" for choice in choices)
            if last == "data: [DONE]":
                is_right = said == text and choices[-1]["finish_reason"] == "stop"
            else:
                is_right = text.startswith(said) and is_error(last.removeprefix("data: "))
        elif self.status == 200:
            (choice,) = orjson.loads(self.body)["choices"]
            is_right = (text, "stop") == (choice["message"]["content"], choice["finish_reason"])
        else:
            is_right = is_error(self.body)
        return None if is_right else f"not as it should be: {self.body[-300:]!r}"

    def code(self) -> str | None:
        return None if self.status == 200 else orjson.loads(self.body)["error"]["code"]


def is_error(text: str | bytes) -> bool:
    error: dict[str, Any] = orjson.loads(text)["error"]
    return {"message", "type", "param", "code"} == error.keys()


@attrs.define
class Reader:
    """A connection whose answers are read by the letter."""

    stream: trio.SocketStream
    http: h11.Connection = attrs.field(factory=lambda: h11.Connection(h11.CLIENT))

    async def read(self, *, is_last: bool) -> Answer:
        """The next answer; after the last one the connection has to end.

        Raises:
            h11.RemoteProtocolError: it is not whole, or no HTTP.
        """
        headers = [(b"host", b"x"), *([(b"connection", b"close")] if is_last else [])]
        self.http.send(h11.Request(method=b"POST", target=b"/", headers=headers))
        self.http.send(h11.EndOfMessage())
        head, body = await self._next(), b""
        assert isinstance(head, h11.Response), head
        while isinstance(event := await self._next(), h11.Data):
            body += event.data
        if is_last:
            await self._next()
        else:
            self.http.start_next_cycle()
        return Answer(head.status_code, dict(head.headers)[b"content-type"] == b"text/event-stream", body)

    async def _next(self) -> h11.Event | type[h11.NEED_DATA] | type[h11.PAUSED]:
        while (event := self.http.next_event()) is h11.NEED_DATA:
            try:
                self.http.receive_data(await self.stream.receive_some(65536))
            except trio.BrokenResourceError:
                self.http.receive_data(b"")  # closed before all was sent: what has been read counts
        return event


@attrs.define
class Crowd:
    """Clients of all manners, and what they saw."""

    port: int
    dice: random.Random
    sent: int = 0  # whole heads of requests, each of which the server must count once
    left: int = 0  # of these, the ones whose client may have gone before the server took them up
    left_at: dict[str, float] = attrs.field(factory=dict)  # {text of a request: Trio time of its client's hang-up}
    seen: Counter[int] = attrs.field(factory=Counter)
    codes: Counter[str | None] = attrs.field(factory=Counter)
    complaints: list[str] = attrs.field(factory=list)

    def request(
        self, *, stream: bool = False, token: str = TOKEN, body: bytes | None = None, close: bool = True
    ) -> bytes:
        body = orjson.dumps(ask(STAYS, model="one", stream=stream)) if body is None else body
        head = f"POST {PATH} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\n"
        head += "Connection: close\r\n" if close else ""
        return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body

    async def exchange(self, data: bytes) -> bytes:
        """Send, say that this was all, and read to the end."""
        stream = await trio.open_tcp_stream("127.0.0.1", self.port)
        async with stream:
            answer = b""
            try:
                await stream.send_all(data)
                await stream.send_eof()
                while piece := await stream.receive_some():
                    answer += piece
            except trio.BrokenResourceError:
                pass  # closed before all was sent: what has been read counts
            return answer

    async def expect(self, data: bytes, *allowed: int) -> None:
        stream = await trio.open_tcp_stream("127.0.0.1", self.port)
        async with stream:
            await self.send(stream, data)
            await self.judge(Reader(stream), allowed)

    async def send(self, stream: trio.SocketStream, *requests: bytes) -> None:
        self.sent += len(requests)
        with suppress(trio.BrokenResourceError):
            await stream.send_all(b"".join(requests))

    async def judge(self, reader: Reader, allowed: Container[int], text: str = SAID, *, is_last: bool = True) -> None:
        """Read an answer and complain of it."""
        try:
            answer = await reader.read(is_last=is_last)
        except h11.RemoteProtocolError as exc:
            self.complaints.append(f"no whole answer: {exc}")
            return
        self.seen[answer.status] += 1
        if answer.status not in allowed:
            self.complaints.append(f"{answer.status} is none of {allowed}: {answer.body[:300]!r}")
        elif complaint := answer.complaint(text):
            self.complaints.append(complaint)
        else:
            self.codes[answer.code()] += 1

    # Manners

    async def asks(self) -> None:
        await self.expect(self.request(), *EXPECTED)

    async def streams(self) -> None:
        await self.expect(self.request(stream=True), *EXPECTED)

    async def keeps_alive(self) -> None:
        """Ask several times on one connection."""
        stream = await trio.open_tcp_stream("127.0.0.1", self.port)
        async with stream:
            reader = Reader(stream)
            for data, is_last in self.some_requests():
                await self.send(stream, data)
                await self.judge(reader, EXPECTED, is_last=is_last)

    async def pipelines(self) -> None:
        """Ask several times without waiting for an answer."""
        stream = await trio.open_tcp_stream("127.0.0.1", self.port)
        async with stream:
            reader = Reader(stream)
            requests = self.some_requests()
            await self.send(stream, *[data for data, _ in requests])
            for _, is_last in requests:
                await self.judge(reader, EXPECTED, is_last=is_last)

    def some_requests(self) -> list[tuple[bytes, bool]]:
        """Each with whether it is the last."""
        return [
            (self.request(stream=self.dice.random() < 0.5, close=is_last), is_last) for is_last in (False, False, True)
        ]

    async def reads_late(self) -> None:
        """Ask for more than the buffers hold, read nothing of it for a while, and then all of it."""
        listening = trio.socket.socket()
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SMALL_BUFFER)
        await listening.connect(("127.0.0.1", self.port))
        body = orjson.dumps(ask(WANTS_MUCH, model="two", stream=self.dice.random() < 0.5))
        async with trio.SocketStream(listening) as stream:
            await self.send(stream, self.request(body=body))
            await trio.sleep(self.dice.uniform(0, 0.5))
            await self.judge(Reader(stream), EXPECTED, SAID_MUCH)

    async def floods(self) -> None:
        """Come all at once, and be more than there is room for."""
        async with trio.open_nursery() as nursery:
            for _ in range(FLOOD):
                nursery.start_soon(self.dice.choice([self.asks, self.streams]))

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
        answer = await self.exchange(nonsense)
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
            *[self.asks] * 6,
            *[self.streams] * 4,
            *[self.hangs_up] * 4,
            self.stalls,
            self.keeps_alive,
            self.pipelines,
            self.reads_late,
            self.has_no_token,
            self.sends_no_json,
            self.asks_for_what_is_not_there,
            self.talks_nonsense,
        ]
        while left[0] > 0:
            left[0] -= 1
            manner = self.dice.choice(manners) if left[0] % FLOOD_INTERVAL else self.floods
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


def bad_day(upstream: ScriptedUpstream, dice: random.Random, workers: int = 1) -> dict[str, Any]:
    """The configuration of each worker; the upstream's script is set."""
    upstream.scripts = [bad_upstream(dice)]
    targets = [entry("one", upstream.url, request_timeout=0.5, fallbacks=["two"]), entry("two", upstream.url)]
    config = make_config(
        *targets,
        streaming=True,
        turn_timeout=3,
        max_turns=MAX_TURNS // workers,
        max_waiting=MAX_WAITING // workers,
        wrong_tokens_per_minute=0,
        gateway={"log_level": "error"},
    )
    config["agents"] = {"defaults": {"max_llm_retries": 1, "llm_retry_backoff_secs": 0.02}}
    return config


def count_descriptors(server: Server) -> int:
    return sum(len(os.listdir(f"/proc/{pid}/fd")) for pid in server.pids())


def resident_bytes(server: Server) -> int:
    pages = sum(int(Path(f"/proc/{pid}/statm").read_text().split()[1]) for pid in server.pids())
    return pages * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "workers", "doings"), [("gateway", 1, REQUESTS), ("hypercorn", 2, REQUESTS // 5)])
async def test_server_outlives_a_bad_day(
    kind: Kind, workers: int, doings: int, tmp_path: Path, upstream: ScriptedUpstream
) -> None:
    dice, arguments = random.Random(SEED), ["--workers", str(workers)] if kind == "hypercorn" else []
    warm_up = round(doings * WARM_UP)
    async with open_server(tmp_path, bad_day(upstream, dice, workers), kind, *arguments) as server:
        crowd = Crowd(server.port, dice)
        await crowd.live_all(warm_up)
        await settle(upstream)
        memory, descriptors = resident_bytes(server), count_descriptors(server)
        await crowd.live_all(doings - warm_up)
        delays = await measure_hang_ups(crowd, upstream)
        print(f"{crowd.sent} requests, answers {dict(crowd.seen)}, codes {dict(crowd.codes)}")
        print(f"{len(crowd.left_at)} hang-ups, {len(delays)} with an upstream at work: slowest {max(delays):.3f} s")

        assert [] == crowd.complaints
        assert WORST_HANG_UP > max(delays)
        assert len(crowd.left_at) / 10 < len(delays)
        assert crowd.codes["overloaded"]
        await settle(upstream)
        async with open_client(server.url) as client:
            text, reads = await read_settled_metrics(client)
        check_counts(counted(text), crowd, reads)
        with trio.fail_after(30):
            while count_descriptors(server) > descriptors:
                await trio.sleep(0.1)
        growth = (resident_bytes(server) - memory) / workers
        print(f"{growth / 1e6:.1f} MB more since the first {WARM_UP:.0%}")
        assert growth < (MAX_GROWTH_BYTES if warm_up >= SETTLED else MAX_EARLY_GROWTH_BYTES)
        assert b"Traceback" not in server.log
        assert 0 == await server.stop()


def check_counts(counts: dict[int, int], crowd: Crowd, reads: int) -> None:
    """Whoever hung up may have been answered all the same: of what they can get there may be more than were seen."""
    assert {status: crowd.seen[status] for status in UNMISTAKABLE} == {
        status: counts.get(status, 0) for status in UNMISTAKABLE
    }
    assert all(counts[status] >= number for status, number in crowd.seen.items())
    assert crowd.sent - crowd.left <= sum(counts.values()) - reads <= crowd.sent
    assert 500 not in counts


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
