"""Tell the service manager that we serve, live, or stop.

Theory: systemd gives a service a datagram socket; a line of text to it is all there is. Without that socket (no
systemd, or another service type) every call does nothing.

Source: the manual page sd_notify(3).
"""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Mapping

import attrs
import structlog
import trio

# The C library's own reader takes 64 bits.
WATCHDOG_USEC = re.compile(r"0*[1-9][0-9]{0,17}")

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
        is_ours = environ.get("WATCHDOG_PID") in (None, "", str(os.getpid()))
        timeout = _watchdog_timeout(environ.get("WATCHDOG_USEC", "")) if is_ours else None
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


def _watchdog_timeout(text: str) -> float | None:
    """Seconds, from microseconds; None where there are none. A start must not fail for what only watches it."""
    if WATCHDOG_USEC.fullmatch(text):
        return int(text) / 1e6
    if text:
        log.warning("WATCHDOG_USEC is no number of microseconds, so nobody is told that we live", value=text[:100])
    return None
