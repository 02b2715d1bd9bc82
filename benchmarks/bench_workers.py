"""What does a second worker on a second core bring?"""

from __future__ import annotations

from ._tools.lanes import Lane, measure_by_turns
from ._tools.servers import hypercorn_gateway
from ._tools.stage import Stage
from ._tools.values import Figure, Measure, NotAsked, Question, Sample

CONNECTIONS = 64


def prepare(stage: Stage) -> Measure:
    if not stage.cores.are_apart:
        raise NotAsked("needs two cores")
    cores = stage.cores.two_for_server()
    one = Lane(hypercorn_gateway(stage, 1), CONNECTIONS)
    two = Lane(hypercorn_gateway(stage, 2), CONNECTIONS, load_cores=cores.load)

    def measure() -> Sample:
        alone, both = measure_by_turns(stage, one, two)
        left = 2.0 if cores.are_apart else 2.0 - both.load_cpu
        return {
            "ratio": both.rate * 2 / left / alone.rate,
            "plain": both.rate / alone.rate,
            "by_cpu": 2 * alone.cpu / both.cpu,
            "one": alone.rate,
            "two": both.rate,
            "load_share": 1 - left / 2,
            "one_cpu": alone.cpu * 1e6,
            "two_cpu": both.cpu * 1e6,
        }

    return measure


QUESTION = Question(
    name="workers",
    text="requests/s with 2 workers on 2 cores ÷ 1 worker on 1 core",
    figures=(
        Figure("ratio", "2 workers ÷ 1, without the load's share", at_least=1.7),
        Figure("plain", "2 workers ÷ 1, as measured"),
        Figure("by_cpu", "the same by processor time"),
        Figure("one", "1 worker", "req/s"),
        Figure("two", "2 workers", "req/s"),
        Figure("load_share", "share of both cores that the load took"),
        Figure("one_cpu", "1 worker, processor time", "µs/req"),
        Figure("two_cpu", "2 workers, processor time", "µs/req"),
    ),
    prepare=prepare,
    method=(
        f"{CONNECTIONS} connections, Hypercorn's own command. One worker has a core for itself. With two cores in all, "
        "two workers share them with generator and upstream; the rate is then divided by the share of both cores' time "
        "that these did not take. With more cores the load has its own, and nothing is corrected."
    ),
)
