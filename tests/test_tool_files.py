"""The tools for files: windows, edits, whole writes, and what a cancellation or a full disk leaves."""

from __future__ import annotations

import errno
import os
import re
import resource
import signal
import stat
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from picoclaw_trio.tools import Tool, ToolError
from picoclaw_trio.tools.files import file_tools
from picoclaw_trio.tools.reading import MAX_SHOWN_NAMES, WINDOW_BYTES
from picoclaw_trio.tools.writing import MAX_FILE_BYTES

NAMES = ("read_file", "list_dir", "write_file", "edit_file", "append_file")


@attrs.frozen
class Hands:
    """The tools of one workspace, called by name."""

    workspace: Path
    tools: Mapping[str, Tool]

    async def __call__(self, tool: str, path: str, **arguments: Any) -> str:
        return await self.tools[tool].run({"path": path, **arguments})

    async def error(self, tool: str, path: str, **arguments: Any) -> str:
        with pytest.raises(ToolError) as caught:
            await self(tool, path, **arguments)
        return str(caught.value)

    def left_over(self) -> list[str]:
        return [path.name for path in self.workspace.rglob("*.tmp")]


def hands_on(workspace: Path) -> Hands:
    return Hands(workspace, {tool.name: tool for tool in file_tools(workspace)})


@pytest.fixture
async def hands(tmp_path: Path) -> AsyncIterator[Hands]:
    made = hands_on(tmp_path / "workspace")
    made.workspace.mkdir(mode=0o700)
    yield made
    assert [] == made.left_over()


def test_there_are_five_tools(tmp_path: Path) -> None:
    tools = file_tools(tmp_path)

    assert NAMES == tuple(tool.name for tool in tools)
    for tool in tools:
        assert "object" == tool.parameters["type"]
        assert tool.parameters["additionalProperties"] is False
        assert tool.description


@given(
    st.dictionaries(
        st.sampled_from(["path", "content", "overwrite", "offset", "limit", "unit", "old_text", "new_text", "x"]),
        st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.lists(st.text()),
    )
)
@settings(max_examples=100, deadline=None)
def test_any_arguments_give_text_or_a_tool_error(
    tmp_path_factory: pytest.TempPathFactory, arguments: dict[str, Any]
) -> None:
    async def call_all() -> None:
        for tool in file_tools(workspace):
            with suppress(ToolError):
                assert isinstance(await tool.run(arguments), str)

    workspace = tmp_path_factory.mktemp("workspace")
    trio.run(call_all)


# Reading


async def test_small_file_is_given_as_it_is(hands: Hands) -> None:
    (hands.workspace / "a.txt").write_text("line 1\r\nline 2: ü\n")

    assert "line 1\r\nline 2: ü\n" == await hands("read_file", "a.txt")
    assert "line 1\r\nline 2: ü\n" == await hands("read_file", "a.txt", unit="lines")


async def test_empty_file_is_told_to_be_empty(hands: Hands) -> None:
    (hands.workspace / "a.txt").touch()

    assert "[the file is empty]" == await hands("read_file", "a.txt")
    assert "[the file is empty]" == await hands("read_file", "a.txt", unit="lines")


async def test_window_of_bytes_tells_what_is_left_and_how_to_get_it(hands: Hands) -> None:
    (hands.workspace / "a.txt").write_text("0123456789")

    assert "[bytes 0 to 4 of 10; 6 are left: go on with offset 4]\n0123" == await hands("read_file", "a.txt", limit=4)
    assert "[bytes 4 to 10 of 10: its end]\n456789" == await hands("read_file", "a.txt", offset=4)
    assert '"a.txt": offset 10 is not before its end; it has 10 bytes' == await hands.error(
        "read_file", "a.txt", offset=10
    )


