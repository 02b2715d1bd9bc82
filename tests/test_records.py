from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from picoclaw_trio.errors import StateError
from picoclaw_trio.state.records import (
    GLOBAL,
    MAX_TIME,
    UNREADABLE_HEADER,
    Record,
    Row,
    Rows,
    apply,
    decode_document,
    decode_header,
    encode_document,
    encode_header,
    encode_records,
    scan,
)

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
NAMES = TEXT.filter(bool)
TIMES = st.integers(0, MAX_TIME)
ROWS = st.dictionaries(TEXT, st.builds(Row, NAMES, TIMES, TIMES), max_size=8)
RECORDS = st.lists(
    st.one_of(
        st.builds(Record, st.just("set"), TEXT, NAMES, TIMES),
        st.builds(Record, st.just("use"), TEXT, st.just(""), TIMES),
        st.builds(Record, st.just("drop"), TEXT),
    ),
    max_size=8,
)
EXAMPLE = """{
  "version": 1,
  "global": {"model": "x", "updated_at": "2026-11-23T03:10:00Z"},
  "sessions": {
    "openai:alice": {"model": "qwen3", "updated_at": "1970-01-01T00:00:00Z", "used_at": "2026-11-23T03:10:00Z"},
    "openai:börek": {"model": "x", "updated_at": "2026-11-23T03:10:00Z"}
  }
}
"""
EXAMPLE_ROWS = {
    "openai:alice": Row("qwen3", 0, 1795403400),
    "openai:börek": Row("x", 1795403400, 1795403400),
    GLOBAL: Row("x", 1795403400, 1795403400),
}


def test_document_is_one_json_object_with_a_line_a_session() -> None:
    assert EXAMPLE == encode_document(EXAMPLE_ROWS).decode()
    assert (EXAMPLE_ROWS, None) == decode_document(EXAMPLE.encode(), "x")


def test_document_without_sessions_is_whole() -> None:
    text = encode_document({})

    assert {"version": 1, "global": None, "sessions": {}} == json.loads(text)
    assert ({}, None) == decode_document(text, "x")


@given(ROWS)
def test_document_gives_back_every_row_in_order(rows: Rows) -> None:
    decoded, complaint = decode_document(encode_document(rows), "x")

    assert complaint is None
    assert rows == decoded
    assert [key for key in rows if key != GLOBAL] == [key for key in decoded if key != GLOBAL]


@given(RECORDS)
def test_lines_give_back_every_record(records: list[Record]) -> None:
    found = scan(encode_records(records, "00000000"), "00000000")

    assert tuple(records) == found.records
    assert (0, True) == (found.damage, found.is_linked)


@given(ROWS, RECORDS)
def test_records_applied_twice_change_nothing_more(rows: Rows, records: list[Record]) -> None:
    once = rows.copy()
    apply(once, records)
    twice = once.copy()
    apply(twice, records)

    assert {key: row.model for key, row in once.items()} == {key: row.model for key, row in twice.items()}


def test_every_changed_byte_of_a_line_is_noticed() -> None:
    [line] = encode_records([Record("set", "openai:a", "m", 1)], "0badcafe").splitlines(keepends=True)
    for place in range(len(line) - 1):
        found = scan(line[:place] + bytes([line[place] ^ 1]) + line[place + 1 :], "0badcafe")

        assert () == found.records
        assert found.damage >= 1


def test_line_cut_at_any_byte_is_left_for_later() -> None:
    records = [Record("set", "openai:a", "m", 1), Record("drop", "openai:a")]
    data = encode_records(records, "")
    first = data.index(b"\n") + 1
    for length in range(len(data)):
        found = scan(data[:length], "")

        assert tuple(records[: length >= first]) == found.records
        assert (first if length >= first else 0) == found.length
        assert 0 == found.damage


def test_bad_line_is_passed_over_and_the_gap_is_seen() -> None:
    lines = encode_records([Record("drop", key) for key in "abc"], "").splitlines(keepends=True)
    found = scan(lines[0] + b"garbage\n" + lines[2], "")

    assert (Record("drop", "a"), Record("drop", "c")) == found.records
    assert (1, False) == (found.damage, found.is_linked)


