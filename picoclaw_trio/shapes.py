"""Strict JSON: bytes to plain values, and checks of the values' types that name the place where they fail.

Theory: what two readers of the same bytes could understand in two ways is refused, since we are one of two readers
and the upstream is the other. A check returns None or raises; it never converts.
Editing rule: nothing here knows a field of the OpenAI API.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import orjson

from .errors import RequestError

Json = Any  # what orjson gives: dict, list, str, int, float, bool or None
Check = Callable[[Json, str], None]

# orjson writes 254 levels. The other four are for what is put around a value on its way.
MAX_DEPTH = 250
# Strings, commas and brackets of one text: some 70,000 short messages. Each costs up to a hundred bytes of memory and a
# microsecond, where a byte of a long string costs next to nothing.
MAX_TOKENS = 500_000


def load(raw: bytes) -> Json:
    """The value of a JSON text (RFC 8259) that is nested no deeper than 250, so that it can be written again.

    Raises:
        ValueError: what is wrong and, where it is not the depth, at which line and column.
    """
    value = orjson.loads(raw)
    if raw.count(b"[") + raw.count(b"{") > MAX_DEPTH:
        try:
            orjson.dumps([[[[value]]]])
        except TypeError as exc:
            raise ValueError(f"nested deeper than {MAX_DEPTH}") from exc
    return value


def decode_object(raw: bytes) -> dict[str, Json]:
    """Strict JSON whose top is an object, with no key twice in one object and no nesting beyond 250.

    Raises:
        RequestError: status 400, with the line and column where the JSON broke, or because it has too many values.
    """
    if _has_too_many(raw):
        raise RequestError(f"The request body has more than {MAX_TOKENS:,} values.", code="too_many_values")
    try:
        value = load(raw)
    except ValueError as exc:
        raise RequestError(f"The request body is not valid JSON: {exc}.", code="invalid_json") from exc
    if type(value) is not dict:
        raise RequestError("The request body must be a JSON object.", code="invalid_json")
    # What orjson writes has no key twice, and the official clients write as it does: to write is quicker than to read.
    if orjson.dumps(value) != raw:
        PAIRS.decode(raw.decode())
    return value


def _has_too_many(raw: bytes) -> bool:
    """Whether *raw* has more than ``MAX_TOKENS``, if it is JSON. They are told from text only where there may be."""
    if _count(raw) <= MAX_TOKENS:
        return False
    pieces = raw.replace(rb"\\", b"").replace(rb"\"", b"").split(b'"', 2 * MAX_TOKENS)
    return len(pieces) // 2 + _count(b"".join(pieces[::2])) > MAX_TOKENS


def _count(raw: bytes) -> int:
    return raw.count(b'"') // 2 + raw.count(b",") + raw.count(b"[") + raw.count(b"{")


def _check_keys(pairs: list[tuple[str, None]]) -> None:
    if len(dict(pairs)) != len(pairs):
        raise RequestError("The JSON has the same key twice in one object.", code="invalid_json")


# orjson keeps the last of two equal keys and says nothing, so all keys must be read a second time.
PAIRS = json.JSONDecoder(object_pairs_hook=_check_keys)


def wrong_type(param: str, wanted: str, value: Json) -> RequestError:
    found = {bool: "a boolean", str: "a string", dict: "an object", list: "an array", type(None): "null"}
    return RequestError(f"'{param}' must be {wanted}, not {found.get(type(value), 'a number')}.", param, "invalid_type")


def of_type(wanted: str, *types: type) -> Check:
    def check(value: Json, param: str) -> None:
        if type(value) not in types:
            raise wrong_type(param, wanted, value)

    return check


check_string = of_type("a string", str)
check_bool = of_type("a boolean", bool)
check_integer = of_type("an integer", int)
check_number = of_type("a number", int, float)
check_object = of_type("an object", dict)
check_list = of_type("an array", list)
check_string_or_object = of_type("a string or an object", str, dict)


def list_of(check_item: Check) -> Check:
    def check(value: Json, param: str) -> None:
        check_list(value, param)
        for index, item in enumerate(value):
            check_item(item, f"{param}[{index}]")

    return check


def check_typed_object(value: Json, param: str) -> None:
    """An object with a ``type``, such as a tool or a response format."""
    check_object(value, param)
    check_string(value.get("type"), f"{param}.type")
