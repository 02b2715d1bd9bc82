"""Numbers that each worker of one master writes where the others look: a file of its own for each in their folder.

Theory: a number has a key, and what all workers together have is the sum over their files. A worker keeps its numbers
itself, too: a file that cannot be made, has no room or is gone takes the others' view of them, nothing else. A file is
mapped into memory, so its blocks are reserved before they are written: where there are none, the kernel would kill the
process. It is locked as long as its worker lives. Whoever starts adds the files of ended workers to one, which replaces
the last such file at once and names those that are in it, so that none counts twice that could not be removed.
Editing rule: ``write`` is called from everywhere and for everything, so it neither raises nor waits.
"""

from __future__ import annotations

import fcntl
import logging
import mmap
import os
import secrets
import struct
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import attrs
import orjson

INITIAL_BYTES = 1 << 16
ROOM_DELAY = 1.0  # seconds between two attempts to reserve more on a full disk
READ_ATTEMPTS = 20  # there is a fold for each worker that starts
PREFIX, FOLDED, LOCK = "numbers-", "folded-numbers", "folding"
# Where a key begins so, its number holds as long as its worker lives.
LIVE = "live "

# A file: the bytes that are used of it, and for each number the length of its key, the key, filled up to a multiple of
# eight, and the number. Numbers are replaced where they are, by one copy of eight bytes.
INT, NUMBER = struct.Struct("q"), struct.Struct("d")
UNREADABLE = (OSError, ValueError, struct.error)

log = logging.getLogger("picoclaw_trio.metrics")


@attrs.frozen
class Folded:
    """The sums over ended workers, and the names of the last of their files, which may still be there."""

    names: set[str]
    sums: Counter[str]


