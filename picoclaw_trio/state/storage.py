"""The files of session state in one folder: load, follow, append, fold. Everything here blocks.

Theory: ``openai_sessions.json`` is the document; ``openai_sessions.journal`` beside it has every change since the
document was written, a line each. Writers append under a lock; readers take none. When the journal is folded into the
document, a new one takes its name and says whom it follows, so that a reader reads the old one to its end and goes on
with the new one; only a reader that missed a whole journal, or whose history was rewritten, loads the document again.
What cannot be read is kept aside, never overwritten.
Editing rule: folding changes no row. Whatever changes one is a line first.
"""

from __future__ import annotations

import logging
import os
import secrets
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import attrs

from ..errors import StateError
from .disk import (
    Disk,
    create_file,
    hold_lock,
    make_folders,
    read_file,
    remove_file,
    replace_file,
    stamp_of,
)
from .journal import LineWriter, Mark, Place, Rewritten, Ticket, open_place
from .records import (
    Record,
    Rows,
    Stamp,
    apply,
    decode_document,
    encode_document,
    encode_header,
)

# PicoClaw itself may live in the same folder. These names, and "<name>.damaged-<time>", are all that is ever touched.
DOCUMENT_NAME = "openai_sessions.json"
JOURNAL_NAME = "openai_sessions.journal"
LOCK_NAME = "openai_sessions.lock"
TEMPORARY_NAME = "openai_sessions.tmp"
LOAD_ATTEMPTS = 20  # a journal is folded at most every few milliseconds; loading takes one
PROBE = b"\0" * 4096  # one block: what a full disk refuses

log = logging.getLogger("picoclaw_trio.state")


@attrs.define
class Loaded:
    """What the files say. ``place`` is None if there is no journal; ``complaint`` tells what the document lacks."""

    rows: Rows
    place: Place | None
    complaint: str | None


