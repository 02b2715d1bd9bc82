"""What a configuration holds: the values that the other rooms get, and the shapes in which the file says them.

Theory: a key of the file is a field here, of the same name; its type says what it must be, its default what it is when
the file does not say. Where file and value differ (``provider`` and ``model`` become ``vendor``, one key has two
spellings) the file has a shape of its own, named ``...Entry``, and ``config`` makes the value of it.
Editing rule: a new key is a field with a type and a default, a line in ``config.example.json``, and nothing else.
"""

from __future__ import annotations

from operator import attrgetter
from pathlib import Path
from typing import Annotated, Literal

import attrs

from ..errors import Problem
from .checks import (
    Count,
    Hosts,
    Key,
    LogLevel,
    Name,
    Origin,
    Seconds,
    SessionHeader,
    between,
    hosts_of,
    zero_means,
)
from .models import ModelConfig, ModelEntry
from .tools import ToolsConfig

# PicoClaw's: four times its own default of max_tokens.
DEFAULT_CONTEXT_WINDOW = 131_072
# What is read only when the server starts.
AT_START = (
    "gateway.host",
    "gateway.port",
    "gateway.grace",
    "gateway.openai_api.max_sessions",
    "gateway.openai_api.session_ttl",
    "tools.mcp",
)


@attrs.frozen
class ModelChoice:
    """An agent's ``model``; the file may also have the primary alias alone, as a string."""

    primary: Name | None = None
    fallbacks: tuple[Name, ...] = ()


@attrs.frozen
class AgentEntry:
    """An ``agents.list`` entry as the file has it."""

    id: Name = "main"
    default: bool = False
    name: str = ""
    model: ModelChoice = ModelChoice()
    workspace: Path | None = None


@attrs.frozen
class AgentConfig:
    """An agent. ``model`` and ``workspace`` are None where ``AgentDefaults`` decide; ``fallbacks`` are aliases."""

    id: str = "main"
    default: bool = False
    name: str = ""
    model: str | None = None
    fallbacks: tuple[str, ...] = ()
    workspace: Path | None = None


@attrs.frozen
class AgentDefaults:
    """What holds for an agent that does not say otherwise.

    Attributes:
        model_name, model_fallbacks: aliases.
        workspace: folder of the agent's own prompt; absolute, once loaded.
        max_tokens, temperature: what a request asks for that does not say; None to leave them to the upstream.
        max_llm_retries: how often a target that failed is asked again.
        llm_retry_backoff_secs: seconds before the first time; doubled for each that follows.
        max_tool_iterations: replies that a model may give in one turn, the last one included.
        context_window: tokens that a kept conversation may take together with the answer; None: four times
            ``max_tokens``, or 131,072.
        summarize_history: whether what no longer fits is summed up by the model, or only left out.
    """

    model_name: Name | None = None
    model_fallbacks: tuple[Name, ...] = ()
    workspace: Path = Path("workspace")
    max_tokens: Annotated[int, between(0), zero_means(None)] | None = None
    temperature: Annotated[float, between(0, 2)] | None = None
    max_llm_retries: Annotated[int, between(0, 100)] = 2
    llm_retry_backoff_secs: Annotated[float, between(0)] = 0.5
    max_tool_iterations: Annotated[int, between(0, 1000), zero_means(20)] = 50
    context_window: Annotated[int, between(0), zero_means(None)] | None = None
    summarize_history: bool = False

    @property
    def window(self) -> int:
        return self.context_window or (4 * self.max_tokens if self.max_tokens else DEFAULT_CONTEXT_WINDOW)


@attrs.frozen
class DefaultsEntry(AgentDefaults):
    """``agents.defaults`` as the file has it. ``model`` is the old spelling of ``model_name``, which wins."""

    model: Name | None = attrs.field(default=None, metadata={"old spelling of": "model_name"})


@attrs.frozen
class AgentsEntry:
    """``agents`` as the file has it."""

    defaults: DefaultsEntry = DefaultsEntry()
    list: tuple[AgentEntry, ...] = ()


@attrs.frozen
class AgentsConfig:
    """Every agent, in the order of the file."""

    defaults: AgentDefaults = AgentDefaults()
    list: tuple[AgentConfig, ...] = ()


