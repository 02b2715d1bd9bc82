"""What a request's messages are, against the stored conversation. Messages are letters here, see ``said``."""

from __future__ import annotations

from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from picoclaw_trio.memory.plan import make_plan
from picoclaw_trio.memory.reconcile import agreements, form_of, open_calls, reconcile, visible_units
from picoclaw_trio.memory.transcript import Transcript
from picoclaw_trio.memory.values import Said
from picoclaw_trio.messages import Message
from picoclaw_trio.shapes import Json

NO_LIMIT = 10**9


def call(id: str, arguments: str = "{}") -> dict[str, Json]:
    return {"id": id, "type": "function", "function": {"name": f"tool-{id}", "arguments": arguments}}


def user(content: Json) -> Message:
    return Message("user", {"role": "user", "content": content})


def answer(content: Json = None, *calls: dict[str, Json], **fields: Json) -> Message:
    body = {"role": "assistant", "content": content, **({"tool_calls": list(calls)} if calls else {}), **fields}
    return Message("assistant", body)


def result(id: str, content: str = "done") -> Message:
    return Message("tool", {"role": "tool", "tool_call_id": id, "content": content})


def said(words: str) -> list[Message]:
    """Messages by their signs: a small letter is a user's message, a capital one an answer."""
    return [user(sign) if sign.islower() else answer(sign) for sign in words]


def stored(words: str) -> list[Said]:
    return [Said(message) for message in said(words)]


def outcome(before: str, request: str, **known: Any) -> tuple[str, str]:
    found = reconcile(stored(before), said(request), **known)
    return before[: found.keep], request[found.new_from :]


# (stored, request, what stays, what is new)
CASES = {
    "first request": ("", "a", "", "a"),
    "first request with a history": ("", "aAb", "", "aAb"),
    "whole history and a new message": ("aAbB", "aAbBc", "aAbB", "c"),
    "whole history and several new messages": ("aA", "aAbBc", "aA", "bBc"),
    "new message alone": ("aAbB", "c", "aAbB", "c"),
    "several new messages alone": ("aAbB", "cd", "aAbB", "cd"),
    "nothing new": ("aAbB", "aAbB", "aAbB", ""),
    "last answer again": ("aAbB", "aAb", "aAb", ""),
    "only answer again": ("aA", "a", "a", ""),
    "earlier answer again": ("aAbBcC", "aAb", "aAb", ""),
    "edited in the middle": ("aAbBcC", "aAx", "aA", "x"),
    "edited at the end": ("aAbB", "aAbXc", "aAb", "Xc"),
    "edited at the beginning": ("aAbB", "xAb", "", "xAb"),
    "last messages deleted": ("aAbBcC", "aAbBd", "aAbB", "d"),
    "trimmed to the last answer": ("aAbBcC", "Cd", "aAbBcC", "d"),
    "trimmed to the last turn": ("aAbBcC", "cCd", "aAbBcC", "d"),
    "trimmed, and last answer again": ("aAbBcC", "bBc", "aAbBc", ""),
    "trimmed and edited": ("aAbBcC", "bBx", "aAbB", "x"),
    "one equal message is no trimmed history": ("aAbBcC", "bXd", "", "bXd"),
    "another conversation": ("aAbB", "xXy", "", "xXy"),
    "a word of the middle said once more": ("aAbBcC", "b", "aAbBcC", "b"),
    "first word said once more": ("aAbBcC", "a", "aAbBcC", "a"),
    "last word said once more": ("aAbBcC", "c", "aAbBcC", "c"),
    "begins like the conversation, agrees longer with its end": ("aAbBaC", "aCd", "aAbBaC", "d"),
    "agrees as long with beginning and end": ("aAaA", "aAx", "aA", "x"),
}


@pytest.mark.parametrize("case", CASES)
def test_request_continues_the_conversation_or_replaces_its_end(case: str) -> None:
    before, request, kept, new = CASES[case]

    assert (kept, new) == outcome(before, request)


def test_first_message_alone_is_asked_again_by_a_client_that_keeps_a_history() -> None:
    assert ("a", "") == outcome("aAbBcC", "a", keeps_history=True)
    assert ("aAbBcC", "x") == outcome("aAbBcC", "x", keeps_history=True)


def test_messages_that_were_forgotten_are_passed_over() -> None:
    assert ("cCdD", "e") == outcome("cCdD", "aAbBcCdDe", dropped=4)
    assert ("cC", "x") == outcome("cCdD", "aAbBcCx", dropped=4)
    assert ("cCdD", "e") == outcome("cCdD", "dDe", dropped=4)
    assert ("", "aAbBcCdDe") == outcome("cCdD", "aAbBcCdDe", dropped=0)


# What counts as the same message

