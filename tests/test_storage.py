from __future__ import annotations

import errno
import json
import logging
import os
import re
import shutil
import signal
import stat
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import attrs
import pytest
import trio
from state_disks import (
    ALWAYS,
    NEVER,
    SCRIPT,
    ForgetfulDisk,
    RefusingDisk,
    WatchedDisk,
    die_at_step,
    held,
    hold_lock_for_ever,
    names,
    received,
    started,
    stored,
)

from picoclaw_trio.errors import StateError
from picoclaw_trio.state.disk import Disk, hold_lock
from picoclaw_trio.state.journal import Place, Ticket
from picoclaw_trio.state.records import Record, Row, Rows, encode_document, encode_header, encode_records
from picoclaw_trio.state.sessions import open_sessions
from picoclaw_trio.state.storage import DOCUMENT_NAME, JOURNAL_NAME, LOCK_NAME, TEMPORARY_NAME, Storage

ROWS = {"openai:a": Row("m1", 1, 1), "global": Row("m2", 2, 2)}
OURS = {DOCUMENT_NAME, JOURNAL_NAME, LOCK_NAME}


def refusal(home: Path) -> str:
    with pytest.raises(StateError) as caught:
        stored(home)
    return caught.value.reason


def damaged(home: Path, name: str) -> list[bytes]:
    """Contents of the files that were kept aside; their names tell the time."""
    found = sorted(path for path in home.iterdir() if path.name.startswith(f"{name}.damaged-"))
    assert all(re.fullmatch(r".+\.damaged-\d{8}T\d{6}Z(-\d+)?", path.name) for path in found)
    return [path.read_bytes() for path in found]


def set_up(home: Path, *records: Record, document: bytes | None = None, tail: bytes = b"") -> bytes:
    """Put files there by hand; gives the journal's bytes."""
    header = encode_header("ab12", None, None)
    link = json.loads(header)["sum"]
    journal = header + encode_records(records, link) + tail
    (home / JOURNAL_NAME).write_bytes(journal)
    if document is not None:
        (home / DOCUMENT_NAME).write_bytes(document)
    return journal


# What is there at the start


def test_missing_folder_is_created_for_its_owner_alone(tmp_path: Path) -> None:
    home = tmp_path / "new" / "home"

    assert {} == stored(home)
    assert 0o700 == stat.S_IMODE(home.stat().st_mode)
    assert OURS == names(home)
    assert {0o600} == {stat.S_IMODE(path.stat().st_mode) for path in home.iterdir()}


