"""A model server that costs next to nothing: fixed bytes from one epoll loop. A script of the standard library.

Theory: an upstream's requests differ in little, so what a head asks for is looked up by the head's bytes. The path says
how to answer:

    /v1/...                     at once
    /delay/MS/v1/...            MS milliseconds later
    /deltas/COUNT/MS/v1/...     as an event stream of COUNT deltas, one every MS milliseconds, each a write of its own

A request with ``"stream": true`` gets an event stream wherever it asks; without a pace all of it in one write.
"""

from __future__ import annotations

import heapq
import json
import re
import select
import socket
import time
from collections.abc import Iterator
from itertools import count

LISTEN_BACKLOG = 4096
MAX_READ = 262_144
MAX_HEADS = 10_000
LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
DELAY = re.compile(rb"/delay/(\d+)/")
DELTAS = re.compile(rb"/deltas/(\d+)/(\d+)/")
STREAM = re.compile(rb'"stream": ?true')
FEW = 8  # deltas of a stream without a pace

TEXT = (
    "The wind comes over the sea and brings its salt to the land. It lifts the water into waves, and the waves carry "
    "its strength a long way, to shores where no wind blows. Sailors have always watched both: the colour of the water "
    "tells of gusts before they arrive, and the birds turn towards the coast when a storm is near. At night it calms."
)
USAGE = {"prompt_tokens": 20, "completion_tokens": 80, "total_tokens": 100}
COMMON = {"id": "chatcmpl-123456789", "created": 1_700_000_000, "model": "upstream-model"}


def completion() -> bytes:
    """A whole answer of some 700 bytes."""
    message = {"role": "assistant", "content": TEXT}
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}
    body = json.dumps({**COMMON, "object": "chat.completion", "choices": [choice], "usage": USAGE}).encode()
    head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


def chunk(delta: dict[str, str], finish_reason: str | None = None, **more: object) -> bytes:
    """One event of a stream, framed for the wire."""
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
    return framed(json.dumps({**COMMON, "object": "chat.completion.chunk", "choices": [choice], **more}).encode())


def framed(data: bytes) -> bytes:
    event = b"data: %b\n\n" % data
    return b"%x\r\n%b\r\n" % (len(event), event)


ANSWER = completion()
STREAM_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
STREAM_START = STREAM_HEAD + chunk({"role": "assistant", "content": ""})
DELTA = chunk({"content": " waves"})
STREAM_END = chunk({}, "stop", usage=USAGE) + framed(b"[DONE]") + b"0\r\n\r\n"


class Plan:
    """What a head asks for: bytes of body to come, and how to answer."""

    __slots__ = ("deltas", "length", "pause")

    def __init__(self, head: bytes) -> None:
        length, delay, deltas = LENGTH.search(head), DELAY.search(head), DELTAS.search(head)
        self.length = int(length[1]) if length else 0
        self.deltas = int(deltas[1]) if deltas else 0
        self.pause = (int(delay[1]) if delay else int(deltas[2]) if deltas else 0) / 1000


class Client:
    """One connection, and what came of its next request."""

    __slots__ = ("rest", "sock")

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.rest = b""


class Answer:
    """An answer that takes its time: its writes, *pause* seconds apart."""

    __slots__ = ("pause", "sock", "steps", "unsent")

    def __init__(self, sock: socket.socket, steps: Iterator[bytes], pause: float) -> None:
        self.sock = sock
        self.steps = steps
        self.pause = pause
        self.unsent = b""

    def write(self) -> bool:
        """Do the next write, or what it left; False where there is none."""
        piece = self.unsent or next(self.steps, b"")
        if not piece or self.sock.fileno() < 0:
            return False
        try:
            self.unsent = piece[self.sock.send(piece) :]
        except BlockingIOError:
            self.unsent = piece
        except OSError:
            return False
        return True


class Upstream:
    """The server."""

    def __init__(self, port: int) -> None:
        self.listener = socket.create_server(("127.0.0.1", port), backlog=LISTEN_BACKLOG)
        self.listener.setblocking(False)
        self.epoll = select.epoll()
        self.epoll.register(self.listener.fileno(), select.EPOLLIN)
        self.clients: dict[int, Client] = {}
        self.plans: dict[bytes, Plan] = {}
        self.tie = count()
        self.timers: list[tuple[float, int, Answer]] = []  # (when its next write is due, tie, answer)

    def serve(self) -> None:
        listening = self.listener.fileno()
        while True:
            for fd, _ in self.epoll.poll(self._run_timers()):
                if fd == listening:
                    self._accept()
                else:
                    self._read(fd)

    def _run_timers(self) -> float:
        """Write what is due, and give the seconds until the next; -1 where nothing is."""
        while self.timers:
            now = time.monotonic()
            due, _, answer = self.timers[0]
            if due > now:
                return due - now
            heapq.heappop(self.timers)
            if answer.write():
                self._schedule(due + answer.pause, answer)
        return -1.0

    def _schedule(self, due: float, answer: Answer) -> None:
        heapq.heappush(self.timers, (due, next(self.tie), answer))

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self.listener.accept()
            except BlockingIOError:
                return
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.clients[sock.fileno()] = Client(sock)
            self.epoll.register(sock.fileno(), select.EPOLLIN)

    def _read(self, fd: int) -> None:
        client = self.clients[fd]
        try:
            data = client.sock.recv(MAX_READ)
        except OSError:
            data = b""
        if not data:
            del self.clients[fd]
            client.sock.close()
            return
        if client.rest:
            data = client.rest + data
        end = data.find(b"\r\n\r\n") + 4
        plan = self._plan(data[:end]) if end > 3 else None
        if plan is None or len(data) < end + plan.length:
            client.rest = data
            return
        client.rest = b""
        self._answer(client, plan, data)

    def _plan(self, head: bytes) -> Plan:
        plan = self.plans.get(head)
        if plan is None:
            if len(self.plans) > MAX_HEADS:
                self.plans.clear()
            plan = self.plans[head] = Plan(head)
        return plan

    def _answer(self, client: Client, plan: Plan, request: bytes) -> None:
        streamed = plan.deltas or STREAM.search(request)
        if plan.pause == 0 and not plan.deltas:
            client.sock.send(STREAM_START + DELTA * FEW + STREAM_END if streamed else ANSWER)
            return
        steps = stream(plan.deltas) if streamed else iter([ANSWER])
        first = time.monotonic() + (0.0 if streamed else plan.pause)
        self._schedule(first, Answer(client.sock, steps, plan.pause))


def stream(deltas: int) -> Iterator[bytes]:
    """The writes of one event stream."""
    yield STREAM_START
    for _ in range(deltas):
        yield DELTA
    yield STREAM_END


if __name__ == "__main__":
    upstream = Upstream(0)
    print(f"Serving http://127.0.0.1:{upstream.listener.getsockname()[1]}", flush=True)
    upstream.serve()
