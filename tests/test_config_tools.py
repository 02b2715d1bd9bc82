"""What the configuration says of tools, and what it refuses to say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from picoclaw_trio.config import Config, load_config
from picoclaw_trio.config.tools import AllowConfig
from picoclaw_trio.errors import ConfigError


def load(folder: Path, **tools: Any) -> Config:
    (folder / "config.json").write_text(json.dumps({"tools": tools}))
    return load_config({"PICOCLAW_HOME": str(folder), "HOME": str(folder)})


def problems(folder: Path, **tools: Any) -> list[tuple[str, str]]:
    with pytest.raises(ConfigError) as caught:
        load(folder, **tools)
    return [(problem.address.removeprefix("$.tools."), problem.message) for problem in caught.value.problems]


def test_nothing_is_allowed_where_nothing_is_said(tmp_path: Path) -> None:
    tools = load(tmp_path).tools
    assert ((), ()) == (tools.allow.http, tools.allow.terminal)
    assert () == tools.exec.programs
    assert not tools.mcp.enabled


@pytest.mark.parametrize(
    ("name", "for_http", "for_terminal"),
    [
        ("read_file", True, False),
        ("exec", False, True),
        ("mcp_files_read", True, False),
        ("mcp_filesread", False, False),
        ("mcp_wiki_read", False, False),
        ("READ_FILE", False, False),
    ],
)
def test_each_door_has_its_own_list(name: str, for_http: bool, for_terminal: bool) -> None:
    allow = AllowConfig(http=("read_file", "mcp_files_*"), terminal=("exec",))
    assert (for_http, for_terminal) == (allow.permits("http", name), allow.permits("terminal", name))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("read_fil", '"read_fil" is no tool; did you mean "read_file"?; those of MCP servers begin with mcp_'),
        ("*", '"*" is no tool; those of MCP servers begin with mcp_'),
        ("", "must be the name of a tool"),
        ("mcp_a b", "must be the name of a tool"),
    ],
)
def test_a_name_of_no_tool_is_refused(name: str, message: str, tmp_path: Path) -> None:
    assert [("allow.http[0]", message)] == problems(tmp_path, allow={"http": [name]})


def test_an_unknown_door_is_refused(tmp_path: Path) -> None:
    assert [("allow.htp", 'is not a known key; did you mean "http"?')] == problems(tmp_path, allow={"htp": []})


@pytest.mark.parametrize(
    ("server", "message"),
    [
        ({}, "has neither a command nor a url"),
        ({"command": "x", "url": "http://h"}, "has both a command and a url"),
        ({"type": "http", "command": "x"}, 'is of type "http", which needs a url'),
        ({"type": "stdio", "url": "http://h"}, 'is of type "stdio", which needs a command'),
    ],
)
def test_an_mcp_server_says_how_it_is_reached(server: Any, message: str, tmp_path: Path) -> None:
    assert [("mcp.servers.s", message)] == problems(tmp_path, mcp={"enabled": True, "servers": {"s": server}})


@pytest.mark.parametrize("mcp", [{"servers": {"s": {}}}, {"enabled": True, "servers": {"s": {"enabled": False}}}])
def test_what_is_off_need_not_be_whole(mcp: Any, tmp_path: Path) -> None:
    assert "s" in load(tmp_path, mcp=mcp).tools.mcp.servers


@pytest.mark.parametrize(
    "server", [{"command": "x"}, {"url": "https://h/mcp?key=1"}, {"type": "sse", "url": "http://h"}]
)
def test_an_mcp_server_of_either_kind_loads(server: Any, tmp_path: Path) -> None:
    assert "s" in load(tmp_path, mcp={"enabled": True, "servers": {"s": server}}).tools.mcp.servers


def test_secrets_of_mcp_servers_do_not_show(tmp_path: Path) -> None:
    server = {"url": "https://h/mcp?key=hidden", "headers": {"Authorization": "hidden"}, "env": {"KEY": "hidden"}}
    config = load(tmp_path, mcp={"servers": {"s": server}})
    assert "hidden" not in repr(config)
    assert "hidden" == config.tools.mcp.servers["s"].headers["Authorization"].reveal()


@pytest.mark.parametrize(
    ("value", "sent"), [("Bearer a", "Bearer a"), ("a", "a"), ("", ""), ("file:header", "Bearer b")]
)
def test_header_of_an_mcp_server_may_have_spaces_within(value: str, sent: str, tmp_path: Path) -> None:
    (tmp_path / "header").write_text("Bearer b\n")
    servers = {"s": {"url": "http://h", "headers": {"Authorization": value}}}
    assert sent == load(tmp_path, mcp={"servers": servers}).tools.mcp.servers["s"].headers["Authorization"].reveal()


@pytest.mark.parametrize("value", [" a", "a\r\nX: b", "ä"])
def test_header_of_an_mcp_server_that_http_cannot_carry_is_refused(value: str, tmp_path: Path) -> None:
    servers = {"s": {"url": "http://h", "headers": {"X-Key": value}}}
    message = "must be printable ASCII without spaces around it"
    assert [("mcp.servers.s.headers.X-Key", message)] == problems(tmp_path, mcp={"servers": servers})


@pytest.mark.parametrize("value", ["", "two words", "Größe\nund mehr"])
def test_variable_of_an_mcp_server_may_hold_any_text(value: str, tmp_path: Path) -> None:
    servers = {"s": {"command": "x", "env": {"SETTING": value}}}
    assert value == load(tmp_path, mcp={"servers": servers}).tools.mcp.servers["s"].env["SETTING"].reveal()


@pytest.mark.parametrize(
    ("server", "place"),
    [
        ({"command": "x", "env": {"SETTING": "a\0b"}}, "env.SETTING"),
        ({"command": "x\0"}, "command"),
        ({"command": "x", "args": ["a", "\0"]}, "args[1]"),
        ({"command": "x", "env_file": "a\0b"}, "env_file"),
    ],
)
def test_what_no_process_can_be_started_with_is_refused(server: Any, place: str, tmp_path: Path) -> None:
    found = problems(tmp_path, mcp={"servers": {"s": server}})
    assert [(f"mcp.servers.s.{place}", "must not hold a NUL")] == found


@pytest.mark.parametrize("program", ["bin/ls", "./ls", "../ls", "", " ls"])
def test_a_program_is_a_name_or_a_full_path(program: str, tmp_path: Path) -> None:
    assert ["exec.programs[0]"] == [place for place, _ in problems(tmp_path, exec={"programs": [program]})]


@pytest.mark.parametrize(
    ("part", "key"),
    [("exec", "timeout"), ("exec", "max_memory_mb"), ("web_fetch", "max_bytes"), ("web_fetch", "timeout")],
)
def test_a_bound_is_more_than_nothing(part: str, key: str, tmp_path: Path) -> None:
    assert [f"{part}.{key}"] == [place for place, _ in problems(tmp_path, **{part: {key: 0}})]


@pytest.mark.parametrize("network", ["10.0.0.0/8", "192.168.1.20", "fd00::/8", "::1"])
def test_a_private_host_is_an_address_or_a_network(network: str, tmp_path: Path) -> None:
    assert (network,) == load(tmp_path, web_fetch={"private_hosts": [network]}).tools.web_fetch.private_hosts


@pytest.mark.parametrize("network", ["localhost", "10.0.0.1/8", "", "10.0.0.0/33"])
def test_what_is_neither_is_refused(network: str, tmp_path: Path) -> None:
    message = "must be an IP address, or a network such as 10.0.0.0/8"
    assert [("web_fetch.private_hosts[0]", message)] == problems(tmp_path, web_fetch={"private_hosts": [network]})


def test_a_change_of_the_servers_waits_for_a_restart(tmp_path: Path) -> None:
    old = load(tmp_path, mcp={"servers": {"s": {"command": "x"}}})
    new = load(tmp_path, mcp={"servers": {"s": {"command": "y"}}}, allow={"http": ["exec"]})
    assert ["tools.mcp"] == old.needs_restart(new)
