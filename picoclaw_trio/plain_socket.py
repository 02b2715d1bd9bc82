"""A socket without TLS, with as much of a Trio stream as we use, for clients and for upstreams.

Theory: ``trio.SocketStream`` pays for each call with a system call that fails or a turn of the scheduler. Here bytes
are written at once as far as they fit, and are read when the kernel has told of them; only waiting is a checkpoint.
Towards upstreams alone that saves 4 % of a request's processor time.
Editing rule: one task reads and one writes; whoever may write without ever waiting sees to checkpoints himself.
"""

from __future__ import annotations

import select
import socket
import sys
from collections.abc import Awaitable, Callable
from contextlib import suppress

import trio

# As Trio has it: the kernel takes no more than the network does, and so a slow reader is felt at once.
TCP_NOTSENT_LOWAT = 25 if sys.platform == "linux" else 0x201
MAX_NOT_SENT = 2**14


class PlainSocket(trio.abc.AsyncResource):
    """A connected socket of the standard library, which this takes over; see above."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        with suppress(OSError):  # a Unix socket has none of these, and nor has one that is gone already
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.setsockopt(socket.IPPROTO_TCP, TCP_NOTSENT_LOWAT, MAX_NOT_SENT)
        self.socket = sock

    def send_nowait(self, data: bytes | memoryview) -> int:
        """Write what fits into the kernel's buffer, and say how much that was."""
        try:
            return self.socket.send(data)
        except BlockingIOError:
            return 0
        except OSError as error:
            raise trio.BrokenResourceError from error

    async def send_all(self, data: bytes | memoryview) -> None:
        rest = memoryview(data)
        while rest:
            await self._wait(trio.lowlevel.wait_writable)
            rest = rest[self.send_nowait(rest) :]

    async def receive_some(self, max_bytes: int) -> bytes:
        while True:
            await self._wait(trio.lowlevel.wait_readable)
            try:
                return self.socket.recv(max_bytes)
            except BlockingIOError:
                continue
            except OSError as error:
                raise trio.BrokenResourceError from error

    async def _wait(self, wait: Callable[[socket.socket], Awaitable[None]]) -> None:
        if self.socket.fileno() < 0:
            raise trio.ClosedResourceError
        await wait(self.socket)

    async def send_eof(self) -> None:
        try:
            self.socket.shutdown(socket.SHUT_WR)
        except OSError as error:
            raise trio.BrokenResourceError from error

    def is_readable(self) -> bool:
        """Whether something has come in that nobody has read: bytes, or the end."""
        poll = select.poll()
        poll.register(self.socket, select.POLLIN)
        return bool(poll.poll(0))

    def close(self) -> None:
        """Close at once; who waits gets a ``trio.ClosedResourceError``."""
        if self.socket.fileno() >= 0:
            trio.lowlevel.notify_closing(self.socket)
            self.socket.close()

    async def aclose(self) -> None:
        self.close()
        await trio.lowlevel.checkpoint()
