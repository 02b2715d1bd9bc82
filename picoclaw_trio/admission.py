"""How many turns run at once, and who is next.

Theory: up to ``max_turns`` run, up to ``max_waiting`` stand in line for at most ``max_wait`` seconds, everyone else is
refused at once. There is a line for each holder of a token and a freed place goes to the lines in turn, so a flood
from one client costs that client's own time. The room is shared in the same way: where it is full, the newest of the
longest line goes for one whose line is shorter by more than one. So of k holders each has a k-th of the room, if it
wants that much; by less than that the two would only change places.
Editing rule: who stands in line is called out of it by ``_hand_over``, ``_make_room`` or ``drain`` alone, and out of
line and counts at once; between a hand-over and the wake-up of the one who gets it the place counts as taken.
"""

from __future__ import annotations

import math
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Hashable
from contextlib import asynccontextmanager

import attrs
import trio

from .errors import BusyError


@attrs.frozen
class AdmissionStatistics:
    """Counts of this moment."""

    running: int
    waiting: int


def _shutting_down() -> BusyError:
    return BusyError("The gateway is shutting down.", "shutting_down")


def _too_many() -> BusyError:
    return BusyError("Too many requests are in flight and in line.", "overloaded")


@attrs.define(eq=False)
class _Waiter:
    """One in line. ``called`` says that it stands there no more, ``has_place`` that a place is the reason."""

    called: trio.Event = attrs.field(factory=trio.Event, init=False)
    has_place: bool = attrs.field(default=False, init=False)


@attrs.define
class Admission:
    """The gate before a turn.

    Args:
        max_turns: turns in flight.
        max_waiting: requests in line, over all holders.
        max_wait: seconds that one may stand in line.
    """

    max_turns: int
    max_waiting: int
    max_wait: float
    draining: bool = attrs.field(default=False, init=False)
    _running: int = attrs.field(default=0, init=False)
    _waiting: int = attrs.field(default=0, init=False)
    # {holder: those in line}, none empty; the first key is the holder whose turn it is.
    _lines: OrderedDict[Hashable, deque[_Waiter]] = attrs.field(factory=OrderedDict, init=False)
    _turns: set[trio.CancelScope] = attrs.field(factory=set, init=False)
    _deadline: float = attrs.field(default=math.inf, init=False)

    def statistics(self) -> AdmissionStatistics:
        return AdmissionStatistics(self._running, self._waiting)

    def set_limits(self, max_turns: int, max_waiting: int, max_wait: float) -> None:
        """Take other limits from now on; who runs or stands in line already is not sent away."""
        self.max_turns, self.max_waiting, self.max_wait = max_turns, max_waiting, max_wait
        while self._lines and self._running < self.max_turns:
            self._running += 1
            self._hand_over()

    def check_open(self) -> None:
        """
        Raises:
            BusyError: code ``shutting_down``: the server takes no more requests.
        """
        if self.draining:
            raise _shutting_down()

    def end_turns(self, deadline: float) -> None:
        """Let no turn go on after *deadline*, in Trio's time; until then they may begin."""
        self._deadline = min(self._deadline, deadline)
        for turn in self._turns:
            turn.deadline = self._deadline

    def drain(self, deadline: float = math.inf) -> None:
        """Take nobody in from now on, and send away who stands in line.

        Args:
            deadline: Trio time until which what runs may go on.
        """
        self.draining = True
        self.end_turns(deadline)
        for line in self._lines.values():
            for waiter in line:
                waiter.called.set()
        self._lines.clear()
        self._waiting = 0

    @asynccontextmanager
    async def turn(self, holder: Hashable) -> AsyncIterator[None]:
        """A place for one turn, from entering to leaving.

        Args:
            holder: whose line to stand in.

        Raises:
            BusyError: code ``overloaded``: no place and no room to wait, or none in time, or the room went to the
                holder of a shorter line; or ``shutting_down``, also in the middle of the turn, when its grace is over.
        """
        self.check_open()
        if self._running < self.max_turns:  # then nobody is in line: a place that becomes free is handed over
            self._running += 1
        else:
            await self._wait_place(holder)
        try:
            # A place that was handed over just before draining is taken up just after.
            with trio.CancelScope(deadline=self._deadline) as scope:
                self._turns.add(scope)
                yield
        finally:
            self._turns.discard(scope)
            self._leave()
        if scope.cancelled_caught:
            raise _shutting_down()

    async def _wait_place(self, holder: Hashable) -> None:
        if self._waiting >= self.max_waiting:
            self._make_room(holder)
        waiter = _Waiter()
        self._lines.setdefault(holder, deque()).append(waiter)
        self._waiting += 1
        try:
            with trio.move_on_after(self.max_wait):
                await waiter.called.wait()
        except trio.Cancelled:
            if waiter.has_place:
                self._leave()
            raise
        finally:
            if not waiter.called.is_set():
                self._step_out(holder, waiter)
        if waiter.has_place:
            return
        self.check_open()
        raise _too_many() if waiter.called.is_set() else BusyError("No place became free in time.", "overloaded")

    def _make_room(self, holder: Hashable) -> None:
        """Send the newest of the longest line away for *holder*, whose line is shorter by more than one.

        Raises:
            BusyError: code ``overloaded``: it is not.
        """
        # A look at each line, of which there are no more than tokens, and at no one in them.
        longest = max(self._lines.values(), key=len, default=deque[_Waiter]())
        if len(longest) <= len(self._lines.get(holder, ())) + 1:
            raise _too_many()
        longest.pop().called.set()
        self._waiting -= 1

    def _step_out(self, holder: Hashable, waiter: _Waiter) -> None:
        line = self._lines[holder]
        line.remove(waiter)
        self._waiting -= 1
        if not line:
            del self._lines[holder]

    def _leave(self) -> None:
        if self._lines and self._running <= self.max_turns:
            self._hand_over()
        else:
            self._running -= 1

    def _hand_over(self) -> None:
        """Let the next in line have a place that counts as taken."""
        holder, line = self._lines.popitem(last=False)
        waiter = line.popleft()
        self._waiting -= 1
        if line:
            self._lines[holder] = line
        waiter.has_place = True
        waiter.called.set()
