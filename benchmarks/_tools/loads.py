"""Load on a server: our generator, or wrk, as a process.

Theory: what is asked is fixed here, so that every server answers the same; an answer that is not 200 ends the
measurement, since a refusal is quick.
"""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import attrs

from .values import BenchmarkError

SCRIPT = Path(__file__).with_name("generator.py")
TIMEOUT = 180.0
TOKEN = "sk-benchmark-token"
MODEL = "m1"
MESSAGES = [
    {"role": "system", "content": "You are a helpful assistant that answers briefly."},
    {"role": "user", "content": "Hello there, how are you today? Please tell me something about the sea and the wind."},
]


@attrs.frozen
class Load:
    """What a generator saw. Times in seconds.

    Attributes:
        counted: answers, or deltas where they were streamed, between *since* and *until* on the monotonic clock.
        total: those of the warm-up too.
        p50, p99: from the request's last byte sent to the answer's last byte read; in a burst, from the connecting on.
        cpu_seconds: the generator's own.
    """

    counted: int
    total: int
    since: float
    until: float
    p50: float
    p99: float
    cpu_seconds: float

    @property
    def rate(self) -> float:
        return self.counted / (self.until - self.since)


@attrs.frozen
class Steady:
    """Clients that ask again as soon as they are answered.

    Attributes:
        warm_up: seconds before the answers are counted.
        requests: sent in turn; None for the plain one.
        spread: seconds over which the clients begin.
    """

    connections: int
    seconds: float
    warm_up: float = 0.0
    requests: Sequence[str] | None = None
    spread: float = 0.0

    @property
    def is_plain(self) -> bool:
        return self.requests is None and self.spread == 0.0


@attrs.define
class Running:
    """A generator at work."""

    popen: subprocess.Popen[str]

    def pause(self) -> None:
        self.popen.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        self.popen.send_signal(signal.SIGCONT)

    def finish(self) -> Load:
        """Wait for its end.

        Raises:
            BenchmarkError: an answer was not 200, or none came.
        """
        output = self._output()
        saw = json.loads(output)
        if saw["failed"] or not (saw["counted"] or saw["counted_deltas"]):
            raise BenchmarkError(f"answers other than 200, by status: {saw['failed']}; counted {saw['counted']}")
        return Load(
            counted=saw["counted_deltas"] or saw["counted"],
            total=saw["deltas"] or saw["total"],
            **{name: saw[name] for name in ("since", "until", "p50", "p99", "cpu_seconds")},
        )

    def _output(self) -> str:
        output, _ = self.popen.communicate(timeout=TIMEOUT)
        if self.popen.returncode != 0:
            raise BenchmarkError(f"the load generator failed: {output[-500:]}")
        return output

    def kill(self) -> None:
        """End it, if it has not ended."""
        if self.popen.poll() is None:
            self.popen.kill()
            self.popen.wait()
        assert self.popen.stdout is not None
        self.popen.stdout.close()


@attrs.define
class RunningWrk(Running):
    """wrk at work. It has no warm-up, and counts all that it sees."""

    begun_at: float = attrs.field(factory=time.monotonic)

    def finish(self) -> Load:
        before = os.times()
        output = self._output()
        after = os.times()
        if "Non-2xx" in output:
            raise BenchmarkError(output)
        count = int(_number(r"(\d+)() requests in", output))
        return Load(
            counted=count,
            total=count,
            since=self.begun_at,
            until=time.monotonic(),
            p50=_number(r"50%\s+([\d.]+)(us|ms|s)", output),
            p99=_number(r"99%\s+([\d.]+)(us|ms|s)", output),
            cpu_seconds=sum(after[2:4]) - sum(before[2:4]),  # the children's
        )


@attrs.frozen
class Generator:
    """Makes load from these cores; *kind* is ``own`` or, for plain steady load, ``wrk``."""

    cores: Collection[int]
    kind: str = "own"

    def steady(self, port: int, load: Steady) -> Load:
        """Load on *port* from beginning to end."""
        with self.running(port, load) as running:
            return running.finish()

    @contextmanager
    def running(self, port: int, load: Steady) -> Iterator[Running]:
        """Load that is under way when the block begins, and gone when it ends."""
        if self.kind == "wrk" and load.is_plain:
            running: Running = self._start_wrk(port, load)
        else:
            orders = {"mode": "steady", "port": port, **attrs.asdict(load), "requests": load.requests or [request()]}
            running = self._start(orders)
        try:
            yield running
        finally:
            running.kill()

    def burst(self, port: int, connections: int) -> Load:
        """Let that many new connections come at once, each with one request."""
        running = self._start({"mode": "burst", "port": port, "connections": connections, "requests": [request()]})
        try:
            return running.finish()
        finally:
            running.kill()

    def _start(self, orders: dict[str, Any]) -> Running:
        popen = self._popen([sys.executable, str(SCRIPT)], subprocess.PIPE)
        assert popen.stdin is not None
        assert popen.stdout is not None
        popen.stdin.write(json.dumps(orders))
        popen.stdin.close()
        popen.stdin = None
        if popen.stdout.readline() != "begun\n":
            popen.kill()
            raise BenchmarkError("the load generator did not begin")
        return Running(popen)

    def _start_wrk(self, port: int, load: Steady) -> Running:
        head, _, body = request().partition("\r\n\r\n")
        lines = [f"wrk.method = 'POST'; wrk.body = [[{body}]]"]
        for header in head.split("\r\n")[2:-1]:
            name, _, value = header.partition(": ")
            lines.append(f"wrk.headers['{name}'] = '{value}'")
        script = Path(tempfile.gettempdir(), f"picoclaw-benchmarks-{os.getpid()}.lua")
        script.write_text("\n".join(lines))
        options = ["-t1", f"-c{load.connections}", f"-d{max(1, round(load.seconds + load.warm_up))}s", "--latency"]
        address = f"http://127.0.0.1:{port}/v1/chat/completions"
        return RunningWrk(self._popen(["wrk", *options, "--timeout", "30s", "-s", str(script), address], None))

    def _popen(self, command: Sequence[str], stdin: int | None) -> subprocess.Popen[str]:
        cores = self.cores
        return subprocess.Popen(
            command,
            stdin=stdin,
            stdout=subprocess.PIPE,
            text=True,
            preexec_fn=lambda: os.sched_setaffinity(0, cores),
        )


def request(path: str = "/v1/chat/completions", **fields: object) -> str:
    """A whole HTTP request with one short conversation, some 500 bytes, spelled as OpenAI's SDKs do."""
    body = json.dumps({"model": MODEL, "messages": MESSAGES, "temperature": 0.7, **fields}, separators=(",", ":"))
    return (
        f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {TOKEN}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n{body}"
    )


def ask_once(port: int, text: str, timeout: float) -> int:
    """The status of the answer to the request *text*.

    Raises:
        OSError: nobody listens, or nothing came for so long.
    """
    with socket.create_connection(("127.0.0.1", port), timeout) as sock:
        sock.sendall(text.encode())
        status = sock.recv(65_536)[9:12]
    return int(status) if status.isdigit() else 0


def _number(pattern: str, text: str) -> float:
    """What *pattern* finds, in seconds where it has a unit of time."""
    match = re.search(pattern, text)
    if match is None:
        raise BenchmarkError(f"wrk said something else than expected: {text}")
    return float(match[1]) * {"us": 1e-6, "ms": 1e-3}.get(match[2], 1.0)
