"""What the README shows works as it stands there."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
from pathlib import Path
from typing import Any

import attrs
import orjson
import pytest
import trio
from fakes import ScriptedUpstream
from harness import ADDRESS, TOKEN, entry, make_config, serve_here

from picoclaw_trio.config import AgentDefaults, GatewayConfig, ModelConfig, OpenAIApiConfig

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
INSTALL_TIMEOUT = 600.0


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def command_with(part: str) -> str:
    lines = [line for block in blocks("sh") for line in block.splitlines()]
    (command,) = [line for line in lines if line.startswith("python3 -m venv .venv") and part in line]
    return command


def fresh_copy(folder: Path) -> Path:
    """The files of the project as a clone has them."""
    copy = folder / "clone"
    ignored = shutil.ignore_patterns(".git", ".venv", "build", "*.egg-info", "__pycache__", ".*_cache", ".hypothesis")
    shutil.copytree(ROOT, copy, ignore=ignored)
    return copy


@pytest.mark.slow
def test_first_command_serves_on_a_fresh_machine_and_its_curl_line_works(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PICOCLAW_", "VIRTUAL_ENV"))}
    environment = {**kept, "HOME": str(home), "PICOCLAW_GATEWAY_PORT": "0"}
    process = subprocess.Popen(
        ["bash", "-c", command_with("picoclaw gateway")],
        cwd=fresh_copy(tmp_path),
        env=environment,
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    assert process.stderr is not None
    with process:
        said = b""
        # Two lines follow the address: the curl command.
        while b'-d \'{"messages"' not in said:
            line = process.stderr.readline()
            assert line, f"it ended and had said: {said.decode()}"
            said += line
        assert ADDRESS.search(said)
        curl = said.decode().partition("Try it:\n")[2]
        answer = orjson.loads(
            subprocess.run(["bash", "-c", curl], stdout=subprocess.PIPE, check=True, timeout=30).stdout
        )
        assert answer["choices"][0]["message"]["content"].endswith("Hello")
        os.killpg(process.pid, signal.SIGTERM)
        assert 0 == process.wait(30)


def test_second_command_installs_what_the_tests_need_and_runs_them() -> None:
    command = command_with("pytest")
    assert command.endswith(".venv/bin/pytest")
    assert "-c constraints.txt '.[test]'" in command


async def test_python_of_the_tour_gets_its_answer(
    tmp_path: Path, upstream: ScriptedUpstream, capsys: pytest.CaptureFixture[str]
) -> None:
    (code,) = blocks("python")
    async with serve_here(tmp_path, make_config(entry("local", upstream.url))) as server:
        code = code.replace("http://127.0.0.1:18790", server.url)
        names: dict[str, Any] = {"TOKEN": TOKEN}
        await trio.to_thread.run_sync(exec, compile(code, "README.md", "exec"), names)
        names["client"].close()

    assert "Hello!\n" == capsys.readouterr().out


@pytest.mark.parametrize("name", ["LICENSE", "CHANGELOG.md", "constraints.txt", "config.example.json", ".ci/run"])
def test_files_that_a_clone_should_have_are_there(name: str) -> None:
    assert (ROOT / name).is_file()


def test_links_to_files_lead_somewhere() -> None:
    links = re.findall(r"\]\(([^)#:]+)\)", README)
    assert links
    assert [] == [link for link in links if not (ROOT / link).exists()]


UNITS = {"MiB": 2**20, "s": 1, "a": 1, "": 1, "characters": 1, "each": 1}


def test_limits_tell_the_defaults_that_are_in_force() -> None:
    """Of those that a key of the configuration sets."""
    chapter = README.partition("## Limits")[2].partition("\n## ")[0]
    told = re.findall(r"^\|[^|]*\| ([\d,]+) ?([A-Za-z]*)[^|(]*\(`(\w+)`\)", chapter, re.MULTILINE)
    defaults = {**attrs.asdict(OpenAIApiConfig()), "grace": GatewayConfig().grace}
    defaults["max_tool_iterations"] = AgentDefaults().max_tool_iterations
    defaults["request_timeout"] = attrs.fields_dict(ModelConfig)["request_timeout"].default

    assert len(told) > 10
    assert {key: defaults[key] for _, _, key in told} == {
        key: int(number.replace(",", "")) * UNITS[unit] for number, unit, key in told
    }
