"""The format of a transcript: one JSON line a message, and a mark at the end of each turn. Bytes in, values out.

Theory: the first line names the session. A turn is its lines and the mark that ends it, which has the checksum of all
lines up to there: so a turn is there as a whole or not at all, and none can be missing. Lines are only ever appended:
``{"keep": 4}`` says that what follows the first four messages is replaced, ``{"begin": 8, "summary": ...}`` that the
messages before the ninth no longer go to the model. What follows the last mark is a turn that a kill or a full disk cut
off, and counts for nothing. A turn whose checksum is wrong is damage: what comes before it counts. Messages have
PicoClaw's and OpenAI's fields.
Editing rule: a line or field that this version cannot read needs a higher VERSION; older versions then refuse it.
"""

from __future__ import annotations

import zlib
from typing import Any

import attrs
import orjson

from ..errors import StateError
from ..messages import Message
from ..shapes import Json
from .values import Said

VERSION = 1
END = b'{"end":'
# Ours in a message's line; a client's own field of such a name is not kept.
OUR_FIELDS = ("created_at", "internal", "own_calls")
BAD_VALUE = (ValueError, KeyError, TypeError, AttributeError)


@attrs.define
class Transcript:
    """What one file says.

    Attributes:
        entries: the messages that count, in order.
        lines: the line of each of them.
        begin: the first one that goes to the model.
        summary: of those before it; None if there is none.
        dropped: how many messages that the client saw were forgotten before the first.
        keeps_history: the last request had brought messages that were stored before it.
        updated_at: when the last turn was stored, as ISO 8601 has it.
        end: bytes up to the end of the last whole turn.
        sum: checksum of these, which the next turn's goes on from.
        size: bytes of the file; 0 if there is none, or nothing that one could go on with.
        complaint: what is wrong with the rest, or None.
    """

    entries: list[Said] = attrs.field(factory=list)
    lines: list[bytes] = attrs.field(factory=list)
    begin: int = 0
    summary: str | None = None
    dropped: int = 0
    keeps_history: bool = False
    updated_at: str = ""
    end: int = 0
    sum: int = 0
    size: int = 0
    complaint: str | None = None

    def keep(self, count: int) -> None:
        """Only the first *count* messages count. A summary of any of the others goes with them."""
        if self.entries and not count:
            self.dropped = 0
        del self.entries[count:], self.lines[count:]
        if self.begin > count:
            self.begin, self.summary = 0, None

    def live_bytes(self) -> int:
        return sum(len(line) + 1 for line in self.lines)


@attrs.frozen
class TurnLines:
    """What one turn adds to a transcript.

    Attributes:
        keep: how many stored messages stay.
        begin: the first message, of those and *said*, that goes to the model, or None if that has not changed.
        summary: of the messages before *begin*.
        said: the turn's messages, the request's new ones first.
        visible: how many messages in the whole conversation the client has seen.
        keeps_history: the request brought messages that were stored before it.
        at: when, as ISO 8601 has it.
    """

    keep: int
    begin: int | None
    summary: str | None
    said: tuple[Said, ...]
    visible: int
    keeps_history: bool
    at: str


def encode_header(session: str, dropped: int = 0) -> bytes:
    return orjson.dumps({"transcript": VERSION, "session": session, "dropped": dropped}) + b"\n"


def encode_turn(turn: TurnLines, stored: int, sum: int) -> bytes:
    """Give the lines to append to a transcript of *stored* messages, whose checksum is *sum*."""
    lines = [] if turn.keep == stored else [orjson.dumps({"keep": turn.keep})]
    lines += [_encode_said(said, turn.at) for said in turn.said]
    return _ended(lines, turn.keep + len(turn.said), turn, sum)


def encode_rewritten(session: str, transcript: Transcript, visible: int) -> bytes:
    """Give a whole file of what counts in *transcript*, as one turn."""
    header = encode_header(session, transcript.dropped)
    if not transcript.entries:
        return header
    kept = transcript
    at = kept.updated_at
    turn = TurnLines(0, kept.begin or None, kept.summary, (), visible, kept.keeps_history, at)
    return header + _ended(list(kept.lines), len(kept.entries), turn, zlib.crc32(header))


