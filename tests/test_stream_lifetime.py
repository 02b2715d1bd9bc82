"""What a stream holds while it lasts, and what ends it: a hang-up, a reader that stops, a shutdown."""

from __future__ import annotations

import signal
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import attrs
import h2.errors
import h2.events
import h2.settings
import httpx2
import orjson
import pytest
import trio
from fakes import ScriptedUpstream, chunk, frame, hangs, streams, text_frames
from harness import HEADERS, Here, ask, entry, make_config, open_client, open_server
from host_client import Client2, connect2
from streams import (
    LIMIT,
    PATH,
    Endless,
    Steered,
    open_running,
    open_stream,
    serving,
    stream_whole,
    text_of,
    until,
)

from picoclaw_trio.upstream import RetryPolicy

ROLE = {"role": "assistant", "content": ""}
MARK = b"~"  # stands in the text of big deltas, and nowhere else
DELTA = 65_000  # marks in one of them
BIG = frame(chunk({"content": MARK.decode() * DELTA}))
MIB = 1024 * 1024


@pytest.fixture
async def server(tmp_path: Path, upstream: ScriptedUpstream) -> AsyncIterator[Here]:
    async with serving(tmp_path, upstream) as opened:
        yield opened


@pytest.fixture
async def client(server: Here) -> AsyncIterator[httpx2.AsyncClient]:
    async with open_client(server.url) as opened:
        yield opened


# --- Clients that read only when they are told to ------------------------------------------------------------------

BODY = orjson.dumps(ask(stream=True))


@attrs.define
class Reader1:
    """HTTP/1.1. Its own buffer is small, so that what it leaves unread stays with the server."""

    stream: trio.SocketStream

    async def ask(self) -> None:
        head = f"POST {PATH} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {len(BODY)}\r\n"
        head += f"Authorization: {HEADERS['Authorization']}\r\n\r\n"
        await self.stream.send_all(head.encode() + BODY)
        assert (await self.stream.receive_some(12)).endswith(b" 200")

    async def count_marks(self, limit: float = float("inf")) -> int:
        """Read on to the end of the connection, or until *limit* marks have come."""
        marks = 0
        while marks < limit and (data := await self.stream.receive_some(MIB)):
            marks += data.count(MARK)
        return marks


@attrs.define
class Reader2:
    """HTTP/2. It has no more window than it began with, unless it is told to open it wide."""

    client: Client2
    wide: bool

    async def ask(self) -> None:
        connection = self.client.connection
        if self.wide:
            connection.update_settings({h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: 2**31 - 1})
            connection.increment_flow_control_window(2**31 - 1 - 65535)
        headers = {":method": "POST", ":path": PATH, "authorization": HEADERS["Authorization"]}
        stream_id = self.client.open_stream(*headers.items(), end=False)
        connection.send_data(stream_id, BODY, end_stream=True)
        answer = await self.client.wait_event(h2.events.ResponseReceived, stream_id=stream_id)
        assert "200" == dict(answer.headers)[":status"]

    async def count_marks(self, limit: float = float("inf")) -> int:
        marks = self._take(self.client.events)
        while marks < limit and (data := await self.client.stream.receive_some(MIB)):
            marks += self._take(self.client.connection.receive_data(data))
            await self.client.flush()
        return marks

    def _take(self, events: list[Any]) -> int:
        marks = 0
        for event in events:
            if isinstance(event, h2.events.DataReceived):
                marks += event.data.count(MARK)
                self.client.connection.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            elif isinstance(event, h2.events.StreamEnded):
                self.client.connection.close_connection()
        events.clear()
        return marks


Reader = Reader1 | Reader2
READERS = ("HTTP/1.1", "HTTP/2", "HTTP/2 with a wide window")


@asynccontextmanager
async def open_reader(kind: str, url: str) -> AsyncIterator[Reader]:
    port = int(url.rpartition(":")[2])
    if kind == "HTTP/1.1":
        sock = trio.socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        await sock.connect(("127.0.0.1", port))
        async with trio.SocketStream(sock) as stream:
            yield Reader1(stream)
    else:
        async with connect2(port) as client:
            yield Reader2(client, "wide" in kind)


