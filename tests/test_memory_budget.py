"""What fits the model's window, and how a conversation is cut where it does not."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from memory_stage import answer, user

from picoclaw_trio.memory.budget import PART_TOKENS, estimate_tokens, fit, sendable, turn_starts
from picoclaw_trio.messages import Message
from picoclaw_trio.shapes import Json

CALL = {"id": "1", "type": "function", "function": {"name": "look", "arguments": '{"at": 4}'}}
RESULT = Message("tool", {"role": "tool", "tool_call_id": "1", "content": "x" * 88})


def sized(role: str, tokens: int) -> Message:
    """A message that is estimated at *tokens*."""
    message = Message(role, {"role": role, "content": "x" * (tokens * 5 // 2 - 12)})
    assert tokens == estimate_tokens(message)
    return message


def test_estimate_grows_with_bytes_calls_and_pictures() -> None:
    picture = {"type": "image_url", "image_url": {"url": "data:" + "x" * 100_000}}

    assert 44 == estimate_tokens(user("x" * 100))
    assert 124 == estimate_tokens(user("\N{CJK UNIFIED IDEOGRAPH-4E00}" * 100))
    assert 44 + PART_TOKENS == estimate_tokens(
        Message("user", {"role": "user", "content": [{"type": "text", "text": "x" * 100}, picture]})
    )
    assert 10 == estimate_tokens(Message("assistant", {"role": "assistant", "content": None, "tool_calls": [CALL]}))


def test_turns_begin_with_a_users_message() -> None:
    roles = ["assistant", "user", "user", "assistant", "tool", "assistant", "user"]

    assert [1, 6] == turn_starts([Message(role, {}) for role in roles])


def test_what_fits_is_not_cut() -> None:
    row = [sized(role, 100) for role in ("user", "assistant") * 3]

    assert 0 == fit(row, 0, 600)
    assert 2 == fit(row, 2, 400)


def test_what_does_not_fit_is_cut_down_to_half() -> None:
    row = [sized(role, 100) for role in ("user", "assistant") * 5]

    assert 6 == fit(row, 0, 999)
    assert 8 == fit(row, 0, 999, spent=300)
    assert 8 == fit(row, 0, 500)


def test_running_turn_stays_whole() -> None:
    call = Message("assistant", {"role": "assistant", "content": None, "tool_calls": [CALL]})
    row = [sized("user", 100), sized("assistant", 100), sized("user", 100), call, RESULT]

    assert 2 == fit(row, 0, 1)
    assert 2 == fit(row, 2, 1)
    assert 0 == fit([sized("assistant", 100)] * 3, 0, 1)


ROWS = st.lists(st.tuples(st.sampled_from(["user", "assistant", "calling"]), st.integers(8, 40)), max_size=30)


@given(parts=ROWS, window=st.integers(1, 800), data=st.data())
def test_cut_is_at_a_turn_and_no_deeper_than_needed(
    parts: list[tuple[str, int]], window: int, data: st.DataObject
) -> None:
    row: list[Message] = []
    for role, size in parts:
        if role == "calling":
            row += [Message("assistant", {"role": "assistant", "content": None, "tool_calls": [CALL]}), RESULT]
        else:
            row.append(sized(role, size * 2))
    starts = turn_starts(row)
    begin = data.draw(st.sampled_from([0, *starts]))
    found = fit(row, begin, window)
    sizes = [estimate_tokens(message) for message in row]

    assert found == begin or found in starts
    assert begin <= found <= max([begin, *starts])
    if found > begin:
        assert sum(sizes[begin:]) > window
        before = max(start for start in [begin, *starts] if start < found)
        assert sum(sizes[found:]) <= window // 2 or found == starts[-1]
        assert sum(sizes[before:]) > window // 2
    assert fit(row, found, window) == found or sum(sizes[found:]) > window


def test_turns_after_a_cut_fit_for_a_while() -> None:
    """The next requests begin with the same bytes, which is what upstreams' caches live on."""
    row: list[Message] = []
    begins = []
    begin = 0
    for _ in range(100):
        row.append(sized("user", 50))
        begin = fit(row, begin, 1000)
        begins.append(begin)
        row.append(sized("assistant", 50))
    assert 25 > len(set(begins))


def test_answers_go_to_the_model_without_what_it_did_not_ask_for() -> None:
    old: dict[str, Json] = {"role": "assistant", "content": "A", "refusal": None, "reasoning_content": "well", "x": 1}
    calling: dict[str, Json] = {**old, "content": None, "tool_calls": [CALL]}
    row = [user("a"), Message("assistant", old), user("b"), Message("assistant", calling), RESULT]
    sent = [message.body for message in sendable(row)]

    assert {"role": "assistant", "content": "A"} == sent[1]
    assert {key: value for key, value in calling.items() if value is not None} == sent[3]
    assert [row[0].body, row[2].body, RESULT.body] == [sent[0], sent[2], sent[4]]
    assert answer("A").body == sent[1]
