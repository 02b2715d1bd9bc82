"""The server is killed at random moments under load, and loses nothing that it has acknowledged.

Some rounds by default; ``PICOCLAW_TEST_KILLS=200`` makes it 200.
"""

from __future__ import annotations

import os
import random
import signal
from pathlib import Path

import httpx2
import orjson
import pytest
import trio
from fakes import ScriptedUpstream
from harness import Server, ask, entry, make_config, open_client, open_server

ROUNDS = int(os.environ.get("PICOCLAW_TEST_KILLS", "10"))
SEED = int(os.environ.get("PICOCLAW_TEST_SEED", "1"))
CLIENTS = 12
PATH = "/v1/chat/completions"
MODELS = ("one", "two", "three")


async def select_until_killed(server: Server, user: str, dice: random.Random, known: dict[str, set[str]]) -> None:
    """Change one session's model again and again; *known*: what the session may hold, as far as its client knows."""
    async with open_client(server.url) as client:
        while True:
            model = dice.choice(MODELS)
            known[user].add(model)  # sent, and perhaps stored
            try:
                answer = await client.post(PATH, json=ask(model=model, user=user))
            except httpx2.TransportError:
                return
            assert 200 == answer.status_code
            known[user] = {model}  # acknowledged


async def check_remembered(server: Server, known: dict[str, set[str]]) -> None:
    async with open_client(server.url) as client:
        for user, models in known.items():
            answer = await client.post(PATH, json=ask(user=user))
            assert answer.json()["model"] in models


@pytest.mark.slow
async def test_killed_server_remembers_all_that_it_acknowledged(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    dice = random.Random(SEED)
    config = make_config(
        *(entry(model, upstream.url) for model in MODELS), model_scope="session", gateway={"log_level": "error"}
    )
    # Where nothing is stored the first model answers.
    known = {f"user-{number}": {MODELS[0]} for number in range(CLIENTS)}
    for _ in range(ROUNDS):
        async with open_server(tmp_path, config) as server:
            await check_remembered(server, known)
            async with trio.open_nursery() as nursery:
                for user in known:
                    nursery.start_soon(select_until_killed, server, user, dice, known)
                await trio.sleep(dice.uniform(0.01, 0.3))
                os.kill(server.process.pid, signal.SIGKILL)
            assert b"damaged" not in server.log
    async with open_server(tmp_path, config) as server:
        await check_remembered(server, known)
        assert 0 == await server.stop()
    document = orjson.loads((tmp_path / ".picoclaw" / "openai_sessions.json").read_bytes())
    assert document["sessions"].keys() <= {f"openai:{user}" for user in known}
