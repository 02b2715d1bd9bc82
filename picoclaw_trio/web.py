"""The HTTP door: a Quart-Trio application that routes requests into the pipeline and encodes what comes out.

Theory: Quart's URL map names the view; the view reads the request, walks ``pipeline`` and gives an ``HttpAnswer``, or
nothing where it has streamed its answer.
Whatever a view raises ends in ``answer_request``, the one place where an error becomes an answer. A request lives in
the cancel scope that its connection opens for it and dies with its client.
Editing rule: what is served stands in ``views``; here is what holds for every request, and what runs beside them.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from functools import lru_cache
from typing import TypeAlias, cast

import structlog
import trio
from quart_trio import QuartTrio
from werkzeug.exceptions import HTTPException, MethodNotAllowed
from werkzeug.routing import MapAdapter

from . import answers, cors, host, host_worker, logs, metrics
from .config import Config, Stamp, load_config, stamps_of
from .errors import ConfigError, GatewayError, InternalError, RequestError
from .gateway import Gateway
from .host_requests import request_id
from .http_messages import Body, Connection, HttpAnswer, HttpRequest
from .request_record import CLIENT_WENT_AWAY, RequestRecord
from .views import add_routes

log = structlog.stdlib.get_logger("picoclaw_trio.web")

# Seconds between two looks at the configuration file.
CONFIG_POLL_DELAY = 2.0
# Seconds by which the number of turns that another worker tells of may be late.
LOAD_PUBLISH_DELAY = 1.0
API_PREFIX = "/v1/"

LoadConfig: TypeAlias = Callable[[], Config]
OpenGateway: TypeAlias = Callable[[], AbstractAsyncContextManager[Gateway]]
View: TypeAlias = Callable[..., Awaitable[HttpAnswer | None]]


class GatewayApp(QuartTrio):
    """The application. It serves while its lifespan lasts: then ``gateway`` is open."""

    asgi_http_class = Connection
    gateway: Gateway
    turns: trio.Nursery
    _at_start: Config  # what takes effect at a restart only is still as it was then
    has_failed: bool = False  # it stopped because of a bug, and should be started again

    def __init__(self, open_gateway: OpenGateway, load: LoadConfig = load_config) -> None:
        """
        Args:
            load: reads the configuration again.
        """
        super().__init__("picoclaw_trio", static_folder=None)
        self._open_gateway = open_gateway
        self._load = load
        self._draining, self._stop, self._stopped = trio.Event(), trio.Event(), trio.Event()
        self._arriving: set[Body] = set()
        self.decoding = trio.CapacityLimiter(1)  # large bodies, whose thread holds up the others a little
        self._read: tuple[Stamp, ...] = ()  # of the configuration that was read last
        self.url_map.strict_slashes = False
        self.url_map.merge_slashes = False
        adapter: MapAdapter = self.url_map.bind("gateway")
        # 2 % of a request, and each match leaves a cycle of references to the garbage collector.
        self._match = lru_cache(maxsize=256)(adapter.match)
        # Our own deadlines end what runs at shutdown; Quart's would cut them short.
        self.config["BACKGROUND_TASK_SHUTDOWN_TIMEOUT"] = 86_400
        self.before_serving(self._start)
        self.after_serving(self._finish)
        add_routes(self)

    async def _start(self) -> None:
        await self.nursery.start(self._run_gateway)

    async def _run_gateway(self, task_status: trio.TaskStatus[None]) -> None:
        try:
            async with self._open_gateway() as self.gateway:
                self._at_start = self.gateway.config
                await self._run_chores(task_status)
        finally:
            self._stopped.set()

    async def _run_chores(self, task_status: trio.TaskStatus[None]) -> None:
        try:
            async with trio.open_nursery() as nursery:
                host.mend(write_timeout=self.gateway.config.gateway.openai_api.write_timeout)
                nursery.start_soon(self.gateway.upstream.run_chores)
                nursery.start_soon(self._drain_with_host)
                nursery.start_soon(self._hurry_with_host)
                nursery.start_soon(self._watch_config)
                nursery.start_soon(self._publish_load)
                await self._run_turns(task_status)
                nursery.cancel_scope.cancel()
        except Exception:
            # A bug. Hypercorn would serve on, with nobody left to sweep, to reload, or to end turns at a stop.
            log.exception("a task of the server has failed, so it stops")
            self.has_failed = True
            self.cut_turns(trio.current_time() + self._at_start.gateway.grace)
            host_worker.stop_worker()

    async def _run_turns(self, task_status: trio.TaskStatus[None]) -> None:
        """The nursery of turns that go on without their client; while they do, newcomers are told of the stop."""
        host_worker.hold_open()
        try:
            async with trio.open_nursery() as self.turns:
                task_status.started()
                await self._draining.wait()
                self.cut_turns(trio.current_time() + self._at_start.gateway.grace)
        finally:
            host_worker.release()
        await self._stop.wait()

    async def _drain_with_host(self) -> None:
        await host_worker.wait_draining()
        deadline = trio.current_time() + self._at_start.gateway.grace
        self.gateway.admission.end_turns(deadline)
        # A worker that has served enough lets nobody in, and who has come in knows of no stop: it is not sent away.
        with trio.move_on_at(deadline):
            await host_worker.wait_left()
        self._draining.set()

    async def _hurry_with_host(self) -> None:
        await host_worker.wait_hurried()
        log.warning("stopping at once")
        host_worker.stop_worker()
        self.cut_turns(trio.current_time())
        host_worker.cut_connections(trio.current_time() + host_worker.LATE)

    def cut_turns(self, deadline: float) -> None:
        """Take no more requests, and end at *deadline* the turns that still run, with their client or without."""
        self.gateway.admission.drain(deadline)
        self.turns.cancel_scope.deadline = min(self.turns.cancel_scope.deadline, deadline)
        for body in self._arriving:
            body.refuse()

    async def _publish_load(self) -> None:
        """Whichever worker is asked for the numbers tells of all, so each writes its own down now and then."""
        while True:
            statistics = self.gateway.admission.statistics()
            metrics.note_load(statistics.running, statistics.waiting)
            await trio.sleep(LOAD_PUBLISH_DELAY)

    async def _watch_config(self) -> None:
        path = self.gateway.config.path
        self._read = stamps_of(path)
        is_there = self._read[0] is not None
        while True:
            await trio.sleep(CONFIG_POLL_DELAY)
            stamps, was_there = stamps_of(path), is_there
            is_there = stamps[0] is not None
            if is_there and stamps != self._read:
                self.reload()
            elif was_there and not is_there and self._read[0] is not None:  # a reload has told it otherwise
                log.warning("the configuration file is gone; the configuration in force stays", file=str(path))

    def reload(self) -> None:
        """Read the configuration again; requests that have begun keep the one they began with.

        A configuration that cannot be used, or is gone, is told in the log, and the one in force stays.
        """
        path = self.gateway.config.path
        self._read = stamps_of(path)
        try:
            config = self._load()
        except ConfigError as exc:
            logs.tell_problems("the configuration was not reloaded: it cannot be used", exc.source, exc.problems)
            return
        if config.path is None and path is not None:
            # Defaults are in force where there never was a file; one that is gone is being replaced, or was lost.
            log.error("the configuration was not reloaded: the file is gone", file=str(path))
            return
        logs.configure(config.gateway.log_level, config.gateway.log_format)
        logs.tell_remarks(config.file, config.warnings, config.passed_over)
        waits = self._at_start.needs_restart(config)
        self.gateway = self.gateway.with_config(config)
        host.mend(write_timeout=config.gateway.openai_api.write_timeout)
        log.warning("configuration reloaded", models=list(config.aliases), needs_restart=waits)

    async def _finish(self) -> None:
        self._draining.set()
        self._stop.set()
        await self._stopped.wait()
        host_worker.leave_master()

    @property
    def max_body_bytes(self) -> int:
        return self.gateway.config.gateway.openai_api.max_body_bytes

    async def read_body(self, body: Body) -> bytes:
        """The whole of a request's body; one that has not arrived when the server begins to stop is refused.

        Raises:
            RequestError, BusyError: as ``Body.read``.
        """
        timeout = self.gateway.config.gateway.openai_api.body_timeout
        if body.is_whole:
            return await body.read(timeout)
        self._arriving.add(body)
        try:
            return await body.read(timeout)
        finally:
            self._arriving.discard(body)

    async def answer_request(self, request: HttpRequest) -> HttpAnswer | None:
        """Find the view, run it, and give its answer or the error that it raised as one.

        None where the view has streamed its answer.
        """
        request.id = request_id(request.scope["headers"])
        structlog.contextvars.bind_contextvars(request_id=request.id)
        origins = self.gateway.config.gateway.openai_api.cors_origins
        request.answer_headers = {"x-request-id": request.id, **cors.allow(request.header(b"origin"), origins)}
        record = RequestRecord(request)
        try:
            reply = await self._answer(request, record)
        except BaseException:
            # Cancelled, bare or in the group of a nursery that was open: the client went away.
            record.close(CLIENT_WENT_AWAY)
            raise
        if reply is not None:
            reply.headers.update(request.answer_headers)
        record.close(200 if reply is None else reply.status)
        return reply

    async def _answer(self, request: HttpRequest, record: RequestRecord) -> HttpAnswer | None:
        error: GatewayError
        try:
            return await self._run_view(request)
        except GatewayError as exc:
            error = exc
        except Exception:
            # A bug: whoever asked learns the id, the log has the rest.
            log.exception("internal error", method=request.method, path=request.path)
            error = InternalError(request.id)
        record.note_error(error)
        return await self._fail(request, error)

    async def _fail(self, request: HttpRequest, error: GatewayError) -> HttpAnswer | None:
        """The error as an answer, or, where a stream has begun, as its last event."""
        body = answers.encode_error(error)
        if request.events is not None and await request.events.fail(body):
            return None
        return HttpAnswer(error.status, body, dict(error.headers))

    async def _run_view(self, request: HttpRequest) -> HttpAnswer | None:
        try:
            endpoint, arguments = self._match(request.path, request.method)
        except MethodNotAllowed as exc:
            self._check_enabled(request.path)
            if request.method == "OPTIONS" and "access-control-allow-origin" in request.answer_headers:
                return _preflight(request)
            allowed = ", ".join(sorted(exc.valid_methods or ()))
            message = f"{request.path} takes {allowed}, not {request.method}."
            raise RequestError(message, code="method_not_allowed", status=405, headers={"Allow": allowed}) from exc
        except HTTPException as exc:
            raise _not_found(request.path) from exc
        self._check_enabled(request.path)
        view = cast(View, self.view_functions[endpoint])
        return await view(request, **arguments)

    def _check_enabled(self, path: str) -> None:
        if path.startswith(API_PREFIX) and not self.gateway.config.gateway.openai_api.enabled:
            raise _not_found(path, " The OpenAI API is switched off (gateway.openai_api.enabled).")


def _preflight(request: HttpRequest) -> HttpAnswer:
    wants_private = request.header(b"access-control-request-private-network") == "true"
    granted = cors.allow_preflight(request.header(b"access-control-request-headers"), wants_private)
    return HttpAnswer(204, b"", dict(granted))


def _not_found(path: str, why: str = "") -> RequestError:
    if path in ("/chat/completions", "/models"):
        why = f" It is at {API_PREFIX}{path[1:]}: the client's base URL has to end in {API_PREFIX.rstrip('/')}."
    return RequestError(f"There is nothing at {path}.{why}", code="not_found", status=404)
