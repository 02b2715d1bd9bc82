"""The agent's turn as a state machine: a reply goes in, the next action comes out.

Theory: a turn asks the model; a reply that calls tools of ours alone has them run and asks again; any other reply ends
it. Calls of tools that the client brought are the client's to run, so they end the turn; where such a reply calls
tools of ours as well, these are run first, for the client to come back to. No I/O, no clock.
Editing rule: every change of state stands in ``TRANSITIONS``; what is not there is a bug and raises.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Literal, TypeAlias

import attrs

from .errors import GatewayError
from .replies import Reply
from .shapes import Json

State: TypeAlias = Literal["asking", "running", "finishing", "done", "failed"]
Input: TypeAlias = Literal["answer", "own_calls", "mixed_calls", "too_many_steps", "results", "failure"]

# {(state, input): next state}
TRANSITIONS: Mapping[tuple[State, Input], State] = {
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


class StepLimitError(GatewayError):
    """The model went on calling tools until its limit. The client gets no half answer for a whole one."""

    def __init__(self, max_steps: int) -> None:
        super().__init__(
            502,
            "server_error",
            f"The agent did not come to an answer within {max_steps} step{'' if max_steps == 1 else 's'}"
            " (agents.defaults.max_tool_iterations, or maxTurns in AGENT.md where it is less).",
            code="too_many_steps",
            headers={"x-should-retry": "false"},
        )


@attrs.frozen
class Answer:
    """The turn is over: this is its reply."""

    reply: Reply


@attrs.frozen
class RunTools:
    """Run these calls, OpenAI's ``tool_calls`` objects, and hand the results to ``on_results``.

    ``is_last``: the reply that made them is the answer too, with the client's calls that it has beside them.
    """

    calls: Sequence[Mapping[str, Json]]
    is_last: bool = False


Action: TypeAlias = Answer | RunTools


@attrs.define
class Turn:
    """One turn.

    Args:
        own_tools: names of the tools that we run ourselves.
        client_tools: names of those that the client runs. With tools of ours in play, a call of a name that nobody
            knows is ours to answer, so that the model learns of its mistake.
        max_steps: replies that the model may give, its last one included.
    """

    own_tools: Collection[str] = ()
    client_tools: Collection[str] = ()
    max_steps: int = 1
    state: State = attrs.field(default="asking", init=False)
    steps: int = attrs.field(default=0, init=False)

    def on_reply(self, reply: Reply) -> Action:
        """
        Raises:
            StepLimitError: the reply calls tools of ours alone, and no further reply is permitted.
        """
        self.steps += 1
        all_calls = reply.message.get("tool_calls") or ()
        calls = [call for call in all_calls if self.is_own(call)]
        if not calls:
            self._go("answer")
            return Answer(reply)
        if len(calls) < len(all_calls):
            self._go("mixed_calls")
            return RunTools(calls, is_last=True)
        if self.steps >= self.max_steps:
            self._go("too_many_steps")
            raise StepLimitError(self.max_steps)
        self._go("own_calls")
        return RunTools(calls)

    def on_results(self) -> None:
        """The tools have run: the model is to be asked again, unless these calls were the last."""
        self._go("results")

    def on_failure(self) -> None:
        """The model could not be asked, or a tool took the turn down with it."""
        self._go("failure")

    def is_own(self, call: Mapping[str, Json]) -> bool:
        """Whether *call*, one of OpenAI's ``tool_calls``, is ours to run."""
        function = call.get("function")
        return bool(self.own_tools) and isinstance(function, dict) and function.get("name") not in self.client_tools

    def _go(self, input: Input) -> None:
        self.state = TRANSITIONS[self.state, input]
