"""What a reload leaves as it is, and what it brings."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import orjson
import pytest
from fakes import ScriptedUpstream, answers, error_body, says
from harness import TOKEN, Here, ask, entry, make_config, make_environment, open_client, serve_here, write_config
from serving import PATH
from streams import call, calls

from picoclaw_trio.admission import AdmissionStatistics
from picoclaw_trio.config import load_config
from picoclaw_trio.errors import BusyError

OTHER = "sk-other"
BUY: Any = {"type": "function", "function": {"name": "buy", "parameters": {"type": "object"}}}


def reload(server: Here, home: Path, config: Mapping[str, Any]) -> None:
    """What the server does when its file has changed."""
    write_config(home, config)
    server.app.gateway = server.app.gateway.with_config(load_config(make_environment(home)))


# Tokens


@pytest.mark.parametrize("tokens", [[TOKEN, OTHER], [OTHER, TOKEN], [OTHER, OTHER, TOKEN, TOKEN]])
async def test_an_unfinished_turn_is_its_own_tokens_over_a_reload(
    tokens: list[str], tmp_path: Path, upstream: ScriptedUpstream
) -> None:
    (tmp_path / "price").write_text("7 gold")
    config = {
        **make_config(entry("m", upstream.url)),
        "agents": {"defaults": {"workspace": str(tmp_path)}},
        "tools": {"allow": {"http": ["read_file"]}},
    }
    upstream.scripts = [calls(call("1", "read_file", path="price"), call("2", "buy")), says("Well.")]

    async def sent_after_reload(server: Here, token: str, messages: list[Any]) -> bytes:
        async with open_client(server.url, Authorization=f"Bearer {token}") as client:
            assert 200 == (await client.post(PATH, json={"messages": messages, "tools": [BUY]})).status_code
        return orjson.dumps(upstream.asked[-1].body)

    async with serve_here(tmp_path, config) as server, open_client(server.url) as client:
        reply = await client.post(PATH, json=ask("Buy it.", tools=[BUY]))
        message = reply.json()["choices"][0]["message"]
        assert ["2"] == [one["id"] for one in message["tool_calls"]]
        config["gateway"]["openai_api"]["bearer_tokens"] = tokens
        reload(server, tmp_path, config)

        result = {"role": "tool", "tool_call_id": "2", "content": "paid"}
        messages = [*ask("Buy it.")["messages"], message, result]
        assert b"7 gold" not in await sent_after_reload(server, OTHER, messages)
        assert b"7 gold" in await sent_after_reload(server, TOKEN, messages)


# Wrong tokens


async def wrong_token(server: Here) -> int:
    async with open_client(server.url, Authorization="Bearer sk-wrong") as client:
        return (await client.post(PATH, json=ask())).status_code


async def test_an_address_stays_slowed_down_over_a_reload(tmp_path: Path) -> None:
    config = make_config(wrong_tokens_per_minute=2)
    async with serve_here(tmp_path, config) as server:
        assert [401, 401, 429] == [await wrong_token(server) for _ in range(3)]
        reload(server, tmp_path, config)
        assert 429 == await wrong_token(server)


@pytest.mark.parametrize(("per_minute", "statuses"), [(0, [401, 401, 401]), (1, [429, 429, 429]), (3, [401, 401, 429])])
async def test_a_reload_brings_another_number_of_wrong_tokens(
    per_minute: int, statuses: list[int], tmp_path: Path
) -> None:
    async with serve_here(tmp_path, make_config(wrong_tokens_per_minute=2)) as server:
        assert 401 == await wrong_token(server)
        reload(server, tmp_path, make_config(wrong_tokens_per_minute=per_minute))
        assert statuses == [await wrong_token(server) for _ in range(3)]


# Limits of turns, and attempts


async def test_a_reload_brings_other_limits_of_turns(tmp_path: Path) -> None:
    async with serve_here(tmp_path, make_config(max_turns=1, max_waiting=0)) as server:
        admission = server.gateway.admission
        async with admission.turn(None):
            reload(server, tmp_path, make_config(max_turns=2, max_waiting=3, max_wait=0.001))
            async with admission.turn(None):
                assert AdmissionStatistics(2, 0) == server.app.gateway.admission.statistics()
                with pytest.raises(BusyError, match="in time"):  # it may wait now, if not for long
                    await admission.turn(None).__aenter__()
        assert (2, 3, 0.001) == (admission.max_turns, admission.max_waiting, admission.max_wait)


@pytest.mark.parametrize("retries", [0, 1, 3])
async def test_a_reload_brings_another_number_of_attempts(
    retries: int, tmp_path: Path, upstream: ScriptedUpstream
) -> None:
    upstream.scripts = [answers(500, error_body("no"))]
    config = make_config(entry("m", upstream.url))
    async with serve_here(tmp_path, config) as server, open_client(server.url) as client:
        defaults = {"max_llm_retries": retries, "llm_retry_backoff_secs": 0.0}
        reload(server, tmp_path, {**config, "agents": {"defaults": defaults}})
        assert 502 == (await client.post(PATH, json=ask())).status_code

    assert retries + 1 == len(upstream.asked)
    assert 0.0 == server.gateway.upstream.policy.base_delay
