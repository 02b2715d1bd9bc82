"""What Hypercorn and Quart-Trio get wrong for a gateway, mended in place before the server starts.

Theory: ``mend()`` runs when a worker imports the application, which is before its event loop starts; it puts our
classes where Hypercorn looks for its own. ``MENDS`` lists them; what is wrong stands with the class that mends it.
What cannot be mended from inside a worker: Hypercorn's master exits with 0 after a worker has failed, even one that
could not start, so a supervisor must restart it always; and a second SIGTERM or SIGINT does not hurry it.
Editing rule: nothing here knows about models or messages, and nothing else patches a library.
"""

from __future__ import annotations

import gc
import importlib
import importlib.metadata
import inspect
import logging
import multiprocessing
import signal
import sys
import threading
import time
import types
from contextvars import ContextVar
from typing import Any

import trio
from hypercorn.config import Config
from hypercorn.trio.worker_context import EventWrapper, WorkerContext

logger = logging.getLogger(__name__)

# The versions whose sources were read. Any other is looked at before anything is replaced.
KNOWN_HYPERCORN = ("0.17.", "0.18.")
# (module, what it is replaced in, our replacement, the parts of the original that this overrides or uses)
MENDS = (
    ("hypercorn.trio.run", "TCPServer", "host_connection.Connection", "run protocol_send _read_data _close"),
    ("hypercorn.trio.run", "WorkerContext", "host.Worker", "mark_request"),
    ("hypercorn.trio.tcp_server", "TaskGroup", "host_requests.Requests", "spawn_app spawn"),
    (
        "hypercorn.protocol",
        "H11Protocol",
        "host_h11.H11",
        "handle stream_send _handle_events _send_h11_event _send_error_response _maybe_recycle _close_stream",
    ),
    (
        "hypercorn.protocol",
        "H2Protocol",
        "host_h2.H2",
        "handle stream_send _handle_events _create_stream _send_data _flush",
    ),
    ("hypercorn.protocol.h2", "StreamBuffer", "host_h2.Buffer", "push pop close"),
    ("hypercorn.protocol.h2", "HTTPStream", "host_requests.Stream", "handle app_send _send_error_response"),
)
# New defaults of Hypercorn's; its command line and configuration file still win.
DEFAULTS = {
    "backlog": 2048,
    "graceful_timeout": 32.0,  # 3 s would cut off most answers; a little above gateway.grace, for the last ones
    "include_server_header": False,
    "keep_alive_max_requests": sys.maxsize,
    "keep_alive_timeout": 75.0,  # longer than clients keep a connection, so that they are the ones who close it
}


def mend(*, write_timeout: float = 30.0) -> None:
    """Mend what is wrong in the installed Hypercorn. Does nothing more the second time but set the timeout.

    Args:
        write_timeout: seconds that a client may take to accept 64 KiB of an answer before it is cut off.
    """
    ignore_sigterm_in_workers()
    for name, value in DEFAULTS.items():
        setattr(Config, name, value)
    try:
        replacements = [_replacement(*row) for row in MENDS]
        from . import host_accept, host_connection
    except (ImportError, AttributeError, TypeError) as error:
        logger.warning("This version of Hypercorn is not known, and runs with its own faults: %s", error)
        return
    for module, name, ours in replacements:
        setattr(module, name, ours)
    host_connection.Connection.write_timeout = write_timeout
    host_accept.mend_accept()
    _mend_headers()


def _replacement(module_name: str, name: str, place: str, parts: str) -> tuple[types.ModuleType, str, type]:
    """Where to put what. Raises AttributeError or TypeError when it would not fit there."""
    room, _, our_name = place.rpartition(".")
    module = importlib.import_module(module_name)
    ours: type = getattr(importlib.import_module(f".{room}", __package__), our_name)
    original = getattr(module, name)
    if not importlib.metadata.version("hypercorn").startswith(KNOWN_HYPERCORN):
        for part in parts.split():
            theirs, mine = (inspect.signature(getattr(owner, part)) for owner in (original, ours))
            if list(theirs.parameters) != list(mine.parameters):
                raise TypeError(f"{module_name}.{name}.{part}{theirs}")
    return module, name, ours


