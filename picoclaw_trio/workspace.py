"""The agent's identity: the files of its workspace -> its system prompt, and what ``AGENT.md`` says before its text.

Theory: every turn asks for the identity, so asking costs a few ``stat`` calls while nothing has changed. What was read
counts as long as every file's stamp is the same. A stamp is only as fine as the file system's clock: a file that is
written twice within one tick of it shows the same stamp both times. So files are read again at each call until their
stamps have been the same for ``SETTLE_TIME``; from then on any other write must show.
The files are the user's own, who may link them to wherever they like.
Editing rule: nothing here raises, blocks on a special file, or reads without a bound. The prompt holds nothing that
changes by itself, such as the time: upstreams cache what begins alike.
"""

from __future__ import annotations

import codecs
import errno
import logging
import os
import re
import stat
import time
from collections.abc import Callable, Iterable, Iterator
from datetime import date, timedelta
from functools import partial
from pathlib import Path

import attrs

from .front_matter import NO_TOOLS, NOTHING_SAID, FrontMatter, Warn, split_front_matter

MAX_FILE_BYTES = 64 * 1024
MAX_PROMPT_CHARS = 200_000
# The coarsest stamps are those of FAT: two seconds.
SETTLE_TIME = 2.0
NOTE_DAYS = 3
RULE = "\n\n---\n\n"

log = logging.getLogger("picoclaw_trio.workspace")

# What ``stat`` tells of a file that changes when the file does; of one that cannot be looked at, why.
Stamp = tuple[int, ...]


@attrs.frozen
class Identity:
    """Who the agent is. What is None leaves things to the configuration.

    Attributes:
        prompt: system prompt.
        tools: names of the only tools that it may use, of those that the configuration permits; empty: none.
        model: alias of the model that answers where neither request nor session names one.
        max_steps: replies that a model may give in one turn.
        name, description: for people.
    """

    prompt: str | None = None
    tools: tuple[str, ...] | None = None
    model: str | None = None
    max_steps: int | None = None
    name: str | None = None
    description: str | None = None


NOBODY = Identity()


@attrs.define(eq=False)
class Workspace:
    """An agent's folder, which need not be there.

    Args:
        today: the day whose notes are the latest.
        clock: seconds, never going back.
    """

    folder: Path
    today: Callable[[], date] = attrs.field(default=date.today, kw_only=True)
    clock: Callable[[], float] = attrs.field(default=time.monotonic, kw_only=True)
    _identity: Identity = attrs.field(default=NOBODY, init=False)
    # {path: stamp} of each file there is; where there is none, of the folder.
    _seen: dict[str, Stamp] = attrs.field(factory=dict, init=False)
    _settles_at: float | None = attrs.field(default=0.0, init=False)  # None: settled
    _is_bare: bool = attrs.field(default=False, init=False)
    _told: tuple[str, ...] = attrs.field(default=(), init=False)
    _remarks: set[str] = attrs.field(factory=set, init=False)  # of others, on the identity of this moment
    _day: date = attrs.field(default=date.min, init=False)
    _notes: tuple[tuple[str, str], ...] = attrs.field(default=(), init=False)

    def identity(self) -> Identity:
        """Who the agent is now; the same object as before if nothing has changed.

        A file that is missing or blank adds nothing. One that cannot be read, or is no regular file, is gone without;
        one that is too long is cut; both are told in the log, once for each change.
        """
        seen = self._look()
        if seen != self._seen:
            self._seen, self._is_bare = seen, False
            self._settles_at = self.clock() + SETTLE_TIME
        elif self._settles_at is None:
            return self._identity
        if self._settles_at is not None and self.clock() >= self._settles_at:
            self._settles_at = None
            self._is_bare = [*seen] == [os.fspath(self.folder)] and _is_empty(self.folder)
        identity = self._read(seen)
        if identity != self._identity:
            self._identity = identity
            self._remarks.clear()
        return self._identity

    def remark(self, line: str) -> None:
        """Warn of what cannot be done as ``AGENT.md`` says, once for each identity."""
        if line not in self._remarks:
            self._remarks.add(line)
            log.warning("%s/AGENT.md: %s", self.folder, line)

    def _look(self) -> dict[str, Stamp]:
        folder = os.fspath(self.folder)
        stamp = _stamp(folder)
        if stamp is None:
            return {}
        if self._is_bare and self._seen == {folder: stamp}:
            return self._seen
        return dict(self._look_at_files(folder)) or {folder: stamp}

    def _look_at_files(self, folder: str) -> Iterator[tuple[str, Stamp]]:
        agent = _stamped(f"{folder}/AGENT.md")
        yield from agent or _stamped(f"{folder}/AGENTS.md")
        for name in ("IDENTITY.md", "SOUL.md", "USER.md", "memory/MEMORY.md"):
            yield from _stamped(f"{folder}/{name}")
        self._turn_to(self.today())
        for month in dict.fromkeys(month for month, _ in self._notes):
            if _stamp(f"{folder}/memory/{month}") is not None:
                for _, day in (note for note in self._notes if note[0] == month):
                    yield from _stamped(f"{folder}/memory/{month}/{day}.md")

    def _turn_to(self, day: date) -> None:
        """Know the notes of *day* and the days before: ``("202611", "20261123")``, the oldest first."""
        if day != self._day:
            days = (day - timedelta(ago) for ago in reversed(range(NOTE_DAYS)))
            self._day, self._notes = day, tuple((f"{day:%Y%m}", f"{day:%Y%m%d}") for day in days)

    def _read(self, seen: dict[str, Stamp]) -> Identity:
        told: list[str] = []
        front, pieces = _read_files(self.folder, seen, told.append)
        prompt = _cut_prompt(RULE.join(pieces), self.folder, told.append)
        for line in told:
            if line not in self._told:
                log.warning("%s", line)
        self._told = tuple(told)
        return Identity(prompt or None, front.tools, front.model, front.max_steps, front.name, front.description)


