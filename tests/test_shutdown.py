"""A stop in the middle of things: real servers, real signals, and connections that are open in every awkward way."""

from __future__ import annotations

import math
import os
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import attrs
import orjson
import pytest
import trio
from envelopes import error_in
from fakes import Exchange, Script, ScriptedUpstream, chunk, frame, hangs
from harness import START_TIMEOUT, TOKEN, Kind, Server, ask, entry, make_config, open_client, open_server
from host_client import Answer, Client, Client2, connect, connect2
from serving import PATH, head, wait_until
from streams import Endless, by_model, says_as_asked

GRACE = 5
# Seconds for an exit that takes the whole grace; on a busy machine everything takes its time.
LIMIT = GRACE + 15.0
EACH = 3  # connections of a kind, so that of two workers hardly one has none
BIG = frame(chunk({"content": 65_000 * "x"}))
SERVERS: list[tuple[Kind, int]] = [("gateway", 1), ("hypercorn", 1), ("hypercorn", 2)]


def request(model: str, **fields: Any) -> bytes:
    body = orjson.dumps(ask(model=model, **fields))
    return head(length=len(body)) + body


BODY = orjson.dumps(ask(model="one"))
WHOLE, HANGING, STREAMED = request("one"), request("none"), request("big", stream=True)
# What has been sent on a connection that waits for more when the stop comes: nothing of it is a request yet.
NO_REQUESTS = {
    "nothing": b"",
    "half a head": WHOLE[:70],
    "a blank line": b"\r\n",
    "tls": b"\x16\x03\x01\x00\xc8\x01\x00\x00\xc4\x03\x03" + bytes(60),
    "half a preface": b"PRI * HTTP/2.0\r\n\r\nSM",
    "only settings": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes.fromhex("000000040000000000"),
}
HALF_BODIES = {
    "half a body": WHOLE[:-5],
    "half a chunk": head(Transfer_Encoding="chunked") + b"ff\r\n{",
    "no body though expected": head(length=100, Expect="100-continue"),
}


def says_when(go_on: trio.Event) -> Script:
    async def script(exchange: Exchange) -> None:
        await go_on.wait()
        await says_as_asked("Hello!")(exchange)

    return script


@attrs.define
class Around:
    """What is open around the turns that run.

    Attributes:
        idle: whoever waits here is let go at once.
        half_bodies: requests that never become whole.
        stalled: readers of streams that have stopped.
        running: turns that are answered in time, some with another request behind them.
        hanging: turns that are not.
        second: HTTP/2, with a turn that is answered in time as stream 1, and half a request as stream 3.
    """

    idle: list[Client]
    half_bodies: list[Client]
    stalled: list[Client]
    running: list[Client]
    hanging: list[Client]
    second: Client2


@asynccontextmanager
async def open_around(server: Server, upstream: ScriptedUpstream) -> AsyncIterator[Around]:
    async with AsyncExitStack() as stack:

        async def opened(*data: bytes) -> list[Client]:
            clients = [await stack.enter_async_context(connect(server.port)) for _ in range(EACH) for _ in data]
            for client, each in zip(clients, EACH * data, strict=True):
                await client.send(each)
            return clients

        kept = await opened(head("GET", "/health"))
        for client in kept:
            assert 200 == (await client.read_answer()).status
        half_closed = await opened(b"", head("GET", "/health"))
        for client in half_closed:
            assert isinstance(client.stream, trio.SocketStream)
            await client.stream.send_eof()
        stalled = await opened(STREAMED)
        for client in stalled:
            await client.read_until(b"\r\n\r\n")
        half_bodies = await opened(*HALF_BODIES.values())
        for client in half_bodies[len(HALF_BODIES) - 1 :: len(HALF_BODIES)]:
            await client.read_until(b" 100 \r\n\r\n")
        idle = kept + half_closed + await opened(*NO_REQUESTS.values())
        running, hanging = await opened(WHOLE, WHOLE + WHOLE), await opened(HANGING)
        second = await stack.enter_async_context(connect2(server.port))
        begin2(second, BODY)
        begin2(second, BODY[:-1], end=False)
        await second.flush()
        await upstream.wait_asked(len(stalled + running + hanging) + 1)
        yield Around(idle, half_bodies, stalled, running, hanging, second)


def begin2(client: Client2, body: bytes, *, end: bool = True) -> int:
    stream_id = client.open_stream(
        (":method", "POST"), (":path", PATH), ("authorization", f"Bearer {TOKEN}"), end=False
    )
    client.connection.send_data(stream_id, body, end_stream=end)
    return stream_id


