"""Letting clients in: fast while the server serves, and still while it stops.

Theory: a listening socket is asked without the scheduler as long as somebody waits there. When the order to stop comes,
those who are in may finish, and whoever comes meanwhile is let in too, for the application has an answer for him; the
sockets are closed when the last of those who were in before has gone, and the application no longer holds them open.
Where only this worker stops, it closes them at once: who comes is for its siblings, or waits for its successor.
Clients' sockets are of ``plain_socket``.
Editing rule: nothing here knows HTTP, and whatever replaces a wait keeps its bound.
"""

from __future__ import annotations

import errno
import logging
import multiprocessing
import os
import resource
import socket
import ssl
from functools import partial
from types import SimpleNamespace
from typing import Any, TypeAlias

import attrs
import hypercorn.trio.run
import trio
from hypercorn.config import Config

from .host_worker import LATE, Worker
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
# Of the file descriptors, so that clients who only stay cannot take those that running turns and the state need.
CLIENTS_SHARE = 0.75
OUT_OF_RESOURCES = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}
NOT_LISTENING = {errno.EBADF, errno.EINVAL, errno.ENOTSOCK}

# Called with a stream; its arguments so far are those of a TCPServer: application, configuration, worker, state.
Handler: TypeAlias = partial[Any]


@attrs.frozen
class TlsListener:
    """In place of ``trio.SSLListener``, which lets clients in by itself, one for each pass of the scheduler."""

    listener: trio.SocketListener
    context: ssl.SSLContext
    https_compatible: bool = False

    def wrap(self, client: socket.socket) -> trio.SSLStream[trio.SocketStream]:
        stream = trio.SocketStream(trio.socket.from_stdlib_socket(client))
        return trio.SSLStream(stream, self.context, server_side=True, https_compatible=self.https_compatible)


Listener: TypeAlias = trio.SocketListener | TlsListener


async def serve_listeners(handler: Handler, listeners: list[Listener], *, handler_nursery: trio.Nursery) -> None:
    """In place of ``trio.serve_listeners``, where one client comes in with each pass of the scheduler, and nobody
    during a stop, so that no balancer that connects to ask would learn why."""
    handler_nursery.start_soon(_serve, handler, listeners)
    await trio.sleep_forever()


async def _serve(handler: Handler, listeners: list[Listener]) -> None:
    worker: Worker = handler.args[2]
    with worker.serving:
        await _serve_clients(handler, listeners, worker)


async def _serve_clients(handler: Handler, listeners: list[Listener], worker: Worker) -> None:
    async with trio.open_nursery() as late:
        async with trio.open_nursery() as clients:
            doors = [Door(handler, listener, clients) for listener in listeners]
            for door in doors:
                late.start_soon(door.let_clients_in)
            await worker.terminated.wait()
            for door in doors:
                door.clients = late
                if worker.terminate.is_own:  # others will serve those who come
                    door.open.cancel()
        worker.left.set()
        await worker.released.wait()
        for door in doors:
            door.open.cancel()
        worker.terminated.set_nowait()  # once more, for those who came late and have not asked
        late.cancel_scope.deadline = trio.current_time() + LATE


@attrs.define(eq=False)
class Door:
    """A listening socket.

    Attributes:
        clients: where those run who come in.
        open: cancelled, it is closed.
        is_full: whoever comes has to wait, which has been told.
    """

    handler: Handler
    listener: Listener
    clients: trio.Nursery
    open: trio.CancelScope = attrs.field(factory=trio.CancelScope)
    is_full: bool = False

    async def let_clients_in(self) -> None:
        config: Config = self.handler.args[1]
        listener = self.listener.listener if isinstance(self.listener, TlsListener) else self.listener
        with self.open:
            async with listener:
                with socket.socket(fileno=os.dup(listener.socket.fileno())) as sock:
                    sock.setblocking(False)
                    # Again, for a worker imports its application after it has begun to listen.
                    sock.listen(config.backlog)
                    try:
                        await self._accept(sock, shared=config.workers > 1)
                    finally:
                        # To close it resets those who wait at it, and who may have asked already. Of a worker it stays
                        # open in the master, and the worker that follows may serve them.
                        if self.open.cancel_called and multiprocessing.parent_process() is None:
                            self._take_in(sock, config.backlog)

    async def _accept(self, sock: socket.socket, *, shared: bool) -> None:
        batch = SHARED_ACCEPT_BATCH if shared else ACCEPT_BATCH
        while True:
            await trio.lowlevel.wait_readable(sock)
            if shared:
                await trio.sleep(_courtesy(len(self.clients.child_tasks)))
            if not self._take_in(sock, batch):
                await trio.sleep(ACCEPT_PAUSE)

    def _take_in(self, sock: socket.socket, batch: int) -> bool:
        """Accept those who wait, up to a batch. False when there is no room for more."""
        for _ in range(batch):
            if not _has_room(sock):
                self._tell_full("too few file descriptors are left")
                return False
            try:
                client, _address = sock.accept()
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno in NOT_LISTENING:
                    raise
                if error.errno in OUT_OF_RESOURCES:
                    self._tell_full(error.strerror)
                    return False
                continue  # accept(2): Linux reports here what has gone wrong with the new connection
            self.clients.start_soon(self._serve_client, client)
        self.is_full = False
        return True

    def _tell_full(self, reason: str | None) -> None:
        if not self.is_full:
            logger.error("Cannot accept a connection: %s; trying again every %s s", reason, ACCEPT_PAUSE)
        self.is_full = True

    async def _serve_client(self, client: socket.socket) -> None:
        stream = self.listener.wrap(client) if isinstance(self.listener, TlsListener) else PlainSocket(client)
        try:
            await self.handler(stream)
        finally:
            await trio.aclose_forcefully(stream)


def _has_room(sock: socket.socket) -> bool:
    """Whether clients may have one more file descriptor: each new one is the lowest that is free."""
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        lowest_free = os.dup(sock.fileno())
    except OSError:
        return False
    os.close(lowest_free)
    return limit == resource.RLIM_INFINITY or lowest_free < limit * CLIENTS_SHARE


def _courtesy(clients: int) -> float:
    """Seconds for which a worker with so many clients lets others go first."""
    return MAX_COURTESY * clients / (clients + HALF_COURTESY_AT)


def mend_accept() -> None:
    """Let Hypercorn's worker, and nobody else, find ours in ``trio``."""
    ours = {"serve_listeners": serve_listeners, "SSLListener": TlsListener}
    patched: Any = SimpleNamespace(**{**vars(trio), **ours})
    hypercorn.trio.run.trio = patched  # type: ignore[attr-defined]  # that is the mend
