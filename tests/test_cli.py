"""Every command, as a process of its own."""

from __future__ import annotations

import os
import re
import signal
import socket
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import httpx2
import pytest
import trio
from commands import at_terminal, converse, run, snapshot
from envelopes import check_error
from fakes import Exchange, ScriptedUpstream, answers, cuts, error_body, hangs, streams, text_frames
from harness import (
    KINDS,
    START_TIMEOUT,
    STOP_TIMEOUT,
    TOKEN,
    Kind,
    Server,
    ask,
    command,
    entry,
    make_config,
    make_environment,
    open_client,
    open_server,
    serve_here,
    write_config,
)
from serving import PATH, wait_until

from picoclaw_trio import __version__
from picoclaw_trio.echo import LABEL
from picoclaw_trio.state.sessions import open_sessions


def two_models(upstream: ScriptedUpstream, **api: Any) -> dict[str, Any]:
    return make_config(entry("one", upstream.url), entry("two", upstream.url), **api)


def says(*pieces: str) -> Any:
    """The terminal asks for streams."""
    return streams(*text_frames(*pieces))


# Usage


async def test_version_is_printed(tmp_path: Path) -> None:
    ran = await run(tmp_path, "version")

    assert (0, f"picoclaw_trio {__version__}\n", "") == (ran.status, ran.out, ran.err)


async def test_help_lists_every_command(tmp_path: Path) -> None:
    ran = await run(tmp_path, "--help")

    assert (0, "") == (ran.status, ran.err)
    for name in ("agent", "config", "gateway", "models", "status", "version"):
        assert re.search(rf"^  {name} ", ran.out, re.MULTILINE)


@pytest.mark.parametrize(
    ("command", "words"),
    [("agent", "with -m it is not read"), ("sessions list", "then those with a conversation alone; of each the least")],
)
async def test_help_says_what_one_might_not_expect(command: str, words: str, tmp_path: Path) -> None:
    ran = await run(tmp_path, *command.split(), "--help")

    assert (0, "") == (ran.status, ran.err)
    assert words in " ".join(ran.out.split())


@pytest.mark.parametrize(
    "arguments",
    [
        ["frobnicate"],
        ["gateway", "--frobnicate"],
        ["gateway", "--port", "65536"],
        ["gateway", "--port", "x"],
        ["gateway", "--port", ""],
        ["gateway", "--host", "a b"],
        ["gateway", "--host", ""],
        ["agent", "-m"],
        ["agent", "-m", " "],
    ],
    ids=" ".join,
)
async def test_wrong_usage_is_exit_2(arguments: list[str], tmp_path: Path) -> None:
    ran = await run(tmp_path, *arguments)

    assert (2, "") == (ran.status, ran.out)
    assert "Error: " in ran.err
    assert "integer" not in ran.err
    assert arguments[0] != "gateway" or arguments[1] in ran.err
    assert {} == snapshot(tmp_path)


# models, config check, status


async def test_models_are_listed_and_the_default_is_marked(tmp_path: Path) -> None:
    config = make_config(
        {"model_name": "one", "model": "openai/gpt-x", "api_key": "sk-secret-of-mine"},
        {"model_name": "two", "model": "echo/echo"},
        {"model_name": "three", "model": "gemini/gemini-x", "api_key": "sk-secret-too"},
    )
    write_config(tmp_path, {**config, "agents": {"defaults": {"model_name": "two"}}})

    ran = await run(tmp_path, "models")

    assert 0 == ran.status
    first, second, third = ran.out.splitlines()
    reason = "cannot be asked: gemini speaks its own protocol; api_base may name"
    assert third.startswith(f"  three\tgemini/gemini-x\t{reason}")
    assert first.startswith("  one\topenai/gpt-x\thttps://")
    assert second == "* two\techo/echo\tin process"
    assert "secret" not in ran.out