def test_line_of_another_history_is_no_continuation() -> None:
    link = scan(encode_records([Record("drop", "a")], ""), "").link

    assert scan(encode_records([Record("drop", "b")], link), link).is_linked
    assert not scan(encode_records([Record("drop", "b")], "ffffffff"), link).is_linked


def test_header_gives_back_what_it_was_given() -> None:
    line = encode_header("ab12", "cd34", (1, 2, 3))
    header = decode_header(line[:-1], "x")

    assert ("ab12", "cd34", (1, 2, 3), len(line)) == (header.id, header.follows, header.snapshot, header.length)


@pytest.mark.parametrize("line", [b"", b"{}", b"[1]", b"\xff", encode_header("a", None, None)[:-2]])
def test_header_that_is_none_is_unreadable(line: bytes) -> None:
    assert UNREADABLE_HEADER == decode_header(line, "x")


def test_newer_version_is_refused_by_name() -> None:
    with pytest.raises(StateError) as document:
        decode_document(b'{"version": 2, "anything": []}', "sessions.json")
    with pytest.raises(StateError) as journal:
        decode_header(b'{"journal":2}', "sessions.journal")

    assert "sessions.json was written by a newer version of this program (format 2, not 1)" == document.value.reason
    assert "sessions.journal was written by a newer version of this program (format 2, not 1)" == journal.value.reason


GOOD = '"version": 1, "global": null, "sessions": {"openai:a": {"model": "m", "updated_at": "2026-11-23T03:10:00Z"}}'


@pytest.mark.parametrize(
    ("text", "keys"),
    [
        ("", []),
        ('{"version": 1, "sess', []),
        ("\ufeff{}", []),
        ("[]", []),
        ("null", []),
        ("{}", []),
        ('{"version": 1}', []),
        (f"{{{GOOD}".replace("1", "true", 1) + "}", ["openai:a"]),
        (f"{{{GOOD}".replace("1", "0", 1) + "}", ["openai:a"]),
        (f"{{{GOOD}".replace('"version": 1,', "") + "}", ["openai:a"]),
        (f'{{{GOOD}, "extra": 1}}', ["openai:a"]),
        (f"{{{GOOD}}}".replace("null", "7"), ["openai:a"]),
        (f"{{{GOOD}}}".replace("null", '{"model": 7}'), ["openai:a"]),
        ('{"version": 1, "global": {"model": "g", "updated_at": "2026-11-23"}, "sessions": []}', ["global"]),
        (f"{{{GOOD}}}".replace('"m"', '""'), []),
        (f"{{{GOOD}}}".replace('"m"', "5"), []),
        (f"{{{GOOD}}}".replace("2026-11-23T03:10:00Z", "yesterday"), []),
        (f"{{{GOOD}}}".replace("2026-11-23T03:10:00Z", "0001-01-01"), []),
        (f"{{{GOOD}}}".replace('"2026-11-23T03:10:00Z"', "[]"), []),
        (f"{{{GOOD}}}".replace('"model"', '"modell"'), []),
        (f"{{{GOOD}}}".replace('"model"', '"history": [], "model"'), []),
        (f"{{{GOOD}}}".replace("openai:a", "global"), []),
        ('{"version": 1, "global": null, "sessions": {"openai:a": "m"}}', []),
    ],
)
def test_whatever_would_not_be_written_back_is_complained_about(text: str, keys: list[str]) -> None:
    rows, complaint = decode_document(text.encode(), "x")

    assert keys == list(rows)
    assert complaint


def test_times_of_a_person_may_lack_a_zone_or_have_another() -> None:
    text = EXAMPLE.replace("2026-11-23T03:10:00Z", "2026-11-23 03:10").replace(
        "1970-01-01T00:00:00Z", "1970-01-01T01:00+01:00"
    )

    assert (EXAMPLE_ROWS, None) == decode_document(text.encode(), "x")
