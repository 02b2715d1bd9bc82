"""Which model answers: what is stored, for whom, when, and how long."""

from __future__ import annotations

import fcntl
import os
import unicodedata
from pathlib import Path
from typing import Any

import httpx2
import orjson
import pytest
import structlog
import trio
from envelopes import check_error
from fakes import ScriptedUpstream, answers, completion, cuts, error_body, hangs, says, streams, text_frames
from harness import TOKEN, ask, entry, make_config, make_environment, open_client, open_server
from host_client import WAIT, connect
from serving import PATH, head, port_of, serving

from picoclaw_trio.config import OpenAIApiConfig, load_config
from picoclaw_trio.errors import ConfigError
from picoclaw_trio.state.sessions import open_sessions
from picoclaw_trio.upstream_reply import MAX_MODEL


def config_of(upstream: ScriptedUpstream, *names: str, scope: str = "global", **api: Any) -> dict[str, Any]:
    """Aliases that lead to the same upstream; the first is the default agent's."""
    entries = [entry(name, upstream.url, model=f"openai/{name}-up") for name in names or ("one", "two", "three")]
    return make_config(*entries, model_scope=scope, **api)


async def model_of(client: httpx2.AsyncClient, **fields: Any) -> str:
    """The model that an answer names."""
    answer = await client.post(PATH, json={**ask(), **fields})
    assert 200 == answer.status_code, answer.text
    model: str = answer.json()["model"]
    return model


async def stored_in(folder: Path) -> dict[str, str]:
    """All that is on disk, as another process sees it."""
    async with open_sessions(folder / ".picoclaw") as sessions:
        return {row.key: row.model for row in sessions.list()}


# Global scope


def test_scope_is_global_by_default() -> None:
    assert "global" == OpenAIApiConfig().model_scope


@pytest.mark.parametrize("scope", ["user", "Global", None, 1])
def test_any_other_scope_is_an_error_of_the_configuration(scope: Any, tmp_path: Path) -> None:
    folder = tmp_path / ".picoclaw"
    folder.mkdir()
    config = make_config(model_scope=scope)
    (folder / "config.json").write_bytes(orjson.dumps(config))

    with pytest.raises(ConfigError) as raised:
        load_config(make_environment(tmp_path))

    assert ["$.gateway.openai_api.model_scope"] == [problem.address for problem in raised.value.problems]