def send_signal(server: Server, signum: signal.Signals = signal.SIGTERM, *, to_group: bool) -> None:
    if to_group:
        os.killpg(server.process.pid, signum)
    else:
        server.process.send_signal(signum)


async def see_ends(clients: list[Client]) -> list[bytes]:
    """What each got until the server closed."""
    return [await client.read_to_the_end() for client in clients]


@asynccontextmanager
async def open_busy(
    folder: Path, upstream: ScriptedUpstream, kind: Kind = "gateway", workers: int = 1, grace: float = GRACE
) -> AsyncIterator[tuple[Server, Around, trio.Event]]:
    """A server amid all that; its turns are answered when the event is set, but for the one that hangs."""
    go_on = trio.Event()
    scripts: dict[str, Script] = {"one": says_when(go_on), "big": Endless(BIG), "none": hangs}
    upstream.scripts = [by_model(scripts)]
    # No limit but the grace ends anything within the time of a test.
    patient = {"streaming": True, "write_timeout": 600, "body_timeout": 600}
    config = make_config(*(entry(name, upstream.url) for name in scripts), gateway={"grace": grace}, **patient)
    arguments = ["--workers", str(workers), "--graceful-timeout", str(grace + 2)] if kind == "hypercorn" else []
    async with open_server(folder, config, kind, *arguments) as server:
        await wait_until(lambda: workers <= server.log.count(b"unning on"), START_TIMEOUT)
        async with open_around(server, upstream) as around:
            yield server, around, go_on


@pytest.mark.parametrize("to_group", [False, True], ids=["master", "group"])
@pytest.mark.parametrize(("kind", "workers"), SERVERS)
async def test_running_turns_finish_whatever_is_open_around_them(
    kind: Kind, workers: int, to_group: bool, tmp_path: Path, upstream: ScriptedUpstream
) -> None:
    async with open_busy(tmp_path, upstream, kind, workers) as (server, around, go_on):
        send_signal(server, to_group=to_group)
        with trio.fail_after(LIMIT):
            await see_ends(around.idle)
            await check_newcomers(server)
            late = begin2(around.second, BODY)
            check_sent_away(await around.second.read_answer(late))
            for client in around.half_bodies:
                check_sent_away(await client.read_answer())
            check_sent_away(await around.second.read_answer(3))

            go_on.set()
            for client in around.running:
                check_served(await client.read_answer())
            check_served(await around.second.read_answer(1))
            assert [b""] * len(around.running) == await see_ends(around.running)

            for client in around.hanging:
                check_sent_away(await client.read_answer())
            await see_ends(around.half_bodies + around.stalled)
            assert 0 == await server.process.wait()
            await check_nobody_listens(server)
            await wait_until(lambda: not any(math.isinf(asked.ended_at) for asked in upstream.asked))
    assert b"Traceback" not in server.log


@pytest.mark.parametrize(
    ("kind", "workers", "signum", "to_group"),
    [
        ("gateway", 1, signal.SIGTERM, False),
        ("gateway", 1, signal.SIGINT, True),
        ("hypercorn", 1, signal.SIGTERM, False),
        ("hypercorn", 1, signal.SIGTERM, True),
        ("hypercorn", 1, signal.SIGINT, True),
        ("hypercorn", 2, signal.SIGTERM, False),
        ("hypercorn", 2, signal.SIGTERM, True),
        ("hypercorn", 2, signal.SIGINT, True),
    ],
)
async def test_second_signal_cuts_short_whatever_is_open(
    kind: Kind, workers: int, signum: signal.Signals, to_group: bool, tmp_path: Path, upstream: ScriptedUpstream
) -> None:
    async with open_busy(tmp_path, upstream, kind, workers, grace=600) as (server, around, _):
        send_signal(server, signum, to_group=to_group)
        with trio.fail_after(LIMIT):
            await see_ends(around.idle)
            await check_newcomers(server)
            send_signal(server, signum, to_group=to_group)
            for client in around.running + around.hanging:
                check_sent_away(await client.read_answer())
            check_sent_away(await around.second.read_answer(1))
            await see_ends(around.running + around.hanging + around.half_bodies + around.stalled)
            assert 0 == await server.process.wait()
            await upstream.wait_all_gone()
    assert b"Traceback" not in server.log


@asynccontextmanager
async def open_two_workers(
    folder: Path, upstream: ScriptedUpstream, turns: int = 1
) -> AsyncIterator[tuple[Server, list[Client], trio.Event]]:
    """Two workers and the clients of so many turns, which are answered when the event is set."""
    go_on = trio.Event()
    upstream.scripts = [says_when(go_on)]
    config = make_config(entry("one", upstream.url), gateway={"grace": 600})
    temporary = folder / "temporary"
    temporary.mkdir()  # a name or two
    async with (
        open_server(folder, config, "hypercorn", "--workers", "2", TMPDIR=str(temporary)) as server,
        AsyncExitStack() as stack,
    ):
        await wait_until(lambda: 2 == server.log.count(b"unning on"), START_TIMEOUT)
        clients = [await stack.enter_async_context(connect(server.port)) for _ in range(turns)]
        for client in clients:
            await client.send(WHOLE)
        await upstream.wait_asked(turns)
        yield server, clients, go_on


