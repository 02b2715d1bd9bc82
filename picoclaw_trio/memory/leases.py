"""Who may run a turn of a session: one at a time, in this process and in all others that share the folder.

Theory: within a process turns of a session stand in line, first come, first served. The first of the line then takes
the session's lock file, for which processes compete; the kernel unlocks it when a process dies. Nobody waits longer
than told, and few wait at all: a client that is told "busy" comes back by itself.
Editing rule: no thread waits here, and no lock is taken that is not given back by the same context.
"""

from __future__ import annotations

import math
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Generic, TypeVar

import attrs
import trio

from ..errors import SessionBusyError, StateError
from .files import Files, SessionLock, file_stem

MAX_WAITING = 16  # of one session in one process; the next one is told at once
# The kernel can only be asked whether a lock is free, not be waited for without a thread: so we ask, ever more rarely.
FIRST_DELAY, MAX_DELAY = 0.005, 0.1
DISK_TIMEOUT = 10.0  # a disk that needs longer for some kilobytes is as good as none

T = TypeVar("T")


@attrs.define
class Line:
    """Those of one process who have a session's turn, or want it."""

    place: trio.Semaphore = attrs.field(factory=lambda: trio.Semaphore(1))
    users: int = 0


class Leases:
    """The sessions of one folder."""

    def __init__(self, files: Files, threads: trio.CapacityLimiter) -> None:
        self._files = files
        self._threads = threads
        self._leaving = trio.CapacityLimiter(math.inf)  # one who leaves never waits for those who come
        self._lines: dict[str, Line] = {}

    @asynccontextmanager
    async def hold(self, session: str, wait: float) -> AsyncIterator[SessionLock]:
        """Have the session for oneself, from entering to leaving.

        Args:
            wait: seconds to wait for it at most.

        Raises:
            SessionBusyError: others had it for that long, or too many wait already.
            StateError: the lock file cannot be used.
        Cancellation: leaves nothing; one who waits leaves the line.
        """
        deadline = trio.current_time() + wait
        stem = file_stem(session)
        line = self._lines.setdefault(stem, Line())
        if line.users > MAX_WAITING:
            raise SessionBusyError
        line.users += 1
        try:
            await _take_place(line, deadline)
            try:
                lock = await self._take_lock(stem, deadline)
                try:
                    yield lock
                finally:
                    await self._release(lock)
            finally:
                line.place.release()
        finally:
            line.users -= 1
            if not line.users:
                del self._lines[stem]

    async def _take_lock(self, stem: str, deadline: float) -> SessionLock:
        delay = FIRST_DELAY
        while True:
            if lock := await in_thread(lambda: self._files.lock(stem), self._threads, undo=_let_go):
                return lock
            left = deadline - trio.current_time()
            if left <= 0:
                raise SessionBusyError
            await trio.sleep(min(delay, left))
            delay = min(2 * delay, MAX_DELAY)

    async def _release(self, lock: SessionLock) -> None:
        with trio.CancelScope(shield=True, deadline=trio.current_time() + DISK_TIMEOUT):
            await trio.to_thread.run_sync(lock.release, abandon_on_cancel=True, limiter=self._leaving)


async def _take_place(line: Line, deadline: float) -> None:
    try:
        line.place.acquire_nowait()
    except trio.WouldBlock:
        with trio.CancelScope(deadline=deadline) as scope:
            await line.place.acquire()
        if scope.cancelled_caught:
            raise SessionBusyError from None


class _Handover(Generic[T]):
    """A thread's result: taken by the task that waits for it, or undone by the thread if nobody waits any more."""

    def __init__(self, work: Callable[[], T], undo: Callable[[T], None]) -> None:
        self._work, self._undo = work, undo
        self._guard = threading.Lock()
        self._is_given_up = False
        self._results: list[T] = []

    def run(self) -> T:
        result = self._work()
        with self._guard:
            self._results.append(result)
            is_wanted = not self._is_given_up
        if not is_wanted:
            self._undo(result)
        return result

    def give_up(self) -> None:
        with self._guard:
            self._is_given_up = True
            results = list(self._results)
        for result in results:
            self._undo(result)


def nothing(result: object) -> None:
    """Undo what has only read something."""


async def in_thread(work: Callable[[], T], threads: trio.CapacityLimiter, *, undo: Callable[[T], None] = nothing) -> T:
    """Do *work* in a thread, and for no longer than a disk may take.

    Args:
        undo: is given the result if nobody wants it any more.

    Raises:
        StateError: it took too long.
    Cancellation: does not wait for the thread, which undoes what it did.
    """
    handover = _Handover(work, undo)
    try:
        with trio.move_on_after(DISK_TIMEOUT):
            return await trio.to_thread.run_sync(handover.run, abandon_on_cancel=True, limiter=threads)
    except BaseException:
        handover.give_up()
        raise
    handover.give_up()
    raise StateError(f"the disk took longer than {DISK_TIMEOUT:g} s")


def _let_go(lock: SessionLock | None) -> None:
    if lock is not None:
        lock.release()