@attrs.frozen
class OpenAIApiConfig:
    """``gateway.openai_api``: the endpoint.

    Attributes:
        bearer_tokens: who may come in; while it is empty nobody may.
        streaming: whether ``stream: true`` is served, or answered with 501.
        body_timeout: seconds for a request's body to arrive.
        turn_timeout: seconds for a whole turn, with its tools, retries and fallbacks.
        max_turns: turns at once; beyond them ``max_waiting`` requests wait, each ``max_wait`` seconds at most.
        write_timeout: seconds that a client may leave what we send unread.
        ping_interval: seconds of silence after which a stream sends a comment.
        on_disconnect: whether a turn ends with its client or is finished for the record.
        cors_origins: origins whose pages may call us; ``*`` for all.
        history: who remembers the conversation.
        session_headers: of a request; the first that is there names its session, before ``user``.
        session_wait: seconds that a request may wait for its session's turn to end.
        max_sessions: selections kept, and conversations; the least recently used go.
        session_ttl: seconds without use, None: for ever.
        wrong_tokens_per_minute: from one address, before it is slowed down; 0: as many as it likes.
        metrics_open: whether ``/metrics`` wants no token.
    """

    enabled: bool = False
    bearer_tokens: tuple[Key, ...] = ()
    model_scope: Literal["global", "session"] = "global"
    streaming: bool = False
    max_body_bytes: Count = 20 * 1024 * 1024
    body_timeout: Seconds = 30.0
    turn_timeout: Seconds = 600.0
    max_turns: Count = 1024
    max_waiting: Annotated[int, between(0)] = 1024
    max_wait: Seconds = 10.0
    write_timeout: Seconds = 30.0
    ping_interval: Seconds = 10.0
    on_disconnect: Literal["cancel", "finish"] = "cancel"
    cors_origins: tuple[Origin, ...] = ()
    history: Literal["client", "session"] = "client"
    session_headers: tuple[SessionHeader, ...] = ()
    session_wait: Seconds = 5.0
    max_sessions: Count = 10_000
    session_ttl: Seconds | None = None
    wrong_tokens_per_minute: Annotated[int, between(0)] = 60
    metrics_open: bool = False


@attrs.frozen
class GatewayConfig:
    """``gateway``: where we listen, what we log, and how long we take to leave.

    Attributes:
        host: name or address, several with commas between them, ``*`` for all; ``hosts`` has them apart.
        port: 0 lets the system choose.
        grace: seconds that running turns get at shutdown.
    """

    host: Hosts = "127.0.0.1"
    port: Annotated[int, between(0, 65535)] = 18790
    log_level: LogLevel = "warn"
    log_format: Literal["console", "json"] = "console"
    grace: Annotated[float, between(0)] = 30.0
    openai_api: OpenAIApiConfig = OpenAIApiConfig()

    @property
    def hosts(self) -> tuple[str, ...]:
        return hosts_of(self.host)


@attrs.frozen
class ConfigFile:
    """The whole file. Keys of PicoClaw's other parts are not here, and are passed over."""

    version: Annotated[int, between(1, 3)] | None = None
    gateway: GatewayConfig = GatewayConfig()
    agents: AgentsEntry = AgentsEntry()
    model_list: tuple[ModelEntry, ...] = ()
    tools: ToolsConfig = attrs.field(factory=ToolsConfig)


@attrs.frozen
class Config:
    """A configuration in which nothing is wrong.

    Attributes:
        path: the file it came from; None if there was none.
        home: folder of the gateway's own files.
        warnings: what will not work, or not as one may think.
        passed_over: addresses of keys that no part of this gateway reads and that are like none of its own.
    """

    path: Path | None
    home: Path
    gateway: GatewayConfig = GatewayConfig()
    agents: AgentsConfig = AgentsConfig()
    model_list: tuple[ModelConfig, ...] = ()
    tools: ToolsConfig = attrs.field(factory=ToolsConfig)
    warnings: tuple[Problem, ...] = attrs.field(default=(), eq=False)
    passed_over: tuple[str, ...] = attrs.field(default=(), eq=False)

    @property
    def file(self) -> Path:
        """Where the configuration stands, or would."""
        return self.path or self.home / "config.json"

    @property
    def workspace(self) -> Path:
        """The default agent's folder."""
        return self.default_agent.workspace or self.agents.defaults.workspace

    @property
    def aliases(self) -> tuple[str, ...]:
        """Every alias once, in the order of ``model_list``."""
        return tuple(dict.fromkeys(model.model_name for model in self.model_list))

    @property
    def default_agent(self) -> AgentConfig:
        """The agent marked ``default``, else the first, else one that is nothing but the defaults."""
        agents = self.agents.list
        return next((agent for agent in agents if agent.default), agents[0] if agents else AgentConfig(default=True))

    @property
    def default_alias(self) -> str | None:
        """What answers where neither request nor session names a model; None while there is no model at all."""
        chosen = self.default_agent.model or self.agents.defaults.model_name
        return (chosen or self.aliases[0]) if self.aliases else None

    def needs_restart(self, new: Config) -> list[str]:
        """The keys in which *new* differs and that take effect only when the server starts."""
        return [key for key in AT_START if attrgetter(key)(self) != attrgetter(key)(new)]
