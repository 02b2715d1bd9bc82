"""The HTTP door: a Quart-Trio application that routes requests into the pipeline and encodes what comes out.

Theory: Quart's URL map names the view; the view reads the request, walks ``pipeline`` and gives an ``HttpAnswer``.
Whatever a view raises ends in ``answer_request``, the one place where an error becomes an answer. A request lives in
the nursery that its connection opens for it and dies with its client.
Editing rule: a view decides nothing about models or sessions, and no other room knows HTTP status lines or headers.
"""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, TypeAlias, cast

import structlog
import trio
from quart_trio import QuartTrio
from werkzeug.exceptions import HTTPException, MethodNotAllowed
from werkzeug.routing import MapAdapter

from . import answers, cors, host, logs, metrics
from .config import load_config
from .errors import AuthError, ConfigError, GatewayError, InternalError, RequestError
from .http_messages import Connection, HttpAnswer, HttpRequest
from .pipeline import Gateway, answer, answer_to_the_end, open_gateway
from .replies import Reply
from .request_record import CLIENT_WENT_AWAY, RequestRecord
from .streaming import model_headers, new_heading, stream_answer
from .upstream import Emit, discard
from .wire import decode_chat_request

log = structlog.stdlib.get_logger("picoclaw_trio.web")

API_PREFIX = "/v1/"
OWNER = "picoclaw"
SANE_REQUEST_ID = re.compile(r"[A-Za-z0-9._:/+=@-]{1,128}")

OpenGateway: TypeAlias = Callable[[], AbstractAsyncContextManager[Gateway]]
View: TypeAlias = Callable[..., Awaitable[HttpAnswer | None]]


class GatewayApp(QuartTrio):
    """The application. It serves while its lifespan lasts: then ``gateway`` is open."""

    asgi_http_class = Connection
    gateway: Gateway
    turns: trio.Nursery

    def __init__(self, open_gateway: OpenGateway) -> None:
        super().__init__("picoclaw_trio", static_folder=None)
        self._open_gateway = open_gateway
        self._stop, self._stopped = trio.Event(), trio.Event()
        self.url_map.strict_slashes = False
        self.url_map.merge_slashes = False
        self._adapter: MapAdapter = self.url_map.bind("gateway")
        self.created = int(time.time())
        # Our own deadlines end what runs at shutdown; Quart's would cut them short.
        self.config["BACKGROUND_TASK_SHUTDOWN_TIMEOUT"] = 86_400
        self.before_serving(self._start)
        self.after_serving(self._finish)
        add_routes(self)

    async def _start(self) -> None:
        await self.nursery.start(self._run_gateway)

    async def _run_gateway(self, task_status: trio.TaskStatus[None]) -> None:
        try:
            async with self._open_gateway() as self.gateway, trio.open_nursery() as nursery:
                host.mend(write_timeout=self.gateway.config.gateway.openai_api.write_timeout)
                nursery.start_soon(self.gateway.upstream.run_chores)
                nursery.start_soon(self._drain_with_host)
                await self._run_turns(task_status)
                nursery.cancel_scope.cancel()
        finally:
            self._stopped.set()

    async def _run_turns(self, task_status: trio.TaskStatus[None]) -> None:
        """The nursery of turns that go on without their client."""
        async with trio.open_nursery() as self.turns:
            task_status.started()
            await self._stop.wait()
            self._limit_turns()
        await self._stop.wait()  # turns with a client may have longer, if the host is told so

    def _limit_turns(self) -> None:
        """Turns without a client get the same grace period as those that have one, and not a second one after it."""
        scope = self.turns.cancel_scope
        scope.deadline = min(scope.deadline, trio.current_time() + self.gateway.config.gateway.grace)

    async def _drain_with_host(self) -> None:
        await host.wait_draining()
        self.gateway.admission.drain()
        self._limit_turns()

    async def _finish(self) -> None:
        self._stop.set()
        await self._stopped.wait()

    async def answer_request(self, request: HttpRequest) -> HttpAnswer | None:
        """Find the view, run it, and give its answer or the error that it raised as one.

        None where the view has streamed its answer.
        """
        given = request.header(b"x-request-id")
        request.id = given if given and SANE_REQUEST_ID.fullmatch(given) else f"req_{secrets.token_hex(16)}"
        structlog.contextvars.bind_contextvars(request_id=request.id)
        origins = self.gateway.config.gateway.openai_api.cors_origins
        request.answer_headers = {"x-request-id": request.id, **cors.allow(request.header(b"origin"), origins)}
        record = RequestRecord(request)
        try:
            reply = await self._run_view(request)
        except GatewayError as exc:
            reply = await self._fail(request, exc)
            record.note_error(exc)
        except Exception:
            # A bug: whoever asked learns the id, the log has the rest.
            log.exception("internal error", method=request.method, path=request.path)
            error = InternalError(request.id)
            reply = await self._fail(request, error)
            record.note_error(error)
        except BaseException:
            # Cancelled, bare or in the group of a nursery that was open: the client went away.
            record.close(CLIENT_WENT_AWAY)
            raise
        if reply is not None:
            reply.headers.update(request.answer_headers)
        record.close(200 if reply is None else reply.status)
        return reply

    async def _fail(self, request: HttpRequest, error: GatewayError) -> HttpAnswer | None:
        """The error as an answer, or, where a stream has begun, as its last event."""
        body = answers.encode_error(error)
        if request.events is not None and await request.events.fail(body):
            return None
        return HttpAnswer(error.status, body, dict(error.headers))

    async def _run_view(self, request: HttpRequest) -> HttpAnswer | None:
        try:
            endpoint, arguments = self._adapter.match(request.path, request.method)
        except MethodNotAllowed as exc:
            self._check_enabled(request.path)
            if request.method == "OPTIONS" and "access-control-allow-origin" in request.answer_headers:
                return _preflight(request)
            allowed = ", ".join(sorted(exc.valid_methods or ()))
            message = f"{request.path} takes {allowed}, not {request.method}."
            raise RequestError(
                message, code="method_not_allowed", status=405, headers={"Allow": allowed}
            ) from exc
        except HTTPException as exc:
            raise _not_found(request.path) from exc
        self._check_enabled(request.path)
        view = cast(View, self.view_functions[endpoint])
        return await view(request, **arguments)

    def _check_enabled(self, path: str) -> None:
        if path.startswith(API_PREFIX) and not self.gateway.config.gateway.openai_api.enabled:
            raise _not_found(path, " The OpenAI API is switched off (gateway.openai_api.enabled).")


