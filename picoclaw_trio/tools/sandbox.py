"""From a path that a model wrote to an open file or folder inside the workspace, and never outside of it.

Theory: a path is taken apart into plain names first; ``..`` is none. Then each folder is opened by its name from the
descriptor of the one before (openat), and a symbolic link is followed nowhere, not even one that stays inside. So there
is no moment between looking and opening in which a name could be given another meaning: whatever is swapped meanwhile,
each descriptor was reached from the workspace by names alone. Only plain files are opened, without waiting: a pipe, a
device or a socket is refused. A file with several hard links is read, but not changed: its other names may be outside.
Files are told to the model by the path that it wrote, never by the host's.
Editing rule: nothing else in the tools opens a path of a model's, and nothing here opens one by more than one name.
"""

from __future__ import annotations

import errno
import os
import stat
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import attrs

from .arguments import quoted
from .values import ToolError

MAX_PATH_CHARS = 4096
MAX_DEPTH = 32
MAX_NAME_BYTES = 255  # Linux has no file system with longer ones
FILE_MODE, FOLDER_MODE = 0o600, 0o700

# Names that hide what they are: controls, invisible and direction-changing characters, line and paragraph separators.
HIDDEN = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
# Persian, the languages of India and many emoji cannot be written without these two.
JOINERS = frozenset("\u200c\u200d")

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_REASONS = {
    errno.ENOENT: "there is no such file or folder",
    errno.ENOTDIR: "a part of the path is no folder; symbolic links are not followed",
    errno.ELOOP: "it is a symbolic link; those are not followed",
    errno.EISDIR: "it is a folder",
    errno.EEXIST: "it exists already",
    errno.ENXIO: "it is no plain file",
    errno.EACCES: "permission denied",
    errno.EPERM: "permission denied",
    errno.EROFS: "the file system is read-only",
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk's quota is used up",
    errno.ENAMETOOLONG: "the name is too long",
}
_KINDS = (
    (stat.S_ISDIR, "it is a folder"),
    (stat.S_ISLNK, _REASONS[errno.ELOOP]),
    (stat.S_ISFIFO, "it is a pipe, no plain file"),
    (stat.S_ISSOCK, "it is a socket, no plain file"),
)


@attrs.frozen
class Place:
    """A path inside the workspace: as the model wrote it, and its names; no names: the workspace itself."""

    given: str
    names: tuple[str, ...]

    def wrong(self, reason: str) -> ToolError:
        return ToolError(f"{quoted(self.given)}: {reason}")

    @contextmanager
    def explained(self) -> Iterator[None]:
        """Turn what the system says in the block into words for the model, without the host's paths."""
        try:
            yield
        except OSError as exc:
            raise self.wrong(_REASONS.get(exc.errno or 0) or os.strerror(exc.errno or errno.EIO).lower()) from exc


def _absolute(path: Path) -> Path:
    return path.absolute()


def real_path(path: Path) -> Path:
    """*path* without links, as far as they can be followed."""
    with suppress(OSError):  # of Linux's own links in /proc
        return Path(os.path.realpath(path))  # Path.resolve would raise where they lead in a circle
    return path.absolute()


