"""A request's messages against the stored conversation: which of it stays, and what in the request is new.

Theory: the stored conversation is seen as the client sees it, as *units*: a message of the client's, or an answer,
which is the text of all its steps and the calls that were the client's. The request's messages are laid along the units
where they agree for longest; what agrees stays, with all that the client cannot see, and the rest is new:

    the request                                            stays           new
    begins like the conversation, and goes on              all of it       the rest       a client with a history
    ... and ends with a user's message that was answered   up to it        nothing        regenerate, or asked again
    ... and differs from some place on                     up to there     from there     edited
    is one user's message, or results of open calls        all of it       all            a client without a history
    is users' messages alone, and agrees nowhere           all of it       all            likewise, some at once
    begins in the middle, and agrees to the end, or for
    two messages at least                                  as above        as above       a client that trims
    begins with results of a call, after its answer        up to the call  all            the results again, or late
    agrees nowhere otherwise                               nothing         all            another conversation

A single message that is the conversation's first is asked again if it was the only one, or if the client is known to
keep a history; else it is new: people say "yes" twice, and their conversation must not be lost by it.
Editing rule: a case is a row of this table first, then a test, then code. Nothing here compares with the clock.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from itertools import takewhile
from typing import Any

import attrs
import orjson

from ..messages import Message
from ..shapes import Json
from .values import Said, calls_of, other_parts_of, text_of

MIN_RUN = 2  # a single "yes" somewhere in the middle is no sign of a trimmed history


@attrs.frozen
class Reconciled:
    """The first *keep* stored messages stay, and those of the request from *new_from* on are new."""

    keep: int
    new_from: int


@attrs.frozen
class Unit:
    """One message as the client sees it; *end*: how many stored messages there are up to its end."""

    form: Hashable
    end: int


def reconcile(
    stored: Sequence[Said], said: Sequence[Message], *, dropped: int = 0, keeps_history: bool = False
) -> Reconciled:
    """Find out what of *said* is new, and what of *stored* it continues.

    Args:
        said: the request's messages, without those of the system.
        dropped: how many messages that clients may still send were forgotten before the first of *stored*.
        keeps_history: the last request had sent messages that were stored before it.
    """
    units = visible_units(stored)
    forms = [form_of(message) for message in said]
    if _is_addition(stored, units, said, forms, keeps_history):
        return Reconciled(len(stored), 0)
    skip, first, run = _longest_agreement(forms, [unit.form for unit in units], dropped)
    if run:
        return Reconciled(units[first + run - 1].end, skip + run)
    if call_end := _end_of_call(stored, said):
        return Reconciled(call_end, 0)
    return Reconciled(len(stored) if all(message.role == "user" for message in said) else 0, 0)


def visible_units(stored: Sequence[Said]) -> list[Unit]:
    """The conversation as its client sees it."""
    units: list[Unit] = []
    steps: list[str] = []
    for index, said in enumerate(stored):
        if not said.internal:
            units.append(Unit(form_of(said.message, steps, said.own_calls), index + 1))
            steps = []
        elif said.message.role == "assistant":
            steps.append(text_of(said.message))
        elif units and not steps:  # results of the agent's own calls beside those of the client
            units[-1] = attrs.evolve(units[-1], end=index + 1)
    return units


def form_of(message: Message, steps: Sequence[str] = (), own_calls: Sequence[str] = ()) -> Hashable:
    """What has to be equal in two messages that count as the same: role, text, pictures, calls.

    Args:
        steps: texts of the same answer that came before.
        own_calls: ids of calls that the client does not see.
    """
    if message.role == "assistant":
        calls = tuple(_call_form(call) for call in calls_of(message) if call.get("id") not in own_calls)
        return "assistant", _answer_form("\n".join((*steps, text_of(message)))), calls
    parts = tuple(_canonical(part) for part in other_parts_of(message))
    return message.role, text_of(message).strip(), parts, message.body.get("tool_call_id")


def open_calls(messages: Sequence[Message]) -> set[str]:
    """Ids of the calls at the end of *messages* that have no result yet."""
    answered: set[Json] = set()
    for message in reversed(messages):
        if message.role != "tool":
            return {call["id"] for call in calls_of(message)} - answered
        answered.add(message.body.get("tool_call_id"))
    return set()


def _is_addition(
    stored: Sequence[Said],
    units: Sequence[Unit],
    said: Sequence[Message],
    forms: Sequence[Hashable],
    keeps_history: bool,
) -> bool:
    """Are these messages all new, from a client that leaves the history to us?"""
    if not (said and units):
        return True
    if said[0].role == "tool":
        return said[0].body.get("tool_call_id") in open_calls([entry.message for entry in stored])
    is_first_again = forms[0] == units[0].form and (len(units) <= MIN_RUN or keeps_history)
    return len(said) == 1 and said[0].role == "user" and not is_first_again


def _end_of_call(stored: Sequence[Said], said: Sequence[Message]) -> int:
    """How many messages there are up to the call whose result *said* begins with; 0 if it does not.

    Results of other calls of the same reply count as well, unless *said* has them too.
    """
    results = list(takewhile(lambda message: message.role == "tool", said))
    if not results:
        return 0
    given = {message.body.get("tool_call_id") for message in results}
    for index in range(len(stored) - 1, -1, -1):
        theirs = {call["id"] for call in calls_of(stored[index].message)}.difference(stored[index].own_calls)
        if not stored[index].internal and results[0].body.get("tool_call_id") in theirs:
            after = (entry.message for entry in stored[index + 1 :])
            others = takewhile(lambda it: it.role == "tool" and it.body.get("tool_call_id") not in given, after)
            return index + 1 + sum(1 for _ in others)
    return 0


def _longest_agreement(forms: Sequence[Hashable], units: Sequence[Hashable], dropped: int) -> tuple[int, int, int]:
    """How many of *forms* to skip, the first of *units* that agrees, and how many do from there; the longest."""
    runs = agreements(forms, units)
    best = (0, 0, runs[0])
    if dropped and len(forms) > dropped:
        best = max(best, (dropped, 0, agreements(forms[dropped:], units[: len(forms)])[0]), key=lambda found: found[2])
    least = best[2]
    for first in range(len(units) - 1, 0, -1):
        run = runs[first]
        if run > best[2] and run > least and (run >= MIN_RUN or first + run == len(units)):
            best = (0, first, run)
    return best


def agreements(forms: Sequence[Hashable], units: Sequence[Hashable]) -> list[int]:
    """For each place in *units*: how many items from there on are equal to those that *forms* begins with.

    In linear time (the Z algorithm, see Gusfield 1997, chapter 1), whatever a client sends.
    """
    items: list[Any] = [*forms, object(), *units]
    runs = [0] * len(items)
    left = right = 0
    for index in range(1, len(items)):
        run = min(right - index, runs[index - left]) if index < right else 0
        while index + run < len(items) and items[run] == items[index + run]:
            run += 1
        if index + run > right:
            left, right = index, index + run
        runs[index] = run
    return runs[len(forms) + 1 :]


def _answer_form(text: str) -> str:
    """An answer's text without what front ends change in it: blank lines, ends of lines, a model's loud thinking."""
    if text.lstrip().startswith("<think>") and "</think>" in text:
        text = text.partition("</think>")[2]
    return "\n".join(line.strip() for line in text.splitlines() if line.strip())


def _call_form(call: Json) -> Hashable:
    called = call.get("function") or call.get("custom") or {}
    arguments: Json = called.get("arguments", called.get("input"))
    try:
        arguments = _canonical(orjson.loads(arguments))
    except (orjson.JSONDecodeError, TypeError):  # no JSON: compared as it stands
        arguments = str(arguments).strip()
    return call.get("id"), called.get("name"), arguments


def _canonical(value: Json) -> bytes:
    return orjson.dumps(value, option=orjson.OPT_SORT_KEYS)
