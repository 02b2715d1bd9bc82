"""How long do newcomers wait when very many come at the same moment?"""

from __future__ import annotations

from ._tools.loads import Steady
from ._tools.servers import gateway
from ._tools.stage import Stage
from ._tools.values import Figure, Measure, Question, Sample

CONNECTIONS = 512
WARMING_CONNECTIONS = 32
WARM_UP = 0.5


def prepare(stage: Stage) -> Measure:
    server, connections = gateway(stage), stage.settings.scaled(CONNECTIONS)

    def measure() -> Sample:
        with server.process.resumed():
            stage.generator.steady(server.port, Steady(WARMING_CONNECTIONS, seconds=WARM_UP))
            load = stage.generator.burst(server.port, connections)
        return {"p99": load.p99, "p50": load.p50}

    return measure


QUESTION = Question(
    name="burst",
    text=f"a burst of {CONNECTIONS} new connections at once: p99 of the first answers",
    figures=(
        Figure("p99", "first answer, p99", "s", below=0.6),
        Figure("p50", "first answer, p50", "s"),
    ),
    prepare=prepare,
    method="From each connection's connect() to the last byte of its answer, in a gateway that has just been in use.",
)
