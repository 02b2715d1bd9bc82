"""What goes to the upstream and comes back stays as it was."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson
import pytest
from fakes import USAGE, ScriptedUpstream, answers, completion, says, streams, text_frames
from harness import ask, entry, make_config, open_client, serve_here
from serving import PATH

from picoclaw_trio._version import __version__


async def sent_for(
    fields: dict[str, Any],
    folder: Path,
    upstream: ScriptedUpstream,
    defaults: dict[str, Any] | None = None,
    **changes: Any,
) -> dict[str, Any]:
    """The body that reaches the upstream for a request with *fields*; *changes* go into the entry."""
    config = make_config(entry("one", upstream.url, **changes), streaming=True)
    config["agents"] = {"defaults": defaults or {}}
    async with serve_here(folder, config) as server, open_client(server.url) as client:
        answer = await client.post(PATH, content=orjson.dumps({**ask(), **fields}))
    assert 200 == answer.status_code, answer.text
    return upstream.asked[-1].body


def encoded(body: dict[str, Any]) -> bytes:
    """JSON in the order of the keys as they came."""
    return orjson.dumps(body)


# To the upstream

SCHEMA = {
    "type": "object",
    "properties": {"where": {"type": "string", "enum": ["a\u00e9", ""]}, "n": {"minimum": 0.5, "maximum": 10**18}},
    "required": [],
    "additionalProperties": False,
}
TOOL = {"type": "function", "function": {"name": "look", "strict": True, "parameters": SCHEMA, "x-own": None}}
CALL = {
    "id": "call_1",
    "type": "function",
    "function": {"name": "look", "arguments": '{"where":\n "a\\u00e9"}  '},
    "extra_content": {"google": {"thought_signature": "=="}},
}
FIELDS: list[dict[str, Any]] = [
    {"tools": [TOOL, {"type": "custom", "custom": {"name": "sql", "format": {"type": "grammar"}}}]},
    {"tools": []},
    {"tools": [TOOL], "tool_choice": "required"},
    {"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "look"}}},
    {"tools": [TOOL], "parallel_tool_calls": False},
    {"response_format": {"type": "json_object"}},
    {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "strict": True, "schema": SCHEMA}}},
    {"temperature": 0},
    {"temperature": 0.0},
    {"temperature": 1.9999999999999998},
    {"temperature": 0.7, "top_p": 0.1, "presence_penalty": -2, "frequency_penalty": 2.0},
    {"max_tokens": 1},
    {"max_completion_tokens": 128000},
    {"max_tokens": 5, "max_completion_tokens": 6},
    {"stop": "\n\n"},
    {"stop": ["a", "", "\U0001f642"]},
    {"seed": -(2**63)},
    {"seed": 2**63},
    {"logprobs": True, "top_logprobs": 20},
    {"logit_bias": {"50256": -100, "1": 0.5}},
    {"metadata": {"a": "b", "": ""}},
    {"reasoning_effort": "high", "verbosity": "low"},
    {"n": 1},
    {"service_tier": "flex", "store": False},
    {"prompt_cache_key": "k", "safety_identifier": "s"},
    {"modalities": ["text"]},
    {"prediction": {"type": "content", "content": "x"}},
    {"web_search_options": {}},
]


async def test_known_fields_reach_the_upstream_unharmed(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    config = make_config(entry("one", upstream.url))
    async with serve_here(tmp_path, config) as server, open_client(server.url) as client:
        for fields in FIELDS:
            assert 200 == (await client.post(PATH, content=orjson.dumps({**ask(), **fields}))).status_code
            assert encoded({"model": "one-up", **ask(), **fields}) == encoded(upstream.asked[-1].body)


MESSAGES: list[list[dict[str, Any]]] = [
    [{"role": "system", "content": "S"}, {"role": "developer", "content": "D"}, {"role": "user", "content": "U"}],
    [{"role": "user", "content": " \n\t\u0000\u2028\ufeff\U0001f469\u200d\U0001f467 "}],
    [{"role": "user", "content": "/switch model to two"}],
    [{"role": "user", "content": "a", "name": "ann", "x-own": [None]}],
    [{"role": "user", "content": [{"type": "text", "text": "a", "cache_control": {"type": "ephemeral"}}]}],
    [
        {
            "role": "user",
            "content": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AA", "detail": "low"}}],
        }
    ],
    [{"role": "user", "content": [{"type": "input_audio", "input_audio": {"data": "AA", "format": "wav"}}]}],
    [{"role": "user", "content": [{"type": "file", "file": {"filename": "a.pdf", "file_data": "AA"}}]}],
    [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": None, "tool_calls": [CALL, {**CALL, "id": "call_2"}]},
        {"role": "tool", "tool_call_id": "call_1", "content": "b"},
        {"role": "tool", "tool_call_id": "call_2", "content": [{"type": "text", "text": "c"}]},
    ],
    [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "reasoning_content": "hm"}],
    [{"role": "assistant", "content": None, "refusal": "No."}, {"role": "user", "content": ""}],
]


async def test_messages_reach_the_upstream_unharmed(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    config = make_config(entry("one", upstream.url))
    async with serve_here(tmp_path, config) as server, open_client(server.url) as client:
        for messages in MESSAGES:
            assert 200 == (await client.post(PATH, content=orjson.dumps({"messages": messages}))).status_code
            assert encoded({"model": "one-up", "messages": messages}) == encoded(upstream.asked[-1].body)


async def test_fields_of_the_gateway_stay_here(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    body = await sent_for({"user": "ann", "model": "one", "stream": False, "stream_options": {}}, tmp_path, upstream)

    assert {"model": "one-up", **ask()} == body


async def test_stream_asks_the_upstream_for_a_stream_with_usage(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    upstream.scripts = [streams(*text_frames("Hello!"))]
    body = await sent_for({"stream": True}, tmp_path, upstream)

    assert {"model": "one-up", **ask(), "stream": True, "stream_options": {"include_usage": True}} == body


async def test_nothing_but_the_gateways_own_headers_reaches_the_upstream(
    tmp_path: Path, upstream: ScriptedUpstream
) -> None:
    config = make_config(entry("one", upstream.url))
    headers = {"x-own": "1", "cookie": "a=b", "x-forwarded-for": "10.0.0.1", "accept-language": "de"}
    async with serve_here(tmp_path, config) as server, open_client(server.url, **headers) as client:
        await client.post(PATH, json=ask())
    asked = upstream.asked[0]

    assert not [name for name in headers if asked.header(name)]
    assert "application/json" == asked.header("content-type")
    assert f"picoclaw_trio/{__version__}" == asked.header("user-agent")
    assert "Bearer sk-up-secret" == asked.header("authorization")
    assert b"/v1/chat/completions" == asked.head.target


async def test_upstream_without_a_key_gets_none(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    row = {"model_name": "one", "model": "ollama/one-up", "api_base": upstream.url}
    async with serve_here(tmp_path, make_config(row)) as server, open_client(server.url) as client:
        await client.post(PATH, json=ask())
    assert upstream.asked[0].header("authorization") is None


# What the entry says


async def test_custom_headers_replace_the_gateways_own(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    headers = {"X-Team": "garage", "Authorization": "Basic abc", "User-Agent": "mine"}
    await sent_for({}, tmp_path, upstream, custom_headers=headers, user_agent="other")

    assert headers == {name: upstream.asked[0].header(name) for name in headers}


async def test_user_agent_may_be_configured(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    await sent_for({}, tmp_path, upstream, user_agent="pico/1")

    assert "pico/1" == upstream.asked[0].header("user-agent")


async def test_extra_body_is_merged_in_last(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    extra = {"enable_thinking": False, "temperature": 1, "options": {"num_ctx": 8192}}
    body = await sent_for({"temperature": 0.5, "top_p": 1}, tmp_path, upstream, extra_body=extra)

    assert {"model": "one-up", **ask(), "top_p": 1, **extra} == body


@pytest.mark.parametrize(
    ("given", "limit"),
    [
        ({"max_tokens": 5}, 5),
        ({"max_completion_tokens": 6}, 6),
        ({"max_tokens": 5, "max_completion_tokens": 6}, 6),
    ],
)
@pytest.mark.parametrize("field", ["max_tokens", "max_completion_tokens", "max_output_tokens"])
async def test_token_limit_has_the_name_that_the_entry_says(
    field: str, given: dict[str, int], limit: int, tmp_path: Path, upstream: ScriptedUpstream
) -> None:
    body = await sent_for(given, tmp_path, upstream, max_tokens_field=field)

    assert {"model": "one-up", **ask(), field: limit} == body


# What the agents' defaults say

DEFAULTS = {"max_tokens": 100, "temperature": 0.3}


async def test_request_that_does_not_say_gets_the_agents_defaults(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    body = await sent_for({"temperature": None, "max_tokens": None}, tmp_path, upstream, DEFAULTS)

    assert {"model": "one-up", **ask(), **DEFAULTS} == body


@pytest.mark.parametrize("defaults", [{"max_tokens": 100}, {"temperature": 0}, {}])
async def test_defaults_that_are_not_set_are_left_to_the_upstream(
    defaults: dict[str, Any], tmp_path: Path, upstream: ScriptedUpstream
) -> None:
    assert {"model": "one-up", **ask(), **defaults} == await sent_for({}, tmp_path, upstream, defaults)


@pytest.mark.parametrize("limit", ["max_tokens", "max_completion_tokens"])
async def test_request_that_says_wins_over_the_defaults(limit: str, tmp_path: Path, upstream: ScriptedUpstream) -> None:
    given = {"temperature": 0, limit: 5}

    assert {"model": "one-up", **ask(), **given} == await sent_for(given, tmp_path, upstream, DEFAULTS)


@pytest.mark.parametrize(
    ("model", "field"),
    [
        ("gpt-5.4", "max_completion_tokens"),
        ("o1-mini", "max_completion_tokens"),
        ("glm-4.7", "max_completion_tokens"),
        ("org/glm-4.7-air", "max_completion_tokens"),
        ("gpt-4o", "max_tokens"),
        ("qwen3:4b", "max_tokens"),
    ],
)
async def test_default_limit_has_the_name_that_the_model_wants(
    model: str, field: str, tmp_path: Path, upstream: ScriptedUpstream
) -> None:
    body = await sent_for({}, tmp_path, upstream, {"max_tokens": 100}, model=f"openai/{model}")

    assert {"model": model, **ask(), field: 100} == body


async def test_limit_that_the_client_says_keeps_its_name(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    body = await sent_for({"max_tokens": 5}, tmp_path, upstream, DEFAULTS, model="openai/gpt-5.4")

    assert {"model": "gpt-5.4", **ask(), "max_tokens": 5, "temperature": 0.3} == body


async def test_default_limit_has_the_name_that_the_entry_says(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    body = await sent_for(
        {}, tmp_path, upstream, {"max_tokens": 100}, model="openai/gpt-5.4", max_tokens_field="max_tokens"
    )

    assert {"model": "gpt-5.4", **ask(), "max_tokens": 100} == body


async def test_each_fallback_gets_the_limit_under_its_own_name(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    upstream.scripts = [answers(404, {}), says()]
    config = make_config(
        entry("one", upstream.url, model="openai/gpt-5.4", fallbacks=["two"]), entry("two", upstream.url)
    )
    config["agents"] = {"defaults": {"max_tokens": 100}}
    async with serve_here(tmp_path, config) as server, open_client(server.url) as client:
        assert 200 == (await client.post(PATH, json=ask(model="one"))).status_code

    assert [("max_completion_tokens", None), (None, "max_tokens")] == [
        tuple(name if name in asked.body else None for name in ("max_completion_tokens", "max_tokens"))
        for asked in upstream.asked
    ]


# Back to the client


async def message_for(changes: dict[str, Any], folder: Path, upstream: ScriptedUpstream) -> dict[str, Any]:
    """The choice that the client gets where the upstream's message has *changes*."""
    upstream.scripts = [says(**changes)]
    async with serve_here(folder, make_config(entry("one", upstream.url))) as server, open_client(server.url) as client:
        answer = await client.post(PATH, json=ask())
    assert 200 == answer.status_code, answer.text
    (choice,) = answer.json()["choices"]
    assert {"index", "message", "logprobs", "finish_reason"} == choice.keys()
    return dict(choice)


