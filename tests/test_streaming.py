"""Streamed answers over real HTTP: their form, their beginning, and that they are live."""

from __future__ import annotations

import itertools
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import reduce
from pathlib import Path
from typing import Any

import attrs
import httpx2
import orjson
import pytest
import trio
from fakes import (
    USAGE,
    Exchange,
    Script,
    ScriptedUpstream,
    answers,
    chunk,
    completion,
    error_body,
    frame,
    hangs,
    open_upstream,
    says,
    streams,
    text_frames,
)
from harness import HEADERS, Here, ask, entry, make_config, make_environment, open_client, serve_here, write_config
from host_client import connect
from hypothesis import given
from hypothesis import strategies as st
from streams import (
    LIMIT,
    PATH,
    Steered,
    chunks_of,
    deltas_of,
    open_running,
    open_stream,
    serving,
    stream_whole,
    text_of,
)

from picoclaw_trio.http_target import ask_http
from picoclaw_trio.replies import Delta
from picoclaw_trio.routing import Target
from picoclaw_trio.upstream_reply import Chunk, merge_endings
from picoclaw_trio.upstream_request import ModelSettings, UpstreamRequest

ROLE = {"role": "assistant", "content": ""}
KEEP_ALIVE = b": keep-alive"


@pytest.fixture
async def server(tmp_path: Path, upstream: ScriptedUpstream) -> AsyncIterator[Here]:
    async with serving(tmp_path, upstream) as opened:
        yield opened


@pytest.fixture
async def client(server: Here) -> AsyncIterator[httpx2.AsyncClient]:
    async with open_client(server.url) as opened:
        yield opened


# --- Form ----------------------------------------------------------------------------------------------------------


async def test_stream_is_role_deltas_finish_and_end_mark(
    upstream: ScriptedUpstream, client: httpx2.AsyncClient
) -> None:
    upstream.scripts = (streams(*text_frames("Hel", "lo")),)

    answer = await stream_whole(client)

    assert 200 == answer.status_code
    assert [ROLE, {"content": "Hel"}, {"content": "lo"}, {}] == deltas_of(answer.content)
    choices = [chunk["choices"][0] for chunk in chunks_of(answer.content)]
    assert [None, None, None, "stop"] == [choice["finish_reason"] for choice in choices]
    assert [0, 0, 0, 0] == [choice["index"] for choice in choices]
    assert answer.content.endswith(b"}\n\ndata: [DONE]\n\n")


async def test_all_chunks_share_id_time_alias_and_kind(upstream: ScriptedUpstream, client: httpx2.AsyncClient) -> None:
    upstream.scripts = (streams(*text_frames("a", "b", "c")),)

    answer = await stream_whole(client, stream_options={"include_usage": True})
    second = await stream_whole(client)

    chunks = chunks_of(answer.content)
    (heading,) = {(chunk["id"], chunk["created"], chunk["model"], chunk["object"]) for chunk in chunks}
    assert heading[0].startswith("chatcmpl-")
    assert isinstance(heading[1], int)
    assert ("m0", "chat.completion.chunk") == heading[2:]
    assert heading[0] != chunks_of(second.content)[0]["id"]


async def test_head_tells_caches_and_proxies_not_to_hold_it_back(
    upstream: ScriptedUpstream, client: httpx2.AsyncClient
) -> None:
    upstream.scripts = (streams(*text_frames("a")),)

    answer = await stream_whole(client)

    assert "text/event-stream" == answer.headers["content-type"]
    assert "no-cache" == answer.headers["cache-control"]
    assert "no" == answer.headers["x-accel-buffering"]
    assert answer.headers["x-request-id"]
    assert "m0; upstream=up-model-2026" == answer.headers["x-picoclaw-model"]
    assert "content-length" not in answer.headers


