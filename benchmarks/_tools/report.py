"""What is shown of a run: a table for people, JSON for programs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from .values import Question, Result, Spread

MARKS = {True: "yes", False: "NO", None: ""}
COLUMNS = ("", "median", "lowest - highest", "", "target", "reached")


def table(results: Sequence[Result]) -> str:
    """All figures, question by question; a question's name and text stand above its figures."""
    rows = {result.question.name: [_row(spread) for spread in result.spreads()] for result in results}
    cells = [COLUMNS, *(row for block in rows.values() for row in block)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(COLUMNS))]
    lines = [_line(COLUMNS, widths)]
    for result in results:
        lines += ["", f"{result.question.name}: {result.question.text}"]
        lines += [_line(row, widths) for row in rows[result.question.name]]
        if result.failure or result.skipped:
            lines.append(f"  failed: {result.failure}" if result.failure else f"  not measured: {result.skipped}")
    return "\n".join(lines)


def _row(spread: Spread) -> tuple[str, ...]:
    return (
        spread.figure.label,
        number(spread.median),
        f"{number(spread.low)} - {number(spread.high)}",
        spread.figure.unit,
        spread.figure.target,
        MARKS[spread.is_reached],
    )


def _line(row: Iterable[str], widths: Sequence[int]) -> str:
    label, median, spread, unit, target, mark = (
        text.rjust(width) if column in (1, 2) else text.ljust(width)
        for column, (text, width) in enumerate(zip(row, widths, strict=True))
    )
    return f"  {label}  {median}  {spread}  {unit}  {target}  {mark}".rstrip()


def number(value: float) -> str:
    """Three digits that count, and no more than that of large ones."""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}" if abs(value) >= 0.1 else f"{value:.3f}"


def document(results: Sequence[Result], facts: Mapping[str, object]) -> dict[str, object]:
    """All that was measured, round by round, and on what."""
    return {**facts, "questions": [_entry(result) for result in results]}


def _entry(result: Result) -> dict[str, object]:
    question: Question = result.question
    return {
        "name": question.name,
        "question": question.text,
        "method": question.method,
        "failure": result.failure,
        "skipped": result.skipped,
        "figures": [_figure(spread) for spread in result.spreads()],
    }


def _figure(spread: Spread) -> dict[str, object]:
    return {
        "key": spread.figure.key,
        "label": spread.figure.label,
        "unit": spread.figure.unit,
        "target": spread.figure.target,
        "reached": spread.is_reached,
        "median": spread.median,
        "low": spread.low,
        "high": spread.high,
        "rounds": list(spread.values),
    }
