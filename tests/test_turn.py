"""The state machine of a turn, cell by cell and in any order."""

from __future__ import annotations

from collections.abc import Callable
from typing import get_args

import pytest
import strategies  # noqa: F401  # loads the profile
from hypothesis import given
from hypothesis import strategies as st

from picoclaw_trio.replies import Reply
from picoclaw_trio.shapes import Json
from picoclaw_trio.turn import TRANSITIONS, Answer, Input, RunTools, State, StepLimitError, Turn

OWN_CALL: dict[str, Json] = {"id": "1", "type": "function", "function": {"name": "look", "arguments": "{}"}}
CLIENTS_CALL: dict[str, Json] = {"id": "2", "type": "function", "function": {"name": "buy", "arguments": "{}"}}
CUSTOM_CALL: dict[str, Json] = {"id": "3", "type": "custom", "custom": {"name": "look", "input": "x"}}
SAID = Reply({"role": "assistant", "content": "Hi", "refusal": None}, "stop")


def calling(*calls: Json) -> Reply:
    return Reply({"role": "assistant", "content": None, "tool_calls": list(calls)}, "tool_calls")


def send_answer(turn: Turn) -> None:
    turn.on_reply(SAID)


def send_own_calls(turn: Turn) -> None:
    turn.max_steps = turn.steps + 2
    turn.on_reply(calling(OWN_CALL))


def send_mixed_calls(turn: Turn) -> None:
    turn.on_reply(calling(OWN_CALL, CLIENTS_CALL))


def send_too_many(turn: Turn) -> None:
    turn.max_steps = turn.steps + 1
    turn.on_reply(calling(OWN_CALL))


# {input: what gives it to a turn whose own tool is "look"}
SEND: dict[Input, Callable[[Turn], None]] = {
    "answer": send_answer,
    "own_calls": send_own_calls,
    "mixed_calls": send_mixed_calls,
    "too_many_steps": send_too_many,
    "results": Turn.on_results,
    "failure": Turn.on_failure,
}
# {state: inputs that lead there from the start}
LEAD: dict[State, list[Input]] = {
    "asking": [],
    "running": ["own_calls"],
    "finishing": ["mixed_calls"],
    "done": ["answer"],
    "failed": ["failure"],
}
CELLS = [(state, given) for state in get_args(State) for given in get_args(Input)]
EXPECTED: dict[tuple[State, Input], State] = {
    ("asking", "answer"): "done",
    ("asking", "own_calls"): "running",
    ("asking", "mixed_calls"): "finishing",
    ("asking", "too_many_steps"): "failed",
    ("asking", "failure"): "failed",
    ("running", "results"): "asking",
    ("running", "failure"): "failed",
    ("finishing", "results"): "done",
    ("finishing", "failure"): "failed",
}


def give(turn: Turn, input: Input) -> None:
    """Give *turn* the input; the limit of steps speaks up by an exception."""
    if input == "too_many_steps" and turn.state == "asking":
        with pytest.raises(StepLimitError):
            SEND[input](turn)
    else:
        SEND[input](turn)


def turn_in(state: State) -> Turn:
    turn = Turn(own_tools={"look"}, client_tools={"buy"})
    for step in LEAD[state]:
        give(turn, step)
    assert state == turn.state
    return turn


def test_the_table_says_what_this_file_says() -> None:
    assert EXPECTED == TRANSITIONS


@pytest.mark.parametrize(("state", "input"), CELLS)
def test_each_cell_leads_where_the_table_says_and_a_missing_one_raises(state: State, input: Input) -> None:
    turn = turn_in(state)
    if (state, input) in EXPECTED:
        give(turn, input)
        assert EXPECTED[state, input] == turn.state
    else:
        with pytest.raises(KeyError):
            give(turn, input)
        assert state == turn.state


@given(st.lists(st.sampled_from(get_args(Input)), max_size=12))
def test_any_order_of_inputs_follows_the_table_to_the_first_missing_cell(inputs: list[Input]) -> None:
    turn = Turn(own_tools={"look"}, client_tools={"buy"})
    state: State = "asking"
    for step in inputs:
        if (state, step) not in EXPECTED:
            with pytest.raises(KeyError):
                give(turn, step)
            assert state == turn.state
            return
        give(turn, step)
        state = EXPECTED[state, step]
        assert state == turn.state


