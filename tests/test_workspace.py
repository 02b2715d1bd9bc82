"""The agent's identity, from real files that come, change and go."""

from __future__ import annotations

import logging
import os
import sys
from collections import Counter
from datetime import date
from pathlib import Path
from types import FrameType

import attrs
import pytest

from picoclaw_trio.workspace import MAX_FILE_BYTES, MAX_PROMPT_CHARS, NOBODY, SETTLE_TIME, Identity, Workspace

TODAY = date(2026, 3, 1)


@attrs.define
class Clock:
    """A clock that stands until it is put forward."""

    now: float = 1000.0
    day: date = TODAY

    def settle(self, workspace: Workspace) -> Identity:
        """Let enough time pass that what *workspace* sees is taken for lasting."""
        workspace.identity()
        self.now += SETTLE_TIME
        return workspace.identity()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def workspace(tmp_path: Path, clock: Clock) -> Workspace:
    return Workspace(tmp_path / "workspace", today=lambda: clock.day, clock=lambda: clock.now)


def put(workspace: Workspace, **files: str | bytes) -> None:
    """Write files into the workspace: ``memory__MEMORY="..."`` is ``memory/MEMORY.md``."""
    for name, content in files.items():
        path = workspace.folder / f"{name.replace('__', '/')}.md"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    assert {"picoclaw_trio.workspace"} >= {record.name for record in caplog.records}
    found = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    caplog.clear()
    return found


# The prompt


def test_missing_empty_and_blank_workspace_add_nothing(workspace: Workspace) -> None:
    assert NOBODY is workspace.identity()
    workspace.folder.mkdir()
    assert NOBODY is workspace.identity()
    put(workspace, AGENT=" \n\n", SOUL="", memory__MEMORY="\n")
    assert NOBODY == workspace.identity()
    assert workspace.identity().prompt is None


def test_files_are_joined_in_their_order(workspace: Workspace) -> None:
    put(
        workspace,
        memory__202602__20260227="Bought paint.",
        memory__202602__20260228="Painted the door.\n",
        memory__202603__20260301="# Sunday\n\nIt rains.",
        memory__202602__20260226="Too long ago.",
        memory__202603__20260302="Not yet.",
        memory__MEMORY="The door is green.",
        USER="She likes tea.",
        SOUL="\nBe kind.\n\n",
        IDENTITY="You are Pico.",
        AGENTS="An older file.",
        AGENT="You look after the house.",
    )

    assert (
        "You look after the house.\n\n---\n\nYou are Pico.\n\n---\n\nBe kind.\n\n---\n\nShe likes tea.\n\n---\n\n"
        "# Memory (memory/MEMORY.md)\n\nThe door is green.\n\n---\n\n"
        "# Notes of 2026-02-27 (memory/202602/20260227.md)\n\nBought paint.\n\n---\n\n"
        "# Notes of 2026-02-28 (memory/202602/20260228.md)\n\nPainted the door.\n\n---\n\n"
        "# Notes of 2026-03-01 (memory/202603/20260301.md)\n\n# Sunday\n\nIt rains."
    ) == workspace.identity().prompt


def test_older_files_count_where_agent_md_is_missing(workspace: Workspace) -> None:
    put(workspace, AGENTS="---\nname: x\n---\nRules.", IDENTITY="You are Pico.")

    assert Identity("---\nname: x\n---\nRules.\n\n---\n\nYou are Pico.") == workspace.identity()


def test_agent_md_is_told_from_its_front_matter(workspace: Workspace, caplog: pytest.LogCaptureFixture) -> None:
    put(workspace, AGENT="---\nname: Pico\ntools: [read_file]\nmodel: local\nmaxTurns: 3\n---\n\nBe brief.\n")

    assert Identity("Be brief.", ("read_file",), "local", 3, "Pico") == workspace.identity()
    assert [] == warnings(caplog)


def test_front_matter_alone_is_no_prompt(workspace: Workspace) -> None:
    put(workspace, AGENT="---\ndescription: Quiet.\n---\n")

    assert Identity(description="Quiet.") == workspace.identity()


