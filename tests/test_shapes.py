"""Strict JSON and the checks of types."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from strategies import JSON, TRICKY_OBJECTS, spelled

from picoclaw_trio.errors import RequestError
from picoclaw_trio.shapes import (
    MAX_DEPTH,
    MAX_TOKENS,
    Check,
    check_bool,
    check_integer,
    check_list,
    check_number,
    check_object,
    check_string,
    check_string_or_object,
    decode_object,
    list_of,
    load,
    of_type,
)


def nested(levels: int) -> bytes:
    """A JSON object of so many levels, itself the first."""
    inside = levels - 1
    return b'{"a":' + b"[" * inside + b"1" + b"]" * inside + b"}"


def outcome(raw: bytes) -> dict[str, Any] | RequestError:
    """The object, or why there is none."""
    try:
        return decode_object(raw)
    except RequestError as error:
        return error


def refused(raw: bytes) -> RequestError:
    with pytest.raises(RequestError) as caught:
        decode_object(raw)
    return caught.value


BROKEN = {
    "empty": b"",
    "white space alone": b" \t\r\n",
    "invalid UTF-8": b'{"a":"\xff"}',
    "overlong UTF-8": b'{"a":"\xc0\x80"}',
    "Latin-1": b'{"a":"\xe9"}',
    "a surrogate as UTF-8": b'{"a":"\xed\xa0\x80"}',
    "UTF-16 with a mark": '{"a":1}'.encode("utf-16"),
    "UTF-16 little endian": '{"a":1}'.encode("utf-16-le"),
    "UTF-16 big endian": '{"a":1}'.encode("utf-16-be"),
    "UTF-32": '{"a":1}'.encode("utf-32"),
    "byte order mark": b'\xef\xbb\xbf{"a":1}',
    "NaN": b'{"a":NaN}',
    "Infinity": b'{"a":Infinity}',
    "minus Infinity": b'{"a":-Infinity}',
    "1e999": b'{"a":1e999}',
    "minus 1e999": b'{"a":-1e999}',
    "an integer of 400 digits": b'{"a":' + b"9" * 400 + b"}",
    "an integer of 5000 digits": b'{"a":' + b"9" * 5000 + b"}",
    "a lone high surrogate": b'{"a":"\\ud800"}',
    "a lone low surrogate": b'{"a":"\\udc00"}',
    "a lone surrogate as a key": b'{"\\ud800":1}',
    "surrogates in the wrong order": b'{"a":"\\udc00\\ud800"}',
    "trailing garbage": b'{"a":1} x',
    "a second value": b'{"a":1}{"a":1}',
    "a trailing zero byte": b'{"a":1}\x00',
    "a trailing comma": b'{"a":1,}',
    "a missing value": b'{"a":}',
    "a missing colon": b'{"a" 1}',
    "a missing brace": b'{"a":1',
    "single quotes": b"{'a':1}",
    "a bare key": b"{a:1}",
    "a comment": b'{"a":1/* one */}',
    "a leading zero": b'{"a":01}',
    "a plus": b'{"a":+1}',
    "a hexadecimal number": b'{"a":0x1}',
    "Python's None": b'{"a":None}',
    "a raw line break in a string": b'{"a":"\n"}',
    "a raw zero byte in a string": b'{"a":"\x00"}',
    "an unknown escape": b'{"a":"\\x41"}',
    "a form": b"model=a&messages=b",
    "too deep for the reader": nested(100_000),
    "too deep, objects": b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
    "one level too deep": nested(251),
    "one level too deep, objects": b'{"a":' * 251 + b"1" + b"}" * 251,
}


@pytest.mark.parametrize("raw", BROKEN.values(), ids=BROKEN.keys())
def test_broken_json_is_refused_with_400_and_its_own_code(raw: bytes) -> None:
    error = refused(raw)

    assert (400, "invalid_json", None) == (error.status, error.code, error.param)
    assert error.message.startswith("The request body is not valid JSON: ")


@pytest.mark.parametrize("raw", [b"[]", b'[{"a":1}]', b"null", b"true", b"1", b"1.5", b'"{}"', b'["a","a"]'])
def test_json_without_an_object_on_top_is_refused(raw: bytes) -> None:
    error = refused(raw)

    assert (400, "invalid_json", None) == (error.status, error.code, error.param)
    assert "The request body must be a JSON object." == error.message


def test_broken_json_is_refused_with_its_line_and_column() -> None:
    assert "line 2 column 5" in refused(b'{"a":1,\n"b":x}').message


def test_nesting_is_told_with_the_limit() -> None:
    assert f"nested deeper than {MAX_DEPTH}" in refused(nested(251)).message


def test_nesting_of_250_is_taken() -> None:
    value = decode_object(nested(250))["a"]
    levels = 1
    while type(value) is list:
        value, levels = value[0], levels + 1

    assert 250 == levels


def test_any_number_of_brackets_side_by_side_or_in_a_string_is_taken() -> None:
    assert {"a": "[" * 9000, "b": [[], {}] * 9000} == decode_object(
        b'{"a":"' + b"[" * 9000 + b'","b":[' + b"[],{}," * 8999 + b"[],{}]}"
    )


MANY = {
    "strings": b'["",' + b'"a",' * 300_000 + b'""]',
    "objects": b"[" + b"{}," * 300_000 + b"{}]",
    "numbers": b"[" + b"1," * 600_000 + b"1]",
    "strings with escapes": b"[" + rb'"\\","\"",' * 200_000 + b"1]",
    "brackets": b"[" * 600_000,
    "quotes": b'"' * 1_200_000,
}
FEW = {
    "commas in a string": b'"' + b"a, " * 600_000 + b'"',
    "brackets in a string": b'"' + b"[{" * 600_000 + b'"',
    "quotes in a string": b'"' + rb"\"" * 1_200_000 + b'"',
    "backslashes in a string": b'"' + rb"\\" * 1_200_000 + b", " * 600_000 + b'"',
    "as many as are taken": b"[" + b"1," * (MAX_TOKENS - 10) + b"1]",
}


@pytest.mark.parametrize("name", MANY)
def test_too_many_values_are_refused_before_they_are_made(name: str) -> None:
    error = refused(b'{"a":' + MANY[name] + b"}")
    assert (400, "too_many_values") == (error.status, error.code)


@pytest.mark.parametrize("name", FEW)
def test_what_stands_in_a_string_is_no_value(name: str) -> None:
    raw = b'{"a":' + FEW[name] + b"}"
    assert json.loads(raw) == decode_object(raw)


TWICE = {
    "at the top": b'{"a":1,"a":2}',
    "with the same value": b'{"a":1,"a":1}',
    "three times": b'{"a":1,"a":1,"a":1}',
    "far apart": b'{"a":1,"b":2,"c":[3],"a":4}',
    "in an object within": b'{"o":{"a":1,"a":2}}',
    "in an object of a list": b'{"l":[1,{"b":1},{"a":1,"a":2}]}',
    "250 levels down": b'{"a":' * 249 + b'{"a":1,"a":2}' + b"}" * 249,
    "in a value that is itself lost": b'{"x":{"a":1,"a":2},"x":{"a":1}}',
    "the second escaped": b'{"a":1,"\\u0061":2}',
    "both escaped, in two ways": b'{"\\u00e9":1,"\\u00E9":2}',
    "escaped and in UTF-8": b'{"\\u00e9":1,"\xc3\xa9":2}',
    "a surrogate pair and UTF-8": b'{"\\ud83d\\ude00":1,"\xf0\x9f\x98\x80":2}',
    "an escaped slash": b'{"/":1,"\\/":2}',
    "white space around the colons": b'{"a" \t\r\n: 1 , "a"\n:\n2 }',
    "an escaped quote in the key": b'{"a\\"":1,"a\\"":2}',
    "a backslash at the key's end": b'{"a\\\\":1,"a\\\\":2}',
    "a colon as the key": b'{":":1,":":2}',
    "an empty key": b'{"":1,"":2}',
    "beside numbers that are written in more characters than they came in": b'{"a":1,"a":2,"b":1e5,"c":1E2}',
    "hidden behind a value that begins with an escaped colon": b'{"a":1,"a":2,"b":"\\u003a"}',
    "hidden behind a key that begins with an escaped colon": b'{"a":1,"a":2,"\\u003a":1}',
    "hidden behind an escaped space and a colon": b'{"a":1,"a":2,"b":"\\u0020:"}',
}


@pytest.mark.parametrize("raw", TWICE.values(), ids=TWICE.keys())
def test_a_key_that_stands_twice_in_one_object_is_refused(raw: bytes) -> None:
    error = refused(raw)

    assert (400, "invalid_json", None) == (error.status, error.code, error.param)
    assert "The JSON has the same key twice in one object." == error.message


ONCE = {
    "the same key in two objects": b'{"a":{"a":1},"b":{"a":1}}',
    "keys that differ in case": b'{"a":1,"A":2}',
    "composed and decomposed letters": '{"é":1,"e\u0301":2}'.encode(),
    "a colon in a value": b'{"a":":"}',
    "a value that looks like a key": b'{"a":"a","b":"\\"a\\":"}',
    "a value that ends in an escaped quote": b'{"a":"\\"","b":"\\":"}',
    "a value that ends in a backslash": b'{"a":"\\\\","b":"\\\\\\":"}',
    "an escaped colon at the start of a value": b'{"a":"\\u003a"}',
    "an escaped colon at the start of a key": b'{"\\u003a":1}',
    "an escaped space before a colon": b'{"a":"\\u0020:"}',
    "spaces before a colon in a value": b'{"a":"   :"}',
    "white space before the colons": b'{"a" \t\r\n:":","b"\n:" :"}',
    "a key with a quote and a colon": b'{"\\":":1,"\\":\\"":2}',
    "a whole object in a string": b'{"a":"{\\"a\\":1,\\"a\\":2}"}',
}


@pytest.mark.parametrize("raw", ONCE.values(), ids=ONCE.keys())
def test_keys_that_differ_are_never_taken_for_the_same(raw: bytes) -> None:
    assert json.loads(raw) == decode_object(raw)


@given(spelled(st.dictionaries(st.text(), JSON, max_size=5) | TRICKY_OBJECTS))
def test_any_object_comes_out_as_it_went_in(pair: tuple[Any, bytes]) -> None:
    value, raw = pair

    assert value == decode_object(raw)


@given(spelled(TRICKY_OBJECTS.filter(bool)), st.data())
def test_any_key_repeated_anywhere_is_found(pair: tuple[dict[str, Any], bytes], data: st.DataObject) -> None:
    value, raw = pair
    key = data.draw(st.sampled_from(sorted(value)))
    again = json.dumps(key, ensure_ascii=data.draw(st.booleans())).encode()
    whole = raw.rstrip()[:-1] + b"," + again + b":" + data.draw(st.sampled_from([b"1", b'"\\u003a"', b"{}"])) + b"}"

    assert "twice" in refused(whole).message


@given(st.binary() | st.binary().map(lambda raw: b'{"a":' + raw + b"}"))
@example(b"\xef\xbb\xbf{}")
def test_any_bytes_give_an_object_or_a_request_error(raw: bytes) -> None:
    result = outcome(raw)

    if isinstance(result, RequestError):
        assert (400, "invalid_json") == (result.status, result.code)
    else:
        assert dict is type(result)


@given(st.text())
def test_any_text_gives_an_object_or_a_request_error(text: str) -> None:
    result = outcome(text.encode())

    if isinstance(result, RequestError):
        assert (400, "invalid_json") == (result.status, result.code)
    else:
        assert json.loads(text) == result


def test_integers_of_64_bits_stay_exact_and_longer_ones_become_floats() -> None:
    raw = b'{"a":18446744073709551615,"b":-9223372036854775808,"c":18446744073709551616}'

    assert [2**64 - 1, -(2**63), float(2**64)] == list(decode_object(raw).values())
    assert float is type(decode_object(raw)["c"])


def test_load_takes_any_value_and_refuses_the_same_depth() -> None:
    assert [1] == load(b"[1]")
    assert load(b"[" * 250 + b"]" * 250)
    with pytest.raises(ValueError, match="nested deeper than 250"):
        load(b"[" * 251 + b"]" * 251)


# {check: (what it calls the right type, the values that it takes)}; all other values of SAMPLES are refused.
SAMPLES: dict[str, Any] = {
    "null": None,
    "a boolean": True,
    "a string": "a",
    "a number": 1,
    "a float": 1.5,
    "an object": {},
    "an array": [],
}
CHECKS: dict[str, tuple[Check, str, set[str]]] = {
    "string": (check_string, "a string", {"a string"}),
    "bool": (check_bool, "a boolean", {"a boolean"}),
    "integer": (check_integer, "an integer", {"a number"}),
    "number": (check_number, "a number", {"a number", "a float"}),
    "object": (check_object, "an object", {"an object"}),
    "list": (check_list, "an array", {"an array"}),
    "string or object": (check_string_or_object, "a string or an object", {"a string", "an object"}),
    "list of strings": (list_of(check_string), "an array", {"an array"}),
    "of type": (of_type("this", bool), "this", {"a boolean"}),
}


@pytest.mark.parametrize("sample", SAMPLES)
@pytest.mark.parametrize("name", CHECKS)
def test_a_check_takes_its_own_types_and_names_the_place_of_any_other(name: str, sample: str) -> None:
    check, wanted, taken = CHECKS[name]
    if sample in taken:
        check(SAMPLES[sample], "the.place")
        return
    with pytest.raises(RequestError) as caught:
        check(SAMPLES[sample], "the.place")

    found = "a number" if sample == "a float" else sample
    assert f"'the.place' must be {wanted}, not {found}." == caught.value.message
    assert (400, "the.place", "invalid_type") == (caught.value.status, caught.value.param, caught.value.code)


def test_list_of_names_the_item_that_is_wrong() -> None:
    list_of(check_string)(["a", "b"], "stop")
    with pytest.raises(RequestError) as caught:
        list_of(check_string)(["a", 1], "stop")

    assert "stop[1]" == caught.value.param