async def test_window_of_lines_tells_what_is_left_and_how_to_get_it(hands: Hands) -> None:
    (hands.workspace / "a.txt").write_text("a\nb\nc\nd")

    first = await hands("read_file", "a.txt", unit="lines", limit=2)
    last = await hands("read_file", "a.txt", unit="lines", offset=2)
    assert "[lines 1 to 2; 3 bytes are left: go on with offset 2]\na\nb\n" == first
    assert "[lines 3 to 4: its end]\nc\nd" == last
    assert "it has 4 lines" in await hands.error("read_file", "a.txt", unit="lines", offset=4)


@pytest.mark.parametrize(
    ("text", "unit", "counted"),
    [
        ("a\nb\nc\n", "lines", "3 lines"),
        ("a\nb\nc", "lines", "3 lines"),
        ("", "lines", "0 lines"),
        ("\n", "lines", "1 lines"),
        ("a\nb\nc\n", "bytes", "6 bytes"),
        ("", "bytes", "0 bytes"),
    ],
)
async def test_nothing_is_at_or_behind_the_end(hands: Hands, text: str, unit: str, counted: str) -> None:
    (hands.workspace / "a.txt").write_text(text)

    for offset in (int(counted.split()[0]) or 1, 100, 2**31, 2**62):
        told = await hands.error("read_file", "a.txt", unit=unit, offset=offset)
        assert f'"a.txt": offset {offset} is not before its end; it has {counted}' == told


async def test_big_file_is_read_in_windows(hands: Hands) -> None:
    lines = [f"line {number} {'.' * (number % 90)}\n" for number in range(5000)]
    (hands.workspace / "a.txt").write_text("".join(lines))
    for unit in ("bytes", "lines"):
        read, offset = "", 0
        while True:
            head, _, window = (await hands("read_file", "a.txt", unit=unit, offset=offset)).partition("\n")
            read += window
            assert WINDOW_BYTES >= len(window.encode())
            if head.endswith("its end]"):
                break
            match = re.search(r"offset (\d+)\]$", head)
            assert match is not None
            offset = int(match.group(1))
        assert "".join(lines) == read


async def test_line_that_is_longer_than_a_window_goes_on_in_bytes(hands: Hands) -> None:
    (hands.workspace / "a.txt").write_text("short\n" + "x" * 100_000)

    said = await hands("read_file", "a.txt", unit="lines", offset=1)
    end = 6 + WINDOW_BYTES
    expected = f"[lines 2 to 2, cut; {100_006 - end} bytes are left: go on with unit 'bytes', offset {end}]\n"
    assert expected + "x" * WINDOW_BYTES == said


@given(content=st.text(alphabet="aé€😀\n", min_size=1, max_size=60), limit=st.integers(1, 12))
@settings(max_examples=100, deadline=None)
def test_windows_never_cut_a_character(tmp_path_factory: pytest.TempPathFactory, content: str, limit: int) -> None:
    async def read_all() -> str:
        read, offset = "", 0
        size = len(content.encode())
        while offset < size:
            said = await hands("read_file", "a.txt", offset=offset, limit=limit)
            window = said if (limit >= size and offset == 0) else said.partition("\n")[2]
            read += window
            offset += len(window.encode())
        return read

    hands = hands_on(tmp_path_factory.mktemp("workspace"))
    (hands.workspace / "a.txt").write_bytes(content.encode())
    limit = max(limit, 4)
    assert content == trio.run(read_all)


