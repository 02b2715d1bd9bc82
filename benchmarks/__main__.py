"""``python -m benchmarks [NAME ...]``: measure, print the table, write JSON and a picture."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import pkgutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import benchmarks

from ._tools import machine, plot, report
from ._tools.peers import PACKAGES
from ._tools.stage import Stage, open_stage
from ._tools.values import DEFAULT_OUT, BenchmarkError, Measure, NotAsked, Peer, Question, Result, Settings

PREFIX = "bench_"
BRIEF: dict[str, Any] = {"brief": True, "rounds": 1, "seconds": 0.6, "warm_up": 0.1}
FAILURES = (BenchmarkError, OSError, subprocess.SubprocessError)


def main() -> int:
    arguments = parse(sys.argv[1:])
    settings = settings_of(arguments)
    questions = choose(arguments.names)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # or the servers would stay behind
    facts = {
        "machine": machine.describe_machine(),
        "versions": machine.describe_versions(settings),
        "method": machine.describe_method(settings, sorted(os.sched_getaffinity(0))),
    }
    results = run(settings, questions)
    print(report.table(results))
    write(settings.out, results, facts)
    return 1 if any(result.failure for result in results) else 0


def parse(words: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Measure the gateway.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"questions: {', '.join(names())}; none: all")
    parser.add_argument("--brief", action="store_true", help="only see that everything runs")
    parser.add_argument("--rounds", type=int, help="default 5")
    parser.add_argument("--seconds", type=float, help="length of a cell, default 3")
    parser.add_argument("--peers", default="", help=f"with commas, of {', '.join(PACKAGES)}; installed where missing")
    parser.add_argument("--generator", choices=("own", "wrk"), default="own")
    parser.add_argument("--out", type=Path, default=DEFAULT_OUT, help="folder for the results")
    return parser.parse_args(words)


def settings_of(arguments: argparse.Namespace) -> Settings:
    chosen = dict(BRIEF) if arguments.brief else {}
    chosen |= {name: value for name in ("rounds", "seconds") if (value := getattr(arguments, name)) is not None}
    wanted = frozenset(filter(None, arguments.peers.split(",")))
    if unknown := wanted - PACKAGES.keys():
        sys.exit(f"no such peer: {', '.join(sorted(unknown))}")
    peers = frozenset(cast(Peer, name) for name in wanted)
    return Settings(peers=peers, generator=arguments.generator, out=arguments.out, **chosen)


def names() -> list[str]:
    modules = pkgutil.iter_modules(benchmarks.__path__)
    return sorted(module.name.removeprefix(PREFIX) for module in modules if module.name.startswith(PREFIX))


def choose(wanted: Sequence[str]) -> list[Question]:
    if unknown := set(wanted) - set(names()):
        sys.exit(f"no such question: {', '.join(sorted(unknown))}; there are {', '.join(names())}")
    modules = [importlib.import_module(f"benchmarks.{PREFIX}{name}") for name in wanted or names()]
    return [cast(Question, module.QUESTION) for module in modules]


def run(settings: Settings, questions: Sequence[Question]) -> list[Result]:
    """Prepare all questions, then measure all of them in each round."""
    results = [Result(question) for question in questions]
    with open_stage(settings) as stage:
        measures = [(result, prepare(stage, result)) for result in results]
        for number in range(settings.rounds):
            for result, measure in measures:
                if measure is not None and not (result.failure or (number and result.question.once)):
                    tell(f"round {number + 1} of {settings.rounds}: {result.question.name}")
                    take(result, measure)
    return results


def prepare(stage: Stage, result: Result) -> Measure | None:
    tell(f"preparing {result.question.name}")
    try:
        return result.question.prepare(stage)
    except NotAsked as exc:
        result.skipped = str(exc)
    except FAILURES as exc:
        result.failure = str(exc)
    return None


def take(result: Result, measure: Measure) -> None:
    try:
        result.samples.append(measure())
    except FAILURES as exc:
        result.failure = str(exc)


def tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def write(out: Path, results: Sequence[Result], facts: dict[str, object]) -> None:
    out.mkdir(parents=True, exist_ok=True)
    text = json.dumps(report.document(results, facts), indent=1, ensure_ascii=False)
    (out / "results.json").write_text(text + "\n")
    (out / "results.svg").write_text(plot.draw(results, "How much of its target each figure reaches"))
    tell(f"written: {out / 'results.json'}, {out / 'results.svg'}")


if __name__ == "__main__":
    sys.exit(main())
