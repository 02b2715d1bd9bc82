"""MCP servers as real processes: the protocol's own package on the other side, and servers that keep to nothing."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio
from raw_upstream import always, answer, open_upstream
from serving import logged
from serving import wait_until as wait_shortly

from picoclaw_trio.config.secret import Secret
from picoclaw_trio.config.tools import McpConfig, McpServerConfig
from picoclaw_trio.tools import Tool, ToolError
from picoclaw_trio.tools.mcp_link import open_link
from picoclaw_trio.tools.mcp_servers import McpServers, Restarts, open_mcp_servers

HERE = Path(__file__).parent
GOOD = str(HERE / "mcp_server.py")
ODD = str(HERE / "mcp_odd_server.py")
START_TIMEOUT = 30.0
SOON = Restarts(delay=0.05, max_delay=0.1)
NEVER = Restarts(delay=300.0)
# A process that starts while others do so too takes its time.
wait_until = partial(wait_shortly, timeout=START_TIMEOUT)


def stdio(script: str, *arguments: str, **fields: Any) -> McpServerConfig:
    return McpServerConfig(command=sys.executable, args=(script, *arguments), **fields)


@attrs.frozen
class Running:
    """Servers that are open, and the file in which those of the tests note what they see."""

    servers: McpServers
    file: Path

    def names(self) -> list[str]:
        return [tool.name for tool in self.servers.tools()]

    async def wait_state(self, beginning: str, name: str = "one") -> str:
        await wait_until(lambda: self.servers.states()[name].startswith(beginning))
        return self.servers.states()[name]

    def tool(self, name: str) -> Tool:
        (found,) = [tool for tool in self.servers.tools() if tool.name == f"mcp_one_{name}"]
        return found

    async def call(self, name: str, /, **arguments: Any) -> str:
        return await self.tool(name).run(arguments)

    def notes(self) -> list[str]:
        return self.file.read_text().splitlines() if self.file.exists() else []

    def pids(self) -> list[int]:
        return [int(note.removeprefix("pid ")) for note in self.notes() if note.startswith("pid ")]


@asynccontextmanager
async def running(
    folder: Path, restarts: Restarts = SOON, wait: bool = True, **configs: McpServerConfig
) -> AsyncIterator[Running]:
    """Servers, and that none of their processes is left afterwards."""
    file = folder / "notes"
    note = {"MCP_TEST_FILE": Secret(str(file))}
    servers = {name: attrs.evolve(config, env={**config.env, **note}) for name, config in configs.items()}
    async with open_mcp_servers(McpConfig(True, servers), folder=folder, restarts=restarts) as opened:
        found = Running(opened, file)
        for name in configs if wait else ():
            await found.wait_state("running", name)
        yield found
    await wait_none_alive(found.pids())


async def wait_none_alive(pids: list[int]) -> None:
    """A process that has been killed may take a moment to be gone."""
    await wait_until(lambda: not any(is_alive(pid) for pid in pids))


def is_alive(pid: int) -> bool:
    """A zombie is not: somebody else has yet to take its status."""
    with suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


@asynccontextmanager
async def http_server(kind: str, folder: Path) -> AsyncIterator[tuple[trio.Process, int]]:
    """The package's server over HTTP, and its port."""
    environment = {**os.environ, "MCP_TEST_FILE": str(folder / "notes")}
    async with trio.open_nursery() as nursery:
        run = partial(trio.run_process, stdout=subprocess.PIPE, env=environment, check=False)
        process: trio.Process = await nursery.start(run, [sys.executable, GOOD, kind])
        assert process.stdout is not None
        yield process, int(await process.stdout.receive_some())
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def reached(kind: str, folder: Path) -> AsyncIterator[McpServerConfig]:
    """The package's server, by whichever way."""
    if kind == "stdio":
        yield stdio(GOOD, "stdio")
    else:
        async with http_server(kind, folder) as (_, port):
            path = "sse" if kind == "sse" else "mcp"
            yield McpServerConfig(url=f"http://127.0.0.1:{port}/{path}", type="sse" if kind == "sse" else None)


async def test_tools_of_a_server_are_listed_and_called(tmp_path: Path) -> None:
    async with running(tmp_path, one=stdio(GOOD, "stdio")) as here:
        add = here.tool("add")
        assert sorted(here.names()) == here.names()
        assert "Add two numbers." == add.description
        assert ["a", "b"] == add.parameters["required"]
        assert "3" == await add.run({"a": 1, "b": 2})
        assert "first\na memo\n[link to https://example.org/more: more]" == await here.call("mixed")
        assert "[image, image/png, 10 bytes: not shown]" == await here.call("picture")
        assert '{"answer":42}' == await here.call("only_structured")
        assert 3_000_000 == len(await here.call("big", size=3_000_000))


