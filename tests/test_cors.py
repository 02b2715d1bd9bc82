"""Pages in a browser: what they may ask, and what of the answer they may see."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import httpx2
import pytest
from fakes import ScriptedUpstream, streams, text_frames
from harness import Here, ask, open_client
from host_client import connect
from streams import PATH, serving, stream_whole, text_of

from picoclaw_trio import cors

PAGE = "http://localhost:3000"
STRANGER = "https://evil.example"
# What the official SDKs send from a page, beside what a browser sends by itself.
SDK_HEADERS = (
    "authorization,content-type,dangerously-allow-browser,user-agent,x-stainless-arch,x-stainless-helper-method,"
    "x-stainless-lang,x-stainless-os,x-stainless-package-version,x-stainless-retry-count,x-stainless-runtime,"
    "x-stainless-runtime-version,x-stainless-timeout"
)
VISIBLE = {"x-request-id", "x-picoclaw-model", "x-should-retry", "retry-after"}


def serving_pages(
    home: Path, upstream: ScriptedUpstream, *origins: str, **api: Any
) -> AbstractAsyncContextManager[Here]:
    return serving(home, upstream, cors_origins=list(origins), **api)


async def ask_first(
    client: httpx2.AsyncClient, origin: str = PAGE, path: str = PATH, **headers: str
) -> httpx2.Response:
    """A preflight, as a browser sends it: without a token."""
    given = {name.replace("_", "-"): value for name, value in headers.items()}
    head = {"origin": origin, "access-control-request-method": "POST", **given}
    request = client.build_request("OPTIONS", path, headers=head)
    del request.headers["authorization"]
    return await client.send(request)


def names(value: str) -> set[str]:
    return {name.strip().lower() for name in value.split(",")}


def granted(answer: httpx2.Response) -> set[str]:
    return {name for name in answer.headers if name.startswith("access-control-")}


async def test_nothing_is_granted_by_default(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    async with serving(tmp_path, upstream) as server, open_client(server.url, origin=PAGE) as client:
        preflight = await ask_first(client)
        answer = await client.post(PATH, json=ask())

    assert 405 == preflight.status_code
    assert 200 == answer.status_code
    assert set() == granted(preflight) | granted(answer)
    assert "vary" not in answer.headers


async def test_preflight_grants_all_that_the_sdks_send(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    async with serving_pages(tmp_path, upstream, PAGE) as server, open_client(server.url) as client:
        answer = await ask_first(client, access_control_request_headers=SDK_HEADERS)

    assert 204 == answer.status_code
    assert b"" == answer.content
    assert PAGE == answer.headers["access-control-allow-origin"]
    assert names(SDK_HEADERS) <= names(answer.headers["access-control-allow-headers"])
    assert {"get", "post"} <= names(answer.headers["access-control-allow-methods"])
    assert int(answer.headers["access-control-max-age"]) > 0
    assert "Origin" == answer.headers["vary"]
    assert "access-control-allow-credentials" not in answer.headers
    assert [] == upstream.asked


async def test_preflight_of_every_path_is_answered(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    async with serving_pages(tmp_path, upstream, PAGE) as server, open_client(server.url) as client:
        for path in ("/v1/models", "/v1/models/m0", PATH, "/v1//chat/completions"):
            assert 204 == (await ask_first(client, path=path)).status_code


async def test_preflight_of_a_path_that_is_not_there_is_not_found(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    async with serving_pages(tmp_path, upstream, PAGE) as server, open_client(server.url) as client:
        answer = await ask_first(client, path="/v1/responses")

    assert (404, PAGE) == (answer.status_code, answer.headers["access-control-allow-origin"])


async def test_preflight_is_not_found_while_the_endpoint_is_off(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    async with serving_pages(tmp_path, upstream, PAGE, enabled=False) as server, open_client(server.url) as client:
        assert 404 == (await ask_first(client)).status_code


async def test_preflight_grants_private_networks_where_it_asks(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    name = "access-control-allow-private-network"
    async with serving_pages(tmp_path, upstream, PAGE) as server, open_client(server.url) as client:
        unasked = await ask_first(client)
        asked = await ask_first(client, access_control_request_private_network="true")

    assert name not in unasked.headers
    assert "true" == asked.headers[name]


async def test_stranger_is_granted_nothing(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    async with serving_pages(tmp_path, upstream, PAGE) as server, open_client(server.url, origin=STRANGER) as client:
        preflight = await ask_first(client, STRANGER)
        answer = await client.post(PATH, json=ask())

    assert 405 == preflight.status_code
    assert set() == granted(preflight) | granted(answer)
    assert "Origin" == answer.headers["vary"]


async def test_any_page_may_ask_where_all_origins_are_configured(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    async with serving_pages(tmp_path, upstream, "*") as server, open_client(server.url) as client:
        for origin in (PAGE, STRANGER, "null"):
            answer = await ask_first(client, origin)
            assert (204, "*") == (answer.status_code, answer.headers["access-control-allow-origin"])


async def test_page_sees_whole_answers_streams_and_errors(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    upstream.scripts = (streams(*text_frames("a")),)
    async with serving_pages(tmp_path, upstream, PAGE) as server, open_client(server.url, origin=PAGE) as client:
        stream = await stream_whole(client)
        seen = {
            200: stream,
            400: await client.post(PATH, content=b"nonsense"),
            401: await client.post(PATH, json=ask(), headers={"Authorization": "Bearer no"}),
            404: await client.post(PATH, json=ask(model="nobody")),
            405: await client.get(PATH),
        }

    assert "a" == text_of(stream.content)
    for status, answer in seen.items():
        assert status == answer.status_code
        assert PAGE == answer.headers["access-control-allow-origin"]
        assert names(answer.headers["access-control-expose-headers"]) >= VISIBLE
        assert answer.headers["x-request-id"]


async def test_origin_is_compared_without_regard_to_case(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    async with serving_pages(tmp_path, upstream, "HTTP://LocalHost:3000") as server, open_client(server.url) as client:
        answer = await ask_first(client, "http://localhost:3000")

    assert "http://localhost:3000" == answer.headers["access-control-allow-origin"]


@pytest.mark.parametrize("origins", [["*"], [PAGE]])
async def test_preflight_that_no_browser_sends_is_answered(
    origins: list[str], tmp_path: Path, upstream: ScriptedUpstream
) -> None:
    head = b"OPTIONS %b HTTP/1.1\r\nHost: x\r\nOrigin: http://\xe9\xff\r\n" % PATH.encode()
    head += b"Access-Control-Request-Method: POST\r\nAccess-Control-Request-Headers: caf\xe9\r\n\r\n"
    async with (
        serving_pages(tmp_path, upstream, *origins) as server,
        connect(int(server.url.rpartition(":")[2])) as client,
    ):
        answer = await client.ask(head)

    assert answer.status in (204, 405)
    assert "access-control-allow-headers" not in answer.headers


@pytest.mark.parametrize("origins", [["*"], [PAGE], ["http://\u00e9\u00ff"], []])
def test_origin_beyond_ascii_gets_nothing_that_is(origins: list[str]) -> None:
    allowed = cors.allow("http://\u00e9\u00ff", origins)

    assert all(map(str.isascii, allowed.values()))
    assert ("access-control-allow-origin" in allowed) == (origins == ["*"])


@pytest.mark.parametrize("value", ["x-a\nx-b: 1", "x\x00", "é", "a;b", '"a"', ""])
def test_only_names_of_headers_are_granted(value: str) -> None:
    assert "access-control-allow-headers" not in cors.allow_preflight(value, False)
