"""What the state file does to the disk: single steps, files replaced as a whole, one lock for all processes.

Theory: ``Disk`` has one method for each step that changes anything, so that a test can let any single step fail or
kill the process at it. A file is replaced by writing another beside it, syncing it, renaming it over the first and
syncing the folder: at every moment the old or the new one is there, whole. Everything here blocks: call it in a thread.
Editing rule: nothing else in the storage rooms writes to the disk but through ``Disk``.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ..errors import StateError
from .records import Stamp

FILE_MODE = 0o600
FOLDER_MODE = 0o700
# Lock held by a process that was stopped (SIGSTOP, a debugger) or whose disk hangs: others must not wait with it.
LOCK_TIMEOUT = 5.0
FIRST_LOCK_DELAY, MAX_LOCK_DELAY = 0.0002, 0.01

log = logging.getLogger("picoclaw_trio.state")


class Disk:
    """The real steps. Every method may raise OSError."""

    def open(self, path: Path, flags: int) -> int:
        return os.open(path, flags | os.O_CLOEXEC, FILE_MODE)

    def write(self, fd: int, data: bytes | memoryview) -> int:
        return os.write(fd, data)

    def sync(self, fd: int) -> None:
        os.fsync(fd)

    def sync_data(self, fd: int) -> None:
        getattr(os, "fdatasync", os.fsync)(fd)  # macOS has no fdatasync

    def truncate(self, fd: int, length: int) -> None:
        os.ftruncate(fd, length)

    def rename(self, old: Path, new: Path) -> None:
        os.replace(old, new)

    def link(self, old: Path, new: Path) -> None:
        os.link(old, new)

    def remove(self, path: Path) -> None:
        os.unlink(path)

    def make_folder(self, path: Path) -> None:
        os.mkdir(path, FOLDER_MODE)


def stamp_of(status: os.stat_result) -> Stamp:
    return status.st_ino, status.st_size, status.st_mtime_ns


def open_file(path: Path, flags: int = os.O_RDONLY) -> int:
    """Open the plain file at *path*; its file descriptor is the caller's to close.

    Raises:
        StateError: there is something else, e.g. a folder or a pipe, which is never waited for.
    """
    try:
        fd = os.open(path, flags | os.O_CLOEXEC | os.O_NONBLOCK)
    except IsADirectoryError:
        raise StateError(f"{path} is not a file: a folder is in its place") from None
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise StateError(f"{path} is not a file: something else is in its place")
    return fd


def read_file(path: Path) -> bytes | None:
    """Give the content of the plain file at *path*, or None if there is nothing. Raises like ``open_file``."""
    try:
        fd = open_file(path)
    except FileNotFoundError:
        return None
    with open(fd, "rb") as file:
        return file.read()


def read_range(fd: int, start: int, end: int) -> bytes:
    """Read the bytes from *start* to *end*, or as many as there are."""
    pieces = []
    while start < end and (piece := os.pread(fd, end - start, start)):
        pieces.append(piece)
        start += len(piece)
    return b"".join(pieces)


def make_folders(disk: Disk, path: Path) -> None:
    """Create the folder *path*, for its owner alone, and those above it. One that exists keeps its mode."""
    if path.is_dir():
        return
    make_folders(disk, path.parent)
    with suppress(FileExistsError):  # another process was faster; whatever else is there, the next step will tell
        disk.make_folder(path)
        sync_folder(disk, path.parent)


def write_all(disk: Disk, fd: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[disk.write(fd, rest) :]


def sync_folder(disk: Disk, path: Path) -> None:
    """Make the names in a folder durable."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        disk.sync(fd)
    except OSError as exc:
        if exc.errno != errno.EINVAL:  # a network file system that cannot, and need not
            raise
    finally:
        os.close(fd)


def create_file(disk: Disk, path: Path, data: bytes) -> Stamp:
    """Write a durable file that did not exist; if that fails, none is left. Its name is not durable yet."""
    fd = disk.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
    try:
        give_to_owner(fd, path.parent)
        write_all(disk, fd, data)
        disk.sync(fd)
        return stamp_of(os.fstat(fd))
    except BaseException:
        with suppress(OSError):
            disk.remove(path)
        raise
    finally:
        os.close(fd)


def replace_file(disk: Disk, path: Path, temporary: Path, data: bytes, complaint: str | None = None) -> Stamp:
    """Put *data* in the place of the file at *path*, durably, as a whole or not at all.

    If there is a *complaint* about the old file, it is kept aside and a warning says so.
    """
    remove_file(disk, temporary)  # of a process that was killed
    stamp = create_file(disk, temporary, data)
    try:
        if complaint:
            log.warning("%s %s; it is kept as %s", path, complaint, keep_aside(disk, path).name)
        disk.rename(temporary, path)
    except OSError:
        with suppress(OSError):
            disk.remove(temporary)
        raise
    sync_folder(disk, path.parent)
    return stamp


def keep_aside(disk: Disk, path: Path) -> Path:
    """Give the file at *path* a second name with the time in it, under which it stays when *path* is replaced."""
    base = f"{path.name}.damaged-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}"
    target, count = path.with_name(base), 1
    while os.path.lexists(target):
        count += 1
        target = path.with_name(f"{base}-{count}")
    try:
        disk.link(path, target)
    except OSError:
        disk.rename(path, target)  # a file system without hard links: a kill now leaves the name empty, no byte lost
    return target


def give_to_owner(fd: int, folder: Path) -> None:
    """Let a file that root creates belong to the folder's owner, else the gateway could not read it afterwards."""
    if os.geteuid() == 0:
        owner = folder.stat()
        if owner.st_uid != 0:
            os.fchown(fd, owner.st_uid, owner.st_gid)


def remove_file(disk: Disk, path: Path) -> None:
    """Remove a file, if it is there."""
    with suppress(FileNotFoundError):
        disk.remove(path)


@contextmanager
def hold_lock(disk: Disk, path: Path, timeout: float = LOCK_TIMEOUT) -> Iterator[None]:
    """Hold the one lock that all processes share. The kernel releases it when a process dies.

    Raises:
        StateError: another process held it for *timeout* seconds.
    """
    fd = _locked_file(disk, path, time.monotonic() + timeout)
    try:
        yield
    finally:
        os.close(fd)


def try_lock(disk: Disk, path: Path) -> int | None:
    """Lock the file at *path*, made if need be; None if another holds it. To unlock, remove the file, then close it."""
    while True:
        fd = disk.open(path, os.O_RDWR | os.O_CREAT | os.O_NONBLOCK)
        try:
            give_to_owner(fd, path.parent)
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _has_name(fd, path):
                return fd
        except BlockingIOError:
            os.close(fd)
            return None
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)


def _locked_file(disk: Disk, path: Path, deadline: float) -> int:
    """Open and lock; again if the file was replaced meanwhile, since then others lock another one."""
    while True:
        fd = disk.open(path, os.O_RDWR | os.O_CREAT | os.O_NONBLOCK)
        try:
            give_to_owner(fd, path.parent)
            _wait_lock(fd, path, deadline)
            if _has_name(fd, path):
                return fd
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)


def _has_name(fd: int, path: Path) -> bool:
    with suppress(FileNotFoundError):
        return os.stat(path).st_ino == os.fstat(fd).st_ino
    return False


def _wait_lock(fd: int, path: Path, deadline: float) -> None:
    delay = FIRST_LOCK_DELAY
    while True:
        try:
            return fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise StateError(f"{path} has been locked by another process for too long") from None
        time.sleep(delay)  # in a worker thread; flock itself knows no timeout
        delay = min(2 * delay, MAX_LOCK_DELAY)
