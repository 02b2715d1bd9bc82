"""What happens, in numbers, for Prometheus.

Theory: each thing that is counted has one function here, called where it happens; nothing else knows the metrics
library. The numbers are in the process. Hypercorn's workers write theirs down as well, where the others look, so
whichever of them is asked tells of all. The library has files for that, too, but writes into blocks that a full disk
does not have, which kills the process; so we use no more of it than that ``values.ValueClass`` makes each number.
Editing rule: a label's values are few and known beforehand: statuses, kinds, aliases of the configuration, tools that
there are; never a user, a session or a word of a message. No function here raises, whatever the disk does.

Source: https://prometheus.io/docs/practices/naming/
"""

from __future__ import annotations

import threading
from collections import Counter as Sums
from contextlib import suppress
from functools import lru_cache
from typing import Any

import orjson
from prometheus_client import (
    CONTENT_TYPE_LATEST,
    GC_COLLECTOR,
    PLATFORM_COLLECTOR,
    PROCESS_COLLECTOR,
    REGISTRY,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
    generate_latest,
    values,
)

from .shared_numbers import LIVE, SharedNumbers
from .worker_folder import worker_folder


class SharedValue(values.MutexValue):
    """A number of this process, written down for the others; it tells the sum of all.

    In place of the library's, which does neither.
    """

    def __init__(self, typ: str, metric: str, name: str, labels: Any, label_values: Any, *rest: Any, **more: Any):
        super().__init__(typ, metric, name, labels, label_values, *rest, **more)  # type: ignore[no-untyped-call]
        lifetime = LIVE if typ == "gauge" else ""
        self._key = lifetime + orjson.dumps([metric, name, dict(zip(labels, label_values, strict=True))]).decode()

    def inc(self, amount: float) -> None:
        with self._lock:
            self._value += amount
            shared.write(self._key, self._value)

    def set(self, value: float, timestamp: float | None = None) -> None:
        with self._lock:
            self._value = value
            shared.write(self._key, self._value)

    def get(self) -> float:
        with self._lock:
            return self._value + others[self._key]


others: Sums[str] = Sums()  # what the other workers had when the numbers were asked for
_exposing = threading.Lock()

if (folder := worker_folder()) is None:
    values.ValueClass = values.MutexValue
else:
    shared = SharedNumbers(folder)
    values.ValueClass = SharedValue
    disable_created_metrics()  # type: ignore[no-untyped-call]  # the library has no types here
    for of_this_process in (GC_COLLECTOR, PLATFORM_COLLECTOR, PROCESS_COLLECTOR):
        REGISTRY.unregister(of_this_process)

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
TURNS_RUNNING = Gauge("picoclaw_turns_running", "Turns in flight.")
REQUESTS_WAITING = Gauge("picoclaw_requests_waiting", "Requests in line for a turn.")
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
# Those with labels, without which there is nothing to find.
ALL = (REQUESTS, TURN_SECONDS, ATTEMPT_SECONDS, TOKENS, RETRIES, FALLBACKS, TOOL_SECONDS, STATE_WRITES)
METRICS: dict[str, Any] = {family.name: metric for metric in ALL for family in metric.describe()}


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


def expose() -> tuple[bytes, str]:
    """All numbers in Prometheus' text format, and its content type."""
    with _exposing:
        if folder is not None:
            _take(shared.of_others())
        return generate_latest(REGISTRY), CONTENT_TYPE_LATEST


def _take(sums: Sums[str]) -> None:
    """Let the metrics tell *sums* of the other workers besides their own, also for labels that only those have met."""
    others.clear()
    others.update(sums)
    for key in sums:
        metric, _, labels = orjson.loads(key.removeprefix(LIVE))
        labels.pop("le", None)  # a bucket's bound, which the library adds itself
        with suppress(KeyError, ValueError):  # of a worker that ended before we were upgraded
            METRICS[metric].labels(**labels)
