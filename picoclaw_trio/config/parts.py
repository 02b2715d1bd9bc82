"""Looking into JSON that may hold anything: what is not of the expected type is as if it were not there.

Editing rule: what is wrong with a value is told elsewhere, once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from json import JSONDecoder
from typing import Any

from .strict import Place


def entries(json: Any) -> Iterator[tuple[Place, dict[str, Any]]]:
    """Each object of ``model_list``, and its place."""
    return ((place, entry) for place, entry in each(("model_list",), json.get("model_list")) if type(entry) is dict)


def each(place: Place, items: Any) -> Iterator[tuple[Place, Any]]:
    """Each item of a list that stands at *place*, and its own."""
    return (((*place, index), item) for index, item in enumerate(list_of(items)))


def dict_of(value: Any) -> dict[str, Any]:
    return value if type(value) is dict else {}


def list_of(value: Any) -> list[Any]:
    return value if type(value) is list else []


def text_of(entry: dict[str, Any], key: str) -> str:
    value = entry.get(key)
    return value if type(value) is str else ""


def references(json: Any) -> Iterator[tuple[Place, Any]]:
    """Whatever is to name an alias, and its place."""
    for place, entry in entries(json):
        yield from each((*place, "fallbacks"), entry.get("fallbacks"))
    agents = dict_of(json.get("agents"))
    defaults = dict_of(agents.get("defaults"))
    key = "model_name" if defaults.get("model_name") else "model"
    yield ("agents", "defaults", key), defaults.get(key)
    yield from each(("agents", "defaults", "model_fallbacks"), defaults.get("model_fallbacks"))
    for place, agent in each(("agents", "list"), agents.get("list")):
        model = dict_of(agent).get("model")
        yield (*place, "model"), model
        yield (*place, "model", "primary"), dict_of(model).get("primary")
        yield from each((*place, "model", "fallbacks"), dict_of(model).get("fallbacks"))


def doubled_keys(text: str) -> list[Place]:
    """The place of each key of a JSON text that stands twice in its object; one that begins with ``_`` may.

    orjson keeps the last of two equal keys and says nothing, so all keys are read a second time.

    Args:
        text: nested less deeply than Python's own reader bears.
    """
    doubled: dict[int, list[str]] = {}  # {id of an object: its keys}; all objects live until they have been looked for
    objects = []

    def note(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        value = dict(pairs)
        if len(value) != len(pairs):
            counts = Counter(key for key, _ in pairs)
            doubled[id(value)] = [key for key, count in counts.items() if count > 1 and not key.startswith("_")]
            objects.append(value)
        return value

    json = JSONDecoder(object_pairs_hook=note).decode(text)
    return [(*place, key) for place, value in _walk(json) for key in doubled.get(id(value), ())] if doubled else []


def is_deeper(json: Any, levels: int) -> bool:
    """Whether there are more objects and lists within each other than so many."""
    inner = [json]
    for _ in range(levels):
        items = [item for outer in inner for item in (outer.values() if isinstance(outer, dict) else outer)]
        inner = [item for item in items if isinstance(item, dict | list)]
    return bool(inner)


def _walk(json: Any) -> Iterator[tuple[Place, Any]]:
    """Every object and list in *json*, and its place; those around others first."""
    waiting: list[tuple[Place, Any]] = [((), json)]
    while waiting:
        place, value = waiting.pop()
        if isinstance(value, dict | list):
            yield place, value
            items = value.items() if isinstance(value, dict) else enumerate(value)
            waiting += [((*place, key), item) for key, item in items]
