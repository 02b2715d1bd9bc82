"""All transcripts of one folder together: listing them, and keeping their number down. Everything here blocks.

Theory: a transcript's last use is the time of its file, which every turn changes. What is forgotten is locked first, so
a session whose turn runs is never forgotten. Listing reads the first line and the last of each file, and no more.
Editing rule: nothing here changes what a transcript says; it stays or it goes.
"""

from __future__ import annotations

import logging
import os
import re
import time
from contextlib import suppress
from pathlib import Path

import attrs

from ..errors import StateError
from ..state.disk import open_file, read_range, remove_file
from .files import LOCK_SUFFIX, PROBE_STEM, SUFFIX, TEMPORARY_SUFFIX, Files
from .transcript import decode_end, decode_header

# Whatever else lies in the folder is not counted, and stays.
STEM = r"([a-z0-9-]+-)?[0-9a-f]{32}"
OURS = re.compile(STEM + re.escape(SUFFIX))
# What a killed process may leave: beside a session's transcript, or of a probe whether the folder can be written.
LEFT = re.compile(f"({STEM}|{PROBE_STEM})({re.escape(LOCK_SUFFIX)}|{re.escape(TEMPORARY_SUFFIX)})")
MARK_BYTES = 512  # the mark at a turn's end has under 150
HEADER_BYTES = 1 << 16  # a header has under 100, and the session's name

log = logging.getLogger("picoclaw_trio.memory")


@attrs.frozen
class Conversation:
    """One transcript for people: its session, messages that the client saw, when it grew last, bytes on disk."""

    key: str
    messages: int
    updated_at: str
    bytes: int


class Shelf:
    """The folder of *files*."""

    def __init__(self, files: Files) -> None:
        self._files = files

    def conversations(self) -> tuple[Conversation, ...]:
        """Give every transcript, the least recently used first."""
        with self._files.translated():
            found = [self._describe(path, status) for _, path, status in self._by_use()]
        return tuple(filter(None, found))

    def sweep(self, max_sessions: int, session_ttl: float | None) -> int:
        """Forget what is too old or too much, the least recently used first; gives how many transcripts are left.

        Removes a sixteenth more than needed, so that this is not done again for each further session.
        """
        with self._files.translated():
            found = self._by_use()
            excess = len(found) - max_sessions
            count = excess + max_sessions // 16 if excess > 0 else 0
            oldest = -1.0 if session_ttl is None else time.time() - session_ttl
            doomed = [(path, at) for place, (at, path, _) in enumerate(found) if place < count or at < oldest]
            return len(found) - sum(self._forget_unused(path, at) for path, at in doomed)

    def tidy(self) -> None:
        """Remove what killed processes left."""
        with self._files.translated():
            for name in os.listdir(self._files.folder):
                stem = os.path.splitext(name)[0]
                if LEFT.fullmatch(name) and (lock := self._files.lock(stem)):
                    with suppress(OSError):
                        remove_file(self._files.disk, self._files.path(stem, TEMPORARY_SUFFIX))
                    lock.release()

    def _by_use(self) -> list[tuple[float, Path, os.stat_result]]:
        found = []
        with suppress(FileNotFoundError), os.scandir(self._files.folder) as items:
            for item in items:
                if OURS.fullmatch(item.name) and item.is_file(follow_symlinks=False):
                    with suppress(FileNotFoundError):
                        status = item.stat(follow_symlinks=False)
                        found.append((status.st_mtime, Path(item.path), status))
        return sorted(found, key=lambda one: one[:2])

    def _describe(self, path: Path, status: os.stat_result) -> Conversation | None:
        """What *path* tells without being read as a whole; None if it is no transcript."""
        try:
            fd = open_file(path)
        except (OSError, StateError):
            return None
        try:
            header = decode_header(read_range(fd, 0, HEADER_BYTES).partition(b"\n")[0])
            tail = read_range(fd, max(0, status.st_size - MARK_BYTES), status.st_size)
        except (OSError, StateError):
            return None
        finally:
            os.close(fd)
        if header is None:
            return None
        mark = decode_end(tail[:-1].rpartition(b"\n")[2])
        if mark is None or not tail.endswith(b"\n"):
            with suppress(StateError):
                transcript, _ = self._files.read(header["session"])
                visible = sum(not said.internal for said in transcript.entries)
                mark = {"visible": visible, "at": transcript.updated_at}
        return Conversation(header["session"], mark["visible"], mark["at"], status.st_size) if mark else None

    def _forget_unused(self, path: Path, at: float) -> bool:
        """Forget the transcript at *path* unless a turn of its session runs, or has ended since the time *at*."""
        stem = path.name.removesuffix(SUFFIX)
        try:
            lock = self._files.lock(stem)
            if lock is None:
                return False
            try:
                return path.stat().st_mtime == at and self._files.remove(stem)
            finally:
                lock.release()
        except FileNotFoundError:
            return True
        except (OSError, StateError) as exc:
            log.warning("%s could not be forgotten: %s", path, getattr(exc, "reason", exc))
            return False
