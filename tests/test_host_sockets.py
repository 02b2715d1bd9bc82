"""What the kernel sees of a server: its listening sockets, and its writes."""

from __future__ import annotations

import errno
import os
import resource
import socket
import struct
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path
from typing import Any, cast

import pytest
import trio
import trio.testing
from fakes import open_upstream
from harness import ask, entry, make_config, open_client, open_server
from host_client import Client, answer, answering, connect, hello, serving
from hypercorn.app_wrappers import ASGIWrapper
from hypercorn.config import Config as HypercornConfig
from hypercorn.config import Sockets
from hypercorn.trio.run import worker_serve
from serving import wait_until

from picoclaw_trio.config import Config, GatewayConfig
from picoclaw_trio.listening import StartError, listen, open_every_ipv6
from picoclaw_trio.server import hypercorn_config

# struct tcp_info of Linux: of a connection, packets with data that came in; of a listener, its backlog.
DATA_SEGMENTS_IN, BACKLOG = 152, 28
MOST = int(Path("/proc/sys/net/core/somaxconn").read_text())


def tcp_info(sock: Any, offset: int) -> int:
    info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 232)
    [value] = struct.unpack_from("I", info, offset)
    return int(value)


def at(host: str, port: int = 0) -> Config:
    return Config(None, Path(), GatewayConfig(host=host, port=port))


