"""The stream of events towards a client: its head, its comments, and its one end. On virtual time."""

from __future__ import annotations

from typing import Any

import attrs
import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from picoclaw_trio.event_stream import EventStream

START = {
    "type": "http.response.start",
    "status": 200,
    "headers": [
        (b"content-type", b"text/event-stream"),
        (b"cache-control", b"no-cache"),
        (b"x-accel-buffering", b"no"),
        (b"x-request-id", b"req_1"),
    ],
}
COMMENT = b": keep-alive\n\n"
BUSY = 1000.0  # seconds; longer than any interval


@attrs.define
class Client:
    """What a server would hand to its client, and when; it takes *delay* seconds for each piece."""

    delay: float = 0.0
    messages: list[Any] = attrs.field(factory=list)
    times: list[float] = attrs.field(factory=list)

    async def send(self, message: Any) -> None:
        self.messages.append(message)
        self.times.append(trio.current_time())
        await trio.sleep(self.delay)

    @property
    def body(self) -> bytes:
        return b"".join(message.get("body", b"") for message in self.messages)

    @property
    def is_closed(self) -> bool:
        return [m for m in self.messages if m["type"] == "http.response.body" and not m["more_body"]] != []


def open_stream(client: Client) -> EventStream:
    return EventStream(client.send, lambda: [(b"x-request-id", b"req_1")])


def body(data: bytes, more: bool = True) -> dict[str, Any]:
    return {"type": "http.response.body", "body": data, "more_body": more}


async def test_head_goes_out_with_the_first_event_and_not_before() -> None:
    client = Client()
    events = open_stream(client)
    await wait_all_tasks_blocked()
    assert [] == client.messages
    assert not events.is_begun

    await events.send(b"1")

    assert [START, body(b"data: 1\n\n")] == client.messages
    assert events.is_begun


async def test_several_events_are_one_write() -> None:
    client = Client()

    await open_stream(client).send(b"1", b"2")

    assert [START, body(b"data: 1\n\ndata: 2\n\n")] == client.messages


async def test_last_events_and_end_mark_close_the_body_in_one_write() -> None:
    client = Client()
    events = open_stream(client)
    await events.send(b"1")

    await events.end(b"2", b"3")

    assert body(b"data: 2\n\ndata: 3\n\ndata: [DONE]\n\n", more=False) == client.messages[-1]


async def test_error_is_the_last_event_and_no_end_mark_follows() -> None:
    client = Client()
    events = open_stream(client)
    await events.send(b"1")

    assert await events.fail(b"{}")

    assert body(b"data: {}\n\n", more=False) == client.messages[-1]


async def test_failure_before_the_first_event_sends_nothing() -> None:
    client = Client()
    events = open_stream(client)

    assert not await events.fail(b"{}")

    assert [] == client.messages


@pytest.mark.parametrize("how", ["end", "fail", "fail unsent"])
async def test_nothing_follows_the_end(how: str) -> None:
    client = Client()
    events = open_stream(client)
    if how != "fail unsent":
        await events.send(b"1")
    await (events.end() if how == "end" else events.fail(b"{}"))
    before = list(client.messages)

    await events.send(b"2")
    await events.end()

    assert before == client.messages


async def test_failure_after_the_end_counts_as_told() -> None:
    client = Client()
    events = open_stream(client)
    await events.end()
    before = list(client.messages)

    assert await events.fail(b"{}")
    assert before == client.messages


async def test_comment_follows_each_interval_of_silence(autojump_clock: MockClock) -> None:
    client = Client()
    events = open_stream(client)
    await events.send(b"1")
    with trio.move_on_after(35):
        await events.run_comments(10)

    assert [0, 0, 10, 20, 30] == client.times
    assert b"data: 1\n\n" + 3 * COMMENT == client.body


async def test_first_comment_leaves_what_takes_one_interval_its_status(autojump_clock: MockClock) -> None:
    client = Client()
    events = open_stream(client)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(events.run_comments, 10)
        await trio.sleep(10)

        assert not await events.fail(b"{}")
        nursery.cancel_scope.cancel()

    assert [] == client.messages


async def test_first_comment_carries_the_head(autojump_clock: MockClock) -> None:
    client = Client()
    events = open_stream(client)
    with trio.move_on_after(25):
        await events.run_comments(10)

    assert [START, body(COMMENT), body(COMMENT)] == client.messages
    assert [11, 11, 21] == client.times


async def test_failure_after_a_comment_is_an_event(autojump_clock: MockClock) -> None:
    client = Client()
    events = open_stream(client)
    with trio.move_on_after(12):
        await events.run_comments(10)

    assert await events.fail(b"{}")

    assert COMMENT + b"data: {}\n\n" == client.body
    assert client.is_closed