async def test_usage_chunk_comes_last_and_only_where_it_was_asked_for(
    upstream: ScriptedUpstream, client: httpx2.AsyncClient
) -> None:
    upstream.scripts = (streams(*text_frames("a")),)

    asked = await stream_whole(client, stream_options={"include_usage": True})
    unasked = await stream_whole(client)
    declined = await stream_whole(client, stream_options={"include_usage": False})

    *others, last = chunks_of(asked.content)
    assert [] == last["choices"]
    assert USAGE == last["usage"]
    assert all("usage" not in chunk for chunk in others)
    for answer in (unasked, declined):
        assert all(chunk["choices"] and "usage" not in chunk for chunk in chunks_of(answer.content))


async def test_no_usage_chunk_is_made_up_where_the_upstream_tells_none(
    upstream: ScriptedUpstream, client: httpx2.AsyncClient
) -> None:
    upstream.scripts = (streams(*text_frames("a", usage=False)),)

    answer = await stream_whole(client, stream_options={"include_usage": True})

    assert all(chunk["choices"] for chunk in chunks_of(answer.content))


async def test_finish_reason_is_the_upstreams(upstream: ScriptedUpstream, client: httpx2.AsyncClient) -> None:
    upstream.scripts = (streams(frame(chunk({"content": "a"})), frame(chunk({}, "length")), frame(b"[DONE]")),)

    answer = await stream_whole(client)

    assert "length" == chunks_of(answer.content)[-1]["choices"][0]["finish_reason"]


async def test_reply_without_a_word_is_a_stream_too(upstream: ScriptedUpstream, client: httpx2.AsyncClient) -> None:
    upstream.scripts = (streams(*text_frames()),)

    answer = await stream_whole(client)

    assert [ROLE, {}] == deltas_of(answer.content)


async def test_fields_of_a_delta_pass_through(upstream: ScriptedUpstream, client: httpx2.AsyncClient) -> None:
    logprobs = {"content": [{"token": "a", "logprob": -0.5, "bytes": [97], "top_logprobs": []}], "refusal": None}
    with_logprobs = chunk({"content": "a"})
    with_logprobs["choices"][0]["logprobs"] = logprobs
    upstream.scripts = (
        streams(
            frame(chunk({"role": "assistant", "reasoning_content": "Hm"})),
            frame(chunk({"reasoning_content": "m."})),
            frame(with_logprobs),
            frame(chunk({"refusal": "No."})),
            frame(chunk({"annotations": [{"type": "url_citation"}]})),
            *text_frames(usage=False)[1:],
        ),
    )

    answer = await stream_whole(client)

    assert [
        ROLE,
        {"reasoning_content": "Hm"},
        {"reasoning_content": "m."},
        {"content": "a"},
        {"refusal": "No."},
        {"annotations": [{"type": "url_citation"}]},
        {},
    ] == deltas_of(answer.content)
    assert [logprobs] == [
        choice["logprobs"]
        for chunk in chunks_of(answer.content)
        for choice in chunk["choices"]
        if choice["logprobs"] is not None
    ]


def call(index: int, arguments: str | None = None, **fields: Any) -> dict[str, Any]:
    function = {name: fields.pop(name) for name in ("name",) if name in fields}
    if arguments is not None:
        function["arguments"] = arguments
    return {"index": index, **fields, **({"function": function} if function else {})}


async def test_tool_calls_pass_through_piece_by_piece(upstream: ScriptedUpstream, client: httpx2.AsyncClient) -> None:
    pieces = [
        [call(0, "", id="call_a", type="function", name="look")],
        [call(0, '{"a":')],
        [call(0, " 1}"), call(1, "{}", id="call_b", type="function", name="listen")],
    ]
    upstream.scripts = (
        streams(
            *(frame(chunk({"tool_calls": calls})) for calls in pieces),
            frame(chunk({}, "tool_calls")),
            frame(b"[DONE]"),
        ),
    )

    answer = await stream_whole(client)

    said = [delta["tool_calls"] for delta in deltas_of(answer.content) if "tool_calls" in delta]
    assert [pieces[0], pieces[1], [pieces[2][0]], [pieces[2][1]]] == said
    assert "tool_calls" == chunks_of(answer.content)[-1]["choices"][0]["finish_reason"]