@contextmanager
def no_more_files() -> Iterator[None]:
    """Within, this process can open nothing."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with socket.socket() as probe:
        lowest_free = probe.fileno()
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def connect_plain(port: int) -> trio.SocketStream:
    """Without the thread that looks up names."""
    sock = trio.socket.socket()
    try:
        await sock.connect(("127.0.0.1", port))
    except OSError:
        sock.close()
        raise
    return trio.SocketStream(sock)


# Listening


def greet(family: int, address: str, port: int) -> None:
    with socket.socket(family, socket.SOCK_STREAM) as sock:
        sock.settimeout(5)
        sock.connect((address, port))


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="this machine has no IPv6")
def test_all_addresses_are_those_of_ipv4_and_of_ipv6_on_one_port() -> None:
    sockets = listen(hypercorn_config(at("127.0.0.1, *"))).insecure_sockets
    try:
        assert ["127.0.0.1", "0.0.0.0", "::"] == [sock.getsockname()[0] for sock in sockets]
        _, four, six = [sock.getsockname()[1] for sock in sockets]
        assert four == six
        greet(socket.AF_INET, "127.0.0.1", four)
        greet(socket.AF_INET6, "::1", six)
    finally:
        for sock in sockets:
            sock.close()


@pytest.mark.parametrize("code", [errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL])
def test_all_addresses_are_those_of_ipv4_on_a_machine_without_ipv6(code: int) -> None:
    def make(*_: int) -> socket.socket:
        raise OSError(code, "no IPv6")

    assert [] == open_every_ipv6(0, make)


def test_port_that_is_taken_in_ipv6_alone_is_an_error(tmp_path: Path) -> None:
    with socket.socket(socket.AF_INET6) as taken:
        taken.bind(("::1", 0))
        taken.listen()
        with pytest.raises(StartError, match=r"cannot serve at \[::\]:\d+: "):
            listen(hypercorn_config(at("*", taken.getsockname()[1])))


# Accepting


async def test_many_are_let_in_with_one_pass_of_the_scheduler() -> None:
    """Other work keeps the scheduler busy; what counts is how often it comes round, not how fast."""
    passes = 0

    async def work() -> None:
        nonlocal passes
        while True:
            await trio.lowlevel.checkpoint()
            passes += 1

    async with serving(hello) as port:
        # Without a checkpoint, so that all of them wait in the kernel.
        socks = [socket.create_connection(("127.0.0.1", port)) for _ in range(256)]
        streams = [trio.SocketStream(trio.socket.from_stdlib_socket(sock)) for sock in socks]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(work)
            async with trio.open_nursery() as asking:
                for stream in streams:
                    asking.start_soon(Client(stream).ask)
            nursery.cancel_scope.cancel()
        for stream in streams:
            await stream.aclose()
    assert passes < 100


async def test_backlog_is_raised_though_the_socket_listens_already() -> None:
    config = HypercornConfig()
    config.errorlog = None
    app = ASGIWrapper(cast(Any, hello))
    with socket.create_server(("127.0.0.1", 0), backlog=1) as sock:
        stop = trio.Event()
        async with trio.open_nursery() as nursery:

            async def run(task_status: trio.TaskStatus[Any]) -> None:
                sockets = Sockets([], [sock.dup()], [])
                await worker_serve(app, config, sockets=sockets, shutdown_trigger=stop.wait, task_status=task_status)

            await nursery.start(run)
            await trio.testing.wait_all_tasks_blocked()
            assert min(2048, MOST) == tcp_info(sock, BACKLOG)
            stop.set()


async def test_accepting_goes_on_when_there_are_files_again(caplog: pytest.LogCaptureFixture) -> None:
    async with serving(hello) as port:
        await trio.testing.wait_all_tasks_blocked()
        with socket.socket() as sock:
            with no_more_files():
                sock.connect(("127.0.0.1", port))
                await trio.testing.wait_all_tasks_blocked()
            stream = trio.SocketStream(trio.socket.from_stdlib_socket(sock))
            assert 200 == (await Client(stream).ask()).status
    assert 1 == caplog.text.count("Cannot accept a connection")


async def test_clients_who_only_stay_leave_files_for_the_turns(tmp_path: Path) -> None:
    async with (
        open_upstream() as upstream,
        open_server(tmp_path, make_config(entry("one", upstream.url))) as server,
        open_client(server.url) as client,
        AsyncExitStack() as stack,
    ):
        assert 200 == (await client.get("/health")).status_code
        resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE, (64, 64))
        for _ in range(100):
            await stack.enter_async_context(connect(server.port))
        await wait_until(lambda: b"Cannot accept a connection" in server.log)
        assert 200 == (await client.post("/v1/chat/completions", json=ask(model="one"))).status_code
        await stack.aclose()
        async with connect(server.port) as newcomer:
            assert 200 == (await newcomer.ask(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")).status


async def test_workers_share_their_clients(tmp_path: Path) -> None:
    """Clients that stay, one after the other and all at once: no worker takes nearly all of them."""
    async with open_server(tmp_path, make_config(), "hypercorn", "--workers", "2") as server, AsyncExitStack() as stack:

        async def come() -> None:
            stream = await trio.open_tcp_stream("127.0.0.1", server.port)
            stack.push_async_callback(trio.aclose_forcefully, stream)
            await stream.send_all(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
            assert (await stream.receive_some(1000)).startswith(b"HTTP/1.1 200")

        with trio.fail_after(30):
            while server.log.count(b"Running on") < 2:  # each worker says so when it has begun
                await trio.sleep(0.05)
        for _ in range(20):
            await come()
        async with trio.open_nursery() as nursery:
            for _ in range(60):
                nursery.start_soon(come)
        shares = [share for pid in server.pids() if (share := len(clients_of(pid, server.port)))]
        assert 80 == sum(shares)
        assert min(shares) >= 15, shares
        assert 2 == len(shares)


def clients_of(pid: int, port: int) -> set[str]:
    """The process' ends of established connections to *port*, as ``socket:[inode]``."""
    rows = [row.split() for row in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    ours = {f"socket:[{row[9]}]" for row in rows if row[1].endswith(f":{port:04X}") and row[3] == "01"}
    return ours & {os.readlink(path) for path in Path(f"/proc/{pid}/fd").iterdir()}


# Writing


@pytest.mark.parametrize("in_pieces", [False, True])
async def test_answer_is_one_write(in_pieces: bool) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        if in_pieces:  # as Quart does
            head = [(b"content-length", b"4"), (b"content-type", b"text/plain")]
            await send({"type": "http.response.start", "status": 200, "headers": head})
            await send({"type": "http.response.body", "body": b"body", "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        else:
            await answer(send, b"body")

    async with serving(answering(app)) as port:
        stream = await connect_plain(port)
        for number in range(1, 4):
            assert b"body" == (await Client(stream).ask()).body
            assert number == tcp_info(stream.socket, DATA_SEGMENTS_IN)
        await stream.aclose()


async def test_stream_does_not_keep_the_others_waiting() -> None:
    async def stream(scope: Any, receive: Any, send: Any) -> None:
        if scope["path"] == "/stream":
            await send({"type": "http.response.start", "status": 200, "headers": []})
            while True:
                await send({"type": "http.response.body", "body": b"", "more_body": True})
        await answer(send, b"answer")

    async with serving(answering(stream), graceful_timeout=0.0) as port, connect(port) as one, connect(port) as other:
        await one.send(b"GET /stream HTTP/1.1\r\nHost: x\r\n\r\n")
        await one.read_until(b"\r\n\r\n")
        assert b"answer" == (await other.ask()).body


# Unix sockets


async def test_unix_socket_is_served(tmp_path: Path) -> None:
    async with serving(hello, bind=[f"unix:{tmp_path}/s"]), await trio.open_unix_socket(f"{tmp_path}/s") as stream:
        assert 200 == (await Client(stream).ask()).status