async def test_no_comment_while_events_keep_coming(autojump_clock: MockClock) -> None:
    client = Client()
    events = open_stream(client)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(events.run_comments, 10)
        for _ in range(20):
            await trio.sleep(9)
            await events.send(b"1")
        nursery.cancel_scope.cancel()

    assert COMMENT not in client.body


async def test_comments_end_with_the_stream(autojump_clock: MockClock) -> None:
    client = Client()
    events = open_stream(client)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(events.run_comments, 10)
        await trio.sleep(5)
        await events.end(b"1")

    assert b"data: 1\n\ndata: [DONE]\n\n" == client.body


async def test_comments_stop_after_a_failure_without_a_stream(autojump_clock: MockClock) -> None:
    client = Client()
    events = open_stream(client)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(events.run_comments, 10)
        await trio.sleep(5)
        await events.fail(b"{}")

    assert [] == client.messages


async def test_client_that_takes_long_gets_no_comments_in_between(autojump_clock: MockClock) -> None:
    client = Client(delay=100.0)
    events = open_stream(client)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(events.run_comments, 10)
        await events.send(b"1")
        await events.send(b"2")
        nursery.cancel_scope.cancel()

    assert b"data: 1\n\ndata: 2\n\n" == client.body


async def test_waiting_for_a_client_that_does_not_read_costs_no_turns_of_the_scheduler(
    autojump_clock: MockClock,
) -> None:
    client = Client(delay=BUSY)
    events = open_stream(client)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(events.run_comments, 10)
        nursery.start_soon(events.send, b"1")
        await trio.sleep(BUSY / 2)
        steps = Steps()
        trio.lowlevel.add_instrument(steps)
        await trio.sleep(BUSY / 4)
        trio.lowlevel.remove_instrument(steps)
        nursery.cancel_scope.cancel()

    assert steps.count < 10


@attrs.define(eq=False)
class Steps(trio.abc.Instrument):
    """Counts how often any task runs on."""

    count: int = 0

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self.count += 1


async def test_writes_of_two_tasks_do_not_mix(autojump_clock: MockClock) -> None:
    client = Client(delay=1.0)
    events = open_stream(client)
    async with trio.open_nursery() as nursery:
        for number in range(5):
            nursery.start_soon(events.send, b"%d" % number)

    assert 1 == sum(message["type"] == "http.response.start" for message in client.messages)
    assert sorted(f"data: {number}" for number in range(5)) == sorted(client.body.decode().split("\n\n")[:-1])


async def test_cancelled_write_leaves_the_stream_usable_for_its_error(autojump_clock: MockClock) -> None:
    client = Client(delay=5.0)
    events = open_stream(client)
    with trio.move_on_after(1):
        await events.send(b"1")

    assert await events.fail(b"{}")

    assert body(b"data: {}\n\n", more=False) == client.messages[-1]


async def test_comments_last_as_long_as_the_block(autojump_clock: MockClock) -> None:
    client = Client()
    events = open_stream(client)
    async with events.commented(10) as begin:
        begin()
        await trio.sleep(25)
    await trio.sleep(BUSY)
    assert COMMENT * 2 == client.body


async def test_comments_begin_when_they_are_told_to_and_count_silence_from_then_on(autojump_clock: MockClock) -> None:
    client = Client()
    events = open_stream(client)
    async with events.commented(10) as begin:
        await trio.sleep(25)
        begin()
        await trio.sleep(10.9)
        assert not events.is_begun
        await trio.sleep(0.2)
    assert COMMENT == client.body


async def test_error_of_the_block_comes_out_as_it_is(autojump_clock: MockClock) -> None:
    events = open_stream(Client())
    with pytest.raises(ZeroDivisionError):
        async with events.commented(10):
            raise ZeroDivisionError
    assert not await events.fail(b"{}")


async def test_error_of_the_block_waits_until_a_comment_is_out(autojump_clock: MockClock) -> None:
    async def fail_in_the_middle_of_a_comment() -> None:
        async with events.commented(10) as begin:
            begin()
            await trio.sleep(50)
            raise ZeroDivisionError

    client = Client(delay=100)
    events = open_stream(client)
    with pytest.raises(ZeroDivisionError):
        await fail_in_the_middle_of_a_comment()
    assert await events.fail(b"{}")
    assert COMMENT + b"data: {}\n\n" == client.body


async def test_cancelled_block_ends_with_its_comments(autojump_clock: MockClock) -> None:
    client = Client(delay=BUSY)
    events = open_stream(client)
    with trio.move_on_after(50) as scope:
        async with events.commented(10) as begin:
            begin()
            await trio.sleep_forever()
    assert scope.cancelled_caught
    assert 50 == trio.current_time()
