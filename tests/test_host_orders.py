"""What workers make of the orders of one master: real processes, a real event."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Event
from pathlib import Path

import attrs
import pytest
from answering import Answering, answering
from small_disk import SmallDisk
from state_disks import PROCESSES

from picoclaw_trio.host_orders import Orders


def obey(event: Event, folder: Path | None, asked: Connection) -> None:
    orders = Orders(event, folder)
    asked.send(None)
    while True:
        if asked.recv() == "leave":
            orders.leave()
        asked.send(orders.count())


@attrs.define
class Master:
    folder: Path | None
    stack: ExitStack
    event: Event = attrs.field(factory=PROCESSES.Event)

    def start(self) -> Answering:
        return self.stack.enter_context(answering(obey, self.event, self.folder))


@pytest.fixture
def master(tmp_path: Path) -> Iterator[Master]:
    with ExitStack() as stack:
        yield Master(tmp_path, stack)


def counts(*workers: Answering) -> list[int | None]:
    return [worker.ask("count") for worker in workers]


def test_each_order_counts_once_for_each_worker(master: Master) -> None:
    one, two = master.start(), master.start()
    assert [0, 0] == counts(one, two)
    master.event.set()
    assert [1, 1, 1] == counts(one, two, one)
    master.event.set()
    assert [2, 2, 2] == counts(two, one, two)
    master.event.set()
    assert [2, 2] == counts(one, two)


def test_worker_that_looks_late_sees_what_others_saw(master: Master) -> None:
    one, two = master.start(), master.start()
    for number in (1, 2):
        master.event.set()
        assert [number] == counts(one)
    assert [2] == counts(two)


def test_workers_that_are_started_after_an_order_are_not_meant(master: Master) -> None:
    """As after a SIGHUP, for which the master has the others end, and clears the event."""
    one = master.start()
    master.event.set()
    master.event.set()
    assert [1] == counts(one)
    one.ask("leave")
    two, three = master.start(), master.start()
    assert [0, 0] == counts(two, three)
    for number in (1, 2):
        master.event.set()
        assert [number, number] == counts(three, two)


def test_order_that_a_crash_brings_is_no_second_one(master: Master) -> None:
    one, two = master.start(), master.start()
    master.event.set()
    assert [1, 1] == counts(one, two)
    one.kill()
    master.event.set()
    assert [1] == counts(two)
    master.event.set()
    assert [2] == counts(two)


def test_order_that_a_crash_brings_is_a_first_one(master: Master) -> None:
    one, two, three = master.start(), master.start(), master.start()
    one.kill()
    master.event.set()
    assert [1, 1] == counts(two, three)
    master.event.set()
    assert [2, 2] == counts(three, two)


def test_worker_that_has_left_has_not_crashed(master: Master) -> None:
    one, two = master.start(), master.start()
    master.event.set()
    assert [1, 1] == counts(two, one)
    one.ask("leave")
    one.kill()
    master.event.set()
    assert [2] == counts(two)


def test_worker_does_not_wait_for_one_that_stands_still(master: Master) -> None:
    """The one that has locked the orders may have been stopped, as by a debugger."""
    one = master.start()
    fd = os.open(f"{master.folder}/orders", os.O_RDWR)
    fcntl.flock(fd, fcntl.LOCK_EX)
    master.event.set()
    assert [1, 1] == counts(one, one)
    assert master.event.is_set()
    os.close(fd)
    assert [1] == counts(one)
    assert not master.event.is_set()


def test_orders_find_room_on_a_full_disk(small_disk: SmallDisk) -> None:
    small_disk.home.mkdir()
    with ExitStack() as stack:
        master = Master(small_disk.home, stack)
        one = master.start()
        small_disk.fill()
        for number in (1, 2):
            master.event.set()
            assert [number] == counts(one)
            assert not master.event.is_set()
        small_disk.empty()


def test_first_order_is_obeyed_without_a_folder() -> None:
    with ExitStack() as stack:
        master = Master(None, stack)
        one = master.start()
        assert [0] == counts(one)
        master.event.set()
        assert [1, 1] == counts(one, one)
        one.ask("leave")


def test_first_order_is_obeyed_where_the_disk_was_full(small_disk: SmallDisk) -> None:
    small_disk.home.mkdir()
    small_disk.fill()
    with ExitStack() as stack:
        master = Master(small_disk.home, stack)
        one, two = master.start(), master.start()
        assert [0, 0] == counts(one, two)
        master.event.set()
        assert [1] == counts(one)
    small_disk.empty()


def test_orders_count_on_in_a_folder_that_is_gone(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    with ExitStack() as stack:
        master = Master(folder, stack)
        one, two = master.start(), master.start()
        shutil.rmtree(folder)
        for number in (1, 2):
            master.event.set()
            assert [number, number] == counts(one, two)
        one.ask("leave")
        assert [0] == counts(master.start())
