"""The summary of what no longer fits: asked for once, bounded, and never worth a failed turn."""

from __future__ import annotations

from pathlib import Path

import attrs
import pytest
import trio
from trio.testing import MockClock

from picoclaw_trio.config import Config, ModelConfig
from picoclaw_trio.errors import UpstreamError
from picoclaw_trio.http_target import Take
from picoclaw_trio.messages import Message
from picoclaw_trio.replies import TextDelta
from picoclaw_trio.routing import Route, Router, Target
from picoclaw_trio.summary import MAX_CHARACTERS, MAX_MESSAGE_CHARACTERS, TIMEOUT, sum_up
from picoclaw_trio.upstream import Upstream
from picoclaw_trio.upstream_reply import Chunk
from picoclaw_trio.upstream_request import UpstreamRequest

CALL = {"id": "1", "type": "function", "function": {"name": "look", "arguments": '{"at":"sea"}'}}
SAID = (
    Message("user", {"role": "user", "content": [{"type": "text", "text": "See?"}, {"type": "image_url"}]}),
    Message("assistant", {"role": "assistant", "content": None, "tool_calls": [CALL]}),
    Message("tool", {"role": "tool", "tool_call_id": "1", "content": "waves"}),
)


@attrs.define
class Model:
    """Says *text*, fails with *failure*, or hangs."""

    text: str = "They saw waves."
    failure: str | None = None
    hangs: bool = False
    asked: list[UpstreamRequest] = attrs.field(factory=list)

    async def ask(self, target: Target, request: UpstreamRequest, take: Take) -> None:
        self.asked.append(request)
        if self.hangs:
            await trio.sleep_forever()
        if self.failure is not None:
            raise UpstreamError(self.failure)
        await take(Chunk((TextDelta(self.text),), finish_reason="stop"))


def route() -> Route:
    model = ModelConfig("m", "m", "openai", "http://x")
    return Router.from_config(Config(None, Path("/nowhere"), model_list=(model,))).route("m", 0.0)


async def test_a_summary_is_of_the_part_and_of_the_one_before() -> None:
    model = Model()
    assert "They saw waves." == await sum_up(Upstream(model.ask), route(), "They met.", SAID)
    system, told = model.asked[0].messages
    assert "system" == system.role
    assert (
        "[earlier summary]\nThey met.\n\n[user]\nSee?\n(image_url)\n\n"
        '[assistant]\n(calls look with {"at":"sea"})\n\n[tool]\nwaves'
    ) == told.body["content"]


async def test_what_is_sent_is_bounded() -> None:
    model = Model()
    long = [Message("user", {"role": "user", "content": "x" * 1_000_000})] * 40
    await sum_up(Upstream(model.ask), route(), None, long)
    sent = model.asked[0].messages[1].body["content"]
    assert MAX_MESSAGE_CHARACTERS * 2 < len(sent) <= MAX_CHARACTERS


@pytest.mark.parametrize("before", [None, "They met."])
@pytest.mark.parametrize("model", [Model(failure="auth"), Model(text="")])
async def test_without_a_new_summary_the_one_before_stands(model: Model, before: str | None) -> None:
    assert before == await sum_up(Upstream(model.ask), route(), before, SAID)


async def test_a_hanging_model_costs_a_bounded_time(autojump_clock: MockClock) -> None:
    began_at = trio.current_time()
    assert await sum_up(Upstream(Model(hangs=True).ask), route(), None, SAID) is None
    assert TIMEOUT == trio.current_time() - began_at
