"""The first steps: what is asked, what is made of the answers, and that nothing is ever half made."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import click
import pytest
import trio
from click.testing import CliRunner, Result
from commands import END_TIMEOUT, Terminal, at_terminal, run, snapshot
from fakes import Exchange, ScriptedUpstream, answers, hangs, says
from harness import TOKEN, ask, make_config, make_environment, open_client, open_server, write_config
from serving import PATH

from picoclaw_trio.config import Config, load_config
from picoclaw_trio.echo import LABEL
from picoclaw_trio.onboard import set_up
from picoclaw_trio.onboard.finding import CLOUDS
from picoclaw_trio.workspace import Workspace

FILES = ["AGENT.md", "SOUL.md", "USER.md", "memory/MEMORY.md"]
ALL = sorted([".picoclaw/config.json", *(f".picoclaw/workspace/{name}" for name in FILES)])
KEY = "sk-key-of-mine"
# Every question answered with Return.
RETURNS = "\n" * 9


@pytest.fixture(autouse=True)
def _no_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever runs the tests may have keys, and an Ollama."""
    for variable in (*(cloud.variable for cloud in CLOUDS), "OLLAMA_HOST"):
        monkeypatch.delenv(variable, raising=False)


def answered(home: Path, typed: str | None = None, **environment: str) -> Result:
    """Set up with no server on this machine; *typed* are the answers, None to ask nothing."""
    environ = {**make_environment(home), **environment}
    command = click.Command("onboard", callback=partial(set_up, environ, ask=typed is not None, servers=()))
    return CliRunner().invoke(command, input=typed or "")


def loaded(home: Path, **environment: str) -> Config:
    return load_config({**make_environment(home), **environment})


def targets(config: Config) -> list[tuple[str, str]]:
    return [(entry.model_name, f"{entry.vendor}/{entry.model}") for entry in config.model_list]


def like_ollama(*ids: str) -> Any:
    """Serves a list of models, and answers as the first of them."""

    async def script(exchange: Exchange) -> None:
        if exchange.asked.head.target == b"/v1/models":
            await answers(200, {"object": "list", "data": [{"id": name} for name in ids]})(exchange)
        else:
            await says("Hello from here.")(exchange)

    return script


def host_of(upstream: ScriptedUpstream) -> str:
    return upstream.url.removeprefix("http://").removesuffix("/v1")


# Without questions


