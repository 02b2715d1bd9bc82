"""JSON values into frozen values, strictly: nothing is coerced, and all that is wrong is found in one go.

Theory: a hook returns its value or raises ``Wrong``, which holds every fault below it and its place; whoever holds
the parts puts its own key before these places. What a value must be stands in its type: ``Annotated[int, check]`` is an
int, then whatever the check makes of it.
Editing rule: a message says what was expected, never what was found. A secret may stand in the wrong place.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType, NoneType, UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import attrs
import orjson
from cattrs import Converter

T = TypeVar("T")
Place = tuple[str | int, ...]
Hook = Callable[[Any, Any], Any]
Check = Callable[[Any], Any]

COMMENT = "_comment"
FOUND = {
    dict: "an object",
    list: "a list",
    str: "a string",
    bool: "a boolean",
    int: "a number",
    float: "a decimal number",
    NoneType: "null",
}
EXPECTED = FOUND | {bool: "true or false", int: "a whole number", float: "a number"}


class Wrong(ValueError):
    """What is wrong with a value: ``((place inside it, message), ...)``, in the order of the value's parts."""

    def __init__(self, *found: tuple[Place, str]) -> None:
        super().__init__(found)
        self.found = found


def wrong(message: str) -> Wrong:
    """The value itself is wrong, all of it."""
    return Wrong(((), message))


class Tray:
    """Collects what is wrong with the parts of a value, so that one bad part does not hide the next."""

    def __init__(self) -> None:
        self.found: list[tuple[Place, str]] = []

    @contextmanager
    def at(self, *place: str | int) -> Iterator[None]:
        try:
            yield
        except Wrong as exc:
            self.found += [((*place, *inner), message) for inner, message in exc.found]

    def check(self) -> None:
        if self.found:
            raise Wrong(*self.found)


def address(place: Place, root: str = "$") -> str:
    """``("model_list", 2, "custom_headers", "X Y")`` -> ``$.model_list[2].custom_headers["X Y"]``."""
    return root + "".join(map(_step, place))


