"""Disks that count, refuse, stall or forget, and processes that die: what the state file must survive."""

from __future__ import annotations

import errno
import math
import multiprocessing
import os
import random
import signal
import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import trio

from picoclaw_trio.state.disk import Disk
from picoclaw_trio.state.sessions import Sessions, open_sessions
from picoclaw_trio.state.statefile import Folding

NEVER = Folding(min_bytes=1 << 40, quiet_delay=math.inf)
ALWAYS = Folding(min_bytes=1, quiet_delay=math.inf)
PROCESSES = multiprocessing.get_context("forkserver")
# Each process is a fork of one that has imported these already, but runs nothing.
PROCESSES.set_forkserver_preload(["trio", "picoclaw_trio.state.sessions", "state_disks", "memory_stage"])


def stored(home: Path) -> dict[str, str]:
    """What a process finds that opens the folder now: {scope key: alias}."""

    async def read() -> dict[str, str]:
        async with open_sessions(home, folding=NEVER) as sessions:
            return held(sessions)

    return trio.run(read)


def names(home: Path) -> set[str]:
    return {path.name for path in home.iterdir()}


def held(sessions: Sessions) -> dict[str, str]:
    return {info.key: info.model for info in sessions.list()}


class WatchedDisk(Disk):
    """The real disk. Each step is noted, and given to ``on_step`` just before it; a write, when it is half done."""

    def __init__(self, on_step: Callable[[str], None] = lambda name: None) -> None:
        self.steps: list[str] = []
        self.on_step = on_step

    def open(self, path: Path, flags: int) -> int:
        self._step("lock" if path.name.endswith(".lock") else "create")
        return super().open(path, flags)

    def write(self, fd: int, data: bytes | memoryview) -> int:
        half = super().write(fd, data[: len(data) // 2])
        self._step("write")
        return half + super().write(fd, data[half:])

    def sync(self, fd: int) -> None:
        self._step("sync")
        super().sync(fd)

    def sync_data(self, fd: int) -> None:
        self._step("sync_data")
        super().sync_data(fd)

    def truncate(self, fd: int, length: int) -> None:
        self._step("truncate")
        super().truncate(fd, length)

    def rename(self, old: Path, new: Path) -> None:
        self._step("rename")
        super().rename(old, new)

    def link(self, old: Path, new: Path) -> None:
        self._step("link")
        super().link(old, new)

    def remove(self, path: Path) -> None:
        self._step("remove")
        super().remove(path)

    def make_folder(self, path: Path) -> None:
        self._step("make_folder")
        super().make_folder(path)

    def _step(self, name: str) -> None:
        self.steps.append(name)
        self.on_step(name)


class RefusingDisk(WatchedDisk):
    """Refuses the steps named in ``refused`` with error ``code``, as long as they stand there."""

    def __init__(self, refused: set[str] | None = None, code: int = errno.EIO) -> None:
        super().__init__(self._refuse)
        self.refused = refused or set()
        self.code = code

    def _refuse(self, name: str) -> None:
        if name in self.refused:
            raise OSError(self.code, os.strerror(self.code))


class StallingDisk(RefusingDisk):
    """Waits at each ``sync_data`` until ``go_on`` is set; ``has_stalled`` tells that it does."""

    def __init__(self) -> None:
        super().__init__()
        self.has_stalled, self.go_on = threading.Event(), threading.Event()

    def sync_data(self, fd: int) -> None:
        self.has_stalled.set()
        assert self.go_on.wait(30)
        super().sync_data(fd)


class ForgetfulDisk(WatchedDisk):
    """Knows what a power cut would leave: contents as last synced, names as last synced or, as it may be, the newest.

    After each step ``check`` is called with a folder of either kind.
    """

    def __init__(self, home: Path, scratch: Path, check: Callable[[Path], None]) -> None:
        super().__init__()
        self._home, self._scratch, self._check = home, scratch, check
        self._contents: dict[int, bytes] = {}
        self._names: dict[str, int] = {}
        self._kept: list[int] = []  # open files, so that no inode number is given twice

    def open(self, path: Path, flags: int) -> int:
        fd = super().open(path, flags)
        if flags & os.O_EXCL:
            self._kept.append(os.dup(fd))
        return fd

    def sync(self, fd: int) -> None:
        super().sync(fd)
        self._synced(fd)

    def sync_data(self, fd: int) -> None:
        super().sync_data(fd)
        self._synced(fd)

    def close(self) -> None:
        for fd in self._kept:
            os.close(fd)

    def _synced(self, fd: int) -> None:
        status = os.fstat(fd)
        if stat.S_ISDIR(status.st_mode):
            self._names = self._real_names()
            return
        [name] = [name for name, inode in self._real_names().items() if inode == status.st_ino]
        self._contents[status.st_ino] = (self._home / name).read_bytes()

    def _real_names(self) -> dict[str, int]:
        return {path.name: path.stat().st_ino for path in self._home.iterdir()}

    def _step(self, name: str) -> None:
        super()._step(name)
        for number, names in enumerate((self._names, self._real_names())):
            folder = self._scratch / f"{len(self.steps)}-{number}"
            folder.mkdir()
            for file, inode in names.items():
                (folder / file).write_bytes(self._contents.get(inode, b""))
            self._check(folder)


@contextmanager
def started(target: Callable[..., None], *arguments: Any) -> Iterator[tuple[Connection, Any]]:
    """Run ``target(connection, *arguments)`` in a process of its own; gives our end, and the process."""
    ours, theirs = PROCESSES.Pipe()
    process = PROCESSES.Process(target=target, args=(theirs, *arguments))
    process.start()
    theirs.close()
    try:
        yield ours, process
    finally:
        process.kill()
        process.join()
        process.close()
        ours.close()


def received(connection: Connection) -> list[Any]:
    """Everything that a process sent before it ended."""
    messages = []
    try:
        while True:
            messages.append(connection.recv())
    except (EOFError, ConnectionResetError):
        return messages


SCRIPT = [("openai:a", "m1"), ("global", "m2"), ("openai:a", "m3")]


def die_at_step(connection: Connection, home: Path, number: int) -> None:
    """Make the changes of SCRIPT, folding after each, and tell of each when it is durable; die at one step of it."""

    def on_step(name: str) -> None:
        if len(disk.steps) == number:
            os.kill(os.getpid(), signal.SIGKILL)

    async def work() -> None:
        async with open_sessions(home, folding=ALWAYS, disk=disk) as sessions:
            for change in SCRIPT:
                await sessions.select(*change).wait()
                connection.send(change)

    disk = WatchedDisk(on_step)
    trio.run(work)


def change_for_ever(connection: Connection, home: Path, name: str) -> None:
    """Change 8 sessions of one's own and one that all share, in bursts; tell of each before, and when durable."""

    async def work() -> None:
        async with open_sessions(home, folding=Folding(min_bytes=600, quiet_delay=0.001)) as sessions:
            for number in range(1_000_000):
                keys = [f"openai:{name}-{random.randrange(8)}" for _ in range(random.randrange(4))]
                aliases = dict.fromkeys([*keys, "openai:shared"], f"{name}-{number}")
                connection.send(("begun", aliases))
                changes = [sessions.select(*change) for change in aliases.items()]
                for change in changes:
                    await change.wait()
                connection.send(("done", aliases))

    trio.run(work)


def change_own_and_shared(connection: Connection, home: Path, name: str, count: int) -> None:
    """Select a number of aliases for a key of one's own and for a shared one; then tell what one sees."""

    async def work() -> None:
        async with open_sessions(home, folding=Folding(min_bytes=600, quiet_delay=0.001)) as sessions:
            for number in range(count):
                sessions.select(f"openai:{name}", f"m{number}")
                await sessions.select("openai:shared", f"{name}-{number}").wait()
            connection.send(sessions.selected(f"openai:{name}"))

    trio.run(work)


def obey(connection: Connection, home: Path) -> None:
    """Call methods of Sessions as told, and answer with what they return; a change, when it is durable."""

    async def work() -> None:
        async with open_sessions(home) as sessions:
            connection.send("ready")
            while order := await trio.to_thread.run_sync(connection.recv):
                method, *arguments = order
                result = getattr(sessions, method)(*arguments)
                if method in ("select", "delete"):
                    result = await result.wait()
                connection.send(result)

    trio.run(work)


def hold_lock_for_ever(connection: Connection, path: Path) -> None:
    from picoclaw_trio.state.disk import hold_lock

    with hold_lock(Disk(), path):
        connection.send("held")
        signal.pause()
