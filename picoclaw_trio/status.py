"""What ``picoclaw status`` shows: the configuration as it stands now, and the server at its address, if there is one.

Theory: a server has in force what it could use when it last read its configuration, and keeps the address that it was
started with; no server tells that. So each line says which of the two it is about.
Editing rule: nothing here changes anything.
"""

from __future__ import annotations

import http.client
import re
from collections.abc import Callable, Iterator, Mapping

from .config import Config, GatewayConfig, reachable
from .errors import ConfigError
from .gateway import default_alias
from .workspace import Workspace

TIMEOUT = 2.0
ANSWERS = re.compile(r'^picoclaw_requests_total{status="(\d+)"} ([0-9.e+]+)$', re.MULTILINE)
LOAD = re.compile(r"^picoclaw_(turns_running|requests_waiting) ([0-9.e+]+)$", re.MULTILINE)


def describe(load: Callable[[], Config], environ: Mapping[str, str]) -> Iterator[str]:
    """Lines for people, of the configuration that *load* gives.

    Raises:
        ConfigError: it cannot be used; what could be told all the same has been given before.
    """
    try:
        config = load()
    except ConfigError as exc:
        yield from _describe_unusable(exc.source, environ)
        raise
    yield from _describe_usable(config)


def _describe_usable(config: Config) -> Iterator[str]:
    """Asks the server at the configured address over plain HTTP, with the first of its tokens."""
    gateway, api = config.gateway, config.gateway.openai_api
    yield f"configuration: {f'{config.path}, as it stands now' if config.path else 'none, only defaults'}"
    tokens = len(api.bearer_tokens)
    yield f"OpenAI API:    {'on' if api.enabled else 'off'}, {tokens} bearer token{'' if tokens == 1 else 's'}"
    yield f"model scope:   {api.model_scope}"
    yield f"models:        {', '.join(config.aliases) or 'none'}"
    yield f"default model: {default_alias(config, Workspace(config.workspace)) or 'none'}"
    yield f"workspace:     {config.workspace}"
    yield f"history:       kept by the {'gateway' if api.history == 'session' else 'client'}"
    for door, allowed in (("HTTP", config.tools.allow.http), ("local", config.tools.allow.terminal)):
        yield f"{f'tools, {door}:':15}{', '.join(allowed) or 'none'}"
    token = api.bearer_tokens[0].reveal() if api.bearer_tokens else ""
    is_everywhere = "0.0.0.0" in gateway.hosts  # noqa: S104 - read, not bound
    for host in (host for host in gateway.hosts if not is_everywhere or host != "::"):
        yield from _describe_server(host, gateway.port, token)


def _describe_unusable(path: str, environ: Mapping[str, str]) -> Iterator[str]:
    """Asks at the address of the environment, or the usual one."""
    yield f"configuration: {path}, which cannot be used as it stands now; a server has what it could last use"
    usual, port = GatewayConfig(), environ.get("PICOCLAW_GATEWAY_PORT", "").strip()
    named = GatewayConfig(
        host=environ.get("PICOCLAW_GATEWAY_HOST", "").strip() or usual.host,
        port=int(port) if re.fullmatch("[0-9]{1,5}", port) else usual.port,
    )
    for host in named.hosts:
        yield from _describe_server(host, named.port, "")


def _describe_server(host: str, port: int, token: str) -> Iterator[str]:
    """What is at the address; a server that listens everywhere is asked on loopback."""
    asked = reachable(host)
    try:
        status, _ = _get(asked, port, "/ready", token)
        yield f"server:        {'ready' if status == 200 else f'not ready (status {status})'} at {asked} port {port}"
        status, numbers = _get(asked, port, "/metrics", token)
    except (OSError, OverflowError, UnicodeError, http.client.HTTPException) as exc:  # the address may be none
        yield f"server:        nothing answers at {asked} port {port} ({exc}); other addresses were not tried"
        return
    if status == 200:
        yield from _describe_numbers(numbers)


def _get(host: str, port: int, path: str, token: str) -> tuple[int, str]:
    connection = http.client.HTTPConnection(host, port, timeout=TIMEOUT)
    try:
        connection.request("GET", path, headers={"Authorization": f"Bearer {token}"} if token else {})
        response = connection.getresponse()
        return response.status, response.read().decode(errors="replace")  # it may be anybody's
    finally:
        connection.close()


def _describe_numbers(text: str) -> Iterator[str]:
    answers = ", ".join(f"{float(count):.0f} x {status}" for status, count in sorted(ANSWERS.findall(text)))
    load = {name: float(count) for name, count in LOAD.findall(text)}
    yield f"answers:       {answers or 'none yet'}"
    yield f"turns:         {load.get('turns_running', 0):.0f} running, {load.get('requests_waiting', 0):.0f} waiting"
