"""The checks of the endpoint, in their order, over real HTTP."""

from __future__ import annotations

import itertools
import queue
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import attrs
import httpx2
import orjson
import pytest
import trio
from envelopes import check_error, error_in
from fakes import ScriptedUpstream, answers, hangs, says
from harness import TOKEN, Here, ask, entry, make_config, open_client, open_server, serve_here
from host_client import Answer, connect, connect2
from serving import PATH, head, logged, port_of, serving, wait_until

from picoclaw_trio.admission import AdmissionStatistics
from picoclaw_trio.config import OpenAIApiConfig
from picoclaw_trio.memory import FOLDER_NAME
from picoclaw_trio.views import MAX_QUICK_BYTES

MEBIBYTE = 1024 * 1024


BOUNDS: dict[str, Any] = {"max_body_bytes": 4096, "body_timeout": 10, "wrong_tokens_per_minute": 0}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Here]:
    """Serves the alias "one", which echoes, from a thread, with a small bound on bodies."""
    config = make_config({"model_name": "one", "model": "echo/echo"}, **BOUNDS)
    found: queue.SimpleQueue[tuple[Here, trio.Event, trio.lowlevel.TrioToken]] = queue.SimpleQueue()

    async def serve() -> None:
        async with serve_here(tmp_path_factory.mktemp("home"), config) as here:
            stop = trio.Event()
            found.put((here, stop, trio.lowlevel.current_trio_token()))
            await stop.wait()

    thread = threading.Thread(target=trio.run, args=(serve,))
    thread.start()
    here, stop, token = found.get(timeout=30)
    yield here
    token.run_sync_soon(stop.set)
    thread.join()


@pytest.fixture
async def hasty(tmp_path: Path) -> AsyncIterator[Here]:
    """Serves with little patience for bodies."""
    async with serve_here(tmp_path, make_config(body_timeout=0.2)) as server:
        yield server


@pytest.fixture
async def client(server: Here) -> AsyncIterator[httpx2.AsyncClient]:
    async with open_client(server.url) as client:
        yield client


@pytest.fixture
async def asking(tmp_path: Path, upstream: ScriptedUpstream) -> AsyncIterator[httpx2.AsyncClient]:
    """A client of a server of its own, whose alias "one" leads to the scripted upstream."""
    async with serving(tmp_path, make_config(entry("one", upstream.url))) as (_, client):
        yield client


async def raw(server: Here, data: bytes) -> Answer:
    """The answer to bytes on a connection of their own."""
    async with connect(port_of(server)) as connection:
        return await connection.ask(data)


async def test_target_that_names_no_server_is_an_unknown_path(server: Here) -> None:
    check_error(await raw(server, b"GET http://[ HTTP/1.1\r\nHost: x\r\n\r\n"), 404, "not_found")


# The order of the checks


@attrs.define
class Sent:
    """A request that is put together from what is wrong with it."""

    method: str = "POST"
    token: str | None = TOKEN
    fields: dict[str, Any] = attrs.field(factory=lambda: ask(model="one"))
    padding: int = 0
    withheld: int = 0

    def data(self) -> bytes:
        body = orjson.dumps(self.fields) + b" " * self.padding
        token = {} if self.token is None else {"Authorization": f"Bearer {self.token}"}
        lines = [f"{self.method} {PATH} HTTP/1.1", "Host: x", f"Content-Length: {len(body)}"]
        lines += [f"{name}: {value}" for name, value in token.items()]
        return "\r\n".join([*lines, "", ""]).encode() + body[: len(body) - self.withheld]


def spoil(**changes: Any) -> Callable[[Sent], None]:
    """Sets attributes of the request, or fields of its body."""

    def change(sent: Sent) -> None:
        for name, value in changes.items():
            if hasattr(sent, name):
                setattr(sent, name, value)
            else:
                sent.fields[name] = value

    return change


def nothing(sent: Sent) -> None:
    """What is wrong is not the request."""


# [(what is wrong, how it gets into a request, the answer)], in the order of the checks
CHECKS: list[tuple[str, Callable[[Sent], None], tuple[int, str]]] = [
    ("disabled", nothing, (404, "not_found")),
    ("method", spoil(method="PUT"), (405, "method_not_allowed")),
    ("token", spoil(token="sk-other"), (401, "invalid_api_key")),
    ("size", spoil(padding=5000), (413, "request_too_large")),
    ("slow", spoil(withheld=1), (408, "request_timeout")),
    ("type", spoil(temperature="hot"), (400, "invalid_type")),
    ("stream", spoil(stream=True), (501, "streaming_disabled")),
    ("messages", spoil(messages=[]), (400, "missing_messages")),
    ("value", spoil(n=2), (400, "unsupported_value")),
    ("model", spoil(model="nobody"), (404, "model_not_found")),
    ("room", nothing, (503, "overloaded")),
    ("turn", nothing, (502, "upstream_error")),
]
NAMES = [name for name, _, _ in CHECKS]
PAIRS = list(itertools.pairwise(NAMES))


async def answer_to(wrong: set[str], folder: Path, upstream: ScriptedUpstream) -> tuple[int, str]:
    """Status and code of the answer to a request in which all of *wrong* is wrong."""
    sent = Sent()
    for name, change, _ in CHECKS:
        if name in wrong:
            change(sent)
    config = make_config(
        entry("one", upstream.url),
        enabled="disabled" not in wrong,
        max_body_bytes=4096,
        body_timeout=0.1 if "slow" in wrong else 30,
        max_turns=1,
        max_waiting=0,
    )
    occupied = "room" in wrong and "disabled" not in wrong
    upstream.scripts = [hangs] if occupied else [answers(200, b"<html>")]
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(serve_here(folder, config))
        if occupied:
            occupant = await stack.enter_async_context(connect(port_of(server)))
            await occupant.send(Sent().data())
            await upstream.wait_asked()
        answer = await raw(server, sent.data())
    assert int(occupied or wrong == {"turn"}) == len(upstream.asked)
    return answer.status, error_in(answer.body)["code"]


@pytest.mark.parametrize("name", NAMES)
async def test_each_check_alone_has_its_answer(name: str, tmp_path: Path, upstream: ScriptedUpstream) -> None:
    assert CHECKS[NAMES.index(name)][2] == await answer_to({name}, tmp_path, upstream)


@pytest.mark.parametrize(("earlier", "later"), PAIRS)
async def test_earlier_check_answers(earlier: str, later: str, tmp_path: Path, upstream: ScriptedUpstream) -> None:
    assert CHECKS[NAMES.index(earlier)][2] == await answer_to({earlier, later}, tmp_path, upstream)


