"""The application that configures itself when it starts, for ``hypercorn picoclaw_trio:app``.

Theory: whoever runs Hypercorn's own command sees a traceback and no reason, so what is wrong is told in the log first.
Editing rule: nothing here serves; what serves is in ``web``.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import structlog

from . import answers, host, logs
from .config import Config, load_config
from .errors import ConfigError, GatewayError, StateError
from .gateway import Gateway, open_gateway
from .web import GatewayApp

if TYPE_CHECKING:
    from hypercorn.typing import ASGIReceiveCallable, ASGISendCallable, Scope

log = structlog.stdlib.get_logger("picoclaw_trio.opening")

NO_TRIO = "The application runs on Trio only: start Hypercorn with --worker-class trio."


def create_app() -> GatewayApp:
    """The application that configures itself, when it starts, from the file and the environment."""
    return GatewayApp(_open_configured)


async def refuse_loop(scope: Scope, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
    """What is served on another event loop than Trio's: the start fails; where a server goes on, so does each request.

    Nothing here may wait for Trio.
    """
    if scope["type"] == "lifespan":
        await receive()
        _configure_logs()
        log.critical(NO_TRIO)
        await send({"type": "lifespan.startup.failed", "message": NO_TRIO})
    elif scope["type"] == "http":
        body = answers.encode_error(GatewayError(500, "server_error", NO_TRIO, code="wrong_event_loop"))
        headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
        await send({"type": "http.response.start", "status": 500, "headers": headers})
        await send({"type": "http.response.body", "body": body, "more_body": False})


def _configure_logs() -> None:
    """As the configuration has it, if there is one that can be used."""
    try:
        gateway = load_config().gateway
        logs.configure(gateway.log_level, gateway.log_format)
    except ConfigError:
        logs.configure("info", "console")


@asynccontextmanager
async def _open_configured() -> AsyncIterator[Gateway]:
    try:
        config = load_config()
    except ConfigError as exc:
        logs.configure("info", "console")
        logs.tell_problems("the configuration cannot be used", exc.source, exc.problems)
        raise
    logs.configure(config.gateway.log_level, config.gateway.log_format)
    logs.tell_remarks(config.file, config.warnings, config.passed_over)
    async with _open_told(config) as gateway:
        host.raise_file_limit()
        host.calm_collector(config.gateway.openai_api.max_turns)
        yield gateway


@asynccontextmanager
async def _open_told(config: Config) -> AsyncIterator[Gateway]:
    """The gateway; why it cannot be opened is told in the log, where Hypercorn's traceback has no reason."""
    is_open = False
    try:
        async with open_gateway(config) as gateway:
            is_open = True
            yield gateway
    except StateError as exc:
        if not is_open:
            log.error("the stored state cannot be used", reason=exc.reason)
        raise
