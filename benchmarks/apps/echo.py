"""The least that an ASGI application can do with a request: read it whole and give a fixed answer.

It must not import the gateway, which would mend the server that runs it.
"""

from __future__ import annotations

from typing import Any

# As long as the gateway's own answer to the benchmarks' request.
BODY = b'{"id":"chatcmpl-0","object":"chat.completion","created":0,"model":"m1","choices":[]}'.ljust(740)
HEAD = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(BODY))]


async def app(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] == "lifespan":
        await live(receive, send)
        return
    while (await receive()).get("more_body"):
        pass
    await send({"type": "http.response.start", "status": 200, "headers": HEAD})
    await send({"type": "http.response.body", "body": BODY})


async def live(receive: Any, send: Any) -> None:
    await receive()
    await send({"type": "lifespan.startup.complete"})
    await receive()
    await send({"type": "lifespan.shutdown.complete"})