@pytest.mark.parametrize("first", NAMES)
async def test_first_check_answers_when_all_later_ones_fail_too(
    first: str, tmp_path: Path, upstream: ScriptedUpstream
) -> None:
    wrong = set(NAMES[NAMES.index(first) :])
    assert CHECKS[NAMES.index(first)][2] == await answer_to(wrong, tmp_path, upstream)


# 1. Enabled


@pytest.mark.parametrize("path", [PATH, "/v1/models", "/v1/models/one", "/v1/nothing"])
async def test_disabled_api_is_not_found_whatever_is_asked(path: str, tmp_path: Path) -> None:
    async with serve_here(tmp_path, make_config(enabled=False)) as server, open_client(server.url) as client:
        for method in ("GET", "POST", "DELETE", "OPTIONS"):
            check_error(await client.request(method, path, content=b"nonsense"), 404, "not_found")


def test_endpoint_is_off_by_default() -> None:
    assert not OpenAIApiConfig().enabled


async def test_server_lives_while_the_endpoint_is_off(tmp_path: Path) -> None:
    async with serve_here(tmp_path, make_config(enabled=False)) as server, open_client(server.url) as client:
        assert [200, 200] == [(await client.get(path)).status_code for path in ("/health", "/ready")]


# 2. Method


@pytest.mark.parametrize("method", ["GET", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "BREW"])
async def test_method_other_than_post_is_not_allowed(method: str, client: httpx2.AsyncClient) -> None:
    answer = await client.request(method, PATH, json=ask())

    check_error(answer, 405, "method_not_allowed", allow="POST")


async def test_head_is_not_allowed_and_has_no_body(client: httpx2.AsyncClient) -> None:
    answer = await client.head(PATH)

    assert 405 == answer.status_code
    assert "POST" == answer.headers["allow"]
    assert answer.headers["x-request-id"]
    assert b"" == answer.content


# 3. Token

GOOD = [
    f"Bearer {TOKEN}",
    f"bearer {TOKEN}",
    f"BEARER {TOKEN}",
    f"Bearer  {TOKEN}",
    f"Bearer {TOKEN}  ",
]
BAD = [
    "",
    "Bearer",
    "Bearer ",
    TOKEN,
    f"Basic {TOKEN}",
    f"Token {TOKEN}",
    f"Bearer{TOKEN}",
    f"Bearer {TOKEN}x",
    f"Bearer {TOKEN[:-1]}",
    f"Bearer {TOKEN.upper()}",
    f"Bearer {TOKEN} {TOKEN}",
    f"Bearer {TOKEN},{TOKEN}",
    f'Bearer "{TOKEN}"',
    f"Bearer {TOKEN}\xe9",
    "Bearer " + 20_000 * "x",
]


@pytest.mark.parametrize("authorization", GOOD)
async def test_scheme_is_case_insensitive(authorization: str, server: Here) -> None:
    answer = await raw(server, head("GET", "/v1/models", Authorization=authorization))

    assert 200 == answer.status


@pytest.mark.parametrize("authorization", BAD, ids=range(len(BAD)))
async def test_everything_but_a_listed_token_is_refused(authorization: str, server: Here) -> None:
    for path in (PATH, "/v1/models", "/v1/models/one"):
        answer = await raw(server, head("POST" if path == PATH else "GET", path, Authorization=authorization))
        check_error(answer, 401, "invalid_api_key", www_authenticate="bearer")


async def test_request_without_authorization_is_refused(server: Here) -> None:
    async with httpx2.AsyncClient(base_url=server.url, trust_env=False) as client:
        answer = await client.post(PATH, json=ask())

    check_error(answer, 401, "invalid_api_key", www_authenticate="Bearer")


async def test_refusal_never_says_what_was_wrong(server: Here) -> None:
    messages = set()
    for authorization in BAD:
        answer = await raw(server, head(Authorization=authorization))
        messages.add(check_error(answer, 401, "invalid_api_key"))

    assert 1 == len(messages)


async def test_every_listed_token_lets_in(tmp_path: Path) -> None:
    tokens = ["a", "sk-b", 300 * "c"]
    async with serve_here(tmp_path, make_config(bearer_tokens=tokens)) as server:
        for token in tokens:
            assert 200 == (await raw(server, head("GET", "/v1/models", Authorization=f"Bearer {token}"))).status
        check_error(await raw(server, head("GET", "/v1/models", Authorization="Bearer b")), 401, "invalid_api_key")


@pytest.mark.parametrize("authorization", ["Bearer", "Bearer ", "Bearer x", f"Bearer {TOKEN}"])
async def test_with_no_token_listed_nobody_is_let_in(authorization: str, tmp_path: Path) -> None:
    async with serve_here(tmp_path, make_config(bearer_tokens=[])) as server:
        answer = await raw(server, head(Authorization=authorization))

    check_error(answer, 401, "invalid_api_key", www_authenticate="bearer")


async def test_stranger_is_refused_before_he_has_sent_his_body(server: Here) -> None:
    answer = await raw(server, head(length=1000, Authorization="Bearer no"))

    check_error(answer, 401, "invalid_api_key", www_authenticate="bearer")


async def test_stranger_is_refused_before_he_is_asked_for_his_body(server: Here) -> None:
    answer = await raw(server, head(length=1000, Authorization="Bearer no", Expect="100-continue"))

    check_error(answer, 401, "invalid_api_key", www_authenticate="bearer")


# 4. Size of the body


async def test_large_body_is_decoded_in_a_thread_while_others_are_answered(hasty: Here) -> None:
    """That thread is busy here until somebody else has got an answer."""
    given: list[int] = []
    async with open_client(hasty.url) as client, open_client(hasty.url) as other, trio.open_nursery() as nursery:

        async def post(text: str) -> None:
            given.append((await client.post(PATH, json=ask(text))).status_code)

        async with hasty.app.decoding:
            nursery.start_soon(post, "x" * MAX_QUICK_BYTES)
            await wait_until(lambda: 1 == hasty.app.decoding.statistics().tasks_waiting)
            assert 200 == (await other.post(PATH, json=ask())).status_code
            assert [] == given
    assert [200] == given


async def test_large_body_is_refused_with_its_reason(hasty: Here) -> None:
    async with open_client(hasty.url) as client:
        answer = await client.post(PATH, content=b" " * MAX_QUICK_BYTES + b"{")
    check_error(answer, 400, "invalid_json")