async def test_nothing_stored_the_default_agents_model_answers(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    config = {**config_of(upstream), "agents": {"defaults": {"model_name": "three"}}}
    async with serving(tmp_path, config) as (_, client):
        assert "three" == await model_of(client)
    assert {} == await stored_in(tmp_path)


async def test_named_model_answers_and_is_stored(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    async with serving(tmp_path, config_of(upstream)) as (_, client):
        assert "two" == await model_of(client, model="two")
        assert "two" == await model_of(client)
    assert ["two-up", "two-up"] == [asked.body["model"] for asked in upstream.asked]
    assert {"global": "two"} == await stored_in(tmp_path)


async def test_any_request_with_a_model_changes_the_global_one(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    async with serving(tmp_path, config_of(upstream)) as (_, client):
        for name in ("two", "three", "one", "three"):
            assert name == await model_of(client, model=name)
            assert name == await model_of(client)


async def test_global_model_is_everybodys(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    config = config_of(upstream, bearer_tokens=[TOKEN, "sk-2"])
    async with serving(tmp_path, config) as (server, client):
        await model_of(client, model="two", user="ann")
        assert ["two", "two", "two"] == [await model_of(client, user=user) for user in ("ann", "bob", None)]
        async with open_client(server.url, Authorization="Bearer sk-2") as other:
            assert "two" == await model_of(other)
            await model_of(other, model="three")
        assert "three" == await model_of(client, user="ann")


@pytest.mark.parametrize("scope", ["global", "session"])
@pytest.mark.parametrize("absent", [None, ""])
async def test_null_and_empty_model_mean_absent(
    absent: str | None, scope: str, tmp_path: Path, upstream: ScriptedUpstream
) -> None:
    async with serving(tmp_path, config_of(upstream, scope=scope)) as (_, client):
        assert "one" == await model_of(client, model=absent)
        await model_of(client, model="two")
        assert "two" == await model_of(client, model=absent)


# Session scope


async def test_each_session_has_a_model_of_its_own(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    async with serving(tmp_path, config_of(upstream, scope="session")) as (_, client):
        await model_of(client, model="two", user="ann")
        await model_of(client, model="three", user="bob")
        assert ["two", "three", "one", "one"] == [
            await model_of(client, user=user) for user in ("ann", "bob", "eve", None)
        ]
        await model_of(client, model="two")
        assert ["two", "three", "one", "two"] == [
            await model_of(client, user=user) for user in ("ann", "bob", "eve", None)
        ]
    assert {"openai:ann": "two", "openai:bob": "three", "openai:default": "two"} == await stored_in(tmp_path)


async def test_later_request_of_a_session_may_name_another_model(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    async with serving(tmp_path, config_of(upstream, scope="session")) as (_, client):
        await model_of(client, model="two", user="ann")
        await model_of(client, model="three", user="ann")
        assert "three" == await model_of(client, user="ann")


async def test_header_and_user_of_the_same_letters_name_the_same_session(
    tmp_path: Path, upstream: ScriptedUpstream
) -> None:
    config = config_of(upstream, scope="session", session_headers=["X-Chat"])
    async with serving(tmp_path, config) as (_, client):
        for encoding, model in (("utf-8", "two"), ("latin-1", "three")):
            headers = {b"X-Chat": "voilà".encode(encoding)}
            await client.post(PATH, json=ask(model=model), headers=headers)
            assert model == await model_of(client, user="voilà")


@pytest.mark.parametrize("user", [None, "", "default"])
async def test_session_without_a_user_is_the_default_session(
    user: str | None, tmp_path: Path, upstream: ScriptedUpstream
) -> None:
    async with serving(tmp_path, config_of(upstream, scope="session")) as (_, client):
        await model_of(client, model="two", user=user)
        assert "two" == await model_of(client)
    assert {"openai:default": "two"} == await stored_in(tmp_path)


ODD_USERS = [
    "global",
    "openai:default",
    "cli:default",
    " ",
    "default ",
    "Default",
    "\u00e9",
    unicodedata.normalize("NFD", "\u00e9"),
    "\u0000",
    "a\u0000b",
    "a",
    "a\n",
    "a\r\n",
    "\u2028",
    "\ufeff",
    "\u200b",
    "\u202e",
    "\U0001f642",
    "\U0001f469\u200d\U0001f467",
    "\U0010ffff",
    512 * "\U0001f642",
    512 * "x",
    511 * "x",
    '{"key": "openai:a"}',
    "../../config",
    "openai:a",
    "\ud7ff",
    "\u7528\u6237",
]


async def test_sessions_of_odd_users_are_apart_and_survive(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    names = [f"m{number}" for number in range(len(ODD_USERS))]
    config = config_of(upstream, "none", *names, scope="session")
    wanted = dict(zip(ODD_USERS, names, strict=True))
    async with serving(tmp_path, config) as (_, client):
        for user, name in wanted.items():
            await model_of(client, model=name, user=user)
        assert wanted == {user: await model_of(client, user=user) for user in ODD_USERS}
        assert "none" == await model_of(client)
    async with serving(tmp_path, config) as (_, client):
        assert wanted == {user: await model_of(client, user=user) for user in ODD_USERS}
        assert "none" == await model_of(client)


async def test_concurrent_sessions_keep_their_models(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    names = [f"m{number}" for number in range(30)]
    found: dict[str, list[str]] = {name: [] for name in names}
    async with serving(tmp_path, config_of(upstream, "none", *names, scope="session")) as (_, client):

        async def talk(name: str) -> None:
            found[name].append(await model_of(client, model=name, user=name))
            found[name].append(await model_of(client, user=name))

        async with trio.open_nursery() as nursery:
            for name in names:
                nursery.start_soon(talk, name)
    assert {name: [name, name] for name in names} == found
    assert {f"openai:{name}": name for name in names} == await stored_in(tmp_path)


async def test_concurrent_requests_are_answered_by_the_model_that_each_names(
    tmp_path: Path, upstream: ScriptedUpstream
) -> None:
    names = [f"m{number}" for number in range(30)]
    found = set()
    async with serving(tmp_path, config_of(upstream, "none", *names)) as (_, client):

        async def talk(name: str) -> None:
            found.add((name, await model_of(client, model=name)))

        async with trio.open_nursery() as nursery:
            for name in names:
                nursery.start_soon(talk, name)
        last = await model_of(client)
    assert {(name, name) for name in names} == found
    assert {"global": last} == await stored_in(tmp_path)
    assert last in names


# Scopes never see each other's


async def test_scopes_have_keys_of_their_own(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    async with serving(tmp_path, config_of(upstream)) as (_, client):
        await model_of(client, model="two", user="ann")
    async with serving(tmp_path, config_of(upstream, scope="session")) as (_, client):
        assert ["one", "one", "one"] == [await model_of(client, user=user) for user in ("ann", "global", None)]
        await model_of(client, model="three", user="ann")
    async with serving(tmp_path, config_of(upstream)) as (_, client):
        assert "two" == await model_of(client, user="ann")
    assert {"global": "two", "openai:ann": "three"} == await stored_in(tmp_path)


async def test_gateway_remembers_nothing_but_the_model(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    async with serving(tmp_path, config_of(upstream, scope="session")) as (_, client):
        await client.post(PATH, json=ask("first", user="ann"))
        await client.post(PATH, json=ask("second", user="ann"))
    assert [["first"], ["second"]] == [
        [message["content"] for message in asked.body["messages"]] for asked in upstream.asked
    ]


# When it is stored

FAILURES = {
    "rejected": answers(400, error_body("no")),
    "auth": answers(401, error_body("no")),
    "unknown_model": answers(404, error_body("no")),
    "rate_limited": answers(429, error_body("no")),
    "server": answers(500, error_body("no")),
    "overloaded": answers(529, error_body("no")),
    "cut": cuts,
    "html": answers(200, b"<html>"),
    "no choice": answers(200, {"choices": []}),
    "hangs": hangs,
}


@pytest.mark.parametrize("failure", FAILURES)
async def test_model_is_stored_though_its_turn_fails(failure: str, tmp_path: Path, upstream: ScriptedUpstream) -> None:
    upstream.scripts = [FAILURES[failure], says()]
    config = config_of(upstream)
    for row in config["model_list"]:
        row["request_timeout"] = 0.2 if failure == "hangs" else 0
    async with serving(tmp_path, config) as (_, client):
        assert 400 <= (await client.post(PATH, json=ask(model="two"))).status_code
        assert "two" == await model_of(client)
    assert {"global": "two"} == await stored_in(tmp_path)


async def test_model_is_stored_though_nothing_listens_there(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    config = make_config(entry("one", upstream.url), entry("two", "http://127.0.0.1:9/v1"))
    async with serving(tmp_path, config) as (_, client):
        assert 502 == (await client.post(PATH, json=ask(model="two"))).status_code
    assert {"global": "two"} == await stored_in(tmp_path)


async def test_model_is_stored_though_a_bug_ends_the_turn(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    async def ask_badly(*_: Any) -> None:
        raise ZeroDivisionError

    async with serving(tmp_path, config_of(upstream)) as (server, client):
        server.gateway.upstream.ask = ask_badly
        assert 500 == (await client.post(PATH, json=ask(model="two"))).status_code
    assert {"global": "two"} == await stored_in(tmp_path)


async def test_model_is_stored_though_the_client_goes_away(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    upstream.scripts = [hangs, says()]
    async with serving(tmp_path, config_of(upstream)) as (_, client):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lambda: client.post(PATH, json=ask(model="two")))
            await upstream.wait_asked()
            nursery.cancel_scope.cancel()
        assert "two" == await model_of(client)
    assert {"global": "two"} == await stored_in(tmp_path)


async def test_model_is_selected_while_its_turn_runs(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    upstream.scripts = [hangs, says()]
    async with serving(tmp_path, config_of(upstream)) as (_, client), trio.open_nursery() as nursery:
        nursery.start_soon(lambda: client.post(PATH, json=ask(model="two")))
        await upstream.wait_asked()
        assert "two" == await model_of(client)
        nursery.cancel_scope.cancel()


# {what is wrong: (headers, body)}
REFUSED: dict[str, tuple[dict[str, str], Any]] = {
    "token": ({"authorization": "Bearer no"}, ask(model="two")),
    "size": ({}, ask(4096 * "x", model="two")),
    "json": ({}, b'{"model": "two", "messages": [{"role": "user", "content": "a"}]'),
    "type": ({}, ask(model="two", temperature="hot")),
    "stream": ({}, ask(model="two", stream=True)),
    "messages": ({}, {"model": "two", "messages": []}),
    "value": ({}, ask(model="two", n=2)),
    "model": ({}, ask(model="nobody")),
}


@pytest.mark.parametrize("scope", ["global", "session"])
async def test_refused_request_stores_nothing(scope: str, tmp_path: Path, upstream: ScriptedUpstream) -> None:
    config = config_of(upstream, scope=scope, max_body_bytes=4096)
    async with serving(tmp_path, config) as (_, client):
        await model_of(client, model="three")
        for wrong, (headers, body) in REFUSED.items():
            content = body if isinstance(body, bytes) else orjson.dumps(body)
            assert 400 <= (await client.post(PATH, content=content, headers=headers)).status_code, wrong
            assert "three" == await model_of(client), wrong
    assert ["three"] == [*(await stored_in(tmp_path)).values()]


async def test_body_that_came_too_late_stores_nothing(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    async with serving(tmp_path, config_of(upstream, body_timeout=0.1)) as (server, _):
        async with connect(port_of(server)) as connection:
            answer = await connection.ask(head(length=1000) + orjson.dumps(ask(model="two")))
        check_error(answer, 408, "request_timeout")
    assert {} == await stored_in(tmp_path)


async def test_request_that_found_no_room_stores_nothing(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    upstream.scripts = [hangs]
    config = config_of(upstream, max_turns=1, max_waiting=1, max_wait=0.1)
    async with serving(tmp_path, config) as (server, client), trio.open_nursery() as nursery:
        nursery.start_soon(lambda: client.post(PATH, json=ask()))
        await upstream.wait_asked()
        answer = await client.post(PATH, json=ask(model="two"))
        check_error(answer, 503, "overloaded", type="server_error", retry_after="1")
        assert server.gateway.sessions.selected("global") is None
        nursery.cancel_scope.cancel()
    assert {} == await stored_in(tmp_path)


async def test_request_during_shutdown_stores_nothing(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    async with serving(tmp_path, config_of(upstream)) as (server, client):
        server.gateway.admission.drain()
        answer = await client.post(PATH, json=ask(model="two"))
        check_error(answer, 503, "shutting_down", type="server_error", retry_after="1")
    assert {} == await stored_in(tmp_path)


# How long it is stored


@pytest.mark.parametrize("scope", ["global", "session"])
async def test_model_survives_a_restart(scope: str, tmp_path: Path, upstream: ScriptedUpstream) -> None:
    config = config_of(upstream, scope=scope)
    async with serving(tmp_path, config) as (_, client):
        await model_of(client, model="two", user="ann")
    async with serving(tmp_path, config) as (_, client):
        assert "two" == await model_of(client, user="ann")


@pytest.mark.parametrize("stream", [False, True])
async def test_model_survives_kill_9_once_the_answer_is_there(
    stream: bool, tmp_path: Path, upstream: ScriptedUpstream
) -> None:
    upstream.scripts = [streams(*text_frames("Hello!"))] if stream else [says()]
    async with open_server(tmp_path, config_of(upstream, streaming=True)) as server, open_client(server.url) as client:
        answer = await client.post(PATH, json=ask(model="two", stream=stream))
        server.process.kill()
    assert 200 == answer.status_code
    assert {"global": "two"} == await stored_in(tmp_path)


@pytest.mark.parametrize("stream", [False, True])
async def test_last_byte_does_not_leave_before_the_model_is_on_disk(
    stream: bool, tmp_path: Path, upstream: ScriptedUpstream
) -> None:
    upstream.scripts = [streams(*text_frames("Hello!"))] if stream else [says()]
    begun, ended = trio.Event(), trio.Event()
    lock = tmp_path / ".picoclaw" / "openai_sessions.lock"

    async def run() -> None:
        async with client.stream("POST", PATH, json=ask(model="two", stream=stream)) as answer:
            begun.set()
            await answer.aread()
        assert 200 == answer.status_code
        ended.set()

    async with serving(tmp_path, config_of(upstream, streaming=True)) as (_, client), trio.open_nursery() as nursery:
        with lock.open("r+") as file, trio.fail_after(WAIT):
            fcntl.flock(file, fcntl.LOCK_EX)
            nursery.start_soon(run)
            await (begun.wait() if stream else upstream.wait_asked())
            with trio.move_on_after(0.2):
                await ended.wait()
            assert (stream, False) == (begun.is_set(), ended.is_set())
            fcntl.flock(file, fcntl.LOCK_UN)
            await ended.wait()
    assert {"global": "two"} == await stored_in(tmp_path)


async def test_several_processes_share_what_is_stored(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    config = config_of(upstream)
    async with serving(tmp_path, config) as (_, client), serving(tmp_path, config) as (_, other):
        for name in ("two", "three", "one"):
            await model_of(client, model=name)
            assert name == await model_of(other)


# A model that is no longer there


async def test_default_answers_for_a_stored_model_that_is_gone_and_the_log_says_so(
    tmp_path: Path, upstream: ScriptedUpstream
) -> None:
    async with serving(tmp_path, config_of(upstream)) as (_, client):
        await model_of(client, model="three")
    async with serving(tmp_path, config_of(upstream, "one", "two")) as (_, client):
        with structlog.testing.capture_logs() as lines:
            assert "one" == await model_of(client)
    warnings = [line for line in lines if line["log_level"] == "warning"]
    assert [("three", "one")] == [(line["stored"], line["answers"]) for line in warnings]


async def test_stored_model_that_is_gone_is_not_overwritten(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    async with serving(tmp_path, config_of(upstream)) as (_, client):
        await model_of(client, model="three")
    async with serving(tmp_path, config_of(upstream, "one", "two")) as (_, client):
        await model_of(client)
    async with serving(tmp_path, config_of(upstream)) as (_, client):
        assert "three" == await model_of(client)


async def test_stored_model_that_is_gone_gives_way_to_one_that_is_named(
    tmp_path: Path, upstream: ScriptedUpstream
) -> None:
    async with serving(tmp_path, config_of(upstream)) as (_, client):
        await model_of(client, model="three")
    async with serving(tmp_path, config_of(upstream, "one", "two")) as (_, client):
        assert "two" == await model_of(client, model="two")
        assert "two" == await model_of(client)


# Who answered


async def test_answer_names_the_alias_and_the_header_the_upstreams_id_too(
    tmp_path: Path, upstream: ScriptedUpstream
) -> None:
    async with serving(tmp_path, config_of(upstream)) as (_, client):
        answer = await client.post(PATH, json=ask(model="two"))
    assert "two" == answer.json()["model"]
    assert "two; upstream=up-model-2026" == answer.headers["x-picoclaw-model"]


@pytest.mark.parametrize("stream", [False, True])
async def test_fallback_that_answered_is_named(stream: bool, tmp_path: Path, upstream: ScriptedUpstream) -> None:
    last = streams(*text_frames("Hello!")) if stream else says()
    upstream.scripts = [answers(404, {}), last]
    config = make_config(entry("one", upstream.url, fallbacks=["two"]), entry("two", upstream.url), streaming=True)
    async with serving(tmp_path, config) as (_, client):
        answer = await client.post(PATH, json=ask(model="one", stream=stream))
    models = (
        {orjson.loads(line[6:])["model"] for line in answer.text.splitlines() if line.startswith("data: {")}
        if stream
        else {answer.json()["model"]}
    )
    assert {"two"} == models
    assert "two; upstream=up-model-2026" == answer.headers["x-picoclaw-model"]
    assert {"global": "one"} == await stored_in(tmp_path)


async def test_alias_beyond_ascii_is_named_in_the_header_percent_encoded(
    tmp_path: Path, upstream: ScriptedUpstream
) -> None:
    name = "org/drei \u00fc;\u20ac"
    async with serving(tmp_path, make_config(entry(name, upstream.url, model="openai/up"))) as (_, client):
        answer = await client.post(PATH, json=ask(model=name))
    assert name == answer.json()["model"]
    assert "org/drei%20%C3%BC%3B%E2%82%AC; upstream=up-model-2026" == answer.headers["x-picoclaw-model"]


async def test_upstream_that_tells_no_model_is_named_by_the_id_that_it_was_asked_for(
    tmp_path: Path, upstream: ScriptedUpstream
) -> None:
    upstream.scripts = [answers(200, {"choices": [{"message": {"role": "assistant", "content": "Hello!"}}]})]
    async with serving(tmp_path, config_of(upstream)) as (_, client):
        answer = await client.post(PATH, json=ask(model="two"))
    assert "two; upstream=two-up" == answer.headers["x-picoclaw-model"]
    assert os.fspath(tmp_path) not in answer.text


@pytest.mark.parametrize("stream", [False, True])
async def test_upstreams_id_without_end_is_cut(stream: bool, tmp_path: Path, upstream: ScriptedUpstream) -> None:
    name = "m" * 300_000
    frames = [data.replace(b"up-model-2026", name.encode()) for data in text_frames("Hello!")]
    upstream.scripts = [streams(*frames) if stream else answers(200, {**completion(), "model": name})]
    async with serving(tmp_path, config_of(upstream, streaming=True)) as (_, client):
        answer = await client.post(PATH, json=ask(model="two", stream=stream))
    assert 200 == answer.status_code
    assert f"two; upstream={'m' * MAX_MODEL}" == answer.headers["x-picoclaw-model"]
