"""Whether a target is fit to be asked now: its health, and the requests a minute of its entry.

Theory: a target that fails is left alone for a while, longer each time, so that requests do not pay for finding out
again what the last one found out; one reply and it is well. Of attempts that were under way together the failures are
one trouble, and a reply does not unsay them: it was on its way before. A cool-down puts a target last, never out of
reach: where no other can answer it is asked all the same. Requests a minute are a bound: it is kept even where that
means waiting.
No clock and no I/O: the time is passed in, in seconds on any steady clock.
Editing rule: how long a kind of failure keeps a target out stands in ``COOL_DOWNS``.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from types import MappingProxyType

import attrs

# {kind of failure: (first cool-down, longest one) in seconds}; doubled with each trouble in a row.
# A kind that is not here says nothing about the target: the request was at fault.
COOL_DOWNS: Mapping[str, tuple[float, float]] = MappingProxyType(
    {
        "auth": (60.0, 3600.0),  # a person has to mend it
        "unknown_model": (60.0, 3600.0),
        "unsupported": (3600.0, 3600.0),
        "rate_limited": (5.0, 300.0),  # or as long as the upstream says, if that is longer
        "server": (2.0, 120.0),
        "backend_timeout": (5.0, 300.0),
        "unreachable": (2.0, 120.0),
        "lost": (2.0, 120.0),
        "garbled": (10.0, 300.0),
        "timeout": (5.0, 300.0),
    }
)
MAX_DOUBLINGS = 16


WINDOW = 60.0  # seconds in which "requests a minute" are counted, wherever they begin


@attrs.define
class Allowance:
    """Requests a minute, which all targets of an entry share, kept in any 60 seconds.

    Each request has a slot, the time at which it is made. It is reserved beforehand, so whoever has to wait knows at
    once how long, and nobody who comes later is served before.
    """

    rpm: int  # 0: no limit
    _slots: deque[float] = attrs.field(factory=deque, init=False)  # of the last minute and those to come, in order

    def wait(self, now: float) -> float:
        """Seconds until the slot that a request would get now. Reserves nothing."""
        return max(0.0, self._next(now) - now) if self.rpm else 0.0

    def reserve(self, now: float) -> float:
        """Reserve the next slot, and tell when it is."""
        if not self.rpm:
            return now
        slot = self._next(now)
        self._slots.append(slot)
        return slot

    def give_back(self, slot: float) -> None:
        """A request that had this slot will not be made; the next one to come need not wait for it."""
        with suppress(ValueError):  # there is no limit; or whoever waited was asleep for a minute after it
            self._slots.remove(slot)

    def _next(self, now: float) -> float:
        slots = self._slots
        while slots and slots[0] <= now - WINDOW:
            slots.popleft()
        last = max(now, slots[-1]) if slots else now
        return last if len(slots) < self.rpm else max(last, slots[-self.rpm] + WINDOW)


@attrs.define(eq=False)
class Health:
    """Whether one target cools down, and for how long."""

    troubles: int = attrs.field(default=0, init=False)  # in a row; failures of attempts under way together are one
    cool_until: float = attrs.field(default=-math.inf, init=False)
    _trouble_at: float = attrs.field(default=-math.inf, init=False)  # first failure of the last one in that row
    _failed_at: float = attrs.field(default=-math.inf, init=False)  # last failure

    def is_well(self, now: float) -> bool:
        return now >= self.cool_until

    def note_reply(self, began_at: float) -> None:
        """
        Args:
            began_at: when the attempt did that had a reply.
        """
        if began_at >= self._failed_at:
            self.troubles = 0
            self.cool_until = self._trouble_at = -math.inf

    def note_failure(self, kind: str, retry_after: float | None, began_at: float, now: float) -> None:
        """
        Args:
            retry_after: seconds that the upstream asked us to stay away, or None.
            began_at: when the attempt did that failed.
        """
        if kind not in COOL_DOWNS:
            return
        if began_at >= self._trouble_at:
            self.troubles += 1
            self._trouble_at = now
        self._failed_at = now
        first, longest = COOL_DOWNS[kind]
        pause = min(longest, first * 2 ** min(self.troubles - 1, MAX_DOUBLINGS))
        self.cool_until = max(self.cool_until, now + max(pause, min(retry_after or 0.0, longest)))
