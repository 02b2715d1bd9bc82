"""What the agent's tools gave beside a client's own calls is there when the client comes back, for it alone."""

from __future__ import annotations

import pytest

from picoclaw_trio.messages import Message
from picoclaw_trio.shapes import Json
from picoclaw_trio.unfinished import MAX_BYTES, MAX_TURNS, Unfinished


def user(text: str) -> Message:
    return Message("user", {"role": "user", "content": text})


def result(call_id: str) -> Message:
    return Message("tool", {"role": "tool", "tool_call_id": call_id, "content": call_id})


def call(call_id: str, arguments: str = "{}", name: str = "f") -> Json:
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}


def making(*calls: Json) -> Message:
    return Message("assistant", {"role": "assistant", "tool_calls": list(calls)})


def calling(*call_ids: str) -> Message:
    return making(*map(call, call_ids))


WHOLE = (calling("own", "theirs"), result("own"))


def test_the_clients_version_is_replaced_by_the_whole() -> None:
    unfinished = Unfinished()
    unfinished.keep("a", [call("theirs")], WHOLE)
    asked = (user("x"), calling("theirs"), result("theirs"))
    assert (user("x"), *WHOLE, result("theirs")) == unfinished.restore("a", asked)


def test_it_is_there_as_often_as_the_client_asks() -> None:
    unfinished = Unfinished()
    unfinished.keep("a", [call("theirs")], WHOLE)
    for _ in range(2):
        assert WHOLE == unfinished.restore("a", (calling("theirs"),))


def test_one_of_several_calls_of_the_client_finds_it_once() -> None:
    unfinished = Unfinished()
    unfinished.keep("a", [call("one"), call("two")], WHOLE)
    assert WHOLE == unfinished.restore("a", (calling("one", "two"),))
    assert WHOLE == unfinished.restore("a", (calling("two"),))


def test_nobody_else_finds_it() -> None:
    unfinished = Unfinished()
    unfinished.keep("a", [call("theirs")], WHOLE)
    assert (calling("theirs"),) == unfinished.restore("b", (calling("theirs"),))


def test_other_messages_stay_as_they_came() -> None:
    unfinished = Unfinished()
    unfinished.keep("a", [call("theirs")], WHOLE)
    asked = (user("theirs"), result("theirs"), calling("others"))
    assert asked == unfinished.restore("a", asked)
    assert asked is Unfinished().restore("a", asked)


@pytest.mark.parametrize(
    "other",
    [
        call("theirs", '{"city": "Rome"}'),
        call("theirs", '{"city": "Oslo"}', name="g"),
        call("other", '{"city": "Oslo"}'),
    ],
    ids=["arguments", "name", "id"],
)
def test_another_call_does_not_find_it(other: Json) -> None:
    """An upstream may give the same ids in each of its replies, and so in other conversations, too."""
    unfinished = Unfinished()
    unfinished.keep("a", [call("theirs", '{"city": "Oslo"}')], WHOLE)
    assert (making(other),) == unfinished.restore("a", (making(other),))


def test_calls_of_the_same_id_are_kept_side_by_side() -> None:
    unfinished = Unfinished()
    cities = ["Oslo", "Rome", "Bonn"]
    for city in cities:
        unfinished.keep("a", [call("0", f'"{city}"')], (user(city),))
    for city in cities:
        assert (user(city),) == unfinished.restore("a", (making(call("0", f'"{city}"')),))


@pytest.mark.parametrize("again", ['{"b":2,"a":1}', '{"a": 1, "b": 2}', '{ "a":1,"b":2 }'])
def test_arguments_may_be_written_anew(again: str) -> None:
    unfinished = Unfinished()
    unfinished.keep("a", [call("theirs", '{"a": 1, "b": 2}')], WHOLE)
    assert WHOLE == unfinished.restore("a", (making(call("theirs", again)),))


@pytest.mark.parametrize("garbled", ["", "{", "[" * 100_000, '{"a": NaN}', "\ud800"])
def test_arguments_that_are_no_json_are_compared_as_they_are(garbled: str) -> None:
    unfinished = Unfinished()
    unfinished.keep("a", [call("theirs", garbled)], WHOLE)
    assert WHOLE == unfinished.restore("a", (making(call("theirs", garbled)),))
    assert (calling("theirs"),) == unfinished.restore("a", (calling("theirs"),))


def test_call_of_a_custom_tool_finds_it() -> None:
    custom = {"id": "theirs", "type": "custom", "custom": {"name": "c", "input": "x"}}
    unfinished = Unfinished()
    unfinished.keep("a", [custom], WHOLE)
    assert WHOLE == unfinished.restore("a", (making(custom),))


def test_the_oldest_turns_are_forgotten_beyond_the_bound() -> None:
    unfinished = Unfinished()
    for number in range(MAX_TURNS + 1):
        unfinished.keep("a", [call(f"{number} {each}") for each in range(3)], (user(str(number)),))
    for each in range(3):
        assert (calling(f"0 {each}"),) == unfinished.restore("a", (calling(f"0 {each}"),))
        assert (user("1"),) == unfinished.restore("a", (calling(f"1 {each}"),))


def test_turns_are_forgotten_for_their_size_but_not_the_last() -> None:
    unfinished = Unfinished()
    half = user("x" * (MAX_BYTES // 2))
    for call_id in ("first", "second"):
        unfinished.keep("a", [call(call_id)], (half,))
    assert (calling("first"),) == unfinished.restore("a", (calling("first"),))
    assert (half,) == unfinished.restore("a", (calling("second"),))
    unfinished.keep("a", [call("third")], (half, half, half))
    assert (calling("second"),) == unfinished.restore("a", (calling("second"),))
    assert (half, half, half) == unfinished.restore("a", (calling("third"),))


def test_a_call_that_is_made_again_is_found_though_its_first_turn_is_forgotten() -> None:
    unfinished = Unfinished()
    for text in ("first", "again"):
        unfinished.keep("a", [call("same")], (user(text),))
    for number in range(MAX_TURNS - 1):
        unfinished.keep("a", [call(str(number))], (user("x"),))
    assert (user("again"),) == unfinished.restore("a", (calling("same"),))