def test_mode_of_an_existing_folder_is_left_alone(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    stored(tmp_path)

    assert 0o755 == stat.S_IMODE(tmp_path.stat().st_mode)


def test_files_of_others_in_the_folder_are_not_touched(tmp_path: Path) -> None:
    for name in ("config.json", ".security.yml", "openai_sessions.json.bak", "workspace/sessions/a.jsonl"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("not ours")
        os.utime(tmp_path / name, (1, 1))
    set_up(tmp_path, document=b"garbage", tail=b"garbage")
    stored(tmp_path)

    theirs = [path for path in tmp_path.rglob("*") if path.is_file() and path.stat().st_mtime == 1]
    assert 4 == len(theirs)
    assert {"not ours"} == {path.read_text() for path in theirs}


def test_document_and_journal_together_are_what_is_stored(tmp_path: Path) -> None:
    set_up(tmp_path, Record("set", "openai:a", "m3", 5), Record("drop", "global"), document=encode_document(ROWS))

    assert {"openai:a": "m3"} == stored(tmp_path)
    assert {"openai:a"} == json.loads((tmp_path / DOCUMENT_NAME).read_bytes())["sessions"].keys()
    assert 1 == (tmp_path / JOURNAL_NAME).read_bytes().count(b"\n")


def test_missing_document_leaves_what_the_journal_says(tmp_path: Path) -> None:
    set_up(tmp_path, Record("set", "openai:a", "m3", 5))

    assert {"openai:a": "m3"} == stored(tmp_path)


def test_missing_journal_leaves_what_the_document_says(tmp_path: Path) -> None:
    (tmp_path / DOCUMENT_NAME).write_bytes(encode_document(ROWS))

    assert {"openai:a": "m1", "global": "m2"} == stored(tmp_path)


@pytest.mark.parametrize(
    "text", [b"", b"\0" * 100, b"[]", b'{"version": 1, "sessi', b"\xff\xfe", b"{}", b'{"version":1,"sessions":7}']
)
def test_unreadable_document_is_kept_aside_and_the_journal_counts(
    tmp_path: Path, text: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    set_up(tmp_path, Record("set", "openai:a", "m3", 5), document=text)

    assert {"openai:a": "m3"} == stored(tmp_path)
    assert [text] == damaged(tmp_path, DOCUMENT_NAME)
    [record] = caplog.records
    assert logging.WARNING == record.levelno
    assert f"it is kept as {DOCUMENT_NAME}.damaged-" in record.getMessage()


def test_entries_that_can_be_read_survive_those_that_cannot(tmp_path: Path) -> None:
    text = encode_document(ROWS).replace(b'"m2"', b"{}")
    (tmp_path / DOCUMENT_NAME).write_bytes(text)

    assert {"openai:a": "m1"} == stored(tmp_path)
    assert [text] == damaged(tmp_path, DOCUMENT_NAME)


def test_documents_damaged_in_one_second_are_all_kept(tmp_path: Path) -> None:
    texts = [b"one", b"three", b"two"]
    for text in texts:
        (tmp_path / DOCUMENT_NAME).write_bytes(text)
        stored(tmp_path)

    assert texts == sorted(damaged(tmp_path, DOCUMENT_NAME))


def test_damaged_document_is_kept_aside_where_files_have_one_name_only(tmp_path: Path) -> None:
    (tmp_path / DOCUMENT_NAME).write_bytes(b"garbage")
    Storage(tmp_path, RefusingDisk({"link"})).open()[1].close()

    assert [b"garbage"] == damaged(tmp_path, DOCUMENT_NAME)


@pytest.mark.parametrize("tail", [b'{"set":"openai:b","mod', b"garbage\n", b"\0" * 50, b'{"set":"openai:b"}\n'])
def test_garbled_tail_is_ignored_and_kept_aside(tmp_path: Path, tail: bytes, caplog: pytest.LogCaptureFixture) -> None:
    journal = set_up(tmp_path, Record("set", "openai:a", "m3", 5), tail=tail)

    assert {"openai:a": "m3"} == stored(tmp_path)
    assert [journal] == damaged(tmp_path, JOURNAL_NAME)
    assert [logging.WARNING] == [record.levelno for record in caplog.records]


def test_good_lines_after_a_bad_one_count(tmp_path: Path) -> None:
    journal = set_up(tmp_path, *(Record("set", key, "m", 5) for key in ("a1", "a2", "a3")))
    (tmp_path / JOURNAL_NAME).write_bytes(journal.replace(b'"a2"', b'"a4"'))

    assert {"a1": "m", "a3": "m"} == stored(tmp_path)
    assert 1 == len(damaged(tmp_path, JOURNAL_NAME))


def test_line_that_is_missing_is_noticed(tmp_path: Path) -> None:
    lines = set_up(tmp_path, *(Record("set", key, "m", 5) for key in ("a1", "a2", "a3"))).splitlines(keepends=True)
    (tmp_path / JOURNAL_NAME).write_bytes(lines[0] + lines[1] + lines[3])

    assert {"a1": "m", "a3": "m"} == stored(tmp_path)
    assert 1 == len(damaged(tmp_path, JOURNAL_NAME))


@pytest.mark.parametrize("header", [b"", b"garbage\n", b'{"journal":1,"id":5'])
def test_journal_with_a_garbled_header_gives_its_good_lines(tmp_path: Path, header: bytes) -> None:
    lines = encode_records([Record("set", "openai:a", "m3", 5)], "01234567")
    (tmp_path / JOURNAL_NAME).write_bytes(header + b"\n" + lines)

    assert {"openai:a": "m3"} == stored(tmp_path)
    assert [header + b"\n" + lines] == damaged(tmp_path, JOURNAL_NAME)


@pytest.mark.parametrize(
    ("name", "text"), [(DOCUMENT_NAME, b'{"version": 2, "new": {}}'), (JOURNAL_NAME, b'{"journal":2,"x":1}\n')]
)
def test_file_of_a_newer_version_is_refused_and_left_alone(tmp_path: Path, name: str, text: bytes) -> None:
    set_up(tmp_path, document=encode_document(ROWS))
    (tmp_path / name).write_bytes(text)

    assert "was written by a newer version" in refusal(tmp_path)
    assert text == (tmp_path / name).read_bytes()
    assert OURS == names(tmp_path)


@pytest.mark.parametrize("name", [DOCUMENT_NAME, JOURNAL_NAME])
@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo])
def test_folder_or_pipe_in_the_place_of_a_file_is_refused(
    tmp_path: Path, name: str, make: Callable[[Path], None]
) -> None:
    make(tmp_path / name)

    assert f"{tmp_path / name} is not a file" in refusal(tmp_path)


def test_folder_in_the_place_of_the_lock_is_refused(tmp_path: Path) -> None:
    (tmp_path / LOCK_NAME).mkdir()

    assert f"{tmp_path / LOCK_NAME}: Is a directory" == refusal(tmp_path)


def test_file_in_the_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "home").write_text("")

    assert f"{tmp_path / 'home' / LOCK_NAME}: Not a directory" == refusal(tmp_path / "home")


