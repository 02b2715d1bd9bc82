"""How much quicker than other gateways in front of the same upstream?"""

from __future__ import annotations

from ._tools import peers
from ._tools.lanes import Lane, measure_by_turns
from ._tools.servers import gateway
from ._tools.stage import Stage
from ._tools.values import Figure, Measure, NotAsked, Question, Sample

CONNECTIONS = 32


def prepare(stage: Stage) -> Measure:
    if not stage.settings.peers:
        raise NotAsked("--peers names none")
    others = {name: peers.start(stage, name) for name in sorted(stage.settings.peers)}
    lanes = [Lane(server, CONNECTIONS) for server in (gateway(stage), *others.values())]

    def measure() -> Sample:
        mine, *theirs = measure_by_turns(stage, *lanes)
        sample = {"gateway": mine.rate, "gateway_cpu": mine.cpu * 1e3}
        for name, cell in zip(others, theirs, strict=True):
            sample |= {name: cell.rate, f"{name}_ratio": mine.rate / cell.rate, f"{name}_cpu": cell.cpu * 1e3}
        return sample

    return measure


QUESTION = Question(
    name="peers",
    text=f"requests/s at {CONNECTIONS} connections ÷ LiteLLM proxy's (1 worker, same upstream, master key on)",
    figures=(
        Figure("litellm_ratio", "gateway ÷ LiteLLM", at_least=10),
        Figure("nanobot_ratio", "gateway ÷ nanobot"),
        Figure("gateway", "gateway", "req/s"),
        Figure("litellm", "LiteLLM", "req/s"),
        Figure("nanobot", "nanobot", "req/s"),
        Figure("gateway_cpu", "gateway, processor time", "ms/req"),
        Figure("litellm_cpu", "LiteLLM, processor time", "ms/req"),
        Figure("nanobot_cpu", "nanobot, processor time", "ms/req"),
    ),
    prepare=prepare,
    method=(
        "Not equal work: LiteLLM also counts costs and calls its hooks; nanobot builds an agent's whole prompt and "
        "keeps the history. It is what a user of each gets in front of a model that costs nothing."
    ),
)
