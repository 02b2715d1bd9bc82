"""Changes of session state on their way to the disk: many of them share one write, and one outcome.

Theory: whoever changes something gets a ``Change`` and may wait for it, or not; the write goes on either way. A batch
is written as a whole or not at all, so a change needs to know no more than its batch.
Editing rule: a batch gets its outcome once, in ``end``, and never again.
"""

from __future__ import annotations

import attrs
import trio

from ..errors import StateError
from .journal import Ticket
from .records import Record, Row


@attrs.define(eq=False)
class Batch:
    """Changes that become durable together. ``rows``: key -> new row, None to drop it; ``uses``: key -> when."""

    rows: dict[str, Row | None] = attrs.field(factory=dict)
    uses: dict[str, int] = attrs.field(factory=dict)
    ticket: Ticket = attrs.field(factory=Ticket)
    failure: str | None = None
    _done: trio.Event = attrs.field(factory=trio.Event)

    def end(self, failure: str | None = None) -> None:
        """Tell everyone who waits: it is on disk, or why it is not."""
        self.failure = failure
        self._done.set()

    async def wait_end(self) -> None:
        await self._done.wait()

    def is_durable(self) -> bool:
        return self._done.is_set() and self.failure is None

    def has_work(self) -> bool:
        return bool(self.rows or self.uses)

    def records(self) -> tuple[Record, ...]:
        uses = [Record("use", key, at=at) for key, at in self.uses.items() if key not in self.rows]
        return (*uses, *(self._record(key, row) for key, row in self.rows.items()))

    def _record(self, key: str, row: Row | None) -> Record:
        return Record("drop", key) if row is None else Record("set", key, row.model, row.updated_at)


@attrs.frozen
class Change:
    """A change of state that shows already, and is durable when ``wait`` has returned."""

    _batch: Batch | None = None

    @property
    def is_durable(self) -> bool:
        """Is it on disk? Then ``wait`` has nothing to wait for."""
        return self._batch is None or self._batch.is_durable()

    async def wait(self) -> None:
        """Return when the change is on disk, be it this one's own write or an earlier one's that made it.

        Raises:
            StateError: it could not be written; in memory it has been undone.
        Cancellation: the write goes on.
        """
        if self._batch is None:
            await trio.lowlevel.checkpoint()
            return
        await self._batch.wait_end()
        if self._batch.failure is not None:
            raise StateError(self._batch.failure)


NO_CHANGE = Change()
