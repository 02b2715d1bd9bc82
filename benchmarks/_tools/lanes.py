"""Several servers under load, measured at the same time as far as that is possible: by turns of a tenth of a second.

Theory: a lane is a server with a generator of its own, and one lane runs at a time; the others, generator and all, are
held still. The turns are so short that what else happens on the machine falls on all lanes alike, so that their ratio
holds even where their rates do not. A lane's rate counts the time for which it ran.
Editing rule: nothing here starts or ends a server.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack

import attrs

from .loads import Load, Running, Steady
from .stage import Server, Stage

TURN = 0.1  # seconds
TAKEN_UP_PER_SECOND = 400


@attrs.frozen
class Lane:
    """What runs in turn.

    Attributes:
        load_cores: where its generator runs, and the upstream while it has its turn; None for where they always are.
        is_paused: False for the upstream itself, which serves the other lanes.
    """

    server: Server
    connections: int
    load_cores: frozenset[int] | None = None
    is_paused: bool = True


@attrs.frozen
class Cell:
    """What one server did under one load.

    Attributes:
        rate: answers, or deltas, a second.
        p50: seconds for an answer.
        cpu: seconds of the server's processor time for one answer, or delta.
        load_cpu: processor time of generator and upstream for each second.
    """

    rate: float
    p50: float
    cpu: float
    load_cpu: float


def measure_by_turns(stage: Stage, *lanes: Lane) -> list[Cell]:
    """A cell for each lane, in which it runs for the seconds that the settings say."""
    times = len(lanes)
    warm_up = times * warm_up_for(stage, max(lane.connections for lane in lanes))
    with ExitStack() as stack:
        runs = [Run(stage, lane, stack, times * stage.settings.seconds, warm_up) for lane in lanes]
        take_turns(runs)
        for run in runs:
            run.resume_for_good()  # for the answers that are still owed
        cells = [run.finish() for run in runs]
        for run in runs:
            run.pause_server()
    return cells


def measure_one_by_one(stage: Stage, *lanes: Lane) -> list[Cell]:
    """A cell for each lane, for what must not be interrupted: half of it on the way there, half on the way back."""
    half = stage.settings.seconds / 2
    there = [_measure_alone(stage, lane, half) for lane in lanes]
    back = [_measure_alone(stage, lane, half) for lane in reversed(lanes)][::-1]
    return [mean(pair) for pair in zip(there, back, strict=True)]


def _measure_alone(stage: Stage, lane: Lane, seconds: float) -> Cell:
    with ExitStack() as stack:
        lane.server.process.resume()
        run = Run(stage, lane, stack, seconds, warm_up_for(stage, lane.connections))
        run.take_turn(run.seconds)
        run.resume_for_good()
        cell = run.finish()
        run.pause_server()
        return cell


def warm_up_for(stage: Stage, connections: int) -> float:
    """Seconds until as many are taken up as are answered."""
    return stage.settings.warm_up + connections / TAKEN_UP_PER_SECOND


class Run:
    """A lane that is being measured."""

    def __init__(self, stage: Stage, lane: Lane, stack: ExitStack, seconds: float, warm_up: float) -> None:
        self.stage = stage
        self.lane = lane
        self.load_cores = lane.load_cores or stage.cores.load
        self.seconds = warm_up + seconds
        self.turns: list[tuple[float, float]] = []
        self.resumed_at = math.inf
        self.upstream_cpu = 0.0
        self.cpu_before = lane.server.process.cpu_seconds()
        load = Steady(lane.connections, seconds, warm_up, requests=lane.server.requests)
        generator = attrs.evolve(stage.generator, cores=self.load_cores)
        self.generator: Running = stack.enter_context(generator.running(lane.server.port, load))
        self.generator.pause()

    def take_turn(self, seconds: float = TURN) -> None:
        upstream = self.stage.upstream.process
        if self.load_cores != self.stage.cores.load:
            upstream.pin(self.load_cores)
        cpu_before, begun_at = upstream.cpu_seconds(), time.monotonic()
        self.resume()
        time.sleep(seconds)
        self.generator.pause()
        self.pause_server()
        self.turns.append((begun_at, time.monotonic()))
        self.upstream_cpu += upstream.cpu_seconds() - cpu_before
        if self.load_cores != self.stage.cores.load:
            upstream.pin(self.stage.cores.load)

    def resume(self) -> None:
        self.lane.server.process.resume()
        self.generator.resume()

    def resume_for_good(self) -> None:
        self.resume()
        self.resumed_at = time.monotonic()

    def pause_server(self) -> None:
        if self.lane.is_paused:
            self.lane.server.process.pause()

    def finish(self) -> Cell:
        load = self.generator.finish()
        awake = sum(until - since for since, until in self.turns)
        cpu = self.lane.server.process.cpu_seconds() - self.cpu_before
        if not self.lane.is_paused:
            cpu = self.upstream_cpu
        return Cell(
            rate=load.counted / awake_within([*self.turns, (self.resumed_at, load.until)], load),
            p50=load.p50,
            cpu=cpu / load.total,
            load_cpu=(load.cpu_seconds + self.upstream_cpu) / awake,
        )


def take_turns(runs: Sequence[Run]) -> None:
    ends_at = time.monotonic() + runs[0].seconds
    order = _order(runs)
    while time.monotonic() < ends_at:
        next(order).take_turn()


def _order(runs: Sequence[Run]) -> Iterator[Run]:
    """A B B A A B B A ..., so that none always follows the same one."""
    while True:
        yield from runs
        yield from reversed(runs)


def awake_within(turns: Sequence[tuple[float, float]], load: Load) -> float:
    """Seconds of the turns while answers were counted."""
    overlaps = (min(until, load.until) - max(since, load.since) for since, until in turns)
    return sum(overlap for overlap in overlaps if overlap > 0)


def mean(cells: Sequence[Cell]) -> Cell:
    return Cell(*(statistics.fmean(column) for column in zip(*map(attrs.astuple, cells), strict=True)))
