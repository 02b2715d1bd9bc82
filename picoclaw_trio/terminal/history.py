"""What was typed in earlier runs, in a file of our own: one JSON string a line, the latest last.

Theory: an entry may have several lines, and two terminals may be open at once; so each entry is one line, added by one
write. The file is a comfort: where it cannot be read or written, everything else works without it.
Editing rule: only what a person typed at a terminal comes in here, never what came through a pipe.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
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
                self._replace(kept)
            return kept
        return []

    def add(self, entry: str) -> None:
        """Add *entry* at the end, unless it is too long to be wanted again."""
        line = _encode(entry)
        if len(line) <= MAX_ENTRY_BYTES:
            with suppress(OSError):
                _write(self.path, line, os.O_APPEND)

    def _read(self) -> bytes:
        with open(self.path, "rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - MAX_BYTES))
            return file.read(MAX_BYTES)

    def _replace(self, entries: list[str]) -> None:
        temporary = self.path.with_name(f"{self.path.name}.{os.getpid()}")
        try:
            _write(temporary, b"".join(map(_encode, entries)), os.O_TRUNC)
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


def _write(path: Path, data: bytes, how: int) -> None:
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | how, 0o600)
    try:
        os.fchmod(handle, 0o600)
        os.write(handle, data)
    finally:
        os.close(handle)
