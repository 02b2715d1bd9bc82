"""The official Python SDK, as it comes: plain and streamed, in threads, on asyncio and on Trio."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import attrs
import httpx2
import openai
import pytest
import trio
from fakes import (
    USAGE,
    Script,
    ScriptedUpstream,
    answers,
    chunk,
    completion,
    error_body,
    frame,
    hangs,
    streams,
    text_frames,
)
from harness import KINDS, TOKEN, Kind, entry, make_config, open_server, serve_here
from streams import LIMIT, by_model, open_running, says_as_asked

from picoclaw_trio.upstream import RetryPolicy

CALL = {"id": "call_1", "type": "function", "function": {"name": "look", "arguments": '{"at": "sea"}'}}
TOOLS: list[Any] = [{"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}]
HELLO: list[Any] = [{"role": "user", "content": "Hello"}]
WITH_USAGE: Any = {"include_usage": True}


def calls_as_asked() -> Script:
    """A tool call, in pieces or whole."""
    first = {"index": 0, **CALL, "function": {"name": "look", "arguments": ""}}
    pieces = [{"index": 0, "function": {"arguments": piece}} for piece in ('{"at":', ' "sea"}')]
    frames = [frame(chunk({"tool_calls": [call]})) for call in (first, *pieces)]

    async def script(exchange: Any) -> None:
        if exchange.asked.body.get("stream"):
            await streams(*frames, frame(chunk({}, "tool_calls")), frame(b"[DONE]"))(exchange)
        else:
            await answers(200, completion(None, tool_calls=[CALL], finish_reason="tool_calls"))(exchange)

    return script


SCRIPTS: dict[str, Script] = {
    "talker": says_as_asked("Hel", "lo, ", "wörld 🦀"),
    "caller": calls_as_asked(),
    "breaker": streams(*text_frames("Hel")[:2], frame(error_body("overheated", code="hot"))),
}


def serve_all(upstream: ScriptedUpstream) -> dict[str, Any]:
    upstream.scripts = (by_model(SCRIPTS),)
    return make_config(*(entry(name, upstream.url) for name in SCRIPTS), streaming=True)


@attrs.frozen
class Seen:
    """What one way to use the SDK has got from the server."""

    models: list[str]
    whole: str | None
    streamed: str
    chunk_ids: set[str]
    usage: dict[str, int]
    helped: str | None
    finish_reason: str
    called: list[tuple[str, str, str]]
    request_ids: tuple[str | None, str | None]
    raw_model: str
    broken: tuple[str, str, str | None]


EXPECTED = "Hello, wörld 🦀"


def check_seen(seen: Seen) -> None:
    assert [*SCRIPTS] == seen.models
    assert EXPECTED == seen.whole == seen.streamed == seen.helped
    assert 1 == len(seen.chunk_ids)
    assert USAGE == seen.usage
    assert "stop" == seen.finish_reason
    assert 2 * [("call_1", "look", '{"at": "sea"}')] == seen.called
    assert ("req-mine", "req-mine") == seen.request_ids
    assert "talker" == seen.raw_model
    assert ("Hel", "APIError", "upstream_error") == seen.broken


def use_sync(url: str) -> Seen:
    with openai.OpenAI(base_url=url, api_key=TOKEN, max_retries=0) as client:
        chat = client.chat.completions
        whole = chat.create(model="talker", messages=HELLO, extra_headers={"X-Request-Id": "req-mine"})
        with chat.create(model="talker", messages=HELLO, stream=True, stream_options=WITH_USAGE) as stream:
            chunks = list(stream)
        with chat.stream(model="talker", messages=HELLO) as helper:
            helper.until_done()
            helped = helper.get_final_completion()
        called = chat.create(model="caller", messages=HELLO, tools=TOOLS)
        with chat.stream(model="caller", messages=HELLO, tools=TOOLS) as calling:
            streamed_call = calling.get_final_completion()
        raw = chat.with_raw_response.create(model="talker", messages=HELLO, extra_headers={"X-Request-Id": "req-mine"})
        said = ""
        try:
            with chat.create(model="breaker", messages=HELLO, stream=True) as stream:
                for piece in stream:
                    said += piece.choices[0].delta.content or ""
        except openai.APIError as exc:
            broken = said, type(exc).__name__, exc.code
        return summarise(client.models.list().data, whole, chunks, helped, [called, streamed_call], raw, broken)


async def use_async(url: str) -> Seen:
    async with openai.AsyncOpenAI(base_url=url, api_key=TOKEN, max_retries=0) as client:
        chat = client.chat.completions
        whole = await chat.create(model="talker", messages=HELLO, extra_headers={"X-Request-Id": "req-mine"})
        async with await chat.create(model="talker", messages=HELLO, stream=True, stream_options=WITH_USAGE) as stream:
            chunks = [piece async for piece in stream]
        async with chat.stream(model="talker", messages=HELLO) as helper:
            await helper.until_done()
            helped = await helper.get_final_completion()
        called = await chat.create(model="caller", messages=HELLO, tools=TOOLS)
        async with chat.stream(model="caller", messages=HELLO, tools=TOOLS) as calling:
            streamed_call = await calling.get_final_completion()
        raw = await chat.with_raw_response.create(
            model="talker", messages=HELLO, extra_headers={"X-Request-Id": "req-mine"}
        )
        said = ""
        try:
            async with await chat.create(model="breaker", messages=HELLO, stream=True) as stream:
                async for piece in stream:
                    said += piece.choices[0].delta.content or ""
        except openai.APIError as exc:
            broken = said, type(exc).__name__, exc.code
        models = (await client.models.list()).data
        return summarise(models, whole, chunks, helped, [called, streamed_call], raw, broken)


def summarise(
    models: list[Any], whole: Any, chunks: list[Any], helped: Any, called: list[Any], raw: Any, broken: Any
) -> Seen:
    calls = [call for answer in called for call in answer.choices[0].message.tool_calls]
    return Seen(
        models=[model.id for model in models],
        whole=whole.choices[0].message.content,
        streamed="".join(piece.choices[0].delta.content or "" for piece in chunks if piece.choices),
        chunk_ids={piece.id for piece in chunks},
        usage=chunks[-1].usage.model_dump(exclude_none=True),
        helped=helped.choices[0].message.content,
        finish_reason=helped.choices[0].finish_reason,
        called=[(call.id, call.function.name, call.function.arguments) for call in calls],
        request_ids=(whole._request_id, raw.headers["x-request-id"]),
        raw_model=raw.parse().model,
        broken=broken,
    )


async def in_a_thread(url: str) -> Seen:
    return await trio.to_thread.run_sync(use_sync, url)


async def on_asyncio(url: str) -> Seen:
    return await trio.to_thread.run_sync(lambda: asyncio.run(use_async(url)))


WAYS: list[Callable[[str], Awaitable[Seen]]] = [in_a_thread, on_asyncio, use_async]


@pytest.mark.parametrize("kind", KINDS)
async def test_sdk_gets_all_in_every_way_from_both_servers(
    kind: Kind, tmp_path: Path, upstream: ScriptedUpstream
) -> None:
    with trio.fail_after(2 * LIMIT):
        async with open_server(tmp_path, serve_all(upstream), kind) as server:
            for use in WAYS:
                check_seen(await use(server.api))


# --- Errors --------------------------------------------------------------------------------------------------------


@attrs.frozen
class Failure:
    """One way to fail: what is asked, what the upstream does, and what the SDK is to raise after how many attempts."""

    status: int
    raises: type[openai.APIStatusError]
    code: str | None
    attempts: int
    param: str | None = None
    script: Script = hangs
    token: str = TOKEN
    fields: dict[str, Any] = attrs.field(factory=dict)


# Statuses that the SDK asks again for by itself are asked again, unless that cannot help.
FAILURES: dict[str, Failure] = {
    "bad-value": Failure(400, openai.BadRequestError, "unsupported_value", 1, "n", fields={"n": 2}),
    "bad-type": Failure(
        400,
        openai.BadRequestError,
        "invalid_type",
        1,
        "messages[0].content",
        fields={"messages": [{"role": "user", "content": 1}]},
    ),
    "token": Failure(401, openai.AuthenticationError, "invalid_api_key", 1, token="sk-wrong"),
    "model": Failure(404, openai.NotFoundError, "model_not_found", 1, "model", fields={"model": "nobody"}),
    "size": Failure(413, openai.APIStatusError, "request_too_large", 1, fields={"user": "x" * 70_000}),
    "streaming-off": Failure(
        501, openai.InternalServerError, "streaming_disabled", 1, "stream", fields={"stream": True}
    ),
    "refused": Failure(
        400,
        openai.BadRequestError,
        "bad_temperature",
        1,
        "temperature",
        answers(400, error_body("too hot", param="temperature", code="bad_temperature")),
    ),
    "unprocessable": Failure(
        422, openai.UnprocessableEntityError, "bad", 1, None, answers(422, error_body("bad", code="bad"))
    ),
    "rate-limit": Failure(
        429,
        openai.RateLimitError,
        "rate_limit_exceeded",
        3,
        None,
        answers(429, error_body("slow down"), retry_after="1"),
    ),
    "broken": Failure(502, openai.InternalServerError, "upstream_error", 3, None, answers(500, error_body("oh"))),
    "key": Failure(502, openai.InternalServerError, "upstream_auth", 1, None, answers(401, error_body("bad key"))),
    "id": Failure(502, openai.InternalServerError, "upstream_model", 1, None, answers(404, error_body("no such"))),
    "slow": Failure(504, openai.InternalServerError, "upstream_timeout", 1, None, hangs),
}


@attrs.define
class Counter:
    """Counts what the SDK sends."""

    requests: list[str] = attrs.field(factory=list)

    async def note(self, request: httpx2.Request) -> None:
        self.requests.append(request.headers["x-stainless-retry-count"])


def open_counting(url: str, counter: Counter, token: str = TOKEN) -> openai.AsyncOpenAI:
    http = httpx2.AsyncClient(event_hooks={"request": [counter.note]}, trust_env=False)
    return openai.AsyncOpenAI(base_url=url, api_key=token, http_client=http)


async def test_sdk_raises_the_right_class_after_the_right_number_of_attempts(
    tmp_path: Path, upstream: ScriptedUpstream
) -> None:
    upstream.scripts = (by_model({name: failure.script for name, failure in FAILURES.items()}),)
    entries = [entry(name, upstream.url, request_timeout=1.0 if name == "slow" else 30.0) for name in FAILURES]
    config = make_config(*entries, max_body_bytes=65_536)
    async with serve_here(tmp_path, config) as server:
        server.gateway.upstream.policy = RetryPolicy(max_attempts=1)
        with trio.fail_after(LIMIT):
            async with trio.open_nursery() as nursery:
                for name in FAILURES:
                    nursery.start_soon(check_failure, server.api, name)


async def check_failure(url: str, name: str) -> None:
    failure, counter = FAILURES[name], Counter()
    fields: dict[str, Any] = {"model": name, "messages": HELLO, **failure.fields}
    async with open_counting(url, counter, failure.token) as client:
        with pytest.raises(failure.raises) as caught:
            await client.chat.completions.create(**fields)

    error = caught.value
    assert failure.raises is type(error), name
    assert (failure.status, failure.code, failure.param) == (error.status_code, error.code, error.param), name
    assert [str(number) for number in range(failure.attempts)] == counter.requests, name
    assert error.request_id
    assert error.request_id == error.response.headers["x-request-id"]
    assert isinstance(error.body, dict)
    assert error.body["message"] in str(error)


async def test_overloaded_server_is_asked_again_after_the_second_that_it_asks_for(
    tmp_path: Path, upstream: ScriptedUpstream
) -> None:
    upstream.scripts = (hangs,)
    config = make_config(entry("m0", upstream.url), streaming=True, max_turns=1, max_waiting=0)
    counter = Counter()
    async with serve_here(tmp_path, config) as server, httpx2.AsyncClient(base_url=server.url) as other:
        other.headers["authorization"] = f"Bearer {TOKEN}"
        async with open_running(other, upstream), open_counting(server.api, counter) as client:
            begun_at = trio.current_time()
            with pytest.raises(openai.InternalServerError) as caught:
                await client.chat.completions.create(model="m0", messages=HELLO)

    assert (503, "overloaded") == (caught.value.status_code, caught.value.code)
    assert ["0", "1", "2"] == counter.requests
    assert trio.current_time() - begun_at >= 2.0


async def test_error_frame_is_raised_by_the_stream_and_by_its_helper(
    tmp_path: Path, upstream: ScriptedUpstream
) -> None:
    async with (
        serve_here(tmp_path, serve_all(upstream)) as server,
        openai.AsyncOpenAI(base_url=server.api, api_key=TOKEN) as client,
    ):
        with pytest.raises(openai.APIError, match="failed") as caught:
            async with client.chat.completions.stream(model="breaker", messages=HELLO) as helper:
                await helper.until_done()

    error = caught.value
    assert openai.APIError is type(error)
    assert ("upstream_error", "server_error", None) == (error.code, error.type, error.param)
    assert 1 == len(upstream.asked)


async def test_failure_before_the_first_word_of_a_stream_is_a_status_that_the_sdk_knows(
    tmp_path: Path, upstream: ScriptedUpstream
) -> None:
    upstream.scripts = (answers(400, error_body("too hot", param="temperature", code="bad_temperature")),)
    config = make_config(entry("m0", upstream.url), streaming=True)
    async with (
        serve_here(tmp_path, config) as server,
        openai.AsyncOpenAI(base_url=server.api, api_key=TOKEN) as client,
    ):
        with pytest.raises(openai.BadRequestError) as caught:
            await client.chat.completions.create(model="m0", messages=HELLO, stream=True)

    assert ("bad_temperature", "temperature") == (caught.value.code, caught.value.param)


async def test_short_timeout_of_the_sdk_outlives_a_silent_upstream_by_comments(
    tmp_path: Path, upstream: ScriptedUpstream
) -> None:
    async def thinks(exchange: Any) -> None:
        await trio.sleep(2.5)  # longer than the client's patience
        await streams(*text_frames("at last"))(exchange)

    upstream.scripts = (thinks,)
    config = make_config(entry("m0", upstream.url), streaming=True, ping_interval=0.3)
    async with (
        serve_here(tmp_path, config) as server,
        openai.AsyncOpenAI(base_url=server.api, api_key=TOKEN, timeout=1.5, max_retries=0) as client,
        await client.chat.completions.create(model="m0", messages=HELLO, stream=True) as stream,
    ):
        said = [piece.choices[0].delta.content async for piece in stream]

    assert ["", "at last", None] == said


async def test_closing_a_stream_of_the_sdk_closes_the_upstream_connection(
    tmp_path: Path, upstream: ScriptedUpstream
) -> None:
    async def starts(exchange: Any) -> None:
        await exchange.begin_events()
        await exchange.write(b"".join(text_frames("a")[:2]))
        await exchange.asked.gone.wait()

    upstream.scripts = (starts,)
    config = make_config(entry("m0", upstream.url), streaming=True)
    async with (
        serve_here(tmp_path, config) as server,
        openai.AsyncOpenAI(base_url=server.api, api_key=TOKEN) as client,
    ):
        stream = await client.chat.completions.create(model="m0", messages=HELLO, stream=True)
        await stream.close()
        with trio.fail_after(LIMIT):
            await upstream.wait_all_gone()
