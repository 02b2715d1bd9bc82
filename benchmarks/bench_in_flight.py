"""What do very many turns at once cost, in time and in memory, while the upstream thinks?"""

from __future__ import annotations

import time

from ._tools.loads import Running, Steady
from ._tools.servers import start_gateway
from ._tools.stage import Server, Stage
from ._tools.values import Figure, Measure, Question, Sample

TURNS = 2000
THINKING = 1.0
WARMING_CONNECTIONS = 64
SETTLING = 5.0  # seconds until all are under way and the rhythm of the beginning is gone
LOOK_DELAY = 0.2


def prepare(stage: Stage) -> Measure:
    turns = stage.settings.scaled(TURNS)
    upstream_path = f"/delay/{THINKING * 1000:.0f}"
    _ = stage.upstream

    def measure() -> Sample:
        # A new one each time: memory that was once in use is not given back to the system.
        server = start_gateway(stage, "gateway-in-flight", upstream_path=upstream_path)
        try:
            with server.process.resumed():
                return measure_turns(stage, server, turns)
        finally:
            server.process.stop()

    return measure


def measure_turns(stage: Stage, server: Server, turns: int) -> Sample:
    generator, seconds = stage.generator, stage.settings.seconds
    settling = 1.0 if stage.settings.brief else SETTLING
    generator.steady(server.port, Steady(WARMING_CONNECTIONS, seconds=2 * THINKING))
    idle, cpu = server.process.resident(), server.process.cpu_seconds()
    load = Steady(turns, THINKING + seconds, warm_up=THINKING + settling, spread=THINKING)
    with generator.running(server.port, load) as running:
        peak = highest_memory(server, running)
        saw = running.finish()
    return {
        "added": saw.p99 - THINKING,
        "memory": (peak - idle) / turns / 1e3,
        "rate": saw.rate,
        "p50": saw.p50 - THINKING,
        "cpu": (server.process.cpu_seconds() - cpu) / saw.total * 1e6,
    }


def highest_memory(server: Server, running: Running) -> int:
    """The most that the server had resident until the generator ended."""
    peak = 0
    while running.popen.poll() is None:
        peak = max(peak, server.process.resident())
        time.sleep(LOOK_DELAY)
    return peak


QUESTION = Question(
    name="in_flight",
    text=f"{TURNS:,} turns in flight against an upstream that takes 1 s: added time and memory",
    figures=(
        Figure("added", "p99 minus 1 s", "s", below=0.3),
        Figure("memory", "memory for each turn in flight", "kB", below=60),
        Figure("rate", "answers", "req/s"),
        Figure("p50", "p50 minus 1 s", "s"),
        Figure("cpu", "processor time", "µs/req"),
    ),
    prepare=prepare,
    method=(
        f"{TURNS:,} connections, each of which asks again as soon as it is answered; they begin spread over 1 s. To "
        f"keep them in flight takes {TURNS:,} requests/s ÷ (1 + added time). Memory: the highest resident size minus "
        "that of the idle server after a few requests; a new server each round. gateway.openai_api.max_turns is raised."
    ),
)
