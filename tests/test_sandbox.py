"""No path of a model's leads out of the workspace, whatever stands in the workspace and whoever moves it."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from picoclaw_trio.tools import Tool, ToolError
from picoclaw_trio.tools.files import file_tools
from picoclaw_trio.tools.sandbox import MAX_DEPTH, Place, Sandbox

SECRET = "the outside's secret"


@attrs.frozen
class World:
    """A workspace beside a folder with a secret that must stay as it is."""

    workspace: Path
    outside: Path
    tools: dict[str, Tool]

    async def try_all(self, path: str) -> list[str]:
        """Call every tool with *path*; gives what each said, of errors, too."""
        calls: dict[str, dict[str, Any]] = {
            "read_file": {},
            "list_dir": {},
            "write_file": {"content": "planted", "overwrite": True},
            "edit_file": {"old_text": "secret", "new_text": "planted"},
            "append_file": {"content": "planted"},
        }
        said = []
        for name, arguments in calls.items():
            try:
                with trio.fail_after(10):
                    said.append(await self.tools[name].run({"path": path, **arguments}))
            except ToolError as exc:
                said.append(f"error: {exc}")
        return said

    def check_outside(self) -> None:
        assert ["deep", "secret.txt"] == sorted(path.name for path in self.outside.iterdir())
        assert SECRET == (self.outside / "secret.txt").read_text()
        assert [] == list((self.outside / "deep").iterdir())


def make_world(folder: Path) -> World:
    workspace, outside = folder / "workspace", folder / "outside"
    (workspace / "notes").mkdir(parents=True)
    (outside / "deep").mkdir(parents=True)
    (outside / "secret.txt").write_text(SECRET)
    (workspace / "notes" / "a.txt").write_text("alpha")
    return World(workspace, outside, {tool.name: tool for tool in file_tools(workspace)})


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = make_world(tmp_path)
    yield made
    made.check_outside()


def refused(said: list[str]) -> bool:
    return all(text.startswith("error: ") for text in said) and not any(SECRET in text for text in said)


@pytest.mark.parametrize(
    "path",
    [
        "..",
        "../outside/secret.txt",
        "notes/../../outside/secret.txt",
        "notes/..",
        "./../outside/secret.txt",
        "/etc/passwd",
        "//etc/passwd",
        "/",
        "/proc/self/cwd/etc/passwd",
        "~",
        "~/secret.txt",
        "a\0b",
        "\0",
        "../outside/secret.txt\0.md",
        "x" * 5000,
        "x" * 256,
        "\u00e9" * 128,
        "a/" * 2500,
        "a/" * (MAX_DEPTH + 1),
        "notes\u202egpj.txt",
        "\u200b..",
        "notes/\u2060a.txt",
        "a\nb",
        "a\x1b[2Jb",
        "a\u2028b",
        "\udcff",
    ],
)
async def test_no_tool_takes_a_hostile_path(world: World, path: str) -> None:
    assert refused(await world.try_all(path))


async def test_absolute_path_beside_the_workspace_with_its_name_at_the_beginning_is_outside(world: World) -> None:
    assert refused(await world.try_all(f"{world.workspace}2/a.txt"))
    assert refused(await world.try_all(f"{world.workspace}/../outside/secret.txt"))


async def test_absolute_path_inside_the_workspace_is_taken(world: World) -> None:
    assert "alpha" == await world.tools["read_file"].run({"path": f"{world.workspace}/notes/a.txt"})


async def test_workspace_behind_a_link_is_a_workspace(world: World, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(world.workspace)
    read_file, *_ = file_tools(tmp_path / "link")

    assert "alpha" == await read_file.run({"path": "notes/a.txt"})
    assert "alpha" == await read_file.run({"path": f"{tmp_path}/link/notes/a.txt"})
    assert "alpha" == await read_file.run({"path": f"{world.workspace}/notes/a.txt"})


@pytest.mark.parametrize("target", ["{outside}", "../outside", "/", "/proc/self/root", ".", "notes", "missing", "link"])
@pytest.mark.parametrize("path", ["link", "link/secret.txt", "link/deep/new.txt", "link/a.txt", "link/link/a.txt"])
async def test_links_are_followed_nowhere(world: World, target: str, path: str) -> None:
    (world.workspace / "link").symlink_to(target.format(outside=world.outside))
    said = await world.try_all(path)

    assert refused(said)
    assert all("link" in text for text in said)
    assert (world.workspace / "link").is_symlink()


@pytest.mark.parametrize("target", ["{outside}/secret.txt", "a.txt"])
async def test_link_at_the_end_of_a_path_is_not_followed(world: World, target: str) -> None:
    (world.workspace / "notes" / "link.txt").symlink_to(target.format(outside=world.outside))

    assert refused(await world.try_all("notes/link.txt"))
    assert "alpha" == (world.workspace / "notes" / "a.txt").read_text()


async def test_link_is_listed_but_not_its_target(world: World) -> None:
    (world.workspace / "notes" / "link.txt").symlink_to(world.outside / "secret.txt")

    listed = await world.tools["list_dir"].run({"path": "notes"})
    assert "file    a.txt  5 bytes\nlink    link.txt" == listed


@contextmanager
def special_file(kind: str, path: Path) -> Iterator[None]:
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        try:
            os.mknod(path, 0o20666, os.makedev(1, 5))  # /dev/zero: it never ends
        except PermissionError:
            pytest.skip("only root may make devices")
    elif kind == "folder":
        path.mkdir()
    else:
        with socket.socket(socket.AF_UNIX) as bound:
            bound.bind(str(path))
            yield
        return
    yield


@pytest.mark.parametrize("kind", ["pipe", "device", "socket", "folder"])
async def test_special_files_are_refused_without_waiting(world: World, kind: str) -> None:
    path = world.workspace / "odd"
    with special_file(kind, path):
        said = await world.try_all("odd")
        below = await world.try_all("odd/below.txt")

    listed = said.pop(1)
    assert refused(said)
    assert kind == "folder" or refused([listed, *below])
    assert all(kind in text for text in said)


async def test_pipe_with_a_writer_gives_nothing(world: World) -> None:
    os.mkfifo(world.workspace / "pipe")
    fd = os.open(world.workspace / "pipe", os.O_RDWR)
    os.write(fd, SECRET.encode())
    try:
        assert refused(await world.try_all("pipe"))
    finally:
        os.close(fd)


async def test_file_with_a_second_name_is_read_but_not_changed(world: World) -> None:
    os.link(world.outside / "secret.txt", world.workspace / "hard.txt")
    read, listed, *changes = await world.try_all("hard.txt")

    assert SECRET == read
    assert refused([listed, *changes])
    assert all("several names" in text for text in changes)


async def test_errors_show_the_path_as_it_was_given(world: World) -> None:
    for path in ("missing/a.txt", "notes/a.txt/b", "/etc/passwd", "notes", "odd\ufffe"):
        for text in await world.try_all(path):
            assert str(world.workspace) not in text
            assert not text.startswith("error") or f'"{path}"' in text or "\\ufffe" in text


async def test_long_path_is_not_repeated_in_full(world: World) -> None:
    for text in await world.try_all("../" * 1300):
        assert 400 > len(text)


async def test_names_of_all_languages_are_names(world: World) -> None:
    for name in (
        "Größe.txt",
        "日本語.txt",
        "می‌خواهم.txt",
        "👩‍💻.txt",
        "a b.txt",
        "back\\slash",
        "...",
        "..a",
        "-rf",
        "* ?",
    ):
        await world.tools["write_file"].run({"path": name, "content": name})
        assert name == (world.workspace / name).read_text()


# Both names are there at every moment (RENAME_EXCHANGE), so the tools never make the missing one themselves.
SWAP = """
import ctypes, os, sys
name, outside = sys.argv[1:]
other = name + "-other"
os.symlink(outside, other)
swap = ctypes.CDLL(None).renameat2
print("ready", flush=True)
while swap(-100, name.encode(), -100, other.encode(), 2) == 0:
    pass
