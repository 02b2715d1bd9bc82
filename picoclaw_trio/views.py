"""What is served: one function a path, from the request to its answer.

Theory: a view reads the request, walks ``pipeline`` and encodes what comes out. Whatever it raises is answered by
``web``, in one place.
Editing rule: a view decides nothing about models or sessions.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import structlog
import trio
from trio.to_thread import run_sync

from . import answers, metrics
from .auth import Holder
from .detached import answer_to_the_end
from .errors import AuthError, RequestError
from .gateway import Gateway
from .http_messages import HttpAnswer, HttpRequest
from .pipeline import answer, nothing
from .replies import Reply
from .streaming import model_headers, new_heading, stream_answer
from .throttle import TooManyFailuresError
from .upstream import Emit, discard
from .wire import MAX_USER_CHARACTERS, ChatRequest, decode_chat_request

if TYPE_CHECKING:
    from .web import GatewayApp

log = structlog.stdlib.get_logger("picoclaw_trio.views")

OWNER = "picoclaw"
# Of a body; a larger one is decoded in a thread.
MAX_QUICK_BYTES = 65_536


def authorize(gateway: Gateway, request: HttpRequest) -> Holder:
    """Let the bearer of a listed token in; tells who it is.

    Raises:
        AuthError: no token, or not one of ours.
        TooManyFailuresError: there were too many of these from this address.
    """
    now = trio.current_time()
    try:
        gateway.throttle.check(request.client_address, now)
    except TooManyFailuresError:
        if gateway.throttle.should_tell(request.client_address, now):
            log.warning("an address is refused whatever it asks: too many wrong tokens", client=request.client_address)
        raise
    try:
        return gateway.tokens.check(request.header(b"authorization"))
    except AuthError:
        gateway.throttle.note_failure(request.client_address, now)
        raise


def admit(gateway: Gateway, request: HttpRequest) -> Holder:
    """Like ``authorize``, while the server takes requests.

    Raises:
        AuthError, TooManyFailuresError: as ``authorize``.
        BusyError: code ``shutting_down``.
    """
    holder = authorize(gateway, request)
    gateway.admission.check_open()
    return holder


def session_name(request: HttpRequest, headers: tuple[str, ...]) -> str | None:
    """What the first of *headers* that is there and not empty says: UTF-8, as in the body, else Latin-1.

    Raises:
        RequestError: it is too long.
    """
    for name in headers:
        value = request.header(name.lower().encode()) or ""
        with suppress(UnicodeDecodeError):
            value = value.encode("latin-1").decode()
        value = value.strip()
        if len(value) > MAX_USER_CHARACTERS:
            raise RequestError(
                f"The header {name} must have at most {MAX_USER_CHARACTERS} characters.", code="string_too_long"
            )
        if value:
            return value
    return None


async def _decode(raw: bytes, streaming: bool, limiter: trio.CapacityLimiter) -> ChatRequest:
    """As ``decode_chat_request``, which can take long enough for others to notice where a body is large."""
    decode = partial(decode_chat_request, raw, streaming=streaming)
    return decode() if len(raw) <= MAX_QUICK_BYTES else await run_sync(decode, abandon_on_cancel=True, limiter=limiter)


def add_routes(app: GatewayApp) -> None:
    """The whole of what is served. Views take the request; Quart's URL map decides which."""
    created = int(time.time())
    exposing = trio.CapacityLimiter(4)  # so that whoever watches over us waits for no thread of others

    async def chat_completions(request: HttpRequest) -> HttpAnswer | None:
        gateway = app.gateway
        api = gateway.config.gateway.openai_api
        holder = admit(gateway, request)
        chat = await _decode(await app.read_body(request.body), api.streaming, app.decoding)
        caller = gateway.http_caller(session_name(request, api.session_headers) or chat.user, holder)

        def note_alias(alias: str) -> None:
            request.alias = alias

        async def ask(emit: Emit, on_begun: Callable[[], None] = nothing) -> Reply:
            walk = answer
            if api.on_disconnect == "finish":
                walk = partial(answer_to_the_end, nursery=app.turns)
            return await walk(
                gateway, chat, caller, emit, keep_text=not chat.stream, on_chosen=note_alias, on_begun=on_begun
            )

        request.session = caller.session
        if chat.stream:
            await stream_answer(request, ask, ping_interval=api.ping_interval, with_usage=chat.include_usage)
            return None
        reply = request.reply = await ask(discard)
        body = answers.encode_completion(new_heading(reply.alias), reply)
        return HttpAnswer(200, body, model_headers(reply.alias, reply.upstream_model))

    async def list_models(request: HttpRequest) -> HttpAnswer:
        admit(app.gateway, request)
        return HttpAnswer(200, answers.encode_models(app.gateway.router.aliases, created, OWNER))

    async def show_model(request: HttpRequest, alias: str) -> HttpAnswer:
        admit(app.gateway, request)
        app.gateway.router.check_alias(alias)
        return HttpAnswer(200, answers.encode_model(alias, created, OWNER))

    async def health(request: HttpRequest) -> HttpAnswer:
        return HttpAnswer(200, b'{"status":"ok"}')

    async def ready(request: HttpRequest) -> HttpAnswer:
        app.gateway.admission.check_open()
        await app.gateway.sessions.check_writable()
        if app.gateway.config.gateway.openai_api.history == "session":
            await app.gateway.memory.check_writable()
        return HttpAnswer(200, b'{"status":"ready"}')

    async def show_metrics(request: HttpRequest) -> HttpAnswer:
        if not app.gateway.config.gateway.openai_api.metrics_open:
            authorize(app.gateway, request)
        statistics = app.gateway.admission.statistics()
        metrics.note_load(statistics.running, statistics.waiting)
        body, content_type = await run_sync(metrics.expose, limiter=exposing)
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
