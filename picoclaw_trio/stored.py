"""What is stored for sessions, for ``picoclaw sessions``: model selections and conversations, under one key each.

Theory: both are there beside a running server, which sees what is deleted. Conversations are only looked for where
there are any, so that looking creates nothing.
Editing rule: everything here gives text or values; ``cli`` prints.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime

import attrs
import orjson

from .config import Config
from .gateway import open_stored_sessions
from .memory import FOLDER_NAME, Conversation, Memory, Said, open_memory
from .state import SessionInfo, Sessions
from .visible import visible_json


@attrs.frozen
class Row:
    """What one key holds: a selection, a conversation, or both."""

    key: str
    selection: SessionInfo | None
    conversation: Conversation | None

    def line(self) -> str:
        """Key, model, time and, with a conversation, its length; tabs between them, and none in them."""
        columns = [_spelled(self.key), _spelled(self.selection.model) if self.selection else "-", self._updated_at()]
        if self.conversation:
            columns.append(f"{self.conversation.messages} messages, {self.conversation.bytes} bytes")
        return "\t".join(columns) + "\n"

    def _updated_at(self) -> str:
        times = [self.conversation.updated_at] if self.conversation else []
        if self.selection:
            times.append(datetime.fromtimestamp(self.selection.updated_at, UTC).isoformat(timespec="seconds"))
        return max(times)


@attrs.frozen
class Stored:
    """All of it; *memory* is None where there is none."""

    sessions: Sessions
    memory: Memory | None

    async def rows(self) -> list[Row]:
        """Every key: those with a selection first, each kind the least recently used first."""
        conversations = {found.key: found for found in await self.memory.sessions()} if self.memory else {}
        selected = [Row(info.key, info, conversations.pop(info.key, None)) for info in self.sessions.list()]
        return selected + [Row(key, None, found) for key, found in conversations.items()]

    async def find(self, key: str) -> Row | None:
        return next((row for row in await self.rows() if row.key == key), None)

    async def describe(self, row: Row) -> str:
        """A row, and what was said in its conversation."""
        said = await self.memory.show(row.key) if self.memory else ()
        return row.line() + "".join(f"\n{_paragraph(entry)}\n" for entry in said)

    async def forget(self, key: str) -> None:
        """Forget the conversation and the selection.

        Raises:
            SessionBusyError: a turn of the session runs and does not end; nothing was forgotten.
        """
        if self.memory:
            await self.memory.forget(key)
        await self.sessions.delete(key).wait()

    def export(self) -> str:
        """The selections as one JSON document, which can be put back as the file that they are kept in."""
        return visible_json(self.sessions.export().decode())

    async def export_conversations(self) -> AsyncIterator[str]:
        """One JSON document in pieces: ``{key: [message, ...]}``, each message as on disk but for escapes."""
        before = "{"
        for found in await self.memory.sessions() if self.memory else ():
            assert self.memory is not None
            lines = b",\n    ".join(await self.memory.lines(found.key)).decode()
            yield visible_json(f"{before}\n  {orjson.dumps(found.key).decode()}: [\n    {lines}\n  ]")
            before = ","
        yield "{}\n" if before == "{" else "\n}\n"


@asynccontextmanager
async def open_stored(config: Config) -> AsyncIterator[Stored]:
    """What is stored in the home of *config*.

    Raises:
        StateError: it cannot be read.
    """
    api, folder = config.gateway.openai_api, config.home / FOLDER_NAME
    async with AsyncExitStack() as stack:
        sessions = await stack.enter_async_context(open_stored_sessions(config))
        memory = None
        if folder.is_dir():
            bounds = open_memory(folder, max_sessions=api.max_sessions, session_ttl=api.session_ttl)
            memory = await stack.enter_async_context(bounds)
        yield Stored(sessions, memory)


def _spelled(name: str) -> str:
    """A name that clients chose, with what cannot be printed spelled as in Python, and in a shell's ``$'...'``."""
    return "".join(sign if sign.isprintable() else _escape(sign) for sign in name)


def _escape(sign: str) -> str:
    # To a shell \xa0 is a byte.
    return f"\\u{ord(sign):04x}" if 0x80 <= ord(sign) < 0x100 else sign.encode("unicode_escape").decode()


def _paragraph(said: Said) -> str:
    """One message for people. What a terminal would obey is not passed on."""
    body = said.message.body
    content = body.get("content")
    if not isinstance(content, str):
        content = orjson.dumps(content).decode() if content else ""
    calls = [orjson.dumps(call).decode() for call in body.get("tool_calls") or ()]
    text = "\n".join(filter(None, [content or body.get("refusal") or "", *calls]))
    shown = "".join(sign if sign.isprintable() or sign in "\n\t" else "\N{REPLACEMENT CHARACTER}" for sign in text)
    return f"{said.message.role}{' (internal)' if said.internal else ''}: {shown}"
