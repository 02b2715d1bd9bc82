"""The files for operators."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

import pytest
import trio
from harness import TOKEN, ask, open_client, open_server
from serving import PATH

from picoclaw_trio.config.values import GatewayConfig
from picoclaw_trio.host_worker import LATE

DEPLOY = Path(__file__).parent.parent / "deploy"
UNIT = (DEPLOY / "picoclaw.service").read_text()


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed here")
async def test_unit_exposes_less_than_two_in_ten() -> None:
    result = await trio.run_process(
        ["systemd-analyze", "security", "--offline=true", DEPLOY / "picoclaw.service"], capture_stdout=True, check=False
    )
    score = re.search(rb"Overall exposure level for \S+: ([0-9.]+)", result.stdout)
    assert score is not None
    assert float(score.group(1)) < 2.0


def values(key: str) -> list[str]:
    """What the unit gives for *key*, once for each line."""
    return re.findall(rf"^{key}=(.*)$", UNIT, re.MULTILINE)


def test_service_gets_longer_to_stop_than_its_turns_do() -> None:
    assert ["mixed"] == values("KillMode")
    assert int(values("TimeoutStopSec")[0]) > GatewayConfig().grace + LATE


def test_service_is_watched_and_started_again_as_often_as_it_takes() -> None:
    assert ["notify", "main"] == values("Type") + values("NotifyAccess")
    assert (["on-failure"], ["0"]) == (values("Restart"), values("StartLimitIntervalSec"))
    assert int(values("WatchdogSec")[0]) >= 10


def test_reload_fails_where_the_configuration_cannot_be_used() -> None:
    check, hang_up = values("ExecReload")
    assert check.endswith("/picoclaw config check")
    assert "/bin/kill -HUP $MAINPID" == hang_up


def test_command_line_has_the_surroundings_of_the_service() -> None:
    wrapper = (DEPLOY / "picoclaw").read_text()
    for setting in values("Environment"):
        assert f"--setenv={setting} " in wrapper
    for option, key in (("--uid", "User"), ("--gid", "Group"), ("--property=EnvironmentFile", "EnvironmentFile")):
        assert f"{option}={values(key)[0]} " in wrapper
    assert f"--property=UMask={values('UMask')[0]} {values('ExecStart')[0].removesuffix(' gateway')} " in wrapper


async def test_command_line_gets_each_word_as_it_was_typed(tmp_path: Path) -> None:
    """The service manager, of which this stands for the part that counts here, replaces variables in each word."""
    manager = tmp_path / "systemd-run"
    manager.write_text('#!/bin/sh\nfor word do printf "%s\\0" "$word"; done\n')
    manager.chmod(0o755)
    words = ["agent", "-m", "$HOME, ${KEY}, $$ and 'two'\n  lines\n", "", "$$", "-s", "ü*"]
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    result = await trio.run_process(["sh", DEPLOY / "picoclaw", *words], capture_stdout=True, env=environment)

    got = result.stdout.decode().split("\0")[:-1]
    assert values("ExecStart")[0].removesuffix(" gateway") == got[-len(words) - 1]
    assert words == [word.replace("$$", "$") for word in got[-len(words) :]]
    assert not re.search(r"(?<!\$)(\$\$)*\$(?!\$)", "\0".join(got))


async def test_configuration_to_begin_with_serves(tmp_path: Path) -> None:
    """As the README has it installed: the token in a file beside it."""
    home = tmp_path / ".picoclaw"
    home.mkdir()
    shutil.copy(DEPLOY / "config.json", home)
    (home / "token").write_text(f"{TOKEN}\n")
    async with open_server(tmp_path, None, PICOCLAW_GATEWAY_PORT="0") as server, open_client(server.url) as client:
        assert 200 == (await client.post(PATH, json=ask())).status_code
        assert 200 == (await client.post(PATH, json=ask(stream=True))).status_code


def test_everything_that_the_readme_installs_is_there() -> None:
    readme = (DEPLOY.parent / "README.md").read_text()
    chapter = readme.partition("## Run it for years")[2].partition("```sh")[2].partition("```")[0]
    files = re.findall(r"install -m \d+ (?:-g picoclaw )?([a-z.]+) /", chapter)
    assert {"config.json", "picoclaw", "picoclaw.service"} == {*files}
    assert all((DEPLOY / file).is_file() for file in files)
