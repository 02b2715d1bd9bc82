"""What the configuration says of tools: which an agent may call, for whom, and within which bounds.

Theory: nothing is allowed until ``allow`` names it, for each door apart. PicoClaw's files have a ``tools`` object too:
what both know has one name here (``mcp.servers``), and its other keys are passed over.
Editing rule: a bound that a user may want to turn is a field here, with its unit.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from fnmatch import fnmatchcase
from types import MappingProxyType
from typing import Annotated, Literal

import attrs

from .checks import (
    Argument,
    Count,
    HeaderName,
    HiddenHeaderValue,
    HiddenText,
    Name,
    Seconds,
    check_url,
    matches,
    satisfies,
)
from .strict import did_you_mean, quoted, wrong

Door = Literal["http", "terminal"]
BUILT_IN = ("read_file", "list_dir", "write_file", "edit_file", "append_file", "exec", "web_fetch")
MCP_PREFIX = "mcp_"


def _check_tool(name: str) -> str:
    if name not in BUILT_IN and not name.startswith(MCP_PREFIX):
        raise wrong(f"{quoted(name)} is no tool{did_you_mean(name, BUILT_IN)}; those of MCP servers begin with mcp_")
    return name


def _check_network(text: str) -> str:
    try:
        ipaddress.ip_network(text)
    except ValueError:
        raise wrong("must be an IP address, or a network such as 10.0.0.0/8") from None
    return text


Network = Annotated[str, _check_network]
ToolName = Annotated[str, matches(r"[A-Za-z0-9_*-]{1,64}", "must be the name of a tool"), _check_tool]
Program = Annotated[
    Name, satisfies(lambda name: "/" not in name or name.startswith("/"), "must be a name or a full path")
]
Variable = Annotated[str, matches(r"[A-Za-z_][A-Za-z0-9_]*", "must be the name of an environment variable")]
ServerName = Annotated[str, matches(r"[A-Za-z0-9_-]{1,32}", "must be 1 to 32 letters, digits, - or _")]
ServerUrl = Annotated[str, lambda text: check_url(text.partition("?")[0], ("http", "https")) and text]


@attrs.frozen
class AllowConfig:
    """``tools.allow``: names, or beginnings of names with a ``*`` at their end, such as ``mcp_files_*``.

    Attributes:
        http: for whoever has a bearer token.
        terminal: for ``picoclaw agent``.
    """

    http: tuple[ToolName, ...] = ()
    terminal: tuple[ToolName, ...] = ()

    def permits(self, door: Door, name: str) -> bool:
        allowed = self.http if door == "http" else self.terminal
        return any(fnmatchcase(name, pattern) for pattern in allowed)

    @property
    def names(self) -> tuple[str, ...]:
        return (*self.http, *self.terminal)


@attrs.frozen
class ExecConfig:
    """``tools.exec``: programs that the agent may start, without a shell, in its workspace.

    Attributes:
        programs: names, found along ``PATH``, or full paths; while it is empty nothing can be started.
        timeout: seconds that one may run.
        max_output_chars: of what it writes, both streams together; the rest is counted and dropped.
        max_memory_mb: address space of each process, MiB.
        max_cpu_seconds: processor time of each process.
        max_file_mb: size of a file that it may write, MiB.
        max_processes: processes that may be there at once, the program and all that come from it.
        environment: names of variables that it gets to see, beside ``PATH``, ``HOME``, ``LANG`` and ``TMPDIR``.
    """

    programs: tuple[Program, ...] = ()
    timeout: Seconds = 60.0
    max_output_chars: Count = 10_000
    max_memory_mb: Count = 1024
    max_cpu_seconds: Count = 60
    max_file_mb: Count = 64
    max_processes: Count = 32
    environment: tuple[Variable, ...] = ()


@attrs.frozen
class WebFetchConfig:
    """``tools.web_fetch``.

    Attributes:
        timeout: seconds of a whole fetch, redirects included.
        max_bytes: of the body, unpacked.
        max_chars: of the text that the model gets.
        max_redirects: that are followed, each checked like the first address.
        private_hosts: networks, ``10.0.0.0/8``, and addresses that may be fetched though they are not public.
    """

    timeout: Seconds = 60.0
    max_bytes: Count = 10 * 1024 * 1024
    max_chars: Count = 50_000
    max_redirects: Annotated[int, satisfies(lambda count: 0 <= count <= 20, "must be between 0 and 20")] = 5
    private_hosts: tuple[Network, ...] = ()


@attrs.frozen
class McpServerConfig:
    """One of ``tools.mcp.servers``, in PicoClaw's format.

    Attributes:
        type: ``stdio`` has a ``command``, the others a ``url``; None: whichever of the two is there.
        command, args, env, env_file: the program, and what is added to its environment.
        url, headers: of a server that is reached over HTTP.
        timeout: seconds for one call of a tool, and for its start.
    """

    enabled: bool = True
    type: Literal["stdio", "http", "streamable-http", "sse"] | None = None
    command: Argument | None = None
    args: tuple[Argument, ...] = ()
    env: Mapping[Variable, HiddenText] = MappingProxyType({})
    env_file: Argument | None = None
    url: ServerUrl | None = attrs.field(default=None, repr=False)
    headers: Mapping[HeaderName, HiddenHeaderValue] = MappingProxyType({})
    timeout: Seconds = 60.0


def check_server(entry: Mapping[str, object]) -> None:
    """An MCP server, as the file has it, says how it is to be reached, unless it is off.

    Raises:
        Wrong: it does not, or in two ways at once.
    """
    if entry.get("enabled") is False:
        return
    kind, command, url = entry.get("type"), entry.get("command"), entry.get("url")
    if command and url:
        raise wrong("has both a command and a url")
    if not (command or url):
        raise wrong("has neither a command nor a url")
    if kind and bool(command) != (kind == "stdio"):
        raise wrong(f"is of type {quoted(str(kind))}, which needs a {'command' if kind == 'stdio' else 'url'}")


@attrs.frozen
class McpConfig:
    """``tools.mcp``: servers of the Model Context Protocol. Off unless ``enabled``."""

    enabled: bool = False
    servers: Mapping[ServerName, McpServerConfig] = MappingProxyType({})


@attrs.frozen
class ToolsConfig:
    """``tools``.

    Attributes:
        max_parallel: calls of one turn that run side by side.
        max_running: calls of all turns that run side by side, in one process; others wait for them.
        timeout: seconds that any one call may take.
        max_result_chars: of one call's result; the middle of a longer one is left out.
    """

    allow: AllowConfig = AllowConfig()
    max_parallel: Count = 4
    max_running: Count = 32
    timeout: Seconds = 120.0
    max_result_chars: Count = 64_000
    exec: ExecConfig = ExecConfig()
    web_fetch: WebFetchConfig = WebFetchConfig()
    mcp: McpConfig = McpConfig()