async def test_name_that_a_model_could_not_call_is_made_fit(tmp_path: Path) -> None:
    async with running(tmp_path, one=stdio(GOOD, "stdio")) as here:
        (name,) = [name for name in here.names() if "odd" in name]
        assert re.fullmatch("mcp_one_odd_name_with_spaces_[0-9a-f]{10}", name)
        assert "odd" == await here.tool(name.removeprefix("mcp_one_")).run({})


async def test_failure_of_a_tool_is_an_error_with_its_words(tmp_path: Path) -> None:
    async with running(tmp_path, one=stdio(GOOD, "stdio")) as here:
        with pytest.raises(ToolError, match="Error executing tool fail"):
            await here.call("fail")
        with pytest.raises(ToolError, match="valid integer"):
            await here.call("add", a="x", b=1)
        assert "3" == await here.call("add", a=1, b=2)


async def test_calls_run_side_by_side(tmp_path: Path) -> None:
    said = []

    async def meet(here: Running, name: str) -> None:
        said.append(await here.call("meet", name=name))

    async with running(tmp_path, one=stdio(GOOD, "stdio")) as here, trio.open_nursery() as nursery:
        nursery.start_soon(meet, here, "left")
        nursery.start_soon(meet, here, "right")
    assert ["left met", "right met"] == sorted(said)


async def test_session_outlives_a_call_without_an_answer(tmp_path: Path) -> None:
    async with running(tmp_path, one=stdio(GOOD, "stdio", timeout=5.0)) as here:
        first = here.pids()
        with pytest.raises(ToolError, match=r"gave no result within 5 s\."):
            await here.call("hang")
        await wait_until(lambda: "cancelled" in here.notes())

        assert "3" == await here.call("add", a=1, b=2)
        assert first == here.pids()


@pytest.mark.parametrize("kind", ["stdio", "http"])
async def test_cancelled_call_is_cancelled_at_the_server_and_no_other_is(tmp_path: Path, kind: str) -> None:
    said = []

    async def meet(here: Running, name: str) -> None:
        said.append(await here.call("meet", name=name))

    async with (
        reached(kind, tmp_path) as config,
        running(tmp_path, one=config) as here,
        trio.open_nursery() as others,
    ):
        others.start_soon(meet, here, "left")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(here.call, "hang")
            await wait_until(lambda: "hangs" in here.notes())
            nursery.cancel_scope.cancel()
        await wait_until(lambda: "cancelled" in here.notes())
        others.start_soon(meet, here, "right")
    assert ["left met", "right met"] == sorted(said)


@pytest.mark.parametrize("kind", ["http", "sse"])
async def test_server_over_http_is_listed_and_called(tmp_path: Path, kind: str) -> None:
    async with reached(kind, tmp_path) as config, running(tmp_path, one=config) as here:
        assert "3" == await here.call("add", a=1, b=2)
        assert 300_000 == len(await here.call("big", size=300_000))
        with pytest.raises(ToolError, match="Error executing tool fail"):
            await here.call("fail")


async def test_result_over_http_that_is_too_large_costs_only_its_call(tmp_path: Path) -> None:
    async with reached("http", tmp_path) as config, running(tmp_path, one=config) as here:
        with pytest.raises(ToolError):
            await here.call("big", size=9_000_000)
        assert "3" == await here.call("add", a=1, b=2)


async def test_server_over_http_that_comes_back_is_found_again(tmp_path: Path) -> None:
    ports: list[int] = []

    async def copy(source: trio.abc.Stream, target: trio.abc.Stream, end: trio.CancelScope) -> None:
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            async for data in source:
                await target.send_all(data)
        end.cancel()

    async def forward(near: trio.abc.Stream) -> None:
        """To the server that there is; a port of its own could be somebody else's by the time that it comes back."""
        with suppress(IndexError, OSError):
            async with await trio.open_tcp_stream("127.0.0.1", ports[-1]) as far, trio.open_nursery() as nursery:
                nursery.start_soon(copy, near, far, nursery.cancel_scope)
                nursery.start_soon(copy, far, near, nursery.cancel_scope)

    async with open_upstream(forward) as front:
        config = McpServerConfig(url=f"http://{front.address}/mcp")
        async with http_server("http", tmp_path) as (process, port):
            ports.append(port)
            async with running(tmp_path, one=config) as here:
                add = here.tool("add")
                ports.clear()
                process.kill()
                with pytest.raises(ToolError):
                    await add.run({"a": 1, "b": 2})
                await here.wait_state("failed")
                assert [] == here.names()
                with pytest.raises(ToolError, match="not running at the moment"):
                    await add.run({"a": 1, "b": 2})
                async with http_server("http", tmp_path) as (_, port):
                    ports.append(port)
                    await here.wait_state("running")
                    assert "3" == await add.run({"a": 1, "b": 2})


