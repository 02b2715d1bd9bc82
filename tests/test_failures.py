"""What the client gets when a turn fails, and what is left of it afterwards."""

from __future__ import annotations

import email.utils
import fcntl
import resource
import socket
import struct
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import httpx2
import orjson
import pytest
import trio
from envelopes import check_error, error_in
from fakes import (
    Exchange,
    Script,
    ScriptedUpstream,
    answers,
    chunk,
    completion,
    cuts,
    error_body,
    frame,
    hangs,
    open_upstream,
    says,
    streams,
    text_frames,
)
from harness import TOKEN, Here, ask, entry, make_config, open_client, open_server, serve_here
from host_client import WAIT, Client, connect, connect2
from serving import PATH, Lines, head, logged, port_of, serving, wait_until
from streams import Endless

from picoclaw_trio.http_target import MAX_ANSWER_BYTES
from picoclaw_trio.upstream import RetryPolicy
from picoclaw_trio.upstream_reply import MAX_SHOWN, MAX_TOLD

MOMENT = 5.0
BODY = orjson.dumps(ask(model="one"))
REQUEST = head(length=len(BODY)) + BODY
ANSWER_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 1000\r\n\r\n"
SECRET = "sk-up-secret"


async def answer_of(script: Script, folder: Path, upstream: ScriptedUpstream, **changes: Any) -> httpx2.Response:
    """What the client gets where the upstream does *script* each time; *changes* go into the one entry."""
    upstream.scripts = [script]
    async with serving(folder, make_config(entry("one", upstream.url, **changes))) as (_, client):
        return await client.post(PATH, json=ask(model="one"))


# The upstream refused the request itself


@pytest.mark.parametrize("status", [400, 413, 422])
async def test_refusal_of_the_request_passes_through(status: int, tmp_path: Path, upstream: ScriptedUpstream) -> None:
    told = error_body("Too long.", param="messages", code="context_length_exceeded")
    answer = await answer_of(answers(status, told), tmp_path, upstream)

    assert "Too long." == check_error(answer, status, "context_length_exceeded", param="messages")
    assert 1 == len(upstream.asked)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (error_body("Bad.", param=5, code=400), "Bad."),
        ({"error": "Bad."}, "Bad."),
        (b"Bad.", "Bad."),
        (b"<html>Bad.</html>", "<html>Bad.</html>"),
    ],
)
async def test_refusal_of_any_shape_gets_the_one_shape(
    body: Any, message: str, tmp_path: Path, upstream: ScriptedUpstream
) -> None:
    answer = await answer_of(answers(400, body), tmp_path, upstream)

    assert message == check_error(answer, 400, "invalid_request")


@pytest.mark.parametrize("body", [b"", {"error": {}}, {"error": None}, {"error": {"message": None}}, b"null"])
async def test_refusal_without_words_gets_ours(body: Any, tmp_path: Path, upstream: ScriptedUpstream) -> None:
    answer = await answer_of(answers(422, body), tmp_path, upstream)

    check_error(answer, 422, "invalid_request")


