"""Which models are at hand: real servers on loopback, honest and not, and what the environment says."""

from __future__ import annotations

import re
from ipaddress import ip_address
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import orjson
import pytest
import trio
from fakes import Exchange, Script, ScriptedUpstream, answers, cuts, hangs, open_upstream
from harness import make_environment, write_config
from hypothesis import given
from hypothesis import strategies as st

from picoclaw_trio.config import load_config
from picoclaw_trio.config.vendors import VENDORS
from picoclaw_trio.onboard.finding import (
    CLOUDS,
    MAX_ANSWER_BYTES,
    MAX_MODELS,
    Offer,
    Server,
    aliases,
    find_keys,
    find_served,
    servers_at_hand,
)

PATIENCE = 10.0
NONE: tuple[Offer, ...] = ()


def model_list(*ids: Any) -> Script:
    return answers(200, {"object": "list", "data": [{"id": name, "object": "model"} for name in ids]})


def ollama(url: str) -> Server:
    return Server("ollama", "Ollama", url)


async def found_at(*servers: Server, timeout: float = PATIENCE) -> list[str]:
    return [offer.model for offer in await find_served(servers, timeout)]


async def test_models_of_a_server_are_offered_as_it_lists_them(upstream: ScriptedUpstream) -> None:
    upstream.scripts = (model_list("qwen3:4b", "hf.co/org/model", "qwen3:4b"),)

    offers = await find_served((ollama(upstream.url),))

    assert ["qwen3:4b", "hf.co/org/model"] == [offer.model for offer in offers]
    assert {"model_name": "q", "model": "ollama/qwen3:4b", "api_base": upstream.url} == offers[0].entry("q")
    assert upstream.url in offers[0].source
    assert [(b"GET", b"/v1/models")] == [(asked.head.method, asked.head.target) for asked in upstream.asked]


async def test_server_at_its_usual_address_needs_no_address_in_the_configuration() -> None:
    (usual,) = (server for server in servers_at_hand({}) if server.vendor == "lmstudio")

    assert VENDORS["lmstudio"].default_api_base == usual.base
    assert {"model_name": "q", "model": "lmstudio/q"} == Offer("q", "lmstudio", "", usual.api_base).entry("q")


async def test_servers_are_asked_at_once_and_keep_their_order(upstream: ScriptedUpstream) -> None:
    async with open_upstream(model_list("b")) as other, open_upstream(model_list("c")) as third:

        async def answer_last(exchange: Exchange) -> None:
            await other.wait_asked()
            await third.wait_asked()
            await model_list("a")(exchange)

        upstream.scripts = (answer_last,)
        assert ["a", "b", "c"] == await found_at(*(ollama(each.url) for each in (upstream, other, third)))


async def test_models_that_do_not_answer_in_words_are_not_offered(upstream: ScriptedUpstream) -> None:
    others = ("nomic-embed-text:latest", "text-embedding-3", "bge-m3", "BAAI/bge-large", "all-minilm", "whisper-1")
    upstream.scripts = (model_list(*others, "qwen3:4b", "rubbge-1"),)

    assert ["qwen3:4b", "rubbge-1"] == await found_at(ollama(upstream.url))


async def test_ids_that_no_configuration_could_hold_are_not_offered(upstream: ScriptedUpstream) -> None:
    wrong = ("", "a b", "/srv/model", "a//b", "a/", "a\x1b[31m", "a\u202eb", "x" * 201, 5, None, ["a"])
    upstream.scripts = (model_list(*wrong, "fine"),)

    assert ["fine"] == await found_at(ollama(upstream.url))


async def test_number_of_models_is_bounded(upstream: ScriptedUpstream) -> None:
    upstream.scripts = (model_list(*(f"m{number}" for number in range(1000))),)

    assert MAX_MODELS == len(await found_at(ollama(upstream.url)))


async def endless(exchange: Exchange) -> None:
    """A body without end, a byte now and then."""
    await exchange.begin_events()
    while True:
        await exchange.write(b" ")
        await trio.sleep(0.01)


@pytest.mark.parametrize("script", [hangs, endless])
async def test_server_that_does_not_come_to_an_end_hides_no_other(script: Script, upstream: ScriptedUpstream) -> None:
    upstream.scripts = (script,)
    async with open_upstream(model_list("quick")) as other:
        assert ["quick"] == await found_at(ollama(upstream.url), ollama(other.url), timeout=1.0)


GARBAGE = {
    "nothing": b"",
    "no JSON": b"<html>Hello</html>",
    "null": b"null",
    "a list": b"[]",
    "no list": b'{"data": 5}',
    "no objects": b'{"data": [1, null, "a", []]}',
    "no text": b'{"data": [{"id": {"a": 1}}]}',
    "not UTF-8": b'{"data": [{"id": "\xff"}]}',
    "deep": b'{"data": ' + b"[" * 100_000,
    "huge": b'{"data": [{"id": "a"}], "x": "' + b"x" * MAX_ANSWER_BYTES + b'"}',
}


@pytest.mark.parametrize("body", GARBAGE.values(), ids=GARBAGE)
async def test_answer_that_is_no_list_of_models_is_no_server(body: bytes, upstream: ScriptedUpstream) -> None:
    upstream.scripts = (answers(200, body),)

    assert [] == await found_at(ollama(upstream.url))


