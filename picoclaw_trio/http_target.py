"""Ask one target over HTTP: one POST, and its answer in chunks.

Theory: an answer with status 200 is one JSON object or an event stream; its first bytes say which, whatever was
asked for and whatever its content type is. Everything else that can happen becomes an ``UpstreamError`` here, once, by
type.
Editing rule: nothing here knows what follows a failure.
"""

from __future__ import annotations

import math
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from functools import lru_cache, reduce
from typing import TypeAlias

import attrs
import trio

from . import sse
from ._version import __version__
from .connections import (
    ConnectError,
    ConnectionLost,
    ConnectionPool,
    ExchangeError,
    Headers,
    Response,
    TimedOut,
    Timeouts,
    Url,
    parse_url,
)
from .errors import UpstreamError
from .hiding import Hide, hider
from .routing import Target
from .upstream_reply import (
    Chunk,
    decode_chunk,
    decode_completion,
    decode_error,
    decode_retry_after,
    merge_endings,
)
from .upstream_request import UpstreamRequest, encode_request

Take: TypeAlias = Callable[[Chunk], Awaitable[None]]

CONNECT_TIMEOUT = 10.0
MAX_ANSWER_BYTES = 64 * 1024 * 1024
MAX_ERROR_BYTES = 64 * 1024
USER_AGENT = f"picoclaw_trio/{__version__}"


async def ask_http(pool: ConnectionPool, target: Target, request: UpstreamRequest, take: Take) -> None:
    """POST the request to *target* and give its answer to *take*, chunk after chunk.

    Raises:
        UpstreamError: no answer, or none that is a reply; chunks may have been given before.
    Cancellation: the connection is closed at once.
    """
    if target.base is None:
        raise UpstreamError("unsupported", f"'{target.vendor}' cannot be asked without an api_base or a key")
    url, headers = _prepare(target)
    timeout = target.request_timeout
    connect = min(CONNECT_TIMEOUT, timeout)
    if request.stream:  # it may take longer as a whole, as long as it goes on
        whole, limits = math.inf, Timeouts(connect, timeout, timeout)
    else:
        whole, limits = timeout, Timeouts(connect, math.inf, math.inf)
    body, hide = encode_request(request, target.settings), _hide(target)
    try:
        with trio.move_on_after(whole) as scope:
            async with pool.post(url, headers, body, proxy=target.proxy, timeouts=limits) as response:
                await _take_answer(response, take, MAX_ANSWER_BYTES if request.keep_text else math.inf, hide)
    except (ExchangeError, sse.EventTooLarge) as exc:
        raise _failure(exc, hide) from exc
    if scope.cancelled_caught:
        raise UpstreamError("timeout", detail=f"no whole answer within {timeout:g} s")


@lru_cache(maxsize=4096)
def _prepare(target: Target) -> tuple[Url, Headers]:
    """Address and headers, the same for each request."""
    headers = {"content-type": "application/json", "user-agent": USER_AGENT}
    if target.key is not None:
        headers["authorization"] = f"Bearer {target.key.reveal()}"
    headers.update(target.headers)
    encoded = ((name.encode("ascii"), value.encode("latin-1")) for name, value in headers.items())
    return parse_url(f"{target.base}/chat/completions"), tuple(encoded)


@lru_cache(maxsize=4096)
def _hide(target: Target) -> Hide:
    """What hides the key, and the words of the configured headers, one of which may be a key."""
    return hider([*([target.key.reveal()] if target.key is not None else []), *target.headers.values()])


async def _take_answer(response: Response, take: Take, max_stream_bytes: float, hide: Hide) -> None:
    if response.status != 200:
        raw = await _receive_error(response)
        retry_after = decode_retry_after(response.header("retry-after"), time.time())
        raise decode_error(response.status, raw, retry_after, hide)
    start = await _receive_start(response)
    told = (response.header("content-type") or "").lower()
    is_object = start.startswith(b"{") or not (start.startswith(SSE_STARTS) or told.startswith(sse.CONTENT_TYPE))
    if is_object:
        raw = start + await response.read(MAX_ANSWER_BYTES - len(start))
        await take(decode_completion(raw, hide))
    else:
        await _take_stream(start, response, _Stream(take, hide), max_stream_bytes)


async def _receive_error(response: Response) -> bytes:
    """What an answer that is no reply says, as much of it as anybody reads: its status counts, however long it is."""
    raw = b""
    while len(raw) < MAX_ERROR_BYTES and (piece := await response.receive()):
        raw += piece
    return raw


SSE_STARTS = (b"data:", b"event:", b":", b"id:", b"retry:")
MAX_SSE_START = max(map(len, SSE_STARTS))


async def _receive_start(response: Response) -> bytes:
    """The first bytes of the body, without white space before them; enough to see what it is, or all that there is."""
    start = b""
    while len(start) < MAX_SSE_START and (piece := await response.receive()):
        start = (start + piece).lstrip()
    return start


async def _take_stream(start: bytes, response: Response, stream: _Stream, max_bytes: float) -> None:
    """Chunks until the stream says that it is done, or ends after it told a finish reason."""
    parser, piece, size = sse.Parser(), start, 0
    while piece and not stream.done:
        size += len(piece)
        if size > max_bytes:
            raise UpstreamError("garbled", detail=f"its stream has more than {max_bytes} bytes")
        await stream.take_events(parser.feed(piece))
        piece = b"" if stream.done else await response.receive()
    if not stream.done:
        await stream.take_events(parser.finish())
    stream.check_whole()


@attrs.define
class _Stream:
    """What a stream has said about itself: that it is done, why the model stopped, and anything at all."""

    take: Take
    hide: Hide
    done: bool = False
    finished: bool = False
    spoke: bool = False

    async def take_events(self, events: Iterable[bytes]) -> None:
        """Give on what they say, up to the end mark; what came together is given together."""
        chunks: list[Chunk] = []
        failure: UpstreamError | None = None
        for data in events:
            if data.strip() == sse.DONE:
                self.done = True
                break
            try:
                chunks.append(decode_chunk(data, self.hide))
            except UpstreamError as exc:
                failure = exc
                break
        if chunks:
            await self._take(_join(chunks))
        if failure is not None:
            raise failure

    async def _take(self, chunk: Chunk) -> None:
        self.finished = self.finished or chunk.finish_reason is not None
        self.spoke = self.spoke or bool(chunk.events)
        await self.take(chunk)

    def check_whole(self) -> None:
        if not (self.done or self.finished):
            raise UpstreamError("lost", detail="the stream ended before its finish reason")
        if not (self.finished or self.spoke):
            raise UpstreamError("garbled", "its answer holds no choice")


def _join(chunks: Sequence[Chunk]) -> Chunk:
    """At least one chunk, as one that says the same."""
    if len(chunks) == 1:
        return chunks[0]
    events = tuple([event for chunk in chunks for event in chunk.events])
    return attrs.evolve(reduce(merge_endings, chunks), events=events)


def _failure(error: ExchangeError | sse.EventTooLarge, hide: Hide) -> UpstreamError:
    """What the error is called from here on."""
    match error:
        case ConnectError() | TimedOut(phase="connect"):
            kind = "unreachable"
        case TimedOut():
            kind = "timeout"
        case ConnectionLost():
            kind = "lost"
        case _:
            kind = "garbled"
    return UpstreamError(kind, detail=hide(str(error)) or "an event is too large")