def ignore_sigterm_in_workers() -> None:
    """Let only the master decide when a worker stops.

    Hypercorn's workers die at once of a SIGTERM: when it is sent to the whole process group, and when the master, as
    soon as the first worker has stopped, sends it to those that are still answering.
    """
    if multiprocessing.parent_process() is not None and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)


def _mend_headers() -> None:
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


class Flag(EventWrapper):
    """An event that can be set without waiting, and that also ends the idle connections when it is.

    In place of Hypercorn's, for which each connection has a task that waits.

    Attributes:
        idle: an ``IdleDeadline`` for each connection that waits for a request.
    """

    def __init__(self) -> None:
        super().__init__()
        self.idle: set[Any] = set()

    async def set(self) -> None:
        self.set_nowait()

    def set_nowait(self) -> None:
        self._event.set()
        for deadline in self.idle:
            deadline.hurry()


class StopOrder(Flag):
    """The order to stop. Also given by the master's death, for nobody else would give it then: SIGTERM is ignored."""

    async def wait(self) -> None:
        async with trio.open_nursery() as nursery:
            if (master := multiprocessing.parent_process()) is not None:
                nursery.start_soon(self._set_when_readable, master.sentinel)
            await super().wait()
            nursery.cancel_scope.cancel()

    async def _set_when_readable(self, sentinel: int) -> None:
        await trio.lowlevel.wait_readable(sentinel)
        self.set_nowait()


class Worker(WorkerContext):
    """What the connections of one worker share. In place of ``WorkerContext``, which tells the application nothing.

    To the application a shutdown comes only when the last request has ended, which a stream does not do by itself.

    Attributes:
        released: set when the application would not mind if nobody came in any more.
    """

    def __init__(self, max_requests: int | None) -> None:
        super().__init__(max_requests)
        self.released = trio.Event()
        self.released.set()
        self.terminate: Flag = StopOrder()
        self.terminated: Flag = Flag()
        _worker.set(self)


_worker: ContextVar[Worker] = ContextVar("worker")


def is_draining() -> bool:
    """Whether the server that runs the calling task has begun to stop. False outside of a mended server."""
    worker = _worker.get(None)
    return worker is not None and worker.terminated.is_set()


async def wait_draining() -> None:
    """Return when the server that runs the calling task begins to stop. Outside of a mended server: never."""
    worker = _worker.get(None)
    if worker is None:
        await trio.sleep_forever()
    else:
        await worker.terminated.wait()


def hold_open() -> None:
    """Let clients in during a stop until ``release`` is called, also when nobody is connected any more."""
    if worker := _worker.get(None):
        worker.released = trio.Event()


def release() -> None:
    """The end of ``hold_open``."""
    if worker := _worker.get(None):
        worker.released.set()


def stop_worker() -> None:
    """Ask for a graceful stop of the server that runs the calling task, as a SIGTERM to the master does."""
    _worker.get().terminate.set_nowait()


# New objects for each turn that may be in flight (it has some 150) before the garbage collector looks at them. With
# four times as many, what failed requests leave behind grew to 30 MB before it was looked for.
OBJECTS_OF_A_TURN = 50


def calm_collector(max_turns: int) -> None:
    """What is there when a server is ready stays there: the garbage collector need not look at it again and again.

    Nor need it look often at what turns in flight have made: that goes with them, since what ends in the usual ways
    leaves no cycles of references behind. Measured at 4 to 12 % of a request's processor time, and at a fifth with
    2,000 turns in flight.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(max(10_000, OBJECTS_OF_A_TURN * max_turns), 20, 100)
