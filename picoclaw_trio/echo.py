"""The model in process: answers with what it was told, without network or key.

It makes the first run, the tests and the terminal work on a bare machine, and says plainly what it is.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

from .replies import TextDelta, Usage
from .shapes import Json
from .upstream_reply import Chunk
from .upstream_request import UpstreamRequest

Take = Callable[[Chunk], Awaitable[None]]
LABEL = "[echo, no model behind it]"
# One task gives them all without a pause, and each costs memory: a long text ends in a long last piece.
MAX_PIECES = 1024


async def ask_echo(request: UpstreamRequest, take: Take) -> None:
    """Give the reply to *take*, chunk after chunk."""
    for chunk in say(request):
        await take(chunk)


def say(request: UpstreamRequest) -> Sequence[Chunk]:
    """The reply in chunks, a word each, the last with the finish reason. ``usage`` counts words by their spaces."""
    text = f"{LABEL} {_last_user_text(request)}"
    first, *others = text.split(" ", MAX_PIECES - 1)
    pieces = [first, *(f" {word}" for word in others)]
    asked = sum(_count_words(_text(message.body.get("content"))) for message in request.messages)
    said_words = _count_words(text)
    usage = Usage(asked, said_words, asked + said_words)
    said = [Chunk((TextDelta(piece),)) for piece in pieces]
    return [*said, Chunk(finish_reason="stop", usage=usage, model="echo")]


def _count_words(text: str) -> int:
    return text.count(" ") + 1 if text else 0


def _last_user_text(request: UpstreamRequest) -> str:
    texts = [_text(message.body.get("content")) for message in request.messages if message.role == "user"]
    return texts[-1] if texts else ""


def _text(content: Json) -> str:
    if isinstance(content, str):
        return content
    return "\n".join(part["text"] for part in content or () if part.get("type") == "text")
