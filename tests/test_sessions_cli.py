"""``picoclaw sessions``, as a process beside a running server."""

from __future__ import annotations

from pathlib import Path

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


async def test_command_line_and_server_see_each_other_s_changes(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    config = make_config(entry("one", upstream.url), entry("two", upstream.url), model_scope="session")
    async with open_server(tmp_path, config) as server, open_client(server.url) as client:
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