def test_wrong_front_matter_is_told_once_and_the_body_counts(
    workspace: Workspace, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    put(workspace, AGENT="---\ntools: [\n---\nBe brief.")

    assert Identity("Be brief.", ()) == clock.settle(workspace)
    (line,) = warnings(caplog)
    assert line.startswith(f"{workspace.folder}/AGENT.md: the front matter is not YAML")
    put(workspace, SOUL="Be kind.")
    clock.settle(workspace)
    assert [] == warnings(caplog)


def test_remark_is_told_once_for_each_identity(
    workspace: Workspace, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    for model in ("one", "two"):
        put(workspace, AGENT=f"---\nmodel: {model}\n---\n")
        for _ in range(3):
            clock.settle(workspace)
            workspace.remark("model is unknown")
        assert [f"{workspace.folder}/AGENT.md: model is unknown"] == warnings(caplog)


def test_byte_order_mark_and_line_ends_of_windows_do_not_matter(workspace: Workspace) -> None:
    put(workspace, AGENT=b"\xef\xbb\xbf---\r\nname: Pico\r\n---\r\nOne.\r\nTwo.\r\n")

    assert Identity("One.\nTwo.", name="Pico") == workspace.identity()


def test_bytes_that_are_not_utf_8_are_replaced(workspace: Workspace) -> None:
    put(workspace, SOUL=b"caf\xe9 \xf0\x9f\x98\x80 \xed\xa0\x80")

    assert "caf\ufffd \U0001f600 \ufffd\ufffd\ufffd" == workspace.identity().prompt


# Changes


def test_identity_is_the_same_object_while_nothing_changes(workspace: Workspace, clock: Clock) -> None:
    put(workspace, AGENT="Be brief.")

    first = workspace.identity()

    assert first is workspace.identity() is clock.settle(workspace) is workspace.identity()


def calls_of_one_look(workspace: Workspace) -> Counter[str]:
    """What one more look asks the system for: ``{"stat": 3}``."""
    found: Counter[str] = Counter()

    def note(frame: FrameType, event: str, function: object) -> None:
        name = getattr(function, "__name__", "")
        if event == "c_call" and name in ("stat", "open", "read", "scandir"):
            found[name] += 1

    sys.setprofile(note)
    try:
        workspace.identity()
    finally:
        sys.setprofile(None)
    return found


def test_look_costs_a_few_calls_once_what_was_seen_has_settled(workspace: Workspace, clock: Clock) -> None:
    clock.settle(workspace)
    missing = calls_of_one_look(workspace)
    workspace.folder.mkdir()
    clock.settle(workspace)
    empty = calls_of_one_look(workspace)
    put(workspace, AGENT="Be brief.", SOUL="Be kind.", USER="She likes tea.", memory__MEMORY="The door is green.")
    clock.settle(workspace)
    usual = calls_of_one_look(workspace)

    # TODAY is the first of a month, so the notes may stand in two folders.
    assert [{"stat": 1}, {"stat": 1}, {"stat": 8}] == [missing, empty, usual]


@pytest.mark.parametrize(
    "name", ["AGENT", "AGENTS", "IDENTITY", "SOUL", "USER", "memory__MEMORY", "memory__202603__20260301"]
)
@pytest.mark.parametrize("settled", [False, True])
def test_file_that_appears_changes_and_vanishes_is_noticed(
    name: str, settled: bool, workspace: Workspace, clock: Clock
) -> None:
    def prompt() -> str | None:
        found = workspace.identity().prompt
        if settled:
            clock.settle(workspace)
        return found and found.rpartition("\n\n")[2]

    workspace.folder.mkdir()
    assert prompt() is None
    put(workspace, **{name: "first"})
    assert "first" == prompt()
    put(workspace, **{name: "second"})
    assert "second" == prompt()
    (workspace.folder / f"{name.replace('__', '/')}.md").unlink()
    assert prompt() is None
    put(workspace, **{name: "third"})
    assert "third" == prompt()


def test_writes_of_the_same_size_in_quick_succession_are_all_noticed(workspace: Workspace) -> None:
    found = []
    for number in range(1000, 1200):
        put(workspace, SOUL=str(number))
        found.append(workspace.identity().prompt)

    assert [str(number) for number in range(1000, 1200)] == found


def test_write_within_one_tick_of_the_clock_is_noticed_though_no_stamp_shows_it(
    workspace: Workspace, clock: Clock
) -> None:
    put(workspace, SOUL="old")
    assert "old" == workspace.identity().prompt
    put(workspace, SOUL="new")
    # A file system whose clock stands still cannot be had; what it would show is what was seen already.
    workspace._seen = workspace._look()

    assert "new" == workspace.identity().prompt


def test_write_whose_time_was_set_back_is_noticed(workspace: Workspace, clock: Clock) -> None:
    put(workspace, SOUL="old")
    clock.settle(workspace)
    path = workspace.folder / "SOUL.md"
    before = path.stat()
    path.write_text("new")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))

    assert before.st_mtime_ns == path.stat().st_mtime_ns
    assert "new" == workspace.identity().prompt


def test_file_that_is_replaced_by_another_is_noticed(workspace: Workspace, clock: Clock) -> None:
    put(workspace, SOUL="old")
    clock.settle(workspace)
    put(workspace, new="new")
    (workspace.folder / "new.md").replace(workspace.folder / "SOUL.md")

    assert "new" == workspace.identity().prompt


def test_folder_that_is_replaced_or_removed_is_noticed(workspace: Workspace, clock: Clock) -> None:
    put(workspace, SOUL="old")
    clock.settle(workspace)
    workspace.folder.rename(workspace.folder.with_name("away"))
    assert NOBODY == clock.settle(workspace)
    put(workspace, SOUL="new")
    assert "new" == workspace.identity().prompt


def test_new_day_brings_other_notes(workspace: Workspace, clock: Clock) -> None:
    put(workspace, memory__202603__20260301="Sunday.", memory__202603__20260304="Wednesday.")
    assert "Sunday." in str(clock.settle(workspace).prompt)
    clock.day = date(2026, 3, 3)
    assert "Sunday." in str(clock.settle(workspace).prompt)
    clock.day = date(2026, 3, 4)
    assert "# Notes of 2026-03-04 (memory/202603/20260304.md)\n\nWednesday." == workspace.identity().prompt