SAME: tuple[tuple[Message, Message], ...] = (
    (user("hello"), user([{"type": "text", "text": "hello"}])),
    (user("hello"), user(" hello\n")),
    (user("hello"), Message("user", {"role": "user", "content": "hello", "name": "Ann"})),
    (answer(None, call("1")), answer("", call("1"))),
    (answer(None, call("1", '{"a": 1, "b": 2}')), answer("", call("1", '{"b":2,"a":1}'))),
    (answer("hello"), answer("hello", refusal=None, annotations=[])),
    (answer("one\n\ntwo"), answer("one\r\n\r\n\r\ntwo \n")),
    (answer("<think>well</think>\nhello"), answer("hello")),
    (answer(None, refusal="no"), answer("no")),
    (
        result("1"),
        Message("tool", {"role": "tool", "tool_call_id": "1", "content": [{"type": "text", "text": "done"}]}),
    ),
)
OTHER: tuple[tuple[Message, Message], ...] = (
    (user("hello"), answer("hello")),
    (user("if x:\n  y"), user("if x:\n    y")),
    (user("hello"), user([{"type": "text", "text": "hello"}, {"type": "image_url", "image_url": {"url": "data:,"}}])),
    (answer("hello"), answer("hello", call("1"))),
    (answer(None, call("1")), answer(None, call("2"))),
    (answer(None, call("1", "{}")), answer(None, call("1", '{"a":1}'))),
    (answer(None, call("1", "no json")), answer(None, call("1", "none at all"))),
    (result("1"), result("2")),
)


@pytest.mark.parametrize(("one", "other"), SAME)
def test_messages_are_the_same_as_a_client_sees_them(one: Message, other: Message) -> None:
    assert form_of(one) == form_of(other)


@pytest.mark.parametrize(("one", "other"), OTHER)
def test_messages_differ_where_a_person_would_say_so(one: Message, other: Message) -> None:
    assert form_of(one) != form_of(other)


# What the client does not see

STEPS = [
    Said(user("look it up")),
    Said(answer("Let me look.", call("own")), internal=True),
    Said(result("own"), internal=True),
    Said(answer(None, call("own2")), internal=True),
    Said(result("own2"), internal=True),
    Said(answer("It is 4.")),
]
MIXED = [
    Said(user("both")),
    Said(answer("Both.", call("theirs"), call("own")), own_calls=("own",)),
    Said(result("own"), internal=True),
]


def test_answer_is_the_text_of_all_its_steps() -> None:
    assert [1, 6] == [unit.end for unit in visible_units(STEPS)]
    seen = [user("look it up"), answer("Let me look.\n\nIt is 4."), user("and then?")]

    found = reconcile(STEPS, seen)
    assert (6, 2) == (found.keep, found.new_from)


def test_editing_a_question_drops_the_steps_of_its_answer() -> None:
    found = reconcile([*stored("aA"), *STEPS], [*said("aA"), user("look up something else")])
    assert (2, 2) == (found.keep, found.new_from)

    found = reconcile([*stored("aA"), *STEPS], [*said("aA"), user("look it up")])
    assert (3, 3) == (found.keep, found.new_from)


def test_results_of_own_calls_stay_when_the_client_brings_its_own() -> None:
    whole = reconcile(MIXED, [user("both"), answer("Both.", call("theirs")), result("theirs")])
    assert (3, 2) == (whole.keep, whole.new_from)

    alone = reconcile(MIXED, [result("theirs")])
    assert (3, 0) == (alone.keep, alone.new_from)


def test_results_that_come_again_or_late_keep_what_came_before_them() -> None:
    calls = answer(None, call("1"), call("2"))
    before = [*stored("aA"), Said(user("both")), Said(calls), Said(result("1")), Said(answer("Only one."))]

    again = reconcile(before, [result("1")])
    assert (4, 0) == (again.keep, again.new_from)

    late = reconcile(before, [result("2")])
    assert (5, 0) == (late.keep, late.new_from)

    both = reconcile(before, [result("2"), result("1")])
    assert (4, 0) == (both.keep, both.new_from)

    after_own = reconcile([*MIXED, Said(result("theirs")), Said(answer("So."))], [result("theirs", "other")])
    assert (3, 0) == (after_own.keep, after_own.new_from)

    for nobodys in (reconcile(before, [result("own")]), reconcile(STEPS, [result("own")])):
        assert (0, 0) == (nobodys.keep, nobodys.new_from)


def test_results_of_calls_that_nobody_made_are_another_conversation() -> None:
    found = reconcile(MIXED, [result("unknown")])
    assert (0, 0) == (found.keep, found.new_from)
    assert {"theirs"} == open_calls([entry.message for entry in MIXED])


# Properties

