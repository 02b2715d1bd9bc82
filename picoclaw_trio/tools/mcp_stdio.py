"""An MCP server as a process of ours: a message a line through its standard input and output.

Theory: the process leads a group of its own, so a Ctrl-C in our terminal does not reach it, and its children are ended
with it. It is ended as the protocol says: its input is closed, then a request to stop, then a kill, each with a
bound on the waiting. When we are killed ourselves, the end of its input is what tells it to go.
The ``mcp`` package has such a transport too; this one bounds a line, keeps the log readable whatever a server writes,
and notices the end of a process whose children hold its output open.
Editing rule: whatever the server does wrong leaves as ``ServerGone`` or as a line in the log.

Source: https://modelcontextprotocol.io/specification/2025-11-25/basic/transports section "stdio"
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress

import anyio
import attrs
import structlog
import trio
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream
from mcp.shared.message import SessionMessage
from mcp_types import INTERNAL_ERROR, ErrorData, JSONRPCError, jsonrpc_message_adapter

from .clean import clean_text
from .mcp_lines import Line, LineSplitter, Ration

log = structlog.stdlib.get_logger("picoclaw_trio.tools.mcp")

MAX_MESSAGE_BYTES = 8 * 1024 * 1024
MAX_LOG_CHARS = 500
MAX_LOG_LINES, LOG_WINDOW = 50, 10.0
# Some servers greet on standard output; one that writes nothing but other things is not one of ours.
MAX_OTHER_LINES = 1_000
# What a process wrote before its end may still be in the pipe.
LINGER = 0.5
# Once its input has ended, and once more after SIGTERM.
GRACE = 2.0
# For messages that a server is slow to read: a cancellation must get past the request that it cancels.
OUTBOX = 16
ANSWERED_ID = re.compile(rb'^\{"jsonrpc": ?"2\.0", ?"id": ?(\d{1,9}),|, ?"jsonrpc": ?"2\.0", ?"id": ?(\d{1,9})\}$')

Inbox = MemoryObjectSendStream[SessionMessage | Exception]
Streams = tuple[MemoryObjectReceiveStream[SessionMessage | Exception], MemoryObjectSendStream[SessionMessage]]


class ServerGone(Exception):
    """The connection to a server has ended. The text is for the log."""


@asynccontextmanager
async def open_process(
    name: str, command: Sequence[str], environment: Mapping[str, str], secrets: Sequence[str] = ()
) -> AsyncIterator[Streams]:
    """Start *command* and give what a session of the ``mcp`` package reads from and writes to.

    What it writes to standard error goes to the log, without *secrets*.

    Raises:
        ServerGone: on leaving, in a group: the process has ended, or closed its output.
        OSError: it cannot be started.
    Cancellation: the process and its children are ended before it goes on; that takes at most some 5 seconds.
    """
    process = await trio.lowlevel.open_process(
        list(command),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment,
        start_new_session=True,
    )
    into, inbox = anyio.create_memory_object_stream[SessionMessage | Exception](0)
    outbox, out_of = anyio.create_memory_object_stream[SessionMessage](OUTBOX)
    chatter = Chatter(name, tuple(secrets))
    with into, inbox, outbox, out_of:
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_read, process, into, chatter)
                nursery.start_soon(_write, process, out_of)
                nursery.start_soon(_log_errors, process, chatter)
                nursery.start_soon(_wait_end, process)
                yield inbox, outbox
                nursery.cancel_scope.cancel()
        finally:
            with trio.CancelScope(shield=True):
                await _end(process)


@attrs.define
class Chatter:
    """What a server writes that is no message, for the log: bounded lines in a bounded number, without secrets."""

    server: str
    secrets: tuple[str, ...]
    _ration: Ration = attrs.field(factory=lambda: Ration(MAX_LOG_LINES, LOG_WINDOW, trio.current_time))

    def say(self, event: str, line: bytes) -> None:
        if not self._ration.allows():
            return
        if dropped := self._ration.take_dropped():
            log.warning("an MCP server wrote more than is logged", server=self.server, lines_dropped=dropped)
        text = line.decode(errors="replace")
        for secret in self.secrets:
            text = text.replace(secret, "***")
        log.info(event, server=self.server, text=clean_text(text, MAX_LOG_CHARS))


async def _read(process: trio.Process, inbox: Inbox, chatter: Chatter) -> None:
    assert process.stdout is not None
    splitter = LineSplitter(MAX_MESSAGE_BYTES)
    others = 0
    async for data in process.stdout:
        for line in splitter.feed(bytes(data)):
            message = _parse(line)
            if message is not None:
                with suppress(anyio.BrokenResourceError):  # the session is being left
                    await inbox.send(message)
            elif line.head.strip():
                chatter.say("an MCP server wrote what is no message", line.head)
                others += 1
                if others > MAX_OTHER_LINES:
                    raise ServerGone("it writes what is no message")
    with trio.move_on_after(LINGER):
        await process.wait()
    raise ServerGone(_how_it_ended(process))


def _parse(line: Line) -> SessionMessage | None:
    """The message in *line*. Of an answer that cannot be used it is an error in answer to the same request."""
    reason = f"the answer is larger than {MAX_MESSAGE_BYTES} bytes"
    if line.is_whole:
        try:
            return SessionMessage(jsonrpc_message_adapter.validate_json(line.head, by_name=False))
        except ValueError:
            reason = "the answer makes no sense"
    match = ANSWERED_ID.search(line.head) or ANSWERED_ID.search(line.tail)
    if match is None:
        return None
    error = ErrorData(code=INTERNAL_ERROR, message=reason)
    return SessionMessage(JSONRPCError(jsonrpc="2.0", id=int(match[1] or match[2]), error=error))


async def _write(process: trio.Process, messages: MemoryObjectReceiveStream[SessionMessage]) -> None:
    assert process.stdin is not None
    async for item in messages:
        data = item.message.model_dump_json(by_alias=True, exclude_unset=True)
        try:
            await process.stdin.send_all(data.encode() + b"\n")
        except trio.BrokenResourceError as exc:
            raise ServerGone("it closed its input") from exc


async def _log_errors(process: trio.Process, chatter: Chatter) -> None:
    assert process.stderr is not None
    splitter = LineSplitter(4 * MAX_LOG_CHARS)
    async for data in process.stderr:
        for line in splitter.feed(bytes(data)):
            if line.head.strip():
                chatter.say("an MCP server says", line.head)


async def _wait_end(process: trio.Process) -> None:
    await process.wait()
    # Reading to the end of the output tells it first, unless a child of the process holds it open.
    await trio.sleep(LINGER)
    raise ServerGone(_how_it_ended(process))


def _how_it_ended(process: trio.Process) -> str:
    code = process.returncode
    if code is None:
        return "it closed its output"
    if code >= 0:
        return f"it exited with status {code}"
    known = -code in set(signal.Signals)  # most of the real-time signals have no name
    return f"it was ended by {signal.Signals(-code).name if known else f'signal {-code}'}"


async def _end(process: trio.Process) -> None:
    """Close its input, then ask its group to go, then kill; take what it still writes meanwhile."""
    assert process.stdin is not None
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_drain, process.stdout)
        nursery.start_soon(_drain, process.stderr)
        await process.stdin.aclose()
        for number in (signal.SIGTERM, signal.SIGKILL):
            with trio.move_on_after(GRACE):
                await process.wait()
            _signal_group(process, number if process.returncode is None else signal.SIGKILL)
        with trio.move_on_after(GRACE):  # only a process that hangs in the kernel outlives it
            await process.wait()
        nursery.cancel_scope.cancel()
    for stream in (process.stdout, process.stderr):
        assert stream is not None
        await stream.aclose()


async def _drain(stream: trio.abc.ReceiveStream | None) -> None:
    assert stream is not None
    with suppress(trio.ClosedResourceError, trio.BrokenResourceError):
        while await stream.receive_some():
            pass


def _signal_group(process: trio.Process, number: signal.Signals) -> None:
    """To the process and all that came from it, which may have outlived it."""
    with suppress(ProcessLookupError, PermissionError):  # macOS: the group's last member is a zombie
        os.killpg(process.pid, number)
