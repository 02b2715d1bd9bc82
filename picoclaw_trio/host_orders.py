"""How often the master has given its workers the order to stop, which they count together.

Theory: the order is an event that they share, and each signal to the master sets it once more, which does not show
while it is set. So the first worker that sees it writes down when that was, where all of them look, and takes it away.
What is written holds for the workers that were there then, not for those that the master starts after a SIGHUP. The
master gives the order of itself when a worker has crashed: that is no second signal. A worker that can write nothing
down sees the first order as long as nobody takes it away, and the SIGTERM that the master sends after it otherwise.
Editing rule: nothing here waits, neither for the master nor for a worker.
"""

from __future__ import annotations

import fcntl
import logging
import os
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from multiprocessing.synchronize import Event as MasterEvent

log = logging.getLogger("picoclaw_trio.host_orders")

# When the first order was seen, and the second: seconds since the machine started, or 0.
TIMES = struct.Struct("2d")


class Orders:
    """The orders of one worker's master."""

    def __init__(self, event: MasterEvent, folder: Path | None) -> None:
        """
        Args:
            event: that the master sets with each signal.
            folder: that all its workers share; without one, or where it cannot be used, no second order can be told.
        """
        self._event = event
        self._started_at = _process_started_at()
        self._count = 0
        self._times: int | None = None
        if folder is not None:
            with self._trouble_told():
                self._open(folder)

    def count(self) -> int:
        """How many orders there have been: 0, 1, or 2 for any more."""
        is_set = self._event.is_set()
        self._count = max(self._count, is_set)
        if self._times is not None:
            with self._trouble_told():
                if is_set:
                    self._note(self._times)
                self._count = max(self._count, len(self._given(self._times)))
        return self._count

    def leave(self) -> None:
        """This worker ends as it should."""
        if self._times is not None:
            with self._trouble_told():
                self._presence.unlink(missing_ok=True)

    def _open(self, folder: Path) -> None:
        self._folder = folder
        self._presence = folder / f"worker-{os.getpid()}"
        fcntl.flock(_open(self._presence), fcntl.LOCK_EX)  # as long as the process
        times = _open(folder / "orders")
        os.posix_fallocate(times, 0, TIMES.size)  # zeros where there is nothing yet, and room on a full disk
        self._times = times

    @contextmanager
    def _trouble_told(self) -> Iterator[None]:
        """What the disk refuses is told once, and from then on this worker keeps to what it sees itself."""
        try:
            yield
        except OSError as exc:
            self._times = None
            log.warning("the workers cannot tell each other of the master's orders: %s", exc)

    def _given(self, file: int) -> list[float]:
        """When those orders were seen that are for this worker."""
        times: tuple[float, ...] = TIMES.unpack(os.pread(file, TIMES.size, 0))
        return [at for at in times if at >= self._started_at]

    def _note(self, file: int) -> None:
        with _locked(file) as is_ours:
            if is_ours and self._event.is_set():  # or else another worker is about it, or has been
                given, lost = self._given(file), self._forget_crashed()
                if not given or not lost:
                    first, second, *_ = *given, _now(), 0.0
                    os.pwrite(file, TIMES.pack(first, second), 0)
                self._event.clear()

    def _forget_crashed(self) -> int:
        """How many workers have gone without leaving since this was called last."""
        count = 0
        for presence in self._folder.glob("worker-*"):
            with suppress(FileNotFoundError):
                fd = os.open(presence, os.O_RDWR)
                with _locked(fd) as is_free:
                    if is_free:
                        presence.unlink()
                        count += 1
                os.close(fd)
        return count


def _open(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT, 0o600)


@contextmanager
def _locked(fd: int) -> Iterator[bool]:
    """Whether the file could be locked."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        yield False
        return
    try:
        yield True
    finally:
        fcntl.flock(fd, fcntl.LOCK_UN)


def _now() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def _process_started_at() -> float:
    """When this process was started, or up to a tick of the kernel's later.

    Source: proc(5), ``starttime``.
    """
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    return (int(fields[19]) + 1) / os.sysconf("SC_CLK_TCK")