async def test_body_announced_too_large_is_refused_before_it_is_sent(server: Here) -> None:
    answer = await raw(server, head(length=4097))

    check_error(answer, 413, "request_too_large")


async def test_body_announced_too_large_is_not_asked_for(server: Here) -> None:
    answer = await raw(server, head(length=4097, Expect="100-continue"))

    check_error(answer, 413, "request_too_large")


async def test_chunked_body_is_refused_as_soon_as_it_is_too_large(server: Here) -> None:
    piece = b"800\r\n" + 0x800 * b" " + b"\r\n"
    async with connect(port_of(server)) as connection:
        await connection.send(head(Transfer_Encoding="chunked") + 3 * piece)
        answer = await connection.read_answer()

    check_error(answer, 413, "request_too_large")


async def test_body_without_end_does_not_keep_the_answer_from_its_client(server: Here) -> None:
    """Who goes on sending must not lose the answer to a reset."""
    async with connect(port_of(server)) as connection, trio.open_nursery() as nursery:

        async def flood() -> None:
            try:
                while True:
                    await connection.send(b"1000\r\n" + 0x1000 * b" " + b"\r\n")
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                pass

        await connection.send(head(Transfer_Encoding="chunked"))
        nursery.start_soon(flood)
        answer = await connection.read_answer()
        nursery.cancel_scope.cancel()

    check_error(answer, 413, "request_too_large")


@pytest.mark.parametrize("chunked", [False, True])
async def test_body_of_exactly_the_limit_is_accepted(chunked: bool, client: httpx2.AsyncClient) -> None:
    body = orjson.dumps(ask(model="one")).ljust(4096)

    async def pieces() -> AsyncIterator[bytes]:
        yield body[:1000]
        yield body[1000:]

    answer = await client.post(PATH, content=pieces() if chunked else body)

    assert 200 == answer.status_code


async def test_twenty_mebibytes_are_accepted_by_default_and_not_a_byte_more(tmp_path: Path) -> None:
    body = orjson.dumps(ask()).ljust(20 * MEBIBYTE)
    async with serve_here(tmp_path, make_config()) as server, open_client(server.url) as client:
        assert 200 == (await client.post(PATH, content=body)).status_code
        check_error(await raw(server, head(length=len(body) + 1)), 413, "request_too_large")


# 5. Time of the body


@pytest.mark.parametrize("sent", [b"", b'{"messages":'])
async def test_body_that_does_not_arrive_in_time_is_refused(sent: bytes, hasty: Here) -> None:
    answer = await raw(hasty, head(length=1000) + sent)

    check_error(answer, 408, "request_timeout")


async def test_time_of_a_body_counts_as_a_whole(hasty: Here) -> None:
    """A byte now and then does not keep a request alive."""
    async with connect(port_of(hasty)) as connection, trio.open_nursery() as nursery:

        async def trickle() -> None:
            while True:
                await connection.send(b" ")
                await trio.sleep(0.05)

        await connection.send(head(length=1000))
        nursery.start_soon(trickle)
        answer = await connection.read_answer()
        nursery.cancel_scope.cancel()

    check_error(answer, 408, "request_timeout")


async def test_body_may_take_its_time_within_the_limit(server: Here) -> None:
    body = orjson.dumps(ask())
    async with connect(port_of(server)) as connection:
        await connection.send(head(length=len(body)))
        for byte in body[:-1]:
            await connection.send(bytes([byte]))
        answer = await connection.ask(body[-1:])

    assert 200 == answer.status


async def test_body_that_does_not_arrive_in_time_is_refused_over_http_2(hasty: Here) -> None:
    async with connect2(port_of(hasty)) as client:
        fields = ((":method", "POST"), (":path", PATH), ("authorization", f"Bearer {TOKEN}"))
        stream_id = client.open_stream(*fields, end=False)
        client.connection.send_data(stream_id, b"{")
        answer = await client.read_answer(stream_id)

    check_error(answer, 408, "request_timeout")


def test_body_has_thirty_seconds_by_default() -> None:
    assert 30.0 == OpenAIApiConfig().body_timeout


# 6. JSON and types

BROKEN = [
    b"",
    b" ",
    b"{",
    b"nonsense",
    b"[]",
    b"null",
    b"1",
    b'"text"',
    b"{}{}",
    b"{},",
    b"{'messages': []}",
    b'{"messages": [],}',
    b'{"temperature": NaN}',
    b'{"temperature": Infinity}',
    b'{"seed": 01}',
    b'{"user": "\xff"}',
    b'{"user": "\\ud800"}',
    b'{"user": "a\nb"}',
    b'{"user": "a", "user": "b"}',
    b'{"messages": [{"role": "user", "role": "system", "content": ""}]}',
    b'{"a":' + 1000 * b"[" + 1000 * b"]" + b"}",
    b'{"a":' + 2000 * b"[",
    "{}".encode("utf-16"),
    b"messages=Hello&model=one",
]


@pytest.mark.parametrize("body", BROKEN, ids=range(len(BROKEN)))
async def test_body_that_is_no_json_object_is_refused(body: bytes, client: httpx2.AsyncClient) -> None:
    check_error(await client.post(PATH, content=body), 400, "invalid_json")


WRONG: list[tuple[str, Any, str]] = [
    ("model", 5, "model"),
    ("model", ["one"], "model"),
    ("user", 5, "user"),
    ("user", {}, "user"),
    ("stream", "true", "stream"),
    ("stream", 1, "stream"),
    ("temperature", "0.5", "temperature"),
    ("temperature", True, "temperature"),
    ("top_p", "1", "top_p"),
    ("max_tokens", "5", "max_tokens"),
    ("max_tokens", 5.5, "max_tokens"),
    ("max_completion_tokens", [], "max_completion_tokens"),
    ("stop", 5, "stop"),
    ("stop", ["a", 5], "stop[1]"),
    ("seed", "5", "seed"),
    ("n", "1", "n"),
    ("response_format", "json", "response_format"),
    ("response_format", {"type": 5}, "response_format.type"),
    ("tools", {}, "tools"),
    ("tools", [{"type": "function"}], "tools[0].function"),
    ("tools", [{"type": "function", "function": {"name": 5}}], "tools[0].function.name"),
    ("tool_choice", 5, "tool_choice"),
    ("parallel_tool_calls", "yes", "parallel_tool_calls"),
    ("reasoning_effort", 5, "reasoning_effort"),
    ("presence_penalty", "5", "presence_penalty"),
    ("frequency_penalty", [], "frequency_penalty"),
    ("logprobs", 1, "logprobs"),
    ("logit_bias", [], "logit_bias"),
    ("logit_bias", {"50256": "x"}, "logit_bias.50256"),
    ("metadata", "x", "metadata"),
    ("stream_options", True, "stream_options"),
    ("stream_options", {"include_usage": "yes"}, "stream_options.include_usage"),
    ("messages", ["Hello"], "messages[0]"),
    ("messages", [{"role": 5, "content": "a"}], "messages[0].role"),
    ("messages", [{"role": "user", "content": "a"}, {"role": "user", "content": 5}], "messages[1].content"),
    ("messages", [{"role": "user", "content": {}}], "messages[0].content"),
    ("messages", [{"role": "assistant", "tool_calls": {}}], "messages[0].tool_calls"),
    ("messages", [{"role": "tool", "content": "a", "tool_call_id": 5}], "messages[0].tool_call_id"),
]