# --- Hang-ups ------------------------------------------------------------------------------------------------------


async def hang_up_in_silence(server: Here, upstream: ScriptedUpstream) -> None:
    upstream.scripts = (hangs,)
    async with open_client(server.url) as client, open_running(client, upstream):
        pass


async def hang_up_on_a_whole_answer(server: Here, upstream: ScriptedUpstream) -> None:
    upstream.scripts = (hangs,)
    async with open_client(server.url) as client, trio.open_nursery() as nursery:
        nursery.start_soon(lambda: client.post(PATH, json=ask()))
        await upstream.wait_asked()
        nursery.cancel_scope.cancel()


async def hang_up_after_a_word(server: Here, upstream: ScriptedUpstream) -> None:
    upstream_says = Steered()
    upstream.scripts = (upstream_says,)
    async with open_client(server.url) as client, trio.open_nursery() as nursery:
        nursery.start_soon(upstream_says.say_text, "a")
        async with open_stream(client) as answer:
            assert ROLE == await answer.next_delta()


async def hang_up_with_much_unread(server: Here, upstream: ScriptedUpstream) -> None:
    endless = Endless(BIG)
    upstream.scripts = (endless,)
    async with open_reader("HTTP/1.1", server.url) as reader:
        await reader.ask()
        await endless.wait_stalled()


async def reset_a_stream_of_http_2(server: Here, upstream: ScriptedUpstream) -> None:
    upstream.scripts = (Endless(BIG),)
    async with open_reader("HTTP/2", server.url) as reader:
        assert isinstance(reader, Reader2)
        await reader.ask()
        reader.client.connection.reset_stream(1, h2.errors.ErrorCodes.CANCEL)
        await reader.client.flush()
        await upstream.wait_all_gone()


async def close_a_connection_of_http_2(server: Here, upstream: ScriptedUpstream) -> None:
    endless = Endless(BIG)
    upstream.scripts = (endless,)
    async with open_reader("HTTP/2", server.url) as reader:
        await reader.ask()
        await endless.wait_stalled()


HangUp = Callable[[Here, ScriptedUpstream], Awaitable[None]]
HANG_UPS: list[HangUp] = [
    hang_up_in_silence,
    hang_up_on_a_whole_answer,
    hang_up_after_a_word,
    hang_up_with_much_unread,
    reset_a_stream_of_http_2,
    close_a_connection_of_http_2,
]


@pytest.mark.parametrize("hang_up", HANG_UPS)
async def test_hang_up_closes_the_upstream_connection(
    hang_up: HangUp, upstream: ScriptedUpstream, server: Here
) -> None:
    with trio.fail_after(LIMIT):
        await hang_up(server, upstream)
        await upstream.wait_all_gone()
    await until(lambda: 0 == server.gateway.admission.statistics().running)


async def test_hang_up_during_the_pause_before_another_attempt_ends_the_turn(
    upstream: ScriptedUpstream, server: Here, client: httpx2.AsyncClient
) -> None:
    server.gateway.upstream.policy = RetryPolicy(base_delay=1000.0, max_delay=1000.0)
    upstream.scripts = (lambda exchange: exchange.send(500, b"{}"),)
    async with open_running(client, upstream):
        pass

    await until(lambda: 0 == server.gateway.admission.statistics().running)
    assert 1 == len(upstream.asked)


@pytest.mark.parametrize("after_a_word", [False, True])
async def test_turn_goes_on_without_its_client_where_that_is_configured(
    after_a_word: bool, tmp_path: Path, upstream: ScriptedUpstream
) -> None:
    upstream_says = Steered()
    upstream.scripts = (upstream_says,)
    async with serving(tmp_path, upstream, on_disconnect="finish") as server:
        await leave(server, upstream, upstream_says, after_a_word=after_a_word)
        for word in ("some", "more", "words"):
            await upstream_says.say_text(word)
        assert not upstream.asked[0].gone.is_set()
        assert 1 == server.gateway.admission.statistics().running
        await upstream_says.end()
        await until(upstream_says.finished.is_set)
        await until(lambda: 0 == server.gateway.admission.statistics().running)


