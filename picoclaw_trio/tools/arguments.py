"""What a model gave as arguments of a call, held against the declaration that its JSON Schema is made of.

Theory: a tool declares its arguments as a frozen class whose fields come from the functions below. ``make_tool`` writes
the declaration down for the model and checks each call against it, so the two cannot differ. A model's arguments are
untrusted: nothing is converted, nothing is passed over, and what is wrong is told with the argument's name. A null in
the place of an optional argument means that it was not given, since some models must write every argument.
Editing rule: a new kind of argument is one function and one row of ``_TYPES``.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeVar

import attrs

from ..shapes import Json
from .values import Tool, ToolError

A = TypeVar("A")
_SCHEMA = "schema"
# {type of JSON Schema: (as it is told, the types that a value may have)}; a boolean is no number
_TYPES: Mapping[str, tuple[str, tuple[type, ...]]] = {
    "string": ("a string", (str,)),
    "integer": ("a whole number", (int,)),
    "number": ("a number", (int, float)),
    "boolean": ("true or false", (bool,)),
    "array": ("a list of strings", (list, tuple)),
}


def quoted(text: str, max_chars: int = 120) -> str:
    """*text* in quotes on one line, cut where it is long: for words that show what somebody else wrote."""
    return json.dumps(text if len(text) <= max_chars else text[:max_chars] + "…", ensure_ascii=not text.isprintable())


def _argument(default: Any, **schema: Json) -> Any:
    given = {key: value for key, value in schema.items() if value is not None}
    return attrs.field(default=default, metadata={_SCHEMA: given}, kw_only=True)


def text(description: str, *, max_chars: int, min_chars: int = 0, default: Any = attrs.NOTHING) -> Any:
    limits = {"minLength": min_chars or None, "maxLength": max_chars}
    return _argument(default, type="string", description=description, **limits)


def one_of(description: str, *values: str, default: Any = attrs.NOTHING) -> Any:
    return _argument(default, type="string", description=description, enum=list(values))


def whole_number(description: str, *, minimum: int, maximum: int, default: Any = attrs.NOTHING) -> Any:
    return _argument(default, type="integer", description=description, minimum=minimum, maximum=maximum)


def number(description: str, *, minimum: float, maximum: float, default: Any = attrs.NOTHING) -> Any:
    return _argument(default, type="number", description=description, minimum=minimum, maximum=maximum)


def flag(description: str, *, default: Any = attrs.NOTHING) -> Any:
    return _argument(default, type="boolean", description=description)


def texts(description: str, *, max_items: int, max_chars: int, default: Any = attrs.NOTHING) -> Any:
    """A list of strings; the field's value is a tuple."""
    items = {"type": "string", "maxLength": max_chars}
    return _argument(default, type="array", description=description, items=items, maxItems=max_items)


def make_tool(name: str, description: str, arguments: type[A], run: Callable[[A], Awaitable[str]]) -> Tool:
    """A tool whose calls reach *run* only with arguments that fit their declaration, the class *arguments*."""

    async def run_checked(given: Mapping[str, Json]) -> str:
        return await run(read_arguments(arguments, given))

    return Tool(name, description, schema_of(arguments), run_checked)


def schema_of(arguments: type) -> dict[str, Json]:
    """The JSON Schema of a declaration."""
    fields = attrs.fields_dict(arguments)
    return {
        "type": "object",
        "properties": {name: dict(field.metadata[_SCHEMA]) for name, field in fields.items()},
        "required": [name for name, field in fields.items() if field.default is attrs.NOTHING],
        "additionalProperties": False,
    }


def read_arguments(arguments: type[A], given: Mapping[str, Json]) -> A:
    """The arguments of one call.

    Raises:
        ToolError: one is unknown, missing, of the wrong type or out of its bounds; the text names it.
    """
    schema = schema_of(arguments)
    properties, required = schema["properties"], schema["required"]
    for name in given:
        if name not in properties:
            raise ToolError(f"there is no argument {quoted(name)}; there are: {', '.join(properties)}")
    values = {name: value for name, value in given.items() if value is not None or name in required}
    for name in required:
        if name not in values:
            raise ToolError(f"the argument {quoted(name)} is missing")
    for name, value in values.items():
        _check(value, properties[name], name)
    return arguments(**{name: tuple(value) if type(value) is list else value for name, value in values.items()})


def _check(value: Json, schema: Mapping[str, Json], name: str) -> None:
    wanted, types = _TYPES[schema["type"]]
    if type(value) not in types:
        raise ToolError(f"the argument {quoted(name)} must be {wanted}, not {_told(value)}")
    if isinstance(value, str):
        _check_text(value, schema, name)
    elif isinstance(value, list | tuple):
        _check_size(len(value), 0, schema["maxItems"], name, "items")
        for index, item in enumerate(value):
            _check(item, schema["items"], f"{name}[{index}]")
    elif type(value) is not bool and not schema["minimum"] <= value <= schema["maximum"]:
        raise ToolError(
            f"the argument {quoted(name)} must be between {schema['minimum']} and {schema['maximum']}, not {value}"
        )


def _check_text(value: str, schema: Mapping[str, Json], name: str) -> None:
    if "enum" in schema and value not in schema["enum"]:
        raise ToolError(f"the argument {quoted(name)} must be one of: {', '.join(schema['enum'])}; not {quoted(value)}")
    _check_size(len(value), schema.get("minLength", 0), schema.get("maxLength", len(value)), name, "characters")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ToolError(f"the argument {quoted(name)} holds half of a character (a lone surrogate)") from None


def _check_size(size: int, minimum: int, maximum: int, name: str, unit: str) -> None:
    if size < minimum:
        raise ToolError(f"the argument {quoted(name)} must not be empty")
    if size > maximum:
        raise ToolError(f"the argument {quoted(name)} has {size} {unit}; at most {maximum} are possible")


def _told(value: Json) -> str:
    names = {bool: "a boolean", str: "a string", dict: "an object", list: "a list", type(None): "null"}
    return names.get(type(value), "a number")
