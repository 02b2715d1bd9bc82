"""``picoclaw sessions``, as a process beside a running server."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx2
import orjson
import trio
from fakes import ScriptedUpstream
from harness import ask, command, entry, make_config, make_environment, open_client, open_server, write_config
from memory_stage import answer, memory_in, recalled, take_turn
from state_disks import names

from picoclaw_trio.memory import FOLDER_NAME, Said
from picoclaw_trio.state import open_sessions

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


async def test_conversations_are_told_with_the_selections(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    config = make_config(entry("one", upstream.url), entry("two", upstream.url), model_scope="session")
    folder = tmp_path / ".picoclaw" / FOLDER_NAME
    async with (
        open_server(tmp_path, config) as server,
        open_client(server.url) as client,
        memory_in(folder) as memory,
    ):
        await client.post(PATH, json=ask(model="two", user="alice"))
        await take_turn(memory, "hello", reply="Hi!", key="openai:alice")
        await take_turn(memory, "\x1b[2Jhello", reply="Hi!", key="openai:bob")

        lines = [line.split("\t") for line in (await picoclaw(tmp_path, "list"))[1].splitlines()]
        assert [["openai:alice", "two"], ["openai:bob", "-"]] == [line[:2] for line in lines]
        assert all(line[3].startswith("2 messages, ") for line in lines)

        shown = (await picoclaw(tmp_path, "show", "openai:bob"))[1]
        assert "\n\nuser: \N{REPLACEMENT CHARACTER}[2Jhello\n\nassistant: Hi!\n" in shown

        document = orjson.loads((await picoclaw(tmp_path, "export"))[1])
        assert {"openai:alice"} == set(document["sessions"])
        conversations = orjson.loads((await picoclaw(tmp_path, "export", "--conversations"))[1])
        assert {"openai:alice", "openai:bob"} == set(conversations)
        said = [(message["role"], message["content"]) for message in conversations["openai:alice"]]
        assert [("user", "hello"), ("assistant", "Hi!")] == said

        assert (0, "") == await picoclaw(tmp_path, "delete", "openai:alice")
        assert () == await memory.show("openai:alice")
        assert "one" == (await client.post(PATH, json=ask(user="alice"))).json()["model"]
        assert (0, "") == await picoclaw(tmp_path, "delete", "openai:bob")
        assert [] == await memory_names(folder)


async def test_name_that_a_client_chose_gives_no_orders_and_makes_no_row(tmp_path: Path) -> None:
    write_config(tmp_path, make_config())
    key = "openai:\x1b]0;title\x07\x1b[31mred\nopenai:fake\tone\u202e\u00a0\u0085"
    async with open_sessions(tmp_path / ".picoclaw") as sessions:
        await sessions.select(key, "echo").wait()

    status, shown = await picoclaw(tmp_path, "list")
    assert (0, 1) == (status, shown.count("\n"))
    assert r"openai:\x1b]0;title\x07\x1b[31mred\nopenai:fake\tone\u202e\u00a0\u0085" == shown.split("\t")[0]
    assert (0, shown) == await picoclaw(tmp_path, "show", key)
    assert (0, "") == await picoclaw(tmp_path, "delete", key)
    assert (0, "") == await picoclaw(tmp_path, "list")


async def test_export_gives_no_orders_and_says_the_same(tmp_path: Path) -> None:
    write_config(tmp_path, make_config())
    orders = "\x7f\x9b2J\u2028\u202e"
    key = f"openai:{orders}"
    async with open_sessions(tmp_path / ".picoclaw") as sessions:
        await sessions.select(key, "echo").wait()
    async with memory_in(tmp_path / ".picoclaw" / FOLDER_NAME) as memory:
        await take_turn(memory, orders, reply=orders, key=key)

    _, selections = await picoclaw(tmp_path, "export")
    _, conversations = await picoclaw(tmp_path, "export", "--conversations")
    assert [] == [sign for sign in orders if sign in selections + conversations and sign not in "2J"]
    assert "echo" == orjson.loads(selections)["sessions"][key]["model"]
    assert [orders, orders] == [message["content"] for message in orjson.loads(conversations)[key]]


async def test_conversation_whose_turn_runs_is_deleted_when_it_has_ended(tmp_path: Path) -> None:
    folder = tmp_path / ".picoclaw" / FOLDER_NAME
    outcomes = []

    async def delete() -> None:
        outcomes.append(await picoclaw(tmp_path, "delete", "openai:ann"))

    async with memory_in(folder) as memory, trio.open_nursery() as nursery:
        await take_turn(memory, "a", reply="A")
        async with recalled(memory, "b") as recollection:
            nursery.start_soon(delete)
            await recollection.record([Said(answer("B"))])
    assert [(0, "")] == outcomes
    assert [] == await memory_names(folder)


async def test_looking_for_conversations_makes_none(tmp_path: Path) -> None:
    (tmp_path / ".picoclaw").mkdir()
    assert (0, "") == await picoclaw(tmp_path, "list")
    assert (0, "{}\n") == await picoclaw(tmp_path, "export", "--conversations")
    assert not await trio.Path(tmp_path / ".picoclaw" / FOLDER_NAME).exists()


async def memory_names(folder: Path) -> list[str]:
    return sorted(names(folder))


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