@pytest.mark.parametrize("kind", ["stdio", "http"])
async def test_new_tool_is_offered_once_the_server_tells_of_it(tmp_path: Path, kind: str) -> None:
    async with reached(kind, tmp_path) as config, running(tmp_path, one=config) as here:
        assert "mcp_one_learned" not in here.names()
        await here.call("learn")
        await wait_until(lambda: "mcp_one_learned" in here.names())
        assert "3" == await here.call("learned", a=1, b=2)


async def test_killed_server_fails_its_calls_at_once_and_comes_back(tmp_path: Path) -> None:
    failures = []

    async def hang(here: Running) -> None:
        with pytest.raises(ToolError, match="broke during the call") as caught:
            await here.call("hang")
        failures.append(caught.value)

    async with running(tmp_path, one=stdio(GOOD, "stdio")) as here:
        add = here.tool("add")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(hang, here)
            nursery.start_soon(hang, here)
            await wait_until(lambda: 2 == here.notes().count("hangs"))
            os.kill(here.pids()[0], signal.SIGKILL)
        await wait_until(lambda: 2 == len(here.pids()))
        await here.wait_state("running")
        assert "3" == await add.run({"a": 1, "b": 2})
    assert 2 == len(failures)


async def test_while_a_server_is_down_nothing_of_it_is_offered_and_calls_fail_at_once(tmp_path: Path) -> None:
    async with running(tmp_path, NEVER, one=stdio(GOOD, "stdio")) as here:
        die, add = here.tool("die"), here.tool("add")
        with pytest.raises(ToolError, match="broke during the call"):
            await die.run({})
        assert "failed: it exited with status 3" == await here.wait_state("failed")
        assert [] == here.names()
        with pytest.raises(ToolError, match="not running at the moment"):
            await add.run({"a": 1, "b": 2})


async def test_servers_do_not_wait_for_each_other(tmp_path: Path) -> None:
    good, slow, off = stdio(GOOD, "stdio"), stdio(ODD, "silent"), stdio(GOOD, "stdio", enabled=False)
    async with running(tmp_path, wait=False, one=good, slow=slow, off=off) as here:
        assert [] == here.names()
        await here.wait_state("running")
        assert {"one": "running", "slow": "starting"} == here.servers.states()
        assert "3" == await here.call("add", a=1, b=2)


async def test_server_that_says_nothing_is_given_up_and_tried_again(tmp_path: Path) -> None:
    async with running(tmp_path, wait=False, one=stdio(ODD, "silent", timeout=0.5)) as here:
        assert "failed: it did not answer in time" == await here.wait_state("failed")
        await wait_until(lambda: len(here.pids()) > 1)


async def test_server_that_writes_only_what_is_no_message_is_given_up(tmp_path: Path) -> None:
    with logged() as lines:
        async with running(tmp_path, NEVER, wait=False, one=stdio(ODD, "garbage")) as here:
            assert "failed: it writes what is no message" == await here.wait_state("failed")
    assert 60 > len(lines)


async def test_server_that_greets_first_is_understood(tmp_path: Path) -> None:
    async with running(tmp_path, one=stdio(ODD, "chatty")) as here:
        assert "mcp_one_ask" in here.names()


async def test_server_that_cannot_bear_a_newer_revision_is_asked_in_the_old_way(tmp_path: Path) -> None:
    async with running(tmp_path, one=stdio(ODD, "shy")) as here:
        assert 2 == len(here.pids())


async def test_server_that_asks_back_is_refused(tmp_path: Path) -> None:
    async with running(tmp_path, one=stdio(ODD, "plain")) as here:
        assert "e1 True, r1 True, s1 True" == await here.call("ask")


@pytest.mark.parametrize("tool", ["huge", "huge_tail"])
async def test_answer_that_is_too_large_costs_only_its_call(tmp_path: Path, tool: str) -> None:
    async with running(tmp_path, one=stdio(ODD, "plain")) as here:
        with pytest.raises(ToolError, match="the answer is larger than 8388608 bytes"):
            await here.call(tool)
        with pytest.raises(ToolError, match="makes no sense"):
            await here.call("wrong")
        assert 1 == len(here.pids())