async def test_model_of_agent_md_that_is_not_configured_is_told(tmp_path: Path) -> None:
    write_config(tmp_path, make_config({"model_name": "one", "model": "echo/echo"}))
    workspace = tmp_path / ".picoclaw" / "workspace"
    workspace.mkdir()
    (workspace / "AGENT.md").write_text("---\nmodel: two\n---\n")

    ran = await run(tmp_path, "models")

    assert (0, "* one") == (ran.status, ran.out.partition("\t")[0])
    assert f"{workspace}/AGENT.md: model is no model_name of model_list, and is passed over\n" == ran.err


BROKEN = {
    "gateway": {"host": "127.0.0.1", "port": "18790", "openai_api": {"enabled": "true", "tokens": ["sk-secret-1"]}},
    "model_list": [{"model_name": "one", "model": "openai/gpt-x", "api_key": "sk-secret-2", "api_base": "nowhere"}],
}
PROBLEMS = ("$.gateway.port", "$.gateway.openai_api.enabled", "$.gateway.openai_api.tokens", "$.model_list[0].api_base")


@pytest.mark.parametrize("arguments", [["gateway"], ["agent", "-m", "Hello"], ["config", "check"]], ids=" ".join)
async def test_every_problem_of_the_configuration_is_told_and_the_exit_status_is_1(
    arguments: list[str], tmp_path: Path
) -> None:
    write_config(tmp_path, BROKEN)
    before = snapshot(tmp_path)

    ran = await run(tmp_path, *arguments)

    assert (1, "") == (ran.status, ran.out)
    assert [*PROBLEMS] == re.findall(r"^  (\$\S+?):? ", ran.err, re.MULTILINE)
    assert "secret" not in ran.err
    assert "Traceback" not in ran.err
    assert before == snapshot(tmp_path)


async def test_config_check_says_fine(tmp_path: Path) -> None:
    path = write_config(tmp_path, make_config())

    ran = await run(tmp_path, "config", "check")

    assert (0, f"{path}: fine\n", "") == (ran.status, ran.out, ran.err)


async def test_config_check_tells_what_may_not_be_meant_and_what_is_passed_over(tmp_path: Path) -> None:
    config = make_config(gateway={"hosts": "*"})
    path = write_config(tmp_path, {**config, "channels": {}, "tools": {"cron": {}, "max_paralel": 1}})

    ran = await run(tmp_path, "config", "check")

    assert (0, "") == (ran.status, ran.err)
    assert [
        f"{path}: can be used, with 2 warnings",
        '  warning: $.gateway.hosts: is not a known key, and is passed over; did you mean "host"?',
        '  warning: $.tools.max_paralel: is not a known key, and is passed over; did you mean "max_parallel"?',
        "  passed over, of other parts of PicoClaw: $.channels, $.tools.cron",
    ] == ran.out.splitlines()


async def test_config_check_says_so_where_there_is_no_file(tmp_path: Path) -> None:
    ran = await run(tmp_path, "config", "check")

    assert (0, "") == (ran.status, ran.err)
    assert "no configuration file" in ran.out


async def test_named_configuration_that_is_not_there_is_a_problem(tmp_path: Path) -> None:
    ran = await run(tmp_path, "config", "check", PICOCLAW_CONFIG=str(tmp_path / "none.json"))

    assert (1, "") == (ran.status, ran.out)
    assert "PICOCLAW_CONFIG" in ran.err


@pytest.mark.parametrize("arguments", [["status"], ["config", "check"]], ids=" ".join)
async def test_command_that_only_looks_writes_nothing(arguments: list[str], tmp_path: Path) -> None:
    assert 0 == (await run(tmp_path, *arguments)).status
    assert {} == snapshot(tmp_path)


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


