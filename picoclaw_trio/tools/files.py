"""Tools for files: read_file, list_dir, write_file, edit_file, append_file, inside the workspace only.

Theory: the work blocks, so it is done in threads. Reading may be given up at any moment. A change is waited for to its
end, so a cancelled call has changed a file whole or not at all; changes of one workspace are made one after the other.
Editing rule: here stand words for the model, and threads; paths are ``sandbox``'s, bytes those of ``reading`` and
``writing``.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import ParamSpec, TypeVar
from weakref import WeakValueDictionary

import attrs
import trio

from .arguments import flag, make_tool, one_of, quoted, text, whole_number
from .reading import (
    MAX_SHOWN_NAMES,
    MAX_WINDOW_BYTES,
    MAX_WINDOW_LINES,
    WINDOW_BYTES,
    list_folder,
    read_bytes,
    read_lines,
)
from .sandbox import MAX_PATH_CHARS, Sandbox, real_path
from .values import Tool
from .writing import MAX_FILE_BYTES, append_file, edit_file, write_file

MAX_READERS = 8
P = ParamSpec("P")
T = TypeVar("T")


@attrs.define
class Turnstile:
    """Lets one change through at a time."""

    limiter: trio.CapacityLimiter = attrs.field(factory=lambda: trio.CapacityLimiter(1))


# {the workspace's real folder: its turnstile}: the tools of one workspace may be made more than once
_turnstiles: WeakValueDictionary[Path, Turnstile] = WeakValueDictionary()


def file_tools(workspace: Path) -> tuple[Tool, ...]:
    """The five tools for the files of *workspace*, which need not exist yet: the first file that is written makes it.

    Cancellation: a change is whole or not made; no temporary file is left.
    """
    hands = _Hands(Sandbox(workspace), _turnstiles.setdefault(real_path(workspace), Turnstile()))
    return (
        make_tool("read_file", READ_FILE, ReadFile, hands.read),
        make_tool("list_dir", LIST_DIR, ListDir, hands.list),
        make_tool("write_file", WRITE_FILE, WriteFile, hands.write),
        make_tool("edit_file", EDIT_FILE, EditFile, hands.edit),
        make_tool("append_file", APPEND_FILE, AppendFile, hands.append),
    )


READ_FILE = (
    f"Read a text file of the workspace, at most {MAX_WINDOW_BYTES} bytes at once. If there is more, the first line"
    " says in brackets how much, and with which offset to go on."
)
LIST_DIR = f"List a folder of the workspace: kind, name and size of at most {MAX_SHOWN_NAMES} entries, sorted by name."
WRITE_FILE = "Write a whole file of the workspace. Missing folders are made. A file that exists needs overwrite: true."
EDIT_FILE = "Replace a piece of a text file of the workspace. old_text must occur in it exactly once."
APPEND_FILE = "Add text to the end of a file of the workspace; it is made if it is missing. No newline is added."


def _path(description: str, **settings: str) -> str:
    chosen: str = text(
        f"{description}, relative to the workspace; '..' and symbolic links are refused",
        max_chars=MAX_PATH_CHARS,
        **settings,  # type: ignore[arg-type]  # only ever default
    )
    return chosen


@attrs.frozen
class ReadFile:
    path: str = _path("the file")
    unit: str = one_of("what offset and limit count", "bytes", "lines", default="bytes")
    offset: int = whole_number("how many bytes or lines to skip", minimum=0, maximum=2**62, default=0)
    limit: int | None = whole_number(
        f"how many to read at most, in bytes or lines; {WINDOW_BYTES} bytes, and {MAX_WINDOW_LINES} lines within them,"
        " unless it is given",
        minimum=1,
        maximum=MAX_WINDOW_BYTES,
        default=None,
    )


@attrs.frozen
class ListDir:
    path: str = _path("the folder", default=".")
    offset: int = whole_number("how many entries to skip", minimum=0, maximum=2**31, default=0)


@attrs.frozen
class WriteFile:
    path: str = _path("the file")
    content: str = text("all that the file is to hold", max_chars=MAX_FILE_BYTES)
    overwrite: bool = flag("replace the file if it exists", default=False)


@attrs.frozen
class EditFile:
    path: str = _path("the file")
    old_text: str = text("what to replace, exactly as it is in the file", max_chars=MAX_FILE_BYTES, min_chars=1)
    new_text: str = text("what to put there", max_chars=MAX_FILE_BYTES)


@attrs.frozen
class AppendFile:
    path: str = _path("the file")
    content: str = text("what to add", max_chars=MAX_FILE_BYTES)


@attrs.define
class _Hands:
    sandbox: Sandbox
    turnstile: Turnstile
    readers: trio.CapacityLimiter = attrs.field(factory=lambda: trio.CapacityLimiter(MAX_READERS))

    async def read(self, call: ReadFile) -> str:
        place = self.sandbox.place(call.path)
        if call.unit == "lines":
            limit = min(call.limit or MAX_WINDOW_LINES, MAX_WINDOW_LINES)
            found = await self._look(read_lines, self.sandbox, place, call.offset, limit)
        else:
            limit = call.limit or WINDOW_BYTES
            found = await self._look(read_bytes, self.sandbox, place, call.offset, limit)
        return found or "[the file is empty]"

    async def list(self, call: ListDir) -> str:
        return await self._look(list_folder, self.sandbox, self.sandbox.place(call.path), call.offset)

    async def write(self, call: WriteFile) -> str:
        place, data = self.sandbox.place(call.path), call.content.encode()
        is_new = await self._change(write_file, self.sandbox, place, data, overwrite=call.overwrite)
        return f"{'Wrote' if is_new else 'Replaced'} {quoted(call.path)}: {len(data)} bytes."

    async def edit(self, call: EditFile) -> str:
        place = self.sandbox.place(call.path)
        if call.old_text == call.new_text:
            raise place.wrong("old_text and new_text are the same; nothing is to be changed")
        await self._change(edit_file, self.sandbox, place, call.old_text.encode(), call.new_text.encode())
        return f"Edited {quoted(call.path)}."

    async def append(self, call: AppendFile) -> str:
        place, data = self.sandbox.place(call.path), call.content.encode()
        size = await self._change(append_file, self.sandbox, place, data)
        return f"Added {len(data)} bytes to {quoted(call.path)}, which has {size} now."

    async def _look(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        return await trio.to_thread.run_sync(
            partial(work, *args, **kwargs), abandon_on_cancel=True, limiter=self.readers
        )

    async def _change(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        return await trio.to_thread.run_sync(partial(work, *args, **kwargs), limiter=self.turnstile.limiter)
