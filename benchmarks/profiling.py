"""``python -m benchmarks.profiling``: where the gateway's processor time goes. Needs py-spy, and the right to use it.

Theory: py-spy looks at the stacks many times a second while the load of ``bench_host`` runs; threads that wait do not
count. A look counts for the innermost function that is ours or a library's: what the standard library and compiled
code take is counted to whoever called them. In a second column it counts for the innermost of our rooms, on whose
behalf the libraries work; there, what is left to a library is what it does for none of ours.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import attrs

from ._tools.loads import Steady, request
from ._tools.servers import start_gateway
from ._tools.stage import Stage, open_stage
from ._tools.values import Settings

RATE = 500  # looks a second
SHOWN = 30
FRAME = re.compile(r"(?P<function>.+) \((?P<file>.+?)(?::(?P<line>\d+))?\)$")
INSTALLED = re.compile(r".*/(?:site|dist)-packages/")
OURS = "picoclaw_trio/"
LOOP_HOLDERS = {f"{OURS}{name}.py" for name in ("__main__", "cli", "server")}


@attrs.frozen
class Place:
    """A function in a file; *file* begins with its package's name."""

    file: str
    function: str

    @property
    def is_ours(self) -> bool:
        return self.file.startswith(OURS)

    @property
    def is_room(self) -> bool:
        """Ours, and not one that only holds the event loop, as everything does that runs."""
        return self.is_ours and self.file not in LOOP_HOLDERS

    @property
    def owner(self) -> str:
        """Our room, or the library."""
        return self.file if self.is_ours else self.file.partition("/")[0].removesuffix(".py")


# A thread in Trio's reserve, which py-spy takes for a busy one.
WAITING = Place("trio/_core/_thread_cache.py", "WorkerThread._work")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.profiling", description=__doc__)
    parser.add_argument("--seconds", type=int, default=10)
    parser.add_argument("--connections", type=int, default=32)
    parser.add_argument("--stream", action="store_true", help="streamed answers of 256 deltas")
    arguments = parser.parse_args()
    with open_stage(Settings()) as stage:
        stacks = record(stage, arguments.seconds, arguments.connections, stream=arguments.stream)
    for table in tables(stacks):
        print(table, end="\n\n")


def record(stage: Stage, seconds: int, connections: int, *, stream: bool) -> list[str]:
    """py-spy's raw lines: a stack, its frames with semicolons between them, and how often it was seen."""
    path = "/deltas/256/4" if stream else ""
    server = start_gateway(stage, "gateway-profiled", upstream_path=path, requests=[request(stream=stream)])
    output = stage.folder / "stacks.txt"
    spy = Path(sys.executable).with_name("py-spy")
    looks = ["record", "--full-filenames", "-f", "raw", "-r", str(RATE), "-d", str(seconds)]
    with server.process.resumed():
        load = Steady(connections, seconds + 2, requests=server.requests)
        with stage.generator.running(server.port, load) as running:
            command: list[str | Path] = [spy, *looks, "-o", output, "-p", str(server.process.popen.pid)]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            running.finish()
    return output.read_text().splitlines()


def tables(stacks: Iterable[str]) -> Iterator[str]:
    """Shares by owner, and by function, as Markdown."""
    functions: Counter[Place] = Counter()
    owners: Counter[str] = Counter()
    behalf: Counter[str] = Counter()
    for stack in stacks:
        frames, _, times = stack.rpartition(" ")
        places = [place for frame in frames.split(";") if (place := place_of(frame)) is not None]
        if not places or places[-1] == WAITING:
            continue
        functions[places[-1]] += int(times)
        owners[places[-1].owner] += int(times)
        behalf[next((place for place in reversed(places) if place.is_room), places[-1]).owner] += int(times)
    total = functions.total()
    names = [name for name, _ in (owners | behalf).most_common(SHOWN)]
    yield markdown(
        ("whose", "itself", "with what it calls"),
        ((f"`{name}`", f"{owners[name] / total:.1%}", f"{behalf[name] / total:.1%}") for name in names),
    )
    yield markdown(
        ("function", "itself"),
        ((f"`{place.file}` {place.function}", f"{n / total:.1%}") for place, n in functions.most_common(SHOWN)),
    )


def place_of(frame: str) -> Place | None:
    """Where *frame* is; None in the standard library."""
    match = FRAME.match(frame)
    if match is None:
        return None
    file = match["file"]
    if OURS in file:
        return Place(OURS + file.rpartition(OURS)[2], match["function"])
    return Place(INSTALLED.sub("", file), match["function"]) if INSTALLED.match(file) else None


def markdown(heading: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [heading, ["---"] * len(heading), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


if __name__ == "__main__":
    main()
