"""Ask a model: walk a route, one attempt after another, until a target gives its reply.

Theory: one attempt is one call of one target; ``routing.ON_FAILURE`` says what follows a failed one. The line above
sees a single reply. The asking itself, over HTTP or in process, is a function that is handed in, so that the walk can
be tested on virtual time.
Editing rule: no decision stands here, only the carrying out of the table's.
"""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Protocol, TypeAlias

import attrs
import structlog
import trio

from . import metrics
from .call_pieces import CallPieces
from .connections import open_pool
from .echo import ask_echo
from .errors import UpstreamError
from .http_target import MAX_ANSWER_BYTES, Take, ask_http
from .replies import Delta, Fold, Progress, Reply, ReplyStarted, TextDelta, ToolCallDelta
from .routing import GIVE_UP, MAY_STILL_RUN, ON_FAILURE, RETRY, Action, Route, Target
from .upstream_reply import Chunk, complete_calls, merge_endings
from .upstream_request import UpstreamRequest

log = structlog.stdlib.get_logger("picoclaw_trio.upstream")

Ask: TypeAlias = Callable[[Target, UpstreamRequest, Take], Awaitable[None]]


class Emit(Protocol):
    """Is given events in order, those that came together in one call, and may take its time."""

    async def __call__(self, *events: Progress) -> None: ...


async def discard(*events: Progress) -> None:
    """For a client that wants the whole answer: the reply holds all that was said."""


@attrs.frozen
class RetryPolicy:
    """How often and how soon one target is asked again.

    Attributes:
        max_attempts: calls of one target, the first included.
        base_delay: seconds before the second attempt; doubled for each that follows.
        max_delay: longest pause in seconds; a target that asks for a longer one is left for the next.
    """

    max_attempts: int = 3
    base_delay: float = 0.5
    max_delay: float = 8.0

    def delay(self, attempt: int, error: UpstreamError, jitter: float) -> float | None:
        """Seconds to wait after failed *attempt* (1, 2 ...), or None where it is not worth it.

        Args:
            jitter: a random number from 0 to 1; takes away up to half of the pause, so that clients part.
        """
        if attempt >= self.max_attempts:
            return None
        own: float = min(self.max_delay, self.base_delay * 2 ** (attempt - 1)) * (1 - jitter / 2)
        pause = max(own, error.retry_after or 0.0)  # who says 0 has failed all the same: never again at once
        return pause if pause <= self.max_delay else None


@attrs.define
class Upstream:
    """Asks models. One for the whole server."""

    ask: Ask
    policy: RetryPolicy = attrs.field(factory=RetryPolicy)
    jitter: Callable[[], float] = random.random
    run_chores: Callable[[], Awaitable[None]] = trio.sleep_forever  # what a server runs beside its requests

    async def complete(self, route: Route, request: UpstreamRequest, emit: Emit) -> Reply:
        """Get one reply, asking the targets of *route* in the order that is right now.

        Gives each piece to *emit* as it arrives. Once a piece was given, no other target is tried.

        Raises:
            UpstreamError: every permitted attempt failed; it is that of the last one.
        Cancellation: the open connection is closed; *emit* may have been given part of a reply.
        """
        running: set[tuple[str | None, str]] = set()
        failure: UpstreamError | None = None
        for target in route.in_order(trio.current_time()):
            if (target.base, target.settings.model) in running:
                continue
            if failure is not None:
                metrics.note_fallback(target.alias, failure.kind)
            try:
                return await self._ask_patiently(target, request, emit)
            except UpstreamError as exc:
                if _what_follows(exc) == GIVE_UP:
                    raise
                if exc.kind in MAY_STILL_RUN:
                    running.add((target.base, target.settings.model))
                failure = exc.with_traceback(None)  # its frames, this one too, would be kept in a circle
        assert failure is not None, "a route has at least one target"
        raise failure

    async def _ask_patiently(self, target: Target, request: UpstreamRequest, emit: Emit) -> Reply:
        """One target, asked again after a pause as long as that may help."""
        attempt = 1
        while True:
            await self._wait_allowance(target)
            try:
                return await self._attempt(target, request, emit)
            except UpstreamError as exc:
                _log_failure(target, attempt, exc)
                pause = self.policy.delay(attempt, exc, self.jitter()) if _what_follows(exc) == RETRY else None
                if pause is None or not _is_time_for(pause):
                    raise
                metrics.note_retry(target.alias, exc.kind)
            await trio.sleep(pause)
            attempt += 1

    async def _wait_allowance(self, target: Target) -> None:
        """Keep the requests a minute of the target's entry, by a short wait or by leaving the target at once."""
        allowance, now = target.allowance, trio.current_time()
        pause = allowance.wait(now)
        if pause and (pause > self.policy.max_delay or not _is_time_for(pause)):
            raise UpstreamError("rate_limited", detail="rpm of the entry is used up", retry_after=pause)
        slot = allowance.reserve(now)
        if pause:
            try:
                await trio.sleep_until(slot)
            except BaseException:
                allowance.give_back(slot)
                raise

    async def _attempt(self, target: Target, request: UpstreamRequest, emit: Emit) -> Reply:
        """One call of one target, and what it shows of that target's health.

        Silence up to the deadline is a timeout of the target's, though nothing but a cancellation comes of it here.
        """
        hearing = _Hearing(target, emit, request.stream, request.keep_text)
        deadline = trio.current_effective_deadline()
        began_at, outcome = trio.current_time(), "cancelled"
        try:
            await self.ask(target, request, hearing.take)
            await hearing.tell()
            outcome = "ok"
            target.health.note_reply(began_at)
        except UpstreamError as exc:
            exc.spoken = hearing.spoken
            outcome = exc.kind
            target.health.note_failure(exc.kind, exc.retry_after, began_at, trio.current_time())
            raise
        except BaseException:  # a cancellation, alone or in a group
            if not hearing.started and trio.current_time() >= deadline:
                outcome = "timeout"
                target.health.note_failure(outcome, None, began_at, trio.current_time())
            raise
        finally:
            metrics.note_attempt(target.alias, outcome, trio.current_time() - began_at)
        return hearing.reply()


