"""The transcripts in one folder: one file a session. Everything here blocks; call it in a thread.

Theory: only who holds a session's lock touches its files. A lock is a file that its holder removes again, so none is
left but by a kill, which the kernel unlocks. A turn is appended and synced, or cut off again. A transcript is written
anew, beside the old one and renamed over it, when there is none, when most of it was replaced, when it is too large, or
when a part of it cannot be read; then the old one is kept aside.
Editing rule: a file's name comes from ``file_stem``; nothing else of a session's key reaches the disk as a name.
"""

from __future__ import annotations

import hashlib
import os
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import attrs
import orjson

from ..errors import RequestError, StateError
from ..state import Ticket
from ..state.disk import (
    Disk,
    create_file,
    make_folders,
    open_file,
    read_range,
    remove_file,
    replace_file,
    try_lock,
    write_all,
)
from .budget import turn_starts
from .transcript import (
    Transcript,
    TurnLines,
    decode_transcript,
    encode_rewritten,
    encode_turn,
)

SUFFIX, LOCK_SUFFIX, TEMPORARY_SUFFIX = ".jsonl", ".lock", ".tmp"
PROBE_STEM = "probe"  # no session's, all of which end with a hash
PROBE = b"\0" * 4096  # one block: what a full disk refuses
MAX_SLUG = 40
MAX_LIVE_BYTES = 16 << 20  # a million words; what is over goes when the next turn is stored, oldest turns first
MIN_DEAD_BYTES = 1 << 16
MAX_FILE_BYTES = 1 << 28  # ours get no larger than twice the above and two turns


def file_stem(session: str) -> str:
    """The name of *session*'s files: something to recognise it by, and a hash that no two sessions share.

    Raises:
        RequestError: the name is not valid Unicode. None that comes from JSON is.
    """
    try:
        digest = hashlib.sha256(session.encode()).hexdigest()[:32]
    except UnicodeEncodeError:
        raise RequestError("The session's name is not valid Unicode and cannot be stored.", "user") from None
    slug = re.sub(r"[^a-z0-9]+", "-", session[:MAX_SLUG].lower().encode("ascii", "replace").decode()).strip("-")
    return f"{slug}-{digest}" if slug else digest


@attrs.frozen
class Standing:
    """Where the next turn is to be written: after *end* bytes with checksum *sum*, or, if *rewrite*, in a new file."""

    end: int
    sum: int
    rewrite: bool


class SessionLock:
    """The right to touch one session's files, held by as many threads as say so, until the last lets go."""

    def __init__(self, path: Path, fd: int, disk: Disk) -> None:
        self._path, self._fd, self._disk = path, fd, disk
        self._holders, self._guard = 1, threading.Lock()

    def share(self) -> bool:
        """Become one more holder. False if all others have let go, when it is too late."""
        with self._guard:
            self._holders += self._holders > 0
            return self._holders > 0

    def release(self) -> None:
        with self._guard:
            self._holders -= 1
            if self._holders:
                return
        with suppress(OSError):  # one that stays is removed by whoever takes it next
            self._disk.remove(self._path)
        os.close(self._fd)


