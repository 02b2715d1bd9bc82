"""The least that an ASGI application can do to hand an event stream on: each event as it comes, unread.

RELAY_UPSTREAM is the address to ask. It must not import the gateway, which would mend the server that runs it.
"""

from __future__ import annotations

import os
from typing import Any

import httpcore2

UPSTREAM = os.environ["RELAY_UPSTREAM"]
HEAD = [(b"content-type", b"text/event-stream")]
MAX_CONNECTIONS = 1024
EVENT_END = b"\n\n"


class State:
    """What lives as long as the worker."""

    pool: httpcore2.AsyncConnectionPool


async def app(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] == "lifespan":
        await live(receive, send)
        return
    body = b""
    more = True
    while more:
        message = await receive()
        body += message.get("body", b"")
        more = message.get("more_body", False)
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    async with State.pool.stream("POST", UPSTREAM, headers=headers, content=body) as answer:
        await send({"type": "http.response.start", "status": answer.status, "headers": HEAD})
        await hand_on(answer, send)
    await send({"type": "http.response.body", "body": b""})


async def hand_on(answer: httpcore2.Response, send: Any) -> None:
    rest = b""
    async for piece in answer.aiter_stream():
        *events, rest = (rest + piece).split(EVENT_END)
        for event in events:
            await send({"type": "http.response.body", "body": event + EVENT_END, "more_body": True})


async def live(receive: Any, send: Any) -> None:
    await receive()
    async with httpcore2.AsyncConnectionPool(
        max_connections=MAX_CONNECTIONS, max_keepalive_connections=MAX_CONNECTIONS
    ) as State.pool:
        await send({"type": "lifespan.startup.complete"})
        await receive()
    await send({"type": "lifespan.shutdown.complete"})
