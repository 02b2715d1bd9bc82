"""One worker of Hypercorn's: what its connections share, how it learns that it has to stop, and how long that takes.

Theory: a worker stops in steps. The order comes from the master, or from its death. From then on the worker drains:
idle connections end, running turns go on, newcomers are told. When the last turn has ended, or a second order hurries
it, the rest is cut off.
Editing rule: ``Flag`` and ``Worker`` stand in for classes of Hypercorn 0.17 to 0.18; ``host.MENDS`` puts them in place.
"""

from __future__ import annotations

import multiprocessing
import signal
import threading
import time
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

import trio
from hypercorn.trio.worker_context import EventWrapper, WorkerContext

from .host_orders import Orders
from .worker_folder import worker_folder

if TYPE_CHECKING:
    from multiprocessing.synchronize import Event as MasterEvent

# Seconds between two looks at the master's order, as Hypercorn has it.
ORDER_DELAY = 0.1
# Seconds after a SIGTERM to this worker by which the master would have given its order if it had got one, too.
MASTER_TIMEOUT = 1.0
# Seconds for the last answers: of turns that are cut off, and to those who came during a stop.
LATE = 2.0


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
    """The order to stop that does not come from the master's side.

    Who sets it is the worker, which has served enough requests, has failed or got a SIGTERM of its own; or it is the
    master's death.

    Attributes:
        is_own: the worker has set it, and its master will start another.
    """

    is_own = False

    def set_nowait(self) -> None:
        super().set_nowait()
        self.is_own = multiprocessing.parent_process() is not None

    async def wait(self) -> None:
        async with trio.open_nursery() as nursery:
            if (master := multiprocessing.parent_process()) is not None:
                nursery.start_soon(self._set_when_readable, master.sentinel)
            await super().wait()
            nursery.cancel_scope.cancel()

    async def _set_when_readable(self, sentinel: int) -> None:
        await trio.lowlevel.wait_readable(sentinel)
        super().set_nowait()


class Worker(WorkerContext):
    """What the connections of one worker share. In place of ``WorkerContext``, which tells the application nothing.

    To the application a shutdown comes only when the last request has ended, which a stream does not do by itself.

    Attributes:
        left: set when all those have gone who were in before a stop.
        released: set when the application would not mind if nobody came in any more.
        serving: around all connections.
        orders: the master's, to stop; None where there is none.
    """

    def __init__(self, max_requests: int | None) -> None:
        super().__init__(max_requests)
        self.left = trio.Event()
        self.released = trio.Event()
        self.released.set()
        self.serving = trio.CancelScope()
        self.orders: Orders | None = None
        self.terminate: StopOrder = StopOrder()
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


async def wait_left() -> None:
    """Where others serve those who come: return when all have gone who were in. Where a stop is everybody's: at once.

    For the task that has waited for ``wait_draining``.
    """
    worker = _worker.get()
    if worker.terminate.is_own:
        await worker.left.wait()


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


def cut_connections(deadline: float) -> None:
    """End all connections at *deadline*, whatever they are at."""
    if worker := _worker.get(None):
        worker.serving.deadline = min(worker.serving.deadline, deadline)


async def wait_order(shutdown_event: MasterEvent, sleep: Callable[[float], Awaitable[Any]]) -> None:
    """In place of ``check_multiprocess_shutdown_event``, which does not see a second order, and lets SIGTERM kill."""
    worker = _worker.get()
    worker.orders = orders = Orders(shutdown_event, worker_folder())
    while not orders.count():
        if _sigterms and time.monotonic() > _sigterms[0] + MASTER_TIMEOUT:
            # The master has not been asked, or had given its order before this worker was there.
            worker.terminate.set_nowait()
            await trio.sleep_forever()
        await sleep(ORDER_DELAY)


async def wait_hurried() -> None:
    """Return when the master has given its order for a second time. Outside of a worker of Hypercorn's: never."""
    worker = _worker.get(None)
    if worker is not None:
        await worker.terminated.wait()
        while worker.orders is not None:
            if worker.orders.count() > 1:
                return
            await trio.sleep(ORDER_DELAY)
    await trio.sleep_forever()


def leave_master() -> None:
    """Tell the other workers that this one ends as it should."""
    worker = _worker.get(None)
    if worker is not None and worker.orders is not None:
        worker.orders.leave()


_sigterms: list[float] = []  # when they came


def take_sigterm() -> None:
    """Let the master's order decide when a worker stops, and how.

    Hypercorn's workers die at once of a SIGTERM: when it is sent to the whole process group, and when the master, as
    soon as the first worker has stopped, sends it to those that are still answering.
    """
    if multiprocessing.parent_process() is not None and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, lambda *_: _sigterms.append(time.monotonic()))
