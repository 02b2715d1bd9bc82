"""Are generator and upstream quick enough that what is measured is the server between them?"""

from __future__ import annotations

from ._tools.lanes import Lane, measure_by_turns, measure_one_by_one
from ._tools.loads import request
from ._tools.servers import gateway
from ._tools.stage import Server, Stage
from ._tools.values import Figure, Measure, Question, Sample

FEW, MANY, STREAMS = 32, 1024, 64


def prepare(stage: Stage) -> Measure:
    server, upstream = gateway(stage), stage.upstream
    streaming = Server(upstream.process, upstream.port, [request("/deltas/256/1/v1/chat/completions", stream=True)])
    many, streams = (
        Lane(upstream, stage.settings.scaled(MANY), is_paused=False),
        Lane(streaming, STREAMS, is_paused=False),
    )

    def measure() -> Sample:
        through, direct = measure_by_turns(stage, Lane(server, FEW), Lane(upstream, FEW, is_paused=False))
        direct_many, direct_streams = measure_one_by_one(stage, many, streams)
        return {
            "ratio": direct.rate / through.rate,
            "load": through.load_cpu / len(stage.cores.load),
            "few": direct.rate,
            "many": direct_many.rate,
            "deltas": direct_streams.rate,
        }

    return measure


QUESTION = Question(
    name="limits",
    text="the generator against the upstream, with nothing in between",
    figures=(
        Figure("ratio", "÷ the gateway's rate", at_least=3),
        Figure("load", "share of the load's cores in use meanwhile", below=0.5),
        Figure("few", f"{FEW} connections", "req/s"),
        Figure("many", f"{MANY:,} connections", "req/s"),
        Figure("deltas", f"{STREAMS} streams", "deltas/s"),
    ),
    prepare=prepare,
    method="Both on the load's cores, which is less than they have when a server on a core of its own is between them.",
)