@contextmanager
def without_rights() -> Iterator[Path]:
    """A folder, and not being root, to whom nothing is forbidden."""
    home = Path(tempfile.mkdtemp())
    user = os.geteuid()
    try:
        if user == 0:
            os.chown(home, 65534, 65534)
            os.seteuid(65534)
        yield home
    finally:
        os.seteuid(user)
        shutil.rmtree(home)


@pytest.mark.parametrize("name", [DOCUMENT_NAME, JOURNAL_NAME, LOCK_NAME])
def test_file_without_permission_is_refused_and_left_alone(name: str) -> None:
    with without_rights() as home:
        set_up(home, document=encode_document(ROWS))
        (home / LOCK_NAME).touch()
        (home / name).chmod(0)

        assert f"{home / name}: Permission denied" == refusal(home)
        assert OURS == names(home)


def test_folder_without_permission_is_refused() -> None:
    with without_rights() as home:
        home.chmod(0o500)

        assert f"{home / LOCK_NAME}: Permission denied" == refusal(home)
        assert f"{home / 'new'}: Permission denied" == refusal(home / "new")
        home.chmod(0o700)


def test_read_only_folder_is_refused(tmp_path: Path) -> None:
    stored(tmp_path)
    if os.geteuid() != 0 or subprocess.run(["mount", "--bind", tmp_path, tmp_path], check=False).returncode:
        with pytest.raises(StateError) as caught:  # one may not mount here, so the disk pretends
            Storage(tmp_path, RefusingDisk({"lock"}, errno.EROFS)).open()
        assert caught.value.reason.endswith("Read-only file system")
        return
    try:
        subprocess.run(["mount", "-o", "remount,ro,bind", tmp_path], check=True)
        assert f"{tmp_path / LOCK_NAME}: Read-only file system" == refusal(tmp_path)
    finally:
        subprocess.run(["umount", tmp_path], check=True)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_files_that_root_creates_belong_to_the_owner_of_the_folder(tmp_path: Path) -> None:
    os.chown(tmp_path, 65534, 65533)
    stored(tmp_path)

    assert {(65534, 65533)} == {(path.stat().st_uid, path.stat().st_gid) for path in tmp_path.iterdir()}


@pytest.mark.parametrize("step", ["create", "write", "sync", "rename"])
def test_start_without_room_to_fold_goes_on_with_what_was_loaded(tmp_path: Path, step: str) -> None:
    set_up(tmp_path, Record("set", "openai:a", "m3", 5))
    before = names(tmp_path)

    async def start() -> dict[str, str]:
        disk = RefusingDisk({step})
        async with open_sessions(tmp_path, disk=disk, folding=NEVER) as sessions:
            disk.refused = set()
            await sessions.select("openai:b", "m4").wait()
            return held(sessions)

    assert {"openai:a": "m3", "openai:b": "m4"} == trio.run(start)
    assert {"openai:a": "m3", "openai:b": "m4"} == stored(tmp_path)
    assert before | OURS == names(tmp_path)


@pytest.mark.parametrize("step", ["lock", "create", "write", "sync", "rename"])
def test_first_start_without_room_is_refused_and_leaves_nothing(tmp_path: Path, step: str) -> None:
    with pytest.raises(StateError) as caught:
        Storage(tmp_path, RefusingDisk({step})).open()

    assert caught.value.reason.endswith("Input/output error")
    assert names(tmp_path) <= {LOCK_NAME}


