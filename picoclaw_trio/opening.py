"""The application that configures itself when it starts, for ``hypercorn picoclaw_trio:app``.

Theory: whoever runs Hypercorn's own command sees a traceback and no reason, so what is wrong is told in the log first.
Editing rule: nothing here serves; what serves is in ``web``.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import structlog

from . import host, logs
from .config import Config, load_config
from .errors import ConfigError, StateError
from .gateway import Gateway, open_gateway
from .web import GatewayApp

log = structlog.stdlib.get_logger("picoclaw_trio.opening")


def create_app() -> GatewayApp:
    """The application that configures itself, when it starts, from the file and the environment."""
    return GatewayApp(_open_configured)


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