async def test_status_tells_whether_the_server_answers(tmp_path: Path) -> None:
    port = free_port()
    config = make_config(gateway={"port": port}, model_scope="session")
    write_config(tmp_path, config)

    before = await run(tmp_path, "status")
    async with serve_here(tmp_path, config) as server, open_client(server.url) as client:
        await client.post(PATH, json=ask())
        during = await run(tmp_path, "status")
        server.gateway.admission.drain()
        stopping = await run(tmp_path, "status")

    assert [0, 0, 0] == [ran.status for ran in (before, during, stopping)]
    assert f"nothing answers at 127.0.0.1 port {port}" in before.out
    assert f"ready at 127.0.0.1 port {port}" in during.out
    # The numbers are those of this process, in which other tests have run.
    answers = int(re.findall(r"^answers: .*?(\d+) x 200", during.out, re.MULTILINE)[0])
    assert 1 <= answers < 1_000_000
    assert "0 running, 0 waiting" in during.out
    assert "not ready (status 503)" in stopping.out
    assert before.out.startswith(f"configuration: {tmp_path}/.picoclaw/config.json, as it stands now\n")
    for line in ("on, 1 bearer token\n", "session", "echo", str(tmp_path)):
        assert line in before.out
    assert TOKEN not in before.out


async def test_status_of_a_configuration_that_cannot_be_used_looks_for_a_server_all_the_same(tmp_path: Path) -> None:
    port = free_port()
    path = write_config(tmp_path, BROKEN)
    address = {"PICOCLAW_GATEWAY_PORT": str(port)}

    before = await run(tmp_path, "status", **address)
    async with serve_here(tmp_path / "another", make_config(gateway={"port": port})):
        during = await run(tmp_path, "status", **address)
    nowhere = await run(tmp_path, "status", PICOCLAW_GATEWAY_HOST="a b", PICOCLAW_GATEWAY_PORT="99999")

    assert f"configuration: {path}, which cannot be used as it stands now" in before.out
    assert f"nothing answers at 127.0.0.1 port {port}" in before.out
    assert f"ready at 127.0.0.1 port {port}" in during.out
    assert "nothing answers at a b port 99999" in nowhere.out
    for ran in (before, during, nowhere):
        assert 1 == ran.status
        assert "$.model_list[0].api_base" in ran.err
        assert "Traceback" not in ran.err


async def test_status_takes_whatever_else_answers_there(tmp_path: Path) -> None:
    async def answer(stream: trio.SocketStream) -> None:
        await stream.receive_some()
        await stream.send_all(b"HTTP/1.1 404 No\r\nContent-Length: 2\r\n\r\n\xff\xfe")
        await stream.aclose()

    async with trio.open_nursery() as nursery:
        (listener,) = await nursery.start(partial(trio.serve_tcp, answer, 0, host="127.0.0.1"))
        port = listener.socket.getsockname()[1]
        write_config(tmp_path, make_config(gateway={"port": port}))
        ran = await run(tmp_path, "status")
        nursery.cancel_scope.cancel()

    assert (0, "") == (ran.status, ran.err)
    assert f"not ready (status 404) at 127.0.0.1 port {port}" in ran.out


# agent -m


