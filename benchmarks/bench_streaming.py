"""What the gateway does to a stream: deltas per second that it relays, and how much later each one arrives.

Beside every figure stands that of the upstream alone, read by the same client. Two measurements for each number of
streams: flat out, where the upstream writes as fast as it is read, and at a steady pace that no part is busy with,
where each delta carries the time at which it was written.

By itself it prints a table of its own:

    python -m benchmarks.bench_streaming [--brief]
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import itertools
import json
import os
import platform
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import attrs
import trio

from ._tools.processes import Process
from ._tools.stage import Stage
from ._tools.values import Figure, Measure, Question, Sample

STREAMS = (1, 32, 256)
TOKEN = "sk-benchmark"
STAMP = re.compile(rb"@(\d+)@")  # nanoseconds of the clock that all processes of a machine share
TARGET = re.compile(rb"POST /(\d+)/([\d.]+)/")
ADDRESS = re.compile(r"Serving http://127\.0\.0\.1:(\d+)")
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
START_TIMEOUT = 30.0
LATE_DELTAS = 0.99
GATEWAY = [sys.executable, "-m", "picoclaw_trio", "gateway"]
UPSTREAM = [sys.executable, "-m", "benchmarks.bench_streaming", "--upstream"]
PHASES = (number * 0.618 % 1 for number in itertools.count())  # so that the streams do not all speak at once


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--brief", action="store_true", help="short runs: some ten seconds in all, rough figures")
    parser.add_argument("--upstream", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.upstream:
        trio.run(serve_upstream)
    else:
        run_all(Plan.brief() if arguments.brief else Plan())


@attrs.frozen
class Plan:
    """How much is measured.

    Attributes:
        deltas: of all streams of a flat-out run together.
        per_second: deltas of all streams of a steady run together, in a second; for one stream ``per_second_of_one``.
        seconds: length of a steady run.
        rounds: runs of each kind; the median counts.
    """

    deltas: int = 76_800
    per_second: float = 640.0
    per_second_of_one: float = 50.0
    seconds: float = 5.0
    rounds: int = 5

    @classmethod
    def brief(cls) -> Plan:
        return cls(deltas=10_240, seconds=2.0, rounds=1)

    @classmethod
    def one_round(cls, *, brief: bool) -> Plan:
        """For one round of all benchmarks."""
        return cls(deltas=2_560, seconds=0.5, rounds=1) if brief else cls(deltas=20_480, seconds=2.0, rounds=1)

    def flat_out(self, streams: int) -> str:
        """The part of an address that tells the upstream what to do: deltas of each stream, seconds between them."""
        return f"{self.deltas // streams}/0"

    def steady(self, streams: int) -> str:
        pause = max(streams / self.per_second, 1 / self.per_second_of_one)
        return f"{round(self.seconds / pause)}/{pause:g}"

    def paths(self) -> list[str]:
        return [path for streams in STREAMS for path in (self.flat_out(streams), self.steady(streams))]


# --- The upstream --------------------------------------------------------------------------------------------------


async def serve_upstream() -> None:
    """Print the port and serve until killed."""
    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(trio.serve_tcp, answer, 0)
        print(f"Serving http://127.0.0.1:{listeners[0].socket.getsockname()[1]}", flush=True)


async def answer(stream: trio.SocketStream) -> None:
    """Each request of the connection gets the stream that its path asks for."""
    stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    received = b""
    while data := await stream.receive_some():
        received += data
        head, found, body = received.partition(b"\r\n\r\n")
        length = re.search(rb"content-length: (\d+)", head, re.IGNORECASE)
        if not found or length is None or len(body) < int(length[1]):
            continue
        target = TARGET.match(head)
        assert target is not None
        await stream.send_all(HEAD + frame(chunk({"role": "assistant", "content": ""})))
        await say(stream, int(target[1]), float(target[2]))
        await stream.send_all(frame(chunk({}, "stop")) + frame("[DONE]") + b"0\r\n\r\n")
        received = b""


async def say(stream: trio.SocketStream, count: int, pause: float) -> None:
    before, after = frame(chunk({"content": "@0@"}), padding=18).split(b"@0@")
    begun_at = trio.current_time() + pause * next(PHASES)
    for number in range(count):
        if pause:
            await trio.sleep_until(begun_at + number * pause)
        stamp = b"@%d@" % time.monotonic_ns()
        await stream.send_all(before + stamp.ljust(21) + after)


def chunk(delta: dict[str, str], finish_reason: str | None = None) -> str:
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
    head = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1_790_000_000, "model": "bench"}
    return json.dumps({**head, "choices": [choice]})


def frame(data: str, padding: int = 0) -> bytes:
    """One event as one chunk of HTTP/1.1; *padding* is how much longer its data will be."""
    event = f"data: {data}\n\n".encode()
    return b"%x\r\n%b\r\n" % (len(event) + padding, event)


# --- The client ----------------------------------------------------------------------------------------------------


@attrs.frozen
class Run:
    """Deltas per second of all streams together, and each delta's time on the way in seconds.

    What came before the last stream had begun does not count: that measures how requests are taken up. Where it is more
    than half, as in a brief run of many streams, all of it counts.
    """

    count: int
    rate: float
    delays: list[float]


async def read_streams(port: int, path: str, model: str, streams: int) -> Run:
    """Read *streams* streams at once to their ends."""
    body = json.dumps({"model": model, "stream": True, "messages": [{"role": "user", "content": "Hello"}]})
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\nContent-Length: {len(body)}\r\n\r\n"
    begun: list[int] = []
    seen: list[tuple[int, int]] = []
    async with trio.open_nursery() as nursery:
        for _ in range(streams):
            nursery.start_soon(read_stream, port, (head + body).encode(), begun, seen)
    late = [pair for pair in seen if pair[1] > max(begun)]
    since, counted = (max(begun), late) if 2 * len(late) > len(seen) else (min(begun), seen)
    seconds = (max(read_at for read_at, _ in seen) - since) / 1e9
    return Run(len(seen), len(counted) / seconds, [(read_at - written_at) / 1e9 for read_at, written_at in counted])


async def read_stream(port: int, request: bytes, begun: list[int], seen: list[tuple[int, int]]) -> None:
    """Read one stream; notes when it began, and for each delta when it was read and when it was written."""
    async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
        await stream.send_all(request)
        unread = await stream.receive_some(1)
        begun.append(time.monotonic_ns())
        while b"[DONE]" not in unread:
            data = await stream.receive_some(262_144)
            now = time.monotonic_ns()
            unread += data
            if not data:
                raise RuntimeError(f"the stream ended too soon: {unread[-300:]!r}")
            end = 0
            for stamp in STAMP.finditer(unread):
                seen.append((now, int(stamp[1])))
                end = stamp.end()
            unread = unread[end:]


# --- The processes -------------------------------------------------------------------------------------------------


@contextmanager
def running(command: list[str], **environment: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        command,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


@contextmanager
def running_gateway(home: Path, upstream: int, paths: list[str]) -> Iterator[tuple[int, int]]:
    """``picoclaw gateway`` with one alias for each path of the upstream; gives its port and process id."""
    with running(GATEWAY, **configure(home, upstream, paths)) as process:
        yield wait_address(process), process.pid


def configure(home: Path, upstream: int, paths: list[str]) -> dict[str, str]:
    """Write the configuration; gives the environment that leads to it."""
    entries = [
        {"model_name": path, "model": f"openai/{path}", "api_base": f"http://127.0.0.1:{upstream}/{path}"}
        for path in paths
    ]
    api = {"enabled": True, "bearer_tokens": [TOKEN], "streaming": True}
    config = {"gateway": {"host": "127.0.0.1", "port": 0, "openai_api": api}, "model_list": entries}
    (home / "config.json").write_text(json.dumps(config))
    return {"PICOCLAW_HOME": str(home), "PICOCLAW_CONFIG": str(home / "config.json")}


def wait_address(process: subprocess.Popen[str]) -> int:
    assert process.stdout is not None
    told = ""
    for line in process.stdout:
        told += line
        if address := ADDRESS.search(line):
            return int(address[1])
    raise RuntimeError(f"a server did not start:\n{told}")


def processor_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


# --- The table -----------------------------------------------------------------------------------------------------


@attrs.define
class Side:
    """What was measured of one side, the upstream alone or the gateway before it, at one number of streams."""

    rates: list[float] = attrs.field(factory=list)
    middles: list[float] = attrs.field(factory=list)
    lates: list[float] = attrs.field(factory=list)
    costs: list[float] = attrs.field(factory=list)

    def note(self, flat_out: Run, steady: Run, cost: float) -> None:
        ordered = sorted(steady.delays)
        self.rates.append(flat_out.rate)
        self.middles.append(statistics.median(ordered))
        self.lates.append(ordered[int(len(ordered) * LATE_DELTAS)])
        self.costs.append(cost)


def run_all(plan: Plan) -> None:
    print(describe(plan))
    print(f"{'':8}{'deltas/s, flat out':^40}{'ms from write to read, steady':^44}")
    print(
        f"{'streams':>7} {'upstream':>10}{'gateway':>10}{'ratio':>8}{'cpu µs':>8}"
        f"{'upstream':>12}{'gateway':>10}{'added':>8}{'p99':>8}{'added p99':>11}"
    )
    with (
        tempfile.TemporaryDirectory() as home,
        running(UPSTREAM) as upstream,
    ):
        port = wait_address(upstream)
        with running_gateway(Path(home), port, plan.paths()) as (gateway, pid):
            for streams in STREAMS:
                print(row(streams, *trio.run(measure, plan, streams, port, gateway, pid)), flush=True)


async def measure(plan: Plan, streams: int, upstream: int, gateway: int, pid: int) -> tuple[Side, Side]:
    """The upstream alone and the gateway before it, in turn."""
    alone, before = Side(), Side()
    flat_out, steady = plan.flat_out(streams), plan.steady(streams)
    await read_streams(gateway, "/v1/chat/completions", flat_out, streams)
    for _ in range(plan.rounds):
        for side, port, path, cost in (
            (alone, upstream, "/{}/chat/completions", lambda: 0.0),
            (before, gateway, "/v1/chat/completions", lambda: processor_seconds(pid)),
        ):
            await note_round(side, streams, port, path, (flat_out, steady), cost)
    return alone, before


async def note_round(
    side: Side, streams: int, port: int, path: str, models: tuple[str, str], cost: Callable[[], float]
) -> None:
    flat_out, steady = models
    spent = cost()
    fast = await read_streams(port, path.format(flat_out), flat_out, streams)
    spent = (cost() - spent) / fast.count
    side.note(fast, await read_streams(port, path.format(steady), steady, streams), spent)


def row(streams: int, alone: Side, gateway: Side) -> str:
    rates = [statistics.median(side.rates) for side in (alone, gateway)]
    middles = [1000 * statistics.median(side.middles) for side in (alone, gateway)]
    lates = [1000 * statistics.median(side.lates) for side in (alone, gateway)]
    cost = 1e6 * statistics.median(gateway.costs)
    return (
        f"{streams:>7} {rates[0]:>10,.0f}{rates[1]:>10,.0f}{rates[1] / rates[0]:>8.2f}{cost:>8.0f}"
        f"{middles[0]:>12.2f}{middles[1]:>10.2f}{middles[1] - middles[0]:>8.2f}"
        f"{lates[1]:>8.2f}{lates[1] - lates[0]:>11.2f}"
    )


def describe(plan: Plan) -> str:
    now = datetime.datetime.now(tz=datetime.UTC)
    model = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    names = ("picoclaw-trio", "trio", "hypercorn", "quart-trio", "h11", "orjson")
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in names)
    return (
        f"{now:%Y-%m-%d}; {os.cpu_count()} cores, {model[1] if model else platform.machine()}, "
        f"{platform.system()} {platform.release().partition('-')[0]}; Python {platform.python_version()}\n{versions}\n"
        "upstream, gateway and client are a process each, on loopback; "
        f"{plan.deltas:,} deltas flat out, {plan.seconds:g} s steady, median of {plan.rounds}\n"
    )


# --- One of all benchmarks -----------------------------------------------------------------------------------------


def prepare(stage: Stage) -> Measure:
    plan = Plan.one_round(brief=stage.settings.brief)
    here = os.pathsep.join(filter(None, [str(Path(__file__).parent.parent), os.environ.get("PYTHONPATH")]))
    upstream = stage.start("streaming-upstream", UPSTREAM, cores=stage.cores.load, environment={"PYTHONPATH": here})
    port = upstream.wait_address(START_TIMEOUT)
    environment = configure(stage.home("gateway-streaming"), port, plan.paths())
    gateway = stage.start("gateway-streaming", GATEWAY, environment=environment)
    gateway_port = gateway.wait_address(START_TIMEOUT)
    gateway.pause()

    def measure_all() -> Sample:
        with gateway.resumed():
            return measure_streams(plan, port, gateway_port, gateway)

    return measure_all


def measure_streams(plan: Plan, upstream: int, port: int, gateway: Process) -> Sample:
    sample: dict[str, float] = {}
    for streams in STREAMS:
        alone, before = trio.run(measure, plan, streams, upstream, port, gateway.popen.pid)
        sample |= {
            f"added {streams}": (before.middles[0] - alone.middles[0]) * 1e3,
            f"late {streams}": (before.lates[0] - alone.lates[0]) * 1e3,
            f"rate {streams}": before.rates[0],
        }
    return sample


def figures(streams: int) -> tuple[Figure, ...]:
    name = f"{streams} streams" if streams > 1 else "1 stream"
    return (
        Figure(f"added {streams}", f"{name}, added to a delta's way at p50", "ms"),
        Figure(f"late {streams}", f"{name}, at p99", "ms"),
        Figure(f"rate {streams}", f"{name}, flat out", "deltas/s"),
    )


QUESTION = Question(
    name="streaming",
    text="how much later a delta arrives, and how many pass in a second",
    figures=tuple(figure for streams in STREAMS for figure in figures(streams)),
    prepare=prepare,
    method="Times at a steady pace that keeps no part busy, without those of the upstream alone. A client of Trio.",
)


if __name__ == "__main__":
    main()
