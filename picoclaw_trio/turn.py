"""The agent's turn as a state machine: a reply goes in, the next action comes out.

Theory: a turn asks the model; a reply that calls tools of ours has them run and asks again; any other reply ends it.
Calls of tools that the client brought are the client's to run, so they end the turn too. No I/O, no clock.
Editing rule: every change of state stands in ``TRANSITIONS``; what is not there is a bug and raises.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Literal, TypeAlias

import attrs

from .errors import GatewayError
from .replies import Reply
from .shapes import Json

State: TypeAlias = Literal["asking", "running", "done", "failed"]
Input: TypeAlias = Literal["answer", "own_calls", "too_many_steps", "results", "failure"]

# {(state, input): next state}
TRANSITIONS: Mapping[tuple[State, Input], State] = {
    ("asking", "answer"): "done",
    ("asking", "own_calls"): "running",
    ("asking", "too_many_steps"): "failed",
    ("asking", "failure"): "failed",
    ("running", "results"): "asking",
    ("running", "failure"): "failed",
}


class StepLimitError(GatewayError):
    """The model went on calling tools until its limit. The client gets no half answer for a whole one."""

    def __init__(self, max_steps: int) -> None:
        super().__init__(
            502,
            "server_error",
            f"The agent did not come to an answer within {max_steps} steps (agents.defaults.max_tool_iterations).",
            code="too_many_steps",
            headers={"x-should-retry": "false"},
        )


@attrs.frozen
class Answer:
    """The turn is over: this is its reply."""

    reply: Reply


@attrs.frozen
class RunTools:
    """Run these calls, OpenAI's ``tool_calls`` objects, and hand the results to ``on_results``."""

    calls: Sequence[Mapping[str, Json]]


Action: TypeAlias = Answer | RunTools


@attrs.define
class Turn:
    """One turn.

    Args:
        own_tools: names of the tools that we run ourselves.
        max_steps: replies that the model may give, its last one included.
    """

    own_tools: Collection[str] = ()
    max_steps: int = 1
    state: State = attrs.field(default="asking", init=False)
    steps: int = attrs.field(default=0, init=False)

    def on_reply(self, reply: Reply) -> Action:
        """
        Raises:
            StepLimitError: the reply calls tools of ours, and no further reply is permitted.
        """
        self.steps += 1
        calls = [call for call in reply.message.get("tool_calls") or () if self._is_own(call)]
        if not calls:
            self._go("answer")
            return Answer(reply)
        if self.steps >= self.max_steps:
            self._go("too_many_steps")
            raise StepLimitError(self.max_steps)
        self._go("own_calls")
        return RunTools(calls)

    def on_results(self) -> None:
        """The tools have run: the model is to be asked again."""
        self._go("results")

    def on_failure(self) -> None:
        """The model could not be asked, or a tool took the turn down with it."""
        self._go("failure")

    def _is_own(self, call: Mapping[str, Json]) -> bool:
        return call.get("function", {}).get("name") in self.own_tools

    def _go(self, input: Input) -> None:
        self.state = TRANSITIONS[self.state, input]
