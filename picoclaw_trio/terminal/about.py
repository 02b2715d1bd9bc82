"""What the terminal says about sessions, the conversation's size and the tools. Values in, lines out.

Theory: sizes are the memory's own estimates, so they are the ones by which it cuts.
Editing rule: nothing here changes anything.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime

import orjson

from ..config import AgentDefaults
from ..gateway import Gateway
from ..memory import Conversation, Said, estimate_tokens, room_for_conversation
from ..plan import system_message
from ..tools import ToolBox
from ..visible import columns_of, one_line, pad
from .talk import PREFIX, Talk

MAX_LISTED = 50
NONE_PERMITTED = "None: tools.allow.terminal in the configuration permits none."
NONE_LEFT = "None: AGENT.md keeps to tools that tools.allow.terminal does not permit."
NONE_THERE = "None: of what tools.allow.terminal permits nothing is there now."


def session_line(talk: Talk) -> str | None:
    """What is resumed; None if the session is new."""
    for found in talk.sessions():
        if found.key == talk.key:
            return f"Session {talk.session}: {_messages(found.messages)}, the last one {_local_time(found.updated_at)}."
    return None


def list_sessions(talk: Talk) -> str:
    found = talk.sessions()
    if not found:
        return "No conversation is kept."
    width = max(columns_of(_name(one)) for one in found[:MAX_LISTED])
    lines = [
        f"{'*' if one.key == talk.key else ' '} {pad(_name(one), width)}  {_messages(one.messages):13}  "
        f"{_local_time(one.updated_at)}"
        for one in found[:MAX_LISTED]
    ]
    more = [f"  ... and {len(found) - MAX_LISTED} older ones"] if len(found) > MAX_LISTED else []
    return "\n".join([*lines, *more])


def describe_context(talk: Talk) -> str:
    """How full the model's window is, and of what."""
    kept = talk.kept()
    prompt, box, defaults = talk.look(_surroundings)
    size = sum(estimate_tokens(said.message) for said in kept)
    tools = _tools_line(box) if box else _lower_first(talk.look(_why_no_tools))
    return "\n".join([*_context_lines(talk.session, kept, size, prompt, defaults), f"Tools: {tools}"])


def _surroundings(gateway: Gateway) -> tuple[str | None, ToolBox | None, AgentDefaults]:
    identity = gateway.workspace.identity()
    return identity.prompt, gateway.tools.box("terminal", identity.tools), gateway.config.agents.defaults


def _why_no_tools(gateway: Gateway) -> str:
    if not gateway.tools.offers("terminal"):
        return NONE_PERMITTED
    return NONE_LEFT if gateway.tools.box("terminal") else NONE_THERE


def _tools_line(box: ToolBox) -> str:
    return f"{', '.join(sorted(box.tools))}; {_tokens(_size(orjson.dumps(box.schemas()).decode()))}."


def _lower_first(text: str) -> str:
    return f"{text[0].lower()}{text[1:]}"


def _context_lines(
    session: str, kept: Sequence[Said], size: int, prompt: str | None, defaults: AgentDefaults
) -> Iterator[str]:
    seen = sum(not said.internal for said in kept)
    yield f"Session {session}: {_messages(seen)}, {_tokens(size)} of a window of {defaults.window:,}."
    steering = [] if prompt is None else [system_message(prompt)]
    if size > room_for_conversation(defaults.window, defaults.max_tokens or 0, steering):
        yield "It has outgrown the window: its oldest turns are kept, but no longer sent."
    yield f"System prompt: {_tokens(_size(prompt)) if prompt else 'none'}."


def describe_tools(talk: Talk) -> str:
    """The tools that the agent may use here, and what is wrong with the servers of others."""
    _, box, _ = talk.look(_surroundings)
    servers = talk.look(lambda gateway: gateway.tools.servers("terminal"))
    tools = {} if box is None else box.tools
    width = max(map(len, tools), default=0)
    lines = [f"{name:{width}}  {_first_line(tools[name].description)}" for name in sorted(tools)]
    lines += [f"MCP server {name}: {state}" for name, state in servers.items() if state != "running"]
    return "\n".join(lines) or talk.look(_why_no_tools)


def _first_line(text: str) -> str:
    """Of a description: its first sentence, or the first line."""
    return one_line(text.strip().partition("\n")[0].partition(". ")[0].rstrip("."))


def _size(text: str) -> int:
    return estimate_tokens(system_message(text))


def _tokens(count: int) -> str:
    return f"about {count:,} tokens"


def _messages(count: int) -> str:
    return "1 message" if count == 1 else f"{count:,} messages"


def _name(conversation: Conversation) -> str:
    return conversation.key.removeprefix(PREFIX)


def _local_time(at: str) -> str:
    """A time as ISO 8601 has it, on this machine's clock; as it stands where it is none."""
    try:
        return f"{datetime.fromisoformat(at).astimezone():%Y-%m-%d %H:%M}"
    except ValueError:
        return at
