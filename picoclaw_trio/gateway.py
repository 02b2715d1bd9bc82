"""What lives as long as the server and serves all requests: opened in one order, closed in the other.

Theory: state, then memory, then upstream, then tools; whoever opens a ``Gateway`` may walk the line of ``pipeline``
with it, from the endpoint, from the terminal, from a test.
Editing rule: what a reload changes is evolved in ``with_config``; what needs a restart is listed by the configuration.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import attrs

from .admission import Admission
from .auth import BearerTokens, Holder
from .config import Config
from .memory import FOLDER_NAME, Memory, open_memory
from .plan import Caller
from .routing import Router
from .state import Sessions, open_sessions
from .throttle import Throttle
from .tools import Tools, open_tools
from .unfinished import Unfinished
from .upstream import RetryPolicy, Upstream, open_upstream
from .workspace import Workspace

GLOBAL_SCOPE = "global"


@attrs.frozen
class Gateway:
    """What lives as long as the server and serves all requests."""

    config: Config
    tokens: BearerTokens
    throttle: Throttle
    router: Router
    sessions: Sessions
    upstream: Upstream
    admission: Admission
    workspace: Workspace
    tools: Tools
    memory: Memory
    unfinished: Unfinished = attrs.field(factory=Unfinished)

    def http_caller(self, name: str | None, holder: Holder | None) -> Caller:
        """A client of the endpoint: its aliases are stored with its session, or in the one place for all.

        Args:
            name: of the session: the request's ``user``, or what a header says; None for the default session.
        """
        session = f"openai:{name or 'default'}"
        api = self.config.gateway.openai_api
        selection = session if api.model_scope == "session" else GLOBAL_SCOPE
        return Caller(session, selection, holder, remembers=api.history == "session")

    @property
    def default_alias(self) -> str | None:
        return default_alias(self.config, self.workspace)

    def with_config(self, config: Config) -> Gateway:
        """The same server under another configuration: state, connections, turns in flight and wrong tokens stay."""
        api, defaults = config.gateway.openai_api, config.agents.defaults
        self.upstream.policy = RetryPolicy(defaults.max_llm_retries + 1, defaults.llm_retry_backoff_secs)
        self.admission.set_limits(api.max_turns, api.max_waiting, api.max_wait)
        self.throttle.set_limit(api.wrong_tokens_per_minute)
        return attrs.evolve(
            self,
            config=config,
            tokens=BearerTokens.from_plain([token.reveal() for token in api.bearer_tokens]),
            router=Router.from_config(config, self.router),
            workspace=self.workspace if config.workspace == self.workspace.folder else Workspace(config.workspace),
            tools=self.tools.with_config(config),
        )


def default_alias(config: Config, workspace: Workspace) -> str | None:
    """What answers where neither request nor session names a model: the agent's own file has the first word."""
    own = workspace.identity().model
    if own is not None and own in config.aliases:
        return own
    if own is not None:
        workspace.remark("model is no model_name of model_list, and is passed over")
    return config.default_alias


def open_stored_sessions(config: Config) -> AbstractAsyncContextManager[Sessions]:
    """What is stored for the sessions, under the configuration's bounds.

    Raises:
        StateError: the state file cannot be used.
    """
    api = config.gateway.openai_api
    return open_sessions(config.home, max_sessions=api.max_sessions, session_ttl=api.session_ttl)


def open_stored_memory(config: Config) -> AbstractAsyncContextManager[Memory]:
    """The conversations that are kept, under the configuration's bounds.

    Raises:
        StateError: their folder cannot be used.
    """
    api = config.gateway.openai_api
    return open_memory(config.home / FOLDER_NAME, max_sessions=api.max_sessions, session_ttl=api.session_ttl)


@asynccontextmanager
async def open_gateway(config: Config) -> AsyncIterator[Gateway]:
    """State, then upstream, then tools, then ready to serve; leaving goes the other way.

    Raises:
        StateError: the state file or the folder of the conversations cannot be used.
    """
    api, defaults = config.gateway.openai_api, config.agents.defaults
    policy = RetryPolicy(defaults.max_llm_retries + 1, defaults.llm_retry_backoff_secs)
    async with (
        open_stored_sessions(config) as sessions,
        open_stored_memory(config) as memory,
        open_upstream(policy, api.max_turns) as upstream,
        open_tools(config) as tools,
    ):
        yield Gateway(
            config=config,
            tokens=BearerTokens.from_plain([token.reveal() for token in api.bearer_tokens]),
            throttle=Throttle(api.wrong_tokens_per_minute),
            router=Router.from_config(config),
            sessions=sessions,
            upstream=upstream,
            admission=Admission(api.max_turns, api.max_waiting, api.max_wait),
            workspace=Workspace(config.workspace),
            tools=tools,
            memory=memory,
        )
