"""The table of rooms in the README and the imports of the code say the same."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import attrs
import pytest

PACKAGE = Path(__file__).parent.parent / "picoclaw_trio"
README = PACKAGE.parent / "README.md"
ROW = re.compile(r"^\| (\d) \| `(\w+)` \| [^|]+ \|([^|]*)\|$", re.MULTILINE)
MAX_LINES = 300
# The lobby has no row: it names the version and the application, and starts the mends.
LOBBY = {"__init__", "__main__", "_version"}
FORBIDDEN_BELOW = {"trio", "quart", "quart_trio", "hypercorn", "h11", "socket", "ssl", "httpx2", "httpcore2"}
# The configuration's file is read without Trio, the workers' folder made, and their numbers written there.
MAY_TOUCH_FILES = {"config", "shared_numbers", "worker_folder"}


@attrs.frozen
class Row:
    layer: int
    allowed: frozenset[str]


def read_table() -> dict[str, Row]:
    found = {name: (int(layer), allowed) for layer, name, allowed in ROW.findall(README.read_text())}
    layers = {name: layer for name, (layer, _) in found.items()}
    return {name: Row(layer, frozenset(_allowed(words, layers))) for name, (layer, words) in found.items()}


def _allowed(words: str, layers: dict[str, int]) -> Iterator[str]:
    for word in filter(None, (word.strip() for word in words.split(","))):
        if word == "everything":
            yield from layers
            yield "_version"
        elif word.startswith("layers"):
            low, high = map(int, re.findall(r"\d", word))
            yield from (name for name, layer in layers.items() if low <= layer <= high)
        else:
            yield word


TABLE = read_table()


def files() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def room_of(path: Path) -> str:
    first = path.relative_to(PACKAGE).parts[0]
    return first.removesuffix(".py")


def imports_of(path: Path) -> Iterator[tuple[str, bool]]:
    """Each imported name with whether it is one of our rooms. What only the type checker imports does not count."""
    package = path.relative_to(PACKAGE).parts[:-1]
    for node in _nodes(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((alias.name.partition(".")[0], False) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level:
            base = (*package[: len(package) - node.level + 1], *filter(None, [node.module]))
            yield from ((name.partition(".")[0], True) for name in (base[:1] or [alias.name for alias in node.names]))
        elif isinstance(node, ast.ImportFrom):
            yield (node.module or "").partition(".")[0], False


def _nodes(tree: ast.AST) -> Iterator[ast.AST]:
    for node in ast.iter_child_nodes(tree):
        is_for_types = isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING"
        if not is_for_types:
            yield node
            yield from _nodes(node)


def test_every_room_has_a_row_and_every_row_a_room() -> None:
    assert {room_of(path) for path in files()} - LOBBY == set(TABLE)


@pytest.mark.parametrize("path", files(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_room_imports_only_what_its_row_names(path: Path) -> None:
    room = room_of(path)
    if room in LOBBY:
        return
    ours = {name for name, is_ours in imports_of(path) if is_ours} - {room}
    assert set() == ours - TABLE[room].allowed


@pytest.mark.parametrize("room", TABLE)
def test_row_names_no_room_that_is_not_imported(room: str) -> None:
    row = TABLE[room]
    if room == "cli":
        return  # its row names them all
    used = {name for path in files() if room_of(path) == room for name, is_ours in imports_of(path) if is_ours}
    assert set() == row.allowed - used


def test_no_room_reaches_up() -> None:
    """Within the same layer a room may use another, upwards none may."""
    layers = {name: row.layer for name, row in TABLE.items()}
    wrong = [
        (room, name) for room, row in TABLE.items() for name in row.allowed & layers.keys() if layers[name] > row.layer
    ]
    assert [] == wrong


def test_imports_have_no_circle() -> None:
    def walk(room: str, path: tuple[str, ...]) -> None:
        assert room not in path, " -> ".join((*path, room))
        for path_of_room in files():
            if room_of(path_of_room) == room:
                names = {name for name, is_ours in imports_of(path_of_room) if is_ours and name in TABLE}
                for name in names - {room}:
                    if name not in seen:
                        walk(name, (*path, room))
        seen.add(room)

    seen: set[str] = set()
    walk("cli", ())


@pytest.mark.parametrize(
    "path", [path for path in files() if room_of(path) in TABLE and TABLE[room_of(path)].layer <= 1], ids=str
)
def test_words_and_rules_wait_for_nothing(path: Path) -> None:
    tree = ast.parse(path.read_text())
    asynchronous = [node.lineno for node in ast.walk(tree) if isinstance(node, ast.AsyncFunctionDef | ast.Await)]
    imported = {name for name, is_ours in imports_of(path) if not is_ours}

    assert [] == asynchronous
    assert set() == imported & FORBIDDEN_BELOW
    assert room_of(path) in MAY_TOUCH_FILES or set() == imported & {"os", "pathlib", "time"}


@pytest.mark.parametrize("path", files(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_room_can_be_read_in_one_sitting(path: Path) -> None:
    assert MAX_LINES >= len(path.read_text().splitlines())
