"""Session state in memory and on disk: rows that are read at once and written in the background. The Trio half.

Theory: ``_rows`` is what the files say. Changes that are not on disk yet lie over it in two batches: one collects, one
is being written by a worker thread. A batch becomes durable, or fails, as a whole; if it fails it is dropped, and what
lies beneath shows again. A later change of the same key is in the other batch and stands for itself: changes are
absolute. Every look costs one stat of the journal; what is new there is read at once, so what other processes made
durable is seen. Layout: with 100,000 sessions a durable change takes 0.7 ms as one appended line and 110 ms as a
rewritten document, with ten 0.6 ms and 0.8 ms (benchmarks/bench_state.py); hence a journal, folded now and then.
Editing rule: ``_rows`` follow the files, in ``_look``; nothing here blocks the loop but reading what others appended.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path

import attrs
import trio

from .. import metrics
from ..errors import StateError
from .changes import NO_CHANGE, Batch, Change
from .disk import Disk, stamp_of
from .journal import Place
from .records import Row, Rows, Stamp, apply
from .storage import Storage

WRITE_TIMEOUT = 10.0  # a disk that needs longer for some kilobytes is as good as none
QUIET_SHARE = 16
PROBE_INTERVAL = 1.0  # however often /ready is asked

log = logging.getLogger("picoclaw_trio.state")


@attrs.frozen
class Folding:
    """When a journal is folded into the document, which costs the more, the more sessions there are.

    Under load: when it is as large as the document, so that the cost of one change stays the same however many
    sessions there are, and has at least *min_bytes*. *quiet_delay* seconds after the last change: when it has at
    least a sixteenth of the document's size, since people look at the document. And always at the start and the end.
    """

    min_bytes: int = 1 << 20
    quiet_delay: float = 1.0


Trim = Callable[[Rows, dict[str, Row | None]], None]


class StateFile:
    """Rows by key, shared with other processes. ``open_state`` makes one.

    Attributes:
        problem: why the last attempt to write failed; None if it did not.
    """

    def __init__(self, storage: Storage, rows: Rows, place: Place, trim: Trim, folding: Folding) -> None:
        self.problem: str | None = None
        self._storage = storage
        self._path = os.fspath(storage.path)
        self._rows = rows
        self._place = place
        self._trim = trim
        self._folding = folding
        self._stamp: Stamp | None = None
        self._doubtful: set[str] = set()  # keys that others changed since this process last held the lock
        self._queued = Batch()
        self._writing: Batch | None = None
        self._wake = trio.Event()
        self._is_closing = False
        self._threads = trio.CapacityLimiter(1)  # also keeps a write from overtaking one that was given up
        self._has_written = False
        self._min_fold_offset = 0
        self._probe_at = -math.inf
        self._last_trouble = ""
        self._trim(rows, self._queued.rows)

    def look_up(self, key: str) -> tuple[Row | None, Change | None]:
        """Give the row of *key* and the change that made it so: None if another process may yet have to take it back.

        Shows every change that this process made, and any other one that was durable before the call.
        """
        self._look()
        for batch in (self._queued, self._writing):
            if batch is not None and key in batch.rows:
                return batch.rows[key], Change(batch)
        return self._rows.get(key), None if key in self._doubtful else NO_CHANGE

    def rows(self) -> Rows:
        """Give a copy of all rows, as ``look_up`` shows them, the least recently used first."""
        self._look()
        rows = self._rows.copy()
        for batch in filter(None, (self._writing, self._queued)):
            for key, row in batch.rows.items():
                rows.pop(key, None)
                if row is not None:
                    rows[key] = row
        return rows

    def put(self, key: str, row: Row | None) -> Change:
        """Change the row of *key*, or drop it. It shows at once."""
        if self._is_closing:
            raise StateError("the session state has been closed")
        self._queued.rows[key] = row
        self._wake.set()
        return Change(self._queued)

    def use(self, key: str, at: int | None) -> None:
        """Note that *key* was used; if *at* says when, also for other processes and the next start."""
        if key in self._rows:
            row = self._rows.pop(key)
            self._rows[key] = row if at is None else attrs.evolve(row, used_at=at)
            if at is not None and not self._is_closing:
                self._queued.uses[key] = at
                self._wake.set()

    async def check_writable(self) -> None:
        """Try to write something and keep the outcome in ``problem``; at most once a second.

        Raises:
            StateError: it failed, now or less than a second ago.
        Cancellation: the attempt ends in the background.
        """
        if trio.current_time() >= self._probe_at:
            self._probe_at = trio.current_time() + PROBE_INTERVAL
            try:
                await self._in_thread(self._storage.probe)
                self._note(None)
            except StateError as exc:
                self._note(exc.reason)
        if self.problem is not None:
            raise StateError(self.problem)

    async def serve_writes(self) -> None:
        """Write what is queued, until ``close`` was called and all is written. For one task.

        Cancellation: none, since whoever is cancelled may still have to store something while leaving; the end of
        ``open_state``'s body ends it, and each of its steps has a deadline.
        """
        try:
            with trio.CancelScope(shield=True):
                while self._queued.has_work() or not self._is_closing:
                    if self._queued.has_work():
                        await self._write()
                    if self._is_journal_large() or not await self._has_new_work():
                        await self._fold()
                await self._fold()
                with suppress(StateError):
                    await self._in_thread(lambda: None)  # whatever was given up, or nobody waits for, has ended
        finally:
            for batch in filter(None, (self._writing, self._queued)):
                self._drop(batch, "the writer of the session state has ended")
            self._place.close()

    def close(self) -> None:
        """Take no more changes; let ``serve_writes`` write those that are pending, and return."""
        self._is_closing = True
        self._wake.set()

    def _look(self) -> bool:
        """Read what is new. False if that was not possible; then memory stands as it is."""
        if self._writing is not None and self._writing.ticket.landed:
            self._land(self._writing)
        try:
            stamp = stamp_of(os.stat(self._path))
            if stamp != self._stamp:
                self._rows, self._place = self._storage.follow(self._rows, self._place, self._doubtful)
                self._stamp = stamp
                self._last_trouble = ""
        except (OSError, StateError) as exc:
            self._tell(f"what other processes changed cannot be read: {getattr(exc, 'reason', exc)}")
            return False
        return True

    async def _write(self) -> None:
        batch = self._writing = self._queued
        self._queued = Batch()
        if not self._is_closing:
            self._wake = trio.Event()
        self._look()
        self._trim(self._rows, batch.rows)
        try:
            await self._in_thread(partial(self._storage.append, batch.records(), self._place.mark(), batch.ticket))
        except StateError as exc:
            if batch.ticket.give_up():
                metrics.note_state_write("failed")
                self._drop(batch, exc.reason)
                self._note(exc.reason)
                return
        metrics.note_state_write("ok")
        self._land(batch)

    def _land(self, batch: Batch) -> None:
        """The batch is on disk: let the files speak for it."""
        if batch is not self._writing:
            return  # somebody looked before the writer was told
        self._writing = self._stamp = None
        self._doubtful.clear()  # under the lock all of it was still there, and was synced together with the batch
        if not self._look():
            apply(self._rows, batch.records())
        self._doubtful.difference_update(key for key, row in batch.rows.items() if self._rows.get(key) == row)
        self._has_written = True
        self._note(None)
        batch.end()

    def _drop(self, batch: Batch, reason: str) -> None:
        """The batch is not on disk, and shows no longer."""
        if batch is self._writing:
            self._writing = None
        batch.end(reason)

    async def _has_new_work(self) -> bool:
        """Wait for a change. False if things have been quiet for so long that folding is worth it."""
        offset = self._place.offset
        is_worth = offset * QUIET_SHARE >= self._document_size() and offset > self._min_fold_offset
        with trio.move_on_after(self._folding.quiet_delay if is_worth and self._has_written else math.inf) as scope:
            await self._wake.wait()
        return not scope.cancelled_caught

    def _is_journal_large(self) -> bool:
        return self._place.offset > max(self._folding.min_bytes, self._document_size(), self._min_fold_offset)

    def _document_size(self) -> int:
        return self._place.header.snapshot[1] if self._place.header.snapshot else 0

    async def _fold(self) -> None:
        self._has_written = False
        before = self._place
        if self._look() and not self._place.is_fresh():
            try:
                await self._in_thread(partial(self._storage.fold, self._rows.copy(), self._place.mark()))
            except StateError as exc:
                log.warning("session state is safe in its journal, but could not be folded: %s", exc.reason)
            self._look()
        self._min_fold_offset = 2 * self._place.offset if self._place is before else 0  # else it would try for ever

    async def _in_thread(self, work: Callable[[], None]) -> None:
        with trio.move_on_after(WRITE_TIMEOUT):
            return await trio.to_thread.run_sync(work, abandon_on_cancel=True, limiter=self._threads)
        raise StateError(f"{self._path}: the disk took longer than {WRITE_TIMEOUT:g} s")

    def _note(self, problem: str | None) -> None:
        if problem != self.problem:
            log.warning("session state %s", f"cannot be written: {problem}" if problem else "can be written again")
        self.problem = problem

    def _tell(self, trouble: str) -> None:
        if trouble != self._last_trouble:
            log.warning("session state: %s", trouble)
        self._last_trouble = trouble


@asynccontextmanager
async def open_state(home: Path, trim: Trim, folding: Folding, disk: Disk) -> AsyncIterator[StateFile]:
    """Load the state in the folder *home* and keep it written; what is pending is written before this returns.

    Args:
        trim: is given the rows on disk and a batch (key -> new row, or None) before that is written, and may drop
            more keys in it.
        disk: the steps that change files.

    Raises:
        StateError: the folder or a file in it cannot be used; nothing was changed.
    What the body raises comes out as it is, in no group.
    """
    storage = Storage(home, disk)
    rows, place = await trio.to_thread.run_sync(storage.open)
    state = StateFile(storage, rows, place, trim, folding)
    failure: BaseException | None = None
    async with trio.open_nursery() as nursery:
        nursery.start_soon(state.serve_writes)
        try:
            yield state
        except BaseException as exc:
            failure = exc  # raised again below, since a nursery would put it in a group
        state.close()
    if failure is not None:
        raise failure
