"""``picoclaw gateway``: sockets, signals, and the order of shutdown.

Theory: Hypercorn serves in this very process. The first signal lets running turns finish within the grace period, a
second one cuts that short. Whatever keeps the server from starting is raised before anything is served.
Editing rule: what a request is answered while the server stops is decided in ``admission``, not here.
"""

from __future__ import annotations

import logging
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import nullcontext
from functools import partial

import structlog
import trio
from hypercorn.app_wrappers import ASGIWrapper
from hypercorn.config import Config as HypercornConfig
from hypercorn.config import Sockets
from hypercorn.trio.run import worker_serve

from . import host, logs
from .config import Config
from .errors import GatewayError
from .pipeline import open_gateway
from .web import GatewayApp

log = structlog.stdlib.get_logger("picoclaw_trio.server")

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)
BACKLOG = 2048


class StartError(GatewayError):
    """The server cannot start: its address is taken, or is none of this machine's."""

    def __init__(self, message: str) -> None:
        super().__init__(500, "server_error", message, code="cannot_start")


def run_gateway(config: Config, on_ready: Callable[[list[str]], None]) -> None:
    """Serve until a signal asks to stop; return when all is closed.

    Args:
        on_ready: called once, with the addresses that are served: ``http://127.0.0.1:18790``.

    Raises:
        StartError: no socket at the configured address.
        StateError: the state file cannot be used.
    """
    logs.configure(config.gateway.log_level, config.gateway.log_format)
    host.mend()
    hypercorn = hypercorn_config(config)
    sockets = listen(hypercorn)
    trio.run(_serve, config, hypercorn, sockets, on_ready)


def hypercorn_config(config: Config) -> HypercornConfig:
    """Hypercorn's settings for what the configuration says."""
    hypercorn = HypercornConfig()
    port = config.gateway.port
    hypercorn.bind = [f"[{name}]:{port}" if ":" in name else f"{name}:{port}" for name in config.gateway.hosts]
    hypercorn.graceful_timeout = config.gateway.grace
    hypercorn.shutdown_timeout = config.gateway.grace + hypercorn.shutdown_timeout  # turns without a client go on in it
    hypercorn.errorlog = logging.getLogger("hypercorn.error")
    return hypercorn


def listen(hypercorn: HypercornConfig) -> Sockets:
    """
    Raises:
        StartError: an address is taken, or is none of this machine's.
    """
    try:
        sockets = hypercorn.create_sockets()
        for socket in sockets.insecure_sockets:
            socket.listen(BACKLOG)
    except OSError as exc:
        raise StartError(f"cannot serve at {', '.join(hypercorn.bind)}: {exc.strerror or exc}") from exc
    return sockets


async def _serve(
    config: Config, hypercorn: HypercornConfig, sockets: Sockets, on_ready: Callable[[list[str]], None]
) -> None:
    stop = trio.Event()
    async with open_gateway(config) as gateway:
        app = ASGIWrapper(GatewayApp(lambda: nullcontext(gateway)))
        serve = partial(worker_serve, app, hypercorn, sockets=sockets, shutdown_trigger=stop.wait)
        with trio.open_signal_receiver(*STOP_SIGNALS) as signals:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_watch_signals, signals, stop, nursery.cancel_scope)
                async with trio.open_nursery() as serving:
                    on_ready(await serving.start(serve))
                nursery.cancel_scope.cancel()


async def _watch_signals(signals: AsyncIterator[int], stop: trio.Event, serving: trio.CancelScope) -> None:
    log.info("stopping", signal=signal.Signals(await anext(signals)).name)
    stop.set()
    log.warning("stopping at once", signal=signal.Signals(await anext(signals)).name)
    serving.cancel()