@attrs.define
class _Hearing:
    """What has been heard of one reply so far."""

    target: Target
    emit: Emit
    stream: bool
    keep_text: bool
    fold: Fold = attrs.field(factory=Fold)
    calls: CallPieces = attrs.field(factory=CallPieces)
    ending: Chunk = attrs.field(factory=Chunk)
    started: bool = False
    kept: int = 0

    @property
    def spoken(self) -> bool:
        """A client that streams has been given a piece."""
        return self.stream and self.started

    async def take(self, chunk: Chunk) -> None:
        self.ending = merge_endings(self.ending, chunk)
        events = [self._hear(event) for event in chunk.events]
        # The empty text that comes with the role says nothing yet: another target may still answer.
        telling = [event for event in events if type(event) is not TextDelta or event.text or event.logprobs]
        if telling:
            await self.tell(*telling)

    async def tell(self, *events: Delta) -> None:
        """Give *events* on, the first of them, or none, after whose they are: each reply has its beginning."""
        if not self.started:
            self.started = True
            await self.emit(ReplyStarted(self.target.alias, self.upstream_model), *events)
        elif events:
            await self.emit(*events)

    def _hear(self, event: Delta) -> Delta:
        if type(event) is ToolCallDelta:
            event = self.calls.mend(event)
        if type(event) is not TextDelta and not self.keep_text:
            self._count(event)
        if self.keep_text or type(event) is not TextDelta:
            self.fold.add(event)
        return event

    def _count(self, event: Delta) -> None:
        """A stream whose text only passes through may be of any length, but not what is kept of it."""
        self.kept += len(repr(event))
        if self.kept > MAX_ANSWER_BYTES:
            raise UpstreamError(
                "garbled", detail=f"the calls in its stream have more than {MAX_ANSWER_BYTES} characters"
            )

    @property
    def upstream_model(self) -> str:
        return self.ending.model or self.target.settings.model

    def reply(self) -> Reply:
        message = complete_calls(self.fold.message())
        ending = self.ending
        return Reply(
            message=message,
            finish_reason=ending.finish_reason or ("tool_calls" if message.get("tool_calls") else "stop"),
            logprobs=self.fold.logprobs,
            usage=ending.usage,
            alias=self.target.alias,
            upstream_model=self.upstream_model,
            fingerprint=ending.fingerprint,
            service_tier=ending.service_tier,
        )


def _is_time_for(pause: float) -> bool:
    return trio.current_time() + pause < trio.current_effective_deadline()


def _what_follows(error: UpstreamError) -> Action:
    return ON_FAILURE[error.kind, error.spoken]


def _log_failure(target: Target, attempt: int, error: UpstreamError) -> None:
    log.warning(
        "attempt failed",
        alias=target.alias,
        model=target.settings.model,
        base=target.base,
        attempt=attempt,
        kind=error.kind,
        detail=error.detail,
    )


@asynccontextmanager
async def open_upstream(policy: RetryPolicy, max_idle: int) -> AsyncIterator[Upstream]:
    """Ready to ask: a pool of connections that is closed on leaving.

    Args:
        max_idle: idle connections that are kept. With fewer than there are turns at once, a busy server would close
            and open connections all the time: measured at an eighth of a request with 1,024 clients.
    """
    async with open_pool(max_idle=max_idle) as pool:

        async def ask(target: Target, request: UpstreamRequest, take: Take) -> None:
            if target.vendor == "echo":
                await ask_echo(request, take)
            else:
                await ask_http(pool, target, request, take)

        yield Upstream(ask, policy, run_chores=pool.run_sweeper)
