"""What happens, in numbers, for Prometheus.

Theory: each thing that is counted has one function here, called where it happens; nothing else knows the metrics
library. Hypercorn's workers write their numbers into files of one folder, so whichever of them is asked tells of all.
Editing rule: a label's values are few and known beforehand: statuses, kinds, aliases of the configuration, tools that
there are; never a user, a session or a word of a message.

Source: https://prometheus.io/docs/practices/naming/
"""

from __future__ import annotations

import os
from functools import lru_cache
from typing import Any

from .worker_folder import worker_folder

if (folder := worker_folder()) is not None:
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(folder)

# The library decides at its import where it keeps its numbers.
from prometheus_client import (
    CONTENT_TYPE_LATEST,
    REGISTRY,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    generate_latest,
)
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead

# Seconds. A model answers in tenths of a second at best, and an agent may take minutes.
BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)

REQUESTS = Counter("picoclaw_requests", "Requests by the status of their answer; 499: the client left.", ["status"])
TURN_SECONDS = Histogram("picoclaw_turn_seconds", "Turns that gave a reply.", ["model"], buckets=BUCKETS)
ATTEMPT_SECONDS = Histogram(
    "picoclaw_upstream_attempt_seconds",
    "Calls of an upstream, by how they ended.",
    ["model", "outcome"],
    buckets=BUCKETS,
)
TURNS_RUNNING = Gauge("picoclaw_turns_running", "Turns in flight.", multiprocess_mode="livesum")
REQUESTS_WAITING = Gauge("picoclaw_requests_waiting", "Requests in line for a turn.", multiprocess_mode="livesum")
TOKENS = Counter("picoclaw_tokens", "Tokens as the upstreams counted them.", ["model", "kind"])
RETRIES = Counter("picoclaw_retries", "Targets asked again, by the failure before.", ["model", "kind"])
FALLBACKS = Counter("picoclaw_fallbacks", "Targets given up for the next one.", ["model", "kind"])
TOOL_SECONDS = Histogram(
    "picoclaw_tool_seconds",
    "Calls of the agent's own tools, by how they ended.",
    ["tool", "outcome"],
    buckets=BUCKETS,
)
STATE_WRITES = Counter("picoclaw_state_writes", "Writes of session state.", ["outcome"])


@lru_cache(maxsize=4096)
def _child(metric: Any, *labels: object) -> Any:
    """The metric for these labels; the library looks it up under a lock each time."""
    return metric.labels(*labels)


def note_request(status: int) -> None:
    _child(REQUESTS, status).inc()


def note_turn(model: str, seconds: float) -> None:
    _child(TURN_SECONDS, model).observe(seconds)


def note_attempt(model: str, outcome: str, seconds: float) -> None:
    """*outcome*: ``ok``, ``cancelled``, or the kind of failure."""
    _child(ATTEMPT_SECONDS, model, outcome).observe(seconds)


def note_tokens(model: str, prompt: int, completion: int) -> None:
    _child(TOKENS, model, "prompt").inc(prompt)
    _child(TOKENS, model, "completion").inc(completion)


def note_retry(model: str, kind: str) -> None:
    _child(RETRIES, model, kind).inc()


def note_fallback(model: str, kind: str) -> None:
    _child(FALLBACKS, model, kind).inc()


def note_tool_call(tool: str, outcome: str, seconds: float) -> None:
    """*outcome*: ``ok``, ``error``, ``timeout`` or ``cancelled``."""
    _child(TOOL_SECONDS, tool, outcome).observe(seconds)


def note_state_write(outcome: str) -> None:
    _child(STATE_WRITES, outcome).inc()


def note_load(running: int, waiting: int) -> None:
    TURNS_RUNNING.set(running)
    REQUESTS_WAITING.set(waiting)


def forget_this_process() -> None:
    """At a worker's end: its turns in flight are no more. Its counts stay."""
    if "PROMETHEUS_MULTIPROC_DIR" in os.environ:
        mark_process_dead(os.getpid())  # type: ignore[no-untyped-call]  # the library has no types here


def expose() -> tuple[bytes, str]:
    """All numbers in Prometheus' text format, and its content type."""
    registry = REGISTRY
    if "PROMETHEUS_MULTIPROC_DIR" in os.environ:
        registry = CollectorRegistry()
        MultiProcessCollector(registry)  # type: ignore[no-untyped-call]  # likewise
    return generate_latest(registry), CONTENT_TYPE_LATEST
