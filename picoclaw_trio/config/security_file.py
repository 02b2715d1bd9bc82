"""PicoClaw's ``.security.yml``: the keys of ``model_list`` where they stand beside the configuration, not in it.

Theory: as with variables, what stands there takes the place of the file's value before anything is judged, so that the
same checks hold for both. YAML is read without its types: a key of digits stays the text that was written.
Editing rule: no message repeats what stands in the file, but for the names of models.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..errors import Problem
from .sources import read_text
from .strict import Place, Tray, address, expect, wrong

SECURITY_FILE = ".security.yml"
ROOT = f"{SECURITY_FILE}: $"
MODELS, KEYS = "model_list", "api_keys"
MAX_SECURITY_BYTES = 1024 * 1024
# YAML's ways to write nothing.
NOTHING = ("", "~", "null", "Null", "NULL")


def security_path(path: Path) -> Path:
    """Where the keys to the configuration at *path* may stand."""
    return path.with_name(SECURITY_FILE)


def apply_security_file(json: dict[str, Any], path: Path) -> tuple[dict[Place, str], tuple[Problem, ...]]:
    """Put the ``api_keys`` of the security file, if there is one, in the place of those of ``model_list``.

    Its ``model_list`` has an object for a ``model_name``, or for ``model_name:N``, the entry number N, from 0, of those
    that bear the name; the latter counts where there are both. Other parts and other names are passed over.

    Args:
        path: of the configuration.

    Returns:
        {place: where its value came from}, and what is wrong with the file.
    """
    origins: dict[Place, str] = {}
    tray = Tray()
    with tray.at():
        given = _read_keys(security_path(path), tray)
        for index, entry, names in _targets(json):
            if name := next(filter(given.__contains__, names), None):
                entry["api_keys"] = given[name]
                entry.pop("api_key", None)
                origins["model_list", index, "api_keys"] = address((MODELS, name, KEYS), ROOT)
    return origins, tuple(Problem(address(place, ROOT), message) for place, message in tray.found)


def _targets(json: dict[str, Any]) -> Iterator[tuple[int, dict[str, Any], tuple[str, str]]]:
    """Each entry of ``model_list`` that has a name: its index, itself, and the names of its keys."""
    entries = json.get(MODELS)
    seen = Counter[str]()
    for index, entry in enumerate(entries if type(entries) is list else ()):
        if type(entry) is dict and type(name := entry.get("model_name")) is str:
            yield index, entry, (f"{name}:{seen[name]}", name)
            seen[name] += 1


def _read_keys(path: Path, tray: Tray) -> dict[str, Any]:
    """{name: keys, where any are given}; what is wrong with single names goes to *tray*.

    Raises:
        Wrong: the file is there and cannot be understood.
    """
    try:
        text = read_text(path, MAX_SECURITY_BYTES)
    except FileNotFoundError:
        return {}
    models, keys = _given(_read_yaml(text).get(MODELS)) or {}, {}
    with tray.at(MODELS):
        expect(dict, models)
    for name, entry in models.items() if type(models) is dict else ():
        with tray.at(MODELS, name):
            keys[name] = _given(expect(dict, _given(entry) or {}).get(KEYS))
    return {name: value for name, value in keys.items() if value}


def _read_yaml(text: str) -> dict[str, Any]:
    from ..plain_yaml import NotYamlError, read_yaml  # here, for most starts need none

    try:
        document = read_yaml(text)
    except NotYamlError as exc:
        raise wrong(f"is not YAML{'' if exc.line is None else f', first in line {exc.line + 1}'}") from None
    return expect(dict, _given(document) or {})


def _given(value: Any) -> Any:
    return None if value in NOTHING else value
