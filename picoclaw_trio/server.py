"""``picoclaw gateway``: signals, and the order of shutdown.

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

import attrs
import structlog
import trio
from hypercorn.app_wrappers import ASGIWrapper
from hypercorn.config import Config as HypercornConfig
from hypercorn.config import Sockets
from hypercorn.trio.run import worker_serve

from . import host, logs
from .config import Config
from .errors import GatewayError
from .gateway import open_gateway
from .host_worker import LATE
from .listening import listen
from .supervisor import Supervisor
from .web import GatewayApp

log = structlog.stdlib.get_logger("picoclaw_trio.server")

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class FailedError(GatewayError):
    """The server has stopped because of a bug."""

    def __init__(self) -> None:
        message = "A task of the server has failed, so it has stopped. Its log has the details."
        super().__init__(500, "server_error", message, code="internal_error")


def run_gateway(
    load: Callable[[], Config], on_ready: Callable[[Config, list[str]], None], *, begin: Callable[[], bool]
) -> None:
    """Serve until a signal asks to stop; return when all is closed.

    Args:
        load: reads the configuration, now, on SIGHUP and when its file has changed.
        begin: called once the address is ours, before anything is made there; says whether to read the configuration
            again, which it has written.
        on_ready: called once, with the configuration and the addresses that are served, ``http://127.0.0.1:18790``.

    Raises:
        ConfigError: there is no configuration that could be used.
        StartError: no socket at the configured address.
        StateError: the state file cannot be used.
        FailedError: a bug ended it.
    """
    config = load()
    logs.configure(config.gateway.log_level, config.gateway.log_format)
    host.mend()
    hypercorn = hypercorn_config(config)
    sockets = listen(hypercorn)
    if begin():
        config = load()
    logs.tell_remarks(config.file, config.warnings, config.passed_over)
    trio.run(_serve, config, load, hypercorn, sockets, partial(on_ready, config))


def hypercorn_config(config: Config) -> HypercornConfig:
    """Hypercorn's settings for what the configuration says."""
    hypercorn = HypercornConfig()
    port = config.gateway.port
    hypercorn.bind = [f"[{name}]:{port}" if ":" in name else f"{name}:{port}" for name in config.gateway.hosts]
    hypercorn.graceful_timeout = config.gateway.grace + LATE
    hypercorn.shutdown_timeout = config.gateway.grace + hypercorn.shutdown_timeout  # turns without a client go on in it
    hypercorn.errorlog = logging.getLogger("hypercorn.error")
    return hypercorn


async def _serve(
    config: Config,
    load: Callable[[], Config],
    hypercorn: HypercornConfig,
    sockets: Sockets,
    on_ready: Callable[[list[str]], None],
) -> None:
    supervisor = Supervisor.from_environment()
    with trio.open_signal_receiver(*STOP_SIGNALS, signal.SIGHUP) as signals:
        async with open_gateway(config) as gateway:
            app = GatewayApp(lambda: nullcontext(gateway), load)
            control = Control(app, supervisor)
            host.raise_file_limit()
            host.calm_collector(config.gateway.openai_api.max_turns)
            serve = partial(
                worker_serve, ASGIWrapper(app), hypercorn, sockets=sockets, shutdown_trigger=control.stop.wait
            )
            async with trio.open_nursery() as nursery:
                nursery.start_soon(supervisor.run_watchdog)
                async with trio.open_nursery() as serving:
                    on_ready(await serving.start(serve))
                    # A signal that has come meanwhile has waited: before, there was nothing to reload or to stop.
                    nursery.start_soon(control.obey, signals, nursery.cancel_scope)
                    supervisor.notify("READY=1", f"STATUS=serving {', '.join(hypercorn.bind)}")
                nursery.cancel_scope.cancel()
    if app.has_failed:
        raise FailedError


@attrs.define
class Control:
    """What the signals do: the first one to stop lets turns finish, the second cuts them short; SIGHUP reloads."""

    app: GatewayApp
    supervisor: Supervisor
    stop: trio.Event = attrs.field(factory=trio.Event)

    async def obey(self, signals: AsyncIterator[int], serving: trio.CancelScope) -> None:
        async for number in signals:
            name = signal.Signals(number).name
            if number == signal.SIGHUP:
                self.app.reload()
            elif not self.stop.is_set():
                log.info("stopping", signal=name)
                self.supervisor.notify("STOPPING=1", "STATUS=letting turns finish")
                self.stop.set()
            else:
                log.warning("stopping at once", signal=name)
                self.app.cut_turns(trio.current_time())
                serving.deadline = trio.current_time() + LATE
