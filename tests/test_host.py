from __future__ import annotations

import importlib.metadata
import os
import pickle
import re
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio
import trio.testing
from host_client import GET, WAIT, Client, answer, answering, connect, hello, serving
from hypercorn.config import Config
from hypercorn.protocol.h11 import H11Protocol
from hypercorn.trio.tcp_server import TCPServer

from picoclaw_trio import host, host_worker
from picoclaw_trio.host_connection import Connection
from picoclaw_trio.host_h11 import H11

START_TIMEOUT = 20.0
STOP_TIMEOUT = 20.0


# Being put in place


def in_place() -> dict[str, Any]:
    return {name: vars(sys.modules[module])[name] for module, name, _, _ in host.MENDS}


def test_mending_twice_changes_nothing_more() -> None:
    before, headers = in_place(), Config.response_headers
    host.mend()
    assert before == in_place()
    assert headers is Config.response_headers
    assert {"picoclaw_trio"} == {ours.__module__.partition(".")[0] for ours in before.values()}


def test_write_timeout_can_be_set_again() -> None:
    host.mend(write_timeout=1.0)
    assert 1.0 == Connection.write_timeout
    host.mend()
    assert 30.0 == Connection.write_timeout


@pytest.fixture
def unknown(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A Hypercorn of a version that nobody has read, and as it came."""
    version = importlib.metadata.version
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "9" if name == "hypercorn" else version(name))
    monkeypatch.setattr("hypercorn.protocol.H11Protocol", H11Protocol)
    monkeypatch.setattr("hypercorn.trio.run.TCPServer", TCPServer)
    return monkeypatch


@pytest.mark.usefixtures("unknown")
def test_unknown_hypercorn_that_looks_the_same_is_mended(caplog: pytest.LogCaptureFixture) -> None:
    host.mend()
    assert (Connection, H11) == (in_place()["TCPServer"], in_place()["H11Protocol"])
    assert "" == caplog.text


def test_unknown_hypercorn_that_looks_otherwise_is_left_alone(
    unknown: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def handle(self: Any, event: Any, more: Any) -> None: ...

    unknown.setattr(H11Protocol, "handle", handle)
    host.mend()
    assert (TCPServer, H11Protocol) == (in_place()["TCPServer"], in_place()["H11Protocol"])
    assert "runs with its own faults" in caplog.text


def test_unknown_hypercorn_without_a_part_is_left_alone(
    unknown: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    unknown.delattr("hypercorn.protocol.H2Protocol")
    host.mend()
    assert TCPServer is vars(sys.modules["hypercorn.trio.run"])["TCPServer"]
    assert "runs with its own faults" in caplog.text


def test_new_defaults_reach_the_worker() -> None:
    """The master pickles its configuration, with what its command line said and nothing else."""
    config = Config()
    config.keep_alive_timeout = 1
    worker = pickle.loads(pickle.dumps(config))
    assert (32.0, 2048, False) == (worker.graceful_timeout, worker.backlog, worker.include_server_header)
    assert 1 == worker.keep_alive_timeout
    assert 75.0 == pickle.loads(pickle.dumps(Config())).keep_alive_timeout


# The date


async def test_date_is_of_this_second() -> None:
    async with serving(hello) as port, connect(port) as client:
        for wait in (0.0, 1.0):
            await trio.sleep(wait)
            asked_at = time.time()
            date = parsedate_to_datetime((await client.ask()).headers["date"]).timestamp()
            assert int(asked_at) <= date <= time.time()


def test_headers_that_the_configuration_asks_for_are_kept() -> None:
    config = Config()
    config.include_server_header = True
    config.alt_svc_headers = ["x"]
    names = [name for name, _ in config.response_headers("h11")]
    assert ["date", "server", "alt-svc"] == [name.decode() for name in names]
    assert config.response_headers("h2") != config.response_headers("h11")


# The scheduler


class Passes(trio.abc.Instrument):
    """How many tasks became ready in each pass of the scheduler."""

    def __init__(self) -> None:
        self.ready: list[int] = [0]

    def after_io_wait(self, timeout: float) -> None:
        self.ready.append(0)

    def task_scheduled(self, task: trio.lowlevel.Task) -> None:
        self.ready[-1] += 1


async def test_pass_of_the_scheduler_takes_up_a_bounded_number_of_sockets() -> None:
    pairs = [trio.socket.socketpair() for _ in range(300)]
    passes = Passes()
    async with trio.open_nursery() as nursery:
        for ours, _ in pairs:
            nursery.start_soon(ours.recv, 1)
        await trio.testing.wait_all_tasks_blocked()
        for _, theirs in pairs:
            theirs._sock.send(b"x")  # type: ignore[attr-defined]  # without a checkpoint, so that all are ready at once
        trio.lowlevel.add_instrument(passes)
    trio.lowlevel.remove_instrument(passes)
    for pair in pairs:
        for sock in pair:
            sock.close()
    assert 300 <= sum(passes.ready)
    assert host.MAX_EVENTS >= max(passes.ready)


# Stopping


async def test_application_learns_that_the_server_stops() -> None:
    async def view(scope: Any, receive: Any, send: Any) -> None:
        assert not host_worker.is_draining()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"", "more_body": True})
        await host_worker.wait_draining()
        assert host_worker.is_draining()
        await send({"type": "http.response.body", "body": b"last words"})

    stop = trio.Event()
    async with serving(answering(view), stop, graceful_timeout=WAIT) as port, connect(port) as client:
        await client.send(GET)
        await client.read_until(b"\r\n\r\n")
        stop.set()
        assert b"last words" in await client.read_to_the_end()


async def test_servers_of_one_process_stop_apart() -> None:
    waiting = 0

    async def view(scope: Any, receive: Any, send: Any) -> None:
        nonlocal waiting
        waiting += 1
        await host_worker.wait_draining()
        await answer(send, b"stopped")

    async with serving(answering(view)) as other, connect(other) as innocent:
        await innocent.send(GET)
        async with serving(answering(view)) as port, connect(port) as client:
            await client.send(GET)
            while waiting < 2:
                await trio.testing.wait_all_tasks_blocked()
        with trio.move_on_after(0.1) as patience:
            await innocent.read_answer()
        assert patience.cancelled_caught


def test_nothing_drains_outside_of_a_server() -> None:
    async def main() -> None:
        assert not host_worker.is_draining()
        with trio.move_on_after(0.01) as patience:
            await host_worker.wait_draining()
        assert patience.cancelled_caught
        with pytest.raises(LookupError):
            host_worker.stop_worker()

    trio.run(main)


# Signals, to the real thing

SLOW = """
import os
from picoclaw_trio import host, host_worker
host.mend()
import trio

async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        while (message := await receive())["type"] != "lifespan.shutdown":
            await send({"type": message["type"] + ".complete"})
        print("closed", os.getpid(), flush=True)
        await send({"type": "lifespan.shutdown.complete"})
        return
    if scope["path"] == "/stop":
        host_worker.stop_worker()
    if scope["path"] == "/slow":
        print("began", flush=True)
        await host_worker.wait_draining()
        await trio.sleep(0.7)
    body = str(os.getpid()).encode()
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]})
    await send({"type": "http.response.body", "body": body})
