"""Does a gateway that remembers very many sessions answer more slowly?"""

from __future__ import annotations

import json
from datetime import UTC, datetime

from ._tools.lanes import Lane, measure_by_turns
from ._tools.loads import MODEL, request
from ._tools.servers import gateway_home, start_gateway
from ._tools.stage import Server, Stage
from ._tools.values import BenchmarkError, Figure, Measure, Question, Sample

CONNECTIONS = 32
FEW, MANY = 10, 100_000
ASKED = 1000  # different requests; with few sessions each of these is asked for often


def prepare(stage: Stage) -> Measure:
    few = start_with_sessions(stage, FEW)
    many = start_with_sessions(stage, stage.settings.scaled(MANY))

    def measure() -> Sample:
        small, large = measure_by_turns(stage, Lane(few, CONNECTIONS), Lane(many, CONNECTIONS))
        return {
            "ratio": large.rate / small.rate,
            "by_cpu": small.cpu / large.cpu,
            "few": small.rate,
            "many": large.rate,
            "few_cpu": small.cpu * 1e6,
            "many_cpu": large.cpu * 1e6,
        }

    return measure


def start_with_sessions(stage: Stage, count: int) -> Server:
    """A gateway that finds *count* sessions on disk, each of which has selected the one model."""
    name = f"gateway-{count}-sessions"
    home = gateway_home(stage, name)["PICOCLAW_HOME"]
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    row = {"model": MODEL, "updated_at": now}
    sessions = {f"openai:user-{number}": row for number in range(count)}
    path = stage.home(name) / "picoclaw" / "openai_sessions.json"
    assert path.is_relative_to(home)
    path.write_text(json.dumps({"version": 1, "global": None, "sessions": sessions}))
    requests = [request(user=f"user-{number * max(1, count // ASKED) % count}") for number in range(ASKED)]
    server = start_gateway(stage, name, requests=requests, model_scope="session", max_sessions=2 * count)
    kept = len(json.loads(path.read_bytes())["sessions"])
    if kept < count:
        raise BenchmarkError(f"the gateway kept {kept} of {count} sessions")
    return server


QUESTION = Question(
    name="sessions",
    text=f"requests/s with {MANY:,} stored sessions ÷ with {FEW}",
    figures=(
        Figure("ratio", f"{MANY:,} ÷ {FEW} sessions", at_least=0.95),
        Figure("by_cpu", "the same by processor time"),
        Figure("few", f"{FEW} sessions", "req/s"),
        Figure("many", f"{MANY:,} sessions", "req/s"),
        Figure("few_cpu", f"{FEW} sessions, processor time", "µs/req"),
        Figure("many_cpu", f"{MANY:,} sessions, processor time", "µs/req"),
    ),
    prepare=prepare,
    method="Scope session; each request names the model that its session has selected, and its user is another's.",
)
