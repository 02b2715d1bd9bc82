"""What was typed in earlier runs, in a file of our own: one JSON string a line, the latest last.

Theory: an entry may have several lines, and two terminals may be open at once; so each entry is one line, added by one
write. A full disk may have taken a part of a line only, so whoever adds one ends the last first. The file is a comfort:
where it cannot be read or written, everything else works without it.
Editing rule: only what a person typed at a terminal comes in here, never what came through a pipe.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import attrs
import orjson

MAX_ENTRIES = 1000
MAX_ENTRY_BYTES = 20_000
# It is shortened when it is found longer than this.
MAX_BYTES = 1_000_000


@attrs.frozen
class HistoryFile:
    """The file at *path*, readable for its owner only."""

    path: Path

    def load(self) -> list[str]:
        """The latest entries, the oldest of them first; shortens a file that has grown too long."""
        with suppress(OSError):
            data = self._read()
            entries = [*_entries(data)]
            kept = entries[-MAX_ENTRIES:]
            if len(data) >= MAX_BYTES or len(entries) >= 2 * MAX_ENTRIES:
                with suppress(OSError):
                    self._replace(kept)
            return kept
        return []

    def add(self, entry: str) -> None:
        """Add *entry* at the end, unless it is too long to be wanted again."""
        line = _encode(entry)
        if len(line) <= MAX_ENTRY_BYTES:
            with suppress(OSError):
                self._append(line)

    def _read(self) -> bytes:
        with open(self.path, "rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - MAX_BYTES))
            return file.read(MAX_BYTES)

    def _append(self, line: bytes) -> None:
        with _opened(self.path, os.O_APPEND) as fd:
            size = os.fstat(fd).st_size
            is_torn = size > 0 and os.pread(fd, 1, size - 1) != b"\n"
            os.write(fd, b"\n" + line if is_torn else line)

    def _replace(self, entries: list[str]) -> None:
        temporary = self.path.with_name(f"{self.path.name}.{os.getpid()}")
        try:
            with _opened(temporary, os.O_TRUNC) as fd:
                rest = memoryview(b"".join(map(_encode, entries)))
                while rest:
                    rest = rest[os.write(fd, rest) :]
            temporary.replace(self.path)
        finally:
            temporary.unlink(missing_ok=True)


def _entries(data: bytes) -> Iterator[str]:
    """What can be read; the first line may have lost its beginning, any may have been spoilt by other hands."""
    for line in data.splitlines():
        with suppress(orjson.JSONDecodeError):
            entry = orjson.loads(line)
            if isinstance(entry, str):
                yield entry


def _encode(entry: str) -> bytes:
    return orjson.dumps(entry.encode("utf-8", "replace").decode()) + b"\n"


@contextmanager
def _opened(path: Path, how: int) -> Iterator[int]:
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | how, 0o600)
    try:
        os.fchmod(fd, 0o600)
        yield fd
    finally:
        os.close(fd)
