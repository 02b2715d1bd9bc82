"""Does the gateway keep its speed when many clients come at once?"""

from __future__ import annotations

from ._tools.lanes import Lane, measure_by_turns
from ._tools.servers import gateway, start_gateway
from ._tools.stage import Stage
from ._tools.values import Figure, Measure, Question, Sample

FEW, MANY = 32, 1024


def prepare(stage: Stage) -> Measure:
    # Two gateways, since the two loads take turns.
    few = Lane(gateway(stage), FEW)
    many = Lane(start_gateway(stage, "gateway-many"), stage.settings.scaled(MANY))

    def measure() -> Sample:
        small, large = measure_by_turns(stage, few, many)
        return {
            "ratio": large.rate / small.rate,
            "by_cpu": small.cpu / large.cpu,
            "few": small.rate,
            "many": large.rate,
            "few_cpu": small.cpu * 1e6,
            "many_cpu": large.cpu * 1e6,
        }

    return measure


QUESTION = Question(
    name="many",
    text=f"requests/s at {MANY:,} connections ÷ at {FEW}",
    figures=(
        Figure("ratio", f"{MANY:,} ÷ {FEW} connections", at_least=0.80),
        Figure("by_cpu", "the same by processor time"),
        Figure("few", f"{FEW} connections", "req/s"),
        Figure("many", f"{MANY:,} connections", "req/s"),
        Figure("few_cpu", f"{FEW} connections, processor time", "µs/req"),
        Figure("many_cpu", f"{MANY:,} connections, processor time", "µs/req"),
    ),
    prepare=prepare,
)
