"""What a benchmark is: a question, its figures, and one round of measuring them.

Theory: a question is prepared once, which starts its servers, and then measured once a round, so that the rounds of all
questions alternate and a neighbour's noise falls on all of them. A ratio is taken within a round.
Editing rule: a module ``bench_<name>.py`` has one QUESTION; what two of them need stands in a module of ``_tools``.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias

import attrs

if TYPE_CHECKING:
    from .stage import Stage

Sample: TypeAlias = Mapping[str, float]  # {key of a figure: what one round gave}
Measure: TypeAlias = Callable[[], Sample]
Peer: TypeAlias = Literal["litellm", "nanobot"]

DEFAULT_OUT = Path(__file__).parent.parent / "results"


class BenchmarkError(Exception):
    """No honest answer to this question: a server did not start, or said what it must not."""


class NotAsked(BenchmarkError):
    """This question needs something that was not asked for, such as a peer."""


@attrs.frozen
class Settings:
    """How to measure.

    Attributes:
        brief: see only that everything runs.
        seconds: of one cell, without its warm-up.
        generator: ours, or ``wrk`` for plain steady load.
        out: folder for what is written.
    """

    brief: bool = False
    rounds: int = 5
    seconds: float = 3.0
    warm_up: float = 0.5
    peers: frozenset[Peer] = frozenset()
    generator: Literal["own", "wrk"] = "own"
    out: Path = DEFAULT_OUT

    def scaled(self, size: int) -> int:
        """*size*, or little of it where the run is to be brief."""
        return max(10, size // 20) if self.brief else size


@attrs.frozen
class Figure:
    """One number of a question. Where a target is set, ``at_least`` or ``below`` says which way."""

    key: str
    label: str
    unit: str = ""
    at_least: float | None = None
    below: float | None = None

    @property
    def target(self) -> str:
        if self.at_least is not None:
            return f"≥ {self.at_least:g}"
        return "" if self.below is None else f"< {self.below:g}"

    def is_reached(self, value: float) -> bool | None:
        """None where there is no target."""
        if self.at_least is not None:
            return value >= self.at_least
        return None if self.below is None else value < self.below

    def score(self, value: float) -> float | None:
        """How much of the target *value* is: 1 is just reached, more is better. None where there is no target."""
        if self.at_least is not None:
            return value / self.at_least
        return None if self.below is None else self.below / max(value, 1e-9)


@attrs.frozen
class Question:
    """What one module asks.

    Attributes:
        prepare: starts what is needed; gives what measures one round.
        method: what one has to know to read the figures.
        once: measured in the first round only, since it asks about something that does not fluctuate.
    """

    name: str
    text: str
    figures: tuple[Figure, ...]
    prepare: Callable[[Stage], Measure]
    method: str = ""
    once: bool = False


@attrs.frozen
class Spread:
    """A figure over all rounds."""

    figure: Figure
    values: Sequence[float]

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    @property
    def low(self) -> float:
        return min(self.values)

    @property
    def high(self) -> float:
        return max(self.values)

    @property
    def is_reached(self) -> bool | None:
        return self.figure.is_reached(self.median)


@attrs.define
class Result:
    """What a question's rounds gave; ``failure`` says why there is nothing, ``skipped`` that nobody wanted it."""

    question: Question
    samples: list[Sample] = attrs.field(factory=list)
    failure: str | None = None
    skipped: str | None = None

    def spreads(self) -> list[Spread]:
        return [
            Spread(figure, values)
            for figure in self.question.figures
            if (values := [sample[figure.key] for sample in self.samples if _is_known(sample, figure.key)])
        ]


def _is_known(sample: Sample, key: str) -> bool:
    return key in sample and math.isfinite(sample[key])
