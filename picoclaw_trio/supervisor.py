"""Tell the service manager that we serve, live, or stop.

Theory: systemd gives a service a datagram socket; a line of text to it is all there is. Without that socket (no
systemd, or another service type) every call does nothing.

Source: the manual page sd_notify(3).
"""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping

import attrs
import structlog
import trio

log = structlog.stdlib.get_logger("picoclaw_trio.supervisor")


@attrs.frozen
class Supervisor:
    """The service manager, as its environment variables describe it.

    Attributes:
        address: of its socket; None where there is no service manager.
        watchdog_timeout: seconds of silence after which it restarts us; None where it does not watch.
    """

    address: str | None
    watchdog_timeout: float | None

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] = os.environ) -> Supervisor:
        watched_pid = environ.get("WATCHDOG_PID")
        is_watched = "WATCHDOG_USEC" in environ and watched_pid in (None, str(os.getpid()))
        timeout = int(environ["WATCHDOG_USEC"]) / 1e6 if is_watched else None
        return cls(environ.get("NOTIFY_SOCKET") or None, timeout)

    def notify(self, *lines: str) -> None:
        """Send one message, e.g. ``READY=1``. A service manager that cannot be reached is no reason to stop serving."""
        if self.address is None:
            return
        # A leading "@" stands for the abstract namespace.
        address = f"\0{self.address[1:]}" if self.address.startswith("@") else self.address
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
                sender.connect(address)
                sender.sendall("\n".join(lines).encode())
        except OSError as exc:
            log.warning("the service manager cannot be told", lines=lines, error=str(exc))

    async def run_watchdog(self) -> None:
        """Say three times in each watchdog timeout that the event loop turns. A task for the server's nursery."""
        if self.watchdog_timeout is None:
            await trio.sleep_forever()
        else:
            while True:
                self.notify("WATCHDOG=1")
                await trio.sleep(self.watchdog_timeout / 3)
