"""Processes that are asked something and answer, until they are killed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

import attrs
from state_disks import PROCESSES

WAIT = 30.0


@attrs.define
class Answering:
    """A process and the way to ask it."""

    process: BaseProcess
    pipe: Connection

    def ask(self, wish: Any) -> Any:
        self.pipe.send(wish)
        return self.hear()

    def hear(self) -> Any:
        assert self.pipe.poll(WAIT)
        return self.pipe.recv()

    def kill(self) -> None:
        self.process.kill()
        self.process.join(WAIT)


@contextmanager
def answering(work: Callable[..., None], *arguments: Any) -> Iterator[Answering]:
    """A process that does *work* until the block ends, with *arguments* and a pipe that first says when it is ready."""
    ours, theirs = PROCESSES.Pipe()
    running = Answering(PROCESSES.Process(target=work, args=(*arguments, theirs), daemon=True), ours)
    running.process.start()
    try:
        running.hear()
        yield running
    finally:
        running.kill()
