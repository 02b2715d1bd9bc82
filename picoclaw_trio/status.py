"""What ``picoclaw status`` shows: the configuration in force, and whether a server answers at its address."""

from __future__ import annotations

import http.client
from collections.abc import Iterator

from .config import Config

TIMEOUT = 2.0


def describe(config: Config) -> Iterator[str]:
    """Lines for people. Asks ``/ready`` of the server at the configured address, over plain HTTP."""
    gateway, api = config.gateway, config.gateway.openai_api
    yield f"configuration: {config.path or 'none, only defaults'}"
    yield f"OpenAI API:    {'on' if api.enabled else 'off'}, {len(api.bearer_tokens)} bearer tokens"
    yield f"model scope:   {api.model_scope}"
    yield f"models:        {', '.join(config.aliases) or 'none'}"
    yield f"default model: {config.default_alias or 'none'}"
    for host in gateway.hosts:
        yield f"server:        {_server(host, gateway.port)}"


def _server(host: str, port: int) -> str:
    """What is at the address; a server that listens everywhere is asked on loopback."""
    asked = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - read, not bound
    connection = http.client.HTTPConnection(asked, port, timeout=TIMEOUT)
    try:
        connection.request("GET", "/ready")
        status = connection.getresponse().status
    except (OSError, http.client.HTTPException) as exc:
        return f"nothing answers at {asked} port {port} ({exc})"
    finally:
        connection.close()
    return f"{'ready' if status == 200 else f'not ready (status {status})'} at {asked} port {port}"
