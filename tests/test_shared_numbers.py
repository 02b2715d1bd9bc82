"""Numbers that workers add up: real files, real processes, a full disk, a folder that goes."""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from multiprocessing.connection import Connection
from pathlib import Path

import attrs
import pytest
from answering import Answering, answering
from small_disk import SmallDisk
from state_disks import PROCESSES

from picoclaw_trio.shared_numbers import INITIAL_BYTES, LIVE, PREFIX, SharedNumbers

WAIT = 30.0
MANY = [f"key {number} {'x' * 100}" for number in range(INITIAL_BYTES // 100)]  # more than the first blocks hold


def work(folder: Path, asked: Connection) -> None:
    numbers = SharedNumbers(folder)
    asked.send(None)
    while True:
        for key, number in asked.recv().items():
            numbers.write(key, number)
        asked.send(numbers.of_others())


@attrs.define
class Master:
    folder: Path
    stack: ExitStack

    def start(self) -> Answering:
        return self.stack.enter_context(answering(work, self.folder))


@pytest.fixture
def master(tmp_path: Path) -> Iterator[Master]:
    with ExitStack() as stack:
        yield Master(tmp_path, stack)


def test_numbers_of_the_others_are_added_up(master: Master) -> None:
    one, two = master.start(), master.start()
    numbers = SharedNumbers(master.folder)
    numbers.write("ours", 9.0)
    for key, number in (("a", 1.0), ("a", 2.0), ("b", 0.1)):
        one.ask({key: number})
    two.ask({"a": 5.0})
    assert {"a": 7.0, "b": 0.1} == numbers.of_others()


@pytest.mark.parametrize("length", range(10))
def test_key_of_any_length_is_found_again(master: Master, length: int) -> None:
    one = master.start()
    one.ask({"ä" * length: 1.5, "b": 2.5})
    assert {"ä" * length: 1.5, "b": 2.5} == SharedNumbers(master.folder).of_others()


def test_file_grows_with_its_numbers(master: Master) -> None:
    one = master.start()
    written = {key: float(number) for number, key in enumerate(MANY, 1)}
    one.ask(written)
    assert written == SharedNumbers(master.folder).of_others()


def test_what_holds_while_a_worker_lives_ends_with_it(master: Master) -> None:
    one = master.start()
    numbers = SharedNumbers(master.folder)
    one.ask({"counted": 1.0, f"{LIVE}running": 1.0})
    assert {"counted": 1.0, f"{LIVE}running": 1.0} == numbers.of_others()
    one.kill()
    assert {"counted": 1.0} == numbers.of_others()


def test_full_disk_kills_nobody_and_what_was_counted_is_shared_when_there_is_room(small_disk: SmallDisk) -> None:
    small_disk.home.mkdir()
    with ExitStack() as stack:
        master = Master(small_disk.home, stack)
        one, two = master.start(), master.start()
        small_disk.fill()
        one.ask(dict.fromkeys(MANY, 1.0))
        late = master.start()  # whose file cannot even be made
        late.ask({"late": 1.0})
        small_disk.empty()
        give_up_at = time.monotonic() + WAIT
        while two.ask({}) != dict.fromkeys(MANY, 2.0):
            assert time.monotonic() < give_up_at
            one.ask(dict.fromkeys(MANY, 2.0))
        assert dict.fromkeys(MANY, 2.0) == late.ask({})


def test_folder_that_goes_leaves_each_worker_its_own_numbers(master: Master, caplog: pytest.LogCaptureFixture) -> None:
    one, numbers = master.start(), SharedNumbers(master.folder)
    one.ask({"a": 1.0})
    shutil.rmtree(master.folder)
    for key in MANY:
        numbers.write(key, 1.0)
    assert {} == numbers.of_others() == numbers.of_others()
    master.folder.mkdir()
    assert {} == numbers.of_others()
    assert 1 == len(caplog.records)


def test_files_of_ended_workers_become_one(master: Master) -> None:
    one, two = master.start(), master.start()
    two.ask({"a": 0.25})
    for _ in range(8):
        one.ask({"a": 1.0, f"{LIVE}running": 1.0})
        one.kill()
        one = master.start()
    assert {"a": 8.0} == two.ask({})
    assert {"a": 8.25} == one.ask({})
    assert 2 == len([*master.folder.glob(f"{PREFIX}*")])


@pytest.mark.parametrize("step", range(6))
def test_fold_that_is_killed_at_any_step_loses_nothing_and_counts_nothing_twice(master: Master, step: int) -> None:
    for _ in range(2):
        for number in (1.0, 2.0):
            one = master.start()
            one.ask({"a": number})
            one.kill()
        killed = PROCESSES.Process(target=fold_until_killed, args=(master.folder, step), daemon=True)
        killed.start()
        killed.join(WAIT)
        assert killed.exitcode in {0, -signal.SIGKILL}
    for _ in range(2):
        assert {"a": 6.0} == SharedNumbers(master.folder).of_others()


def fold_until_killed(folder: Path, step: int) -> None:
    """Start a worker and kill it just before its step of that number which changes a name."""
    left = itertools.count(step, -1)

    def watch(event: str, _: object) -> None:
        if event in {"os.rename", "os.remove"} and next(left) == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)
    SharedNumbers(folder)


def test_numbers_are_right_at_any_moment_of_a_fold(master: Master) -> None:
    """Read all the time while workers start and end."""
    one, two = master.start(), master.start()
    one.ask({"a": 1.0})
    for _ in range(10):
        one.kill()
        one.pipe.close()
        ours, theirs = PROCESSES.Pipe()
        process = PROCESSES.Process(target=work, args=(master.folder, theirs), daemon=True)
        process.start()
        one = Answering(process, ours)
        while not ours.poll():
            assert {"a": 1.0} == two.ask({})
        one.hear()
    one.kill()
