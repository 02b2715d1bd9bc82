"""What the terminal's conversation is made of, without a terminal."""

from __future__ import annotations

import stat
from collections.abc import Iterable
from io import StringIO
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_disk import SmallDisk

from picoclaw_trio.memory import Said
from picoclaw_trio.messages import Message
from picoclaw_trio.replies import Progress, ReplyStarted, TextDelta, ToolFinished, ToolStarted
from picoclaw_trio.shapes import Json
from picoclaw_trio.terminal.history import MAX_ENTRIES, MAX_ENTRY_BYTES, HistoryFile
from picoclaw_trio.terminal.lines import MORE, PROMPT, Entry, TypedLines
from picoclaw_trio.terminal.printer import Printer
from picoclaw_trio.terminal.screen import Screen
from picoclaw_trio.terminal.talk import as_seen

# The screen of one turn


class Stream(StringIO):
    """A terminal, or a file."""

    def __init__(self, is_terminal: bool) -> None:
        super().__init__()
        self.is_terminal = is_terminal

    def isatty(self) -> bool:
        return self.is_terminal


def show(
    *events: Progress, out: bool = True, err: bool = True, colours: bool = False, thoughts: bool = False
) -> tuple[str, str]:
    """What comes to standard output, and to standard error if it is no terminal with the other."""
    both = Stream(True)
    streams = (both, both) if out and err else (Stream(out), Stream(err))
    screen = Screen.on(*streams, {"TERM": "xterm"} if colours else {})
    printer = Printer(screen, "one", thoughts)
    for event in events:
        printer.show(event)
    printer.end()
    return streams[0].getvalue(), "" if out and err else streams[1].getvalue()


def thought(text: str, field: str = "reasoning_content") -> TextDelta:
    return TextDelta(text, field)


READ = ToolStarted("c1", "read_file", '{"path": "a.md"}')
DONE = ToolFinished("c1", "read_file", False)
FETCH = ToolStarted("c2", "web_fetch", '{"url": "http://a/"}')


@pytest.mark.parametrize(
    ("events", "shown"),
    [
        ([], ""),
        ([TextDelta("Hel"), TextDelta("lo!")], "Hello!\n"),
        ([TextDelta("Hello!\n")], "Hello!\n"),
        ([TextDelta("No.", "refusal")], "No.\n"),
        ([ReplyStarted("one", "up"), TextDelta("Hello!")], "Hello!\n"),
        ([ReplyStarted("two", "up"), TextDelta("Hello!")], "· two answers\nHello!\n"),
        ([READ, DONE], "· read_file a.md … ok\n"),
        ([READ, ToolFinished("c1", "read_file", True)], "· read_file a.md … failed\n"),
        ([READ], "· read_file a.md …\n"),
        (
            [READ, FETCH, ToolFinished("c2", "web_fetch", True), DONE],
            "· read_file a.md …\n· web_fetch http://a/ … failed\n· read_file a.md … ok\n",
        ),
        (
            [
                TextDelta("Let me look."),
                READ,
                DONE,
                TextDelta("\n\n"),
                TextDelta("A."),
            ],
            "Let me look.\n· read_file a.md … ok\nA.\n",
        ),
        ([TextDelta("One\n\n"), TextDelta("\ntwo")], "One\n\n\ntwo\n"),
        ([thought("\n"), TextDelta("Hello!")], "Hello!\n"),
        ([thought("Hm"), thought(" "), thought("so"), TextDelta("\n\nHello!")], "· thinking …\nHello!\n"),
        (
            [thought("Hm"), thought("Hm", "reasoning"), TextDelta("A."), thought("So")],
            "· thinking …\nA.\n· thinking …\n",
        ),
        ([ToolStarted("c1", "a\x1b\nb", "\n")], "· a^[ b …\n"),
    ],
)
def test_turn_on_a_terminal(events: Iterable[Progress], shown: str) -> None:
    assert (shown, "") == show(*events)


def test_thoughts_are_shown_where_they_can_be_told_from_the_answer() -> None:
    events = (thought("Hm,"), thought("Hm,", "reasoning"), thought(" so"), TextDelta("A."))

    assert "\x1b[2mHm,\x1b[0m\x1b[2m so\x1b[0m\nA.\n" == show(*events, colours=True, thoughts=True)[0]
    assert "· thinking …\nA.\n" == show(*events, thoughts=True)[0]


@pytest.mark.parametrize("environ", [{}, {"TERM": "dumb"}, {"TERM": "xterm", "NO_COLOR": "1"}], ids=str)
def test_colours_are_for_terminals_that_have_them_and_people_who_want_them(environ: dict[str, str]) -> None:
    assert not Screen.on(Stream(True), Stream(True), environ).is_dim
    assert not Screen.on(Stream(True), Stream(False), {"TERM": "xterm"}).is_dim
    assert Screen.on(Stream(False), Stream(True), {"TERM": "xterm"}).is_dim


def test_answer_in_a_pipe_is_as_the_model_said_it_and_notes_stand_beside() -> None:
    events = (TextDelta("\x1bOne"), READ, DONE, TextDelta("\n\n"), TextDelta("two"))

    assert ("\x1bOne\n\ntwo\n", "· read_file a.md … ok\n") == show(*events, out=False)
    assert ("\x1bOne\n\ntwo\n", "") == show(*events, out=False, err=False)
    assert ("^[One\n\ntwo\n", "") == show(*events, err=False)


# Lines


