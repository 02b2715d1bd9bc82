"""The line that every request walks: plan, drive, commit.

Theory: a plan gathers all that a turn needs into one value and records the alias chosen; ``drive`` asks the model and
runs its tools; ``commit`` lets the answer's last byte go only when the record and the conversation are on disk.
The doors (HTTP, terminal) differ in what they do with the events, and in nothing else.
Editing rule: what lives as long as the server is a field of ``gateway.Gateway``, what lives as long as a turn is one of
its plan.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable

import attrs
import structlog
import trio

from .drive import Outcome, drive
from .errors import GatewayError, RequestError, StateError
from .gateway import Gateway
from .memory import Recollection, is_side_task, room_for_conversation
from .plan import Caller, Past, TurnPlan, compose, is_steering, plan_with_tools, system_message, tool_names
from .replies import Reply
from .state import NO_CHANGE
from .summary import sum_up
from .tools import ToolBox
from .upstream import Emit
from .wire import ChatRequest

log = structlog.stdlib.get_logger("picoclaw_trio.pipeline")


def nothing(*_: object) -> None: ...


async def answer(
    gateway: Gateway,
    request: ChatRequest,
    caller: Caller,
    emit: Emit,
    *,
    keep_text: bool = True,
    on_chosen: Callable[[str], None] = nothing,
    on_begun: Callable[[], None] = nothing,
) -> Reply:
    """Walk the whole line for one request.

    Args:
        emit: is given each event of the turn but the last, in order, and may take its time.
        keep_text: False where *emit* is all that wants the text: then a long reply costs no memory.
        on_chosen: is called with the alias that is to answer.
        on_begun: is called when there is a place for the turn, and its session is free: it need not wait any more.

    Raises:
        GatewayError: the request is refused or the turn has failed; with *emit* called before, a part was said.
    Cancellation: the upstream's connection is closed, tools are ended, and the place for the turn is free again; the
        record of the alias goes on to disk; of the conversation nothing is kept.
    """
    alias = choose_alias(gateway, request.model, caller)
    on_chosen(alias)
    async with gateway.admission.turn(caller.holder):
        if not caller.remembers or is_side_task(request.messages):
            on_begun()
            plan = make_plan(gateway, request, caller, alias, keep_text=keep_text)
            return await run_turn(gateway, plan, emit)
        said = [message for message in request.messages if not is_steering(message)]
        room, wait = _room(gateway, request), gateway.config.gateway.openai_api.session_wait
        async with gateway.memory.recall(
            caller.session, said, window=room, wait=wait, only_adds=caller.only_adds
        ) as recollection:
            on_begun()
            past = await _remember(gateway, alias, recollection)
            plan = make_plan(gateway, request, caller, alias, past, keep_text=keep_text)
            return await run_turn(gateway, plan, emit)


def _room(gateway: Gateway, request: ChatRequest) -> int:
    """Tokens that the session's conversation may take in this turn."""
    defaults, prompt = gateway.config.agents.defaults, gateway.workspace.identity().prompt
    asked = request.parameters.get("max_completion_tokens") or request.parameters.get("max_tokens")
    steering = [message for message in request.messages if is_steering(message)]
    steering += [] if prompt is None else [system_message(prompt)]
    return room_for_conversation(defaults.window, asked or defaults.max_tokens or 0, steering)


async def _remember(gateway: Gateway, alias: str, recollection: Recollection) -> Past:
    """What is kept of the conversation, with a summary of what falls out of it now where one is wanted."""
    deadline = trio.current_time() + gateway.config.gateway.openai_api.turn_timeout
    summary = recollection.summary
    if recollection.left_out and gateway.config.agents.defaults.summarize_history:
        route = gateway.router.route(alias, trio.current_time())
        with trio.move_on_at(deadline):
            summary = await sum_up(gateway.upstream, route, summary, recollection.left_out)
    return Past(recollection, summary, deadline)


