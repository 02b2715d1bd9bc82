"""How much of Hypercorn's own speed is left when the whole gateway runs in it?"""

from __future__ import annotations

from ._tools.lanes import Lane, measure_by_turns
from ._tools.servers import echo, gateway
from ._tools.stage import Stage
from ._tools.values import Figure, Measure, Question, Sample

CONNECTIONS = 32


def prepare(stage: Stage) -> Measure:
    ours, bare = Lane(gateway(stage), CONNECTIONS), Lane(echo(stage), CONNECTIONS)

    def measure() -> Sample:
        mine, theirs = measure_by_turns(stage, ours, bare)
        return {
            "ratio": mine.rate / theirs.rate,
            "by_cpu": theirs.cpu / mine.cpu,
            "gateway": mine.rate,
            "echo": theirs.rate,
            "gateway_cpu": mine.cpu * 1e6,
            "echo_cpu": theirs.cpu * 1e6,
        }

    return measure


QUESTION = Question(
    name="host",
    text=f"requests/s at {CONNECTIONS} connections ÷ bare Hypercorn-trio echo's",
    figures=(
        Figure("ratio", "gateway ÷ echo", at_least=0.70),
        Figure("by_cpu", "the same by processor time"),
        Figure("gateway", "gateway", "req/s"),
        Figure("echo", "echo on Hypercorn as released", "req/s"),
        Figure("gateway_cpu", "gateway, processor time", "µs/req"),
        Figure("echo_cpu", "echo, processor time", "µs/req"),
    ),
    prepare=prepare,
    method="The echo reads the request and gives a fixed answer of the same length; it asks no upstream.",
)
