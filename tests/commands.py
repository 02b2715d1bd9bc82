"""The command line as processes of its own: over pipes, and at a terminal."""

from __future__ import annotations

import fcntl
import os
import pty
import signal
import sys
import termios
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import attrs
import trio
from harness import make_environment

END_TIMEOUT = 20.0


@attrs.frozen
class Ran:
    """How a command ended."""

    status: int
    out: str
    err: str


async def run(home: Path, *arguments: str, typed: str | bytes = b"", **environment: str) -> Ran:
    """Run ``picoclaw`` to its end; *typed* is its standard input."""
    data = typed.encode() if isinstance(typed, str) else typed
    with trio.fail_after(END_TIMEOUT):
        done = await trio.run_process(
            [sys.executable, "-m", "picoclaw_trio", *arguments],
            stdin=data,
            capture_stdout=True,
            capture_stderr=True,
            check=False,
            env={**make_environment(home), **environment},
            cwd=home,
        )
    return Ran(done.returncode, done.stdout.decode(), done.stderr.decode())


@attrs.define
class Terminal:
    """A pseudo terminal with a command at it."""

    process: trio.Process
    master: int
    slave: int
    stream: trio.lowlevel.FdStream
    shown: str = ""

    async def see(self, text: str) -> str:
        """Wait until *text* is shown, and give what came before it and has not been seen yet."""
        with trio.move_on_after(END_TIMEOUT):
            while text not in self.shown:
                self.shown += (await self.stream.receive_some()).decode(errors="replace")
        assert text in self.shown
        before, _, self.shown = self.shown.partition(text)
        return before

    async def type(self, keys: str) -> None:
        await self.stream.send_all(keys.encode())

    async def end(self) -> int:
        """Wait for the command's end; give its exit status."""
        with trio.fail_after(END_TIMEOUT):
            return await self.process.wait()

    def modes(self) -> list[int]:
        """How the terminal treats what is typed."""
        return termios.tcgetattr(self.slave)[:4]


def at_terminal(home: Path, *arguments: str, **environment: str) -> AbstractAsyncContextManager[Terminal]:
    """Run ``picoclaw`` at a terminal, a plain one unless TERM is given; kill it at the end of the block if it runs."""
    return open_terminal(home, arguments, environment)


@asynccontextmanager
async def open_terminal(
    home: Path, arguments: Sequence[str], environment: Mapping[str, str], out: int | None = None
) -> AsyncIterator[Terminal]:
    """The same.

    Args:
        out: file to which its standard output goes instead.
    """
    master, slave = pty.openpty()

    def take_terminal() -> None:
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)

    process = await trio.lowlevel.open_process(
        [sys.executable, "-m", "picoclaw_trio", *arguments],
        stdin=slave,
        stdout=slave if out is None else out,
        stderr=slave,
        env={**make_environment(home), "TERM": "dumb", **environment},
        cwd=home,
        start_new_session=True,
        preexec_fn=take_terminal,
    )
    try:
        async with trio.lowlevel.FdStream(os.dup(master)) as stream:
            yield Terminal(process, master, slave, stream)
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGKILL)
        with trio.CancelScope(shield=True):
            await process.wait()
        os.close(master)
        os.close(slave)


async def converse(home: Path, *lines: str, arguments: Sequence[str] = (), status: int = 0) -> list[list[str]]:
    """Type *lines* at a terminal, one after the other, and leave; gives the lines that are shown after each."""
    shown = []
    async with at_terminal(home, "agent", *arguments, COLUMNS="10000") as terminal:
        await terminal.see("\r\n> ")
        for line in lines:
            await terminal.type(f"{line}\r")
            await terminal.see(f"{line}\r\n")
            shown.append(f"\r\n{await terminal.see('> ')}".splitlines()[1:])
        await terminal.type("\x04")
        assert status == await terminal.end()
    return shown


def snapshot(folder: Path) -> dict[str, bytes]:
    """Every file below *folder*, with what is in it."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