def test_file_that_a_killed_process_left_is_removed(tmp_path: Path) -> None:
    stored(tmp_path)
    (tmp_path / TEMPORARY_NAME).write_bytes(b"half a docum")
    stored(tmp_path)

    assert OURS == names(tmp_path)


# Folding and following


@attrs.define
class Party:
    """One of several processes on the same files."""

    storage: Storage
    rows: Rows
    place: Place

    def set(self, *keys: str, model: str = "m") -> None:
        self.storage.append(tuple(Record("set", key, model, 1) for key in keys), self.place.mark(), Ticket())

    def fold(self) -> None:
        self.storage.fold(self.rows.copy(), self.place.mark())

    def look(self) -> list[str]:
        self.rows, self.place = self.storage.follow(self.rows, self.place, set())
        return list(self.rows)


@contextmanager
def party(home: Path, disk: Disk | None = None) -> Iterator[Party]:
    storage = Storage(home, disk or Disk())
    opened = Party(storage, *storage.open())
    try:
        yield opened
    finally:
        opened.place.close()


def test_reader_goes_on_from_one_journal_to_the_next_without_the_document(tmp_path: Path) -> None:
    with party(tmp_path) as ours, party(tmp_path) as theirs:
        ours.set("k1")
        ours.fold()
        (tmp_path / DOCUMENT_NAME).unlink()

        assert ["k1"] == theirs.look()


def test_reader_that_missed_a_journal_loads_again(tmp_path: Path) -> None:
    with party(tmp_path) as ours, party(tmp_path) as theirs:
        for key in ("k1", "k2", "k3"):
            ours.set(key)
            ours.fold()
            ours.look()

        assert ["k1", "k2", "k3"] == theirs.look() == ours.look()


def test_reader_that_missed_a_journal_keeps_what_it_has_if_the_document_is_garbled(tmp_path: Path) -> None:
    with party(tmp_path) as ours, party(tmp_path) as theirs:
        ours.set("k1")
        theirs.look()
        for key in ("k2", "k3"):
            ours.fold()
            ours.look()
            ours.set(key)
        (tmp_path / DOCUMENT_NAME).write_bytes(b"garbage")

        assert ["k1", "k3"] == theirs.look()
        theirs.fold()
        assert {"k1": "m", "k3": "m"} == stored(tmp_path)


def test_fold_takes_up_what_others_appended(tmp_path: Path) -> None:
    with party(tmp_path) as ours, party(tmp_path) as theirs:
        theirs.set("k1")
        ours.fold()

    assert {"k1": "m"} == stored(tmp_path)


def test_fold_of_nothing_writes_nothing(tmp_path: Path) -> None:
    disk = WatchedDisk()
    with party(tmp_path, disk) as ours:
        disk.steps.clear()
        ours.fold()

    assert ["lock"] == disk.steps


def test_fold_after_another_process_folded_writes_nothing(tmp_path: Path) -> None:
    disk = WatchedDisk()
    with party(tmp_path, disk) as ours, party(tmp_path) as theirs:
        theirs.set("k1")
        theirs.fold()
        disk.steps.clear()
        ours.fold()

    assert ["lock"] == disk.steps


def test_fold_of_rows_that_are_out_of_date_changes_nothing(tmp_path: Path) -> None:
    with party(tmp_path) as ours, party(tmp_path) as theirs:
        theirs.set("k1")
        theirs.fold()
        theirs.look()
        theirs.set("k2")
        ours.fold()

        assert ["k1", "k2"] == ours.look()
    assert {"k1": "m", "k2": "m"} == stored(tmp_path)


class FoldedMeanwhile(Storage):
    """Two folds happen between the opening of the journal and the reading of the document."""

    folds: list[Callable[[], None]]

    def _read_document(self) -> tuple[Rows, str | None]:
        while self.folds:
            self.folds.pop()()
        return super()._read_document()


def test_loading_during_two_folds_gives_what_was_there_after_them(tmp_path: Path) -> None:
    with party(tmp_path) as ours, party(tmp_path) as theirs:

        def fold_and_set(model: str) -> None:
            ours.fold()
            ours.look()
            ours.set("k1", model=model)

        for model in ("m0", "m1", "m2"):  # theirs misses a journal, and has to load
            fold_and_set(model)
        theirs.storage = FoldedMeanwhile(tmp_path, Disk())
        theirs.storage.folds = [lambda: fold_and_set("m4"), lambda: fold_and_set("m3")]
        theirs.look()

        assert "m4" == theirs.rows["k1"].model


