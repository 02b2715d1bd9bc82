"""Looking up hosts' names, so that one that hangs holds up nobody but those who want it.

Theory: the system's look-up blocks a thread for as long as its name servers are silent, and cannot be ended. Trio has
40 threads for all who need one, so 40 such look-ups would hold up every other name, and whatever else is done in a
thread. Here each name has a few of its own.
Editing rule: nobody calls the system's look-up but this room.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any
from weakref import WeakValueDictionary

import trio

# Threads for one name. Most look-ups take milliseconds, and whoever waits longer gives up with his connect's timeout.
LOOKUPS_OF_A_NAME = 4


class Lookups(trio.abc.HostnameResolver):
    """The system's look-ups, in threads of their own."""

    def __init__(self) -> None:
        # {name: its threads}, as long as somebody waits for the name or a thread is at it
        self._limiters: WeakValueDictionary[object, trio.CapacityLimiter] = WeakValueDictionary()

    async def getaddrinfo(self, host: Any, port: Any, *options: int) -> Any:
        return await self._run(host, partial(socket.getaddrinfo, host, port, *options))

    async def getnameinfo(self, sockaddr: Any, flags: int) -> Any:
        return await self._run(sockaddr[0], partial(socket.getnameinfo, sockaddr, flags))

    async def _run(self, name: object, look_up: partial[Any]) -> Any:
        limiter = self._limiters.get(name)
        if limiter is None:
            limiter = self._limiters[name] = trio.CapacityLimiter(LOOKUPS_OF_A_NAME)
        return await trio.to_thread.run_sync(look_up, abandon_on_cancel=True, limiter=limiter)


@contextmanager
def own_threads() -> Iterator[None]:
    """Within the block all of this run of Trio looks names up in threads of their own."""
    before = trio.socket.set_custom_hostname_resolver(Lookups())
    try:
        yield
    finally:
        trio.socket.set_custom_hostname_resolver(before)
