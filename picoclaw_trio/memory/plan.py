"""A turn's part of the memory: what goes to the model, and what the turn will add. Pure.

Theory: the stored messages that stay and the new ones of the request are one row of messages; the model gets its end,
from ``begin`` on. The transcript as such is forgotten here, so that a running turn holds no more of it than it needs.
Editing rule: what is to stay is for ``reconcile``, what fits for ``budget``.
"""

from __future__ import annotations

from collections.abc import Sequence

import attrs

from ..messages import Message
from . import budget
from .reconcile import Reconciled, reconcile
from .transcript import Transcript, TurnLines
from .values import Said


@attrs.frozen
class Plan:
    """What a turn needs of its session's memory.

    Attributes:
        messages: what goes to the model.
        left_out: what no longer goes there, from this turn on.
        summary: of what was left out earlier.
        new: the request's messages that are not stored yet.
        keep: how many stored messages stay.
        visible: how many of these the client has seen.
        stored: how many there are.
        begin: the first message that goes to the model, of those that stay and *new*.
        keeps_history: the request brought messages that are stored.
    """

    messages: tuple[Message, ...]
    left_out: tuple[Message, ...]
    summary: str | None
    new: tuple[Message, ...]
    keep: int
    visible: int
    stored: int
    begin: int
    keeps_history: bool

    def turn_lines(self, added: Sequence[Said], summary: str | None, at: str) -> TurnLines:
        """What is to be stored when the model has said *added*."""
        is_new_begin = bool(self.left_out) or summary not in (None, self.summary)
        said = (*map(Said, self.new), *added)
        return TurnLines(
            keep=self.keep,
            begin=self.begin if is_new_begin else None,
            summary=self.summary if summary is None else summary,
            said=said,
            visible=self.visible + sum(not entry.internal for entry in said),
            keeps_history=self.keeps_history,
            at=at,
        )


def make_plan(transcript: Transcript, said: Sequence[Message], window: int, *, only_adds: bool = False) -> Plan:
    """Reconcile *said* with *transcript*, which is changed, and cut what does not fit *window* tokens."""
    said = [message for message in said if message.role not in ("system", "developer")]
    stored = len(transcript.entries)
    if only_adds:
        found = Reconciled(stored, 0)
    else:
        found = reconcile(transcript.entries, said, dropped=transcript.dropped, keeps_history=transcript.keeps_history)
    transcript.keep(found.keep)
    new = tuple(said[found.new_from :])
    row = [*(entry.message for entry in transcript.entries), *new]
    summary = transcript.summary
    spent = budget.estimate_tokens(Message("system", {"content": summary})) if summary else 0
    begin = budget.fit(row, transcript.begin, window, spent)
    return Plan(
        messages=tuple(budget.sendable(row[begin:])),
        left_out=tuple(row[transcript.begin : begin]),
        summary=summary,
        new=new,
        keep=found.keep,
        visible=sum(not entry.internal for entry in transcript.entries),
        stored=stored,
        begin=begin,
        keeps_history=found.new_from > 0,
    )