"""


@attrs.define
class Master:
    process: trio.Process
    port: int
    said: bytes = b""

    async def read_until(self, pattern: bytes) -> bytes:
        """What standard output and error said when the pattern had come."""
        assert self.process.stdout is not None
        with trio.fail_after(START_TIMEOUT):
            while not re.search(pattern, self.said):
                data = await self.process.stdout.receive_some()
                assert data, self.said
                self.said += data
        return self.said

    async def wait(self) -> int:
        with trio.fail_after(STOP_TIMEOUT):
            return await self.process.wait()


@asynccontextmanager
async def open_master(folder: Path, *arguments: str) -> AsyncIterator[Master]:
    """``python -m hypercorn`` with the application above, in a process group of its own."""
    await (trio.Path(folder) / "slow.py").write_text(SLOW)
    command = [sys.executable, "-m", "hypercorn", "slow:app", "--worker-class", "trio", "--bind", "127.0.0.1:0"]
    process = await trio.lowlevel.open_process(
        [*command, *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(Path(host.__file__).parents[1])},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    master = Master(process, 0)
    try:
        workers = int(arguments[arguments.index("--workers") + 1]) if "--workers" in arguments else 1
        said = await master.read_until(rb"(?s)(Running on http\S+.*){%d}" % workers)
        found = re.search(rb"Running on http://127.0.0.1:(\d+)", said)
        assert found is not None
        master.port = int(found[1])
        yield master
    finally:
        if alive := pids(process.pid):
            for pid in alive:
                with suppress(ProcessLookupError):  # it ends when the one before it does
                    os.kill(pid, signal.SIGKILL)
        with trio.CancelScope(shield=True):
            await process.wait()
            assert process.stdout is not None
            await process.stdout.aclose()


def pids(session: int) -> list[int]:
    """The processes of this session that live."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[3]) == session and fields[0] != "Z":
            found.append(int(stat.parent.name))
    return found


async def test_flags_of_the_command_line_win(tmp_path: Path) -> None:
    async with open_master(tmp_path, "--keep-alive", "1") as master:
        started_at = trio.current_time()
        async with connect(master.port) as client:
            await client.read_to_the_end()
        assert 0.9 < trio.current_time() - started_at


@pytest.mark.parametrize("workers", ["1", "2"])
@pytest.mark.parametrize("to_all", [False, True])
async def test_sigterm_lets_every_worker_finish(tmp_path: Path, workers: str, to_all: bool) -> None:
    async with open_master(tmp_path, "--workers", workers) as master, connect(master.port) as client:
        await client.send(b"GET /slow HTTP/1.1\r\nHost: x\r\n\r\n")
        await master.read_until(b"began")
        os.kill(-master.process.pid if to_all else master.process.pid, signal.SIGTERM)
        assert 200 == (await client.read_answer()).status
        assert 0 == await master.wait()
        await master.read_until(b"(?s)(closed.*){%s}" % workers.encode())


async def test_workers_stop_when_their_master_is_killed(tmp_path: Path) -> None:
    async with open_master(tmp_path) as master, connect(master.port) as client:
        worker = int((await client.ask()).body)
        os.kill(worker, signal.SIGTERM)
        assert worker == int((await client.ask()).body)
        master.process.kill()
        await master.wait()
        await master.read_until(b"closed %d" % worker)
        await client.read_to_the_end()


async def test_application_can_ask_for_a_stop(tmp_path: Path) -> None:
    """Of this worker: the master then starts another."""
    async with open_master(tmp_path) as master, connect(master.port) as client:
        first = (await client.ask(b"GET /stop HTTP/1.1\r\nHost: x\r\n\r\n")).body
        await master.read_until(b"(?s)closed.*Running on")
        async with connect(master.port) as other:
            assert first != (await other.ask()).body
        master.process.send_signal(signal.SIGTERM)
        assert 0 == await master.wait()


async def test_answers_of_a_real_worker_are_mended(tmp_path: Path) -> None:
    async with open_master(tmp_path) as master:
        async with connect(master.port) as client:
            assert "server" not in (await client.ask()).headers
            assert "bad_request" == (await client.ask(b"\x00\r\n\r\n")).error["code"]
        async with await trio.open_tcp_stream("127.0.0.1", master.port) as stream:
            assert 200 == (await Client(stream).ask()).status
