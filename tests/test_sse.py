"""Event streams: the same events however the bytes are cut."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise

import pytest
import strategies  # noqa: F401  # loads the profile
from hypothesis import given
from hypothesis import strategies as st

from picoclaw_trio.sse import COMMENT, DONE, EventTooLarge, Parser, encode_event


def parse(pieces: Iterable[bytes], max_event_bytes: int = 1000) -> list[bytes]:
    """The data of all events, the stream's end included."""
    parser = Parser(max_event_bytes)
    events = [event for piece in pieces for event in parser.feed(piece)]
    return events + parser.finish()


# {what it shows: (stream, the data of its events)}
STREAMS: dict[str, tuple[bytes, list[bytes]]] = {
    "nothing": (b"", []),
    "one event": (b"data: a\n\n", [b"a"]),
    "two events": (b"data: a\n\ndata: b\n\n", [b"a", b"b"]),
    "CRLF": (b"data: a\r\n\r\ndata: b\r\n\r\n", [b"a", b"b"]),
    "CR": (b"data: a\r\rdata: b\r\r", [b"a", b"b"]),
    "LF, CR and CRLF mixed": (b"data: a\n\rdata: b\r\ndata: c\r\n\n", [b"a", b"b\nc"]),
    "CRLF is one line ending, not two": (b"data: a\r\ndata: b\r\n\r\n", [b"a\nb"]),
    "LF CR is two line endings": (b"data: a\n\rdata: b\n\r", [b"a", b"b"]),
    "several data lines": (b"data: a\ndata: b\ndata: c\n\n", [b"a\nb\nc"]),
    "no space after the colon": (b"data:a\n\n", [b"a"]),
    "one space of several goes": (b"data:   a \n\n", [b"  a "]),
    "a tab after the colon stays": (b"data:\ta\n\n", [b"\ta"]),
    "colons in the data": (b"data: a:b: c\n\n", [b"a:b: c"]),
    "empty data": (b"data:\n\n", [b""]),
    "empty data with a space": (b"data: \n\n", [b""]),
    "data without a colon": (b"data\n\n", [b""]),
    "empty data lines between": (b"data: a\ndata\ndata: b\n\n", [b"a\n\nb"]),
    "comments": (b": hello\n\n:\n\n:\ndata: a\n: between\ndata: b\n\n:\n", [b"a\nb"]),
    "event, id and retry": (b"event: x\nid: 1\nretry: 5\ndata: a\n\nevent: y\n\nid\n\n", [b"a"]),
    "unknown fields": (b"foo: 1\nDATA: 2\n data: 3\ndata : 4\ndatab: 5\ndata: a\n\n", [b"a"]),
    "blank lines": (b"\n\n\n\ndata: a\n\n\n\n\ndata: b\n\n\n", [b"a", b"b"]),
    "a byte order mark": (b"\xef\xbb\xbfdata: a\n\n", [b"a"]),
    "a byte order mark before a blank line": (b"\xef\xbb\xbf\ndata: a\n\n", [b"a"]),
    "a byte order mark later is part of a name": (b"data: a\n\n\xef\xbb\xbfdata: b\n\n", [b"a"]),
    "a byte order mark in the data stays": (b"data: \xef\xbb\xbf\n\n", [b"\xef\xbb\xbf"]),
    "letters beyond ASCII": ("data: ä€😀\n\n".encode(), ["ä€😀".encode()]),
    "bytes that are no UTF-8": (b"data: \xff\xfe\x00\n\n", [b"\xff\xfe\x00"]),
    "other line breaks are none": ("data: a\x0bb\x0cc\x85\u2028d\n\n".encode(), ["a\x0bb\x0cc\x85\u2028d".encode()]),
    "the end mark": (b"data: {}\n\ndata: [DONE]\n\n", [b"{}", DONE]),
    "no blank line at the end": (b"data: a\n\ndata: b\n", [b"a", b"b"]),
    "no line ending at the end": (b"data: a\n\ndata: b", [b"a", b"b"]),
    "a CR at the end": (b"data: a\r", [b"a"]),
    "a CRLF and a CR at the end": (b"data: a\r\n\r", [b"a"]),
    "a comment at the end": (b"data: a\n\n: b", [b"a"]),
}
TABLE = pytest.mark.parametrize(("stream", "events"), STREAMS.values(), ids=STREAMS.keys())


@TABLE
def test_a_stream_in_one_piece(stream: bytes, events: list[bytes]) -> None:
    assert events == parse([stream])


@TABLE
def test_a_stream_cut_at_any_place(stream: bytes, events: list[bytes]) -> None:
    for place in range(len(stream) + 1):
        assert events == parse([stream[:place], stream[place:]])


@TABLE
def test_a_stream_byte_by_byte(stream: bytes, events: list[bytes]) -> None:
    assert events == parse(stream[place : place + 1] for place in range(len(stream)))


@TABLE
def test_a_stream_with_empty_pieces(stream: bytes, events: list[bytes]) -> None:
    assert events == parse(piece for byte in stream for piece in (b"", bytes([byte]), b""))


def test_an_event_is_given_with_the_byte_that_ends_it() -> None:
    parser = Parser()

    assert [] == parser.feed(b"data: a\n")
    assert [b"a"] == parser.feed(b"\n")
    assert [] == parser.feed(b"data: b\r\n\r")
    assert [b"b", b"c"] == parser.feed(b"\ndata: c\n\n: ping")
    assert [] == parser.finish()


