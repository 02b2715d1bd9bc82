"""One program under its keeper: starting the two, following their streams, letting go of them.

Theory: the keeper (``keeper.py``) ends everything as soon as our end of its socket closes, and that closes when we die,
too. So all that is to be done at the end, however it comes, is to close it and to wait for the keeper. The program's
streams come straight to us; what is beyond their bound is read, counted and dropped, so that the program can go on.
Editing rule: what a program is and what is told of it is decided in ``programs``; here is only its way through.
"""

from __future__ import annotations

import json
import logging
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

import trio

from ..shapes import Json
from .output import Output
from .values import ToolError

KEEPER = (sys.executable, "-I", "-S", "-X", "utf8", str(Path(__file__).with_name("keeper.py")))
# A program that writes without end must not keep us busy until its time is over.
MAX_READ_BYTES = 1024**3
# A keeper has told how it went, or has ended everything, so many seconds after the time was over or it was told.
KEEPER_TIMEOUT = 10.0
STREAMS_TIMEOUT = 5.0

log = logging.getLogger("picoclaw_trio.tools")


class Kept:
    """One program, its keeper, and what has come from them."""

    def __init__(self, max_chars: int) -> None:
        self.stdout, self.stderr = Output(max_chars), Output(max_chars)
        self.read_bytes = 0
        self.is_flooding = False

    async def run(self, order: Mapping[str, Json], folder: int, given: str | None) -> dict[str, Json]:
        """Carry out *order* in the open *folder* with *given* as standard input; gives the keeper's report.

        Raises:
            ToolError: there is no report.
        Cancellation: the program and all that came from it have ended before the cancellation goes on.
        """
        with _socket_pair() as (ours, theirs):
            keeper = await _start_keeper(theirs, folder, has_input=given is not None)
            theirs.close()
            control = trio.SocketStream(trio.socket.from_stdlib_socket(ours))
            try:
                return await self._follow(keeper, control, order, given)
            finally:
                await _end(keeper, control)

    async def _follow(
        self, keeper: trio.Process, control: trio.SocketStream, order: Mapping[str, Json], given: str | None
    ) -> dict[str, Json]:
        assert keeper.stdout is not None
        assert keeper.stderr is not None
        report = b""
        with trio.move_on_after(order["timeout"] + KEEPER_TIMEOUT):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._read, keeper.stdout, self.stdout, control)
                nursery.start_soon(self._read, keeper.stderr, self.stderr, control)
                if keeper.stdin is not None:
                    nursery.start_soon(_feed, keeper.stdin, (given or "").encode())
                try:
                    await control.send_all(json.dumps(order).encode() + b"\n")
                    async for piece in control:
                        report += piece
                except trio.BrokenResourceError:
                    log.debug("the keeper of %s has gone", order["program"])
                # All that held the streams have ended, so their ends are near, unless another process was given one.
                nursery.cancel_scope.deadline = trio.current_time() + STREAMS_TIMEOUT
        return _understood(report, order)

    async def _read(self, stream: trio.abc.ReceiveStream, output: Output, control: trio.SocketStream) -> None:
        async for data in stream:
            self.read_bytes += len(data)
            output.add(bytes(data))
            if self.read_bytes > MAX_READ_BYTES and not self.is_flooding:
                self.is_flooding = True
                with suppress(trio.BrokenResourceError):  # the keeper has gone already
                    await control.send_eof()
        output.add(b"", final=True)


@contextmanager
def _socket_pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


async def _start_keeper(control: socket.socket, folder: int, *, has_input: bool) -> trio.Process:
    """Start a keeper, which has our streams, but nothing of our environment and no other descriptor of ours."""
    start = partial(
        trio.lowlevel.open_process,
        stdin=subprocess.PIPE if has_input else subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={},
        cwd="/",
        pass_fds=(control.fileno(), folder),
        start_new_session=True,
    )
    try:
        return await start([*KEEPER, str(control.fileno()), str(folder)])
    except OSError as exc:
        log.error("cannot start a process: %s", exc)
        raise ToolError("this host cannot start a program now") from exc


async def _feed(stream: trio.abc.SendStream, data: bytes) -> None:
    async with stream:
        try:
            await stream.send_all(data)
        except trio.BrokenResourceError:
            log.debug("a program did not read all of its input")


async def _end(keeper: trio.Process, control: trio.SocketStream) -> None:
    """Let go of the keeper, and wait until it has ended everything."""
    with trio.CancelScope(shield=True), trio.move_on_after(KEEPER_TIMEOUT):
        await trio.aclose_forcefully(control)
        keeper.send_signal(signal.SIGCONT)  # a program could have stopped it
        await keeper.wait()
    for stream in (keeper.stdin, keeper.stdout, keeper.stderr):
        if stream is not None:
            with trio.CancelScope(shield=True):
                await trio.aclose_forcefully(stream)
    if keeper.returncode is None:
        log.error("the keeper %d of a program is still at work", keeper.pid)


def _understood(report: bytes, order: Mapping[str, Json]) -> dict[str, Json]:
    """The keeper's report; without one it was killed, by somebody else or by the program itself."""
    try:
        understood: dict[str, Json] = json.loads(report)
    except ValueError:
        log.error("the keeper of %s gave no report", order["program"])
        raise ToolError("the program was lost: its keeper was killed") from None
    return understood
