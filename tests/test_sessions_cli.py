"""``picoclaw sessions``, as a process beside a running server."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx2
import orjson
import trio
from fakes import ScriptedUpstream
from harness import ask, command, entry, make_config, make_environment, open_client, open_server

PATH = "/v1/chat/completions"


async def picoclaw(home: Path, *arguments: str) -> tuple[int, str]:
    words = [*command("gateway")[:-1], "sessions", *arguments]
    result = await trio.run_process(
        words, env=make_environment(home), cwd=home, capture_stdout=True, capture_stderr=True, check=False
    )
    return result.returncode, result.stdout.decode()


def two_models(upstream: ScriptedUpstream, **api: Any) -> dict[str, Any]:
    return make_config(entry("one", upstream.url), entry("two", upstream.url), model_scope="session", **api)


async def model_of(client: httpx2.AsyncClient, **fields: Any) -> str:
    return str((await client.post(PATH, json=ask(**fields))).json()["model"])


async def listed(home: Path) -> list[str]:
    status, shown = await picoclaw(home, "list")
    assert 0 == status
    return [line.split("\t")[0] for line in shown.splitlines() if line]


async def test_command_line_and_server_see_each_other_s_changes(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    async with open_server(tmp_path, two_models(upstream)) as server, open_client(server.url) as client:
        await client.post(PATH, json=ask(model="two", user="alice"))

        status, shown = await picoclaw(tmp_path, "list")
        assert (0, ["openai:alice", "two"]) == (status, shown.split("\t")[:2])
        assert (0, shown) == await picoclaw(tmp_path, "show", "openai:alice")
        document = orjson.loads((await picoclaw(tmp_path, "export"))[1])
        assert "two" == document["sessions"]["openai:alice"]["model"]

        assert "two" == (await client.post(PATH, json=ask(user="alice"))).json()["model"]
        assert (0, "") == await picoclaw(tmp_path, "delete", "openai:alice")
        assert "one" == (await client.post(PATH, json=ask(user="alice"))).json()["model"]


async def test_unknown_key_is_a_failure(tmp_path: Path) -> None:
    (tmp_path / ".picoclaw").mkdir()
    assert (1, "") == await picoclaw(tmp_path, "show", "openai:nobody")
    assert (1, "") == await picoclaw(tmp_path, "delete", "openai:nobody")


async def test_server_keeps_as_many_sessions_as_are_configured(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    async with open_server(tmp_path, two_models(upstream, max_sessions=3)) as server, open_client(server.url) as client:
        for user in ("a", "b", "c"):
            assert "two" == await model_of(client, model="two", user=user)
        assert "two" == await model_of(client, user="a")  # used, so "b" goes first
        for user in ("d", "e"):
            await model_of(client, model="two", user=user)

        assert ["openai:a", "openai:d", "openai:e"] == await listed(tmp_path)
        assert ["two", "one", "one"] == [await model_of(client, user=user) for user in ("a", "b", "c")]
        assert 0 == await server.stop()
    assert {"openai:a", "openai:d", "openai:e"} == {*await listed(tmp_path)}


async def test_server_forgets_sessions_that_nobody_used_for_the_configured_time(
    tmp_path: Path, upstream: ScriptedUpstream
) -> None:
    async with open_server(tmp_path, two_models(upstream, session_ttl=4)) as server, open_client(server.url) as client:
        await model_of(client, model="two", user="a")
        assert "two" == await model_of(client, user="a")
        with trio.fail_after(30):
            while await listed(tmp_path):  # time passes; each look is a process of its own
                pass
        assert "one" == await model_of(client, user="a")
