"""The agent's memory: what was said in each session, found again when its next turn begins, stored when it ends.

Theory: a turn has its session for itself. What it finds is worked out in a thread and is a value; nothing changes,
in memory or on disk, until ``record`` stores the turn as a whole. A turn that fails or is cancelled was never there.
Editing rule: what counts as new is for ``reconcile``, what fits for ``budget``, bytes for ``transcript``; here is only
who waits for whom.
"""

from __future__ import annotations

import logging
import math
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import trio

from ..errors import StateError
from ..messages import Message
from ..state import Disk, Ticket
from .files import Files, SessionLock, Standing, file_stem
from .leases import DISK_TIMEOUT, Leases, in_thread
from .plan import Plan, make_plan
from .shelf import Conversation, Shelf
from .transcript import Transcript, TurnLines
from .values import Said

MAX_THREADS = 8  # turns that read or write at the same moment
MAX_SWEEP_DELAY = 3600.0
SWEEP_SHARE = 16
PROBE_INTERVAL = 1.0  # however often /ready is asked
DISK = Disk()

log = logging.getLogger("picoclaw_trio.memory")


class Recollection:
    """What one turn remembers, and the place where it will be remembered.

    Attributes:
        messages: what goes to the model, in order: the history that is kept and fits, then what is new.
        summary: of what was left out earlier; None if there is none.
        left_out: what no longer goes to the model, from this turn on, and is in no summary yet.
    """

    def __init__(self, memory: Memory, session: str, plan: Plan, standing: Standing, lock: SessionLock) -> None:
        self.messages = plan.messages
        self.summary = plan.summary
        self.left_out = plan.left_out
        self._memory, self._session = memory, session
        self._plan, self._standing, self._lock = plan, standing, lock
        self._is_recorded = False

    async def record(self, added: Sequence[Said], *, summary: str | None = None) -> None:
        """Store the turn; it is on disk when this returns. Once for each turn.

        Args:
            added: what the turn added to ``messages``: replies and results, in order. The request's own new messages
                are stored before them without being told again.
            summary: of all that was left out, ``left_out`` included; None: the one before stands, if there was one.

        Raises:
            StateError: it could not be stored; on disk nothing has changed.
        Cancellation: before anything is written, or not at all.
        """
        assert not self._is_recorded
        await trio.lowlevel.checkpoint_if_cancelled()
        self._is_recorded = True
        turn = self._plan.turn_lines(added, summary, datetime.now(UTC).isoformat(timespec="seconds"))
        await self._memory.store(self._session, turn, self._plan.stored, self._standing, self._lock)


