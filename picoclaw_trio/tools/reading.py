"""What a model gets to see of a folder or a file: a window, and how to get the next one.

Theory: a window is bounded in bytes, whatever its unit, so a result is bounded too. Its first line tells how much is
left and where to go on; a file that fits is given as it is. Characters are never cut in two by a window's end.
Editing rule: everything here blocks; it reads from descriptors that ``sandbox`` opened, and changes nothing.
"""

from __future__ import annotations

import codecs
import os
import stat
from itertools import islice

import attrs

from .sandbox import Place, Sandbox, hidden_character

MAX_WINDOW_BYTES = 64 * 1024
# A result of this size, with its first lines, is within the usual tools.max_result_chars of 64,000.
WINDOW_BYTES = 60_000
MAX_WINDOW_LINES = 10_000
# To find a line, what is before it must be read.
MAX_SKIPPED_BYTES = 256 * 1024 * 1024
CHUNK_BYTES = 256 * 1024
MAX_NAMES, MAX_SHOWN_NAMES = 100_000, 500


@attrs.frozen
class Window:
    """A part of a file: its bytes, where it begins in the file, and the file's size."""

    data: bytes
    start: int
    size: int

    @property
    def end(self) -> int:
        return self.start + len(self.data)

    @property
    def left(self) -> int:
        return max(0, self.size - self.end)


def read_bytes(sandbox: Sandbox, place: Place, offset: int, limit: int) -> str:
    """The text of at most *limit* bytes after the first *offset*, with a line before it if there is more.

    Raises:
        ToolError.
    """
    with place.explained(), sandbox.open_file(place) as fd:
        window = _read(fd, offset, limit)
    if window.data == b"" and offset > 0:
        raise place.wrong(f"offset {offset} is not before its end; it has {window.size} bytes")
    text = _decode(window, place)
    whole = offset == 0 and window.left == 0
    return text if whole else f"[bytes {window.start} to {window.end} of {window.size}{_go_on(window)}]\n{text}"


def _go_on(window: Window) -> str:
    return f"; {window.left} are left: go on with offset {window.end}" if window.left else ": its end"


def read_lines(sandbox: Sandbox, place: Place, offset: int, limit: int) -> str:
    """The text of at most *limit* lines after the first *offset*, with a line before it if there is more.

    Raises:
        ToolError.
    """
    with place.explained(), sandbox.open_file(place) as fd:
        window = _cut_lines(_read(fd, _find_line(fd, offset, place), WINDOW_BYTES), limit)
    if window.data == b"" and offset > 0:
        raise place.wrong(f"offset {offset} is not before its end; it has {offset} lines")
    text = _decode(window, place)
    if offset == 0 and window.left == 0:
        return text
    lines = window.data.count(b"\n") + (not window.data.endswith(b"\n"))
    return f"[lines {offset + 1} to {offset + lines}{_go_on_lines(window, offset + lines)}]\n{text}"


def _go_on_lines(window: Window, next_line: int) -> str:
    if window.left == 0:
        return ": its end"
    if not window.data.endswith(b"\n"):  # a line longer than a window
        return f", cut; {window.left} bytes are left: go on with unit 'bytes', offset {window.end}"
    return f"; {window.left} bytes are left: go on with offset {next_line}"


def _read(fd: int, offset: int, limit: int) -> Window:
    size = os.fstat(fd).st_size
    data = b""
    while len(data) < limit and (piece := os.pread(fd, limit - len(data), offset + len(data))):
        data += piece
    # It may have grown since its size was asked for.
    window = Window(data, offset, max(size, offset + len(data)) if data else size)
    return attrs.evolve(window, data=_whole_characters(data)) if window.left else window


