"""The two formats of session state: the document that people read, and the lines of its journal. Bytes in, rows out.

Theory: a row is what one key holds, a record is one change of one row, and rows are what all records come to when they
are applied in order. Applying records a second time, in the same order, changes nothing, so a crash between "the
document has them" and "the journal is fresh" needs no repair. A journal line carries its own checksum, so a torn or
rotten one is known, and that of the line before it, so a gap is known, and a history from another one.
Editing rule: a line or field that this version cannot read needs a higher VERSION; older versions then refuse it.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, Literal

import attrs
import orjson

from ..errors import StateError

VERSION = 1
GLOBAL = "global"
MAX_TIME = 253_402_300_799  # the last second of the year 9999, the last that the document can show
SEAL = b',"sum":"'

Stamp = tuple[int, int, int]  # (inode, bytes, mtime in ns) of a file: other figures, other content


@attrs.frozen
class Row:
    """What one key holds. Times are whole seconds since 1970; ``used_at`` is only roughly kept, see sessions."""

    model: str
    updated_at: int
    used_at: int


Rows = dict[str, Row]  # key -> row, the least recently used first


@attrs.frozen
class Record:
    """One change of one row: it was ``set``, it was ``use``d (nothing else changed), or it was ``drop``ped."""

    verb: Literal["set", "use", "drop"]
    key: str
    model: str = ""
    at: int = 0


@attrs.frozen
class Header:
    """First line of a journal.

    Attributes:
        id: random name of this journal; "" for one whose header cannot be read.
        follows: id of the journal that it took the place of with the same rows, or None if the rows may differ.
        snapshot: stamp of the document as it was written together with this journal, or None if there was none.
        sum: checksum, which the first record names.
        length: bytes of the line.
    """

    id: str
    follows: str | None
    snapshot: Stamp | None
    sum: str
    length: int


@attrs.frozen
class Scan:
    """What a piece of a journal says.

    Attributes:
        length: bytes of all whole lines.
        link: checksum of the last good line, or what was given if there is none.
        anchor: bytes up to the end of that line; 0 if there is none.
        damage: how many lines were bad.
        is_linked: did each good line name the one before it?
    """

    records: tuple[Record, ...]
    length: int
    link: str
    anchor: int
    damage: int
    is_linked: bool


BAD_VALUE = (ValueError, KeyError, IndexError, TypeError, AttributeError, OverflowError)
UNREADABLE_HEADER = Header("", None, None, "", 0)


def apply(rows: Rows, records: Iterable[Record]) -> set[str]:
    """Change *rows* as *records* say, in order, and give the keys that were set to another model or dropped.

    A key that is set or used becomes the most recently used one.
    """
    changed = set()
    for record in records:
        old = rows.pop(record.key, None)
        if record.verb == "set":
            rows[record.key] = Row(record.model, record.at, record.at)
        elif record.verb == "use" and old is not None:
            rows[record.key] = attrs.evolve(old, used_at=max(old.used_at, record.at))
        if record.verb != "use" and (old is None or old.model != record.model):
            changed.add(record.key)
    return changed


def encode_header(id: str, follows: str | None, snapshot: Stamp | None) -> bytes:
    return _seal({"journal": VERSION, "id": id, "follows": follows, "snapshot": snapshot})[0]


def decode_header(line: bytes, source: str) -> Header:
    """Read a journal's first line; UNREADABLE_HEADER if it is none.

    Raises:
        StateError: a newer version of this program wrote the journal called *source*.
    """
    try:
        _refuse_newer(orjson.loads(line), "journal", source)
        fields, total = _unseal(line)
        stamp = fields["snapshot"]
        snapshot = None if stamp is None else (int(stamp[0]), int(stamp[1]), int(stamp[2]))
        return Header(str(fields["id"]), fields["follows"], snapshot, total, len(line) + 1)
    except BAD_VALUE:
        return UNREADABLE_HEADER


def encode_records(records: Iterable[Record], link: str) -> bytes:
    """Give the lines to append after the line whose checksum is *link*."""
    lines = []
    for record in records:
        fields: dict[str, Any] = {record.verb: record.key}
        if record.verb == "set":
            fields["model"] = record.model
        if record.verb != "drop":
            fields["at"] = record.at
        line, link = _seal({**fields, "after": link})
        lines.append(line)
    return b"".join(lines)


def scan(data: bytes, link: str) -> Scan:
    """Read the whole lines of *data*, which follow the line with checksum *link*; a last line without end is left.

    Bad lines are counted and passed over.
    """
    length = data.rfind(b"\n") + 1
    records, position, anchor, damage, is_linked = [], 0, 0, 0, True
    for line in data[:length].split(b"\n")[:-1]:
        position += len(line) + 1
        try:
            record, after, total = _decode_record(line)
        except BAD_VALUE:
            damage += 1
            continue
        is_linked = is_linked and after == link
        link, anchor = total, position
        records.append(record)
    return Scan(tuple(records), length, link, anchor, damage, is_linked)


def line_end(link: str) -> bytes:
    """Give the last bytes of the line whose checksum is *link*."""
    return b'%b%b"}\n' % (SEAL, link.encode())


def encode_document(rows: Rows) -> bytes:
    """Give the document: one JSON object, one line a session, the least recently used first."""
    lines = [b'{\n  "version": %d,\n  "global": %b,\n  "sessions": {' % (VERSION, _row_text(rows.get(GLOBAL)))]
    separator = b"\n"
    for key, row in rows.items():
        if key != GLOBAL:
            lines.append(b"%b    %b: %b" % (separator, orjson.dumps(key), _row_text(row)))
            separator = b",\n"
    lines.append(b"\n  }\n}\n" if len(lines) > 1 else b"}\n}\n")
    return b"".join(lines)


def decode_document(data: bytes, source: str) -> tuple[Rows, str | None]:
    """Read the document called *source*: the rows that can be read, and what is wrong with the rest, or None.

    Anything that would not be written back the same way is wrong, unknown fields included.

    Raises:
        StateError: a newer version of this program wrote it.
    """
    rows: Rows = {}
    try:
        document = orjson.loads(data)
    except orjson.JSONDecodeError as exc:
        return rows, f"is not JSON: {exc}"
    if not isinstance(document, dict):
        return rows, "is not a JSON object"
    _refuse_newer(document, "version", source)
    complaints = list(_fill(rows, document))
    return rows, "; ".join(complaints[:3]) or None


def _fill(rows: Rows, document: dict[str, Any]) -> Iterator[str]:
    if type(document.get("version")) is not int or document["version"] != VERSION:
        yield "its version is missing or unknown"
    if unknown := document.keys() - {"version", GLOBAL, "sessions"}:
        yield f"has the unknown field {min(unknown)!r}"
    sessions = document.get("sessions")
    if not isinstance(sessions, dict):
        yield "its sessions are no JSON object"
        sessions = {}
    for key, value in sessions.items():
        try:
            rows[_session_key(key)] = _row(value)
        except BAD_VALUE:
            yield f"its entry {key[:80]!r} cannot be read"
    try:
        if document.get(GLOBAL) is not None:
            rows[GLOBAL] = _row(document[GLOBAL])
    except BAD_VALUE:
        yield "its global entry cannot be read"


def _session_key(key: str) -> str:
    if key == GLOBAL:
        raise ValueError(key)
    return key


def _row(value: dict[str, Any]) -> Row:
    if value.keys() - {"model", "updated_at", "used_at"}:
        raise ValueError(value)
    updated_at = _seconds(value["updated_at"])
    used_at = _seconds(value["used_at"]) if "used_at" in value else updated_at
    return Row(_name(value["model"]), updated_at, used_at)


def _row_text(row: Row | None) -> bytes:
    if row is None:
        return b"null"
    text = b'{"model": %b, "updated_at": %b' % (orjson.dumps(row.model), _time_text(row.updated_at))
    if row.used_at == row.updated_at:
        return text + b"}"
    return b'%b, "used_at": %b}' % (text, _time_text(row.used_at))


@lru_cache(maxsize=4096)
def _time_text(at: int) -> bytes:
    return b'"%b"' % datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%SZ").encode()


@lru_cache(maxsize=4096)
def _seconds(text: str) -> int:
    moment = datetime.fromisoformat(text)
    return _checked_time(int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()))


def _checked_time(at: object) -> int:
    if type(at) is not int or not 0 <= at <= MAX_TIME:
        raise ValueError(at)
    return at


def _name(text: object) -> str:
    if not isinstance(text, str) or not text:
        raise ValueError(text)
    return text


def _refuse_newer(fields: object, field: str, source: str) -> None:
    version = fields.get(field) if isinstance(fields, dict) else None
    if type(version) is int and version > VERSION:
        raise StateError(f"{source} was written by a newer version of this program (format {version}, not {VERSION})")


def _seal(fields: dict[str, Any]) -> tuple[bytes, str]:
    body = orjson.dumps(fields)[:-1]
    total = f"{zlib.crc32(body):08x}"
    return body + line_end(total), total


def _unseal(line: bytes) -> tuple[dict[str, Any], str]:
    body, _, rest = line.rpartition(SEAL)
    total = f"{zlib.crc32(body):08x}"
    if SEAL + rest + b"\n" != line_end(total):
        raise ValueError(line)
    return orjson.loads(line), total


def _decode_record(line: bytes) -> tuple[Record, str, str]:
    fields, total = _unseal(line)
    after = fields["after"]
    if "set" in fields:
        return Record("set", str(fields["set"]), _name(fields["model"]), _checked_time(fields["at"])), after, total
    if "use" in fields:
        return Record("use", str(fields["use"]), at=_checked_time(fields["at"])), after, total
    return Record("drop", str(fields["drop"])), after, total