def _stamp(path: str) -> Stamp | None:
    try:
        found = os.stat(path)
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None
    except OSError as exc:
        return (exc.errno or 0,)
    # The time of the last change of any kind shows a new mode, and a write whose time was set back.
    return found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def _stamped(path: str) -> tuple[tuple[str, Stamp], ...]:
    stamp = _stamp(path)
    return () if stamp is None else ((path, stamp),)


def _is_empty(folder: Path) -> bool:
    try:
        with os.scandir(folder) as entries:
            return next(entries, None) is None
    except OSError:
        return False


def _read_files(folder: Path, seen: Iterable[str], warn: Warn) -> tuple[FrontMatter, list[str]]:
    """The front matter, and each piece of the prompt that is not blank, in the order of *seen*."""
    front, pieces = NOTHING_SAID, []
    for path in seen:
        name = os.path.relpath(path, folder)
        text = None if name == "." else _read_text(path, warn)
        if name == "AGENT.md":
            front, text = (NO_TOOLS, "") if text is None else split_front_matter(text, partial(_warn_of, path, warn))
        if text and text.strip():
            pieces.append(_title(name) + text.strip())
    return front, pieces


def _warn_of(path: str, warn: Warn, line: str) -> None:
    warn(f"{path}: {line}")


def _title(name: str) -> str:
    """What is remembered is told apart from what the agent is; *name* is where it may look it up."""
    if name == "memory/MEMORY.md":
        return f"# Memory ({name})\n\n"
    note = re.fullmatch(r"memory/\d+/(\d{4})(\d\d)(\d\d)\.md", name)
    return f"# Notes of {'-'.join(note.groups())} ({name})\n\n" if note else ""


def _read_text(path: str, warn: Warn) -> str | None:
    """What is in the file, as text with line feeds; None, once told, if it cannot be read."""
    try:
        raw = _read_bytes(path)
    except FileNotFoundError:  # it has just gone
        return None
    except OSError as exc:
        warn(f"{path}: cannot be read, so it is left out: {exc.strerror}")
        return None
    is_cut = len(raw) > MAX_FILE_BYTES
    # A cut may part a character; what is left of it is not text.
    text = codecs.getincrementaldecoder("utf-8-sig")("replace").decode(raw[:MAX_FILE_BYTES], final=not is_cut)
    text = text.replace("\r\n", "\n")
    if not is_cut:
        return text
    warn(f"{path}: is longer than {MAX_FILE_BYTES} bytes, and the rest of it is left out")
    return f"{text}\n\n[The rest of {os.path.basename(path)} is left out: the file is too long.]"


def _read_bytes(path: str) -> bytes:
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise OSError(errno.EINVAL, "it is no regular file")
        with open(fd, "rb", closefd=False) as file:
            return file.read(MAX_FILE_BYTES + 1)
    finally:
        os.close(fd)


def _cut_prompt(prompt: str, folder: Path, warn: Warn) -> str:
    if len(prompt) <= MAX_PROMPT_CHARS:
        return prompt
    warn(f"{folder}: the prompt is longer than {MAX_PROMPT_CHARS} characters, and the rest of it is left out")
    return f"{prompt[:MAX_PROMPT_CHARS]}\n\n[The rest of this prompt is left out: it is too long.]"
