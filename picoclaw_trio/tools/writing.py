"""Changes of files: each whole or not at all, and durable when it is told.

Theory: a file is replaced by writing another beside it, syncing it, giving it the first one's name and syncing the
folder; at every moment the old or the new one is there. A new file gets its name by a hard link, which the system
refuses if the name has been taken meanwhile. Text is appended in place, and taken back if not all of it fits.
Editing rule: everything here blocks and expects that no other change of this process is under way in the workspace.
Whatever fails, no temporary file is left; only a killed process can leave one, ``.picoclaw-<16 hex digits>.tmp``.
"""

from __future__ import annotations

import errno
import os
import secrets
import stat
from contextlib import suppress

from .sandbox import (
    FILE_MODE,
    Place,
    Sandbox,
    check_plain,
    check_single,
    give_to_owner,
    open_plain,
    sync_folder,
)

MAX_FILE_BYTES = 16 * 1024 * 1024
MAX_COUNTED = 1000
NO_LINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}


def write_file(sandbox: Sandbox, place: Place, data: bytes, *, overwrite: bool) -> bool:
    """Make the file at *place* hold *data*; True if there was none before. One that was there keeps its mode.

    Raises:
        ToolError: among others, it is there and *overwrite* is false.
    """
    _check_size(place, len(data))
    with place.explained(), sandbox.open_parent(place, create=True) as (folder, name):
        old = _status(folder, name)
        if old is not None:
            check_plain(old, place)
            check_single(old, place)
            if not overwrite:
                raise place.wrong(f"it exists already, {old.st_size} bytes; to replace it say overwrite: true")
        _put(folder, name, data, old)
    return old is None


def edit_file(sandbox: Sandbox, place: Place, old: bytes, new: bytes) -> None:
    """Replace the only occurrence of *old* in the file at *place* by *new*.

    Raises:
        ToolError: among others, there is none or more than one.
    """
    with place.explained(), sandbox.open_parent(place) as (folder, name):
        with open_plain(folder, name, os.O_RDONLY, place) as fd:
            before = os.fstat(fd)
            check_single(before, place)
            _check_size(place, before.st_size)
            data = _read_all(fd, before.st_size)
        position = _find_only(data, old, place)
        edited = data[:position] + new + data[position + len(old) :]
        _check_size(place, len(edited))
        now = _status(folder, name)
        if now is None or _stamp(now) != _stamp(before):
            raise place.wrong("somebody else changed it meanwhile; read it again")
        _put(folder, name, edited, before)


def append_file(sandbox: Sandbox, place: Place, data: bytes) -> int:
    """Add *data* to the end of the file at *place*, which is made if it is missing; gives its size then.

    Raises:
        ToolError.
    """
    with place.explained(), sandbox.open_parent(place, create=True) as (folder, name):
        is_new = _status(folder, name) is None
        with open_plain(folder, name, os.O_WRONLY | os.O_APPEND | os.O_CREAT, place) as fd:
            try:
                size = _append(fd, data, place)
                if is_new:
                    give_to_owner(fd, folder)
                    sync_folder(folder)
            except BaseException:
                if is_new:
                    _remove_empty(folder, name, os.fstat(fd))
                raise
    return size


def _remove_empty(folder: int, name: str, ours: os.stat_result) -> None:
    now = _status(folder, name)
    if now and (now.st_ino, now.st_size) == (ours.st_ino, 0):
        os.unlink(name, dir_fd=folder)


def _append(fd: int, data: bytes, place: Place) -> int:
    before = os.fstat(fd)
    check_single(before, place)
    _check_size(place, before.st_size + len(data))
    try:
        _write_all(fd, data)
        os.fsync(fd)
    except OSError:
        written = os.fstat(fd).st_size - before.st_size
        if 0 < written <= len(data):  # else somebody else has appended, too
            os.ftruncate(fd, before.st_size)
        raise
    return before.st_size + len(data)


def _put(folder: int, name: str, data: bytes, old: os.stat_result | None) -> None:
    """Give *name* to a new file that holds *data*, in the place of *old*."""
    temporary = f".picoclaw-{secrets.token_hex(8)}.tmp"
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, FILE_MODE, dir_fd=folder)
    try:
        try:
            _write_all(fd, data)
            _take_over(fd, folder, old)
            os.fsync(fd)
        finally:
            os.close(fd)
        _publish(folder, temporary, name, is_new=old is None)
    except BaseException:
        with suppress(FileNotFoundError):
            os.unlink(temporary, dir_fd=folder)
        raise
    sync_folder(folder)


def _take_over(fd: int, folder: int, old: os.stat_result | None) -> None:
    """Owner and mode of the file that is replaced; what would lend its owner's rights is not kept."""
    if old is None:
        return give_to_owner(fd, folder)
    if os.geteuid() == 0:
        os.fchown(fd, old.st_uid, old.st_gid)
    return os.fchmod(fd, stat.S_IMODE(old.st_mode) & 0o777)


def _publish(folder: int, temporary: str, name: str, *, is_new: bool) -> None:
    if is_new:
        try:
            os.link(temporary, name, src_dir_fd=folder, dst_dir_fd=folder, follow_symlinks=False)
            return os.unlink(temporary, dir_fd=folder)
        except OSError as exc:
            if exc.errno not in NO_LINKS:  # of file systems that have none
                raise
    return os.rename(temporary, name, src_dir_fd=folder, dst_dir_fd=folder)


def _find_only(data: bytes, old: bytes, place: Place) -> int:
    position = data.find(old)
    if position < 0:
        hint = "; its lines end in \\r\\n" if b"\r\n" in data and b"\n" in old and b"\r\n" not in old else ""
        raise place.wrong(f"old_text was found 0 times{hint}; it must match exactly, whitespace included")
    if data.find(old, position + 1) >= 0:
        raise place.wrong(f"old_text was found {_count(data, old)} times; take more of what is around it")
    return position


def _count(data: bytes, old: bytes) -> str:
    """How often *old* is in *data*, also where its occurrences overlap."""
    count, position = 0, data.find(old)
    while position >= 0:
        count, position = count + 1, data.find(old, position + 1)
        if count > MAX_COUNTED:
            return f"more than {MAX_COUNTED}"
    return str(count)


def _check_size(place: Place, size: int) -> None:
    if size > MAX_FILE_BYTES:
        raise place.wrong(f"{size} bytes are too many for this tool; at most {MAX_FILE_BYTES} are possible")


def _status(folder: int, name: str) -> os.stat_result | None:
    try:
        return os.stat(name, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        return None


def _stamp(status: os.stat_result) -> tuple[int, int, int]:
    return status.st_ino, status.st_size, status.st_mtime_ns


def _read_all(fd: int, size: int) -> bytes:
    data = b""
    while len(data) < size and (piece := os.read(fd, size - len(data))):
        data += piece
    return data


def _write_all(fd: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(fd, rest) :]
