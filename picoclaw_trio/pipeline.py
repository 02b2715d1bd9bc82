"""The line that every request walks: plan, drive, commit.

Theory: ``plan`` gathers all that a turn needs into one value and records the alias chosen; ``drive`` asks the model
and reads no configuration and no session; ``commit`` lets the answer's last byte go only when the record is on disk.
The doors (HTTP, terminal) differ in what they do with the events, and in nothing else.
Editing rule: a fact that ``drive`` needs becomes a field of ``TurnPlan``; nobody reaches back.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import attrs
import structlog
import trio

from .admission import Admission
from .auth import BearerTokens
from .config import Config
from .errors import GatewayError, RequestError, StateError, UpstreamError
from .messages import Message
from .replies import Reply
from .routing import Route, Router
from .shapes import Json
from .state import NO_CHANGE, Change, Sessions, open_sessions
from .throttle import Throttle
from .turn import Answer, Turn
from .upstream import Emit, RetryPolicy, Upstream, open_upstream
from .upstream_request import UpstreamRequest
from .wire import ChatRequest

log = structlog.stdlib.get_logger("picoclaw_trio.pipeline")

GLOBAL_SCOPE = "global"


@attrs.frozen
class Caller:
    """Who asks.

    Attributes:
        session: key of the session, ``openai:default``, ``openai:<user>`` or ``cli:<name>``.
        selection: where the alias that this caller names is stored; None: nowhere.
        holder: whose line to stand in when it is crowded.
    """

    session: str
    selection: str | None
    holder: int


@attrs.frozen
class TurnPlan:
    """All that a turn needs.

    Attributes:
        session: key of the session.
        alias: the alias that was chosen.
        conversation: the messages that go to the model.
        parameters: sampling fields, tools and the like, as the client sent them.
        route: the targets to ask, in order.
        stream: ask the upstream for a stream.
        keep_text: the reply is to hold the whole text, though each piece of it was given on.
        deadline: absolute Trio time at which the turn ends, done or not.
        selection: the record of the alias; done when it is on disk.
    """

    session: str
    alias: str
    conversation: tuple[Message, ...]
    parameters: Mapping[str, Json]
    route: Route
    stream: bool
    keep_text: bool
    deadline: float
    selection: Change


@attrs.frozen
class Gateway:
    """What lives as long as the server and serves all requests."""

    config: Config
    tokens: BearerTokens
    throttle: Throttle
    router: Router
    sessions: Sessions
    upstream: Upstream
    admission: Admission

    def http_caller(self, user: str | None, holder: int) -> Caller:
        """A client of the endpoint: its aliases are stored with its session, or in the one place for all."""
        session = f"openai:{user or 'default'}"
        is_own = self.config.gateway.openai_api.model_scope == "session"
        return Caller(session, session if is_own else GLOBAL_SCOPE, holder)

    def with_config(self, config: Config) -> Gateway:
        """The same server under another configuration: state, connections and turns in flight stay."""
        api, defaults = config.gateway.openai_api, config.agents.defaults
        self.upstream.policy = RetryPolicy(defaults.max_llm_retries + 1, defaults.llm_retry_backoff_secs)
        self.admission.set_limits(api.max_turns, api.max_waiting, api.max_wait)
        return attrs.evolve(
            self,
            config=config,
            tokens=BearerTokens.from_plain([token.reveal() for token in api.bearer_tokens]),
            throttle=Throttle(api.wrong_tokens_per_minute),
            router=Router.from_config(config),
        )


def open_stored_sessions(config: Config) -> AbstractAsyncContextManager[Sessions]:
    """What is stored for the sessions, under the configuration's bounds.

    Raises:
        StateError: the state file cannot be used.
    """
    api = config.gateway.openai_api
    return open_sessions(config.home, max_sessions=api.max_sessions, session_ttl=api.session_ttl)


@asynccontextmanager
async def open_gateway(config: Config) -> AsyncIterator[Gateway]:
    """State, then upstream, then ready to serve; leaving goes the other way.

    Raises:
        StateError: the state file cannot be used.
    """
    api, defaults = config.gateway.openai_api, config.agents.defaults
    policy = RetryPolicy(defaults.max_llm_retries + 1, defaults.llm_retry_backoff_secs)
    async with open_stored_sessions(config) as sessions, open_upstream(policy, api.max_turns) as upstream:
        yield Gateway(
            config=config,
            tokens=BearerTokens.from_plain([token.reveal() for token in api.bearer_tokens]),
            throttle=Throttle(api.wrong_tokens_per_minute),
            router=Router.from_config(config),
            sessions=sessions,
            upstream=upstream,
            admission=Admission(api.max_turns, api.max_waiting, api.max_wait),
        )


async def answer(
    gateway: Gateway, request: ChatRequest, caller: Caller, emit: Emit, *, keep_text: bool = True
) -> Reply:
    """Walk the whole line for one request.

    Args:
        emit: is given each event of the turn but the last, in order, and may take its time.
        keep_text: False where *emit* is all that wants the text: then a long reply costs no memory.

    Raises:
        GatewayError: the request is refused or the turn has failed; with *emit* called before, a part was said.
    Cancellation: the upstream's connection is closed and the place for the turn is free again; the record of the
        alias goes on to disk.
    """
    async with open_turn(gateway, request, caller, keep_text=keep_text) as plan:
        return await run_turn(gateway.upstream, plan, emit)


@asynccontextmanager
async def open_turn(
    gateway: Gateway, request: ChatRequest, caller: Caller, *, keep_text: bool
) -> AsyncIterator[TurnPlan]:
    """A place for the turn and its plan, from entering to leaving.

    Raises:
        GatewayError: the request is refused.
    """
    alias = choose_alias(gateway, request.model, caller)
    async with gateway.admission.turn(caller.holder):
        yield make_plan(gateway, request, caller, alias, keep_text=keep_text)


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
    default = gateway.config.default_alias
    if stored is not None:
        log.warning("stored model is no longer configured", session=caller.session, stored=stored, answers=default)
    if default is None:
        raise RequestError("No model is configured: model_list is empty.", "model", "model_not_found", status=404)
    return default


def make_plan(
    gateway: Gateway, request: ChatRequest, caller: Caller, alias: str, *, keep_text: bool = True
) -> TurnPlan:
    """Gather what the turn needs, and store the alias if the request named it. Its way to disk is only begun."""
    selection = NO_CHANGE
    if request.model is not None and caller.selection is not None:
        selection = gateway.sessions.select(caller.selection, alias)
    return TurnPlan(
        session=caller.session,
        alias=alias,
        conversation=request.messages,
        parameters=request.parameters,
        route=gateway.router.route(alias, trio.current_time()),
        stream=request.stream,
        keep_text=keep_text,
        deadline=trio.current_time() + gateway.config.gateway.openai_api.turn_timeout,
        selection=selection,
    )


async def run_turn(upstream: Upstream, plan: TurnPlan, emit: Emit) -> Reply:
    """Drive the turn while the selection goes to disk, and commit it.

    Raises:
        StateError: the selection could not be written; the call to the model was given up.
        GatewayError: the turn failed; the selection is on disk all the same.
    """
    if plan.selection.is_durable:
        return await drive(upstream, plan, emit)
    failures: list[GatewayError] = []

    async def store() -> None:
        try:
            await commit(plan)
        except StateError as exc:
            failures.insert(0, exc)
            nursery.cancel_scope.cancel()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(store)
        try:
            reply = await drive(upstream, plan, emit)
        except GatewayError as exc:
            failures.append(exc)
    if failures:
        raise failures[0]
    return reply


async def drive(upstream: Upstream, plan: TurnPlan, emit: Emit) -> Reply:
    """Ask the model, and go on asking until the turn is over.

    Raises:
        UpstreamError: no target gave a reply, or not before the plan's deadline.
    Cancellation: the open connection is closed; *emit* may have been given a part of a reply.
    """
    turn = Turn()
    request = UpstreamRequest(plan.conversation, plan.parameters, plan.stream, plan.keep_text)
    try:
        with trio.fail_at(plan.deadline):
            reply = await upstream.complete(plan.route, request, emit)
    except trio.TooSlowError as exc:
        raise UpstreamError("timeout", detail="the turn's deadline has passed") from exc
    action = turn.on_reply(reply)
    assert type(action) is Answer
    return action.reply


async def commit(plan: TurnPlan) -> None:
    """Return when all that the turn has changed is on disk.

    Raises:
        StateError: it could not be written, and nothing has changed.
    """
    await plan.selection.wait()