async def leave(server: Here, upstream: ScriptedUpstream, upstream_says: Steered, *, after_a_word: bool) -> None:
    """Ask for a stream and hang up, before its first word or after it."""
    if after_a_word:
        await hang_up_after_a_word_of(server, upstream_says)
    else:
        async with open_client(server.url) as client, open_running(client, upstream):
            pass


async def hang_up_after_a_word_of(server: Here, upstream_says: Steered) -> None:
    async with open_client(server.url) as client, trio.open_nursery() as nursery:
        nursery.start_soon(upstream_says.say_text, "a")
        async with open_stream(client) as answer:
            assert ROLE == await answer.next_delta()


async def test_client_that_stays_sees_the_same_where_turns_are_finished(
    tmp_path: Path, upstream: ScriptedUpstream
) -> None:
    upstream.scripts = (streams(*text_frames("a", "b")), hangs)
    async with (
        serving(tmp_path, upstream, on_disconnect="finish", turn_timeout=1) as server,
        open_client(server.url) as client,
    ):
        good = await stream_whole(client)
        unknown = await stream_whole(client, model="nobody")
        late = await stream_whole(client)

    assert "ab" == text_of(good.content)
    assert (404, "model_not_found") == (unknown.status_code, unknown.json()["error"]["code"])
    assert (504, "upstream_timeout") == (late.status_code, late.json()["error"]["code"])


