"""A gateway in this process that asks each target once, and a client of it."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, MutableMapping
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, TypeAlias

import httpx2
import structlog
import trio
import trio.testing
from harness import TOKEN, Here, open_client, serve_here
from host_client import WAIT

from picoclaw_trio.upstream import RetryPolicy

Lines: TypeAlias = list[MutableMapping[str, Any]]

PATH = "/v1/chat/completions"
ONCE = RetryPolicy(max_attempts=1)


@asynccontextmanager
async def serving(
    folder: Path, config: Mapping[str, Any], policy: RetryPolicy = ONCE
) -> AsyncIterator[tuple[Here, httpx2.AsyncClient]]:
    async with serve_here(folder, config) as server, open_client(server.url) as client:
        server.gateway.upstream.policy = policy
        yield server, client


def port_of(server: Here) -> int:
    return int(server.url.rpartition(":")[2])


def head(method: str = "POST", path: str = PATH, *, length: int | None = None, **headers: str) -> bytes:
    """The head of a request; ``_`` in a header's name stands for ``-``."""
    fields = {"Host": "x", "Authorization": f"Bearer {TOKEN}", **headers}
    if length is not None:
        fields["Content-Length"] = str(length)
    lines = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in fields.items())
    return f"{method} {path} HTTP/1.1\r\n{lines}\r\n".encode("latin-1")


async def wait_until(condition: Callable[[], bool], timeout: float = WAIT) -> None:
    """Return when *condition* holds; it is looked at whenever nothing in this process has anything to do."""
    with trio.fail_after(timeout):
        while not condition():
            await trio.testing.wait_all_tasks_blocked(0.001)


@contextmanager
def logged() -> Iterator[Lines]:
    """The lines that are logged meanwhile, of the levels from info on."""
    requests, before = logging.getLogger("picoclaw_trio.requests"), structlog.get_config()
    level = requests.level
    requests.setLevel(logging.INFO)
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.INFO))
    try:
        with structlog.testing.capture_logs() as lines:
            yield lines
    finally:
        structlog.configure(**before)
        requests.setLevel(level)
