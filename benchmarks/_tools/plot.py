"""One picture of a run: how much of its target each figure reaches, and how far the rounds lie apart.

Theory: every target becomes 1, the line in the middle of a logarithmic scale, and right of it is better; so ratios,
times and memory can stand below one another.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from html import escape

from .report import number
from .values import Result, Spread

WIDTH, ROW, TOP, BOTTOM = 960, 34, 48, 42
LEFT, RIGHT = 430, 170  # room for the labels, and for the numbers
RANGE = 4.0  # the scale goes from 1/RANGE to RANGE
TICKS = (0.25, 0.5, 1.0, 2.0, 4.0)
STYLE = (
    "text{font:13px sans-serif;fill:#333}.small{font-size:11px;fill:#666}.line{stroke:#333;stroke-width:1.5}"
    ".grid{stroke:#ccc}.yes{fill:#2b7a4b}.no{fill:#b5452c}.spread{stroke:#333;stroke-width:1.2}"
)


def draw(results: Sequence[Result], caption: str) -> str:
    """An SVG document."""
    spreads = [
        (result.question.name, spread) for result in results for spread in result.spreads() if spread.figure.target
    ]
    height = TOP + ROW * len(spreads) + BOTTOM
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img">',
        f"<title>Benchmarks: share of each target that is reached</title><style>{STYLE}</style>",
        f'<rect width="{WIDTH}" height="{height}" fill="#fff"/>',
        f'<text x="12" y="22">{escape(caption)}</text>',
        *_scale(TOP + ROW * len(spreads)),
    ]
    for index, (name, spread) in enumerate(spreads):
        parts += _bar(name, spread, TOP + ROW * index)
    return "\n".join([*parts, "</svg>\n"])


def _scale(bottom: int) -> Iterator[str]:
    for tick in TICKS:
        kind, x = ("line" if tick == 1 else "grid"), _x(tick)
        yield f'<line class="{kind}" x1="{x:.1f}" y1="{TOP - 6}" x2="{x:.1f}" y2="{bottom}"/>'
        text = "target" if tick == 1 else f"{tick:g} times"
        yield f'<text class="small" x="{x:.1f}" y="{bottom + 16}" text-anchor="middle">{text}</text>'
    yield f'<text class="small" x="{_x(RANGE):.1f}" y="{bottom + 32}" text-anchor="end">better →</text>'


def _bar(name: str, spread: Spread, top: int) -> Iterator[str]:
    figure, middle = spread.figure, top + ROW / 2
    low, median, high = sorted(_x(figure.score(value) or 0.0) for value in (spread.low, spread.median, spread.high))
    start, length = min(_x(1), median), abs(median - _x(1))
    kind = "yes" if spread.is_reached else "no"
    yield f'<text x="{LEFT - 14}" y="{middle + 4}" text-anchor="end">{escape(f"{name}: {figure.label}")}</text>'
    yield f'<rect class="{kind}" x="{start:.1f}" y="{middle - 8}" width="{max(length, 1.5):.1f}" height="16"/>'
    yield f'<line class="spread" x1="{low:.1f}" y1="{middle}" x2="{high:.1f}" y2="{middle}"/>'
    for x in (low, high):
        yield f'<line class="spread" x1="{x:.1f}" y1="{middle - 4}" x2="{x:.1f}" y2="{middle + 4}"/>'
    text = f"{number(spread.median)} {figure.unit} ({figure.target})"
    yield f'<text x="{WIDTH - RIGHT + 12}" y="{middle + 4}">{escape(text)}</text>'


def _x(score: float) -> float:
    """Where a score stands; what is beyond the scale stands at its end."""
    share = (math.log(max(score, 1e-9)) / math.log(RANGE) + 1) / 2
    return LEFT + min(1.0, max(0.0, share)) * (WIDTH - LEFT - RIGHT)