async def test_server_that_hangs_as_a_whole_is_started_anew(tmp_path: Path) -> None:
    async with running(tmp_path, one=stdio(ODD, "frozen", timeout=2.0)) as here:
        before = len(here.pids())
        with pytest.raises(ToolError, match="no result within"):
            await here.call("freeze")
        await wait_until(lambda: len(here.pids()) > before)


async def test_list_that_is_nested_too_deep_fails_the_server_at_once(tmp_path: Path) -> None:
    async with running(tmp_path, NEVER, wait=False, one=stdio(ODD, "deep-schema")) as here:
        assert "failed: it answered with error -32603: the answer makes no sense" == await here.wait_state("failed")


async def test_too_many_tools_are_cut_off(tmp_path: Path) -> None:
    async with running(tmp_path, one=stdio(ODD, "odd-tools")) as here:
        assert [f"mcp_one_tool{number:03}" for number in range(128)] == here.names()


async def test_tool_whose_schema_cannot_be_passed_on_is_left_out(tmp_path: Path) -> None:
    async with running(tmp_path, one=stdio(ODD, "odd-schemas")) as here:
        (tool,) = here.servers.tools()
        assert "mcp_one_wordy" == tool.name
        assert 4096 == len(tool.description)
        assert "\x1b" not in tool.description


@pytest.mark.parametrize("habit", ["deaf", "parent"])
async def test_process_and_its_children_are_ended_whatever_they_do(tmp_path: Path, habit: str) -> None:
    async with running(tmp_path, one=stdio(ODD, habit)) as here:
        assert {"deaf": 1, "parent": 2}[habit] == len(here.pids())
    # ``running`` looks for what is left.


@pytest.mark.parametrize(("number", "name"), [(signal.SIGKILL, "SIGKILL"), (40, "signal 40")])
async def test_end_of_a_process_is_noticed_though_its_child_holds_the_output_open(
    tmp_path: Path, number: int, name: str
) -> None:
    async with running(tmp_path, NEVER, one=stdio(ODD, "parent")) as here:
        os.kill(here.pids()[0], number)
        assert f"failed: it was ended by {name}" == await here.wait_state("failed")


async def test_cancellation_leaves_no_process(tmp_path: Path) -> None:
    with trio.CancelScope() as scope:
        async with running(tmp_path, one=stdio(GOOD, "stdio")) as here:
            scope.cancel()
            await trio.lowlevel.checkpoint()
    assert scope.cancelled_caught
    await wait_none_alive(here.pids())


async def test_process_gets_little_of_our_environment_and_what_is_configured(tmp_path: Path) -> None:
    (tmp_path / "one.env").write_text("# keys\nFROM_FILE='of the file'\nBOTH=file\n")
    env = {"BOTH": Secret("config")}
    os.environ["PICOCLAW_TEST_SECRET"] = "ours"
    try:
        async with running(tmp_path, one=stdio(GOOD, "stdio", env=env, env_file="one.env")) as here:
            asked = ("FROM_FILE", "BOTH", "PICOCLAW_TEST_SECRET", "PATH")
            found = [await here.call("environment", name=name) for name in asked]
    finally:
        del os.environ["PICOCLAW_TEST_SECRET"]
    assert ["of the file", "config", "unset", os.environ["PATH"]] == found


async def test_what_a_server_says_is_logged_without_its_secrets(tmp_path: Path) -> None:
    with logged() as lines:
        async with running(tmp_path, one=stdio(GOOD, "stdio", env={"KEY": Secret("sk-very-secret")})) as here:
            await here.call("say", text="with \x1b[1msk-very-secret\x1b[0m I run")
            await wait_until(lambda: any("I run" in line.get("text", "") for line in lines))
    (said,) = [line["text"] for line in lines if "I run" in line.get("text", "")]
    assert "with \N{REPLACEMENT CHARACTER}[1m***\N{REPLACEMENT CHARACTER}[0m I run" == said


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (McpServerConfig(command="/no/such/program"), "no such file or directory"),
        (stdio(GOOD, "stdio", env_file="none.env"), "no such file or directory"),
        (McpServerConfig(), "its configuration has no url"),
        (McpServerConfig(type="stdio", url="http://127.0.0.1:9/"), "its configuration has no command"),
        (McpServerConfig(url="http://127.0.0.1:9/mcp?key=secret"), "the connection failed (ConnectError)"),
    ],
)
async def test_server_that_cannot_be_started_says_why(tmp_path: Path, config: McpServerConfig, reason: str) -> None:
    async with running(tmp_path, NEVER, wait=False, one=config) as here:
        assert f"failed: {reason}" == await here.wait_state("failed")


