"""What of a conversation fits the model's window, and in what shape it goes to the model.

Theory: a conversation that has grown over its window is cut where a turn begins, down to half the window: cuts are then
rare, and between two of them every request begins with the same bytes, which upstreams have in their caches. A turn
begins with a user's message, so no call is parted from its result. The running turn always stays whole.
Sizes are estimates: two fifths of a token for each byte of UTF-8, which is above what tokenisers need for European
languages and about right for Chinese; PicoClaw counts the same for each character.
Editing rule: what is cut here is only not sent; it stays stored, since clients go on sending it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate

from ..messages import Message
from .values import calls_of, other_parts_of, text_of

MESSAGE_BYTES = 12
PART_TOKENS = 256
NO_RESULT = "(no result: this call was not carried out)"
# What models' servers take in an answer of an earlier turn. Some refuse any other field, such as their own reasoning,
# which others want back as long as a turn runs.
ANSWER_FIELDS = ("role", "content", "refusal", "name", "tool_calls")


def estimate_tokens(message: Message) -> int:
    """Roughly how many tokens *message* takes, rather too many than too few."""
    size = MESSAGE_BYTES + len(text_of(message).encode("utf-8", "surrogatepass"))
    for call in calls_of(message):
        called = call.get("function") or call.get("custom") or {}
        size += sum(len(value.encode("utf-8", "surrogatepass")) for value in called.values() if isinstance(value, str))
    return size * 2 // 5 + PART_TOKENS * len(other_parts_of(message))


def room_for_conversation(window: int, answer: int, steering: Iterable[Message]) -> int:
    """Tokens that a conversation may take: the window without the answer and without what steers the model.

    It is never less than a quarter of the window, or a large prompt would leave no conversation at all.
    """
    return max(window - answer - sum(map(estimate_tokens, steering)), window // 4)


def turn_starts(messages: Sequence[Message]) -> list[int]:
    """Where turns begin: at each user's message that does not follow another one."""
    roles = ["", *(message.role for message in messages)]
    return [index for index, role in enumerate(roles[1:]) if role == "user" and roles[index] != "user"]


def fit(messages: Sequence[Message], begin: int, window: int, spent: int = 0) -> int:
    """Where the messages that go to the model begin: at *begin*, or later if they are too many.

    Args:
        begin: what comes before was cut earlier.
        window: tokens that there are.
        spent: tokens of these that are needed for something else.
    """
    sizes = [estimate_tokens(message) for message in messages[begin:]]
    room = window - spent
    if sum(sizes) <= room:
        return begin
    left = list(accumulate(reversed(sizes), initial=0))[::-1]  # tokens from each message to the end
    starts = [start for start in turn_starts(messages) if start > begin]
    fitting = (start for start in starts if left[start - begin] <= room // 2)
    return next(fitting, starts[-1] if starts else begin)


def sendable(messages: Sequence[Message]) -> Iterator[Message]:
    """*messages* as a model's server takes them: every call followed by its results, and no field that it refuses."""
    unanswered: dict[str, None] = {}
    current = max(turn_starts(messages), default=0)
    for index, message in enumerate(messages):
        if message.role == "tool":
            unanswered.pop(message.body.get("tool_call_id", ""), None)
        else:
            yield from map(_stand_in, unanswered)
            unanswered = {call["id"]: None for call in calls_of(message)}
        yield _plain(message, is_old=index < current) if message.role == "assistant" else message
    yield from map(_stand_in, unanswered)


def _stand_in(call_id: str) -> Message:
    """A client that calls off a call says nothing about it, but models' servers want a result for each."""
    return Message("tool", {"role": "tool", "tool_call_id": call_id, "content": NO_RESULT})


def _plain(message: Message, *, is_old: bool) -> Message:
    fields = {name: value for name, value in message.body.items() if value is not None}
    if is_old:
        fields = {name: value for name, value in fields.items() if name in ANSWER_FIELDS}
    return Message(message.role, fields if "tool_calls" in fields else {"role": message.role, "content": "", **fields})