@attrs.frozen
class Sandbox:
    """A workspace as models may reach it. Its methods block: call them in a thread.

    Attributes:
        root: the workspace's folder; it may be a link itself, and need not exist yet.
    """

    root: Path = attrs.field(converter=_absolute)

    def place(self, path: str) -> Place:
        """Take *path* apart. An absolute one must begin with the workspace's own.

        Raises:
            ToolError: it leads outside, or has a name that no file can or should have.
        """
        if len(path) > MAX_PATH_CHARS:
            raise ToolError(f"the path is too long: {len(path)} characters; at most {MAX_PATH_CHARS} are possible")
        place = Place(path, tuple(name for name in path.split("/") if name not in ("", ".")))
        for name in place.names:
            _check_name(place, name)
        names = self._below_root(place) if path.startswith("/") else place.names
        if len(names) > MAX_DEPTH:
            raise place.wrong(f"the path has {len(names)} parts; at most {MAX_DEPTH} are possible")
        return Place(path, names)

    def _below_root(self, place: Place) -> tuple[str, ...]:
        for root in (self.root, real_path(self.root)):
            start = root.parts[1:]
            if place.names[: len(start)] == start:
                return place.names[len(start) :]
        raise place.wrong("it is outside the workspace; write paths relative to the workspace")

    @contextmanager
    def open_folder(self, place: Place, *, create: bool = False) -> Iterator[int]:
        """Open the folder at *place*; gives its descriptor. Missing ones are made, if *create* says so.

        Raises:
            OSError, ToolError.
        """
        folder = self._open_root(create)
        try:
            for name in place.names:
                inner = _enter(folder, name, create)
                folder, outer = inner, folder
                os.close(outer)
            yield folder
        finally:
            os.close(folder)

    def _open_root(self, create: bool) -> int:
        if create:
            self.root.mkdir(FOLDER_MODE, parents=True, exist_ok=True)
        return os.open(self.root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    @contextmanager
    def open_parent(self, place: Place, *, create: bool = False) -> Iterator[tuple[int, str]]:
        """Open the folder that *place* is in; gives its descriptor and the last name."""
        if not place.names:
            raise place.wrong("it is the workspace itself, a folder")
        with self.open_folder(Place(place.given, place.names[:-1]), create=create) as folder:
            yield folder, place.names[-1]

    @contextmanager
    def open_file(self, place: Place) -> Iterator[int]:
        """Open the plain file at *place* for reading; gives its descriptor. Raises like ``open_plain``."""
        with self.open_parent(place) as (folder, name), open_plain(folder, name, os.O_RDONLY, place) as fd:
            yield fd


def hidden_character(name: str) -> str | None:
    """The first character of a name that does not show what it is."""
    return next((char for char in name if unicodedata.category(char) in HIDDEN and char not in JOINERS), None)


def _check_name(place: Place, name: str) -> None:
    if name == "..":
        raise place.wrong("'..' is not possible; write paths from the workspace on")
    if name == "~":
        raise place.wrong("'~' has no meaning here; write paths from the workspace on")
    if hidden := hidden_character(name):
        raise place.wrong(f"a name must not have the invisible character U+{ord(hidden):04X}")
    if len(name.encode()) > MAX_NAME_BYTES:
        raise place.wrong(_REASONS[errno.ENAMETOOLONG])


def _enter(folder: int, name: str, create: bool) -> int:
    try:
        return os.open(name, _FOLDER, dir_fd=folder)
    except FileNotFoundError:
        if not create:
            raise
    with suppress(FileExistsError):  # somebody was faster; whatever it is, the next line will tell
        os.mkdir(name, FOLDER_MODE, dir_fd=folder)
        sync_folder(folder)
    inner = os.open(name, _FOLDER, dir_fd=folder)
    give_to_owner(inner, folder)
    return inner


@contextmanager
def open_plain(folder: int, name: str, flags: int, place: Place) -> Iterator[int]:
    """Open the plain file *name* of a folder; gives its descriptor. Never waits, and never follows a link.

    Raises:
        OSError: e.g. there is none.
        ToolError: it is something else.
    """
    with suppress(FileNotFoundError):  # whether it may be missing is for open to say
        check_plain(os.stat(name, dir_fd=folder, follow_symlinks=False), place)  # a device may act on being opened
    fd = os.open(name, flags | _FILE, FILE_MODE, dir_fd=folder)
    try:
        check_plain(os.fstat(fd), place)
        yield fd
    finally:
        os.close(fd)


def check_plain(status: os.stat_result, place: Place) -> None:
    if not stat.S_ISREG(status.st_mode):
        reasons = (reason for is_kind, reason in _KINDS if is_kind(status.st_mode))
        raise place.wrong(next(reasons, "it is a device, no plain file"))


def check_single(status: os.stat_result, place: Place) -> None:
    """Refuse to change a file that has a second name, which may be outside of the workspace."""
    if status.st_nlink > 1:
        raise place.wrong("it has several names (hard links); such files can be read, but not changed")


def give_to_owner(fd: int, folder: int) -> None:
    """Let what root makes belong to the folder's owner, who could not read it otherwise."""
    if os.geteuid() == 0:
        owner = os.fstat(folder)
        if owner.st_uid != 0:
            os.fchown(fd, owner.st_uid, owner.st_gid)


def sync_folder(folder: int) -> None:
    """Make the names in a folder durable."""
    try:
        os.fsync(folder)
    except OSError as exc:
        if exc.errno != errno.EINVAL:  # a network file system that cannot, and need not
            raise