@pytest.mark.parametrize(("field", "value", "param"), WRONG)
async def test_field_of_the_wrong_type_is_named(field: str, value: Any, param: str, client: httpx2.AsyncClient) -> None:
    message = check_error(await client.post(PATH, json=ask(**{field: value})), 400, "invalid_type", param=param)

    assert f"'{param}'" in message


async def test_user_has_at_most_512_characters(client: httpx2.AsyncClient) -> None:
    assert 200 == (await client.post(PATH, json=ask(user=512 * "\U0001f642"))).status_code
    check_error(await client.post(PATH, json=ask(user=513 * "x")), 400, "string_too_long", param="user")


@pytest.mark.parametrize("field", ["model", "user", "stream", "temperature", "tools", "stop", "n", "metadata"])
async def test_null_means_absent(field: str, asking: httpx2.AsyncClient, upstream: ScriptedUpstream) -> None:
    assert 200 == (await asking.post(PATH, json={**ask(), field: None})).status_code
    assert {"model", "messages"} == upstream.asked[0].body.keys()


async def test_unknown_fields_are_ignored(asking: httpx2.AsyncClient, upstream: ScriptedUpstream) -> None:
    answer = await asking.post(PATH, json=ask(chat_id="x", features={"web": True}, keep_alive=5))

    assert 200 == answer.status_code
    assert {"model", "messages"} == upstream.asked[0].body.keys()


@pytest.mark.parametrize("content_type", [None, "", "text/plain", "application/x-www-form-urlencoded", "\xe9", "*/*"])
async def test_content_type_is_not_looked_at(content_type: str | None, server: Here) -> None:
    body = orjson.dumps(ask())
    fields: dict[str, Any] = {} if content_type is None else {"Content_Type": content_type}
    answer = await raw(server, head(length=len(body), **fields) + body)

    assert 200 == answer.status


# 7. Stream


async def test_stream_is_refused_by_default_and_the_message_names_the_switch(client: httpx2.AsyncClient) -> None:
    answer = await client.post(PATH, json=ask(stream=True))

    message = check_error(answer, 501, "streaming_disabled", param="stream", x_should_retry="false")
    assert "gateway.openai_api.streaming" in message


async def test_stream_false_is_served(client: httpx2.AsyncClient) -> None:
    assert 200 == (await client.post(PATH, json=ask(stream=False))).status_code


async def test_stream_is_served_where_it_is_switched_on(tmp_path: Path) -> None:
    async with serve_here(tmp_path, make_config(streaming=True)) as server, open_client(server.url) as client:
        answer = await client.post(PATH, json=ask(stream=True))

    assert 200 == answer.status_code
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.content.endswith(b"data: [DONE]\n\n")


# 8. Messages

CALL = {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": "{}"}}


def part(type: str, **fields: Any) -> dict[str, Any]:
    return {"type": type, **fields}


def user(*parts: Any) -> dict[str, Any]:
    return {"role": "user", "content": list(parts)}


MALFORMED: list[tuple[Any, str]] = [
    (None, "messages"),
    ([], "messages"),
    ({}, "messages"),
    ("Hello", "messages"),
    (5, "messages"),
    ([{}], "messages[0].role"),
    ([{"content": "a"}], "messages[0].role"),
    ([{"role": None, "content": "a"}], "messages[0].role"),
    ([{"role": "narrator", "content": "a"}], "messages[0].role"),
    ([{"role": "User", "content": "a"}], "messages[0].role"),
    ([{"role": "", "content": "a"}], "messages[0].role"),
    ([{"role": "user"}], "messages[0].content"),
    ([{"role": "user", "content": None}], "messages[0].content"),
    ([{"role": "user", "content": []}], "messages[0].content"),
    ([{"role": "system"}], "messages[0].content"),
    ([{"role": "developer"}], "messages[0].content"),
    ([{"role": "assistant"}], "messages[0].content"),
    ([{"role": "assistant", "content": None}], "messages[0].content"),
    ([{"role": "assistant", "tool_calls": []}], "messages[0].content"),
    ([{"role": "assistant", "tool_calls": [{**CALL, "id": None}]}], "messages[0].tool_calls[0].id"),
    ([{"role": "assistant", "tool_calls": ["f"]}], "messages[0].tool_calls[0]"),
    ([{"role": "tool", "content": "a"}], "messages[0].tool_call_id"),
    ([{"role": "tool", "tool_call_id": "call_1"}], "messages[0].content"),
    ([{"role": "function", "content": "a"}], "messages[0].name"),
    ([user("Hello")], "messages[0].content[0]"),
    ([user({})], "messages[0].content[0].type"),
    ([user(part("video", video="x"))], "messages[0].content[0].type"),
    ([user(part("text"))], "messages[0].content[0].text"),
    ([user(part("text", text=5))], "messages[0].content[0].text"),
    ([user(part("text", text="a"), part("image_url"))], "messages[0].content[1].image_url"),
    ([user(part("image_url", image_url="http://x"))], "messages[0].content[0].image_url"),
    ([user(part("image_url", image_url={}))], "messages[0].content[0].image_url.url"),
    ([user(part("input_audio", input_audio="x"))], "messages[0].content[0].input_audio"),
    ([user(part("file"))], "messages[0].content[0].file"),
]


@pytest.mark.parametrize(("messages", "param"), MALFORMED)
async def test_malformed_messages_are_refused_and_the_place_is_named(
    messages: Any, param: str, client: httpx2.AsyncClient
) -> None:
    answer = await client.post(PATH, json={"messages": messages})

    assert (400, param) == (answer.status_code, error_in(answer.content)["param"])


async def test_messages_are_required(client: httpx2.AsyncClient) -> None:
    check_error(await client.post(PATH, json={}), 400, "missing_messages", param="messages")


@pytest.mark.parametrize("role", ["system", "developer", "user", "assistant"])
async def test_every_role_with_content_is_accepted(role: str, client: httpx2.AsyncClient) -> None:
    answer = await client.post(PATH, json={"messages": [{"role": role, "content": ""}]})

    assert 200 == answer.status_code


# 9. What cannot be honoured


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"n": 2}, "n"),
        ({"n": 0}, "n"),
        ({"n": -1}, "n"),
        ({"modalities": ["text", "audio"]}, "modalities"),
        ({"audio": {"voice": "alloy", "format": "wav"}}, "audio"),
        ({"modalities": ["audio"], "audio": {"voice": "alloy"}}, "audio"),
    ],
)
async def test_value_that_cannot_be_honoured_is_refused_and_named(
    fields: dict[str, Any], param: str, client: httpx2.AsyncClient
) -> None:
    check_error(await client.post(PATH, json=ask(**fields)), 400, "unsupported_value", param=param)