def test_a_reply_without_calls_is_the_answer() -> None:
    turn = Turn()

    assert Answer(SAID) == turn.on_reply(SAID)
    assert ("done", 1) == (turn.state, turn.steps)


@pytest.mark.parametrize("calls", [None, []])
def test_calls_of_null_or_none_are_no_calls(calls: Json) -> None:
    reply = Reply({"role": "assistant", "content": "Hi", "tool_calls": calls}, "stop")

    assert Answer(reply) == Turn(own_tools={"look"}, client_tools={"buy"}).on_reply(reply)


def test_calls_of_the_clients_tools_are_the_answer() -> None:
    reply = calling(CLIENTS_CALL)

    assert Answer(reply) == Turn(own_tools={"look"}, client_tools={"buy"}).on_reply(reply)


def test_a_call_that_is_no_function_is_the_clients() -> None:
    reply = calling(CUSTOM_CALL)

    assert Answer(reply) == Turn(own_tools={"look"}, client_tools={"buy"}).on_reply(reply)


def test_without_tools_of_our_own_all_calls_are_the_clients() -> None:
    reply = calling(OWN_CALL, CLIENTS_CALL)

    assert Answer(reply) == Turn().on_reply(reply)


def test_calls_of_our_own_tools_are_to_be_run() -> None:
    turn = Turn(own_tools={"look"}, client_tools={"buy"}, max_steps=2)

    assert RunTools([OWN_CALL, OWN_CALL]) == turn.on_reply(calling(OWN_CALL, OWN_CALL))
    assert "running" == turn.state


@pytest.mark.parametrize("steps", [1, 2])
def test_of_calls_of_both_ours_are_run_and_the_reply_is_the_answer_also_at_the_last_step(steps: int) -> None:
    turn = Turn(own_tools={"look"}, client_tools={"buy"}, max_steps=steps)

    assert RunTools([OWN_CALL], is_last=True) == turn.on_reply(calling(OWN_CALL, CLIENTS_CALL))
    turn.on_results()
    assert "done" == turn.state


def test_a_call_of_a_name_that_nobody_knows_is_ours_to_answer() -> None:
    lost: dict[str, Json] = {"id": "4", "type": "function", "function": {"name": "lok", "arguments": "{}"}}

    assert RunTools([lost]) == Turn(own_tools={"look"}, client_tools={"buy"}, max_steps=2).on_reply(calling(lost))


@pytest.mark.parametrize("function", [None, "look", []])
def test_a_call_without_a_function_is_not_ours(function: Json) -> None:
    assert not Turn(own_tools={"look"}).is_own({"id": "5", "type": "function", "function": function})


@pytest.mark.parametrize("max_steps", [1, 2, 5])
def test_the_last_step_permitted_may_answer_but_not_call(max_steps: int) -> None:
    turn = Turn(own_tools={"look"}, client_tools={"buy"}, max_steps=max_steps)
    for _ in range(max_steps - 1):
        turn.on_reply(calling(OWN_CALL))
        turn.on_results()
    assert "asking" == turn.state

    with pytest.raises(StepLimitError) as caught:
        turn.on_reply(calling(OWN_CALL))
    assert ("failed", max_steps) == (turn.state, turn.steps)
    assert (502, "too_many_steps") == (caught.value.status, caught.value.code)
    assert {"x-should-retry": "false"} == caught.value.headers
    assert f"within {max_steps} step{'s' if max_steps > 1 else ''} (" in caught.value.message
    assert "agents.defaults.max_tool_iterations, or maxTurns in AGENT.md" in caught.value.message


def test_the_last_step_permitted_answers() -> None:
    turn = Turn(own_tools={"look"}, client_tools={"buy"}, max_steps=2)
    turn.on_reply(calling(OWN_CALL))
    turn.on_results()

    assert Answer(SAID) == turn.on_reply(SAID)
    assert ("done", 2) == (turn.state, turn.steps)
