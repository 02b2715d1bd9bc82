"""What the agent's tools gave beside a client's own calls is there when the client comes back, for it alone."""

from __future__ import annotations

from picoclaw_trio.messages import Message
from picoclaw_trio.shapes import Json
from picoclaw_trio.unfinished import MAX_KEPT, Unfinished


def user(text: str) -> Message:
    return Message("user", {"role": "user", "content": text})


def result(call_id: str) -> Message:
    return Message("tool", {"role": "tool", "tool_call_id": call_id, "content": call_id})


def calling(*call_ids: str) -> Message:
    calls: list[Json] = [{"id": one, "type": "function", "function": {"name": "f"}} for one in call_ids]
    return Message("assistant", {"role": "assistant", "tool_calls": calls})


WHOLE = (calling("own", "theirs"), result("own"))


def test_the_clients_version_is_replaced_by_the_whole() -> None:
    unfinished = Unfinished()
    unfinished.keep("a", ["theirs"], WHOLE)
    asked = (user("x"), calling("theirs"), result("theirs"))
    assert (user("x"), *WHOLE, result("theirs")) == unfinished.restore("a", asked)


def test_it_is_there_as_often_as_the_client_asks() -> None:
    unfinished = Unfinished()
    unfinished.keep("a", ["theirs"], WHOLE)
    for _ in range(2):
        assert WHOLE == unfinished.restore("a", (calling("theirs"),))


def test_one_of_several_calls_of_the_client_finds_it_once() -> None:
    unfinished = Unfinished()
    unfinished.keep("a", ["one", "two"], WHOLE)
    assert WHOLE == unfinished.restore("a", (calling("one", "two"),))
    assert WHOLE == unfinished.restore("a", (calling("two"),))


def test_nobody_else_finds_it() -> None:
    unfinished = Unfinished()
    unfinished.keep("a", ["theirs"], WHOLE)
    assert (calling("theirs"),) == unfinished.restore("b", (calling("theirs"),))


def test_other_messages_stay_as_they_came() -> None:
    unfinished = Unfinished()
    unfinished.keep("a", ["theirs"], WHOLE)
    asked = (user("theirs"), result("theirs"), calling("others"))
    assert asked == unfinished.restore("a", asked)
    assert asked is Unfinished().restore("a", asked)


def test_the_oldest_are_forgotten_beyond_the_bound() -> None:
    unfinished = Unfinished()
    for number in range(MAX_KEPT + 1):
        unfinished.keep("a", [str(number)], (user(str(number)),))
    assert (calling("0"),) == unfinished.restore("a", (calling("0"),))
    assert (user("1"),) == unfinished.restore("a", (calling("1"),))