@pytest.mark.parametrize("fields", [{"n": 1}, {"modalities": ["text"]}])
async def test_value_that_can_be_honoured_is_accepted(fields: dict[str, Any], client: httpx2.AsyncClient) -> None:
    assert 200 == (await client.post(PATH, json=ask(**fields))).status_code


# 10. Model


@pytest.mark.parametrize("model", ["nobody", "One", "one ", " one", "openai/one", "one-up", "*", "ONE", "o"])
async def test_model_is_compared_exactly_and_the_message_lists_those_that_there_are(
    model: str, tmp_path: Path, upstream: ScriptedUpstream
) -> None:
    config = make_config(entry("one", upstream.url), entry("zwei", upstream.url), entry("trois/è", upstream.url))
    async with serve_here(tmp_path, config) as server, open_client(server.url) as client:
        answer = await client.post(PATH, json=ask(model=model))

    message = check_error(answer, 404, "model_not_found", param="model")
    assert all(name in message for name in ("one", "zwei", "trois/è"))
    assert [] == upstream.asked


async def test_no_model_at_all_is_said_so(tmp_path: Path) -> None:
    config = {**make_config(), "model_list": []}
    async with serve_here(tmp_path, config) as server, open_client(server.url) as client:
        answer = await client.post(PATH, json=ask())

    assert "model_list" in check_error(answer, 404, "model_not_found", param="model")


# 11. Room