def test_document_that_a_person_changed_is_taken_up_by_the_next_fold(tmp_path: Path) -> None:
    with party(tmp_path) as ours, party(tmp_path) as theirs:
        ours.set("k1")
        (tmp_path / DOCUMENT_NAME).write_bytes(encode_document(ROWS))
        ours.fold()

        assert {"openai:a", "global", "k1"} == set(theirs.look())


def test_document_that_was_garbled_meanwhile_is_kept_aside_and_memory_counts(tmp_path: Path) -> None:
    with party(tmp_path) as ours:
        ours.set("k1")
        ours.fold()
        ours.look()
        (tmp_path / DOCUMENT_NAME).write_bytes(b"garbage")
        ours.fold()

    assert {"k1": "m"} == stored(tmp_path)
    assert [b"garbage"] == damaged(tmp_path, DOCUMENT_NAME)


@pytest.mark.parametrize("wreck", [os.unlink, lambda path: os.truncate(path, 0), lambda path: os.truncate(path, 20)])
def test_journal_that_was_lost_meanwhile_is_begun_again(tmp_path: Path, wreck: Callable[[Path], None]) -> None:
    with party(tmp_path) as ours, party(tmp_path) as theirs:
        wreck(tmp_path / JOURNAL_NAME)
        ours.set("k1")

        assert ["k1"] == theirs.look() == ours.look()


def test_steps_of_a_change_and_of_a_fold(tmp_path: Path) -> None:
    disk = WatchedDisk()
    with party(tmp_path, disk) as ours:
        disk.steps.clear()
        ours.set("k1", "k2")
        change = disk.steps.copy()
        disk.steps.clear()
        ours.fold()

    replace = ["remove", "create", "write", "sync", "rename", "sync"]
    assert ["lock", "write", "sync_data"] == change
    assert ["lock", *replace, *replace] == disk.steps


# Failed writes


def test_failed_write_is_cut_off_and_the_next_line_follows_the_last_good_one(tmp_path: Path) -> None:
    disk = RefusingDisk()
    with party(tmp_path, disk) as ours, party(tmp_path) as theirs:
        for refused in ("write", "sync_data"):
            disk.refused = {refused}
            with pytest.raises(StateError):
                ours.set("k1", "k2")
        disk.refused = set()
        ours.set("k3")

        assert ["k3"] == theirs.look() == ours.look()
        assert not theirs.place.is_damaged()


def test_failed_write_that_cannot_be_cut_off_is_not_read_and_is_cut_off_later(tmp_path: Path) -> None:
    disk = RefusingDisk({"sync_data", "truncate"})
    with party(tmp_path, disk) as ours:
        with pytest.raises(StateError):
            ours.set("k1")
        assert [] == ours.look()
        disk.refused = set()
        ours.set("k2")

        assert ["k2"] == ours.look()
    assert {"k2": "m"} == stored(tmp_path)
    assert [] == damaged(tmp_path, JOURNAL_NAME)


def test_failed_write_that_could_not_be_cut_off_is_not_folded(tmp_path: Path) -> None:
    disk = RefusingDisk({"sync_data", "truncate"})
    with party(tmp_path, disk) as ours:
        with pytest.raises(StateError):
            ours.set("k1")
        disk.refused = {"truncate"}
        with pytest.raises(StateError):
            ours.fold()
        disk.refused = set()
        ours.fold()
        ours.set("k2")

    assert {"k2": "m"} == stored(tmp_path)


def test_failed_write_that_others_wrote_after_has_become_history(tmp_path: Path) -> None:
    disk = RefusingDisk({"sync_data", "truncate"})
    with party(tmp_path, disk) as ours, party(tmp_path) as theirs:
        with pytest.raises(StateError):
            ours.set("k1")
        theirs.set("k2")
        disk.refused = set()
        ours.set("k3")

        assert ["k1", "k2", "k3"] == theirs.look() == ours.look()


@pytest.mark.parametrize("is_seen_before", [False, True])
def test_reader_that_read_a_write_before_it_failed_forgets_it(tmp_path: Path, is_seen_before: bool) -> None:
    """Another process may look between the write and the sync that fails; then other lines take the place."""
    seen: list[list[str]] = []
    disk = RefusingDisk()

    def look_and_refuse(name: str) -> None:
        if name == "sync_data":
            seen.append(theirs.look())
            disk.on_step = lambda name: None
            raise OSError(errno.EIO, "no")

    with party(tmp_path, disk) as ours, party(tmp_path) as theirs:
        disk.on_step = look_and_refuse
        with pytest.raises(StateError):
            ours.set("k1")
        assert [["k1"]] == seen
        if is_seen_before:
            assert [] == theirs.look()
        ours.set("k2")
        theirs.set("k3")

        assert ["k2", "k3"] == theirs.look() == ours.look()
        assert not theirs.place.is_damaged()


