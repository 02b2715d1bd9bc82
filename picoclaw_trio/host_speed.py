"""What Hypercorn's Trio worker does slowly where it meets the kernel: accepting, and the date.

Theory: a call that can be answered at once is answered without asking the scheduler, and a turn of the scheduler does
as much as it can. The other mends of speed are where the same lines are mended otherwise: the idle deadline in
``host_connection``, the inbox in ``host_requests``, one write for an answer in ``host_h11``; and clients' sockets are
of ``plain_socket``.
Editing rule: nothing here knows HTTP, and whatever replaces a wait keeps its bound.
"""

from __future__ import annotations

import errno
import logging
import os
import socket
import time
from functools import partial
from types import SimpleNamespace
from typing import Any

import hypercorn.trio.run
import trio
from hypercorn.config import Config

from .plain_socket import PlainSocket

logger = logging.getLogger(__name__)

# One scheduler pass with 256 busy connections takes some 50 ms, so 512 newcomers are in after half a second.
ACCEPT_BATCH = 64
# Several workers wait at one socket, and whoever comes first would take all who come at once: of 64 clients one of two
# workers had 62. So a worker takes few at a time, and lets those with fewer clients go first: it waits, up to this many
# seconds, and half of them when it has so many clients.
SHARED_ACCEPT_BATCH = 4
MAX_COURTESY = 0.005
HALF_COURTESY_AT = 50
ACCEPT_PAUSE = 0.1
OUT_OF_RESOURCES = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}
NOT_LISTENING = {errno.EBADF, errno.EINVAL, errno.ENOTSOCK}

# Called with a stream; its arguments so far are those of a TCPServer: application, configuration, worker, state.
Handler = partial[Any]


async def serve_listeners(handler: Handler, listeners: list[Any], *, handler_nursery: trio.Nursery) -> None:
    """In place of ``trio.serve_listeners``, which lets one client in for each pass of the scheduler."""
    async with trio.open_nursery() as nursery:
        for listener in listeners:
            if isinstance(listener, trio.SocketListener):
                nursery.start_soon(_serve_listener, handler, listener, handler_nursery)
            else:
                nursery.start_soon(partial(trio.serve_listeners, handler_nursery=handler_nursery), handler, [listener])


async def _serve_listener(handler: Handler, listener: trio.SocketListener, nursery: trio.Nursery) -> None:
    config: Config = handler.args[1]
    async with listener:
        with socket.socket(fileno=os.dup(listener.socket.fileno())) as sock:
            sock.setblocking(False)
            sock.listen(config.backlog)  # again, for a worker imports its application after it has begun to listen
            batch = ACCEPT_BATCH if config.workers <= 1 else SHARED_ACCEPT_BATCH
            while True:
                await trio.lowlevel.wait_readable(sock)
                if config.workers > 1:
                    await trio.sleep(_courtesy(len(nursery.child_tasks)))
                if not _let_in(handler, sock, nursery, batch):
                    await trio.sleep(ACCEPT_PAUSE)


def _courtesy(clients: int) -> float:
    """Seconds for which a worker with so many clients lets others go first."""
    return MAX_COURTESY * clients / (clients + HALF_COURTESY_AT)


def _let_in(handler: Handler, sock: socket.socket, nursery: trio.Nursery, batch: int) -> bool:
    """Accept those who wait, up to a batch. False when there is no room for more."""
    for _ in range(batch):
        try:
            client, _address = sock.accept()
        except BlockingIOError:
            break
        except OSError as error:
            if error.errno in NOT_LISTENING:
                raise
            if error.errno in OUT_OF_RESOURCES:
                logger.error("Cannot accept a connection: %s; trying again in %s s", error.strerror, ACCEPT_PAUSE)
                return False
            continue  # accept(2): Linux reports here what has gone wrong with the new connection
        nursery.start_soon(_serve_client, handler, client)
    return True


async def _serve_client(handler: Handler, client: socket.socket) -> None:
    stream = PlainSocket(client)
    try:
        await handler(stream)
    finally:
        await trio.aclose_forcefully(stream)


def mend_accept() -> None:
    """Let Hypercorn's worker, and nobody else, find our ``serve_listeners`` in ``trio``."""
    ours: Any = SimpleNamespace(**{**vars(trio), "serve_listeners": serve_listeners})
    hypercorn.trio.run.trio = ours  # type: ignore[attr-defined]  # that is the mend


def mend_headers() -> None:
    """Format the date once a second, where ``Config.response_headers`` does so for every answer."""
    original = Config.response_headers
    if original.__module__ != __name__:

        def response_headers(self: Any, protocol: str) -> list[tuple[bytes, bytes]]:
            key = (int(time.time()), protocol)
            if self.__dict__.get("_headers_key") != key:
                self._headers, self._headers_key = original(self, protocol), key
            headers: list[tuple[bytes, bytes]] = self._headers
            return headers

        Config.response_headers = response_headers  # type: ignore[method-assign]  # that is the mend
