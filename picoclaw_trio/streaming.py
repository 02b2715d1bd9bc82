"""A turn as a stream of chunks: each event of the turn becomes a frame as it happens."""

from __future__ import annotations

import secrets
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import TypeAlias
from urllib.parse import quote

import attrs

from . import answers
from .event_stream import EventStream
from .http_messages import HttpRequest, encode_headers
from .replies import (
    ExtraDelta,
    Progress,
    Reply,
    ReplyStarted,
    TextDelta,
    ToolCallDelta,
    ToolFinished,
    ToolStarted,
)
from .upstream import Emit

Ask: TypeAlias = Callable[[Emit, Callable[[], None]], Awaitable[Reply]]


async def stream_answer(request: HttpRequest, ask: Ask, *, ping_interval: float, with_usage: bool) -> None:
    """Answer with a stream: role, deltas, finish reason, usage if it was asked for, end mark.

    Args:
        ask: runs the turn; is given what takes each of its events, and what to call when it has begun.
        ping_interval: seconds of silence of a turn after which a comment is sent.

    Raises:
        GatewayError: the turn failed; ``request.events`` knows whether a frame had been sent.
    """
    writer = ChunkWriter(request)
    request.events = writer.events
    async with writer.events.commented(ping_interval) as begin_comments:
        request.reply = await ask(writer.take, begin_comments)
        await writer.finish(request.reply, with_usage=with_usage)


@attrs.define
class ChunkWriter:
    """Writes the chunks of one answer."""

    request: HttpRequest
    heading: answers.Heading | None = None
    model: dict[str, str] = attrs.field(factory=dict)
    events: EventStream = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self.events = EventStream(self.request.send, self._head)

    def _head(self) -> list[tuple[bytes, bytes]]:
        return encode_headers({**self.request.answer_headers, **self.model})

    async def take(self, *events: Progress) -> None:
        """Write what the client is to see of them. Returns when its side has taken it."""
        chunks = [chunk for event in events for chunk in self._encode(event)]
        if chunks:
            await self.events.send(*chunks)
        for event in events:
            if isinstance(event, ToolStarted | ToolFinished):
                await self.events.comment(_tell_tool(event))

    def _encode(self, event: Progress) -> Iterator[bytes]:
        if type(event) is ReplyStarted:
            yield from self._start(event.alias, event.upstream_model)
        elif isinstance(event, TextDelta | ToolCallDelta | ExtraDelta):
            assert self.heading is not None
            yield answers.encode_delta_chunk(self.heading, event)

    def _start(self, alias: str, upstream_model: str) -> Iterator[bytes]:
        """The role, unless the answer has begun."""
        if self.heading is None:
            self.heading = new_heading(alias)
            self.model = model_headers(alias, upstream_model)
            yield answers.encode_role_chunk(self.heading)

    async def finish(self, reply: Reply, *, with_usage: bool) -> None:
        """Write the end of the answer."""
        last = [*self._start(reply.alias, reply.upstream_model or "")]
        assert self.heading is not None
        heading = attrs.evolve(self.heading, further=answers.told_of_the_whole(reply))
        last.append(answers.encode_finish_chunk(heading, reply))
        if with_usage and reply.usage is not None:
            last.append(answers.encode_usage_chunk(heading, reply.usage))
        await self.events.end(*last)


def _tell_tool(event: ToolStarted | ToolFinished) -> str:
    """For whoever reads the raw stream; SDKs pass comments over."""
    if type(event) is ToolStarted:
        return f"tool {event.name} started"
    return f"tool {event.name} {'failed' if isinstance(event, ToolFinished) and event.failed else 'finished'}"


def new_heading(alias: str) -> answers.Heading:
    """A fresh id and the time of now."""
    return answers.Heading(f"chatcmpl-{secrets.token_hex(16)}", int(time.time()), alias)


def model_headers(alias: str, upstream_model: str | None) -> dict[str, str]:
    """Which alias answered, and which model of the upstream's stood behind it; both percent-encoded."""
    value = f"{quote(alias, safe=':/')}; upstream={quote(upstream_model or '', safe=':/')}"
    return {"x-picoclaw-model": value}