async def test_turn_without_a_client_ends_at_its_deadline(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    upstream.scripts = (hangs,)
    async with serving(tmp_path, upstream, on_disconnect="finish", turn_timeout=1) as server:
        async with open_client(server.url) as client, open_running(client, upstream):
            pass
        with trio.fail_after(LIMIT):
            await upstream.wait_all_gone()
        await until(lambda: 0 == server.gateway.admission.statistics().running)


async def test_turn_that_has_not_begun_ends_with_its_client(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    upstream.scripts = (hangs,)
    async with (
        serving(tmp_path, upstream, on_disconnect="finish", max_turns=1, turn_timeout=2) as server,
        open_client(server.url) as client,
        open_running(client, upstream),
    ):
        admission = server.gateway.admission
        async with open_client(server.url) as second, trio.open_nursery() as nursery:
            nursery.start_soon(stream_whole, second)
            await until(lambda: 1 == admission.statistics().waiting)
            nursery.cancel_scope.cancel()
        await until(lambda: 0 == admission.statistics().waiting)
    assert 1 == len(upstream.asked)


# --- Readers that are slow, or stop ---------------------------------------------------------------------------------


def resident(pids: list[int]) -> int:
    """Bytes of memory that these processes hold."""
    lines = [line for pid in pids for line in Path(f"/proc/{pid}/status").read_text().splitlines()]
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS:"))


@pytest.mark.parametrize(("kind", "megabytes"), [*zip(READERS, (100, 40, 40), strict=True)])
async def test_sleeping_reader_of_much_makes_the_upstream_wait_and_no_buffer_grow(
    kind: str, megabytes: int, tmp_path: Path, upstream: ScriptedUpstream
) -> None:
    count = megabytes * 1_000_000 // DELTA
    endless = Endless(BIG, limit=count)
    upstream.scripts = (streams(*text_frames("a")), endless)
    config = make_config(entry("m0", upstream.url), streaming=True)
    with trio.fail_after(90):
        async with open_server(tmp_path, config) as server:
            async with open_client(server.url) as client:
                await stream_whole(client)
            before = resident(server.pids())
            async with open_reader(kind, server.url) as reader:
                await reader.ask()
                await endless.wait_stalled()
                asleep = resident(server.pids())
                sent = endless.sent
                assert count * DELTA == await reader.count_marks()
            after = resident(server.pids())

    assert megabytes * 500_000 > sent
    assert 16 * MIB > asleep - before
    assert 24 * MIB > after - before


@pytest.mark.parametrize("kind", READERS)
async def test_reader_that_stops_is_cut_after_the_write_timeout(
    kind: str, tmp_path: Path, upstream: ScriptedUpstream
) -> None:
    endless = Endless(BIG)
    upstream.scripts = (endless,)
    async with serving(tmp_path, upstream, write_timeout=1) as server, open_reader(kind, server.url) as reader:
        await reader.ask()
        with trio.fail_after(LIMIT):
            await upstream.wait_all_gone()
        await until(lambda: 0 == server.gateway.admission.statistics().running)


@pytest.mark.parametrize("kind", READERS)
async def test_slow_reader_is_not_cut_as_long_as_it_goes_on(
    kind: str, tmp_path: Path, upstream: ScriptedUpstream
) -> None:
    endless = Endless(BIG)
    upstream.scripts = (endless,)
    async with serving(tmp_path, upstream, write_timeout=1) as server, open_reader(kind, server.url) as reader:
        await reader.ask()
        await endless.wait_stalled()
        for _ in range(6):
            await trio.sleep(0.3)  # that is how slow it is
            await reader.count_marks(limit=65536)
        assert not upstream.asked[0].gone.is_set()


@pytest.mark.parametrize("kind", READERS)
async def test_reader_that_stops_does_not_hold_up_a_shutdown(
    kind: str, tmp_path: Path, upstream: ScriptedUpstream
) -> None:
    endless = Endless(BIG)
    upstream.scripts = (endless,)
    config = make_config(entry("m0", upstream.url), streaming=True, gateway={"grace": 1}, write_timeout=600)
    async with open_server(tmp_path, config) as server, open_reader(kind, server.url) as reader:
        await reader.ask()
        with trio.fail_after(LIMIT):
            await endless.wait_stalled()
            assert 0 == await server.stop()
            await upstream.wait_all_gone()


async def test_frameworks_own_limits_cut_off_no_answer(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    """Quart's default would end a stream after a minute, without a word."""
    upstream.scripts = (streams(*text_frames("a", "b", "c"), pause=0.1),)
    async with serving(tmp_path, upstream) as server, open_client(server.url) as client:
        server.app.config["RESPONSE_TIMEOUT"] = server.app.config["BODY_TIMEOUT"] = 0.01
        answer = await stream_whole(client)
    assert "abc" == text_of(answer.content)


# --- Shutdown ------------------------------------------------------------------------------------------------------


async def test_stream_under_way_at_a_shutdown_is_finished(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    upstream_says = Steered()
    upstream.scripts = (upstream_says,)
    config = make_config(entry("m0", upstream.url), streaming=True, gateway={"grace": 20})
    async with open_server(tmp_path, config) as server, open_client(server.url) as client:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(upstream_says.say_text, "a")
            async with open_stream(client) as answer:
                assert ROLE == await answer.next_delta()
                server.process.send_signal(signal.SIGTERM)
                await until(lambda: b"stopping" in server.log)
                await upstream_says.say_text("b")
                await upstream_says.end()
                assert b"data: [DONE]" == (await answer.rest())[-1]
        with trio.fail_after(LIMIT):
            assert 0 == await server.process.wait()


async def test_turn_without_a_client_is_finished_at_a_shutdown(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    upstream_says = Steered()
    upstream.scripts = (upstream_says,)
    limits: dict[str, Any] = {"gateway": {"grace": 20}, "on_disconnect": "finish"}
    async with open_server(tmp_path, make_config(entry("m0", upstream.url), streaming=True, **limits)) as server:
        async with open_client(server.url) as client, open_running(client, upstream):
            pass
        server.process.send_signal(signal.SIGTERM)
        await until(lambda: b"stopping" in server.log)
        async with open_client(server.url) as newcomer:
            assert 503 == (await newcomer.get("/ready")).status_code
        await upstream_says.say_text("b")
        await upstream_says.end()
        await until(upstream_says.finished.is_set)
        with trio.fail_after(LIMIT):
            assert 0 == await server.process.wait()


async def test_turn_without_a_client_ends_with_the_grace_period(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    upstream.scripts = (hangs,)
    limits: dict[str, Any] = {"gateway": {"grace": 1}, "on_disconnect": "finish"}
    async with open_server(tmp_path, make_config(entry("m0", upstream.url), streaming=True, **limits)) as server:
        async with open_client(server.url) as client, open_running(client, upstream):
            pass
        assert 0 == await server.stop()
        with trio.fail_after(LIMIT):
            await upstream.wait_all_gone()
