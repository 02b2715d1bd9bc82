"""Load from one epoll loop. A script of the standard library: its orders come as JSON on standard input, and what it
saw goes out as JSON.

Theory: a client is a kept-alive connection that asks, waits for the whole answer, looks at its status and asks again.
Time is taken when a request is handed to the kernel and when the last byte of its answer has been read. When all are
connected, "begun" is said in a line of its own.

    {"port": 1, "requests": ["POST ..."],   # sent in turn; latin-1
     "connections": 32,
     "mode": "steady",                      # or "burst": each client is new, and asks once
     "warm_up": 0.5, "seconds": 3.0,        # what happens in the first is not counted
     "spread": 0.0}                         # seconds over which the clients ask for the first time
"""

from __future__ import annotations

import json
import math
import select
import socket
import sys
import time
from array import array
from collections import Counter, deque
from itertools import cycle
from typing import Any

MAX_READ = 262_144
DRAIN_TIMEOUT = 10.0
MORE_SECONDS = 0.5
MAX_SECONDS = 30.0
BURST_TIMEOUT = 60.0
MARK = b"data: {"  # an event of a stream
LAST_CHUNK = b"\r\n0\r\n\r\n"
clock = time.monotonic  # the same for all processes of a machine


class Client:
    """One connection and the answer that it is waiting for. *rest*: what came of it; of a stream, its last bytes."""

    __slots__ = ("asked_at", "closes", "rest", "sock", "status", "streams")

    def __init__(self) -> None:
        self.sock = socket.socket()
        self.asked_at = 0.0
        self.forget()

    def forget(self) -> None:
        self.rest = b""
        self.streams = False
        self.closes = False
        self.status = b""


