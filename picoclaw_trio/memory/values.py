"""What a conversation is made of, and which of it the client has seen.

Theory: the agent says more than a client gets to read: calls of its own tools, their results, the steps between. All of
it is kept, since the model wants it back; what the client knows is worked out from it, never stored a second time.
Editing rule: whoever needs a message's text or calls asks here, so that all rules compare the same thing.
"""

from __future__ import annotations

from collections.abc import Mapping

import attrs

from ..messages import Message
from ..shapes import Json


@attrs.frozen
class Said:
    """One message of a stored conversation.

    Attributes:
        internal: the client never saw it as a message of its own: a step whose calls were all the agent's own, or
            the result of such a call.
        own_calls: ids of those calls in this message that were the agent's own, where it also calls the client's.
    """

    message: Message
    internal: bool = False
    own_calls: tuple[str, ...] = ()


def text_of(message: Message) -> str:
    """All text of *message*, whether it came as a string or in parts; what it refuses after what it says."""
    content = message.body.get("content")
    if isinstance(content, list):
        content = "".join(part["text"] for part in content if is_text(part))
    refusal = message.body.get("refusal")
    return f"{content}\n{refusal}" if content and refusal else content or refusal or ""


def calls_of(message: Message) -> tuple[Mapping[str, Json], ...]:
    return tuple(message.body.get("tool_calls") or ()) if message.role == "assistant" else ()


def is_text(part: Json) -> bool:
    return isinstance(part, dict) and isinstance(part.get("text"), str)


def other_parts_of(message: Message) -> tuple[Mapping[str, Json], ...]:
    """The parts of *message* that are no text: pictures, sound, files."""
    content = message.body.get("content")
    return tuple(part for part in content if not is_text(part)) if isinstance(content, list) else ()