def choose_alias(gateway: Gateway, named: str | None, caller: Caller) -> str:
    """The alias that answers: the one named, else the stored one, else the default agent's.

    Raises:
        RequestError: status 404: *named* is not configured, or nothing is.
    """
    router = gateway.router
    if named is not None:
        router.check_alias(named)
        return named
    stored = None if caller.selection is None else gateway.sessions.selected(caller.selection)
    if stored is not None and stored in router.aliases:
        return stored
    default = gateway.default_alias
    if stored is not None:
        log.warning("stored model is no longer configured", session=caller.session, stored=stored, answers=default)
    if default is None:
        raise RequestError("No model is configured: model_list is empty.", "model", "model_not_found", status=404)
    return default


def make_plan(
    gateway: Gateway,
    request: ChatRequest,
    caller: Caller,
    alias: str,
    past: Past | None = None,
    *,
    keep_text: bool = True,
) -> TurnPlan:
    """Gather what the turn needs, and store the alias if the request named it. Its way to disk is only begun."""
    config, now = gateway.config, trio.current_time()
    selection = NO_CHANGE
    if request.model is not None and caller.selection is not None:
        selection = gateway.sessions.select(caller.selection, alias)
    identity = gateway.workspace.identity()
    messages = gateway.unfinished.restore(_place(caller), request.messages)
    plan = TurnPlan(
        caller=caller,
        alias=alias,
        conversation=compose(identity.prompt, messages, past),
        parameters=request.parameters,
        route=gateway.router.route(alias, now),
        stream=request.stream,
        keep_text=keep_text,
        deadline=past.deadline if past else now + config.gateway.openai_api.turn_timeout,
        selection=selection,
        past=past,
    )
    box = _tools(gateway, request, caller, identity.tools)
    if box is None:
        return plan if past is None else attrs.evolve(plan, keep_text=True)
    max_steps = min(identity.max_steps or math.inf, config.agents.defaults.max_tool_iterations)
    return plan_with_tools(plan, box, int(max_steps))


def _place(caller: Caller) -> Hashable:
    """Where an unfinished turn is looked for: nobody gets at those of another token."""
    return caller.holder, caller.session


def _tools(gateway: Gateway, request: ChatRequest, caller: Caller, narrowed: tuple[str, ...] | None) -> ToolBox | None:
    """The agent's own tools for this request; none for what a front end asks for by itself."""
    # Functions of the old kind cannot stand beside tools in one request.
    if not gateway.tools.offers(caller.door) or "functions" in request.parameters or is_side_task(request.messages):
        return None
    box = gateway.tools.box(caller.door, narrowed, tool_names(request.parameters))
    if narrowed and box is None and gateway.tools.box(caller.door, narrowed) is None:
        gateway.workspace.remark("tools names none of those that are permitted and there, so there are none")
    return box


async def run_turn(gateway: Gateway, plan: TurnPlan, emit: Emit) -> Reply:
    """Drive the turn while the selection goes to disk, and commit it.

    Raises:
        StateError: the selection could not be written; the call to the model was given up.
        GatewayError: the turn failed; the selection is on disk all the same.
    """
    if plan.selection.is_durable:
        return await _run(gateway, plan, emit)
    failures: list[GatewayError] = []

    async def store() -> None:
        try:
            await plan.selection.wait()
        except StateError as exc:
            failures.insert(0, exc)
            nursery.cancel_scope.cancel()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(store)
        try:
            reply = await _run(gateway, plan, emit)
        except GatewayError as exc:
            failures.append(exc)
    if failures:
        raise failures[0]
    return reply


async def _run(gateway: Gateway, plan: TurnPlan, emit: Emit) -> Reply:
    outcome = await drive(gateway.upstream, plan, emit)
    await commit(gateway, plan, outcome)
    return outcome.reply


async def commit(gateway: Gateway, plan: TurnPlan, outcome: Outcome) -> None:
    """Return when what was said is kept: on disk where conversations are remembered.

    Raises:
        StateError: it could not be written, and nothing of it is kept.
    """
    if plan.past is not None:
        await plan.selection.wait()  # where that fails the turn does, and of one that failed nothing is kept
        await plan.past.recollection.record(outcome.added, summary=plan.past.summary)
    elif outcome.added and outcome.added[-1].internal and outcome.reply.message.get("tool_calls"):
        messages = [said.message for said in outcome.added]
        gateway.unfinished.keep(_place(plan.caller), outcome.reply.message["tool_calls"], messages)
