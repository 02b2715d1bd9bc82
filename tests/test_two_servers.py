"""Several servers of the real kind on one home, and clients who ask whichever is nearest."""

from __future__ import annotations

import random
from pathlib import Path

import trio
from fakes import ScriptedUpstream
from harness import Server, ask, entry, make_config, open_client, open_server
from serving import PATH
from test_sessions_cli import picoclaw

MODELS = ("one", "two", "three")
USERS = tuple(f"user-{number}" for number in range(6))
CHANGES = 15


async def change_and_look(servers: list[Server], user: str, dice: random.Random, last: dict[str, str]) -> None:
    """Name a model at one server, and see at another that it is in force as soon as that was answered."""
    for _ in range(CHANGES):
        last[user] = dice.choice(MODELS)
        for fields in ({"model": last[user]}, {}):
            async with open_client(dice.choice(servers).url) as client:
                answer = await client.post(PATH, json=ask(user=user, **fields))
            assert (200, last[user]) == (answer.status_code, answer.json()["model"])


async def test_servers_of_one_home_see_each_others_changes_and_lose_none(
    tmp_path: Path, upstream: ScriptedUpstream
) -> None:
    config = make_config(
        *(entry(model, upstream.url) for model in MODELS), model_scope="session", gateway={"log_level": "error"}
    )
    last: dict[str, str] = {}
    async with (
        open_server(tmp_path, config) as first,
        open_server(tmp_path, None) as second,
        open_server(tmp_path, None, "hypercorn", "--workers", "2") as third,
    ):
        async with trio.open_nursery() as nursery:
            for number, user in enumerate(USERS):
                nursery.start_soon(change_and_look, [first, second, third], user, random.Random(number), last)
        status, listed = await picoclaw(tmp_path, "list")
        assert [0, 0, 0, 0] == [status, *[await server.stop() for server in (first, second, third)]]

    assert {f"openai:{user}": model for user, model in last.items()} == dict(
        line.split("\t")[:2] for line in listed.splitlines()
    )
    assert (0, listed) == await picoclaw(tmp_path, "list")
    assert not [*(tmp_path / ".picoclaw").glob("*damaged*")]
