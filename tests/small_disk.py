"""A disk that can be filled up: a real one where one may mount, else one that pretends."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

import attrs
from state_disks import RefusingDisk, WatchedDisk


@attrs.define
class SmallDisk:
    """A folder on a disk that can be filled up, be emptied, or be made read-only."""

    home: Path
    disk: WatchedDisk
    fill: Callable[[], None]
    empty: Callable[[], None]
    protect: Callable[[], None]


@contextmanager
def open_small_disk(path: Path) -> Iterator[SmallDisk]:
    """A real file system of 256 kB, where one may mount; else a disk that refuses."""
    if os.geteuid() != 0 or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "t", path]).returncode:
        yield _pretended_disk(path)
        return

    def fill() -> None:
        with suppress(OSError), (path / "filler").open("wb", buffering=0) as file:
            while file.write(b"x" * 4096):
                pass

    def protect() -> None:
        subprocess.run(["mount", "-o", "remount,ro", path], check=True)

    yield SmallDisk(path / "home", WatchedDisk(), fill, (path / "filler").unlink, protect)
    subprocess.run(["umount", path], check=True)


def _pretended_disk(path: Path) -> SmallDisk:
    disk = RefusingDisk()

    def refuse(code: int, *steps: str) -> None:
        disk.code, disk.refused = code, set(steps)

    full, protected = ("write", "create"), ("write", "create", "lock", "rename", "remove")
    return SmallDisk(
        path / "home",
        disk,
        partial(refuse, errno.ENOSPC, *full),
        partial(refuse, 0),
        partial(refuse, errno.EROFS, *protected),
    )
