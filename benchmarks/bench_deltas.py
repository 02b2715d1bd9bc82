"""How fast does a stream of deltas pass, and how much of Hypercorn's own speed is that?"""

from __future__ import annotations

from ._tools.lanes import Lane, measure_one_by_one
from ._tools.loads import request
from ._tools.servers import relay, start_gateway
from ._tools.stage import Stage
from ._tools.values import Figure, Measure, Question, Sample

STREAMS = 64
DELTAS = 256
PAUSE = 4  # milliseconds between two deltas of one stream: more in all than any of the servers can take


def prepare(stage: Stage) -> Measure:
    path, requests = f"/deltas/{DELTAS}/{PAUSE}", [request(stream=True)]
    ours = start_gateway(stage, "gateway-deltas", upstream_path=path, requests=requests)
    bare = relay(stage, upstream_path=path, requests=requests)

    def measure() -> Sample:
        mine, theirs = measure_one_by_one(stage, Lane(ours, STREAMS), Lane(bare, STREAMS))
        return {
            "ratio": mine.rate / theirs.rate,
            "by_cpu": theirs.cpu / mine.cpu,
            "gateway": mine.rate,
            "relay": theirs.rate,
            "gateway_cpu": mine.cpu * 1e6,
            "relay_cpu": theirs.cpu * 1e6,
        }

    return measure


QUESTION = Question(
    name="deltas",
    text=f"streamed deltas/s, {STREAMS} streams, ÷ the same relay on bare Hypercorn-trio ASGI",
    figures=(
        Figure("ratio", "gateway ÷ relay", at_least=0.70),
        Figure("by_cpu", "the same by processor time"),
        Figure("gateway", "gateway", "deltas/s"),
        Figure("relay", "relay on Hypercorn as released", "deltas/s"),
        Figure("gateway_cpu", "gateway, processor time", "µs/delta"),
        Figure("relay_cpu", "relay, processor time", "µs/delta"),
    ),
    prepare=prepare,
    method=(
        f"The upstream writes {DELTAS} deltas a stream, one every {PAUSE} ms: {STREAMS * 1000 // PAUSE:,} a second in "
        "all. The relay reads with httpcore2 and sends each event as one body message, unread."
    ),
)