def decode_transcript(data: bytes, session: str) -> Transcript:
    """Read the file of *session*: what counts, and what is wrong with the rest.

    Raises:
        StateError: a newer version of this program wrote it.
    """
    transcript = Transcript(size=len(data))
    header_end = data.find(b"\n") + 1
    header = decode_header(data[:header_end])
    if header is None or header["session"] != session:
        return Transcript(complaint="is no transcript of this session")
    transcript.dropped, transcript.end, transcript.sum = header["dropped"], header_end, zlib.crc32(data[:header_end])
    position = header_end - 1
    while (mark := data.find(b"\n" + END, position) + 1) and (end := data.find(b"\n", mark) + 1):
        if not _apply(transcript, data[transcript.end : mark], data[mark:end]):
            transcript.complaint = "has a turn that cannot be read"
            return transcript
        transcript.end, position = end, end - 1
    if not all(map(_is_turn_line, data[transcript.end :].split(b"\n")[:-1])):
        transcript.complaint = "has lines that cannot be read"  # a turn that was cut off has none but the last
    return transcript


def decode_header(line: bytes) -> dict[str, Any] | None:
    """Read a first line; None if it is none of ours.

    Raises:
        StateError: a newer version of this program wrote it.
    """
    header = _load(line)
    if header is None or type(header.get("transcript")) is not int or not isinstance(header.get("session"), str):
        return None
    if header["transcript"] > VERSION:
        raise StateError(
            f"the transcript of {header['session'][:80]!r} was written by a newer version of this program "
            f"(format {header['transcript']}, not {VERSION})"
        )
    dropped = header.get("dropped", 0)
    return {"session": header["session"], "dropped": dropped if type(dropped) is int else 0}


def decode_end(line: bytes) -> dict[str, Any] | None:
    """Read the mark at a turn's end: ``{"end": messages stored, "visible": of these, "at", "history", "sum"}``."""
    mark = _load(line) if line.startswith(END) else None
    return mark if mark and mark.keys() >= {"visible", "at", "sum"} else None


def _ended(lines: list[bytes], stored: int, turn: TurnLines, sum: int) -> bytes:
    if turn.begin is not None:
        lines.append(orjson.dumps({"begin": turn.begin, "summary": turn.summary}))
    body = b"".join(line + b"\n" for line in lines)
    mark = {"end": stored, "visible": turn.visible, "at": turn.at, "history": turn.keeps_history}
    return body + orjson.dumps({**mark, "sum": zlib.crc32(body, sum)}) + b"\n"


def _apply(transcript: Transcript, body: bytes, mark_line: bytes) -> bool:
    """Add a turn to *transcript*, and say whether it was sound. If it was not, *transcript* is as it was."""
    mark = decode_end(mark_line)
    if mark is None or mark.get("sum") != zlib.crc32(body, transcript.sum):
        return False
    try:
        values = [(line, orjson.loads(line)) for line in body.split(b"\n")[:-1]]
        said = [(line, _decode_said(value)) for line, value in values if "role" in value]
        notes = {name: value for _, note in values if "role" not in note for name, value in note.items()}
        kept = int(notes.get("keep", len(transcript.entries)))
        if kept > len(transcript.entries) or mark["end"] != kept + len(said):
            return False
    except BAD_VALUE:
        return False
    transcript.keep(kept)
    transcript.lines += [line for line, _ in said]
    transcript.entries += [entry for _, entry in said]
    if "begin" in notes:
        transcript.begin, transcript.summary = int(notes["begin"]), notes.get("summary")
    transcript.keeps_history, transcript.updated_at = bool(mark.get("history")), str(mark.get("at"))
    transcript.sum = mark["sum"]
    return True


def _encode_said(said: Said, at: str) -> bytes:
    body = {name: value for name, value in said.message.body.items() if name not in OUR_FIELDS}
    fields: dict[str, Json] = {"role": said.message.role, **body, "created_at": at}
    if said.internal:
        fields["internal"] = True
    if said.own_calls:
        fields["own_calls"] = said.own_calls
    return orjson.dumps(fields)


def _decode_said(fields: dict[str, Json]) -> Said:
    body = {name: value for name, value in fields.items() if name not in OUR_FIELDS}
    return Said(Message(body["role"], body), bool(fields.get("internal")), tuple(fields.get("own_calls", ())))


def _is_turn_line(line: bytes) -> bool:
    value = _load(line)
    return value is not None and not value.keys().isdisjoint(("role", "keep", "begin"))


def _load(line: bytes) -> dict[str, Any] | None:
    try:
        value = orjson.loads(line)
    except orjson.JSONDecodeError:
        return None
    return value if isinstance(value, dict) else None
