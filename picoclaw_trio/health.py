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
from collections.abc import Mapping
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


@attrs.define
class Allowance:
    """Requests a minute, which all targets of an entry share. A bucket: so many at once, then one at a time."""

    rpm: int  # 0: no limit
    _used: float = attrs.field(default=0.0, init=False)
    _at: float = attrs.field(default=0.0, init=False)

    def take(self, now: float) -> float:
        """Take one request. Gives 0.0, or, where none is left and none was taken, the seconds until there is one."""
        wait = self.wait(now)
        if wait == 0.0 and self.rpm:
            self._used, self._at = self._left_used(now) + 1, now
        return wait

    def wait(self, now: float) -> float:
        """Seconds until a request may be taken."""
        if not self.rpm:
            return 0.0
        over = self._left_used(now) + 1 - self.rpm
        return max(0.0, over * 60 / self.rpm) if over > 1e-9 else 0.0

    def _left_used(self, now: float) -> float:
        return max(0.0, self._used - (now - self._at) * self.rpm / 60)


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