class SharedNumbers:
    """The numbers of this worker, and the sums of the others'."""

    def __init__(self, folder: Path) -> None:
        """
        Args:
            folder: that all workers share. If it cannot be used, the log says so.
        """
        self._folder = folder
        self._name = PREFIX + secrets.token_hex(8)
        self._guard = threading.Lock()
        self._places: dict[str, int] = {}  # {key: where its number is}
        self._used, self._room_at, self._is_told = INT.size, 0.0, False
        self._fd: int | None = None
        try:
            self._make_file()
            self._fold()
        except UNREADABLE as exc:
            self._tell(exc)

    def write(self, key: str, number: float) -> None:
        """Let the others see *number*, now or, if there is no room for it, when it is written again and there is."""
        with self._guard:
            place = self._places.get(key) or self._find_place(key)
            if place:
                self._map[place : place + NUMBER.size] = NUMBER.pack(number)

    def of_others(self) -> Counter[str]:
        """The sums over all other workers; none, if they cannot be read."""
        try:
            if self._fd is not None and not (self._folder / self._name).exists():
                raise FileNotFoundError(f"{self._folder / self._name} is gone")
            for _ in range(READ_ATTEMPTS):
                folded = self._read_folded()
                with suppress(FileNotFoundError):  # it was folded meanwhile
                    sums = folded.sums + self._sum_up(self._names() - folded.names)
                    if folded == self._read_folded():
                        return sums
            raise BlockingIOError(f"{self._folder / FOLDED} kept changing")
        except UNREADABLE as exc:
            self._tell(exc)
            return Counter()

    def _names(self) -> set[str]:
        """Of the others' files."""
        return {name for name in os.listdir(self._folder) if name.startswith(PREFIX) and name != self._name}

    def _sum_up(self, names: Iterable[str]) -> Counter[str]:
        sums: Counter[str] = Counter()
        for name in names:
            with _opened(self._folder / name, fcntl.LOCK_SH) as (fd, has_ended):
                _add(sums, fd, has_ended)
        return sums

    def _fold(self) -> None:
        """Add the files of ended workers to those that were folded before, unless another worker is doing so.

        Killed in between, it has either not begun for the others or leaves files that are named as folded.
        """
        with _opened(self._folder / LOCK, fcntl.LOCK_EX) as (_, is_ours), ExitStack() as stack:
            if is_ours:
                folded, sums, ended = self._read_folded(), Counter[str](), set()
                for name in folded.names:
                    (self._folder / name).unlink(missing_ok=True)
                for name in self._names() - folded.names:
                    fd, has_ended = stack.enter_context(_opened(self._folder / name, fcntl.LOCK_SH))
                    if has_ended:
                        _add(sums, fd, has_ended)
                        ended.add(name)
                if ended:
                    temporary = self._folder / f".{FOLDED}"
                    temporary.write_bytes(orjson.dumps([sorted(ended), folded.sums + sums]))
                    temporary.replace(self._folder / FOLDED)
                for name in ended:
                    (self._folder / name).unlink(missing_ok=True)

    def _read_folded(self) -> Folded:
        try:
            names, sums = orjson.loads((self._folder / FOLDED).read_bytes())
        except FileNotFoundError:
            return Folded(set(), Counter())
        return Folded(set(names), Counter(sums))

    def _make_file(self) -> None:
        """Under another name, until it is locked and can be told from one whose worker has ended."""
        temporary = self._folder / f".{self._name}"
        fd = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)  # as long as the process
            self._reserve(fd, INITIAL_BYTES)
            temporary.rename(self._folder / self._name)
        except OSError:
            temporary.unlink(missing_ok=True)
            os.close(fd)
            raise
        self._fd = fd

    def _reserve(self, fd: int, size: int) -> None:
        os.posix_fallocate(fd, 0, size)
        self._map = mmap.mmap(fd, size)

    def _find_place(self, key: str) -> int | None:
        """A place for a new number, or None if there is no room."""
        if self._fd is None or time.monotonic() < self._room_at:
            return None
        encoded = key.encode()
        entry = INT.pack(len(encoded)) + encoded + bytes(-len(encoded) % 8 + NUMBER.size)
        try:
            while self._used + len(entry) > len(self._map):
                self._reserve(self._fd, 2 * len(self._map))
        except (OSError, ValueError) as exc:
            self._room_at = time.monotonic() + ROOM_DELAY
            self._tell(exc)
            return None
        self._map[self._used : self._used + len(entry)] = entry
        self._used += len(entry)
        self._map[: INT.size] = INT.pack(self._used)  # from now on others see it
        self._places[key] = self._used - NUMBER.size
        return self._places[key]

    def _tell(self, exc: Exception) -> None:
        """Once: whoever asks for the numbers does so again and again."""
        if not self._is_told:
            log.warning("numbers are not shared by the workers as they should be: %s", exc)
        self._is_told = True


@contextmanager
def _opened(path: Path, lock: int) -> Iterator[tuple[int, bool]]:
    """A file, made if it is the lock's, and whether it could be locked."""
    fd = os.open(path, os.O_RDWR | (os.O_CREAT if path.name == LOCK else 0), 0o600)
    try:
        yield fd, _try_lock(fd, lock)
    finally:
        os.close(fd)


def _add(sums: Counter[str], fd: int, has_ended: bool) -> None:
    """Add a worker's numbers to *sums*, without those that have ended with it."""
    for key, number in _decode(os.pread(fd, os.fstat(fd).st_size, 0)):
        if not has_ended or not key.startswith(LIVE):
            sums[key] += number  # type: ignore[assignment]  # a Counter adds whatever can be added


def _decode(data: bytes) -> Iterator[tuple[str, float]]:
    place, used = INT.size, INT.unpack_from(data)[0]
    while place < used:
        key_at = place + INT.size
        key_end = key_at + INT.unpack_from(data, place)[0]
        number_at = key_end + (key_at - key_end) % 8
        yield data[key_at:key_end].decode(), NUMBER.unpack_from(data, number_at)[0]
        place = number_at + NUMBER.size


def _try_lock(fd: int, how: int) -> bool:
    try:
        fcntl.flock(fd, how | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
