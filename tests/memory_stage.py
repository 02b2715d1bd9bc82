"""What the tests of the agent's memory say to it, and processes that use it until they are killed."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from multiprocessing.connection import Connection
from pathlib import Path

import trio
from state_disks import WatchedDisk

from picoclaw_trio.memory import Memory, Recollection, Said, open_memory
from picoclaw_trio.memory.files import file_stem
from picoclaw_trio.messages import Message
from picoclaw_trio.state import Disk

WINDOW = 100_000
KEY = "openai:ann"
DISK = Disk()


def user(text: str) -> Message:
    return Message("user", {"role": "user", "content": text})


def answer(text: str) -> Message:
    return Message("assistant", {"role": "assistant", "content": text})


@asynccontextmanager
async def memory_in(
    folder: Path, *, max_sessions: int = 100, session_ttl: float | None = None, disk: Disk = DISK
) -> AsyncIterator[Memory]:
    async with open_memory(folder, max_sessions=max_sessions, session_ttl=session_ttl, disk=disk) as memory:
        yield memory


@asynccontextmanager
async def recalled(
    memory: Memory, *texts: str, key: str = KEY, window: int = WINDOW, wait: float = 5.0
) -> AsyncIterator[Recollection]:
    """A turn; *texts* are said by user and agent in turns."""
    said = [(answer if index % 2 else user)(text) for index, text in enumerate(texts)]
    async with memory.recall(key, said, window=window, wait=wait) as recollection:
        yield recollection


async def take_turn(memory: Memory, *texts: str, reply: str, key: str = KEY, wait: float = 5.0) -> None:
    async with recalled(memory, *texts, key=key, wait=wait) as recollection:
        await recollection.record([Said(answer(reply))])


def texts_of(messages: tuple[Message, ...] | tuple[Said, ...]) -> list[str]:
    plain = [entry.message if isinstance(entry, Said) else entry for entry in messages]
    return [message.body["content"] for message in plain]


async def shown(folder: Path, key: str = KEY) -> list[str]:
    """What somebody finds who opens the memory now."""
    async with memory_in(folder) as memory:
        return texts_of(await memory.show(key))


def names(folder: Path, suffix: str = "") -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name.endswith(suffix))


def transcript_path(folder: Path, key: str = KEY) -> Path:
    return folder / f"{file_stem(key)}.jsonl"


def contents(folder: Path, key: str = KEY) -> bytes:
    return transcript_path(folder, key).read_bytes()


# (what the client sends, what the agent answers)
SCRIPT = ((("a",), "A"), (("a", "A", "b"), "B"), (("a", "A", "x"), "X"), (("c",), "C"))
# What is stored after each of them.
STORED: tuple[list[str], ...] = (
    [],
    ["a", "A"],
    ["a", "A", "b", "B"],
    ["a", "A", "x", "X"],
    ["a", "A", "x", "X", "c", "C"],
)


async def play(memory: Memory, connection: Connection | None = None) -> None:
    """Turns of one session that continue it, and one that replaces its end; tells when each of them is stored."""
    for number, (texts, reply) in enumerate(SCRIPT):
        await take_turn(memory, *texts, reply=reply)
        if connection:
            connection.send(number + 1)


def die_at_step(connection: Connection, folder: Path, number: int) -> None:
    """Play SCRIPT, and die just before the step *number* that changes the disk."""

    def on_step(name: str) -> None:
        if len(disk.steps) == number:
            os.kill(os.getpid(), signal.SIGKILL)

    async def work() -> None:
        async with memory_in(folder, disk=disk) as memory:
            await play(memory, connection)

    disk = WatchedDisk(on_step)
    trio.run(work)


def talk_for_ever(connection: Connection, folder: Path, name: str, key: str) -> None:
    """Say one word after the other in one session; tell of each before, and when it is stored."""

    async def work() -> None:
        async with memory_in(folder) as memory:
            for number in range(1_000_000):
                word = f"{name}-{number}"
                connection.send(("begun", word))
                await take_turn(memory, word, reply="x" * (number % 7 * 1000), key=key, wait=60.0)
                connection.send(("done", word))

    trio.run(work)


def talk(connection: Connection, folder: Path, name: str, count: int) -> None:
    """Take *count* turns of KEY."""

    async def work() -> None:
        async with memory_in(folder) as memory:
            for number in range(count):
                await take_turn(memory, f"{name}-{number}", reply="yes", wait=60.0)
            connection.send("done")

    trio.run(work)


def hold_session(connection: Connection, folder: Path, key: str) -> None:
    """Have a session's turn until told to end it."""

    async def work() -> None:
        async with memory_in(folder) as memory, recalled(memory, "hello", key=key):
            connection.send("held")
            await trio.to_thread.run_sync(connection.recv)
        connection.send("free")

    trio.run(work)
