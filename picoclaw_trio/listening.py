"""The sockets at which ``picoclaw gateway`` listens.

Theory: Hypercorn makes them, one address at a time, so that a failure names the one that it is about. Its socket for
all addresses of IPv6 would take those of IPv4 as well; where these have a socket of their own, so has IPv6, at its
port.
Editing rule: nothing here knows the configuration.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable
from contextlib import ExitStack

from hypercorn.config import Config as HypercornConfig
from hypercorn.config import Sockets

from .errors import GatewayError

BACKLOG = 2048
ALL_IPV4, ALL_IPV6 = "0.0.0.0", "[::]"  # noqa: S104 - what somebody asks for


class StartError(GatewayError):
    """The server cannot start: its address is taken, or is none of this machine's."""

    def __init__(self, message: str) -> None:
        super().__init__(500, "server_error", message, code="cannot_start")


def listen(hypercorn: HypercornConfig) -> Sockets:
    """A socket for each address of ``hypercorn.bind``, one for two names of the same.

    Raises:
        StartError: an address is taken, or is none of this machine's.
    """
    sockets: dict[object, list[socket.socket]] = {}
    with ExitStack() as undo:
        # That of IPv6 last, when the port of that of IPv4 is known.
        for bind in sorted(hypercorn.bind, key=lambda bind: bind.startswith(ALL_IPV6)):
            try:
                address = _resolve(bind)
                if address not in sockets:
                    sockets[address] = _open(bind, [one for opened in sockets.values() for one in opened])
                    for one in sockets[address]:
                        undo.enter_context(one)
                        one.listen(BACKLOG)
            except OSError as exc:
                raise StartError(f"cannot serve at {bind}: {exc.strerror or exc}") from exc
        undo.pop_all()
    return Sockets([], [one for opened in sockets.values() for one in opened], [])


def _resolve(bind: str) -> object:
    """The address that Hypercorn will take for *bind*."""
    host, _, port = bind.rpartition(":")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.getaddrinfo(host.strip("[]"), int(port), family, socket.SOCK_STREAM)[0][4]


def _open(bind: str, others: list[socket.socket]) -> list[socket.socket]:
    if bind.startswith(ALL_IPV6):
        for host, port, *_ in (other.getsockname() for other in others):
            if host == ALL_IPV4:
                return open_every_ipv6(port)
    one = HypercornConfig()
    one.bind = [bind]
    sockets: list[socket.socket] = one.create_sockets().insecure_sockets
    return sockets


def open_every_ipv6(port: int, make: Callable[..., socket.socket] = socket.socket) -> list[socket.socket]:
    """A socket for all addresses of IPv6 and no other; none where the machine has no IPv6.

    Raises:
        OSError: the port is taken.
    """
    with ExitStack() as undo:
        try:
            sock = undo.enter_context(make(socket.AF_INET6, socket.SOCK_STREAM))
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind(("::", port))
        except OSError as exc:
            if exc.errno in (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL):
                return []
            raise
        undo.pop_all()
    sock.setblocking(False)
    return [sock]
