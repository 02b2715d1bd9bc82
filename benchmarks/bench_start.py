"""How long until it is there, and what does it take while nobody asks anything?"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from ._tools.servers import gateway_home, hypercorn, start_gateway
from ._tools.stage import Stage, clean_environment
from ._tools.values import Figure, Measure, Question, Sample

RUNS = 5
IMPORT = "import time; t = time.perf_counter(); import picoclaw_trio; print(time.perf_counter() - t)"


def prepare(stage: Stage) -> Measure:
    runs = stage.settings.scaled(RUNS) if not stage.settings.brief else 1
    _ = stage.upstream

    def measure() -> Sample:
        begun_at = time.perf_counter()
        gateway = start_gateway(stage, "gateway-start")
        started = time.perf_counter() - begun_at
        environment = gateway_home(stage, "worker-start")
        worker = stage.serve("worker-start", hypercorn("picoclaw_trio:app", 1), environment=environment)
        memory, worker_memory = gateway.process.memory(), worker.process.memory_of_largest()
        gateway.process.stop()
        worker.process.stop()
        return {
            "version": statistics.median(timed(stage, version_command()) for _ in range(runs)),
            "import": statistics.median(float(run(stage, [sys.executable, "-c", IMPORT])) for _ in range(runs)),
            "python": statistics.median(timed(stage, [sys.executable, "-c", ""]) for _ in range(runs)),
            "started": started,
            "memory": memory.rss / 1e6,
            "worker": worker_memory.rss / 1e6,
        }

    return measure


def version_command() -> list[str]:
    script = Path(sys.executable).with_name("picoclaw")
    return [str(script), "version"] if script.exists() else [sys.executable, "-m", "picoclaw_trio", "version"]


def timed(stage: Stage, command: Sequence[str]) -> float:
    begun_at = time.perf_counter()
    run(stage, command)
    return time.perf_counter() - begun_at


def run(stage: Stage, command: Sequence[str]) -> str:
    return subprocess.run(
        command,
        cwd=stage.folder,
        env=clean_environment(),
        check=True,
        capture_output=True,
        text=True,
        preexec_fn=lambda: os.sched_setaffinity(0, stage.cores.server),
    ).stdout


QUESTION = Question(
    name="start",
    text="`picoclaw version` and import time of picoclaw_trio; idle memory of one worker",
    figures=(
        Figure("version", "picoclaw version", "s", below=0.25),
        Figure("import", "import picoclaw_trio", "s", below=0.25),
        Figure("memory", "picoclaw gateway, resident", "MB", below=60),
        Figure("worker", "one worker of Hypercorn's, resident", "MB", below=60),
        Figure("python", "(the interpreter alone)", "s"),
        Figure("started", "picoclaw gateway, start to first answer", "s"),
    ),
    prepare=prepare,
    method="Compiled files are there. Memory after one answer; Hypercorn's master and its helper are not in it.",
)