@given(st.lists(st.text(alphabet='ab\\" ', max_size=6)))
def test_every_line_that_is_typed_is_read_once(typed: list[str]) -> None:
    left = iter(typed)
    asked: list[str] = []

    def read_line(prompt: str) -> str | None:
        asked.append(prompt)
        return next(left, None)

    lines = TypedLines(read_line, True)
    texts: list[Entry] = []
    while (text := lines.read()) is not None:
        texts.append(text)

    assert len(asked) - 1 in (len(typed), len(typed) + 1)  # the end may be met in a block
    assert {PROMPT, MORE} >= set(asked)
    assert len(texts) == asked.count(PROMPT) - 1


@pytest.mark.parametrize(
    ("typed", "entry", "retyped"),
    [
        (["/help "], Entry("/help ", is_command=True), "/help "),
        ([" /help"], Entry(" /help"), " /help"),
        (['"""', "/help", '"""'], Entry("/help"), " /help"),
        (["/help\\", "me"], Entry("/help\nme"), "/help\nme"),
        (["/help\nme"], Entry("/help\nme"), "/help\nme"),
    ],
)
def test_line_is_a_command_only_where_a_slash_is_its_first_sign(typed: list[str], entry: Entry, retyped: str) -> None:
    left = iter(typed)

    assert entry == TypedLines(lambda prompt: next(left), True).read()
    assert retyped == entry.retyped
    again = TypedLines(lambda prompt: retyped, True).read()
    assert again is not None
    assert entry.is_command == again.is_command


# The history's file


def test_history_holds_what_was_added_in_order(tmp_path: Path) -> None:
    history = HistoryFile(tmp_path / "history")
    for entry in ("one", "two\nlines", 'quo"ted\x1b', "caf\udce9"):
        history.add(entry)

    assert ["one", "two\nlines", 'quo"ted\x1b', "caf?"] == history.load()
    assert 0o600 == stat.S_IMODE(history.path.stat().st_mode)


def test_history_is_shortened_when_it_has_grown_too_long(tmp_path: Path) -> None:
    history = HistoryFile(tmp_path / "history")
    history.path.write_text("".join(f'"{number}"\n' for number in range(2 * MAX_ENTRIES)))
    history.path.chmod(0o644)

    kept = [str(number) for number in range(MAX_ENTRIES, 2 * MAX_ENTRIES)]
    assert kept == history.load()
    assert MAX_ENTRIES == history.path.read_text().count("\n")
    assert 0o600 == stat.S_IMODE(history.path.stat().st_mode)
    assert kept == history.load()
    assert [history.path] == [*tmp_path.iterdir()]


def test_history_of_any_size_is_read_in_part_only(tmp_path: Path) -> None:
    history = HistoryFile(tmp_path / "history")
    history.path.write_text(f'"{"x" * 3_000_000}"\n"two"\n')

    assert ["two"] == history.load()
    assert '"two"\n' == history.path.read_text()


def test_entry_that_is_too_long_is_not_kept(tmp_path: Path) -> None:
    history = HistoryFile(tmp_path / "history")
    history.add("x" * MAX_ENTRY_BYTES)

    assert [] == history.load()


@pytest.mark.parametrize("data", [b"\xff\xfe\n", b'{"a": 1}\n3\n[\n', b'"unended', b"\x00\x00"])
def test_history_that_is_spoilt_is_passed_over(data: bytes, tmp_path: Path) -> None:
    history = HistoryFile(tmp_path / "history")
    history.path.write_bytes(data)
    history.add("new")

    assert "new" == history.load()[-1]


def test_full_disk_takes_no_entry_of_the_history_but_those_it_has_no_room_for(small_disk: SmallDisk) -> None:
    small_disk.home.mkdir()
    history = HistoryFile(small_disk.home / "history")
    before = [f"{number} {'x' * 1000}" for number in range(8)]
    for entry in before:
        history.add(entry)
    small_disk.fill()
    for number in range(8):
        history.add(f"late {number} {'y' * 1000}")  # the last block has room for some, and for a part of one
    small_disk.empty()
    history.add("new")

    kept = history.load()
    assert [*before, "new"] == [entry for entry in kept if not entry.startswith("late")]
    assert all(entry.endswith("y" * 1000) for entry in kept if entry.startswith("late"))


def test_history_that_cannot_be_shortened_on_a_full_disk_stays(small_disk: SmallDisk) -> None:
    small_disk.home.mkdir()
    history = HistoryFile(small_disk.home / "history")
    lines = [f'"{number} {"x" * 50}"\n' for number in range(2 * MAX_ENTRIES)]
    history.path.write_text("".join(lines))
    small_disk.fill()
    kept = history.load()
    small_disk.empty()

    assert MAX_ENTRIES == len(kept)
    assert MAX_ENTRIES <= history.path.read_text().count("\n")
    assert kept == history.load()


def test_history_without_a_folder_is_empty(tmp_path: Path) -> None:
    history = HistoryFile(tmp_path / "none" / "history")
    history.add("one")

    assert [] == history.load()


# A conversation as its user saw it


def message(role: str, content: Json = None, **fields: Json) -> Message:
    return Message(role, {"role": role, "content": content, **fields})


def test_steps_of_a_turn_are_one_answer() -> None:
    kept = (
        Said(message("user", "first")),
        Said(message("assistant", "Let me look."), internal=True),
        Said(message("tool", "a", tool_call_id="c1"), internal=True),
        Said(message("assistant", None), internal=True),
        Said(message("tool", "b", tool_call_id="c2"), internal=True),
        Said(message("assistant", "Nothing.")),
        Said(message("user", "second")),
    )

    seen = [(one.role, one.body["content"]) for one in as_seen(kept)]
    assert [("user", "first"), ("assistant", "Let me look.\n\nNothing."), ("user", "second")] == seen