async def test_agent_prints_the_reply_and_nothing_else(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    upstream.scripts = [says("Hel", "lo!")]
    write_config(tmp_path, two_models(upstream))

    ran = await run(tmp_path, "agent", "-m", "How are you?")

    assert (0, "Hello!\n", "") == (ran.status, ran.out, ran.err)
    assert ("one-up", ask("How are you?")["messages"]) == (
        upstream.asked[0].body["model"],
        upstream.asked[0].body["messages"],
    )


async def test_agent_works_without_any_configuration_problem_on_a_bare_machine(tmp_path: Path) -> None:
    write_config(tmp_path, make_config())

    ran = await run(tmp_path, "agent", "-m", "Hello")

    assert (0, f"{LABEL} Hello\n") == (ran.status, ran.out)


async def test_agent_without_a_model_says_so(tmp_path: Path) -> None:
    ran = await run(tmp_path, "agent", "-m", "Hello")

    assert (1, "") == (ran.status, ran.out)
    assert "model_list is empty" in ran.err


async def test_agent_with_a_model_uses_it_for_the_run_and_changes_no_file(
    tmp_path: Path, upstream: ScriptedUpstream
) -> None:
    upstream.scripts = [says("Hello!")]
    config = two_models(upstream)
    async with serve_here(tmp_path, config) as server, open_client(server.url) as client:
        await client.post(PATH, json=ask(model="one"))
    before = snapshot(tmp_path)

    ran = await run(tmp_path, "agent", "--model", "two", "-m", "Hello")

    assert (0, "Hello!\n") == (ran.status, ran.out)
    assert "two-up" == upstream.asked[-1].body["model"]
    after = snapshot(tmp_path)
    assert before == {name: after[name] for name in before}
    assert ["cli-default"] == [Path(name).name[:11] for name in after.keys() - before.keys()]


async def test_agent_and_endpoint_never_see_each_others_model(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    upstream.scripts = [says("Hello!")]
    config = two_models(upstream, model_scope="session")
    async with serve_here(tmp_path, config) as server, open_client(server.url) as client:
        for user in (None, "default", "cli:default"):
            await client.post(PATH, json=ask(model="two", user=user))
        assert 0 == (await run(tmp_path, "agent", "-m", "Hello", "--session", "default")).status
        assert "one-up" == upstream.asked[-1].body["model"]
        assert 0 == (await run(tmp_path, "agent", "-m", "Hello", "--model", "one", "-s", "openai:default")).status
        await client.post(PATH, json=ask())
        assert "two-up" == upstream.asked[-1].body["model"]


async def test_agent_refuses_a_model_that_is_not_configured(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    write_config(tmp_path, two_models(upstream))

    ran = await run(tmp_path, "agent", "--model", "nobody", "-m", "Hello")

    assert (1, "") == (ran.status, ran.out)
    assert "'nobody'" in ran.err
    assert "one, two" in ran.err
    assert [] == upstream.asked


@pytest.mark.parametrize(
    ("script", "told"),
    [
        (answers(400, error_body("Too long.")), "Error: Too long.\n"),
        (cuts, "cut the connection"),
    ],
)
async def test_agent_tells_a_failure_on_standard_error(
    script: Any, told: str, tmp_path: Path, upstream: ScriptedUpstream
) -> None:
    upstream.scripts = [script]
    write_config(tmp_path, two_models(upstream))

    ran = await run(tmp_path, "agent", "-m", "Hello")

    assert (1, "") == (ran.status, ran.out)
    assert told in ran.err
    assert "Traceback" not in ran.err


async def test_agent_takes_text_that_is_no_text(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    upstream.scripts = [says("Hello!")]
    write_config(tmp_path, two_models(upstream))

    ran = await run(tmp_path, "agent", "-m", "caf\udce9")

    assert (0, "Hello!\n", "") == (ran.status, ran.out, ran.err)
    assert "caf\ufffd" == upstream.asked[0].body["messages"][0]["content"]


# A conversation over a pipe


async def test_conversation_is_remembered(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    upstream.scripts = [says("one"), says("two")]
    write_config(tmp_path, two_models(upstream))

    ran = await run(tmp_path, "agent", typed="first\n\n   \nsecond\n")

    assert (0, "one\ntwo\n", "") == (ran.status, ran.out, ran.err)
    roles = [(message["role"], message["content"]) for message in upstream.asked[1].body["messages"]]
    assert [("user", "first"), ("assistant", "one"), ("user", "second")] == roles


async def test_last_line_may_lack_its_end(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    upstream.scripts = [says("Hello!")]
    write_config(tmp_path, two_models(upstream))

    ran = await run(tmp_path, "agent", typed="first")

    assert (0, "Hello!\n") == (ran.status, ran.out)


async def test_pipe_that_is_empty_asks_nobody(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    write_config(tmp_path, two_models(upstream))

    ran = await run(tmp_path, "agent", typed="\n")

    assert (0, "", "") == (ran.status, ran.out, ran.err)
    assert [] == upstream.asked


async def test_slash_in_a_pipe_begins_a_question(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    upstream.scripts = [says("Hello!")]
    write_config(tmp_path, two_models(upstream))
    lines = ["first", "/clear", "/exit", "/etc/passwd is what?"]

    ran = await run(tmp_path, "agent", typed="\n".join(lines))

    assert (0, 4 * "Hello!\n", "") == (ran.status, ran.out, ran.err)
    said = [message["content"] for message in upstream.asked[-1].body["messages"] if message["role"] == "user"]
    assert lines == said


async def test_exit_leaves(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    write_config(tmp_path, two_models(upstream))
    async with at_terminal(tmp_path, "agent") as terminal:
        await terminal.see("> ")
        await terminal.type("/exit \r")
        assert 0 == await terminal.end()
    assert [] == upstream.asked


async def test_slash_commands_are_carried_out_and_not_said_to_the_model(
    tmp_path: Path, upstream: ScriptedUpstream
) -> None:
    upstream.scripts = [says("Hello!")]
    write_config(tmp_path, two_models(upstream))
    before = snapshot(tmp_path)
    lines = [
        "/show model",
        "/list models",
        "/switch model to two",
        "/show model",
        "/list models",
        "first",
        "/clear",
        "second",
        "/switch model to nobody",
        "/switch model to",
        "/show model",
        "/frobnicate",
        "/switch model",
        "/show",
        "/exit now",
        "/help",
    ]

    shown = [line for told in await converse(tmp_path, *lines) for line in told]

    assert [
        "Model: one",
        "* one",
        "  two",
        "Switched model from one to two.",
        "Model: two",
        "  one",
        "* two",
        "Hello!",
        "The conversation is forgotten.",
        "Hello!",
        "The model 'nobody' is not configured here. Configured models: one, two.",
        "Usage: /switch model to NAME",
        "Model: two",
        "There is no command /frobnicate. /help lists them.",
        "Usage: /switch model to NAME",
        "Usage: /show model, or /show reasoning",
        "Usage: /exit",
    ] == shown[:17]
    for name in ("/switch model to NAME", "/show model", "/list models", "/clear", "/help"):
        assert any(line.startswith(name) for line in shown[17:])
    assert [("two-up", "first"), ("two-up", "second")] == [
        (asked.body["model"], asked.body["messages"][0]["content"]) for asked in upstream.asked
    ]
    assert before["/".join((".picoclaw", "config.json"))] == snapshot(tmp_path)[".picoclaw/config.json"]
    async with open_sessions(tmp_path / ".picoclaw") as sessions:
        assert () == sessions.list()


async def test_pipe_goes_on_after_a_failure_and_the_exit_status_is_1(
    tmp_path: Path, upstream: ScriptedUpstream
) -> None:
    upstream.scripts = [answers(401, error_body("No such key.")), says("Hello!")]
    write_config(tmp_path, two_models(upstream))

    ran = await run(tmp_path, "agent", typed="first\nsecond\n")

    assert (1, "Hello!\n") == (ran.status, ran.out)
    refused = "error: The model's server refused the gateway's credentials."
    assert f"{refused} (status 401: No such key.)\n" in ran.err
    assert [["first"], ["second"]] == [
        [message["content"] for message in asked.body["messages"]] for asked in upstream.asked
    ]


async def test_conversation_takes_bytes_that_are_no_text(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    upstream.scripts = [says("Hello!")]
    write_config(tmp_path, two_models(upstream))

    ran = await run(tmp_path, "agent", typed=b"caf\xe9\n")

    assert (0, "Hello!\n", "") == (ran.status, ran.out, ran.err)
    assert "caf\ufffd" == upstream.asked[0].body["messages"][0]["content"]


# A conversation at a terminal


async def test_conversation_at_a_terminal(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    upstream.scripts = [hangs, says("Hello!")]
    write_config(tmp_path, two_models(upstream))
    async with at_terminal(tmp_path, "agent", "--model", "two") as terminal:
        await terminal.see("Model: two. /help lists the commands, Ctrl-D ends.")
        await terminal.see("> ")
        await terminal.type("first\n")
        await upstream.wait_asked()
        await terminal.type("\x03")
        await terminal.see("(cancelled)")
        with trio.fail_after(5):
            await upstream.asked[0].gone.wait()
        await terminal.see("> ")
        await terminal.type("second\n")
        await terminal.see("Hello!")
        await terminal.see("> ")
        await terminal.type("/show model\n")
        await terminal.see("Model: two")
        await terminal.see("> ")
        await terminal.type("\x04")
        assert 0 == await terminal.end()
    assert ["first", "second"] == [asked.body["messages"][0]["content"] for asked in upstream.asked]


# gateway: start


@pytest.mark.parametrize("kind", KINDS)
async def test_taken_port_is_told_and_the_exit_status_is_1(kind: Kind, tmp_path: Path) -> None:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen()
        port = sock.getsockname()[1]
        write_config(tmp_path, make_config(gateway={"port": port}))
        ran = await run_server(kind, tmp_path, *(["--bind", f"127.0.0.1:{port}"] if kind == "hypercorn" else []))

    assert 1 == ran[0]
    if kind == "gateway":
        assert f"cannot serve at 127.0.0.1:{port}" in ran[1]
        assert "Traceback" not in ran[1]


async def run_server(kind: Kind, home: Path, *arguments: str) -> tuple[int, str]:
    """A server that does not start: exit status and standard error."""
    with trio.fail_after(START_TIMEOUT):
        done = await trio.run_process(
            command(kind, *arguments), check=False, capture_stderr=True, env=make_environment(home), cwd=home
        )
    return done.returncode, done.stderr.decode()


NEWER = b'{"version": 2, "models": []}'
STATE = "openai_sessions.json"
UNUSABLE: dict[str, Callable[[Path], object]] = {
    "was written by a newer version": lambda home: (home / STATE).write_bytes(NEWER),
    "is not a file": lambda home: (home / STATE).mkdir(),
    "Is a directory": lambda home: (home / "openai_sessions.lock").mkdir(),
}


@pytest.mark.parametrize("reason", UNUSABLE)
@pytest.mark.parametrize("kind", KINDS)
async def test_state_that_cannot_be_used_is_told_and_left_alone(kind: Kind, reason: str, tmp_path: Path) -> None:
    home = write_config(tmp_path, make_config()).parent
    UNUSABLE[reason](home)
    before = snapshot(tmp_path)

    status, told = await run_server(kind, tmp_path)

    assert reason in told
    assert str(home) in told
    assert before.items() <= snapshot(tmp_path).items()
    if kind == "gateway":  # Hypercorn forgets its workers' status
        assert 1 == status
        assert "Traceback" not in told


@pytest.mark.parametrize("text", [b"", b"{", b"\x00" * 100, b'{"version": 1, "sessions": {"openai:a"'])
async def test_state_that_cannot_be_read_is_kept_aside_and_told(text: bytes, tmp_path: Path) -> None:
    home = write_config(tmp_path, make_config()).parent
    (home / STATE).write_bytes(text)
    async with open_server(tmp_path, None) as server, open_client(server.url) as client:
        assert 200 == (await client.post(PATH, json=ask(model="echo"))).status_code
        assert 0 == await server.stop()

    (kept,) = home.glob(f"{STATE}.*")
    assert text == kept.read_bytes()
    assert kept.name.encode() in server.log
    async with open_sessions(home) as sessions:
        assert "echo" == sessions.selected("global")


async def test_address_of_another_machine_is_told(tmp_path: Path) -> None:
    write_config(tmp_path, make_config())

    ran = await run(tmp_path, "gateway", "--host", "192.0.2.1")

    assert (1, "") == (ran.status, ran.out)
    assert "cannot serve at 192.0.2.1" in ran.err


async def test_hypercorn_ends_with_a_broken_configuration(tmp_path: Path) -> None:
    """Its exit status is Hypercorn's, which forgets that of its workers."""
    write_config(tmp_path, BROKEN)

    _, told = await run_server("hypercorn", tmp_path)

    assert all(problem in told for problem in PROBLEMS)
    assert "sk-secret" not in told


async def test_options_win_over_the_configuration(tmp_path: Path) -> None:
    config = make_config(gateway={"host": "192.0.2.1", "port": 1})
    arguments = ["--host", "localhost", "--port", "0"]
    async with open_server(tmp_path, config, "gateway", *arguments) as server, open_client(server.url) as client:
        assert 200 == (await client.get("/health")).status_code


async def test_several_hosts_are_served(tmp_path: Path) -> None:
    config = make_config(gateway={"host": "127.0.0.1, 127.0.0.2"})
    async with open_server(tmp_path, config) as server, httpx2.AsyncClient(trust_env=False) as client:
        await wait_until(lambda: 2 == server.log.count(b"Serving http://"), START_TIMEOUT)
        for url in re.findall(rb"Serving (\S+)", server.log):
            assert 200 == (await client.get(f"{url.decode()}/health")).status_code


async def test_two_names_of_one_address_are_served_once(tmp_path: Path) -> None:
    config = make_config(gateway={"host": "localhost, 127.0.0.1, localhost", "port": free_port()})
    async with open_server(tmp_path, config) as server, open_client(server.url) as client:
        assert 200 == (await client.get("/health")).status_code
        assert 0 == await server.stop()
    assert 1 == server.log.count(b"Serving http://")


async def test_address_that_cannot_be_served_is_told_alone(tmp_path: Path) -> None:
    write_config(tmp_path, make_config(gateway={"host": "127.0.0.1, 192.0.2.1"}))

    ran = await run(tmp_path, "gateway")

    assert (1, "") == (ran.status, ran.out)
    assert "cannot serve at 192.0.2.1:0:" in ran.err


# gateway: stop


async def says_later(exchange: Exchange) -> None:
    await exchange.begin_events()
    frames = text_frames("Hel", "lo!")
    await exchange.write(b"".join(frames[:2]))
    await trio.sleep(0.5)  # what still runs when the signal comes
    await exchange.write(b"".join(frames[2:]))
    await exchange.end()


@pytest.mark.parametrize(
    ("kind", "signum"), [("gateway", signal.SIGTERM), ("gateway", signal.SIGINT), ("hypercorn", signal.SIGTERM)]
)
async def test_signal_lets_a_running_turn_finish_and_the_exit_status_is_0(
    kind: Kind, signum: int, tmp_path: Path, upstream: ScriptedUpstream
) -> None:
    upstream.scripts = [says_later]
    found: list[httpx2.Response] = []
    async with (
        open_server(tmp_path, two_models(upstream, streaming=True), kind) as server,
        open_client(server.url) as client,
        trio.open_nursery() as nursery,
    ):

        async def post(**fields: Any) -> None:
            found.append(await client.post(PATH, json=ask(model="two", **fields)))

        nursery.start_soon(post)
        await upstream.wait_asked()
        assert 0 == await server.stop(signum)

    (answer,) = found
    assert (200, "Hello!") == (answer.status_code, answer.json()["choices"][0]["message"]["content"])
    async with open_sessions(tmp_path / ".picoclaw") as sessions:
        assert "two" == sessions.selected("global")


async def test_who_waits_in_line_is_sent_away_at_the_signal(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    go_on = trio.Event()

    async def waits_and_says(exchange: Exchange) -> None:
        await go_on.wait()
        await says_later(exchange)

    upstream.scripts = [waits_and_says]
    found: dict[str, httpx2.Response] = {}
    config = make_config(entry("one", upstream.url), max_turns=1)
    async with (
        open_server(tmp_path, config) as server,
        open_client(server.url) as client,
        trio.open_nursery() as nursery,
    ):

        async def post(name: str) -> None:
            found[name] = await client.post(PATH, json=ask())

        nursery.start_soon(post, "runs")
        await upstream.wait_asked()
        nursery.start_soon(post, "waits")
        with trio.fail_after(START_TIMEOUT):
            while "\npicoclaw_requests_waiting 1.0" not in (await client.get("/metrics")).text:
                pass
        server.process.send_signal(signal.SIGTERM)
        await wait_until(lambda: "waits" in found)
        go_on.set()
        with trio.fail_after(STOP_TIMEOUT):
            assert 0 == await server.process.wait()

    assert 200 == found["runs"].status_code
    check_error(found["waits"], 503, "shutting_down", type="server_error", retry_after="1")


@pytest.mark.parametrize("kind", KINDS)
async def test_grace_period_ends_what_runs(kind: Kind, tmp_path: Path, upstream: ScriptedUpstream) -> None:
    upstream.scripts = [hangs]
    config = make_config(entry("one", upstream.url), gateway={"grace": 0.2})
    arguments = ["--graceful-timeout", "1"] if kind == "hypercorn" else []
    async with open_server(tmp_path, config, kind, *arguments) as server, trio.open_nursery() as nursery:
        nursery.start_soon(be_cut_off, server)
        await upstream.wait_asked()
        with trio.fail_after(10):
            assert 0 == await server.stop()
            await upstream.wait_all_gone()


async def be_cut_off(server: Server) -> None:
    """Whoever is cut off gets an answer that says why."""
    async with open_client(server.url) as client:
        answer = await client.post(PATH, json=ask())
    check_error(answer, 503, "shutting_down", type="server_error", retry_after="1")


async def test_second_signal_ends_what_runs_at_once(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    upstream.scripts = [hangs]
    async with open_server(tmp_path, two_models(upstream)) as server, trio.open_nursery() as nursery:
        nursery.start_soon(be_cut_off, server)
        await upstream.wait_asked()
        server.process.send_signal(signal.SIGTERM)
        await wait_until(lambda: b"stopping" in server.log)
        with trio.fail_after(10):
            assert 0 == await server.stop()
            await upstream.wait_all_gone()


async def test_server_without_work_stops_at_once(tmp_path: Path) -> None:
    async with open_server(tmp_path, make_config()) as server, open_client(server.url) as client:
        await client.get("/health")
        with trio.fail_after(5):
            assert 0 == await server.stop()
        with pytest.raises(httpx2.ConnectError):
            await client.get("/health")


# Several workers


async def test_workers_share_what_is_selected(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    async with open_server(tmp_path, two_models(upstream), "hypercorn", "--workers", "2") as server:
        await wait_until(lambda: 2 <= server.log.count(b"Running on"), START_TIMEOUT)
        for name in ("two", "one", "two"):
            async with open_client(server.url) as client:
                assert name == (await client.post(PATH, json=ask(model=name))).json()["model"]
            for _ in range(8):
                async with open_client(server.url) as client:
                    assert name == (await client.post(PATH, json=ask())).json()["model"]
        assert 0 == await server.stop()
    assert b"Traceback" not in server.log


@pytest.mark.parametrize("arguments", [["version"], ["--help"], ["status"], ["agent", "-m", "Hello"]], ids=" ".join)
async def test_output_that_has_no_room_is_told(arguments: list[str], tmp_path: Path) -> None:
    write_config(tmp_path, make_config())
    full = os.open("/dev/full", os.O_WRONLY)
    try:
        done = await trio.run_process(
            [sys.executable, "-m", "picoclaw_trio", *arguments],
            env=make_environment(tmp_path),
            stdout=full,
            capture_stderr=True,
            check=False,
        )
    finally:
        os.close(full)
    assert (1, b"Error: No space left on device\n") == (done.returncode, done.stderr)


async def test_output_that_nobody_reads_on_is_no_error(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = await trio.run_process(
            [sys.executable, "-m", "picoclaw_trio", "status"],
            env=make_environment(tmp_path),
            stdout=writer,
            capture_stderr=True,
            check=False,
        )
    finally:
        os.close(writer)
    assert (1, b"") == (done.returncode, done.stderr)
