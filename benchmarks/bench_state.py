"""What session state costs, by the number of sessions kept. Every figure is a median.

By itself it prints one table. The last row is the layout that was not chosen, for comparison: the whole document
rewritten at every change.

    python -m benchmarks.bench_state [--brief]
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from itertools import cycle
from pathlib import Path

import trio

from picoclaw_trio.state.disk import Disk, replace_file
from picoclaw_trio.state.journal import Ticket
from picoclaw_trio.state.records import Record, Row, Rows, encode_document
from picoclaw_trio.state.sessions import Sessions, open_sessions
from picoclaw_trio.state.storage import DOCUMENT_NAME, Storage

from ._tools.stage import Stage
from ._tools.values import Figure, Measure, Question, Sample

SIZES = (10, 1_000, 100_000)
ROUNDS = 5  # within one round of all benchmarks
# What of it the table of all benchmarks shows, and in microseconds.
SHOWN = ("selected()", "select() of the stored alias", "durable select(), alone", "load at start")
CALLS = 1_000  # of a synchronous method, timed together
CLIENTS = 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--brief", action="store_true", help="fewer rounds: a second or two, rough figures")
    rounds = 5 if parser.parse_args().brief else 25
    columns = [trio.run(measure, size, rounds) for size in SIZES]
    print(f"{'sessions':<40}" + "".join(f"{size:>14,}" for size in SIZES))
    for name in columns[0]:
        print(f"{name:<40}" + "".join(f"{_text(column[name]):>14}" for column in columns))


async def measure(size: int, rounds: int) -> dict[str, float]:
    """Give {what: seconds} for a folder that holds *size* sessions."""
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        row = Row("qwen3-coder-plus", 1_790_000_000, 1_790_000_000)
        rows = {f"openai:user-{number}": row for number in range(size)}
        (home / DOCUMENT_NAME).write_bytes(encode_document(rows))
        await trio.to_thread.run_sync(_close_at_once, home)
        figures = {"load at start": await _load(home, size, rounds)}
        async with open_sessions(home, max_sessions=2 * size) as sessions:
            user = f"openai:user-{size // 2}"
            sessions.selected(user)
            figures["selected()"] = _per_call(partial(sessions.selected, user), rounds)
            figures["select() of the stored alias"] = _per_call(
                partial(sessions.select, user, "qwen3-coder-plus"), rounds
            )
            figures["durable select(), alone"] = await _alone(sessions, user, rounds)
            figures[f"durable select(), one of {CLIENTS} at once"] = await _together(sessions, size, rounds)
        figures["fold"] = _fold(home, rounds)
        figures["(a durable change by a whole document)"] = _whole_document(home, rows, rounds)
    return figures


def _close_at_once(home: Path) -> None:
    """Let the files be what a clean stop leaves."""
    Storage(home, Disk()).open()[1].close()


async def _load(home: Path, size: int, rounds: int) -> float:
    times = []
    for _ in range(min(rounds, 7)):
        begun_at = time.perf_counter()
        async with open_sessions(home, max_sessions=2 * size):
            times.append(time.perf_counter() - begun_at)
    return statistics.median(times)


def _per_call(call: Callable[[], object], rounds: int) -> float:
    times = []
    for _ in range(rounds):
        begun_at = time.perf_counter()
        for _ in range(CALLS):
            call()
        times.append((time.perf_counter() - begun_at) / CALLS)
    return statistics.median(times)


async def _alone(sessions: Sessions, user: str, rounds: int) -> float:
    times, aliases = [], cycle(["a", "b"])
    for _ in range(8 * rounds):
        begun_at = time.perf_counter()
        await sessions.select(user, next(aliases)).wait()
        times.append(time.perf_counter() - begun_at)
    return statistics.median(times)


async def _together(sessions: Sessions, size: int, rounds: int) -> float:
    """Seconds a change, when many clients each make one after the other."""
    times = []

    async def client(number: int) -> None:
        for alias in ("c", "d", "e", "f"):
            await sessions.select(f"openai:user-{number % size}", f"{alias}-{number}").wait()

    for _ in range(rounds):
        begun_at = time.perf_counter()
        async with trio.open_nursery() as nursery:
            for number in range(CLIENTS):
                nursery.start_soon(client, number)
        times.append((time.perf_counter() - begun_at) / CLIENTS / 4)
    return statistics.median(times)


def _fold(home: Path, rounds: int) -> float:
    times, storage = [], Storage(home, Disk())
    rows, place = storage.open()
    for number in range(min(rounds, 7)):
        storage.append((Record("set", "openai:user-1", "g", number),), place.mark(), Ticket())
        copy, mark = rows.copy(), place.mark()
        begun_at = time.perf_counter()
        storage.fold(copy, mark)
        times.append(time.perf_counter() - begun_at)
        rows, place = storage.follow(rows, place, set())
    place.close()
    return statistics.median(times)


def _whole_document(home: Path, rows: Rows, rounds: int) -> float:
    times, path, temporary = [], home / "whole.json", home / "whole.tmp"
    for _ in range(min(rounds, 7)):
        begun_at = time.perf_counter()
        replace_file(Disk(), path, temporary, encode_document(rows))
        times.append(time.perf_counter() - begun_at)
    return statistics.median(times)


def _text(seconds: float) -> str:
    return f"{seconds * 1e6:,.1f} µs" if seconds < 1e-3 else f"{seconds * 1e3:,.2f} ms"


def prepare(stage: Stage) -> Measure:
    few, many = SIZES[0], stage.settings.scaled(SIZES[-1])

    def measure_both() -> Sample:
        columns = {size: trio.run(measure, size, ROUNDS) for size in (few, many)}
        return {
            f"{name} {place}": columns[size][name] * 1e6
            for name in SHOWN
            for place, size in (("few", few), ("many", many))
        }

    return measure_both


QUESTION = Question(
    name="state",
    text=f"what session state costs with {SIZES[0]} and with {SIZES[-1]:,} sessions",
    figures=tuple(
        Figure(f"{name} {place}", f"{name}, {size:,} sessions", "µs")
        for name in SHOWN
        for place, size in (("few", SIZES[0]), ("many", SIZES[-1]))
    ),
    prepare=prepare,
    method="In one process, without a server; changes are on disk, in the folder for temporary files.",
)


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        main()