def create_app() -> GatewayApp:
    """The application that configures itself, when it starts, from the file and the environment."""
    return GatewayApp(_open_configured)


@asynccontextmanager
async def _open_configured() -> AsyncIterator[Gateway]:
    try:
        config = load_config()
    except ConfigError as exc:
        logs.configure("info", "console")
        log.error("the configuration cannot be used", problems=exc.message)
        raise
    logs.configure(config.gateway.log_level, config.gateway.log_format)
    if not config.gateway.openai_api.enabled:
        log.warning(
            "the OpenAI API is off; set gateway.openai_api.enabled to true, list a token in "
            "gateway.openai_api.bearer_tokens, and start again",
            config=str(config.path or config.home / "config.json"),
        )
    async with open_gateway(config) as gateway:
        yield gateway


def _preflight(request: HttpRequest) -> HttpAnswer:
    wants_private = request.header(b"access-control-request-private-network") == "true"
    granted = cors.allow_preflight(request.header(b"access-control-request-headers"), wants_private)
    return HttpAnswer(204, b"", dict(granted))


def _not_found(path: str, why: str = "") -> RequestError:
    return RequestError(f"There is nothing at {path}.{why}", code="not_found", status=404)


def authorize(gateway: Gateway, request: HttpRequest) -> int:
    """Let the bearer of a listed token in; gives the token's place in the list.

    Raises:
        AuthError: no token, or not one of ours.
        TooManyFailuresError: there were too many of these from this address.
    """
    now = trio.current_time()
    gateway.throttle.check(request.client_address, now)
    try:
        return gateway.tokens.check(request.header(b"authorization"))
    except AuthError:
        gateway.throttle.note_failure(request.client_address, now)
        raise


def add_routes(app: GatewayApp) -> None:
    """The whole of what is served. Views take the request; Quart's URL map decides which."""

    async def chat_completions(request: HttpRequest) -> HttpAnswer | None:
        gateway = app.gateway
        api = gateway.config.gateway.openai_api
        holder = authorize(gateway, request)
        gateway.admission.check_open()
        raw = await request.body.read(api.max_body_bytes, api.body_timeout)
        chat = decode_chat_request(raw, streaming=api.streaming)
        caller = gateway.http_caller(chat.user, holder)

        async def ask(emit: Emit) -> Reply:
            if api.on_disconnect == "finish":
                return await answer_to_the_end(gateway, chat, caller, emit, app.turns, keep_text=not chat.stream)
            return await answer(gateway, chat, caller, emit, keep_text=not chat.stream)

        request.session = caller.session
        if chat.stream:
            await stream_answer(request, ask, ping_interval=api.ping_interval, with_usage=chat.include_usage)
            return None
        reply = request.reply = await ask(discard)
        body = answers.encode_completion(new_heading(reply.alias), reply)
        return HttpAnswer(200, body, model_headers(reply.alias, reply.upstream_model))

    async def list_models(request: HttpRequest) -> HttpAnswer:
        authorize(app.gateway, request)
        return HttpAnswer(200, answers.encode_models(app.gateway.router.aliases, app.created, OWNER))

    async def show_model(request: HttpRequest, alias: str) -> HttpAnswer:
        authorize(app.gateway, request)
        app.gateway.router.check_alias(alias)
        return HttpAnswer(200, answers.encode_model(alias, app.created, OWNER))

    async def health(request: HttpRequest) -> HttpAnswer:
        return HttpAnswer(200, b'{"status":"ok"}')

    async def ready(request: HttpRequest) -> HttpAnswer:
        app.gateway.admission.check_open()
        await app.gateway.sessions.check_writable()
        return HttpAnswer(200, b'{"status":"ready"}')

    async def show_metrics(request: HttpRequest) -> HttpAnswer:
        if not app.gateway.config.gateway.openai_api.metrics_open:
            authorize(app.gateway, request)
        statistics = app.gateway.admission.statistics()
        metrics.note_load(statistics.running, statistics.waiting)
        body, content_type = await trio.to_thread.run_sync(metrics.expose)
        return HttpAnswer(200, body, content_type=content_type)

    for path, view, method in (
        ("/v1/chat/completions", chat_completions, "POST"),
        ("/v1/models", list_models, "GET"),
        ("/v1/models/<path:alias>", show_model, "GET"),
        ("/health", health, "GET"),
        ("/ready", ready, "GET"),
        ("/metrics", show_metrics, "GET"),
    ):
        app.add_url_rule(path, view.__name__, cast(Any, view), methods=[method], provide_automatic_options=False)