class Memory:
    """The memory in one folder. ``open_memory`` makes one."""

    def __init__(self, folder: Path, disk: Disk, max_sessions: int, session_ttl: float | None) -> None:
        self._files = Files(folder, disk)
        self._shelf = Shelf(self._files)
        self._threads = trio.CapacityLimiter(MAX_THREADS)
        self._leases = Leases(self._files, self._threads)
        self._max_sessions, self._session_ttl = max_sessions, session_ttl
        self._count = self._unseen = 0
        self._sweep_at = math.inf
        self._is_sweeping = self._is_in_trouble = False
        self._probe_at = -math.inf
        self._found: str | None = None  # by the last probe

    async def open(self) -> None:
        await in_thread(self._files.open, self._threads)
        await in_thread(self._shelf.tidy, self._threads)
        await self._sweep()

    @asynccontextmanager
    async def recall(
        self, session: str, said: Sequence[Message], *, window: int, wait: float, only_adds: bool = False
    ) -> AsyncIterator[Recollection]:
        """Have *session* for one turn, and remember what was said in it.

        Args:
            said: the request's messages; those of the system are passed over.
            window: tokens that may go to the model; an estimate decides.
            wait: seconds to wait for another turn of the session to end.
            only_adds: nothing of it was said before, however much it is like that.

        Raises:
            SessionBusyError: it did not.
            StateError: the session's transcript cannot be read, or not be locked.
        Cancellation: the session is free again; what was not recorded has not happened.
        """
        async with AsyncExitStack() as stack:
            with self._trouble_told():
                lock = await stack.enter_async_context(self._leases.hold(session, wait))
                plan, standing = await in_thread(partial(self._plan, session, said, window, only_adds), self._threads)
            yield Recollection(self, session, plan, standing, lock)
        await self._sweep_if_due()

    async def check_writable(self) -> None:
        """Find out whether a session could have its turn now; at most once a second.

        Raises:
            StateError: none could, now or less than a second ago.
        """
        if trio.current_time() >= self._probe_at:
            self._probe_at = trio.current_time() + PROBE_INTERVAL
            try:
                with self._trouble_told():
                    await in_thread(self._files.probe, self._threads)
                self._found = None
            except StateError as exc:
                self._found = exc.reason
        if self._found is not None:
            raise StateError(self._found)

    async def sessions(self) -> tuple[Conversation, ...]:
        """All conversations, the least recently used first."""
        return await in_thread(self._shelf.conversations, self._threads)

    async def show(self, session: str) -> tuple[Said, ...]:
        """What is stored of *session*; nothing, if it is not known."""
        return tuple((await self._read(session)).entries)

    async def complaint(self, session: str) -> str | None:
        """What is wrong with the file of *session*, which its next turn keeps aside; None if nothing is."""
        transcript = await self._read(session)
        return transcript.complaint and f"{self._files.path(file_stem(session))} {transcript.complaint}"

    async def lines(self, session: str) -> tuple[bytes, ...]:
        """The same as it stands on disk: a JSON object for each message."""
        return tuple((await self._read(session)).lines)

    async def forget(self, session: str, *, wait: float = 5.0) -> bool:
        """Forget *session*, when its running turn has ended. False if there was nothing.

        Raises:
            SessionBusyError: it did not end in *wait* seconds.
            StateError: the file could not be removed.
        """
        async with self._leases.hold(session, wait):
            return await in_thread(partial(self._files.remove, file_stem(session)), self._threads)

    async def store(self, session: str, turn: TurnLines, stored: int, standing: Standing, lock: SessionLock) -> None:
        """Write a turn. For ``Recollection`` alone."""
        ticket = Ticket()

        def write() -> bool:
            if not lock.share():
                raise StateError("the disk took too long")
            try:
                return self._files.record(session, turn, stored, standing, ticket, self._session_ttl)
            finally:
                lock.release()  # a thread that was given up keeps the session until it has taken everything back

        with self._trouble_told():
            with trio.CancelScope(shield=True, deadline=trio.current_time() + DISK_TIMEOUT):
                is_new = await trio.to_thread.run_sync(write, abandon_on_cancel=True, limiter=self._threads)
                self._count += is_new
                self._unseen += is_new
                self._is_in_trouble = False
                return
            if ticket.give_up():
                raise StateError(f"the disk took longer than {DISK_TIMEOUT:g} s")

    @contextmanager
    def _trouble_told(self) -> Iterator[None]:
        """Tell in the log why a conversation cannot be read or kept: once, until one is kept again."""
        try:
            yield
        except StateError as exc:
            if not self._is_in_trouble:
                log.warning("a conversation cannot be read or kept: %s", exc.reason)
            self._is_in_trouble = True
            raise

    async def _read(self, session: str) -> Transcript:
        transcript, _ = await in_thread(partial(self._files.read, session, self._session_ttl), self._threads)
        return transcript

    def _plan(self, session: str, said: Sequence[Message], window: int, only_adds: bool) -> tuple[Plan, Standing]:
        transcript, standing = self._files.read(session, self._session_ttl)
        return make_plan(transcript, said, window, only_adds=only_adds), standing

    async def _sweep_if_due(self) -> None:
        is_crowded = self._count > self._max_sessions or self._unseen > self._max_sessions // SWEEP_SHARE
        if not self._is_sweeping and (is_crowded or trio.current_time() > self._sweep_at):
            await self._sweep()

    async def _sweep(self) -> None:
        """Forget what is too old or too much. Done by turns, in their own time, since it costs a look at each file."""
        self._is_sweeping = True
        try:
            self._count = await in_thread(
                partial(self._shelf.sweep, self._max_sessions, self._session_ttl), self._threads
            )
            self._unseen = 0
            delay = MAX_SWEEP_DELAY if self._session_ttl is None else self._session_ttl / SWEEP_SHARE
            self._sweep_at = trio.current_time() + min(delay, MAX_SWEEP_DELAY)
        except StateError as exc:
            log.warning("conversations that are too old or too many could not be forgotten: %s", exc.reason)
        finally:
            self._is_sweeping = False


@asynccontextmanager
async def open_memory(
    folder: Path, *, max_sessions: int, session_ttl: float | None, disk: Disk = DISK
) -> AsyncIterator[Memory]:
    """Open the conversations that are stored in *folder*, which is created for its owner alone.

    Args:
        max_sessions: how many are kept; the least recently used go first. Those of running turns stay.
        session_ttl: seconds without a turn after which one goes; None: never.
        disk: the steps that change files.

    Raises:
        StateError: the folder cannot be used.
    """
    memory = Memory(folder, disk, max_sessions, session_ttl)
    await memory.open()
    yield memory