def _step(part: str | int) -> str:
    if isinstance(part, int):
        return f"[{part}]"
    return f".{part}" if re.fullmatch(r"[\w-]{1,60}", part) else f"[{quoted(part)}]"


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A question to append to a refusal: the nearest of *known*, or nothing if none is near."""
    spellings = {spelling.lower(): spelling for spelling in known}
    near = difflib.get_close_matches(name[:100].lower(), spellings, n=1)
    return f"; did you mean {quoted(spellings[near[0]])}?" if near else ""


def strict_converter(on_unknown_key: Callable[[type, str], None]) -> Converter:
    """A converter that knows JSON's own types, attrs classes, tuples, mappings, literals, optionals and checks.

    An object that lacks a key, has "" where a text has a default, or null where a list or an object has one, gets the
    default: PicoClaw writes what is not set like that. A key that begins with ``_`` is a comment.

    Args:
        on_unknown_key: called with the attrs class and the key; raises Wrong to refuse the key.
    """
    converter = Converter()
    for primitive in (bool, int, str):
        converter.register_structure_hook(primitive, _exactly(primitive))
    converter.register_structure_hook(float, _number)
    converter.register_structure_hook_factory(_has_origin(Literal), _literal_hook)
    converter.register_structure_hook_factory(_has_origin(Annotated), _checked_hook)
    converter.register_structure_hook_factory(_has_origin(Union, UnionType), _optional_hook)
    converter.register_structure_hook_factory(_has_origin(tuple), _list_hook)
    converter.register_structure_hook_factory(_has_origin(Mapping), _mapping_hook)
    converter.register_structure_hook_factory(
        attrs.has, lambda cls, converter: _object_hook(cls, converter, on_unknown_key)
    )
    return converter


def expect(kind: type[T], value: object) -> T:
    """*value*, if it is exactly of that one of JSON's types.

    Raises:
        Wrong: it is not.
    """
    if type(value) is not kind:
        raise wrong(f"expected {EXPECTED[kind]}, not {FOUND[type(value)]}")
    return value


def _exactly(kind: type) -> Hook:
    return lambda value, _: expect(kind, value)


def _number(value: object, _: object) -> float:
    number = value if type(value) is int else expect(float, value)
    if not math.isfinite(number):
        raise wrong("expected a finite number")
    return float(number)


def _has_origin(*origins: object) -> Callable[[Any], bool]:
    return lambda hint: get_origin(hint) in origins


def _literal_hook(hint: Any, _: Converter) -> Hook:
    choices = get_args(hint)

    def structure(value: object, _: object) -> str:
        if expect(str, value) not in choices:
            raise wrong(f"must be {' or '.join(map(quoted, choices))}")
        return str(value)

    return structure


def quoted(text: str) -> str:
    """*text* as JSON would have it, cut short if it is long."""
    short = text if len(text) <= 60 else text[:57] + "..."
    return orjson.dumps(short.encode("utf-8", "replace").decode()).decode()


def _checked_hook(hint: Any, converter: Converter) -> Hook:
    inner, *checks = get_args(hint)
    hook = converter.get_structure_hook(inner)

    def structure(value: object, _: object) -> Any:
        checked = hook(value, inner)
        for check in checks:
            checked = check(checked)
        return checked

    return structure


def _optional_hook(hint: Any, converter: Converter) -> Hook:
    inner = _without_none(hint)
    hook = converter.get_structure_hook(inner)
    return lambda value, _: None if value is None else hook(value, inner)


def _without_none(hint: Any) -> Any:
    (inner,) = (kind for kind in get_args(hint) if kind is not NoneType)
    return inner


def _list_hook(hint: Any, converter: Converter) -> Hook:
    inner = get_args(hint)[0]
    hook = converter.get_structure_hook(inner)

    def structure(value: object, _: object) -> tuple[Any, ...]:
        tray, items = Tray(), []
        for index, item in enumerate(expect(list, value)):
            with tray.at(index):
                items.append(hook(item, inner))
        tray.check()
        return tuple(items)

    return structure


def _mapping_hook(hint: Any, converter: Converter) -> Hook:
    kinds = get_args(hint)
    key_hook, value_hook = (converter.get_structure_hook(kind) for kind in kinds)

    def structure(value: object, _: object) -> Mapping[Any, Any]:
        tray, items = Tray(), {}
        for key, item in expect(dict, value).items():
            if key != COMMENT:
                with tray.at(key):
                    items[key_hook(key, kinds[0])] = value_hook(item, kinds[1])
        tray.check()
        return MappingProxyType(items)

    return structure


def _object_hook(cls: type, converter: Converter, on_unknown_key: Callable[[type, str], None]) -> Hook:
    hints = get_type_hints(cls, include_extras=True)
    required = [field.name for field in attrs.fields(cls) if field.default is attrs.NOTHING]
    hooks = {name: converter.get_structure_hook(hints[name]) for name in attrs.fields_dict(cls)}
    blanks = {name: () if name in required else _blanks(hints[name]) for name in hooks}

    def structure(value: object, _: object) -> Any:
        tray, parts = Tray(), {}
        given = expect(dict, value)
        for key, item in given.items():
            if key.startswith("_") or item in blanks.get(key, ()):
                continue
            with tray.at(key):
                if key not in hooks:
                    on_unknown_key(cls, key)
                else:
                    parts[key] = hooks[key](item, hints[key])
        tray.found += [((name,), "is missing") for name in required if name not in given]
        tray.check()
        return cls(**parts)

    return structure


def _blanks(hint: Any) -> tuple[str | None, ...]:
    """What of JSON stands for "not given" where a value of type *hint* has a default."""
    if get_origin(hint) is Annotated:
        return _blanks(get_args(hint)[0])
    if get_origin(hint) in (Union, UnionType):
        return (None, *_blanks(_without_none(hint)))
    if attrs.has(hint) or get_origin(hint) in (tuple, Mapping):
        return (None,)
    return () if hint in (bool, int, float, Any) else ("",)