def test_notes_span_two_years(workspace: Workspace, clock: Clock) -> None:
    clock.day = date(2027, 1, 1)
    put(workspace, memory__202612__20261230="a", memory__202612__20261231="b", memory__202701__20270101="c")

    prompt = str(workspace.identity().prompt)

    assert ["a", "b", "c"] == [piece.rpartition("\n\n")[2] for piece in prompt.split("\n\n---\n\n")]


# Links


def test_links_of_the_user_s_are_followed_and_what_they_lead_to_is_watched(
    workspace: Workspace, clock: Clock, tmp_path: Path
) -> None:
    workspace.folder.mkdir()
    (workspace.folder / "SOUL.md").symlink_to(tmp_path / "elsewhere")
    assert NOBODY == clock.settle(workspace)
    (tmp_path / "elsewhere").write_text("old")
    assert "old" == clock.settle(workspace).prompt
    (tmp_path / "elsewhere").write_text("new")
    assert "new" == workspace.identity().prompt


def test_link_to_itself_is_told_and_gone_without(
    workspace: Workspace, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    put(workspace, USER="She likes tea.")
    (workspace.folder / "SOUL.md").symlink_to("SOUL.md")

    assert "She likes tea." == clock.settle(workspace).prompt
    assert 1 == len(warnings(caplog))


# What is no file to read


def test_queue_does_not_block(workspace: Workspace, clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    put(workspace, USER="She likes tea.")
    os.mkfifo(workspace.folder / "SOUL.md")

    assert "She likes tea." == clock.settle(workspace).prompt
    assert [f"{workspace.folder}/SOUL.md: cannot be read, so it is left out: it is no regular file"] == warnings(caplog)


def test_folder_and_device_are_no_files(workspace: Workspace, caplog: pytest.LogCaptureFixture) -> None:
    put(workspace, USER="She likes tea.")
    (workspace.folder / "SOUL.md").mkdir()
    (workspace.folder / "IDENTITY.md").symlink_to("/dev/zero")

    assert "She likes tea." == workspace.identity().prompt
    assert 2 == len(warnings(caplog))


def test_agent_md_that_cannot_be_read_allows_no_tools(workspace: Workspace, caplog: pytest.LogCaptureFixture) -> None:
    put(workspace, SOUL="Be kind.")
    (workspace.folder / "AGENT.md").mkdir()

    assert Identity("Be kind.", ()) == workspace.identity()
    assert 1 == len(warnings(caplog))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_file_that_may_not_be_read_is_told_once_a_change(
    workspace: Workspace, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    put(workspace, SOUL="Be kind.")
    path = workspace.folder / "SOUL.md"
    for _ in range(2):
        path.chmod(0)
        assert NOBODY == clock.settle(workspace)
        workspace.identity()
        assert 1 == len(warnings(caplog))
        path.chmod(0o600)
        assert "Be kind." == clock.settle(workspace).prompt


def test_file_in_the_place_of_the_folder_adds_nothing(workspace: Workspace, clock: Clock) -> None:
    workspace.folder.write_text("in the way")

    assert NOBODY == clock.settle(workspace)


def test_path_that_no_system_knows_adds_nothing() -> None:
    assert NOBODY == Workspace(Path("a\0b")).identity()


# Bounds


def test_long_file_is_cut_with_a_note_and_told_once(
    workspace: Workspace, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    # The last character would stand across the edge.
    put(workspace, SOUL="x" * (MAX_FILE_BYTES - 1) + "é" + "y" * 1000)

    prompt = clock.settle(workspace).prompt

    assert "x" * (MAX_FILE_BYTES - 1) + "\n\n[The rest of SOUL.md is left out: the file is too long.]" == prompt
    assert 1 == len(warnings(caplog))


def test_huge_file_is_read_up_to_its_bound(workspace: Workspace, caplog: pytest.LogCaptureFixture) -> None:
    put(workspace, SOUL="")
    with (workspace.folder / "SOUL.md").open("r+b") as file:
        file.truncate(1 << 40)

    assert MAX_FILE_BYTES + 100 > len(str(workspace.identity().prompt))
    assert 1 == len(warnings(caplog))


def test_long_prompt_is_cut_at_its_end(workspace: Workspace, caplog: pytest.LogCaptureFixture) -> None:
    whole = "x" * MAX_FILE_BYTES
    put(workspace, AGENT="Be brief.", IDENTITY=whole, SOUL=whole, USER=whole, memory__MEMORY="The door is green.")
    assert "The door is green." in str(workspace.identity().prompt)
    put(workspace, memory__202603__20260301=whole)

    prompt = str(workspace.identity().prompt)

    note = "\n\n[The rest of this prompt is left out: it is too long.]"
    assert (MAX_PROMPT_CHARS, True) == (len(prompt.removesuffix(note)), prompt.endswith(note))
    assert 1 == len(warnings(caplog))