async def test_server_that_keeps_us_out_says_so(tmp_path: Path) -> None:
    async with open_upstream(always(answer(status="401 Unauthorized"))) as server:
        config = McpServerConfig(url=f"http://{server.address}/mcp?key=secret", headers={"authorization": Secret("x")})
        async with running(tmp_path, NEVER, wait=False, one=config) as here:
            assert "failed: it answered with status 401" == await here.wait_state("failed")


@pytest.mark.parametrize("kind", ["stdio", "http"])
async def test_older_revision_of_the_protocol_is_spoken_too(tmp_path: Path, kind: str) -> None:
    async with reached(kind, tmp_path) as config, open_link("one", config, tmp_path, is_old=True) as link:
        assert "add" in [tool.name for tool in await link.list_tools()]
        assert "3" == await link.call("add", {"a": 1, "b": 2})
        with trio.move_on_after(0.2):
            await link.call("hang", {})
        assert "3" == await link.call("add", {"a": 1, "b": 2})


async def test_servers_that_are_off_need_no_package(tmp_path: Path) -> None:
    config = McpConfig(False, {"one": stdio(GOOD, "stdio")})
    async with open_mcp_servers(config, folder=tmp_path) as servers:
        assert {} == servers.states()
        assert () == servers.tools()


WITHOUT_PACKAGE = """
import sys, trio
from pathlib import Path
sys.modules["mcp"] = sys.modules["mcp_types"] = None
from picoclaw_trio.config.tools import McpConfig, McpServerConfig
from picoclaw_trio.tools.mcp_servers import open_mcp_servers

async def main():
    config = McpConfig(True, {"one": McpServerConfig(command="true")})
    async with open_mcp_servers(config, folder=Path(".")) as servers:
        while servers.states()["one"] == "starting":
            await trio.sleep(0.01)
        print(servers.states()["one"], servers.tools())

trio.run(main)
"""


async def test_missing_package_leaves_the_tools_out_and_says_so() -> None:
    done = await trio.run_process([sys.executable, "-c", WITHOUT_PACKAGE], capture_stdout=True)
    lines = done.stdout.decode().splitlines()
    assert "failed: the package mcp, version 2, is not installed: pip install 'picoclaw-trio[mcp]' ()" == lines[-1]
    assert "MCP servers are configured and cannot be used" in lines[0]


LOGGING = """
import sys, trio
from pathlib import Path
from picoclaw_trio import logs
from picoclaw_trio.config.secret import Secret
from picoclaw_trio.config.tools import McpConfig, McpServerConfig
from picoclaw_trio.tools.mcp_servers import open_mcp_servers

async def main():
    logs.configure("debug", "json")
    server = McpServerConfig(url=sys.argv[1], headers={"x-key": Secret("sk-in-header")})
    async with open_mcp_servers(McpConfig(True, {"one": server}), folder=Path(".")) as servers:
        while not servers.tools():
            await trio.sleep(0.01)
        (add,) = [tool for tool in servers.tools() if tool.name == "mcp_one_add"]
        assert "3" == await add.run({"a": 1, "b": 2})

trio.run(main)
"""


async def test_log_at_its_most_talkative_holds_no_secret_of_a_server(tmp_path: Path) -> None:
    async with http_server("http", tmp_path) as (_, port):
        url = f"http://127.0.0.1:{port}/mcp?key=sk-in-url"
        done = await trio.run_process([sys.executable, "-c", LOGGING, url], capture_stderr=True)
    assert b"an MCP server runs" in done.stderr
    assert b"sk-in" not in done.stderr


async def test_servers_processes_end_when_the_gateway_is_killed(tmp_path: Path) -> None:
    program = f"""
import sys, trio
from pathlib import Path
from picoclaw_trio.config.secret import Secret
from picoclaw_trio.config.tools import McpConfig, McpServerConfig
from picoclaw_trio.tools.mcp_servers import open_mcp_servers

async def main():
    server = McpServerConfig(
        command=sys.executable, args=({GOOD!r}, "stdio"), env={{"MCP_TEST_FILE": Secret({str(tmp_path / "notes")!r})}}
    )
    async with open_mcp_servers(McpConfig(True, {{"one": server}}), folder=Path(".")) as servers:
        await trio.sleep_forever()

trio.run(main)
"""
    notes = tmp_path / "notes"
    async with trio.open_nursery() as nursery:
        command = [sys.executable, "-c", program]
        process = await nursery.start(partial(trio.run_process, command, check=False))
        await wait_until(lambda: notes.exists() and notes.read_text().endswith("\n"))
        process.kill()
    await wait_none_alive([int(notes.read_text().split()[1])])
