"""Requests drawn from the API's own schema, and then bent, sent to a real server: never a 500, always the right shape.

``PICOCLAW_TEST_FUZZ=10000`` draws more of them.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2
import orjson
import trio
from harness import HEADERS, make_config, serve_here
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from picoclaw_trio.shapes import Json

PATH = "/v1/chat/completions"
EXAMPLES = int(os.environ.get("PICOCLAW_TEST_FUZZ", "400"))
STRING = {"type": "string", "maxLength": 20}
NUMBER = {"type": "number", "minimum": -10, "maximum": 10}
NULL = {"type": "null"}
PART: Json = {
    "anyOf": [
        {"type": "object", "properties": {"type": {"const": "text"}, "text": STRING}, "required": ["type", "text"]},
        {
            "type": "object",
            "properties": {
                "type": {"const": "image_url"},
                "image_url": {"type": "object", "properties": {"url": STRING}, "required": ["url"]},
            },
            "required": ["type", "image_url"],
        },
    ]
}
FUNCTION = {"type": "object", "properties": {"name": STRING, "arguments": STRING}, "required": ["name", "arguments"]}
CALL = {
    "type": "object",
    "properties": {"id": STRING, "type": {"const": "function"}, "function": FUNCTION},
    "required": ["id", "type", "function"],
}
MESSAGE: Json = {
    "type": "object",
    "properties": {
        "role": {"enum": ["system", "developer", "user", "assistant", "tool", "function"]},
        "content": {"anyOf": [STRING, NULL, {"type": "array", "items": PART, "maxItems": 2}]},
        "name": STRING,
        "tool_call_id": STRING,
        "tool_calls": {"type": "array", "items": CALL, "maxItems": 2},
    },
    "required": ["role"],
}
# The request of the OpenAI API, as far as this gateway knows it.
REQUEST: dict[str, Json] = {
    "type": "object",
    "properties": {
        "messages": {"type": "array", "items": MESSAGE, "minItems": 1, "maxItems": 3},
        "model": {"enum": ["echo", "", None, "nobody"]},
        "user": {"anyOf": [STRING, NULL]},
        "stream": {"enum": [True, False, None]},
        "stream_options": {"type": "object", "properties": {"include_usage": {"type": "boolean"}}},
        "temperature": {"anyOf": [NUMBER, NULL]},
        "top_p": NUMBER,
        "n": {"enum": [1, 2, None]},
        "max_tokens": {"type": "integer", "minimum": -1, "maximum": 10},
        "stop": {"anyOf": [STRING, {"type": "array", "items": STRING, "maxItems": 2}]},
        "seed": {"type": "integer"},
        "logit_bias": {"type": "object", "additionalProperties": NUMBER, "maxProperties": 2},
        "tools": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {"type": {"const": "function"}, "function": FUNCTION},
                "required": ["type", "function"],
            },
            "maxItems": 2,
        },
        "response_format": {"type": "object", "properties": {"type": STRING}, "required": ["type"]},
    },
    "required": ["messages"],
}
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=5), inner, max_size=2),
    max_leaves=4,
)
ALLOWED = {200, 400, 404}


def drawn_from(schema: Json) -> st.SearchStrategy[Json]:
    """Values that *schema* allows; knows the words of JSON Schema that are used above."""
    if "const" in schema:
        return st.just(schema["const"])
    if "enum" in schema:
        return st.sampled_from(schema["enum"])
    if "anyOf" in schema:
        return st.one_of([drawn_from(each) for each in schema["anyOf"]])
    return DRAW[schema["type"]](schema)


def draw_object(schema: Json) -> st.SearchStrategy[Json]:
    fields = {name: drawn_from(field) for name, field in schema.get("properties", {}).items()}
    required = {name: fields[name] for name in schema.get("required", ())}
    optional = {name: field for name, field in fields.items() if name not in required}
    if "additionalProperties" in schema:
        return st.dictionaries(st.text(max_size=5), drawn_from(schema["additionalProperties"]), max_size=2)
    return st.fixed_dictionaries(required, optional=optional)


DRAW: dict[str, Callable[[Json], st.SearchStrategy[Json]]] = {
    "object": draw_object,
    "array": lambda schema: st.lists(
        drawn_from(schema["items"]), min_size=schema.get("minItems", 0), max_size=schema["maxItems"]
    ),
    "string": lambda schema: st.text(max_size=schema["maxLength"]),
    "number": lambda schema: st.floats(schema["minimum"], schema["maximum"]),
    "integer": lambda schema: st.integers(schema.get("minimum", -(2**63)), schema.get("maximum", 2**63)),
    "boolean": lambda schema: st.booleans(),
    "null": lambda schema: st.none(),
}
REQUESTS = drawn_from(REQUEST)


@st.composite
def bent_requests(draw: st.DrawFn) -> dict[str, Any]:
    """A request that the schema allows, in half of the cases with something else in one place."""
    request: dict[str, Any] = draw(REQUESTS)
    if draw(st.booleans()):
        place = draw(st.sampled_from([*REQUEST["properties"], "no_such_field"]))
        request[place] = draw(ANYTHING)
    return request


async def test_no_request_gets_anything_but_an_answer_or_a_clear_refusal(tmp_path: Path) -> None:
    async with serve_here(tmp_path, make_config(streaming=True)) as server:
        seen = await trio.to_thread.run_sync(fuzz, server.url)

    assert ALLOWED >= seen.keys()
    assert all(seen[status] for status in (200, 400)), "the draw had both kinds"


def fuzz(url: str) -> Counter[int]:
    seen: Counter[int] = Counter()
    with httpx2.Client(base_url=url, headers=HEADERS, trust_env=False, timeout=20) as client:

        @settings(max_examples=EXAMPLES, deadline=None, database=None, suppress_health_check=list(HealthCheck))
        @given(bent_requests())
        def send(request: dict[str, Any]) -> None:
            answer = client.post(PATH, content=orjson.dumps(request))
            seen[answer.status_code] += 1
            check(answer)

        send()
    return seen


def check(answer: httpx2.Response) -> None:
    if answer.status_code != 200:
        error = answer.json()["error"]
        assert {"message", "type", "param", "code"} == error.keys()
        assert isinstance(error["message"], str)
        assert error["code"] is None or isinstance(error["code"], str)
    elif answer.headers["content-type"] == "text/event-stream":
        assert answer.text.endswith("data: [DONE]\n\n")
    else:
        assert "chat.completion" == answer.json()["object"]