def _whole_characters(data: bytes) -> bytes:
    """*data* without the beginning of a character at its end, unless that is all there is."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    decoder.decode(data)
    half, _ = decoder.getstate()
    return data[: len(data) - len(half)] or data


def _find_line(fd: int, number: int, place: Place) -> int:
    """Where the line begins that *number* lines are before."""
    found = position = 0
    while found < number:
        chunk = os.pread(fd, CHUNK_BYTES, position)
        if not chunk:
            lines = found + (position > 0 and os.pread(fd, 1, position - 1) != b"\n")
            raise place.wrong(f"offset {number} is not before its end; it has {lines} lines")
        if position > MAX_SKIPPED_BYTES:
            raise place.wrong(f"line {number} is too far from its beginning; use unit 'bytes'")
        in_chunk = chunk.count(b"\n")
        if found + in_chunk >= number:
            return position + _after_newline(chunk, number - found)
        found += in_chunk
        position += len(chunk)
    return position


def _after_newline(data: bytes, count: int) -> int:
    """The place after the newline number *count* of *data*, 0 for none; its end if there are fewer."""
    end = 0
    for _ in range(count):
        end = data.find(b"\n", end) + 1
        if end == 0:
            return len(data)
    return end


def _cut_lines(window: Window, limit: int) -> Window:
    """The first *limit* lines of a window; where the window ends within a line, the whole ones, if there are any."""
    data = window.data[: _after_newline(window.data, limit)]
    if window.start + len(data) < window.size and not data.endswith(b"\n"):
        data = data[: data.rfind(b"\n") + 1] or data
    return attrs.evolve(window, data=data)


def _decode(window: Window, place: Place) -> str:
    if b"\0" in window.data:
        raise place.wrong(f"it is binary, {window.size} bytes; only text can be read")
    try:
        return window.data.decode()
    except UnicodeDecodeError:
        return f"[bytes that are no UTF-8 are shown as \ufffd]\n{window.data.decode(errors='replace')}"


def list_folder(sandbox: Sandbox, place: Place, offset: int) -> str:
    """What a folder holds, a line each, sorted by name, after the first *offset*.

    Raises:
        ToolError.
    """
    with place.explained():
        names, lines = _look_into(sandbox, place, offset)
    if not names:
        return "[the folder is empty]"
    if not lines:
        raise place.wrong(f"offset {offset} is not before its end; it has {len(names)} entries")
    return "\n".join([*_tell_more(offset, len(lines), len(names)), *lines])


def _look_into(sandbox: Sandbox, place: Place, offset: int) -> tuple[list[str], list[str]]:
    """All names in a folder, and the lines of those to show. A workspace that nobody has written to yet has none."""
    try:
        with sandbox.open_folder(place) as folder, os.scandir(folder) as entries:
            names = sorted(entry.name for entry in islice(entries, MAX_NAMES))
            return names, [_describe(folder, name) for name in names[offset : offset + MAX_SHOWN_NAMES]]
    except FileNotFoundError:
        if place.names or sandbox.root.is_symlink():
            raise
        return [], []


def _tell_more(offset: int, shown: int, count: int) -> list[str]:
    end = offset + shown
    if (offset, end) == (0, count) and count < MAX_NAMES:
        return []
    total = f"more than {count}" if count == MAX_NAMES else str(count)
    go_on = f"; go on with offset {end}" if end < count else ""
    return [f"[entries {offset + 1} to {end} of {total}{go_on}]"]


def _describe(folder: int, name: str) -> str:
    try:
        status = os.stat(name, dir_fd=folder, follow_symlinks=False)
    except OSError:  # it has gone since its name was read
        return f"gone    {_shown(name)}"
    if stat.S_ISREG(status.st_mode):
        return f"file    {_shown(name)}  {status.st_size} bytes"
    if stat.S_ISDIR(status.st_mode):
        return f"folder  {_shown(name)}/"
    return f"{'link' if stat.S_ISLNK(status.st_mode) else 'special':7} {_shown(name)}"


def _shown(name: str) -> str:
    """A name on one line; one with invisible characters or no UTF-8 shows them as escapes, and cannot be opened."""
    return name.encode("unicode_escape").decode() if hidden_character(name) else name
