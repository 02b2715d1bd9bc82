"""What is told at the end: what was made, how to go on, and what the agent may do."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from ..config import Config, reachable


def curl_line(address: str, token: str) -> str:
    """A command that asks the server at *address* its first question."""
    return (
        f"  curl {address}/v1/chat/completions -H 'Authorization: Bearer {token}' \\\n"
        """    -d '{"messages": [{"role": "user", "content": "Hello"}]}'"""
    )


def list_paths(title: str, paths: Iterable[Path]) -> Iterator[str]:
    """A line for each, below *title*; nothing if there are none."""
    lines = [f"  {path}" for path in paths]
    yield from [title, *lines] if lines else []


def describe(config: Config, variables: Sequence[str], token: str | None) -> Iterator[str]:
    """How to go on, for people.

    Args:
        variables: of the environment, that hold keys and have to be there when the server starts.
        token: the one that was made; None where there were tokens, which are not shown.
    """
    yield f"The model that answers: {config.default_alias or 'none, since model_list is empty'}"
    if others := [alias for alias in config.aliases if alias != config.default_alias]:
        yield f"Others, where a request names them: {', '.join(others)}"
    yield f"Start the server{f', with {listed} in its environment' if (listed := ', '.join(variables)) else ''}:"
    yield "  picoclaw gateway"
    yield from _describe_asking(config, token)
    yield "Or talk to the agent here:"
    yield "  picoclaw agent"
    yield ""
    yield from _describe_rights(config)
    yield f"Who the agent is stands in AGENT.md, SOUL.md and USER.md in {config.workspace}; they are yours to change."


def _describe_asking(config: Config, token: str | None) -> Iterator[str]:
    gateway, api = config.gateway, config.gateway.openai_api
    if not api.enabled:
        yield "The OpenAI API is off: set gateway.openai_api.enabled to true to ask over HTTP."
        return
    host = reachable(gateway.hosts[0])
    yield "Then ask it:" if token else "Then ask it, with one of gateway.openai_api.bearer_tokens as TOKEN:"
    yield curl_line(f"http://{f'[{host}]' if ':' in host else host}:{gateway.port}", token or "TOKEN")


def _describe_rights(config: Config) -> Iterator[str]:
    allow = config.tools.allow
    if not (allow.http or allow.terminal):
        yield "The agent may talk and nothing else. It may use a tool once tools.allow in the configuration names it,"
        yield "for whoever has a token (http) and for this terminal (terminal) separately."
        return
    for who, names in (("Whoever has a token", allow.http), ("Whoever uses this terminal", allow.terminal)):
        yield f"{who} may let the agent use: {', '.join(names) or 'no tool'}"
