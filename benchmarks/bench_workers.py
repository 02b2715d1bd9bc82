"""What does a second worker on a second core bring?"""

from __future__ import annotations

from collections.abc import Mapping

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
        before = two.server.process.cpu_of_each()
        alone, both = measure_by_turns(stage, one, two)
        busier = share_of_busiest(before, two.server.process.cpu_of_each())
        left = 2.0 if cores.are_apart else 2.0 - both.load_cpu
        return {
            "ratio": alone.cpu / (both.cpu * busier),
            "rates": both.rate / alone.rate,
            "less_load": both.rate * 2 / left / alone.rate,
            "busier": busier,
            "one": alone.rate,
            "two": both.rate,
            "load_share": 1 - left / 2,
            "one_cpu": alone.cpu * 1e6,
            "two_cpu": both.cpu * 1e6,
        }

    return measure


def share_of_busiest(before: Mapping[int, float], after: Mapping[int, float]) -> float:
    """How much of all processor time that was spent in between the busiest process had."""
    spent = [seconds - before.get(pid, 0.0) for pid, seconds in after.items()]
    return max(spent) / sum(spent)


QUESTION = Question(
    name="workers",
    text="requests/s with 2 workers on 2 cores ÷ 1 worker on 1 core",
    figures=(
        Figure("less_load", "2 workers ÷ 1, without the load's share", at_least=1.7),
        Figure("rates", "2 workers ÷ 1, rates as measured"),
        Figure("ratio", "2 workers ÷ 1, by processor time and balance"),
        Figure("busier", "share of the busier worker"),
        Figure("one", "1 worker", "req/s"),
        Figure("two", "2 workers", "req/s"),
        Figure("load_share", "share of both cores that the load took"),
        Figure("one_cpu", "1 worker, processor time", "µs/req"),
        Figure("two_cpu", "2 workers, processor time", "µs/req"),
    ),
    prepare=prepare,
    method=(
        f"{CONNECTIONS} connections, Hypercorn's own command. One worker has a core for itself, the load another; two "
        "workers share two cores with generator and upstream where there are no more. So the rate of two workers is "
        "divided by the share of both cores' time that these did not take, which is measured. Below it the rates as "
        "they came, and what no neighbour can take: how many requests a second of processor time answers in two "
        "workers against one, less what the busier worker has above its half, since it would be full first."
    ),
)
