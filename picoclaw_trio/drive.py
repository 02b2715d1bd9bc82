"""The turn under way: ask the model, run the tools that it calls, ask again, until it has answered.

Theory: ``turn`` decides what follows a reply, ``upstream`` and ``tools`` do it, and this room joins what the steps say
into the one answer that the client gets. The client hears the text of every step as it comes, a blank line between two
steps, but of calls only those of its own tools; so a whole answer and a streamed one are the same words.
Editing rule: all facts come from the plan; no configuration and no session is read here.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import attrs
import trio

from .errors import UpstreamError
from .memory import Said
from .messages import Message, modernise
from .plan import TurnPlan
from .replies import Delta, Fold, Progress, Reply, ReplyStarted, TextDelta, ToolCallDelta, Usage
from .shapes import Json
from .tools import ToolBox, ToolResult
from .turn import Answer, Turn
from .upstream import Emit, Upstream
from .upstream_request import UpstreamRequest

BETWEEN_STEPS = "\n\n"


@attrs.frozen
class Outcome:
    """What a turn came to.

    Attributes:
        reply: the answer, as the client gets it.
        added: what the conversation has grown by, as the model is to see it when it goes on. Empty where nobody
            will want it: the turn has no tools, and is not remembered.
    """

    reply: Reply
    added: tuple[Said, ...]


async def drive(upstream: Upstream, plan: TurnPlan, emit: Emit) -> Outcome:
    """Ask the model, and go on asking until the turn is over.

    Raises:
        UpstreamError: no target gave a reply, or not before the plan's deadline.
        StepLimitError: the model went on calling tools.
    Cancellation: the open connection is closed and running tools are ended; *emit* may have been given a part.
    """
    try:
        with trio.fail_at(plan.deadline):
            if plan.tools is None:
                reply = await upstream.complete(plan.route, _request(plan, plan.conversation), emit)
                return Outcome(reply, () if plan.past is None else (_said(reply),))
            return await _drive_steps(upstream, plan, plan.tools, emit)
    except trio.TooSlowError as exc:
        raise UpstreamError("timeout", detail="the turn's deadline has passed") from exc


async def _drive_steps(upstream: Upstream, plan: TurnPlan, tools: ToolBox, emit: Emit) -> Outcome:
    turn = Turn(tools.tools, plan.client_tools, plan.max_steps)
    steps = Steps(turn, emit, plan.stream)
    route = plan.route
    while True:
        conversation = (*plan.conversation, *(said.message for said in steps.added))
        try:
            reply = await upstream.complete(route, _request(plan, conversation), steps.take)
        except UpstreamError:
            turn.on_failure()
            raise
        action = turn.on_reply(reply)
        await steps.add_reply(reply)
        if isinstance(action, Answer):
            return steps.outcome()
        steps.add_results(await tools.run(action.calls, emit))
        turn.on_results()
        if action.is_last:
            return steps.outcome()
        plan = _released(plan)
        if plan.stream:
            route = route.only(reply.alias)  # the client has been told who answers


def _released(plan: TurnPlan) -> TurnPlan:
    """*plan* when tools of ours have run: a choice that called for them is fulfilled, and would call for ever."""
    called_for = _called_for(plan.parameters.get("tool_choice"))
    if called_for is None or any(name in plan.client_tools for name in called_for or plan.client_tools):
        return plan
    return attrs.evolve(plan, parameters={**plan.parameters, "tool_choice": "auto"})


def _called_for(choice: Json) -> list[str] | None:
    """Names of the tools, one of which a ``tool_choice`` demands; none of them: any tool. None: it demands nothing."""
    if choice == "required":
        return []
    if not isinstance(choice, dict):
        return None
    allowed = choice.get("allowed_tools")
    if not isinstance(allowed, dict):
        return _names([choice]) or None
    tools = allowed.get("tools")
    return _names(tools) or None if allowed.get("mode") == "required" and isinstance(tools, list) else None


def _names(tools: list[Json]) -> list[str]:
    functions = [tool.get("function") for tool in tools if isinstance(tool, dict)]
    return [str(function.get("name")) for function in functions if isinstance(function, dict)]


def _request(plan: TurnPlan, conversation: Sequence[Message]) -> UpstreamRequest:
    return UpstreamRequest(conversation, plan.parameters, plan.stream, plan.keep_text)


@attrs.define
class Steps:
    """The steps of one turn, and the one answer that they make.

    Attributes:
        added: the messages so far, in order.
    """

    turn: Turn
    emit: Emit
    stream: bool
    added: list[Said] = attrs.field(factory=list, init=False)
    _fold: Fold = attrs.field(factory=Fold, init=False)  # of earlier steps
    _step: list[Delta] = attrs.field(factory=list, init=False)
    _replies: list[Reply] = attrs.field(factory=list, init=False)
    _is_begun: bool = attrs.field(default=False, init=False)
    _has_text: bool = attrs.field(default=False, init=False)  # of earlier steps
    _step_has_text: bool = attrs.field(default=False, init=False)

    async def take(self, *events: Progress) -> None:
        """Give on what the client is to hear of these events of a step."""
        if heard := [heard for event in events for heard in self._hear(event)]:
            await self.emit(*heard)

    def _hear(self, event: Progress) -> Iterator[Progress]:
        if type(event) is ReplyStarted:
            if not self._is_begun:
                yield event
            self._is_begun = True
            self._step.clear()  # where nobody streams a target may have failed half-way, and another one begins anew
            self._step_has_text = False
        elif type(event) is TextDelta and event.field == "content" and event.text:
            if self._has_text and not self._step_has_text:
                yield self._keep(TextDelta(BETWEEN_STEPS))
            self._step_has_text = True
            yield self._keep(event)
        elif type(event) is not ToolCallDelta:  # whose a call is shows only when its name is whole
            assert not isinstance(event, ReplyStarted)
            yield self._keep(event) if isinstance(event, Delta) else event

    def _keep(self, event: Delta) -> Delta:
        self._step.append(event)
        return event

    async def add_reply(self, reply: Reply) -> None:
        """A step is over: remember its reply, and give on those of its calls that are the client's."""
        self._replies.append(reply)
        self._has_text = self._has_text or self._step_has_text
        self._step_has_text = False
        calls = reply.message.get("tool_calls") or ()
        own = tuple(call["id"] for call in calls if self.turn.is_own(call))
        clients = [call for call in calls if not self.turn.is_own(call)]
        is_internal = bool(own) and not clients
        self.added.append(_said(reply, is_internal=is_internal, own_calls=() if is_internal else own))
        if clients:
            await self.emit(*[self._keep(ToolCallDelta(index, call)) for index, call in enumerate(clients)])
        for event in self._step:
            self._fold.add(event)
        self._step.clear()

    def add_results(self, results: Sequence[ToolResult]) -> None:
        for result in results:
            body = {"role": "tool", "tool_call_id": result.call_id, "content": result.text}
            self.added.append(Said(Message("tool", body), internal=True))

    def outcome(self) -> Outcome:
        last = self._replies[-1]
        message = {**last.message, **self._fold.message()}
        if message["content"] is None:
            message["content"] = None if "tool_calls" in message else last.message.get("content")
        reply = attrs.evolve(last, message=message, usage=self._usage(), logprobs=self._fold.logprobs)
        return Outcome(reply, tuple(self.added))

    def _usage(self) -> Usage | None:
        """Of all steps together; None where no upstream told any."""
        total = None
        for told in (reply.usage for reply in self._replies):
            total = told if total is None else total.plus(told) if told else total
        return total


def _said(reply: Reply, *, is_internal: bool = False, own_calls: tuple[str, ...] = ()) -> Said:
    """The reply as a message that can be sent to a model again: some refuse fields that are null or unknown."""
    body = {name: value for name, value in reply.message.items() if name in SENT_AGAIN and value is not None}
    called = reply.message.get("function_call")
    if isinstance(called, dict) and {str} == {type(called.get("name")), type(called.get("arguments"))}:
        body = modernise({**body, "function_call": called})  # the client's part of it will come so too
    if "tool_calls" not in body:
        body.setdefault("content", "")
    return Said(Message("assistant", body), is_internal, own_calls)


# Thoughts go back too: models that think between the calls of their tools want to see them again.
SENT_AGAIN = frozenset({"role", "content", "refusal", "tool_calls", "reasoning_content"})