class Generator:
    """All clients, and what they saw."""

    def __init__(self, orders: dict[str, Any]) -> None:
        self.address = ("127.0.0.1", orders["port"])
        self.requests = cycle([request.encode("latin-1") for request in orders["requests"]])
        self.epoll = select.epoll()
        self.clients: dict[int, Client] = {}
        self.latencies = array("d")
        self.statuses: Counter[str] = Counter()
        self.deltas = 0
        self.counted_deltas = 0
        self.waiting = 0
        self.asks_again = True
        self.counts = False

    # Steady load

    def run_steady(self, connections: int, warm_up: float, seconds: float, spread: float) -> tuple[float, float]:
        """Give the times between which answers were counted."""
        clients = [self._connect() for _ in range(connections)]
        print("begun", flush=True)
        begun_at = clock()
        due = deque((begun_at + spread * place / connections, client) for place, client in enumerate(clients))
        self._loop(begun_at + warm_up, due)
        self.counts, before, counted_from = True, self.deltas, clock()
        self._loop(counted_from + seconds, due)
        while not (self.latencies or self.deltas > before) and clock() < counted_from + MAX_SECONDS:
            self._loop(clock() + MORE_SECONDS, due)  # it is very slow
        self.counts, self.counted_deltas, counted_until = False, self.deltas - before, clock()
        self.asks_again = False
        self._loop(clock() + DRAIN_TIMEOUT, deque())
        return counted_from, counted_until

    def _loop(self, until: float, due: deque[tuple[float, Client]]) -> None:
        poll, take = self.epoll.poll, self._read
        while (now := clock()) < until and (self.asks_again or self.waiting):
            while due and due[0][0] <= now:
                self._ask(due.popleft()[1])
            for fd, _ in poll(min(until, due[0][0] if due else until) - now):
                take(fd)

    def _connect(self) -> Client:
        client = Client()
        client.sock.connect(self.address)
        client.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._register(client, select.EPOLLIN)
        return client

    def _register(self, client: Client, events: int) -> None:
        client.sock.setblocking(False)
        self.clients[client.sock.fileno()] = client
        self.epoll.register(client.sock.fileno(), events)

    def _ask(self, client: Client) -> None:
        self.waiting += 1
        client.asked_at = clock()
        client.sock.sendall(next(self.requests))

    def _read(self, fd: int) -> None:
        client = self.clients[fd]
        try:
            data = client.sock.recv(MAX_READ)
        except OSError:
            data = b""
        if data and not self._is_whole(client, data):
            return
        self.waiting -= 1
        if self.counts:
            self.latencies.append(clock() - client.asked_at)
        self.statuses[client.status.decode() if data else "lost"] += 1
        if client.closes or not data:
            client = self._replace(fd)
        client.forget()
        if self.asks_again:
            self._ask(client)

    def _replace(self, fd: int) -> Client:
        self.clients.pop(fd).sock.close()
        return self._connect()

    def _is_whole(self, client: Client, data: bytes) -> bool:
        """Whether the answer is complete with *data*."""
        before = len(client.rest)
        data = client.rest + data
        if not client.streams:
            end = data.find(b"\r\n\r\n")
            if end < 0:
                client.rest = data
                return False
            head = data[:end].lower()
            client.status = head[9:12]
            client.closes = b"\r\nconnection: close" in head
            length = content_length(head)
            if length is not None:
                client.rest = data
                return len(data) >= end + 4 + length
            client.streams, before = True, 0
        self.deltas += data.count(MARK) - data[:before].count(MARK)
        client.rest = data[-len(LAST_CHUNK) :]
        return data.endswith(LAST_CHUNK)

    # Bursts

    def run_burst(self, connections: int) -> tuple[float, float]:
        """Let all connect at once and ask as soon as they are connected; give the times of the first and the last."""
        print("begun", flush=True)
        self.counts, self.asks_again, begun_at = True, False, clock()
        for _ in range(connections):
            client = Client()
            client.sock.setblocking(False)
            client.asked_at = clock()
            client.sock.connect_ex(self.address)
            self._register(client, select.EPOLLOUT)
        self.waiting = connections
        while self.waiting and clock() < begun_at + BURST_TIMEOUT:
            for fd, events in self.epoll.poll(1.0):
                if events & select.EPOLLOUT:
                    self._ask_first(fd)
                else:
                    self._read(fd)
        self.statuses["no answer"] += self.waiting
        return begun_at, clock()

    def _ask_first(self, fd: int) -> None:
        self.clients[fd].sock.send(next(self.requests))
        self.epoll.modify(fd, select.EPOLLIN)

    def report(self, since: float, until: float) -> dict[str, Any]:
        latencies = sorted(self.latencies)
        return {
            "since": since,
            "until": until,
            "counted": len(latencies),
            "total": sum(self.statuses.values()),
            "failed": {status: n for status, n in self.statuses.items() if status != "200" and n},
            "counted_deltas": self.counted_deltas,
            "deltas": self.deltas,
            "p50": percentile(latencies, 0.50),
            "p90": percentile(latencies, 0.90),
            "p99": percentile(latencies, 0.99),
            "cpu_seconds": time.process_time(),
        }


def content_length(head: bytes) -> int | None:
    start = head.find(b"\r\ncontent-length:")
    if start < 0:
        return None
    end = head.find(b"\r\n", start + 2)
    return int(head[start + 17 : end if end > 0 else None])


def percentile(ordered: list[float], share: float) -> float:
    """Seconds within which that *share* was answered; NaN where nothing was."""
    return ordered[min(len(ordered) - 1, math.ceil(share * len(ordered)) - 1)] if ordered else math.nan


def main() -> None:
    orders = json.load(sys.stdin)
    generator = Generator(orders)
    if orders["mode"] == "burst":
        times = generator.run_burst(orders["connections"])
    else:
        times = generator.run_steady(
            orders["connections"], orders["warm_up"], orders["seconds"], orders.get("spread", 0.0)
        )
    json.dump(generator.report(*times), sys.stdout)


if __name__ == "__main__":
    main()