"""


@contextmanager
def swapping(path: Path, target: Path) -> Iterator[None]:
    """Another process swaps *path* for a link to *target* and back, as fast as it can."""
    process = subprocess.Popen([sys.executable, "-c", SWAP, path, target], stdout=subprocess.PIPE)
    assert process.stdout is not None
    try:
        assert process.stdout.readline()
        yield
        assert process.poll() is None
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


async def test_folder_that_is_swapped_for_a_link_leads_nowhere(world: World) -> None:
    (world.workspace / "notes" / "secret.txt").write_text("inner secret")
    said: list[str] = []
    with swapping(world.workspace / "notes", world.outside):
        for number in range(150):
            said += await world.try_all("notes/secret.txt")
            said += await world.try_all(f"notes/deep/{number}.txt")
            said += await world.try_all("notes")

    assert not any(SECRET in text for text in said)
    assert all("file    a.txt" in text for text in said if "folder  deep/" in text)  # what is outside has no a.txt
    assert any(text.startswith("error: ") for text in said)
    assert any(not text.startswith("error: ") for text in said)


async def test_file_that_is_swapped_for_a_link_leads_nowhere(world: World) -> None:
    (world.workspace / "notes" / "swapped.txt").write_text("inner secret")
    said: list[str] = []
    with swapping(world.workspace / "notes" / "swapped.txt", world.outside / "secret.txt"):
        for _ in range(200):
            # Writing would take the name away from the other process.
            for tool, arguments in (("read_file", {}), ("append_file", {"content": "."})):
                try:
                    said.append(await world.tools[tool].run({"path": "notes/swapped.txt", **arguments}))
                except ToolError as exc:
                    said.append(f"error: {exc}")

    assert not any(SECRET in text for text in said)


PIECES = st.sampled_from(
    ["..", ".", "", "notes", "a.txt", "out", "hard", "secret.txt", "deep", "pipe", "~", "\0", "x" * 300, "/", "new"]
)
PATHS = st.one_of(
    st.lists(PIECES | st.text(max_size=3), min_size=1, max_size=6).map("/".join),
    st.lists(PIECES, max_size=3).map(lambda names: "/{workspace}/" + "/".join(names)),
    st.lists(PIECES, max_size=3).map(lambda names: "/{outside}/" + "/".join(names)),
    st.text(max_size=30),
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(path=PATHS)
def test_no_path_reads_or_writes_anything_outside(tmp_path_factory: pytest.TempPathFactory, path: str) -> None:
    world = make_world(tmp_path_factory.mktemp("world"))
    (world.workspace / "out").symlink_to(world.outside)
    (world.workspace / "hard").mkdir()
    os.mkfifo(world.workspace / "pipe")
    for name in ("workspace", "outside"):
        path = path.replace(f"{{{name}}}", str(getattr(world, name)))
    said = trio.run(world.try_all, path)

    world.check_outside()
    assert not any(SECRET in text for text in said)
    assert ["outside", "workspace"] == sorted(entry.name for entry in world.workspace.parent.iterdir())


@given(path=st.text(max_size=40))
def test_names_of_a_place_are_plain(path: str) -> None:
    try:
        place = Sandbox(Path("/home/somebody/workspace")).place(path)
    except ToolError:
        return
    assert isinstance(place, Place)
    assert path == place.given
    assert not any(name in ("", ".", "..") or "/" in name or "\0" in name for name in place.names)