async def test_yes_makes_what_a_server_answers_with(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    upstream.scripts = (like_ollama("qwen3:4b", "llama3.2:3b"),)

    ran = await run(tmp_path, "onboard", "--yes", OLLAMA_HOST=host_of(upstream))

    assert (0, "") == (ran.status, ran.out)
    assert ALL == sorted(snapshot(tmp_path))
    config = loaded(tmp_path)
    assert [("qwen3:4b", "ollama/qwen3:4b"), ("llama3.2:3b", "ollama/llama3.2:3b")] == targets(config)[:2]
    assert "qwen3:4b" == config.default_alias
    assert config.gateway.openai_api.streaming
    assert config.workspace == tmp_path / ".picoclaw" / "workspace"
    assert () == config.tools.allow.names

    async with open_server(tmp_path, None, "gateway", "--port", "0") as server:
        curl = ran.err[ran.err.index("  curl ") : ran.err.index("Or talk")].replace(
            "http://127.0.0.1:18790", server.url
        )
        done = await trio.run_process(["sh", "-c", curl], capture_stdout=True, capture_stderr=True)
    answer = json.loads(done.stdout)
    assert ("qwen3:4b", "Hello from here.") == (answer["model"], answer["choices"][0]["message"]["content"])
    first, second = upstream.asked[-1].body["messages"]
    assert first["content"].startswith("You are Pico")
    assert {"role": "user", "content": "Hello"} == second


async def test_without_any_model_the_echo_answers(tmp_path: Path) -> None:
    result = await trio.to_thread.run_sync(answered, tmp_path)

    assert (0, "") == (result.exit_code, result.stdout)
    assert [("echo", "echo/echo")] == targets(loaded(tmp_path))
    (token,) = loaded(tmp_path).gateway.openai_api.bearer_tokens
    async with open_server(tmp_path, None, "gateway", "--port", "0") as server:
        async with open_client(server.url, Authorization=f"Bearer {token.reveal()}") as client:
            answer = (await client.post(PATH, json=ask())).json()
        assert b"first one" not in server.log
    assert f"{LABEL} Hello" == answer["choices"][0]["message"]["content"]


def test_files_and_folders_are_their_owner_s_alone(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        answered(tmp_path)
    finally:
        os.umask(before)

    modes = {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.rglob("*") if path.is_file()}
    folders = {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.rglob("*") if path.is_dir()}
    assert ({0o600}, {0o700}) == (modes, folders)


def test_new_workspace_is_an_identity_that_narrows_nothing(tmp_path: Path) -> None:
    answered(tmp_path)

    identity = Workspace(loaded(tmp_path).workspace).identity()

    assert ("Pico", None, None, None) == (identity.name, identity.tools, identity.model, identity.max_steps)
    prompt = str(identity.prompt)
    assert prompt.startswith("You are Pico")
    assert 3 == prompt.count("\n\n---\n\n")


def test_key_is_named_and_never_written_or_shown(tmp_path: Path) -> None:
    result = answered(tmp_path, OPENAI_API_KEY=KEY, GROQ_API_KEY=KEY)

    assert 0 == result.exit_code
    assert "with OPENAI_API_KEY, GROQ_API_KEY in its environment" in result.output
    assert KEY not in result.output
    assert not any(KEY.encode() in content for content in snapshot(tmp_path).values())
    config = loaded(tmp_path, OPENAI_API_KEY=KEY, GROQ_API_KEY=KEY)
    assert ["openai", "groq"] == [entry.vendor for entry in config.model_list]
    assert all([KEY] == [key.reveal() for key in entry.api_keys] for entry in config.model_list)


async def test_server_that_hangs_does_not_keep_anybody_waiting(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    upstream.scripts = (hangs,)

    ran = await run(tmp_path, "onboard", "--yes", OLLAMA_HOST=host_of(upstream))

    assert 0 == ran.status
    assert "ollama" not in [entry.vendor for entry in loaded(tmp_path).model_list]


def test_ollama_on_another_machine_is_told_and_not_asked(tmp_path: Path) -> None:
    environ = {**make_environment(tmp_path), "OLLAMA_HOST": "192.0.2.1:11434"}
    command = click.Command("onboard", callback=partial(set_up, environ, ask=False))

    result = CliRunner().invoke(command)

    assert 0 == result.exit_code
    assert "OLLAMA_HOST" in result.output
    assert "ollama" not in [entry.vendor for entry in loaded(tmp_path).model_list]


def test_what_the_environment_says_counts_in_what_is_told(tmp_path: Path) -> None:
    result = answered(
        tmp_path, PICOCLAW_GATEWAY_PORT="1234", PICOCLAW_GATEWAY_OPENAI_API_BEARER_TOKENS="sk-of-the-environment"
    )

    (token,) = json.loads((tmp_path / ".picoclaw/config.json").read_bytes())["gateway"]["openai_api"]["bearer_tokens"]
    assert "curl http://127.0.0.1:1234/v1/chat/completions -H 'Authorization: Bearer TOKEN'" in result.output
    assert not any(secret in result.output for secret in ("sk-of-the-environment", token))


@pytest.mark.parametrize(
    ("host", "shown"), [("0.0.0.0", "127.0.0.1"), ("::", "[::1]"), ("fd00::5", "[fd00::5]"), ("nas.lan", "nas.lan")]
)
def test_address_to_ask_is_one_that_can_be_asked(host: str, shown: str, tmp_path: Path) -> None:
    config = make_config()
    write_config(tmp_path, {**config, "gateway": {**config["gateway"], "host": host, "port": 1234}})

    assert f"curl http://{shown}:1234/v1/chat/completions" in answered(tmp_path).output


# With questions


def test_return_to_every_question_makes_what_yes_makes(tmp_path: Path) -> None:
    asked, unasked = tmp_path / "asked", tmp_path / "unasked"

    assert 0 == answered(asked, RETURNS).exit_code
    assert 0 == answered(unasked).exit_code

    def comparable(home: Path) -> dict[str, bytes]:
        token = loaded(home).gateway.openai_api.bearer_tokens[0].reveal().encode()
        return {name: content.replace(token, b"TOKEN") for name, content in snapshot(home).items()}

    assert comparable(asked) == comparable(unasked)


def test_answers_are_heeded(tmp_path: Path) -> None:
    environment = {"OPENAI_API_KEY": KEY, "GROQ_API_KEY": KEY}
    typed = ["2", "llama-9", "n", "~/deep/er", "  Ada\x1b[31m  Lovelace ", "y"]

    result = answered(tmp_path, "\n".join(typed) + "\n", **environment)

    assert 0 == result.exit_code
    config = loaded(tmp_path, **environment)
    assert [("llama-9", "groq/llama-9")] == targets(config)
    assert tmp_path / "deep" / "er" == config.workspace
    prompt = str(Workspace(config.workspace).identity().prompt)
    assert "Their name is Ada[31m Lovelace." in prompt
    assert not (tmp_path / ".picoclaw" / "workspace").exists()


def test_other_models_may_be_named_too(tmp_path: Path) -> None:
    environment = {"OPENAI_API_KEY": KEY, "GROQ_API_KEY": KEY}

    answered(tmp_path, "2\n\ny" + RETURNS, **environment)

    config = loaded(tmp_path, **environment)
    assert ["groq", "openai"] == [entry.vendor for entry in config.model_list]
    assert config.default_alias == config.model_list[0].model_name


def test_server_may_be_named_and_what_cannot_be_right_is_asked_again(tmp_path: Path) -> None:
    typed = [
        "7", "x", "2",  # there are two rows
        "192.168.1.5", "ftp://x/v1", "http://user:secret@x/v1", "http://192.168.1.5:8080/v1/",
        "a b", "/srv/model", "org/model",
        "NOT_SET", "MY_KEY",
        "", "", "",
    ]  # fmt: skip

    result = answered(tmp_path, "\n".join(typed) + "\n", MY_KEY=KEY)

    assert 0 == result.exit_code, result.output
    config = loaded(tmp_path, MY_KEY=KEY)
    (entry,) = config.model_list
    assert ("org/model", "openai", "org/model") == (entry.model_name, entry.vendor, entry.model)
    assert "http://192.168.1.5:8080/v1" == entry.api_base
    assert [KEY] == [key.reveal() for key in entry.api_keys]
    assert KEY not in result.output
    assert 2 == result.output.count("Error: it must be a number from 1 to 2\n")


@pytest.mark.parametrize("count", range(6))
def test_end_of_input_at_any_question_leaves_nothing(count: int, tmp_path: Path) -> None:
    """There are six questions where one key is found and another too."""
    result = answered(tmp_path, "\n" * count, OPENAI_API_KEY=KEY, GROQ_API_KEY=KEY)

    assert 1 == result.exit_code
    assert "Aborted" in result.output
    assert [] == list(tmp_path.iterdir())


def test_refusal_at_the_end_leaves_nothing(tmp_path: Path) -> None:
    result = answered(tmp_path, "1\n\n\nn\n")

    assert 1 == result.exit_code
    assert str(tmp_path / ".picoclaw" / "config.json") in result.output
    assert [] == list(tmp_path.iterdir())


@pytest.mark.parametrize("question", ["Which model", "call you", "Go on?"])
async def test_interrupt_at_a_question_leaves_nothing(
    question: str, tmp_path: Path, upstream: ScriptedUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    upstream.scripts = (like_ollama("qwen3:4b"),)
    monkeypatch.setenv("OLLAMA_HOST", host_of(upstream))
    async with at_terminal(tmp_path, "onboard") as terminal:
        await type_until(terminal, question)
        await interrupt(terminal)
        assert 1 == await terminal.end()

    assert {} == snapshot(tmp_path)


async def interrupt(terminal: Terminal) -> None:
    """Press Ctrl-C, and as people do, again if it comes to nothing: Python may lose it on its way into a read."""
    with trio.fail_after(END_TIMEOUT):
        while terminal.process.returncode is None:
            await terminal.type("\x03")
            with trio.move_on_after(1):
                await terminal.process.wait()


async def type_until(terminal: Terminal, question: str) -> None:
    """Press Return at each question before *question*."""
    for asked in ("Which model", "workspace [", "call you", "Go on?"):
        await terminal.see(asked)
        if asked.startswith(question):
            return
        await terminal.type("\n")


async def test_interrupt_while_servers_are_asked_leaves_nothing(
    tmp_path: Path, upstream: ScriptedUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    upstream.scripts = (hangs,)
    monkeypatch.setenv("OLLAMA_HOST", host_of(upstream))
    async with at_terminal(tmp_path, "onboard") as terminal:
        await upstream.wait_asked()
        await interrupt(terminal)
        assert 1 == await terminal.end()
        await terminal.see("Aborted")

    assert {} == snapshot(tmp_path)


# Where something is already


def existing(home: Path, **files: str) -> dict[str, bytes]:
    write_config(home, make_config())
    for name, text in files.items():
        path = home / ".picoclaw" / "workspace" / f"{name}.md"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return snapshot(home)


@pytest.mark.parametrize("typed", [None, "y\n"])
def test_configuration_that_is_there_is_left_as_it_is_and_the_workspace_completed(
    typed: str | None, tmp_path: Path
) -> None:
    before = existing(tmp_path, SOUL="Mine.")

    result = answered(tmp_path, typed, OPENAI_API_KEY=KEY)

    assert 0 == result.exit_code
    after = snapshot(tmp_path)
    assert before == {name: after[name] for name in before}
    assert ALL == sorted(after)
    assert "left as it is" in result.output
    assert TOKEN not in result.output


def test_files_of_the_workspace_are_never_written_over(tmp_path: Path) -> None:
    folder = tmp_path / ".picoclaw" / "workspace"
    (folder / "memory").mkdir(parents=True)
    (folder / "SOUL.md").write_text("Mine.")
    (folder / "USER.md").symlink_to("nowhere")
    (folder / "AGENT.md").mkdir()

    assert 0 == answered(tmp_path).exit_code

    assert "Mine." == (folder / "SOUL.md").read_text()
    assert not (folder / "nowhere").exists()
    assert [] == list((folder / "AGENT.md").iterdir())
    assert (folder / "memory" / "MEMORY.md").exists()


def test_older_file_of_an_agent_is_not_put_out_of_force(tmp_path: Path) -> None:
    existing(tmp_path, AGENTS="My rules.")

    assert 0 == answered(tmp_path).exit_code

    assert str(Workspace(loaded(tmp_path).workspace).identity().prompt).startswith("My rules.")


def test_second_time_changes_nothing(tmp_path: Path) -> None:
    answered(tmp_path)
    before = snapshot(tmp_path)

    result = answered(tmp_path, "")

    assert 0 == result.exit_code
    assert before == snapshot(tmp_path)


def test_configuration_that_is_wrong_is_told_and_nothing_is_made(tmp_path: Path) -> None:
    write_config(tmp_path, {"gateway": {"port": "x"}})
    before = snapshot(tmp_path)

    result = answered(tmp_path)

    assert 1 == result.exit_code
    assert "$.gateway.port" in str(result.exception)
    assert before == snapshot(tmp_path)


async def test_configuration_that_is_wrong_is_told_in_words(tmp_path: Path) -> None:
    write_config(tmp_path, {"gateway": {"port": "x"}})

    ran = await run(tmp_path, "onboard")

    assert (1, "") == (ran.status, ran.out)
    assert "$.gateway.port" in ran.err
    assert "Traceback" not in ran.err


# Where something is in the way


def fails(home: Path, environment: Mapping[str, str], typed: str | None = None) -> str:
    """Set up and fail with words; gives them."""
    result = answered(home, typed, **environment)
    assert 1 == result.exit_code
    assert isinstance(result.exception, Exception)
    return str(result.exception)


def test_folder_that_cannot_be_made_is_told_and_nothing_is_left(tmp_path: Path) -> None:
    # Nobody may make a folder there, not even root.
    fails(tmp_path, {"PICOCLAW_HOME": "/proc/picoclaw"})
    fails(tmp_path, {"PICOCLAW_CONFIG": "/proc/picoclaw/config.json"})
    fails(tmp_path, {}, "1\n/proc/picoclaw\n\ny\n")

    assert [] == list(tmp_path.iterdir())


async def test_failure_is_told_in_words(tmp_path: Path) -> None:
    ran = await run(tmp_path, "onboard", "--yes", PICOCLAW_HOME="/proc/picoclaw")

    assert (1, "") == (ran.status, ran.out)
    assert "/proc/picoclaw" in ran.err
    assert "Traceback" not in ran.err


def test_failure_half_way_undoes_what_was_made_and_nothing_else(tmp_path: Path) -> None:
    folder = tmp_path / ".picoclaw" / "workspace"
    folder.mkdir(parents=True)
    (folder / "memory").write_text("in the way")
    (folder / "USER.md").write_text("Mine.")
    before = snapshot(tmp_path)

    fails(tmp_path, {})

    assert before == snapshot(tmp_path)


def test_environment_in_which_the_new_configuration_would_not_load_undoes_it(tmp_path: Path) -> None:
    told = fails(tmp_path, {"PICOCLAW_AGENTS_DEFAULTS_MODEL_NAME": "nobody"})

    assert "PICOCLAW_AGENTS_DEFAULTS_MODEL_NAME" in told
    assert [] == list(tmp_path.iterdir())


def test_link_that_leads_nowhere_is_not_followed(tmp_path: Path) -> None:
    folder = tmp_path / ".picoclaw"
    folder.mkdir()
    (folder / "config.json").symlink_to(tmp_path / "elsewhere")

    assert "link" in fails(tmp_path, {})

    assert not (tmp_path / "elsewhere").exists()
    assert ["config.json"] == os.listdir(folder)


async def test_several_at_once_make_one_configuration_and_a_whole_workspace(tmp_path: Path) -> None:
    ran = []

    async def one() -> None:
        ran.append(await run(tmp_path, "onboard", "--yes", OLLAMA_HOST="127.0.0.1:1"))

    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(one)

    assert 0 in [each.status for each in ran]
    assert not any("Traceback" in each.err for each in ran)
    (token,) = loaded(tmp_path).gateway.openai_api.bearer_tokens
    assert 1 == sum(token.reveal() in each.err for each in ran)
    assert 1 == sum("Bearer sk-" in each.err for each in ran)
    assert ALL == sorted(snapshot(tmp_path))
