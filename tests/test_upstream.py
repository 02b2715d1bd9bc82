"""The walk over targets, on virtual time."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path

import attrs
import pytest
import structlog
import trio
from raw_upstream import run_cancelled_at
from trio.testing import MockClock

from picoclaw_trio.config import Config, ModelConfig, Secret
from picoclaw_trio.drive import drive
from picoclaw_trio.errors import UPSTREAM_FAILURES, UpstreamError
from picoclaw_trio.health import COOL_DOWNS
from picoclaw_trio.http_target import Take
from picoclaw_trio.plan import Caller, TurnPlan
from picoclaw_trio.replies import Delta, ExtraDelta, Progress, ReplyStarted, TextDelta, ToolCallDelta, Usage
from picoclaw_trio.routing import FALL_BACK, GIVE_UP, ON_FAILURE, RETRY, Route, Router, Target
from picoclaw_trio.state import NO_CHANGE
from picoclaw_trio.upstream import Emit, RetryPolicy, Upstream, discard
from picoclaw_trio.upstream_reply import Chunk
from picoclaw_trio.upstream_request import UpstreamRequest

Outcome = Callable[[Take], Awaitable[None]]

REQUEST = UpstreamRequest((), {}, stream=False)
STREAM = UpstreamRequest((), {}, stream=True)
STOP = Chunk(finish_reason="stop", model="up-2026")


def fails(kind: str, retry_after: float | None = None, *, after: float = 0.0) -> Outcome:
    async def outcome(take: Take) -> None:
        if after:
            await trio.sleep(after)
        raise UpstreamError(kind, retry_after=retry_after)

    return outcome


def says(*texts: str, pause: float = 0.0) -> Outcome:
    return gives(*(Chunk((TextDelta(text),)) for text in texts), STOP, pause=pause)


def gives(*chunks: Chunk, then: str | None = None, pause: float = 0.0) -> Outcome:
    """Give these chunks, and *then* fail."""

    async def outcome(take: Take) -> None:
        for chunk in chunks:
            await trio.sleep(pause)
            await take(chunk)
        if then is not None:
            raise UpstreamError(then)

    return outcome


@attrs.define
class FakeTargets:
    """Targets that do what their scripts say, the last line again and again, and note when they were asked."""

    scripts: Mapping[str, Sequence[Outcome]]
    started_at: float = attrs.field(factory=trio.current_time)
    asked: list[str] = attrs.field(factory=list)
    times: list[float] = attrs.field(factory=list)
    running: int = 0

    async def ask(self, target: Target, request: UpstreamRequest, take: Take) -> None:
        script = self.scripts[target.alias]
        outcome = script[min(self.asked.count(target.alias), len(script) - 1)]
        self.asked.append(target.alias)
        self.times.append(self.now)
        self.running += 1
        try:
            await outcome(take)
        finally:
            self.running -= 1

    @property
    def now(self) -> float:
        return trio.current_time() - self.started_at

    def upstream(self, jitter: float = 0.0, **policy: float) -> Upstream:
        return Upstream(self.ask, RetryPolicy(**policy), lambda: jitter)  # type: ignore[arg-type]  # counts are floats here


def router_of(*models: ModelConfig) -> Router:
    return Router.from_config(Config(None, Path("/nowhere"), model_list=models))


def route(*aliases: str, rpm: int = 0) -> Route:
    """One target for each alias."""
    router = router_of(*(ModelConfig(alias, f"{alias}-up", "openai", "http://x", rpm=rpm) for alias in aliases))
    return Route(tuple(router.route(alias, 0.0).targets[0] for alias in aliases))


@attrs.define
class Heard:
    """Who streams, and what he was given."""

    events: list[Progress] = attrs.field(factory=list)

    async def take(self, *events: Progress) -> None:
        self.events += events


# What follows a failure, cell by cell


PATIENT = [kind for kind in UPSTREAM_FAILURES if ON_FAILURE[kind, False] == RETRY]
HASTY = [kind for kind in UPSTREAM_FAILURES if ON_FAILURE[kind, False] == FALL_BACK]
FINAL = [kind for kind in UPSTREAM_FAILURES if ON_FAILURE[kind, False] == GIVE_UP]


@pytest.mark.parametrize(("kind", "asked"), [*((kind, "aaab") for kind in PATIENT), *((kind, "ab") for kind in HASTY)])
async def test_failure_before_the_first_text_is_followed_by_what_the_table_says(
    kind: str, asked: str, autojump_clock: MockClock
) -> None:
    fake = FakeTargets({"a": [fails(kind)], "b": [says("hello")]})

    reply = await fake.upstream().complete(route("a", "b"), STREAM, discard)

    assert ("hello", "b") == (reply.text, reply.alias)
    assert [*asked] == fake.asked


@pytest.mark.parametrize("kind", FINAL)
async def test_failure_that_the_table_takes_for_final_is_the_answer(kind: str, autojump_clock: MockClock) -> None:
    fake = FakeTargets({"a": [fails(kind)], "b": [says("hello")]})

    with pytest.raises(UpstreamError) as raised:
        await fake.upstream().complete(route("a", "b"), STREAM, discard)

    assert kind == raised.value.kind
    assert ["a"] == fake.asked


FIRST: list[Delta] = [
    TextDelta("Hel"),
    TextDelta("Hm", "reasoning_content"),
    TextDelta("", logprobs={"content": []}),
    ToolCallDelta(0, {"id": "call_1", "type": "function"}),
    ExtraDelta({"annotations": []}),
]


@pytest.mark.parametrize("kind", UPSTREAM_FAILURES)
@pytest.mark.parametrize("first", FIRST, ids=range(len(FIRST)))
async def test_no_fallback_after_first_delta(first: Delta, kind: str, autojump_clock: MockClock) -> None:
    fake = FakeTargets({"a": [gives(Chunk((first,)), then=kind)], "b": [says("hello")]})
    heard = Heard()

    with pytest.raises(UpstreamError) as raised:
        await fake.upstream().complete(route("a", "b"), STREAM, heard.take)

    assert kind == raised.value.kind
    assert ["a"] == fake.asked
    assert [ReplyStarted("a", "a-up"), first] == heard.events


@pytest.mark.parametrize("chunk", [Chunk(), Chunk((TextDelta(""),)), Chunk(usage=Usage(1, 0, 1)), Chunk(model="x")])
async def test_chunk_that_says_nothing_does_not_keep_from_falling_back(chunk: Chunk, autojump_clock: MockClock) -> None:
    fake = FakeTargets({"a": [gives(chunk, then="lost")], "b": [says("hello")]})
    heard = Heard()

    reply = await fake.upstream().complete(route("a", "b"), STREAM, heard.take)

    assert ("hello", "b") == (reply.text, reply.alias)
    assert [ReplyStarted("b", "b-up"), TextDelta("hello")] == heard.events


@pytest.mark.parametrize("kind", PATIENT + HASTY)
async def test_half_an_answer_that_nobody_streams_is_dropped(kind: str, autojump_clock: MockClock) -> None:
    fake = FakeTargets({"a": [gives(Chunk((TextDelta("half"),)), then=kind)], "b": [says("hello")]})

    reply = await fake.upstream().complete(route("a", "b"), REQUEST, discard)

    assert ("hello", "b") == (reply.text, reply.alias)


async def test_second_target_answers_when_first_is_down(autojump_clock: MockClock) -> None:
    fake = FakeTargets({"a": [fails("auth")], "b": [says("hello")]})

    reply = await fake.upstream().complete(route("a", "b"), REQUEST, discard)

    assert "hello" == reply.text
    assert ["a", "b"] == fake.asked
    assert [0.0, 0.0] == fake.times  # falling back does not wait


async def test_first_target_that_answers_is_the_last_one_asked(autojump_clock: MockClock) -> None:
    fake = FakeTargets({"a": [says("hello")], "b": [says("no")]})

    assert "a" == (await fake.upstream().complete(route("a", "b"), REQUEST, discard)).alias
    assert ["a"] == fake.asked


async def test_failure_of_the_last_target_is_the_answer(autojump_clock: MockClock) -> None:
    fake = FakeTargets({"a": [fails("auth")], "b": [fails("server")], "c": [fails("unknown_model")]})

    with pytest.raises(UpstreamError) as raised:
        await fake.upstream().complete(route("a", "b", "c"), REQUEST, discard)

    assert "unknown_model" == raised.value.kind
    assert ["a", "b", "b", "b", "c"] == fake.asked


async def test_refusal_by_a_fallback_is_the_answer(autojump_clock: MockClock) -> None:
    fake = FakeTargets({"a": [fails("auth")], "b": [fails("rejected")], "c": [says("no")]})

    with pytest.raises(UpstreamError) as raised:
        await fake.upstream().complete(route("a", "b", "c"), REQUEST, discard)

    assert "rejected" == raised.value.kind
    assert ["a", "b"] == fake.asked


@pytest.mark.parametrize("kind", ["backend_timeout", "lost", "timeout", "garbled"])
async def test_target_that_may_still_be_at_work_is_not_asked_again(kind: str, autojump_clock: MockClock) -> None:
    fake = FakeTargets({"a": [fails(kind)]})

    with pytest.raises(UpstreamError):
        await fake.upstream().complete(route("a"), REQUEST, discard)

    assert ["a"] == fake.asked


def two_keys(base: str = "http://x", model: str = "a-up") -> Route:
    """The alias "a" with two keys, and then "b" at *base* with the id *model*."""
    first = ModelConfig("a", "a-up", "openai", "http://x", (Secret("k1"), Secret("k2")), fallbacks=("b",))
    return router_of(first, ModelConfig("b", model, "openai", base)).route("a", 0.0)


@pytest.mark.parametrize("kind", ["backend_timeout", "lost", "timeout", "garbled"])
async def test_model_that_may_still_be_at_work_is_not_asked_under_another_key(
    kind: str, autojump_clock: MockClock
) -> None:
    fake = FakeTargets({"a": [fails(kind), says("no")], "b": [says("no")]})

    with pytest.raises(UpstreamError) as raised:
        await fake.upstream().complete(two_keys(), REQUEST, discard)

    assert kind == raised.value.kind
    assert ["a"] == fake.asked


@pytest.mark.parametrize(("base", "model"), [("http://y", "a-up"), ("http://x", "b-up")])
async def test_another_model_or_address_is_asked_while_one_may_still_be_at_work(
    base: str, model: str, autojump_clock: MockClock
) -> None:
    fake = FakeTargets({"a": [fails("timeout")], "b": [says("hello")]})

    assert "b" == (await fake.upstream().complete(two_keys(base, model), REQUEST, discard)).alias
    assert ["a", "b"] == fake.asked


# What is learned of a target


async def test_failed_target_comes_last_until_it_replies_again(autojump_clock: MockClock) -> None:
    router = router_of(*(ModelConfig(name, f"{name}-up", "openai", "http://x", fallbacks=("b",)) for name in "ab"))
    fake = FakeTargets({"a": [fails("auth"), says("hello")], "b": [says("hello")]})
    upstream = fake.upstream()

    async def answering() -> str:
        return (await upstream.complete(router.route("a", trio.current_time()), REQUEST, discard)).alias

    assert ["b", "b"] == [await answering(), await answering()]
    await trio.sleep(COOL_DOWNS["auth"][0])
    assert ["a", "a"] == [await answering(), await answering()]
    assert ["a", "b", "b", "a", "a"] == fake.asked


async def test_target_that_cools_down_is_asked_all_the_same_where_there_is_no_other(autojump_clock: MockClock) -> None:
    router = router_of(ModelConfig("a", "a-up", "openai", "http://x"))
    fake = FakeTargets({"a": [fails("auth"), says("hello")]})

    with pytest.raises(UpstreamError):
        await fake.upstream().complete(router.route("a", trio.current_time()), REQUEST, discard)
    await fake.upstream().complete(router.route("a", trio.current_time()), REQUEST, discard)

    assert [0.0, 0.0] == fake.times


async def test_reply_that_was_under_way_when_its_target_failed_ends_no_cool_down(autojump_clock: MockClock) -> None:
    router = router_of(*(ModelConfig(name, f"{name}-up", "openai", "http://x", fallbacks=("b",)) for name in "ab"))
    fake = FakeTargets({"a": [says("slow", pause=5.0), fails("rate_limited", 60.0)], "b": [says("hello")]})
    upstream = fake.upstream()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(upstream.complete, router.route("a", trio.current_time()), REQUEST, discard)
        await trio.sleep(1.0)
        await upstream.complete(router.route("a", trio.current_time()), REQUEST, discard)
    await upstream.complete(router.route("a", trio.current_time()), REQUEST, discard)

    assert ["a", "a", "b", "b"] == fake.asked


async def test_target_stays_away_as_long_as_its_upstream_says(autojump_clock: MockClock) -> None:
    asked = route("a")
    with pytest.raises(UpstreamError):
        await FakeTargets({"a": [fails("rate_limited", 42.0)]}).upstream().complete(asked, REQUEST, discard)

    assert 42.0 == asked.targets[0].health.cool_until - trio.current_time()


@pytest.mark.parametrize("kind", COOL_DOWNS)
async def test_failure_within_a_stream_is_one_of_its_target(kind: str, autojump_clock: MockClock) -> None:
    asked = route("a")
    fake = FakeTargets({"a": [gives(Chunk((TextDelta("Hel"),)), then=kind)]})
    with pytest.raises(UpstreamError) as raised:
        await fake.upstream().complete(asked, STREAM, discard)

    assert raised.value.spoken
    assert COOL_DOWNS[kind][0] == asked.targets[0].health.cool_until - trio.current_time()


async def test_failures_of_requests_that_were_under_way_together_are_one(autojump_clock: MockClock) -> None:
    asked = route("a")
    fake = FakeTargets({"a": [fails("server", after=1.0)]})

    async def fail() -> None:
        with pytest.raises(UpstreamError):
            await fake.upstream(max_attempts=1).complete(asked, REQUEST, discard)

    async with trio.open_nursery() as nursery:
        for _ in range(20):
            nursery.start_soon(fail)

    (target,) = asked.targets
    assert COOL_DOWNS["server"][0] == target.health.cool_until - trio.current_time()


async def test_target_whose_minute_is_used_up_is_left_for_the_next(autojump_clock: MockClock) -> None:
    fake = FakeTargets({"a": [says("hello")], "b": [says("hello")]})
    limited = Route((*route("a", rpm=2).targets, *route("b").targets))

    for _ in range(3):
        await fake.upstream().complete(limited, REQUEST, discard)

    assert ["a", "a", "b"] == fake.asked


async def test_client_is_told_to_wait_where_every_minute_is_used_up(autojump_clock: MockClock) -> None:
    fake = FakeTargets({"a": [says("hello")]})
    limited = route("a", rpm=2)
    for _ in range(2):
        await fake.upstream().complete(limited, REQUEST, discard)

    with pytest.raises(UpstreamError) as raised:
        await fake.upstream().complete(limited, REQUEST, discard)

    assert (429, {"Retry-After": "30"}) == (raised.value.status, raised.value.headers)


# Pauses


async def test_target_is_asked_three_times_with_doubled_pauses(autojump_clock: MockClock) -> None:
    fake = FakeTargets({"a": [fails("server")]})

    with pytest.raises(UpstreamError):
        await fake.upstream().complete(route("a"), REQUEST, discard)

    assert [0.0, 0.5, 1.5] == fake.times


async def test_second_attempt_may_answer(autojump_clock: MockClock) -> None:
    fake = FakeTargets({"a": [fails("unreachable"), says("hello")]})

    assert "hello" == (await fake.upstream().complete(route("a"), REQUEST, discard)).text
    assert [0.0, 0.5] == fake.times


async def test_pause_is_counted_from_the_failure(autojump_clock: MockClock) -> None:
    fake = FakeTargets({"a": [fails("server", after=10.0), says("hello")]})

    await fake.upstream().complete(route("a"), REQUEST, discard)

    assert [0.0, 10.5] == fake.times


async def test_pauses_have_an_upper_bound(autojump_clock: MockClock) -> None:
    fake = FakeTargets({"a": [fails("server")]})

    with pytest.raises(UpstreamError):
        await fake.upstream(max_attempts=7).complete(route("a"), REQUEST, discard)

    assert [0.0, 0.5, 1.5, 3.5, 7.5, 15.5, 23.5] == fake.times


async def test_jitter_takes_away_up_to_half_of_a_pause(autojump_clock: MockClock) -> None:
    fake = FakeTargets({"a": [fails("server")]})

    with pytest.raises(UpstreamError):
        await fake.upstream(jitter=1.0).complete(route("a"), REQUEST, discard)

    assert [0.0, 0.25, 0.75] == fake.times


async def test_clients_part_unless_told_otherwise(autojump_clock: MockClock) -> None:
    fake = FakeTargets({"a": [fails("server")]})
    random.seed(7)
    first, second = random.random(), random.random()
    random.seed(7)

    with pytest.raises(UpstreamError):
        await Upstream(fake.ask).complete(route("a"), REQUEST, discard)

    pause = 0.5 * (1 - first / 2)
    assert pytest.approx([0.0, pause, pause + 1.0 * (1 - second / 2)], abs=1e-9) == fake.times


async def test_every_target_has_its_attempts_and_its_pauses(autojump_clock: MockClock) -> None:
    fake = FakeTargets({"a": [fails("server")], "b": [fails("server")]})

    with pytest.raises(UpstreamError):
        await fake.upstream().complete(route("a", "b"), REQUEST, discard)

    assert ["a", "a", "a", "b", "b", "b"] == fake.asked
    assert [0.0, 0.5, 1.5, 1.5, 2.0, 3.0] == fake.times


async def test_one_attempt_means_no_retry(autojump_clock: MockClock) -> None:
    fake = FakeTargets({"a": [fails("server")]})

    with pytest.raises(UpstreamError):
        await fake.upstream(max_attempts=1).complete(route("a"), REQUEST, discard)

    assert [0.0] == fake.times


@pytest.mark.parametrize("kind", ["rate_limited", "server"])
@pytest.mark.parametrize("wish", [0.3, 3.0, 8.0])
async def test_retry_after_is_honoured_to_the_second(wish: float, kind: str, autojump_clock: MockClock) -> None:
    fake = FakeTargets({"a": [fails(kind, wish), says("hello")]})

    await fake.upstream(jitter=1.0).complete(route("a"), REQUEST, discard)

    assert [0.0, wish] == fake.times


@pytest.mark.parametrize("wish", [-5.0, 0.0, 0.2, float("nan")])
async def test_retry_after_makes_no_pause_shorter_than_our_own(wish: float, autojump_clock: MockClock) -> None:
    fake = FakeTargets({"a": [fails("rate_limited", wish)]})

    with pytest.raises(UpstreamError):
        await fake.upstream().complete(route("a"), REQUEST, discard)

    assert [0.0, 0.5, 1.5] == fake.times


@pytest.mark.parametrize("wish", [8.1, 60.0, float("inf")])
async def test_target_that_wants_a_long_pause_is_left_for_the_next_at_once(
    wish: float, autojump_clock: MockClock
) -> None:
    fake = FakeTargets({"a": [fails("rate_limited", wish)], "b": [says("hello")]})

    assert "b" == (await fake.upstream().complete(route("a", "b"), REQUEST, discard)).alias
    assert [0.0, 0.0] == fake.times


@pytest.mark.parametrize(
    ("wish", "told"), [(None, "1"), (0.0, "1"), (8.4, "9"), (20.0, "20"), (31.0, "30"), (float("inf"), "30")]
)
async def test_client_is_told_to_wait_thirty_seconds_at_most(
    wish: float | None, told: str, autojump_clock: MockClock
) -> None:
    fake = FakeTargets({"a": [fails("rate_limited", wish)]})

    with pytest.raises(UpstreamError) as raised:
        await fake.upstream().complete(route("a"), REQUEST, discard)

    assert (429, {"Retry-After": told}) == (raised.value.status, raised.value.headers)


# The deadline


async def test_no_pause_goes_to_the_deadline(autojump_clock: MockClock) -> None:
    fake = FakeTargets({"a": [fails("rate_limited", 5.0)]})

    with pytest.raises(UpstreamError) as raised, trio.fail_after(5.0):
        await fake.upstream().complete(route("a"), REQUEST, discard)

    assert "rate_limited" == raised.value.kind
    assert 0.0 == fake.now


async def test_pause_that_ends_before_the_deadline_is_taken(autojump_clock: MockClock) -> None:
    fake = FakeTargets({"a": [fails("rate_limited", 5.0), says("hello")]})

    with trio.fail_after(5.5):
        await fake.upstream().complete(route("a"), REQUEST, discard)

    assert [0.0, 5.0] == fake.times


async def test_target_without_time_for_a_pause_is_left_for_the_next(autojump_clock: MockClock) -> None:
    fake = FakeTargets({"a": [fails("server")], "b": [says("hello")]})

    with trio.fail_after(1.0):
        assert "b" == (await fake.upstream().complete(route("a", "b"), REQUEST, discard)).alias

    assert [0.0, 0.5, 0.5] == fake.times


@pytest.mark.parametrize("outcome", [fails("server", after=1.0), says("slowly", pause=10.0), fails("server")])
async def test_turn_ends_at_its_deadline_at_the_latest(outcome: Outcome, autojump_clock: MockClock) -> None:
    fake = FakeTargets({"a": [outcome], "b": [fails("timeout", after=100.0)]})
    plan = TurnPlan(
        caller=Caller("openai:default", None, None),
        alias="a",
        conversation=(),
        parameters={},
        route=route("a", "b"),
        stream=False,
        keep_text=True,
        deadline=trio.current_time() + 7.0,
        selection=NO_CHANGE,
    )

    with pytest.raises(UpstreamError) as raised:
        await drive(fake.upstream(), plan, discard)

    assert ("timeout", 504) == (raised.value.kind, raised.value.status)
    assert 7.0 == fake.now
    assert 0 == fake.running


async def walk_until(deadline: float, fake: FakeTargets, request: UpstreamRequest, emit: Emit = discard) -> Target:
    """Ask the one target of a route, which does not answer before *deadline*."""
    asked = route("a")
    with trio.move_on_at(deadline) as scope:
        await fake.upstream().complete(asked, request, emit)
    assert scope.cancelled_caught
    return asked.targets[0]


async def test_target_that_was_silent_up_to_the_deadline_cools_down(autojump_clock: MockClock) -> None:
    target = await walk_until(trio.current_time() + 7.0, FakeTargets({"a": [says("late", pause=10.0)]}), REQUEST)

    assert COOL_DOWNS["timeout"][0] == target.health.cool_until - trio.current_time()


async def test_target_that_spoke_up_to_the_deadline_does_not_cool_down(autojump_clock: MockClock) -> None:
    fake = FakeTargets({"a": [says("much", "too", "much", pause=3.0)]})
    target = await walk_until(trio.current_time() + 7.0, fake, STREAM)

    assert target.is_fit(trio.current_time())


async def test_target_whose_client_leaves_or_whose_server_stops_does_not_cool_down(autojump_clock: MockClock) -> None:
    asked = route("a")
    fake = FakeTargets({"a": [says("late", pause=10.0)]})
    with trio.move_on_after(7.0), trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(fake.upstream().complete, asked, REQUEST, discard)
            await trio.sleep(3.0)
            scope.deadline = trio.current_time() + 1.0  # a stop with a time limit of its own

    assert 4.0 == fake.now
    assert asked.targets[0].is_fit(trio.current_time())


# The reply


async def test_reply_holds_what_was_said_and_who_said_it(autojump_clock: MockClock) -> None:
    usage = Usage(1, 2, 3)
    ending = Chunk((), "length", usage, "up-2026", "fp_1", "flex")
    fake = FakeTargets({"a": [gives(Chunk((TextDelta("Hel"),)), Chunk((TextDelta("lo"),)), ending)]})
    heard = Heard()

    reply = await fake.upstream().complete(route("a"), STREAM, heard.take)

    assert {"role": "assistant", "content": "Hello", "refusal": None} == reply.message
    assert ("a", "up-2026", "length", usage) == (
        reply.alias,
        reply.upstream_model,
        reply.finish_reason,
        reply.usage,
    )
    assert ("fp_1", "flex") == (reply.fingerprint, reply.service_tier)
    assert [ReplyStarted("a", "a-up"), TextDelta("Hel"), TextDelta("lo")] == heard.events


@pytest.mark.parametrize("request_", [REQUEST, STREAM])
async def test_empty_reply_has_its_beginning_too(request_: UpstreamRequest, autojump_clock: MockClock) -> None:
    fake = FakeTargets({"a": [fails("auth")], "b": [says("")]})
    heard = Heard()

    await fake.upstream().complete(route("a", "b"), request_, heard.take)

    assert [ReplyStarted("b", "up-2026")] == heard.events


async def test_whoever_takes_his_time_holds_up_the_target(autojump_clock: MockClock) -> None:
    async def take_slowly(*events: Progress) -> None:
        await trio.sleep(3.0)

    fake = FakeTargets({"a": [says("Hel", "lo")]})

    await fake.upstream().complete(route("a"), STREAM, take_slowly)

    assert 6.0 == fake.now  # two pieces; the beginning comes with the first


async def test_every_failed_attempt_is_one_line_of_the_log(autojump_clock: MockClock) -> None:
    fake = FakeTargets({"a": [fails("server"), fails("lost")], "b": [says("hello")]})

    with structlog.testing.capture_logs() as lines:
        await fake.upstream().complete(route("a", "b"), REQUEST, discard)

    assert [("warning", "a", 1, "server"), ("warning", "a", 2, "lost")] == [
        (line["log_level"], line["alias"], line["attempt"], line["kind"]) for line in lines
    ]


# Cancellation


async def test_walk_may_be_cancelled_at_every_checkpoint(autojump_clock: MockClock) -> None:
    fakes: list[FakeTargets] = []

    async def scenario() -> None:
        fake = FakeTargets({"a": [fails("server", after=1.0)], "b": [says("Hel", "lo", pause=1.0)]})
        fakes.append(fake)
        await fake.upstream().complete(route("a", "b"), STREAM, discard)

    number = 1
    while await run_cancelled_at(number, scenario):
        number += 1

    assert {0} == {fake.running for fake in fakes}
    assert ["a", "a", "a", "b"] == fakes[-1].asked
    assert number > len(["a", "pause", "a", "pause", "a", "b", "b", "b"])


async def test_cancelled_pause_asks_nobody(autojump_clock: MockClock) -> None:
    fake = FakeTargets({"a": [fails("server")], "b": [says("hello")]})

    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(fake.upstream().complete, route("a", "b"), REQUEST, discard)
            await trio.sleep(0.2)
            scope.cancel()

    assert ["a"] == fake.asked
    assert 0.2 == fake.now


# Cool-downs and requests a minute


def twins(*keys: str, rpm: int = 0) -> Router:
    """One entry with several keys: the same model at the same address."""
    entry = ModelConfig("a", "up", "openai", "http://x", tuple(map(Secret, keys)), rpm=rpm)
    return Router.from_config(Config(None, Path("/nowhere"), model_list=(entry,)))


async def test_refused_key_is_followed_by_the_next_one(autojump_clock: MockClock) -> None:
    fake = FakeTargets({"a": [fails("auth"), says("hello")]})

    reply = await fake.upstream().complete(twins("one", "two").route("a", 0.0), REQUEST, discard)

    assert "hello" == reply.text
    assert ["a", "a"] == fake.asked


async def test_failed_target_is_skipped_while_another_answers(autojump_clock: MockClock) -> None:
    router = twins("one", "two")
    fake = FakeTargets({"a": [fails("auth"), says("hello")]})
    await fake.upstream().complete(router.route("a", trio.current_time()), REQUEST, discard)

    firsts = [router.route("a", trio.current_time()).targets[0].key for _ in range(4)]
    assert [Secret("two")] * 4 == firsts

    await trio.sleep(60.0)
    firsts = [router.route("a", trio.current_time()).targets[0].key for _ in range(2)]
    assert {Secret("one"), Secret("two")} == set(firsts)


async def test_failed_target_is_asked_all_the_same_where_there_is_no_other(autojump_clock: MockClock) -> None:
    fake = FakeTargets({"a": [fails("auth"), says("hello")]})
    router = twins("one")
    with pytest.raises(UpstreamError):
        await fake.upstream().complete(router.route("a", trio.current_time()), REQUEST, discard)

    assert "hello" == (await fake.upstream().complete(router.route("a", 0.0), REQUEST, discard)).text


async def complete_at(at: float, fake: FakeTargets, asked: Route) -> None:
    await trio.sleep(at - fake.now)
    await fake.upstream().complete(asked, REQUEST, discard)


async def test_requests_a_minute_are_kept_by_a_short_wait(autojump_clock: MockClock) -> None:
    fake = FakeTargets({"a": [says("hello")]})
    asked = twins("one", "two", rpm=2).route("a", 0.0)

    for at in (0.0, 7.0, 53.0, 61.0):
        await complete_at(at, fake, asked)

    assert [0.0, 7.0, 60.0, 67.0] == fake.times


async def test_who_has_to_wait_too_long_for_the_next_minute_knows_it_at_once(autojump_clock: MockClock) -> None:
    """And who waits is served in turn, before those who come later."""
    fake = FakeTargets({"a": [says("hello")]})
    asked = route("a", rpm=3)
    served, refused = list[str](), list[tuple[float, str, str]]()

    async def complete(at: float, name: str) -> None:
        try:
            await complete_at(at, fake, asked)
            served.append(name)
        except UpstreamError as exc:
            refused.append((fake.now, exc.kind, exc.headers["Retry-After"]))

    async with trio.open_nursery() as nursery:
        for at, name in ((0.0, "a"), (1.0, "b"), (2.0, "c"), (51.0, "d"), (52.0, "e"), (53.0, "f"), (54.5, "g")):
            nursery.start_soon(complete, at, name)
        for at in (54.75, 55.0, 60.0, 61.5):
            nursery.start_soon(complete, at, "late")

    assert [0.0, 1.0, 2.0, 60.0, 61.0, 62.0] == fake.times
    assert [*"abcefg"] == served
    assert [(51.0, "9"), *((at, "30") for at in (54.75, 55.0, 60.0, 61.5))] == [(at, told) for at, _, told in refused]
    assert {"rate_limited"} == {kind for _, kind, _ in refused}


async def test_cancelled_wait_gives_its_slot_back(autojump_clock: MockClock) -> None:
    fake = FakeTargets({"a": [says("hello")]})
    asked = route("a", rpm=1)
    await complete_at(0.0, fake, asked)
    await trio.sleep(54.0)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(complete_at, 54.0, fake, asked)
        await trio.sleep(1.0)
        nursery.cancel_scope.cancel()

    await complete_at(57.0, fake, asked)

    assert [0.0, 60.0] == fake.times


async def test_no_wait_for_the_next_minute_goes_to_the_deadline(autojump_clock: MockClock) -> None:
    fake = FakeTargets({"a": [says("hello")], "b": [says("hello")]})
    limited = route("a", rpm=1)
    await complete_at(0.0, fake, limited)
    await trio.sleep(55.0)

    with pytest.raises(UpstreamError) as raised, trio.fail_after(5.0):
        await complete_at(55.0, fake, limited)
    with trio.fail_after(4.0):
        await complete_at(55.0, fake, Route((*limited.targets, *route("b").targets)))

    assert ("rate_limited", 55.0) == (raised.value.kind, fake.now)
    await complete_at(55.0, fake, limited)  # and nothing was reserved
    assert [0.0, 55.0, 60.0] == fake.times


async def test_each_attempt_takes_one_of_the_requests_a_minute(autojump_clock: MockClock) -> None:
    fake = FakeTargets({"a": [fails("server")], "b": [says("hello")]})
    limited = Route((*route("a", rpm=2).targets, *route("b").targets))

    assert "b" == (await fake.upstream().complete(limited, REQUEST, discard)).alias
    assert ["a", "a", "b"] == fake.asked


async def test_entry_whose_rpm_is_used_up_for_long_is_rate_limited_without_being_asked(
    autojump_clock: MockClock,
) -> None:
    fake = FakeTargets({"a": [says("hello")]})
    router = twins("one", rpm=1)
    await fake.upstream().complete(router.route("a", trio.current_time()), REQUEST, discard)

    with pytest.raises(UpstreamError) as raised:
        await fake.upstream().complete(router.route("a", trio.current_time()), REQUEST, discard)

    assert ("rate_limited", 429, "30") == (
        raised.value.kind,
        raised.value.status,
        raised.value.headers["Retry-After"],
    )
    assert ["a"] == fake.asked