async def test_bytes_that_are_no_text_are_told(hands: Hands) -> None:
    (hands.workspace / "latin.txt").write_bytes("Größe\n".encode("latin-1"))
    (hands.workspace / "picture.png").write_bytes(b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR")

    assert "[bytes that are no UTF-8 are shown as \ufffd]\nGr\ufffd\ufffde\n" == await hands("read_file", "latin.txt")
    assert '"picture.png": it is binary, 16 bytes; only text can be read' == await hands.error(
        "read_file", "picture.png"
    )


async def test_huge_file_costs_a_window(hands: Hands) -> None:
    (hands.workspace / "huge.txt").write_bytes(b"begin\n")
    os.truncate(hands.workspace / "huge.txt", 1 << 40)

    assert "go on with offset 6]\nbegin\n" in await hands("read_file", "huge.txt", limit=6)
    assert "too far" in await hands.error("read_file", "huge.txt", unit="lines", offset=3)


# Listing


async def test_folder_is_listed_by_name_with_kinds_and_sizes(hands: Hands) -> None:
    (hands.workspace / "b.txt").write_text("12345")
    (hands.workspace / "a").mkdir()
    os.mkfifo(hands.workspace / "pipe")
    (hands.workspace / "line\nbreak").touch()

    expected = ["folder  a/", "file    b.txt  5 bytes", "file    line\\nbreak  0 bytes", "special pipe"]
    assert expected == (await hands("list_dir", ".")).split("\n")
    assert expected == (await hands.tools["list_dir"].run({})).split("\n")
    assert "[the folder is empty]" == await hands("list_dir", "a")


async def test_long_listing_is_told_in_parts(hands: Hands) -> None:
    for index in range(MAX_SHOWN_NAMES + 3):
        (hands.workspace / f"{index:04}").touch()

    head, *first = (await hands("list_dir", "")).split("\n")
    rest = await hands("list_dir", ".", offset=MAX_SHOWN_NAMES)
    assert "[entries 1 to 500 of 503; go on with offset 500]" == head
    assert MAX_SHOWN_NAMES == len(first)
    assert "[entries 501 to 503 of 503]\nfile    0500  0 bytes" == "\n".join(rest.split("\n")[:2])
    assert "it has 503 entries" in await hands.error("list_dir", ".", offset=503)


# Writing


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


async def test_new_file_and_its_folders_are_their_owners_alone(hands: Hands) -> None:
    assert 'Wrote "a/b/c.txt": 4 bytes.' == await hands("write_file", "a/b/c.txt", content="é\r\n")

    assert "é\r\n".encode() == (hands.workspace / "a/b/c.txt").read_bytes()
    assert 0o600 == mode_of(hands.workspace / "a/b/c.txt")
    assert [0o700, 0o700] == [mode_of(hands.workspace / "a"), mode_of(hands.workspace / "a/b")]


async def test_first_file_makes_the_workspace(tmp_path: Path) -> None:
    hands = hands_on(tmp_path / "home" / "workspace")

    assert "[the folder is empty]" == await hands("list_dir", ".")
    assert "there is no such file or folder" in await hands.error("list_dir", "a")
    assert not hands.workspace.parent.exists()
    await hands("write_file", "a.txt", content="a")
    assert "file    a.txt  1 bytes" == await hands("list_dir", ".")


async def test_workspace_that_is_a_link_to_nowhere_is_told(tmp_path: Path) -> None:
    hands = hands_on(tmp_path / "workspace")
    hands.workspace.symlink_to(tmp_path / "nowhere")

    assert "there is no such file or folder" in await hands.error("list_dir", ".")


async def test_existing_file_is_replaced_only_on_demand(hands: Hands) -> None:
    path = hands.workspace / "run.sh"
    path.write_text("old")
    path.chmod(0o4755)

    expected = '"run.sh": it exists already, 3 bytes; to replace it say overwrite: true'
    assert expected == await hands.error("write_file", "run.sh", content="new")
    assert "old" == path.read_text()
    assert 'Replaced "run.sh": 3 bytes.' == await hands("write_file", "run.sh", content="new", overwrite=True)
    assert "new" == path.read_text()
    assert 0o755 == mode_of(path)


async def test_reader_of_a_replaced_file_keeps_the_old_one(hands: Hands) -> None:
    await hands("write_file", "a.txt", content="old")
    async with await trio.open_file(hands.workspace / "a.txt") as file:
        await hands("write_file", "a.txt", content="new", overwrite=True)
        await hands("edit_file", "a.txt", old_text="n", new_text="N")
        assert "old" == await file.read()
    assert "New" == await hands("read_file", "a.txt")


async def test_too_much_is_refused(hands: Hands) -> None:
    big = "x" * (MAX_FILE_BYTES - 1)
    await hands("write_file", "a.txt", content=big)

    assert "at most" in await hands.error("append_file", "a.txt", content="yy")
    assert "at most" in await hands.error("write_file", "b.txt", content="é" * MAX_FILE_BYTES)
    assert "at most" in await hands.error("write_file", "b.txt", content=big + "yy")
    assert MAX_FILE_BYTES - 1 == (hands.workspace / "a.txt").stat().st_size
    assert not (hands.workspace / "b.txt").exists()


@pytest.mark.parametrize(
    ("content", "old", "count"),
    [
        ("abc", "x", "0 times"),
        ("a b a", "a", "2 times"),
        ("aaa", "aa", "2 times"),
        ("a" * 3000, "a", "more than 1000 times"),
        ("a\r\nb", "a\nb", "0 times; its lines end in \\r\\n"),
        ("", "a", "0 times"),
    ],
)
async def test_edit_tells_how_often_the_text_was_found(hands: Hands, content: str, old: str, count: str) -> None:
    (hands.workspace / "a.txt").write_bytes(content.encode())

    assert f"old_text was found {count}" in await hands.error("edit_file", "a.txt", old_text=old, new_text="y")
    assert content.encode() == (hands.workspace / "a.txt").read_bytes()


@given(
    before=st.text("ab\n", max_size=10),
    old=st.text("abc", min_size=1, max_size=3),
    new=st.text("xyé", max_size=3),
    after=st.text("ab\n", max_size=10),
)
@settings(max_examples=60, deadline=None)
def test_edit_replaces_the_only_occurrence_or_nothing(
    tmp_path_factory: pytest.TempPathFactory, before: str, old: str, new: str, after: str
) -> None:
    hands = hands_on(tmp_path_factory.mktemp("workspace"))
    content = before + old + after
    (hands.workspace / "a.txt").write_bytes(content.encode())
    count = sum(content.startswith(old, index) for index in range(len(content)))
    edit = partial(hands, "edit_file", "a.txt", old_text=old, new_text=new)
    if count == 1:
        trio.run(edit)
        content = before + new + after
    else:
        with pytest.raises(ToolError, match=f"found {count} times"):
            trio.run(edit)
    assert content.encode() == (hands.workspace / "a.txt").read_bytes()


async def test_edit_keeps_mode_and_bytes_that_are_no_text(hands: Hands) -> None:
    path = hands.workspace / "a.sh"
    path.write_bytes(b"\xff old \xfe")
    path.chmod(0o750)

    assert 'Edited "a.sh".' == await hands("edit_file", "a.sh", old_text="old", new_text="")
    assert b"\xff  \xfe" == path.read_bytes()
    assert 0o750 == mode_of(path)
    assert "the same" in await hands.error("edit_file", "a.sh", old_text="a", new_text="a")
    assert "no such file" in await hands.error("edit_file", "b.sh", old_text="a", new_text="b")


async def test_text_is_appended_to_new_and_old_files(hands: Hands) -> None:
    assert 'Added 3 bytes to "log/a.txt", which has 3 now.' == await hands("append_file", "log/a.txt", content="a\n\n")
    assert 'Added 2 bytes to "log/a.txt", which has 5 now.' == await hands("append_file", "log/a.txt", content="é")
    assert "a\n\né" == (hands.workspace / "log/a.txt").read_text()
    assert 0o600 == mode_of(hands.workspace / "log/a.txt")


@contextmanager
def full_disk(max_bytes: int) -> Iterator[None]:
    """No file of this process gets larger than *max_bytes* within the block; the system refuses, like a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (max_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)


async def test_full_disk_leaves_everything_as_it_was(hands: Hands) -> None:
    await hands("write_file", "a.txt", content="old" * 1000)
    with full_disk(10_000):
        reason = os.strerror(errno.EFBIG).lower()
        long = "x" * 20_000
        assert reason in await hands.error("write_file", "a.txt", content=long, overwrite=True)
        assert reason in await hands.error("write_file", "b.txt", content=long)
        assert reason in await hands.error("append_file", "a.txt", content=long)
        assert reason in await hands.error("append_file", "c.txt", content=long)

    assert "old" * 1000 == (hands.workspace / "a.txt").read_text()
    assert {"a.txt"} <= {path.name for path in hands.workspace.iterdir()} <= {"a.txt", "c.txt"}
    assert not (hands.workspace / "c.txt").exists() or (hands.workspace / "c.txt").read_bytes() == b""


async def test_concurrent_changes_lose_nothing(hands: Hands) -> None:
    again = hands_on(hands.workspace)
    marks = "".join(f"<{number}>\n" for number in range(40))
    await hands("write_file", "a.txt", content=marks)
    async with trio.open_nursery() as nursery:
        for mark in range(40):
            tools = hands if mark % 2 else again

            async def edit(tools: Hands = tools, mark: int = mark) -> None:
                await tools("edit_file", "a.txt", old_text=f"<{mark}>", new_text=f"[{mark}]")
                await tools("append_file", "a.txt", content=f"+{mark}\n")

            nursery.start_soon(edit)

    content = (hands.workspace / "a.txt").read_text()
    assert marks.replace("<", "[").replace(">", "]") == content[: len(marks)]
    assert sorted(f"+{number}" for number in range(40)) == sorted(content[len(marks) :].split())


async def test_cancelled_change_is_whole_or_not_made(hands: Hands) -> None:
    old, new = "o" * 1_000_000, "n" * 1_000_000
    seen = set()
    for attempt in range(40):
        await hands("write_file", "a.txt", content=old, overwrite=True)
        with trio.move_on_after(attempt * 0.0002):
            await hands("write_file", "a.txt", content=new, overwrite=True)
        content = (hands.workspace / "a.txt").read_text()
        assert content in (old, new)
        seen.add(content[0])
        assert [] == hands.left_over()
    assert "o" in seen


async def test_change_in_line_can_be_cancelled(hands: Hands) -> None:
    async with trio.open_nursery() as nursery:
        for index in range(30):
            nursery.start_soon(partial(hands, "write_file", f"{index}.txt", content="x"))
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()

    assert {"x"} >= {path.read_text() for path in hands.workspace.iterdir()}
    await hands("write_file", "last.txt", content="x")


WRITER = """
import sys, trio
from pathlib import Path
from picoclaw_trio.tools.files import file_tools

tools = {tool.name: tool for tool in file_tools(Path(sys.argv[1]))}

async def main():
    print("ready", flush=True)
    while True:
        for letter in "ab":
            await tools["write_file"].run({"path": "a.txt", "content": letter * 300_000, "overwrite": True})

trio.run(main)
"""


async def test_killed_process_leaves_a_whole_file(hands: Hands) -> None:
    await hands("write_file", "a.txt", content="a" * 300_000)
    for attempt in range(5):
        async with trio.open_nursery() as nursery:
            command = [sys.executable, "-c", WRITER, str(hands.workspace)]
            run = partial(trio.run_process, command, stdout=subprocess.PIPE, check=False)
            process: trio.Process = await nursery.start(run)
            assert process.stdout is not None
            await process.stdout.receive_some()
            await trio.sleep(0.003 * attempt)  # at another moment each time
            process.kill()

        content = (hands.workspace / "a.txt").read_text()
        assert content in ("a" * 300_000, "b" * 300_000)
        assert "a.txt" in {path.name for path in hands.workspace.iterdir()}
    for name in hands.left_over():
        assert re.fullmatch(r"\.picoclaw-[0-9a-f]{16}\.tmp", name)
        (hands.workspace / name).unlink()


async def test_folder_that_may_not_be_written_is_told(hands: Hands) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may write everywhere")
    (hands.workspace / "shut").mkdir(mode=0o500)
    assert '"shut/a.txt": permission denied' == await hands.error("write_file", "shut/a.txt", content="a")
