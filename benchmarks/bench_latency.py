"""What does one lone client wait longer for, with the gateway in between?"""

from __future__ import annotations

from ._tools.lanes import Lane, measure_by_turns
from ._tools.servers import gateway
from ._tools.stage import Stage
from ._tools.values import Figure, Measure, Question, Sample


def prepare(stage: Stage) -> Measure:
    gateway_lane, upstream_lane = Lane(gateway(stage), 1), Lane(stage.upstream, 1, is_paused=False)

    def measure() -> Sample:
        through, direct = measure_by_turns(stage, gateway_lane, upstream_lane)
        return {
            "added": (through.p50 - direct.p50) * 1e3,
            "gateway": through.p50 * 1e3,
            "upstream": direct.p50 * 1e3,
        }

    return measure


QUESTION = Question(
    name="latency",
    text="added latency with one connection: the gateway's p50 minus the upstream's",
    figures=(
        Figure("added", "added at p50", "ms", below=1.0),
        Figure("gateway", "gateway, p50", "ms"),
        Figure("upstream", "upstream alone, p50", "ms"),
    ),
    prepare=prepare,
    method="One kept-alive connection that asks again at once.",
)