WORDS = st.text("ab", max_size=8)


@given(forms=WORDS, units=WORDS)
def test_agreements_are_what_comparing_one_by_one_finds(forms: str, units: str) -> None:
    def agree(place: int) -> int:
        pairs = list(zip(forms, units[place:], strict=False))
        return next((index for index, (one, other) in enumerate(pairs) if one != other), len(pairs))

    assert [agree(place) for place in range(len(units))] == agreements(forms, units)


@attrs.frozen
class Turn:
    """A turn as the memory stores it, and as the client sees it."""

    stored: tuple[Said, ...]
    seen: tuple[Message, ...]


@st.composite
def turns(draw: st.DrawFn, number: int) -> Turn:
    """A turn of any shape: steps of the agent's own, and at its end an answer, or calls that the client carries out."""
    word = st.sampled_from(["yes", "no", "", "a\n\nb", " x "])
    question = user(draw(st.sampled_from(["yes", "no", "go on"])))
    entries, texts = [], []
    for step in range(draw(st.integers(0, 2))):
        texts.append(draw(word))
        own = [call(f"own-{number}-{step}-{index}") for index in range(draw(st.integers(1, 2)))]
        entries.append(Said(answer(texts[-1], *own), internal=True))
        entries += [Said(result(one["id"]), internal=True) for one in own]
    texts.append(draw(word))
    theirs = [call(f"theirs-{number}-{index}") for index in range(draw(st.integers(0, 2)))]
    own = [call(f"own-{number}-{index}") for index in range(draw(st.integers(0, 1)) if theirs else 0)]
    ids = tuple(one["id"] for one in own)
    entries.append(Said(answer(texts[-1], *theirs, *own), own_calls=ids))
    entries += [Said(result(name), internal=True) for name in ids]
    back = [result(one["id"]) for one in theirs]
    final = [answer(draw(word))] if theirs else []
    visible = answer("\n\n".join(filter(None, texts)), *theirs)
    return Turn((Said(question), *entries, *map(Said, back), *map(Said, final)), (question, visible, *back, *final))


@st.composite
def conversations(draw: st.DrawFn) -> list[Turn]:
    return [draw(turns(number)) for number in range(draw(st.integers(0, 4)))]


def transcript_of(past: list[Turn]) -> Transcript:
    entries = [entry for turn in past for entry in turn.stored]
    return Transcript(entries=entries, lines=[b""] * len(entries))


def check_calls(messages: tuple[Message, ...]) -> None:
    """Every call is followed by its result, and no result stands alone."""
    waiting: set[str] = set()
    for message in messages:
        if message.role == "tool":
            assert message.body["tool_call_id"] in waiting
            waiting.discard(message.body["tool_call_id"])
        else:
            assert set() == waiting
            waiting = {one["id"] for one in message.body.get("tool_calls") or ()}
    assert set() == waiting


@given(past=conversations())
def test_client_that_sends_everything_gets_nothing_sent_twice(past: list[Turn]) -> None:
    new = user("something new")
    request = [message for turn in past for message in turn.seen] + [new]
    plan = make_plan(transcript_of(past), request, NO_LIMIT)

    everything = [entry.message for turn in past for entry in turn.stored] + [new]
    assert [form_of(message) for message in everything] == [form_of(message) for message in plan.messages]
    assert (new,) == plan.new
    check_calls(plan.messages)


@given(past=conversations())
def test_client_that_sends_the_new_message_gets_the_same(past: list[Turn]) -> None:
    new = user("something new")
    request = [message for turn in past for message in turn.seen] + [new]

    assert (
        make_plan(transcript_of(past), request, NO_LIMIT).messages
        == make_plan(transcript_of(past), [new], NO_LIMIT).messages
    )


@given(past=conversations(), data=st.data())
def test_whatever_a_client_cuts_off_no_call_is_parted_from_its_result(past: list[Turn], data: st.DataObject) -> None:
    seen = [message for turn in past for message in turn.seen]
    begin = data.draw(st.sampled_from([index for index, message in enumerate(seen) if message.role == "user"] or [0]))
    end = data.draw(st.integers(begin, len(seen)))
    plan = make_plan(transcript_of(past), [*seen[begin:end], user("something new")], NO_LIMIT)

    check_calls(plan.messages)
    assert "something new" == plan.messages[-1].body["content"]


def test_call_that_the_client_never_answered_gets_a_result_that_says_so() -> None:
    plan = make_plan(transcript_of([Turn(tuple(MIXED), ())]), [user("never mind")], NO_LIMIT)

    check_calls(plan.messages)
    assert ["user", "assistant", "tool", "tool", "user"] == [message.role for message in plan.messages]
    assert (user("never mind"),) == plan.new
    assert 3 == plan.keep