def test_bad_line_that_was_read_and_then_cut_off_hides_none_that_takes_its_place(tmp_path: Path) -> None:
    with party(tmp_path) as ours, party(tmp_path) as theirs:
        size = ours.place.size()
        with (tmp_path / JOURNAL_NAME).open("ab") as file:
            file.write(b"garbage\n" * 20)
        theirs.look()
        os.truncate(tmp_path / JOURNAL_NAME, size)
        theirs.look()
        ours.set("k1")
        ours.set("k2")

        assert ["k1", "k2"] == theirs.look()


def test_torn_line_of_a_killed_writer_spoils_no_later_line(tmp_path: Path) -> None:
    with party(tmp_path) as ours, party(tmp_path) as theirs:
        with (tmp_path / JOURNAL_NAME).open("ab") as file:
            file.write(b'{"set":"openai:b","mod')
        ours.set("k1")

        assert ["k1"] == theirs.look()
    assert {"k1": "m"} == stored(tmp_path)
    assert 1 == len(damaged(tmp_path, JOURNAL_NAME))


# The lock, and what dies


def test_lock_that_another_process_holds_is_waited_for_not_for_ever(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with started(hold_lock_for_ever, path) as (connection, process):
        assert "held" == connection.recv()
        with pytest.raises(StateError) as caught, hold_lock(Disk(), path, timeout=0.01):
            pytest.fail("it was held")
        assert f"{path} has been locked by another process for too long" == caught.value.reason
        process.kill()
        with hold_lock(Disk(), path, timeout=10):
            pass


class ReplacedLock(WatchedDisk):
    """Someone removes the lock file between its first opening and its locking."""

    def open(self, path: Path, flags: int) -> int:
        fd = super().open(path, flags)
        if ["lock"] == self.steps:
            path.unlink()
        return fd


def test_lock_on_a_file_that_was_replaced_meanwhile_is_not_trusted(tmp_path: Path) -> None:
    path, disk = tmp_path / LOCK_NAME, ReplacedLock()
    with hold_lock(disk, path):
        assert ["lock", "lock"] == disk.steps
        with pytest.raises(StateError), hold_lock(Disk(), path, timeout=0):
            pytest.fail("two hold it")


def test_kill_at_any_step_loses_nothing_acknowledged(tmp_path: Path) -> None:
    """Each step of opening, changing, folding and closing; a write is half done when it is the step."""
    number, exit_code = 0, -signal.SIGKILL
    while exit_code:
        number += 1
        home = tmp_path / str(number)
        with started(die_at_step, home, number) as (connection, process):
            acknowledged = received(connection)
            process.join()
            exit_code = process.exitcode
        if (home / DOCUMENT_NAME).exists():
            assert 1 == json.loads((home / DOCUMENT_NAME).read_bytes())["version"]
        found = stored(home)

        assert found in (dict(SCRIPT[: len(acknowledged)]), dict(SCRIPT[: len(acknowledged) + 1]))
        assert TEMPORARY_NAME not in names(home)
    assert number > 40


def test_power_cut_after_any_step_loses_nothing_acknowledged(tmp_path: Path) -> None:
    home, scratch = tmp_path / "home", tmp_path / "scratch"
    home.mkdir()
    scratch.mkdir()
    acknowledged: list[tuple[str, str]] = []

    def check(folder: Path) -> None:
        rows, place = Storage(folder, Disk()).open()
        place.close()
        found = {key: row.model for key, row in rows.items()}
        assert found in (dict(acknowledged), dict(SCRIPT[: len(acknowledged) + 1]))

    async def work() -> None:
        async with open_sessions(home, disk=disk, folding=ALWAYS) as sessions:
            for change in SCRIPT:
                await sessions.select(*change).wait()
                acknowledged.append(change)

    disk = ForgetfulDisk(home, scratch, check)
    trio.run(work)
    disk.close()

    assert dict(SCRIPT) == stored(home)
    assert len(disk.steps) > 40
