"""Which model a session, or everyone, has selected: remembered, durable, bounded.

Theory: a scope key ("global", "openai:<user>") holds one alias. Sessions are kept in order of use; when
there are too many, the least recently used go, and with a time to live those that nobody used for so long. Order of
use is exact within a process; other processes and the next start know it to an hour (or a sixteenth of the time to
live, if that is less), so that using a session writes nothing more often than that. "global" never goes.
Editing rule: a change goes through ``StateFile.put``; forgetting is a change like any other.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import attrs

from ..errors import RequestError
from .changes import Change
from .disk import Disk
from .records import GLOBAL, MAX_TIME, Row, Rows, encode_document
from .statefile import Folding, StateFile, open_state

MAX_USE_DELAY = 3600.0
USE_SHARE = 16
MAX_LENGTH = 1024  # characters of a key or an alias; the "user" of a request has at most 512

FOLDING = Folding()
DISK = Disk()


@attrs.frozen
class SessionInfo:
    """One row for people: scope key, alias, and when it was selected, in seconds since 1970."""

    key: str
    model: str
    updated_at: int


@attrs.frozen
class Limits:
    """What is kept. ``session_ttl`` None: for ever."""

    max_sessions: int
    session_ttl: float | None
    clock: Callable[[], float]

    def now(self) -> int:
        return min(max(int(self.clock()), 0), MAX_TIME)

    def is_expired(self, key: str, row: Row) -> bool:
        return self.session_ttl is not None and key != GLOBAL and self.now() - row.used_at > self.session_ttl

    def is_use_due(self, row: Row) -> bool:
        """Is it so long ago that others heard of this row's use?"""
        delay = MAX_USE_DELAY if self.session_ttl is None else min(MAX_USE_DELAY, self.session_ttl / USE_SHARE)
        return self.now() - row.used_at > delay

    def trim(self, rows: Rows, changes: dict[str, Row | None]) -> None:
        """Drop in *changes* what *rows* and *changes* together have too much of, the least recently used first."""
        excess = self._count(rows, changes) - self.max_sessions
        for key, row in rows.items():
            if key == GLOBAL or key in changes:
                continue
            if excess <= 0 and not self.is_expired(key, row):
                break
            changes[key] = None
            excess -= 1
        for key in [key for key, row in changes.items() if row is not None and key != GLOBAL][: max(0, excess)]:
            changes[key] = None

    def _count(self, rows: Rows, changes: dict[str, Row | None]) -> int:
        dropped = sum(row is None and key in rows for key, row in changes.items())
        added = sum(row is not None and key not in rows for key, row in changes.items())
        has_global = GLOBAL in rows or changes.get(GLOBAL) is not None
        return len(rows) + added - dropped - has_global


class Sessions:
    """The selections. ``open_sessions`` makes one."""

    def __init__(self, state: StateFile, limits: Limits) -> None:
        self._state = state
        self._limits = limits

    @property
    def problem(self) -> str | None:
        """Why the last attempt to write failed; None if it did not."""
        return self._state.problem

    def selected(self, scope_key: str) -> str | None:
        """Give the alias that *scope_key* holds, and count that as a use; None if there is none.

        Shows what this process selected, and whatever other processes had made durable before the call. One stat.
        """
        row, _ = self._find(scope_key)
        return None if row is None else row.model

    def select(self, scope_key: str, alias: str) -> Change:
        """Let *scope_key* hold *alias*. It shows at once; the change tells when it is durable.

        If it holds that alias already, nothing is written, and the change is the one that did it; unless another
        process did it so recently that it may not be durable, when it is written once more.

        Raises:
            RequestError: the key or the alias cannot be stored.
            StateError: the sessions were closed.
        """
        row, change = self._find(scope_key)
        if row is not None and row.model == alias and change is not None:
            return change
        _check_text(scope_key, "user")
        _check_text(alias, "model")
        now = self._limits.now()
        return self._state.put(scope_key, Row(alias, now, now))

    def delete(self, scope_key: str) -> Change:
        """Forget what *scope_key* holds; like ``select`` otherwise."""
        row, change = self._state.look_up(scope_key)
        return change if row is None and change is not None else self._state.put(scope_key, None)

    def list(self) -> tuple[SessionInfo, ...]:
        """Give everything that is held, "global" too, the least recently used first."""
        return tuple(SessionInfo(key, row.model, row.updated_at) for key, row in self._rows().items())

    def export(self) -> bytes:
        """Give everything that is held, as the document on disk would say it."""
        return encode_document(self._rows())

    async def check_writable(self) -> None:
        """Try to write something, at most once a second, and keep the outcome in ``problem``.

        Raises:
            StateError: it failed.
        Cancellation: the attempt ends in the background.
        """
        await self._state.check_writable()

    def _find(self, scope_key: str) -> tuple[Row | None, Change | None]:
        row, change = self._state.look_up(scope_key)
        if row is None or scope_key == GLOBAL:
            return row, change
        if self._limits.is_expired(scope_key, row):
            return None, change
        self._state.use(scope_key, self._limits.now() if self._limits.is_use_due(row) else None)
        return row, change

    def _rows(self) -> Rows:
        rows = self._state.rows().items()
        return {key: row for key, row in rows if not self._limits.is_expired(key, row)}


@asynccontextmanager
async def open_sessions(
    home: Path,
    *,
    max_sessions: int = 10_000,
    session_ttl: float | None = None,
    clock: Callable[[], float] = time.time,
    folding: Folding = FOLDING,
    disk: Disk = DISK,
) -> AsyncIterator[Sessions]:
    """Open the selections that are stored in the folder *home*; what is pending is written before this returns.

    Creates the folder, for its owner alone; one that exists keeps its mode.

    Args:
        max_sessions: how many are kept; the least recently used go first.
        session_ttl: seconds without use after which one goes; None: never.
        clock: gives seconds since 1970.
        folding: when the JSON file is brought up to date.
        disk: the steps that change files.

    Raises:
        StateError: the folder cannot be written, or a file of ours in it is unreadable or of a newer version.
    What the body raises comes out as it is, in no group.
    """
    limits = Limits(max_sessions, session_ttl, clock)
    async with open_state(home, limits.trim, folding, disk) as state:
        yield Sessions(state, limits)


def _check_text(text: str, param: str) -> None:
    """Refuse what the journal cannot hold. None of it comes from JSON, but it may from a command line."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise RequestError("This text is not valid Unicode and cannot be stored.", param) from None
    if not 0 < len(text) <= MAX_LENGTH:
        raise RequestError(f"This text must have 1 to {MAX_LENGTH} characters to be stored.", param)
