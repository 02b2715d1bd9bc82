"""The agent's memory: the conversations of all sessions, durable, reconciled with what clients send."""

from .budget import estimate_tokens, room_for_conversation
from .memory import Memory, Recollection, open_memory
from .shelf import Conversation
from .side_tasks import is_side_task
from .values import Said

__all__ = [
    "FOLDER_NAME",
    "Conversation",
    "Memory",
    "Recollection",
    "Said",
    "estimate_tokens",
    "is_side_task",
    "open_memory",
    "room_for_conversation",
]

FOLDER_NAME = "openai_history"  # in the gateway's home