class Files:
    """The folder, as one process sees it."""

    def __init__(self, folder: Path, disk: Disk) -> None:
        self.folder = folder
        self.disk = disk
        self._fences: dict[str, int] = {}  # stem -> where a turn begins that failed and could not be cut off yet

    def open(self) -> None:
        with self.translated():
            make_folders(self.disk, self.folder)

    def lock(self, stem: str) -> SessionLock | None:
        """Take the lock, or None if another has it."""
        path = self.path(stem, LOCK_SUFFIX)
        with self.translated():
            try:
                fd = try_lock(self.disk, path)
            except FileNotFoundError:  # someone has removed all conversations together with their folder
                if not self.folder.parent.is_dir():
                    raise
                make_folders(self.disk, self.folder)
                fd = try_lock(self.disk, path)
        return None if fd is None else SessionLock(path, fd, self.disk)

    def probe(self) -> None:
        """Find out whether a session could have its turn now. Raises StateError if not."""
        if lock := self.lock(PROBE_STEM):  # or else another process is finding out
            try:
                path = self.path(PROBE_STEM, TEMPORARY_SUFFIX)
                with self.translated():
                    remove_file(self.disk, path)  # of a process that was killed
                    create_file(self.disk, path, PROBE)
                    self.disk.remove(path)
            finally:
                lock.release()

    def read(self, session: str, session_ttl: float | None = None) -> tuple[Transcript, Standing]:
        """Read a session's transcript; an empty one if there is none, or nobody used it for *session_ttl* seconds.

        Raises:
            StateError: it cannot be read, is no file, or is of a newer version.
        """
        stem = file_stem(session)
        with self.translated():
            data, is_expired = self._read(stem, session_ttl)
        if data is None or is_expired:
            return Transcript(), Standing(0, 0, rewrite=True)
        transcript = decode_transcript(data, session)
        is_wasteful = transcript.size - transcript.live_bytes() > transcript.live_bytes() + MIN_DEAD_BYTES
        rewrite = bool(transcript.complaint) or is_wasteful or transcript.live_bytes() > MAX_LIVE_BYTES
        return transcript, Standing(transcript.end, transcript.sum, rewrite)

    def record(
        self, session: str, turn: TurnLines, stored: int, standing: Standing, ticket: Ticket, ttl: float | None
    ) -> bool:
        """Store a turn, durably and as a whole or not at all; says whether the session had no transcript before.

        Raises:
            StateError: it is not stored, or *ticket* was given up meanwhile.
        """
        stem = file_stem(session)
        path = self.path(stem)
        with self.translated():
            is_new = standing.rewrite and not os.path.lexists(path)
            if standing.rewrite:
                # What had not expired when the turn began has not now: the turn goes on from it.
                turn, stored, standing = self._rewrite(session, turn, stored, None if stored else ttl)
            try:
                self._append(stem, encode_turn(turn, stored, standing.sum), standing.end, ticket)
            except BaseException:
                if is_new:
                    with suppress(OSError):
                        self.disk.remove(path)
                raise
        return is_new

    def remove(self, stem: str) -> bool:
        """Forget a transcript. False if there was none."""
        with self.translated():
            self._fences.pop(stem, None)
            remove_file(self.disk, self.path(stem, TEMPORARY_SUFFIX))
            try:
                self.disk.remove(self.path(stem))
            except FileNotFoundError:
                return False
            return True

    def _read(self, stem: str, session_ttl: float | None) -> tuple[bytes | None, bool]:
        path = self.path(stem)
        try:
            fd = open_file(path)
        except FileNotFoundError:
            return None, False
        try:
            status = os.fstat(fd)
            if status.st_size > MAX_FILE_BYTES:
                raise StateError(f"{path} has {status.st_size} bytes, which none of ours has")
            is_expired = session_ttl is not None and time.time() - status.st_mtime > session_ttl
            return read_range(fd, 0, min(status.st_size, self._fences.get(stem, status.st_size))), is_expired
        finally:
            os.close(fd)

    def _rewrite(
        self, session: str, turn: TurnLines, stored: int, ttl: float | None
    ) -> tuple[TurnLines, int, Standing]:
        """Write the file anew, without what was replaced; gives the turn as it is to be written then, and where."""
        stem = file_stem(session)
        transcript, _ = self.read(session, ttl)
        if len(transcript.entries) != stored:
            raise StateError(f"{self.path(stem)} was changed by someone else while a turn was running")
        complaint = transcript.complaint
        forgotten_before = transcript.dropped
        dropped = _forget_oldest(transcript, turn.keep)
        visible = sum(not said.internal for said in transcript.entries)
        data = encode_rewritten(session, transcript, visible)
        replace_file(self.disk, self.path(stem), self.path(stem, TEMPORARY_SUFFIX), data, complaint)
        self._fences.pop(stem, None)
        begin = None if turn.begin is None else max(0, turn.begin - dropped)
        seen = turn.visible - (transcript.dropped - forgotten_before)
        turn = attrs.evolve(turn, keep=turn.keep - dropped, begin=begin, visible=seen)
        return turn, len(transcript.entries), Standing(len(data), decode_transcript(data, session).sum, rewrite=False)

    def _append(self, stem: str, data: bytes, end: int, ticket: Ticket) -> None:
        fd = open_file(self.path(stem), os.O_RDWR | os.O_APPEND)
        try:
            size = os.fstat(fd).st_size
            if size < end:
                raise StateError(f"{self.path(stem)} was changed by someone else while a turn was running")
            if size > end:
                self.disk.truncate(fd, end)  # a turn that was cut off
            self._fences[stem] = end
            try:
                write_all(self.disk, fd, data)
                self.disk.sync_data(fd)
                with ticket.deciding:
                    ticket.check_wanted()
                    ticket.landed = True
            except BaseException:
                self.disk.truncate(fd, end)  # if this fails as well, the fence hides the turn until the next one
                del self._fences[stem]
                raise
            del self._fences[stem]
        finally:
            os.close(fd)

    def path(self, stem: str, suffix: str = SUFFIX) -> Path:
        return self.folder / (stem + suffix)

    @contextmanager
    def translated(self) -> Iterator[None]:
        try:
            yield
        except OSError as exc:
            raise StateError(f"{exc.filename or self.folder}: {exc.strerror or exc}") from exc
        except orjson.JSONEncodeError as exc:
            raise StateError(f"a message cannot be stored: {exc}") from exc


def _forget_oldest(transcript: Transcript, keep: int) -> int:
    """Drop the oldest turns of the first *keep* messages while there is too much; gives how many messages went.

    A quarter more goes than needed, so that the next turns have room.
    """
    size = transcript.live_bytes()
    if size <= MAX_LIVE_BYTES:
        return 0
    starts = [start for start in turn_starts([said.message for said in transcript.entries]) if 0 < start < keep]
    count = 0
    for start in starts:
        if size <= MAX_LIVE_BYTES * 3 // 4:
            break
        size -= sum(len(line) + 1 for line in transcript.lines[count:start])
        count = start
    transcript.dropped += sum(not said.internal for said in transcript.entries[:count])
    del transcript.entries[:count], transcript.lines[:count]
    transcript.begin = max(0, transcript.begin - count)
    return count