async def test_tool_calls_come_back_unharmed(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    calls = [CALL, {**CALL, "id": "call_2", "function": {"name": "look", "arguments": ""}}]
    choice = await message_for(
        {"content": None, "tool_calls": calls, "finish_reason": "tool_calls"}, tmp_path, upstream
    )

    assert calls == choice["message"]["tool_calls"]
    assert (None, "tool_calls") == (choice["message"]["content"], choice["finish_reason"])


@pytest.mark.parametrize("reason", ["stop", "length", "tool_calls", "content_filter", "function_call"])
async def test_finish_reason_comes_back(reason: str, tmp_path: Path, upstream: ScriptedUpstream) -> None:
    assert reason == (await message_for({"finish_reason": reason}, tmp_path, upstream))["finish_reason"]


@pytest.mark.parametrize(
    "fields",
    [
        {"content": " \n\u0000\u2028\U0001f642 "},
        {"content": ""},
        {"content": None, "refusal": "No."},
        {"content": "a", "reasoning_content": "hm"},
        {"content": "a", "annotations": [{"type": "url_citation", "url_citation": {"url": "x"}}]},
    ],
)
async def test_message_comes_back_unharmed(fields: dict[str, Any], tmp_path: Path, upstream: ScriptedUpstream) -> None:
    choice = await message_for(fields, tmp_path, upstream)

    assert {"role": "assistant", "refusal": None, **fields} == choice["message"]


async def test_usage_comes_back_with_all_its_details(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    usage = {**USAGE, "prompt_tokens_details": {"cached_tokens": 3}, "cost": 0.00012}
    upstream.scripts = [answers(200, {**completion(), "usage": usage})]
    config = make_config(entry("one", upstream.url))
    async with serve_here(tmp_path, config) as server, open_client(server.url) as client:
        assert usage == (await client.post(PATH, json=ask())).json()["usage"]


async def test_logprobs_and_fingerprint_come_back(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    logprobs = {"content": [{"token": "a", "logprob": -0.25, "bytes": [97], "top_logprobs": []}], "refusal": None}
    told = completion()
    told["choices"][0]["logprobs"] = logprobs
    upstream.scripts = [answers(200, {**told, "system_fingerprint": "fp_1", "service_tier": "flex"})]
    config = make_config(entry("one", upstream.url))
    async with serve_here(tmp_path, config) as server, open_client(server.url) as client:
        body = (await client.post(PATH, json=ask())).json()

    assert logprobs == body["choices"][0]["logprobs"]
    assert ("fp_1", "flex") == (body["system_fingerprint"], body["service_tier"])


async def test_command_over_http_is_text_for_the_model(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    config = make_config(entry("one", upstream.url), entry("two", upstream.url))
    async with serve_here(tmp_path, config) as server, open_client(server.url) as client:
        for text in ("/switch model to two", "/show model", "/list models", "/clear", "/help", "/exit", "/nothing"):
            answer = await client.post(PATH, json=ask(text))
            assert ("one", "Hello!") == (answer.json()["model"], answer.json()["choices"][0]["message"]["content"])
            assert text == upstream.asked[-1].body["messages"][0]["content"]
        assert server.gateway.sessions.selected("global") is None
