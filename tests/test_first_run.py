"""The server on a machine where nothing has been configured yet, and what it does to a configuration: nothing."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import socket
import stat
from pathlib import Path
from typing import Any

import httpx2
import pytest
import trio
from commands import run, snapshot
from fakes import ScriptedUpstream
from harness import (
    HEADERS,
    KINDS,
    START_TIMEOUT,
    TOKEN,
    Kind,
    Server,
    ask,
    children_that_catch,
    command,
    entry,
    make_config,
    make_environment,
    open_client,
    open_server,
)
from serving import PATH, wait_until

from picoclaw_trio import app
from picoclaw_trio.config import load_config
from picoclaw_trio.echo import LABEL

ANY_PORT = ("--port", "0")


def token_of(home: Path) -> str:
    config = json.loads((home / ".picoclaw" / "config.json").read_bytes())
    (token,) = config["gateway"]["openai_api"]["bearer_tokens"]
    return str(token)


async def told(server: Server) -> str:
    """What the server says at its start, once the last line of it is there."""
    await wait_until(lambda: b"Hello" in server.log)
    return server.log.decode()


async def test_first_start_writes_a_configuration_for_its_owner_alone(tmp_path: Path) -> None:
    async with open_server(tmp_path, None, "gateway", *ANY_PORT) as server:
        said = await told(server)

    folder = tmp_path / ".picoclaw"
    path = folder / "config.json"
    assert 0o700 == stat.S_IMODE(folder.stat().st_mode)
    assert 0o600 == stat.S_IMODE(path.stat().st_mode)
    assert str(path) in said
    config = load_config(make_environment(tmp_path))
    assert ("127.0.0.1", 18790) == (config.gateway.host, config.gateway.port)
    assert config.gateway.openai_api.enabled
    assert [("echo", "echo")] == [(entry.model_name, entry.vendor) for entry in config.model_list]
    assert "echo" == config.default_alias
    assert len(token_of(tmp_path)) > 32


async def test_server_starts_also_where_nothing_can_be_told(tmp_path: Path) -> None:
    """The first configuration as well as the address, and what there is to try."""
    words = ["sh", "-c", 'exec "$@" 2>/dev/full', "sh", *command("gateway", *ANY_PORT)]
    process = await trio.lowlevel.open_process(words, env=make_environment(tmp_path), cwd=tmp_path)
    with trio.fail_after(START_TIMEOUT):
        while process.pid not in children_that_catch(signal.SIGTERM):
            await trio.sleep(0.02)
            assert process.poll() is None
        process.terminate()
        assert 0 == await process.wait()


async def test_curl_line_that_is_printed_works(tmp_path: Path) -> None:
    async with open_server(tmp_path, None, "gateway", *ANY_PORT) as server:
        line = (await told(server)).partition("Try it:\n")[2]
        assert line.lstrip().startswith("curl ")
        done = await trio.run_process(["sh", "-c", line], capture_stdout=True, capture_stderr=True)

    answer = json.loads(done.stdout)
    assert "echo" == answer["model"]
    assert f"{LABEL} Hello" == answer["choices"][0]["message"]["content"]


async def test_token_is_fresh_and_needed(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    for home in (first, second):
        home.mkdir()
        async with open_server(home, None, "gateway", *ANY_PORT) as server:
            found = []
            for token in (TOKEN, token_of(home)):
                async with open_client(server.url, Authorization=f"Bearer {token}") as client:
                    found.append((await client.post(PATH, json=ask())).status_code)
        assert [401, 200] == found
    assert token_of(first) != token_of(second)


async def test_second_start_changes_nothing_and_tells_no_token(tmp_path: Path) -> None:
    async with open_server(tmp_path, None, "gateway", *ANY_PORT):
        pass
    path = tmp_path / ".picoclaw" / "config.json"
    before = path.read_bytes()
    async with open_server(tmp_path, None, "gateway", *ANY_PORT) as server:
        assert 0 == await server.stop()
    assert before == path.read_bytes()
    assert token_of(tmp_path) not in server.log.decode()
    assert b"first one" not in server.log


async def test_start_at_a_taken_port_leaves_the_first_configuration_to_the_next_one(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        ran = await run(tmp_path, "gateway", "--port", str(taken.getsockname()[1]))
    assert (1, "") == (ran.status, ran.out)
    assert {} == snapshot(tmp_path)
    async with open_server(tmp_path, None, "gateway", *ANY_PORT) as server:
        assert token_of(tmp_path) in await told(server)


async def test_no_token_is_told_where_the_environment_has_others(tmp_path: Path) -> None:
    environment = {"PICOCLAW_GATEWAY_OPENAI_API_BEARER_TOKENS": TOKEN}
    async with open_server(tmp_path, None, "gateway", *ANY_PORT, **environment) as server:
        assert 0 == await server.stop()
    assert "first one" in server.log.decode()
    assert "curl" not in server.log.decode()


async def test_first_configuration_is_written_where_the_environment_says(tmp_path: Path) -> None:
    path = tmp_path / "elsewhere" / "mine.json"
    async with open_server(tmp_path, None, "gateway", *ANY_PORT, PICOCLAW_CONFIG=str(path)) as server:
        assert str(path) in await told(server)
    assert 0o600 == stat.S_IMODE(path.stat().st_mode)
    assert not (tmp_path / ".picoclaw" / "config.json").exists()


async def test_first_configuration_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / ".picoclaw").write_text("in the way")

    ran = await run(tmp_path, "gateway", *ANY_PORT)

    assert (1, "") == (ran.status, ran.out)
    assert "cannot be written" in ran.err
    assert "Traceback" not in ran.err


# Hypercorn alone


@pytest.mark.parametrize("workers", [1, 2])
async def test_hypercorn_without_a_configuration_serves_with_the_endpoint_off(workers: int, tmp_path: Path) -> None:
    arguments = [] if workers == 1 else ["--workers", str(workers)]
    async with open_server(tmp_path, None, "hypercorn", *arguments) as server, open_client(server.url) as client:
        await wait_until(lambda: workers <= server.log.count(b"Running on"), START_TIMEOUT)
        assert workers == server.log.count(b"Running on")
        answer = await client.post(PATH, json=ask())
        assert (404, "not_found") == (answer.status_code, answer.json()["error"]["code"])
        assert [200, 200] == [(await client.get(path)).status_code for path in ("/health", "/ready")]
        assert 0 == await server.stop()

    assert not (tmp_path / ".picoclaw" / "config.json").exists()
    lines = [line for line in server.log.decode().splitlines() if "gateway.openai_api.enabled" in line]
    assert workers == len(lines)
    assert "bearer_tokens" in lines[0]
    assert str(tmp_path / ".picoclaw" / "config.json") in lines[0]


async def test_hypercorn_without_its_trio_worker_does_not_start_and_says_why(tmp_path: Path) -> None:
    words = [word for word in command("hypercorn") if word not in ("--worker-class", "trio")]
    with trio.fail_after(START_TIMEOUT):
        done = await trio.run_process(
            words, check=False, capture_stderr=True, env=make_environment(tmp_path), cwd=tmp_path
        )

    first = done.stderr.decode().splitlines()[0]
    assert "start Hypercorn with --worker-class trio" in first
    assert b"Running on" not in done.stderr


def test_request_on_another_event_loop_is_an_error_that_says_so() -> None:
    """A server may go on where the application has not started."""
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run(app({"type": "http"}, send, send))  # type: ignore[arg-type]  # that is all it looks at
    start, end = sent
    assert (500, b"application/json") == (start["status"], dict(start["headers"])[b"content-type"])
    error = json.loads(end["body"])["error"]
    assert ("server_error", "wrong_event_loop") == (error["type"], error["code"])
    assert "--worker-class trio" in error["message"]


# A configuration that is there

OF_A_PERSON = """{ // of a person
}"""
PICOCLAW: dict[str, Any] = {
    "version": 2,
    "agents": {"defaults": {"workspace": "~/.picoclaw/workspace", "model": "mine", "max_tool_iterations": 20}},
    "channels": {"telegram": {"enabled": False, "token": ""}},
    "tools": {"web": {"brave": {"enabled": False}}},
    "gateway": {"host": "127.0.0.1", "port": 0},
    "model_list": [{"model_name": "mine", "model": "echo/echo"}],
}


@pytest.mark.parametrize("kind", KINDS)
async def test_picoclaws_own_configuration_serves_and_is_never_rewritten(kind: Kind, tmp_path: Path) -> None:
    folder = tmp_path / ".picoclaw"
    folder.mkdir()
    path = folder / "config.json"
    path.write_text(json.dumps(PICOCLAW, indent=3) + "\n\n")
    before = (path.read_bytes(), path.stat())
    environment = {
        "PICOCLAW_GATEWAY_OPENAI_API_ENABLED": "true",
        "PICOCLAW_GATEWAY_OPENAI_API_BEARER_TOKENS": TOKEN,
    }
    async with open_server(tmp_path, None, kind, **environment) as server, open_client(server.url) as client:
        assert "mine" == (await client.post(PATH, json=ask(model="mine"))).json()["model"]
        assert 0 == await server.stop()

    after = path.stat()
    assert before[0] == path.read_bytes()
    assert (before[1].st_mtime_ns, before[1].st_ino, before[1].st_mode) == (
        after.st_mtime_ns,
        after.st_ino,
        after.st_mode,
    )


@pytest.mark.parametrize("text", ["", OF_A_PERSON, "[]"])
async def test_configuration_that_cannot_be_read_is_told_and_left_alone(text: str, tmp_path: Path) -> None:
    folder = tmp_path / ".picoclaw"
    folder.mkdir()
    (folder / "config.json").write_text(text)

    ran = await run(tmp_path, "gateway", *ANY_PORT)

    assert (1, "") == (ran.status, ran.out)
    assert str(folder / "config.json") in ran.err
    assert {".picoclaw/config.json": text.encode()} == snapshot(tmp_path)


async def test_configuration_without_the_endpoint_says_how_to_turn_it_on(tmp_path: Path) -> None:
    config = make_config()
    del config["gateway"]["openai_api"]
    async with open_server(tmp_path, config) as server, open_client(server.url) as client:
        await wait_until(lambda: b"gateway.openai_api.enabled" in server.log)
        assert 404 == (await client.post(PATH, json=ask())).status_code


async def test_configuration_without_a_token_says_so(tmp_path: Path) -> None:
    async with open_server(tmp_path, make_config(bearer_tokens=[])) as server, open_client(server.url) as client:
        await wait_until(lambda: b"bearer_tokens" in server.log)
        assert 401 == (await client.post(PATH, json=ask())).status_code


async def test_no_secret_of_the_configuration_is_ever_logged(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    config = make_config(entry("one", upstream.url), gateway={"log_level": "debug"})
    async with open_server(tmp_path, config) as server, httpx2.AsyncClient(trust_env=False) as client:
        for headers in (HEADERS, {"Authorization": "Bearer sk-of-a-stranger"}):
            await client.post(f"{server.url}{PATH}", json=ask("a word of mine"), headers=headers)
        assert 0 == await server.stop()

    log = server.log.decode()
    for secret in (TOKEN, "sk-up-secret", "sk-of-a-stranger", "a word of mine"):
        assert not re.search(re.escape(secret), log)
