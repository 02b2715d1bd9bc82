"""One journal file: reading it step by step while others append to it or cut it back, and appending to it.

Theory: a place is an open journal and how far it was read. Whoever holds one can read on from there, for as long as
the last line read is still there, which its checksum tells, being made of all lines before it; if it is not, a failed
write was taken back behind the reader, others wrote in its stead, and the reader has to begin again. An open journal
stays readable after another took its name, so nothing is missed when the file is replaced. A change counts once its
line is synced; a line that could not be synced is cut off again before anyone else may write, and until that is done
a fence keeps this process from reading it.
Editing rule: which file, and under which lock, is for ``storage``.
"""

from __future__ import annotations

import logging
import os
import threading
from contextlib import suppress
from pathlib import Path

import attrs

from ..errors import StateError
from .disk import Disk, open_file, read_range, write_all
from .records import Header, Record, Scan, decode_header, encode_records, line_end, scan

MAX_HEADER = 512  # bytes; ours has under 200

log = logging.getLogger("picoclaw_trio.state")


class Rewritten(Exception):
    """The journal is no continuation of what was read before."""


class Ticket:
    """Whether a write counts: the thread that made it and the task that waits for it must agree, whoever is late.

    Attributes:
        landed: it counts, and is on disk for good; set before any other process can write after it.
    """

    def __init__(self) -> None:
        self.landed = False
        self.deciding = threading.Lock()
        self._is_given_up = False

    def check_wanted(self) -> None:
        """Raise StateError if nobody waits any more."""
        if self._is_given_up:
            raise StateError("the disk took too long")

    def give_up(self) -> bool:
        """Stop waiting. False if the write counts already."""
        with self.deciding:
            self._is_given_up = not self.landed
        return self._is_given_up


@attrs.frozen
class Fence:
    """Bytes of journal *id* that are not to be read: a write under way, or one that could not be taken back yet."""

    id: str
    start: int
    end: int


@attrs.frozen
class Mark:
    """How far a journal was read, without the open file: what another thread needs to go on from there."""

    id: str
    offset: int
    link: str
    anchor: int
    damage: int


@attrs.define
class Place:
    """An open journal, and how far it was read.

    Attributes:
        link: checksum of the last good line, which the next one has to name.
        anchor: offset of that line's end.
        damage: how many bad lines, or pieces with gaps, there were.
    """

    fd: int
    header: Header
    offset: int
    link: str
    anchor: int
    damage: int = 0

    def mark(self) -> Mark:
        return Mark(self.header.id, self.offset, self.link, self.anchor, self.damage)

    def go_to(self, mark: Mark) -> None:
        """Skip what was read elsewhere, if *mark* is of this journal."""
        if mark.id == self.header.id:
            self.offset, self.link, self.anchor, self.damage = mark.offset, mark.link, mark.anchor, mark.damage

    def read(self, limit: int | None = None) -> tuple[Record, ...]:
        """Read on to the end, or to *limit*.

        Raises:
            Rewritten: what was read before is no longer there; the place has not moved.
        """
        found = self._scan(limit)
        if self.size() < self.offset or not self._is_anchored():
            raise Rewritten
        return self._advance(found)

    def read_all(self, limit: int | None = None) -> tuple[Record, ...]:
        """Read from the first record to the end, or to *limit*."""
        self.offset = self.anchor = self.header.length
        self.link, self.damage = self.header.sum, 0
        return self._advance(self._scan(limit))

    def read_to_end(self) -> None:
        """Go to the end of the journal, whatever happened to it."""
        try:
            self.read()
        except Rewritten:
            self.read_all()

    def is_usable(self) -> bool:
        """Has it a header, so that lines may be appended?"""
        return self.header.id != ""

    def is_damaged(self) -> bool:
        return self.damage > 0 or self.size() > self.offset

    def is_fresh(self) -> bool:
        """Is there nothing but a header?"""
        return self.is_usable() and self.offset == self.header.length and not self.is_damaged()

    def size(self) -> int:
        return os.fstat(self.fd).st_size

    def close(self) -> None:
        os.close(self.fd)
        self.fd = -1  # whoever still uses it gets an error, not another file

    def _scan(self, limit: int | None) -> Scan:
        end = self.size() if limit is None else min(limit, self.size())
        return scan(read_range(self.fd, self.offset, end), self.link)

    def _is_anchored(self) -> bool:
        """Is the last good line still there? Another one of the same length may have taken its place."""
        end = line_end(self.link)
        return not self.is_usable() or end == read_range(self.fd, self.anchor - len(end), self.anchor)

    def _advance(self, found: Scan) -> tuple[Record, ...]:
        if found.records:
            self.anchor = self.offset + found.anchor
        self.offset += found.length
        self.link = found.link
        self.damage += found.damage + (not found.is_linked)
        return found.records


class LineWriter:
    """Appends records to journals; knows what had to be, or still has to be, taken back. Call it under the lock."""

    def __init__(self, disk: Disk) -> None:
        self._disk = disk
        self._fence: Fence | None = None

    def limit(self, place: Place) -> int | None:
        """Give the offset at which readers in this process have to stop, if there is one."""
        fence = self._fence
        if fence is None or fence.id != place.header.id:
            return None
        has_become_history = fence.start < fence.end < place.size()  # others wrote after it, see take_back
        return None if has_become_history else fence.start

    def append(self, place: Place, records: tuple[Record, ...], ticket: Ticket) -> None:
        """Append *records* to the journal, which was read to its end, and sync it.

        Raises:
            OSError, StateError: a step failed, or *ticket* was given up; what was written has been taken back.
        """
        start = place.size()
        torn = b"\n" if start > place.offset else b""  # what a killed writer left of a line becomes a bad line
        self._fence = Fence(place.header.id, start, start)
        try:
            write_all(self._disk, place.fd, torn + encode_records(records, place.link))
            self._disk.sync_data(place.fd)
            with ticket.deciding:
                ticket.check_wanted()
                self._fence = None
                ticket.landed = True
        except BaseException:
            self._undo(place, start)
            raise

    def take_back(self, place: Place) -> None:
        """Cut off what could not be taken back at once, unless others wrote after it: then it has become history."""
        fence = self._fence
        if fence and fence.id == place.header.id and fence.end == place.size():
            self._disk.truncate(place.fd, fence.start)
        self._fence = None

    def _undo(self, place: Place, start: int) -> None:
        try:
            self._disk.truncate(place.fd, start)
        except OSError as exc:
            log.warning("a write of session state failed and could not be taken back yet: %s", exc)
            self._fence = Fence(place.header.id, start, place.size())
            return
        self._fence = None
        with suppress(OSError):
            self._disk.sync_data(place.fd)


def open_place(path: Path, flags: int = os.O_RDONLY) -> Place | None:
    """Open the journal at *path* before its first record; None if there is none.

    Raises:
        StateError: it is no file, or of a newer version.
        OSError: it cannot be opened.
    """
    try:
        fd = open_file(path, flags)
    except FileNotFoundError:
        return None
    try:
        line, end, _ = os.pread(fd, MAX_HEADER, 0).partition(b"\n")
        header = decode_header(line if end else b"", str(path))
        return Place(fd, header, header.length, header.sum, header.length)
    except BaseException:
        os.close(fd)
        raise