def present_workers(folder: Path) -> set[int]:
    """The process ids of those workers that no other has noticed to be gone."""
    return {int(path.name.partition("-")[2]) for path in folder.glob("temporary/picoclaw-workers-*/worker-*")}


async def stop_idle_worker(server: Server) -> None:
    before = count_living(server.pids())
    send_signal(server, to_group=True)
    await wait_until(lambda: count_living(server.pids()) < before, LIMIT)
    await wait_not_ready(server)  # the other one may look a tenth of a second later


async def check_ends(server: Server) -> None:
    with trio.fail_after(LIMIT):
        assert 0 == await server.process.wait()


async def test_one_worker_of_two_goes_on_while_it_has_a_turn(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    """Though the master sends it another signal when the first worker has ended; and it tells newcomers."""
    async with open_two_workers(tmp_path, upstream) as (server, [client], go_on):
        await stop_idle_worker(server)
        for _ in range(5):
            await check_newcomers(server)
        go_on.set()
        check_served(await client.read_answer())
        await check_ends(server)


@pytest.mark.parametrize("to_group", [False, True], ids=["master", "group"])
async def test_second_signal_hurries_the_last_of_two_workers(
    to_group: bool, tmp_path: Path, upstream: ScriptedUpstream
) -> None:
    async with open_two_workers(tmp_path, upstream) as (server, [client], _):
        await stop_idle_worker(server)
        send_signal(server, to_group=to_group)
        check_sent_away(await client.read_answer())
        await check_ends(server)


async def test_crash_of_a_worker_during_a_stop_does_not_hurry_the_other(
    tmp_path: Path, upstream: ScriptedUpstream
) -> None:
    """Though the master gives its order once more, unless it looks before the system has the worker's exit status."""
    async with open_two_workers(tmp_path, upstream, turns=20) as (server, clients, go_on):
        send_signal(server, to_group=False)
        await wait_not_ready(server)
        victim, _survivor = present_workers(tmp_path)
        os.kill(victim, signal.SIGKILL)
        with suppress(trio.TooSlowError):
            await wait_until(lambda: victim not in present_workers(tmp_path), 2.0)
        go_on.set()
        ends = await see_ends(clients)
        served = [end for end in ends if end.startswith(b"HTTP/1.1 200 ")]
        assert len(served) + sum(end in {b"", b"<reset>"} for end in ends) == len(ends)
        assert 0 < len(served) < len(ends)
        with trio.fail_after(LIMIT):
            await server.process.wait()


async def test_crash_of_a_worker_ends_the_server_when_the_other_has_answered(
    tmp_path: Path, upstream: ScriptedUpstream
) -> None:
    async with open_two_workers(tmp_path, upstream, turns=20) as (server, clients, go_on):
        processes = server.pids()
        victim, _survivor = present_workers(tmp_path)
        os.kill(victim, signal.SIGKILL)
        await wait_not_ready(server)
        go_on.set()
        ends = await see_ends(clients)
        served = [end for end in ends if end.startswith(b"HTTP/1.1 200 ")]
        assert len(served) + sum(end in {b"", b"<reset>"} for end in ends) == len(ends)
        assert 0 < len(served) < len(ends)
        await check_ends(server)
        await check_nobody_listens(server)
        await wait_until(lambda: 0 == count_living(processes), LIMIT)


async def test_sighup_to_the_master_brings_workers_that_know_of_no_stop(
    tmp_path: Path, upstream: ScriptedUpstream
) -> None:
    """A second one hurries those that were there."""
    async with open_two_workers(tmp_path, upstream) as (server, [old], go_on):
        send_signal(server, signal.SIGHUP, to_group=False)
        await wait_not_ready(server)
        send_signal(server, signal.SIGHUP, to_group=False)
        check_sent_away(await old.read_answer())
        await wait_until(lambda: 4 == server.log.count(b"unning on"), START_TIMEOUT)
        async with connect(server.port) as new:
            await new.send(WHOLE)
            await upstream.wait_asked(2)
            send_signal(server, to_group=False)
            await wait_not_ready(server)
            go_on.set()
            check_served(await new.read_answer())
        await check_ends(server)


async def test_worker_with_a_signal_of_its_own_is_followed_by_another(
    tmp_path: Path, upstream: ScriptedUpstream
) -> None:
    many = 20  # so that each worker has some
    async with open_two_workers(tmp_path, upstream, turns=many) as (server, clients, go_on), AsyncExitStack() as stack:
        idle = [await stack.enter_async_context(connect(server.port)) for _ in range(many)]
        for client in idle:
            assert 200 == (await client.ask(head("GET", "/health"))).status
        os.kill(present_workers(tmp_path).pop(), signal.SIGTERM)
        async with trio.open_nursery() as nursery:

            async def wait_let_go(client: Client) -> None:
                assert b"" == await client.read_to_the_end()
                nursery.cancel_scope.cancel()

            for client in idle:
                nursery.start_soon(wait_let_go, client)
        go_on.set()
        for client in clients:
            check_served(await client.read_answer())
        await wait_until(lambda: 3 == server.log.count(b"unning on"), START_TIMEOUT)
        async with connect(server.port) as client:
            check_served(await client.ask(WHOLE))
        send_signal(server, to_group=False)
        await check_ends(server)


async def test_newcomers_wait_for_the_successor_of_a_worker_that_has_served_enough(
    tmp_path: Path, upstream: ScriptedUpstream
) -> None:
    go_on = trio.Event()
    upstream.scripts = [says_when(go_on)]
    config = make_config(entry("one", upstream.url), gateway={"grace": 600})
    async with (
        open_server(tmp_path, config, "hypercorn", "--max-requests", "3") as server,
        connect(server.port) as busy,
        open_client(server.url) as newcomer,
        trio.open_nursery() as nursery,
    ):
        await busy.send(WHOLE)
        await upstream.wait_asked()
        async with connect(server.port) as client:
            for _ in range(3):
                assert 200 == (await client.ask(head("GET", "/health"))).status
            assert b"" == await client.read_to_the_end()

        async def come() -> None:
            assert 200 == (await newcomer.get("/ready", timeout=LIMIT)).status_code
            assert go_on.is_set()

        nursery.start_soon(come)
        await trio.sleep(0.2)  # the worker that stops would have answered by then
        go_on.set()
        check_served(await busy.read_answer())


async def test_who_is_in_is_served_by_a_worker_that_has_served_enough(
    tmp_path: Path, upstream: ScriptedUpstream
) -> None:
    upstream.scripts = [says_as_asked("Hello!")]
    config = make_config(entry("one", upstream.url), on_disconnect="finish")
    async with (
        open_server(tmp_path, config, "hypercorn", "--max-requests", "1") as server,
        connect(server.port) as slow,
        connect(server.port) as last,
    ):
        await slow.send(WHOLE[:-5])
        assert 200 == (await last.ask(head("GET", "/health"))).status
        assert b"" == await last.read_to_the_end()
        check_served(await slow.ask(WHOLE[-5:]))


def count_living(pids: list[int]) -> int:
    """These processes but for those that have ended, whose command line is empty, or gone with them."""
    living = 0
    for pid in pids:
        with suppress(FileNotFoundError, ProcessLookupError):
            living += Path(f"/proc/{pid}/cmdline").read_bytes() != b""
    return living


def check_served(answer: Answer) -> None:
    assert 200 == answer.status
    assert "Hello!" == orjson.loads(answer.body)["choices"][0]["message"]["content"]


def check_sent_away(answer: Answer) -> None:
    assert (503, "1") == (answer.status, answer.headers["retry-after"])
    assert "shutting_down" == error_in(answer.body)["code"]


async def check_newcomers(server: Server) -> None:
    """Whoever connects during a stop is told of it at once, and then let go."""
    for data in (head("GET", "/ready"), head("GET", "/v1/models"), WHOLE, STREAMED, HALF_BODIES["half a body"]):
        async with connect(server.port) as client:
            check_sent_away(await client.ask(data))
            assert b"" == await client.read_to_the_end()
    async with connect(server.port) as client:
        assert 200 == (await client.ask(head("GET", "/health"))).status
    async with connect2(server.port) as second:
        check_sent_away(await second.read_answer(begin2(second, BODY)))


async def wait_not_ready(server: Server) -> None:
    """Until the worker that one meets tells of the stop; whoever has only connected when it begins is let go."""
    with trio.fail_after(LIMIT):
        answer = b""
        while not answer.startswith(b"HTTP/1.1 503 "):
            async with connect(server.port) as client:
                await client.send(head("GET", "/ready", Connection="close"))
                answer = await client.read_to_the_end()


async def check_nobody_listens(server: Server) -> None:
    with pytest.raises(OSError, match="all attempts to connect"):
        await trio.open_tcp_stream("127.0.0.1", server.port)
