"""What Hypercorn and Quart-Trio get wrong for a gateway, mended in place before the server starts.

Theory: ``mend()`` runs when a worker imports the application, which is before its event loop starts; it puts our
classes where Hypercorn looks for its own. ``MENDS`` lists them; what is wrong stands with the class that mends it.
Some mends replace no class of Hypercorn's: ``host_worker.take_sigterm`` and ``wait_order``, ``_mend_headers`` and,
for what it takes from Trio, ``host_accept.mend_accept``. One is of Trio itself: ``_mend_passes``.
What is not mended: Hypercorn's master exits with 0 after a worker has failed, even one that could not start, so a
supervisor must restart it always.
Editing rule: nothing here knows about models or messages, and nothing else patches a library.
"""

from __future__ import annotations

import gc
import importlib
import importlib.metadata
import inspect
import logging
import resource
import sys
import time
import types
from typing import Any

import hypercorn.trio.run
from hypercorn.config import Config

from . import host_worker

logger = logging.getLogger(__name__)

# The versions whose sources were read. Any other is looked at before anything is replaced.
KNOWN_HYPERCORN = ("0.17.", "0.18.")
# (module, what it is replaced in, our replacement, the parts of the original that this overrides or uses)
MENDS = (
    ("hypercorn.trio.run", "TCPServer", "host_connection.Connection", "run protocol_send _read_data _close"),
    ("hypercorn.trio.run", "WorkerContext", "host_worker.Worker", "mark_request"),
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
# Sockets that one pass of the scheduler takes up.
MAX_EVENTS = 128


def mend(*, write_timeout: float = 30.0) -> None:
    """Mend what is wrong in the installed Hypercorn. Does nothing more the second time but set the timeout.

    Args:
        write_timeout: seconds that a client may take to accept 64 KiB of an answer before it is cut off.
    """
    host_worker.take_sigterm()
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
    hypercorn.trio.run.check_multiprocess_shutdown_event = host_worker.wait_order  # type: ignore[attr-defined]
    _mend_headers()
    _mend_passes()


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


def _mend_passes() -> None:
    """Let a pass of Trio's scheduler take some of the sockets that are ready, where it takes all.

    With 2,000 turns in flight a whole wave is ready at once. Each step of a turn would wait for the same step of all
    the others, and in an order that changes from pass to pass. The kernel hands out those who wait in turn.
    """
    try:
        from trio._core._io_epoll import EpollIOManager
    except ImportError:  # another system, or another Trio
        return
    parameters = list(inspect.signature(EpollIOManager.get_events).parameters)
    if parameters == ["self", "timeout"] and hasattr(EpollIOManager, "_epoll"):

        def get_events(self: Any, timeout: float) -> list[tuple[int, int]]:
            events: list[tuple[int, int]] = self._epoll.poll(timeout, MAX_EVENTS)
            return events

        EpollIOManager.get_events = get_events  # type: ignore[method-assign]  # that is the mend


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


# As in the service's unit.
MAX_FILES = 65_536


def raise_file_limit() -> None:
    """Let this process have more file descriptors, up to ``MAX_FILES`` and to what it may have.

    A turn in flight takes two, and a shell gives no more than 1,024 of its own accord.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MAX_FILES if hard == resource.RLIM_INFINITY else min(MAX_FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