async def test_streamed_tool_call_without_an_id_gets_one(
    upstream: ScriptedUpstream, client: httpx2.AsyncClient
) -> None:
    calls = [{"function": {"name": "look", "arguments": '{"a": 1}'}}]
    upstream.scripts = (streams(frame(chunk({"tool_calls": calls}, "tool_calls")), frame(b"[DONE]")),)

    answer = await stream_whole(client)

    (told,) = deltas_of(answer.content)[1]["tool_calls"]
    assert told["id"].startswith("call_")
    assert ("function", 0, calls[0]["function"]) == (told["type"], told["index"], told["function"])


async def test_fingerprint_of_the_upstream_is_on_the_last_chunks(
    upstream: ScriptedUpstream, client: httpx2.AsyncClient
) -> None:
    frames = [frame(chunk({"content": "a"}, system_fingerprint="fp_1")), *text_frames()[1:]]
    upstream.scripts = (streams(*frames),)

    answer = await stream_whole(client, stream_options={"include_usage": True})

    assert ["fp_1", "fp_1"] == [chunk["system_fingerprint"] for chunk in chunks_of(answer.content)[-2:]]


async def test_upstream_is_asked_for_a_stream_with_its_usage(
    upstream: ScriptedUpstream, client: httpx2.AsyncClient
) -> None:
    upstream.scripts = (streams(*text_frames("a")),)

    await stream_whole(client, temperature=0.5)

    assert upstream.asked[0].body["stream"] is True
    assert {"include_usage": True} == upstream.asked[0].body["stream_options"]
    assert 0.5 == upstream.asked[0].body["temperature"]


