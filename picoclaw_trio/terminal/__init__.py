"""The agent in the terminal: one question and its answer, or a conversation."""

from .conversation import run_conversation, run_once
from .talk import session_name_problem

__all__ = ["run_conversation", "run_once", "session_name_problem"]
