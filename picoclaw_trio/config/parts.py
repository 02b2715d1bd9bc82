"""Looking into JSON that may hold anything: what is not of the expected type is as if it were not there.

Editing rule: what is wrong with a value is told elsewhere, once.
"""

from __future__ import annotations

from collections.abc import Iterator
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