async def test_streaming_is_off_by_default(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    config = make_config(entry("m0", upstream.url))
    async with serve_here(tmp_path, config) as server, open_client(server.url) as client:
        answer = await stream_whole(client)

    assert 501 == answer.status_code
    assert "streaming_disabled" == answer.json()["error"]["code"]
    assert "gateway.openai_api.streaming" in answer.json()["error"]["message"]
    assert "false" == answer.headers["x-should-retry"]
    assert [] == upstream.asked


async def test_echo_streams_word_by_word(tmp_path: Path) -> None:
    async with serving(tmp_path) as server, open_client(server.url) as client:
        streamed = await stream_whole(client, model="echo", stream_options={"include_usage": True})
        whole = (await client.post(PATH, json=ask(model="echo"))).json()

    assert len(deltas_of(streamed.content)) > 3
    assert whole["choices"][0]["message"]["content"] == text_of(streamed.content)
    assert whole["usage"] == chunks_of(streamed.content)[-1]["usage"]


# --- Live ----------------------------------------------------------------------------------------------------------


async def test_each_delta_arrives_before_the_upstream_says_the_next(
    upstream: ScriptedUpstream, client: httpx2.AsyncClient
) -> None:
    upstream_says = Steered()
    upstream.scripts = (upstream_says,)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(upstream_says.say_text, "0")
        async with open_stream(client) as answer:
            assert ROLE == await answer.next_delta()
            assert {"content": "0"} == await answer.next_delta()
            for number in range(1, 10):
                await upstream_says.say_text(str(number))
                assert {"content": str(number)} == await answer.next_delta()
            await upstream_says.end()
            assert 2 == len(await answer.rest())


async def test_body_closes_with_the_end_mark_though_the_upstream_stays(
    upstream: ScriptedUpstream, client: httpx2.AsyncClient
) -> None:
    async def stays(exchange: Exchange) -> None:
        await exchange.begin_events()
        await exchange.write(b"".join(text_frames("a")))
        await exchange.asked.gone.wait()

    upstream.scripts = (stays,)

    answer = await stream_whole(client)

    assert "a" == text_of(answer.content)


async def test_http_1_0_client_gets_the_stream_to_the_connections_end(upstream: ScriptedUpstream, server: Here) -> None:
    upstream.scripts = (streams(*text_frames("a", "b")),)
    body = orjson.dumps(ask(stream=True))
    head = f"POST {PATH} HTTP/1.0\r\nAuthorization: {HEADERS['Authorization']}\r\nContent-Length: {len(body)}\r\n\r\n"
    async with connect(int(server.url.rpartition(":")[2])) as raw:
        await raw.send(head.encode() + body)
        got = await raw.read_to_the_end()

    assert b"transfer-encoding" not in got.lower()
    assert "ab" == text_of(got.partition(b"\r\n\r\n")[2])


async def test_connection_serves_the_next_request_after_a_stream(
    upstream: ScriptedUpstream, client: httpx2.AsyncClient
) -> None:
    upstream.scripts = (streams(*text_frames("a")),)
    peers = []

    for _ in range(3):
        async with open_stream(client) as answer:
            peers.append(answer.response.extensions["network_stream"].get_extra_info("client_addr"))
            await answer.rest()

    assert 1 == len(set(peers))


# --- Odd upstreams -------------------------------------------------------------------------------------------------

WHOLE = text_frames("Grüße, ", "Welt ", "🦀")
TEXT = "Grüße, Welt 🦀"


def pretty(raw: bytes) -> bytes:
    """The frame with its JSON over several ``data:`` lines."""
    if not raw.startswith(b"data: {"):
        return raw
    lines = orjson.dumps(orjson.loads(raw.removeprefix(b"data: ")), option=orjson.OPT_INDENT_2).splitlines()
    return b"".join(b"data: %b\n" % line for line in lines) + b"\n"


ODD_STREAMS: dict[str, list[bytes]] = {
    "CRLF": [raw.replace(b"\n", b"\r\n") for raw in WHOLE],
    "CR": [raw.replace(b"\n", b"\r") for raw in WHOLE],
    "comments": [
        b": hello\n\n",
        *itertools.chain.from_iterable(zip(WHOLE, itertools.repeat(b":\n\n"), strict=False)),
    ],
    "comments within frames": [raw.replace(b"data:", b": x\ndata:", 1) for raw in WHOLE],
    "several data lines": [pretty(raw) for raw in WHOLE],
    "no space after the colon": [raw.replace(b"data: ", b"data:", 1) for raw in WHOLE],
    "named events with ids": [b"event: message\nid: 1\nretry: 10\n" + raw for raw in WHOLE],
    "byte order mark": [b"\xef\xbb\xbf", *WHOLE],
    "byte by byte": [bytes([byte]) for byte in b"".join(WHOLE)],
    "all at once": [b"".join(WHOLE)],
    "without end mark": WHOLE[:-1],
    "without end mark and usage": WHOLE[:-2],
    "without the last blank line": [*WHOLE[:-1], b"data: [DONE]"],
    "end mark with a space behind": [*WHOLE[:-1], b"data: [DONE] \n\n"],
    "data after the end mark": [*WHOLE, b"data: nonsense\n\n"],
    "empty choices before the text": [frame({**chunk({}), "choices": []}), *WHOLE],
    "role in every chunk": [raw.replace(b'{"content"', b'{"role":"assistant","content"') for raw in WHOLE],
    "usage on the finish chunk": [*WHOLE[:4], frame(chunk({}, "stop", usage=USAGE)), frame(b"[DONE]")],
    "usage on every chunk": [raw.replace(b'"choices":[{', b'"usage":null,"choices":[{') for raw in WHOLE],
}


@pytest.mark.parametrize("name", ODD_STREAMS)
async def test_odd_stream_is_understood(name: str, upstream: ScriptedUpstream, client: httpx2.AsyncClient) -> None:
    upstream.scripts = (streams(*ODD_STREAMS[name]),)

    answer = await stream_whole(client, stream_options={"include_usage": True})

    assert TEXT == text_of(answer.content)
    assert ROLE == deltas_of(answer.content)[0]
    reasons = [c["choices"][0]["finish_reason"] for c in chunks_of(answer.content) if c["choices"]]
    assert ["stop"] == [reason for reason in reasons if reason]
    told = [c["usage"] for c in chunks_of(answer.content) if "usage" in c]
    assert ([] if name == "without end mark and usage" else [USAGE]) == told


@pytest.mark.parametrize("content_type", ["text/event-stream; charset=utf-8", "text/plain", "application/octet-stream"])
async def test_stream_is_known_by_what_it_is(
    content_type: str, upstream: ScriptedUpstream, client: httpx2.AsyncClient
) -> None:
    upstream.scripts = (lambda exchange: exchange.send(200, b"".join(WHOLE), content_type),)

    answer = await stream_whole(client)

    assert TEXT == text_of(answer.content)


@pytest.mark.parametrize("content_type", ["application/json", "text/event-stream", "text/html"])
async def test_upstream_that_cannot_stream_gives_one_delta(
    content_type: str, upstream: ScriptedUpstream, client: httpx2.AsyncClient
) -> None:
    raw = orjson.dumps(completion("Hello!", reasoning_content="Hm."))
    upstream.scripts = (lambda exchange: exchange.send(200, raw, content_type),)

    answer = await stream_whole(client, stream_options={"include_usage": True})

    assert [ROLE, {"reasoning_content": "Hm."}, {"content": "Hello!"}, {}] == deltas_of(answer.content)
    assert USAGE == chunks_of(answer.content)[-1]["usage"]


@pytest.mark.parametrize(
    "message",
    [
        {"content": "Hello!"},
        {"content": None, "refusal": "No."},
        {"content": "", "reasoning_content": "Hm."},
        {
            "content": None,
            "tool_calls": [{"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}],
        },
    ],
)
async def test_whole_answer_is_the_stream_folded(
    message: dict[str, Any], upstream: ScriptedUpstream, client: httpx2.AsyncClient
) -> None:
    upstream.scripts = (says(**message),)

    streamed = deltas_of((await stream_whole(client)).content)
    whole = (await client.post(PATH, json=ask())).json()["choices"][0]["message"]

    for name in ("content", "refusal", "reasoning_content"):
        assert (whole.get(name) or "") == "".join(delta.get(name) or "" for delta in streamed)
    calls = [
        {key: value for key, value in call.items() if key != "index"}
        for delta in streamed
        for call in delta.get("tool_calls", ())
    ]
    assert whole.get("tool_calls", []) == calls


# --- Split anywhere ------------------------------------------------------------------------------------------------


@attrs.define
class Arrived:
    """An upstream's answer that arrives in these pieces, in the place of a connection pool and its response."""

    pieces: list[bytes]
    status: int = 200

    @asynccontextmanager
    async def post(self, *asked: Any, **limits: Any) -> AsyncIterator[Arrived]:
        yield self

    def header(self, name: str) -> str | None:
        return {"content-type": "text/event-stream"}.get(name)

    async def receive(self) -> bytes:
        return self.pieces.pop(0) if self.pieces else b""


TARGET = Target("m", "openai", "http://x/v1", None, ModelSettings("m", None, {}), {}, 10.0, None)


async def hear(*pieces: bytes) -> tuple[list[Delta], Chunk]:
    """All that is heard of a stream that arrives in these pieces."""
    heard: list[Chunk] = []

    async def take(chunk: Chunk) -> None:
        heard.append(chunk)

    pool: Any = Arrived([piece for piece in pieces if piece])  # an empty one would be the end
    await ask_http(pool, TARGET, UpstreamRequest([], {}, stream=True), take)
    return [event for chunk in heard for event in chunk.events], reduce(merge_endings, heard, Chunk())


@pytest.mark.parametrize("name", ["CRLF", "CR", "several data lines", "byte order mark", "without the last blank line"])
async def test_stream_cut_in_two_at_any_byte_says_the_same(name: str) -> None:
    raw = b"".join(ODD_STREAMS[name])
    whole = await hear(raw)

    for at in range(len(raw)):
        assert whole == await hear(raw[:at], raw[at:]), at


@given(st.data(), st.sampled_from(sorted(ODD_STREAMS)))
def test_stream_cut_anywhere_says_the_same(data: st.DataObject, name: str) -> None:
    raw = b"".join(ODD_STREAMS[name])
    cuts = sorted(data.draw(st.sets(st.integers(0, len(raw)))))
    pieces = [raw[start:end] for start, end in itertools.pairwise([0, *cuts, len(raw)])]

    assert trio.run(hear, raw) == trio.run(hear, *pieces)


# --- Failures ------------------------------------------------------------------------------------------------------


def cut_after(*frames: bytes) -> Script:
    async def script(exchange: Exchange) -> None:
        await exchange.begin_events()
        for raw in frames:
            await exchange.write(raw)
        await exchange.cut()

    return script


SILENT_FAILURES: dict[str, tuple[Script, int, str]] = {
    "refused": (answers(400, error_body("bad temperature", param="temperature", code="invalid")), 400, "invalid"),
    "auth": (answers(401, error_body("bad key")), 502, "upstream_auth"),
    "unknown model": (answers(404, error_body("no such model")), 502, "upstream_model"),
    "page": (answers(200, b"<html>"), 502, "upstream_error"),
    "no choice": (answers(200, {"object": "chat.completion", "choices": []}), 502, "upstream_error"),
    "empty stream": (streams(), 502, "upstream_error"),
    "end mark alone": (streams(frame(b"[DONE]")), 502, "upstream_error"),
    "only a role": (streams(*text_frames()[:1]), 502, "upstream_error"),
    "cut after the role": (cut_after(*text_frames()[:1]), 502, "upstream_error"),
    "error frame": (streams(frame(error_body("overheated"))), 502, "upstream_error"),
    "error frame after the role": (streams(text_frames()[0], frame(error_body("overheated"))), 502, "upstream_error"),
    "error frame with a status": (
        streams(frame({"error": {"message": "slow down", "code": 429}})),
        429,
        "rate_limit_exceeded",
    ),
    "nonsense": (streams(b"data: {nonsense\n\n"), 502, "upstream_error"),
}


@pytest.mark.parametrize("name", SILENT_FAILURES)
async def test_failure_before_the_first_word_is_a_status(
    name: str, upstream: ScriptedUpstream, client: httpx2.AsyncClient
) -> None:
    script, status, code = SILENT_FAILURES[name]
    upstream.scripts = (script,)

    answer = await stream_whole(client)

    assert (status, code) == (answer.status_code, answer.json()["error"]["code"])
    assert "application/json" == answer.headers["content-type"]


async def test_refused_stream_request_is_a_status(upstream: ScriptedUpstream, client: httpx2.AsyncClient) -> None:
    unknown = await stream_whole(client, model="nobody")
    malformed = await client.post(PATH, json={"stream": True})

    assert (404, "model_not_found") == (unknown.status_code, unknown.json()["error"]["code"])
    assert 400 == malformed.status_code
    assert [] == upstream.asked


FIRST_WORD = text_frames("Hel")[:2]
LATE_FAILURES: dict[str, tuple[Script, str]] = {
    "cut": (cut_after(*FIRST_WORD), "cut the connection"),
    "ends in the middle": (streams(*FIRST_WORD), "cut the connection"),
    "ends within a frame": (streams(*FIRST_WORD, b'data: {"choices": [{"del'), "could not be understood"),
    "error frame": (streams(*FIRST_WORD, frame(error_body("overheated"))), "failed"),
    "error as a word": (streams(*FIRST_WORD, frame({"error": "overheated"})), "failed"),
    "nonsense": (streams(*FIRST_WORD, b"data: nonsense\n\n", frame(b"[DONE]")), "could not be understood"),
}


@pytest.mark.parametrize("name", LATE_FAILURES)
async def test_failure_after_the_first_word_is_one_error_frame_and_no_end_mark(
    name: str, upstream: ScriptedUpstream, client: httpx2.AsyncClient
) -> None:
    script, told = LATE_FAILURES[name]
    upstream.scripts = (script,)

    async with open_stream(client) as answer:
        assert 200 == answer.response.status_code
        assert [ROLE, {"content": "Hel"}] == [await answer.next_delta(), await answer.next_delta()]
        (block,) = await answer.rest()

    error = orjson.loads(block.removeprefix(b"data: "))["error"]
    assert {"message", "type", "param", "code"} == error.keys()
    assert ("server_error", None, "upstream_error") == (error["type"], error["param"], error["code"])
    assert told in error["message"]


async def test_another_target_answers_as_long_as_no_word_was_given(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    async with open_upstream() as second, serving(tmp_path, upstream, second) as server:
        upstream.scripts = (cut_after(*text_frames()[:1]),)
        second.scripts = (streams(*text_frames("second")),)
        async with open_client(server.url) as client:
            answer = await stream_whole(client, model="m0")

    assert "second" == text_of(answer.content)
    assert {"m1"} == {chunk["model"] for chunk in chunks_of(answer.content)}
    assert answer.headers["x-picoclaw-model"].startswith("m1;")


async def test_no_other_target_is_asked_after_the_first_word(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    async with open_upstream() as second, serving(tmp_path, upstream, second) as server:
        upstream.scripts = (cut_after(*FIRST_WORD),)
        async with open_client(server.url) as client, open_stream(client, model="m0") as answer:
            blocks = await answer.rest()

    assert b'data: {"error"' == blocks[-1][:14]
    assert 1 == len(upstream.asked)
    assert [] == second.asked


async def test_turn_that_runs_out_of_time_after_the_first_word_ends_with_an_error_frame(
    tmp_path: Path, upstream: ScriptedUpstream
) -> None:
    upstream_says = Steered()
    upstream.scripts = (upstream_says,)
    async with serving(tmp_path, upstream, turn_timeout=1) as server, open_client(server.url) as client:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(upstream_says.say_text, "a")
            async with open_stream(client) as answer:
                *_, last = await answer.rest()
        await upstream.wait_all_gone()

    assert "upstream_timeout" == orjson.loads(last.removeprefix(b"data: "))["error"]["code"]


async def test_turn_that_runs_out_of_time_in_silence_is_a_504(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    upstream.scripts = (hangs,)
    async with serving(tmp_path, upstream, turn_timeout=1) as server, open_client(server.url) as client:
        answer = await stream_whole(client)

    assert (504, "upstream_timeout") == (answer.status_code, answer.json()["error"]["code"])
    assert "false" == answer.headers["x-should-retry"]


# --- Silence -------------------------------------------------------------------------------------------------------


async def test_silent_upstream_is_bridged_by_comments_before_and_between_words(
    tmp_path: Path, upstream: ScriptedUpstream
) -> None:
    upstream_says = Steered()
    upstream.scripts = (upstream_says,)
    async with serving(tmp_path, upstream, ping_interval=0.2) as server, open_client(server.url) as client:
        begun_at = trio.current_time()
        async with open_stream(client) as answer:
            assert trio.current_time() >= begun_at + 0.2
            assert [KEEP_ALIVE, KEEP_ALIVE] == [await answer.next(), await answer.next()]
            await upstream_says.say_text("a")
            while (block := await answer.next()) == KEEP_ALIVE:
                pass
            assert block is not None
            assert ROLE == orjson.loads(block.removeprefix(b"data: "))["choices"][0]["delta"]
            assert {"content": "a"} == await answer.next_delta()
            assert [KEEP_ALIVE, KEEP_ALIVE] == [await answer.next(), await answer.next()]
            await upstream_says.end()
            assert b"data: [DONE]" == (await answer.rest())[-1]


async def test_failure_after_a_comment_is_an_error_frame(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    fail = trio.Event()

    async def fails_late(exchange: Exchange) -> None:
        await fail.wait()
        await exchange.send(400, orjson.dumps(error_body("bad", code="bad_thing")))

    upstream.scripts = (fails_late,)
    async with (
        serving(tmp_path, upstream, ping_interval=0.2) as server,
        open_client(server.url) as client,
        open_stream(client) as answer,
    ):
        assert 200 == answer.response.status_code
        assert KEEP_ALIVE == await answer.next()
        fail.set()
        last = [block for block in await answer.rest() if block != KEEP_ALIVE]

    (error,) = [orjson.loads(block.removeprefix(b"data: "))["error"] for block in last]
    assert ("bad_thing", "bad") == (error["code"], error["message"])


async def test_another_target_answers_after_comments(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    fail = trio.Event()

    async def fails_late(exchange: Exchange) -> None:
        await fail.wait()
        await exchange.cut()

    async with open_upstream() as second, serving(tmp_path, upstream, second, ping_interval=0.2) as server:
        upstream.scripts = (fails_late,)
        second.scripts = (streams(*text_frames("second")),)
        async with open_client(server.url) as client, open_stream(client, model="m0") as answer:
            assert KEEP_ALIVE == await answer.next()
            fail.set()
            blocks = [block for block in await answer.rest() if block != KEEP_ALIVE]

    assert "second" == text_of(b"".join(block + b"\n\n" for block in blocks))


async def test_wait_for_a_place_ends_in_a_status_though_comments_are_due(
    tmp_path: Path, upstream: ScriptedUpstream
) -> None:
    upstream.scripts = (hangs,)
    limits = {"max_turns": 1, "max_wait": 1, "ping_interval": 0.2}
    async with (
        serving(tmp_path, upstream, **limits) as server,
        open_client(server.url) as client,
        open_running(client, upstream),
    ):
        answer = await stream_whole(client)

    assert (503, "overloaded") == (answer.status_code, answer.json()["error"]["code"])
    assert "1" == answer.headers["retry-after"]


@pytest.mark.parametrize("on_disconnect", ["cancel", "finish"])
async def test_wait_for_the_session_ends_in_a_status_though_comments_are_due(
    on_disconnect: str, tmp_path: Path, upstream: ScriptedUpstream
) -> None:
    upstream.scripts = (hangs,)
    limits = {"history": "session", "session_wait": 1, "ping_interval": 0.2, "on_disconnect": on_disconnect}
    async with (
        serving(tmp_path, upstream, **limits) as server,
        open_client(server.url) as client,
        open_running(client, upstream),
    ):
        answer = await stream_whole(client)

    assert (409, "session_busy") == (answer.status_code, answer.json()["error"]["code"])


# --- In the terminal -----------------------------------------------------------------------------------------------


async def test_agent_prints_each_delta_as_it_comes(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    upstream_says = Steered()
    upstream.scripts = (upstream_says,)
    write_config(tmp_path, make_config(entry("m0", upstream.url)))
    with trio.fail_after(LIMIT):
        process = await trio.lowlevel.open_process(
            [sys.executable, "-m", "picoclaw_trio", "agent", "-m", "Hello"],
            env=make_environment(tmp_path),
            stdout=-1,
        )
        try:
            assert process.stdout is not None
            for word in (b"one", b" two", b" three"):
                await upstream_says.say_text(word.decode())
                assert word == await process.stdout.receive_some()
            await upstream_says.end()
            assert b"\n" == await process.stdout.receive_some()
            assert 0 == await process.wait()
        finally:
            if process.returncode is None:
                process.kill()
            with trio.CancelScope(shield=True):
                await process.wait()