def test_a_cut_event_is_given_at_the_end_once() -> None:
    parser = Parser()
    parser.feed(b"data: a\ndata: b")

    assert [b"a\nb"] == parser.finish()
    assert [] == parser.finish()


# --- Any stream, cut anywhere --------------------------------------------------------------------------------------

LINE_ENDINGS = st.sampled_from([b"\n", b"\r\n", b"\r"])
VALUES = st.binary(max_size=12).map(lambda raw: raw.replace(b"\r", b"").replace(b"\n", b""))
NOISE = st.one_of(
    VALUES.map(lambda raw: b":" + raw), VALUES.map(lambda raw: b"event: " + raw), st.sampled_from([b"id", b"retry: 1"])
)


@st.composite
def streams(draw: st.DrawFn) -> tuple[bytes, list[bytes]]:
    """The bytes of a stream, and the data of its events."""
    lines: list[bytes] = []
    events = draw(st.lists(st.lists(VALUES, min_size=1, max_size=3), max_size=4))
    for data in events:
        for value in data:
            lines += draw(st.lists(NOISE, max_size=2))
            has_space = value.startswith(b" ") or draw(st.booleans())
            lines.append(b"data:" + b" " * has_space + value)
        lines.append(b"")
    # A CR before the LF of the next, blank line would be one line ending.
    ending = draw(LINE_ENDINGS)
    return b"".join(line + ending for line in lines), [b"\n".join(data) for data in events]


def cut(stream: bytes, places: Sequence[int]) -> list[bytes]:
    edges = [0, *sorted(place % (len(stream) + 1) for place in places), len(stream)]
    return [stream[start:end] for start, end in pairwise(edges)]


@given(streams(), st.lists(st.integers(0, 10**6), max_size=12))
def test_any_events_come_out_however_they_are_cut(stream: tuple[bytes, list[bytes]], places: list[int]) -> None:
    raw, events = stream

    assert events == parse(cut(raw, places))


@given(
    st.lists(st.sampled_from([b"data", b":", b" ", b"\n", b"\r", b"x", b"\xef\xbb\xbf", b"id"])).map(b"".join),
    st.lists(st.integers(0, 10**6), max_size=12),
)
def test_any_bytes_give_the_same_events_however_they_are_cut(raw: bytes, places: list[int]) -> None:
    assert parse([raw]) == parse(cut(raw, places))


# --- Bounds --------------------------------------------------------------------------------------------------------

MAX = 20
# {what it shows: (stream, fits)}. A line counts with its field's name; data lines before it with one more byte each.
BOUNDS: dict[str, tuple[bytes, bool]] = {
    "a line of the greatest size": (b"data: " + b"x" * 14 + b"\n\n", True),
    "a line one byte longer": (b"data: " + b"x" * 15 + b"\n\n", False),
    "a line without an end": (b"x" * 21, False),
    "a comment of the greatest size": (b":" * 20 + b"\n", True),
    "a comment one byte longer": (b":" * 21 + b"\n", False),
    "lines that fit together": (b"data: " + b"x" * 5 + b"\ndata: " + b"x" * 8 + b"\n\n", True),
    "lines one byte longer together": (b"data: " + b"x" * 5 + b"\ndata: " + b"x" * 9 + b"\n\n", False),
    "many short lines": (b"data: x\n" * 100, False),
    "many empty lines of data": (b"data\n" * 100, False),
    "many events": (b"data: xxxxxxxxxx\n\n" * 100, True),
    "many comments": (b": ping ping ping\n" * 100, True),
    "many comments within an event": (b"data: x\n" + b": ping\n" * 100 + b"\n", True),
}


@pytest.mark.parametrize(("stream", "fits"), BOUNDS.values(), ids=BOUNDS.keys())
@pytest.mark.parametrize("size", [1, 7, 10_000])
def test_an_event_is_bounded_however_it_arrives(stream: bytes, fits: bool, size: int) -> None:
    pieces = [stream[place : place + size] for place in range(0, len(stream), size)]
    if fits:
        assert parse([stream]) == parse(pieces, MAX)
    else:
        with pytest.raises(EventTooLarge):
            parse(pieces, MAX)


def test_a_large_event_in_small_pieces_is_whole() -> None:
    data = b"x" * 4_000_000
    stream = b"data: " + data + b"\n\n"

    assert [data] == parse((stream[place : place + 1000] for place in range(0, len(stream), 1000)), 5_000_000)


def test_an_event_of_many_lines_in_small_pieces_is_whole() -> None:
    line = b"data: " + b"x" * 57 + b"\n"
    stream = line * 40_000 + b"\n"
    pieces = (stream[place : place + 1000] for place in range(0, len(stream), 1000))

    assert [b"\n".join([b"x" * 57] * 40_000)] == parse(pieces, 5_000_000)


def test_many_events_in_one_piece_are_all_given() -> None:
    assert [b"x"] * 200_000 == parse([b"data: x\n\n" * 200_000])


# --- Writing -------------------------------------------------------------------------------------------------------


@given(st.lists(VALUES, max_size=4), st.lists(st.integers(0, 10**6), max_size=6))
def test_what_is_encoded_is_parsed_again(events: list[bytes], places: list[int]) -> None:
    assert events == parse(cut(b"".join(encode_event(event) for event in events), places))


def test_the_end_mark_stands_alone_in_its_frame() -> None:
    assert b"data: [DONE]\n\n" == encode_event(DONE)


def test_the_keep_alive_comment_is_no_event() -> None:
    assert [b"a"] == parse([COMMENT, encode_event(b"a"), COMMENT])