class Storage:
    """The files in one folder, as one process sees them: one thread at a time may write, while another one follows."""

    def __init__(self, home: Path, disk: Disk) -> None:
        self.path = home / JOURNAL_NAME
        self._home = home
        self._document = home / DOCUMENT_NAME
        self._temporary = home / TEMPORARY_NAME
        self._disk = disk
        self._writer = LineWriter(disk)

    def open(self) -> tuple[Rows, Place]:
        """Load; create what is missing, set aside what is damaged, fold what is left.

        Raises:
            StateError: the folder cannot be written, or a file in it is unreadable, no file, or of a newer version.
        """
        with self._translated():
            make_folders(self._disk, self._home)
        with self._locked(), ExitStack() as stack:
            remove_file(self._disk, self._temporary)
            loaded = self._load()
            if loaded.place:
                stack.callback(loaded.place.close)
            rows, place = self._repaired(loaded)
            if place is loaded.place:
                stack.pop_all()
            return rows, place

    def follow(self, rows: Rows, place: Place, changed: set[str]) -> tuple[Rows, Place]:
        """Bring *rows* up to date, and add to *changed* the keys whose model is another one now.

        If another place comes back, *place* has been closed.

        Raises:
            StateError: not possible now; *rows* and *place* are as good as they were.
        """
        with self._translated():
            try:
                if os.stat(self.path).st_ino != os.fstat(place.fd).st_ino:
                    return rows, self._follow_on(rows, place, changed)
                changed.update(apply(rows, place.read(self._writer.limit(place))))
                return rows, place
            except Rewritten:
                return self._begin_again(rows, place, changed)

    def append(self, records: tuple[Record, ...], mark: Mark, ticket: Ticket) -> None:
        """Make *records* durable, all of them or none, unless *ticket* was given up by then.

        Raises:
            StateError: they are not on disk; what had been written of them was taken back.
        """
        with self._locked():
            place = self._place_to_write()
            try:
                self._writer.take_back(place)
                place.go_to(mark)
                place.read_to_end()
                self._writer.append(place, records, ticket)
            finally:
                place.close()

    def fold(self, rows: Rows, mark: Mark) -> None:
        """Write the document: *rows*, which are those at *mark*, and what was appended since; begin a new journal.

        Does nothing if there is nothing to fold, or if another process did it meanwhile.
        """
        with self._locked():
            place = open_place(self.path, os.O_RDWR)
            if place is None:
                return
            try:
                if place.is_usable() and place.header.id == mark.id:
                    self._writer.take_back(place)
                    place.go_to(mark)
                    apply(rows, place.read())
                    self._fold(rows, place)
            except Rewritten:
                log.debug("the journal was rewritten meanwhile; it will be folded another time")
            finally:
                place.close()

    def probe(self) -> None:
        """Find out whether a change could be written now. Raises StateError if not."""
        with self._locked():
            self._place_to_write().close()
            remove_file(self._disk, self._temporary)
            create_file(self._disk, self._temporary, PROBE)
            self._disk.remove(self._temporary)

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except OSError as exc:
            raise StateError(f"{exc.filename or self._home}: {exc.strerror or exc}") from exc

    @contextmanager
    def _locked(self) -> Iterator[None]:
        with self._translated(), hold_lock(self._disk, self._home / LOCK_NAME):
            yield

    def _load(self) -> Loaded:
        """Read document and journal as they belong together, with or without the lock."""
        for _ in range(LOAD_ATTEMPTS):
            place = open_place(self.path)
            with ExitStack() as stack:
                if place:
                    stack.callback(place.close)
                rows, complaint = self._read_document()
                apply(rows, place.read_all(self._writer.limit(place)) if place else ())
                if self._is_current(place):
                    stack.pop_all()
                    return Loaded(rows, place, complaint)
        raise StateError(f"{self.path} kept changing while it was read")

    def _read_document(self) -> tuple[Rows, str | None]:
        data = read_file(self._document)
        return ({}, None) if data is None else decode_document(data, str(self._document))

    def _is_current(self, place: Place | None) -> bool:
        try:
            inode = os.stat(self.path).st_ino
        except FileNotFoundError:
            return place is None
        return place is not None and inode == os.fstat(place.fd).st_ino

    def _repaired(self, loaded: Loaded) -> tuple[Rows, Place]:
        """Fold what was loaded, if there is a reason to; give a place that can be followed."""
        place = loaded.place
        if place and place.is_fresh() and not loaded.complaint:
            return loaded.rows, place
        try:
            self._replace(loaded, self._follows(place))
        except OSError as exc:
            if place is None or not place.is_usable() or loaded.complaint:
                raise
            log.warning("session state was loaded, but could not be folded: %s", exc)
            return loaded.rows, place
        return loaded.rows, self._place_to_write(os.O_RDONLY)

    def _follow_on(self, rows: Rows, place: Place, changed: set[str]) -> Place:
        """Read the old journal to its end and the new one from its beginning."""
        fresh = open_place(self.path)
        if fresh is None:
            raise StateError(f"{self.path} is gone")
        try:
            if fresh.header.follows != place.header.id:
                raise Rewritten
            # The old one without a limit: whoever folded it took all of it over, and nobody can take it back now.
            records = place.read() + fresh.read(self._writer.limit(fresh))
            changed.update(apply(rows, records))
        except BaseException:
            fresh.close()
            raise
        place.close()
        return fresh

    def _begin_again(self, rows: Rows, place: Place, changed: set[str]) -> tuple[Rows, Place]:
        loaded = self._load()
        if loaded.place is None:
            raise StateError(f"{self.path} is gone")
        if loaded.complaint:
            log.warning("%s %s; what is in memory stands", self._document, loaded.complaint)
            changed.update(apply(rows, loaded.place.read_all()))
        else:
            changed.update(key for key in rows.keys() | loaded.rows.keys() if rows.get(key) != loaded.rows.get(key))
            rows = loaded.rows
        place.close()
        return rows, loaded.place

    def _place_to_write(self, flags: int = os.O_RDWR | os.O_APPEND) -> Place:
        """Open the journal; make one of what the files say if there is none, or none that can be gone on with."""
        place = open_place(self.path, flags)
        if place and place.is_usable():
            return place
        if place:
            place.close()
        loaded = self._load()
        try:
            self._replace(loaded, None)
        finally:
            if loaded.place:
                loaded.place.close()
        return self._place_to_write(flags)

    def _fold(self, rows: Rows, place: Place) -> None:
        follows = self._follows(place)
        if follows:
            if not place.is_fresh():
                self._replace(Loaded(rows, place, None), follows)
            return
        loaded = self._load()  # someone else wrote the document: a person, or a fold that was killed half-way
        try:
            if loaded.complaint:
                loaded.rows = rows
            self._replace(loaded, None)
        finally:
            if loaded.place:
                loaded.place.close()

    def _follows(self, place: Place | None) -> str | None:
        """Id of the journal that a new one follows, or None where its readers may know other rows than the files."""
        try:
            stamp: Stamp | None = stamp_of(os.stat(self._document))
        except FileNotFoundError:
            stamp = None
        return place.header.id if place and place.is_usable() and place.header.snapshot == stamp else None

    def _replace(self, loaded: Loaded, follows: str | None) -> None:
        """Write the document, then a new journal. A kill in between is harmless, see ``records``."""
        document = encode_document(loaded.rows)
        stamp = replace_file(self._disk, self._document, self._temporary, document, loaded.complaint)
        is_good = loaded.place is None or (loaded.place.is_usable() and not loaded.place.is_damaged())
        header = encode_header(secrets.token_hex(8), follows, stamp)
        complaint = None if is_good else "has lines that cannot be read"
        replace_file(self._disk, self.path, self._temporary, header, complaint)