@pytest.mark.parametrize("status", [302, 401, 404, 500])
async def test_refusal_is_no_server_and_no_redirect_is_followed(status: int, upstream: ScriptedUpstream) -> None:
    body = orjson.dumps({"data": [{"id": "a"}]})
    upstream.scripts = (answers(status, body, location=f"{upstream.url}/elsewhere"),)

    assert [] == await found_at(ollama(upstream.url))
    assert 1 == len(upstream.asked)


async def test_connection_that_is_cut_is_no_server(upstream: ScriptedUpstream) -> None:
    upstream.scripts = (cuts,)

    assert [] == await found_at(ollama(upstream.url))


@pytest.mark.parametrize(
    "said", [b"SSH-2.0-OpenSSH\r\n", b"\x15\x03\x01\x00\x02\x02\x46", b"HTTP/1.1 200 OK\r\nx" * 9999]
)
async def test_what_does_not_speak_http_is_no_server(said: bytes) -> None:
    async def serve(stream: trio.SocketStream) -> None:
        try:
            await stream.send_all(said)
            await stream.receive_some()
        except trio.BrokenResourceError:
            pass

    async with trio.open_nursery() as nursery:
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        nursery.start_soon(trio.serve_listeners, serve, [listener])
        port = listener.socket.getsockname()[1]
        assert [] == await found_at(ollama(f"http://127.0.0.1:{port}/v1"))
        nursery.cancel_scope.cancel()


async def test_where_nothing_listens_there_is_no_server() -> None:
    assert [] == await found_at(ollama("http://127.0.0.1:1/v1"), ollama("http://localhost:1/v1"))


async def test_server_on_the_other_loopback_address_is_found() -> None:
    upstream = ScriptedUpstream((model_list("six"),))
    async with trio.open_nursery() as nursery:
        try:
            (listener,) = await trio.open_tcp_listeners(0, host="::1")
        except OSError:
            pytest.skip("this machine has no IPv6")
        nursery.start_soon(trio.serve_listeners, upstream.serve, [listener])
        port = listener.socket.getsockname()[1]
        assert ["six"] == await found_at(ollama(f"http://localhost:{port}/v1"))
        nursery.cancel_scope.cancel()


async def test_nothing_that_listens_elsewhere_can_be_asked() -> None:
    with pytest.RaisesGroup(ValueError):
        await find_served((ollama("http://192.0.2.1/v1"),))


# Where Ollama is


@pytest.mark.parametrize(
    ("named", "base"),
    [
        ("", "http://localhost:11434/v1"),
        ("localhost", "http://localhost:11434/v1"),
        ("127.0.0.1:11434", "http://localhost:11434/v1"),
        ("0.0.0.0", "http://localhost:11434/v1"),
        ("'0.0.0.0:8080' ", "http://127.0.0.1:8080/v1"),
        (":8080", "http://127.0.0.1:8080/v1"),
        ("http://localhost:8080/", "http://localhost:8080/v1"),
        ("http://127.0.0.1", "http://127.0.0.1:80/v1"),
        ("[::1]:8080", "http://[::1]:8080/v1"),
        ("[::]:8080", "http://[::1]:8080/v1"),
        ("127.8.8.8:1", "http://127.8.8.8:1/v1"),
        ("192.168.1.5:11434", None),
        ("gpu.example", None),
        ("localhost.example", None),
        ("https://localhost:11434", None),
        ("[::1%lo]:11434", None),
        ("localhost:port", None),
        ("[", None),
    ],
)
def test_ollama_is_asked_where_its_own_variable_says_if_that_is_here(named: str, base: str | None) -> None:
    found = {server.vendor: server.base for server in servers_at_hand({"OLLAMA_HOST": named})}

    assert base == found.get("ollama")
    assert {"lmstudio", "vllm"} <= found.keys()


@given(st.text(max_size=60) | st.from_regex(r"(http://)?[0-9.:\[\]]{1,30}", fullmatch=True))
def test_no_variable_leads_away_from_this_machine(named: str) -> None:
    for server in servers_at_hand({"OLLAMA_HOST": named}):
        host = urlsplit(server.base).hostname
        assert host == "localhost" or ip_address(str(host)).is_loopback


# Keys


def test_every_key_in_the_environment_offers_a_model_that_the_configuration_accepts(tmp_path: Path) -> None:
    keys = {cloud.variable: f"sk-{cloud.vendor}" for cloud in CLOUDS}
    offers = find_keys(keys)
    entries = [offer.entry(alias) for alias, offer in aliases(offers)]
    write_config(tmp_path, {"model_list": entries})

    config = load_config({**make_environment(tmp_path), **keys})

    assert [cloud.variable for cloud in CLOUDS] == [offer.variable for offer in offers]
    assert [cloud.model for cloud in CLOUDS] == [entry.model for entry in config.model_list]
    assert all(entry.is_usable and len(entry.api_keys) == 1 for entry in config.model_list)
    assert not re.search("sk-", orjson.dumps(entries).decode())


@pytest.mark.parametrize("key", ["", " ", "sk-with space", "sk-\n", "schlüssel"])
def test_what_cannot_be_a_key_offers_nothing(key: str) -> None:
    assert NONE == find_keys({"OPENAI_API_KEY": key})


def test_each_offer_gets_a_name_of_its_own() -> None:
    offers = tuple(Offer(model, vendor, "") for vendor in ("ollama", "vllm") for model in ("a", "vllm/a", "a"))

    assert ["a", "vllm/a", "ollama/a", "vllm/vllm/a"] == [alias for alias, _ in aliases(offers)]