async def test_request_beyond_turns_and_waiting_room_is_refused(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    upstream.scripts = [hangs]
    config = make_config(entry("one", upstream.url), max_turns=1, max_waiting=1)
    async with (
        serve_here(tmp_path, config) as server,
        open_client(server.url) as client,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(post, client)
        await upstream.wait_asked()
        nursery.start_soon(post, client)
        await wait_line(server, 1)
        answer = await post(client)
        nursery.cancel_scope.cancel()

    check_error(answer, 503, "overloaded", type="server_error", retry_after="1")


async def post(client: httpx2.AsyncClient) -> httpx2.Response:
    return await client.post(PATH, json=ask())


async def wait_line(server: Here, length: int) -> None:
    """Return when so many requests stand in line."""
    await wait_until(lambda: length == server.gateway.admission.statistics().waiting)


async def test_request_that_waited_too_long_is_refused(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    upstream.scripts = [hangs]
    config = make_config(entry("one", upstream.url), max_turns=1, max_wait=0.1)
    async with (
        serve_here(tmp_path, config) as server,
        open_client(server.url) as client,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(post, client)
        await upstream.wait_asked()
        answer = await post(client)
        nursery.cancel_scope.cancel()

    check_error(answer, 503, "overloaded", type="server_error", retry_after="1")
    assert 1 == len(upstream.asked)


async def test_request_that_waits_is_served_when_a_place_is_free(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    go_on = trio.Event()

    async def says_later(exchange: Any) -> None:
        await go_on.wait()
        await says("later")(exchange)

    upstream.scripts = [says_later]
    found = []
    config = make_config(entry("one", upstream.url), max_turns=1)
    async with (
        serve_here(tmp_path, config) as server,
        open_client(server.url) as client,
        trio.open_nursery() as nursery,
    ):

        async def run() -> None:
            found.append((await post(client)).status_code)

        for _ in range(5):
            nursery.start_soon(run)
        await upstream.wait_asked()
        await wait_line(server, 4)
        assert 1 == len(upstream.asked)
        go_on.set()

    assert 5 * [200] == found


async def test_flood_of_one_token_does_not_starve_another(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    go_on = trio.Event()

    async def says_later(exchange: Any) -> None:
        await go_on.wait()
        await says("later")(exchange)

    upstream.scripts = [says_later]
    tokens = [TOKEN, "sk-other"]
    config = make_config(entry("one", upstream.url), max_turns=1, max_waiting=19, bearer_tokens=tokens)
    answers: list[tuple[str, int]] = []
    async with serve_here(tmp_path, config) as server, trio.open_nursery() as nursery:

        async def run(token: str, text: str) -> None:
            async with open_client(server.url, Authorization=f"Bearer {token}") as client:
                answers.append((text, (await client.post(PATH, json=ask(text))).status_code))

        for number in range(20):
            nursery.start_soon(run, TOKEN, "flood")
            await wait_until(lambda: server.gateway.admission.statistics() == AdmissionStatistics(1, number))  # noqa: B023 - called at once
        nursery.start_soon(run, "sk-other", "other")
        await wait_until(lambda: bool(answers))
        assert [("flood", 503)] == answers
        go_on.set()

    # One was running; of those in line one of each token is next.
    assert "other" in [asked.body["messages"][0]["content"] for asked in upstream.asked[:3]]
    assert [("flood", 200)] * 19 + [("flood", 503), ("other", 200)] == sorted(answers)


async def test_who_watches_over_the_server_never_waits_in_line(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    upstream.scripts = [hangs]
    config = make_config(entry("one", upstream.url), max_turns=1, max_waiting=1, max_wait=60)
    async with (
        serve_here(tmp_path, config) as server,
        open_client(server.url) as client,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(post, client)
        await upstream.wait_asked()
        nursery.start_soon(post, client)
        await wait_line(server, 1)
        with trio.fail_after(10):
            for path in ("/health", "/ready", "/metrics", "/v1/models"):
                assert 200 == (await client.get(path)).status_code
        assert AdmissionStatistics(running=1, waiting=1) == server.gateway.admission.statistics()
        nursery.cancel_scope.cancel()


# 12. The turn


async def test_answer_is_a_whole_chat_completion(asking: httpx2.AsyncClient, upstream: ScriptedUpstream) -> None:
    answer = await asking.post(PATH, json=ask(model="one"))

    assert 200 == answer.status_code
    assert "application/json" == answer.headers["content-type"]
    body = answer.json()
    assert {"id", "object", "created", "model", "choices", "usage"} == body.keys()
    assert body["id"].startswith("chatcmpl-")
    assert isinstance(body["created"], int)
    assert "chat.completion" == body["object"]
    assert "one" == body["model"]
    message = {"role": "assistant", "content": "Hello!", "refusal": None}
    assert [{"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}] == body["choices"]
    assert {"prompt_tokens": 11, "completion_tokens": 7, "total_tokens": 18} == body["usage"]
    assert "one-up" == upstream.asked[0].body["model"]
    assert "Bearer sk-up-secret" == upstream.asked[0].header("authorization")


async def test_request_of_the_document_is_answered(asking: httpx2.AsyncClient, upstream: ScriptedUpstream) -> None:
    messages = [{"role": "system", "content": "You are helpful."}, {"role": "user", "content": "Hello!"}]
    answer = await asking.post(PATH, json={"model": "one", "messages": messages})

    assert "Hello!" == answer.json()["choices"][0]["message"]["content"]
    assert messages == upstream.asked[0].body["messages"]


async def test_every_answer_has_an_id_of_its_own(client: httpx2.AsyncClient) -> None:
    ids = {(await client.post(PATH, json=ask())).json()["id"] for _ in range(3)}

    assert 3 == len(ids)


async def test_clients_token_never_reaches_the_upstream(asking: httpx2.AsyncClient, upstream: ScriptedUpstream) -> None:
    await asking.post(PATH, json=ask())

    assert TOKEN not in repr(upstream.asked[0])


# Request ids

SANE = ["a", "req_1", "0f8fad5b-d9cb-469f-a165-70867728950e", "a.b:c/d+e=f@g", 128 * "x"]
INSANE = ["", "a b", "a\tb", 'a"b', "a;b", "<a>", "\xe9", "a,b", 129 * "x", 5000 * "x"]


@pytest.mark.parametrize("given", SANE)
async def test_sane_request_id_comes_back(given: str, client: httpx2.AsyncClient) -> None:
    for path in (PATH, "/nowhere", "/v1/models", "/health"):
        answer = await client.request("POST" if path == PATH else "GET", path, headers={"x-request-id": given})
        assert given == answer.headers["x-request-id"]


@pytest.mark.parametrize("given", INSANE, ids=range(len(INSANE)))
async def test_insane_request_id_is_replaced(given: str, server: Here) -> None:
    answer = await raw(server, head("GET", "/v1/models", X_Request_Id=given))

    assert 200 == answer.status
    assert answer.headers["x-request-id"].startswith("req_")


async def test_request_without_id_gets_a_fresh_one(client: httpx2.AsyncClient) -> None:
    ids = {(await client.get("/health")).headers["x-request-id"] for _ in range(3)}

    assert 3 == len(ids)
    assert all(given.startswith("req_") for given in ids)


@pytest.mark.parametrize("name", [*NAMES[1:4], *NAMES[5:10]])
async def test_every_refusal_bears_the_request_id(name: str, server: Here) -> None:
    sent = Sent()
    CHECKS[NAMES.index(name)][1](sent)
    request = sent.data().replace(b"Host: x", b"Host: x\r\nX-Request-Id: mine-5", 1)

    answer = await raw(server, request)

    assert CHECKS[NAMES.index(name)][2][0] == answer.status
    assert "mine-5" == answer.headers["x-request-id"]


async def test_stream_bears_the_request_id(tmp_path: Path) -> None:
    async with serve_here(tmp_path, make_config(streaming=True)) as server, open_client(server.url) as client:
        answer = await client.post(PATH, json=ask(stream=True), headers={"x-request-id": "mine-6"})

    assert "mine-6" == answer.headers["x-request-id"]


async def test_every_line_of_the_log_bears_the_request_id(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    upstream.scripts = [answers(404, {})]
    config = make_config(entry("one", upstream.url), gateway={"log_format": "json", "log_level": "debug"})
    async with open_server(tmp_path, config) as server, open_client(server.url) as client:
        answer = await client.post(PATH, json=ask(), headers={"x-request-id": "mine-7"})
        await server.stop()

    assert 502 == answer.status_code
    lines = [orjson.loads(line) for line in bytes(server.log).splitlines() if line.startswith(b"{")]
    rooms = {f"picoclaw_trio.{name}" for name in ("web", "requests", "pipeline", "upstream")}
    told = [(line["event"], line["request_id"]) for line in lines if line["logger"] in rooms]
    assert [("attempt failed", "mine-7"), ("request", "mine-7")] == told


async def test_bug_is_told_by_its_request_id_alone(tmp_path: Path) -> None:
    async def ask_badly(*_: Any) -> None:
        raise ZeroDivisionError("the secret inside")

    async with serving(tmp_path, make_config()) as (server, client):
        server.gateway.upstream.ask = ask_badly
        with logged() as lines:
            answer = await client.post(PATH, json=ask(), headers={"x-request-id": "mine-8"})

    message = check_error(answer, 500, "internal_error", type="server_error", x_request_id="mine-8")
    assert "mine-8" in message
    assert "secret" not in answer.text
    assert "ZeroDivision" not in answer.text
    assert ["internal error"] == [line["event"] for line in lines if line["log_level"] == "error"]


# Paths, methods and framing that nobody serves

NOWHERE = [
    "/",
    "/v1",
    "/v1/",
    "/v1/chat",
    "/v1/completions",
    "/v1/responses",
    "/v1/embeddings",
    "/chat/completions",
    "/v1/chat/completions/more",
    "/V1/CHAT/COMPLETIONS",
    "/v1/../health",
    "/v1%2Fchat%2Fcompletion",
    "/%00",
    "/%ff%fe",
    "/%E2%82%AC",
    "/%",
    "/%zz",
    "/?/v1/models",
    "/;v1",
    "/" + 3000 * "x",
    "/v1/" + 500 * "../",
]


@pytest.mark.parametrize("path", NOWHERE, ids=range(len(NOWHERE)))
async def test_unknown_path_is_not_found_by_any_method(path: str, server: Here) -> None:
    for method in ("GET", "POST", "OPTIONS", "DELETE", "BREW"):
        check_error(await raw(server, head(method, path)), 404, "not_found")


async def test_unknown_path_does_not_ask_for_a_token(server: Here) -> None:
    check_error(await raw(server, b"GET /nowhere HTTP/1.1\r\nHost: x\r\n\r\n"), 404, "not_found")


@pytest.mark.parametrize("path", ["/nowhere", PATH, "/v1/models", "/health", "/v1/models/nobody"])
async def test_head_has_no_body(path: str, server: Here) -> None:
    async with connect(port_of(server)) as connection:
        await connection.send(head("HEAD", path) + head("GET", "/health", Connection="close"))
        seen = await connection.read_to_the_end()

    assert 2 == seen.count(b"HTTP/1.1 ")
    assert seen.endswith(b'{"status":"ok"}')
    assert 1 == seen.count(b"{")


@pytest.mark.parametrize("path", ["/v1/models", "/v1/models/one", "/health", "/ready"])
async def test_what_is_only_read_takes_no_other_method(path: str, client: httpx2.AsyncClient) -> None:
    for method in ("POST", "PUT", "DELETE", "OPTIONS"):
        check_error(await client.request(method, path), 405, "method_not_allowed", allow="GET, HEAD")


@pytest.mark.parametrize("path", ["//v1/models", "/v1//models", "//v1///models", "/v1/models/"])
async def test_doubled_slashes_of_a_joined_address_count_as_one(path: str, server: Here) -> None:
    assert 200 == (await raw(server, head("GET", path))).status


async def test_chat_is_served_behind_doubled_slashes(server: Here) -> None:
    body = orjson.dumps(ask())

    assert 200 == (await raw(server, head(path="/v1//chat/completions", length=len(body)) + body)).status


@pytest.mark.parametrize("target", ["http://127.0.0.1/v1/models", "http://example.org:8080/v1/models?x=1"])
async def test_target_in_absolute_form_is_served(target: str, server: Here) -> None:
    assert 200 == (await raw(server, head("GET", target))).status


@pytest.mark.parametrize("target", ["http://127.0.0.1", "http://x/nowhere", "HTTP://X/%zz"])
async def test_unknown_target_in_absolute_form_is_not_found(target: str, server: Here) -> None:
    check_error(await raw(server, head("GET", target)), 404, "not_found")


@pytest.mark.parametrize("path", [PATH, "/v1/chat", "/nowhere"])
@pytest.mark.parametrize("more", [b"", b"\x81\x85\x00\x00\x00\x00Hello"])
async def test_websocket_is_refused_cleanly(path: str, more: bytes, server: Here) -> None:
    fields: dict[str, Any] = {
        "Connection": "Upgrade",
        "Upgrade": "websocket",
        "Sec_WebSocket_Version": "13",
        "Sec_WebSocket_Key": "dGhlIHNhbXBsZSBub25jZQ==",
    }
    answer = await raw(server, head("GET", path, **fields) + more)

    assert answer.status in (400, 404, 405)
    error_in(answer.body)
    assert 200 == (await raw(server, head("GET", "/v1/models"))).status


BODY = orjson.dumps(ask())
CHUNKED = b"%x\r\n%b\r\n0\r\n\r\n" % (len(BODY), BODY)
AMBIGUOUS = [
    head(length=len(BODY), Transfer_Encoding="chunked") + CHUNKED,
    head(Transfer_Encoding="chunked", Content_Length="0") + CHUNKED,
    head(length=len(BODY), content_length="3") + BODY,
    head(Content_Length=f"{len(BODY)}, 3") + BODY,
    head(Content_Length="+5") + BODY,
    head(Content_Length="-5") + BODY,
    head(Content_Length="0x5") + BODY,
    head(Content_Length=" ") + BODY,
    head(Transfer_Encoding="gzip, chunked") + CHUNKED,
    head(Transfer_Encoding="chunked, gzip") + CHUNKED,
    head(Transfer_Encoding="identity") + BODY,
    head(Transfer_Encoding="xchunked") + CHUNKED,
    head(Transfer_Encoding="chunked").replace(b"HTTP/1.1", b"HTTP/1.0") + CHUNKED,
]


@pytest.mark.parametrize("data", AMBIGUOUS, ids=range(len(AMBIGUOUS)))
async def test_ambiguous_framing_is_refused_and_the_connection_closed(data: bytes, server: Here) -> None:
    async with connect(port_of(server)) as connection:
        answer = await connection.ask(data)
        rest = await connection.read_to_the_end()

    assert answer.status in (400, 501)
    error_in(answer.body)
    assert "close" == answer.headers["connection"]
    assert b"" == rest


GARBAGE = [
    b"\r\n\x00\x01\x02\r\n\r\n",
    b"GET\r\n\r\n",
    b"GET /health\r\n\r\n",
    b"GET  /health HTTP/1.1\r\n\r\n",
    b"GET /health HTTP/1.1\r\n\r\n",
    b"GET /health HTTP/9.9\r\nHost: x\r\n\r\n",
    b"GET /health HTTX/1.1\r\nHost: x\r\n\r\n",
    b"GET health HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET /h\xc3\xa9 HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET /health HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n",
    b"GET /health HTTP/1.1\r\nHost: x\r\nno colon\r\n\r\n",
    b"GET /health HTTP/1.1\r\nHost: x\r\nX : 1\r\n\r\n",
    b"GET /health HTTP/1.1\r\nHost: x\r\nX: a\x00b\r\n\r\n",
    b"CONNECT example.org:443 HTTP/1.1\r\nHost: example.org\r\n\r\n",
    b"G\xcbT /health HTTP/1.1\r\nHost: x\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
    b"SSH-2.0-OpenSSH_9.9\r\n\r\n",
    b"*1\r\n$4\r\nPING\r\n\r\n",
    head(Transfer_Encoding="chunked") + b"zz\r\n",
    head(Transfer_Encoding="chunked") + b"-5\r\nxxxxx\r\n",
    head(X=100_000 * "x"),
]


@pytest.mark.parametrize("data", GARBAGE, ids=range(len(GARBAGE)))
async def test_garbage_is_refused_in_the_shape_of_every_error(data: bytes, server: Here) -> None:
    async with connect(port_of(server)) as connection:
        answer = await connection.ask(data)
        await connection.read_to_the_end()

    assert 400 <= answer.status < 500
    error_in(answer.body)
    assert answer.headers["x-request-id"]
    assert 200 == (await raw(server, head("GET", "/v1/models"))).status


async def test_http_1_0_is_served_and_the_connection_closed(server: Here) -> None:
    async with connect(port_of(server)) as connection:
        answer = await connection.ask(head(length=len(BODY)).replace(b"HTTP/1.1", b"HTTP/1.0") + BODY)
        rest = await connection.read_to_the_end()

    assert 200 == answer.status
    assert b"" == rest


@pytest.mark.parametrize("path", [PATH, "/v1/models", "/nowhere"])
async def test_answer_that_comes_before_the_body_says_that_the_connection_ends(path: str, server: Here) -> None:
    """Else the client would send its next request into a connection that is closed already."""
    answer = await raw(server, head(path=path, length=10, Authorization="Bearer no"))

    assert 400 <= answer.status
    assert "close" == answer.headers["connection"]


async def test_connection_is_kept_after_a_refusal_whose_body_was_read(server: Here) -> None:
    async with connect(port_of(server)) as connection:
        statuses = [(await connection.ask(head(length=2) + b"[]")).status for _ in range(3)]
        statuses.append((await connection.ask(head(length=len(BODY)) + BODY)).status)

    assert [400, 400, 400, 200] == statuses


# HTTP/2


@pytest.mark.parametrize("name", [*NAMES[1:4], *NAMES[5:10]])
async def test_checks_are_the_same_over_http_2(name: str, server: Here) -> None:
    sent = Sent()
    CHECKS[NAMES.index(name)][1](sent)
    answer = await ask2(server, sent)

    assert CHECKS[NAMES.index(name)][2] == (answer.status, error_in(answer.body)["code"])
    assert answer.headers["x-request-id"]


async def test_chat_is_served_over_http_2(server: Here) -> None:
    answer = await ask2(server, Sent())

    assert (200, "one") == (answer.status, orjson.loads(answer.body)["model"])


async def ask2(server: Here, sent: Sent) -> Answer:
    body = orjson.dumps(sent.fields) + b" " * sent.padding
    fields = (
        (":method", sent.method),
        (":path", PATH),
        ("authorization", f"Bearer {sent.token}"),
        ("content-length", str(len(body))),
    )
    async with connect2(port_of(server)) as client:
        stream_id = client.open_stream(*fields, end=False)
        client.connection.send_data(stream_id, body, end_stream=True)
        return await client.read_answer(stream_id)


# Models


async def test_models_are_listed_one_row_an_alias(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    names = ["one", "org/two:latest", "drei ü €", "one"]
    config = make_config(*(entry(name, upstream.url, model="openai/up") for name in names))
    async with serve_here(tmp_path, config) as server, open_client(server.url) as client:
        listed = (await client.get("/v1/models")).json()

    assert {"object", "data"} == listed.keys()
    assert "list" == listed["object"]
    assert names[:3] == [row["id"] for row in listed["data"]]
    for row in listed["data"]:
        assert {"id", "object", "created", "owned_by"} == row.keys()
        assert "model" == row["object"]
        assert isinstance(row["created"], int)
        assert row["owned_by"]


@pytest.mark.parametrize(
    "name", ["one", "org/two:latest", "drei ü €", "a%b", "a?b", "a#b", "..", "\U0001f642", "models"]
)
async def test_model_is_shown_by_its_alias(name: str, tmp_path: Path, upstream: ScriptedUpstream) -> None:
    config = make_config(entry(name, upstream.url, model="openai/up"))
    path = "/v1/models/" + "".join(f"%{byte:02x}" for byte in name.encode())
    async with serve_here(tmp_path, config) as server, open_client(server.url) as client:
        answer = await raw(server, head("GET", path))
        listed = (await client.get("/v1/models")).json()

    assert 200 == answer.status
    assert listed["data"][0] == orjson.loads(answer.body)


@pytest.mark.parametrize("name", ["nobody", "ONE", "one/", "one/two", "%6Fne%20", "%ff", "%00"])
async def test_unknown_model_is_not_found(name: str, server: Here) -> None:
    answer = await raw(server, head("GET", f"/v1/models/{name}"))

    assert "one" in check_error(answer, 404, "model_not_found", param="model")


async def test_looking_at_models_selects_none(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    config = make_config(entry("one", upstream.url), entry("two", upstream.url))
    async with serve_here(tmp_path, config) as server, open_client(server.url) as client:
        assert 200 == (await client.get("/v1/models/two")).status_code
        assert "one" == (await client.post(PATH, json=ask())).json()["model"]


# Health


@pytest.mark.parametrize(("path", "status"), [("/health", "ok"), ("/ready", "ready")])
async def test_health_needs_no_token(path: str, status: str, server: Here) -> None:
    answer = await raw(server, f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())

    assert (200, {"status": status}) == (answer.status, orjson.loads(answer.body))


async def test_server_whose_state_cannot_be_written_is_not_ready(tmp_path: Path) -> None:
    home = tmp_path / ".picoclaw"
    async with serve_here(tmp_path, make_config()) as server, open_client(server.url) as client:
        home.rename(tmp_path / "away")
        answer = await client.get("/ready")
        assert 200 == (await client.get("/health")).status_code
        (tmp_path / "away").rename(home)

    check_error(answer, 503, "state_unavailable", type="server_error")
    assert str(tmp_path) not in answer.text


@pytest.mark.parametrize(
    ("history", "is_blocked", "status"), [("session", False, 200), ("session", True, 503), ("client", True, 200)]
)
async def test_server_that_can_keep_no_conversation_is_not_ready(
    history: str, is_blocked: bool, status: int, tmp_path: Path
) -> None:
    folder = tmp_path / ".picoclaw" / FOLDER_NAME
    async with serve_here(tmp_path, make_config(history=history)) as server, open_client(server.url) as client:
        if is_blocked:
            folder.rmdir()
            folder.write_bytes(b"in the way")
        assert status == (await client.get("/ready")).status_code
        assert status == (await client.post(PATH, json=ask())).status_code


async def test_server_that_shuts_down_is_not_ready_but_healthy(tmp_path: Path) -> None:
    async with serving(tmp_path, make_config()) as (server, client):
        server.gateway.admission.drain()

        check_error(await client.get("/ready"), 503, "shutting_down", type="server_error", retry_after="1")
        assert 200 == (await client.get("/health")).status_code


@pytest.mark.parametrize("path", ["/chat/completions", "/models"])
async def test_base_url_without_v1_is_told_what_it_lacks(path: str, server: Here) -> None:
    message = check_error(await raw(server, head("POST", path)), 404, "not_found")
    assert f"It is at /v1{path}: the client's base URL has to end in /v1." in message
