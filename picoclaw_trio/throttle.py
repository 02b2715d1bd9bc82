"""Slow down an address that keeps sending wrong tokens.

Theory: each address may be wrong so many times at once, and so many times a minute; while it has used that up, all its
requests wait, the right ones too, since otherwise guessing would go on at full speed. Addresses are few in memory: the
one that was wrong longest ago is forgotten first, and one that has its whole allowance again is not kept at all.
No clock and no I/O: the time is passed in.
"""

from __future__ import annotations

import ipaddress
import math
from collections import OrderedDict

import attrs

from .errors import GatewayError

# Seconds between two lines of the log on one address, and lines in this time on all.
TELL_DELAY = 60.0
MAX_TOLD = 100


class TooManyFailuresError(GatewayError):
    """This address has sent too many wrong tokens of late."""

    def __init__(self, retry_after: float) -> None:
        super().__init__(
            429,
            "rate_limit_error",
            "Too many requests from this address had a wrong token.",
            code="too_many_failures",
            headers={"Retry-After": str(max(1, math.ceil(retry_after)))},
        )


@attrs.define
class Throttle:
    """Allowances of wrong tokens.

    Args:
        per_minute: wrong tokens that an address may send in a minute, and at once; 0: as many as it likes.
        max_addresses: how many addresses are remembered.
    """

    per_minute: int
    max_addresses: int = 10_000
    # {address: (wrong tokens that are held against it, when that was so)}, the least recent first.
    _debts: OrderedDict[str, tuple[float, float]] = attrs.field(factory=OrderedDict, init=False)
    # {address: when the log had a line of it}, of the last minute, the oldest first.
    _told: OrderedDict[str, float] = attrs.field(factory=OrderedDict, init=False)

    def set_limit(self, per_minute: int) -> None:
        """Take another limit from now on; what an address owes stays, up to what it could owe under the new one."""
        self.per_minute = per_minute
        debts = ((address, (min(debt, per_minute), at)) for address, (debt, at) in self._debts.items())
        self._debts = OrderedDict(debts if per_minute else ())

    def check(self, address: str | None, now: float) -> None:
        """
        Args:
            address: where the request comes from; None where nobody can tell, as on a Unix socket.
            now: seconds on any steady clock.

        Raises:
            TooManyFailuresError: status 429, with the seconds until the next try.
        """
        if address is None or not self._debts:
            return
        debt = self._debt(_group(address), now)
        if debt > self.per_minute - 1:
            raise TooManyFailuresError((debt - self.per_minute + 1) * 60 / self.per_minute)

    def should_tell(self, address: str | None, now: float) -> bool:
        """Whether the log is to have a line of this address: one a minute, and few of all addresses together."""
        while self._told and next(iter(self._told.values())) <= now - TELL_DELAY:
            self._told.popitem(last=False)
        group = "" if address is None else _group(address)
        if group in self._told or len(self._told) >= MAX_TOLD:
            return False
        self._told[group] = now
        return True

    def note_failure(self, address: str | None, now: float) -> None:
        """Hold a wrong token against *address*."""
        if address is None or not self.per_minute:
            return
        group = _group(address)
        self._debts[group] = (self._debt(group, now) + 1, now)
        self._debts.move_to_end(group)
        if len(self._debts) > self.max_addresses:
            self._debts.popitem(last=False)

    def _debt(self, group: str, now: float) -> float:
        debt, at = self._debts.get(group, (0.0, now))
        left = debt - (now - at) * self.per_minute / 60
        if left <= 0:
            self._debts.pop(group, None)
            return 0.0
        return left


def _group(address: str) -> str:
    """An IPv4 address itself; of an IPv6 address the network of 64 bits, which one household has whole."""
    try:
        ip = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if ip.version == 4 or ip.is_loopback:
        return address
    mapped = ip.ipv4_mapped
    return str(mapped) if mapped else str(ipaddress.ip_network((ip, 64), strict=False))