async def test_refusal_is_not_taken_to_a_fallback(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    upstream.scripts = [answers(400, error_body("Bad.")), says()]
    config = make_config(entry("one", upstream.url, fallbacks=["two"]), entry("two", upstream.url))
    async with serving(tmp_path, config) as (_, client):
        assert 400 == (await client.post(PATH, json=ask(model="one"))).status_code
    assert ["one-up"] == [asked.body["model"] for asked in upstream.asked]


async def test_refusal_of_a_stream_is_still_a_status(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    upstream.scripts = [answers(400, error_body("Bad.", param="tools"))]
    async with serving(tmp_path, make_config(entry("one", upstream.url), streaming=True)) as (_, client):
        answer = await client.post(PATH, json=ask(model="one", stream=True))

    assert "Bad." == check_error(answer, 400, "invalid_request", param="tools")


SECRETIVE = [
    answers(400, error_body(f"{SECRET} is no good: {SECRET}", param=SECRET, code=SECRET)),
    answers(400, {"error": f"You sent {SECRET}."}),
    answers(413, f"Authorization: Bearer {SECRET}".encode()),
    answers(401, error_body(f"Wrong key: {SECRET}.")),
    answers(404, error_body(f"Wrong key: {SECRET}.")),
    answers(429, error_body(f"Too often: {SECRET}.")),
    answers(500, error_body(f"Broken: {SECRET}.")),
    answers(200, f"<html>{SECRET}</html>".encode()),
    answers(200, error_body(f"{SECRET} is no good", code=400)),
    streams(frame(error_body(f"{SECRET} is no good", code=422))),
]


@pytest.mark.parametrize("script", SECRETIVE, ids=range(len(SECRETIVE)))
async def test_our_key_comes_out_neither_in_the_answer_nor_in_the_log(
    script: Script, tmp_path: Path, upstream: ScriptedUpstream
) -> None:
    with logged() as lines:
        answer = await answer_of(script, tmp_path, upstream)

    error_in(answer.content)
    assert SECRET not in answer.text
    assert SECRET not in repr(answer.headers)
    assert SECRET not in repr(lines)
    assert ["attempt failed", "request"] == [line["event"] for line in lines]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("on_disconnect", ["cancel", "finish"])
async def test_line_of_a_failed_or_cancelled_request_names_the_model(
    on_disconnect: str, stream: bool, tmp_path: Path, upstream: ScriptedUpstream
) -> None:
    upstream.scripts = [answers(500, {}), answers(429, {}), hangs]
    config = make_config(
        entry("one", upstream.url, request_timeout=0.3),
        max_turns=1,
        max_waiting=0,
        on_disconnect=on_disconnect,
        streaming=True,
    )
    async with serving(tmp_path, config) as (server, client):
        with logged() as lines:
            for _ in range(3):
                await client.post(PATH, json=ask(stream=stream))
            async with server.gateway.admission.turn(7):
                await client.post(PATH, json=ask(stream=stream))
            with trio.move_on_after(0.1):
                await client.post(PATH, json=ask(stream=stream))
            await wait_until(lambda: any(line.get("status") == 499 for line in lines))

    told = [(line["status"], line.get("model")) for line in lines if "status" in line and "path" in line]
    assert [(502, "one"), (429, "one"), (504, "one"), (503, "one"), (499, "one")] == told


ODD_SECRET = "sk/up,{1}[2]'3=4"


@pytest.mark.parametrize("secret", [SECRET, ODD_SECRET, f"{ODD_SECRET}+{'x' * 300}"], ids=["plain", "odd", "long"])
@pytest.mark.parametrize("left", range(1, len(ODD_SECRET)))
async def test_key_that_a_cut_has_parted_does_not_come_out_either(
    secret: str, left: int, tmp_path: Path, upstream: ScriptedUpstream
) -> None:
    pages = (f"{'x ' * 100}"[: MAX_SHOWN - left] + secret, error_body(f"{'y ' * 1000}"[: MAX_TOLD - left] + secret))
    upstream.scripts = [answers(400, page.encode() if isinstance(page, str) else page) for page in pages]
    with logged() as lines:
        async with serving(tmp_path, make_config(entry("one", upstream.url, api_key=secret))) as (_, client):
            told = [check_error(await client.post(PATH, json=ask()), 400, "invalid_request") for _ in pages]

    assert [{"x", " ", "*"}, {"y", " ", "*"}] == [set(text) | {"*"} for text in told]
    assert [] == [line for line in lines if secret[:left] in line.get("detail", "").replace("status", "")]


@pytest.mark.parametrize(
    "page",
    [
        b'{"error": {"message": {"headers": {"Authorization": "Bearer sk\\/up,{1}[2]\'3=4"}}}}',
        b'<html>bad \\"Bearer sk\\/up,{1}[2]\'3=4\\"',
        b"https://x/?key=sk%2Fup%2C%7B1%7D%5B2%5D%273%3D4",
        b"<p>sk/up,{1}[2]&#39;3=4</p>",
    ],
    ids=["JSON", "JSON in HTML", "address", "HTML"],
)
async def test_key_that_is_spelled_in_another_way_does_not_come_out_either(
    page: bytes, tmp_path: Path, upstream: ScriptedUpstream
) -> None:
    with logged() as lines:
        answer = await answer_of(answers(400, page), tmp_path, upstream, api_key=ODD_SECRET)

    assert "***" in check_error(answer, 400, "invalid_request")
    assert "up" not in answer.text
    assert "3=4" not in repr([answer.text, *lines])


async def test_configured_headers_do_not_come_out_either(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    headers = {"X-Api-Key": "other-secret", "Authorization": "Bearer third-secret"}
    script = answers(400, error_body("Not other-secret, not third-secret, but a."))
    answer = await answer_of(script, tmp_path, upstream, custom_headers=headers)

    assert "Not ***, not ***, but a." == check_error(answer, 400, "invalid_request")


async def test_key_too_short_to_be_one_tears_no_holes(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    answer = await answer_of(answers(400, error_body("Too many extra tokens.")), tmp_path, upstream, api_key="x")

    assert "Too many extra tokens." == check_error(answer, 400, "invalid_request")


# The upstream refused us, or does not know the model


@pytest.mark.parametrize(
    ("status", "code"),
    [(401, "upstream_auth"), (402, "upstream_auth"), (403, "upstream_auth"), (404, "upstream_model")],
)
async def test_refusal_of_ourselves_is_no_matter_of_the_client(
    status: int, code: str, tmp_path: Path, upstream: ScriptedUpstream
) -> None:
    answer = await answer_of(answers(status, error_body("Project proj_1 has no credit.")), tmp_path, upstream)

    message = check_error(answer, 502, code, type="server_error", x_should_retry="false")
    assert "proj_1" not in message
    assert 1 == len(upstream.asked)


# The upstream is rate-limited


@pytest.mark.parametrize(
    ("wish", "told"),
    [
        (None, "1"),
        ("0", "1"),
        ("7", "7"),
        ("7.2", "8"),
        ("30", "30"),
        ("31", "30"),
        ("86400", "30"),
        ("1e400", "30"),
        ("nan", "1"),
        ("-5", "1"),
        ("soon", "1"),
        ("Mon, 01 Jan 99999999999999999999 00:00:00 GMT", "1"),
        ("Mon, 01 Jan 2024 00:00:00 +99999999999999999999", "1"),
        ("", "1"),
        (email.utils.formatdate(0, usegmt=True), "1"),
        (email.utils.formatdate(time.time() + 86400, usegmt=True), "30"),
    ],
)
async def test_rate_limit_is_passed_on_with_thirty_seconds_at_most(
    wish: str | None, told: str, tmp_path: Path, upstream: ScriptedUpstream
) -> None:
    headers = {} if wish is None else {"retry_after": wish}
    answer = await answer_of(answers(429, error_body("Slow down."), **headers), tmp_path, upstream)

    check_error(answer, 429, "rate_limit_exceeded", type="rate_limit_error", retry_after=told)


@pytest.mark.parametrize(
    ("status", "told", "code"),
    [
        (400, 400, "invalid_request"),
        (401, 502, "upstream_auth"),
        (404, 502, "upstream_model"),
        (429, 429, "rate_limit_exceeded"),
        (503, 502, "upstream_error"),
    ],
)
async def test_status_counts_however_long_the_page_is_that_comes_with_it(
    status: int, told: int, code: str, tmp_path: Path, upstream: ScriptedUpstream
) -> None:
    answer = await answer_of(answers(status, b"<html>" + b"x " * 100_000), tmp_path, upstream)

    assert (told, code) == (answer.status_code, error_in(answer.content)["code"])


async def test_stream_without_end_in_the_place_of_a_whole_answer_is_cut_off(
    tmp_path: Path, upstream: ScriptedUpstream
) -> None:
    endless = Endless(frame(chunk({"content": "x" * 1_000_000})))
    answer = await answer_of(endless, tmp_path, upstream)

    check_error(answer, 502, "upstream_error", type="server_error")
    assert endless.sent < 2 * MAX_ANSWER_BYTES


async def test_stream_with_calls_without_end_is_cut_off(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    call = {"index": 0, "id": "1", "function": {"name": "f", "arguments": "x" * 4_000_000}}
    endless = Endless(frame(chunk({"tool_calls": [call]})))
    upstream.scripts = [endless]
    config = make_config(entry("one", upstream.url), streaming=True)
    async with (
        serving(tmp_path, config) as (_, client),
        client.stream("POST", PATH, json=ask(stream=True)) as answer,
    ):
        *_, last = [line async for line in answer.aiter_lines() if line]
    assert "upstream_error" == error_in(last.removeprefix("data: ").encode())["code"]
    assert endless.sent < 2 * MAX_ANSWER_BYTES


async def test_rate_limit_is_passed_on_after_all_attempts_only(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    upstream.scripts = [answers(429, {}, retry_after="0"), answers(429, {}, retry_after="0"), says()]
    config = make_config(entry("one", upstream.url))
    async with serving(tmp_path, config, RetryPolicy(base_delay=0.01)) as (_, client):
        assert 200 == (await client.post(PATH, json=ask())).status_code
        upstream.scripts = [answers(429, {}, retry_after="0")]
        assert 429 == (await client.post(PATH, json=ask())).status_code
    assert 6 == len(upstream.asked)


async def test_long_wait_is_not_waited_for(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    upstream.scripts = [answers(429, {}, retry_after="3600"), says()]
    config = make_config(entry("one", upstream.url, fallbacks=["two"]), entry("two", upstream.url))
    async with serving(tmp_path, config, RetryPolicy()) as (_, client):
        answer = await client.post(PATH, json=ask(model="one"))
    assert (200, "two") == (answer.status_code, answer.json()["model"])


# The upstream is broken


async def test_broken_upstream_is_bad_gateway(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    async with serving(tmp_path, make_config(entry("one", upstream.url))) as (_, client):
        for status in (500, 501, 502, 503, 504, 520, 524, 529, 408, 409, 425, 418, 302):
            upstream.scripts = [answers(status, error_body("10.1.2.3 is down"))]
            answer = await client.post(PATH, json=ask())
            assert "10.1.2.3" not in check_error(answer, 502, "upstream_error", type="server_error")


async def test_broken_upstream_is_asked_again(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    upstream.scripts = [answers(503, b""), answers(500, b"", retry_after="0"), says()]
    config = make_config(entry("one", upstream.url))
    async with serving(tmp_path, config, RetryPolicy(base_delay=0.01)) as (_, client):
        assert 200 == (await client.post(PATH, json=ask())).status_code
    assert 3 == len(upstream.asked)


@pytest.mark.parametrize("status", [504, 524])
async def test_model_behind_a_proxy_that_gave_up_waiting_is_not_asked_again(
    status: int, tmp_path: Path, upstream: ScriptedUpstream
) -> None:
    upstream.scripts = [answers(status, b"<html>Gateway Time-out</html>"), says()]
    row = {**entry("one", upstream.url), "api_key": None, "api_keys": ["k-one", "k-two"]}
    async with serving(tmp_path, make_config(row), RetryPolicy(base_delay=0.01)) as (_, client):
        answer = await client.post(PATH, json=ask())
    check_error(answer, 502, "upstream_error", type="server_error")
    assert 1 == len(upstream.asked)


@pytest.mark.parametrize("retries", [0, 1, 4])
async def test_number_of_retries_is_configured(retries: int, tmp_path: Path, upstream: ScriptedUpstream) -> None:
    upstream.scripts = [answers(500, b"")]
    config = make_config(entry("one", upstream.url))
    config["agents"] = {"defaults": {"max_llm_retries": retries, "llm_retry_backoff_secs": 0}}
    async with serve_here(tmp_path, config) as server, open_client(server.url) as client:
        assert 502 == (await client.post(PATH, json=ask())).status_code
    assert retries + 1 == len(upstream.asked)


def sends(data: bytes) -> Script:
    """Send just these bytes and close."""

    async def script(exchange: Exchange) -> None:
        await exchange.stream.send_all(data)
        await exchange.cut()

    return script


async def resets(exchange: Exchange) -> None:
    exchange.stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    await exchange.cut()


GARBLED: dict[str, Script] = {
    "cut": cuts,
    "reset": resets,
    "cut within the head": sends(ANSWER_HEAD[:30]),
    "cut before the body": sends(ANSWER_HEAD),
    "cut within the body": sends(ANSWER_HEAD + orjson.dumps(completion())),
    "cut within a chunk": sends(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nff\r\n{"),
    "cut stream": sends(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n" + text_frames("Hello")[0]),
    "no http": sends(b"SSH-2.0-OpenSSH_9.9\r\n\r\n"),
    "not json": answers(200, b"Hello"),
    "html": answers(200, b"<!doctype html><html></html>", content_type="text/html"),
    "nothing": answers(200, b""),
    "null": answers(200, b"null"),
    "half": answers(200, orjson.dumps(completion())[:-1]),
    "a list": answers(200, [completion()]),
    "no choices": answers(200, {"id": "x", "object": "chat.completion"}),
    "choices null": answers(200, {"choices": None}),
    "choices empty": answers(200, {"choices": []}),
    "choice null": answers(200, {"choices": [None]}),
    "no message": answers(200, {"choices": [{"index": 0, "finish_reason": "stop"}]}),
    "message null": answers(200, {"choices": [{"message": None}]}),
    "an error": answers(200, error_body("Broken.")),
    "no events": streams(),
    "done at once": streams(frame(b"[DONE]")),
    "error event": streams(frame(error_body("Broken."))),
    "no json event": streams(frame(b"Hello")),
    "no content": answers(204, b""),
    "partial": answers(206, completion()),
}


@pytest.mark.parametrize("name", GARBLED)
async def test_answer_that_is_none_is_bad_gateway(name: str, tmp_path: Path, upstream: ScriptedUpstream) -> None:
    answer = await answer_of(GARBLED[name], tmp_path, upstream)

    check_error(answer, 502, "upstream_error", type="server_error")
    assert 1 == len(upstream.asked)


async def test_stream_that_fails_before_its_first_byte_is_a_status(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    async with serving(tmp_path, make_config(entry("one", upstream.url), streaming=True)) as (_, client):
        for script in GARBLED.values():
            upstream.scripts = [script]
            answer = await client.post(PATH, json=ask(stream=True))
            check_error(answer, 502, "upstream_error", type="server_error")


async def test_address_where_nobody_listens_is_bad_gateway(tmp_path: Path) -> None:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        nobody = f"http://127.0.0.1:{sock.getsockname()[1]}/v1"
        async with serving(tmp_path, make_config(entry("one", nobody))) as (_, client):
            answer = await client.post(PATH, json=ask())

    assert "127.0.0.1" not in check_error(answer, 502, "upstream_error", type="server_error")


@pytest.mark.parametrize("row", [{"model": "bedrock/m", "api_key": "k"}, {"model": "claude/m", "auth_method": "oauth"}])
async def test_entry_that_cannot_be_asked_is_bad_gateway(row: dict[str, str], tmp_path: Path) -> None:
    async with serving(tmp_path, make_config({"model_name": "one", **row})) as (_, client):
        answer = await client.post(PATH, json=ask())

    check_error(answer, 502, "upstream_unsupported", type="server_error", x_should_retry="false")


@pytest.mark.parametrize("name", ["cut", "cut within the body", "html", "no choices", "an error"])
async def test_fallback_answers_in_its_place(name: str, tmp_path: Path, upstream: ScriptedUpstream) -> None:
    upstream.scripts = [GARBLED[name], says()]
    config = make_config(entry("one", upstream.url, fallbacks=["two"]), entry("two", upstream.url))
    async with serving(tmp_path, config) as (_, client):
        answer = await client.post(PATH, json=ask(model="one"))
    assert (200, "two") == (answer.status_code, answer.json()["model"])
    assert answer.headers["x-picoclaw-model"].startswith("two;")


# Out of time


async def hangs_within(exchange: Exchange) -> None:
    await exchange.stream.send_all(ANSWER_HEAD + b"{")
    await exchange.asked.gone.wait()


async def trickles(exchange: Exchange) -> None:
    await exchange.stream.send_all(ANSWER_HEAD)
    while True:
        await exchange.stream.send_all(b" ")
        await trio.sleep(0.05)


@pytest.mark.parametrize("script", [hangs, hangs_within, trickles])
async def test_attempt_that_takes_too_long_is_a_gateway_timeout(
    script: Script, tmp_path: Path, upstream: ScriptedUpstream
) -> None:
    answer = await answer_of(script, tmp_path, upstream, request_timeout=0.2)

    check_error(answer, 504, "upstream_timeout", type="server_error", x_should_retry="false")
    assert 1 == len(upstream.asked)
    with trio.fail_after(MOMENT):
        await upstream.asked[0].gone.wait()


@pytest.mark.parametrize("script", [hangs, hangs_within, trickles])
async def test_turn_that_takes_too_long_is_a_gateway_timeout(
    script: Script, tmp_path: Path, upstream: ScriptedUpstream
) -> None:
    upstream.scripts = [answers(500, b"", retry_after="0"), script]
    config = make_config(entry("one", upstream.url), turn_timeout=0.3)
    async with serving(tmp_path, config, RetryPolicy(base_delay=0.01)) as (_, client):
        answer = await client.post(PATH, json=ask())
    check_error(answer, 504, "upstream_timeout", type="server_error", x_should_retry="false")


async def test_target_that_hung_for_a_whole_turn_is_passed_over_by_the_next(
    tmp_path: Path, upstream: ScriptedUpstream
) -> None:
    upstream.scripts = [hangs]
    async with open_upstream() as second:
        config = make_config(entry("one", upstream.url, fallbacks=["two"]), entry("two", second.url), turn_timeout=0.3)
        async with serving(tmp_path, config) as (_, client):
            assert 504 == (await client.post(PATH, json=ask(model="one"))).status_code
            assert "two" == (await client.post(PATH, json=ask(model="one"))).json()["model"]
    assert 1 == len(upstream.asked)


async def test_retries_end_with_the_time_of_the_turn(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    upstream.scripts = [answers(500, b"")]
    config = make_config(entry("one", upstream.url), turn_timeout=2)
    async with serving(tmp_path, config, RetryPolicy(max_attempts=1000, base_delay=0.7)) as (server, client):
        server.gateway.upstream.jitter = lambda: 0.0
        answer = await client.post(PATH, json=ask())
    check_error(answer, 502, "upstream_error", type="server_error")
    assert 2 == len(upstream.asked)  # at 0 and 0.7 s; the next would be at 2.1 s


async def test_fallback_answers_for_one_that_hangs(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    upstream.scripts = [hangs, says()]
    config = make_config(entry("one", upstream.url, fallbacks=["two"], request_timeout=0.1), entry("two", upstream.url))
    async with serving(tmp_path, config) as (_, client):
        answer = await client.post(PATH, json=ask(model="one"))
    assert (200, "two") == (answer.status_code, answer.json()["model"])


async def test_stream_that_does_not_begin_is_a_gateway_timeout(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    upstream.scripts = [hangs]
    config = make_config(entry("one", upstream.url, request_timeout=0.2), streaming=True)
    async with serving(tmp_path, config) as (_, client):
        answer = await client.post(PATH, json=ask(stream=True))
    check_error(answer, 504, "upstream_timeout", type="server_error", x_should_retry="false")


async def test_stream_may_take_longer_than_an_attempt_as_long_as_it_goes_on(
    tmp_path: Path, upstream: ScriptedUpstream
) -> None:
    upstream.scripts = [streams(*text_frames(*8 * ["Hello "]), pause=0.1)]
    config = make_config(entry("one", upstream.url, request_timeout=1), streaming=True)
    async with serving(tmp_path, config) as (_, client):
        answer = await client.post(PATH, json=ask(stream=True))
    assert answer.text.endswith("data: [DONE]\n\n")
    assert "error" not in answer.text


# After the first byte


def frames_of(answer: httpx2.Response) -> list[str]:
    return [line.removeprefix("data: ") for line in answer.text.split("\n\n") if line.startswith("data: ")]


async def stops_within(exchange: Exchange) -> None:
    await exchange.begin_events()
    await exchange.write(b"".join(text_frames("Hel")[:2]))
    await exchange.asked.gone.wait()


def begins(*data: bytes) -> Script:
    """Begin a reply, send *data*, and close without an end."""

    async def script(exchange: Exchange) -> None:
        await exchange.begin_events()
        await exchange.write(b"".join([*text_frames("Hel")[:2], *data]))
        await exchange.cut()

    return script


@pytest.mark.parametrize(
    ("script", "code"),
    [
        (begins(), "upstream_error"),
        (begins(b"data: {"), "upstream_error"),
        (begins(frame(b"Hello")), "upstream_error"),
        (begins(frame(error_body("Broken."))), "upstream_error"),
        (begins(frame({"error": {"message": "Broken.", "code": 429}})), "rate_limit_exceeded"),
        (stops_within, "upstream_timeout"),
    ],
)
async def test_error_after_the_first_byte_is_one_frame_and_the_end(
    script: Script, code: str, tmp_path: Path, upstream: ScriptedUpstream
) -> None:
    upstream.scripts = [script, *3 * [streams(*text_frames("no"))]]
    config = make_config(
        entry("one", upstream.url, fallbacks=["two"], request_timeout=1), entry("two", upstream.url), streaming=True
    )
    async with serving(tmp_path, config, RetryPolicy()) as (_, client):
        answer = await client.post(PATH, json=ask(model="one", stream=True))

    *before, last = (frame for frame in frames_of(answer) if frame != "[DONE]")
    assert 200 == answer.status_code
    assert code == error_in(last.encode())["code"]
    assert ["", "Hel"] == [orjson.loads(data)["choices"][0]["delta"]["content"] for data in before]
    assert 1 == len(upstream.asked)


async def test_bug_after_the_first_byte_is_one_frame_too(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    async def ask_badly(target: Any, request: Any, take: Any) -> None:
        await trusted(target, request, take)
        raise ZeroDivisionError("the secret inside")

    upstream.scripts = [streams(*text_frames("Hello!"))]
    async with serving(tmp_path, make_config(entry("one", upstream.url), streaming=True)) as (server, client):
        trusted = server.gateway.upstream.ask
        server.gateway.upstream.ask = ask_badly
        answer = await client.post(PATH, json=ask(stream=True), headers={"x-request-id": "mine-9"})

    error = error_in([frame for frame in frames_of(answer) if frame != "[DONE]"][-1].encode())
    assert "internal_error" == error["code"]
    assert "mine-9" in error["message"]
    assert "secret" not in answer.text


# The state cannot be written


@contextmanager
def home_away(folder: Path) -> Iterator[None]:
    """Meanwhile the folder of the state is not where it was."""
    home = folder / ".picoclaw"
    away = home.rename(folder / "away")
    try:
        yield
    finally:
        away.rename(home)


def two_models(upstream: ScriptedUpstream, **api: Any) -> dict[str, Any]:
    return make_config(entry("one", upstream.url), entry("two", upstream.url), **api)


async def test_state_that_cannot_be_written_is_unavailable(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    async with serving(tmp_path, two_models(upstream)) as (server, client):
        with home_away(tmp_path):
            answer = await client.post(PATH, json=ask(model="two"))
            assert server.gateway.sessions.selected("global") is None
            assert "one" == (await client.post(PATH, json=ask())).json()["model"]

        assert str(tmp_path) not in check_error(answer, 503, "state_unavailable", type="server_error")
        assert 200 == (await client.post(PATH, json=ask(model="two"))).status_code
        assert "two" == server.gateway.sessions.selected("global")


async def test_earlier_selection_stands_where_a_new_one_cannot_be_written(
    tmp_path: Path, upstream: ScriptedUpstream
) -> None:
    async with serving(tmp_path, two_models(upstream)) as (server, client):
        await client.post(PATH, json=ask(model="two"))
        with home_away(tmp_path):
            assert 503 == (await client.post(PATH, json=ask(model="one"))).status_code
            assert "two" == server.gateway.sessions.selected("global")
            assert 200 == (await client.post(PATH, json=ask(model="two"))).status_code


async def test_upstream_is_let_go_when_the_state_cannot_be_written(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    upstream.scripts = [hangs]
    async with serving(tmp_path, two_models(upstream)) as (_, client):
        with home_away(tmp_path), trio.fail_after(WAIT):
            answer = await client.post(PATH, json=ask(model="two"))
            await upstream.wait_all_gone()
    check_error(answer, 503, "state_unavailable", type="server_error")


async def test_turn_whose_selection_cannot_be_written_is_not_remembered(
    tmp_path: Path, upstream: ScriptedUpstream
) -> None:
    """The model has answered long before the disk has refused."""
    home = tmp_path / ".picoclaw"
    async with serving(tmp_path, two_models(upstream, history="session")) as (server, client):
        with (home / "openai_sessions.lock").open("w") as held:
            fcntl.flock(held, fcntl.LOCK_EX)
            answer = await client.post(PATH, json=ask("First", model="two"))

        check_error(answer, 503, "state_unavailable", type="server_error")
        assert () == await server.gateway.memory.show("openai:default")
        assert 200 == (await client.post(PATH, json=ask("Second", model="two"))).status_code
    assert ["Second"] == [message["content"] for message in upstream.asked[-1].body["messages"]]


async def test_full_disk_is_told_and_got_over(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    """A real process whose files may not grow."""
    async with open_server(tmp_path, two_models(upstream)) as server, open_client(server.url) as client:
        pid = server.process.pid
        limits = resource.prlimit(pid, resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
        answer = await client.post(PATH, json=ask(model="two"))
        assert "one" == (await client.post(PATH, json=ask())).json()["model"]
        ready = await client.get("/ready")
        assert 200 == (await client.get("/health")).status_code
        resource.prlimit(pid, resource.RLIMIT_FSIZE, limits)
        assert 200 == (await client.post(PATH, json=ask(model="two"))).status_code
        assert 200 == (await client.get("/ready")).status_code

    check_error(answer, 503, "state_unavailable", type="server_error")
    check_error(ready, 503, "state_unavailable", type="server_error")
    assert b"cannot be written" in server.log


# The client went away


@asynccontextmanager
async def leaving(folder: Path, config: dict[str, Any]) -> AsyncIterator[tuple[Here, Client, Lines]]:
    """A client that leaves at the end of the block; then the gateway has a moment to notice, and to write one line."""
    with logged() as lines:
        async with serving(folder, config, RetryPolicy()) as (server, _):
            async with connect(port_of(server)) as client:
                yield server, client, lines
            await wait_until(lambda: any(line.get("status") == 499 for line in lines))
            await wait_until(lambda: 0 == server.gateway.admission.statistics().running)
    last = [line for line in lines if line["event"] != "attempt failed"]
    assert [("client went away", "info", "POST", PATH)] == [
        (line["event"], line["log_level"], line["method"], line["path"]) for line in last
    ]


async def test_client_may_leave_while_it_sends_its_body(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    async with leaving(tmp_path, two_models(upstream)) as (_, client, _):
        await client.send(REQUEST[:-1])
    assert [] == upstream.asked


@pytest.mark.parametrize("body", [BODY, orjson.dumps(ask())], ids=["names a model", "names none"])
async def test_upstream_is_let_go_when_the_client_leaves(
    body: bytes, tmp_path: Path, upstream: ScriptedUpstream
) -> None:
    upstream.scripts = [hangs]
    async with leaving(tmp_path, two_models(upstream)) as (_, client, _):
        await client.send(head(length=len(body)) + body)
        await upstream.wait_asked()
    with trio.fail_after(MOMENT):
        await upstream.wait_all_gone()


async def test_upstream_is_let_go_when_the_client_resets(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    upstream.scripts = [hangs]
    async with leaving(tmp_path, two_models(upstream)) as (_, client, _):
        assert isinstance(client.stream, trio.SocketStream)
        client.stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        await client.send(REQUEST)
        await upstream.wait_asked()
    with trio.fail_after(MOMENT):
        await upstream.wait_all_gone()


@pytest.mark.parametrize("after", [b"", b"\r\n", REQUEST])
async def test_upstream_is_let_go_when_the_client_half_closes(
    after: bytes, tmp_path: Path, upstream: ScriptedUpstream
) -> None:
    """To whoever says that nothing more will come, nothing can be told from one who has left."""
    upstream.scripts = [hangs]
    async with leaving(tmp_path, two_models(upstream)) as (_, client, _):
        await client.send(REQUEST + after)
        await upstream.wait_asked()
        assert isinstance(client.stream, trio.SocketStream)
        await client.stream.send_eof()
        assert b"" == await client.read_to_the_end()
    with trio.fail_after(MOMENT):
        await upstream.wait_all_gone()


async def test_upstream_is_let_go_within_its_answer(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    upstream.scripts = [hangs_within]
    async with leaving(tmp_path, two_models(upstream)) as (_, client, _):
        await client.send(REQUEST)
        await upstream.wait_asked()
    with trio.fail_after(MOMENT):
        await upstream.wait_all_gone()


async def test_client_may_leave_between_two_attempts(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    upstream.scripts = [answers(500, b"", retry_after="5")]
    async with leaving(tmp_path, two_models(upstream)) as (_, client, lines):
        await client.send(REQUEST)
        await wait_until(lambda: any(line["event"] == "attempt failed" for line in lines))
    assert 1 == len(upstream.asked)


async def test_client_may_leave_the_line(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    upstream.scripts = [hangs]
    with logged() as lines:
        async with (
            serving(tmp_path, two_models(upstream, max_turns=1)) as (server, client),
            trio.open_nursery() as nursery,
        ):
            nursery.start_soon(lambda: client.post(PATH, json=ask()))
            await upstream.wait_asked()
            async with connect(port_of(server)) as second:
                await second.send(REQUEST)
                await wait_until(lambda: 1 == server.gateway.admission.statistics().waiting)
            await wait_until(lambda: 0 == server.gateway.admission.statistics().waiting)
            assert 1 == server.gateway.admission.statistics().running
            await wait_until(lambda: 1 == len(lines))
            assert server.gateway.sessions.selected("global") is None
            nursery.cancel_scope.cancel()
    assert {("client went away", 499)} == {(line["event"], line["status"]) for line in lines}
    assert 1 == len(upstream.asked)


async def test_client_that_is_cut_off_while_it_is_told_of_a_failure_is_counted(
    tmp_path: Path, upstream: ScriptedUpstream
) -> None:
    async def breaks_off(exchange: Exchange) -> None:
        await exchange.begin_events()
        await exchange.write(frame(chunk({"content": "a"})))
        await exchange.cut()

    upstream.scripts = [breaks_off]
    messages = [{"type": "http.request", "body": orjson.dumps(ask(stream=True)), "more_body": False}]

    async def receive() -> Any:
        if not messages:
            await trio.sleep_forever()
        return messages.pop()

    async def send(message: Any) -> None:
        if b'"error"' in message.get("body", b""):
            nursery.cancel_scope.cancel()
            await trio.sleep_forever()

    headers = [(b"authorization", f"Bearer {TOKEN}".encode())]
    scope: Any = {"type": "http", "method": "POST", "path": PATH, "headers": headers, "client": None}
    async with serving(tmp_path, two_models(upstream, streaming=True)) as (server, _):
        with logged() as lines:
            async with trio.open_nursery() as nursery:
                await server.app.asgi_http_class(server.app, scope)(receive, send)
    assert [499] == [line["status"] for line in lines if "status" in line]


async def test_client_may_leave_while_the_model_goes_to_disk(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    async with leaving(tmp_path, two_models(upstream)) as (_, client, _):
        with (tmp_path / ".picoclaw" / "openai_sessions.lock").open("r+") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            await client.send(REQUEST)
            await upstream.wait_asked()
            await client.stream.aclose()


async def test_upstream_is_let_go_when_the_client_leaves_a_stream(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    upstream.scripts = [stops_within]
    body = orjson.dumps(ask(model="one", stream=True))
    async with leaving(tmp_path, two_models(upstream, streaming=True)) as (_, client, _):
        await client.send(head(length=len(body)) + body)
        await client.read_until(b"Hel")
    with trio.fail_after(MOMENT):
        await upstream.wait_all_gone()


async def test_upstream_is_let_go_before_a_streams_first_byte(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    upstream.scripts = [hangs]
    body = orjson.dumps(ask(model="one", stream=True))
    async with leaving(tmp_path, two_models(upstream, streaming=True)) as (_, client, _):
        await client.send(head(length=len(body)) + body)
        await upstream.wait_asked()
    with trio.fail_after(MOMENT):
        await upstream.wait_all_gone()


async def test_client_that_reads_no_more_of_a_stream_and_leaves_is_noticed(
    tmp_path: Path, upstream: ScriptedUpstream
) -> None:
    """Its side of the connection is full when it leaves."""

    async def floods(exchange: Exchange) -> None:
        await exchange.begin_events()
        while True:
            await exchange.write(frame(chunk({"content": 50_000 * "x"})))

    upstream.scripts = [floods]
    body = orjson.dumps(ask(model="one", stream=True))
    async with leaving(tmp_path, two_models(upstream, streaming=True)) as (_, client, _):
        await client.send(head(length=len(body)) + body)
        await client.read_until(b"xxx")
    with trio.fail_after(MOMENT):
        await wait_until(lambda: 0 == upstream.open_connections)


async def test_upstream_is_let_go_when_the_client_gives_up_a_request_of_http_2(
    tmp_path: Path, upstream: ScriptedUpstream
) -> None:
    upstream.scripts = [hangs]
    async with serving(tmp_path, two_models(upstream)) as (server, _), connect2(port_of(server)) as client:
        fields = (":method", "POST"), (":path", PATH), ("authorization", f"Bearer {TOKEN}")
        stream_id = client.open_stream(*fields, end=False)
        client.connection.send_data(stream_id, BODY, end_stream=True)
        await client.flush()
        asked = await upstream.wait_asked()
        client.connection.reset_stream(stream_id)
        await client.flush()
        with trio.fail_after(MOMENT):
            await asked.gone.wait()
        await wait_until(lambda: 0 == server.gateway.admission.statistics().running)


async def test_upstream_is_let_go_when_the_client_says_goodbye_over_http_2(
    tmp_path: Path, upstream: ScriptedUpstream
) -> None:
    upstream.scripts = [hangs]
    async with serving(tmp_path, two_models(upstream)) as (server, _), connect2(port_of(server)) as client:
        fields = (":method", "POST"), (":path", PATH), ("authorization", f"Bearer {TOKEN}")
        stream_id = client.open_stream(*fields, end=False)
        client.connection.send_data(stream_id, BODY, end_stream=True)
        await client.flush()
        asked = await upstream.wait_asked()
        client.connection.close_connection()
        await client.flush()
        with trio.fail_after(MOMENT):
            await asked.gone.wait()
            await Client(client.stream).read_to_the_end()
        await wait_until(lambda: 0 == server.gateway.admission.statistics().running)


# Shutting down


async def test_what_runs_is_let_finish_and_what_waits_or_comes_is_sent_away(
    tmp_path: Path, upstream: ScriptedUpstream
) -> None:
    go_on = trio.Event()

    async def says_later(exchange: Exchange) -> None:
        await go_on.wait()
        await says("later")(exchange)

    found: dict[str, httpx2.Response] = {}
    upstream.scripts = [says_later]
    config = two_models(upstream, max_turns=1)
    async with serving(tmp_path, config) as (server, client), trio.open_nursery() as nursery:

        async def run(name: str) -> None:
            found[name] = await client.post(PATH, json=ask())

        nursery.start_soon(run, "runs")
        await upstream.wait_asked()
        nursery.start_soon(run, "waits")
        await wait_until(lambda: 1 == server.gateway.admission.statistics().waiting)
        server.gateway.admission.drain()
        await run("comes")
        await wait_until(lambda: "waits" in found)
        go_on.set()

    assert 200 == found["runs"].status_code
    for name in ("waits", "comes"):
        check_error(found[name], 503, "shutting_down", type="server_error", retry_after="1")
    assert 1 == len(upstream.asked)


# Several targets


async def test_entries_of_one_name_are_asked_one_request_each_in_turn(
    tmp_path: Path, upstream: ScriptedUpstream
) -> None:
    async with open_upstream() as second, open_upstream() as third:
        servers = [upstream, second, third]
        config = make_config(*(entry("one", server.url) for server in servers))
        async with serving(tmp_path, config) as (_, client):
            for _ in range(6):
                assert "one" == (await client.post(PATH, json=ask())).json()["model"]
                assert 1 >= max(len(server.asked) for server in servers) - min(len(server.asked) for server in servers)
        assert [2, 2, 2] == [len(server.asked) for server in servers]


async def test_keys_of_one_entry_are_used_in_turn(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    row = {**entry("one", upstream.url), "api_key": None, "api_keys": ["k-one", "k-two"]}
    async with serving(tmp_path, make_config(row)) as (_, client):
        for _ in range(4):
            await client.post(PATH, json=ask())
    assert ["Bearer k-one", "Bearer k-two", "Bearer k-one", "Bearer k-two"] == [
        asked.header("authorization") for asked in upstream.asked
    ]


async def test_key_that_is_refused_is_followed_by_the_next(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    upstream.scripts = [answers(401, {}), says()]
    row = {**entry("one", upstream.url), "api_key": None, "api_keys": ["k-one", "k-two"]}
    async with serving(tmp_path, make_config(row)) as (_, client):
        assert 200 == (await client.post(PATH, json=ask())).status_code
    assert ["Bearer k-one", "Bearer k-two"] == [asked.header("authorization") for asked in upstream.asked]


async def test_fallbacks_are_asked_in_their_order(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    upstream.scripts = [*3 * [answers(404, {})], says()]
    config = make_config(
        entry("one", upstream.url, fallbacks=["four"]),
        *(entry(name, upstream.url) for name in ("two", "three", "four")),
    )
    config["agents"] = {
        "defaults": {"model_fallbacks": ["two"]},
        "list": [{"id": "main", "model": {"primary": "one", "fallbacks": ["three"]}}],
    }
    async with serving(tmp_path, config) as (_, client):
        answer = await client.post(PATH, json=ask())
    assert ["one-up", "four-up", "three-up", "two-up"] == [asked.body["model"] for asked in upstream.asked]
    assert "two" == answer.json()["model"]


async def test_target_that_failed_is_passed_over_by_the_next_requests_which_the_others_share(
    tmp_path: Path, upstream: ScriptedUpstream
) -> None:
    upstream.scripts = [answers(401, {})]
    async with open_upstream() as second, open_upstream() as third:
        config = make_config(*(entry("one", server.url) for server in (upstream, second, third)))
        async with serving(tmp_path, config) as (_, client):
            for number in range(1, 7):
                assert 200 == (await client.post(PATH, json=ask())).status_code
                assert 1 >= abs(len(second.asked) - len(third.asked))
                assert number == len(second.asked) + len(third.asked)
    assert 1 == len(upstream.asked)


async def test_entry_whose_rpm_is_used_up_is_passed_over_without_a_wait(
    tmp_path: Path, upstream: ScriptedUpstream
) -> None:
    config = make_config(entry("one", upstream.url, rpm=1, fallbacks=["two"]), entry("two", upstream.url, rpm=1))
    async with serving(tmp_path, config) as (_, client):
        found = [await client.post(PATH, json=ask(model="one")) for _ in range(3)]
    assert ["one", "two"] == [answer.json()["model"] for answer in found[:2]]
    assert 2 == len(upstream.asked)
    told = check_error(found[2], 429, "rate_limit_exceeded", type="rate_limit_error", retry_after="30")
    assert "is rate-limited" in told


async def test_last_failure_is_the_answer(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    upstream.scripts = [answers(500, {}), answers(404, {})]
    config = make_config(entry("one", upstream.url, fallbacks=["two"]), entry("two", upstream.url))
    async with serving(tmp_path, config) as (_, client):
        answer = await client.post(PATH, json=ask(model="one"))
    check_error(answer, 502, "upstream_model", type="server_error", x_should_retry="false")
